//! Window slots: pages and one block of EL2's own map that one CPU shows and hides without a lock.
//!
//! A guest's page is in no linear map. While it is scrubbed, copied or measured, the CPU that does
//! so shows it in its own slot: an entry of level 3, or of level 2 for a block, that was made ready
//! at boot, so that showing it allocates nothing, cannot fail and takes no lock (the work is done
//! under locks that come later in the order than EL2's stage 1).
//!
//! Invariant: a slot belongs to one CPU, and says [`HypNote::Window`] unless a [`Shown`] page or
//! [`ShownBlock`] borrows it. Hiding is broadcast all the same: other CPUs may have walked the slot speculatively.
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
use crate::hw::{Event, Machine, MappedBlock, MappedPage};
use core::ops::ControlFlow;

/// Pages of one window, at consecutive addresses: a copy needs two.
pub const SLOTS: u64 = 2;

static_assertions::const_assert_eq!(Level::L2.pages(), MappedBlock::PAGES);

/// Where a CPU has its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowAt {
    /// The first of [`SLOTS`] pages.
    pub pages: HypVa,
    /// The block: 2 MiB, rounded down to that.
    pub block: HypVa,
}

/// One CPU's window on any page, on two while one is copied, or on a block.
#[derive(Debug)]
pub struct Window {
    slot: Slot,
    second: Slot,
    block: Slot,
    normal: u64,
    tagged: Option<u64>,
}

impl Table<HypStage1> {
    /// Makes window slots at the addresses `at`, which must be absent: the tables of their entries exist from then
    /// on, and nothing but the window writes those.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Exists`], [`Error::Corrupt`], [`Error::NoTables`].
    pub fn window<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        at: WindowAt,
    ) -> Result<Window, Error> {
        let normal = HypStage1::encode_attrs(&self.format, HypAttrs::normal(HypProt::Rw))?;
        let tagged = HypAttrs { prot: HypProt::Rw, mem: HypMem::NormalTagged };
        let tagged = HypStage1::encode_attrs(&self.format, tagged).ok();
        let page = Level::L3.align_down(at.pages.raw());
        let second = page.saturating_add(PAGE_SIZE);
        let block = Level::L2.align_down(at.block.raw());
        self.reserve_window(hw, pool, page, PAGE_SIZE.saturating_mul(SLOTS))?;
        self.reserve_window(hw, pool, block, Level::L2.size())?;
        let slot = |ia, level| {
            let (slot, _) = self.find(hw, ia, level);
            hw.observe(Event::Window { table: slot.table, index: slot.index });
            slot
        };
        let [slot, second, block] =
            [(page, Level::L3), (second, Level::L3), (block, Level::L2)].map(|(ia, level)| slot(ia, level));
        Ok(Window { slot, second, block, normal, tagged })
    }

    fn reserve_window<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        start: u64,
        bytes: u64,
    ) -> Result<(), Error> {
        let range = VaRange::new(start, start.saturating_add(bytes)).map_err(Error::Range)?;
        let there = self.visit(hw, range, |slot, entry| match entry {
            Entry::Absent => ControlFlow::Continue(()),
            _ => ControlFlow::Break(slot.ia),
        })?;
        if let Some(ia) = there {
            return Err(Error::Exists { ia });
        }
        self.annotate(hw, pool, range, HypNote::Window)
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

    /// Shows the 2 MiB block that begins with `first`, read-write and not Tagged, until the result is hidden.
    pub fn show_block<'w, M: Machine>(&'w mut self, hw: &'w M, first: Pfn) -> ShownBlock<'w, M> {
        make(hw, &self.block, leaf_word(self.normal, first, Level::L2));
        let first = MappedPage::at(first, HypVa::truncated(self.block.ia));
        ShownBlock { slot: &self.block, hw, block: MappedBlock::at(first) }
    }

    fn show_at<'w, M: Machine>(&self, hw: &'w M, slot: &'w Slot, page: Pfn, attrs: u64) -> Shown<'w, M> {
        make(hw, slot, leaf_word(attrs, page, Level::L3));
        Shown { slot, hw, page: MappedPage::at(page, HypVa::truncated(slot.ia)) }
    }
}

fn make<M: Machine>(hw: &M, slot: &Slot, word: u64) {
    let live = Live::<HypStage1, M>::new(hw, ());
    live.make(slot, word);
    live.complete();
}

fn hide<M: Machine>(hw: &M, slot: &Slot, level: Level) {
    let slot = Slot { level, ..*slot };
    Live::<HypStage1, M>::new(hw, ()).take_away(&slot, HypStage1::encode_note(HypNote::Window));
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
        hide(self.hw, self.slot, Level::L3);
    }
}

/// A block in a window; dropping it hides the block from every CPU.
#[derive(Debug)]
pub struct ShownBlock<'w, M: Machine> {
    slot: &'w Slot,
    hw: &'w M,
    block: MappedBlock,
}

impl<M: Machine> ShownBlock<'_, M> {
    /// The block and where EL2 sees it.
    #[must_use]
    pub fn block(&self) -> MappedBlock {
        self.block
    }
}

impl<M: Machine> Drop for ShownBlock<'_, M> {
    fn drop(&mut self) {
        hide(self.hw, self.slot, Level::L2);
    }
}
