//! Frames become RAM.
//!
//! | transition | asked by | EMPTY | RAM | DESTROYED |
//! |---|---|---|---|---|
//! | host_init_ripas | host, before the VM runs | RAM | stays | EHWPOISON |
//! | host_apply_ram | guest, done by the host | RAM | stays | RAM if the guest said so, else the end |
//!
//! A call walks runs of frames that change, each a series of the largest entries that fit. A run
//! for which the guest's cache has the tables is written at once; otherwise its entries are, one
//! after the other, as far as the tables go. Each turn of either loop moves the address forward,
//! and a call looks at 4096 entries and writes 512 at most.
#![forbid(unsafe_code)]

use super::level::tiles;
use crate::addr::IpaRange;
use crate::error::Error;
use crate::fault::Site;
use crate::hw::Machine;
use crate::mem_protect::{Guest, GuestKind, GuestS2, Hypervisor, MAX_VISITED, View, guest_error};
use crate::mm::Cx;
use crate::pgtable::{self, Level, Note, Ripas};
use abi::Errno;
use abi::host::MAX_PAGES;
use core::ops::ControlFlow;

const RAM: Note = Note::Ripas(Ripas::Ram);

/// What a DESTROYED frame in the range means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The call is wrong.
    Refuse,
    /// The call is done there.
    Stop,
    /// It becomes RAM, as the guest knows.
    Remake,
}

/// What a call may still do.
#[derive(Debug)]
struct Budget {
    entries: u64,
    writes: u64,
}

/// The next frames that change.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// They, if there are any.
    run: Option<IpaRange>,
    /// One past the last frame that was looked at and needs nothing, before the run.
    passed: u64,
    /// Why there is nothing after them.
    stop: Option<Stop>,
}

/// Why a call ends before its range does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It has done enough.
    Enough,
    /// A DESTROYED frame is next.
    Lost,
}

impl<M: Machine> Hypervisor<M> {
    /// Makes RAM of the EMPTY frames in `range`, of a VM with split IPA that has not run. Returns
    /// the address up to which all is done: less than the end after 512 new entries, before a
    /// DESTROYED frame, and where the guest's cache has no more pages.
    ///
    /// The caller has seen that the VM is NEW.
    ///
    /// # Errors
    /// In this order. EACCES: no split IPA. ERANGE: beyond the lower half. EHWPOISON: the first
    /// frame is DESTROYED. ENOMEM: the cache lacks pages for the first entry; as many as it says
    /// are enough for the whole run. EIO.
    pub fn host_init_ripas(&self, hw: &M, guest: &Guest<M>, range: IpaRange) -> Result<u64, Error> {
        fill(self.cx(hw), &mut guest.lock(hw), range, Lost::Refuse)
    }

    /// Makes RAM of frames in `range`, as the guest has asked; with `destroyed` of those that are
    /// DESTROYED too. Returns the address up to which all is done, as
    /// [`Hypervisor::host_init_ripas`] does; it is the first if that frame is DESTROYED.
    ///
    /// The caller has seen the guest's request.
    ///
    /// # Errors
    /// As `host_init_ripas` without EHWPOISON.
    pub fn host_apply_ram(
        &self,
        hw: &M,
        guest: &Guest<M>,
        range: IpaRange,
        destroyed: bool,
    ) -> Result<u64, Error> {
        let lost = if destroyed { Lost::Remake } else { Lost::Stop };
        fill(self.cx(hw), &mut guest.lock(hw), range, lost)
    }
}

fn fill<M: Machine>(cx: Cx<'_, M>, guest: &mut GuestS2, range: IpaRange, lost: Lost) -> Result<u64, Error> {
    guest.check_kind(GuestKind::is_split)?;
    guest.check_owned_range(range)?;
    let done = fill_runs(cx, guest, range, lost);
    // Tables that say one thing, and those that were made in vain.
    let (table, mut source) = guest.parts_of(cx);
    table.fold(cx.hw, &mut source, range)?;
    done
}

fn fill_runs<M: Machine>(
    cx: Cx<'_, M>,
    guest: &mut GuestS2,
    range: IpaRange,
    lost: Lost,
) -> Result<u64, Error> {
    let first = range.start().raw();
    let mut budget = Budget { entries: MAX_VISITED, writes: MAX_PAGES };
    let mut at = first;
    while at < range.end() {
        let rest = IpaRange::new(at, range.end(), guest.table().geometry().ia_bits())?;
        let found = next(cx.hw, guest, rest, lost, &mut budget)?;
        at = found.passed;
        if let Some(run) = found.run {
            match write(cx, guest, run) {
                Ok(end) => at = end,
                Err(Error::NoTables(_)) if at > first => break,
                Err(e) => return Err(e),
            }
            if at < run.end() {
                break;
            }
        }
        match found.stop {
            Some(Stop::Lost) if at == first && lost == Lost::Refuse => return Err(Errno::Ehwpoison.into()),
            Some(_) => break,
            None => {}
        }
    }
    Ok(at)
}

/// The next run of frames in `rest` that change, and as much of it as `budget` allows.
fn next<M: Machine>(
    hw: &M,
    guest: &GuestS2,
    rest: IpaRange,
    lost: Lost,
    budget: &mut Budget,
) -> Result<Found, Error> {
    let bits = guest.table().geometry().ia_bits();
    let mut passed = rest.start().raw();
    let mut run: Option<(u64, u64)> = None;
    let stop = guest.parts(hw, rest, |part| {
        let Some(left) = budget.entries.checked_sub(1) else { return ControlFlow::Break(Some(Stop::Enough)) };
        budget.entries = left;
        let Ok(frames) = part.range() else { return ControlFlow::Break(Some(Stop::Enough)) };
        let changes = match part.view {
            View::Nothing => true,
            View::Ripas(Ripas::Destroyed) if lost == Lost::Remake => true,
            View::Ripas(Ripas::Destroyed) => return ControlFlow::Break(Some(Stop::Lost)),
            // A guard cannot be in such a table; what it says is left to it.
            View::Ripas(Ripas::Ram) | View::Page { .. } | View::Guard => false,
        };
        match (changes, run) {
            (false, Some(_)) => return ControlFlow::Break(None),
            (false, None) => passed = frames.end(),
            (true, _) => {
                let mut end = frames.start().raw();
                for (tile, level) in tiles(frames, part.level.max(Level::L1)) {
                    let Some(left) = budget.writes.checked_sub(1) else { break };
                    budget.writes = left;
                    end = tile.saturating_add(level.size());
                }
                run = Some((run.map_or(frames.start().raw(), |(first, _)| first), end));
                if end < frames.end() {
                    return ControlFlow::Break(Some(Stop::Enough));
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    let run = run.and_then(|(first, end)| IpaRange::new(first, end, bits).ok());
    Ok(Found { run, passed, stop: stop.flatten() })
}

/// Makes RAM of `run`, or of as many of its first entries as there are tables for. Returns the
/// address up to which it is done.
fn write<M: Machine>(cx: Cx<'_, M>, guest: &mut GuestS2, run: IpaRange) -> Result<u64, Error> {
    let bits = guest.table().geometry().ia_bits();
    let first = run.start().raw();
    let lacks = match write_whole(cx, guest, run) {
        Ok(()) => return Ok(run.end()),
        Err(Error::NoTables(lacks)) => lacks,
        Err(e) => return Err(e),
    };
    let mut at = first;
    for (tile, level) in tiles(run, Level::L1) {
        let end = tile.saturating_add(level.size());
        match write_whole(cx, guest, IpaRange::new(tile, end, bits)?) {
            Ok(()) => at = end,
            Err(Error::NoTables(_)) if at > first => break,
            Err(Error::NoTables(_)) => return Err(Error::NoTables(lacks)),
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

/// Makes RAM of all of `range`, of which no frame has a page.
///
/// # Errors
/// [`Error::NoTables`] with the pages that the cache lacks; nothing says anything else then.
fn write_whole<M: Machine>(cx: Cx<'_, M>, guest: &mut GuestS2, range: IpaRange) -> Result<(), Error> {
    let needed = guest.table().plan_note(cx.hw, range, RAM).map_err(guest_error)?.tables();
    guest.check_tables(needed)?;
    if needed > 0 {
        cx.faults.hit(Site::RipasTable).map_err(|_| Error::NoTables(needed))?;
    }
    let (table, mut source) = guest.parts_of(cx);
    match table.prepare_note(cx.hw, &mut source, range, RAM) {
        Ok(change) => change.commit(cx.hw, &mut source),
        Err(pgtable::Error::NoTables { needed }) => return Err(Error::NoTables(needed)),
        Err(e) => return Err(guest_error(e)),
    }
    Ok(())
}
