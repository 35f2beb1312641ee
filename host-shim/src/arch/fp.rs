//! The vector registers of this CPU, as wide as they are. The shim is compiled without FP, so nothing
//! else ever touches them.

use aarch64_cpu::registers::{CPACR_EL1, ID_AA64PFR0_EL1, Readable, Writeable};
use arrayvec::ArrayVec;
use core::arch::{asm, global_asm};

// Register n is filled with copies of seed + n.
global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .section .text.host_fp, "ax"
host_fill_v:                        // x0 = seed
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    dup     v\n\().2d, x0
    add     x0, x0, #1
    .endr
    ret

host_save_v:                        // x0 = buffer; returns bytes in a register
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     q\n, [x0], #16
    .endr
    mov     x0, #16
    ret

host_fill_z:                        // x0 = seed
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    dup     z\n\().d, x0
    add     x0, x0, #1
    .endr
    ret

host_save_z:
    rdvl    x1, #1
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     z\n, [x0]
    add     x0, x0, x1
    .endr
    mov     x0, x1
    ret
    .arch_extension nosve
    .arch_extension nosimd
    .arch_extension nofp
"#
);

unsafe extern "C" {
    fn host_fill_v(seed: u64);
    fn host_save_v(buffer: *mut u64) -> u64;
    fn host_fill_z(seed: u64);
    fn host_save_z(buffer: *mut u64) -> u64;
}

/// 32 registers of up to 2048 bits.
const MOST_WORDS: usize = 32 * 32;

/// Lets EL1 use FP, and SVE at its widest where there is any; says whether there is.
fn enable() -> bool {
    const FP_AND_SVE: u64 = 3 << 20 | 3 << 16;
    let sve = ID_AA64PFR0_EL1.get() >> 32 & 0xf != 0;
    CPACR_EL1.set(CPACR_EL1.get() | FP_AND_SVE);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    if sve {
        // SAFETY: ZCR_EL1 as S3_0_C1_C2_0; the vector length is of no concern to Rust code.
        unsafe { asm!("msr S3_0_C1_C2_0, {}", "isb", in(reg) 0xf_u64, options(nostack)) };
    }
    sve
}

/// Fills the vector registers of this CPU with words made of `seed`.
pub(super) fn fill(seed: u64) {
    if enable() {
        // SAFETY: the vector registers belong to no Rust code of a soft-float program.
        unsafe { host_fill_z(seed) };
    } else {
        // SAFETY: as above.
        unsafe { host_fill_v(seed) };
    }
}

/// True if they are as [`fill`] left them, over their whole width.
pub(super) fn holds(seed: u64) -> bool {
    let mut words = [0_u64; MOST_WORDS];
    let bytes = if enable() {
        // SAFETY: the buffer holds 32 registers of the widest kind.
        unsafe { host_save_z(words.as_mut_ptr()) }
    } else {
        // SAFETY: as above.
        unsafe { host_save_v(words.as_mut_ptr()) }
    };
    let each = usize::try_from(bytes / 8).unwrap_or(0);
    let registers: ArrayVec<&[u64], 32> = words.chunks_exact(each.max(1)).take(32).collect();
    (0..).zip(registers).all(|(n, register)| register.iter().all(|word| *word == seed.wrapping_add(n)))
}
