//! Power State Coordination Interface (Arm DEN0022): ids and status codes.
//!
//! PSCI's status codes are not SMCCC's: -2 and -3 mean other things.

/// `PSCI_VERSION`.
pub const VERSION: u32 = 0x8400_0000;
/// `CPU_SUSPEND`, 32-bit.
pub const CPU_SUSPEND_32: u32 = 0x8400_0001;
/// `CPU_SUSPEND`, 64-bit.
pub const CPU_SUSPEND_64: u32 = 0xc400_0001;
/// `CPU_OFF`.
pub const CPU_OFF: u32 = 0x8400_0002;
/// `CPU_ON`, 32-bit.
pub const CPU_ON_32: u32 = 0x8400_0003;
/// `CPU_ON`, 64-bit: x1 MPIDR, x2 entry point, x3 context id.
pub const CPU_ON_64: u32 = 0xc400_0003;
/// `AFFINITY_INFO`, 32-bit.
pub const AFFINITY_INFO_32: u32 = 0x8400_0004;
/// `AFFINITY_INFO`, 64-bit: x1 MPIDR, x2 lowest affinity level.
pub const AFFINITY_INFO_64: u32 = 0xc400_0004;
/// `MIGRATE_INFO_TYPE`.
pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
/// `SYSTEM_OFF`.
pub const SYSTEM_OFF: u32 = 0x8400_0008;
/// `SYSTEM_RESET`.
pub const SYSTEM_RESET: u32 = 0x8400_0009;
/// `PSCI_FEATURES`: x1 a function id.
pub const FEATURES: u32 = 0x8400_000a;

/// What [`VERSION`] answers: 1.1.
pub const VERSION_1_1: u64 = 0x1_0001;

/// `AFFINITY_INFO`: on.
pub const AFFINITY_ON: u64 = 0;
/// `AFFINITY_INFO`: off.
pub const AFFINITY_OFF: u64 = 1;
/// `AFFINITY_INFO`: asked to start, not started.
pub const AFFINITY_ON_PENDING: u64 = 2;

/// SUCCESS.
pub const SUCCESS: u64 = 0;
/// NOT_SUPPORTED (-1).
pub const NOT_SUPPORTED: u64 = u64::MAX;
/// INVALID_PARAMETERS (-2).
pub const INVALID_PARAMETERS: u64 = u64::MAX - 1;
/// DENIED (-3).
pub const DENIED: u64 = u64::MAX - 2;
/// ALREADY_ON (-4).
pub const ALREADY_ON: u64 = u64::MAX - 3;
/// ON_PENDING (-5).
pub const ON_PENDING: u64 = u64::MAX - 4;
/// INTERNAL_FAILURE (-6).
pub const INTERNAL_FAILURE: u64 = u64::MAX - 5;
/// INVALID_ADDRESS (-9).
pub const INVALID_ADDRESS: u64 = u64::MAX - 8;

/// MIGRATE_INFO_TYPE's "no trusted OS, or one that needs no migration".
pub const MIGRATE_NOT_NEEDED: u64 = 2;
