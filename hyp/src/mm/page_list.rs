//! A list of RAM pages threaded through their records: no memory of its own, nothing that anybody
//! but EL2 can write.
//!
//! Invariant: a page is on at most one list, and its aux is the list's while it is. A link is the
//! next record's index plus one; 0 ends the list. Guarded by whatever guards the pages.
#![forbid(unsafe_code)]

use super::vmemmap::{Record, Vmemmap};
use crate::addr::Pfn;

/// Pages in the order in which they come off.
#[derive(Debug, Default)]
#[must_use = "the pages of a list that is dropped are lost"]
pub struct PageList {
    ends: Option<Ends>,
    len: u64,
}

/// The first page with its record's index, and the index of the last.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: Pfn,
    first_index: u32,
    last_index: u32,
}

impl PageList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { ends: None, len: 0 }
    }

    /// Pages on the list.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// True if there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The page that comes off next.
    #[must_use]
    pub fn first(&self) -> Option<Pfn> {
        self.ends.map(|ends| ends.first)
    }

    /// Puts `page`, which is RAM and on no list, at the end.
    pub fn push(&mut self, vmemmap: &Vmemmap, page: Pfn) {
        let Some((index, _)) = entry(vmemmap, page) else { return };
        match &mut self.ends {
            None => self.ends = Some(Ends { first: page, first_index: index, last_index: index }),
            Some(ends) => {
                if let Some(record) = vmemmap.record(ends.last_index) {
                    record.set_aux(index.saturating_add(1));
                }
                ends.last_index = index;
            }
        }
        self.len = self.len.saturating_add(1);
    }

    /// Puts `page`, which is RAM and on no list, at the front.
    pub fn push_front(&mut self, vmemmap: &Vmemmap, page: Pfn) {
        let Some((index, record)) = entry(vmemmap, page) else { return };
        let last_index = self.ends.map_or(index, |ends| {
            record.set_aux(ends.first_index.saturating_add(1));
            ends.last_index
        });
        self.ends = Some(Ends { first: page, first_index: index, last_index });
        self.len = self.len.saturating_add(1);
    }

    /// The pages, in the order in which they come off.
    pub fn iter<'a>(&self, vmemmap: &'a Vmemmap) -> impl Iterator<Item = Pfn> + use<'a> {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        let next = |index: &u32| vmemmap.record(*index)?.aux().checked_sub(1);
        let indices = core::iter::successors(self.ends.map(|ends| ends.first_index), next);
        indices.take(len).map_while(|index| vmemmap.map().pfn_of(index))
    }

    /// Takes the first page off.
    pub fn pop(&mut self, vmemmap: &Vmemmap) -> Option<Pfn> {
        let Ends { first, first_index, last_index } = self.ends?;
        let record = vmemmap.record(first_index)?;
        let next = record.aux().checked_sub(1);
        record.set_aux(0);
        let next = next.and_then(|index| Some((vmemmap.map().pfn_of(index)?, index)));
        self.ends = next.map(|(first, first_index)| Ends { first, first_index, last_index });
        self.len = self.len.saturating_sub(1);
        Some(first)
    }
}

/// The record of `page`, which is RAM, and its index.
fn entry(vmemmap: &Vmemmap, page: Pfn) -> Option<(u32, &'static Record)> {
    let index = vmemmap.map().index_of(page);
    debug_assert!(index.is_some(), "{page:?} is no RAM");
    Some((index?, vmemmap.record(index?)?))
}
