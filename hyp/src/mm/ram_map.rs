//! Which page frames are RAM, and which of them have allocation tags.
//!
//! Invariant: regions are sorted, do not touch, and number at most [`MAX_REGIONS`]; all pages
//! together number less than 2^32. Built once at boot and never changed, so it needs no lock.
#![forbid(unsafe_code)]

use crate::addr::{PFN_LIMIT, Pfn, PfnRange};
use arrayvec::ArrayVec;

/// Most RAM regions a machine may have.
pub const MAX_REGIONS: usize = 128;
/// Most ranges of memory without allocation tags.
pub const MAX_NO_TAGS: usize = 16;

/// Why a list of ranges is no memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamMapError {
    /// More than [`MAX_REGIONS`] regions.
    TooManyRegions,
    /// A range starts before the one ahead of it ends.
    Unsorted(PfnRange),
    /// 2^32 pages or more: a record's index would not fit its 32-bit link.
    TooLarge,
    /// There is no RAM at all.
    Empty,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    pages: PfnRange,
    /// Index of the first page's record, regions laid end to end.
    first: u32,
}

/// What the frames of a [`Span`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Memory with a record in the vmemmap.
    Ram,
    /// Everything else: devices and holes.
    Mmio,
}

/// The longest run of frames of one kind around some frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// RAM or not.
    pub kind: SpanKind,
    /// The run.
    pub pages: PfnRange,
}

/// The RAM of the machine as sorted regions: of the whole space as [`crate::platform::memory`] has it, what has a record.
#[derive(Clone, Debug)]
pub struct RamMap {
    regions: ArrayVec<Region, MAX_REGIONS>,
    pages: u32,
    no_tags: ArrayVec<PfnRange, MAX_NO_TAGS>,
}

impl RamMap {
    /// A map of `ram`: ascending ranges that do not overlap. Ranges that touch become one region.
    /// All of it has tags.
    ///
    /// # Errors
    /// See [`RamMapError`].
    pub fn new(ram: impl IntoIterator<Item = PfnRange>) -> Result<Self, RamMapError> {
        let mut map = Self { regions: ArrayVec::new(), pages: 0, no_tags: ArrayVec::new() };
        for pages in ram {
            let nr = u32::try_from(pages.nr()).map_err(|_| RamMapError::TooLarge)?;
            let first = map.pages;
            map.pages = map.pages.checked_add(nr).ok_or(RamMapError::TooLarge)?;
            match map.regions.last_mut() {
                Some(last) if pages.start().raw() < last.pages.end() => {
                    return Err(RamMapError::Unsorted(pages));
                }
                Some(last) if pages.start().raw() == last.pages.end() => {
                    let nr = last.pages.nr().saturating_add(pages.nr());
                    last.pages = PfnRange::new(last.pages.start().raw(), nr)
                        .map_err(|_| RamMapError::Unsorted(pages))?;
                }
                _ => {
                    map.regions.try_push(Region { pages, first }).map_err(|_| RamMapError::TooManyRegions)?
                }
            }
        }
        if map.pages == 0 {
            return Err(RamMapError::Empty);
        }
        Ok(map)
    }

    /// The same map with `pages` as all that has no tags; what is not RAM has none anyway.
    #[must_use]
    pub fn without_tags(self, pages: ArrayVec<PfnRange, MAX_NO_TAGS>) -> Self {
        Self { no_tags: pages, ..self }
    }

    /// True if the page is RAM with allocation tags, where the CPU has MTE2.
    #[must_use]
    #[inline]
    pub fn has_tags(&self, pfn: Pfn) -> bool {
        !self.no_tags.iter().any(|pages| pages.contains(pfn)) && self.region_of(pfn).is_some()
    }

    /// What has none, of RAM and perhaps beyond.
    pub fn no_tags(&self) -> impl Iterator<Item = PfnRange> + '_ {
        self.no_tags.iter().copied()
    }

    /// True if every page of `pages` has them.
    #[must_use]
    pub fn all_have_tags(&self, pages: PfnRange) -> bool {
        let without = |none: &PfnRange| none.start().raw() < pages.end() && pages.start().raw() < none.end();
        !self.no_tags.iter().any(without) && self.index_of_range(pages).is_some()
    }

    /// Number of RAM pages, which is the number of records the vmemmap needs.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// The regions in ascending order.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = PfnRange> + '_ {
        self.regions.iter().map(|r| r.pages)
    }

    /// Number of regions that start at or below `pfn`.
    #[inline]
    fn starting_by(&self, pfn: Pfn) -> usize {
        self.regions.partition_point(|r| r.pages.start() <= pfn)
    }

    #[inline]
    fn region_of(&self, pfn: Pfn) -> Option<&Region> {
        // Most machines have most of their memory, or all, in one region.
        if let Some(first) = self.regions.first().filter(|r| r.pages.contains(pfn)) {
            return Some(first);
        }
        self.search(pfn)
    }

    #[inline(never)]
    fn search(&self, pfn: Pfn) -> Option<&Region> {
        let last = self.starting_by(pfn).checked_sub(1)?;
        self.regions.get(last).filter(|r| r.pages.contains(pfn))
    }

    /// Index of the record of `pfn`, if it is RAM.
    #[must_use]
    #[inline]
    pub fn index_of(&self, pfn: Pfn) -> Option<u32> {
        let region = self.region_of(pfn)?;
        let offset = pfn.raw().checked_sub(region.pages.start().raw())?;
        region.first.checked_add(u32::try_from(offset).ok()?)
    }

    /// Index of the first record of `pages`, if every one of them is RAM (of one region then:
    /// between regions there is a hole).
    #[must_use]
    #[inline]
    pub fn index_of_range(&self, pages: PfnRange) -> Option<u32> {
        let region = self.region_of(pages.start())?;
        if pages.end() > region.pages.end() {
            return None;
        }
        let offset = pages.start().raw().checked_sub(region.pages.start().raw())?;
        region.first.checked_add(u32::try_from(offset).ok()?)
    }

    /// The page whose record has `index`.
    #[must_use]
    #[inline]
    pub fn pfn_of(&self, index: u32) -> Option<Pfn> {
        let region = match self.regions.as_slice() {
            [only] => only,
            regions => regions.get(regions.partition_point(|r| r.first <= index).checked_sub(1)?)?,
        };
        let pfn = region.pages.start().checked_add(u64::from(index.checked_sub(region.first)?))?;
        region.pages.contains(pfn).then_some(pfn)
    }

    /// The longest run of RAM, or of what is not RAM, around `pfn`.
    #[must_use]
    pub fn span(&self, pfn: Pfn) -> Span {
        if let Some(region) = self.region_of(pfn) {
            return Span { kind: SpanKind::Ram, pages: region.pages };
        }
        let next = self.starting_by(pfn);
        let start = next
            .checked_sub(1)
            .and_then(|last| self.regions.get(last))
            .map_or(0, |region| region.pages.end());
        let end = self.regions.get(next).map_or(PFN_LIMIT, |region| region.pages.start().raw());
        let pages = PfnRange::new(start, end.saturating_sub(start)).unwrap_or(PfnRange::one(pfn));
        Span { kind: SpanKind::Mmio, pages }
    }
}

#[cfg(test)]
mod tests {
    use super::{RamMap, RamMapError, SpanKind};
    use crate::addr::{PFN_LIMIT, Pfn, PfnRange};
    use arrayvec::ArrayVec;

    fn range(start: u64, nr: u64) -> PfnRange {
        PfnRange::new(start, nr).unwrap()
    }

    fn pfn(raw: u64) -> Pfn {
        Pfn::new(raw).unwrap()
    }

    #[test]
    fn records_are_laid_end_to_end_across_holes() {
        let map = RamMap::new([range(0x100, 0x10), range(0x200, 0x20)]).unwrap();
        assert_eq!(map.pages(), 0x30);
        assert_eq!(map.index_of(pfn(0xff)), None);
        assert_eq!(map.index_of(pfn(0x100)), Some(0));
        assert_eq!(map.index_of(pfn(0x10f)), Some(0xf));
        assert_eq!(map.index_of(pfn(0x110)), None);
        assert_eq!(map.index_of(pfn(0x200)), Some(0x10));
        assert_eq!(map.index_of(pfn(0x21f)), Some(0x2f));
        assert_eq!(map.index_of(pfn(0x220)), None);
        for index in 0..map.pages() {
            assert_eq!(map.index_of(map.pfn_of(index).unwrap()), Some(index));
        }
        assert_eq!(map.pfn_of(map.pages()), None);
    }

    #[test]
    fn a_range_over_a_hole_is_not_memory_but_one_over_touching_ranges_is() {
        let map = RamMap::new([range(0x100, 0x10), range(0x110, 0x10), range(0x130, 1)]).unwrap();
        assert_eq!(map.regions().len(), 2);
        assert_eq!(map.index_of_range(range(0x108, 0x10)), Some(8));
        assert_eq!(map.index_of_range(range(0x11f, 0x12)), None);
        assert_eq!(map.index_of_range(range(0x11f, 2)), None);
        assert_eq!(map.index_of_range(range(0xff, 2)), None);
    }

    #[test]
    fn spans_cover_the_space_without_gaps() {
        let map = RamMap::new([range(0x100, 0x10), range(0x200, 0x20)]).unwrap();
        let mut at = 0;
        let mut kinds = std::vec::Vec::new();
        while at < PFN_LIMIT {
            let span = map.span(pfn(at));
            assert_eq!(span.pages.start().raw(), at);
            assert_eq!(map.span(pfn(span.pages.end() - 1)), span);
            kinds.push(span.kind);
            at = span.pages.end();
        }
        use SpanKind::{Mmio, Ram};
        assert_eq!(kinds, [Mmio, Ram, Mmio, Ram, Mmio]);
    }

    #[test]
    fn ram_has_tags_unless_said_otherwise() {
        let map = RamMap::new([range(0x100, 0x10), range(0x200, 0x20)]).unwrap();
        let tags =
            |map: &RamMap| (0xf0..0x240).map(|raw| map.has_tags(pfn(raw))).collect::<std::vec::Vec<_>>();
        let ram = |raw| (0x100..0x110).contains(&raw) || (0x200..0x220).contains(&raw);
        assert_eq!(tags(&map), (0xf0..0x240).map(ram).collect::<std::vec::Vec<_>>());
        assert!(map.all_have_tags(range(0x200, 0x20)) && !map.all_have_tags(range(0x10f, 2)));
        let none = ArrayVec::from_iter([range(0x210, 0x20), range(0x10f, 1), range(0x208, 0x10)]);
        let some = |raw| ram(raw) && raw != 0x10f && !(0x208..0x230).contains(&raw);
        let map = map.without_tags(none);
        assert!(map.all_have_tags(range(0x200, 8)) && map.all_have_tags(range(0x100, 0xf)));
        assert!(!map.all_have_tags(range(0x200, 9)) && !map.all_have_tags(range(0x10e, 2)));
        assert_eq!(tags(&map), (0xf0..0x240).map(some).collect::<std::vec::Vec<_>>());
    }

    #[test]
    fn maps_that_are_none_are_refused() {
        assert_eq!(RamMap::new([]).unwrap_err(), RamMapError::Empty);
        assert_eq!(
            RamMap::new([range(0x200, 1), range(0x100, 1)]).unwrap_err(),
            RamMapError::Unsorted(range(0x100, 1))
        );
        assert_eq!(
            RamMap::new([range(0x100, 2), range(0x101, 2)]).unwrap_err(),
            RamMapError::Unsorted(range(0x101, 2))
        );
        assert_eq!(RamMap::new([range(0, 1 << 32)]).unwrap_err(), RamMapError::TooLarge);
        let many = (0..129).map(|n| range(n * 2, 1));
        assert_eq!(RamMap::new(many).unwrap_err(), RamMapError::TooManyRegions);
        assert!(RamMap::new((0..128).map(|n| range(n * 2, 1))).is_ok());
    }
}
