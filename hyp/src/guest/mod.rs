//! VMs and vCPUs: how they live, what they are shown, and what the host learns of them.
//!
//! The pure half decides without touching a table: [`exit`] decodes a syndrome, [`fault`] makes an
//! abort the guest's own ([`crate::mmio_guard`] says which are, and what of the others is shown),
//! [`sysregs`] and [`idregs`] say what CPU a guest sees, [`traps`] what EL2 traps to keep it so, [`psci`] which vCPU is on, [`calls`] what a guest
//! asks for and [`rsi`] what one with split IPA does, [`gic`] what may be injected, [`record`] what the host is shown.
//!
//! [`Vms`] has all VMs; its functions are the host's calls about them. [`CpuState`] is what one
//! physical CPU has of them. Locks: see [`Vms`].
#![forbid(unsafe_code)]

pub mod calls;
pub mod context;
mod cpu;
mod create;
pub mod exit;
pub mod fault;
pub mod gic;
mod guard;
pub mod idregs;
mod memory;
pub mod psci;
pub mod pstate;
mod realm;
pub mod record;
mod ripas;
pub mod rsi;
mod run;
#[cfg(feature = "debug-snapshot")]
mod snapshot;
pub mod sysregs;
mod tags;
mod teardown;
pub mod traps;
mod vcpu;
mod vms;

pub use cpu::{CpuState, Share};
pub use create::{Named, VcpuRequest, VmRequest};
pub use teardown::{Finish, FinishError};
pub use vms::{Config, Phase, Progress, Vms};
