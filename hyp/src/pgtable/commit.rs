//! The half of a change that cannot fail: one word for each tile, one invalidation for all.
#![forbid(unsafe_code)]

use super::entry::{Regime, VALID, is_table};
use super::pool::TablePool;
use super::prepare::Prepared;
use super::publish::{Invalidation, Live};
use super::walk::{Slot, Step, Visitor};
use crate::addr::Pfn;
use crate::hw::Machine;
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
        let mut commit = Commit {
            prepared: self,
            live: self.table.live(hw),
            pool,
            phase,
            inv: Invalidation::new(),
            made: false,
            unfinished: false,
            counted: self.table.root,
            delta: 0,
        };
        match self.slot.map(|slot| (slot, commit.live.read(&slot))) {
            Some((slot, word)) if !is_table(slot.level, word) => {
                let Ok(_) = commit.leaf(&slot, word);
            }
            // Another token may have split the one tile since.
            _ => {
                let Ok(()) = self.table.walk(hw, self.span, &mut commit);
            }
        }
        commit.count(self.table.root);
        commit.live.invalidate(&commit.inv);
        if commit.made {
            commit.live.complete();
        }
        commit.unfinished
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

/// Writes the tiles.
struct Commit<'p, 't, 'h, R: Regime, M: Machine, P> {
    prepared: &'p Prepared<'t, R>,
    live: Live<'h, R, M>,
    pool: &'p mut P,
    phase: Phase,
    inv: Invalidation,
    made: bool,
    unfinished: bool,
    /// Table whose entries `delta` counts.
    counted: Pfn,
    delta: i16,
}

impl<R: Regime, M: Machine, P: TablePool> Commit<'_, '_, '_, R, M, P> {
    #[inline(always)]
    fn put(&mut self, slot: &Slot, word: u64) {
        let fill = self.prepared.word(slot);
        let lock = self.phase == Phase::Lock;
        if word == fill && !lock {
            return;
        }
        let mut new = fill;
        if word & VALID == 0 {
            if lock {
                return;
            }
            self.live.make(slot, new);
            self.made = true;
        } else {
            if lock || fill & VALID != 0 {
                self.unfinished = true;
                new = R::BROKEN;
            }
            self.live.unmake(slot, new, &mut self.inv);
        }
        if (word == 0) != (new == 0) {
            if self.counted != slot.table {
                self.count(slot.table);
            }
            self.delta = self.delta.wrapping_add(if word == 0 { 1 } else { -1 });
        }
    }

    /// Books what was counted and starts to count in `table`.
    #[inline]
    fn count(&mut self, table: Pfn) {
        match self.delta {
            0 => {}
            1.. => self.pool.add_entries(self.counted, self.delta.unsigned_abs()),
            _ => self.pool.remove_entries(self.counted, self.delta.unsigned_abs()),
        }
        self.delta = 0;
        self.counted = table;
    }
}

impl<R: Regime, M: Machine, P: TablePool> Visitor for Commit<'_, '_, '_, R, M, P> {
    type Error = Infallible;

    #[inline]
    fn leaf(&mut self, slot: &Slot, word: u64) -> Result<Step, Infallible> {
        if self.prepared.select.holds::<R>(word) {
            // It is a tile: tables can only have been added since `prepare`.
            debug_assert!(self.prepared.fits(slot), "{slot:?} is no tile");
            self.put(slot, word);
        }
        Ok(Step::Next)
    }
}
