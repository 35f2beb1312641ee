//! Changes in two halves: [`Prepared`] holds everything that can fail, `commit` cannot.
//!
//! `prepare` reads every entry of the range, decides how the new contents will be tiled, and
//! splits what is in the way: a larger entry becomes a table whose 512 entries say the same, so a
//! preparation that is given up (or fails half-way for want of pages) changed nothing that anyone
//! can observe. `commit` then finds one entry for each tile and writes it.
//!
//! Tiles are the largest entries that lie in the range, are allowed for what is written (a note
//! has its shallowest level, a leaf needs an aligned output) and are not split into a table
//! already: a table that is found is kept. [`Table::fold`] is what makes tables disappear.
//!
//! Order of one commit: entries that were invalid get their new word; valid ones get their note,
//! or LOCKED if a valid word follows; one invalidation for all of them; then the words that had
//! to wait for it.
#![forbid(unsafe_code)]

use super::entry::{Entry, Regime, VALID, leaf_word};
use super::error::Error;
use super::level::Level;
use super::note::Note;
use super::pool::TablePool;
use super::publish::PAGE_KIND;
use super::stage2::Stage2;
use super::table::Table;
use super::walk::{Slot, Span};
use crate::addr::{IpaRange, PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::hw::Machine;
use bitflags::bitflags;

/// What a range is to contain: the word of each tile is `first` and `step` times its page in the
/// range, and `page` at level 3.
#[derive(Clone, Copy, Debug)]
struct Fill {
    first: u64,
    step: u64,
    page: u64,
}

impl Fill {
    /// Nothing.
    const CLEAR: Self = Self { first: 0, step: 0, page: 0 };

    /// Memory from `output`, with `attrs` as encoded.
    fn leaf(attrs: u64, output: Pfn) -> Self {
        Self { first: leaf_word(attrs, output, Level::L2), step: PAGE_SIZE, page: PAGE_KIND }
    }
}

bitflags! {
    /// Which entries a change replaces; the others stay as they are, and are not split.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Select: u8 {
        /// Absent entries.
        const ABSENT = 1 << 0;
        /// Notes, but for those that carry a page.
        const NOTES = 1 << 1;
        /// Blocks and pages, and notes that carry a page.
        const LEAVES = 1 << 2;
    }
}

impl Select {
    #[inline]
    pub(super) fn holds<R: Regime>(self, word: u64) -> bool {
        self.is_all()
            || self.contains(match word {
                0 => Self::ABSENT,
                // What `lock` took away was a leaf. (Without a LOCKED word there is no `Select`.)
                _ if word & VALID != 0 || word == R::BROKEN || R::carries_page(word) => Self::LEAVES,
                _ => Self::NOTES,
            })
    }
}

/// A change for which everything that can fail has been done.
///
/// It borrows the table, so no table page can be freed while it is open. Dropped without
/// [`Prepared::commit`] it leaves at most split entries.
#[derive(Debug)]
#[must_use = "a prepared change does nothing until it is committed"]
pub struct Prepared<'t, R: Regime> {
    pub(super) table: &'t Table<R>,
    pub(super) span: Span,
    fill: Fill,
    pub(super) select: Select,
    /// Shallowest level of a tile, the same for the whole range.
    pub(super) shallowest: Level,
    /// The table of the one tile, of level `shallowest`, if there is one: saves the second walk.
    pub(super) one: Option<Pfn>,
}

/// A change that has been looked at: what can still fail is a pool without pages.
///
/// It borrows the table as a [`Prepared`] does. Dropped, it has changed nothing.
#[derive(Debug)]
#[must_use = "a planned change does nothing until it is reserved and committed"]
pub struct Planned<'t, R: Regime> {
    pub(super) change: Prepared<'t, R>,
    pub(super) needed: u32,
    pub(super) replaced: Option<Entry<R>>,
}

impl<R: Regime> Planned<'_, R> {
    /// Pages that [`Planned::reserve`] takes from the pool.
    #[must_use]
    #[inline]
    pub const fn tables(&self) -> u32 {
        self.needed
    }

    /// What the change replaces, if that is one entry.
    #[must_use]
    #[inline]
    pub const fn replaced(&self) -> Option<Entry<R>> {
        self.replaced
    }
}

impl<R: Regime> Table<R> {
    /// Looks at what [`Table::prepare_leaf`] would do.
    ///
    /// # Errors
    /// As `prepare_leaf`, without `NoTables`.
    // Inlined: a call would copy the token, and its caller once more.
    #[inline(always)]
    pub fn plan_leaf<M: Machine>(
        &self,
        hw: &M,
        range: R::Range,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<Planned<'_, R>, Error> {
        self.prepared_leaf(range, output, attrs, largest)?.plan(hw, false)
    }

    /// Looks at what [`Table::prepare_note`] would do.
    ///
    /// # Errors
    /// As `prepare_note`, without `NoTables`.
    // Inlined: a call would copy the token, and its caller once more.
    #[inline(always)]
    pub fn plan_note<M: Machine>(
        &self,
        hw: &M,
        range: R::Range,
        note: R::Note,
    ) -> Result<Planned<'_, R>, Error> {
        self.prepared_note(range, note)?.plan(hw, false)
    }

    /// Looks at what [`Table::prepare_clear`] would do.
    ///
    /// # Errors
    /// As `prepare_clear`, without `NoTables`.
    #[inline(always)]
    pub fn plan_clear<M: Machine>(&self, hw: &M, range: R::Range) -> Result<Planned<'_, R>, Error> {
        self.prepared(self.span(range)?, Fill::CLEAR, Level::L0).plan(hw, false)
    }

    /// Prepares to map `range` to consecutive pages from `output`, in entries no larger than those
    /// of level `largest`. Whatever is there is replaced by the commit.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Attrs`], [`Error::Output`], [`Error::Corrupt`], then
    /// [`Error::NoTables`].
    // Inlined: a call would copy the token, and its caller once more.
    #[inline(always)]
    pub fn prepare_leaf<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<Prepared<'_, R>, Error> {
        self.plan_leaf(hw, range, output, attrs, largest)?.reserve(hw, pool)
    }

    /// Prepares to write `note` over `range`, at the largest level it may have. A note that names
    /// a page names the next one for each further page.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::NoteRefused`] if this table has no such notes,
    /// [`Error::Corrupt`], then [`Error::NoTables`].
    // Inlined: a call would copy the token, and its caller once more.
    #[inline(always)]
    pub fn prepare_note<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
        note: R::Note,
    ) -> Result<Prepared<'_, R>, Error> {
        self.plan_note(hw, range, note)?.reserve(hw, pool)
    }

    /// Prepares to empty `range`. Tables that become empty stay; [`Table::fold`] frees them.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Corrupt`], then [`Error::NoTables`] if an entry that reaches
    /// out of the range must be split and cannot.
    // Inlined: a call would copy the token, and its caller once more.
    #[inline(always)]
    pub fn prepare_clear<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
    ) -> Result<Prepared<'_, R>, Error> {
        self.plan_clear(hw, range)?.reserve(hw, pool)
    }

    /// Maps `range`, in which nothing may stand, to consecutive pages from `output`, in the
    /// largest entries that fit, no larger than those of level `largest`.
    ///
    /// # Errors
    /// As [`Table::prepare_leaf`], and [`Error::Exists`] (with `Corrupt`, whichever comes first).
    pub fn map<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<(), Error> {
        let planned = self.prepared_leaf(range, output, attrs, largest)?.plan(hw, true)?;
        planned.reserve(hw, pool)?.commit(hw, pool);
        Ok(())
    }

    /// Writes `note` over `range`, whatever is there.
    ///
    /// # Errors
    /// As [`Table::prepare_note`].
    pub fn annotate<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
        note: R::Note,
    ) -> Result<(), Error> {
        self.prepare_note(hw, pool, range, note)?.commit(hw, pool);
        Ok(())
    }

    /// Splits what reaches over either end of `range`, or is larger than the entries of level
    /// `largest`, into tables that say the same.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Corrupt`], then [`Error::NoTables`].
    pub fn split<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
        largest: Level,
    ) -> Result<(), Error> {
        let _ready =
            self.prepared(self.span(range)?, Fill::CLEAR, largest).plan(hw, false)?.reserve(hw, pool)?;
        Ok(())
    }

    #[inline]
    fn prepared(&self, span: Span, fill: Fill, shallowest: Level) -> Prepared<'_, R> {
        Prepared { table: self, span, fill, select: Select::all(), shallowest, one: None }
    }

    #[inline]
    fn prepared_note(&self, range: R::Range, note: R::Note) -> Result<Prepared<'_, R>, Error> {
        let span = self.span(range)?;
        let shallowest = R::note_level(&self.format, note).ok_or(Error::NoteRefused)?;
        let (first, step) = R::note_run(note, span.pages()).ok_or(Error::NoteRefused)?;
        Ok(self.prepared(span, Fill { first, step, page: 0 }, shallowest))
    }

    #[inline]
    fn prepared_leaf(
        &self,
        range: R::Range,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<Prepared<'_, R>, Error> {
        self.prepared_span(self.span(range)?, output, attrs, largest)
    }

    /// Prepares to map `span`, which is absent.
    pub(super) fn prepare_span<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        span: Span,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<Prepared<'_, R>, Error> {
        self.prepared_span(span, output, attrs, largest)?.plan(hw, true)?.reserve(hw, pool)
    }

    #[inline]
    fn prepared_span(
        &self,
        span: Span,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<Prepared<'_, R>, Error> {
        let attrs = R::encode_attrs(&self.format, attrs)?;
        let last = output.raw().saturating_add(span.pages());
        if last > 1 << R::pa_bits(&self.format).saturating_sub(PAGE_SHIFT) {
            return Err(Error::Output(output));
        }
        // Input and output advance together, so a level is either right for all tiles or for none.
        let skew = span.start ^ output.base().raw();
        let level = match largest.max(Level::L1) {
            Level::L0 | Level::L1 if Level::L1.is_aligned(skew) => Level::L1,
            Level::L0 | Level::L1 | Level::L2 if Level::L2.is_aligned(skew) => Level::L2,
            _ => Level::L3,
        };
        Ok(self.prepared(span, Fill::leaf(attrs, output), level))
    }
}

impl Table<Stage2> {
    /// As [`Table::prepare_note`], but replaces only the entries that `select` names.
    ///
    /// # Errors
    /// As `prepare_note`.
    pub fn prepare_note_over<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: IpaRange,
        note: Note,
        select: Select,
    ) -> Result<Prepared<'_, Stage2>, Error> {
        self.plan_note_over(hw, range, note, select)?.reserve(hw, pool)
    }

    /// As [`Table::prepare_clear`], but empties only the entries that `select` names.
    ///
    /// # Errors
    /// As `prepare_clear`.
    pub fn prepare_clear_of<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: IpaRange,
        select: Select,
    ) -> Result<Prepared<'_, Stage2>, Error> {
        self.plan_clear_of(hw, range, select)?.reserve(hw, pool)
    }

    /// Looks at what [`Table::prepare_clear_of`] would do.
    ///
    /// # Errors
    /// As `prepare_clear_of`, without `NoTables`.
    pub fn plan_clear_of<M: Machine>(
        &self,
        hw: &M,
        range: IpaRange,
        select: Select,
    ) -> Result<Planned<'_, Stage2>, Error> {
        Prepared { select, ..self.prepared(self.span(range)?, Fill::CLEAR, Level::L0) }.plan(hw, false)
    }

    /// Looks at what [`Table::prepare_note_over`] would do.
    ///
    /// # Errors
    /// As `prepare_note_over`, without `NoTables`.
    pub fn plan_note_over<M: Machine>(
        &self,
        hw: &M,
        range: IpaRange,
        note: Note,
        select: Select,
    ) -> Result<Planned<'_, Stage2>, Error> {
        Prepared { select, ..self.prepared_note(range, note)? }.plan(hw, false)
    }
}

impl<R: Regime> Prepared<'_, R> {
    /// True if the entry at `slot` is one tile.
    #[inline]
    pub(super) fn fits(&self, slot: &Slot) -> bool {
        slot.level >= self.shallowest && self.span.contains(slot)
    }

    /// True if the entry at `slot` is the only tile.
    #[inline]
    pub(super) fn is_whole(&self, slot: &Slot) -> bool {
        slot.level >= self.shallowest && slot.ia == self.span.start && slot.end() == self.span.end
    }

    /// The one tile, if there is one.
    #[inline]
    pub(super) fn one_slot(&self) -> Option<Slot> {
        let (table, level, ia) = (self.one?, self.shallowest, self.span.start);
        Some(Slot { table, index: level.index(ia), level, ia })
    }

    /// The table page that the one tile is in, if there is one tile.
    #[inline]
    pub(crate) const fn table_page(&self) -> Option<Pfn> {
        self.one
    }

    /// What the word of one page's tile has more than that of the page before.
    #[inline]
    pub(super) fn step(&self) -> u64 {
        self.fill.step
    }

    /// The new word of the tile at `slot`.
    #[inline]
    pub(super) fn word(&self, slot: &Slot) -> u64 {
        let pages = slot.ia.wrapping_sub(self.span.start) >> PAGE_SHIFT;
        let kind = if matches!(slot.level, Level::L3) { self.fill.page } else { 0 };
        self.fill.first.wrapping_add(self.fill.step.wrapping_mul(pages)) | kind
    }
}
