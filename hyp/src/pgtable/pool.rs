//! Where table pages come from, and where their entries are counted.
//!
//! The engine owns no page and no counter. `mm` implements this over the vmemmap (one count a
//! page, in the record of the table page), with a different source of pages for the host's table,
//! for EL2's own and for each VM.
//!
//! **Counts.** The count of a table page, root pages included, is the number of its entries that
//! are not 0: leaves, tables and notes alike. A table whose count is 0 holds nothing and can go;
//! one whose count is 512 may fold. A count needs no lock of its own: the table's lock guards it.
#![forbid(unsafe_code)]

use crate::addr::Pfn;

/// A source of table pages with their counts.
pub trait TablePool {
    /// A page for a table, hyp-owned and in EL2's linear map, with count 0. What is in it does not
    /// matter: the engine fills it before a walker can see it.
    fn alloc(&mut self) -> Option<Pfn>;

    /// Takes back a page that `alloc` gave. No TLB of any CPU remembers it as a table; its count
    /// is 0 again; its contents are whatever the table last held.
    fn free(&mut self, page: Pfn);

    /// `nr` entries (at most 512) of `table` became something.
    fn add_entries(&mut self, table: Pfn, nr: u16);

    /// `nr` entries of `table` became 0.
    ///
    /// A count that would go below 0 is corruption of EL2's own state; the pool decides how that
    /// is reported.
    fn remove_entries(&mut self, table: Pfn, nr: u16);

    /// How many entries of `table` are something, 0..=512.
    fn entries(&self, table: Pfn) -> u16;
}
