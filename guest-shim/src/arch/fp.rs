//! V0..V31. The program itself is compiled without FP, so nothing else ever touches them.

use core::arch::global_asm;

// Vn's lower half is seed * 64 + 2n, its upper half seed * 64 + 2n + 1.
global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .section .text.guest_fp, "ax"
guest_fp_fill:                      // x0 = seed
    lsl     x0, x0, #6
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    mov     v\n\().d[0], x0
    add     x0, x0, #1
    mov     v\n\().d[1], x0
    add     x0, x0, #1
    .endr
    ret

guest_fp_differs:                   // x0 = seed; returns 0 if all hold
    lsl     x1, x0, #6
    mov     x0, #0
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    mov     x2, v\n\().d[0]
    eor     x2, x2, x1
    orr     x0, x0, x2
    add     x1, x1, #1
    mov     x2, v\n\().d[1]
    eor     x2, x2, x1
    orr     x0, x0, x2
    add     x1, x1, #1
    .endr
    ret
    .arch_extension nosimd
    .arch_extension nofp
"#
);

unsafe extern "C" {
    fn guest_fp_fill(seed: u64);
    fn guest_fp_differs(seed: u64) -> u64;
}

/// Fills V0..V31.
pub(super) fn fill(seed: u64) {
    // SAFETY: the vector registers belong to no Rust code of a soft-float program.
    unsafe { guest_fp_fill(seed) };
}

/// True if V0..V31 are as [`fill`] left them.
pub(super) fn holds(seed: u64) -> bool {
    // SAFETY: reads registers.
    unsafe { guest_fp_differs(seed) == 0 }
}
