//! Calls that a guest makes on HVC: KVM's vendor services as Linux and Android define them, and
//! the True Random Number Generator (Arm DEN0098). PSCI and SMCCC have their own modules.

/// The vendor UID call.
pub const VENDOR_UID: u32 = 0x8600_ff01;
/// What [`VENDOR_UID`] answers in x0..x3: 28b46fb6-2ec5-11e9-a9ca-4b564d003a74, KVM's.
pub const VENDOR_UID_WORDS: [u64; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];

/// FEATURES: bit n of x0 says that function n below is there for this VM.
pub const FEATURES: u32 = 0x8600_0000;
/// HYP_MEMINFO: x0 = granule in bytes, x1 bit 0 = the memory calls take a number of granules.
pub const HYP_MEMINFO: u32 = 0xc600_0002;
/// MEM_SHARE: x1 IPA, x2 granules (0 = 1), x3 0; x1 = granules done.
pub const MEM_SHARE: u32 = 0xc600_0003;
/// MEM_UNSHARE: the same arguments.
pub const MEM_UNSHARE: u32 = 0xc600_0004;
/// MEM_RELINQUISH: the same arguments.
pub const MEM_RELINQUISH: u32 = 0xc600_0009;

/// GUARD_INFO: x0 = granule in bytes, x1 bit 0 = RGUARD_MAP and RGUARD_UNMAP are there.
pub const GUARD_INFO: u32 = 0xc600_0005;
/// GUARD_ENROLL: from here on only marked pages are emulated.
pub const GUARD_ENROLL: u32 = 0xc600_0006;
/// GUARD_MAP: x1 IPA, x2 and x3 0: marks a page as a device that the host emulates.
pub const GUARD_MAP: u32 = 0xc600_0007;
/// GUARD_UNMAP: the same arguments; takes the mark away.
pub const GUARD_UNMAP: u32 = 0xc600_0008;
/// RGUARD_MAP: x1 IPA, x2 granules, x3 0; x1 = granules done.
pub const RGUARD_MAP: u32 = 0xc600_000a;
/// RGUARD_UNMAP: the same arguments.
pub const RGUARD_UNMAP: u32 = 0xc600_000b;

/// Bit of x1 of [`HYP_MEMINFO`] and [`GUARD_INFO`].
pub const HAS_RANGE: u64 = 1 << 0;
/// Most granules one call of a guest works on.
pub const MAX_GRANULES: u64 = 512;

/// Bit of a function in the answer of [`FEATURES`].
#[must_use]
pub const fn feature_bit(id: u32) -> u64 {
    1 << (id & 0x3f)
}

/// True Random Number Generator firmware interface 1.0.
pub mod trng {
    /// TRNG_VERSION.
    pub const VERSION: u32 = 0x8400_0050;
    /// TRNG_FEATURES: x1 a function id.
    pub const FEATURES: u32 = 0x8400_0051;
    /// TRNG_GET_UUID.
    pub const GET_UUID: u32 = 0x8400_0052;
    /// TRNG_RND32: x1 = bits, 1..=96.
    pub const RND32: u32 = 0x8400_0053;
    /// TRNG_RND64: x1 = bits, 1..=192.
    pub const RND64: u32 = 0xc400_0053;

    /// What [`VERSION`] answers: 1.0.
    pub const VERSION_1_0: u64 = 0x1_0000;
    /// INVALID_PARAMETERS (-2): TRNG's own numbering, not SMCCC's.
    pub const INVALID_PARAMETERS: u64 = u64::MAX - 1;
    /// NO_ENTROPY (-3).
    pub const NO_ENTROPY: u64 = u64::MAX - 2;
    /// What [`GET_UUID`] answers in w0..w3: the generator's back end is the CPU's own RNDR.
    pub const UUID_WORDS: [u64; 4] = [0x3d1f_6b52, 0x9c44_4e0a, 0x8ab1_72c5, 0xe6d0_941b];
}
