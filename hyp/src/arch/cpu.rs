//! What a CPU is set to before the host runs on it: EL2's own controls, then every trap register.
//!
//! The host sees the machine as it would without a hypervisor, except that EL2 does not exist,
//! stage 2 is on and SMCs are trapped. Values: Arm ARM D24, Linux booting.rst ("entered at EL1").

use super::features::{HostFeatures, Switched};
use super::gic::{self, Interface};
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

/// What the host may do, as register values, and what a switch between it and a guest has to do
/// on this CPU. Constants of the machine: its CPUs are alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostControls {
    hcr: u64,
    /// MDCR_EL2: what holds for every world, HPMN, HPMD and HCCD.
    pub(super) mdcr_machine: u64,
    mdcr: u64,
    /// CPTR_EL2: FP, SVE and SME belong to the host, and to EL2 while it moves them.
    pub(super) cptr: u64,
    hcrx: u64,
    /// ICH_* of GICv3; `None` on a machine that can have no guests.
    pub(super) gic: Option<Interface>,
    /// What a switch has to move.
    pub(super) switched: Switched,
    features: HostFeatures,
}

impl HostControls {
    /// Of a CPU with these features.
    pub(super) fn new(features: &CpuFeatures, host: HostFeatures) -> Self {
        let when = |has: bool, bits: u64| if has { bits } else { 0 };
        let hcr = hcr::RW
            | hcr::VM
            | hcr::TSC
            | when(host.pauth, hcr::API | hcr::APK)
            | when(features.fwb, hcr::FWB)
            | when(host.mte >= 2, hcr::ATA)
            | when(host.csv2_2, hcr::ENSCXT);
        // Bits 8 (TZ) and 12 (TSM) are RES1 where SVE or SME do not exist.
        let cptr = 0x33ff & !when(host.sve, 1 << 8) & !when(host.sme, 1 << 12);
        let mdcr_machine = mdcr_machine(&host);
        // E2PB and E2TB = 0b11: the buffers belong to EL1 and are not trapped.
        let mdcr = mdcr_machine | when(host.spe, 0b11 << 12) | when(host.trbe, 0b11 << 24);
        let hcrx = when(host.mops, 1 << 11)
            | when(host.tcr2, 1 << 14)
            | when(host.sctlr2, 1 << 15)
            | when(host.gcs, 1 << 22)
            | when(host.fpmr, 1 << 23);
        let gic = host.gicv3.then(Interface::of_cpu);
        let mut switched = host.switched();
        switched.set(Switched::PRIORITIES, gic.is_some_and(|interface| interface > Interface::One));
        Self { hcr, mdcr_machine, mdcr, cptr, hcrx, gic, switched, features: host }
    }

    /// What the CPU has.
    #[inline]
    pub(super) const fn has(&self) -> &HostFeatures {
        &self.features
    }

    /// The traps while the host runs: all that a switch to a guest changes.
    #[inline]
    pub(super) fn install(&self) {
        let switched = self.switched;
        // SAFETY: stage 2 does not translate EL2, and E2H stays 0.
        unsafe { regs::set_hcr_el2(self.hcr) };
        regs::set_mdcr_el2(self.mdcr);
        regs::set_cptr_el2(self.cptr);
        regs::set_hstr_el2(0);
        // EL1 may use both physical and virtual counters and the physical timer.
        regs::set_cnthctl_el2(0b11);
        // FEAT_HCX and FEAT_FGT: "n" bits are positive, so 0 after reset would trap.
        if switched.contains(Switched::HCRX) {
            regs::set_hcrx_el2(self.hcrx);
        }
        if switched.contains(Switched::FINE_TRAPS) {
            const UNTRAPPED: u64 = 0x3fff << 50 & !(1 << 51);
            regs::set_hfgrtr_el2(UNTRAPPED);
            regs::set_hfgwtr_el2(UNTRAPPED);
            regs::set_hfgitr_el2(0x1f << 55);
        }
    }
}

/// None of debug, PMU, SPE and TRBE may watch EL2, whoever runs below.
fn mdcr_machine(features: &HostFeatures) -> u64 {
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
    mdcr
}

/// Sets every register that decides what the host may do; stage 2 is on when it returns.
///
/// Must have run on a CPU before its first host instruction: with HCR_EL2.TSC clear, an SMC of
/// the host would start another CPU at EL2.
pub(super) fn prepare_host(controls: &HostControls, host: Stage2Ctx) {
    let features = controls.has();
    // SAFETY: stage 2 does not translate EL2; the table is the host's own.
    unsafe { regs::set_vtcr_el2(host.vtcr) };
    // SAFETY: as above.
    unsafe { regs::set_vttbr_el2(host.vttbr) };
    controls.install();
    regs::isb();
    regs::tlbi_alle1();
    regs::dsb_nsh();

    regs::set_hacr_el2(0);
    regs::set_vpidr_el2(regs::midr_el1());
    regs::set_vmpidr_el2(regs::mpidr_el1());
    regs::set_cntvoff_el2(0);
    regs::set_cnthp_ctl_el2(0);
    if controls.gic.is_some() {
        gic::reset();
    }
    if features.lor {
        regs::set_lorc_el1(0);
    }
    if features.sve {
        regs::set_zcr_el2(0xf);
    }
    if features.sme {
        regs::set_smcr_el2(0xf | u64::from(features.sme2) << 30 | u64::from(features.sme_fa64) << 31);
    }
    if features.fgt {
        regs::set_hdfgrtr_el2(0);
        regs::set_hdfgwtr_el2(0);
    }
    // What the boot protocol says of SCTLR_EL1: MMU and caches off, RES1 bits set.
    regs::set_sctlr_el1(0x30d0_0800);
    regs::isb();
}
