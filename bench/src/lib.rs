//! Counts what Rampart costs, operation by operation, beside Linux's protected KVM on the same emulated CPU.
//!
//! [`figures`] lists what is measured of Rampart, [`ours`] measures it, [`baseline`] holds it to the committed figures;
//! [`operation`] lists what both hypervisors can do, [`peer`] measures Linux, [`compare`] puts the two beside each other;
//! [`linux_cost`] boots Linux on both, [`carve_out`] says what they keep of its RAM; [`curves`] shows how figures grow, [`plot`] draws them, [`size`] says how large the hypervisor is; [`page`] writes docs/performance.md.
#![forbid(unsafe_code)]

pub mod baseline;
pub mod boot;
pub mod carve_out;
pub mod compare;
pub mod curves;
mod debugger;
pub mod figures;
pub mod linux_cost;
pub mod operation;
pub mod ours;
pub mod page;
pub mod peer;
pub mod peer_file;
pub mod peer_linux;
pub mod plot;
pub mod size;
