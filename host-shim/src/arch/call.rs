//! HVC and SMC with every register in view, and the loops that time calls and loads.

use crate::machine::{CallRun, Imm, Regs, Timed, TurnRun};
use abi::HostFn;
use core::arch::asm;

macro_rules! conduit {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        pub(super) fn $name(imm: Imm, regs: &Regs) -> Regs {
            macro_rules! make {
                ($imm:literal) => {{
                    let mut r = *regs;
                    let [x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17] =
                        &mut r;
                    // SAFETY: EL2 and firmware change x0..x17 at most, and no memory that a Rust
                    // object lives in: scenarios give away pages of the shim's allocator only.
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

macro_rules! call_loop {
    ($run:expr, $call:literal) => {{
        let run: &CallRun = $run;
        let (start, end, status): (u64, u64, u64);
        // SAFETY: as for a single call; the loop's registers are all named.
        unsafe {
            asm!(
                "mov x13, #0",
                "isb",
                "mrs x14, cntvct_el0",
                "2:",
                "mov x0, x9",
                "mov x1, x10",
                "mov x2, x11",
                "mov x3, #0",
                $call,
                "orr x13, x13, x0",
                "orr x13, x13, x1",
                "add x10, x10, x15",
                "subs x12, x12, #1",
                "b.ne 2b",
                "isb",
                "mrs x9, cntvct_el0",
                inout("x9") u64::from(run.id) => end,
                inout("x10") run.arg1 => _,
                in("x11") run.arg2,
                inout("x12") run.count => _,
                out("x13") status,
                out("x14") start,
                in("x15") run.stride,
                out("x0") _, out("x1") _, out("x2") _, out("x3") _,
                options(nostack)
            );
        }
        Timed { ticks: end.wrapping_sub(start), status }
    }};
}

/// Times a run of calls, or of NOPs in their place.
pub(super) fn time_calls(run: &CallRun, call: bool) -> Timed {
    if call { call_loop!(run, "hvc #0") } else { call_loop!(run, "nop") }
}

// The block at x8 holds x1..x5 and, behind them, their strides.
macro_rules! turn_loop {
    ($run:expr, $supply:literal, $turn:literal) => {{
        let run: &TurnRun = $run;
        let ([a, b, c, d, e], [p, q, r]) = (run.args, run.strides);
        let block = [a, b, c, d, e, p, q, r];
        let (start, end, status): (u64, u64, u64);
        // SAFETY: as for a single call; the loop's registers are all named, and it reads `block`.
        unsafe {
            asm!(
                "mov x13, #0",
                "ldp x1, x2, [x8]",
                "ldp x3, x4, [x8, #16]",
                "ldr x5, [x8, #32]",
                "isb",
                "mrs x14, cntvct_el0",
                "2:",
                "mov x6, x1",
                "mov x7, x2",
                "mov x15, x3",
                "mov x0, x9",
                $supply,
                "orr x13, x13, x0",
                "orr x13, x13, x1",
                "mov x0, x10",
                $turn,
                "orr x13, x13, x0",
                "orr x13, x13, x1",
                "ldp x0, x1, [x8, #40]",
                "add x1, x1, x7",
                "add x0, x0, x6",
                "ldr x3, [x8, #56]",
                "add x3, x3, x15",
                "mov x2, x1",
                "mov x1, x0",
                "subs x12, x12, #1",
                "b.ne 2b",
                "isb",
                "mrs x9, cntvct_el0",
                in("x8") block.as_ptr(),
                inout("x9") u64::from(run.id) => end,
                in("x10") u64::from(HostFn::VcpuRun.id()),
                inout("x12") run.count => _,
                out("x13") status,
                out("x14") start,
                out("x15") _,
                out("x0") _, out("x1") _, out("x2") _, out("x3") _,
                out("x4") _, out("x5") _, out("x6") _, out("x7") _,
                options(nostack, readonly)
            );
        }
        Timed { ticks: end.wrapping_sub(start), status }
    }};
}

/// Times a run of turns, or of NOPs in the place of its calls.
pub(super) fn time_turns(run: &TurnRun, call: bool) -> Timed {
    match (call, run.id) {
        (false, _) => turn_loop!(run, "nop", "nop"),
        (true, 0) => turn_loop!(run, "nop", "hvc #0"),
        (true, _) => turn_loop!(run, "hvc #0", "hvc #0"),
    }
}

/// Times loads that are `stride` apart.
pub(super) fn time_loads(first: u64, stride: u64, count: u64) -> u64 {
    let (start, end): (u64, u64);
    // SAFETY: loads from RAM that the host owns change nothing; one that faults ends the machine.
    unsafe {
        asm!(
            "isb",
            "mrs x9, cntvct_el0",
            "2:",
            "ldr xzr, [x10]",
            "add x10, x10, x11",
            "subs x12, x12, #1",
            "b.ne 2b",
            "isb",
            "mrs x13, cntvct_el0",
            out("x9") start,
            inout("x10") first => _,
            in("x11") stride,
            inout("x12") count => _,
            out("x13") end,
            options(nostack, readonly)
        );
    }
    end.wrapping_sub(start)
}
