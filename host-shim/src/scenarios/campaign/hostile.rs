//! Calls that nobody should make. None names memory of the host outside the arena in a way that could succeed: the host
//! stands on it.
#![forbid(unsafe_code)]

use super::around::odd_word;
use super::caller::Caller;
use super::life;
use crate::hvc::{first_change, registers};
use crate::machine::Imm;
use crate::random::Random;
use crate::span::PAGE;
use abi::host::MAX_PAGES;
use abi::vm::NO_PAGE;
use abi::{HostFn, smccc};
use core::sync::atomic::Ordering::Relaxed;
use guest_shim::protocol::{ABSENT, IMAGE, Payload, SCRATCH, SHARED};

/// Which arguments of a call are frame numbers of the host.
const fn frames(call: HostFn) -> &'static [usize] {
    match call {
        HostFn::HostShareHyp | HostFn::HostUnshareHyp | HostFn::HostDonateHyp | HostFn::HypDonateHost => &[0],
        HostFn::VmCreate => &[2, 4, 6],
        HostFn::VcpuCreate => &[2, 4],
        HostFn::VmTopup | HostFn::S2Snapshot => &[1],
        HostFn::VmPopulate
        | HostFn::GuestDonate
        | HostFn::GuestShare
        | HostFn::UnprotMap
        | HostFn::MteUpgrade => &[2],
        HostFn::GuestReclaim => &[3],
        _ => &[],
    }
}

/// Which argument says how many of them are meant.
const fn count(call: HostFn) -> Option<usize> {
    match call {
        HostFn::HostDonateHyp | HostFn::HypDonateHost => Some(1),
        _ => None,
    }
}

pub(super) fn any(c: &Caller<'_>, random: &mut Random) {
    match random.below(8) {
        0 => nonsense(c, random),
        1 => of_el2(c, random),
        2 => edges(c, random),
        3 => vcpu(c, random),
        _ => forged(c, random),
    }
}

/// A word for any register.
fn word(c: &Caller<'_>, random: &mut Random) -> u64 {
    let vm = c.world.some_vm(random).map_or(1, |(_, _, handle)| handle);
    match random.below(12) {
        0..=2 => vm,
        3 => c.world.stale(),
        4 | 5 => c.world.any(random),
        6 => c.world.free(random),
        7 => random.below(4),
        8 => {
            random.of(&[IMAGE, SCRATCH, ABSENT, SCRATCH | SHARED]).unwrap_or(IMAGE) / PAGE + random.below(16)
        }
        9 => random.of(&[IMAGE, SCRATCH, ABSENT, ABSENT | SHARED]).unwrap_or(IMAGE) + random.below(16) * PAGE,
        10 => random.of(&[0, 9, 36, 512, 513, NO_PAGE]).unwrap_or(0),
        _ => odd_word(random),
    }
}

/// Any call with registers that may fit and may not: a handle first, mostly, as a handle is what most take.
fn forged(c: &Caller<'_>, random: &mut Random) {
    let call = random.of(&HostFn::ALL).unwrap_or(HostFn::HypCaps);
    let mut args: [u64; 7] = core::array::from_fn(|_| word(c, random));
    if random.below(4) > 0
        && let Some((_, _, handle)) = c.world.some_vm(random)
        && let Some(first) = args.first_mut()
    {
        *first = handle;
    }
    for n in frames(call) {
        if let Some(arg) = args.get_mut(*n) {
            *arg = c.world.tame(*arg);
        }
    }
    if let Some(nr) = count(call).and_then(|n| args.get_mut(n))
        && *nr <= MAX_PAGES
    {
        // A loan that comes back in pieces costs a call each.
        *nr %= 33;
    }
    match call {
        HostFn::VmCreate => life::create_with(c, &args, Payload::Idle),
        HostFn::VmTeardownFinish => {
            c.world.finishing(args.first().copied().unwrap_or(0));
            c.call(call, &args);
        }
        _ => drop(c.call(call, &args)),
    }
}

/// The hypervisor's memory, a device, and what is no memory at all, in the place of a page of the host.
fn of_el2(c: &Caller<'_>, random: &mut Random) {
    let carveout = c.ctx.board.carveouts().next().unwrap_or_else(|| c.world.area());
    let inside = carveout.start() / PAGE + random.below(carveout.size() / PAGE);
    let device = c.ctx.board.devices.first().map_or(0, |device| device.span.start() / PAGE);
    let pfn = random.of(&[inside, inside, inside, device, 1 << 40]).unwrap_or(inside);
    let (_, _, handle) = c.world.some_vm(random).map_or((0, None, 1), |(n, s, h)| (n, Some(s), h));
    let gfn = SCRATCH / PAGE + random.below(16);
    match random.below(9) {
        0 => c.call(HostFn::HostShareHyp, &[pfn]),
        1 => c.call(HostFn::HostUnshareHyp, &[pfn]),
        2 => c.call(HostFn::HostDonateHyp, &[pfn, 1 + random.below(4)]),
        3 => c.call(HostFn::HypDonateHost, &[pfn, 1 + random.below(4)]),
        4 => c.call(HostFn::GuestDonate, &[handle, gfn, pfn, 0, 7]),
        5 => c.call(HostFn::GuestShare, &[handle, gfn, pfn, 0, 7]),
        6 => c.call(HostFn::UnprotMap, &[handle, gfn | (SHARED / PAGE), pfn, 0, 1]),
        7 => c.call(HostFn::VmTopup, &[handle, pfn, 1 + random.below(3)]),
        _ => c.call(HostFn::S2Snapshot, &[0, pfn, 0]),
    };
}

/// Numbers of pages at and past what a call takes.
fn edges(c: &Caller<'_>, random: &mut Random) {
    let nr = random.of(&[0, 512, 513, u64::MAX, u64::MAX >> 12, 1 << 52]).unwrap_or(0);
    let handle = c.world.some_vm(random).map_or(1, |(_, _, handle)| handle);
    let pfn = c.world.any(random);
    let gfn = random.of(&[IMAGE / PAGE, (1 << 24) - 1, (1 << 36) - 1, u64::MAX]).unwrap_or(0);
    match random.below(7) {
        0 => c.call(HostFn::HostDonateHyp, &[pfn, if nr == 512 { 513 } else { nr }]),
        1 => c.call(HostFn::HypDonateHost, &[pfn, nr]),
        2 => c.call(HostFn::VmTopup, &[handle, pfn, nr]),
        3 => c.call(HostFn::GuestUnshare, &[handle, gfn, nr]),
        4 => c.call(HostFn::UnprotUnmap, &[handle, gfn | (SHARED / PAGE), nr]),
        5 => c.call(HostFn::GuestAge, &[handle, gfn, nr, nr]),
        _ => {
            c.world.finishing(handle);
            c.call(HostFn::VmTeardownFinish, &[handle, nr])
        }
    };
}

/// Calls about the vCPU that this CPU has, whether it has one or not.
fn vcpu(c: &Caller<'_>, random: &mut Random) {
    match random.below(6) {
        0 => {
            let handle = word(c, random);
            c.call(HostFn::VcpuLoad, &[handle, random.below(40) / 4])
        }
        1 => c.call(HostFn::VcpuPut, &[]),
        2 | 3 => c.call(HostFn::VcpuRun, &[]),
        4 => c.call(HostFn::VcpuGetReg, &[odd_word(random)]),
        _ => c.call(HostFn::VcpuSetReg, &[random.below(160), odd_word(random) & !0xff]),
    };
}

/// Ids, immediates and high halves that are no call.
fn nonsense(c: &Caller<'_>, random: &mut Random) {
    let known = u64::from(random.of(&HostFn::ALL).unwrap_or(HostFn::HypCaps).id());
    let (imm, id) = match random.below(4) {
        0 => (Imm::Zero, random.next_word() | 1 << 63),
        1 => (Imm::Zero, known | 1 << (32 + random.below(32))),
        // Behind the last call, and before the calls of a development image.
        2 => (Imm::Zero, u64::from(abi::host::BASE) + 0x40 + random.below(0x20)),
        _ => (random.of(&[Imm::One, Imm::Max]).unwrap_or(Imm::One), known),
    };
    c.say(format_args!("HVC {imm:?} {id:#x}"));
    let before = registers(id, &[odd_word(random), odd_word(random), odd_word(random)]);
    let after = c.ctx.machine.hvc(imm, &before);
    c.tally.calls.fetch_add(1, Relaxed);
    c.tally.unknown.fetch_add(1, Relaxed);
    let [status, ..] = after;
    let changed = first_change(&before, &after, 1);
    if status != smccc::NOT_SUPPORTED || changed.is_some() {
        c.fail(
            format_args!("HVC {imm:?} {id:#x}"),
            format_args!("x0 = {status:#x}, first change {changed:x?}"),
        );
    }
}
