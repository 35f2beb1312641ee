//! PSTATE of a vCPU as a type: a value that would take EL2 anywhere but into an AArch64 guest at
//! EL0 or EL1 cannot be made (Arm ARM C5.2.19, SPSR_EL2).
#![forbid(unsafe_code)]

/// SPSR_EL2 for the entry of a guest: EL0t, EL1t or EL1h, AArch64, no illegal-state bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Pstate(u64);

impl Pstate {
    const MODE: u64 = 0x1f;
    /// EL1h. EL1t has bit 0 clear, EL0t both.
    const EL1H: u64 = 0b00101;
    /// No state of a CPU: EL0 has but one stack pointer.
    const EL0H: u64 = 0b00001;
    const DAIF: u64 = 0xf << 6;
    const BTYPE: u64 = 3 << 10;
    const SS: u64 = 1 << 21;
    /// NZCV, TCO, DIT, UAO, PAN, SS, ALLINT, SSBS, BTYPE, DAIF.
    const FLAGS: u64 = 0xf << 28
        | 1 << 25
        | 1 << 24
        | 1 << 23
        | 1 << 22
        | Self::SS
        | 1 << 13
        | 1 << 12
        | Self::BTYPE
        | Self::DAIF;

    /// EL1h, everything masked: how a vCPU starts.
    pub const RESET: Self = Self(Self::DAIF | Self::EL1H);

    /// `raw`, if a guest can be in that state.
    #[must_use]
    pub const fn new(raw: u64) -> Option<Self> {
        if raw & !(Self::FLAGS | Self::MODE) != 0 {
            return None;
        }
        // Two bits tell the three modes from each other: a test of the rest is less than a match.
        if raw & Self::MODE & !Self::EL1H != 0 || raw & Self::EL1H == Self::EL0H {
            return None;
        }
        Some(Self(raw))
    }

    /// The state in which the CPU left the guest, `None` for AArch32 and for anything above EL1.
    /// Bits of later architectures are dropped.
    #[must_use]
    #[inline]
    pub const fn of_exit(spsr: u64) -> Option<Self> {
        Self::new(spsr & (Self::FLAGS | Self::MODE))
    }

    /// The register.
    #[must_use]
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// As after an instruction that was executed: SS and BTYPE clear.
    #[must_use]
    #[inline]
    pub const fn after_instruction(self) -> Self {
        Self(self.0 & !(Self::SS | Self::BTYPE))
    }
}

#[cfg(test)]
mod tests {
    use super::Pstate;

    #[test]
    fn only_el0_and_el1_of_aarch64_are_states_of_a_guest() {
        for mode in 0..32 {
            let legal = matches!(mode, 0 | 4 | 5);
            assert_eq!(Pstate::new(0x3c0 | mode).is_some(), legal, "{mode:#x}");
            assert_eq!(Pstate::of_exit(0x3c0 | mode).is_some(), legal, "{mode:#x}");
        }
    }

    #[test]
    fn the_illegal_state_bit_and_unknown_bits_are_refused() {
        for bit in [5, 14, 15, 16, 17, 18, 19, 20, 26, 27, 32, 63] {
            assert_eq!(Pstate::new(1 << bit | 5), None, "{bit}");
            assert_eq!(Pstate::of_exit(1 << bit | 5), Some(Pstate(5)), "{bit}");
        }
        assert!(Pstate::new(0xf3c0_3fc5).is_some());
    }

    #[test]
    fn an_executed_instruction_clears_single_step_and_branch_type() {
        assert_eq!(Pstate::new(0x6020_0fc5).unwrap().after_instruction().raw(), 0x6000_03c5);
    }
}
