//! Calls that the host makes: `HVC #0`, x0 = id, x1.. arguments; reply x0 = SMCCC status,
//! x1 = 0 or a negative [`crate::Errno`], x2/x3 = outputs (0 unless the call defines them).
//!
//! Ids are SMC64 fast calls of owner 6 (vendor hypervisor) from 0xC600_0100 up, apart from the
//! numbers that guests use (0..127), so that a log line tells who called.

/// First id of the host calls.
pub const BASE: u32 = 0xc600_0100;

/// Largest number of pages one call works on.
pub const MAX_PAGES: u64 = 512;

/// The host calls. `docs/abi.md` has a section for each, with the order of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum HostFn {
    /// `() -> x2 version, x3 capabilities`.
    HypCaps = BASE,
    /// `(pfn)`: the host lets EL2 see one of its pages.
    HostShareHyp = BASE + 1,
    /// `(pfn)`: takes such a page back; EBUSY while EL2 has it pinned.
    HostUnshareHyp = BASE + 2,
    /// `(pfn, nr)`: lends pages to the pool that host tables come from.
    HostDonateHyp = BASE + 3,
    /// `(pfn, nr)`: takes lent pages back while none of them is in use.
    HypDonateHost = BASE + 4,
}

impl HostFn {
    /// Every call, in the order of the ids.
    pub const ALL: [Self; 5] =
        [Self::HypCaps, Self::HostShareHyp, Self::HostUnshareHyp, Self::HostDonateHyp, Self::HypDonateHost];

    /// The id for x0.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The name used in docs and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HypCaps => "HYP_CAPS",
            Self::HostShareHyp => "HOST_SHARE_HYP",
            Self::HostUnshareHyp => "HOST_UNSHARE_HYP",
            Self::HostDonateHyp => "HOST_DONATE_HYP",
            Self::HypDonateHost => "HYP_DONATE_HOST",
        }
    }
}

/// An id that is no host call of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownCall;

impl TryFrom<crate::FunctionId> for HostFn {
    type Error = UnknownCall;

    #[inline]
    fn try_from(id: crate::FunctionId) -> Result<Self, UnknownCall> {
        let n = id.raw().checked_sub(BASE).ok_or(UnknownCall)?;
        usize::try_from(n).ok().and_then(|n| Self::ALL.get(n)).copied().ok_or(UnknownCall)
    }
}

#[cfg(test)]
mod tests {
    use super::{BASE, HostFn};
    use crate::FunctionId;

    #[test]
    fn ids_are_dense_and_decode_to_themselves() {
        for (n, f) in (0..).zip(HostFn::ALL) {
            assert_eq!(f.id(), BASE + n);
            let id = FunctionId::from_reg(u64::from(f.id())).unwrap();
            assert_eq!(HostFn::try_from(id), Ok(f));
            let hinted = FunctionId::from_reg(u64::from(f.id() | crate::smccc::HINT_SVE)).unwrap();
            assert_eq!(HostFn::try_from(hinted), Ok(f));
        }
    }

    #[test]
    fn stub_ids_and_neighbours_are_unknown() {
        for raw in [0, 1, 2, 3, 4, BASE - 1, HostFn::HypDonateHost.id() + 1, 0xc600_0000] {
            let id = FunctionId::from_reg(u64::from(raw)).unwrap();
            assert!(HostFn::try_from(id).is_err(), "{raw:#x}");
        }
        assert_eq!(FunctionId::from_reg(1 << 32), None);
    }
}
