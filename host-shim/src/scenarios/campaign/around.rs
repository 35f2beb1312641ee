//! What a hostile host does besides calls about its VMs: it touches what is not its own, rewrites what calls read, takes
//! snapshots of what changes, and calls firmware.
#![forbid(unsafe_code)]

use super::caller::Caller;
use super::life;
use super::world::{SLOTS, Use};
use crate::hvc::{CallError, first_change};
use crate::inspect::Inspector;
use crate::machine::Access;
use crate::random::Random;
use crate::span::PAGE;
use abi::exit::word;
use abi::fault::Site;
use abi::guest::trng;
use abi::snapshot::{END, HOST, MAGIC, VERSION};
use abi::{HostFn, psci, smccc};
use core::sync::atomic::Ordering::Relaxed;

/// A word that has nothing to do in the register that it goes in.
pub(super) fn odd_word(random: &mut Random) -> u64 {
    let word = random.next_word();
    match random.below(6) {
        0 => word,
        1 => word >> random.below(64),
        2 => u64::MAX - random.below(4),
        3 => 1 << random.below(64),
        4 => (1_u64 << random.below(64)).wrapping_sub(1 + random.below(2)),
        _ => random.below(2048),
    }
}

/// Touches a page: one of the hypervisor's, one that a VM is kept in, or any of the arena.
pub(super) fn poke(c: &Caller<'_>, random: &mut Random) {
    let access = random.of(&Access::TO_DATA).unwrap_or(Access::Load);
    let offset = random.below(PAGE / 64) * 64;
    match random.below(4) {
        0 => {
            let Some(carveout) = c.ctx.board.carveouts().next() else { return };
            let page = carveout.start() + random.below(carveout.size() / PAGE) * PAGE;
            must_abort(c, access, page + offset, "the carve-out");
        }
        1 => {
            let nth = usize::try_from(random.below(SLOTS as u64)).unwrap_or(0);
            let Some(slot) = c.world.slots.get(nth) else { return };
            let which = usize::try_from(random.below(8)).unwrap_or(0);
            let Some(held) = slot.held(which) else { return };
            let reached = touch(c, access, held.0 * PAGE + offset);
            // What changed meanwhile proves nothing.
            if reached && slot.held(which) == Some(held) {
                c.fail(
                    "a page that a VM is kept in",
                    format_args!("{access:?} at {:#x}", held.0 * PAGE + offset),
                );
            }
        }
        _ => {
            // A store must not make a page name memory that the host stands on.
            let access = if access == Access::Store { Access::StoreByte } else { access };
            let access = if access == Access::StorePair { Access::LoadPair } else { access };
            touch(c, access, c.world.any(random) * PAGE + offset);
        }
    }
}

fn must_abort(c: &Caller<'_>, access: Access, address: u64, what: &str) {
    if touch(c, access, address) {
        c.fail(what, format_args!("{access:?} at {address:#x} was not refused"));
    }
}

/// True if the access went through; a fault must be the refusal that docs/abi.md describes.
fn touch(c: &Caller<'_>, access: Access, address: u64) -> bool {
    c.say(format_args!("{access:?} at {address:#x}"));
    match c.ctx.machine.probe(access, address, 0) {
        Ok(_) => {
            c.tally.reached.fetch_add(1, Relaxed);
            true
        }
        Err(fault) => {
            c.tally.refused.fetch_add(1, Relaxed);
            if !fault.is_refusal_of(access) {
                c.fail(format_args!("{access:?} at {address:#x}"), fault);
            }
            false
        }
    }
}

/// Rewrites what calls read: an exit record, or the first words of a page, which may be the descriptor or a link of a
/// chain that a call on another CPU is about.
pub(super) fn scribble(c: &Caller<'_>, random: &mut Random) {
    let nth = usize::try_from(random.below(SLOTS as u64)).unwrap_or(0);
    let record = c.world.slots.get(nth).and_then(|slot| slot.records.first());
    let record = record.map_or(0, |record| record.load(Relaxed));
    let (page, words) = if record != 0 && random.below(3) > 0 {
        (record, word::END as u64)
    } else {
        (c.world.any(random), 8)
    };
    c.say(format_args!("rewrites {page:#x}"));
    for _ in 0..if c.logical { 4 } else { 48 } {
        let value = match random.below(4) {
            0 => c.world.any(random),
            1 => random.of(&[0, 1, END, u64::from(MAGIC) | u64::from(VERSION) << 32]).unwrap_or(0),
            _ => c.world.tame(odd_word(random)),
        };
        let _ = c.ctx.store(page * PAGE + 8 * random.below(words), value);
    }
}

/// A snapshot of the host's table or of a VM's, with a descriptor that is right, mostly.
pub(super) fn snapshot(c: &Caller<'_>, random: &mut Random) {
    let vm = c.world.some_vm(random).map(|(_, _, handle)| handle);
    let target = random.of(&[HOST, vm.unwrap_or(HOST), vm.unwrap_or(1)]).unwrap_or(HOST);
    let query = c.call(HostFn::S2SnapshotQuery, &[target]);
    if !query.is_ok() {
        return;
    }
    let (roots, tables) = (query.x3 >> 32, query.x3 & 0xffff_ffff);
    let tables = if random.below(6) == 0 { tables / 2 } else { tables + 4 };
    let nr = (roots + tables + 1).next_power_of_two();
    if nr > 512 {
        return;
    }
    let first = c.world.free_run(random, nr);
    let (head, descriptor) = (first + roots, first + roots + tables);
    for n in 0..tables {
        let next = if n + 1 < tables { head + n + 1 } else { END };
        let _ = c.ctx.store((head + n) * PAGE, next);
    }
    let request = [
        u64::from(MAGIC) | u64::from(VERSION) << 32,
        first,
        roots | tables << 32,
        if tables > 0 { head } else { END },
        0,
        0,
        0,
        0,
    ];
    let wrong = random.below(32);
    for (n, word) in (0..).zip(request) {
        let word = if n == wrong { c.world.tame(odd_word(random)) } else { word };
        let _ = c.ctx.store(descriptor * PAGE + 8 * n, word);
    }
    let flags = random.of(&[0, 1, 1, 2]).unwrap_or(0);
    c.call(HostFn::S2Snapshot, &[target, descriptor, flags]);
}

/// Makes one of the next passes of some fault site fail, in an image that can.
pub(super) fn inject(c: &Caller<'_>, random: &mut Random) {
    // A page for a host's table is wanted by accesses too, which must not fail where the host runs.
    let sites = Site::ALL.iter().filter(|site| **site != Site::HostPoolAlloc);
    let nth = usize::try_from(random.below(Site::ALL.len() as u64 - 1)).unwrap_or(0);
    let (Some(inspector), Some(site)) = (Inspector::new(c.ctx.hypervisor()), sites.into_iter().nth(nth))
    else {
        return;
    };
    c.say(format_args!("FI_ARM {}", site.name()));
    if let Err(e) = inspector.arm(*site, 1 + random.below(3)) {
        c.fail("FI_ARM", e);
    }
}

/// Lets no site fail any more.
pub(super) fn disarm(c: &Caller<'_>) {
    if let Some(Err(e)) = Inspector::new(c.ctx.hypervisor()).map(Inspector::clear) {
        c.fail("FI_CLEAR", e);
    }
}

/// Calls to firmware that do not end anything.
const FIRMWARE: [u32; 12] = [
    psci::VERSION,
    psci::AFFINITY_INFO_32,
    psci::AFFINITY_INFO_64,
    psci::MIGRATE_INFO_TYPE,
    psci::FEATURES,
    psci::CPU_ON_64,
    psci::CPU_ON_32,
    smccc::VERSION,
    smccc::ARCH_FEATURES,
    trng::VERSION,
    trng::FEATURES,
    trng::RND64,
];

/// A call to firmware, or to nobody.
pub(super) fn firmware(c: &Caller<'_>, random: &mut Random) {
    let known = random.of(&FIRMWARE).unwrap_or(psci::VERSION);
    // PSCI's later functions, which nobody relays, and numbers of vendors.
    let unknown = random.of(&[0x8400_0010, 0x8400_0011, 0x8400_001e, 0xc500_0000, 0x8600_0001, 0xbf00_0000]);
    let id = if random.below(4) == 0 { unknown.unwrap_or(0) } else { known };
    let cpus = &c.ctx.board.cpus;
    let mpidr = random.of(cpus).unwrap_or(0);
    let odd = odd_word(random) | 1 << 40;
    let first = random.of(&[mpidr, mpidr, u64::from(known), odd]).unwrap_or(0);
    c.say(format_args!("SMC {id:#x} {first:#x}"));
    let (before, after) = c.ctx.firmware(id, &[first, c.world.any(random) * PAGE, odd_word(random)]);
    c.tally.calls.fetch_add(1, Relaxed);
    let [status, ..] = after;
    // All CPUs are on; SMCCC's NOT_SUPPORTED changes nothing, an answer leaves x4 and up alone.
    let changed = first_change(&before, &after, if FIRMWARE.contains(&id) { 4 } else { 1 });
    let answered = FIRMWARE.contains(&id) || status == smccc::NOT_SUPPORTED;
    let started = id == psci::CPU_ON_64 && status == psci::SUCCESS;
    if changed.is_some() || !answered || started {
        let why = format_args!("x0 = {status:#x}, first change {changed:x?}");
        c.fail(format_args!("SMC {id:#x} {first:#x}"), why);
    }
}

/// Puts what every CPU still has, takes every VM apart, and has every page back; false if one does not come.
pub(super) fn give_up(c: &Caller<'_>) -> u64 {
    life::end_all(c);
    let mut tables = 0;
    // A page may hold the table of one that was lent later: twice round finds it idle.
    for last in [false, true] {
        for pfn in c.world.area().pages().map(|page| page / PAGE) {
            // Of pages that CPUs raced for nobody knows which are shared: the host sees those all the same.
            if let Err(CallError::Errno(abi::Errno::Ebusy)) = c.ctx.hypervisor().unshare(pfn) {
                c.fail("every page comes back", format_args!("{pfn:#x} is pinned, and there is no VM"));
            }
            if c.ctx.load(pfn * PAGE).is_ok() {
                c.world.believe(pfn, Use::Free, 0, 0);
                continue;
            }
            let back = c.call(HostFn::HypDonateHost, &[pfn, 1]);
            if back.is_ok() || !last {
                continue;
            }
            if back.verdict == Err(abi::Errno::Ebusy) {
                tables += 1;
            } else {
                c.fail("every page comes back", format_args!("{pfn:#x}: {:?}", back.verdict));
            }
        }
    }
    tables
}
