//! System registers and instructions as functions: through the `aarch64-cpu` crate where it names
//! them, in assembly (`*_unnamed`) where it does not.
//!
//! Reads are safe. A write that can change what memory means is `unsafe` at its definition, which
//! it is not in the crate; the others only configure lower exception levels.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{self, Readable, Writeable};
use core::arch::asm;

macro_rules! read_only {
    ($($(#[$doc:meta])* $name:ident = $reg:ident;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name() -> u64 {
            registers::$reg.get()
        }
    )*};
}

macro_rules! read_only_unnamed {
    ($($(#[$doc:meta])* $name:ident = $reg:literal;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading this register has no side effect.
            unsafe { asm!(concat!("mrs {}, ", $reg), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    )*};
}

/// Reads an ID register, by its name or encoding.
macro_rules! id_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading an ID register has no side effect; those that are not allocated read 0.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
        }
        value
    }};
}
pub(crate) use id_register;

macro_rules! trap_control {
    ($($(#[$doc:meta])* $name:ident = $reg:ident;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name(value: u64) {
            registers::$reg.set(value);
        }
    )*};
}

macro_rules! trap_control_unnamed {
    ($($(#[$doc:meta])* $name:ident = $reg:literal;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name(value: u64) {
            // SAFETY: the register controls lower exception levels only; EL2's own memory and
            // control flow do not depend on it.
            unsafe { asm!(concat!("msr ", $reg, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

read_only! {
    /// ID_AA64PFR0_EL1.
    id_aa64pfr0_el1 = ID_AA64PFR0_EL1;
    /// ID_AA64PFR1_EL1.
    id_aa64pfr1_el1 = ID_AA64PFR1_EL1;
    /// ID_AA64DFR0_EL1.
    id_aa64dfr0_el1 = ID_AA64DFR0_EL1;
    /// ID_AA64ISAR0_EL1: TLB in bits 59:56.
    id_aa64isar0_el1 = ID_AA64ISAR0_EL1;
    /// ID_AA64ISAR1_EL1: address authentication.
    id_aa64isar1_el1 = ID_AA64ISAR1_EL1;
    /// ID_AA64MMFR0_EL1.
    id_aa64mmfr0_el1 = ID_AA64MMFR0_EL1;
    /// ID_AA64MMFR1_EL1.
    id_aa64mmfr1_el1 = ID_AA64MMFR1_EL1;
    /// ID_AA64MMFR2_EL1.
    id_aa64mmfr2_el1 = ID_AA64MMFR2_EL1;
    /// MIDR_EL1.
    midr_el1 = MIDR_EL1;
    /// MPIDR_EL1.
    mpidr_el1 = MPIDR_EL1;
    /// ESR_EL2.
    esr_el2 = ESR_EL2;
    /// ELR_EL2.
    elr_el2 = ELR_EL2;
    /// SPSR_EL2.
    spsr_el2 = SPSR_EL2;
    /// FAR_EL2.
    far_el2 = FAR_EL2;
    /// HPFAR_EL2.
    hpfar_el2 = HPFAR_EL2;
    /// VTTBR_EL2.
    vttbr_el2 = VTTBR_EL2;
    /// VTCR_EL2.
    vtcr_el2 = VTCR_EL2;
    /// SCTLR_EL1 of the host.
    sctlr_el1 = SCTLR_EL1;
    /// TCR_EL1.
    tcr_el1 = TCR_EL1;
    /// VBAR_EL1 of the host.
    vbar_el1 = VBAR_EL1;
    /// PAR_EL1.
    par_el1 = PAR_EL1;
    /// CPTR_EL2.
    cptr_el2 = CPTR_EL2;
    /// HCR_EL2.
    hcr_el2 = HCR_EL2;
    /// SP_EL0.
    sp_el0 = SP_EL0;
    /// MDSCR_EL1.
    mdscr_el1 = MDSCR_EL1;
    /// CNTV_CTL_EL0.
    cntv_ctl_el0 = CNTV_CTL_EL0;
    /// CNTV_CVAL_EL0.
    cntv_cval_el0 = CNTV_CVAL_EL0;
    /// CNTPCT_EL0.
    cntpct_el0 = CNTPCT_EL0;
    /// CNTFRQ_EL0, Hz.
    cntfrq_el0 = CNTFRQ_EL0;
}

read_only_unnamed! {
    /// ID_AA64PFR2_EL1: MTEPERM in bits 3:0.
    id_aa64pfr2_el1 = "S3_0_C0_C4_2";
    /// ID_AA64ZFR0-neighbour ID_AA64SMFR0_EL1.
    id_aa64smfr0_el1 = "S3_0_C0_C4_5";
    /// ID_AA64ISAR2_EL1: QARMA3 authentication.
    id_aa64isar2_el1 = "S3_0_C0_C6_2";
    /// ID_AA64MMFR3_EL1.
    id_aa64mmfr3_el1 = "S3_0_C0_C7_3";
    /// ICH_VTR_EL2 (GICv3).
    ich_vtr_el2 = "S3_4_C12_C11_1";
    /// ICH_VMCR_EL2 (GICv3).
    ich_vmcr_el2 = "S3_4_C12_C11_7";
    /// VDISR_EL2 (FEAT_RAS).
    vdisr_el2 = "S3_4_C12_C1_1";
    /// CSSELR_EL1.
    csselr_el1 = "csselr_el1";
    /// AFSR0_EL1.
    afsr0_el1 = "afsr0_el1";
    /// AFSR1_EL1.
    afsr1_el1 = "afsr1_el1";
    /// AMAIR_EL1.
    amair_el1 = "amair_el1";
    /// SVCR (FEAT_SME): streaming mode in bit 0, ZA in bit 1.
    svcr = "S3_3_C4_C2_2";
    /// PMSCR_EL1 (FEAT_SPE).
    pmscr_el1 = "S3_0_C9_C9_0";
    /// TRFCR_EL1 (FEAT_TRF).
    trfcr_el1 = "S3_0_C1_C2_1";
    /// BRBCR_EL1 (FEAT_BRBE).
    brbcr_el1 = "S2_1_C9_C0_0";
    /// CTR_EL0.
    ctr_el0 = "CTR_EL0";
    /// DCZID_EL0.
    dczid_el0 = "DCZID_EL0";
    /// PMCR_EL0: N in bits 15:11. Exists if ID_AA64DFR0_EL1.PMUVer says so.
    pmcr_el0 = "PMCR_EL0";
}

trap_control! {
    /// HFGRTR_EL2 (FEAT_FGT).
    set_hfgrtr_el2 = HFGRTR_EL2;
    /// HFGWTR_EL2 (FEAT_FGT).
    set_hfgwtr_el2 = HFGWTR_EL2;
    /// HFGITR_EL2 (FEAT_FGT).
    set_hfgitr_el2 = HFGITR_EL2;
    /// HDFGRTR_EL2 (FEAT_FGT).
    set_hdfgrtr_el2 = HDFGRTR_EL2;
    /// HDFGWTR_EL2 (FEAT_FGT).
    set_hdfgwtr_el2 = HDFGWTR_EL2;
    /// CPTR_EL2, E2H = 0 layout.
    set_cptr_el2 = CPTR_EL2;
    /// MDCR_EL2.
    set_mdcr_el2 = MDCR_EL2;
    /// CNTHCTL_EL2, E2H = 0 layout.
    set_cnthctl_el2 = CNTHCTL_EL2;
    /// CNTVOFF_EL2.
    set_cntvoff_el2 = CNTVOFF_EL2;
    /// CNTHP_CTL_EL2: EL2's own timer.
    set_cnthp_ctl_el2 = CNTHP_CTL_EL2;
    /// VMPIDR_EL2.
    set_vmpidr_el2 = VMPIDR_EL2;
    /// ICC_SRE_EL2 (GICv3).
    set_icc_sre_el2 = ICC_SRE_EL2;
    /// ICH_HCR_EL2 (GICv3).
    set_ich_hcr_el2 = ICH_HCR_EL2;
    /// ESR_EL1: syndrome of an injected exception.
    set_esr_el1 = ESR_EL1;
    /// FAR_EL1: address of an injected exception.
    set_far_el1 = FAR_EL1;
    /// ELR_EL1: where an injected exception came from.
    set_elr_el1 = ELR_EL1;
    /// SPSR_EL1: state an injected exception came from.
    set_spsr_el1 = SPSR_EL1;
    /// SCTLR_EL1.
    set_sctlr_el1 = SCTLR_EL1;
    /// TCR_EL1.
    set_tcr_el1 = TCR_EL1;
    /// SP_EL0.
    set_sp_el0 = SP_EL0;
    /// MDSCR_EL1.
    set_mdscr_el1 = MDSCR_EL1;
    /// CNTV_CTL_EL0.
    set_cntv_ctl_el0 = CNTV_CTL_EL0;
    /// CNTV_CVAL_EL0.
    set_cntv_cval_el0 = CNTV_CVAL_EL0;
    /// PAR_EL1.
    set_par_el1 = PAR_EL1;
    /// ELR_EL2: where the next return to a lower level goes.
    set_elr_el2 = ELR_EL2;
    /// SPSR_EL2: the state the next return restores; callers give EL1 or EL0 states only.
    set_spsr_el2 = SPSR_EL2;
    /// TPIDR_EL2: this CPU's record.
    set_tpidr_el2 = TPIDR_EL2;
}

trap_control_unnamed! {
    /// HSTR_EL2: AArch32 traps.
    set_hstr_el2 = "HSTR_EL2";
    /// HACR_EL2.
    set_hacr_el2 = "HACR_EL2";
    /// HCRX_EL2 (FEAT_HCX).
    set_hcrx_el2 = "S3_4_C1_C2_2";
    /// VPIDR_EL2.
    set_vpidr_el2 = "VPIDR_EL2";
    /// ZCR_EL2 (SVE).
    set_zcr_el2 = "S3_4_C1_C2_0";
    /// SMCR_EL2 (SME).
    set_smcr_el2 = "S3_4_C1_C2_6";
    /// ICH_VMCR_EL2 (GICv3).
    set_ich_vmcr_el2 = "S3_4_C12_C11_7";
    /// VDISR_EL2 (FEAT_RAS).
    set_vdisr_el2 = "S3_4_C12_C1_1";
    /// CSSELR_EL1.
    set_csselr_el1 = "csselr_el1";
    /// AFSR0_EL1.
    set_afsr0_el1 = "afsr0_el1";
    /// AFSR1_EL1.
    set_afsr1_el1 = "afsr1_el1";
    /// AMAIR_EL1.
    set_amair_el1 = "amair_el1";
    /// PMSCR_EL1 (FEAT_SPE).
    set_pmscr_el1 = "S3_0_C9_C9_0";
    /// TRFCR_EL1 (FEAT_TRF).
    set_trfcr_el1 = "S3_0_C1_C2_1";
    /// BRBCR_EL1 (FEAT_BRBE).
    set_brbcr_el1 = "S2_1_C9_C0_0";
    /// LORC_EL1 (FEAT_LOR): limited ordering regions off.
    set_lorc_el1 = "S3_0_C10_C4_3";
}

/// TPIDR_EL2 as the address it holds.
#[inline]
pub(crate) fn tpidr_el2_usize() -> usize {
    let value: usize;
    // SAFETY: reading this register has no side effect.
    unsafe { asm!("mrs {}, TPIDR_EL2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

macro_rules! memory_control {
    ($($(#[$doc:meta])* $name:ident = $reg:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The value keeps EL2's own code, stack and data mapped with their permissions, or is
        /// for the EL1&0 regime whose table the caller owns.
        #[inline]
        pub(crate) unsafe fn $name(value: u64) {
            registers::$reg.set(value);
        }
    )*};
}

memory_control! {
    /// SCTLR_EL2.
    set_sctlr_el2 = SCTLR_EL2;
    /// MAIR_EL2.
    set_mair_el2 = MAIR_EL2;
    /// TCR_EL2, E2H = 0 layout.
    set_tcr_el2 = TCR_EL2;
    /// TTBR0_EL2.
    set_ttbr0_el2 = TTBR0_EL2;
    /// VBAR_EL2.
    set_vbar_el2 = VBAR_EL2;
    /// HCR_EL2.
    set_hcr_el2 = HCR_EL2;
    /// VTTBR_EL2.
    set_vttbr_el2 = VTTBR_EL2;
    /// VTCR_EL2.
    set_vtcr_el2 = VTCR_EL2;
}

macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name() {
            // SAFETY: a barrier or a TLB or instruction cache invalidation removes nothing but
            // copies of what memory holds.
            unsafe { asm!($text, options(nostack, preserves_flags)) };
        }
    )*};
}

macro_rules! barriers {
    ($($(#[$doc:meta])* $name:ident = $call:expr;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name() {
            $call;
        }
    )*};
}

barriers! {
    /// DSB ISHST.
    dsb_ishst = barrier::dsb(barrier::ISHST);
    /// DSB ISH.
    dsb_ish = barrier::dsb(barrier::ISH);
    /// DSB NSH.
    dsb_nsh = barrier::dsb(barrier::NSH);
    /// DSB SY.
    dsb_sy = barrier::dsb(barrier::SY);
    /// ISB.
    isb = barrier::isb(barrier::SY);
    /// WFE.
    wfe = aarch64_cpu::asm::wfe();
}

instructions! {
    /// TLBI VMALLE1IS.
    tlbi_vmalle1is = "tlbi vmalle1is";
    /// TLBI VMALLS12E1IS.
    tlbi_vmalls12e1is = "tlbi vmalls12e1is";
    /// TLBI ALLE1IS.
    tlbi_alle1is = "tlbi alle1is";
    /// TLBI ALLE1: this CPU only.
    tlbi_alle1 = "tlbi alle1";
    /// TLBI ALLE2IS.
    tlbi_alle2is = "tlbi alle2is";
    /// TLBI ALLE2: this CPU only.
    tlbi_alle2 = "tlbi alle2";
    /// TLBI VMALLE1: the current VMID, this CPU only.
    tlbi_vmalle1 = "tlbi vmalle1";
    /// IC IALLU: this CPU only.
    ic_iallu = "ic iallu";
    /// PSB CSYNC: profiling data is written (FEAT_SPE).
    psb_csync = "hint #17";
    /// TSB CSYNC: trace data is written (FEAT_TRF).
    tsb_csync = "hint #18";
    /// IC IALLUIS.
    ic_ialluis = "ic ialluis";
}

macro_rules! instructions_with_operand {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name(operand: u64) {
            // SAFETY: removes translations, which hardware walks for again, or asks for one; no
            // memory changes.
            unsafe { asm!(concat!($text, ", {}"), in(reg) operand, options(nostack, preserves_flags)) };
        }
    )*};
}

instructions_with_operand! {
    /// TLBI IPAS2E1IS.
    tlbi_ipas2e1is = "tlbi ipas2e1is";
    /// TLBI RIPAS2E1IS (FEAT_TLBIRANGE).
    tlbi_ripas2e1is = "sys #4, c8, c0, #2";
    /// TLBI VAE2IS.
    tlbi_vae2is = "tlbi vae2is";
    /// AT S1E1R: the stage 1 of EL1 that is installed, result in PAR_EL1.
    at_s1e1r = "at s1e1r";
}

/// An address by the stage 1 of EL1 that is installed; `None` if it has no translation. PAR_EL1 is
/// as before.
pub(crate) fn translate_s1e1r(va: u64) -> Option<u64> {
    let saved = par_el1();
    at_s1e1r(va);
    isb();
    let par = par_el1();
    set_par_el1(saved);
    (par & 1 == 0).then_some(par & 0x000f_ffff_ffff_f000 | va & 0xfff)
}

/// RNDR (FEAT_RNG): 64 random bits, `None` if the generator has none in time.
pub(crate) fn rndr() -> Option<u64> {
    let (value, failed): (u64, u64);
    // SAFETY: reading the generator changes nothing but PSTATE.NZCV.
    unsafe {
        asm!("mrs {}, S3_3_C2_C4_0", "cset {}, eq", out(reg) value, out(reg) failed, options(nomem, nostack))
    };
    (failed == 0).then_some(value)
}

/// x29: the innermost frame record.
#[inline]
pub(crate) fn frame_pointer() -> usize {
    let value: usize;
    // SAFETY: reading x29 has no side effect.
    unsafe { asm!("mov {}, x29", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Semihosting SYS_WRITE0: a zero-terminated line for the emulator's log. Where nothing answers,
/// HLT is undefined and ends in the fatal vector, so this is for the very end only.
pub(crate) fn semihosting_write0(line: &[u8; 256]) {
    // SAFETY: the call reads the line up to its zero, which the caller put there.
    unsafe { asm!("hlt #0xf000", inout("x0") 4_u64 => _, in("x1") line.as_ptr(), options(nostack)) };
}
