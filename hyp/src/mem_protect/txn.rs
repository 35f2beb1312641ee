//! Many pages from the host for one call, each named by the host one at a time, in no array of
//! anybody's: the list runs through the records of pages that are EL2's already.
//!
//! Invariant: a page is on the list exactly if its donation succeeded, and nothing that the host
//! can write is consulted on the way back. Each is given back exactly once, newest first, when the
//! transaction ends, however it ends.
//!
//! A transaction cannot be forgotten by leaving it unused, and cannot end twice:
//! ```compile_fail
//! # #![deny(unused_must_use)]
//! # use hyp::{hw::Machine, mem_protect::Hypervisor};
//! fn f<M: Machine>(hyp: &Hypervisor<M>, hw: &M) {
//!     hyp.donations(hw);
//! }
//! ```
//! ```compile_fail,E0382
//! # use hyp::{hw::Machine, mem_protect::DonationTxn};
//! fn f<M: Machine>(txn: DonationTxn<'_, M>) {
//!     txn.finish();
//!     txn.finish();
//! }
//! ```
//! ```
//! # #![deny(unused_must_use)]
//! # use hyp::{addr::Pfn, hw::Machine, mem_protect::Hypervisor};
//! fn f<M: Machine>(hyp: &Hypervisor<M>, hw: &M, page: Pfn) -> Result<(), hyp::Error> {
//!     let mut txn = hyp.donations(hw);
//!     txn.acquire(page)?;
//!     txn.finish();
//!     Ok(())
//! }
//! ```
#![forbid(unsafe_code)]

use super::Hypervisor;
use super::token::OwnedPages;
use crate::addr::{Pfn, PfnRange};
use crate::error::Error;
use crate::hw::{Machine, MappedPage};
use crate::mm::PageList;
use abi::host::MAX_PAGES;

/// Donated pages of one call. Dropping gives all of them back, scrubbed.
///
/// Made and dropped with no lock held that comes after host_s2.
#[derive(Debug)]
#[must_use = "dropping gives the pages back to the host"]
pub struct DonationTxn<'a, M: Machine> {
    hyp: &'a Hypervisor<M>,
    hw: &'a M,
    list: PageList,
}

impl<M: Machine> Hypervisor<M> {
    /// An empty transaction.
    pub const fn donations<'a>(&'a self, hw: &'a M) -> DonationTxn<'a, M> {
        DonationTxn { hyp: self, hw, list: PageList::new() }
    }
}

impl<'a, M: Machine> DonationTxn<'a, M> {
    /// Pages so far.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.list.len()
    }

    /// Takes `page` from the host. Its contents are the host's until somebody scrubs it, and may
    /// still be in a cache in another version: [`OwnedPages::read_once`].
    ///
    /// # Errors
    /// As [`Hypervisor::host_donate_token`]; a page that is on the list already is EPERM.
    pub fn acquire(&mut self, page: Pfn) -> Result<(), Error> {
        let token = self.hyp.host_donate_token(self.hw, PfnRange::one(page))?;
        self.list.push_front(self.hyp.vmemmap(), token.into_list());
        Ok(())
    }

    /// The newest page.
    #[must_use]
    pub fn newest(&self) -> Option<Pfn> {
        self.list.first()
    }

    /// The pages, the newest first. None of them may be taken into use while the list lives.
    pub fn pages(&self) -> impl Iterator<Item = Pfn> + use<'a, M> {
        self.list.iter(&self.hyp.vmemmap)
    }

    /// The first words of the newest page, as the host left them in memory: each is read once, when
    /// no alias that the host may have had can change it any more. `None` if there is no page. What is
    /// behind them may still be in a cache in another version: the page is scrubbed next.
    #[must_use]
    pub fn read_newest<const N: usize>(&self) -> Option<[u64; N]> {
        let page = self.newest()?;
        self.hw.clean_invalidate_words_to_poc(MappedPage::linear(page), N);
        Some(core::array::from_fn(|word| self.hw.read_entry(page, word)))
    }

    /// Ends the transaction as a drop does, but leaves in the pages what is in them: the caller
    /// has scrubbed all that is no documented output.
    pub fn finish(mut self) {
        while let Some(run) = self.pop_run() {
            self.hyp.give_back_as_is(self.hw, run);
        }
    }

    /// The newest pages that follow each other in memory, up or down, off the list: at most as
    /// many as a call works on.
    fn pop_run(&mut self) -> Option<PfnRange> {
        let mut run = PfnRange::one(self.list.pop(self.hyp.vmemmap())?);
        while run.nr() < MAX_PAGES
            && let Some(next) = self.list.first()
            && (next.raw() == run.end() || next.raw().checked_add(1) == Some(run.start().raw()))
            && let Ok(longer) = PfnRange::new(next.min(run.start()).raw(), run.nr().saturating_add(1))
        {
            self.list.pop(self.hyp.vmemmap());
            run = longer;
        }
        Some(run)
    }
}

impl<M: Machine> Drop for DonationTxn<'_, M> {
    fn drop(&mut self) {
        while let Some(run) = self.pop_run() {
            self.hyp.give_back(self.hw, run);
        }
    }
}

impl<M: Machine> OwnedPages<'_, M> {
    /// A word of the first page, as the host left it in memory: read once, when no alias that the
    /// host may have had can change it any more.
    #[must_use]
    pub fn read_once(&self, word: usize) -> u64 {
        read_once(self.hw(), self.pages().start(), word)
    }
}

/// A word of a page that is EL2's. A clean line over differing memory, left by a non-cacheable
/// alias of the host, is dropped first: it could be evicted between two reads.
pub(super) fn read_once<M: Machine>(hw: &M, page: Pfn, word: usize) -> u64 {
    hw.clean_invalidate_to_poc(MappedPage::linear(page));
    hw.read_entry(page, word)
}
