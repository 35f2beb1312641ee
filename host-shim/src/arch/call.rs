//! Calls, and the loops that time turns and loads.

use crate::machine::{Before, CallRun, Imm, Regs, Timed, TurnRun};
use abi::HostFn;
use core::arch::asm;
use el1::arch::TimedCalls;

/// HVC: a call to the hypervisor.
pub(super) fn hvc(imm: Imm, regs: &Regs) -> Regs {
    // SAFETY: scenarios give away pages of the shim's allocator only, in which no Rust object lives.
    unsafe { el1::arch::hvc(imm, regs) }
}

/// SMC: a call to firmware, or to whoever stands before it.
pub(super) fn smc(imm: Imm, regs: &Regs) -> Regs {
    // SAFETY: as for `hvc`.
    unsafe { el1::arch::smc(imm, regs) }
}

/// Times a run of calls, or of NOPs in their place.
pub(super) fn time_calls(run: &CallRun, call: bool) -> Timed {
    // SAFETY: as for `hvc`.
    let TimedCalls { ticks, x0, x1 } = unsafe { el1::arch::time_calls(run, call) };
    Timed { ticks, status: x0 | x1 }
}

// The block at x8 holds x1..x5 and, behind them, their strides.
macro_rules! turn_loop {
    ($run:expr, $supply:literal, $turn:literal) => {{
        let run: &TurnRun = $run;
        let id = if let Before::Call(id) = run.before { id } else { 0 };
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
                inout("x9") u64::from(id) => end,
                in("x10") u64::from(HostFn::VcpuRun.id()),
                inout("x12") run.count => _,
                out("x13") status,
                out("x14") start,
                out("x15") _,
                out("x0") _, out("x1") _, out("x2") _, out("x3") _,
                out("x4") _, out("x5") _, out("x6") _, out("x7") _,
                options(nostack)
            );
        }
        Timed { ticks: end.wrapping_sub(start), status }
    }};
}

/// Times a run of turns, or of NOPs in the place of its calls.
pub(super) fn time_turns(run: &TurnRun, call: bool) -> Timed {
    match (call, run.before) {
        (false, _) => turn_loop!(run, "nop", "nop"),
        (true, Before::Nothing) => turn_loop!(run, "nop", "hvc #0"),
        (true, Before::Call(_)) => turn_loop!(run, "hvc #0", "hvc #0"),
        (true, Before::Store) => turn_loop!(run, "str x2, [x5]\n mov x0, #0\n mov x1, #0", "hvc #0"),
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
