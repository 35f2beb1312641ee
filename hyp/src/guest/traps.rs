//! What EL2 traps while a guest runs: every trap register as a pure function of CPU and VM.
//!
//! Arm ARM D24 (HCR_EL2, MDCR_EL2, CPTR_EL2, CNTHCTL_EL2, HFG*). The rule: a feature that
//! [`super::idregs`] hides is trapped, or disabled, here. With FEAT_FGT and FEAT_HCX every
//! "enable" bit stays 0, which hides PIE, POE, TPIDR2, SMPRI, GCS, MAIR2, TCR2, SCTLR2 and MOPS.
#![forbid(unsafe_code)]

use super::context::Extra;
use super::idregs::CpuHas;
use crate::hw::CpuFeatures;

/// One for every set of [`Extra`].
const HCR_VALUES: usize = 1 + Extra::all().bits() as usize;

/// The trap registers of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Traps {
    /// HCR_EL2 of a guest by its [`Extra`], read by [`Traps::hcr`].
    hcr: [u64; HCR_VALUES],
    /// MDCR_EL2 without HPMN and HPMD, which are the machine's.
    pub mdcr: u64,
    /// CPTR_EL2 with FP trapped; `arch` clears TFP once it has switched FP.
    pub cptr: u64,
    /// HSTR_EL2.
    pub hstr: u64,
    /// CNTHCTL_EL2.
    pub cnthctl: u64,
    /// HCRX_EL2, HFGRTR_EL2, HFGWTR_EL2, HFGITR_EL2, HDFGRTR_EL2 and HDFGWTR_EL2 on CPUs that have
    /// them.
    pub fine: u64,
}

/// HCR_EL2 bits (Arm ARM D24.2.53).
mod hcr {
    pub(super) const VM: u64 = 1 << 0;
    pub(super) const SWIO: u64 = 1 << 1;
    pub(super) const PTW: u64 = 1 << 2;
    pub(super) const FMO: u64 = 1 << 3;
    pub(super) const IMO: u64 = 1 << 4;
    pub(super) const AMO: u64 = 1 << 5;
    pub(super) const FB: u64 = 1 << 9;
    pub(super) const BSU_IS: u64 = 1 << 10;
    pub(super) const TWI: u64 = 1 << 13;
    pub(super) const TWE: u64 = 1 << 14;
    pub(super) const TID1: u64 = 1 << 16;
    pub(super) const TID3: u64 = 1 << 18;
    pub(super) const TSC: u64 = 1 << 19;
    pub(super) const TIDCP: u64 = 1 << 20;
    pub(super) const TACR: u64 = 1 << 21;
    pub(super) const TSW: u64 = 1 << 22;
    pub(super) const RW: u64 = 1 << 31;
    pub(super) const TLOR: u64 = 1 << 35;
    pub(super) const TERR: u64 = 1 << 36;
    pub(super) const TEA: u64 = 1 << 37;
    pub(super) const APK: u64 = 1 << 40;
    pub(super) const API: u64 = 1 << 41;
    pub(super) const FWB: u64 = 1 << 46;
    pub(super) const TID4: u64 = 1 << 49;
    pub(super) const ATA: u64 = 1 << 56;
    pub(super) const TID5: u64 = 1 << 58;
}

/// MDCR_EL2 bits.
mod mdcr {
    pub(super) const TPMCR: u64 = 1 << 5;
    pub(super) const TPM: u64 = 1 << 6;
    pub(super) const TDA: u64 = 1 << 9;
    pub(super) const TDOSA: u64 = 1 << 10;
    pub(super) const TDRA: u64 = 1 << 11;
    pub(super) const TPMS: u64 = 1 << 14;
    pub(super) const TTRF: u64 = 1 << 19;
    pub(super) const TDCC: u64 = 1 << 27;
}

const fn when(condition: bool, bits: u64) -> u64 {
    if condition { bits } else { 0 }
}

impl Traps {
    /// HCR_EL2.API and APK: neither instructions that use keys nor the key registers trap.
    pub const KEYS: u64 = hcr::APK | hcr::API;

    /// HCR_EL2 of a guest with `extra`: what it has does not trap. With ATA, and GMID_EL1 untrapped
    /// (TID5), allocation tags and their registers are the guest's.
    #[must_use]
    #[inline]
    pub fn hcr(&self, extra: Extra) -> u64 {
        self.hcr.get(usize::from(extra.bits() & Extra::all().bits())).copied().unwrap_or_default()
    }

    /// The values for every guest of this CPU, protected or not: what is protected from the host
    /// differs between them, what the guest may do does not.
    #[must_use]
    pub const fn new(features: &CpuFeatures, has: &CpuHas) -> Self {
        let hcr = hcr_el2(features, has);
        let tags = hcr & !hcr::TID5 | hcr::ATA;
        Self {
            hcr: [hcr, hcr | Self::KEYS, tags, tags | Self::KEYS],
            mdcr: mdcr_el2(has),
            cptr: cptr_el2(has),
            hstr: 1 << 15,
            cnthctl: 1,
            fine: 0,
        }
    }
}

/// Interrupts and SErrors go to EL2; a guest's TLB, I-cache and barrier instructions reach the
/// inner shareable domain, since its vCPUs move between CPUs. TID4 and not TID2: Linux reads
/// CTR_EL0 a hundred thousand times while it boots.
const fn hcr_el2(features: &CpuFeatures, has: &CpuHas) -> u64 {
    let always = hcr::VM
        | hcr::SWIO
        | hcr::PTW
        | hcr::FMO
        | hcr::IMO
        | hcr::AMO
        | hcr::FB
        | hcr::BSU_IS
        | hcr::TWI
        | hcr::TWE
        | hcr::TID1
        | hcr::TID3
        | hcr::TSC
        | hcr::TIDCP
        | hcr::TACR
        | hcr::TSW
        | hcr::RW;
    always
        | when(features.fwb, hcr::FWB)
        | when(has.ras, hcr::TERR | hcr::TEA)
        | when(has.evt, hcr::TID4)
        | when(has.lor, hcr::TLOR)
        | when(has.mte2, hcr::TID5)
}

/// Debug, PMU, statistical profiling and trace belong to the host: E2PB and E2TB 0 keep their
/// buffers EL2's, the rest traps.
const fn mdcr_el2(has: &CpuHas) -> u64 {
    mdcr::TDRA
        | mdcr::TDOSA
        | mdcr::TDA
        | when(has.pmu, mdcr::TPM | mdcr::TPMCR)
        | when(has.spe, mdcr::TPMS)
        | when(has.trf, mdcr::TTRF)
        | when(has.fgt, mdcr::TDCC)
}

/// FP is trapped until the guest uses it; SVE (TZ) and SME (TSM) always: these bits are RES1 on
/// CPUs without. TTA traps trace, TAM the activity monitors.
const fn cptr_el2(has: &CpuHas) -> u64 {
    const RES1: u64 = 0x22ff;
    const TZ: u64 = 1 << 8;
    const TFP: u64 = 1 << 10;
    const TSM: u64 = 1 << 12;
    const TTA: u64 = 1 << 20;
    const TAM: u64 = 1 << 30;
    RES1 | TZ | TFP | TSM | TTA | when(has.amu, TAM)
}

#[cfg(test)]
mod tests {
    use super::{CpuFeatures, CpuHas, Extra, Traps};

    const V8_0: CpuFeatures = CpuFeatures {
        pa_bits: 44,
        vmid_bits: 8,
        fwb: false,
        ttl: false,
        tlbi_range: false,
        xnx: false,
        dic: false,
        idc: false,
        mte: 0,
        mte_perm: false,
    };

    #[test]
    fn a_plain_v8_0_cpu_gets_no_bit_of_a_later_architecture() {
        let t = Traps::new(&V8_0, &CpuHas { pmu: true, ..CpuHas::default() });
        assert_eq!(t.hcr(Extra::empty()), 0x807d_663f);
        assert_eq!(t.mdcr, 0xe60);
        assert_eq!(t.cptr, 0x0010_37ff);
        assert_eq!((t.hstr, t.cnthctl, t.fine), (0x8000, 1, 0));
    }

    #[test]
    fn what_a_new_cpu_has_is_trapped() {
        let features = CpuFeatures { fwb: true, mte: 3, ..V8_0 };
        let has = CpuHas {
            pauth: true,
            ras: true,
            evt: true,
            mte2: true,
            lor: true,
            sve: true,
            sme: true,
            fgt: true,
            hcx: true,
            amu: true,
            spe: true,
            trf: true,
            pmu: true,
        };
        let t = Traps::new(&features, &has);
        assert_eq!(Traps::KEYS, 3 << 40);
        let hcr = t.hcr(Extra::empty());
        assert_eq!(hcr, 0x807d_663f | 0x0402_4038_0000_0000);
        assert_eq!(t.hcr(Extra::KEYS), hcr | 3 << 40);
        assert_eq!(t.hcr(Extra::TAGS), hcr & !(1 << 58) | 1 << 56);
        assert_eq!(t.hcr(Extra::all()), hcr & !(1 << 58) | 1 << 56 | 3 << 40);
        assert_eq!(t.mdcr, 0x0808_4e60);
        assert_eq!(t.cptr, 0x4010_37ff);
    }

    #[test]
    fn each_feature_sets_its_own_traps_and_no_other() {
        let base = Traps::new(&V8_0, &CpuHas::default());
        let delta = |has: CpuHas| {
            let t = Traps::new(&V8_0, &has);
            (t.hcr(Extra::empty()) ^ base.hcr(Extra::empty()), t.mdcr ^ base.mdcr, t.cptr ^ base.cptr)
        };
        let none = CpuHas::default();
        assert_eq!(delta(CpuHas { pauth: true, ..none }), (0, 0, 0), "until it uses keys");
        assert_eq!(delta(CpuHas { ras: true, ..none }), (3 << 36, 0, 0));
        assert_eq!(delta(CpuHas { evt: true, ..none }), (1 << 49, 0, 0));
        assert_eq!(delta(CpuHas { mte2: true, ..none }), (1 << 58, 0, 0));
        assert_eq!(delta(CpuHas { lor: true, ..none }), (1 << 35, 0, 0));
        assert_eq!(delta(CpuHas { fgt: true, ..none }), (0, 1 << 27, 0));
        assert_eq!(delta(CpuHas { spe: true, ..none }), (0, 1 << 14, 0));
        assert_eq!(delta(CpuHas { trf: true, ..none }), (0, 1 << 19, 0));
        assert_eq!(delta(CpuHas { amu: true, ..none }), (0, 0, 1 << 30));
        assert_eq!(delta(CpuHas { sve: true, sme: true, hcx: true, ..none }), (0, 0, 0));
    }
}
