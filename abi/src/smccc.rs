//! SMC Calling Convention (Arm DEN0028): the function id and the status codes.

/// Call answered: x0 of a host call that was dispatched.
pub const SUCCESS: u64 = 0;
/// x0 for an id that this build does not have. No other register changes.
pub const NOT_SUPPORTED: u64 = u64::MAX;
/// SMCCC NOT_REQUIRED (-2).
pub const NOT_REQUIRED: u64 = u64::MAX - 1;
/// SMCCC INVALID_PARAMETER (-3).
pub const INVALID_PARAMETER: u64 = u64::MAX - 2;

/// `SMCCC_VERSION`.
pub const VERSION: u32 = 0x8000_0000;
/// What [`VERSION`] answers: 1.2.
pub const VERSION_1_2: u64 = 0x1_0002;
/// `SMCCC_ARCH_FEATURES`.
pub const ARCH_FEATURES: u32 = 0x8000_0001;
/// `SMCCC_ARCH_SOC_ID`.
pub const ARCH_SOC_ID: u32 = 0x8000_0002;
/// `SMCCC_ARCH_WORKAROUND_3`.
pub const ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
/// `SMCCC_ARCH_WORKAROUND_2`.
pub const ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
/// `SMCCC_ARCH_WORKAROUND_1`.
pub const ARCH_WORKAROUND_1: u32 = 0x8000_8000;

/// Bit 16 of a fast call's id: "no live SVE state" (SMCCC 1.3). It never changes which function
/// is meant, so it is taken off before an id is compared with anything.
pub const HINT_SVE: u32 = 1 << 16;

/// A 32-bit function id with the SVE hint taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionId(u32);

impl FunctionId {
    /// Reads x0. `None` if bits 63:32 are not zero: SMCCC says that the id is W0.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the upper half was just seen to be zero")]
    pub const fn from_reg(x0: u64) -> Option<Self> {
        if x0 >> 32 != 0 {
            return None;
        }
        Some(Self(x0 as u32 & !HINT_SVE))
    }

    /// The id as a number, hint bit clear.
    #[must_use]
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// True for fast calls (bit 31).
    #[must_use]
    pub const fn is_fast(self) -> bool {
        self.0 >> 31 == 1
    }

    /// Owner number, bits 29:24 (0 Arch, 4 Standard, 6 Vendor hypervisor).
    #[must_use]
    pub const fn owner(self) -> u8 {
        self.0.to_be_bytes()[0] & 0x3f
    }
}
