//! FP, SIMD and SVE registers when a guest first uses them.
//!
//! A guest sees V0..V31, FPSR and FPCR. Writing a V register clears the rest of its Z register, so
//! on CPUs with SVE all of the host's Z registers are kept; its predicates and FFR stay where they
//! are, since nothing of the guest's can reach them (CPTR_EL2.TZ). A host in streaming mode or with
//! ZA on runs no guest.

use core::arch::global_asm;
use core::mem::offset_of;
use hyp::guest::context::FpContext;

/// Bytes of a Z register at most (Arm ARM B1.2.2).
const MAX_Z: usize = 256;

/// The host's registers while a guest has the CPU's. FPSR and FPCR come first, then Z0..Z31 at
/// the vector length of EL2, which is the CPU's longest, or V0..V31.
#[repr(C, align(16))]
#[derive(Debug)]
pub(crate) struct HostFp {
    fpsr: u64,
    fpcr: u64,
    vectors: [u8; 32 * MAX_Z],
}

impl HostFp {
    /// Nothing saved.
    pub(crate) const fn new() -> Self {
        Self { fpsr: 0, fpcr: 0, vectors: [0; 32 * MAX_Z] }
    }
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve

    .macro v_pairs op, base, offset
    \op     q0, q1, [\base, #(\offset + 0)]
    \op     q2, q3, [\base, #(\offset + 32)]
    \op     q4, q5, [\base, #(\offset + 64)]
    \op     q6, q7, [\base, #(\offset + 96)]
    \op     q8, q9, [\base, #(\offset + 128)]
    \op     q10, q11, [\base, #(\offset + 160)]
    \op     q12, q13, [\base, #(\offset + 192)]
    \op     q14, q15, [\base, #(\offset + 224)]
    \op     q16, q17, [\base, #(\offset + 256)]
    \op     q18, q19, [\base, #(\offset + 288)]
    \op     q20, q21, [\base, #(\offset + 320)]
    \op     q22, q23, [\base, #(\offset + 352)]
    \op     q24, q25, [\base, #(\offset + 384)]
    \op     q26, q27, [\base, #(\offset + 416)]
    \op     q28, q29, [\base, #(\offset + 448)]
    \op     q30, q31, [\base, #(\offset + 480)]
    .endm

    .macro z_all op, base
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \op     z\n, [\base, #\n, mul vl]
    .endr
    .endm

    .macro  save_status at
    mrs     x2, fpsr
    mrs     x3, fpcr
    stp     x2, x3, \at
    .endm

    .macro  restore_status at
    ldp     x2, x3, \at
    msr     fpsr, x2
    msr     fpcr, x3
    .endm

    .pushsection .text.fp, "ax"
    .global fp_save_host, fp_restore_host, fp_save_host_sve, fp_restore_host_sve, fp_save_guest, fp_restore_guest
fp_save_host:
    save_status [x0]
    v_pairs stp, x0, {vectors}
    ret
fp_restore_host:
    restore_status [x0]
    v_pairs ldp, x0, {vectors}
    ret
fp_save_host_sve:
    save_status [x0]
    add     x0, x0, #{vectors}
    z_all   str, x0
    ret
fp_restore_host_sve:
    restore_status [x0]
    add     x0, x0, #{vectors}
    z_all   ldr, x0
    ret
fp_save_guest:
    v_pairs stp, x0, 0
    add     x0, x0, #{fpsr}
    save_status [x0]
    ret
fp_restore_guest:
    v_pairs ldp, x0, 0
    add     x0, x0, #{fpsr}
    restore_status [x0]
    ret
    .popsection

    .arch_extension nosve
    .arch_extension nosimd
    .arch_extension nofp
    "#,
    vectors = const offset_of!(HostFp, vectors),
    fpsr = const offset_of!(FpContext, fpsr),
);

static_assertions::const_assert_eq!(offset_of!(FpContext, v), 0);
static_assertions::const_assert_eq!(offset_of!(FpContext, fpcr).wrapping_sub(offset_of!(FpContext, fpsr)), 8);

unsafe extern "C" {
    fn fp_save_host(to: *mut HostFp);
    fn fp_restore_host(from: *const HostFp);
    fn fp_save_host_sve(to: *mut HostFp);
    fn fp_restore_host_sve(from: *const HostFp);
    fn fp_save_guest(to: *mut FpContext);
    fn fp_restore_guest(from: *const FpContext);
}

/// Gives the registers to the guest. CPTR_EL2 traps neither FP nor SVE at EL2.
pub(super) fn to_guest(sve: bool, host: &mut HostFp, guest: &FpContext) {
    if sve {
        // SAFETY: `host` has room for the longest vectors; Rust code at EL2 uses no such register.
        unsafe { fp_save_host_sve(host) };
    } else {
        // SAFETY: as above.
        unsafe { fp_save_host(host) };
    }
    // SAFETY: reads the 33 pairs of `guest`; Rust code at EL2 uses no such register.
    unsafe { fp_restore_guest(guest) };
}

/// Gives them back. CPTR_EL2 traps neither FP nor SVE at EL2.
pub(super) fn to_host(sve: bool, guest: &mut FpContext, host: &HostFp) {
    // SAFETY: writes the 33 pairs of `guest`.
    unsafe { fp_save_guest(guest) };
    if sve {
        // SAFETY: `host` was filled by `to_guest` at the same vector length.
        unsafe { fp_restore_host_sve(host) };
    } else {
        // SAFETY: as above.
        unsafe { fp_restore_host(host) };
    }
}
