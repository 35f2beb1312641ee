//! System registers and instructions by their encoding (Arm ARM C5.1).
#![forbid(unsafe_code)]

use core::fmt;
use el1::random::Random;

/// SCTLR_EL1.M.
pub(super) const STAGE1_ON: u64 = 1;

/// A system register or instruction, ordered by op0, op1, CRn, CRm, op2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Register(u32);

impl Register {
    /// SCTLR_EL1.
    pub const SCTLR: Self = Self::new(3, 0, 1, 0, 0);

    /// The register with these fields.
    #[must_use]
    pub const fn new(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> Self {
        Self(op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
    }

    /// One of the registers from here to `last`.
    pub(super) fn between(self, last: Self, random: &mut Random) -> Self {
        let more = random.below(u64::from(last.0.saturating_sub(self.0)) + 1);
        Self(self.0 + u32::try_from(more).unwrap_or(0))
    }

    /// One of the 32768 with op0 2 or 3; bits of `index` above 14 do not count.
    #[must_use]
    pub const fn of_index(index: u64) -> Self {
        let [low, high, ..] = index.to_le_bytes();
        Self(1 << 15 | (high as u32 & 0x7f) << 8 | low as u32)
    }

    /// MRS, or SYSL for op0 1, to register `rt`.
    #[must_use]
    pub const fn mrs(self, rt: u32) -> u32 {
        0xd520_0000 | self.0 << 5 | rt
    }

    /// MSR, or SYS for op0 1, from register `rt`.
    #[must_use]
    pub const fn msr(self, rt: u32) -> u32 {
        0xd500_0000 | self.0 << 5 | rt
    }
}

/// As an assembler takes it: S3_0_C1_C0_0.
impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [op0, op1, crn, crm, op2] =
            [(14, 3), (11, 7), (7, 15), (3, 15), (0, 7)].map(|(shift, mask)| self.0 >> shift & mask);
        write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
    }
}

#[cfg(test)]
mod tests {
    use super::Register;
    use std::string::ToString;

    #[test]
    fn a_register_is_named_by_its_fields() {
        assert_eq!(Register::new(3, 3, 14, 2, 1).to_string(), "S3_3_C14_C2_1");
    }

    #[test]
    fn instructions_are_encoded_as_the_architecture_says() {
        assert_eq!(Register::new(3, 0, 0, 0, 5).mrs(0), 0xd538_00a0, "mrs x0, mpidr_el1");
        assert_eq!(Register::new(2, 0, 0, 2, 2).msr(0), 0xd510_0240, "msr mdscr_el1, x0");
        assert_eq!(Register::new(1, 0, 7, 14, 2).msr(0), 0xd508_7e40, "dc cisw, x0");
        assert_eq!(Register::SCTLR.msr(3), 0xd518_1003, "msr sctlr_el1, x3");
    }

    #[test]
    fn an_index_is_an_encoding_with_op0_2_or_3() {
        assert_eq!(Register::of_index(0), Register::new(2, 0, 0, 0, 0));
        assert_eq!(Register::of_index(0x7fff), Register::new(3, 7, 15, 15, 7));
        assert_eq!(Register::of_index(0x8000), Register::of_index(0));
    }
}
