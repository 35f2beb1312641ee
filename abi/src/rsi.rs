//! Realm Services Interface 1.0 (Arm DEN0137): what a guest with split IPA asks of EL2 by SMC, so
//! that a Linux which knows Realms needs no change.
//!
//! x0 = function id, and one of the statuses below on return. A call that is refused changes no
//! other register.

/// RSI_VERSION: x1 requested version; x1, x2 = lowest and highest version that is there.
pub const VERSION: u32 = 0xc400_0190;
/// RSI_FEATURES: x1 index; x1 = 0.
pub const FEATURES: u32 = 0xc400_0191;
/// RSI_MEASUREMENT_READ: x1 index, 0 the initial measurement, 1 to 4 the extensible ones; x1 to x8 = its 64 bytes, lowest
/// first, zeros behind a shorter digest.
pub const MEASUREMENT_READ: u32 = 0xc400_0192;
/// RSI_MEASUREMENT_EXTEND: x1 index 1 to 4, x2 number of bytes, at most 64, x3 to x10 the bytes.
pub const MEASUREMENT_EXTEND: u32 = 0xc400_0193;
/// RSI_ATTESTATION_TOKEN_INIT. There is no token: [`ERROR_STATE`].
pub const ATTESTATION_TOKEN_INIT: u32 = 0xc400_0194;
/// RSI_ATTESTATION_TOKEN_CONTINUE. There is no token: [`ERROR_STATE`].
pub const ATTESTATION_TOKEN_CONTINUE: u32 = 0xc400_0195;
/// RSI_REALM_CONFIG: x1 = a page of the guest's own, which EL2 fills with a [`Config`].
pub const REALM_CONFIG: u32 = 0xc400_0196;
/// RSI_IPA_STATE_SET: x1 base, x2 top, x3 state, x4 flags; x1 = address up to which it is done, x2 =
/// [`ACCEPT`] or [`REJECT`].
pub const IPA_STATE_SET: u32 = 0xc400_0197;
/// RSI_IPA_STATE_GET: x1 base, x2 top; x1 = end of the run of one state, x2 = state.
pub const IPA_STATE_GET: u32 = 0xc400_0198;
/// RSI_HOST_CALL: x1 = a structure in the guest's own memory, which the host sees and may change in part
/// ([`HOST_CALL_BYTES`]).
pub const HOST_CALL: u32 = 0xc400_0199;

/// What [`VERSION`] answers and takes: 1.0, major in bits 30:16, minor in 15:0.
pub const VERSION_1_0: u64 = 0x1_0000;

/// RSI_SUCCESS.
pub const SUCCESS: u64 = 0;
/// RSI_ERROR_INPUT: an argument is wrong.
pub const ERROR_INPUT: u64 = 1;

/// RSI_ERROR_STATE: not what can be done now.
pub const ERROR_STATE: u64 = 2;

/// RIPAS_EMPTY.
pub const EMPTY: u64 = 0;
/// RIPAS_RAM.
pub const RAM: u64 = 1;
/// RIPAS_DESTROYED.
pub const DESTROYED: u64 = 2;

/// x4 of [`IPA_STATE_SET`]: destroyed pages become RAM too. Other bits are ERROR_INPUT.
pub const CHANGE_DESTROYED: u64 = 1 << 0;
/// x2 of [`IPA_STATE_SET`]: the host does as asked, or has not said.
pub const ACCEPT: u64 = 0;
/// x2 of [`IPA_STATE_SET`]: it does not.
pub const REJECT: u64 = 1;

/// RSI_HASH_SHA_256.
pub const SHA_256: u64 = 0;
/// RSI_HASH_SHA_512.
pub const SHA_512: u64 = 1;
/// Measurements that a guest extends.
pub const EXTENSIBLE: usize = 4;

/// What [`REALM_CONFIG`] writes to the page: these words first, little-endian. All others are 0, the personalisation
/// value (64 bytes at 0x200) among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bits of the IPA space, the one that tells private from shared included.
    pub ipa_width: u64,
    /// The algorithm that measures: [`SHA_256`] or [`SHA_512`].
    pub hash_algorithm: u64,
}

impl Config {
    /// The words of the page that are not always 0.
    #[must_use]
    pub const fn words(self) -> [u64; 2] {
        [self.ipa_width, self.hash_algorithm]
    }
}

/// Size and alignment of the structure of a [`HOST_CALL`]: word 0 has the immediate in bits 15:0, words 1 to 31 are the
/// registers x0 to x30 of the call; little-endian.
pub const HOST_CALL_BYTES: u64 = 256;
/// Registers in it.
pub const HOST_CALL_GPRS: usize = 31;

/// Entries that one [`IPA_STATE_GET`] looks at.
pub const MAX_ENTRIES: u64 = 512;
