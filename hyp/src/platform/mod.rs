//! The machine as the firmware describes it, and what becomes of its memory.
//!
//! [`tree`] reads the device tree into a [`tree::Platform`] value, [`memory`] turns that into the
//! map of the physical address space and finds places in it, [`image`] checks the host's kernel,
//! [`edit`] writes the tree that the host gets, [`cmdline`] reads the hypervisor's own arguments,
//! [`tags`] says which memory has no allocation tags.
//!
//! Everything here runs once at boot, on one CPU, on bytes that the boot loader supplied: it is
//! pure, allocates nothing and answers every malformed input with an error of one line.
//! docs/boot.md tells the whole story.
#![forbid(unsafe_code)]

pub mod cmdline;
pub mod edit;
pub mod image;
pub mod memory;
pub mod tags;
pub mod tree;

use crate::addr::{AddrError, MAX_PA_BITS, PAGE_SHIFT, PAGE_SIZE, Pa, PfnRange};
use core::fmt;

/// One or more consecutive bytes of the physical address space, below 2^[`MAX_PA_BITS`].
///
/// Unlike [`PfnRange`] it has any alignment: it is what device trees speak of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaRange {
    start: u64,
    end: u64,
}

impl PaRange {
    /// `len` bytes from `start`.
    ///
    /// # Errors
    /// [`AddrError::Empty`], [`AddrError::Overflow`] or [`AddrError::OutOfSpace`].
    pub const fn new(start: u64, len: u64) -> Result<Self, AddrError> {
        if len == 0 {
            return Err(AddrError::Empty);
        }
        let Some(end) = start.checked_add(len) else { return Err(AddrError::Overflow) };
        if end > 1 << MAX_PA_BITS {
            return Err(AddrError::OutOfSpace(start));
        }
        Ok(Self { start, end })
    }

    /// The bytes of some pages.
    #[must_use]
    pub const fn from_pages(pages: PfnRange) -> Self {
        Self { start: pages.start().base().raw(), end: pages.end() << PAGE_SHIFT }
    }

    /// First address.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last address; it may equal 2^[`MAX_PA_BITS`].
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes, at least 1.
    #[must_use]
    #[allow(clippy::arithmetic_side_effects, reason = "end > start by construction")]
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// True if both have a byte in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// True if every byte of `inner` is in this range.
    #[must_use]
    pub const fn contains(self, inner: Self) -> bool {
        self.start <= inner.start && inner.end <= self.end
    }

    /// The pages that lie in this range whole, if there is one.
    #[must_use]
    pub fn pages_inside(self) -> Option<PfnRange> {
        let first = self.start.div_ceil(PAGE_SIZE);
        PfnRange::new(first, (self.end >> PAGE_SHIFT).checked_sub(first)?).ok()
    }

    /// The pages that have a byte of this range.
    #[must_use]
    pub fn pages_touched(self) -> PfnRange {
        let first = Pa::truncated(self.start).frame();
        let nr = self.end.div_ceil(PAGE_SIZE).saturating_sub(first.raw());
        // new() cannot refuse: the range is not empty and ends at 2^48 at most.
        PfnRange::new(first.raw(), nr).unwrap_or(PfnRange::one(first))
    }

    /// The smallest range that covers both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

impl fmt::Debug for PaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PaRange {
    /// `[0x40000000, 0x80000000)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::PaRange;
    use crate::addr::{AddrError, PfnRange};

    #[test]
    fn range_refuses_what_is_no_range() {
        assert_eq!(PaRange::new(1, 0), Err(AddrError::Empty));
        assert_eq!(PaRange::new(u64::MAX, 2), Err(AddrError::Overflow));
        assert_eq!(PaRange::new(1 << 47, (1 << 47) + 1), Err(AddrError::OutOfSpace(1 << 47)));
        assert_eq!(PaRange::new(1 << 47, 1 << 47).unwrap().end(), 1 << 48);
    }

    #[test]
    fn partial_pages_are_outside_the_inner_and_inside_the_outer_pages() {
        let range = PaRange::new(0x1001, 0x2000).unwrap();
        assert_eq!(range.pages_inside(), PfnRange::new(2, 1).ok());
        assert_eq!(Ok(range.pages_touched()), PfnRange::new(1, 3));
        assert_eq!(PaRange::new(0x1001, 0xffe).unwrap().pages_inside(), None);
        assert_eq!(
            Ok(PaRange::new((1 << 48) - 1, 1).unwrap().pages_touched()),
            PfnRange::new((1 << 36) - 1, 1)
        );
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let range = |start, len| PaRange::new(start, len).unwrap();
        assert!(!range(0, 0x1000).overlaps(range(0x1000, 1)));
        assert!(range(0, 0x1001).overlaps(range(0x1000, 1)));
        assert!(range(0, 0x2000).contains(range(0x1000, 0x1000)));
        assert!(!range(0, 0x2000).contains(range(0x1000, 0x1001)));
    }
}
