//! The two page stores of a VM: what its tables are made of, and the one page that makes sure
//! that taking memory away from it never fails.
//!
//! [`PtCache`] is opportunistic: the host fills it, and whatever needs a new table may find it
//! empty. [`SplitReserve`] is a guarantee: exactly one page, between any two calls, for splitting
//! a block of which only a part is destroyed. They are different types, and nothing takes either.
//!
//! Both are in the value that the guest_s2 lock guards.
//!
//! What makes tables takes them from the cache, and cannot be given the reserve:
//! ```compile_fail,E0277
//! # use hyp::{addr::IpaRange, hw::Machine, mm::SplitReserve, pgtable::{Note, Stage2Table}};
//! fn f<M: Machine>(t: &Stage2Table, hw: &M, reserve: &mut SplitReserve, range: IpaRange) {
//!     let _ = t.annotate(hw, reserve, range, Note::MmioGuard);
//! }
//! ```
//! (What the cache gives is right:)
//! ```
//! # use hyp::{addr::IpaRange, hw::Machine, mm::PtSource, pgtable::{Note, Stage2Table}};
//! fn f<M: Machine>(t: &Stage2Table, hw: &M, mut source: PtSource<'_, M>, range: IpaRange) {
//!     let _ = t.annotate(hw, &mut source, range, Note::MmioGuard);
//! }
//! ```
//! Nor can one be made into the other, a page be in two places, or a debt be paid twice:
//! ```compile_fail,E0382
//! # use hyp::mm::TablePage;
//! fn f(page: TablePage) -> (TablePage, TablePage) {
//!     (page, page)
//! }
//! ```
//! ```compile_fail,E0605
//! # use hyp::mm::{PtCache, SplitReserve};
//! fn f(reserve: SplitReserve) -> PtCache {
//!     reserve as PtCache
//! }
//! ```
//! The page leaves the reserve as a [`ReserveSource`], which only code that destroys is given, and
//! with a [`ReserveLoan`] that panics when it is dropped unpaid.
#![forbid(unsafe_code)]

use super::Cx;
use super::free_list::FreeList;
use super::table_pool;
use super::vmemmap::PageUse;
use crate::addr::Pfn;
use crate::fault::Site;
use crate::hw::PhysMem;
use crate::pgtable::TablePool;

/// Most pages that filling up gives a cache; folding may give it more.
pub const PT_CACHE_CAP: u64 = 128;

/// A page that is hyp-owned, in the linear map and in no use: what a table can be made of.
///
/// Neither `Copy` nor `Clone`: it is put where it belongs, or it is lost.
#[derive(Debug)]
#[must_use = "a table page is put into a store, or it is lost"]
pub struct TablePage(Pfn);

impl TablePage {
    /// The caller has taken `page` out of all other uses.
    pub(crate) const fn new(page: Pfn) -> Self {
        Self(page)
    }

    /// The page, which is somebody else's business from here on.
    #[must_use]
    pub(crate) const fn into_page(self) -> Pfn {
        self.0
    }
}

/// Table pages of one VM.
#[derive(Debug, Default)]
pub struct PtCache {
    free: FreeList,
}

impl PtCache {
    /// An empty cache.
    #[must_use]
    pub const fn new() -> Self {
        Self { free: FreeList::new() }
    }

    /// Pages in it.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.free.len()
    }

    /// The pages in it that can be reached by its links.
    #[cfg(feature = "fault-injection")]
    pub fn listed<'a>(&self, hw: &'a impl PhysMem) -> impl Iterator<Item = Pfn> + 'a {
        self.free.pages(hw)
    }

    /// Puts a page in.
    pub fn put<M: PhysMem>(&mut self, cx: Cx<'_, M>, page: TablePage) {
        let page = page.into_page();
        if let Some(record) = cx.vmemmap.get(page) {
            record.set_use(PageUse::PtCache);
            record.set_free(true);
        }
        self.free.push(cx.hw, page);
    }

    /// Takes one out.
    pub fn take<M: PhysMem>(&mut self, cx: Cx<'_, M>) -> Option<TablePage> {
        let page = self.free.pop(cx.hw)?;
        cx.vmemmap.get(page)?.set_free(false);
        Some(TablePage(page))
    }

    /// The cache as the table engine knows it.
    pub const fn source<'a, M>(&'a mut self, cx: Cx<'a, M>) -> PtSource<'a, M> {
        PtSource { cache: self, cx }
    }
}

/// [`PtCache`] with what it needs at hand.
#[derive(Debug)]
pub struct PtSource<'a, M> {
    cache: &'a mut PtCache,
    cx: Cx<'a, M>,
}

impl<M: PhysMem> TablePool for PtSource<'_, M> {
    fn alloc(&mut self) -> Option<Pfn> {
        self.cx.faults.hit(Site::PtCachePop).ok()?;
        let page = self.cache.take(self.cx)?.into_page();
        self.cx.vmemmap.get(page)?.set_use(PageUse::GuestTable);
        Some(page)
    }

    fn free(&mut self, page: Pfn) {
        self.cache.put(self.cx, TablePage(page));
    }

    #[inline]
    fn add_entries(&mut self, table: Pfn, nr: u16) {
        table_pool::add_entries(self.cx.vmemmap, table, nr);
    }

    #[inline]
    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        table_pool::remove_entries(self.cx.vmemmap, table, nr);
    }

    #[inline]
    fn entries(&self, table: Pfn) -> u16 {
        table_pool::entries(self.cx.vmemmap, table)
    }
}

/// The page that splits a block when part of it is destroyed.
///
/// Invariant R: between any two calls the reserve of every protected VM is full.
#[derive(Debug, Default)]
pub struct SplitReserve {
    page: Option<TablePage>,
}

/// A reserve that is empty: whoever holds this owes it a page.
#[derive(Debug)]
#[must_use = "the reserve must be repaid before the call ends"]
pub struct ReserveLoan(());

impl Drop for ReserveLoan {
    fn drop(&mut self) {
        debug_assert!(false, "a split reserve was not repaid");
    }
}

impl SplitReserve {
    /// A reserve with nothing in it: of a VM that is not protected, and has no blocks to split.
    #[must_use]
    pub const fn none() -> Self {
        Self { page: None }
    }

    /// The reserve of a protected VM.
    pub fn full<M>(cx: Cx<'_, M>, page: TablePage) -> Self {
        if let Some(record) = cx.vmemmap.get(page.0) {
            record.set_use(PageUse::Reserve);
        }
        Self { page: Some(page) }
    }

    /// The page, if there is one.
    #[must_use]
    pub fn page(&self) -> Option<Pfn> {
        self.page.as_ref().map(|page| page.0)
    }

    /// True if invariant R holds here, of a VM that is `protected` or not: one has a reserve, the other none.
    #[must_use]
    pub const fn is_as_due(&self, protected: bool) -> bool {
        self.page.is_some() == protected
    }

    /// Lends the page for the table of a split. The second value is the debt.
    pub(crate) fn lend<'a, M>(&mut self, cx: Cx<'a, M>) -> Option<(ReserveSource<'a, M>, ReserveLoan)> {
        Some((ReserveSource { page: Some(self.page.take()?), cx }, ReserveLoan(())))
    }

    /// Puts a page back.
    pub(crate) fn repay<M>(&mut self, cx: Cx<'_, M>, loan: ReserveLoan, page: TablePage) {
        core::mem::forget(loan);
        *self = Self::full(cx, page);
    }

    /// The page of a VM that is gone.
    #[must_use]
    pub fn end(&mut self) -> Option<TablePage> {
        self.page.take()
    }
}

/// A source of exactly one table: the page that the reserve lent.
#[derive(Debug)]
pub struct ReserveSource<'a, M> {
    page: Option<TablePage>,
    cx: Cx<'a, M>,
}

impl<M> ReserveSource<'_, M> {
    /// The page, if it was not needed.
    pub(crate) fn into_page(self) -> Option<TablePage> {
        self.page
    }
}

impl<M: PhysMem> TablePool for ReserveSource<'_, M> {
    fn alloc(&mut self) -> Option<Pfn> {
        let page = self.page.take()?.into_page();
        self.cx.vmemmap.get(page)?.set_use(PageUse::GuestTable);
        Some(page)
    }

    fn free(&mut self, page: Pfn) {
        self.page = Some(TablePage(page));
    }

    fn add_entries(&mut self, table: Pfn, nr: u16) {
        table_pool::add_entries(self.cx.vmemmap, table, nr);
    }

    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        table_pool::remove_entries(self.cx.vmemmap, table, nr);
    }

    fn entries(&self, table: Pfn) -> u16 {
        table_pool::entries(self.cx.vmemmap, table)
    }
}

#[cfg(test)]
mod tests {
    use super::{ReserveLoan, SplitReserve, TablePage};
    use crate::addr::Pfn;

    #[test]
    #[should_panic(expected = "a split reserve was not repaid")]
    fn r_24_a_debt_that_is_dropped_is_a_panic() {
        drop(ReserveLoan(()));
    }

    #[test]
    fn invariant_r_is_a_reserve_for_a_protected_vm_and_for_no_other() {
        let mut reserve = SplitReserve { page: Some(TablePage::new(Pfn::new(7).unwrap())) };
        assert!(reserve.is_as_due(true) && !reserve.is_as_due(false));
        assert_eq!(reserve.end().map(TablePage::into_page), Pfn::new(7).ok());
        assert!(!reserve.is_as_due(true), "lent, and not repaid");
        assert!(SplitReserve::none().is_as_due(false));
    }
}
