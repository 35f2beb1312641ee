//! Single pages for the tables of the host and of EL2 itself.
//!
//! The pool starts with a few pages from the carve-out and grows by pages the host lends
//! ([`PageUse::Lent`]), each of which can be taken back while it is idle. It lives inside the
//! host_s2 lock.
#![forbid(unsafe_code)]

use super::free_list::FreeList;
use super::vmemmap::{PageUse, Vmemmap};
use crate::addr::{Pfn, PfnRange};
use crate::hw::{MappedPage, PhysMem};

/// Free table pages and how many there are in all.
#[derive(Debug, Default)]
pub struct TablePages {
    free: FreeList,
    total: u64,
}

impl TablePages {
    /// A pool without pages.
    #[must_use]
    pub const fn new() -> Self {
        Self { free: FreeList::new(), total: 0 }
    }

    /// Pages on the free list.
    #[must_use]
    pub const fn free_pages(&self) -> u64 {
        self.free.len()
    }

    /// Pages of the pool, free or in use as a table.
    #[must_use]
    pub const fn total_pages(&self) -> u64 {
        self.total
    }

    /// Gives the pool `pages`: RAM, hyp-owned and in the linear map; `page_use` is
    /// [`PageUse::TablePool`] or [`PageUse::Lent`].
    pub fn add(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap, pages: PfnRange, page_use: PageUse) {
        for (pfn, record) in pages.iter().zip(vmemmap.range(pages).unwrap_or_default()) {
            record.set_use(page_use);
            record.set_free(true);
            self.free.push(hw, pfn);
            self.total = self.total.saturating_add(1);
        }
    }

    /// Takes an idle page out of the pool for good: the caller saw that it is free.
    pub fn remove(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap, page: Pfn) {
        let Some(record) = vmemmap.get(page).filter(|record| record.is_free()) else {
            debug_assert!(false, "{page:?} is not idle");
            return;
        };
        self.free.remove(hw, page);
        self.total = self.total.saturating_sub(1);
        record.set_use(PageUse::None);
    }

    /// A zeroed page for a table, if there is a free one.
    pub fn alloc(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap) -> Option<Pfn> {
        let page = self.free.pop(hw)?;
        if let Some(record) = vmemmap.get(page) {
            record.set_free(false);
        }
        hw.zero_page(MappedPage::linear(page));
        Some(page)
    }

    /// Takes back a page from [`TablePages::alloc`].
    pub fn free(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap, page: Pfn) {
        let Some(record) = vmemmap.get(page) else { return };
        debug_assert!(!record.is_free() && record.count() == 0, "{page:?} is free already or in use");
        record.set_aux(0);
        record.set_free(true);
        self.free.push(hw, page);
    }
}
