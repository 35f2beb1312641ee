//! Calls that make sense: of pages that the host has, about VMs of the right kind, on frames where something may be.
#![forbid(unsafe_code)]

use super::caller::{Answer, Caller};
use super::life;
use super::world::{Slot, Use};
use crate::random::Random;
use crate::span::PAGE;
use abi::HostFn;
use abi::vm::NO_PAGE;
use guest_shim::protocol::{ABSENT, IMAGE, SCRATCH, SHARED, VmKind};

/// Frames of each place that calls are about.
const NEAR: u64 = 24;

/// Shares, loans and their ends.
pub(super) fn pages(c: &Caller<'_>, random: &mut Random) {
    let call = random.of(&[
        HostFn::HostShareHyp,
        HostFn::HostUnshareHyp,
        HostFn::HostDonateHyp,
        HostFn::HypDonateHost,
        HostFn::HypCaps,
    ]);
    let known = |random: &mut Random, what| c.world.used(random, what, 0).map(|(pfn, _)| pfn);
    let pfn = match (call, random.below(2)) {
        (Some(HostFn::HostUnshareHyp), 0) => known(random, Use::Shared),
        (Some(HostFn::HypDonateHost), 0) => known(random, Use::Lent),
        (_, 0) => Some(c.world.free(random)),
        _ => None,
    };
    let pfn = pfn.unwrap_or_else(|| c.world.any(random));
    let nr = if random.below(12) == 0 { 1 + random.below(64) } else { 1 };
    match call {
        Some(call @ (HostFn::HostShareHyp | HostFn::HostUnshareHyp)) => c.call(call, &[pfn]),
        Some(call @ (HostFn::HostDonateHyp | HostFn::HypDonateHost)) => c.call(call, &[pfn, nr]),
        _ => c.call(HostFn::HypCaps, &[]),
    };
}

/// Calls about the memory of a VM.
pub(super) fn memory(c: &Caller<'_>, random: &mut Random) {
    let kind = random.of(&VmKind::ALL).unwrap_or(VmKind::Plain);
    let Some((nth, slot, handle)) = c.world.vm_of(random, kind) else { return life::advance(c, random) };
    // Now and then a call for another kind of VM, or about one that is gone.
    let kind = random.of(&VmKind::ALL).filter(|_| random.below(12) == 0).unwrap_or(kind);
    let handle = if random.below(24) == 0 { c.world.stale() } else { handle };
    let at = Place::of(c, random, nth, slot);
    let answer = match (kind, random.below(16)) {
        (_, 0) => c.call(HostFn::VmTagInfo, &[handle, at.gfn]),
        (_, 1) | (VmKind::Protected, 2 | 3) => c.call(HostFn::MteUpgrade, &[handle, at.gfn, at.pfn]),
        (VmKind::Plain, 2..=6) => lend(c, random, handle, at, HostFn::GuestShare),
        (VmKind::Plain, n) => plain(c, random, (handle, at.gfn), n),
        (VmKind::Realm, 2 | 3) => {
            c.call(HostFn::VmInitRipas, &[handle, at.gfn * PAGE, (at.gfn + at.nr) * PAGE])
        }
        (VmKind::Realm, 4..=6) => {
            let shared = Place { gfn: at.gfn | (SHARED / PAGE), ..at };
            lend(c, random, handle, shared, HostFn::UnprotMap)
        }
        (VmKind::Realm, 7 | 8) => c.call(HostFn::UnprotUnmap, &[handle, at.gfn | (SHARED / PAGE), at.nr]),
        (_, 9) => c.call(HostFn::VmPopulate, &[handle, at.gfn, at.pfn, 0]),
        (_, 10..=12) => {
            let refill = if random.below(4) == 0 { c.world.free(random) } else { NO_PAGE };
            let top = (at.gfn + at.nr) * PAGE;
            c.call(HostFn::GuestReclaim, &[handle, at.gfn * PAGE, top, refill])
        }
        (_, 14) => c.call(HostFn::ReclaimDying, &[handle, at.gfn * PAGE, (at.gfn + at.nr) * PAGE]),
        (_, 13) => c.call(HostFn::RipasApply, &[handle, 0, ABSENT, ABSENT + (1 + random.below(512)) * PAGE]),
        _ => give(c, random, handle, at),
    };
    match answer.lack() {
        Some(0) => life::lend(c, random),
        Some(lack) => drop(life::top_up(c, random, handle, lack)),
        None => {}
    }
}

/// A frame of a VM, and a page.
#[derive(Clone, Copy)]
struct Place {
    gfn: u64,
    pfn: u64,
    /// Frames, of calls about more than one.
    nr: u64,
}

impl Place {
    fn of(c: &Caller<'_>, random: &mut Random, nth: usize, slot: &Slot) -> Self {
        let base = random.of(&[IMAGE, SCRATCH, SCRATCH, ABSENT]).unwrap_or(SCRATCH);
        let mut gfn = base / PAGE + random.below(NEAR);
        if random.below(2) == 0
            && let Some((_, known)) = c.world.used(random, Use::Given, nth)
        {
            gfn = known;
        }
        let edge = 1_u64.checked_shl(u32::try_from(slot.ipa_bits()).unwrap_or(0)).unwrap_or(0) / PAGE;
        let gfn = if random.below(48) == 0 { edge.saturating_sub(random.below(2)) } else { gfn };
        let nr = random.of(&[1, 1, 1, 2, 5, 40, 512]).unwrap_or(1);
        Self { gfn, pfn: c.world.free(random), nr }
    }
}

/// The order and the frames of a page, or of a block.
fn sized(c: &Caller<'_>, random: &mut Random, at: Place) -> (u64, Place) {
    if random.below(12) > 0 {
        return (0, at);
    }
    (9, Place { gfn: at.gfn & !511, pfn: c.world.free_run(random, 512), ..at })
}

fn give(c: &Caller<'_>, random: &mut Random, handle: u64, at: Place) -> Answer {
    let (order, at) = sized(c, random, at);
    let prot = if random.below(4) == 0 { 15 } else { 7 };
    c.call(HostFn::GuestDonate, &[handle, at.gfn, at.pfn, order, prot])
}

fn lend(c: &Caller<'_>, random: &mut Random, handle: u64, at: Place, call: HostFn) -> Answer {
    let (order, at) = sized(c, random, at);
    let prot = if call == HostFn::GuestShare { 1 + random.below(7) } else { random.below(2) };
    c.call(call, &[handle, at.gfn, at.pfn, order, prot])
}

/// Calls about the table of a plain VM.
fn plain(c: &Caller<'_>, random: &mut Random, (handle, gfn): (u64, u64), which: u64) -> Answer {
    let nr = random.of(&[1, 1, 3, 64, 512]).unwrap_or(1);
    match which {
        7 | 8 => c.call(HostFn::GuestUnshare, &[handle, gfn, nr]),
        9 | 10 => c.call(HostFn::GuestRelax, &[handle, gfn, random.below(8)]),
        11 => c.call(HostFn::GuestWrprotect, &[handle, gfn, nr]),
        12 => c.call(HostFn::GuestAge, &[handle, gfn, nr, random.below(2)]),
        13 => c.call(HostFn::VmReset, &[handle]),
        _ => c.call(HostFn::GuestTlbFlush, &[handle]),
    }
}
