//! Making tables disappear: folding what says one thing into one entry, and dropping what can be
//! made again.
//!
//! A table page is reused only after a TLBI without level hint: its descriptor may be cached even
//! when all its entries are invalid. Pages wait in a small batch until one invalidation covers
//! them all; only then does the pool see them.
#![forbid(unsafe_code)]

use super::entry::{Entry, Leaf, Regime, VALID, leaf_word};
use super::error::Error;
use super::level::Level;
use super::pool::TablePool;
use super::publish::{Invalidation, Live};
use super::table::Table;
use super::walk::{EntryVisitor, Pre, Slot, Span, Step};
use crate::addr::Pfn;
use crate::hw::{ENTRIES, Event, Machine};
use arrayvec::ArrayVec;

impl<R: Regime> Table<R> {
    /// Replaces every table under `range` that is empty, or whose 512 entries are one and the
    /// same note that may stand a level higher, by a single entry, bottom up. Tables that lie
    /// partly in `range` are looked at too. Returns how many pages went to the pool.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Corrupt`]. Tables of level 3 that stay are not read.
    pub fn fold<M: Machine, P: TablePool>(
        &mut self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
    ) -> Result<u32, Error> {
        let span = self.span(range)?;
        let mut fold = Fold { format: &self.format, hw, freed: Freed::new(self.live(hw), hw, pool) };
        let result = self.inspect(hw, span, &mut fold);
        let freed = fold.freed.finish();
        result.map(|()| freed)
    }

    /// Replaces the table under the entry of `level` at `addr` by a block, if its 512 entries map
    /// consecutive memory with equal attributes and the block's alignment. Returns whether.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Corrupt`].
    pub fn fold_block<M: Machine, P: TablePool>(
        &mut self,
        hw: &M,
        pool: &mut P,
        addr: R::Addr,
        level: Level,
    ) -> Result<bool, Error> {
        let ia = self.check_addr(addr)?;
        let (slot, word) = self.find(hw, ia, level);
        let Entry::Table(child) = self.decode(&slot, word)? else { return Ok(false) };
        // A walk that starts below `level` ends below it too.
        if slot.level != level || !level.maps() {
            return Ok(false);
        }
        let Some(block) = self.block_for(hw, &slot, child)? else { return Ok(false) };
        let live = self.live(hw);
        live.replace(&slot, block);
        hw.observe(Event::TableFreed { page: child });
        pool.remove_entries(child, pool.entries(child));
        pool.free(child);
        Ok(true)
    }

    /// Frees up to `want` tables that lie in `range` and hold nothing but leaves for which
    /// `disposable` says that they can be mapped again on demand. Returns how many.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Corrupt`]; what was freed before the error stays freed.
    pub fn evict<M: Machine, P: TablePool>(
        &mut self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
        want: u32,
        disposable: impl FnMut(R::Addr, Leaf<R>) -> bool,
    ) -> Result<u32, Error> {
        let span = self.span(range)?;
        let freed = Freed::new(self.live(hw), hw, pool);
        let mut evict = Evict { span, want, disposable, keep: [false; 4], freed };
        let result = self.inspect(hw, span, &mut evict);
        let freed = evict.freed.finish();
        result.map(|()| freed)
    }

    /// The block that says what the 512 leaves of `child` say.
    fn block_for<M: Machine>(&self, hw: &M, slot: &Slot, child: Pfn) -> Result<Option<u64>, Error> {
        let Some(deeper) = slot.level.deeper() else { return Ok(None) };
        let mut first = None;
        for index in 0..ENTRIES {
            let offset = (index as u64).wrapping_shl(deeper.shift());
            let at = Slot { table: child, index, level: deeper, ia: slot.ia.wrapping_add(offset) };
            let word = hw.read_entry(child, index);
            let Entry::Leaf(leaf) = self.decode(&at, word)? else { return Ok(None) };
            let (start, attrs) = *first.get_or_insert((leaf.output, leaf.attrs));
            let expected = start.base().raw().wrapping_add(offset);
            if leaf.attrs != attrs || leaf.output.base().raw() != expected {
                return Ok(None);
            }
        }
        let Some((start, attrs)) = first else { return Ok(None) };
        if !slot.level.is_aligned(start.base().raw()) {
            return Ok(None);
        }
        Ok(Some(leaf_word(R::encode_attrs(&self.format, attrs)?, start, slot.level)))
    }
}

/// Most tables that wait for one invalidation.
const BATCH: usize = 16;

/// Unhooked tables on their way to the pool.
struct Freed<'p, 'h, R: Regime, M: Machine, P: TablePool> {
    live: Live<'h, R, M>,
    hw: &'h M,
    pool: &'p mut P,
    inv: Invalidation,
    waiting: ArrayVec<Pfn, BATCH>,
    freed: u32,
}

impl<'p, 'h, R: Regime, M: Machine, P: TablePool> Freed<'p, 'h, R, M, P> {
    fn new(live: Live<'h, R, M>, hw: &'h M, pool: &'p mut P) -> Self {
        Self { live, hw, pool, inv: Invalidation::new(), waiting: ArrayVec::new(), freed: 0 }
    }

    /// Replaces the table `child` at `slot` by the invalid `word`.
    fn unlink(&mut self, slot: &Slot, child: Pfn, word: u64, empty: bool) {
        self.live.unlink(slot, word, empty, &mut self.inv);
        self.pool.remove_entries(slot.table, u16::from(word == 0));
        self.waiting.push(child);
        self.freed = self.freed.saturating_add(1);
        if self.waiting.is_full() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.live.invalidate(&self.inv);
        self.inv = Invalidation::new();
        for page in self.waiting.drain(..) {
            self.hw.observe(Event::TableFreed { page });
            let left = self.pool.entries(page);
            self.pool.remove_entries(page, left);
            self.pool.free(page);
        }
    }

    fn finish(mut self) -> u32 {
        self.flush();
        self.freed
    }
}

struct Fold<'t, 'p, 'h, R: Regime, M: Machine, P: TablePool> {
    format: &'t R::Format,
    hw: &'h M,
    freed: Freed<'p, 'h, R, M, P>,
}

impl<R: Regime, M: Machine, P: TablePool> Fold<'_, '_, '_, R, M, P> {
    /// The one word that says what all 512 entries of `child` say, if it may stand at `slot`.
    fn summary(&self, slot: &Slot, child: Pfn) -> Option<u64> {
        match self.freed.pool.entries(child) {
            0 => return Some(0),
            FULL => {}
            _ => return None,
        }
        let first = self.hw.read_entry(child, 0);
        if first & VALID != 0 || (1..ENTRIES).any(|i| self.hw.read_entry(child, i) != first) {
            return None;
        }
        // The decoder knows where a note may stand: ask it about the place above.
        R::decode(self.format, slot.level, first).ok().map(|_| first)
    }
}

/// Entries of a full table.
const FULL: u16 = 512;

impl<R: Regime, M: Machine, P: TablePool> EntryVisitor<R> for Fold<'_, '_, '_, R, M, P> {
    fn pre(&mut self, slot: &Slot, child: Pfn) -> Result<Pre, Error> {
        // A table of level 3 has none below it: its count says what there is to know.
        if slot.level == Level::L2 {
            self.post(slot, child)?;
            return Ok(Pre::Skip);
        }
        Ok(Pre::Down)
    }

    #[inline]
    fn leaf(&mut self, _slot: &Slot, _entry: Entry<R>, _word: u64) -> Result<Step, Error> {
        Ok(Step::Next)
    }

    fn post(&mut self, slot: &Slot, child: Pfn) -> Result<(), Error> {
        if let Some(word) = self.summary(slot, child) {
            self.freed.unlink(slot, child, word, true);
        }
        Ok(())
    }
}

struct Evict<'p, 'h, R: Regime, M: Machine, P: TablePool, F> {
    span: Span,
    want: u32,
    disposable: F,
    /// For each level: something that must stay was seen in the table that the path passes there.
    keep: [bool; 4],
    freed: Freed<'p, 'h, R, M, P>,
}

impl<R, M, P, F> Evict<'_, '_, R, M, P, F>
where
    R: Regime,
    M: Machine,
    P: TablePool,
{
    fn keep(&mut self, level: Level) -> &mut bool {
        let [l0, l1, l2, l3] = &mut self.keep;
        match level {
            Level::L0 => l0,
            Level::L1 => l1,
            Level::L2 => l2,
            Level::L3 => l3,
        }
    }
}

impl<R, M, P, F> EntryVisitor<R> for Evict<'_, '_, R, M, P, F>
where
    R: Regime,
    M: Machine,
    P: TablePool,
    F: FnMut(R::Addr, Leaf<R>) -> bool,
{
    fn pre(&mut self, slot: &Slot, _child: Pfn) -> Result<Pre, Error> {
        if self.freed.freed < self.want {
            return Ok(Pre::Down);
        }
        *self.keep(slot.level) = true;
        Ok(Pre::Skip)
    }

    #[inline]
    fn leaf(&mut self, slot: &Slot, entry: Entry<R>, _word: u64) -> Result<Step, Error> {
        let stays = match entry {
            Entry::Absent => false,
            Entry::Leaf(leaf) => !(self.disposable)(R::addr(slot.ia), leaf),
            Entry::Note(_) | Entry::Table(_) => true,
        };
        if stays {
            *self.keep(slot.level) = true;
        }
        Ok(Step::Next)
    }

    fn post(&mut self, slot: &Slot, child: Pfn) -> Result<(), Error> {
        let below = slot.level.deeper().unwrap_or(slot.level);
        let stays = core::mem::replace(self.keep(below), false);
        if stays || !self.span.contains(slot) {
            *self.keep(slot.level) = true;
        } else {
            self.freed.unlink(slot, child, 0, false);
        }
        Ok(())
    }
}
