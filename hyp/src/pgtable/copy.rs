//! A copy of a whole stage-2 table, for somebody to look at: no walker ever sees it.
//!
//! Every entry is copied as it is, notes and software bits included; a table entry leads to the
//! copy of its table. What the copy is made of is no table page: it is written as plain words.
#![forbid(unsafe_code)]

use super::entry::{is_table, table_word};
use super::error::Error;
use super::level::Level;
use super::stage2::Stage2;
use super::table::Table;
use crate::addr::Pfn;
use crate::hw::{Machine, MappedPage};

/// What becomes of access flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFlags {
    /// Copied.
    Kept,
    /// Set in every leaf: which pages were used is not told.
    Hidden,
}

impl Table<Stage2> {
    /// Copies the table: the root to the pages from `root` on, every other table page to one that
    /// `page` gives, level by level from the top. Once it has given `None` no more is copied, but
    /// all tables are counted. Returns how many there are, root pages not counted.
    ///
    /// The pages are hyp-owned, zero, in the linear map and nobody else's.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a table entry that leads nowhere; what `page` says.
    pub fn copy_to<M: Machine, E: From<Error>>(
        &self,
        hw: &M,
        root: Pfn,
        flags: AccessFlags,
        page: impl FnMut() -> Result<Option<Pfn>, E>,
    ) -> Result<u32, E> {
        let mut copy = Copy { table: self, hw, hidden: flags == AccessFlags::Hidden, page, tables: 0 };
        for (from, nth) in self.root_pages().iter().zip(0..) {
            copy.page(self.geometry().start(), from, root.checked_add(nth))?;
        }
        Ok(copy.tables)
    }

    /// Table pages, root pages not counted.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn count_tables<M: Machine>(&self, hw: &M) -> Result<u32, Error> {
        let none = || Ok::<_, Error>(None);
        let mut copy = Copy { table: self, hw, hidden: false, page: none, tables: 0 };
        for from in self.root_pages().iter() {
            copy.page(self.geometry().start(), from, None)?;
        }
        Ok(copy.tables)
    }
}

/// Entries that a bit of [`PhysMem::copy_entries`](crate::hw::PhysMem::copy_entries) stands for.
const EIGHT: usize = 8;

struct Copy<'a, M, F> {
    table: &'a Table<Stage2>,
    hw: &'a M,
    hidden: bool,
    page: F,
    tables: u32,
}

impl<M: Machine, E: From<Error>, F: FnMut() -> Result<Option<Pfn>, E>> Copy<'_, M, F> {
    /// Copies the table page `from` of `level`, and all below it; at most as deep as there are levels.
    fn page(&mut self, level: Level, from: Pfn, to: Option<Pfn>) -> Result<(), E> {
        let source = MappedPage::linear(from);
        let below = match (level.deeper(), to) {
            (Some(below), _) => below,
            (None, None) => return Ok(()),
            // Nothing to look for: the fastest copy.
            (None, Some(to)) if !self.hidden => {
                self.hw.copy_page(source, MappedPage::linear(to));
                return Ok(());
            }
            (None, Some(to)) => {
                self.hw.copy_entries(source, MappedPage::linear(to), true);
                return Ok(());
            }
        };
        let copied = |to| self.hw.copy_entries(source, MappedPage::linear(to), self.hidden);
        let mut eights = to.map_or(u64::MAX, copied);
        while let Some(eight) = usize::try_from(eights.trailing_zeros()).ok().filter(|_| eights != 0) {
            eights &= eights.wrapping_sub(1);
            let first = eight.wrapping_mul(EIGHT);
            for index in first..first.wrapping_add(EIGHT) {
                let word = self.hw.read_entry(from, index);
                if !is_table(level, word) {
                    continue;
                }
                let child = self.table.check_table(0, level, word)?;
                self.tables = self.tables.saturating_add(1);
                let copy = (self.page)()?;
                self.page(below, child, copy)?;
                if let (Some(to), Some(copy)) = (to, copy) {
                    self.hw.write_word(to, index, table_word(copy));
                }
            }
        }
        Ok(())
    }
}
