//! The one walk: every operation is a visitor of it.
//!
//! It visits the entries that cover a range in ascending order, tables before (`pre`) and after
//! (`post`) what is in them. There are two kinds of visitors:
//! - [`EntryVisitor`] gets every entry decoded, tables included, so a walk never follows a word
//!   that nothing here wrote: it ends with an error before it. Whatever can fail is one.
//! - [`Visitor`] gets raw words. Whatever cannot fail is one, and runs under the same lock as an
//!   `EntryVisitor` that went over the range before it.
//!
//! Depth is bounded by [`Level`], of which there are four; the walk keeps its path in an array
//! and does not recurse. There is no retry: a visitor that replaced the entry under its hands by
//! a table says so ([`Step::Into`]) and the walk goes down into it, strictly deeper. So every
//! step goes down or forward, and a walk ends whatever the tables contain.
#![forbid(unsafe_code)]

use super::entry::{Entry, Leaf, Regime, frame_of, is_page_like, is_table};
use super::error::Error;
use super::level::{Geometry, Level};
use super::table::Table;
use crate::addr::{PAGE_SHIFT, Pfn};
use crate::hw::{ENTRIES, PhysMem};

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The table page.
    pub(super) table: Pfn,
    /// Index in that page, below 512.
    pub(super) index: usize,
    /// Level of the table.
    pub(super) level: Level,
    /// First input address that the entry covers.
    pub(super) ia: u64,
}

impl Slot {
    /// Level of the entry.
    #[must_use]
    #[inline]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// First input address that the entry covers, as a number.
    #[must_use]
    #[inline]
    pub const fn ia(&self) -> u64 {
        self.ia
    }

    /// One past the last input address that the entry covers.
    #[must_use]
    #[inline]
    pub const fn end(&self) -> u64 {
        self.ia.wrapping_add(self.level.size())
    }

    /// One past the last input address that this entry and the `nr - 1` behind it cover.
    #[must_use]
    #[inline]
    pub const fn end_of(&self, nr: u64) -> u64 {
        self.ia.wrapping_add(self.level.size().wrapping_mul(nr))
    }

    /// Entries of this table from this one on that begin before `end`, which lies behind it.
    #[inline]
    fn entries_to(&self, end: u64) -> u64 {
        let wanted = end.wrapping_sub(self.ia).wrapping_shr(self.level.shift());
        wanted.min((ENTRIES as u64).wrapping_sub(self.index as u64))
    }

    /// On to the next entry of the same table.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.index = self.index.wrapping_add(1);
        self.ia = self.ia.wrapping_add(self.level.size());
    }

    /// On by `nr` entries of the same table.
    #[inline]
    pub(super) fn advance_by(&mut self, nr: u64) {
        let entries = usize::try_from(nr).unwrap_or(ENTRIES);
        self.index = self.index.wrapping_add(entries);
        self.ia = self.ia.wrapping_add(nr.wrapping_mul(self.level.size()));
    }

    /// The table page the entry is in.
    #[must_use]
    #[inline]
    pub const fn table(&self) -> Pfn {
        self.table
    }
}

/// Input addresses `[start, end)`, page aligned, not empty, inside the table's space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Span {
    /// Pages in the span.
    #[inline]
    pub(super) const fn pages(&self) -> u64 {
        self.end.wrapping_sub(self.start) >> PAGE_SHIFT
    }

    /// True if the entry at `slot` lies in the span entirely.
    #[inline]
    pub(super) const fn contains(&self, slot: &Slot) -> bool {
        self.start <= slot.ia && slot.end() <= self.end
    }
}

/// What to do at a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pre {
    /// Visit what is in it, then `post`.
    Down,
    /// Go on behind it; no `post`.
    Skip,
}

/// What to do after an entry that is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Go on behind it.
    Next,
    /// The visitor put this table there: visit what is in it, without `pre`.
    Into(Pfn),
    /// End the walk; no further `post` is called.
    Stop,
}

/// What is done at each entry of a walk that decodes.
pub(super) trait EntryVisitor<R: Regime> {
    /// Before the entries of the table `child`.
    #[inline]
    fn pre(&mut self, _slot: &Slot, _child: Pfn) -> Result<Pre, Error> {
        Ok(Pre::Down)
    }

    /// An entry that is not a table: what it says, and its word.
    fn leaf(&mut self, slot: &Slot, entry: Entry<R>, word: u64) -> Result<Step, Error>;

    /// `nr` absent entries from `first` on, of one table of level 3.
    #[inline]
    fn absent(&mut self, first: &Slot, nr: u64) -> Result<Step, Error> {
        let mut slot = *first;
        for _ in 0..nr {
            if self.leaf(&slot, Entry::Absent, 0)? == Step::Stop {
                return Ok(Step::Stop);
            }
            slot.advance();
        }
        Ok(Step::Next)
    }

    /// False if `leaf` has nothing to do at level 3. What stands there is decoded all the same.
    #[inline]
    fn wants_pages(&self) -> bool {
        true
    }

    /// After the entries of the table `child`, as [`Visitor::post`].
    #[inline]
    fn post(&mut self, _slot: &Slot, _child: Pfn) -> Result<(), Error> {
        Ok(())
    }
}

/// Decodes for an [`EntryVisitor`].
pub(super) struct Decode<'a, R: Regime, V> {
    pub(super) table: &'a Table<R>,
    pub(super) visitor: &'a mut V,
}

impl<R: Regime, V: EntryVisitor<R>> Visitor for Decode<'_, R, V> {
    type Error = Error;

    #[inline]
    fn pre(&mut self, slot: &Slot, word: u64, child: Pfn) -> Result<Pre, Error> {
        self.table.check_table(slot.ia, slot.level, word)?;
        self.visitor.pre(slot, child)
    }

    #[inline(always)]
    fn leaf(&mut self, slot: &Slot, word: u64) -> Result<Step, Error> {
        let entry = self.table.decode(slot, word)?;
        self.visitor.leaf(slot, entry, word)
    }

    #[inline]
    fn pages<M: PhysMem>(&mut self, hw: &M, first: Slot, nr: u64) -> Result<Step, Error> {
        if !self.visitor.wants_pages() {
            self.table.decode_pages(hw, first, nr)?;
            return Ok(Step::Next);
        }
        let beyond_pa = R::beyond_pa(&self.table.format);
        let mut known: Option<(u64, R::Attrs)> = None;
        let (mut slot, mut left) = (first, nr);
        while left > 0 {
            let word = hw.read_entry(slot.table, slot.index);
            if word == 0 {
                let absent = absent_from(hw, &slot, left);
                if self.visitor.absent(&slot, absent)? == Step::Stop {
                    return Ok(Step::Stop);
                }
                slot.advance_by(absent);
                left = left.wrapping_sub(absent);
                continue;
            }
            let entry = match known {
                // Most pages of a table have the attributes of the one before.
                Some((like, attrs)) if is_page_like(beyond_pa, like, word) => {
                    Entry::Leaf(Leaf { output: frame_of(word), attrs })
                }
                _ => self.table.decode(&slot, word)?,
            };
            if let Entry::Leaf(leaf) = entry {
                known = Some((word, leaf.attrs));
            }
            if self.visitor.leaf(&slot, entry, word)? == Step::Stop {
                return Ok(Step::Stop);
            }
            slot.advance();
            left = left.wrapping_sub(1);
        }
        Ok(Step::Next)
    }

    #[inline]
    fn post(&mut self, slot: &Slot, child: Pfn) -> Result<(), Error> {
        self.visitor.post(slot, child)
    }
}

/// How many of the `left` entries from `first` on, of which the first is absent, are absent before
/// the first that is not. They are in one table.
#[inline]
fn absent_from<M: PhysMem>(hw: &M, first: &Slot, left: u64) -> u64 {
    let mut nr = 1;
    let mut index = first.index;
    while nr < left {
        index = index.wrapping_add(1);
        if hw.read_entry(first.table, index) != 0 {
            break;
        }
        nr = nr.wrapping_add(1);
    }
    nr
}

/// What is done at each entry of a walk.
pub(super) trait Visitor {
    /// Ends the walk; [`core::convert::Infallible`] for a walk that cannot fail.
    type Error;

    /// Before the entries of the table `child`.
    #[inline]
    fn pre(&mut self, _slot: &Slot, _word: u64, _child: Pfn) -> Result<Pre, Self::Error> {
        Ok(Pre::Down)
    }

    /// An entry that is not a table: absent, note, block, page, or nonsense.
    fn leaf(&mut self, slot: &Slot, word: u64) -> Result<Step, Self::Error>;

    /// The `nr` entries from `first` on, of one table of level 3, where no entry is a table: the
    /// same as `leaf` for one after the other, for visitors that can do it with less.
    #[inline]
    fn pages<M: PhysMem>(&mut self, hw: &M, first: Slot, nr: u64) -> Result<Step, Self::Error> {
        each_page(self, hw, first, nr)
    }

    /// After the entries of the table `child`, all or those in the range. The visitor may have
    /// unlinked it: it is not looked at again.
    #[inline]
    fn post(&mut self, _slot: &Slot, _child: Pfn) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Calls `leaf` for `nr` entries of a table of level 3, until it stops.
#[inline(always)]
fn each_page<M: PhysMem, V: Visitor + ?Sized>(
    visitor: &mut V,
    hw: &M,
    first: Slot,
    nr: u64,
) -> Result<Step, V::Error> {
    let mut slot = first;
    for _ in 0..nr {
        let word = hw.read_entry(slot.table, slot.index);
        if visitor.leaf(&slot, word)? == Step::Stop {
            return Ok(Step::Stop);
        }
        slot.advance();
    }
    Ok(Step::Next)
}

/// Walks `span`, which lies in the space of `geometry`, from the tables at `root`.
#[inline]
pub(super) fn walk<M: PhysMem, V: Visitor>(
    hw: &M,
    root: Pfn,
    geometry: Geometry,
    span: Span,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let start = geometry.start();
    let mut ia = span.start;
    let mut level = start;
    let mut table = geometry.root_page(root, ia);
    // The table that the path passes at each level above the current one.
    let mut path = [root; 4];
    'table: loop {
        let mut slot = Slot { table, index: level.index(ia), level, ia: level.align_down(ia) };
        if level == Level::L3 {
            let nr = slot.entries_to(span.end);
            if visitor.pages(hw, slot, nr)? == Step::Stop {
                return Ok(());
            }
            slot.ia = slot.ia.wrapping_add(nr << PAGE_SHIFT);
        } else {
            // Entries of this page, in the range.
            while slot.index < ENTRIES && slot.ia < span.end {
                let word = hw.read_entry(table, slot.index);
                let down = if is_table(level, word) {
                    let child = frame_of(word);
                    (visitor.pre(&slot, word, child)? == Pre::Down).then_some(child)
                } else {
                    match visitor.leaf(&slot, word)? {
                        Step::Next => None,
                        Step::Into(child) => Some(child),
                        Step::Stop => return Ok(()),
                    }
                };
                if let Some(child) = down
                    && let Some(deeper) = level.deeper()
                {
                    if let Some(here) = path.get_mut(usize::from(level.number())) {
                        *here = table;
                    }
                    ia = ia.max(slot.ia);
                    (table, level) = (child, deeper);
                    continue 'table;
                }
                slot.advance();
            }
        }
        ia = slot.ia;
        // Up, out of every table whose last entry in the range this was.
        while level > start {
            let Some(above) = level.shallower() else { break };
            if ia < span.end && !above.is_aligned(ia) {
                break;
            }
            let parent = path.get(usize::from(above.number())).copied().unwrap_or(root);
            let last = ia.wrapping_sub(1);
            let up =
                Slot { table: parent, index: above.index(last), level: above, ia: above.align_down(last) };
            visitor.post(&up, table)?;
            (table, level) = (parent, above);
        }
        if ia >= span.end {
            return Ok(());
        }
        if level == start {
            table = geometry.root_page(root, ia);
        }
    }
}
