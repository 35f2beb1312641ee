//! What the programs at EL1, host shim and guest shim, have in common: the Image header and the way
//! to their first instruction, exception vectors, and calls with every register in view.
//!
//! The types are for any machine; `arch` is for the bare metal that the programs run on.
#![no_std]
#![deny(unsafe_code)]

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub mod arch;
pub mod random;

/// x0..x17.
pub type Regs = [u64; 18];

/// The immediate of an HVC or SMC: the one that means something, and two that must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imm {
    /// 0.
    Zero,
    /// 1.
    One,
    /// 0xffff.
    Max,
}

/// A run of calls that is timed as a whole: x0 = `id`, x1 = `arg1` plus `stride` each time, x2 =
/// `arg2`, x3 = 0.
#[derive(Clone, Copy, Debug)]
pub struct CallRun {
    /// Function id.
    pub id: u32,
    /// First x1.
    pub arg1: u64,
    /// What x1 grows by.
    pub stride: u64,
    /// x2 of each call.
    pub arg2: u64,
    /// Number of calls, at least 1.
    pub count: u64,
}
