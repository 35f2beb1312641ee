//! Entering the host: the boot CPU once, every other CPU when the host powers it on.

use super::regs;
use core::arch::asm;

/// PSTATE of a host that starts: EL1h, all exceptions masked (Linux booting.rst).
const HOST_START: u64 = 0x3c5;

/// Returns to EL1 at `entry` with x0 = `x0`, the other general registers zero.
///
/// The CPU's EL2 stack is empty again from `stack_top` down. `cpu::prepare_host` has run.
pub(super) fn enter(entry: u64, x0: u64, stack_top: u64) -> ! {
    regs::set_elr_el2(entry);
    regs::set_spsr_el2(HOST_START);
    // SAFETY: ELR and SPSR describe EL1; nothing of this stack is used again; x1..x30 are zeroed
    // so that the host sees nothing of EL2.
    unsafe {
        asm!(
            "mov sp, x1",
            "mov x1, xzr", "mov x2, xzr", "mov x3, xzr", "mov x4, xzr", "mov x5, xzr", "mov x6, xzr",
            "mov x7, xzr", "mov x8, xzr", "mov x9, xzr", "mov x10, xzr", "mov x11, xzr", "mov x12, xzr",
            "mov x13, xzr", "mov x14, xzr", "mov x15, xzr", "mov x16, xzr", "mov x17, xzr", "mov x18, xzr",
            "mov x19, xzr", "mov x20, xzr", "mov x21, xzr", "mov x22, xzr", "mov x23, xzr", "mov x24, xzr",
            "mov x25, xzr", "mov x26, xzr", "mov x27, xzr", "mov x28, xzr", "mov x29, xzr", "mov x30, xzr",
            "eret",
            in("x0") x0,
            in("x1") stack_top,
            options(noreturn, nostack),
        )
    }
}
