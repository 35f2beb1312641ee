//! A guest's stage 2 and its page stores, as a value that is complete without a vCPU.
//!
//! Invariant: a leaf that says OWNED or SHARED_OWNED leads to a page whose record and whose entry
//! in the host's table say so too; a leaf that says SHARED_BORROWED is counted in the record of
//! its page. A protected guest's reserve is full between calls. For every block of a protected
//! guest, EL2's map has its table of level 3 ready (see `hold`), so that any of the block's pages
//! can become the next reserve without an allocation.
//!
//! Lock: guest_s2, by handle.
#![forbid(unsafe_code)]

use super::host_s2::HostS2;
use super::token::OwnedPages;
use super::{HypS1, Hypervisor};
use crate::addr::{AddrError, HypVa, Ipa, IpaRange, PAGE_SHIFT, Pfn, PfnRange, VaRange};
use crate::error::Error;
use crate::hw::{Event, Machine, Stage2Ctx, TableOwner};
use crate::lock::{Guard, Lock, Rank};
use crate::mm::{Cx, PtCache, PtSource, SplitReserve, TablePages, TablesOf};
use crate::pgtable::{
    self, Entry, Geometry, LeafState, Level, Note, NoteKinds, PendingState, Prot, Ripas, S2Attrs, Slot,
    Stage2, Stage2Config, Stage2Format, Stage2Table, TablePool, TagControl,
};
use abi::Errno;
use abi::vm::MtePolicy;
use core::ops::ControlFlow;

/// What kind of VM a table belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestKind {
    /// The host shares its pages with it.
    NonProtected,
    /// The host gives it pages, and it may share them back in place.
    Classic,
    /// The host gives it pages in the lower half of its IPA space and shares in the upper half.
    Split,
}

impl GuestKind {
    /// True if the host cannot reach the VM's own pages.
    #[must_use]
    pub const fn is_protected(self) -> bool {
        matches!(self, Self::Classic | Self::Split)
    }

    /// True if the host shares its pages with the VM.
    #[must_use]
    pub const fn is_non_protected(self) -> bool {
        matches!(self, Self::NonProtected)
    }

    /// True for split IPA.
    #[must_use]
    pub const fn is_split(self) -> bool {
        matches!(self, Self::Split)
    }
}

/// What a guest's table is made for.
#[derive(Clone, Copy, Debug)]
pub struct GuestConfig {
    /// VM handle.
    pub handle: u16,
    /// What kind of VM it is.
    pub kind: GuestKind,
    /// Bits of its IPA space, 32..=48 and at most the CPU's.
    pub ipa_bits: u32,
    /// VMID that no other table has.
    pub vmid: u16,
    /// What the VM may do with allocation tags. If it has MTE, tags are zeroed whenever its pages are.
    pub mte: MtePolicy,
}

/// A guest's table, locked or not: what a VM has of `mem_protect`.
pub type Guest<M> = Lock<GuestS2, M>;
/// A guest's table, locked.
pub type GuestS2Guard<'a, M> = Guard<'a, GuestS2, M>;

/// What the guest_s2 lock guards.
#[derive(Debug)]
pub struct GuestS2 {
    handle: u16,
    kind: GuestKind,
    pub(super) mte: MtePolicy,
    /// Tag accesses that faulted where the guest has tags.
    spurious: u64,
    pub(super) table: Stage2Table,
    pub(super) cache: PtCache,
    pub(super) reserve: SplitReserve,
}

/// What stands at consecutive guest frames that one entry decides about, or absent entries of
/// one table of level 3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// First frame in the range that was asked about.
    pub(crate) gfn: u64,
    /// Frames in that range.
    pub(crate) nr: u64,
    /// How many entries.
    pub(crate) entries: u64,
    /// First address of the first entry.
    pub(crate) entry_start: u64,
    /// One past the last address of the last.
    pub(crate) entry_end: u64,
    /// Their level.
    pub(crate) level: Level,
    /// What it says.
    pub(crate) view: View,
}

/// Meaning of a guest's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Absent.
    Nothing,
    /// A note without a page.
    Ripas(Ripas),
    /// A device that the guest declared.
    Guard,
    /// A page, or a block: the frame behind the part's first. The guest may not use its tags if it is `no_tag`.
    Page { pfn: Pfn, state: LeafState, no_tag: bool },
}

impl View {
    /// The page, if the guest has one here in the state `wanted`.
    ///
    /// # Errors
    /// ENOENT nothing here, EHWPOISON destroyed, EPERM anything else.
    pub(crate) fn page(self, wanted: LeafState) -> Result<Pfn, Errno> {
        match self {
            Self::Nothing => Err(Errno::Enoent),
            Self::Ripas(Ripas::Destroyed) => Err(Errno::Ehwpoison),
            Self::Page { pfn, state, .. } if state == wanted => Ok(pfn),
            Self::Page { .. } | Self::Guard | Self::Ripas(Ripas::Ram) => Err(Errno::Eperm),
        }
    }

    /// Whether the host may put a page here, in a VM of `kind`.
    ///
    /// # Errors
    /// EEXIST there is one, EHWPOISON destroyed, EPERM guarded, or EMPTY in a VM with split IPA.
    pub(crate) const fn vacant(self, kind: GuestKind) -> Result<(), Errno> {
        match (self, kind) {
            (Self::Nothing, GuestKind::Classic | GuestKind::NonProtected)
            | (Self::Ripas(Ripas::Ram), GuestKind::Split) => Ok(()),
            (Self::Page { .. }, _) => Err(Errno::Eexist),
            (Self::Ripas(Ripas::Destroyed), _) => Err(Errno::Ehwpoison),
            (Self::Nothing | Self::Guard | Self::Ripas(Ripas::Ram), _) => Err(Errno::Eperm),
        }
    }

    /// Whether the host may lend a page here.
    ///
    /// # Errors
    /// EEXIST there is one, EPERM anything else.
    pub(crate) const fn absent(self) -> Result<(), Errno> {
        match self {
            Self::Nothing => Ok(()),
            Self::Page { .. } => Err(Errno::Eexist),
            Self::Guard | Self::Ripas(_) => Err(Errno::Eperm),
        }
    }
}

impl Part {
    /// The part of `range` that `entries` entries from `slot` on, which say `entry`, decide about.
    #[inline]
    fn new(range: IpaRange, slot: &Slot, entries: u64, entry: Entry<Stage2>) -> Option<Self> {
        let (entry_start, entry_end) = (slot.ia(), slot.end_of(entries));
        let start = entry_start.max(range.start().raw());
        let end = entry_end.min(range.end());
        let view = view(entry, start.saturating_sub(entry_start) >> PAGE_SHIFT)?;
        let (gfn, nr) = (start >> PAGE_SHIFT, end.saturating_sub(start) >> PAGE_SHIFT);
        Some(Self { gfn, nr, entries, entry_start, entry_end, level: slot.level(), view })
    }

    /// One past the last frame in the range.
    pub(crate) const fn end(&self) -> u64 {
        self.gfn.saturating_add(self.nr)
    }

    /// The frames in the range, by address.
    pub(crate) fn range(&self) -> Result<IpaRange, AddrError> {
        PfnRange::new(self.gfn, self.nr).map(IpaRange::identity)
    }

    /// The whole entries, by address.
    pub(crate) fn entry(&self) -> Result<IpaRange, AddrError> {
        let (start, end) = (self.entry_start >> PAGE_SHIFT, self.entry_end >> PAGE_SHIFT);
        PfnRange::new(start, end.saturating_sub(start)).map(IpaRange::identity)
    }

    /// The pages behind the part, if it has any.
    pub(super) fn pages(&self) -> Option<PfnRange> {
        match self.view {
            View::Page { pfn, .. } => PfnRange::new(pfn.raw(), self.nr).ok(),
            _ => None,
        }
    }

    /// The pages of the block that the part lies in, if it is in one.
    pub(super) fn block(&self) -> Option<PfnRange> {
        let View::Page { pfn, .. } = self.view else { return None };
        let nr = Level::L2.pages();
        (self.level == Level::L2).then(|| PfnRange::new(pfn.raw() & !nr.wrapping_sub(1), nr).ok())?
    }

    /// True for a block of which the range has a part only.
    pub(super) fn is_partial_block(&self) -> bool {
        self.level == Level::L2 && self.block().is_some() && self.nr < Level::L2.pages()
    }
}

/// The leading frames of a range that a call works on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leading {
    /// The frames.
    pub(super) range: IpaRange,
    /// Their pages, if every frame has one and they follow each other.
    pub(super) pages: Option<PfnRange>,
    /// Of some block only a part is in the range.
    pub(super) partial_blocks: bool,
}

impl GuestS2 {
    /// VM handle.
    #[must_use]
    pub const fn handle(&self) -> u16 {
        self.handle
    }

    /// What kind of VM it is.
    #[must_use]
    pub const fn kind(&self) -> GuestKind {
        self.kind
    }

    /// What the VM may do with allocation tags.
    #[must_use]
    pub const fn mte(&self) -> MtePolicy {
        self.mte
    }

    /// The table.
    #[must_use]
    pub const fn table(&self) -> &Stage2Table {
        &self.table
    }

    /// The pages its tables are made of.
    #[must_use]
    pub const fn cache(&self) -> &PtCache {
        &self.cache
    }

    /// The page that splits a block when part of it is destroyed.
    #[must_use]
    pub const fn reserve(&self) -> &SplitReserve {
        &self.reserve
    }

    /// How often a CPU took a page for one without tags that was none any more.
    #[must_use]
    pub const fn spurious_tag_faults(&self) -> u64 {
        self.spurious
    }

    /// No CPU remembers that the page at `ipa` was without tags.
    ///
    /// # Errors
    /// ERANGE: beyond the guest's space.
    pub(crate) fn forget_no_tag<M: Machine>(&mut self, hw: &M, ipa: Ipa) -> Result<(), Error> {
        self.spurious = self.spurious.saturating_add(1);
        Ok(self.table.forget(hw, ipa)?)
    }

    /// The table, with the source of its pages.
    pub(crate) const fn parts_of<'a, M>(
        &'a mut self,
        cx: Cx<'a, M>,
    ) -> (&'a mut Stage2Table, PtSource<'a, M>) {
        (&mut self.table, self.cache.source(cx))
    }

    /// What VTTBR_EL2 and VTCR_EL2 hold while this guest runs.
    #[must_use]
    pub const fn context(&self) -> Stage2Ctx {
        self.table.context()
    }

    /// EACCES unless the VM is of a kind that `wanted` accepts.
    pub(crate) fn check_kind(&self, wanted: impl Fn(GuestKind) -> bool) -> Result<(), Errno> {
        if wanted(self.kind) { Ok(()) } else { Err(Errno::Eacces) }
    }

    /// Sees that the cache has the pages for `needed` tables.
    ///
    /// # Errors
    /// [`Error::NoTables`] with how many it lacks.
    pub(crate) fn check_tables(&self, needed: u32) -> Result<(), Error> {
        let there = u32::try_from(self.cache.pages()).unwrap_or(u32::MAX);
        match needed.saturating_sub(there) {
            0 => Ok(()),
            lacks => Err(Error::NoTables(lacks)),
        }
    }

    /// One past the last address where the VM can own a page: with split IPA, the lower half.
    pub(crate) fn owned_end(&self) -> u64 {
        let limit = self.table.geometry().limit();
        if self.kind.is_split() { limit >> 1 } else { limit }
    }

    /// ERANGE unless the VM can own pages in all of `range`.
    pub(crate) fn check_owned_range(&self, range: IpaRange) -> Result<(), Errno> {
        if range.end() <= self.owned_end() { Ok(()) } else { Err(Errno::Erange) }
    }

    /// ERANGE if `range` is beyond the space of this VM with split IPA, EINVAL if it is not all in the
    /// upper half.
    pub(super) fn check_unprotected_range(&self, range: IpaRange) -> Result<(), Errno> {
        if range.end() > self.table.geometry().limit() {
            return Err(Errno::Erange);
        }
        if range.start().raw() >= self.owned_end() { Ok(()) } else { Err(Errno::Einval) }
    }

    /// Calls `f` for every entry of `range` until it breaks, in ascending order.
    ///
    /// # Errors
    /// EIO for an entry that nothing here wrote.
    #[inline]
    pub(crate) fn parts<M: Machine, B>(
        &self,
        hw: &M,
        range: IpaRange,
        mut f: impl FnMut(Part) -> ControlFlow<B>,
    ) -> Result<Option<B>, Error> {
        let visited = self.table.visit(hw, range, |slot: &Slot, entry| {
            let Some(part) = Part::new(range, slot, 1, entry) else { return ControlFlow::Break(None) };
            f(part).map_break(Some)
        })?;
        visited.map_or(Ok(None), |broken| broken.map(Some).ok_or(Errno::Eio.into()))
    }

    /// As [`GuestS2::parts`], but absent entries of one table of level 3 that follow each other are
    /// one part.
    ///
    /// # Errors
    /// As `parts`.
    #[inline]
    pub(super) fn parts_in_runs<M: Machine, B>(
        &self,
        hw: &M,
        range: IpaRange,
        mut f: impl FnMut(Part) -> ControlFlow<B>,
    ) -> Result<Option<B>, Error> {
        let visited = self.table.visit_runs(hw, range, |slot: &Slot, entries, entry| {
            let Some(part) = Part::new(range, slot, entries, entry) else {
                return ControlFlow::Break(None);
            };
            f(part).map_break(Some)
        })?;
        visited.map_or(Ok(None), |broken| broken.map(Some).ok_or(Errno::Eio.into()))
    }

    /// The leading frames of `range` for which `wanted` says yes.
    ///
    /// # Errors
    /// What `wanted` says about the first frame; EIO.
    #[inline]
    pub(super) fn leading<M: Machine>(
        &self,
        hw: &M,
        range: IpaRange,
        wanted: impl Fn(View) -> Result<(), Errno>,
    ) -> Result<Leading, Error> {
        let first = range.start().raw() >> PAGE_SHIFT;
        let (mut end, mut page, mut in_row, mut partial_blocks) = (first, None, true, false);
        let refused = self.parts(hw, range, |part| match wanted(part.view) {
            Ok(()) => {
                end = part.end();
                partial_blocks |= part.is_partial_block();
                match (part.view, page) {
                    (View::Page { pfn, .. }, None) if part.gfn == first => page = Some(pfn),
                    (View::Page { pfn, .. }, Some(page)) => {
                        in_row &= pfn.raw().wrapping_sub(page.raw()) == part.gfn.wrapping_sub(first);
                    }
                    _ => in_row = false,
                }
                ControlFlow::Continue(())
            }
            Err(e) => ControlFlow::Break(e),
        })?;
        if let Some(e) = refused.filter(|_| end == first) {
            return Err(e.into());
        }
        let nr = end.saturating_sub(first);
        let pages = page.filter(|_| in_row).and_then(|page| PfnRange::new(page.raw(), nr).ok());
        Ok(Leading { range: IpaRange::identity(PfnRange::new(first, nr)?), pages, partial_blocks })
    }

    /// The blocks of which `range` has a part only, each as the pages behind it: at most two.
    pub(super) fn partial_blocks<M: Machine>(
        &self,
        hw: &M,
        range: IpaRange,
    ) -> Result<[Option<PfnRange>; 2], Error> {
        let mut blocks = [None; 2];
        self.parts(hw, range, |part| {
            if part.is_partial_block() {
                let [first, last] = &mut blocks;
                *(if first.is_none() { first } else { last }) = part.block();
            }
            ControlFlow::<()>::Continue(())
        })?;
        Ok(blocks)
    }
}

/// What an entry says, `offset` pages behind its first; `None` for what no guest's table has.
// Inlined: a call would have the entry written to memory.
#[inline(always)]
pub(crate) fn view(entry: Entry<Stage2>, offset: u64) -> Option<View> {
    Some(match entry {
        Entry::Absent => View::Nothing,
        Entry::Note(Note::Ripas(ripas)) => View::Ripas(ripas),
        Entry::Note(Note::MmioGuard) => View::Guard,
        Entry::Note(Note::NoTagPending { page, state, .. }) => View::Page {
            pfn: page,
            state: match state {
                PendingState::Owned => LeafState::Owned,
                PendingState::SharedBorrowed => LeafState::SharedBorrowed,
            },
            no_tag: true,
        },
        Entry::Leaf(leaf) => View::Page {
            pfn: leaf.output.checked_add(offset)?,
            state: leaf.attrs.state,
            no_tag: leaf.attrs.prot.contains(Prot::NO_TAG),
        },
        Entry::Note(Note::HostDonated(_)) | Entry::Table(_) => return None,
    })
}

/// ENOMEM with the number of pages that the VM's own store lacks.
pub(crate) fn guest_error(e: pgtable::Error) -> Error {
    match e {
        pgtable::Error::NoTables { needed } => Error::NoTables(needed),
        e => e.into(),
    }
}

/// The attributes of a guest's own page.
pub(super) const fn owned(prot: pgtable::Prot) -> S2Attrs {
    S2Attrs::owned(prot, pgtable::MemType::Normal)
}

/// Consecutive pages, collected one by one: `f` gets each run.
pub(super) struct Runs<F: FnMut(PfnRange)> {
    run: Option<PfnRange>,
    f: F,
}

impl<F: FnMut(PfnRange)> Runs<F> {
    pub(super) const fn new(f: F) -> Self {
        Self { run: None, f }
    }

    pub(super) fn push(&mut self, pages: PfnRange) {
        let joined = self
            .run
            .filter(|run| run.end() == pages.start().raw())
            .and_then(|run| PfnRange::new(run.start().raw(), run.nr().saturating_add(pages.nr())).ok());
        if joined.is_none() {
            self.flush();
        }
        self.run = joined.or(Some(pages));
    }

    pub(super) fn flush(&mut self) {
        if let Some(run) = self.run.take() {
            (self.f)(run);
        }
    }
}

/// Makes EL2's map ready for any page of `block`: its tables down to level 3 exist from here on.
///
/// # Errors
/// ENOMEM. The pool was asked to have room.
pub(super) fn hold<M: Machine>(
    cx: Cx<'_, M>,
    pool: &mut TablePages,
    hyp: &HypS1,
    block: PfnRange,
) -> Result<(), Error> {
    let mut source = pool.source(cx, TablesOf::Hyp);
    let first = VaRange::linear(PfnRange::one(block.start()));
    hyp.table.split(cx.hw, &mut source, first, Level::L3)?;
    let path = hyp.table.path(cx.hw, HypVa::linear(block.start().base()))?;
    source.add_entries(path.slot().table(), 1);
    Ok(())
}

/// Ends [`hold`]: the block is none any more.
pub(super) fn release<M: Machine>(cx: Cx<'_, M>, host: &mut HostS2, hyp: &mut HypS1, block: PfnRange) {
    let mut source = host.pages.source(cx, TablesOf::Hyp);
    let Ok(path) = hyp.table.path(cx.hw, HypVa::linear(block.start().base())) else { return };
    source.remove_entries(path.slot().table(), 1);
    let folded = hyp.table.fold(cx.hw, &mut source, VaRange::linear(block));
    debug_assert!(folded.is_ok(), "{folded:?}");
}

impl<M: Machine> Hypervisor<M> {
    /// A guest's table, empty. `root` are the pages of its root; `reserve` is the page that a
    /// protected VM has for splitting blocks, and `None` for any other.
    ///
    /// # Errors
    /// EINVAL: no table has this shape, the root is not as large and as aligned as it needs, the
    /// VMID does not fit, or the reserve does not fit the kind of VM. The pages are the host's
    /// again then.
    pub fn new_guest<'a>(
        &'a self,
        hw: &'a M,
        config: GuestConfig,
        root: OwnedPages<'a, M>,
        reserve: Option<OwnedPages<'a, M>>,
    ) -> Result<Guest<M>, Error> {
        let GuestConfig { handle, kind, ipa_bits, vmid, mte } = config;
        let features = hw.features();
        let geometry = Geometry::stage2(ipa_bits, features.pa_bits.into()).map_err(|_| Errno::Einval)?;
        let one = |pages: &OwnedPages<'_, M>| pages.pages().nr() == 1;
        if root.pages().nr() != u64::from(geometry.root_pages())
            || kind.is_protected() != reserve.as_ref().is_some_and(one)
        {
            return Err(Errno::Einval.into());
        }
        let notes = match kind {
            GuestKind::NonProtected => NoteKinds::MMIO_GUARD,
            GuestKind::Classic => NoteKinds::RIPAS_DESTROYED | NoteKinds::MMIO_GUARD,
            GuestKind::Split => NoteKinds::RIPAS_DESTROYED | NoteKinds::RIPAS_RAM,
        };
        let tags = if mte.is_lazy() { TagControl::Enforced } else { TagControl::Unused };
        let pending = Stage2Format::guest(features, tags, notes);
        let format = if pending.maps_no_tag() {
            pending
        } else {
            Stage2Format::guest(features, tags, notes | NoteKinds::NO_TAG_PENDING)
        };
        let table = Stage2Table::new(
            hw,
            Stage2Config {
                root: root.pages().start(),
                geometry,
                format,
                vmid,
                owner: TableOwner::Guest(handle),
            },
        )?;
        if mte.has_mte() {
            hw.observe(Event::UsesTags { root: root.pages().start() });
        }
        let _root = root.into_guest_root();
        let cx = self.cx(hw);
        let reserve = match reserve.and_then(OwnedPages::into_table_page) {
            Some(page) => SplitReserve::full(cx, page),
            None => SplitReserve::none(),
        };
        let guest = GuestS2 { handle, kind, mte, spurious: 0, table, cache: PtCache::new(), reserve };
        Ok(Lock::new(Rank::GuestS2(handle), guest))
    }
}
