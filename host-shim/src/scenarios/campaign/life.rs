//! VMs that come and go: each step does the next thing of a VM's life, and at the end of a lot all of them go.
#![forbid(unsafe_code)]

use super::caller::Caller;
use super::world::{SLOTS, Slot, Use, World};
use crate::machine::{Find, words};
use crate::random::Random;
use crate::scenarios::guest::{realm_task, task};
use crate::span::{PAGE, Span};
use abi::vm::{MtePolicy, NO_PAGE, PT_CACHE_MAX, VmFlags};
use abi::{Errno, HostFn};
use guest_shim::protocol::{BLOCK, IMAGE, IPA_BITS, Payload, RAM_END, VmKind};

/// What guests do: nothing, exits of one sort for ever, exits of every sort.
const PLAIN: [Payload; 6] =
    [Payload::Idle, Payload::Touch, Payload::Load, Payload::Exits, Payload::Hello, Payload::Traps];
const PROTECTED: [Payload; 6] =
    [Payload::Idle, Payload::Touch, Payload::Secret, Payload::Exits, Payload::Share, Payload::Hello];
const REALM: [Payload; 5] =
    [Payload::Claim, Payload::CallHost, Payload::Claim, Payload::Realm, Payload::Exits];

/// Steps of a VM's making, in the order that a host has for them.
const RECORD: u64 = 0;
const SECOND: u64 = 1;
const TABLES: u64 = 2;
const STATES: u64 = 3;
const LOAD: u64 = 4;
const FINALISE: u64 = 5;
const RUNS: u64 = 6;

/// Lends pages to the pool of host tables.
pub(super) fn lend(c: &Caller<'_>, random: &mut Random) {
    let nr = 8;
    let pfn = c.world.free_run(random, nr);
    c.call(HostFn::HostDonateHyp, &[pfn, nr]);
}

/// The next thing in the life of some VM, or the next few.
pub(super) fn advance(c: &Caller<'_>, random: &mut Random) {
    let nth = usize::try_from(random.below(SLOTS as u64)).unwrap_or(0);
    let Some(slot) = c.world.slots.get(nth) else { return };
    for _ in 0..1 + random.below(4) {
        next(c, random, slot);
    }
}

fn next(c: &Caller<'_>, random: &mut Random, slot: &Slot) {
    let Some(handle) = slot.handle() else { return create(c, random) };
    let made = slot.made.load(core::sync::atomic::Ordering::Relaxed);
    let done = match made {
        RECORD => vcpu(c, random, slot, handle, 0),
        SECOND if random.below(2) == 0 => vcpu(c, random, slot, handle, 1),
        SECOND => true,
        TABLES => top_up(c, random, handle, 5),
        STATES => states(c, random, slot, handle),
        LOAD => load_image(c, random, slot, handle),
        FINALISE => c.call(HostFn::VmFinalise, &[handle]).verdict != Err(Errno::Eagain),
        RUNS if random.below(12) > 0 => {
            let nr = 1 + random.below(3);
            top_up(c, random, handle, nr);
            false
        }
        RUNS => c.call(HostFn::VmTeardownStart, &[handle]).is_ok(),
        _ => {
            take_apart(c, slot, handle);
            return;
        }
    };
    if done {
        slot.made.store(made + 1, core::sync::atomic::Ordering::Relaxed);
    }
}

/// Makes a VM of any kind.
fn create(c: &Caller<'_>, random: &mut Random) {
    let kind = random.of(&VmKind::ALL).unwrap_or(VmKind::Plain);
    let (flags, payloads): (_, &[Payload]) = match kind {
        VmKind::Plain => (VmFlags::empty(), &PLAIN),
        VmKind::Protected => (VmFlags::PROTECTED, &PROTECTED),
        VmKind::Realm => (VmFlags::PROTECTED | VmFlags::SPLIT_IPA, &REALM),
    };
    let payload = random.of(payloads).unwrap_or(Payload::Idle);
    let policy = random.of(&MtePolicy::ALL).filter(|_| c.world.has_tags() || random.below(16) == 0);
    let debuggable = if random.below(2) == 0 { VmFlags::DEBUGGABLE } else { VmFlags::empty() };
    let long = kind == VmKind::Realm && random.below(4) == 0;
    let long = if long { VmFlags::SHA512 } else { VmFlags::empty() };
    let flags = flags | policy.unwrap_or(MtePolicy::Off).flags() | debuggable | long;
    let page = |random: &mut Random| c.world.free(random);
    let (vm, root) = (page(random), page(random));
    let reserve = if kind.is_protected() { page(random) } else { NO_PAGE };
    create_with(c, &[flags.bits(), IPA_BITS, vm, 1, root, 1, reserve], payload);
    if random.below(8) == 0 {
        lend(c, random);
    }
}

/// Calls VM_CREATE, if there is room for one more.
pub(super) fn create_with(c: &Caller<'_>, args: &[u64; 7], payload: Payload) {
    let [flags, ipa_bits, vm, vm_nr, root, root_nr, reserve] = *args;
    let Some((nth, slot)) = c.world.claim() else { return };
    let answer = c.call(HostFn::VmCreate, args);
    if !answer.is_ok() {
        return World::abandon(slot);
    }
    let flags = VmFlags::from_bits_truncate(flags);
    let kind = match (flags.contains(VmFlags::PROTECTED), flags.contains(VmFlags::SPLIT_IPA)) {
        (false, _) => VmKind::Plain,
        (true, false) => VmKind::Protected,
        (true, true) => VmKind::Realm,
    };
    for (pfn, nr) in [(vm, vm_nr), (root, root_nr), (reserve, 1)] {
        if pfn != NO_PAGE {
            (pfn..pfn.saturating_add(nr.min(16))).for_each(|pfn| c.world.believe(pfn, Use::Kept, nth, 0));
            slot.hold(pfn);
        }
    }
    World::settle(slot, (answer.x2, kind, payload), ipa_bits);
}

/// Shares a page for the record of a vCPU, and makes the vCPU.
fn vcpu(c: &Caller<'_>, random: &mut Random, slot: &Slot, handle: u64, idx: u64) -> bool {
    let (record, pfn) = (c.world.free(random), c.world.free(random));
    if !c.call(HostFn::HostShareHyp, &[record]).is_ok() {
        return false;
    }
    let start = match slot.kind() {
        VmKind::Realm => realm_task(slot.payload(), 0),
        kind => task(slot.payload(), kind.is_protected(), 0),
    };
    let (pc, x0) = if idx == 0 { (IMAGE, start.to_reg()) } else { (0, 0) };
    let made = c.call(HostFn::VcpuCreate, &[handle, idx, pfn, 1, record, pc, x0]);
    if made.is_ok() {
        slot.hold(pfn);
        if let Some((nth, _)) = c.world.slot_of(handle) {
            c.world.believe(pfn, Use::Kept, nth, 0);
        }
        if let Some(at) = slot.records.get(usize::try_from(idx).unwrap_or(0)) {
            at.store(record, core::sync::atomic::Ordering::Relaxed);
        }
    }
    made.is_ok()
}

/// Gives a VM's store `nr` pages, as a chain.
pub(super) fn top_up(c: &Caller<'_>, random: &mut Random, handle: u64, nr: u64) -> bool {
    let nr = nr.min(PT_CACHE_MAX);
    let mut head = NO_PAGE;
    for _ in 0..nr {
        let page = c.world.free(random);
        // A page that went meanwhile ends the chain, or the call.
        let _ = c.ctx.store(page * PAGE, head);
        head = page;
    }
    let answer = c.call(HostFn::VmTopup, &[handle, head, nr]);
    if answer.lack() == Some(0) {
        lend(c, random);
    }
    answer.is_ok()
}

/// Says what of a realm's memory is RAM.
fn states(c: &Caller<'_>, random: &mut Random, slot: &Slot, handle: u64) -> bool {
    if slot.kind() != VmKind::Realm {
        return true;
    }
    let top = random.of(&[IMAGE + BLOCK, IMAGE + BLOCK + PAGE, RAM_END]).unwrap_or(RAM_END);
    let mut at = IMAGE;
    for _ in 0..6 {
        let answer = c.call(HostFn::VmInitRipas, &[handle, at, top]);
        match (answer.verdict, answer.lack()) {
            (Ok(()), _) if answer.x2 >= top => return true,
            (Ok(()), _) => at = answer.x2.max(at),
            (_, Some(lack)) if lack > 0 => drop(top_up(c, random, handle, lack)),
            _ => return false,
        }
    }
    false
}

/// Puts the guest's image into a VM's memory, page by page.
fn load_image(c: &Caller<'_>, random: &mut Random, slot: &Slot, handle: u64) -> bool {
    let Some(image) = c.ctx.board.initrd else { return true };
    let measure = random.below(2);
    let pages = image.size().div_ceil(PAGE);
    loop {
        let loaded = slot.loaded.load(core::sync::atomic::Ordering::Relaxed);
        if loaded >= pages {
            return true;
        }
        let (pfn, from) = (c.world.free(random), image.start() + loaded * PAGE);
        for (to, from) in words(pfn * PAGE).zip(words(from)) {
            let word = if from < image.end() { c.ctx.load(from).unwrap_or(0) } else { 0 };
            if c.ctx.store(to, word).is_err() {
                return false;
            }
        }
        let gfn = IMAGE / PAGE + loaded;
        let answer = match slot.kind() {
            VmKind::Plain => c.call(HostFn::GuestShare, &[handle, gfn, pfn, 0, 7]),
            VmKind::Protected => c.call(HostFn::VmPopulate, &[handle, gfn, pfn, 0]),
            VmKind::Realm => c.call(HostFn::VmPopulate, &[handle, gfn, pfn, measure]),
        };
        match (answer.verdict, answer.lack()) {
            (Ok(()) | Err(Errno::Eexist), _) => {
                slot.loaded.store(loaded + 1, core::sync::atomic::Ordering::Relaxed);
            }
            (_, lack) => {
                match lack {
                    Some(0) => lend(c, random),
                    Some(lack) => drop(top_up(c, random, handle, lack)),
                    None => {}
                }
                return false;
            }
        }
    }
}

/// The next step of taking a VM apart that is DYING; false when there is nothing left to do.
pub(super) fn take_apart(c: &Caller<'_>, slot: &Slot, handle: u64) -> bool {
    if slot.kind().is_protected() {
        // A realm owns pages in the private half alone.
        let bits = slot.ipa_bits().max(1) - u64::from(slot.kind() == VmKind::Realm);
        let top = 1_u64.checked_shl(u32::try_from(bits).unwrap_or(0)).unwrap_or(0);
        let mut at = 0;
        while at < top {
            let answer = c.call(HostFn::ReclaimDying, &[handle, at, top]);
            if !answer.is_ok() || answer.x2 <= at {
                return answer.is_ok();
            }
            at = answer.x2;
        }
    }
    c.world.finishing(handle);
    let answer = c.call(HostFn::VmTeardownFinish, &[handle, 64]);
    if matches!(answer.verdict, Ok(()) | Err(Errno::Eagain)) {
        follow(c, answer.x2, answer.x3);
    }
    answer.verdict == Err(Errno::Eagain)
}

/// Looks at the pages that FINISH gave back: a chain of as many as it says, each zero but for its link.
fn follow(c: &Caller<'_>, head: u64, count: u64) {
    let mut next = (head != NO_PAGE).then_some(head);
    for _ in 0..count {
        let ours = next.filter(|pfn| pfn.checked_mul(PAGE).is_some_and(|page| c.world.area().contains(page)));
        let Some(pfn) = ours else {
            // Another CPU may have stored to a link already.
            if c.logical {
                c.fail("a chain of FINISH", format_args!("{next:x?} follows, of {count}"));
            }
            return;
        };
        let link = c.ctx.load(pfn * PAGE);
        let rest = Span::new(pfn * PAGE + 8, PAGE - 8);
        let dirty = rest.map(|rest| c.ctx.machine.find(rest, Find::OtherThan(0)));
        match (link, dirty) {
            (Ok(link), Some(Ok(None))) => next = (link != NO_PAGE).then_some(link),
            // Another CPU may have given the page away already, or stored to it.
            _ if !c.logical => return,
            (link, dirty) => {
                return c.fail("a page of FINISH", format_args!("{pfn:#x}: link {link:x?}, rest {dirty:x?}"));
            }
        }
        c.world.believe(pfn, Use::Free, 0, 0);
    }
}

/// Takes all VMs apart.
pub(super) fn end_all(c: &Caller<'_>) {
    for slot in &c.world.slots {
        let Some(handle) = slot.handle() else { continue };
        c.call(HostFn::VmTeardownStart, &[handle]);
        for _ in 0..4096 {
            if slot.handle() != Some(handle) || !take_apart(c, slot, handle) && slot.handle().is_some() {
                break;
            }
        }
        if let Some(handle) = slot.handle() {
            c.fail("a VM at the end of a lot", format_args!("{handle:#x} cannot be taken apart"));
        }
    }
}
