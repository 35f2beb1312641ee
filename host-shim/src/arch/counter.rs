//! A counter of the instructions that this CPU executes below EL2, the host's and its guests', where the PMU has one.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ID_AA64DFR0_EL1, Readable};
use core::arch::asm;

/// INST_RETIRED, as a number of an event and of its bit in PMCEID0_EL0.
const RETIRED: u64 = 8;
/// The first counter.
const COUNTER: u64 = 1 << 0;
/// PMCR_EL0: counting is enabled.
const ENABLED: u64 = 1 << 0;

/// Starts the counter; false if there is none. EL2 is not counted: the bit of the event's filter that would ask for
/// it, NSH, is clear, and the hypervisor forbids it.
pub(super) fn start() -> bool {
    let version = ID_AA64DFR0_EL1.get() >> 8 & 0xf;
    if version == 0 || version == 0xf {
        return false;
    }
    let events: u64;
    // SAFETY: the PMU is there, and reading which events it counts has no side effect.
    unsafe { asm!("mrs {}, pmceid0_el0", out(reg) events, options(nomem, nostack)) };
    if events >> RETIRED & 1 == 0 {
        return false;
    }
    // SAFETY: no Rust code depends on the PMU; its interrupts stay disabled.
    unsafe {
        asm!(
            "msr pmevtyper0_el0, {event}",
            "msr pmcntenset_el0, {counter}",
            "msr pmcr_el0, {enabled}",
            "isb",
            event = in(reg) RETIRED,
            counter = in(reg) COUNTER,
            enabled = in(reg) ENABLED,
            options(nostack)
        );
    }
    true
}

/// The lower 32 bits of what was counted so far.
pub(super) fn read() -> u32 {
    let count: u64;
    barrier::isb(barrier::SY);
    // SAFETY: reading a counter has no side effect; who calls has seen that there is one.
    unsafe { asm!("mrs {}, pmevcntr0_el0", out(reg) count, options(nomem, nostack)) };
    let [a, b, c, d, ..] = count.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
