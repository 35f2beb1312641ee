//! SMCs of the host: [`smc`] decides which there are, [`relay`] starts and stops CPUs.
//!
//! Every SMC of the host traps (HCR_EL2.TSC). What reaches firmware is an explicit list; the calls
//! that name an address to start at never carry the host's: firmware starts CPUs at EL2, so each
//! must come up in Rampart and is taken to the host's address behind stage 2 from there.
#![forbid(unsafe_code)]

pub mod relay;
pub mod smc;

pub use relay::{Relay, Start};
pub use smc::{Action, Reply};

use smccc::Call;

/// Makes an SMC32 to firmware; returns x0..x3 as the host gets them.
///
/// Status codes are 32-bit integers (SMCCC 5.2.2), so W0 is sign-extended whatever firmware
/// left in the upper half.
fn firmware32<C: Call>(function: u32, args: [u32; 3]) -> [u64; 4] {
    let [a, b, c] = args;
    let [status, x1, x2, x3, ..] = C::call32(function, [a, b, c, 0, 0, 0, 0]);
    let status = i64::from(status.cast_signed()).cast_unsigned();
    [status, u64::from(x1), u64::from(x2), u64::from(x3)]
}

/// Makes an SMC64 to firmware; returns x0..x3.
fn firmware64<C: Call>(function: u32, args: [u64; 3]) -> [u64; 4] {
    let mut registers = [0; 17];
    for (register, arg) in registers.iter_mut().zip(args) {
        *register = arg;
    }
    let [x0, x1, x2, x3, ..] = C::call64(function, registers);
    [x0, x1, x2, x3]
}
