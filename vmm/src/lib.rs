//! The devices of a virtual machine whose guest is an operating system that nobody changed.
//!
//! Models only: a register access goes in, a value and what follows from it come out. Who runs the
//! vCPUs, where guest memory is and what takes the console's bytes is the user's affair, so nothing
//! here allocates, waits, or reaches hardware, and a VM is one [`Devices`] that the user keeps
//! behind a lock of its own.
//!
//! Every input is the guest's and may be anything. An access to a register that does not exist reads
//! as zero and is ignored, as GIC and PL011 say; one to an address where no device is
//! is [`NoDevice`], for which the guest gets an external abort.
//!
//! Addresses are those of the device tree. A realm reaches its devices in the shared half of its
//! address space: the user takes that bit away first.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod bus;
pub mod fdt;
pub mod gic;
pub mod layout;
pub mod pl011;
pub mod vcpu;
pub mod virtio;
pub mod width;

pub use bus::{Devices, Effect, NoDevice};
pub use gic::Gic;
pub use pl011::Pl011;
pub use vcpu::{VcpuCount, VcpuIndex, VcpuSet};
pub use width::Width;
