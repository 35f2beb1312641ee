//! HVC and SMC with every register in view, and the loop that times calls.

use crate::{CallRun, Imm, Regs};
use core::arch::asm;

macro_rules! conduit {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// What the call has done to memory is done to none that a Rust object lives in.
        #[must_use]
        pub unsafe fn $name(imm: Imm, regs: &Regs) -> Regs {
            macro_rules! make {
                ($imm:literal) => {{
                    let mut r = *regs;
                    let [x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17] =
                        &mut r;
                    // SAFETY: who answers changes x0..x17 at most; for memory the caller answers.
                    unsafe {
                        asm!(
                            concat!($instruction, " #", $imm),
                            inout("x0") *x0, inout("x1") *x1, inout("x2") *x2, inout("x3") *x3,
                            inout("x4") *x4, inout("x5") *x5, inout("x6") *x6, inout("x7") *x7,
                            inout("x8") *x8, inout("x9") *x9, inout("x10") *x10, inout("x11") *x11,
                            inout("x12") *x12, inout("x13") *x13, inout("x14") *x14,
                            inout("x15") *x15, inout("x16") *x16, inout("x17") *x17,
                            options(nostack)
                        );
                    }
                    r
                }};
            }
            match imm {
                Imm::Zero => make!("0"),
                Imm::One => make!("1"),
                Imm::Max => make!("0xffff"),
            }
        }
    };
}

conduit!(
    /// HVC: a call to the hypervisor.
    hvc, "hvc"
);
conduit!(
    /// SMC: a call to firmware, or to whoever stands before it.
    smc, "smc"
);

/// What a timed run of calls saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedCalls {
    /// Ticks of the virtual counter that it took.
    pub ticks: u64,
    /// x0 of every call, ORed.
    pub x0: u64,
    /// x1 of every call, ORed.
    pub x1: u64,
}

macro_rules! call_loop {
    ($run:expr, $call:literal) => {{
        let run: &CallRun = $run;
        let (start, end, x0, x1): (u64, u64, u64, u64);
        // SAFETY: as for a single call; the loop's registers are all named.
        unsafe {
            asm!(
                "mov x8, #0",
                "mov x13, #0",
                "isb",
                "mrs x14, cntvct_el0",
                "2:",
                "mov x0, x9",
                "mov x1, x10",
                "mov x2, x11",
                "mov x3, #0",
                $call,
                "orr x8, x8, x0",
                "orr x13, x13, x1",
                "add x10, x10, x15",
                "subs x12, x12, #1",
                "b.ne 2b",
                "isb",
                "mrs x9, cntvct_el0",
                out("x8") x0,
                inout("x9") u64::from(run.id) => end,
                inout("x10") run.arg1 => _,
                in("x11") run.arg2,
                inout("x12") run.count => _,
                out("x13") x1,
                out("x14") start,
                in("x15") run.stride,
                out("x0") _, out("x1") _, out("x2") _, out("x3") _,
                options(nostack)
            );
        }
        TimedCalls { ticks: end.wrapping_sub(start), x0, x1 }
    }};
}

/// Times a run of HVC #0, or with `call` false of NOPs in their place.
///
/// # Safety
/// As for [`hvc`].
#[must_use]
pub unsafe fn time_calls(run: &CallRun, call: bool) -> TimedCalls {
    if call { call_loop!(run, "hvc #0") } else { call_loop!(run, "nop") }
}
