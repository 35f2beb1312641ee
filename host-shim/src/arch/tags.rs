//! Memory tags (FEAT_MTE2) of the host's own memory: with tags all RAM is mapped Tagged (`mmu`), and tag
//! instructions reach it.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{Readable, SCTLR_EL1, Writeable};
use core::arch::asm;

/// SCTLR_EL1.TCF = 1: a failed check is a synchronous exception.
const TCF_SYNC: u64 = 1 << 40;

/// True if the CPU has tags.
pub(super) fn exist() -> bool {
    let pfr1: u64;
    // SAFETY: reading an ID register has no side effect.
    unsafe { asm!("mrs {}, id_aa64pfr1_el1", out(reg) pfr1, options(nomem, nostack)) };
    pfr1 >> 8 & 0xf >= 2
}

/// The tag at `address`; 0 on a CPU without.
pub(super) fn load(address: u64) -> u64 {
    if !exist() {
        return 0;
    }
    let tagged: u64;
    // SAFETY: the CPU has the instruction, which changes x alone; the page is mapped.
    unsafe {
        asm!(
            ".arch_extension memtag",
            "ldg {0}, [{0}]",
            ".arch_extension nomemtag",
            inout(reg) address => tagged,
            options(nostack)
        );
    }
    tagged >> 56 & 0xf
}

/// Sets the tag at `address`.
pub(super) fn store(address: u64, tag: u64) {
    if !exist() {
        return;
    }
    // SAFETY: the CPU has the instruction. Callers name memory of the shim's allocator, which no Rust
    // object lives in, so no checked access of Rust's meets the tag.
    unsafe {
        asm!(
            ".arch_extension memtag",
            "stg {0}, [{1}]",
            ".arch_extension nomemtag",
            in(reg) address | (tag & 0xf) << 56,
            in(reg) address,
            options(nostack)
        );
    }
}

/// Checks loads and stores of this CPU, or not.
pub(super) fn check(on: bool) {
    if !exist() {
        return;
    }
    let control = SCTLR_EL1.get() & !(3 << 40);
    SCTLR_EL1.set(if on { control | TCF_SYNC } else { control });
    // SAFETY: all of Rust's memory has tag 0, as its pointers have.
    unsafe { asm!(".arch_extension memtag", "msr tco, #0", ".arch_extension nomemtag", options(nostack)) };
    barrier::isb(barrier::SY);
}

/// Sets the tag registers of this CPU, which must have them; what they were.
pub(super) fn swap_registers(values: [u64; 4]) -> [u64; 4] {
    if !exist() {
        return [0; 4];
    }
    let (rgsr, gcr, tfsr, tfsre0);
    let [to_rgsr, to_gcr, to_tfsr, to_tfsre0] = values;
    // SAFETY: reads registers that the CPU has, without side effects.
    unsafe {
        asm!(
            "mrs {0}, S3_0_C1_C0_5", "mrs {1}, S3_0_C1_C0_6", "mrs {2}, S3_0_C5_C6_0", "mrs {3}, S3_0_C5_C6_1",
            out(reg) rgsr, out(reg) gcr, out(reg) tfsr, out(reg) tfsre0,
            options(nomem, nostack)
        );
    }
    // SAFETY: Rust makes no random tags and collects no faults.
    unsafe {
        asm!(
            "msr S3_0_C1_C0_5, {0}", "msr S3_0_C1_C0_6, {1}", "msr S3_0_C5_C6_0, {2}", "msr S3_0_C5_C6_1, {3}",
            in(reg) to_rgsr, in(reg) to_gcr, in(reg) to_tfsr, in(reg) to_tfsre0,
            options(nomem, nostack)
        );
    }
    [rgsr, gcr, tfsr, tfsre0]
}
