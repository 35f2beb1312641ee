//! The half of a change that can fail: reading the range, counting the tables that are missing,
//! and splitting what is in the way.
//!
//! A split says the same as what it replaces, so it can be left behind. Tables are filled before
//! they can be reached, up to three under one entry, and hooked in with one store.
#![forbid(unsafe_code)]

use super::entry::{Entry, Regime, VALID};
use super::error::Error;
use super::level::Level;
use super::pool::TablePool;
use super::prepare::{Planned, Prepared};
use super::publish::{Live, PAGE_KIND, Unlinked};
use super::walk::{EntryVisitor, Slot, Step};
use crate::addr::Pfn;
use crate::hw::{ENTRIES, Machine};
use arrayvec::ArrayVec;

impl<'t, R: Regime> Planned<'t, R> {
    /// Takes the pages that are missing from the pool and splits what is in the way.
    ///
    /// # Errors
    /// [`Error::NoTables`].
    // Inlined: a call would copy the token, and its caller once more.
    #[inline(always)]
    pub fn reserve<M: Machine, P: TablePool>(self, hw: &M, pool: &mut P) -> Result<Prepared<'t, R>, Error> {
        let Self { mut change, needed, .. } = self;
        if needed > 0
            && let Some(Slot { table, level, .. }) = change.split(hw, pool, needed)?
        {
            (change.one, change.shallowest) = (Some(table), level);
        }
        Ok(change)
    }
}

impl<'t, R: Regime> Prepared<'t, R> {
    /// Does the part that can fail whatever the pool has. With `vacant`, something in the range is
    /// an error.
    #[inline(always)]
    pub(super) fn plan<M: Machine>(mut self, hw: &M, vacant: bool) -> Result<Planned<'t, R>, Error> {
        let (slot, word) = self.table.find(hw, self.span.start, Level::L3);
        if !self.is_whole(&slot) {
            let needed = self.survey(hw, vacant)?;
            return Ok(Planned { change: self, needed, replaced: None });
        }
        let entry = self.table.decode(&slot, word)?;
        check_vacant(&slot, entry, vacant)?;
        (self.one, self.shallowest) = (Some(slot.table), slot.level);
        Ok(Planned { change: self, needed: 0, replaced: Some(entry) })
    }

    /// Splits what is in the way, for which `needed` tables are missing; returns where the one tile
    /// is, if there is one.
    #[inline(never)]
    fn split<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        needed: u32,
    ) -> Result<Option<Slot>, Error> {
        let live = self.table.live(hw);
        let mut split = Split { prepared: self, hw, live, pool, needed };
        self.table.inspect(hw, self.span, &mut split)?;
        let (slot, _) = self.table.find(hw, self.span.start, Level::L3);
        Ok(self.is_whole(&slot).then_some(slot))
    }

    /// Checks the range and counts the tables that are missing.
    #[inline(never)]
    fn survey<M: Machine>(&self, hw: &M, vacant: bool) -> Result<u32, Error> {
        let mut survey = Survey { prepared: self, vacant, needed: 0 };
        self.table.inspect(hw, self.span, &mut survey)?;
        Ok(survey.needed)
    }

    /// True if the entry at `slot` must be split.
    #[inline]
    fn splits(&self, slot: &Slot, word: u64) -> bool {
        !self.fits(slot) && self.select.holds::<R>(word)
    }

    /// Tables that must come to be below the entry at `slot`, which is no tile.
    fn tables_below(&self, slot: &Slot) -> u32 {
        let start = self.span.start.max(slot.ia);
        let end = self.span.end.min(slot.end());
        let last = end.wrapping_sub(1);
        let mut tables = 0_u64;
        let mut level = slot.level;
        while let Some(deeper) = level.deeper() {
            // One for each entry of this level that the range touches, unless it becomes a tile.
            tables = tables.wrapping_add(if level < self.shallowest {
                (last >> level.shift()).wrapping_sub(start >> level.shift()).wrapping_add(1)
            } else {
                let (head, tail) = (!level.is_aligned(start), !level.is_aligned(end));
                let same = level.align_down(start) == level.align_down(last);
                if same { u64::from(head || tail) } else { u64::from(head).wrapping_add(u64::from(tail)) }
            });
            level = deeper;
        }
        u32::try_from(tables).unwrap_or(u32::MAX)
    }
}

fn check_vacant<R: Regime>(slot: &Slot, entry: Entry<R>, vacant: bool) -> Result<(), Error> {
    if vacant && entry != Entry::Absent { Err(Error::Exists { ia: slot.ia }) } else { Ok(()) }
}

/// Reads what the range contains and counts missing tables.
struct Survey<'p, 't, R: Regime> {
    prepared: &'p Prepared<'t, R>,
    vacant: bool,
    needed: u32,
}

impl<R: Regime> EntryVisitor<R> for Survey<'_, '_, R> {
    #[inline]
    fn leaf(&mut self, slot: &Slot, entry: Entry<R>, word: u64) -> Result<Step, Error> {
        check_vacant(slot, entry, self.vacant)?;
        if self.prepared.splits(slot, word) {
            self.needed = self.needed.saturating_add(self.prepared.tables_below(slot));
        }
        Ok(Step::Next)
    }

    #[inline]
    fn absent(&mut self, _first: &Slot, _nr: u64) -> Result<Step, Error> {
        Ok(Step::Next)
    }

    /// Pages are always tiles.
    #[inline]
    fn wants_pages(&self) -> bool {
        self.vacant
    }
}

/// Splits entries until every one in the range is a tile.
struct Split<'p, 't, 'h, R: Regime, M: Machine, P> {
    prepared: &'p Prepared<'t, R>,
    hw: &'h M,
    live: Live<'h, R, M>,
    pool: &'p mut P,
    needed: u32,
}

impl<R: Regime, M: Machine, P: TablePool> EntryVisitor<R> for Split<'_, '_, '_, R, M, P> {
    #[inline]
    fn leaf(&mut self, slot: &Slot, _entry: Entry<R>, word: u64) -> Result<Step, Error> {
        if !self.prepared.splits(slot, word) {
            return Ok(Step::Next);
        }
        self.split(slot, word).map(Step::Into)
    }

    /// Pages are always tiles.
    #[inline]
    fn wants_pages(&self) -> bool {
        false
    }
}

/// New tables under one entry, top first: levels 1 to 3 at most.
type Chain = ArrayVec<(Level, Pfn), 3>;

impl<R: Regime, M: Machine, P: TablePool> Split<'_, '_, '_, R, M, P> {
    /// Replaces the entry at `slot` by tables that say the same, down to where the first address
    /// of the range is a tile, and hooks them in with one store. Returns the topmost.
    fn split(&mut self, slot: &Slot, word: u64) -> Result<Pfn, Error> {
        let ia = self.prepared.span.start.max(slot.ia);
        let chain = self.alloc_chain(slot, ia)?;
        let mut below: Option<Unlinked> = None;
        for &(level, page) in chain.iter().rev() {
            let table = self.copy_of(slot, word, level, page, ia);
            if let Some(child) = below.take() {
                table.adopt(self.hw, level.index(ia), child);
                self.pool.add_entries(page, u16::from(word == 0));
            }
            below = Some(table);
        }
        // The chain has at least one level: level 3 entries are always tiles.
        let Some(top) = below else { return Err(Error::Block { ia: slot.ia, level: slot.level }) };
        let page = top.page();
        self.live.link(slot, top);
        self.pool.add_entries(slot.table, u16::from(word == 0));
        Ok(page)
    }

    fn alloc_chain(&mut self, slot: &Slot, ia: u64) -> Result<Chain, Error> {
        let mut chain = Chain::new();
        let mut next = slot.level.deeper();
        while let Some(level) = next {
            let Some(page) = self.pool.alloc() else {
                for (_, page) in chain {
                    self.pool.free(page);
                }
                return Err(Error::NoTables { needed: self.needed });
            };
            chain.push((level, page));
            let tile = Slot { table: page, index: level.index(ia), level, ia: level.align_down(ia) };
            next = if self.prepared.fits(&tile) { None } else { level.deeper() };
        }
        self.needed = self.needed.saturating_sub(u32::try_from(chain.len()).unwrap_or(0));
        Ok(chain)
    }

    /// Fills `page` as the table of `level` around `ia` that says what `word` at `slot` says.
    fn copy_of(&mut self, slot: &Slot, word: u64, level: Level, page: Pfn, ia: u64) -> Unlinked {
        if word == 0 {
            return Unlinked::empty(self.hw, page);
        }
        self.pool.add_entries(page, ENTRIES_U16);
        if word & VALID == 0 {
            // Notes that may stand above level 3 name no page.
            return Unlinked::fill(self.hw, page, |_| word);
        }
        let base = level.shallower().map_or(slot.ia, |above| above.align_down(ia));
        let kind = if matches!(level, Level::L3) { PAGE_KIND } else { 0 };
        let first = (word & !PAGE_KIND | kind).wrapping_add(base.wrapping_sub(slot.ia));
        Unlinked::fill(self.hw, page, |index| first.wrapping_add(index.wrapping_shl(level.shift())))
    }
}

const ENTRIES_U16: u16 = 512;
const _: () = assert!(ENTRIES == ENTRIES_U16 as usize);
