//! The host takes pages back from a protected guest: by force while it lives, all of them when it
//! dies. Neither can fail for want of memory, whatever blocks are in the way. And it takes what a
//! guest with split IPA says it no longer uses as memory.
//!
//! A table is needed only where *part* of a block is taken: the guest's reserve becomes that
//! table, and is repaid before the call ends, by the first of: a table that folding freed in this
//! call; the page that the host brought along; a page of the guest's cache; the first page that
//! was taken from the block. The last always exists, so invariant R holds after every call. A call
//! splits at most one block; it ends, with its progress, before a second.
//!
//! | transition | guest's entry | host | host's table |
//! |---|---|---|---|
//! | host_reclaim_guest | OWNED to DESTROYED | NOPAGE to OWNED, scrubbed | default mapping |
//! | host_reclaim_dying_guest | anything to none | NOPAGE to OWNED, scrubbed; BORROWED to OWNED | default mapping |
//! | host_apply_empty | OWNED, RAM, DESTROYED to none | NOPAGE to OWNED, scrubbed | default mapping |
//!
//! The last needs tables of the guest's cache where a block *note* goes in part: nothing is lost if
//! there are none, as nothing is there.
//!
//! Locks: host_s2, hyp_s1, the guest's.
#![forbid(unsafe_code)]

use super::guest_s2::{Guest, GuestS2, View, guest_error};
use super::leave::{Leaving, frames, up_to};
use super::store::MAX_VISITED;
use super::token::OwnedPages;
use super::{HostS2, HypS1, Hypervisor};
use crate::addr::{IpaRange, PAGE_SHIFT, Pfn, PfnRange};
use crate::error::Error;
use crate::hw::Machine;
use crate::mm::ReserveLoan;
use crate::pgtable::{LeafState, Level, Select, Window};
use abi::Errno;
use abi::host::MAX_PAGES;
use core::ops::ControlFlow;

/// How far a call got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaimed {
    /// The address up to which everything is done.
    pub end: u64,
    /// A page that was taken from the guest and stays EL2's as its new reserve.
    pub retained: Option<Pfn>,
}

/// What one call will do.
#[derive(Clone, Copy, Debug)]
struct Plan {
    range: IpaRange,
    /// The range, with all frames that the notes in it stand for.
    entries: IpaRange,
    split: Option<Split>,
}

/// The block that will be split.
#[derive(Clone, Copy, Debug)]
struct Split {
    /// The part that goes.
    part: IpaRange,
    /// The whole block.
    block: PfnRange,
    /// The first page that goes.
    first: Pfn,
}

/// Whose pages are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// A VM that goes on living: what it shares it keeps, and it will know.
    Living,
    /// A VM that is taken apart.
    Dying,
    /// A VM that asked for it: its notes go as well, exactly those in the range.
    Yielding,
}

impl<M: Machine> Hypervisor<M> {
    /// Takes pages from a guest by force; where they were it will find DESTROYED. Frames without a
    /// page are passed over; at most 512 pages are taken. `refill` is a page that the host offers
    /// as the next reserve, so that it gets back exactly what it gave; it is used, and scrubbed,
    /// only if a block is split.
    ///
    /// The caller has seen that the VM is alive.
    ///
    /// # Errors
    /// In this order. EACCES: not protected. ERANGE: beyond the part where the guest owns pages.
    /// EPERM: the first page is shared with the host; `refill` is not the host's alone. EIO.
    pub fn host_reclaim_guest(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        range: IpaRange,
        refill: Option<Pfn>,
    ) -> Result<Reclaimed, Error> {
        self.reclaim(hw, window, guest, range, refill, Victim::Living)
    }

    /// Empties frames of a guest that is taken apart: its pages go to the host, scrubbed unless
    /// the host sees them already; notes go as well, each with all frames it stands for. At most
    /// 512 pages are taken.
    ///
    /// The caller has seen that the VM is dying.
    ///
    /// # Errors
    /// In this order. EACCES: not protected. ERANGE: beyond the part where the guest owns pages. EIO.
    pub fn host_reclaim_dying_guest(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        range: IpaRange,
    ) -> Result<Reclaimed, Error> {
        self.reclaim(hw, window, guest, range, None, Victim::Dying)
    }

    /// Makes EMPTY of frames of a guest with split IPA, as it has asked: its pages go to the host,
    /// scrubbed, and whatever else stands there goes. At most 512 pages are taken. Where a note that
    /// reaches over the end needs tables that the guest's cache does not have, the call ends before it.
    ///
    /// The caller has seen the guest's request.
    ///
    /// # Errors
    /// In this order. EACCES: no split IPA. ERANGE: beyond the lower half. EPERM: the first page is
    /// not the guest's alone. ENOMEM: the cache lacks pages to split the note at the first frame; nothing
    /// has changed. EIO.
    pub fn host_apply_empty(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        range: IpaRange,
    ) -> Result<Reclaimed, Error> {
        self.reclaim(hw, window, guest, range, None, Victim::Yielding)
    }

    fn reclaim(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        range: IpaRange,
        refill: Option<Pfn>,
        victim: Victim,
    ) -> Result<Reclaimed, Error> {
        let cx = self.cx(hw);
        let look = |guest: &GuestS2| {
            guest.check_kind(|kind| match victim {
                Victim::Living | Victim::Dying => kind.is_protected(),
                Victim::Yielding => kind.is_split(),
            })?;
            guest.check_owned_range(range)?;
            plan(hw, guest, range, victim)
        };
        // A token gives its page back through these locks: it is made before they are taken.
        let mut refill = match refill {
            Some(page) => {
                let splits = look(&guest.lock(hw))?.split.is_some();
                self.refill(hw, page, splits)?
            }
            None => None,
        };
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        let mut guest = guest.lock(hw);
        let (host, hyp, guest): (&mut HostS2, &mut HypS1, &mut GuestS2) = (&mut host, &mut hyp, &mut guest);
        let Plan { range, entries, split } = look(guest)?;

        let mut leaving = Leaving { cx, host, hyp, guest };
        if victim == Victim::Yielding {
            leaving.clear_notes(range)?;
        }
        let loan = match split {
            Some(split) => Some(leaving.borrow_reserve(split)?),
            None => None,
        };
        let pages = match victim {
            Victim::Living => leaving.poison(range)?,
            Victim::Dying => leaving.empty(entries)?,
            Victim::Yielding => leaving.empty(range)?,
        };
        let cached = leaving.guest.cache.pages();
        leaving.guest.table.fold(hw, &mut leaving.guest.cache.source(cx), range)?;
        let folded = leaving.guest.cache.pages() > cached;

        let repayment = match loan {
            Some(_) if folded => leaving.guest.cache.take(cx),
            Some(_) => {
                refill.take().and_then(OwnedPages::into_table_page).or_else(|| leaving.guest.cache.take(cx))
            }
            None => None,
        };
        let retained = split.filter(|_| repayment.is_none()).map(|split| split.first);
        leaving.give(window, pages, retained);
        if let (Some(split), Some(loan)) = (split, loan) {
            let page = match (repayment, retained) {
                (Some(page), _) => page,
                (None, page) => leaving.retain(window, page.unwrap_or(split.first)),
            };
            leaving.release(split.block);
            leaving.guest.reserve.repay(cx, loan, page);
        }
        Ok(Reclaimed { end: range.end(), retained })
    }

    /// The page that the host offers, taken from it if it will be needed. `None` if it is not, or
    /// there is no table to note it: another page will do.
    fn refill<'a>(&'a self, hw: &'a M, page: Pfn, needed: bool) -> Result<Option<OwnedPages<'a, M>>, Error> {
        if !needed {
            let _host = self.host.lock(hw);
            let good = self.vmemmap.get(page).is_some_and(|record| record.is_host_owned());
            return if good { Ok(None) } else { Err(Errno::Eperm.into()) };
        }
        match self.host_donate_token(hw, PfnRange::one(page)) {
            Ok(token) => Ok(Some(token)),
            Err(e) if matches!(e.errno(), Errno::Eperm | Errno::Erange) => Err(Errno::Eperm.into()),
            Err(_) => Ok(None),
        }
    }
}

impl<M: Machine> Leaving<'_, M> {
    /// Splits a block with the reserve.
    fn borrow_reserve(&mut self, split: Split) -> Result<ReserveLoan, Error> {
        // Invariant R.
        let (mut source, loan) = self.guest.reserve.lend(self.cx).ok_or(Errno::Eio)?;
        match self.split(split.part, &mut source) {
            Ok(()) => Ok(loan),
            Err(e) => {
                if let Some(page) = source.into_page() {
                    self.guest.reserve.repay(self.cx, loan, page);
                }
                Err(e)
            }
        }
    }

    /// Clears the notes in `range`, and those parts of larger ones that lie in it.
    ///
    /// # Errors
    /// [`Error::NoTables`]; every frame says what it said then.
    fn clear_notes(&mut self, range: IpaRange) -> Result<(), Error> {
        let (hw, guest) = (self.cx.hw, &mut *self.guest);
        let mut source = guest.cache.source(self.cx);
        match guest.table.prepare_clear_of(hw, &mut source, range, Select::NOTES) {
            Ok(clear) => {
                clear.commit(hw, &mut source);
                Ok(())
            }
            Err(e) => {
                guest.table.fold(hw, &mut source, range)?;
                Err(guest_error(e))
            }
        }
    }
}

/// Reads how far a call will get, and what it must split.
fn plan<M: Machine>(hw: &M, guest: &GuestS2, range: IpaRange, victim: Victim) -> Result<Plan, Error> {
    let mut plan = plan_pages(hw, guest, range, victim)?;
    if victim != Victim::Yielding {
        return Ok(plan);
    }
    // Each turn cuts at a larger boundary: at most the first and the last entry are notes of which a
    // part goes.
    let mut missing = None;
    loop {
        let needed = guest.table.plan_clear_of(hw, plan.range, Select::NOTES).map_err(guest_error)?.tables();
        let Err(lacks) = guest.check_tables(needed) else { return Ok(plan) };
        let missing = *missing.get_or_insert(lacks);
        let end = plan.range.end();
        let boundary = [Level::L2, Level::L1].map(|level| level.align_down(end)).into_iter();
        let boundary = boundary.filter(|boundary| *boundary < end).max().unwrap_or(0);
        let shorter = boundary.max(last_partial_note(hw, guest, plan.range)?);
        plan = plan_pages(hw, guest, up_to(plan.range, shorter).ok_or(missing)?, victim)?;
    }
}

/// The first address in `range` of the last note in it that reaches out of it; that of `range` if
/// there is none.
fn last_partial_note<M: Machine>(hw: &M, guest: &GuestS2, range: IpaRange) -> Result<u64, Error> {
    let mut first = range.start().raw();
    guest.parts(hw, range, |part| {
        if matches!(part.view, View::Ripas(_)) && part.nr < part.level.pages() {
            first = part.gfn << PAGE_SHIFT;
        }
        ControlFlow::<()>::Continue(())
    })?;
    Ok(first)
}

/// The same, without regard to notes.
fn plan_pages<M: Machine>(hw: &M, guest: &GuestS2, range: IpaRange, victim: Victim) -> Result<Plan, Error> {
    let (mut taken, mut visited) = (0_u64, 0_u64);
    let mut split = None;
    let mut end = range.start().raw();
    let (mut first, mut last) = (end, end);
    let refused = guest.parts_in_runs(hw, range, |part| {
        let entries = part.entries.min(MAX_VISITED.saturating_sub(visited));
        visited = visited.saturating_add(entries);
        if entries < part.entries {
            // Of absent pages, as many as may be looked at.
            if entries > 0 {
                end = part.gfn.saturating_add(entries) << PAGE_SHIFT;
            }
            return ControlFlow::Break(None);
        }
        let View::Page { pfn, state, .. } = part.view else {
            end = part.end() << PAGE_SHIFT;
            if part.view != View::Nothing {
                (first, last) = (first.min(part.entry_start), part.entry_end);
            }
            return ControlFlow::Continue(());
        };
        let may_take = match state {
            LeafState::Owned => true,
            LeafState::SharedOwned => victim == Victim::Dying,
            LeafState::SharedBorrowed => false,
        };
        if !may_take {
            return ControlFlow::Break((taken == 0).then_some(Errno::Eperm));
        }
        let nr = part.nr.min(MAX_PAGES.saturating_sub(taken));
        let block = part.block().filter(|block| nr < block.nr());
        if nr == 0 || (block.is_some() && split.is_some()) {
            return ControlFlow::Break(None);
        }
        if let (Some(block), Some(part)) = (block, frames(part.gfn, nr)) {
            split = Some(Split { part, block, first: pfn });
        }
        taken = taken.saturating_add(nr);
        end = part.gfn.saturating_add(nr) << PAGE_SHIFT;
        if nr < part.nr { ControlFlow::Break(None) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(Some(e)) = refused {
        return Err(e.into());
    }
    let (first, last) = (first >> PAGE_SHIFT, last.max(end) >> PAGE_SHIFT);
    let entries = frames(first, last.saturating_sub(first)).ok_or(Errno::Eio)?;
    Ok(Plan { range: up_to(range, end).ok_or(Errno::Eio)?, entries, split })
}
