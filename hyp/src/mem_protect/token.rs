//! Pages as values: whoever holds a token has the page, and letting it go gives the page back.
//!
//! Invariant: a page is in at most one token, and a token's pages are hyp-owned and mapped. Tokens
//! are made and dropped with no lock held that comes after host_s2: dropping takes it.
#![forbid(unsafe_code)]

use super::Hypervisor;
use crate::addr::{Pfn, PfnRange};
use crate::hw::Machine;
use crate::mm::PageUse;

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
    /// The caller made `pages` hyp-owned, mapped, and nobody else's.
    pub(super) fn new(hyp: &'a Hypervisor<M>, hw: &'a M, pages: PfnRange) -> Self {
        hyp.set_use(pages, PageUse::Token);
        Self { hyp, hw, pages }
    }

    /// The pages.
    #[must_use]
    pub const fn pages(&self) -> PfnRange {
        self.pages
    }

    /// Lends them to the pool that tables of the host and of EL2 come from.
    pub fn into_table_pool(self) {
        let (hyp, hw, pages) = self.forget();
        hyp.host(hw).pages.add(hw, hyp.vmemmap(), pages, PageUse::Lent);
    }

    /// Ends the token without giving anything back.
    fn forget(self) -> (&'a Hypervisor<M>, &'a M, PfnRange) {
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
