//! Every page by its record, held against the host's table and EL2's map; and the table pool.
#![forbid(unsafe_code)]

use super::page::{Page, spread};
use super::{Audit, Ends};
use crate::addr::{PAGE_SHIFT, Pfn, PfnRange};
use crate::hw::Machine;
use crate::mem_protect::boot::WINDOWS;
use crate::mem_protect::host_hyp::DATA;
use crate::mem_protect::host_s2::{OWNER_HYP, default_attrs};
use crate::mem_protect::{HostS2, HypS1};
use crate::mm::{Cx, PageUse, Record, SpanKind};
use crate::pgtable::{
    Corrupt, Entry, HypStage1, Leaf, LeafState, Level, Note, Owner, Regime, S2Attrs, Slot, Stage2, Surveyor,
};
use abi::inspect::{Damage, Figure};

/// Looks at all records, the host's table, EL2's map and the table pool.
pub(super) fn look<M: Machine>(cx: Cx<'_, M>, host: &HostS2, hyp: &HypS1, audit: &mut Audit) -> Ends {
    let mut pool = PoolSeen::default();
    let mut ends = Ends::default();
    let mut of_host = OfHost { cx, audit, ends: &mut ends, pool: &mut pool, pins: [0; 4], host };
    host.table.survey(cx.hw, &mut of_host);
    hyp.table.survey(cx.hw, &mut OfHyp { cx, audit, ends: &mut ends, pool: &mut pool, hyp });
    pool.check(cx, host, audit);
    ends
}

/// Finds the notes that name a VM which is none of `handles`.
pub(super) fn notes_of_nobody<M: Machine>(cx: Cx<'_, M>, host: &HostS2, handles: &[u16], audit: &mut Audit) {
    for_notes(cx, host, |frame, handle, _| {
        audit.check(handles.contains(&handle), Damage::Note, handle, frame);
    });
}

/// Calls `f` with page, handle and guest frame of every note in the host's table that names a VM.
pub(super) fn for_notes<M: Machine>(cx: Cx<'_, M>, host: &HostS2, f: impl FnMut(u64, u16, u64)) {
    host.table.survey(cx.hw, &mut Notes { cx, f });
}

struct Notes<'a, M, F> {
    cx: Cx<'a, M>,
    f: F,
}

impl<M: Machine, F: FnMut(u64, u16, u64)> Surveyor<Stage2> for Notes<'_, M, F> {
    fn entry(&mut self, slot: &Slot, entry: Result<Entry<Stage2>, Corrupt>) -> bool {
        if let Ok(Entry::Note(Note::HostDonated(Owner::Guest { handle, gfn }))) = entry {
            (self.f)(slot.ia() >> PAGE_SHIFT, handle, gfn.raw());
        }
        matches!(entry, Ok(Entry::Table(table)) if is_own_table(self.cx, table).is_some())
    }

    fn end(&mut self, _table: Pfn, _level: Level, _used: u16) {}
}

/// Files what a survey says of a word that is no entry.
pub(super) fn no_entry(audit: &mut Audit, why: Corrupt, handle: u16, slot: &Slot) {
    let damage = if why == Corrupt::Locked { Damage::Locked } else { Damage::Corrupt };
    audit.find(damage, handle, slot.ia() >> PAGE_SHIFT);
}

/// What a page is for that a table of the host or of EL2 can be made of, if it is in use.
fn is_own_table<M: Machine>(cx: Cx<'_, M>, table: Pfn) -> Option<PageUse> {
    let record = cx.vmemmap.get(table).filter(|record| !record.is_free())?;
    match Page::of(record)? {
        Page::Hyp(page_use @ (PageUse::Image | PageUse::TablePool | PageUse::Lent)) => Some(page_use),
        _ => None,
    }
}

/// Pages in `[first, first + nr)`: with their records, or `None` for a run that is no RAM.
fn pages<M: Machine>(cx: Cx<'_, M>, slot: &Slot, mut f: impl FnMut(u64, Option<&'static Record>)) {
    let (mut at, end) = (slot.ia() >> PAGE_SHIFT, slot.end().wrapping_sub(1) >> PAGE_SHIFT);
    while at <= end
        && let Ok(pfn) = Pfn::new(at)
    {
        let span = cx.vmemmap.span(pfn);
        let stop = span.pages.end().min(end.saturating_add(1));
        match PfnRange::new(at, stop.saturating_sub(at)) {
            Ok(run) if span.kind == SpanKind::Ram => {
                let records = cx.vmemmap.range(run).unwrap_or_default();
                run.iter().zip(records).for_each(|(pfn, record)| f(pfn.raw(), Some(record)));
            }
            _ => f(at, None),
        }
        at = stop;
    }
}

/// The frame behind `leaf` for input frame `at`, in an entry that starts at `slot`.
fn behind<R: Regime>(leaf: &Leaf<R>, slot: &Slot, at: u64) -> u64 {
    leaf.output.raw().wrapping_add(at.wrapping_sub(slot.ia() >> PAGE_SHIFT))
}

struct OfHost<'a, M: Machine> {
    cx: Cx<'a, M>,
    audit: &'a mut Audit,
    ends: &'a mut Ends,
    pool: &'a mut PoolSeen,
    /// Entries that pin their table, of the table of each level that the path passes.
    pins: [u32; 4],
    host: &'a HostS2,
}

impl<M: Machine> OfHost<'_, M> {
    fn pin(&mut self, level: Level) {
        if let Some(pins) = self.pins.get_mut(usize::from(level.number())) {
            *pins = pins.saturating_add(1);
        }
    }

    /// Holds one page, or a run that is no RAM from `frame` on, against the entry that covers it.
    fn page(&mut self, slot: &Slot, entry: Entry<Stage2>, frame: u64, record: Option<&Record>) {
        let leaf_is =
            |attrs: S2Attrs, leaf: &Leaf<Stage2>| behind(leaf, slot, frame) == frame && leaf.attrs == attrs;
        let Some(record) = record else {
            let right = match entry {
                Entry::Leaf(leaf) => leaf_is(default_attrs(SpanKind::Mmio), &leaf),
                Entry::Absent => true,
                entry => entry == Entry::Note(OWNER_HYP),
            };
            return self.audit.check(right, Damage::HostEntry, 0, frame);
        };
        let Some(page) = Page::of(record) else { return self.audit.find(Damage::Record, 0, frame) };
        let alone = slot.level() == Level::L3;
        let right = match (entry, page) {
            (Entry::Absent, Page::Host | Page::SharedHyp { .. } | Page::Lent { .. }) => true,
            (Entry::Leaf(leaf), Page::Host | Page::SharedHyp { .. } | Page::Lent { .. }) => {
                leaf_is(default_attrs(SpanKind::Ram), &leaf)
            }
            (Entry::Leaf(leaf), Page::GuestShared) => alone && leaf_is(default_attrs(SpanKind::Ram), &leaf),
            // What never comes back may stand above level 3.
            (Entry::Note(OWNER_HYP), Page::Hyp(PageUse::Image | PageUse::Pool | PageUse::TablePool)) => true,
            (Entry::Note(OWNER_HYP), Page::Hyp(_)) => alone,
            (Entry::Note(Note::HostDonated(Owner::Guest { .. })), Page::Guest) => alone,
            _ => false,
        };
        self.audit.check(right, Damage::HostEntry, 0, frame);
        self.count(frame, record, page, entry);
    }

    fn count(&mut self, frame: u64, record: &Record, page: Page, entry: Entry<Stage2>) {
        let Census { figure, owner } = match page {
            Page::Host => Census { figure: Some(Figure::HostOwned), owner: None },
            Page::SharedHyp { pins } => {
                self.ends.pins = self.ends.pins.saturating_add(pins.into());
                self.audit.census.add(Figure::HypPins, pins.into());
                Census { figure: Some(Figure::HostSharedHyp), owner: Some([1, pins.into(), 0]) }
            }
            Page::Lent { handle, leaves } => Census {
                figure: Some(Figure::HostSharedGuest),
                owner: Some([2, handle.into(), leaves.into()]),
            },
            Page::Hyp(page_use) => {
                self.pool.page(page_use, record);
                let (figure, owner) = match page_use {
                    // A table of EL2's first map may become one of the pool.
                    PageUse::Image => (Figure::HypImage, 0),
                    PageUse::TablePool => (Figure::HypTablePool, 0),
                    PageUse::Pool => (Figure::HypPool, 1),
                    PageUse::Lent => (Figure::HypLent, 2),
                    // Until a VM is seen to have it. Its tables and its store are one to the host.
                    _ => (Figure::Loose, 3),
                };
                Census { figure: Some(figure), owner: Some([3, owner, 0]) }
            }
            Page::Guest => {
                self.ends.owned = self.ends.owned.saturating_add(1);
                let owner = match entry {
                    Entry::Note(Note::HostDonated(Owner::Guest { handle, gfn })) => {
                        Some([4, handle.into(), gfn.raw()])
                    }
                    _ => None,
                };
                Census { figure: None, owner }
            }
            Page::GuestShared => {
                self.ends.shared = self.ends.shared.wrapping_add(spread([frame, 0, 0, 0]));
                Census { figure: None, owner: Some([5, 0, 0]) }
            }
        };
        if let Some(figure) = figure {
            self.audit.census.add(figure, 1);
        }
        if let Some([kind, a, b]) = owner {
            self.audit.census.add(Figure::Owners, spread([frame, kind, a, b]));
        }
    }
}

/// Where a page is counted.
struct Census {
    figure: Option<Figure>,
    /// What tells its owner from others; nothing for the host.
    owner: Option<[u64; 3]>,
}

impl<M: Machine> Surveyor<Stage2> for OfHost<'_, M> {
    fn entry(&mut self, slot: &Slot, entry: Result<Entry<Stage2>, Corrupt>) -> bool {
        let entry = match entry {
            Ok(Entry::Table(table)) => {
                let own = is_own_table(self.cx, table).is_some_and(|page_use| page_use != PageUse::Image);
                self.audit.check(own, Damage::TablePage, 0, table.raw());
                return own;
            }
            Ok(entry) => entry,
            Err(why) => {
                no_entry(self.audit, why, 0, slot);
                return false;
            }
        };
        let borrowed = |leaf: &Leaf<Stage2>| {
            slot.level() == Level::L3
                && leaf.attrs.state == LeafState::Owned
                && self.cx.vmemmap.get(leaf.output).and_then(Page::of) == Some(Page::GuestShared)
        };
        match entry {
            Entry::Note(_) => self.pin(slot.level()),
            Entry::Leaf(leaf) if borrowed(&leaf) => self.pin(slot.level()),
            _ => {}
        }
        pages(self.cx, slot, |frame, record| self.page(slot, entry, frame, record));
        false
    }

    fn end(&mut self, table: Pfn, level: Level, used: u16) {
        let pins = self.pins.get_mut(usize::from(level.number())).map(core::mem::take).unwrap_or_default();
        let Some(record) = self.cx.vmemmap.get(table) else { return };
        self.audit.check(record.count() == used, Damage::TableCount, 0, table.raw());
        if self.host.table.root_pages().contains(table) {
            return;
        }
        self.audit.census.add(Figure::TablesHost, 1);
        self.audit.check(record.aux() == pins, Damage::TablePins, 0, table.raw());
        self.pool.in_use = self.pool.in_use.saturating_add(1);
        if pins > 0 {
            self.pool.pinned = self.pool.pinned.saturating_add(1);
            if let Some(above) = level.shallower() {
                self.pin(above);
            }
        }
    }
}

struct OfHyp<'a, M: Machine> {
    cx: Cx<'a, M>,
    audit: &'a mut Audit,
    ends: &'a mut Ends,
    pool: &'a mut PoolSeen,
    hyp: &'a HypS1,
}

impl<M: Machine> OfHyp<'_, M> {
    fn page(&mut self, slot: &Slot, entry: Entry<HypStage1>, frame: u64, record: Option<&Record>) {
        let leaf_here = match entry {
            Entry::Leaf(leaf) if behind(&leaf, slot, frame) == frame => Some(leaf.attrs),
            _ => None,
        };
        let absent = entry == Entry::Absent;
        // A record in no state is a finding of the host's survey.
        let right = match record.map(Page::of) {
            None => absent || leaf_here.is_some(),
            Some(None) => return,
            // The image has guard pages and pages that are read-only.
            Some(Some(Page::Hyp(PageUse::Image))) => absent || leaf_here.is_some(),
            Some(Some(Page::Hyp(_))) => leaf_here == Some(DATA),
            Some(Some(Page::SharedHyp { pins })) if pins > 0 => leaf_here == Some(DATA),
            Some(Some(_)) => absent,
        };
        self.audit.check(right, Damage::HypEntry, 0, frame);
    }
}

impl<M: Machine> Surveyor<HypStage1> for OfHyp<'_, M> {
    fn entry(&mut self, slot: &Slot, entry: Result<Entry<HypStage1>, Corrupt>) -> bool {
        match entry {
            Ok(Entry::Table(table)) => {
                let own = is_own_table(self.cx, table).is_some();
                self.audit.check(own, Damage::TablePage, 0, table.raw());
                return own;
            }
            // A window belongs to its CPU.
            Ok(_) if slot.ia() >= WINDOWS => {}
            Ok(entry) => pages(self.cx, slot, |frame, record| self.page(slot, entry, frame, record)),
            Err(why) => no_entry(self.audit, why, 0, slot),
        }
        false
    }

    fn end(&mut self, table: Pfn, level: Level, used: u16) {
        let Some(record) = self.cx.vmemmap.get(table) else { return };
        // A table of level 3 that is held for a block of a VM counts one more.
        let held = record.count().wrapping_sub(used);
        let most = u16::from(level == Level::L3);
        self.audit.check(held <= most, Damage::TableCount, 0, table.raw());
        self.ends.held =
            self.ends.held.wrapping_add(u64::from(held).wrapping_mul(spread([table.raw(), 0, 0, 0])));
        if self.hyp.table.root_pages().contains(table) {
            return;
        }
        self.audit.census.add(Figure::TablesHyp, 1);
        if record.page_use() != PageUse::Image {
            self.pool.in_use = self.pool.in_use.saturating_add(1);
            self.pool.pinned = self.pool.pinned.saturating_add(1);
        }
    }
}

/// What the pages say of the table pool.
#[derive(Debug, Default)]
struct PoolSeen {
    total: u64,
    free: u64,
    in_use: u64,
    pinned: u64,
}

impl PoolSeen {
    fn page(&mut self, page_use: PageUse, record: &Record) {
        if matches!(page_use, PageUse::TablePool | PageUse::Lent) {
            self.total = self.total.saturating_add(1);
            self.free = self.free.saturating_add(u64::from(record.is_free()));
        }
    }

    /// Holds it against what the pool says of itself.
    fn check<M: Machine>(&self, cx: Cx<'_, M>, host: &HostS2, audit: &mut Audit) {
        let pool = &host.pages;
        audit.census.add(Figure::TablesFree, self.free);
        let mut listed = 0_u64;
        for page in pool.listed(cx.hw) {
            listed = listed.saturating_add(1);
            let marked = cx.vmemmap.get(page).is_some_and(|record| {
                record.is_free() && matches!(record.page_use(), PageUse::TablePool | PageUse::Lent)
            });
            audit.check(marked, Damage::Pool, 0, page.raw());
        }
        let numbers = [
            (pool.total_pages(), self.total),
            (pool.free_pages(), self.free),
            (listed, self.free),
            (pool.total_pages().wrapping_sub(pool.unpinned_pages()), self.pinned),
            (self.total.wrapping_sub(self.free), self.in_use),
        ];
        for (said, seen) in numbers {
            audit.check(said == seen, Damage::Pool, 0, 0);
        }
    }
}
