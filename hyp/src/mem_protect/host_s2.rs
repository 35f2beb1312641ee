//! The host's stage 2: identity, filled on demand, and the pages its tables are made of.
//!
//! Invariant: an entry is absent or a default mapping (identity, everything allowed) unless the
//! page belongs to somebody else; then it is a note, and the tables above it are pinned. A page
//! that the host borrows from a guest is mapped, and pins the tables above it as well.
//!
//! Lock: host_s2; everything here takes the locked value by reference.
#![forbid(unsafe_code)]

use crate::addr::{Ipa, IpaRange, PAGE_SHIFT, Pfn, PfnRange};
use crate::hw::Machine;
use crate::mm::{Cx, HostStates, PageState, REFILL, SpanKind, TablePages, TableSource, TablesOf, Vmemmap};
use crate::pgtable::{Access, Level, MemType, Note, Owner, Path, Prot, S2Attrs, Stage2Table};
use abi::Errno;

/// Table pages kept back for the call that lends more: what giving away pages of one 2 MiB block
/// can take, three tables of the host and three of EL2.
pub const LEND: u64 = 6;

/// Most tables that giving away 512 pages can take: on either side two of each level below the
/// root.
const MOST_TABLES: u64 = 12;

/// The host's half of the world.
#[derive(Debug)]
pub struct HostS2 {
    pub(super) table: Stage2Table,
    pub(super) pages: TablePages,
    pub(super) states: HostStates,
    /// Where the search for a table to drop goes on.
    cursor: u64,
    /// What the last audit saw.
    #[cfg(feature = "fault-injection")]
    pub(super) audited: super::Audit,
}

/// The note of a page that EL2 has.
pub(super) const OWNER_HYP: Note = Note::HostDonated(Owner::Hyp);

/// What the host may do with its own page of this kind, and how.
pub(super) const fn default_attrs(kind: SpanKind) -> S2Attrs {
    match kind {
        SpanKind::Ram => S2Attrs::owned(Prot::RWX, MemType::Normal),
        SpanKind::Mmio => S2Attrs::owned(Prot::RW, MemType::Device),
    }
}

/// True if a leaf with `attrs` lets an access through.
pub(super) fn allows(attrs: S2Attrs, access: Access) -> bool {
    attrs.prot.contains(access.into()) && attrs.accessed
}

/// What must be left of the pool after pages change hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Refilling any default mapping, and lending.
    All,
    /// For the lending call itself: refilling, and no less than before once its pages are in.
    Refill {
        /// Pages that are being lent.
        lent: u64,
    },
}

/// Pages that share one table of level 3, in `pages`, in ascending order.
pub(super) fn by_table(pages: PfnRange) -> impl Iterator<Item = PfnRange> {
    let mut at = pages.start().raw();
    core::iter::from_fn(move || {
        let end = (at | Level::L2.pages().wrapping_sub(1)).saturating_add(1).min(pages.end());
        let part = PfnRange::new(at, end.checked_sub(at)?).ok()?;
        at = end;
        Some(part)
    })
}

/// Entries of level 3 that `pages` take.
fn entries(pages: PfnRange) -> u16 {
    u16::try_from(pages.nr()).unwrap_or(u16::MAX)
}

/// The host's address of a page: its own.
pub(super) const fn identity(page: Pfn) -> Ipa {
    Ipa::truncated(page.base().raw())
}

impl HostS2 {
    pub(super) fn new(table: Stage2Table, pages: TablePages, states: HostStates) -> Self {
        Self {
            table,
            pages,
            states,
            cursor: 0,
            #[cfg(feature = "fault-injection")]
            audited: super::Audit::default(),
        }
    }

    /// The host's table.
    #[must_use]
    pub const fn table(&self) -> &Stage2Table {
        &self.table
    }

    /// The pages that tables of the host and of EL2 are made of.
    #[must_use]
    pub const fn table_pages(&self) -> &TablePages {
        &self.pages
    }

    /// The table and the source of its table pages, at once.
    pub(super) fn parts<'a, M: Machine>(
        &'a mut self,
        cx: Cx<'a, M>,
    ) -> (&'a mut Stage2Table, TableSource<'a, M>) {
        (&mut self.table, self.pages.source(cx, TablesOf::Host))
    }

    /// Drops default mappings until `needed` pages are free, but no table above `keep`.
    ///
    /// # Errors
    /// ENOMEM if there are not that many tables that can be dropped.
    pub(super) fn make_room<M: Machine>(
        &mut self,
        cx: Cx<'_, M>,
        needed: u64,
        keep: IpaRange,
    ) -> Result<(), Errno> {
        let limit = self.table.geometry().limit();
        let mut seen = 0_u64;
        while let Some(want) = needed.checked_sub(self.pages.free_pages()).filter(|&want| want > 0) {
            // One whole turn: every table was looked at.
            if seen >= limit {
                return Err(Errno::Enomem);
            }
            let end = match self.droppable(cx, keep) {
                Ok(span) => {
                    let (table, mut source) = self.parts(cx);
                    let want = u32::try_from(want).unwrap_or(u32::MAX);
                    table.evict(cx.hw, &mut source, span, want, |_, _| true).map_err(|_| Errno::Eio)?;
                    span.end()
                }
                Err(next) => next,
            };
            seen = seen.saturating_add(end.saturating_sub(self.cursor));
            self.cursor = if end < limit { end } else { 0 };
        }
        Ok(())
    }

    /// What the topmost table over the cursor that can be dropped covers; or where to look next.
    fn droppable<M: Machine>(&self, cx: Cx<'_, M>, keep: IpaRange) -> Result<IpaRange, u64> {
        let limit = self.table.geometry().limit();
        let Ok(path) = self.table.path(cx.hw, Ipa::truncated(self.cursor)) else { return Err(limit) };
        let mut above = self.table.geometry().start();
        for &table in path.below_root() {
            let start = above.align_down(self.cursor);
            let end = start.saturating_add(above.size());
            let kept = start < keep.end() && keep.start().raw() < end;
            if !kept
                && cx.vmemmap.get(table).is_some_and(|record| record.aux() == 0)
                && let Ok(span) = IpaRange::new(start, end, self.table.geometry().ia_bits())
            {
                return Ok(span);
            }
            above = above.deeper().unwrap_or(above);
        }
        // Nothing to drop here: on behind the whole table of level 3, or the entry.
        Err(match path.slot().level() {
            Level::L3 => Level::L2.align_down(self.cursor).saturating_add(Level::L2.size()),
            _ => path.slot().end(),
        })
    }

    /// Checks that giving away `pages`, whose tables exist, leaves what `keep` asks for, if EL2's
    /// map takes `hyp_tables` more pages.
    ///
    /// # Errors
    /// ENOMEM if not.
    pub(super) fn check_budget<M: Machine>(
        &self,
        cx: Cx<'_, M>,
        pages: PfnRange,
        hyp_tables: u64,
        keep: Keep,
    ) -> Result<(), Errno> {
        let mut pinning = hyp_tables;
        let mut last: Option<Path> = None;
        for part in by_table(pages) {
            let path = self.table.path(cx.hw, identity(part.start())).map_err(|_| Errno::Eio)?;
            let known = last.as_ref().map_or(&[][..], Path::tables);
            let fresh = path.below_root().iter().filter(|table| {
                !known.contains(table) && cx.vmemmap.get(**table).is_some_and(|record| record.aux() == 0)
            });
            pinning = pinning.saturating_add(fresh.count() as u64);
            last = Some(path);
        }
        let before = self.pages.unpinned_pages();
        let left = before.checked_sub(pinning).ok_or(Errno::Enomem)?;
        let enough = match keep {
            Keep::All => left >= REFILL.saturating_add(LEND),
            Keep::Refill { lent } => {
                left >= REFILL && left.saturating_add(lent) >= before.min(REFILL.saturating_add(LEND))
            }
        };
        if enough { Ok(()) } else { Err(Errno::Enomem) }
    }

    /// True if the pool may lack what giving away 512 pages can take: only then it is counted.
    pub(super) const fn is_scarce(&self) -> bool {
        self.pages.free_pages() < MOST_TABLES
            || self.pages.unpinned_pages() < MOST_TABLES.saturating_add(REFILL).saturating_add(LEND)
    }

    /// Books that the entries of `pages`, at level 3, cannot be found out again from here on.
    /// `table` is the page that all of them are in, if the caller knows it.
    #[inline]
    pub(super) fn pin<M: Machine>(&mut self, cx: Cx<'_, M>, pages: PfnRange, table: Option<Pfn>) {
        self.book(cx, pages, table, TablePages::pin);
    }

    /// Takes back what [`HostS2::pin`] booked.
    #[inline]
    pub(super) fn unpin<M: Machine>(&mut self, cx: Cx<'_, M>, pages: PfnRange, table: Option<Pfn>) {
        self.book(cx, pages, table, TablePages::unpin);
    }

    #[inline]
    fn book<M: Machine>(
        &mut self,
        cx: Cx<'_, M>,
        pages: PfnRange,
        table: Option<Pfn>,
        book: impl Fn(&mut TablePages, &Vmemmap, Pfn, u16) -> bool,
    ) {
        let Some(table) = table else { return self.book_each(cx, pages, book) };
        // Most bookings end with the lowest table.
        if book(&mut self.pages, cx.vmemmap, table, entries(pages)) {
            self.book_above(cx, identity(pages.start()), book);
        }
    }

    /// The same for pages of which nobody knows the tables.
    #[inline(never)]
    fn book_each<M: Machine>(
        &mut self,
        cx: Cx<'_, M>,
        pages: PfnRange,
        book: impl Fn(&mut TablePages, &Vmemmap, Pfn, u16) -> bool,
    ) {
        for part in by_table(pages) {
            self.book_at(cx, identity(part.start()), entries(part), &book);
        }
    }

    /// Books `nr` entries of the table that decides about `ipa`, and so on upwards: a pinned
    /// table pins the one above it.
    pub(super) fn book_at<M: Machine>(
        &mut self,
        cx: Cx<'_, M>,
        ipa: Ipa,
        nr: u16,
        book: impl Fn(&mut TablePages, &Vmemmap, Pfn, u16) -> bool,
    ) {
        let Ok(path) = &self.table.path(cx.hw, ipa) else { return };
        if let Some(table) = path.below_root().last()
            && book(&mut self.pages, cx.vmemmap, *table, nr)
        {
            self.book_above(cx, ipa, book);
        }
    }

    /// The lowest table over `ipa` was pinned, or is no more: so the one above it, and so on.
    #[inline(never)]
    fn book_above<M: Machine>(
        &mut self,
        cx: Cx<'_, M>,
        ipa: Ipa,
        book: impl Fn(&mut TablePages, &Vmemmap, Pfn, u16) -> bool,
    ) {
        let Ok(path) = &self.table.path(cx.hw, ipa) else { return };
        // The root is not from the pool and never dropped.
        for &table in path.below_root().iter().rev().skip(1) {
            if !book(&mut self.pages, cx.vmemmap, table, 1) {
                break;
            }
        }
    }

    /// Tables of the host that nothing pins once the entries of `pages` are default mappings.
    pub(super) fn unpinned_by<M: Machine>(&self, cx: Cx<'_, M>, pages: PfnRange) -> u64 {
        let mut freed = 0_u64;
        for part in by_table(pages) {
            let Ok(path) = &self.table.path(cx.hw, identity(part.start())) else { continue };
            let mut nr = u32::try_from(part.nr()).unwrap_or(u32::MAX);
            for &table in path.below_root().iter().rev() {
                if cx.vmemmap.get(table).is_none_or(|record| record.aux() != nr) {
                    break;
                }
                freed = freed.saturating_add(1);
                nr = 1;
            }
        }
        freed
    }

    /// Makes the entries of `pages`, which are at level 3 and pinned, default mappings again, and
    /// the pages the host's. Cannot fail: nothing is allocated and nothing was valid.
    pub(super) fn restore<M: Machine>(&mut self, cx: Cx<'_, M>, pages: PfnRange) {
        for record in cx.vmemmap.range(pages).unwrap_or_default() {
            record.set_host(PageState::Owned, &mut self.states);
        }
        let table = self.map_default(cx, pages);
        self.unpin(cx, pages, table);
    }

    /// Gives the entries of `pages`, which are at level 3, their default words. Returns the table
    /// page that they are in, if that was found on the way.
    pub(super) fn map_default<M: Machine>(&mut self, cx: Cx<'_, M>, pages: PfnRange) -> Option<Pfn> {
        let (ipa, attrs) = (IpaRange::identity(pages), default_attrs(SpanKind::Ram));
        let (table, mut source) = self.parts(cx);
        if pages.nr() == 1
            && let Ok(Some(at)) = table.page(cx.hw, ipa.start())
            && let Ok(leaf) = at.prepare_leaf(pages.start(), attrs)
        {
            leaf.commit(cx.hw, &mut source);
            return Some(at.table_page());
        }
        match table.prepare_leaf(cx.hw, &mut source, ipa, pages.start(), attrs, Level::L3) {
            Ok(leaf) => {
                let page = leaf.table_page();
                leaf.commit(cx.hw, &mut source);
                page
            }
            Err(e) => {
                debug_assert!(false, "{e:?}");
                None
            }
        }
    }

    /// Writes `note` over the entries of `pages`, which are at level 3 already.
    pub(super) fn note<M: Machine>(&mut self, cx: Cx<'_, M>, pages: PfnRange, note: Note) {
        let (table, mut source) = self.parts(cx);
        if pages.nr() == 1
            && let Ok(Some(at)) = table.page(cx.hw, identity(pages.start()))
            && let Ok(note) = at.prepare_note(note)
        {
            return note.commit(cx.hw, &mut source);
        }
        match table.prepare_note(cx.hw, &mut source, IpaRange::identity(pages), note) {
            Ok(prepared) => prepared.commit(cx.hw, &mut source),
            Err(e) => debug_assert!(false, "{e:?}"),
        }
    }

    /// Input addresses that the host has, as frames: one past the last.
    pub(super) fn frames(&self) -> u64 {
        self.table.geometry().limit() >> PAGE_SHIFT
    }
}
