//! Looking at every entry of a table, sound or not: for audits.
//!
//! Unlike [`Table::visit`] a survey does not end at a word that is no entry, and follows a table
//! only if it is told to: whoever looks for damage must not trust the word that leads on.
#![forbid(unsafe_code)]

use super::entry::{Corrupt, Entry, Regime};
use super::level::Level;
use super::table::Table;
use super::walk::{Pre, Slot, Span, Step, Visitor};
use crate::addr::Pfn;
use crate::hw::PhysMem;
use core::convert::Infallible;

/// What is done with what a survey sees.
pub trait Surveyor<R: Regime> {
    /// An entry, tables included, in ascending order. True to look into a table; means nothing for
    /// other entries.
    fn entry(&mut self, slot: &Slot, entry: Result<Entry<R>, Corrupt>) -> bool;

    /// All entries of a table page were shown, root pages included: `used` of them are not 0.
    fn end(&mut self, table: Pfn, level: Level, used: u16);
}

impl<R: Regime> Table<R> {
    /// Shows every entry to `surveyor`. Its lock is held, so no entry changes meanwhile but a window.
    pub fn survey<M: PhysMem, S: Surveyor<R>>(&self, hw: &M, surveyor: &mut S) {
        let start = self.geometry().start();
        let span = Span { start: 0, end: self.geometry().limit() };
        let mut all = All { table: self, surveyor, root: self.root(), used: [0; 4] };
        let Ok(()) = self.walk(hw, span, &mut all);
        let used = all.take(start);
        all.surveyor.end(all.root, start, used);
    }
}

struct All<'a, R: Regime, S> {
    table: &'a Table<R>,
    surveyor: &'a mut S,
    /// Root page whose entries are being shown.
    root: Pfn,
    /// Entries that are not 0, of the table of each level that the path passes.
    used: [u16; 4],
}

impl<R: Regime, S: Surveyor<R>> All<'_, R, S> {
    fn take(&mut self, level: Level) -> u16 {
        self.used.get_mut(usize::from(level.number())).map(core::mem::take).unwrap_or_default()
    }

    fn show(&mut self, slot: &Slot, word: u64) -> (bool, Option<Pfn>) {
        let start = self.table.geometry().start();
        if slot.level() == start && slot.table() != self.root {
            let used = self.take(start);
            self.surveyor.end(self.root, start, used);
            self.root = slot.table();
        }
        if let Some(used) = self.used.get_mut(usize::from(slot.level().number())) {
            *used = used.saturating_add(u16::from(word != 0));
        }
        let entry = R::decode(self.table.format(), slot.level(), word);
        let child = if let Ok(Entry::Table(child)) = entry { Some(child) } else { None };
        (self.surveyor.entry(slot, entry), child)
    }
}

impl<R: Regime, S: Surveyor<R>> Visitor for All<'_, R, S> {
    type Error = Infallible;

    fn pre(&mut self, slot: &Slot, word: u64, child: Pfn) -> Result<Pre, Infallible> {
        let (wanted, table) = self.show(slot, word);
        Ok(if wanted && table == Some(child) { Pre::Down } else { Pre::Skip })
    }

    fn leaf(&mut self, slot: &Slot, word: u64) -> Result<Step, Infallible> {
        self.show(slot, word);
        Ok(Step::Next)
    }

    fn post(&mut self, slot: &Slot, child: Pfn) -> Result<(), Infallible> {
        let below = slot.level().deeper().unwrap_or(slot.level());
        let used = self.take(below);
        self.surveyor.end(child, below, used);
        Ok(())
    }
}
