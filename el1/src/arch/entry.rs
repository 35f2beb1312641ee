//! The Image header, and what comes before a program's own first instruction.
//!
//! The program's linker script links it at 0 and names `_start_of_image`, `_image_size`, the
//! relocations (`_rela_start`, `_rela_end`), what is to be cleared (`_clear_start`, `_clear_end`)
//! and the end of all that is written before the MMU is on (`_written_end`). The program has `start`:
//! x19 = what x0 held at entry, x20 = the counter at entry, x21 = first byte of the image.

use core::arch::global_asm;

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

2:  adrp    x1, _clear_start
    add     x1, x1, :lo12:_clear_start
    adrp    x2, _clear_end
    add     x2, x2, :lo12:_clear_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b

    // What was written with the MMU off must not hide behind lines that a loader left in the cache.
4:  mov     x1, x21
    adrp    x2, _written_end
    add     x2, x2, :lo12:_written_end
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x3, x4, x3
5:  dc      ivac, x1
    add     x1, x1, x3
    cmp     x1, x2
    b.lo    5b
    dsb     sy
    b       start

    // For a CPU that cannot go on.
    .globl  dead
dead:
    wfe
    b       dead
"#
);
