//! One page at a time: an entry of level 3 that is found once and written without another walk.
//!
//! What most calls do most often needs none of what a range needs: nothing is split, nothing is
//! missing, and there is one word to write. [`PageEntry`] and [`PreparedPage`] are the two halves
//! of [`super::Prepared`] for that case, small enough to stay in registers. A table that they leave
//! empty is the caller's to [`Table::fold`].
#![forbid(unsafe_code)]

use super::change::{Change, put};
use super::entry::{Entry, Regime, VALID, frame_of, leads_on, leaf_word};
use super::error::Error;
use super::level::Level;
use super::pool::TablePool;
use super::prepare::Prepared;
use super::publish::Invalidation;
use super::stage2::Stage2;
use super::table::Table;
use super::walk::Slot;
use crate::addr::Pfn;
use crate::hw::Machine;

/// The entry of level 3 that decides about one page.
///
/// It borrows the table, so the table page that it is in cannot be freed. What it says stays true
/// until a change of the same page is committed.
#[derive(Clone, Copy, Debug)]
pub struct PageEntry<'t, R: Regime> {
    table: &'t Table<R>,
    page: Pfn,
    ia: u64,
    word: u64,
    entry: Entry<R>,
}

/// A change of one page's entry for which everything that can fail has been done.
#[derive(Debug)]
#[must_use = "a prepared change does nothing until it is committed"]
pub struct PreparedPage<'t, R: Regime> {
    table: &'t Table<R>,
    page: Pfn,
    ia: u64,
    old: u64,
    new: u64,
}

impl<R: Regime> Table<R> {
    /// The entry of level 3 for `addr`; `None` where there is no table of level 3.
    ///
    /// # Errors
    /// [`Error::Range`] beyond the input space, [`Error::Corrupt`].
    #[inline(always)]
    pub fn page<M: Machine>(&self, hw: &M, addr: R::Addr) -> Result<Option<PageEntry<'_, R>>, Error> {
        let ia = Level::L3.align_down(self.check_addr(addr)?);
        let beyond_pa = R::beyond_pa(&self.format);
        let mut page = self.geometry.root_page(self.root, ia);
        let mut shift = self.geometry.start().shift();
        while shift > Level::L3.shift() {
            let word = hw.read_entry(page, index(ia, shift));
            if !leads_on(beyond_pa, word) {
                // A larger entry decides, or none; if it is neither, this finds out.
                return self.lookup(hw, addr).map(|_| None);
            }
            page = frame_of(word);
            shift = shift.wrapping_sub(Level::L2.shift().wrapping_sub(Level::L3.shift()));
        }
        let word = hw.read_entry(page, Level::L3.index(ia));
        let entry = self.decode(&slot(page, ia), word)?;
        Ok(Some(PageEntry { table: self, page, ia, word, entry }))
    }
}

impl<'t, R: Regime> PageEntry<'t, R> {
    /// What it says.
    #[must_use]
    #[inline(always)]
    pub const fn entry(&self) -> Entry<R> {
        self.entry
    }

    /// The table page that it is in.
    #[must_use]
    #[inline]
    pub const fn table_page(&self) -> Pfn {
        self.page
    }

    /// Prepares to map the page `output`.
    ///
    /// # Errors
    /// [`Error::Attrs`], [`Error::Output`].
    #[inline(always)]
    pub fn prepare_leaf(self, output: Pfn, attrs: R::Attrs) -> Result<PreparedPage<'t, R>, Error> {
        let attrs = R::encode_attrs(&self.table.format, attrs)?;
        if output.base().raw() & R::beyond_pa(&self.table.format) != 0 {
            return Err(Error::Output(output));
        }
        Ok(self.prepared(leaf_word(attrs, output, Level::L3)))
    }

    /// Prepares to write `note`.
    ///
    /// # Errors
    /// [`Error::NoteRefused`] if this table has no such notes.
    #[inline(always)]
    pub fn prepare_note(self, note: R::Note) -> Result<PreparedPage<'t, R>, Error> {
        if R::note_level(&self.table.format, note).is_none() {
            return Err(Error::NoteRefused);
        }
        Ok(self.prepared(R::encode_note(note)))
    }

    /// Prepares to leave nothing there.
    #[inline(always)]
    pub fn prepare_clear(self) -> PreparedPage<'t, R> {
        self.prepared(0)
    }

    #[inline(always)]
    const fn prepared(self, new: u64) -> PreparedPage<'t, R> {
        PreparedPage { table: self.table, page: self.page, ia: self.ia, old: self.word, new }
    }
}

impl<'t> PageEntry<'t, Stage2> {
    /// Prepares `change`; an entry that is no leaf stays as it is.
    ///
    /// # Errors
    /// [`Error::Attrs`] if the new attributes cannot be encoded.
    #[inline(always)]
    pub fn prepare_change(self, change: Change) -> Result<PreparedPage<'t, Stage2>, Error> {
        let word = match self.entry {
            Entry::Leaf(leaf) => {
                let attrs = Stage2::encode_attrs(&self.table.format, change.apply(leaf.attrs))?;
                leaf_word(attrs, leaf.output, Level::L3)
            }
            _ => self.word,
        };
        Ok(self.prepared(word))
    }
}

/// A change that cannot fail any more, of a range or of one page.
pub trait Commit {
    /// Makes the change. When it returns, no CPU can use what was there.
    fn commit<M: Machine, P: TablePool>(self, hw: &M, pool: &mut P);
}

impl<R: Regime> Commit for Prepared<'_, R> {
    #[inline(always)]
    fn commit<M: Machine, P: TablePool>(self, hw: &M, pool: &mut P) {
        Prepared::commit(self, hw, pool);
    }
}

impl<R: Regime> Commit for PreparedPage<'_, R> {
    #[inline(always)]
    fn commit<M: Machine, P: TablePool>(self, hw: &M, pool: &mut P) {
        PreparedPage::commit(self, hw, pool);
    }
}

impl<R: Regime> PreparedPage<'_, R> {
    /// Writes the new word. When it returns, no CPU can use the old one.
    // Inlined: callers know whether the old word or the new one is valid.
    #[inline(always)]
    pub fn commit<M: Machine, P: TablePool>(self, hw: &M, pool: &mut P) {
        let Self { table, page, ia, old, new } = self;
        let (live, slot) = (table.live(hw), slot(page, ia));
        debug_assert!(live.read(&slot) == old, "{slot:?} was changed after it was found");
        if old == new {
            return;
        }
        if old & VALID == 0 {
            live.make(&slot, new);
            live.complete();
        } else if new & VALID == 0 {
            live.take_away(&slot, new);
        } else {
            let mut inv = Invalidation::new();
            put(&live, &mut inv, &slot, old, new);
            live.complete();
            live.invalidate(&inv);
        }
        if old == 0 {
            pool.add_entries(page, 1);
        } else if new == 0 {
            pool.remove_entries(page, 1);
        }
    }
}

/// Index of `ia` in a table whose entries cover `1 << shift` bytes.
#[inline(always)]
const fn index(ia: u64, shift: u32) -> usize {
    Level::L3.index(ia >> shift << Level::L3.shift())
}

#[inline(always)]
const fn slot(table: Pfn, ia: u64) -> Slot {
    Slot { table, index: Level::L3.index(ia), level: Level::L3, ia }
}
