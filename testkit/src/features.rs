//! CPUs to test on.
#![forbid(unsafe_code)]

use abi::vm::MtePolicy;
use hyp::hw::CpuFeatures;

/// Everything that a v9 CPU has (QEMU's `max`), 52 PA bits clamped to 48.
pub const MAX: CpuFeatures = CpuFeatures {
    pa_bits: 48,
    vmid_bits: 16,
    fwb: true,
    ttl: true,
    tlbi_range: true,
    xnx: true,
    dic: true,
    idc: true,
    mte: 3,
    mte_perm: true,
};

/// `max` with `mte=off`: PFR2 still says MTEPERM, which counts only with MTE2.
pub const MAX_NO_MTE: CpuFeatures = CpuFeatures { mte: 1, mte_perm: false, ..MAX };

/// FWB and range TLBI, no MTE_PERM, instruction cache to be maintained.
pub const NEOVERSE_N2: CpuFeatures = CpuFeatures { mte: 2, mte_perm: false, dic: false, ..MAX };

/// v8.2: XNX, no FWB, no hints.
pub const CORTEX_A76: CpuFeatures = CpuFeatures {
    pa_bits: 40,
    vmid_bits: 16,
    fwb: false,
    ttl: false,
    tlbi_range: false,
    xnx: true,
    dic: false,
    idc: false,
    mte: 0,
    mte_perm: false,
};

/// Pure v8.0: 8-bit VMIDs, nothing optional.
pub const CORTEX_A72: CpuFeatures = CpuFeatures { pa_bits: 44, vmid_bits: 8, xnx: false, ..CORTEX_A76 };

/// v8.0 with 40 PA bits: concatenated roots.
pub const CORTEX_A53: CpuFeatures = CpuFeatures { pa_bits: 40, ..CORTEX_A72 };

/// No CPU that is sold: level hints, MTE_PERM and MTE without FWB or range TLBI.
pub const PATCHWORK: CpuFeatures =
    CpuFeatures { fwb: false, tlbi_range: false, idc: false, dic: false, ..MAX };

/// The CPUs that every property holds on, by name.
pub const MATRIX: [(&str, CpuFeatures); 7] = [
    ("max", MAX),
    ("max, mte=off", MAX_NO_MTE),
    ("neoverse-n2", NEOVERSE_N2),
    ("cortex-a76", CORTEX_A76),
    ("cortex-a72", CORTEX_A72),
    ("cortex-a53", CORTEX_A53),
    ("patchwork", PATCHWORK),
];

/// The policy of a VM that is to have MTE wherever CPUs with `features` let it.
#[must_use]
pub const fn strict(features: &CpuFeatures) -> MtePolicy {
    if features.mte >= 2 { MtePolicy::Strict } else { MtePolicy::Off }
}
