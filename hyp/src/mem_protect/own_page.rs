//! What EL2 writes into a page of a guest that asked for it.
//!
//! Invariant: the page is the guest's own, in its private half, for as long as it is shown: the guest's lock is held.
//! The guest may read and write it meanwhile; EL2 reads nothing back.
#![forbid(unsafe_code)]

use super::guest_s2::{GuestS2, View};
use crate::addr::IpaRange;
use crate::error::Error;
use crate::hw::Machine;
use crate::pgtable::{LeafState, Ripas, Window};
use abi::Errno;
use core::ops::ControlFlow;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnPage {
    /// It is written.
    Written,
    /// There is memory, and no page yet.
    Missing,
    /// The guest has no memory there.
    NoMemory,
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
        match self.parts(hw, at, |part| ControlFlow::Break(part.view))? {
            Some(View::Page { pfn, state: LeafState::Owned }) => {
                let shown = window.show(hw, pfn);
                let page = shown.page();
                hw.zero_page(page);
                for (n, word) in words.iter().enumerate() {
                    hw.put_word(page, n, *word);
                }
                if !hw.features().fwb {
                    hw.clean_to_poc(page);
                }
                Ok(OwnPage::Written)
            }
            Some(View::Ripas(Ripas::Ram)) => Ok(OwnPage::Missing),
            Some(View::Nothing | View::Ripas(Ripas::Destroyed)) => Ok(OwnPage::NoMemory),
            Some(View::Page { .. } | View::Guard) | None => Err(Errno::Eio.into()),
        }
    }
}
