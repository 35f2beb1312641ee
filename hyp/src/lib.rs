//! Rampart's portable core: everything that decides, without an instruction that only Arm has.
//!
//! It builds and is tested on the developer's own machine; [`hw`] is the one door through which
//! it reaches hardware. The image in `main.rs` wires it to `arch`.
//!
//! Who may know whom, from the known to the knower:
//! `abi <- addr <- pgtable <- mm <- mem_protect <- {mmio_guard, ipa_state <- guest, snapshot} <- hcall <- main`.
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod error;
pub mod exception;
pub mod fault;
pub mod guest;
pub mod hcall;
pub mod hw;
pub mod ipa_state;
pub mod lock;
pub mod mem_protect;
pub mod mm;
pub mod mmio_guard;
pub mod mte;
pub mod pgtable;
pub mod platform;
pub mod psci;
#[cfg(feature = "debug-snapshot")]
pub mod snapshot;
#[cfg(feature = "spec")]
pub mod spec;

pub use error::Error;
