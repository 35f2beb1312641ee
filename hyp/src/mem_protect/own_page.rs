//! What EL2 reads and writes in a page of a guest that asked for it.
//!
//! Invariant: the page is the guest's own, in its private half, for as long as it is shown: the guest's lock is held.
//! The guest may read and write it meanwhile, so a word is read once. Without forced write-back it may get round the
//! cache: the page is cleaned and invalidated before EL2 looks, and cleaned after EL2 wrote.
#![forbid(unsafe_code)]

use super::guest_s2::{GuestS2, View};
use crate::addr::{IpaRange, PAGE_SIZE};
use crate::error::Error;
use crate::hw::{Machine, MappedPage};
use crate::pgtable::{LeafState, Ripas, Window};
use abi::Errno;
use core::ops::{ControlFlow, Range};

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnPage {
    /// It is done.
    Done,
    /// There is memory, and no page yet.
    Missing,
    /// The guest has no memory there.
    NoMemory,
}

/// Words of a structure in one page of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnWords {
    page: IpaRange,
    first: u64,
    nr: u64,
}

impl OwnWords {
    /// The `bytes` bytes at `at`, in an address space of `ia_bits` bits. `bytes` is a power of two, 8 to 4096. `None` if
    /// `at` is no multiple of it, or too large.
    #[must_use]
    pub fn new(at: u64, bytes: u64, ia_bits: u32) -> Option<Self> {
        let base = at & !PAGE_SIZE.saturating_sub(1);
        let page = IpaRange::new(base, base.checked_add(PAGE_SIZE)?, ia_bits).ok()?;
        let aligned = at & bytes.saturating_sub(1) == 0;
        aligned.then_some(Self { page, first: (at & PAGE_SIZE.saturating_sub(1)) >> 3, nr: bytes >> 3 })
    }

    /// The page that they are in.
    #[must_use]
    pub const fn page(&self) -> IpaRange {
        self.page
    }

    /// Their numbers in it.
    #[must_use]
    pub fn indices(&self) -> Range<usize> {
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        index(self.first)..index(self.first.saturating_add(self.nr))
    }
}

impl GuestS2 {
    /// Fills the guest's own page at `at`, one frame of the private half of a VM with split IPA: `words` first, zeros
    /// behind.
    ///
    /// # Errors
    /// EIO for an entry that such a table does not have.
    pub fn fill_own_page<M: Machine>(
        &self,
        hw: &M,
        window: &mut Window,
        at: IpaRange,
        words: &[u64],
    ) -> Result<OwnPage, Error> {
        self.show_own_page(hw, window, at, |page| {
            hw.zero_page(page);
            for (n, word) in words.iter().enumerate() {
                hw.put_word(page, n, *word);
            }
            if !hw.features().fwb {
                hw.clean_to_poc(page);
            }
        })
    }

    /// Reads `words` of the guest's own memory, in the private half of a VM with split IPA, each once: `each` is told of
    /// them in order.
    ///
    /// # Errors
    /// EIO for an entry that such a table does not have.
    pub fn read_own_words<M: Machine>(
        &self,
        hw: &M,
        window: &mut Window,
        words: OwnWords,
        mut each: impl FnMut(usize, u64),
    ) -> Result<OwnPage, Error> {
        self.show_own_page(hw, window, words.page, |page| {
            refresh(hw, page);
            for (n, index) in words.indices().enumerate() {
                each(n, hw.get_word(page, index));
            }
        })
    }

    /// Writes those of `words` for which `value` has one.
    ///
    /// # Errors
    /// As [`GuestS2::read_own_words`].
    pub fn write_own_words<M: Machine>(
        &self,
        hw: &M,
        window: &mut Window,
        words: OwnWords,
        value: impl Fn(usize) -> Option<u64>,
    ) -> Result<OwnPage, Error> {
        self.show_own_page(hw, window, words.page, |page| {
            // What the guest has beside them, in the same lines, stays.
            refresh(hw, page);
            for (n, index) in words.indices().enumerate() {
                if let Some(value) = value(n) {
                    hw.put_word(page, index, value);
                }
            }
            if !hw.features().fwb {
                hw.clean_to_poc(page);
            }
        })
    }

    /// Does `f` to the guest's own page at `at`, shown in the window.
    fn show_own_page<M: Machine>(
        &self,
        hw: &M,
        window: &mut Window,
        at: IpaRange,
        f: impl FnOnce(MappedPage),
    ) -> Result<OwnPage, Error> {
        match self.parts(hw, at, |part| ControlFlow::Break(part.view))? {
            Some(View::Page { pfn, state: LeafState::Owned, .. }) => {
                let shown = window.show(hw, pfn);
                f(shown.page());
                Ok(OwnPage::Done)
            }
            Some(View::Ripas(Ripas::Ram)) => Ok(OwnPage::Missing),
            Some(View::Nothing | View::Ripas(Ripas::Destroyed)) => Ok(OwnPage::NoMemory),
            Some(View::Page { .. } | View::Guard) | None => Err(Errno::Eio.into()),
        }
    }
}

/// What EL2 reads of a guest's page is what the guest put there.
fn refresh<M: Machine>(hw: &M, page: MappedPage) {
    if !hw.features().fwb {
        hw.clean_invalidate_to_poc(page);
    }
}
