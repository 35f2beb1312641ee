//! What a guest asks of its guard, as a value that is right by construction.
#![forbid(unsafe_code)]

use crate::addr::{IpaRange, PAGE_SIZE};
use abi::guest::MAX_GRANULES;

/// A call of a guest that has a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardCall {
    /// GUARD_ENROLL.
    Enroll,
    /// Marks pages, or takes their marks away.
    Pages {
        /// Which.
        op: GuardOp,
        /// The pages that this call works on, at most [`MAX_GRANULES`].
        range: IpaRange,
        /// One of the calls that answer how many pages are done.
        counts: bool,
    },
}

/// What happens to pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardOp {
    /// GUARD_MAP, RGUARD_MAP.
    Map,
    /// GUARD_UNMAP, RGUARD_UNMAP.
    Unmap,
}

impl GuardCall {
    /// True for a call that answers how many pages are done, in x1.
    #[must_use]
    pub const fn counts(self) -> bool {
        matches!(self, Self::Pages { counts: true, .. })
    }

    /// GUARD_MAP or GUARD_UNMAP of the page at `ipa`; `must_be_zero` is x2 and x3. `None` unless
    /// `ipa` is a multiple of 4096 below 2^`ipa_bits`.
    #[must_use]
    pub fn page(op: GuardOp, ipa: u64, must_be_zero: [u64; 2], ipa_bits: u32) -> Option<Self> {
        let range = IpaRange::page(ipa, ipa_bits).ok().filter(|_| matches!(must_be_zero, [0, 0]))?;
        Some(Self::Pages { op, range, counts: false })
    }

    /// RGUARD_MAP or RGUARD_UNMAP of `nr` pages from `ipa`; `must_be_zero` is x3. `None` unless
    /// all of them are below 2^`ipa_bits`, `nr` is not 0 and `ipa` a multiple of 4096.
    #[must_use]
    pub fn pages(op: GuardOp, ipa: u64, nr: u64, must_be_zero: u64, ipa_bits: u32) -> Option<Self> {
        let _all = whole(ipa, nr, ipa_bits).filter(|_| must_be_zero == 0)?;
        Some(Self::Pages { op, range: whole(ipa, nr.min(MAX_GRANULES), ipa_bits)?, counts: true })
    }
}

fn whole(ipa: u64, nr: u64, ipa_bits: u32) -> Option<IpaRange> {
    let top = ipa.checked_add(nr.checked_mul(PAGE_SIZE)?)?;
    IpaRange::new(ipa, top, ipa_bits).ok()
}

#[cfg(test)]
mod tests {
    use super::{GuardCall, GuardOp, IpaRange, MAX_GRANULES};

    const BITS: u32 = 33;
    const LIMIT: u64 = 1 << BITS;

    fn pages(ipa: u64, nr: u64) -> Option<GuardCall> {
        GuardCall::pages(GuardOp::Map, ipa, nr, 0, BITS)
    }

    fn of(start: u64, nr: u64) -> Option<GuardCall> {
        let range = IpaRange::new(start, start.saturating_add(nr << 12), BITS).unwrap();
        Some(GuardCall::Pages { op: GuardOp::Map, range, counts: true })
    }

    #[test]
    fn a_range_is_whole_pages_of_the_ipa_space_and_is_cut_to_what_a_call_does() {
        assert_eq!(pages(0x5000, 1), of(0x5000, 1));
        assert_eq!(pages(0x5000, 512), of(0x5000, 512));
        assert_eq!(pages(0x5000, 10_000), of(0x5000, MAX_GRANULES));
        assert_eq!(pages(LIMIT - 0x3000, 3), of(LIMIT - 0x3000, 3));
        for (ipa, nr) in [
            (0x5001, 1),
            (0x5800, 1),
            (0x5000, 0),
            (LIMIT, 1),
            (LIMIT - 0x3000, 4),
            (0, (LIMIT >> 12) + 1),
            (0x5000, 1 << 52),
            (0, 1 << 52),
            (0x5000, u64::MAX),
            (!0xfff, 1),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(pages(ipa, nr), None, "{ipa:#x} {nr:#x}");
        }
    }

    #[test]
    fn what_must_be_zero_is() {
        let page = |rest| GuardCall::page(GuardOp::Unmap, 0x5000, rest, BITS);
        let range = IpaRange::new(0x5000, 0x6000, BITS).unwrap();
        assert_eq!(page([0, 0]), Some(GuardCall::Pages { op: GuardOp::Unmap, range, counts: false }));
        assert_eq!(page([1, 0]), None, "a protection, as old Android guests pass it");
        assert_eq!(page([0, 1]), None);
        assert_eq!(GuardCall::pages(GuardOp::Map, 0x5000, 1, 1, BITS), None);
    }
}
