//! Calls, and the loops that never end.

use core::arch::asm;
use el1::Imm;
use guest_shim::cpu::{CallRun, Regs};

/// HVC #0.
pub(super) fn hvc(regs: &Regs) -> Regs {
    // SAFETY: payloads give away scratch pages only, in which no Rust object lives.
    unsafe { el1::arch::hvc(Imm::Zero, regs) }
}

/// SMC #0.
pub(super) fn smc(regs: &Regs) -> Regs {
    // SAFETY: as for `hvc`.
    unsafe { el1::arch::smc(Imm::Zero, regs) }
}

/// Times a run of calls, or of NOPs in their place: ticks, and x0 of every call ORed.
pub(super) fn time_calls(run: &CallRun) -> (u64, u64) {
    // SAFETY: as for `hvc`.
    let timed = unsafe { el1::arch::time_calls(run, run.id != 0) };
    (timed.ticks, timed.x0)
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
pub(super) fn touch_for_ever(address: u64, step: u64) -> ! {
    // SAFETY: scratch memory, in which no Rust object lives.
    unsafe {
        asm!("2: str xzr, [x0]", "add x0, x0, x1", "b 2b", in("x0") address, in("x1") step, options(noreturn))
    }
}

/// Calls with x3 = 1 and 0 in turn.
pub(super) fn claim_for_ever(id: u32, base: u64, top: u64) -> ! {
    // SAFETY: the calls change x0 to x2, and memory that no Rust object lives in.
    unsafe {
        asm!(
            "mov x3, #1",
            "mov x4, #1",
            "2: mov x0, x9",
            "mov x1, x10",
            "mov x2, x11",
            "smc #0",
            "eor x3, x3, #1",
            "b 2b",
            in("x9") u64::from(id),
            in("x10") base,
            in("x11") top,
            options(noreturn)
        )
    }
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
