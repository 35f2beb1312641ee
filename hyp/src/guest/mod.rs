//! VMs and vCPUs: how they live, what they are shown, and what the host learns of them.
//!
//! The pure half decides without touching a table: [`exit`] decodes a syndrome, [`fault`] routes
//! an abort, [`mmio`] completes an emulated access, [`sysregs`] and [`idregs`] say what CPU a guest
//! sees, [`traps`] what EL2 traps to keep it so, [`psci`] which vCPU is on, [`calls`] what a guest
//! asks for, [`gic`] what may be injected, [`record`] what the host is shown.
#![forbid(unsafe_code)]

pub mod calls;
pub mod context;
pub mod exit;
pub mod fault;
pub mod gic;
pub mod idregs;
pub mod mmio;
pub mod psci;
pub mod pstate;
pub mod record;
pub mod sysregs;
pub mod traps;
