//! What a realm costs: a state for a range, a page out of a block, a gibibyte that ends; what is measured of it, and a call
//! to its host.
#![forbid(unsafe_code)]

use super::cost::Clock;
use super::guest::{Guests, realm_task};
use super::guest_cost::{answered, leave, metric, per_turn};
use super::realm_end::{BASE, fill};
use crate::hvc::Chunk;
use crate::machine::{Before, TurnRun};
use crate::span::{BLOCK, GIB, PAGE, Span};
use crate::vmm::{Spec, Stop, Vm};
use abi::HostFn;
use abi::exit::{Reason, word};
use abi::vm::ORDER_BLOCK;
use guest_shim::protocol::{ABSENT, Payload};

pub(super) fn run(g: &Guests<'_>) {
    let clock = Clock::new(g.ctx);
    states(g);
    answered(g, "host_call", realm_task(Payload::CallHost, 0), Reason::HostCall);
    measured(g, &clock);
    of_a_block(g, &clock);
    gibibyte(g, &clock);
}

/// A realm without memory, in phase NEW.
pub(super) fn bare<'v>(g: &'v Guests<'_>) -> Option<Vm<'v>> {
    let spec = Spec { vcpus: 1, start: realm_task(Payload::Idle, 0) };
    let vm = g.ok("a realm", g.vmm.create_empty(&spec))?;
    g.ok("table pages", vm.top_up(4))?;
    Some(vm)
}

/// IPA_STATE_SET of 2 MiB without a page: exit, RIPAS_APPLY, and back into the guest.
fn states(g: &Guests<'_>) {
    const ROUNDS: u64 = 16;
    let Some(vm) = g.ok("a realm", g.vmm.create_one(realm_task(Payload::Claim, 0))) else { return };
    let stop =
        vm.run(&[g.ctx.boot_cpu], &|_, _, exit| exit.reason == Reason::RipasChange && exit.base == ABSENT);
    g.expect("the realm asks", stop, Stop::Watcher);
    g.ok("its record", vm.write_record(0, word::GIC, 0));
    g.expect("load", g.hyp().vcpu_load(vm.handle, 0), Ok(()));
    let args = [vm.handle, 0, ABSENT, ABSENT + BLOCK, 0];
    let run = TurnRun { before: Before::Call(HostFn::RipasApply.id()), args, strides: [0; 3], count: 1 };
    let (mut ram, mut empty) = (0, 0);
    for _ in 0..ROUNDS {
        ram += per_turn(g, "EMPTY becomes RAM", &run);
        empty += per_turn(g, "RAM becomes EMPTY", &run);
    }
    metric(g, "ipa_state_set_ram_2m", (ram + ROUNDS / 2) / ROUNDS);
    metric(g, "ipa_state_set_empty_2m", (empty + ROUNDS / 2) / ROUNDS);
    leave(g, "a realm whose states were timed", vm);
}

/// A page of the image, measured and not; and as many ranges as a table of pages can say.
fn measured(g: &Guests<'_>, clock: &Clock<'_>) {
    const RANGES: u64 = BLOCK / PAGE / 2;
    let Some(vm) = bare(g) else { return };
    let Some(block) = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK)) else { return };
    let hyp = g.hyp();
    let place = |n: u64| BASE + 2 * n * PAGE;
    for n in 0..RANGES {
        let done = hyp.vm_init_ripas(vm.handle, place(n), place(n) + PAGE);
        g.ok("a page of RAM", done.map_err(|(e, _)| e));
    }
    let pfn = |n: u64| block.start() / PAGE + n;
    let populate =
        |n, measure| hyp.vm_populate(vm.handle, place(n) / PAGE, pfn(n), measure).map_err(|(e, _)| e);
    // The first splits the host's block.
    g.ok("a page", g.vmm.with_pool(|| populate(0, true)));
    for (n, name, measure) in [(1, "populate", false), (2, "populate_measured", true)] {
        let (cost, given) = clock.time(|| populate(n, measure));
        g.expect(name, given, Ok(()));
        metric(g, name, cost);
    }
    let (cost, whole) = clock.time(|| hyp.vm_finalise(vm.handle));
    g.expect("VM_FINALISE", whole, Ok(()));
    metric(g, "finalise_256_per_range", (cost + RANGES / 2) / RANGES);
    for n in 0..3 {
        let taken = hyp.guest_reclaim(vm.handle, place(n), place(n) + PAGE);
        g.expect("a page is taken", taken, Ok(Chunk { done: place(n) + PAGE, retained: None }));
    }
    give(g, block);
    g.destroy("a realm that was measured", vm);
}

/// The page at the start of a block goes, then the rest of the block.
fn of_a_block(g: &Guests<'_>, clock: &Clock<'_>) {
    let Some(vm) = bare(g) else { return };
    let Some(block) = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK)) else { return };
    let hyp = g.hyp();
    g.ok("memory", hyp.vm_init_ripas(vm.handle, BASE, BASE + BLOCK).map_err(|(e, _)| e));
    let given = hyp.guest_donate(vm.handle, BASE / PAGE, block.start() / PAGE, ORDER_BLOCK);
    g.expect("a block is given", given, Ok(()));
    // The store stays as it is: the reserve is repaid by a page of it.
    let (cost, taken) = clock.time(|| hyp.guest_reclaim(vm.handle, BASE, BASE + PAGE));
    g.expect("a page of it is taken", taken, Ok(Chunk { done: BASE + PAGE, retained: None }));
    metric(g, "reclaim_one_of_block", cost);
    let (cost, taken) = clock.time(|| hyp.guest_reclaim(vm.handle, BASE + PAGE, BASE + 2 * PAGE));
    g.expect("the next page", taken, Ok(Chunk { done: BASE + 2 * PAGE, retained: None }));
    metric(g, "reclaim_one", cost);
    let (cost, taken) = clock.time(|| hyp.guest_reclaim(vm.handle, BASE + 2 * PAGE, BASE + BLOCK));
    g.expect("the rest", taken, Ok(Chunk { done: BASE + BLOCK, retained: None }));
    metric(g, "reclaim_510_per_page", (cost + 255) / 510);
    give(g, block);
    g.destroy("a realm that lost a block", vm);
}

/// 1 GiB: one entry as long as there is no page; a block each 2 MiB; some of everything; and the end of each.
fn gibibyte(g: &Guests<'_>, clock: &Clock<'_>) {
    let memory = g.ctx.pages.lock().take(GIB, BLOCK);
    let Some(memory) = memory else {
        let Some(vm) = of_ram(g, clock) else { return };
        let Some((total, calls)) = end(g, clock, vm) else { return };
        g.expect("calls that 1 GiB without a page takes", calls, 1);
        return metric(g, "destroy_1g_without_a_page", total);
    };
    let Some(vm) = of_ram(g, clock) else { return };
    for offset in (0..GIB / BLOCK).map(|n| n * BLOCK) {
        let (gfn, pfn) = ((BASE + offset) / PAGE, (memory.start() + offset) / PAGE);
        let give = || g.hyp().guest_donate(vm.handle, gfn, pfn, ORDER_BLOCK).map_err(|(e, _)| e);
        let given = g.vmm.with_pool(give);
        if given.is_err() {
            return g.expect("each block is given", given, Ok(()));
        }
    }
    ended(g, clock, vm, "destroy_1g_of_blocks", GIB / PAGE);

    let Some(vm) = bare(g) else { return };
    g.expect("1 GiB becomes RAM", g.hyp().vm_init_ripas(vm.handle, BASE, BASE + GIB), Ok(BASE + GIB));
    let Some(pages) = fill(g, &vm, memory) else { return };
    ended(g, clock, vm, "destroy_1g_mixed", pages);
    give(g, memory);
}

/// A realm with 1 GiB of RAM and no page.
fn of_ram<'v>(g: &'v Guests<'_>, clock: &Clock<'_>) -> Option<Vm<'v>> {
    let vm = bare(g)?;
    let (cost, done) = clock.time(|| g.hyp().vm_init_ripas(vm.handle, BASE, BASE + GIB));
    g.expect("1 GiB becomes RAM at once", done, Ok(BASE + GIB));
    metric(g, "init_ripas_1g", cost);
    Some(vm)
}

/// What the end of a realm with `pages` pages costs, in all and for each.
fn ended(g: &Guests<'_>, clock: &Clock<'_>, vm: Vm<'_>, name: &str, pages: u64) {
    let Some((total, _)) = end(g, clock, vm) else { return };
    metric(g, name, total);
    g.ctx.report.metric(format_args!("{name}_per_page"), (total + pages / 2) / pages, "instructions");
}

/// Takes the gibibyte of a realm, and then the rest of it: instructions of RECLAIM_DYING, and how often it was called.
fn end(g: &Guests<'_>, clock: &Clock<'_>, vm: Vm<'_>) -> Option<(u64, u64)> {
    let hyp = g.hyp();
    g.expect("VM_TEARDOWN_START", hyp.vm_teardown_start(vm.handle), Ok(()));
    let (mut at, mut total, mut calls) = (BASE, 0, 0);
    while at < BASE + GIB {
        let (cost, chunk) = clock.time(|| hyp.reclaim_dying(vm.handle, at, BASE + GIB));
        (at, total, calls) = (g.ok("RECLAIM_DYING", chunk)?.done, total + cost, calls + 1);
    }
    g.ok("the rest of the realm", vm.destroy_started())?;
    Some((total, calls))
}

/// Memory that a realm had is free again.
fn give(g: &Guests<'_>, memory: Span) {
    let back = g.ctx.pages.lock().give(memory);
    g.ctx.report.check("its memory is free again", back.is_ok(), "no room to note it");
}
