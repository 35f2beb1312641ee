//! Transitions that a protected guest asks for: sharing its pages with the host in place, taking
//! them back, and giving them up.
//!
//! | transition | guest's leaf | host | host's table |
//! |---|---|---|---|
//! | guest_share_host | OWNED to SHARED_OWNED | NOPAGE to BORROWED | mapped as a page of its own |
//! | guest_unshare_host | SHARED_OWNED to OWNED | BORROWED to NOPAGE | note GUEST |
//! | guest_relinquish_host | OWNED to none | NOPAGE to OWNED, scrubbed | default mapping |
//!
//! Each works on the leading frames of its range that are in the state it needs, at most 512.
//!
//! Locks: host_s2, hyp_s1 (a block that becomes pages gives up its table there), the guest's.
#![forbid(unsafe_code)]

use super::guest_s2::{Guest, GuestKind, GuestS2, Leading, View, guest_error, view};
use super::host_guest::check_bound;
use super::leave::{Leaving, frames};
use super::{HostS2, HypS1, Hypervisor};
use crate::addr::{Gfn, IpaRange, PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};
use crate::error::Error;
use crate::hw::Machine;
use crate::mm::{Cx, PageState};
use crate::pgtable::{Change, LeafState, Note, Owner, Window};
use abi::Errno;
use core::ops::ControlFlow;

impl<M: Machine> Hypervisor<M> {
    /// Lets the host use pages of the guest. Returns how many.
    ///
    /// # Errors
    /// In this order. E2BIG: more than 512 frames. EACCES: the VM does not share in place. ERANGE:
    /// frames beyond its space. Of the first frame: ENOENT nothing there, EHWPOISON destroyed,
    /// EPERM not owned by the guest alone, EOPNOTSUPP without the tags that the guest expects. ENOMEM: a block must be
    /// split and the cache is empty.
    pub fn guest_share_host(&self, hw: &M, guest: &Guest<M>, range: IpaRange) -> Result<u64, Error> {
        let cx = self.cx(hw);
        check_bound(range)?;
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        let mut guest = guest.lock(hw);
        let (host, guest) = (&mut *host, &mut *guest);
        check_frames(guest, range)?;
        let change = Change::State(LeafState::SharedOwned);
        if range.len() == PAGE_SIZE
            && let Some(at) = guest.table.page(hw, range.start())?
        {
            let page = guest.shareable(view(at.entry(), 0).ok_or(Errno::Eio)?)?;
            at.prepare_change(change)?.commit(hw, &mut guest.cache.source(cx));
            host_borrows(cx, host, PfnRange::one(page));
            return Ok(1);
        }
        let frames = guest.leading(hw, range, |view| guest.shareable(view).map(|_| ()))?;
        let range = frames.range;
        if frames.partial_blocks {
            Leaving { cx, host, hyp: &mut hyp, guest }.split_partial_blocks(range)?;
        }
        let change = guest.table.prepare_change(hw, range, change).map_err(guest_error)?;

        change.commit(hw);
        for_pages(cx, guest, frames, |_, pages| host_borrows(cx, host, pages));
        Ok(range.len() >> PAGE_SHIFT)
    }

    /// Takes shared pages back from the host, with what the host has put there. Returns how many.
    ///
    /// # Errors
    /// As [`Hypervisor::guest_share_host`]; EPERM: the first frame is not shared.
    pub fn guest_unshare_host(&self, hw: &M, guest: &Guest<M>, range: IpaRange) -> Result<u64, Error> {
        let cx = self.cx(hw);
        check_bound(range)?;
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        let mut guest = guest.lock(hw);
        let (host, guest) = (&mut *host, &mut *guest);
        check_frames(guest, range)?;
        let (handle, change) = (guest.handle(), Change::State(LeafState::Owned));
        if range.len() == PAGE_SIZE
            && let Some(at) = guest.table.page(hw, range.start())?
        {
            let page = view(at.entry(), 0).ok_or(Errno::Eio)?.page(LeafState::SharedOwned)?;
            let change = at.prepare_change(change)?;
            host_loses(cx, host, PfnRange::one(page), (handle, range.start().frame()));
            change.commit(hw, &mut guest.cache.source(cx));
            return Ok(1);
        }
        let frames = guest.leading(hw, range, |view| view.page(LeafState::SharedOwned).map(|_| ()))?;
        let range = frames.range;
        if frames.partial_blocks {
            Leaving { cx, host, hyp: &mut hyp, guest }.split_partial_blocks(range)?;
        }
        let change = guest.table.prepare_change(hw, range, change).map_err(guest_error)?;

        for_pages(cx, guest, frames, |gfn, pages| host_loses(cx, host, pages, (handle, gfn)));
        change.commit(hw);
        Ok(range.len() >> PAGE_SHIFT)
    }

    /// Gives pages of the guest to the host, scrubbed. A frame without a page counts as given.
    /// Returns how many.
    ///
    /// # Errors
    /// As [`Hypervisor::guest_share_host`] without ENOENT.
    pub fn guest_relinquish_host(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        range: IpaRange,
    ) -> Result<u64, Error> {
        let cx = self.cx(hw);
        check_bound(range)?;
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        let mut guest = guest.lock(hw);
        let (host, hyp, guest): (&mut HostS2, &mut HypS1, &mut GuestS2) = (&mut host, &mut hyp, &mut guest);
        check_frames(guest, range)?;
        let Leading { range, .. } = guest.leading(hw, range, |view| match view {
            View::Nothing => Ok(()),
            view => view.page(LeafState::Owned).map(|_| ()),
        })?;
        let mut leaving = Leaving { cx, host, hyp, guest };
        leaving.split_partial_blocks(range)?;

        let pages = leaving.empty(range)?;
        leaving.give(window, pages, None);
        guest.table.fold(hw, &mut guest.cache.source(cx), range)?;
        Ok(range.len() >> PAGE_SHIFT)
    }
}

impl GuestS2 {
    /// The page, if the guest can share it.
    ///
    /// # Errors
    /// As [`View::page`]; EOPNOTSUPP: the guest has MTE, and the page is without tags.
    fn shareable(&self, view: View) -> Result<Pfn, Errno> {
        let page = view.page(LeafState::Owned)?;
        if self.mte.is_lazy() && matches!(view, View::Page { no_tag: true, .. }) {
            return Err(Errno::Eopnotsupp);
        }
        Ok(page)
    }
}

/// EACCES unless the VM shares in place, ERANGE unless it can own pages in all of `range`.
fn check_frames(guest: &GuestS2, range: IpaRange) -> Result<(), Errno> {
    guest.check_kind(|kind| kind == GuestKind::Classic)?;
    guest.check_owned_range(range)
}

/// The host may use `pages` of a guest.
fn host_borrows<M: Machine>(cx: Cx<'_, M>, host: &mut HostS2, pages: PfnRange) {
    for record in cx.vmemmap.range(pages).unwrap_or_default() {
        record.set_host(PageState::SharedBorrowed, &mut host.states);
    }
    // The tables above stay pinned: what is borrowed is not found out again.
    host.map_default(cx, pages);
}

/// The host may not use `pages` any more, which the guest `handle` has from the frame `gfn` on.
fn host_loses<M: Machine>(cx: Cx<'_, M>, host: &mut HostS2, pages: PfnRange, (handle, gfn): (u16, Gfn)) {
    host.note(cx, pages, Note::HostDonated(Owner::Guest { handle, gfn }));
    for record in cx.vmemmap.range(pages).unwrap_or_default() {
        record.set_host(PageState::NoPage, &mut host.states);
    }
}

/// Calls `f` for the pages of `frames` in runs that are consecutive on both sides.
#[inline]
fn for_pages<M: Machine>(cx: Cx<'_, M>, guest: &GuestS2, frames: Leading, mut f: impl FnMut(Gfn, PfnRange)) {
    let range = frames.range;
    match frames.pages {
        Some(pages) => f(range.start().frame(), pages),
        None => for_runs(cx, guest, range, &mut f),
    }
}

/// As [`for_pages`], for pages that do not follow each other.
#[inline(never)]
fn for_runs<M: Machine>(cx: Cx<'_, M>, guest: &GuestS2, range: IpaRange, f: &mut dyn FnMut(Gfn, PfnRange)) {
    let mut run: Option<(u64, PfnRange)> = None;
    let mut flush = |run: Option<(u64, PfnRange)>| {
        if let Some((gfn, pages)) = run
            && let Ok(gfn) = Gfn::new(gfn)
        {
            f(gfn, pages);
        }
    };
    let visited = guest.parts(cx.hw, range, |part| {
        if let Some(pages) = part.pages() {
            let joined = run.filter(|(_, run)| run.end() == pages.start().raw()).and_then(|(gfn, run)| {
                let nr = run.nr().saturating_add(pages.nr());
                Some((gfn, PfnRange::new(run.start().raw(), nr).ok()?))
            });
            if joined.is_none() {
                flush(run);
            }
            run = joined.or(Some((part.gfn, pages)));
        }
        ControlFlow::<()>::Continue(())
    });
    debug_assert!(visited.is_ok(), "{visited:?}");
    flush(run);
}

/// `nr` frames from `gfn` as a range of a call.
///
/// # Errors
/// EINVAL: none, or a sum that wraps. E2BIG: more than 512. ERANGE: beyond 48 bits.
pub fn guest_frames(gfn: u64, nr: u64) -> Result<IpaRange, Error> {
    if nr == 0 || gfn.checked_add(nr).is_none() {
        return Err(Errno::Einval.into());
    }
    if nr > abi::host::MAX_PAGES {
        return Err(Errno::E2big.into());
    }
    frames(gfn, nr).ok_or(Errno::Erange.into())
}
