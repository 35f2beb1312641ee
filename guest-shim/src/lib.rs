//! The guest of Rampart's tests and demo. Its VMM says in x0 which payload runs; the payload uses
//! what a virtual machine has, and reports in a mailbox page what it saw.
//!
//! [`cpu`] is the seam, which the image's `arch` (MMU, exceptions, vCPUs) implements; [`payloads`] are plain safe
//! Rust; [`protocol`] is what guest and VMM agree on.
#![no_std]
#![forbid(unsafe_code)]
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test program: an overflow is a panic, the panic is reported, and that is a verdict"
)]

#[cfg(test)]
extern crate std;

pub mod cpu;
pub mod payloads;
pub mod protocol;
