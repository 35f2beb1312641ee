//! The map of the physical address space, and the choice of places in it.
//!
//! [`MemoryMap`] divides the whole space into runs of one [`Kind`] each; what runs later (the
//! vmemmap, the host's stage 2) is told of them once, at boot.
//!
//! RAM is counted in whole pages: a page of which only a part is memory belongs to nobody. The
//! host reaches it like any other address that is no RAM, as device memory; no call accepts it.
//!
//! Invariant: spans are sorted, cover the space without gap or overlap, and neighbours differ in
//! kind. One CPU builds it at boot: no lock.
#![forbid(unsafe_code)]

use super::PaRange;
use super::image::KernelImage;
use super::tree::{MAX_REGIONS, MAX_RESERVED, MAX_WITHHELD, Platform};
use crate::addr::{BLOCK_SIZE, PAGE_SHIFT, PAGE_SIZE, PfnRange};
use arrayvec::ArrayVec;
use core::fmt;

/// Most separate pieces of the carve-out: the image, and everything else.
pub const MAX_CARVE_OUT: usize = 2;
/// Each range that is put into the space adds two spans at most.
const MAX_SPANS: usize = 2 * (MAX_REGIONS + MAX_WITHHELD + MAX_CARVE_OUT) + 1;
/// Pages of a level-2 block.
const BLOCK_PAGES: u64 = BLOCK_SIZE / PAGE_SIZE;

/// What a page of the physical address space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Devices, holes, and pages that are memory in part only.
    Mmio,
    /// Memory, of the host until it gives it away.
    Ram,
    /// Memory carved out for the hypervisor.
    Hyp,
    /// Devices that are kept from the host.
    Withheld,
}

impl Kind {
    /// True for RAM, carved out or not: what the vmemmap has a record of.
    #[must_use]
    pub const fn is_memory(self) -> bool {
        matches!(self, Self::Ram | Self::Hyp)
    }
}

/// A longest run of pages of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What the pages are.
    pub kind: Kind,
    /// All of them.
    pub pages: PfnRange,
}

/// What a range of memory is used for at boot; for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The hypervisor's image, stacks and static data.
    Image,
    /// The device tree that the boot loader passed.
    Tree,
    /// The host's kernel with its BSS.
    Kernel,
    /// The host's initial RAM disk.
    Initrd,
    /// Reserved by the device tree.
    Reserved,
    /// Carved out for vmemmap and pool.
    Data,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "hypervisor image",
            Self::Tree => "device tree",
            Self::Kernel => "host kernel",
            Self::Initrd => "initrd",
            Self::Reserved => "reserved memory",
            Self::Data => "hypervisor memory",
        })
    }
}

/// Why the memory of this machine cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// RAM that the CPU cannot address.
    #[error("memory: RAM {region} is beyond the {pa_bits} physical address bits of this CPU")]
    BeyondCpu {
        /// The region.
        region: PaRange,
        /// Physical address bits.
        pa_bits: u8,
    },
    /// Not one whole page of RAM.
    #[error("memory: no whole page of RAM")]
    NoRam,
    /// 2^32 pages of RAM, or more.
    #[error("memory: more than 16 TiB of RAM")]
    TooMuchRam,
    /// Registers of a withheld device inside RAM.
    #[error("memory: withheld device {0} is inside RAM")]
    DeviceInRam(PaRange),
    /// Something that must be in RAM is not.
    #[error("memory: {what} {range} is not in RAM")]
    NotInRam {
        /// What.
        what: Use,
        /// Where.
        range: PaRange,
    },
    /// Two things were loaded over each other.
    #[error("memory: {what} {range} overlaps {other} {other_range}")]
    Overlap {
        /// What was looked at.
        what: Use,
        /// Where it is.
        range: PaRange,
        /// What is there already.
        other: Use,
        /// Where that is.
        other_range: PaRange,
    },
    /// No free run of RAM is long enough.
    #[error("memory: no {} KiB of free RAM in one piece for the {what}", pages.saturating_mul(4))]
    NoRoom {
        /// For what.
        what: Use,
        /// How many pages.
        pages: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Span {
    /// First page; the span ends where the next starts.
    start: u64,
    kind: Kind,
}

/// The physical address space, divided by kind. About 6 KiB.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    spans: ArrayVec<Span, MAX_SPANS>,
    /// One past the last page.
    limit: u64,
    records: u32,
}

impl MemoryMap {
    /// The map of `platform` on a CPU with `pa_bits` physical address bits (32..=48), nothing
    /// carved out yet.
    ///
    /// # Errors
    /// [`LayoutError::BeyondCpu`], [`LayoutError::NoRam`], [`LayoutError::TooMuchRam`],
    /// [`LayoutError::DeviceInRam`].
    pub fn new(platform: &Platform<'_>, pa_bits: u8) -> Result<Self, LayoutError> {
        let limit = 1_u64 << u32::from(pa_bits.clamp(32, 48)).saturating_sub(PAGE_SHIFT);
        let mut map = Self { spans: ArrayVec::new(), limit, records: 0 };
        map.spans.push(Span { start: 0, kind: Kind::Mmio });
        for &region in &platform.memory {
            let beyond = LayoutError::BeyondCpu { region, pa_bits };
            if region.end() > limit << PAGE_SHIFT {
                return Err(beyond);
            }
            if let Some(pages) = region.pages_inside() {
                map.paint(pages, Kind::Mmio, Kind::Ram).ok_or(beyond)?;
            }
        }
        for &device in &platform.withheld {
            // What the CPU cannot address needs no guard.
            let Some(len) = device.end().min(limit << PAGE_SHIFT).checked_sub(device.start()) else {
                continue;
            };
            let Ok(device) = PaRange::new(device.start(), len) else { continue };
            let in_ram = LayoutError::DeviceInRam(device);
            map.paint(device.pages_touched(), Kind::Mmio, Kind::Withheld).ok_or(in_ram)?;
        }
        let pages: u64 = map.runs().filter(|run| run.kind.is_memory()).map(|run| run.pages.nr()).sum();
        if pages == 0 {
            return Err(LayoutError::NoRam);
        }
        map.records = u32::try_from(pages).map_err(|_| LayoutError::TooMuchRam)?;
        Ok(map)
    }

    /// Takes the pieces of the carve-out out of the host's RAM.
    ///
    /// # Errors
    /// [`LayoutError::NotInRam`] for a piece that is not RAM, or taken already.
    pub fn carve_out(&mut self, layout: &Layout) -> Result<(), LayoutError> {
        for piece in layout.carve_out() {
            let range = PaRange::from_pages(piece);
            let not_ram = LayoutError::NotInRam { what: Use::Data, range };
            self.paint(piece, Kind::Ram, Kind::Hyp).ok_or(not_ram)?;
        }
        Ok(())
    }

    /// True if every page of the range is RAM, carved out or not.
    #[must_use]
    pub fn is_ram(&self, range: PfnRange) -> bool {
        let mut pfn = range.start().raw();
        while pfn < range.end() {
            match self.span_at(pfn) {
                Some((span, end)) if span.kind.is_memory() => pfn = end,
                _ => return false,
            }
        }
        true
    }

    /// Pages of RAM, carved out or not: records that a vmemmap needs.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// The runs of RAM that are the host's, ascending.
    pub fn host_ram(&self) -> impl Iterator<Item = PfnRange> {
        self.runs().filter(|region| region.kind == Kind::Ram).map(|region| region.pages)
    }

    /// Every run of one kind, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Region> {
        let ends = self.spans.iter().skip(1).map(|span| span.start).chain([self.limit]);
        self.spans.iter().zip(ends).filter_map(|(span, end)| {
            let pages = PfnRange::new(span.start, end.checked_sub(span.start)?).ok()?;
            Some(Region { kind: span.kind, pages })
        })
    }

    /// The span of a page, and one past its last page.
    fn span_at(&self, pfn: u64) -> Option<(Span, u64)> {
        if pfn >= self.limit {
            return None;
        }
        let next = self.spans.partition_point(|span| span.start <= pfn);
        let end = self.spans.get(next).map_or(self.limit, |span| span.start);
        Some((*self.spans.get(next.checked_sub(1)?)?, end))
    }

    /// Makes `pages` of kind `to`; `None`, and nothing changes, unless all are of kind `from`.
    fn paint(&mut self, pages: PfnRange, from: Kind, to: Kind) -> Option<()> {
        let (start, end) = (pages.start().raw(), pages.end());
        let (span, span_end) = self.span_at(start)?;
        if span.kind != from || end > span_end || self.spans.remaining_capacity() < 2 {
            return None;
        }
        let mut next = self.spans.partition_point(|span| span.start <= start);
        if span.start == start {
            next = next.checked_sub(1)?;
            self.spans.get_mut(next)?.kind = to;
        } else {
            self.spans.insert(next, Span { start, kind: to });
        }
        if end < span_end {
            self.spans.insert(next.checked_add(1)?, Span { start: end, kind: from });
        }
        Some(())
    }
}

/// Where everything goes: what Rampart keeps, and where the host's device tree is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The hypervisor's image with its stacks and static data.
    pub image: PfnRange,
    /// Vmemmap and pool.
    pub data: PfnRange,
    /// A free 2 MiB block, aligned, for the host's device tree; it stays the host's memory.
    pub tree: PfnRange,
}

/// What was in memory when Rampart was entered.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// The hypervisor's image with its stacks and static data.
    pub image: PaRange,
    /// The device tree.
    pub tree: PaRange,
    /// The host's kernel.
    pub kernel: KernelImage,
    /// The host's initial RAM disk.
    pub initrd: Option<PaRange>,
}

impl Layout {
    /// Finds a place for `data_pages` pages of vmemmap and pool, after the image if it can be,
    /// and for the host's device tree.
    ///
    /// # Errors
    /// [`LayoutError::NotInRam`] and [`LayoutError::Overlap`] for what was loaded, then
    /// [`LayoutError::NoRoom`].
    pub fn new(
        map: &MemoryMap,
        platform: &Platform<'_>,
        loaded: &Loaded,
        data_pages: u64,
    ) -> Result<Self, LayoutError> {
        let mut taken = Taken { map, ranges: ArrayVec::new() };
        taken.claim(Use::Image, loaded.image)?;
        taken.claim(Use::Tree, loaded.tree)?;
        taken.claim(Use::Kernel, loaded.kernel.memory())?;
        if let Some(initrd) = loaded.initrd {
            taken.claim(Use::Initrd, initrd)?;
        }
        // A reservation may cover something that was loaded; it only bars new uses.
        for &range in &platform.reserved {
            taken.ranges.push((Use::Reserved, range));
        }
        let image = loaded.image.pages_touched();
        let data = taken.find(Use::Data, data_pages, 1, image.end())?;
        taken.ranges.push((Use::Data, PaRange::from_pages(data)));
        let tree = taken.find(Use::Tree, BLOCK_PAGES, BLOCK_PAGES, image.end())?;
        Ok(Self { image, data, tree })
    }

    /// The pieces of the carve-out, ascending, one if they touch.
    #[must_use]
    pub fn carve_out(&self) -> ArrayVec<PfnRange, MAX_CARVE_OUT> {
        let (low, high) = if self.image.start() < self.data.start() {
            (self.image, self.data)
        } else {
            (self.data, self.image)
        };
        let mut pieces = ArrayVec::new();
        match PfnRange::new(low.start().raw(), low.nr().saturating_add(high.nr())) {
            Ok(both) if both.end() == high.end() => pieces.push(both),
            _ => pieces.extend([low, high]),
        }
        pieces
    }
}

/// Ranges of RAM that have a use: four loaded things, the reservations, the data.
struct Taken<'a> {
    map: &'a MemoryMap,
    ranges: ArrayVec<(Use, PaRange), { MAX_RESERVED + 5 }>,
}

impl Taken<'_> {
    /// Notes something that was loaded: all RAM, and nothing else there.
    fn claim(&mut self, what: Use, range: PaRange) -> Result<(), LayoutError> {
        if !self.map.is_ram(range.pages_touched()) {
            return Err(LayoutError::NotInRam { what, range });
        }
        if let Some(&(other, other_range)) = self.ranges.iter().find(|(_, taken)| taken.overlaps(range)) {
            return Err(LayoutError::Overlap { what, range, other, other_range });
        }
        self.ranges.push((what, range));
        Ok(())
    }

    /// `nr` free pages from a multiple of `align`: the first at or after page `from`, else the
    /// first of all.
    fn find(&self, what: Use, nr: u64, align: u64, from: u64) -> Result<PfnRange, LayoutError> {
        // Page 0 is left alone: its address is the null pointer.
        [from, 1]
            .into_iter()
            .find_map(|from| self.map.host_ram().find_map(|run| self.find_in(run, nr, align, from)))
            .ok_or(LayoutError::NoRoom { what, pages: nr })
    }

    fn find_in(&self, run: PfnRange, nr: u64, align: u64, from: u64) -> Option<PfnRange> {
        let mut start = run.start().raw().max(from).checked_next_multiple_of(align)?;
        loop {
            let pages = PfnRange::new(start, nr).ok()?;
            if pages.end() > run.end() {
                return None;
            }
            let bytes = PaRange::from_pages(pages);
            let blocking = self.ranges.iter().filter(|(_, taken)| taken.overlaps(bytes));
            let Some(end) = blocking.map(|(_, taken)| taken.end()).max() else { return Some(pages) };
            start = end.div_ceil(PAGE_SIZE).checked_next_multiple_of(align)?;
        }
    }
}
