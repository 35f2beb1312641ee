//! HVC with every register in view, the loop that times calls, and the loops that never end.

use core::arch::asm;
use guest_shim::cpu::{CallRun, Regs};

/// HVC #0.
pub(super) fn hvc(regs: &Regs) -> Regs {
    let mut r = *regs;
    let [x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17] = &mut r;
    // SAFETY: EL2 changes x0..x17 at most, and no memory that a Rust object lives in: payloads give
    // away scratch pages only.
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") * x0,
            inout("x1") * x1,
            inout("x2") * x2,
            inout("x3") * x3,
            inout("x4") * x4,
            inout("x5") * x5,
            inout("x6") * x6,
            inout("x7") * x7,
            inout("x8") * x8,
            inout("x9") * x9,
            inout("x10") * x10,
            inout("x11") * x11,
            inout("x12") * x12,
            inout("x13") * x13,
            inout("x14") * x14,
            inout("x15") * x15,
            inout("x16") * x16,
            inout("x17") * x17,
            options(nostack)
        );
    }
    r
}

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
        (end.wrapping_sub(start), status)
    }};
}

/// Times a run of calls, or of NOPs in their place.
pub(super) fn time_calls(run: &CallRun) -> (u64, u64) {
    if run.id == 0 { call_loop!(run, "nop") } else { call_loop!(run, "hvc #0") }
}

/// WFI for ever.
pub(super) fn idle() -> ! {
    // SAFETY: changes nothing.
    unsafe { asm!("2: wfi", "b 2b", options(noreturn)) }
}

/// Loads from a device for ever.
pub(super) fn load_for_ever(address: u64) -> ! {
    // SAFETY: a load from a device whose value nobody uses.
    unsafe { asm!("2: ldr w1, [x0]", "b 2b", in("x0") address, options(noreturn)) }
}

/// Stores to a device for ever.
pub(super) fn store_for_ever(address: u64) -> ! {
    // SAFETY: a store to a device, which changes no memory.
    unsafe { asm!("2: str w1, [x0]", "b 2b", in("x0") address, in("x1") 0_u64, options(noreturn)) }
}

/// Stores to one page after the other.
pub(super) fn touch_for_ever(address: u64) -> ! {
    // SAFETY: scratch memory, in which no Rust object lives.
    unsafe { asm!("2: str xzr, [x0]", "add x0, x0, #4096", "b 2b", in("x0") address, options(noreturn)) }
}

/// Idles with `value` in x0..x28.
pub(super) fn idle_with(value: u64) -> ! {
    // SAFETY: no code after this reads a register.
    unsafe {
        asm!(
            ".irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28",
            "mov x\\n, x0",
            ".endr",
            "2: wfi",
            "b 2b",
            in("x0") value,
            options(noreturn)
        )
    }
}

/// ERET to AArch32 EL0.
pub(super) fn enter_aarch32() -> ! {
    const AARCH32_USER: u64 = 0x10;
    // SAFETY: nothing runs after this: either EL2 ends the VM, or the vectors do.
    unsafe {
        asm!(
            "msr spsr_el1, {}",
            "msr elr_el1, xzr",
            "isb",
            "eret",
            in(reg) AARCH32_USER,
            options(noreturn)
        )
    }
}
