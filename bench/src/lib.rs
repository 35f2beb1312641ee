//! Counts what Rampart costs, operation by operation, beside Linux's protected KVM on the same emulated CPU.
//!
//! [`operation`] lists what both can do, [`peer`] measures Linux, [`compare`] puts the figures beside each other.
#![forbid(unsafe_code)]

pub mod compare;
pub mod operation;
pub mod peer;
