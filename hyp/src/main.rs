//! The EL2 image of Rampart: the portable core on real hardware.
//!
//! On any other target this is an empty program, so that the whole workspace builds and tests on
//! a developer's machine.
#![cfg_attr(all(target_arch = "aarch64", target_os = "none"), no_std, no_main)]

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod arch;

#[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
fn main() {}
