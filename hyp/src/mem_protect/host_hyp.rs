//! Transitions between the host and EL2.
//!
//! | transition | host | hyp | host's table | EL2's map |
//! |---|---|---|---|---|
//! | host_share_hyp | OWNED to SHARED_OWNED | NOPAGE to BORROWED | - | - |
//! | hyp_pin | - | - | - | mapped, with the first pin |
//! | hyp_unpin | - | - | - | unmapped, with the last |
//! | host_unshare_hyp | SHARED_OWNED to OWNED | BORROWED to NOPAGE | - | - |
//! | host_donate_hyp | OWNED to NOPAGE | NOPAGE to OWNED | note HYP | mapped |
//! | hyp_donate_host | NOPAGE to OWNED | OWNED to NOPAGE | default mapping | unmapped |
//!
//! Locks: host_s2, then hyp_s1.
#![forbid(unsafe_code)]

use super::host_s2::{HostS2, Keep, LEND, OWNER_HYP, default_attrs};
use super::token::{OwnedPages, Pinned};
use super::{HOST_SHARES_HYP, HypS1, Hypervisor};
use crate::addr::{IpaRange, Pfn, PfnRange, VaRange};
use crate::error::Error;
use crate::fault::Site;
use crate::hw::{Machine, MappedPage};
use crate::mm::{
    Cx, HostStates, HypStates, PageState, PageUse, REFILL, Record, SpanKind, TablePages, TablesOf,
};
use crate::pgtable::{Commit, HypAttrs, HypProt, Level};
use abi::Errno;

/// How EL2 maps data.
pub(super) const DATA: HypAttrs = HypAttrs::normal(HypProt::Rw);

impl<M: Machine> Hypervisor<M> {
    /// HOST_SHARE_HYP: EL2 may pin the page from here on.
    ///
    /// # Errors
    /// ERANGE: not RAM. EPERM: not the host's alone.
    pub fn host_share_hyp(&self, hw: &M, page: Pfn) -> Result<(), Error> {
        let record = self.vmemmap.get(page).ok_or(Errno::Erange)?;
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        if !record.is_host_owned() {
            return Err(Errno::Eperm.into());
        }
        record.set_hyp(PageState::SharedBorrowed, &mut host.states, &mut hyp.states);
        record.set_host(PageState::SharedOwned, &mut host.states);
        Ok(())
    }

    /// HOST_UNSHARE_HYP: ends [`Hypervisor::host_share_hyp`].
    ///
    /// # Errors
    /// ERANGE: not RAM. EPERM: not shared with EL2. EBUSY: pinned.
    pub fn host_unshare_hyp(&self, hw: &M, page: Pfn) -> Result<(), Error> {
        let record = self.vmemmap.get(page).ok_or(Errno::Erange)?;
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        if (record.host(), record.hyp()) != HOST_SHARES_HYP {
            return Err(Errno::Eperm.into());
        }
        if record.count() > 0 {
            return Err(Errno::Ebusy.into());
        }
        record.set_hyp(PageState::NoPage, &mut host.states, &mut hyp.states);
        record.set_host(PageState::Owned, &mut host.states);
        Ok(())
    }

    /// Maps a page that the host shares, and keeps the host from taking it back.
    ///
    /// # Errors
    /// ERANGE: not RAM. EPERM: not shared with EL2. EBUSY: 65535 pins. ENOMEM: no table page.
    pub fn hyp_pin(&self, hw: &M, page: Pfn) -> Result<Pinned, Error> {
        let record = self.vmemmap.get(page).ok_or(Errno::Erange)?;
        let (mut host, hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        if (record.host(), record.hyp()) != HOST_SHARES_HYP {
            return Err(Errno::Eperm.into());
        }
        let count = record.count().checked_add(1).ok_or(Errno::Ebusy)?;
        if count == 1 {
            let cx = self.cx(hw);
            let pages = PfnRange::one(page);
            let va = VaRange::linear(pages);
            let host = &mut *host;
            let needed = hyp.table.plan_leaf(hw, va, page, DATA, Level::L3)?.tables().into();
            host.make_room(cx, needed, IpaRange::identity(pages))?;
            if host.pages.unpinned_pages() < REFILL.saturating_add(LEND).saturating_add(needed) {
                return Err(Errno::Enomem.into());
            }
            let mut source = host.pages.source(cx, TablesOf::Hyp);
            hyp.table.map(hw, &mut source, va, page, DATA, Level::L3)?;
        }
        record.set_pins(count, &mut host.states);
        Ok(Pinned::new(page))
    }

    /// Ends a pin.
    pub fn hyp_unpin(&self, hw: &M, pinned: Pinned) {
        let page = pinned.page();
        let Some(record) = self.vmemmap.get(page) else { return };
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        let count = record.count().saturating_sub(1);
        record.set_pins(count, &mut host.states);
        if count == 0 {
            let cx = self.cx(hw);
            let mut source = host.pages.source(cx, TablesOf::Hyp);
            let unmapped = hyp.table.unmap(hw, &mut source, VaRange::linear(PfnRange::one(page)));
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
    }

    /// HOST_DONATE_HYP: lends pages, at most 512, to the pool that tables of the host and of EL2
    /// come from.
    ///
    /// # Errors
    /// ERANGE: one is not RAM. EPERM: one is not the host's alone. ENOMEM: no table page, or not
    /// enough would be left.
    pub fn host_donate_hyp(&self, hw: &M, pages: PfnRange) -> Result<(), Error> {
        let cx = self.cx(hw);
        let records = self.vmemmap.range(pages).ok_or(Errno::Erange)?;
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        let keep = Keep::Refill { lent: pages.nr() };
        take(cx, &mut host, &mut hyp, pages, records, PageUse::Lent, keep)?;
        host.pages.add(hw, &self.vmemmap, pages, PageUse::Lent);
        Ok(())
    }

    /// HYP_DONATE_HOST: gives lent pages back, zeroed.
    ///
    /// # Errors
    /// ERANGE: one is not RAM. EPERM: one is not lent. EBUSY: one is a table, or the pool would
    /// not keep what it must.
    pub fn hyp_donate_host(&self, hw: &M, pages: PfnRange) -> Result<(), Error> {
        let cx = self.cx(hw);
        let records = self.vmemmap.range(pages).ok_or(Errno::Erange)?;
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        if records.iter().any(|record| record.page_use() != PageUse::Lent) {
            return Err(Errno::Eperm.into());
        }
        if records.iter().any(|record| !record.is_free()) {
            return Err(Errno::Ebusy.into());
        }
        // Pages that must not be pinned when it is done.
        let needed = REFILL.saturating_add(LEND).saturating_add(pages.nr());
        let unpinned = host.pages.unpinned_pages();
        if unpinned < needed && unpinned.saturating_add(host.unpinned_by(cx, pages)) < needed {
            return Err(Errno::Ebusy.into());
        }
        for (page, record) in pages.iter().zip(records) {
            host.pages.remove(hw, page, record);
            hw.scrub(MappedPage::linear(page));
        }
        give(cx, &mut host, &mut hyp, pages, records);
        Ok(())
    }

    /// Takes pages from the host for a call: all of them or none.
    ///
    /// # Errors
    /// ERANGE: one is not RAM. EPERM: one is not the host's alone. ENOMEM: no table page, or not
    /// enough would be left.
    pub fn host_donate_token<'a>(&'a self, hw: &'a M, pages: PfnRange) -> Result<OwnedPages<'a, M>, Error> {
        let records = self.vmemmap.range(pages).ok_or(Errno::Erange)?;
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        take(self.cx(hw), &mut host, &mut hyp, pages, records, PageUse::Token, Keep::All)?;
        Ok(OwnedPages::new(self, hw, pages))
    }

    /// Gives hyp-owned pages to the host, scrubbed. Cannot fail: their notes are at level 3.
    pub(super) fn give_back(&self, hw: &M, pages: PfnRange) {
        for page in pages.iter() {
            hw.scrub(MappedPage::linear(page));
        }
        self.give_back_clean(hw, pages);
    }

    /// The same with what is in the pages: for those that carry what a call documents as output.
    pub(super) fn give_back_as_is(&self, hw: &M, pages: PfnRange) {
        for page in pages.iter() {
            hw.clean_to_poc(MappedPage::linear(page));
        }
        self.give_back_clean(hw, pages);
    }

    /// The same for pages that are clean to the point of coherency.
    fn give_back_clean(&self, hw: &M, pages: PfnRange) {
        let Some(records) = self.vmemmap.range(pages) else { return };
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        give(self.cx(hw), &mut host, &mut hyp, pages, records);
    }

    /// Says what hyp-owned pages are for.
    pub(super) fn set_use(&self, pages: PfnRange, page_use: PageUse) {
        for record in self.vmemmap.range(pages).unwrap_or_default() {
            record.set_use(page_use);
        }
    }
}

/// Makes pages of the host EL2's: all or none.
fn take<M: Machine>(
    cx: Cx<'_, M>,
    host: &mut HostS2,
    hyp: &mut HypS1,
    pages: PfnRange,
    records: &[Record],
    page_use: PageUse,
    keep: Keep,
) -> Result<(), Error> {
    let hw = cx.hw;
    if !records.iter().all(Record::is_host_owned) {
        return Err(Errno::Eperm.into());
    }
    cx.faults.hit(Site::DonateCheck)?;

    let (ipa, va) = (IpaRange::identity(pages), VaRange::linear(pages));
    let scarce = host.is_scarce();
    // Most calls take one page, where nothing is missing.
    if pages.nr() == 1
        && !scarce
        && let Some(at_host) = host.table.page(hw, ipa.start())?
        && let Some(at_hyp) = hyp.table.page(hw, va.start())?
    {
        let note = at_host.prepare_note(OWNER_HYP)?;
        let map = at_hyp.prepare_leaf(pages.start(), DATA)?;
        cx.faults.hit(Site::HostPrepare)?;
        let states = (&mut host.states, &mut hyp.states);
        take_over(cx, &mut host.pages, states, (records, page_use), (note, map));
        host.pin(cx, pages, Some(at_host.table_page()));
        return Ok(());
    }
    let mut for_hyp = 0;
    if scarce {
        for_hyp = hyp.table.plan_leaf(hw, va, pages.start(), DATA, Level::L3)?.tables();
        let own = default_attrs(SpanKind::Ram);
        let for_host = host.table.plan_leaf(hw, ipa, pages.start(), own, Level::L3)?.tables();
        host.make_room(cx, u64::from(for_hyp).saturating_add(for_host.into()), ipa)?;
    }
    cx.faults.hit(Site::HostPrepare)?;
    let note = {
        let mut source = host.pages.source(cx, TablesOf::Host);
        // One note for a whole block would have to be split to give back a part.
        if pages.nr() == Level::L2.pages() {
            host.table.split(hw, &mut source, ipa, Level::L3)?;
        }
        host.table.prepare_note(hw, &mut source, ipa, OWNER_HYP)?
    };
    if scarce {
        host.check_budget(cx, pages, for_hyp.into(), keep)?;
    }
    let mut source = host.pages.source(cx, TablesOf::Hyp);
    let map = hyp.table.prepare_leaf(hw, &mut source, va, pages.start(), DATA, Level::L3)?;
    let table = note.table_page();
    let states = (&mut host.states, &mut hyp.states);
    take_over(cx, &mut host.pages, states, (records, page_use), (note, map));
    host.pin(cx, pages, table);
    Ok(())
}

/// The half of [`take`] that cannot fail: the pages leave the host's table, and enter EL2's map.
#[inline(always)]
fn take_over<M: Machine>(
    cx: Cx<'_, M>,
    pool: &mut TablePages,
    (host, hyp): (&mut HostStates, &mut HypStates),
    (records, page_use): (&[Record], PageUse),
    (note, map): (impl Commit, impl Commit),
) {
    note.commit(cx.hw, &mut pool.source(cx, TablesOf::Host));
    for record in records {
        record.give_to_hyp(page_use, host, hyp);
    }
    map.commit(cx.hw, &mut pool.source(cx, TablesOf::Hyp));
}

/// Makes pages of EL2, which are clean to the point of coherency, the host's, with what is in them.
fn give<M: Machine>(cx: Cx<'_, M>, host: &mut HostS2, hyp: &mut HypS1, pages: PfnRange, records: &[Record]) {
    let mut source = host.pages.source(cx, TablesOf::Hyp);
    let unmapped = hyp.table.unmap(cx.hw, &mut source, VaRange::linear(pages));
    debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    if unmapped.is_err() {
        // Corrupt, or not mapped as told: what EL2 may still reach is not the host's.
        return;
    }
    for record in records {
        record.give_to_host(&mut host.states, &mut hyp.states);
    }
    let table = host.map_default(cx, pages);
    host.unpin(cx, pages, table);
}
