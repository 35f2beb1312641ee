//! Window slots: single pages of EL2's own map that one CPU shows and hides without a lock.
//!
//! A guest's page is in no linear map. While it is scrubbed, copied or measured, the CPU that does
//! so shows it in its own slot: an entry of level 3 that was made ready at boot, so that showing
//! a page allocates nothing, cannot fail and takes no lock (the work is done under locks that come
//! later in the order than EL2's stage 1).
//!
//! Invariant: a slot belongs to one CPU, and says [`HypNote::Window`] unless a [`Shown`] page
//! borrows it. Hiding is broadcast all the same: other CPUs may have walked the slot speculatively.
#![forbid(unsafe_code)]

use super::entry::{Entry, Regime, leaf_word};
use super::error::Error;
use super::level::Level;
use super::pool::TablePool;
use super::publish::Live;
use super::stage1::{HypAttrs, HypMem, HypNote, HypProt, HypStage1};
use super::table::Table;
use super::walk::Slot;
use crate::addr::{HypVa, PAGE_SIZE, Pfn, VaRange};
use crate::hw::{Event, Machine, MappedPage};
use core::ops::ControlFlow;

/// Slots of one window, at consecutive addresses: a copy needs two.
pub const SLOTS: u64 = 2;

/// One CPU's window on any page, or on two while one is copied.
#[derive(Debug)]
pub struct Window {
    slot: Slot,
    second: Slot,
    normal: u64,
    tagged: Option<u64>,
}

impl Table<HypStage1> {
    /// Makes window slots of [`SLOTS`] pages from `va` on, which must be absent: tables down to level 3 exist
    /// from then on, and nothing but the window writes their entries.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Exists`], [`Error::Corrupt`], [`Error::NoTables`].
    pub fn window<M: Machine, P: TablePool>(&self, hw: &M, pool: &mut P, va: HypVa) -> Result<Window, Error> {
        let normal = HypStage1::encode_attrs(&self.format, HypAttrs::normal(HypProt::Rw))?;
        let tagged = HypAttrs { prot: HypProt::Rw, mem: HypMem::NormalTagged };
        let tagged = HypStage1::encode_attrs(&self.format, tagged).ok();
        let page = Level::L3.align_down(va.raw());
        let end = page.saturating_add(PAGE_SIZE.saturating_mul(SLOTS));
        let range = VaRange::new(page, end).map_err(Error::Range)?;
        let there = self.visit(hw, range, |slot, entry| match entry {
            Entry::Absent => ControlFlow::Continue(()),
            _ => ControlFlow::Break(slot.ia),
        })?;
        if let Some(ia) = there {
            return Err(Error::Exists { ia });
        }
        self.annotate(hw, pool, range, HypNote::Window)?;
        let slot = |ia| {
            let (slot, _) = self.find(hw, ia, Level::L3);
            hw.observe(Event::Window { table: slot.table, index: slot.index });
            slot
        };
        let (slot, second) = (slot(page), slot(page.saturating_add(PAGE_SIZE)));
        Ok(Window { slot, second, normal, tagged })
    }
}

impl Window {
    /// Shows `page`, read-write and not Tagged, until the result is hidden.
    pub fn show<'w, M: Machine>(&'w mut self, hw: &'w M, page: Pfn) -> Shown<'w, M> {
        self.show_at(hw, &self.slot, page, self.normal)
    }

    /// Shows two pages, as [`Window::show`] does one.
    pub fn show_two<'w, M: Machine>(&'w mut self, hw: &'w M, pages: [Pfn; 2]) -> [Shown<'w, M>; 2] {
        let [first, second] = pages;
        [
            self.show_at(hw, &self.slot, first, self.normal),
            self.show_at(hw, &self.second, second, self.normal),
        ]
    }

    /// Shows `page` Tagged, to zero its tags; `None` on CPUs without tags.
    pub fn show_tagged<'w, M: Machine>(&'w mut self, hw: &'w M, page: Pfn) -> Option<Shown<'w, M>> {
        let word = self.tagged?;
        Some(self.show_at(hw, &self.slot, page, word))
    }

    fn show_at<'w, M: Machine>(&self, hw: &'w M, slot: &'w Slot, page: Pfn, attrs: u64) -> Shown<'w, M> {
        let live = Live::<HypStage1, M>::new(hw, ());
        live.make(slot, leaf_word(attrs, page, Level::L3));
        live.complete();
        Shown { slot, hw, page: MappedPage::at(page, HypVa::truncated(slot.ia)) }
    }
}

/// A page in a window; dropping it hides the page from every CPU.
#[derive(Debug)]
pub struct Shown<'w, M: Machine> {
    slot: &'w Slot,
    hw: &'w M,
    page: MappedPage,
}

impl<M: Machine> Shown<'_, M> {
    /// The page and where EL2 sees it.
    #[must_use]
    pub fn page(&self) -> MappedPage {
        self.page
    }
}

impl<M: Machine> Drop for Shown<'_, M> {
    fn drop(&mut self) {
        let live = Live::<HypStage1, M>::new(self.hw, ());
        let slot = Slot { level: Level::L3, ..*self.slot };
        live.take_away(&slot, HypStage1::encode_note(HypNote::Window));
    }
}
