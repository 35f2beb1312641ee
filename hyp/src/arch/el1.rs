//! The EL1 registers of one world, saved and restored as a block.
//!
//! SCTLR_EL1 and TCR_EL1 are saved here and restored by [`super::switch`], which decides when
//! walks may begin. VDISR_EL2 is the guest's alone.

use super::features::Switched;
use super::regs;
use core::arch::asm;
use core::mem::offset_of;
use hyp::guest::context::{El1Context, TagContext};

/// The fields are where the pairs below say: in the order of declaration, 8 bytes each.
macro_rules! order {
    ($($index:literal $field:ident)*) => {
        $(static_assertions::const_assert_eq!(offset_of!(El1Context, $field), 8 * $index);)*
    };
}

order! {
    0 sp 1 elr 2 spsr 3 cpacr 4 ttbr0 5 ttbr1 6 esr 7 far 8 mair 9 vbar 10 contextidr 11 cntkctl 12 par 13 tpidr
    14 tpidr_el0 15 tpidrro_el0 16 sctlr 17 tcr
}

macro_rules! save_pairs {
    ($base:expr; $($offset:literal $low:literal $high:literal)*) => {
        asm!(
            $(concat!("mrs {a}, ", $low), concat!("mrs {b}, ", $high),
              concat!("stp {a}, {b}, [{base}, #", $offset, "]"),)*
            base = in(reg) $base, a = out(reg) _, b = out(reg) _,
            options(nostack, preserves_flags)
        )
    };
}

macro_rules! restore_pairs {
    ($base:expr; $($offset:literal $low:literal $high:literal)*) => {
        asm!(
            $(concat!("ldp {a}, {b}, [{base}, #", $offset, "]"),
              concat!("msr ", $low, ", {a}"), concat!("msr ", $high, ", {b}"),)*
            base = in(reg) $base, a = out(reg) _, b = out(reg) _,
            options(nostack, preserves_flags, readonly)
        )
    };
}

/// Copies the registers to `to`; of those that not every CPU switches, what `switched` says.
#[inline]
pub(super) fn save(to: &mut El1Context, switched: Switched) {
    // SAFETY: reads registers without side effects, and writes the 18 words of `to` whose places
    // `order` proves.
    unsafe {
        save_pairs!(&raw mut *to;
            "0" "sp_el1" "elr_el1"
            "16" "spsr_el1" "cpacr_el1"
            "32" "ttbr0_el1" "ttbr1_el1"
            "48" "esr_el1" "far_el1"
            "64" "mair_el1" "vbar_el1"
            "80" "contextidr_el1" "cntkctl_el1"
            "96" "par_el1" "tpidr_el1"
            "112" "tpidr_el0" "tpidrro_el0"
            "128" "sctlr_el1" "tcr_el1"
        );
    }
    if switched.intersects(Switched::SOME_EL1) {
        if switched.contains(Switched::CSSELR) {
            to.csselr = regs::csselr_el1();
        }
        if switched.contains(Switched::AUXILIARY) {
            (to.afsr0, to.afsr1, to.amair) = (regs::afsr0_el1(), regs::afsr1_el1(), regs::amair_el1());
        }
    }
}

/// Installs the registers in `from`, all but SCTLR_EL1 and TCR_EL1; of those that not every CPU switches, what
/// `switched` says.
#[inline]
pub(super) fn restore(from: &El1Context, switched: Switched) {
    // SAFETY: the registers belong to EL1, which does not run; EL2's memory does not depend on
    // them. The offsets are those of `order`.
    unsafe {
        restore_pairs!(&raw const *from;
            "0" "sp_el1" "elr_el1"
            "16" "spsr_el1" "cpacr_el1"
            "32" "ttbr0_el1" "ttbr1_el1"
            "48" "esr_el1" "far_el1"
            "64" "mair_el1" "vbar_el1"
            "80" "contextidr_el1" "cntkctl_el1"
            "96" "par_el1" "tpidr_el1"
            "112" "tpidr_el0" "tpidrro_el0"
        );
    }
    if switched.intersects(Switched::SOME_EL1) {
        if switched.contains(Switched::CSSELR) {
            regs::set_csselr_el1(from.csselr);
        }
        if switched.contains(Switched::AUXILIARY) {
            set_auxiliary([from.afsr0, from.afsr1, from.amair]);
        }
    }
}

#[inline]
fn set_auxiliary([afsr0, afsr1, amair]: [u64; 3]) {
    regs::set_afsr0_el1(afsr0);
    regs::set_afsr1_el1(afsr1);
    regs::set_amair_el1(amair);
}

/// True if AFSR0_EL1, AFSR1_EL1 or AMAIR_EL1, whose meaning is the CPU's own, hold anything. Before the host
/// runs: EL1 finds them 0.
pub(super) fn has_auxiliary() -> bool {
    set_auxiliary([u64::MAX; 3]);
    let kept = regs::afsr0_el1() | regs::afsr1_el1() | regs::amair_el1();
    set_auxiliary([0; 3]);
    kept != 0
}

/// Copies the pointer authentication keys (FEAT_PAuth) to `to`: APIA, APIB, APDA, APDB, APGA.
#[inline]
pub(super) fn save_keys(to: &mut [u64; 10]) {
    // SAFETY: reads the keys, which is without side effects, into the ten words of `to`.
    unsafe {
        save_pairs!(&raw mut *to;
            "0" "S3_0_C2_C1_0" "S3_0_C2_C1_1"
            "16" "S3_0_C2_C1_2" "S3_0_C2_C1_3"
            "32" "S3_0_C2_C2_0" "S3_0_C2_C2_1"
            "48" "S3_0_C2_C2_2" "S3_0_C2_C2_3"
            "64" "S3_0_C2_C3_0" "S3_0_C2_C3_1"
        );
    }
}

/// Installs the keys in `from`.
#[inline]
pub(super) fn restore_keys(from: &[u64; 10]) {
    // SAFETY: EL2 signs no pointer, so no return address of its own depends on the keys.
    unsafe {
        restore_pairs!(&raw const *from;
            "0" "S3_0_C2_C1_0" "S3_0_C2_C1_1"
            "16" "S3_0_C2_C1_2" "S3_0_C2_C1_3"
            "32" "S3_0_C2_C2_0" "S3_0_C2_C2_1"
            "48" "S3_0_C2_C2_2" "S3_0_C2_C2_3"
            "64" "S3_0_C2_C3_0" "S3_0_C2_C3_1"
        );
    }
}

/// Copies RGSR_EL1, GCR_EL1, TFSR_EL1 and TFSRE0_EL1 (FEAT_MTE2) to `to`, with every fault of an access
/// of EL1 or EL0 until now, and installs those in `from`.
#[cold]
pub(super) fn switch_tags(to: &mut TagContext, from: &TagContext) {
    regs::dsb_nsh();
    regs::isb();
    // SAFETY: reads registers without side effects, into the four words of `to` (repr(C)).
    unsafe {
        save_pairs!(&raw mut *to;
            "0" "S3_0_C1_C0_5" "S3_0_C1_C0_6"
            "16" "S3_0_C5_C6_0" "S3_0_C5_C6_1"
        );
    }
    // SAFETY: EL2 makes no random tags, and its own faults are not collected there.
    unsafe {
        restore_pairs!(&raw const *from;
            "0" "S3_0_C1_C0_5" "S3_0_C1_C0_6"
            "16" "S3_0_C5_C6_0" "S3_0_C5_C6_1"
        );
    }
}
