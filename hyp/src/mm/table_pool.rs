//! Single pages for the tables of the host and of EL2 itself.
//!
//! The pool starts with a few pages from the carve-out and grows by pages the host lends
//! ([`PageUse::Lent`]), each of which can be taken back while it is idle.
//!
//! Some tables can be dropped at any time, because all they say can be found out again: those of
//! the host that hold default mappings only. The others are *pinned*: tables of the host with a
//! note or a borrowed page below them, and every table of EL2's own map. Invariant: at least
//! [`REFILL`] pages are not pinned, so that whatever happens a default mapping of the host can be
//! made again.
//!
//! The pool lives inside the host_s2 lock.
#![forbid(unsafe_code)]

use super::Cx;
use super::free_list::FreeList;
use super::vmemmap::{PageUse, Record, Vmemmap};
use crate::addr::{Pfn, PfnRange};
use crate::fault::Site;
use crate::hw::PhysMem;
use crate::pgtable::TablePool;

/// Tables that the longest walk to a default mapping needs below the root.
pub const REFILL: u64 = 3;

/// Free table pages, and how many there are in all.
///
/// Lent pages are used last, so that as many as can be are idle when the host wants them back.
#[derive(Debug, Default)]
pub struct TablePages {
    own: FreeList,
    lent: FreeList,
    total: u64,
    pinned: u64,
}

/// Whose tables are made from the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TablesOf {
    /// The host's: pinned while something is in them that cannot be found out again.
    Host,
    /// EL2's own: pinned from the first moment.
    Hyp,
}

impl TablePages {
    /// A pool without pages.
    #[must_use]
    pub const fn new() -> Self {
        Self { own: FreeList::new(), lent: FreeList::new(), total: 0, pinned: 0 }
    }

    /// Pages on the free list.
    #[must_use]
    pub const fn free_pages(&self) -> u64 {
        self.own.len().saturating_add(self.lent.len())
    }

    /// The free pages that can be reached by their links.
    #[cfg(feature = "fault-injection")]
    pub fn listed<'a>(&self, hw: &'a impl PhysMem) -> impl Iterator<Item = Pfn> + 'a {
        self.own.pages(hw).chain(self.lent.pages(hw))
    }

    /// The list that pages of this use are on while they are free.
    fn list(&mut self, page_use: PageUse) -> &mut FreeList {
        if page_use == PageUse::Lent { &mut self.lent } else { &mut self.own }
    }

    /// Pages of the pool, free or in use as a table.
    #[must_use]
    pub const fn total_pages(&self) -> u64 {
        self.total
    }

    /// Pages that are free or hold a table that can be dropped: at least [`REFILL`].
    #[must_use]
    pub const fn unpinned_pages(&self) -> u64 {
        self.total.saturating_sub(self.pinned)
    }

    /// Gives the pool `pages`: RAM, hyp-owned and in the linear map; `page_use` is
    /// [`PageUse::TablePool`] or [`PageUse::Lent`].
    pub fn add(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap, pages: PfnRange, page_use: PageUse) {
        for (pfn, record) in pages.iter().zip(vmemmap.range(pages).unwrap_or_default()) {
            record.set_use(page_use);
            record.set_free(true);
            self.list(page_use).push(hw, pfn);
            self.total = self.total.saturating_add(1);
        }
    }

    /// Takes an idle page out of the pool for good: the caller saw that it is free. It keeps its use.
    pub fn remove(&mut self, hw: &impl PhysMem, page: Pfn, record: &Record) {
        debug_assert!(record.is_free(), "{page:?} is not idle");
        self.list(record.page_use()).remove(hw, page);
        record.set_free(false);
        self.total = self.total.saturating_sub(1);
    }

    /// The pool as the table engine knows it, for one kind of table.
    pub const fn source<'a, M>(&'a mut self, cx: Cx<'a, M>, tables_of: TablesOf) -> TableSource<'a, M> {
        TableSource { pages: self, cx, tables_of }
    }

    /// Books `nr` entries of a host table that cannot be dropped, which pins the table. Returns
    /// true if that is the first such entry of the table.
    pub fn pin(&mut self, vmemmap: &Vmemmap, table: Pfn, nr: u16) -> bool {
        let Some(record) = vmemmap.get(table) else { return false };
        let before = record.aux();
        record.set_aux(before.saturating_add(u32::from(nr)));
        if before == 0 {
            self.pinned = self.pinned.saturating_add(1);
        }
        before == 0
    }

    /// Takes back what [`TablePages::pin`] booked. Returns true if nothing pins the table any more.
    pub fn unpin(&mut self, vmemmap: &Vmemmap, table: Pfn, nr: u16) -> bool {
        let Some(record) = vmemmap.get(table) else { return false };
        debug_assert!(record.aux() >= u32::from(nr), "{table:?} has fewer than {nr} pins");
        let after = record.aux().saturating_sub(u32::from(nr));
        record.set_aux(after);
        if after == 0 {
            self.pinned = self.pinned.saturating_sub(1);
        }
        after == 0
    }
}

/// [`TablePages`] with what it needs at hand.
#[derive(Debug)]
pub struct TableSource<'a, M> {
    pages: &'a mut TablePages,
    cx: Cx<'a, M>,
    tables_of: TablesOf,
}

impl<M: PhysMem> TablePool for TableSource<'_, M> {
    fn alloc(&mut self) -> Option<Pfn> {
        self.cx.faults.hit(Site::HostPoolAlloc).ok()?;
        let page = self.pages.own.pop(self.cx.hw).or_else(|| self.pages.lent.pop(self.cx.hw))?;
        self.cx.vmemmap.get(page)?.set_free(false);
        if self.tables_of == TablesOf::Hyp {
            self.pages.pinned = self.pages.pinned.saturating_add(1);
        }
        Some(page)
    }

    fn free(&mut self, page: Pfn) {
        let Some(record) = self.cx.vmemmap.get(page) else { return };
        debug_assert!(!record.is_free() && record.count() == 0 && record.aux() == 0, "{page:?} is in use");
        match (record.page_use(), self.tables_of) {
            (PageUse::TablePool | PageUse::Lent, TablesOf::Host) => {}
            (PageUse::TablePool | PageUse::Lent, TablesOf::Hyp) => {
                self.pages.pinned = self.pages.pinned.saturating_sub(1);
            }
            // A table of EL2's first map, made before there was a pool.
            _ => {
                record.set_use(PageUse::TablePool);
                self.pages.total = self.pages.total.saturating_add(1);
            }
        }
        record.set_free(true);
        self.pages.list(record.page_use()).push(self.cx.hw, page);
    }

    #[inline]
    fn add_entries(&mut self, table: Pfn, nr: u16) {
        add_entries(self.cx.vmemmap, table, nr);
    }

    #[inline]
    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        remove_entries(self.cx.vmemmap, table, nr);
    }

    #[inline]
    fn entries(&self, table: Pfn) -> u16 {
        entries(self.cx.vmemmap, table)
    }
}

/// Table pages taken one after the other, before there is a pool: nothing is read from them, so
/// that what firmware left there does not matter.
#[derive(Debug)]
pub struct FirstTables<'a> {
    vmemmap: &'a Vmemmap,
    /// Not yet handed out, as frame numbers.
    left: core::ops::Range<u64>,
}

impl<'a> FirstTables<'a> {
    /// `pages` are RAM, hyp-owned and mapped.
    #[must_use]
    pub const fn new(vmemmap: &'a Vmemmap, pages: PfnRange) -> Self {
        Self { vmemmap, left: pages.start().raw()..pages.end() }
    }

    /// The pool with what is left; tables of the host that were made count as its pages in use.
    pub fn into_pool(self, hw: &impl PhysMem, pages: PfnRange) -> TablePages {
        let mut pool = TablePages::new();
        for (pfn, record) in pages.iter().zip(self.vmemmap.range(pages).unwrap_or_default()) {
            record.set_use(PageUse::TablePool);
            pool.total = pool.total.saturating_add(1);
            if self.left.contains(&pfn.raw()) {
                record.set_free(true);
                pool.own.push(hw, pfn);
            }
        }
        pool
    }
}

impl TablePool for FirstTables<'_> {
    fn alloc(&mut self) -> Option<Pfn> {
        self.left.next().and_then(|page| Pfn::new(page).ok())
    }

    /// Never happens: nothing is folded while the first tables are made.
    fn free(&mut self, page: Pfn) {
        debug_assert!(false, "{page:?} given back before there is a pool");
    }

    fn add_entries(&mut self, table: Pfn, nr: u16) {
        add_entries(self.vmemmap, table, nr);
    }

    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        remove_entries(self.vmemmap, table, nr);
    }

    fn entries(&self, table: Pfn) -> u16 {
        entries(self.vmemmap, table)
    }
}

#[inline]
pub(super) fn add_entries(vmemmap: &Vmemmap, table: Pfn, nr: u16) {
    if let Some(record) = vmemmap.get(table) {
        record.set_count(record.count().saturating_add(nr));
    }
}

#[inline]
pub(super) fn remove_entries(vmemmap: &Vmemmap, table: Pfn, nr: u16) {
    if let Some(record) = vmemmap.get(table) {
        debug_assert!(record.count() >= nr, "{table:?} has fewer than {nr} entries");
        record.set_count(record.count().saturating_sub(nr));
    }
}

#[inline]
pub(super) fn entries(vmemmap: &Vmemmap, table: Pfn) -> u16 {
    vmemmap.get(table).map_or(0, |record| record.count())
}
