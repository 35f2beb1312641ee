//! VMs and vCPUs: flags, limits and register numbers of the host calls that make and run them.

use bitflags::bitflags;

/// Largest number of VMs that exist at once. Each has a VMID of its own, and 8 bits hold 255
/// besides the host's 0.
pub const MAX_VMS: usize = 254;
/// Largest number of vCPUs of one VM; an index is below this.
pub const MAX_VCPUS: usize = 32;
/// Pages that `VM_CREATE` keeps for its own record of the VM, beside the root table.
pub const VM_PAGES: u64 = 1;
/// Pages that `VCPU_CREATE` keeps for the registers of one vCPU.
pub const VCPU_PAGES: u64 = 1;
/// Table pages a VM can hold in store; `VM_TOPUP` refuses to pass it.
pub const PT_CACHE_MAX: u64 = 128;
/// A page argument or result that names no page.
pub const NO_PAGE: u64 = u64::MAX;
/// Smallest and largest IPA space of a VM, in bits.
pub const IPA_BITS: core::ops::RangeInclusive<u64> = 32..=48;

bitflags! {
    /// x1 of `VM_CREATE`. Other bits are EINVAL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct VmFlags: u64 {
        /// Memory and registers are out of the host's reach.
        const PROTECTED = 1 << 0;
        /// The top IPA bit tells private from shared memory; implies PROTECTED.
        const SPLIT_IPA = 1 << 1;
        /// The host may take snapshots of the VM's table.
        const DEBUGGABLE = 1 << 2;
        /// Measure with SHA-512 rather than SHA-256.
        const SHA512 = 1 << 3;
        /// Two bits of [`MtePolicy`].
        const MTE_POLICY = 3 << MTE_POLICY_SHIFT;
    }
}

/// Lowest bit of [`VmFlags::MTE_POLICY`].
const MTE_POLICY_SHIFT: u32 = 4;

/// What a VM may do with allocation tags, and what memory it takes. Fixed by `VM_CREATE`; never
/// derived from hardware, so that the same calls mean the same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MtePolicy {
    /// The VM has no MTE. Any memory may back it.
    Off = 0,
    /// MTE, and only memory with tags. The VM never exits with TAG_ACCESS.
    Strict = 1,
    /// MTE, and any memory: a tag access to memory without tags is an exit.
    Lazy = 2,
    /// As `Lazy`, and only where no other access is ever taken for a tag access.
    LazyPrecise = 3,
}

impl MtePolicy {
    /// Every policy, in the order of the encoding.
    pub const ALL: [Self; 4] = [Self::Off, Self::Strict, Self::Lazy, Self::LazyPrecise];

    /// The policy in `flags`.
    #[must_use]
    pub const fn of(flags: VmFlags) -> Self {
        match flags.intersection(VmFlags::MTE_POLICY).bits() >> MTE_POLICY_SHIFT {
            0 => Self::Off,
            1 => Self::Strict,
            2 => Self::Lazy,
            _ => Self::LazyPrecise,
        }
    }

    /// The flags that say so.
    #[must_use]
    pub const fn flags(self) -> VmFlags {
        VmFlags::from_bits_retain((self as u64) << MTE_POLICY_SHIFT)
    }

    /// The name that docs know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "OFF",
            Self::Strict => "STRICT",
            Self::Lazy => "LAZY",
            Self::LazyPrecise => "LAZY, REQUIRE_PRECISE",
        }
    }

    /// True if the guest has MTE.
    #[must_use]
    pub const fn has_mte(self) -> bool {
        !matches!(self, Self::Off)
    }

    /// True if a VM with MTE takes memory without tags.
    #[must_use]
    pub const fn is_lazy(self) -> bool {
        matches!(self, Self::Lazy | Self::LazyPrecise)
    }
}

/// What `VM_TAG_INFO` answers about a frame (x2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum TagState {
    /// There is no page.
    None = 0,
    /// A page whose tags the guest may use.
    Tagged = 1,
    /// A page that is mapped without access to tags.
    NoTag = 2,
    /// A page that is not mapped until it has tags.
    Pending = 3,
}

impl TagState {
    /// Every answer, in the order of the encoding.
    pub const ALL: [Self; 4] = [Self::None, Self::Tagged, Self::NoTag, Self::Pending];

    /// The name that docs know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Tagged => "TAGGED",
            Self::NoTag => "NO_TAG",
            Self::Pending => "PENDING",
        }
    }
}

bitflags! {
    /// x4 of `VM_POPULATE`. Other bits are EINVAL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PopulateFlags: u64 {
        /// The contents count for the measurement, not only the place.
        const MEASURE = 1 << 0;
    }
}

bitflags! {
    /// What a guest may do with a page. Other bits are EINVAL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct GuestProt: u64 {
        /// Read.
        const R = 1 << 0;
        /// Write.
        const W = 1 << 1;
        /// Execute, at EL0 and EL1.
        const X = 1 << 2;
        /// No access to allocation tags; of a page that is donated only.
        const NO_TAG = 1 << 3;
    }
}

/// `order` of a 4 KiB page.
pub const ORDER_PAGE: u64 = 0;
/// `order` of a 2 MiB block.
pub const ORDER_BLOCK: u64 = 9;

/// The registers that `VCPU_GET_REG` and `VCPU_SET_REG` know, by number.
///
/// 0..=30 are X0..X30; the rest are the constants of this module. Anything else is EINVAL.
pub mod reg {
    /// X30, the last general-purpose register.
    pub const X30: u64 = 30;
    /// The program counter.
    pub const PC: u64 = 31;
    /// PSTATE in the format of SPSR_EL2; only EL0t, EL1t and EL1h of AArch64 are accepted.
    pub const PSTATE: u64 = 32;
    /// SP_EL0.
    pub const SP_EL0: u64 = 33;
    /// SP_EL1.
    pub const SP_EL1: u64 = 34;
    /// ELR_EL1.
    pub const ELR_EL1: u64 = 35;
    /// SPSR_EL1.
    pub const SPSR_EL1: u64 = 36;
    /// SCTLR_EL1.
    pub const SCTLR_EL1: u64 = 37;
    /// CPACR_EL1.
    pub const CPACR_EL1: u64 = 38;
    /// TTBR0_EL1.
    pub const TTBR0_EL1: u64 = 39;
    /// TTBR1_EL1.
    pub const TTBR1_EL1: u64 = 40;
    /// TCR_EL1.
    pub const TCR_EL1: u64 = 41;
    /// ESR_EL1.
    pub const ESR_EL1: u64 = 42;
    /// AFSR0_EL1.
    pub const AFSR0_EL1: u64 = 43;
    /// AFSR1_EL1.
    pub const AFSR1_EL1: u64 = 44;
    /// FAR_EL1.
    pub const FAR_EL1: u64 = 45;
    /// MAIR_EL1.
    pub const MAIR_EL1: u64 = 46;
    /// AMAIR_EL1.
    pub const AMAIR_EL1: u64 = 47;
    /// VBAR_EL1.
    pub const VBAR_EL1: u64 = 48;
    /// CONTEXTIDR_EL1.
    pub const CONTEXTIDR_EL1: u64 = 49;
    /// CNTKCTL_EL1.
    pub const CNTKCTL_EL1: u64 = 50;
    /// PAR_EL1.
    pub const PAR_EL1: u64 = 51;
    /// TPIDR_EL1.
    pub const TPIDR_EL1: u64 = 52;
    /// TPIDR_EL0.
    pub const TPIDR_EL0: u64 = 53;
    /// TPIDRRO_EL0.
    pub const TPIDRRO_EL0: u64 = 54;
    /// CNTV_CTL_EL0, ENABLE and IMASK.
    pub const CNTV_CTL_EL0: u64 = 55;
    /// CNTV_CVAL_EL0.
    pub const CNTV_CVAL_EL0: u64 = 56;
    /// CNTVOFF_EL2: what the VM's virtual counter lags behind the physical one (read only).
    pub const CNTVOFF: u64 = 57;
    /// MPIDR_EL1 as the vCPU reads it (read only).
    pub const MPIDR_EL1: u64 = 58;
    /// APIAKeyLo_EL1, then Hi, then the same of APIB, APDA, APDB and APGA.
    pub const PAUTH_KEYS: u64 = 59;
    /// FPSR.
    pub const FPSR: u64 = 69;
    /// FPCR.
    pub const FPCR: u64 = 70;
    /// Lower half of V0, then its upper half, and so on to V31.
    pub const V0: u64 = 71;
    /// RGSR_EL1; this and the next three count for a VM with MTE.
    pub const RGSR_EL1: u64 = V0 + 64;
    /// GCR_EL1.
    pub const GCR_EL1: u64 = V0 + 65;
    /// TFSR_EL1.
    pub const TFSR_EL1: u64 = V0 + 66;
    /// TFSRE0_EL1.
    pub const TFSRE0_EL1: u64 = V0 + 67;
    /// One past the last number.
    pub const END: u64 = V0 + 68;
}

/// MPIDR_EL1 of vCPU `idx`: Aff0 = idx % 16, as GICv3's SGI target lists want, Aff1 = idx / 16.
#[must_use]
pub const fn mpidr(idx: u8) -> u64 {
    const RES1: u64 = 1 << 31;
    let idx = idx as u64;
    RES1 | (idx >> 4) << 8 | idx & 0xf
}

/// The vCPU whose affinity fields are those of `mpidr`, if an index can have them. Bits that are
/// no affinity field must be zero, as PSCI's CPU_ON asks.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "two fields of four bits")]
pub const fn vcpu_of_affinity(mpidr: u64) -> Option<u8> {
    if mpidr & !0x0f0f != 0 {
        return None;
    }
    Some((mpidr >> 4 & 0xf0 | mpidr & 0xf) as u8)
}

const _: () = assert!(MAX_VMS < 255, "a VMID and the slot in a handle have 8 bits");
const _: () = assert!(MAX_VCPUS <= 256, "an affinity holds 8 bits of index");

#[cfg(test)]
mod tests {
    use super::{MtePolicy, VmFlags, mpidr, vcpu_of_affinity};

    #[test]
    fn every_mte_policy_survives_the_flags() {
        for policy in MtePolicy::ALL {
            assert!(VmFlags::MTE_POLICY.contains(policy.flags()));
            assert_eq!(MtePolicy::of(policy.flags()), policy);
            assert_eq!(MtePolicy::of(policy.flags() | VmFlags::MTE_POLICY.complement()), policy);
        }
    }

    #[test]
    fn every_vcpu_has_an_affinity_of_its_own() {
        for idx in 0..=u8::MAX {
            let aff = mpidr(idx) & 0xff_00ff_ffff & !(1 << 31);
            assert_eq!(vcpu_of_affinity(aff), Some(idx));
        }
        for bad in [1 << 31, 1 << 32, 1 << 16, 0x10, 0x1000, u64::MAX] {
            assert_eq!(vcpu_of_affinity(bad), None, "{bad:#x}");
        }
    }
}
