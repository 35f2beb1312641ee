//! The half of a change that cannot fail: one word for each tile, one invalidation for all.
#![forbid(unsafe_code)]

use super::entry::{Regime, VALID, is_table};
use super::pool::TablePool;
use super::prepare::Prepared;
use super::publish::{Invalidation, Live};
use super::walk::{Slot, Step, Visitor};
use crate::addr::Pfn;
use crate::hw::{Machine, PhysMem};
use core::convert::Infallible;

impl<R: Regime> Prepared<'_, R> {
    /// Takes everything valid in the range away, for work that must be done before the new
    /// contents appear. Until [`Prepared::commit`] the entries say LOCKED (are absent in EL2's
    /// own table); a token that is dropped now leaves them so, and every later look at them is
    /// refused as corrupt.
    pub fn lock<M: Machine, P: TablePool>(&mut self, hw: &M, pool: &mut P) {
        self.write(hw, pool, Phase::Lock);
    }

    /// Writes the new contents. When it returns, no CPU can use the old ones.
    pub fn commit<M: Machine, P: TablePool>(self, hw: &M, pool: &mut P) {
        if self.write(hw, pool, Phase::Change) {
            self.write(hw, pool, Phase::Change);
        }
    }

    fn write<M: Machine, P: TablePool>(&self, hw: &M, pool: &mut P, phase: Phase) -> bool {
        let live = self.table.live(hw);
        let one = self.one_slot().map(|slot| (slot, live.read(&slot)));
        let written = match one {
            Some((slot, word)) if !is_table(slot.level, word) => {
                let mut written = Written::in_table(slot.table);
                if self.select.holds::<R>(word) {
                    written.put(&live, phase, &slot, word, self.word(&slot));
                }
                written
            }
            // Another token may have split the one tile since.
            _ => self.write_all(hw, &live, pool, phase),
        };
        written.book(pool);
        live.invalidate(&written.inv);
        if written.made {
            live.complete();
        }
        written.unfinished
    }

    #[inline(never)]
    fn write_all<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        live: &Live<'_, R, M>,
        pool: &mut P,
        phase: Phase,
    ) -> Written {
        let written = Written::in_table(self.table.root);
        let mut commit = Commit { prepared: self, live, pool, phase, written };
        let Ok(()) = self.table.walk(hw, self.span, &mut commit);
        commit.written
    }
}

/// Parts of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Valid entries become LOCKED.
    Lock,
    /// Everything gets its new word, but valid to valid becomes LOCKED; once more, and what was
    /// left LOCKED gets its new word too.
    Change,
}

/// What the tiles that were written ask for.
#[derive(Clone, Copy, Debug)]
struct Written {
    inv: Invalidation,
    made: bool,
    unfinished: bool,
    /// Table whose entries `delta` counts.
    counted: Pfn,
    delta: i16,
}

impl Written {
    /// Nothing yet; entries of `table` are counted first.
    const fn in_table(table: Pfn) -> Self {
        Self { inv: Invalidation::new(), made: false, unfinished: false, counted: table, delta: 0 }
    }

    /// Tells the pool what was counted.
    #[inline]
    fn book<P: TablePool>(&self, pool: &mut P) {
        match self.delta {
            0 => {}
            1.. => pool.add_entries(self.counted, self.delta.unsigned_abs()),
            _ => pool.remove_entries(self.counted, self.delta.unsigned_abs()),
        }
    }

    /// Gives the tile at `slot`, which says `word`, the word `fill`. `counted` is its table.
    #[inline(always)]
    fn put<R: Regime, M: Machine>(
        &mut self,
        live: &Live<'_, R, M>,
        phase: Phase,
        slot: &Slot,
        word: u64,
        fill: u64,
    ) {
        let lock = phase == Phase::Lock;
        if word == fill && !lock {
            return;
        }
        let mut new = fill;
        if word & VALID == 0 {
            if lock {
                return;
            }
            live.make(slot, new);
            self.made = true;
        } else {
            if lock || fill & VALID != 0 {
                self.unfinished = true;
                new = R::BROKEN;
            }
            live.unmake(slot, new, &mut self.inv);
        }
        if (word == 0) != (new == 0) {
            self.delta = self.delta.wrapping_add(if word == 0 { 1 } else { -1 });
        }
    }
}

/// Writes the tiles.
struct Commit<'a, 't, 'h, R: Regime, M: Machine, P> {
    prepared: &'a Prepared<'t, R>,
    live: &'a Live<'h, R, M>,
    pool: &'a mut P,
    phase: Phase,
    written: Written,
}

impl<R: Regime, M: Machine, P: TablePool> Commit<'_, '_, '_, R, M, P> {
    /// Counts entries of `table` from now on.
    #[inline]
    fn count_in(&mut self, table: Pfn) {
        if self.written.counted != table {
            self.written.book(self.pool);
            (self.written.counted, self.written.delta) = (table, 0);
        }
    }
}

impl<R: Regime, M: Machine, P: TablePool> Visitor for Commit<'_, '_, '_, R, M, P> {
    type Error = Infallible;

    #[inline]
    fn leaf(&mut self, slot: &Slot, word: u64) -> Result<Step, Infallible> {
        if self.prepared.select.holds::<R>(word) {
            // It is a tile: tables can only have been added since `prepare`.
            debug_assert!(self.prepared.fits(slot), "{slot:?} is no tile");
            self.count_in(slot.table);
            self.written.put(self.live, self.phase, slot, word, self.prepared.word(slot));
        }
        Ok(Step::Next)
    }

    #[inline]
    fn pages<H: PhysMem>(&mut self, hw: &H, first: Slot, nr: u64) -> Result<Step, Infallible> {
        let (select, step, phase) = (self.prepared.select, self.prepared.step(), self.phase);
        let (mut slot, mut fill) = (first, self.prepared.word(&first));
        self.count_in(first.table);
        // A copy: nobody else can see it, so it need not be in memory between the stores.
        let mut written = self.written;
        for _ in 0..nr {
            let word = hw.read_entry(slot.table, slot.index);
            if select.holds::<R>(word) {
                written.put(self.live, phase, &slot, word, fill);
            }
            fill = fill.wrapping_add(step);
            slot.advance();
        }
        self.written = written;
        Ok(Step::Next)
    }
}
