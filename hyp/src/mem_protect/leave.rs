//! How pages leave a guest: what reclaiming, relinquishing and taking a VM apart have in common.
//!
//! Order, for each page: the guest's entry goes, the invalidation is complete, the page is
//! scrubbed and cleaned, the host's entry becomes valid. A page that the guest had shared is not
//! scrubbed: the host sees it already. Nothing here allocates, so nothing here fails.
#![forbid(unsafe_code)]

use super::HypS1;
use super::content;
use super::guest_s2::{GuestS2, Runs, View, guest_error, release};
use super::host_hyp::DATA;
use super::host_s2::{HostS2, OWNER_HYP};
use crate::addr::{IpaRange, PAGE_SHIFT, Pfn, PfnRange, VaRange};
use crate::error::Error;
use crate::fault::Site;
use crate::hw::Machine;
use crate::mm::{Cx, PageList, PageState, PtSource, TablePage, TablesOf};
use crate::pgtable::{Level, Note, Ripas, Select, TablePool, Window};
use core::ops::ControlFlow;

/// Everything that is locked while pages leave a guest.
pub(super) struct Leaving<'a, M: Machine> {
    pub(super) cx: Cx<'a, M>,
    pub(super) host: &'a mut HostS2,
    pub(super) hyp: &'a mut HypS1,
    pub(super) guest: &'a mut GuestS2,
}

impl<M: Machine> Leaving<'_, M> {
    /// Makes pages of the block that `part` is a part of, with a table from `source`; EL2's map
    /// need not be ready for it any longer once the caller has called [`Leaving::release`].
    pub(super) fn split<P: TablePool>(&self, part: IpaRange, source: &mut P) -> Result<(), Error> {
        self.guest.table.split(self.cx.hw, source, part, Level::L3).map_err(guest_error)
    }

    /// The blocks of which `range` has a part become pages, with tables from the guest's cache.
    ///
    /// # Errors
    /// [`Error::NoTables`]; nothing has changed then.
    pub(super) fn split_partial_blocks(&mut self, range: IpaRange) -> Result<(), Error> {
        let blocks = self.guest.partial_blocks(self.cx.hw, range)?;
        let needed = u32::try_from(blocks.iter().flatten().count()).unwrap_or(u32::MAX);
        self.guest.check_tables(needed)?;
        if needed > 0 {
            self.cx.faults.hit(Site::LeaveSplit).map_err(|_| Error::NoTables(needed))?;
            let mut parts = [None; 2];
            self.guest.parts(self.cx.hw, range, |part| {
                if part.is_partial_block() {
                    let [first, last] = &mut parts;
                    *(if first.is_none() { first } else { last }) = frames(part.gfn, part.nr);
                }
                ControlFlow::<()>::Continue(())
            })?;
            for part in parts.into_iter().flatten() {
                let mut source: PtSource<'_, M> = self.guest.cache.source(self.cx);
                self.guest.table.split(self.cx.hw, &mut source, part, Level::L3).map_err(guest_error)?;
            }
            for block in blocks.into_iter().flatten() {
                self.release(block);
            }
        }
        Ok(())
    }

    /// A block is none any more.
    pub(super) fn release(&mut self, block: PfnRange) {
        release(self.cx, self.host, self.hyp, block);
    }

    /// Takes all pages of `range` away from the guest, which finds DESTROYED where they were. No
    /// block reaches out of the range.
    pub(super) fn poison(&mut self, range: IpaRange) -> Result<PageList, Error> {
        let mut list = PageList::new();
        let mut at = range.start().raw();
        while let Some(run) = self.next_run(at, range)? {
            at = run.end();
            self.collect(run, &mut list)?;
            let Self { cx, guest, .. } = self;
            let mut source = guest.cache.source(*cx);
            let note = Note::Ripas(Ripas::Destroyed);
            let prepared = guest.table.prepare_note(cx.hw, &mut source, run, note).map_err(guest_error)?;
            prepared.commit(cx.hw, &mut source);
        }
        Ok(list)
    }

    /// Takes all pages and notes of `range` away from the guest. No block or note reaches out of
    /// the range.
    pub(super) fn empty(&mut self, range: IpaRange) -> Result<PageList, Error> {
        let mut list = PageList::new();
        self.collect(range, &mut list)?;
        let Self { cx, guest, .. } = self;
        let mut source = guest.cache.source(*cx);
        let something = Select::LEAVES | Select::NOTES;
        let clear =
            guest.table.prepare_clear_of(cx.hw, &mut source, range, something).map_err(guest_error)?;
        clear.commit(cx.hw, &mut source);
        Ok(list)
    }

    /// Lists the pages of `range`, which the guest is about to lose.
    fn collect(&mut self, range: IpaRange, list: &mut PageList) -> Result<(), Error> {
        let Self { cx, host, hyp, guest } = self;
        guest.parts_in_runs(cx.hw, range, |part| {
            for page in part.pages().into_iter().flat_map(PfnRange::iter) {
                list.push(cx.vmemmap, page);
            }
            if let Some(block) = part.block() {
                release(*cx, host, hyp, block);
            }
            ControlFlow::<()>::Continue(())
        })?;
        Ok(())
    }

    /// The next frames of `range`, from `at` on, that all have pages.
    fn next_run(&self, at: u64, range: IpaRange) -> Result<Option<IpaRange>, Error> {
        let bits = self.guest.table.geometry().ia_bits();
        let Ok(rest) = IpaRange::new(at, range.end(), bits) else { return Ok(None) };
        let mut run = None;
        self.guest.parts(self.cx.hw, rest, |part| match (part.view, run) {
            (View::Page { .. }, None) => {
                run = Some((part.gfn, part.end()));
                ControlFlow::Continue(())
            }
            (View::Page { .. }, Some((first, _))) => {
                run = Some((first, part.end()));
                ControlFlow::Continue(())
            }
            (_, None) => ControlFlow::Continue(()),
            (_, Some(_)) => ControlFlow::Break(()),
        })?;
        Ok(run.and_then(|(first, end)| frames(first, end.saturating_sub(first))))
    }

    /// Gives the pages of `list` to the host, all but `retained`.
    pub(super) fn give(&mut self, window: &mut Window, list: PageList, retained: Option<Pfn>) {
        let (cx, host, mte) = (self.cx, &mut *self.host, self.guest.mte.has_mte());
        let mut list = list;
        let mut runs = Runs::new(|run| host.restore(cx, run));
        while let Some(page) = list.pop(cx.vmemmap) {
            if retained == Some(page) {
                continue;
            }
            // What the host borrows it has mapped, and sees.
            if cx.vmemmap.get(page).is_some_and(|record| record.host() == PageState::NoPage) {
                content::leave(cx.hw, window, mte && cx.vmemmap.map().has_tags(page), page);
            }
            runs.push(PfnRange::one(page));
        }
        runs.flush();
    }

    /// Keeps `page`, which the guest has lost, for EL2. Its block's table is ready in EL2's map.
    pub(super) fn retain(&mut self, window: &mut Window, page: Pfn) -> TablePage {
        let cx = self.cx;
        let tags = self.guest.mte.has_mte() && cx.vmemmap.map().has_tags(page);
        content::leave(cx.hw, window, tags, page);
        let pages = PfnRange::one(page);
        self.host.note(cx, pages, OWNER_HYP);
        if let Some(record) = cx.vmemmap.get(page) {
            // Its entry stays a note, so what is pinned stays pinned.
            record.set_host(PageState::NoPage, &mut self.host.states);
            record.set_hyp(PageState::Owned, &mut self.host.states, &mut self.hyp.states);
        }
        let mut source = self.host.pages.source(cx, TablesOf::Hyp);
        let mapped = self.hyp.table.map(cx.hw, &mut source, VaRange::linear(pages), page, DATA, Level::L3);
        debug_assert!(mapped.is_ok(), "{mapped:?}");
        TablePage::new(page)
    }
}

/// `nr` frames from `gfn`.
pub(super) fn frames(gfn: u64, nr: u64) -> Option<IpaRange> {
    PfnRange::new(gfn, nr).ok().map(IpaRange::identity)
}

/// The frames of `range` up to the address `end`.
pub(super) fn up_to(range: IpaRange, end: u64) -> Option<IpaRange> {
    let start = range.start().raw() >> PAGE_SHIFT;
    frames(start, (end >> PAGE_SHIFT).checked_sub(start)?)
}
