//! The first instructions: from QEMU or a boot loader (boot CPU), and from firmware (the others).
//!
//! Invariant: until the MMU is on, everything here and in `boot` runs on the strictly aligned
//! accesses that the target emits, without read-modify-write atomics; both fault on the Device
//! memory that a CPU without MMU sees.
//!
//! The image begins with the arm64 `Image` header (Linux, Documentation/arch/arm64/booting.rst),
//! so that a loader passes the device tree in x0.

use super::percpu::PerCpu;
use core::arch::global_asm;
use core::mem::{offset_of, size_of};

global_asm!(
    r#"
    .pushsection .head, "ax"
    .global _start
_start:
    b       entry                       // code0
    .long   0                           // code1
    .quad   0                           // text_offset
    .quad   __image_size                // image_size: with the BSS and the boot stack
    .quad   0xa                         // flags: little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0
    .popsection

    .pushsection .text.entry, "ax"
    // x0 = device tree. Nothing else is promised.
entry:
    mrs     x20, cntpct_el0             // start of the boot time that is reported
    msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    park                        // not at EL2: no way to say so, stay out of the way
    mov     x21, x0

    // nVHE: clear HCR_EL2.E2H (bit 34) on CPUs that reset with it set.
    mov     x1, #(1 << 31)              // RW: EL1 is AArch64
    msr     hcr_el2, x1
    isb
    mrs     x22, hcr_el2                // read back: E2H may be fixed at 1

    adrp    x23, __image_start
    adrp    x1, __bss_start
    adrp    x2, __bss_end
1:  stp     xzr, xzr, [x1], #16
    cmp     x1, x2
    b.lo    1b

    // R_AARCH64_RELATIVE (1027) only: *(base + offset) = base + addend.
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
2:  cmp     x1, x2
    b.hs    3f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     w4, #1027
    b.ne    park
    add     x5, x5, x23
    str     x5, [x3, x23]
    b       2b
3:
    // What was written with caches off must not be shadowed by lines a loader left behind.
    dsb     sy
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x4, x4, x3
    adrp    x2, __image_end
    mov     x1, x23
4:  dc      ivac, x1
    add     x1, x1, x4
    cmp     x1, x2
    b.lo    4b
    dsb     sy
    ic      iallu
    dsb     sy
    isb

    adrp    x1, __boot_stack_top
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x21
    mov     x1, x22
    mov     x2, x20
    bl      {boot}
    // boot() switched the MMU on and returns the per-CPU record whose stack takes over.
    ldr     x1, [x0, #{stack_top}]
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    bl      {boot_host}
park:
    wfe
    b       park

    // A CPU that firmware started for us: x0 = its index. MMU and caches are off, so only what the
    // boot CPU cleaned to the point of coherency may be read before the MMU is on.
    .global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    park
    mov     x1, #(1 << 31)
    msr     hcr_el2, x1
    adrp    x1, {image}
    add     x1, x1, :lo12:{image}
    ldr     x1, [x1, #{records}]
    mov     x2, #{record}
    madd    x0, x0, x2, x1
    ldp     x1, x2, [x0, #{mair}]
    msr     mair_el2, x1
    msr     tcr_el2, x2
    ldp     x1, x2, [x0, #{ttbr0}]
    msr     ttbr0_el2, x1
    isb
    tlbi    alle2
    dsb     nsh
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x2
    isb
    ldr     x1, [x0, #{stack_top}]
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    bl      {secondary}
    b       park
    .popsection
    "#,
    boot = sym super::boot::boot,
    boot_host = sym super::boot::boot_host,
    secondary = sym super::boot::secondary,
    image = sym super::IMAGE,
    records = const offset_of!(super::Image, records),
    record = const size_of::<PerCpu>(),
    stack_top = const offset_of!(PerCpu, stack_top),
    mair = const offset_of!(PerCpu, mmu.mair),
    ttbr0 = const offset_of!(PerCpu, mmu.ttbr0),
);
