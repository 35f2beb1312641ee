//! Filling a VM's table cache, and taking a VM's tables apart.
//!
//! Pages go in as a chain of the host's: the link to the next page is read only when the page it
//! is in is EL2's. They come out as a chain that EL2 writes, one link a page.
//!
//! Locks: host_s2 and hyp_s1 while a page changes hands, the guest's while its store does; never
//! both.
#![forbid(unsafe_code)]

use super::Hypervisor;
use super::guest_s2::{Guest, GuestS2, View};
use super::host_guest::Borrow;
use super::leave::frames;
use super::token::OwnedPages;
use crate::addr::{Ipa, IpaRange, PAGE_SHIFT, Pfn, PfnRange};
use crate::error::Error;
use crate::fault::Site;
use crate::hw::{Machine, MappedPage};
use crate::mm::{PT_CACHE_CAP, TablePage};
use crate::pgtable::LeafState;
use abi::Errno;
use abi::host::MAX_PAGES;
use core::ops::ControlFlow;

/// Word of a chain's last page.
const END: u64 = u64::MAX;

/// Pages that went to the host as a list of its own: word 0 of each holds the next one's frame
/// number, all ones in the last; the rest is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    head: Option<Pfn>,
    count: u64,
}

impl Chain {
    /// An empty chain.
    #[must_use]
    pub const fn new() -> Self {
        Self { head: None, count: 0 }
    }

    /// Frame number of the first page, all ones for none: what a call answers.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.head.map_or(END, Pfn::raw)
    }

    /// Number of pages.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Gives `pages` to the host at the front of the chain.
    pub fn give<M: Machine>(&mut self, pages: OwnedPages<'_, M>) {
        let (hyp, hw, pages) = pages.forget();
        for page in pages.iter() {
            hw.zero_page(MappedPage::linear(page));
            hw.write_word(page, 0, self.head());
            hyp.give_back_as_is(hw, PfnRange::one(page));
            self.head = Some(page);
            self.count = self.count.saturating_add(1);
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// VM_TOPUP: moves up to `nr` pages of the host, a chain that starts at `head`, into the
    /// guest's table cache. Returns how many: a bad page that is not the first ends the call.
    ///
    /// # Errors
    /// EINVAL: none. E2BIG: more than a call works on, or than the cache takes. Of the first page:
    /// ERANGE not RAM, EPERM not the host's alone, ENOMEM no table page.
    pub fn topup(&self, hw: &M, guest: &Guest<M>, head: Pfn, nr: u64) -> Result<u64, Error> {
        if nr == 0 {
            return Err(Errno::Einval.into());
        }
        let room = PT_CACHE_CAP.saturating_sub(guest.lock(hw).cache.pages());
        if nr > room.min(MAX_PAGES) {
            return Err(Errno::E2big.into());
        }
        let (mut page, mut taken) = (head, 0_u64);
        while taken < nr {
            match self.topup_one(hw, guest, page) {
                Ok(next) => {
                    taken = taken.saturating_add(1);
                    let Ok(next) = Pfn::new(next) else { break };
                    page = next;
                }
                Err(e) if taken == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(taken)
    }

    /// Moves one page into the cache; returns the link that is in it.
    fn topup_one(&self, hw: &M, guest: &Guest<M>, page: Pfn) -> Result<u64, Error> {
        self.faults.hit(Site::TopupStep)?;
        let token = self.host_donate_token(hw, PfnRange::one(page))?;
        let next = token.read_once(0);
        if let Some(page) = token.into_table_page() {
            guest.lock(hw).cache.put(self.cx(hw), page);
        }
        Ok(next)
    }

    /// Empties the next frames of a guest that is taken apart, from `at` on: what it borrows goes
    /// back to being the host's alone, notes go. Looks at no more than 4096 entries and 512 pages.
    /// Returns where to go on, `None` at the end of its space. The tables go to its cache.
    ///
    /// The caller has seen that the VM is dying.
    ///
    /// # Errors
    /// EBUSY with the address of the first page that the VM still owns. EIO.
    pub fn drop_borrowed(&self, hw: &M, guest: &Guest<M>, at: Ipa) -> Result<Option<Ipa>, (Error, Ipa)> {
        let cx = self.cx(hw);
        let mut host = self.host.lock(hw);
        let mut guest = guest.lock(hw);
        let guest: &mut GuestS2 = &mut guest;
        let fail = |e: Error| (e, at);
        // Nothing is left, or nothing ever was: four walks less.
        let root = self.vmemmap.range(guest.table.root_pages()).unwrap_or_default();
        if !root.is_empty() && root.iter().all(|page| page.count() == 0) {
            return Ok(None);
        }
        let geometry = guest.table.geometry();
        let rest =
            IpaRange::new(at.raw(), geometry.limit(), geometry.ia_bits()).map_err(|e| fail(e.into()))?;
        let (mut visited, mut pages, mut start, mut end) = (0_u64, 0_u64, at.raw(), at.raw());
        let owned = guest.parts_in_runs(hw, rest, |part| {
            let mine = match part.view {
                View::Page { state: LeafState::SharedBorrowed, .. } => part.nr,
                View::Page { .. } => return ControlFlow::Break(Some(part.gfn)),
                View::Nothing | View::Ripas(_) | View::Guard => 0,
            };
            visited = visited.saturating_add(part.entries);
            pages = pages.saturating_add(mine);
            if visited > MAX_VISITED || pages > MAX_PAGES {
                return ControlFlow::Break(None);
            }
            // Whole entries: nothing is split.
            start = start.min(part.entry_start);
            end = part.entry_end;
            ControlFlow::Continue(())
        });
        let owned = owned.map_err(fail)?;
        if let Some(Some(gfn)) = owned
            && end == at.raw()
        {
            let ipa = Ipa::truncated(gfn << PAGE_SHIFT);
            return Err((Errno::Ebusy.into(), ipa));
        }
        let Some(done) = frames(start >> PAGE_SHIFT, end.saturating_sub(start) >> PAGE_SHIFT) else {
            return Err(fail(Errno::Eio.into()));
        };
        guest
            .parts_in_runs(hw, done, |part| {
                for record in part.pages().and_then(|pages| self.vmemmap.range(pages)).unwrap_or_default() {
                    Borrow::give_up(record, &mut host.states);
                }
                ControlFlow::<()>::Continue(())
            })
            .map_err(fail)?;
        let mut source = guest.cache.source(cx);
        guest.table.prepare_clear(hw, &mut source, done).map_err(|e| fail(e.into()))?.commit(hw, &mut source);
        guest.table.fold(hw, &mut guest.cache.source(cx), done).map_err(|e| fail(e.into()))?;
        Ok((end < geometry.limit()).then(|| Ipa::truncated(end)))
    }

    /// Gives up to `budget` pages of the cache of a guest that is taken apart to the host. Returns
    /// true if it is empty now.
    pub fn drop_cache(&self, hw: &M, guest: &Guest<M>, budget: u64, chain: &mut Chain) -> bool {
        for _ in 0..budget.min(MAX_PAGES) {
            let page = guest.lock(hw).cache.take(self.cx(hw));
            let Some(page) = page else { return true };
            chain.give(self.token_of(hw, page));
        }
        guest.lock(hw).cache.pages() == 0
    }

    /// Ends a guest whose table and cache are empty: nobody knows its VMID any more. Its root goes
    /// to the host, then its reserve.
    pub fn end_guest(&self, hw: &M, guest: Guest<M>, chain: &mut Chain) {
        let GuestS2 { table, mut cache, mut reserve, .. } = guest.into_inner();
        debug_assert!(cache.pages() == 0, "a guest ends with a full cache");
        while let Some(page) = cache.take(self.cx(hw)) {
            chain.give(self.token_of(hw, page));
        }
        let root = table.retire(hw);
        chain.give(OwnedPages::of_idle(self, hw, root));
        if let Some(page) = reserve.end() {
            chain.give(self.token_of(hw, page));
        }
    }

    fn token_of<'a>(&'a self, hw: &'a M, page: TablePage) -> OwnedPages<'a, M> {
        OwnedPages::of_idle(self, hw, PfnRange::one(page.into_page()))
    }
}

/// Entries that one call looks at.
pub(crate) const MAX_VISITED: u64 = 4096;
