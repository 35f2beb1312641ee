//! Which CPU a guest sees: each ID register as the smaller of what the CPU has and a ceiling.
//!
//! An allow-list: a field that is not in [`CEILINGS`] reads as "not there", so a feature of a later
//! CPU is hidden until somebody has thought about its registers and traps. Everything that is
//! hidden here is trapped by [`super::traps`]; everything shown is switched with
//! [`super::context`]. Field positions: Arm ARM D24.2, "ID_AA64*".
#![forbid(unsafe_code)]

/// ID registers of op0 = 3, op1 = 0, CRn = 0, CRm = 1..=7, by `(CRm - 1) * 8 + op2`.
const GROUP3: usize = 56;

/// The ID registers of a CPU as EL2 reads them; plain data that `arch` fills once at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdRegisters {
    /// The group that HCR_EL2.TID3 traps, by `(CRm - 1) * 8 + op2`. AArch32 ones may be left 0.
    pub group3: [u64; GROUP3],
    /// REVIDR_EL1.
    pub revidr: u64,
    /// AIDR_EL1.
    pub aidr: u64,
    /// CLIDR_EL1.
    pub clidr: u64,
    /// CTR_EL0.
    pub ctr: u64,
    /// ICH_VTR_EL2.
    pub ich_vtr: u64,
}

impl IdRegisters {
    /// Notes what the register of the group with these numbers reads, if there is one.
    pub fn set(&mut self, crm: u8, op2: u8, value: u64) {
        if let Some(at) = IdReg::new(crm, op2).and_then(|reg| self.group3.get_mut(reg.0)) {
            *at = value;
        }
    }
}

/// Names an ID register of the group: CRm and op2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdReg(usize);

impl IdReg {
    /// The register of `crm` 1..=7 and `op2` 0..=7.
    #[must_use]
    pub const fn new(crm: u8, op2: u8) -> Option<Self> {
        match crm {
            1..=7 if op2 < 8 => {
                let [crm, op2] = [crm as usize, op2 as usize];
                Some(Self((crm.wrapping_sub(1)).wrapping_mul(8).wrapping_add(op2)))
            }
            _ => None,
        }
    }

    const fn of(crm: u8, op2: u8) -> Self {
        match Self::new(crm, op2) {
            Some(reg) => reg,
            None => Self(0),
        }
    }

    /// ID_AA64PFR0_EL1.
    pub const PFR0: Self = Self::of(4, 0);
    /// ID_AA64PFR1_EL1.
    pub const PFR1: Self = Self::of(4, 1);
    /// ID_AA64PFR2_EL1.
    pub const PFR2: Self = Self::of(4, 2);
    /// ID_AA64DFR0_EL1.
    pub const DFR0: Self = Self::of(5, 0);
    /// ID_AA64ISAR0_EL1.
    pub const ISAR0: Self = Self::of(6, 0);
    /// ID_AA64ISAR1_EL1.
    pub const ISAR1: Self = Self::of(6, 1);
    /// ID_AA64ISAR2_EL1.
    pub const ISAR2: Self = Self::of(6, 2);
    /// ID_AA64MMFR0_EL1.
    pub const MMFR0: Self = Self::of(7, 0);
    /// ID_AA64MMFR1_EL1.
    pub const MMFR1: Self = Self::of(7, 1);
    /// ID_AA64MMFR2_EL1.
    pub const MMFR2: Self = Self::of(7, 2);
}

/// Four bits of an ID register from bit `shift`.
const fn field(value: u64, shift: u32) -> u64 {
    (value >> shift) & 0xf
}

/// How far a field may go. Fields count up from 0 = "not there"; signed ones have 0xf for that.
#[derive(Clone, Copy, Debug)]
enum Ceiling {
    /// The smaller of both.
    Max(u64),
    /// The smaller of both, as signed numbers.
    SignedMax(i8),
    /// This value whatever the CPU has.
    Is(u64),
}

use Ceiling::{Is, Max, SignedMax};

impl Ceiling {
    #[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "four bits")]
    const fn apply(self, real: u64) -> u64 {
        match self {
            Max(max) => {
                if real < max {
                    real
                } else {
                    max
                }
            }
            SignedMax(max) => {
                let signed = ((real as i8) << 4) >> 4;
                let smaller = if signed < max { signed } else { max };
                smaller.cast_unsigned() as u64 & 0xf
            }
            Is(value) => value,
        }
    }
}

/// Every field that a guest may see: register, lowest bit, ceiling.
#[rustfmt::skip]
const CEILINGS: &[(IdReg, u32, Ceiling)] = &[
    // AArch64 at every level, FP16, GICv3 registers, RAS, DIT, CSV2, CSV3. No SVE, MPAM, AMU, RME.
    (IdReg::PFR0, 0, Max(1)), (IdReg::PFR0, 4, Max(1)), (IdReg::PFR0, 8, Max(1)), (IdReg::PFR0, 12, Max(1)),
    (IdReg::PFR0, 16, SignedMax(1)), (IdReg::PFR0, 20, SignedMax(1)), (IdReg::PFR0, 24, Max(1)),
    (IdReg::PFR0, 28, Max(1)), (IdReg::PFR0, 48, Max(1)), (IdReg::PFR0, 56, Max(1)), (IdReg::PFR0, 60, Max(1)),
    // BTI, SSBS. SME, NMI, GCS are off, and MTE without a policy for it; MTE_frac says then "no asynchronous faults".
    (IdReg::PFR1, 0, Max(1)), (IdReg::PFR1, 4, Max(2)), (IdReg::PFR1, 40, Is(0xf)),
    // No PMU, no trace, no SPE, one breakpoint that does nothing; DoubleLock and MTPMU count from 0xf.
    (IdReg::DFR0, 36, Is(0xf)), (IdReg::DFR0, 48, Is(0xf)),
    // Instructions only, all but TME (27:24): AES .. ATOMIC, RDM .. FHM, TS, TLB ranges, RNDR.
    (IdReg::ISAR0, 4, Max(15)), (IdReg::ISAR0, 8, Max(15)), (IdReg::ISAR0, 12, Max(15)), (IdReg::ISAR0, 16, Max(15)),
    (IdReg::ISAR0, 20, Max(15)), (IdReg::ISAR0, 28, Max(15)), (IdReg::ISAR0, 32, Max(15)), (IdReg::ISAR0, 36, Max(15)),
    (IdReg::ISAR0, 40, Max(15)), (IdReg::ISAR0, 44, Max(15)), (IdReg::ISAR0, 48, Max(15)), (IdReg::ISAR0, 52, Max(15)),
    (IdReg::ISAR0, 56, Max(2)), (IdReg::ISAR0, 60, Max(15)),
    // DPB2, PAuth (four fields), JSCVT, FCMA, LRCPC3, FRINTTS, SB, SPECRES, BF16, DGH, I8MM. No XS, no LS64.
    (IdReg::ISAR1, 0, Max(2)), (IdReg::ISAR1, 4, Max(15)), (IdReg::ISAR1, 8, Max(15)), (IdReg::ISAR1, 12, Max(1)),
    (IdReg::ISAR1, 16, Max(1)), (IdReg::ISAR1, 20, Max(3)), (IdReg::ISAR1, 24, Max(1)), (IdReg::ISAR1, 28, Max(1)),
    (IdReg::ISAR1, 32, Max(1)), (IdReg::ISAR1, 36, Max(1)), (IdReg::ISAR1, 40, Max(1)), (IdReg::ISAR1, 44, Max(2)),
    (IdReg::ISAR1, 48, Max(1)), (IdReg::ISAR1, 52, Max(1)),
    // PAuth with QARMA3. No MOPS, no WFxT.
    (IdReg::ISAR2, 8, Max(1)), (IdReg::ISAR2, 12, Max(15)), (IdReg::ISAR2, 60, Max(1)),
    // PARange (40 bits; 48 where the IPA space is larger), ASID, SNSMEM, EXS; 4K and 64K granules as the CPU
    // has them, no 16K. Little endian only: an MMIO exit carries a value, not bytes.
    (IdReg::MMFR0, 0, Max(2)), (IdReg::MMFR0, 4, Max(2)), (IdReg::MMFR0, 12, Max(1)), (IdReg::MMFR0, 24, SignedMax(0)),
    (IdReg::MMFR0, 28, SignedMax(0)), (IdReg::MMFR0, 44, Max(1)),
    // HAFDBS (DBM), VMIDBits, HPDS2, PAN3, SpecSEI, ETS, CMOW. No VHE, LOR, TWED, HCX.
    (IdReg::MMFR1, 0, Max(2)), (IdReg::MMFR1, 4, Max(2)), (IdReg::MMFR1, 12, Max(2)), (IdReg::MMFR1, 20, Max(3)),
    (IdReg::MMFR1, 24, Max(1)), (IdReg::MMFR1, 36, Max(2)), (IdReg::MMFR1, 56, Max(1)),
    // CnP, UAO, IESB, AT, TTL, BBM, E0PD. No NV, no FWB; IDS is off, as EL2 reports with EC 0.
    (IdReg::MMFR2, 0, Max(1)), (IdReg::MMFR2, 4, Max(1)), (IdReg::MMFR2, 12, Max(1)), (IdReg::MMFR2, 32, Max(1)),
    (IdReg::MMFR2, 48, Max(1)), (IdReg::MMFR2, 52, Max(2)), (IdReg::MMFR2, 60, Max(1)),
];

/// The same for a guest with MTE, of ID_AA64PFR1_EL1: MTE3 at most, and MTE_frac as it is.
const TAG_CEILINGS: &[(u32, Ceiling)] = &[(8, Max(3)), (40, Max(15))];
const MTE_FIELDS: u64 = 0xf << 8 | 0xf << 40;

/// PARange of each number of bits, ID_AA64MMFR0_EL1.
const PA_RANGES: [u32; 6] = [32, 36, 40, 42, 44, 48];

/// The CPU that a guest sees, and what EL2 needs to know of the real one to hide the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestCpu {
    shown: [u64; GROUP3],
    /// ID_AA64PFR1_EL1 of a guest with MTE.
    pfr1_with_tags: u64,
    /// REVIDR_EL1, the real one: errata lists name it.
    pub revidr: u64,
    /// AIDR_EL1, the real one.
    pub aidr: u64,
    /// CLIDR_EL1 without tag caches.
    pub clidr: u64,
    /// CCSIDR_EL1 of every cache: the line size of CTR_EL0 and one set of one way, since set/way
    /// operations are no guest's business.
    pub ccsidr: u64,
    /// Number of list registers.
    pub list_registers: u8,
    /// What has to be trapped or switched because the CPU has it.
    pub has: CpuHas,
}

/// Features of the real CPU that decide how a guest is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "each field is FEAT_ of its name")]
#[allow(clippy::struct_excessive_bools, reason = "a feature is there or not")]
pub struct CpuHas {
    /// FEAT_PAuth, address or generic.
    pub pauth: bool,
    pub ras: bool,
    /// FEAT_EVT with TID4: CCSIDR and CLIDR trap without CTR_EL0.
    pub evt: bool,
    /// FEAT_MTE2, hidden from guests without a policy for it.
    pub mte2: bool,
    pub lor: bool,
    pub sve: bool,
    pub sme: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    pub amu: bool,
    pub spe: bool,
    pub trf: bool,
    /// A PMU of version 3 or later.
    pub pmu: bool,
}

impl GuestCpu {
    /// What guests see of the CPU with registers `real`.
    #[must_use]
    pub fn new(real: &IdRegisters) -> Self {
        let raw = |reg: IdReg| real.group3.get(reg.0).copied().unwrap_or(0);
        let mut shown = [0; GROUP3];
        for &(reg, shift, ceiling) in CEILINGS {
            if let Some(value) = shown.get_mut(reg.0) {
                *value |= ceiling.apply(field(raw(reg), shift)) << shift;
            }
        }
        let has = |reg: IdReg, shift, least| field(raw(reg), shift) >= least;
        let isar1 = raw(IdReg::ISAR1);
        // The SVE field of a CPU without FP is 0, PMUVer 0xf is an IMPLEMENTATION DEFINED PMU.
        let pmu = field(raw(IdReg::DFR0), 8);
        let without_tags = shown.get(IdReg::PFR1.0).copied().unwrap_or(0) & !MTE_FIELDS;
        Self {
            shown,
            pfr1_with_tags: TAG_CEILINGS.iter().fold(without_tags, |value, &(shift, ceiling)| {
                value | ceiling.apply(field(raw(IdReg::PFR1), shift)) << shift
            }),
            revidr: real.revidr,
            aidr: real.aidr,
            clidr: real.clidr & 0x1_ffff_ffff,
            ccsidr: field(real.ctr, 16).saturating_sub(2) & 0x7,
            list_registers: u8::try_from(real.ich_vtr & 0x1f).unwrap_or(0).saturating_add(1).min(16),
            has: CpuHas {
                pauth: isar1 & 0xff00_0ff0 & 0xffff_ffff != 0 || raw(IdReg::ISAR2) & 0xff00 != 0,
                ras: has(IdReg::PFR0, 28, 1),
                evt: has(IdReg::MMFR2, 56, 1),
                mte2: has(IdReg::PFR1, 8, 2),
                lor: has(IdReg::MMFR1, 16, 1),
                sve: has(IdReg::PFR0, 32, 1),
                sme: has(IdReg::PFR1, 24, 1),
                fgt: has(IdReg::MMFR0, 56, 1),
                hcx: has(IdReg::MMFR1, 40, 1),
                amu: has(IdReg::PFR0, 44, 1),
                spe: has(IdReg::DFR0, 32, 1),
                trf: has(IdReg::DFR0, 40, 1),
                pmu: pmu != 0 && pmu != 0xf,
            },
        }
    }

    /// What the guest reads from `reg`. `ipa_bits` is the size of its IPA space: PARange is at
    /// most 40 bits, or the smallest size that holds the space if that is larger, since a table
    /// of the guest must be able to name every IPA. With MTE (`tags`) PFR1 says so; PFR2, which has
    /// MTEPERM and what else came after MTE3, is 0 for all.
    #[must_use]
    pub fn read(&self, reg: IdReg, ipa_bits: u32, tags: bool) -> u64 {
        if tags && reg == IdReg::PFR1 {
            return self.pfr1_with_tags;
        }
        let value = self.shown.get(reg.0).copied().unwrap_or(0);
        if reg == IdReg::MMFR0 && ipa_bits > 40 {
            let fits = (0..).zip(PA_RANGES).find(|&(_, bits)| bits >= ipa_bits);
            return value & !0xf | fits.map_or(5, |(range, _)| range);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::{GROUP3, GuestCpu, IdReg, IdRegisters};
    use std::vec::Vec;

    fn cpu(set: &[(IdReg, u64)]) -> GuestCpu {
        let mut real = IdRegisters {
            group3: [0; GROUP3],
            revidr: 1,
            aidr: 2,
            clidr: u64::MAX,
            ctr: 4 << 16,
            ich_vtr: 3,
        };
        for &(reg, value) in set {
            real.group3[reg.0] = value;
        }
        GuestCpu::new(&real)
    }

    fn every_register() -> impl Iterator<Item = IdReg> {
        (1..8).flat_map(|crm| (0..8).map(move |op2| IdReg::new(crm, op2).unwrap()))
    }

    #[test]
    fn a_cpu_with_everything_shows_no_more_than_the_ceilings() {
        let all: Vec<_> = every_register().map(|r| (r, 0x7777_7777_7777_7777)).collect();
        let cpu = cpu(&all);
        let expected = [
            (IdReg::PFR0, 0x1101_0000_1111_1111),
            (IdReg::PFR1, 0x0000_0f00_0000_0021),
            (IdReg::DFR0, 0x000f_00f0_0000_0000),
            (IdReg::ISAR0, 0x7277_7777_7077_7770),
            (IdReg::ISAR1, 0x0011_2111_1131_1772),
            (IdReg::ISAR2, 0x1000_0000_0000_7100),
            (IdReg::MMFR0, 0x0000_1000_0000_1022),
            (IdReg::MMFR1, 0x0100_0020_0130_2022),
            (IdReg::MMFR2, 0x1021_0001_0000_1011),
        ];
        for reg in every_register() {
            let want = expected.iter().find(|(r, _)| *r == reg).map_or(0, |(_, v)| *v);
            assert_eq!(cpu.read(reg, 40, false), want, "{reg:?}");
        }
    }

    #[test]
    fn a_field_that_no_ceiling_names_is_hidden_whatever_its_value() {
        for reg in every_register() {
            for shift in (0..64).step_by(4) {
                for real in 0..16 {
                    let shown = cpu(&[(reg, real << shift)]).read(reg, 40, false);
                    let blank = cpu(&[]).read(reg, 40, false);
                    assert_eq!((shown ^ blank) & !(0xf << shift), 0, "{reg:?} {shift}: neighbours");
                }
            }
        }
        // SVE, SME, MTE, AArch32, PMU, NV, HCX, big endian.
        for (reg, shift) in [
            (IdReg::PFR0, 32),
            (IdReg::PFR1, 24),
            (IdReg::PFR1, 8),
            (IdReg::DFR0, 8),
            (IdReg::MMFR2, 24),
            (IdReg::MMFR1, 40),
            (IdReg::MMFR0, 8),
        ] {
            assert_eq!(cpu(&[(reg, 2 << shift)]).read(reg, 40, false), cpu(&[]).read(reg, 40, false));
        }
    }

    #[test]
    fn m_22_tags_are_shown_with_a_policy_for_them_and_what_came_after_mte3_never() {
        for mte in 0..16 {
            for frac in 0..16 {
                let pfr1 = mte << 8 | frac << 40 | 0x21 | 3 << 24 | 0xf << 52;
                let cpu = cpu(&[(IdReg::PFR1, pfr1), (IdReg::PFR2, u64::MAX)]);
                assert_eq!(cpu.read(IdReg::PFR1, 40, false), 0xf << 40 | 0x21);
                assert_eq!(cpu.read(IdReg::PFR1, 40, true), frac << 40 | mte.min(3) << 8 | 0x21);
                assert_eq!([false, true].map(|tags| cpu.read(IdReg::PFR2, 40, tags)), [0, 0]);
            }
        }
        let all: Vec<_> = every_register().map(|r| (r, 0x2222_2222_2222_2222)).collect();
        let cpu = cpu(&all);
        for reg in every_register().filter(|reg| *reg != IdReg::PFR1) {
            assert_eq!(cpu.read(reg, 40, true), cpu.read(reg, 40, false), "{reg:?}");
        }
    }

    #[test]
    fn a_signed_field_keeps_its_absence() {
        let none = cpu(&[(IdReg::PFR0, 0xff << 16), (IdReg::MMFR0, 0xff << 24)]);
        assert_eq!(none.read(IdReg::PFR0, 40, false), 0xff << 16);
        assert_eq!(none.read(IdReg::MMFR0, 40, false), 0xff << 24);
    }

    #[test]
    fn the_physical_range_holds_the_ipa_space() {
        let big = cpu(&[(IdReg::MMFR0, 6)]);
        for (bits, range) in [(32, 2), (40, 2), (41, 3), (42, 3), (43, 4), (44, 4), (45, 5), (48, 5)] {
            assert_eq!(big.read(IdReg::MMFR0, bits, false) & 0xf, range, "{bits}");
        }
        assert_eq!(cpu(&[(IdReg::MMFR0, 1)]).read(IdReg::MMFR0, 36, false) & 0xf, 1, "never above the CPU's");
    }

    #[test]
    fn cache_geometry_is_the_line_size_alone() {
        let cpu = cpu(&[]);
        assert_eq!(cpu.ccsidr, 2, "64-byte lines: log2(bytes) - 4");
        assert_eq!(cpu.clidr, 0x1_ffff_ffff);
        assert_eq!(cpu.list_registers, 4);
    }

    #[test]
    fn any_kind_of_pointer_authentication_counts() {
        for (reg, shift) in [(IdReg::ISAR1, 4), (IdReg::ISAR1, 8), (IdReg::ISAR1, 24), (IdReg::ISAR1, 28)] {
            assert!(cpu(&[(reg, 1 << shift)]).has.pauth);
        }
        assert!(cpu(&[(IdReg::ISAR2, 1 << 8)]).has.pauth && cpu(&[(IdReg::ISAR2, 1 << 12)]).has.pauth);
        assert!(!cpu(&[(IdReg::ISAR1, 0x00ff_f00f), (IdReg::ISAR2, 0xff)]).has.pauth);
    }
}
