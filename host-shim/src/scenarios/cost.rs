//! `cost`: instructions that EL2 spends, counted by time; with `curve=NAME` how they grow with what there is.
//!
//! Under QEMU's `-icount shift=0,sleep=off` with one CPU an instruction takes one nanosecond of
//! virtual time. Each figure is a run with the operation less the same run without it, divided by the
//! number of operations: what EL2 executes from the vector to ERET, ERET included.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::machine::{CallRun, Timed};
use crate::span::{BLOCK, GIB, PAGE, Span};
use crate::vmm::Moment;
use abi::HostFn;
use abi::host::MAX_PAGES;

/// Instructions of the timed loop around a call, and of one around a load.
const CALL_LOOP: u64 = 10;
const NANOSECONDS: u64 = 1_000_000_000;

pub(super) fn run(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    for carveout in ctx.board.carveouts() {
        report.metric("carve_out", carveout.size(), "bytes");
    }
    report.metric("memory", ctx.board.ram.iter().map(|r| r.size()).sum(), "bytes");
    if !counts_instructions(ctx) {
        report.fail("time is instructions", "run with -icount shift=0,sleep=off and one CPU");
        return;
    }
    report.pass("time is instructions");
    if let Some(curve) = ctx.args.get("curve") {
        return super::cost_curves::run(ctx, curve);
    }
    report.metric("boot", instructions(ctx, ctx.machine.ticks_at_entry()), "instructions");
    hypercall(ctx);
    first_touch(ctx);
    ownership(ctx);
    super::guest_cost::run(ctx);
    ctx.expect_el2_alive();
}

/// `ticks` of the counter as instructions.
pub(super) fn instructions(ctx: &Ctx<'_>, ticks: u64) -> u64 {
    // A tick is a whole number of nanoseconds on QEMU's CPUs: 1 or 16.
    ticks * (NANOSECONDS / ctx.machine.frequency())
}

/// True if a loop of known length takes that many nanoseconds, to 1 in 1000.
pub(super) fn counts_instructions(ctx: &Ctx<'_>) -> bool {
    const COUNT: u64 = 100_000;
    let run = CallRun { id: 0, arg1: 0, stride: 0, arg2: 0, count: COUNT };
    let got = instructions(ctx, ctx.machine.time_calls(&run, false).ticks);
    let want = CALL_LOOP * COUNT;
    ctx.report.metric("calibration", got, "nanoseconds");
    got.abs_diff(want) < want / 1000
}

/// EL2's instructions for one of the calls of `run`, rounded to the nearest.
pub(super) fn per_call(ctx: &Ctx<'_>, name: &str, run: &CallRun) -> u64 {
    let Timed { ticks, status } = ctx.machine.time_calls(run, true);
    ctx.report.equal(format_args!("{name} is timed"), status, 0);
    let loops = ctx.machine.time_calls(run, false).ticks;
    let total = instructions(ctx, ticks.saturating_sub(loops));
    (total + run.count / 2) / run.count
}

/// Instructions of EL2 for an empty call, the mean of `count`.
fn empty_call(ctx: &Ctx<'_>, count: u64) -> u64 {
    per_call(ctx, "a hypercall", &CallRun { id: HostFn::HypCaps.id(), arg1: 0, stride: 0, arg2: 0, count })
}

/// Times what the host does, as far as EL2 does it: the time less the instructions below EL2, which the CPU counts.
pub(super) struct Clock<'c>(&'c Ctx<'c>);

impl<'c> Clock<'c> {
    pub(super) fn new(ctx: &'c Ctx<'c>) -> Self {
        let counts = ctx.machine.count_instructions();
        ctx.report.check("the CPU counts instructions below EL2", counts, "it has no such counter");
        Self(ctx)
    }

    /// Instructions of EL2 while `work` is done, to one tick of the counter, and its result.
    pub(super) fn time<T>(&self, work: impl FnOnce() -> T) -> (u64, T) {
        let machine = self.0.machine;
        let start = Moment::now(machine);
        let result = work();
        let end = Moment::now(machine);
        let nanoseconds = start.zip(end).map_or(0, |(start, end)| start.of_el2(end, machine));
        (nanoseconds.max(0).cast_unsigned(), result)
    }
}

fn hypercall(ctx: &Ctx<'_>) {
    let (once, twice) = (empty_call(ctx, 5000), empty_call(ctx, 10_000));
    ctx.report.equal("twice the hypercalls cost twice as much", once, twice);
    ctx.report.metric("empty_call", once, "instructions");
}

/// Times loads from memory that nobody touched, then the same loads again.
fn touch(ctx: &Ctx<'_>, name: &str, first: u64, stride: u64, count: u64) {
    let cold = ctx.machine.time_loads(first, stride, count);
    let warm = ctx.machine.time_loads(first, stride, count);
    let each = (instructions(ctx, cold.saturating_sub(warm)) + count / 2) / count;
    ctx.report.metric(name, each, "instructions");
}

fn first_touch(ctx: &Ctx<'_>) {
    // A page lent from a block makes EL2 map the rest of the block page by page.
    if let Some(block) = ctx.take(BLOCK / PAGE, BLOCK) {
        let lent = ctx.hypervisor().lend(block.start() / PAGE, 1);
        ctx.report.equal("a page of a fresh block is lent", lent, Ok(()));
        touch(ctx, "first_touch_4k", block.start() + PAGE, PAGE, BLOCK / PAGE - 1);
        let back = ctx.hypervisor().take_back(block.start() / PAGE, 1);
        ctx.report.equal("and comes back", back, Ok(()));
    }
    const BLOCKS: u64 = 32;
    if let Some(blocks) = ctx.take(BLOCKS * BLOCK / PAGE, BLOCK) {
        touch(ctx, "first_touch_2m", blocks.start(), BLOCK, BLOCKS);
    }
    let gib = ctx.pages.lock().take(GIB, GIB);
    match gib {
        Some(gib) => touch(ctx, "first_touch_1g", gib.start(), 0, 1),
        None => ctx.report.skip("first_touch_1g", "no free gigabyte"),
    }
}

fn ownership(ctx: &Ctx<'_>) {
    const PAGES: u64 = 512;
    const RANGES: u64 = 8;
    let Some(pages) = ctx.take(PAGES, BLOCK) else { return };
    let run = |call: HostFn, span: Span, stride, nr, count| CallRun {
        id: call.id(),
        arg1: span.start() / PAGE,
        stride,
        arg2: nr,
        count,
    };
    let metric = |name: &str, each| ctx.report.metric(name, each, "instructions");
    metric("share", per_call(ctx, "share", &run(HostFn::HostShareHyp, pages, 1, 0, PAGES)));
    metric("unshare", per_call(ctx, "unshare", &run(HostFn::HostUnshareHyp, pages, 1, 0, PAGES)));

    // One page at a time within a block, then whole ranges.
    metric("lend_one", per_call(ctx, "lend", &run(HostFn::HostDonateHyp, pages, 1, 1, PAGES)));
    metric("take_back_one", per_call(ctx, "take back", &run(HostFn::HypDonateHost, pages, 1, 1, PAGES)));
    split(ctx);
    let Some(ranges) = ctx.take(RANGES * MAX_PAGES, BLOCK) else { return };
    let lend = run(HostFn::HostDonateHyp, ranges, MAX_PAGES, MAX_PAGES, RANGES);
    metric("lend_512_per_page", per_call(ctx, "lend of 512", &lend) / MAX_PAGES);
    ranges_come_back(ctx, ranges);
}

/// A page of a block that the host has mapped whole: the block becomes 512 entries first.
fn split(ctx: &Ctx<'_>) {
    const BLOCKS: u64 = 4;
    const STRIDE: u64 = BLOCK / PAGE;
    let Some(blocks) = ctx.take(BLOCKS * STRIDE, BLOCK) else { return };
    ctx.machine.time_loads(blocks.start(), BLOCK, BLOCKS);
    let run = |call: HostFn| CallRun {
        id: call.id(),
        arg1: blocks.start() / PAGE,
        stride: STRIDE,
        arg2: 1,
        count: BLOCKS,
    };
    let each = per_call(ctx, "lend of a block's page", &run(HostFn::HostDonateHyp));
    ctx.report.metric("lend_one_of_block", each, "instructions");
    per_call(ctx, "take back of a block's page", &run(HostFn::HypDonateHost));
}

/// Times the ranges one by one, the last first: a page of one may be the table of a later one.
fn ranges_come_back(ctx: &Ctx<'_>, ranges: Span) {
    let (mut ticks, mut pages) = (0, 0);
    for n in (0..ranges.size() / PAGE / MAX_PAGES).rev() {
        let first = ranges.start() + n * MAX_PAGES * PAGE;
        let id = HostFn::HypDonateHost.id();
        let run = CallRun { id, arg1: first / PAGE, stride: 0, arg2: MAX_PAGES, count: 1 };
        let timed = ctx.machine.time_calls(&run, true);
        if timed.status == 0 {
            ticks += timed.ticks;
            pages += MAX_PAGES;
        }
    }
    if ctx.report.check("ranges come back", pages > 0, "each is in use") {
        ctx.report.metric("take_back_512_per_page", instructions(ctx, ticks) / pages, "instructions");
    }
}
