//! EL2's own map while it grows at boot, and the table pages for the time before there is a pool.

use super::{refuse, sure};
use crate::arch::machine::El2;
use crate::arch::{Hw, watched};
use hyp::addr::{PAGE_SIZE, Pa, Pfn, VaRange};
use hyp::hw::{Event, Observe};
use hyp::lock::Rank;
use hyp::pgtable::{Geometry, HypAttrs, HypTable, Level, TablePool};

/// Table pages inside the image, for the time before there is a vmemmap.
struct BootTables {
    first: Pfn,
    used: u64,
    counts: [u16; Self::PAGES],
}

impl BootTables {
    const PAGES: usize = 16;

    fn new() -> Self {
        let first = Pa::truncated(crate::arch::boot_tables()).frame();
        Self { first, used: 0, counts: [0; Self::PAGES] }
    }

    fn slot(&mut self, page: Pfn) -> Option<&mut u16> {
        let index = page.raw().checked_sub(self.first.raw())?;
        self.counts.get_mut(usize::try_from(index).ok()?)
    }
}

impl TablePool for BootTables {
    fn alloc(&mut self) -> Option<Pfn> {
        let page = self.first.checked_add(self.used)?;
        self.used = self.used.saturating_add(1);
        (self.used <= Self::PAGES as u64).then_some(page)
    }

    fn free(&mut self, page: Pfn) {
        // Clearing keeps tables and nothing folds at boot.
        sure("boot table freed", Err::<(), _>(page));
    }

    fn add_entries(&mut self, table: Pfn, nr: u16) {
        if let Some(count) = self.slot(table) {
            *count = count.saturating_add(nr);
        }
    }

    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        if let Some(count) = self.slot(table) {
            *count = count.saturating_sub(nr);
        }
    }

    fn entries(&self, table: Pfn) -> u16 {
        let index = table.raw().wrapping_sub(self.first.raw());
        usize::try_from(index).ok().and_then(|i| self.counts.get(i)).copied().unwrap_or(0)
    }
}

/// EL2's map while it grows at boot.
pub(super) struct Map {
    pub(super) hw: El2,
    /// The same, for what the checker must see.
    pub(super) watched: Hw,
    pub(super) table: HypTable,
    pages: BootTables,
}

impl Map {
    pub(super) fn new(hw: El2) -> Self {
        let mut pages = BootTables::new();
        let geometry = sure("geometry", Geometry::hyp(48));
        let root = pages.alloc().unwrap_or_else(|| refuse("internal: no boot tables"));
        let watched = watched(hw, 0);
        let table = sure("root", HypTable::new(&watched, root, geometry));
        Self { hw, watched, table, pages }
    }

    /// Does without FEAT_MTE_PERM.
    pub(super) fn forget_mte_perm(&mut self) {
        self.hw.features.mte_perm = false;
        self.watched = watched(self.hw, 0);
    }

    /// Maps the pages that have a byte of `[start, end)` at their own address.
    pub(super) fn map(&mut self, start: u64, end: u64, attrs: HypAttrs) {
        let range = pages_of(start, end);
        let first = Pa::truncated(range.start().raw()).frame();
        self.locked(true);
        sure("map", self.table.map(&self.watched, &mut self.pages, range, first, attrs, Level::L1));
        self.locked(false);
    }

    /// Takes the same pages out of the map.
    pub(super) fn unmap(&mut self, start: u64, end: u64) {
        self.locked(true);
        sure("unmap", self.table.prepare_clear(&self.watched, &mut self.pages, pages_of(start, end)))
            .commit(&self.watched, &mut self.pages);
        self.locked(false);
    }

    /// Says that the table's lock is held: there is no lock yet, because there is nobody else.
    fn locked(&self, held: bool) {
        self.watched.observe(Event::Lock { rank: Rank::HypS1, held });
    }
}

fn pages_of(start: u64, end: u64) -> VaRange {
    sure("range", VaRange::new(start & !(PAGE_SIZE - 1), end.next_multiple_of(PAGE_SIZE)))
}
