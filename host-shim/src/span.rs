//! Spans of physical addresses, and the pages the shim may use.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Bytes that a level-2 block maps.
pub const BLOCK: u64 = 2 << 20;
/// Bytes that a level-1 block maps.
pub const GIB: u64 = 1 << 30;

/// One or more bytes of physical address space, `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// `size` bytes from `start`; `None` for no byte or a wrap.
    #[must_use]
    pub const fn new(start: u64, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(end) if size > 0 => Some(Self { start, end }),
            _ => None,
        }
    }

    /// `start..end`; `None` unless it has a byte.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Option<Self> {
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes, at least 1.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.end - self.start
    }

    /// True if `address` is in the span.
    #[must_use]
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// The bytes that are in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// The whole aligned units of `align` bytes (a power of two) inside.
    #[must_use]
    pub fn aligned(self, align: u64) -> Option<Self> {
        let start = self.start.checked_next_multiple_of(align)?;
        Self::between(start, self.end & !(align - 1))
    }

    /// The aligned units that hold any byte of it.
    #[must_use]
    pub fn covering(self, align: u64) -> Option<Self> {
        Self::between(self.start & !(align - 1), self.end.checked_next_multiple_of(align)?)
    }

    /// Addresses of the whole pages inside.
    pub fn pages(self) -> impl DoubleEndedIterator<Item = u64> + Clone {
        let (start, end) = self.aligned(PAGE).map_or((0, 0), |s| (s.start / PAGE, s.end / PAGE));
        (start..end).map(|pfn| pfn * PAGE)
    }

    /// Addresses of its first, middle and last page.
    #[must_use]
    pub const fn corner_pages(self) -> [(&'static str, u64); 3] {
        let first = self.start & !(PAGE - 1);
        let last = (self.end - 1) & !(PAGE - 1);
        let middle = (first + (last - first) / 2) & !(PAGE - 1);
        [("first", first), ("middle", middle), ("last", last)]
    }
}

/// No room for another span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Free pages, as spans in ascending order that never touch. The pages themselves are never read or
/// written here, so that one that was not taken was never accessed.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    free: ArrayVec<Span, 256>,
}

impl Pages {
    /// The whole pages of `ram` that no byte of `used` lies in.
    ///
    /// # Errors
    /// [`Full`] if memory is more fragmented than the list is long.
    pub fn new(
        ram: impl IntoIterator<Item = Span>,
        used: impl Iterator<Item = Span> + Clone,
    ) -> Result<Self, Full> {
        let mut pages = Self::default();
        for region in ram.into_iter().filter_map(|r| r.aligned(PAGE)) {
            let mut at = region.start();
            while at < region.end() {
                let taken = used
                    .clone()
                    .filter_map(|u| u.covering(PAGE)?.intersection(Span::between(at, region.end())?))
                    .min_by_key(|u| u.start());
                let stop = taken.map_or(region.end(), |t| t.start());
                if let Some(free) = Span::between(at, stop) {
                    pages.give(free)?;
                }
                at = taken.map_or(region.end(), |t| t.end());
            }
        }
        Ok(pages)
    }

    /// Adds whole pages; they must not be free already.
    ///
    /// # Errors
    /// [`Full`] if the list is.
    pub fn give(&mut self, span: Span) -> Result<(), Full> {
        let at = self.free.iter().position(|f| f.start() > span.start()).unwrap_or(self.free.len());
        self.free.try_insert(at, span).map_err(|_| Full)?;
        let mut merged: ArrayVec<Span, 256> = ArrayVec::new();
        for s in &self.free {
            match merged.last_mut() {
                Some(last) if last.end >= s.start => last.end = last.end.max(s.end),
                _ => merged.try_push(*s).map_err(|_| Full)?,
            }
        }
        self.free = merged;
        Ok(())
    }

    /// Takes `size` bytes (whole pages) at a multiple of `align` from the lowest place that has them.
    pub fn take(&mut self, size: u64, align: u64) -> Option<Span> {
        let (at, want) = self.free.iter().enumerate().find_map(|(i, f)| {
            let start = f.start().checked_next_multiple_of(align)?;
            let want = Span::new(start, size)?;
            (want.end() <= f.end()).then_some((i, want))
        })?;
        let whole = self.free.remove(at);
        for rest in [Span::between(want.end(), whole.end()), Span::between(whole.start(), want.start())] {
            if let Some(rest) = rest
                && self.free.try_insert(at, rest).is_err()
            {
                return None;
            }
        }
        Some(want)
    }

    /// The free spans.
    pub fn spans(&self) -> impl Iterator<Item = Span> + Clone + '_ {
        self.free.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGE, Pages, Span};
    use std::vec::Vec;

    fn span(start: u64, size: u64) -> Span {
        Span::new(start, size).unwrap()
    }

    #[test]
    fn a_span_has_a_byte_and_does_not_wrap() {
        assert_eq!(Span::new(5, 0), None);
        assert_eq!(Span::new(u64::MAX, 2), None);
        assert_eq!(Span::between(4, 4), None);
        assert_eq!(span(0x1800, 0x2000).aligned(PAGE), Some(span(0x2000, 0x1000)));
        assert_eq!(span(0x1800, 0x400).aligned(PAGE), None);
        assert_eq!(span(0x1800, 0x400).covering(PAGE), Some(span(0x1000, 0x1000)));
        assert_eq!(span(0x1000, 0x3000).corner_pages().map(|(_, p)| p), [0x1000, 0x2000, 0x3000]);
    }

    #[test]
    fn used_bytes_never_lie_in_a_free_page() {
        let ram = [span(0x1_0000, 0x1_0000), span(0x4_0800, 0x2000)];
        let used = [span(0x1_2fff, 2), span(0x1_0000, 1), span(0x4_1000, 0x10)];
        let pages = Pages::new(ram, used.iter().copied()).unwrap();
        let spans: Vec<_> = pages.spans().collect();
        assert_eq!(spans, [span(0x1_1000, 0x1000), span(0x1_4000, 0xc000)]);
        for f in &spans {
            assert!(used.iter().all(|u| u.intersection(*f).is_none()));
        }
    }

    #[test]
    fn pages_are_given_out_once_and_merge_when_given_back() {
        let mut pages = Pages::new([span(0, 0x10_0000)], core::iter::empty()).unwrap();
        let a = pages.take(0x1000, 0x8000).unwrap();
        let b = pages.take(0x1000, 0x8000).unwrap();
        assert_eq!((a.start(), b.start()), (0, 0x8000));
        assert_eq!(pages.take(0x20_0000, PAGE), None);
        assert_eq!(pages.spans().map(Span::size).sum::<u64>(), 0x10_0000 - 0x2000);
        pages.give(b).unwrap();
        pages.give(a).unwrap();
        assert_eq!(pages.spans().collect::<Vec<_>>(), [span(0, 0x10_0000)]);
    }
}
