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

use super::entry::{Entry, Regime, VALID, is_table, leaf_word};
use super::error::Error;
use super::level::Level;
use super::note::Note;
use super::pool::TablePool;
use super::publish::{Invalidation, Live, PAGE_KIND, Unlinked};
use super::stage2::Stage2;
use super::table::Table;
use super::walk::{EntryVisitor, Slot, Span, Step, Visitor};
use crate::addr::{IpaRange, PAGE_SHIFT, Pfn};
use crate::hw::{ENTRIES, Machine};
use arrayvec::ArrayVec;
use bitflags::bitflags;
use core::convert::Infallible;

/// What a range is to contain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fill<R: Regime> {
    /// Nothing.
    Clear,
    /// A note, which names consecutive pages if it names one.
    Note(R::Note),
    /// Memory: attributes as encoded, and the first output frame.
    Leaf { attrs: u64, output: Pfn },
}

bitflags! {
    /// Which entries a change replaces; the others stay as they are, and are not split.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Select: u8 {
        /// Absent entries.
        const ABSENT = 1 << 0;
        /// Notes.
        const NOTES = 1 << 1;
        /// Blocks and pages.
        const LEAVES = 1 << 2;
    }
}

impl Select {
    #[inline]
    fn holds<R: Regime>(self, word: u64) -> bool {
        self.contains(match word {
            0 => Self::ABSENT,
            // What `lock` took away was a leaf. (Without a LOCKED word there is no `Select`.)
            _ if word & VALID != 0 || word == R::BROKEN => Self::LEAVES,
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
    table: &'t Table<R>,
    span: Span,
    fill: Fill<R>,
    select: Select,
    /// Shallowest level of a tile, the same for the whole range.
    shallowest: Level,
    /// Where the one tile is, if there is one: saves the second walk.
    slot: Option<Slot>,
}

impl<R: Regime> Table<R> {
    /// Prepares to map `range` to consecutive pages from `output`, in entries no larger than those
    /// of level `largest`. Whatever is there is replaced by the commit.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Attrs`], [`Error::Output`], [`Error::Corrupt`], then
    /// [`Error::NoTables`].
    pub fn prepare_leaf<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<Prepared<'_, R>, Error> {
        self.prepared_leaf(range, output, attrs, largest)?.reserve(hw, pool, false)
    }

    /// Prepares to write `note` over `range`, at the largest level it may have. A note that names
    /// a page names the next one for each further page.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::NoteRefused`] if this table has no such notes,
    /// [`Error::Corrupt`], then [`Error::NoTables`].
    pub fn prepare_note<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
        note: R::Note,
    ) -> Result<Prepared<'_, R>, Error> {
        let span = self.span(range)?;
        let shallowest = R::note_level(&self.format, note).ok_or(Error::NoteRefused)?;
        self.prepared(span, Fill::Note(note), shallowest).reserve(hw, pool, false)
    }

    /// Prepares to empty `range`. Tables that become empty stay; [`Table::fold`] frees them.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Corrupt`], then [`Error::NoTables`] if an entry that reaches
    /// out of the range must be split and cannot.
    pub fn prepare_clear<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
    ) -> Result<Prepared<'_, R>, Error> {
        self.prepared(self.span(range)?, Fill::Clear, Level::L0).reserve(hw, pool, false)
    }

    /// Pages that [`Table::prepare_leaf`] with these arguments would take from the pool.
    ///
    /// # Errors
    /// As `prepare_leaf`, without `NoTables`.
    pub fn tables_for_leaf<M: Machine>(
        &self,
        hw: &M,
        range: R::Range,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<u32, Error> {
        self.prepared_leaf(range, output, attrs, largest)?.survey(hw, false)
    }

    /// Pages that [`Table::prepare_note`] would take from the pool.
    ///
    /// # Errors
    /// As `prepare_note`, without `NoTables`.
    pub fn tables_for_note<M: Machine>(&self, hw: &M, range: R::Range, note: R::Note) -> Result<u32, Error> {
        let span = self.span(range)?;
        let shallowest = R::note_level(&self.format, note).ok_or(Error::NoteRefused)?;
        self.prepared(span, Fill::Note(note), shallowest).survey(hw, false)
    }

    /// Pages that [`Table::prepare_clear`] would take from the pool.
    ///
    /// # Errors
    /// As `prepare_clear`, without `NoTables`.
    pub fn tables_for_clear<M: Machine>(&self, hw: &M, range: R::Range) -> Result<u32, Error> {
        self.prepared(self.span(range)?, Fill::Clear, Level::L0).survey(hw, false)
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
        self.prepared_leaf(range, output, attrs, largest)?.reserve(hw, pool, true)?.commit(hw, pool);
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
        let _split = self.prepared(self.span(range)?, Fill::Clear, largest).reserve(hw, pool, false)?;
        Ok(())
    }

    fn prepared(&self, span: Span, fill: Fill<R>, shallowest: Level) -> Prepared<'_, R> {
        Prepared { table: self, span, fill, select: Select::all(), shallowest, slot: None }
    }

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
        self.prepared_span(span, output, attrs, largest)?.reserve(hw, pool, true)
    }

    fn prepared_span(
        &self,
        span: Span,
        output: Pfn,
        attrs: R::Attrs,
        largest: Level,
    ) -> Result<Prepared<'_, R>, Error> {
        let attrs = R::encode_attrs(&self.format, attrs)?;
        let last = output.raw().saturating_add(span.end.wrapping_sub(span.start) >> PAGE_SHIFT);
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
        Ok(self.prepared(span, Fill::Leaf { attrs, output }, level))
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
        self.selected_note(range, note, select)?.reserve(hw, pool, false)
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
        self.selected_clear(range, select)?.reserve(hw, pool, false)
    }

    /// Pages that [`Table::prepare_note_over`] would take from the pool.
    ///
    /// # Errors
    /// As `prepare_note`, without `NoTables`.
    pub fn tables_for_note_over<M: Machine>(
        &self,
        hw: &M,
        range: IpaRange,
        note: Note,
        select: Select,
    ) -> Result<u32, Error> {
        self.selected_note(range, note, select)?.survey(hw, false)
    }

    /// Pages that [`Table::prepare_clear_of`] would take from the pool.
    ///
    /// # Errors
    /// As `prepare_clear`, without `NoTables`.
    pub fn tables_for_clear_of<M: Machine>(
        &self,
        hw: &M,
        range: IpaRange,
        select: Select,
    ) -> Result<u32, Error> {
        self.selected_clear(range, select)?.survey(hw, false)
    }

    fn selected_note(
        &self,
        range: IpaRange,
        note: Note,
        select: Select,
    ) -> Result<Prepared<'_, Stage2>, Error> {
        let span = self.span(range)?;
        let shallowest = Stage2::note_level(&self.format, note).ok_or(Error::NoteRefused)?;
        Ok(Prepared { select, ..self.prepared(span, Fill::Note(note), shallowest) })
    }

    fn selected_clear(&self, range: IpaRange, select: Select) -> Result<Prepared<'_, Stage2>, Error> {
        Ok(Prepared { select, ..self.prepared(self.span(range)?, Fill::Clear, Level::L0) })
    }
}

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
            self.write(hw, pool, Phase::Finish);
        }
    }

    /// Does the part that can fail. With `vacant`, something in the range is an error.
    fn reserve<M: Machine, P: TablePool>(
        mut self,
        hw: &M,
        pool: &mut P,
        vacant: bool,
    ) -> Result<Self, Error> {
        let (slot, entry) = self.table.find(hw, self.span.start, Level::L3)?;
        if self.is_whole(&slot) {
            check_vacant(&slot, entry, vacant)?;
            self.slot = Some(slot);
            return Ok(self);
        }
        let needed = self.survey(hw, vacant)?;
        if needed > 0 {
            let live = self.table.live(hw);
            let mut split = Split { prepared: &self, hw, live, pool, needed };
            self.table.inspect(hw, self.span, &mut split)?;
            let (slot, _) = self.table.find(hw, self.span.start, Level::L3)?;
            self.slot = self.is_whole(&slot).then_some(slot);
        }
        Ok(self)
    }

    /// Checks the range and counts the tables that are missing.
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

    /// True if the entry at `slot` is one tile.
    #[inline]
    fn fits(&self, slot: &Slot) -> bool {
        slot.level >= self.shallowest && self.span.contains(slot)
    }

    /// True if the entry at `slot` is the only tile.
    #[inline]
    fn is_whole(&self, slot: &Slot) -> bool {
        slot.level >= self.shallowest && slot.ia == self.span.start && slot.end() == self.span.end
    }

    /// The new word of the tile at `slot`.
    #[inline]
    fn word(&self, slot: &Slot) -> u64 {
        let pages = slot.ia.wrapping_sub(self.span.start) >> PAGE_SHIFT;
        match self.fill {
            Fill::Clear => 0,
            Fill::Note(note) => R::encode_note(R::advance_note(note, pages)),
            Fill::Leaf { attrs, output } => {
                leaf_word(attrs, output.checked_add(pages).unwrap_or(output), slot.level)
            }
        }
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
    fn leaf(&mut self, slot: &Slot, entry: Entry<R>, word: u64) -> Result<Step, Error> {
        check_vacant(slot, entry, self.vacant)?;
        if self.prepared.splits(slot, word) {
            self.needed = self.needed.saturating_add(self.prepared.tables_below(slot));
        }
        Ok(Step::Next)
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
    fn leaf(&mut self, slot: &Slot, _entry: Entry<R>, word: u64) -> Result<Step, Error> {
        if !self.prepared.splits(slot, word) {
            return Ok(Step::Next);
        }
        self.split(slot, word).map(Step::Into)
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

/// Parts of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Valid entries become LOCKED.
    Lock,
    /// Everything gets its new word, but valid to valid becomes LOCKED.
    Change,
    /// What `Change` left LOCKED gets its new word.
    Finish,
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
    #[inline]
    fn put(&mut self, slot: &Slot, word: u64) {
        let fill = self.prepared.word(slot);
        let both_valid = word & fill & VALID != 0;
        let new = match self.phase {
            Phase::Lock if word & VALID == 0 => return,
            Phase::Lock => R::BROKEN,
            _ if word == fill => return,
            Phase::Change if both_valid => {
                self.unfinished = true;
                R::BROKEN
            }
            Phase::Change | Phase::Finish => fill,
        };
        if word & VALID == 0 {
            self.live.make(slot, new);
            self.made = true;
        } else {
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
