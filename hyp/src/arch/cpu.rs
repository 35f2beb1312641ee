//! What a CPU is set to before the host runs on it: EL2's own controls, then every trap register.
//!
//! The host sees the machine as it would without a hypervisor, except that EL2 does not exist,
//! stage 2 is on and SMCs are trapped. Values: Arm ARM D24, Linux booting.rst ("entered at EL1").

use super::features::HostFeatures;
use super::regs;
use hyp::hw::{CpuFeatures, Stage2Ctx};

/// HCR_EL2 bits, by their architectural names.
mod hcr {
    pub(super) const VM: u64 = 1 << 0;
    pub(super) const TSC: u64 = 1 << 19;
    pub(super) const RW: u64 = 1 << 31;
    pub(super) const APK: u64 = 1 << 40;
    pub(super) const API: u64 = 1 << 41;
    pub(super) const FWB: u64 = 1 << 46;
    pub(super) const ENSCXT: u64 = 1 << 53;
    pub(super) const ATA: u64 = 1 << 56;
}

/// SCTLR_EL2: the RES1 bits, and MMU, data cache, instruction cache, stack alignment, WXN; with
/// MTE also ATA, so that EL2 can zero the tags of a page it has mapped Tagged.
pub(super) const fn sctlr_el2_mmu_on(features: &CpuFeatures) -> u64 {
    let ata = if features.mte >= 2 { 1 << 43 } else { 0 };
    0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19 | ata
}

/// Sets every register that decides what the host may do; stage 2 is on when it returns.
///
/// Must have run on a CPU before its first host instruction: with HCR_EL2.TSC clear, an SMC of
/// the host would start another CPU at EL2.
pub(super) fn prepare_host(features: &HostFeatures, fwb: bool, host: Stage2Ctx) {
    let mut value = hcr::RW | hcr::VM | hcr::TSC;
    if features.pauth {
        value |= hcr::API | hcr::APK;
    }
    if fwb {
        value |= hcr::FWB;
    }
    if features.mte >= 2 {
        value |= hcr::ATA;
    }
    if features.csv2_2 {
        value |= hcr::ENSCXT;
    }
    // SAFETY: stage 2 does not translate EL2, and E2H stays 0; the table is the host's own.
    unsafe { regs::set_vtcr_el2(host.vtcr) };
    // SAFETY: as above.
    unsafe { regs::set_vttbr_el2(host.vttbr) };
    // SAFETY: as above.
    unsafe { regs::set_hcr_el2(value) };
    regs::isb();
    regs::tlbi_alle1();
    regs::dsb_nsh();

    regs::set_hstr_el2(0);
    regs::set_hacr_el2(0);
    regs::set_vpidr_el2(regs::midr_el1());
    regs::set_vmpidr_el2(regs::mpidr_el1());
    // EL1 may use both physical and virtual counters and the physical timer.
    regs::set_cnthctl_el2(0b11);
    regs::set_cntvoff_el2(0);
    regs::set_cnthp_ctl_el2(0);
    if features.gicv3 {
        regs::set_icc_sre_el2(0xf);
        regs::isb();
        regs::set_ich_hcr_el2(0);
    }
    if features.lor {
        regs::set_lorc_el1(0);
    }
    prepare_vectors(features);
    prepare_debug(features);
    prepare_fine_grained(features);
    // What the boot protocol says of SCTLR_EL1: MMU and caches off, RES1 bits set.
    regs::set_sctlr_el1(0x30d0_0800);
    regs::isb();
}

/// FP, SVE and SME belong to the host.
fn prepare_vectors(features: &HostFeatures) {
    // Bits 8 (TZ) and 12 (TSM) are RES1 where SVE or SME do not exist.
    let mut cptr = 0x33ff;
    if features.sve {
        cptr &= !(1 << 8);
    }
    if features.sme {
        cptr &= !(1 << 12);
    }
    regs::set_cptr_el2(cptr);
    regs::isb();
    if features.sve {
        regs::set_zcr_el2(0xf);
    }
    if features.sme {
        regs::set_smcr_el2(0xf | u64::from(features.sme2) << 30 | u64::from(features.sme_fa64) << 31);
    }
}

/// Debug, PMU, SPE and TRBE belong to the host; none of them may watch EL2.
fn prepare_debug(features: &HostFeatures) {
    const HPMD: u64 = 1 << 17;
    const HCCD: u64 = 1 << 23;
    let mut mdcr = 0;
    if features.pmu != 0 {
        mdcr |= regs::pmcr_el0() >> 11 & 0x1f;
        // HPMD needs PMUv3p1 (PMUVer 4), HCCD PMUv3p5 (6).
        if features.pmu >= 4 {
            mdcr |= HPMD;
        }
        if features.pmu >= 6 {
            mdcr |= HCCD;
        }
    }
    // E2PB and E2TB = 0b11: the buffers belong to EL1 and are not trapped.
    if features.spe {
        mdcr |= 0b11 << 12;
    }
    if features.trbe {
        mdcr |= 0b11 << 24;
    }
    regs::set_mdcr_el2(mdcr);
}

/// FEAT_HCX and FEAT_FGT: "n" bits are positive, so 0 after reset would trap.
fn prepare_fine_grained(features: &HostFeatures) {
    if features.hcx {
        let mut hcrx = 0;
        for (has, bit) in [
            (features.mops, 11),
            (features.tcr2, 14),
            (features.sctlr2, 15),
            (features.gcs, 22),
            (features.fpmr, 23),
        ] {
            hcrx |= u64::from(has) << bit;
        }
        regs::set_hcrx_el2(hcrx);
    }
    if features.fgt {
        let untrapped = 0x3fff << 50 & !(1 << 51);
        regs::set_hfgrtr_el2(untrapped);
        regs::set_hfgwtr_el2(untrapped);
        regs::set_hfgitr_el2(0x1f << 55);
        regs::set_hdfgrtr_el2(0);
        regs::set_hdfgwtr_el2(0);
    }
}
