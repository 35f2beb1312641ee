//! The first instructions of each CPU that are the shim's own.

use super::{boot_cpu, mmu, smp};
use crate::span::Span;
use core::arch::global_asm;

// The boot CPU comes from `el1`: x19 device tree, x20 counter at entry, x21 base.
global_asm!(
    r#"
    .section .text.start, "ax"
    .globl  start
start:
    msr     spsel, #1
    adrp    x1, _boot_stack_top
    add     x1, x1, :lo12:_boot_stack_top
    mov     sp, x1
    msr     tpidr_el1, xzr
    adrp    x1, exception_vectors
    add     x1, x1, :lo12:exception_vectors
    msr     vbar_el1, x1
    mov     x29, xzr
    mov     x30, xzr

    mov     x0, x21
    mov     x1, x19
    bl      {early_map}             // MMU still off; returns &Translation
    bl      enable_mmu
    mov     x0, x19
    mov     x1, x20
    bl      {boot_cpu}

    // x0 = &Secondary, clean to the point of coherency.
    .globl  secondary_entry
secondary_entry:
    msr     spsel, #1
    ldp     x2, x3, [x0]            // stack, index
    mov     sp, x2
    msr     tpidr_el1, x3
    adrp    x1, exception_vectors
    add     x1, x1, :lo12:exception_vectors
    msr     vbar_el1, x1
    mov     x29, xzr
    mov     x30, xzr
    mov     x19, x3
    add     x0, x0, #16
    bl      enable_mmu
    mov     x0, x19
    bl      {secondary_cpu}

    // x0 = &Translation. Turns the MMU off first, so it also serves to change the tables: no entry of
    // the old ones can meet one of the new in the TLB.
    .globl  enable_mmu
enable_mmu:
    ldp     x1, x2, [x0]            // TTBR0_EL1, TCR_EL1
    ldp     x3, x4, [x0, #16]       // MAIR_EL1, SCTLR_EL1
    mrs     x5, sctlr_el1
    bic     x5, x5, #1
    msr     sctlr_el1, x5
    isb
    msr     mair_el1, x3
    msr     tcr_el1, x2
    msr     ttbr0_el1, x1
    // A kernel that started this image may have left permissions indirect (TCR2_EL1.PIE): here entries have their own.
    mrs     x5, s3_0_c0_c7_3        // ID_AA64MMFR3_EL1
    tst     x5, #0xf                // TCRX
    b.eq    1f
    msr     s3_0_c2_c0_3, xzr       // TCR2_EL1
1:  isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el1, x4
    isb
    ret
"#,
    early_map = sym mmu::early_map,
    boot_cpu = sym boot_cpu,
    secondary_cpu = sym smp::secondary_cpu,
);

unsafe extern "C" {
    static _start_of_image: u8;
    static _written_end: u8;
    static secondary_entry: u8;
}

/// Memory that the running image takes up, BSS and boot stack included.
pub(super) fn image() -> Span {
    let start = (&raw const _start_of_image).expose_provenance();
    let end = (&raw const _written_end).expose_provenance();
    let (start, end) = (u64::try_from(start).unwrap_or(0), u64::try_from(end).unwrap_or(0));
    match Span::between(start, end) {
        Some(span) => span,
        None => super::fatal(format_args!("the image ends before it starts")),
    }
}

/// Where a secondary CPU enters.
pub(super) fn secondary_address() -> u64 {
    u64::try_from((&raw const secondary_entry).addr()).unwrap_or(0)
}
