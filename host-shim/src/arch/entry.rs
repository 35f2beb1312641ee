//! The Image header and the first instructions of each CPU.

use super::{boot_cpu, mmu, smp};
use crate::span::Span;
use core::arch::global_asm;

// Registers held through the boot CPU's path: x19 device tree, x20 counter at entry, x21 base.
global_asm!(
    r#"
    .section .head.text, "ax"
    .globl _start
_start:
    // arm64 Image header (Linux Documentation/arch/arm64/booting.rst).
    b       entry
    .long   0
    .quad   0                       // text_offset
    .quad   _image_size
    .quad   0xa                     // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

entry:
    mrs     x20, cntvct_el0
    mov     x19, x0
    adrp    x21, _start_of_image
    add     x21, x21, :lo12:_start_of_image

    // The image is linked at 0: every relocation is R_AARCH64_RELATIVE (1027).
    adrp    x1, _rela_start
    add     x1, x1, :lo12:_rela_start
    adrp    x2, _rela_end
    add     x2, x2, :lo12:_rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     w4, #1027
    b.ne    dead
    add     x5, x5, x21
    str     x5, [x3, x21]
    b       1b

2:  adrp    x1, _bss_start
    add     x1, x1, :lo12:_bss_start
    adrp    x2, _bss_end
    add     x2, x2, :lo12:_bss_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b

    // What was written with the MMU off must not hide behind lines that a loader left in the cache.
4:  mov     x1, x21
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x3, x4, x3
5:  dc      ivac, x1
    add     x1, x1, x3
    cmp     x1, x2
    b.lo    5b
    dsb     sy

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

dead:
    wfe
    b       dead

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
    isb
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
    static _bss_end: u8;
    static secondary_entry: u8;
}

/// Memory that the running image takes up, BSS and boot stack included.
pub(super) fn image() -> Span {
    let start = (&raw const _start_of_image).expose_provenance();
    let end = (&raw const _bss_end).expose_provenance();
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
