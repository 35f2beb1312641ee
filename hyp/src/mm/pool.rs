//! Buddy allocator for EL2's own pages.
//!
//! Invariant: a page of the pool is hyp-owned, in the linear map and tagged [`PageUse::Pool`]; a
//! free block's first record says so and its order, and no two free buddies of one order exist.
//! One pool of this kind exists for each vmemmap; it has its own lock, [`crate::lock::Rank::Pool`].
#![forbid(unsafe_code)]

use super::free_list::FreeList;
use super::vmemmap::{PageUse, Vmemmap};
use crate::addr::{Pfn, PfnRange};
use crate::hw::{MappedPage, PhysMem};

/// Largest order: blocks of 128 pages.
pub const MAX_ORDER: u8 = 7;

/// log2 of a block's number of pages, at most [`MAX_ORDER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const PAGE: Self = Self(0);

    /// Checked: `None` above [`MAX_ORDER`].
    #[must_use]
    pub const fn new(order: u8) -> Option<Self> {
        if order > MAX_ORDER { None } else { Some(Self(order)) }
    }

    /// Pages in a block.
    #[must_use]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }

    fn next(self) -> Option<Self> {
        Self::new(self.0.checked_add(1)?)
    }

    fn buddy(self, pfn: Pfn) -> Option<Pfn> {
        Pfn::new(pfn.raw() ^ self.pages()).ok()
    }
}

/// The allocator.
#[derive(Debug)]
pub struct Pool {
    lists: [FreeList; MAX_ORDER as usize + 1],
    free: u64,
    total: u64,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool {
    /// A pool without pages.
    #[must_use]
    pub const fn new() -> Self {
        Self { lists: [const { FreeList::new() }; MAX_ORDER as usize + 1], free: 0, total: 0 }
    }

    /// Free pages.
    #[must_use]
    pub const fn free_pages(&self) -> u64 {
        self.free
    }

    /// Pages that were ever added.
    #[must_use]
    pub const fn total_pages(&self) -> u64 {
        self.total
    }

    /// Gives the pool `pages`: RAM, hyp-owned, in the linear map and in no other use. Frames that
    /// are not RAM are passed over.
    pub fn add(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap, pages: PfnRange) {
        for pfn in pages.iter() {
            if let Some(record) = vmemmap.get(pfn) {
                record.set_use(PageUse::Pool);
                self.total = self.total.saturating_add(1);
                self.free(hw, vmemmap, pfn);
            }
        }
    }

    /// A zeroed block of `order`, aligned to its size, or `None` if there is none.
    pub fn alloc(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap, order: Order) -> Option<Pfn> {
        let mut from = order;
        let block = loop {
            match self.list(from).and_then(|list| list.pop(hw)) {
                Some(block) => break block,
                None => from = from.next()?,
            }
        };
        let record = vmemmap.get(block)?;
        record.set_free(false);
        record.set_order(order.0);
        while from > order {
            from = Order(from.0.saturating_sub(1));
            // The upper half: `block` is aligned to twice its size.
            let upper = from.buddy(block)?;
            self.put(hw, vmemmap, upper, from);
        }
        let pages = PfnRange::new(block.raw(), order.pages()).ok()?;
        pages.iter().for_each(|page| hw.zero_page(MappedPage::linear(page)));
        self.free = self.free.saturating_sub(order.pages());
        Some(block)
    }

    /// Takes back the block that [`Pool::alloc`] handed out at `block`.
    pub fn free(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap, block: Pfn) {
        let Some(record) = vmemmap.get(block) else { return };
        debug_assert!(record.page_use() == PageUse::Pool && !record.is_free(), "double free of {block:?}");
        let (mut block, mut order) = (block, Order(record.order()));
        self.free = self.free.saturating_add(order.pages());
        while let Some(wider) = order.next() {
            let Some(buddy) = order.buddy(block) else { break };
            let Some(other) = vmemmap.get(buddy) else { break };
            if !(other.page_use() == PageUse::Pool && other.is_free() && other.order() == order.0) {
                break;
            }
            if let Some(list) = self.list(order) {
                list.remove(hw, buddy);
            }
            other.set_free(false);
            other.set_order(0);
            block = block.min(buddy);
            order = wider;
        }
        self.put(hw, vmemmap, block, order);
    }

    fn put(&mut self, hw: &impl PhysMem, vmemmap: &Vmemmap, block: Pfn, order: Order) {
        if let (Some(list), Some(record)) = (self.list(order), vmemmap.get(block)) {
            record.set_order(order.0);
            record.set_free(true);
            list.push(hw, block);
        }
    }

    fn list(&mut self, order: Order) -> Option<&mut FreeList> {
        self.lists.get_mut(usize::from(order.0))
    }
}
