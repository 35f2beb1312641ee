//! A list of free pages whose links are in the pages themselves.
//!
//! Invariant: every page on the list is hyp-owned and in the linear map, so nobody else can write
//! the links. Word 0 holds the next page's frame number plus one, word 1 the previous one's; 0
//! ends the list. Guarded by the lock of the pool that has the list.
#![forbid(unsafe_code)]

use crate::addr::Pfn;
use crate::hw::PhysMem;

const NEXT: usize = 0;
const PREV: usize = 1;

/// Free pages, newest first; any of them can be taken off.
#[derive(Debug, Default)]
pub(super) struct FreeList {
    head: Option<Pfn>,
    len: u64,
}

fn link(page: Option<Pfn>) -> u64 {
    page.map_or(0, |pfn| pfn.raw().saturating_add(1))
}

fn read(hw: &impl PhysMem, page: Pfn, word: usize) -> Option<Pfn> {
    Pfn::new(hw.read_entry(page, word).checked_sub(1)?).ok()
}

impl FreeList {
    pub(super) const fn new() -> Self {
        Self { head: None, len: 0 }
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn push(&mut self, hw: &impl PhysMem, page: Pfn) {
        hw.write_word(page, NEXT, link(self.head));
        hw.write_word(page, PREV, 0);
        if let Some(head) = self.head {
            hw.write_word(head, PREV, link(Some(page)));
        }
        self.head = Some(page);
        self.len = self.len.saturating_add(1);
    }

    pub(super) fn pop(&mut self, hw: &impl PhysMem) -> Option<Pfn> {
        let page = self.head?;
        self.remove(hw, page);
        Some(page)
    }

    /// Takes off `page`, which is on this list.
    pub(super) fn remove(&mut self, hw: &impl PhysMem, page: Pfn) {
        let (next, prev) = (read(hw, page, NEXT), read(hw, page, PREV));
        match prev {
            Some(prev) => hw.write_word(prev, NEXT, link(next)),
            None => self.head = next,
        }
        if let Some(next) = next {
            hw.write_word(next, PREV, link(prev));
        }
        self.len = self.len.saturating_sub(1);
    }

    /// The pages, newest first: no more than [`FreeList::len`], whatever the links say.
    #[cfg(feature = "fault-injection")]
    pub(super) fn pages<'a>(&self, hw: &'a impl PhysMem) -> impl Iterator<Item = Pfn> + 'a {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        core::iter::successors(self.head, |&page| read(hw, page, NEXT)).take(len)
    }
}
