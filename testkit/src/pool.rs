//! A pool of table pages that can fail, and that notices what a real one would not.
#![forbid(unsafe_code)]

use crate::machine::Sim;
use hyp::addr::Pfn;
use hyp::hw::ENTRIES;
use hyp::pgtable::TablePool;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Table pages from the end of RAM.
///
/// A page is handed out full of descriptors that map memory nobody has ([`POISON`]), and filled
/// with them again when it comes back: whoever walks through it too early, or too late, reaches
/// something that no model allows.
///
/// # Panics
/// On a page freed twice or never allocated, a count out of 0..=512, a page freed with entries
/// or while a TLB still remembers it as a table.
#[derive(Debug)]
pub struct TestPool {
    sim: Arc<Sim>,
    free: Vec<u64>,
    live: BTreeMap<u64, u16>,
    roots: Vec<u64>,
    fail_in: Option<u32>,
    allocations: u32,
}

/// Frame that poisoned entries map.
pub const POISON: u64 = 0xbad_0000;

impl TestPool {
    /// The last `pages` pages of RAM.
    ///
    /// # Panics
    /// If RAM is smaller.
    #[must_use]
    pub fn new(sim: &Arc<Sim>, pages: u64) -> Self {
        let first = sim.memory().pages().checked_sub(pages).expect("RAM holds the pool");
        let free = (first..sim.memory().pages()).rev().map(|nth| sim.ram(nth).raw()).collect();
        let (live, roots) = (BTreeMap::new(), Vec::new());
        Self { sim: Arc::clone(sim), free, live, roots, fail_in: None, allocations: 0 }
    }

    /// Consecutive pages for a root, aligned to their total size.
    ///
    /// # Panics
    /// If there are none.
    pub fn root(&mut self, pages: u8) -> Pfn {
        let pages = u64::from(pages);
        // Handed out from the lowest frame up; the rest of the list stays in its order.
        let free: BTreeSet<u64> = self.free.iter().copied().collect();
        let mut aligned = free.iter().copied().filter(|first| first % pages == 0);
        let first = aligned.find(|first| (*first..first + pages).all(|page| free.contains(&page)));
        let first = first.expect("RAM for a root");
        self.free.retain(|page| !(first..first + pages).contains(page));
        for page in first..first + pages {
            self.live.insert(page, 0);
            self.roots.push(page);
        }
        Pfn::new(first).expect("RAM lies below 2^48")
    }

    /// Takes the pages of a root back.
    ///
    /// # Panics
    /// As freeing any other page.
    pub fn give_root(&mut self, first: Pfn, pages: u8) {
        for page in first.raw()..first.raw() + u64::from(pages) {
            self.roots.retain(|root| *root != page);
            self.free(Pfn::new(page).expect("a root is RAM"));
        }
    }

    /// From now on the `nth` allocation fails (1 is the next one), and all after it.
    pub fn fail_at(&mut self, nth: u32) {
        self.fail_in = Some(nth);
    }

    /// Allocations succeed again.
    pub fn recover(&mut self) {
        self.fail_in = None;
    }

    /// Allocations that succeeded so far.
    #[must_use]
    pub const fn allocations(&self) -> u32 {
        self.allocations
    }

    /// Pages in use with their counts, roots included.
    #[must_use]
    pub const fn live(&self) -> &BTreeMap<u64, u16> {
        &self.live
    }

    fn poison(&self, page: u64) {
        for index in 0..ENTRIES {
            // A page, and a table at any other level: both lead nowhere good.
            self.sim.memory().write(page, index, POISON << 12 | 0x7ff);
        }
    }

    #[track_caller]
    fn count(&mut self, table: Pfn) -> &mut u16 {
        self.live.get_mut(&table.raw()).unwrap_or_else(|| panic!("{table:?} is no table of this pool"))
    }
}

impl TablePool for TestPool {
    fn alloc(&mut self) -> Option<Pfn> {
        if let Some(left) = &mut self.fail_in {
            *left = left.saturating_sub(1);
            if *left == 0 {
                *left = 1;
                return None;
            }
        }
        let page = self.free.pop()?;
        self.allocations += 1;
        self.poison(page);
        self.live.insert(page, 0);
        Pfn::new(page).ok()
    }

    fn free(&mut self, page: Pfn) {
        let entries = self.live.remove(&page.raw());
        assert_eq!(entries, Some(0), "{page:?} is freed; entries of a page that is in use");
        assert!(!self.sim.remembers_table(page.raw()), "{page:?} is freed and still cached as a table");
        self.poison(page.raw());
        self.free.push(page.raw());
    }

    fn add_entries(&mut self, table: Pfn, nr: u16) {
        let count = self.count(table);
        *count += nr;
        assert!(*count <= 512, "{table:?} has {count} entries");
    }

    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        let count = self.count(table);
        *count = count.checked_sub(nr).unwrap_or_else(|| panic!("{table:?} has fewer than {nr} entries"));
    }

    fn entries(&self, table: Pfn) -> u16 {
        self.live.get(&table.raw()).copied().unwrap_or_default()
    }
}
