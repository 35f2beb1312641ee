//! What the CPU can do, from its ID registers.

use super::{el1, regs};
use bitflags::bitflags;
use hyp::guest::idregs::IdRegisters;
use hyp::hw::CpuFeatures;

/// A four-bit ID field.
const fn field(register: u64, shift: u32) -> u8 {
    (register >> shift).to_le_bytes()[0] & 0xf
}

/// Features that only the switch between the host and guests needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostFeatures {
    pub(crate) pauth: bool,
    pub(crate) sve: bool,
    pub(crate) sme: bool,
    /// FEAT_SME_FA64.
    pub(crate) sme_fa64: bool,
    pub(crate) sme2: bool,
    pub(crate) fgt: bool,
    pub(crate) hcx: bool,
    pub(crate) lor: bool,
    pub(crate) gicv3: bool,
    pub(crate) csv2_2: bool,
    /// ID_AA64DFR0_EL1.PMUVer, 0 if there is none.
    pub(crate) pmu: u8,
    pub(crate) spe: bool,
    pub(crate) trbe: bool,
    pub(crate) tcr2: bool,
    pub(crate) sctlr2: bool,
    pub(crate) gcs: bool,
    pub(crate) mops: bool,
    pub(crate) fpmr: bool,
    pub(crate) mte: u8,
    pub(crate) ras: bool,
    /// FEAT_EVT with TID4: a guest's CSSELR_EL1 traps.
    pub(crate) evt: bool,
    /// FEAT_TRF.
    pub(crate) trf: bool,
    pub(crate) brbe: bool,
    /// FEAT_RNG: RNDR.
    pub(crate) rng: bool,
    /// AFSR0_EL1, AFSR1_EL1 or AMAIR_EL1 hold what is written to them.
    pub(crate) auxiliary: bool,
}

bitflags! {
    /// What a switch moves on this CPU besides what every CPU has. One word, which a switch reads once.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Switched: u32 {
        /// FEAT_RAS: VDISR_EL2.
        const VDISR = 1 << 0;
        /// No FEAT_EVT with TID4, which leaves a guest's CSSELR_EL1 in its context alone.
        const CSSELR = 1 << 1;
        /// FEAT_HCX: HCRX_EL2.
        const HCRX = 1 << 2;
        /// FEAT_FGT: HFGRTR_EL2, HFGWTR_EL2 and HFGITR_EL2.
        const FINE_TRAPS = 1 << 3;
        /// SPE, FEAT_TRF or BRBE: what would sample, trace or record a guest for the host.
        const PROFILING = 1 << 4;
        /// SVE: the host's vectors are longer than a guest's.
        const SVE = 1 << 5;
        /// No FEAT_FGT: this may be one of the cores that walk speculatively with registers of two worlds
        /// (Cortex-A57 1319537, A72 1319367, A55 1530923, A76 1165522). All of them are older than Armv8.6,
        /// which has it; the architecture forbids such walks.
        const MIXED_WALKS = 1 << 6;
        /// AFSR0_EL1, AFSR1_EL1 and AMAIR_EL1.
        const AUXILIARY = 1 << 7;
        /// More than one each of ICH_AP0R`n`_EL2 and ICH_AP1R`n`_EL2.
        const PRIORITIES = 1 << 8;
        /// EL1 registers that not every CPU switches.
        const SOME_EL1 = Self::CSSELR.bits() | Self::AUXILIARY.bits();
    }
}

impl HostFeatures {
    /// What they mean for a switch.
    pub(crate) fn switched(&self) -> Switched {
        let mut switched = Switched::empty();
        switched.set(Switched::VDISR, self.ras);
        switched.set(Switched::CSSELR, !self.evt);
        switched.set(Switched::AUXILIARY, self.auxiliary);
        switched.set(Switched::HCRX, self.hcx);
        switched.set(Switched::FINE_TRAPS, self.fgt);
        switched.set(Switched::PROFILING, self.spe || self.trf || self.brbe);
        switched.set(Switched::SVE, self.sve);
        switched.set(Switched::MIXED_WALKS, !self.fgt);
        switched
    }
}

/// Reads what the portable core wants to know. Arm ARM D24.2, the registers named.
pub(crate) fn cpu_features() -> CpuFeatures {
    let mmfr0 = regs::id_aa64mmfr0_el1();
    let mmfr1 = regs::id_aa64mmfr1_el1();
    let mmfr2 = regs::id_aa64mmfr2_el1();
    let ctr = regs::ctr_el0();
    let mte = field(regs::id_aa64pfr1_el1(), 8);
    CpuFeatures {
        pa_bits: match field(mmfr0, 0) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => 48,
        },
        vmid_bits: if field(mmfr1, 4) == 2 { 16 } else { 8 },
        fwb: field(mmfr2, 40) != 0,
        ttl: field(mmfr2, 48) != 0,
        tlbi_range: field(regs::id_aa64isar0_el1(), 56) >= 2,
        xnx: field(mmfr1, 28) != 0,
        dic: ctr & (1 << 29) != 0,
        idc: ctr & (1 << 28) != 0,
        mte,
        mte_perm: mte >= 2 && field(regs::id_aa64pfr2_el1(), 0) != 0,
    }
}

/// Reads what the host's traps depend on.
pub(crate) fn host_features() -> HostFeatures {
    let pfr0 = regs::id_aa64pfr0_el1();
    let pfr1 = regs::id_aa64pfr1_el1();
    let dfr0 = regs::id_aa64dfr0_el1();
    let isar1 = regs::id_aa64isar1_el1();
    let isar2 = regs::id_aa64isar2_el1();
    let mmfr0 = regs::id_aa64mmfr0_el1();
    let mmfr1 = regs::id_aa64mmfr1_el1();
    let mmfr3 = regs::id_aa64mmfr3_el1();
    let smfr0 = regs::id_aa64smfr0_el1();
    let pmu = field(dfr0, 8);
    HostFeatures {
        pauth: field(isar1, 4) != 0
            || field(isar1, 8) != 0
            || field(isar1, 24) != 0
            || field(isar1, 28) != 0
            || field(isar2, 8) != 0
            || field(isar2, 12) != 0,
        sve: field(pfr0, 32) != 0,
        sme: field(pfr1, 24) != 0,
        sme_fa64: smfr0 >> 63 == 1,
        sme2: field(pfr1, 24) >= 2,
        fgt: field(mmfr0, 56) != 0,
        hcx: field(mmfr1, 40) != 0,
        lor: field(mmfr1, 16) != 0,
        gicv3: field(pfr0, 24) != 0,
        csv2_2: field(pfr0, 56) >= 2,
        pmu: if pmu == 0xf { 0 } else { pmu },
        spe: field(dfr0, 32) != 0,
        trbe: field(dfr0, 44) != 0,
        tcr2: field(mmfr3, 0) != 0,
        sctlr2: field(mmfr3, 4) != 0,
        gcs: field(pfr1, 44) != 0,
        mops: field(isar2, 16) != 0,
        fpmr: field(regs::id_aa64pfr2_el1(), 32) != 0,
        mte: field(pfr1, 8),
        ras: field(pfr0, 28) != 0,
        evt: field(regs::id_aa64mmfr2_el1(), 56) != 0,
        trf: field(dfr0, 40) != 0,
        brbe: field(dfr0, 52) != 0,
        rng: field(regs::id_aa64isar0_el1(), 60) != 0,
        auxiliary: el1::has_auxiliary(),
    }
}

macro_rules! group3 {
    ($($crm:literal: $($op2:literal $name:literal)*;)*) => {
        [$($(($crm, $op2, regs::id_register!($name)),)*)*]
    };
}

/// The ID registers of which guests see parts, on a CPU with GICv3; those of AArch32, which they do not have, are 0.
pub(crate) fn id_registers() -> IdRegisters {
    let mut ids = IdRegisters {
        group3: [0; 56],
        revidr: regs::id_register!("REVIDR_EL1"),
        aidr: regs::id_register!("AIDR_EL1"),
        clidr: regs::id_register!("CLIDR_EL1"),
        ctr: regs::ctr_el0(),
        ich_vtr: super::gic::vtr(),
    };
    let aarch64 = group3! {
        4: 0 "S3_0_C0_C4_0" 1 "S3_0_C0_C4_1" 2 "S3_0_C0_C4_2" 3 "S3_0_C0_C4_3"
           4 "S3_0_C0_C4_4" 5 "S3_0_C0_C4_5" 6 "S3_0_C0_C4_6" 7 "S3_0_C0_C4_7";
        5: 0 "S3_0_C0_C5_0" 1 "S3_0_C0_C5_1" 2 "S3_0_C0_C5_2" 3 "S3_0_C0_C5_3"
           4 "S3_0_C0_C5_4" 5 "S3_0_C0_C5_5" 6 "S3_0_C0_C5_6" 7 "S3_0_C0_C5_7";
        6: 0 "S3_0_C0_C6_0" 1 "S3_0_C0_C6_1" 2 "S3_0_C0_C6_2" 3 "S3_0_C0_C6_3"
           4 "S3_0_C0_C6_4" 5 "S3_0_C0_C6_5" 6 "S3_0_C0_C6_6" 7 "S3_0_C0_C6_7";
        7: 0 "S3_0_C0_C7_0" 1 "S3_0_C0_C7_1" 2 "S3_0_C0_C7_2" 3 "S3_0_C0_C7_3"
           4 "S3_0_C0_C7_4" 5 "S3_0_C0_C7_5" 6 "S3_0_C0_C7_6" 7 "S3_0_C0_C7_7";
    };
    for (crm, op2, value) in aarch64 {
        ids.set(crm, op2, value);
    }
    ids
}
