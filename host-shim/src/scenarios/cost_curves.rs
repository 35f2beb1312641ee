//! `cost curve=NAME`: how what EL2 spends grows with pages a call, with VMs that are alive, with CPUs that call at once.
//!
//! Each metric is named `curve_WHAT_N`: the instructions of one call where N is what grows. `scripts/bench.sh --curves` draws
//! them.
#![forbid(unsafe_code)]

use super::Ctx;
use super::bare_vm::BareVm;
use super::cost::{Clock, instructions, per_call};
use super::guest::{Guests, task};
use super::guest_cost::{TURNS, at_exit, leave, per_turn};
use super::realm_cost::bare;
use super::realm_end::BASE;
use super::vm_cost::Idle;
use crate::hvc::Chunk;
use crate::machine::CallRun;
use crate::span::{BLOCK, PAGE};
use crate::vmm::nobody;
use abi::HostFn;
use abi::exit::Reason;
use abi::vm::VmFlags;
use arrayvec::ArrayVec;
use core::fmt::Display;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::protocol::{self, Payload, time};

/// Pages a call.
const PAGES: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
/// VMs that are alive when one more comes.
const VMS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

pub(super) fn run(ctx: &Ctx<'_>, curve: &str) {
    match curve {
        "ram" => {
            ctx.report.metric("curve_boot", instructions(ctx, ctx.machine.ticks_at_entry()), "instructions");
        }
        "pages" => pages(ctx),
        "vms" => vms(ctx),
        "cpus" => cpus(ctx),
        _ => ctx.report.fail("the curve", "there are ram, pages, vms and cpus"),
    }
    ctx.expect_el2_alive();
}

fn point(ctx: &Ctx<'_>, what: impl Display, at: u64, cost: u64) {
    ctx.report.metric(format_args!("curve_{what}_{at}"), cost, "instructions");
}

fn pages(ctx: &Ctx<'_>) {
    lent(ctx);
    let g = Guests::open(ctx);
    let clock = Clock::new(ctx);
    unshared(&g, &clock);
    reclaimed(&g, &clock);
    guarded(&g);
    g.close();
}

/// HOST_DONATE_HYP and HYP_DONATE_HOST, within a block that is split already.
fn lent(ctx: &Ctx<'_>) {
    const BLOCK_PAGES: u64 = BLOCK / PAGE;
    const MOST_CALLS: u64 = 8;
    let Some(block) = ctx.take(BLOCK_PAGES, BLOCK) else { return };
    let run = |call: HostFn, nr: u64| CallRun {
        id: call.id(),
        arg1: block.start() / PAGE,
        stride: nr,
        arg2: nr,
        count: (BLOCK_PAGES / nr).min(MOST_CALLS),
    };
    for call in [HostFn::HostDonateHyp, HostFn::HypDonateHost] {
        per_call(ctx, "a block that becomes pages", &run(call, 1));
    }
    for nr in PAGES {
        point(ctx, "lend", nr, per_call(ctx, "lend", &run(HostFn::HostDonateHyp, nr)));
        point(ctx, "take_back", nr, per_call(ctx, "take back", &run(HostFn::HypDonateHost, nr)));
    }
}

/// GUEST_UNSHARE of a VM that sees one page of the host in many places.
fn unshared(g: &Guests<'_>, clock: &Clock<'_>) {
    const TABLES: u64 = 8;
    let Some(page) = g.ctx.take(1, PAGE) else { return };
    let Some(mut vm) = g.ok("a VM", BareVm::make(g.ctx, VmFlags::empty(), TABLES)) else { return };
    for nr in PAGES {
        // A place of its own for each: [1, 2), [2, 4) ... [512, 1024).
        let lent = (nr..2 * nr).try_for_each(|gfn| vm.lend(gfn, page.start() / PAGE));
        g.ok("the page is lent", lent);
        let (cost, done) = clock.time(|| g.hyp().guest_unshare(vm.handle, nr, nr));
        g.expect("all of them go", done, Ok(nr));
        point(g.ctx, "unshare", nr, cost);
    }
    vm.end();
    g.drop_page(page.start() / PAGE);
}

/// GUEST_RECLAIM of pages that a realm was given one by one.
fn reclaimed(g: &Guests<'_>, clock: &Clock<'_>) {
    const BLOCKS: u64 = 2;
    let Some(vm) = bare(g) else { return };
    let Some(memory) = g.ok("blocks", g.vmm.take(BLOCKS * BLOCK / PAGE, BLOCK)) else { return };
    let hyp = g.hyp();
    g.ok("memory", hyp.vm_init_ripas(vm.handle, BASE, BASE + BLOCKS * BLOCK).map_err(|(e, _)| e));
    for nr in PAGES {
        for n in nr..2 * nr {
            let give = || hyp.guest_donate(vm.handle, BASE / PAGE + n, memory.start() / PAGE + n, 0);
            g.ok("a page", g.vmm.with_pool(|| give().map_err(|(e, _)| e)));
        }
        let (from, to) = (BASE + nr * PAGE, BASE + 2 * nr * PAGE);
        let (cost, taken) = clock.time(|| hyp.guest_reclaim(vm.handle, from, to));
        g.expect("all of them are taken", taken, Ok(Chunk { done: to, retained: None }));
        point(g.ctx, "reclaim", nr, cost);
    }
    g.ok("the pages are free", g.vmm.give_back(memory));
    g.destroy("a realm that lost its pages", vm);
}

/// RGUARD_MAP, by the guest's own clock.
fn guarded(g: &Guests<'_>) {
    for nr in PAGES {
        let argument = u32::try_from(nr).unwrap_or(0);
        let Some(vm) = g.vm(&g.vmm, task(Payload::Time, true, argument)) else { return };
        let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
        g.judge("a guest marks pages", &vm, stop);
        let ticks = |result| vm.mail(protocol::word::RESULTS + result).unwrap_or(0);
        let cost = ticks(time::RGUARD_MAP).saturating_sub(ticks(time::LOOP) / time::COUNT);
        point(g.ctx, "guard_map", nr, instructions(g.ctx, cost));
        g.destroy("a guest that marked pages", vm);
    }
}

/// One more VM, its end, and an exit of the first, by the number that are alive.
fn vms(ctx: &Ctx<'_>) {
    const ROUNDS: u64 = 8;
    let g = Guests::open(ctx);
    let clock = Clock::new(ctx);
    let Some(runs) = at_exit(&g, task(Payload::Idle, true, 0), Reason::Wfx) else { return };
    let [.., most] = VMS;
    let Some(memory) = g.ok("pages", g.vmm.take((most + 1) * Idle::PAGES, BLOCK)) else { return };
    let place = |n: u64| memory.start() / PAGE + n * Idle::PAGES;
    let mut alive: ArrayVec<Idle<'_, '_>, 64> = ArrayVec::new();
    let warm = g.vmm.with_pool(|| Idle::make(&g, true, place(0))).and_then(Idle::end);
    let Some(calls) = g.ok("a VM comes and goes", warm) else { return };
    for count in VMS {
        while (alive.len() as u64) + 1 < count {
            let Some(vm) = g.ok("a VM", Idle::make(&g, true, place(alive.len() as u64 + 1))) else { return };
            alive.push(vm);
        }
        let (mut made, mut ended) = (0, 0);
        for _ in 0..ROUNDS {
            let (cost, vm) = clock.time(|| Idle::make(&g, true, place(0)));
            made += cost;
            let Some(vm) = g.ok("one more", vm) else { return };
            let (cost, gone) = clock.time(|| vm.end());
            ended += cost;
            g.expect("it goes", gone, Ok(calls));
        }
        point(ctx, "vm_create", count, (made + ROUNDS / 2) / ROUNDS);
        point(ctx, "vm_destroy", count, (ended + ROUNDS / 2) / ROUNDS);
        point(ctx, "vm_exit", count, per_turn(&g, "an exit", &TURNS));
    }
    for vm in alive {
        g.expect("each goes", vm.end(), Ok(calls));
    }
    g.ok("their pages", g.vmm.give_back(memory));
    leave(&g, "the VM whose exits were timed", runs);
    g.close();
}

/// All CPUs share pages of their own and take them back at once; what the machine executes for one call. What the same
/// loop takes without calls is taken off.
///
/// An emulator that counts instructions runs one CPU at a time, each for far longer than a call takes.
fn cpus(ctx: &Ctx<'_>) {
    const ROUNDS: u64 = 20_000;
    ctx.start_all_cpus();
    let cpus = ctx.all_cpus();
    let count = cpus.len() as u64;
    let Some(pages) = ctx.take(count, PAGE) else { return };
    let bad = AtomicU64::new(0);
    let time = |call: bool| {
        let before = ctx.machine.ticks();
        ctx.machine.run_on(&cpus, &|cpu| {
            let page = pages.start() / PAGE + cpu as u64;
            let run = |f: HostFn| CallRun { id: f.id(), arg1: page, stride: 0, arg2: 0, count: 1 };
            let pair = [HostFn::HostShareHyp, HostFn::HostUnshareHyp].map(run);
            for _ in 0..ROUNDS {
                let status = pair.map(|run| ctx.machine.time_calls(&run, call).status);
                bad.fetch_add(u64::from(call && status != [0; 2]), Ordering::Relaxed);
            }
        });
        instructions(ctx, ctx.machine.ticks().wrapping_sub(before))
    };
    let (with, without) = (time(true), time(false));
    ctx.report.equal("every call succeeds", bad.load(Ordering::Relaxed), 0);
    let calls = 2 * ROUNDS * count;
    point(ctx, "call", count, with.saturating_sub(without) / calls);
    ctx.report.metric("curve_calls", calls, "calls");
}
