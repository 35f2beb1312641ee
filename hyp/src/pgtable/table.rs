//! A table as a value: its root, shape, format and the name its TLB entries carry.
//!
//! Invariant: the root pages are hyp-owned and belong to one `Table`, which is neither `Clone`
//! nor `Copy`; the entries below are changed through it alone.
//!
//! Lock: a `Table` lives inside a [`crate::lock::Lock`], so whoever has a reference to it has the
//! guard. What can only add tables takes `&self`, so that several [`super::Prepared`] changes can
//! be open at once; what can free one takes `&mut self`, so that none of them is open.
#![forbid(unsafe_code)]

use super::entry::{Corrupt, Entry, Regime, VALID, check_table, frame_of, is_page_like, is_table, leads_on};
use super::error::Error;
use super::level::{Geometry, Level};
use super::pool::TablePool;
use super::publish::{Invalidation, Live};
use super::stage1::{HypFormat, HypStage1};
use super::stage2::{Stage2, Stage2Format};
use super::walk::{Decode, EntryVisitor, Pre, Slot, Span, Step, Visitor, walk};
use crate::addr::{AddrError, Ipa, Pfn, PfnRange};
use crate::hw::{CpuFeatures, Event, Machine, MappedPage, PhysMem, Stage2Ctx, TableOwner};
use core::convert::Infallible;
use core::ops::ControlFlow;

/// A translation table of regime `R`.
#[derive(Debug)]
pub struct Table<R: Regime> {
    pub(super) root: Pfn,
    pub(super) geometry: Geometry,
    pub(super) format: R::Format,
    pub(super) context: R::Context,
    owner: TableOwner,
}

/// EL2's own stage 1.
pub type HypTable = Table<HypStage1>;
/// The host's or a guest's stage 2.
pub type Stage2Table = Table<Stage2>;

/// How a walk gets to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The first `len`, 1..=4.
    tables: [Pfn; 4],
    len: usize,
    slot: Slot,
}

impl Path {
    /// The table pages on the way, root first.
    #[must_use]
    #[inline]
    pub fn tables(&self) -> &[Pfn] {
        self.tables.get(..self.len).unwrap_or_default()
    }

    /// The same without the root.
    #[must_use]
    #[inline]
    pub fn below_root(&self) -> &[Pfn] {
        self.tables.get(1..self.len).unwrap_or_default()
    }

    /// The entry, which is not a table.
    #[must_use]
    #[inline]
    pub const fn slot(&self) -> Slot {
        self.slot
    }
}

/// What a stage-2 table is made of.
#[derive(Clone, Copy, Debug)]
pub struct Stage2Config {
    /// First of [`Geometry::root_pages`] consecutive pages, aligned to their total size,
    /// hyp-owned, with entry counts 0.
    pub root: Pfn,
    /// Shape.
    pub geometry: Geometry,
    /// Format of its entries.
    pub format: Stage2Format,
    /// VMID, which no other live table has.
    pub vmid: u16,
    /// Whose it is.
    pub owner: TableOwner,
}

impl<R: Regime> Table<R> {
    fn create<M: Machine>(hw: &M, table: Self, vmid: u16) -> Result<Self, Error> {
        let pages = table.geometry.root_pages();
        let end = table.root.raw().saturating_add(u64::from(pages));
        if table.root.raw() & u64::from(pages).wrapping_sub(1) != 0
            || end > 1 << R::pa_bits(&table.format).saturating_sub(crate::addr::PAGE_SHIFT)
        {
            return Err(Error::Root(table.root));
        }
        for page in 0..u64::from(pages) {
            let Some(page) = table.root.checked_add(page) else { return Err(Error::Root(table.root)) };
            hw.zero_page(MappedPage::linear(page));
        }
        hw.observe(Event::Root {
            root: table.root,
            pages,
            level: table.geometry.start().number(),
            owner: table.owner,
            vmid,
        });
        Ok(table)
    }

    /// First root page.
    #[must_use]
    pub const fn root(&self) -> Pfn {
        self.root
    }

    /// All root pages.
    #[must_use]
    pub fn root_pages(&self) -> PfnRange {
        // `create` saw that they all exist.
        PfnRange::new(self.root.raw(), u64::from(self.geometry.root_pages()))
            .unwrap_or(PfnRange::one(self.root))
    }

    /// Shape.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Format of the entries.
    #[must_use]
    pub const fn format(&self) -> &R::Format {
        &self.format
    }

    /// The entry that decides about `addr`, and its level.
    ///
    /// # Errors
    /// [`Error::Range`] beyond the input space, [`Error::Corrupt`].
    #[inline(always)]
    pub fn lookup<M: Machine>(&self, hw: &M, addr: R::Addr) -> Result<(Level, Entry<R>), Error> {
        let (slot, word) = self.find(hw, self.check_addr(addr)?, Level::L3);
        Ok((slot.level, self.decode(&slot, word)?))
    }

    /// The table pages that a walk to `addr` passes, and the entry that ends it.
    ///
    /// # Errors
    /// [`Error::Range`] beyond the input space, [`Error::Corrupt`].
    #[inline]
    pub fn path<M: Machine>(&self, hw: &M, addr: R::Addr) -> Result<Path, Error> {
        let ia = self.check_addr(addr)?;
        let mut table = self.geometry.root_page(self.root, ia);
        let mut level = self.geometry.start();
        let mut tables = [table; 4];
        let mut len = 0_usize;
        loop {
            if let Some(here) = tables.get_mut(len) {
                *here = table;
            }
            len = len.saturating_add(1);
            let slot = Slot { table, index: level.index(ia), level, ia: level.align_down(ia) };
            let word = hw.read_entry(table, slot.index);
            if is_table(level, word)
                && let Some(deeper) = level.deeper()
            {
                (table, level) = (self.check_table(ia, level, word)?, deeper);
            } else {
                self.decode(&slot, word)?;
                return Ok(Path { tables, len, slot });
            }
        }
    }

    /// Calls `f` for every entry of `range` that is not a table, in ascending order, until it
    /// breaks. An entry that covers more than the range is handed out once, as it is.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Corrupt`].
    pub fn visit<M: Machine, B>(
        &self,
        hw: &M,
        range: R::Range,
        mut f: impl FnMut(&Slot, Entry<R>) -> ControlFlow<B>,
    ) -> Result<Option<B>, Error> {
        self.visit_runs(hw, range, |first, nr, entry| {
            let mut slot = *first;
            for _ in 0..nr {
                f(&slot, entry)?;
                slot.advance();
            }
            ControlFlow::Continue(())
        })
    }

    /// As [`Table::visit`], but absent entries of one table of level 3 that follow each other are
    /// handed out as one: the first, and how many.
    ///
    /// # Errors
    /// As `visit`.
    #[inline]
    pub fn visit_runs<M: Machine, B>(
        &self,
        hw: &M,
        range: R::Range,
        mut f: impl FnMut(&Slot, u64, Entry<R>) -> ControlFlow<B>,
    ) -> Result<Option<B>, Error> {
        let span = self.span(range)?;
        if span.pages() == 1 {
            let (slot, word) = self.find(hw, span.start, Level::L3);
            return Ok(f(&slot, 1, self.decode(&slot, word)?).break_value());
        }
        let mut visit = Visit { f, result: None };
        self.inspect(hw, span, &mut visit)?;
        Ok(visit.result)
    }

    /// Calls `f` with every table page, root pages included, and the number of its entries that
    /// are not 0; children before their parents. What [`TablePool::entries`] must say of each.
    pub fn tables<M: Machine>(&self, hw: &M, f: impl FnMut(Pfn, u16)) {
        let span = Span { start: 0, end: self.geometry.limit() };
        let start = self.geometry.start();
        let mut count = Count { f, at: self.root, used: [0; 4], start };
        let Ok(()) = self.walk(hw, span, &mut count);
        let used = *count.used(start);
        (count.f)(count.at, used);
    }

    /// Books the entries of every table in a pool that did not count while they were written:
    /// EL2's first map is made before there are records to count in.
    pub fn recount<M: Machine, P: TablePool>(&self, hw: &M, pool: &mut P) {
        self.tables(hw, |page, entries| pool.add_entries(page, entries));
    }

    pub(super) fn walk<M: PhysMem, V: Visitor>(
        &self,
        hw: &M,
        span: Span,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        walk(hw, self.root, self.geometry, span, visitor)
    }

    /// As `walk`, with every entry decoded before it is followed.
    pub(super) fn inspect<M: PhysMem, V: EntryVisitor<R>>(
        &self,
        hw: &M,
        span: Span,
        visitor: &mut V,
    ) -> Result<(), Error> {
        self.walk(hw, span, &mut Decode { table: self, visitor })
    }

    #[inline]
    pub(super) fn live<'a, M: Machine>(&self, hw: &'a M) -> Live<'a, R, M> {
        Live::new(hw, self.context)
    }

    #[inline]
    pub(super) fn check_addr(&self, addr: R::Addr) -> Result<u64, Error> {
        let ia = R::raw(addr);
        if ia < self.geometry.limit() { Ok(ia) } else { Err(Error::Range(AddrError::OutOfSpace(ia))) }
    }

    #[inline]
    pub(super) fn span(&self, range: R::Range) -> Result<Span, Error> {
        let (start, end) = R::bounds(range);
        if end > self.geometry.limit() {
            return Err(Error::Range(AddrError::OutOfSpace(end)));
        }
        Ok(Span { start, end })
    }

    /// The entry for `ia`, which is inside the input space, that ends the walk or is of level
    /// `last`, and its word, which is not decoded yet. A word that cannot be followed ends the
    /// walk: whoever decodes it finds out.
    #[inline]
    pub(super) fn find<M: PhysMem>(&self, hw: &M, ia: u64, last: Level) -> (Slot, u64) {
        let beyond_pa = R::beyond_pa(&self.format);
        let mut table = self.geometry.root_page(self.root, ia);
        let mut level = self.geometry.start();
        loop {
            let index = level.index(ia);
            let word = hw.read_entry(table, index);
            if level < last
                && leads_on(beyond_pa, word)
                && let Some(deeper) = level.deeper()
            {
                (table, level) = (frame_of(word), deeper);
            } else {
                return (Slot { table, index, level, ia: level.align_down(ia) }, word);
            }
        }
    }

    /// Where `word` leads, which is a table of `level` on the way to `ia`.
    #[inline]
    pub(super) fn check_table(&self, ia: u64, level: Level, word: u64) -> Result<Pfn, Error> {
        check_table(R::beyond_pa(&self.format), word).map_err(|why| corrupt(ia, level, word, why))
    }

    #[inline]
    pub(super) fn decode(&self, slot: &Slot, word: u64) -> Result<Entry<R>, Error> {
        R::decode(&self.format, slot.level, word).map_err(|why| corrupt(slot.ia, slot.level, word, why))
    }

    /// Decodes `nr` entries of a table of level 3, from `first` on, for whoever only asks whether
    /// they can be.
    #[inline]
    pub(super) fn decode_pages<M: PhysMem>(&self, hw: &M, first: Slot, nr: u64) -> Result<(), Error> {
        let beyond_pa = R::beyond_pa(&self.format);
        let mut slot = first;
        // An absent entry decodes.
        let mut known = 0;
        for _ in 0..nr {
            let word = hw.read_entry(slot.table, slot.index);
            if !is_page_like(beyond_pa, known, word) {
                self.decode(&slot, word)?;
                known = word;
            }
            slot.advance();
        }
        Ok(())
    }
}

#[cold]
fn corrupt(ia: u64, level: Level, word: u64, why: Corrupt) -> Error {
    Error::Corrupt { ia: level.align_down(ia), level, word, why }
}

/// Counts the entries of the tables on the path.
struct Count<F> {
    f: F,
    /// Root page whose entries are being counted.
    at: Pfn,
    used: [u16; 4],
    start: Level,
}

impl<F: FnMut(Pfn, u16)> Count<F> {
    fn used(&mut self, level: Level) -> &mut u16 {
        let [l0, l1, l2, l3] = &mut self.used;
        match level {
            Level::L0 => l0,
            Level::L1 => l1,
            Level::L2 => l2,
            Level::L3 => l3,
        }
    }

    fn entry(&mut self, slot: &Slot, word: u64) {
        if slot.level == self.start && slot.table != self.at {
            let used = core::mem::take(self.used(slot.level));
            (self.f)(self.at, used);
            self.at = slot.table;
        }
        let used = self.used(slot.level);
        *used = used.saturating_add(u16::from(word != 0));
    }
}

impl<F: FnMut(Pfn, u16)> Visitor for Count<F> {
    type Error = Infallible;

    fn pre(&mut self, slot: &Slot, word: u64, _child: Pfn) -> Result<Pre, Infallible> {
        self.entry(slot, word);
        Ok(Pre::Down)
    }

    #[inline]
    fn leaf(&mut self, slot: &Slot, word: u64) -> Result<Step, Infallible> {
        self.entry(slot, word);
        Ok(Step::Next)
    }

    fn post(&mut self, slot: &Slot, child: Pfn) -> Result<(), Infallible> {
        let below = slot.level.deeper().unwrap_or(slot.level);
        let used = core::mem::take(self.used(below));
        (self.f)(child, used);
        Ok(())
    }
}

/// Empties the root's entries without looking below them.
struct Cut<'a, 'h, R: Regime, M: Machine> {
    live: &'a Live<'h, R, M>,
    inv: &'a mut Invalidation,
}

impl<R: Regime, M: Machine> Visitor for Cut<'_, '_, R, M> {
    type Error = Infallible;

    fn pre(&mut self, slot: &Slot, _word: u64, _child: Pfn) -> Result<Pre, Infallible> {
        self.live.unlink(slot, 0, false, self.inv);
        Ok(Pre::Skip)
    }

    #[inline]
    fn leaf(&mut self, slot: &Slot, word: u64) -> Result<Step, Infallible> {
        if word & VALID != 0 {
            self.live.unmake(slot, 0, self.inv);
        }
        Ok(Step::Next)
    }
}

struct Visit<F, B> {
    f: F,
    result: Option<B>,
}

impl<F, B> Visit<F, B> {
    #[inline(always)]
    fn show<R: Regime>(&mut self, first: &Slot, nr: u64, entry: Entry<R>) -> Step
    where
        F: FnMut(&Slot, u64, Entry<R>) -> ControlFlow<B>,
    {
        match (self.f)(first, nr, entry) {
            ControlFlow::Continue(()) => Step::Next,
            ControlFlow::Break(b) => {
                self.result = Some(b);
                Step::Stop
            }
        }
    }
}

impl<R: Regime, B, F: FnMut(&Slot, u64, Entry<R>) -> ControlFlow<B>> EntryVisitor<R> for Visit<F, B> {
    #[inline]
    fn leaf(&mut self, slot: &Slot, entry: Entry<R>, _word: u64) -> Result<Step, Error> {
        Ok(self.show(slot, 1, entry))
    }

    #[inline]
    fn absent(&mut self, first: &Slot, nr: u64) -> Result<Step, Error> {
        Ok(self.show(first, nr, Entry::Absent))
    }
}

impl Table<Stage2> {
    /// An empty stage-2 table. Its root pages are zeroed here.
    ///
    /// # Errors
    /// [`Error::Vmid`], then [`Error::Root`].
    pub fn new<M: Machine>(hw: &M, config: Stage2Config) -> Result<Self, Error> {
        let Stage2Config { root, geometry, format, vmid, owner } = config;
        let features = hw.features();
        if u32::from(vmid) >> features.vmid_bits.min(16) != 0 {
            return Err(Error::Vmid(vmid));
        }
        let context = stage2_context(features, geometry, root, vmid);
        Self::create(hw, Self { root, geometry, format, context, owner }, vmid)
    }

    /// What VTTBR_EL2 and VTCR_EL2 hold while this table translates.
    #[must_use]
    pub const fn context(&self) -> Stage2Ctx {
        self.context
    }

    /// Makes every CPU forget what it knows of this table's VMID.
    pub fn flush<M: Machine>(&self, hw: &M) {
        self.live(hw).invalidate(&Invalidation::all());
    }

    /// Makes every CPU forget how it translated the page at `addr`, also as a part of a larger entry.
    ///
    /// # Errors
    /// [`Error::Range`] beyond the input space.
    pub fn forget<M: Machine>(&self, hw: &M, addr: Ipa) -> Result<(), Error> {
        let ia = Level::L3.align_down(self.check_addr(addr)?);
        let mut inv = Invalidation::new();
        inv.subtree(ia, Level::L3);
        self.live(hw).invalidate(&inv);
        Ok(())
    }

    /// Takes everything below the root away at once: a vCPU that runs elsewhere faults out for
    /// good. The tables below are lost to their pool; for a machine that is about to reset.
    pub fn cut<M: Machine>(&mut self, hw: &M) {
        let live = self.live(hw);
        let mut inv = Invalidation::all();
        let span = Span { start: 0, end: self.geometry.limit() };
        let Ok(()) = self.walk(hw, span, &mut Cut { live: &live, inv: &mut inv });
        live.invalidate(&inv);
    }

    /// Ends the table: no CPU knows its VMID any more, and the root pages are the caller's.
    ///
    /// Whoever calls has folded everything away; what is still below the root is lost.
    pub fn retire<M: Machine>(self, hw: &M) -> PfnRange {
        self.flush(hw);
        hw.observe(Event::RootGone { root: self.root });
        self.root_pages()
    }
}

impl Table<HypStage1> {
    /// EL2's own table, empty. `root` is one hyp-owned page with entry count 0; it is zeroed here.
    ///
    /// # Errors
    /// [`Error::Root`].
    pub fn new<M: Machine>(hw: &M, root: Pfn, geometry: Geometry) -> Result<Self, Error> {
        let format = HypFormat::new(hw.features());
        Self::create(hw, Self { root, geometry, format, context: (), owner: TableOwner::Hyp }, 0)
    }
}

/// VTTBR_EL2 (VMID 63:48, root 47:1, CnP 0) and VTCR_EL2.
fn stage2_context(features: &CpuFeatures, geometry: Geometry, root: Pfn, vmid: u16) -> Stage2Ctx {
    Stage2Ctx { vttbr: u64::from(vmid) << 48 | root.base().raw(), vtcr: geometry.vtcr(features) }
}
