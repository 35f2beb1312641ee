//! A list of RAM pages threaded through their records: no memory of its own, nothing that anybody
//! but EL2 can write.
//!
//! Invariant: a page is on at most one list, and its aux is the list's while it is. A link is the
//! next record's index plus one; 0 ends the list. Guarded by whatever guards the pages.
#![forbid(unsafe_code)]

use super::vmemmap::Vmemmap;
use crate::addr::Pfn;

/// Pages in the order in which they come off.
#[derive(Debug, Default)]
#[must_use = "the pages of a list that is dropped are lost"]
pub struct PageList {
    ends: Option<(Pfn, Pfn)>,
    len: u64,
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
        self.ends.map(|(first, _)| first)
    }

    /// Puts `page`, which is RAM and on no list, at the end.
    pub fn push(&mut self, vmemmap: &Vmemmap, page: Pfn) {
        let Some(index) = vmemmap.map().index_of(page) else {
            debug_assert!(false, "{page:?} is no RAM");
            return;
        };
        match self.ends {
            None => self.ends = Some((page, page)),
            Some((first, last)) => {
                if let Some(record) = vmemmap.get(last) {
                    record.set_aux(index.saturating_add(1));
                }
                self.ends = Some((first, page));
            }
        }
        self.len = self.len.saturating_add(1);
    }

    /// Puts `page`, which is RAM and on no list, at the front.
    pub fn push_front(&mut self, vmemmap: &Vmemmap, page: Pfn) {
        let last = match self.ends {
            None => page,
            Some((first, last)) => {
                let link = vmemmap.map().index_of(first).map_or(0, |index| index.saturating_add(1));
                if let Some(record) = vmemmap.get(page) {
                    record.set_aux(link);
                }
                last
            }
        };
        self.ends = Some((page, last));
        self.len = self.len.saturating_add(1);
    }

    /// The pages, in the order in which they come off.
    pub fn iter<'a>(&self, vmemmap: &'a Vmemmap) -> impl Iterator<Item = Pfn> + use<'a> {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        let next = |page: &Pfn| {
            let link = vmemmap.get(*page)?.aux().checked_sub(1)?;
            vmemmap.map().pfn_of(link)
        };
        core::iter::successors(self.first(), next).take(len)
    }

    /// Takes the first page off.
    pub fn pop(&mut self, vmemmap: &Vmemmap) -> Option<Pfn> {
        let (first, last) = self.ends?;
        let record = vmemmap.get(first)?;
        let next = record.aux().checked_sub(1).and_then(|index| vmemmap.map().pfn_of(index));
        record.set_aux(0);
        self.ends = next.map(|next| (next, last));
        self.len = self.len.saturating_sub(1);
        Some(first)
    }
}
