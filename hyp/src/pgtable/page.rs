//! One page at a time: an invalid entry of level 3, found by one walk and changed in place.
//!
//! The common case of a guest that marks a device, whose table is there already. Whatever else the
//! walk finds is for the operations on ranges.
//!
//! Invariant: the entry stays invalid, so no CPU has anything to forget.
#![forbid(unsafe_code)]

use super::entry::{Entry, Regime, VALID};
use super::error::Error;
use super::level::Level;
use super::pool::TablePool;
use super::table::Table;
use super::walk::Slot;
use crate::hw::Machine;

/// An invalid entry of level 3. It borrows the table, so it is what it was found to be.
#[derive(Debug)]
pub struct InvalidPage<'t, R: Regime> {
    table: &'t Table<R>,
    slot: Slot,
    word: u64,
    entry: Entry<R>,
}

impl<R: Regime> Table<R> {
    /// The entry of the page at `addr`; `None` unless it is one of level 3 and invalid.
    ///
    /// # Errors
    /// [`Error::Range`] beyond the input space, [`Error::Corrupt`].
    // Inlined: a call would copy the token.
    #[inline(always)]
    pub fn invalid_page<M: Machine>(
        &mut self,
        hw: &M,
        addr: R::Addr,
    ) -> Result<Option<InvalidPage<'_, R>>, Error> {
        let (slot, word) = self.find(hw, self.check_addr(addr)?, Level::L3);
        if slot.level != Level::L3 || word & VALID != 0 {
            return Ok(None);
        }
        let entry = if word == 0 { Entry::Absent } else { self.decode(&slot, word)? };
        Ok(Some(InvalidPage { table: self, slot, word, entry }))
    }
}

impl<R: Regime> InvalidPage<'_, R> {
    /// What it says: nothing, or a note.
    #[inline(always)]
    pub fn entry(&self) -> Entry<R> {
        self.entry
    }

    /// Has it say `note` from now on, or nothing. True if its table holds nothing any more, which
    /// [`Table::fold`] then frees.
    ///
    /// # Errors
    /// [`Error::NoteRefused`] if this table has no such notes; nothing has changed.
    // Inlined, as above.
    #[inline(always)]
    pub fn set<M: Machine, P: TablePool>(
        self,
        hw: &M,
        pool: &mut P,
        note: Option<R::Note>,
    ) -> Result<bool, Error> {
        let new = match note {
            Some(note) => {
                R::note_level(&self.table.format, note).ok_or(Error::NoteRefused)?;
                R::encode_note(note)
            }
            None => 0,
        };
        if new == self.word {
            return Ok(false);
        }
        let live = self.table.live(hw);
        live.make(&self.slot, new);
        live.complete();
        match (self.word, new) {
            (0, _) => pool.add_entries(self.slot.table, 1),
            (_, 0) => pool.remove_entries(self.slot.table, 1),
            _ => {}
        }
        Ok(new == 0 && pool.entries(self.slot.table) == 0)
    }
}
