//! The one path on which a table entry is written.
//!
//! Two kinds of table are told apart by type, because the rules differ:
//!
//! - [`Unlinked`]: no walker can reach it. Its entries are stored in any order, no barrier, no TLBI.
//! - [`Live`]: walkers of other CPUs read it at any moment. What a change needs depends on what
//!   hardware may remember, and each kind of change is one function here:
//!
//! | change | function | what it needs |
//! |---|---|---|
//! | invalid to anything | [`Live::make`] | nothing before: invalid entries are never in a TLB. After the last one [`Live::complete`] (DSB ISHST) |
//! | valid to valid, only permissions, AF or software bits | [`Live::edit`] | if something was taken away, an [`Invalidation`] after it |
//! | valid to invalid | [`Live::unmake`] | an [`Invalidation`]; until it was issued the page still belongs to whoever had it |
//! | any other | [`Live::replace`] | break-before-make: LOCKED, invalidation, then the new word |
//! | a table appears | [`Live::link`] | its contents reach the walkers before its address does (DSB ISHST) |
//!
//! An [`Invalidation`] collects what a series of changes took away and is issued once, by
//! [`Live::invalidate`]: DSB ISH; under the table's own VMID TLBI IPAS2E1IS; DSB ISH;
//! TLBI VMALLE1IS; DSB ISH; ISB. It has a level hint only while all entries were leaves of one
//! level; a table that went away is invalidated at "any level", since its descriptor is cached
//! even when it held nothing.
//!
//! Lock: the caller holds the table's lock; every reference to a [`super::Table`] says so.
#![forbid(unsafe_code)]

use super::entry::{Regime, TABLE_OR_PAGE, VALID, is_table, table_word};
use super::level::Level;
use super::walk::Slot;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::hw::{CpuFeatures, ENTRIES, Machine, MappedPage, PhysMem};
use core::marker::PhantomData;

/// A table page that is filled and not yet reachable.
#[derive(Debug)]
#[must_use = "an unlinked table is linked or given back to its pool"]
pub(super) struct Unlinked {
    page: Pfn,
}

impl Unlinked {
    /// Fills `page` with what `word` gives for each index.
    #[inline]
    pub(super) fn fill(hw: &impl PhysMem, page: Pfn, mut word: impl FnMut(u64) -> u64) -> Self {
        for index in 0..ENTRIES {
            hw.write_entry(page, index, word(index as u64));
        }
        Self { page }
    }

    /// A table of absent entries.
    #[inline]
    pub(super) fn empty(hw: &impl PhysMem, page: Pfn) -> Self {
        hw.zero_page(MappedPage::linear(page));
        Self { page }
    }

    /// Stores one entry.
    #[inline]
    pub(super) fn put(&self, hw: &impl PhysMem, index: usize, word: u64) {
        hw.write_entry(self.page, index, word);
    }

    /// Puts `child` under this table, which is not reachable either.
    #[inline]
    pub(super) fn adopt(&self, hw: &impl PhysMem, index: usize, child: Self) {
        self.put(hw, index, table_word(child.page));
    }

    /// Gives the page up.
    #[inline]
    pub(super) fn page(&self) -> Pfn {
        self.page
    }
}

/// The writer of a table that walkers can reach.
#[derive(Debug)]
pub(super) struct Live<'a, R: Regime, M: Machine> {
    hw: &'a M,
    context: R::Context,
    regime: PhantomData<R>,
}

impl<'a, R: Regime, M: Machine> Live<'a, R, M> {
    /// A writer for tables of `context`.
    #[inline]
    pub(super) fn new(hw: &'a M, context: R::Context) -> Self {
        Self { hw, context, regime: PhantomData }
    }

    /// The word of an entry.
    #[inline]
    pub(super) fn read(&self, slot: &Slot) -> u64 {
        self.hw.read_entry(slot.table, slot.index)
    }

    /// Gives an invalid entry a new word. [`Live::complete`] must follow.
    #[inline]
    pub(super) fn make(&self, slot: &Slot, word: u64) {
        debug_assert!(self.read(slot) & VALID == 0, "make of a valid entry at {slot:?}");
        self.hw.write_entry(slot.table, slot.index, word);
    }

    /// Completes a series of [`Live::make`].
    #[inline]
    pub(super) fn complete(&self) {
        R::complete(self.hw);
    }

    /// Changes bits of a valid leaf that may change while it is valid.
    #[inline]
    pub(super) fn edit(&self, slot: &Slot, word: u64) {
        debug_assert!((self.read(slot) ^ word) & !R::EDITABLE == 0, "edit beyond permissions at {slot:?}");
        self.hw.write_entry(slot.table, slot.index, word);
    }

    /// Makes a valid leaf invalid; `word` is what it says from now on. `inv` must be issued before
    /// the page is anybody else's.
    #[inline]
    pub(super) fn unmake(&self, slot: &Slot, word: u64, inv: &mut Invalidation) {
        debug_assert!(word & VALID == 0, "unmake to a valid word at {slot:?}");
        self.hw.write_entry(slot.table, slot.index, word);
        inv.leaf(slot.ia, slot.level);
    }

    /// Unhooks the table that a live entry points to. `inv` must be issued before its page is
    /// anything else. Only with `empty` may the table have held no valid entry since the last
    /// invalidation.
    #[inline]
    pub(super) fn unlink(&self, slot: &Slot, word: u64, empty: bool, inv: &mut Invalidation) {
        debug_assert!(word & VALID == 0, "unlink to a valid word at {slot:?}");
        self.hw.write_entry(slot.table, slot.index, word);
        if empty { inv.empty_table(slot.ia) } else { inv.subtree(slot.ia, slot.level) }
    }

    /// Break-before-make of one entry, whatever it was.
    pub(super) fn replace(&self, slot: &Slot, word: u64) {
        let old = self.read(slot);
        if old & VALID != 0 {
            let mut inv = Invalidation::new();
            if is_table(slot.level, old) {
                self.unlink(slot, R::BROKEN, false, &mut inv);
            } else {
                self.unmake(slot, R::BROKEN, &mut inv);
            }
            self.invalidate(&inv);
        }
        self.make(slot, word);
        self.complete();
    }

    /// Hooks `child` in where `slot` said the same in one entry.
    pub(super) fn link(&self, slot: &Slot, child: Unlinked) {
        debug_assert!(slot.level != Level::L3, "no table below level 3");
        // Either the DSB of the invalidation orders the child's contents, or this one does.
        if self.read(slot) & VALID == 0 {
            self.complete();
        }
        self.replace(slot, table_word(child.page));
    }

    /// Makes one valid leaf invalid, for every CPU: when it returns, none can use the old word.
    // Inlined: what must be issued for one leaf of a known level is known then.
    #[inline(always)]
    pub(super) fn take_away(&self, slot: &Slot, word: u64) {
        let mut inv = Invalidation::new();
        self.unmake(slot, word, &mut inv);
        R::invalidate(self.hw, self.context, &inv);
    }

    /// Issues and completes what `inv` collected.
    pub(super) fn invalidate(&self, inv: &Invalidation) {
        if !inv.is_empty() {
            R::invalidate(self.hw, self.context, inv);
        }
    }
}

/// What a series of changes took away from translation, to be forgotten by all TLBs at once.
#[derive(Clone, Copy, Debug)]
pub struct Invalidation {
    start: u64,
    end: u64,
    level: Hint,
}

/// Levels of the leaves that went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    Nothing,
    Leaves(Level),
    Any,
}

/// One maintenance instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The entries of one address.
    One { ia: u64, level: Option<u8> },
    /// `(num + 1) << (5 * scale + 1)` pages.
    Range { ia: u64, scale: u8, num: u8, level: Option<u8> },
}

/// More single invalidations than this cost more than the refills after a whole one.
const MAX_SINGLES: u64 = 64;
/// Pages that range operations can name: (31 + 1) << (5 * 3 + 1).
const MAX_RANGE_PAGES: u64 = 1 << 21;

impl Invalidation {
    /// Nothing yet.
    #[inline]
    pub(super) const fn new() -> Self {
        Self { start: u64::MAX, end: 0, level: Hint::Nothing }
    }

    /// Everything of the context.
    #[inline]
    pub(super) const fn all() -> Self {
        Self { start: 0, end: u64::MAX, level: Hint::Any }
    }

    /// True if nothing was taken away.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.level == Hint::Nothing
    }

    /// A leaf went away or lost something.
    #[inline]
    pub(super) fn leaf(&mut self, ia: u64, level: Level) {
        self.level = match self.level {
            Hint::Nothing => Hint::Leaves(level),
            Hint::Leaves(same) if same == level => Hint::Leaves(level),
            _ => Hint::Any,
        };
        self.cover(ia, level.size());
    }

    /// A table went away that may have held valid entries.
    #[inline]
    pub(super) fn subtree(&mut self, ia: u64, level: Level) {
        self.level = Hint::Any;
        self.cover(ia, level.size());
    }

    /// A table went away that held none: only its own descriptor is cached, and any one address
    /// under it names that.
    #[inline]
    pub(super) fn empty_table(&mut self, ia: u64) {
        self.level = Hint::Any;
        self.cover(ia, PAGE_SIZE);
    }

    #[inline]
    fn cover(&mut self, ia: u64, bytes: u64) {
        self.start = self.start.min(ia);
        self.end = self.end.max(ia.wrapping_add(bytes));
    }

    /// Hands out the range instructions that cover what was collected; true if it is too much and
    /// the whole context must go instead.
    #[inline]
    pub(super) fn each(&self, features: &CpuFeatures, mut issue: impl FnMut(Plan)) -> bool {
        let (pages, level) = (self.pages(), self.hint(features));
        if pages == 1 {
            issue(Plan::One { ia: self.start, level });
            return false;
        }
        if !features.tlbi_range {
            return self.each_page(features, |ia, level| issue(Plan::One { ia, level }));
        }
        if pages > MAX_RANGE_PAGES {
            return true;
        }
        let (mut ia, mut pages) = (self.start, pages);
        // Large units first: every base stays aligned to the unit of the level hint.
        for scale in (0..=3_u8).rev() {
            let unit_shift = u32::from(scale).wrapping_mul(5).wrapping_add(1);
            let units = pages.wrapping_shr(unit_shift).min(32);
            if let Some(num) = units.checked_sub(1) {
                #[expect(clippy::cast_possible_truncation, reason = "at most 31")]
                issue(Plan::Range { ia, scale, num: num as u8, level });
                let done = units.wrapping_shl(unit_shift);
                ia = ia.wrapping_add(done << PAGE_SHIFT);
                pages = pages.wrapping_sub(done);
            }
        }
        if pages == 1 {
            issue(Plan::One { ia, level });
        }
        false
    }

    /// Hands out one address after the other; true if there are too many.
    #[inline]
    pub(super) fn each_page(&self, features: &CpuFeatures, mut issue: impl FnMut(u64, Option<u8>)) -> bool {
        let step = match self.level {
            Hint::Nothing => return false,
            Hint::Leaves(level) => level.size(),
            Hint::Any => PAGE_SIZE,
        };
        if self.end.wrapping_sub(self.start) > step.wrapping_mul(MAX_SINGLES) {
            return true;
        }
        let level = self.hint(features);
        let mut ia = self.start;
        while ia < self.end {
            issue(ia, level);
            ia = ia.wrapping_add(step);
        }
        false
    }

    #[inline]
    fn pages(&self) -> u64 {
        self.end.saturating_sub(self.start) >> PAGE_SHIFT
    }

    #[inline]
    fn hint(&self, features: &CpuFeatures) -> Option<u8> {
        match self.level {
            Hint::Leaves(level) if features.ttl => Some(level.number()),
            _ => None,
        }
    }
}

/// The bits that tell a block from a page, for children of a split block.
pub(super) const PAGE_KIND: u64 = TABLE_OR_PAGE;

#[cfg(test)]
mod tests {
    use super::{Invalidation, Plan};
    use crate::hw::CpuFeatures;
    use crate::pgtable::Level;
    use std::vec::Vec;

    const PLAIN: CpuFeatures = CpuFeatures {
        pa_bits: 48,
        vmid_bits: 8,
        fwb: false,
        ttl: false,
        tlbi_range: false,
        xnx: false,
        dic: false,
        idc: false,
        mte: 0,
        mte_perm: false,
    };
    const RANGES: CpuFeatures = CpuFeatures { ttl: true, tlbi_range: true, ..PLAIN };

    fn plan(inv: &Invalidation, cpu: &CpuFeatures) -> Option<Vec<Plan>> {
        let mut plans = Vec::new();
        let whole = inv.each(cpu, |p| plans.push(p));
        (!whole).then_some(plans)
    }

    #[test]
    fn one_leaf_is_one_instruction_with_its_level() {
        let mut inv = Invalidation::new();
        assert!(inv.is_empty());
        inv.leaf(0x20_0000, Level::L2);
        assert_eq!(plan(&inv, &PLAIN).unwrap(), [Plan::One { ia: 0x20_0000, level: None }]);
        let ttl_only = CpuFeatures { ttl: true, ..PLAIN };
        assert_eq!(plan(&inv, &ttl_only).unwrap(), [Plan::One { ia: 0x20_0000, level: Some(2) }]);
    }

    #[test]
    fn a_table_has_no_level_hint_and_neither_have_mixed_leaves() {
        let mut table = Invalidation::new();
        table.empty_table(0x20_0000);
        assert_eq!(plan(&table, &RANGES).unwrap(), [Plan::One { ia: 0x20_0000, level: None }]);
        let mut mixed = Invalidation::new();
        mixed.leaf(0, Level::L2);
        mixed.leaf(0x20_0000, Level::L3);
        assert!(plan(&mixed, &RANGES).unwrap().iter().all(|p| match p {
            Plan::One { level, .. } | Plan::Range { level, .. } => level.is_none(),
        }));
    }

    /// Every page count up to a whole GiB in odd steps: the instructions tile exactly the range.
    #[test]
    fn range_instructions_tile_the_range() {
        for pages in (1..=4096).chain((4097..300_000).step_by(7919)) {
            let mut inv = Invalidation::new();
            let start = 0x4_0000_1000;
            inv.leaf(start, Level::L3);
            inv.leaf(start + (pages - 1) * 4096, Level::L3);
            let mut at = start;
            for p in plan(&inv, &RANGES).unwrap() {
                let (ia, bytes) = match p {
                    Plan::One { ia, level } => {
                        assert_eq!(level, Some(3));
                        (ia, 4096)
                    }
                    Plan::Range { ia, scale, num, level } => {
                        assert!(scale <= 3 && num <= 31 && level == Some(3));
                        (ia, (u64::from(num) + 1) << (5 * u32::from(scale) + 1 + 12))
                    }
                };
                assert_eq!(ia, at);
                at += bytes;
            }
            assert_eq!(at, start + pages * 4096, "{pages}");
        }
    }

    /// A hint of level 2 makes an unaligned base unpredictable.
    #[test]
    fn range_bases_are_aligned_to_the_hinted_level() {
        for blocks in 1..=1024 {
            let mut inv = Invalidation::new();
            inv.leaf(0x4000_0000, Level::L2);
            inv.leaf(0x4000_0000 + ((blocks - 1) << 21), Level::L2);
            for p in plan(&inv, &RANGES).unwrap() {
                let (Plan::One { ia, .. } | Plan::Range { ia, .. }) = p;
                assert!(Level::L2.is_aligned(ia), "{blocks}");
            }
        }
    }

    #[test]
    fn too_much_becomes_the_whole_context() {
        let mut inv = Invalidation::new();
        inv.leaf(0, Level::L3);
        inv.leaf(63 * 4096, Level::L3);
        assert_eq!(plan(&inv, &PLAIN).unwrap().len(), 64);
        inv.leaf(64 * 4096, Level::L3);
        assert!(plan(&inv, &PLAIN).is_none());
        assert!(plan(&inv, &RANGES).is_some());
        inv.leaf(8 << 30, Level::L3);
        assert!(plan(&inv, &RANGES).is_none());
    }
}
