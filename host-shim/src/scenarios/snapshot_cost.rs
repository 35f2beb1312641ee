//! `snapshot_cost`: instructions that EL2 spends on a snapshot, by the number of tables.
//!
//! Of each size two calls are timed that take, zero and give back the same pages: one of the table
//! in question, one of a VM whose table is its root alone. Their difference is the copy. Pages are
//! taken from blocks that are split already, one after the other in memory.
#![forbid(unsafe_code)]

use super::Ctx;
use super::bare_vm::BareVm;
use super::cost::{counts_instructions, instructions, per_call};
use crate::dump::Buffer;
use crate::hvc::registers;
use crate::machine::{CallRun, Imm};
use crate::span::{BLOCK, PAGE};
use abi::HostFn;
use abi::smccc::SUCCESS;
use abi::snapshot::{HOST, SnapshotFlags};
use abi::vm::VmFlags;
use core::fmt::Display;

/// Tables of the host, and of a VM in which one page is mapped in every 2 MiB.
const HOST_SIZES: [u64; 2] = [10, 100];
const GUEST_SIZES: [u64; 3] = [10, 100, 10_000];
/// The same with `curve=tables`, which has no table of the host.
const CURVE_SIZES: [u64; 8] = [3, 10, 30, 100, 300, 1000, 3000, 10_000];
/// Entries of a table.
const ENTRIES: u64 = 512;

pub(super) fn run(ctx: &Ctx<'_>) {
    if !crate::dump::is_there(ctx) {
        return ctx.report.skip("figures of snapshots", "this hypervisor takes none");
    }
    if !counts_instructions(ctx) {
        return ctx.report.fail("time is instructions", "run with -icount shift=0,sleep=off and one CPU");
    }
    ctx.report.pass("time is instructions");
    match BareVm::make(ctx, VmFlags::empty(), 0) {
        Ok(empty) => {
            with_empty(ctx, empty.handle);
            empty.end();
        }
        Err(e) => ctx.report.fail("a VM whose table is its root", e),
    }
    ctx.expect_el2_alive();
}

fn with_empty(ctx: &Ctx<'_>, empty: u64) {
    let Some(alone) = root_alone(ctx, empty) else { return };
    if ctx.args.get("curve") == Some("tables") {
        for tables in CURVE_SIZES {
            guest(ctx, empty, alone, tables);
        }
        return;
    }
    for tables in HOST_SIZES {
        let Some(buffer) = Buffer::take(ctx, 1, tables) else { return };
        // Splits what it is in, so that the table does not grow when it is timed.
        time(ctx, &buffer, empty);
        if grow_host(ctx, tables) {
            figures(ctx, &buffer, (HOST, empty), alone, format_args!("host_{tables}"));
        }
        buffer.give(ctx);
    }
    let calls = GUEST_SIZES.map(|tables| guest(ctx, empty, alone, tables).unwrap_or(0));
    let [_, hundred, many] = calls;
    ctx.report.check(
        "a table costs the same however many there are",
        many > 0 && many.abs_diff(hundred) * 20 <= hundred,
        format_args!("{hundred} instructions of 100, {many} of 10 000"),
    );
}

/// A snapshot without tables: what a call costs whatever it copies.
fn root_alone(ctx: &Ctx<'_>, empty: u64) -> Option<u64> {
    const CALLS: u64 = 16;
    let buffer = Buffer::take(ctx, 1, 0)?;
    time(ctx, &buffer, empty);
    // The request stands in the descriptor after each call.
    let run = CallRun {
        id: HostFn::S2Snapshot.id(),
        arg1: empty,
        stride: 0,
        arg2: buffer.desc() / PAGE,
        count: CALLS,
    };
    let each = per_call(ctx, "a snapshot of a root alone", &run);
    ctx.report.metric("snapshot_root_alone", each, "instructions");
    buffer.give(ctx);
    Some(each)
}

/// Makes the host's table `tables` pages large: a block of which a page was lent is a table.
fn grow_host(ctx: &Ctx<'_>, tables: u64) -> bool {
    let hyp = ctx.hypervisor();
    let there = || hyp.snapshot_query(HOST).map_or(u64::MAX, |q| q.tables.into());
    while there() < tables {
        let Some(block) = ctx.take(BLOCK / PAGE, BLOCK) else { return false };
        let first = block.start() / PAGE;
        let grown = [hyp.lend(first, 1), hyp.take_back(first, 1)];
        if !ctx.report.equal("a block becomes a table", grown, [Ok(()); 2]) {
            return false;
        }
    }
    ctx.report.equal("the host's table has as many pages", there(), tables)
}

/// The figures of a VM of which `tables` pages are a table; those of a whole call.
fn guest(ctx: &Ctx<'_>, empty: u64, alone: u64, tables: u64) -> Option<u64> {
    // Of n + 1 pages one leads to up to 512 others.
    let leaves = tables - tables.div_ceil(ENTRIES + 1);
    let page = ctx.take(1, PAGE)?;
    let made = BareVm::make(ctx, VmFlags::empty(), tables);
    let Ok(mut vm) = made else {
        ctx.report.fail("a VM with tables", format_args!("{made:?}"));
        return None;
    };
    // Not the same entry of every table.
    let lent = (0..leaves).try_for_each(|n| vm.lend(n * ENTRIES + n % ENTRIES, page.start() / PAGE));
    ctx.report.equal("a page in every 2 MiB", lent, Ok(()));
    let buffer = Buffer::take(ctx, 1, tables)?;
    time(ctx, &buffer, empty);
    let each = figures(ctx, &buffer, (vm.handle, empty), alone, format_args!("guest_{tables}"));
    buffer.give(ctx);
    vm.end();
    if ctx.pages.lock().give(page).is_err() {
        ctx.report.fail("free memory", "too fragmented to list");
    }
    each
}

/// Instructions for each table of the copy, and of the whole call but for what the root costs; the latter.
fn figures(
    ctx: &Ctx<'_>,
    buffer: &Buffer,
    (target, empty): (u64, u64),
    alone: u64,
    who: impl Display,
) -> Option<u64> {
    let (whole, nothing) = (time(ctx, buffer, target)?, time(ctx, buffer, empty)?);
    let each = |total: u64| (total + buffer.tables() / 2) / buffer.tables();
    let call = each(whole.saturating_sub(alone));
    ctx.report.metric(
        format_args!("snapshot_{who}_copy"),
        each(whole.saturating_sub(nothing)),
        "instructions",
    );
    ctx.report.metric(format_args!("snapshot_{who}_call"), call, "instructions");
    Some(call)
}

/// Instructions of one snapshot of `target` with all of `buffer`; `None` after a failed check.
fn time(ctx: &Ctx<'_>, buffer: &Buffer, target: u64) -> Option<u64> {
    let written = buffer.write(ctx, buffer.request());
    let flags = SnapshotFlags::RETURN_CHAIN_ZEROED.bits();
    let id = u64::from(HostFn::S2Snapshot.id());
    let args = registers(id, &[target, buffer.desc() / PAGE, flags]);
    let before = ctx.machine.ticks();
    let [x0, x1, ..] = ctx.machine.hvc(Imm::Zero, &args);
    let ticks = ctx.machine.ticks().wrapping_sub(before);
    let well = written && (x0, x1) == (SUCCESS, 0);
    ctx.report.check("a snapshot is timed", well, format_args!("x0 {x0:#x}, x1 {x1:#x}"));
    well.then(|| instructions(ctx, ticks))
}
