//! Demand mapping and unmapping.
#![forbid(unsafe_code)]

use super::entry::{Entry, Leaf, Regime};
use super::error::Error;
use super::level::Level;
use super::pool::TablePool;
use super::table::Table;
use super::walk::Span;
use crate::addr::{AddrError, PAGE_SHIFT, Pfn};
use crate::hw::Machine;

/// What [`Table::map_largest`] found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand<R: Regime> {
    /// Nothing was there; an entry of this level maps the address.
    Mapped(Level),
    /// The address is mapped already.
    Leaf(Leaf<R>),
    /// A note stands there, and stays.
    Note(R::Note),
}

impl<R: Regime> Table<R> {
    /// Maps the one largest entry that covers `addr`, lies in `bounds` and in what is absent
    /// around `addr`, so it never covers a note or another leaf.
    ///
    /// `output` is the frame that `addr` itself maps to; the entry is as large as its alignment
    /// allows. At most three table pages are taken.
    ///
    /// # Errors
    /// [`Error::Range`] if `addr` is not in `bounds` or `bounds` not in the input space,
    /// [`Error::Attrs`], [`Error::Output`], [`Error::Corrupt`], then [`Error::NoTables`].
    pub fn map_largest<M: Machine, P: TablePool>(
        &self,
        hw: &M,
        pool: &mut P,
        addr: R::Addr,
        bounds: R::Range,
        output: Pfn,
        attrs: R::Attrs,
    ) -> Result<Demand<R>, Error> {
        let bounds = self.span(bounds)?;
        let page = Level::L3.align_down(R::raw(addr));
        if page < bounds.start || page >= bounds.end {
            return Err(Error::Range(AddrError::OutOfSpace(R::raw(addr))));
        }
        let (slot, word) = self.find(hw, page, Level::L3);
        match self.decode(&slot, word)? {
            Entry::Leaf(leaf) => return Ok(Demand::Leaf(leaf)),
            Entry::Note(note) => return Ok(Demand::Note(note)),
            Entry::Absent | Entry::Table(_) => {}
        }
        let mut level = slot.level.max(Level::L1);
        let span = loop {
            let start = level.align_down(page);
            let span = Span { start, end: start.wrapping_add(level.size()) };
            let skew = page ^ output.base().raw();
            let inside = bounds.start <= span.start && span.end <= bounds.end;
            match level.deeper() {
                Some(deeper) if !inside || !level.is_aligned(skew) => level = deeper,
                _ => break span,
            }
        };
        // `page` and `output` agree below the entry's size, so this cannot go below frame 0.
        let first = output.raw().saturating_sub(page.wrapping_sub(span.start) >> PAGE_SHIFT);
        let first = Pfn::new(first).map_err(Error::Range)?;
        self.prepare_span(hw, pool, span, first, attrs, level)?.commit(hw, pool);
        Ok(Demand::Mapped(level))
    }

    /// Empties `range` and gives back the tables that became empty. An entry that reaches out of
    /// the range is split first; the rest of it stays.
    ///
    /// When it returns, no CPU can use what was mapped.
    ///
    /// # Errors
    /// As [`Table::prepare_clear`].
    pub fn unmap<M: Machine, P: TablePool>(
        &mut self,
        hw: &M,
        pool: &mut P,
        range: R::Range,
    ) -> Result<(), Error> {
        let clear = self.prepare_clear(hw, pool, range)?;
        let table = clear.one;
        clear.commit(hw, pool);
        // One entry of a table that holds others is all that changed: nothing became empty.
        if table.is_none_or(|table| pool.entries(table) == 0) {
            self.fold(hw, pool, range)?;
        }
        Ok(())
    }
}
