//! Pages as values: whoever holds a token has the page, and letting it go gives the page back.
//!
//! Invariant: a page is in at most one token, and a token's pages are hyp-owned and mapped. Tokens
//! are made and dropped with no lock held that comes after host_s2: dropping takes it.
#![forbid(unsafe_code)]

use super::Hypervisor;
use crate::addr::{Pfn, PfnRange};
use crate::hw::Machine;
use crate::mm::{PageUse, TablePage};

/// Pages that the host has donated and that nothing else knows yet.
///
/// Dropping gives them back to the host, scrubbed. Keeping them is an explicit act.
#[derive(Debug)]
#[must_use = "dropping gives the pages back to the host"]
pub struct OwnedPages<'a, M: Machine> {
    hyp: &'a Hypervisor<M>,
    hw: &'a M,
    pages: PfnRange,
}

impl<'a, M: Machine> OwnedPages<'a, M> {
    /// The caller made `pages` hyp-owned, mapped, nobody else's, and of use [`PageUse::Token`].
    pub(super) const fn new(hyp: &'a Hypervisor<M>, hw: &'a M, pages: PfnRange) -> Self {
        Self { hyp, hw, pages }
    }

    /// A token of pages that EL2 had another use for, which is over.
    pub(super) fn of_idle(hyp: &'a Hypervisor<M>, hw: &'a M, pages: PfnRange) -> Self {
        hyp.set_use(pages, PageUse::Token);
        Self::new(hyp, hw, pages)
    }

    /// The pages.
    #[must_use]
    pub const fn pages(&self) -> PfnRange {
        self.pages
    }

    /// Makes them the state of a VM or vCPU; [`VmPages::end`] is the way back.
    pub fn into_vm(self) -> VmPages {
        VmPages { pages: self.into_use(PageUse::Vm) }
    }

    /// Makes them the root of a guest's table.
    #[must_use]
    pub(super) fn into_guest_root(self) -> PfnRange {
        self.into_use(PageUse::GuestTable)
    }

    /// Makes a token of one page a table page, which whoever stores it says the use of. `None`
    /// gives the pages back: there are more.
    pub(super) fn into_table_page(self) -> Option<TablePage> {
        if self.pages.nr() != 1 {
            return None;
        }
        let (_, _, pages) = self.forget();
        Some(TablePage::new(pages.start()))
    }

    fn into_use(self, page_use: PageUse) -> PfnRange {
        let (hyp, _, pages) = self.forget();
        hyp.set_use(pages, page_use);
        pages
    }

    /// Puts the first page on a list, which gives it back.
    pub(super) fn into_list(self) -> Pfn {
        let (_, _, pages) = self.forget();
        pages.start()
    }

    /// This CPU.
    pub(super) const fn hw(&self) -> &'a M {
        self.hw
    }

    /// Ends the token without giving anything back.
    pub(super) fn forget(self) -> (&'a Hypervisor<M>, &'a M, PfnRange) {
        let parts = (self.hyp, self.hw, self.pages);
        core::mem::forget(self);
        parts
    }
}

impl<M: Machine> Drop for OwnedPages<'_, M> {
    fn drop(&mut self) {
        self.hyp.give_back(self.hw, self.pages);
    }
}

/// A page of the host that EL2 has mapped, and that the host cannot take back until it is unpinned.
///
/// Neither `Copy` nor `Clone`: one pin, one unpin.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a pin that is dropped without unpinning holds the host's page for ever"]
pub struct Pinned {
    page: Pfn,
}

impl Pinned {
    pub(super) const fn new(page: Pfn) -> Self {
        Self { page }
    }

    /// The page, which is in EL2's linear map while this value exists.
    #[must_use]
    pub const fn page(&self) -> Pfn {
        self.page
    }
}

/// Pages that hold the state of a VM or vCPU for as long as it lives.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the pages of a VM that is dropped are lost"]
pub struct VmPages {
    pages: PfnRange,
}

impl VmPages {
    /// The pages, in EL2's linear map.
    #[must_use]
    pub const fn pages(&self) -> PfnRange {
        self.pages
    }

    /// Takes the pages out of use: what is not kept of them goes back to the host, scrubbed.
    pub fn end<'a, M: Machine>(self, hyp: &'a Hypervisor<M>, hw: &'a M) -> OwnedPages<'a, M> {
        OwnedPages::of_idle(hyp, hw, self.pages)
    }
}
