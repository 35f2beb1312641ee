//! `host_mte`: the host's own use of memory tags is none of the hypervisor's business.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::dump::{self, Buffer};
use crate::hvc::Query;
use crate::machine::Access;
use crate::span::PAGE;
use abi::snapshot::HOST;

/// Tags that the scenario sets.
const TAG: u64 = 5;
const OTHER: u64 = 3;
/// DFSC of a failed check.
const TAG_CHECK_FAULT: u64 = 0x11;

pub(super) fn run(ctx: &Ctx<'_>) {
    if !ctx.machine.has_tags() {
        ctx.report.skip("memory tags", "this CPU has none");
        ctx.expect_el2_alive();
        return;
    }
    ctx.start_all_cpus();
    let Some(pages) = ctx.take(2, PAGE) else { return };
    let (mine, lent) = (pages.start(), pages.start() + PAGE);
    ctx.machine.run_on(&ctx.all_cpus(), &|cpu| {
        // The CPUs are given granules of their own.
        checked(ctx, cpu, mine + 64 * u64::try_from(cpu).unwrap_or(0));
    });
    calls(ctx, mine, lent);
    snapshot(ctx);
    ctx.report.check("the pages are free again", ctx.pages.lock().give(pages).is_ok(), "they are not");
    ctx.expect_el2_alive();
}

/// Tags are stored, loaded and checked on this CPU.
fn checked(ctx: &Ctx<'_>, cpu: usize, at: u64) {
    let (report, machine) = (&ctx.report, ctx.machine);
    machine.set_tag(at, TAG);
    report.equal(
        format_args!("CPU {cpu}: a tag is what was stored"),
        (machine.tag(at), machine.tag(at + 16)),
        (TAG, 0),
    );
    let (right, wrong) = (at | TAG << 56, at | OTHER << 56);
    report.equal("nothing is checked yet", ctx.store(wrong, 1), Ok(()));
    machine.check_tags(true);
    let (stored, loaded) = (ctx.store(right, 2), ctx.load(right));
    let refused = [Access::Load, Access::Store].map(|access| machine.probe(access, wrong, 3));
    machine.check_tags(false);
    report.equal("a checked access with the right tag", (stored, loaded), (Ok(()), Ok(2)));
    let faults = refused.iter().filter(|r| r.is_err_and(|f| f.status() == TAG_CHECK_FAULT && f.far == wrong));
    report.equal("a checked access with another", faults.count(), 2);
    report.equal("did nothing", ctx.load(right), Ok(2));
    machine.set_tag(at, 0);
}

/// Calls of the host, with its checks on and its tags set: EL2 never meets them.
fn calls(ctx: &Ctx<'_>, mine: u64, lent: u64) {
    let (report, machine, hyp) = (&ctx.report, ctx.machine, ctx.hypervisor());
    machine.set_tag(mine, TAG);
    machine.set_tag(lent, TAG);
    machine.check_tags(true);
    let (share, unshare) = (hyp.share(mine / PAGE), hyp.unshare(mine / PAGE));
    let (lend, back) = (hyp.lend(lent / PAGE, 1), hyp.take_back(lent / PAGE, 1));
    machine.check_tags(false);
    report.equal("a tagged page is shared and unshared", (share, unshare), (Ok(()), Ok(())));
    report.equal("and keeps its tag", machine.tag(mine), TAG);
    report.equal("a tagged page is lent and taken back", (lend, back), (Ok(()), Ok(())));
    report.equal("it comes back as zeros", ctx.load(lent), Ok(0));
    machine.set_tag(mine, 0);
    machine.set_tag(lent, 0);
}

/// S-23: the pages of a snapshot come back with the tags that they had, on every second none: what EL2 writes has none.
fn snapshot(ctx: &Ctx<'_>) {
    let Ok(Query { roots, tables, .. }) = ctx.hypervisor().snapshot_query(HOST) else {
        return ctx.report.skip("snapshots", "this image has none");
    };
    let Some(buffer) = Buffer::take(ctx, roots.into(), dump::with_slack(tables.into())) else { return };
    let pages = || buffer.span().pages().zip([0, TAG].into_iter().cycle());
    for (page, tag) in pages() {
        ctx.machine.set_tag(page, tag);
        ctx.machine.set_tag(page + PAGE - 16, tag);
    }
    let taken = buffer.snapshot(ctx, HOST);
    ctx.report.check("a snapshot into tagged pages", taken.is_ok(), format_args!("{taken:x?}"));
    let kept = |(page, tag): &(u64, u64)| {
        let [first, second, last] = [0, 16, PAGE - 16].map(|offset| ctx.machine.tag(page + offset));
        (first, second, last) == (*tag, 0, *tag)
    };
    let changed = pages().find(|place| !kept(place)).map_or(0, |(page, _)| page);
    ctx.report.equal("S-23: a page that came back with other tags", changed, 0);
    for (page, _) in pages() {
        ctx.machine.set_tag(page, 0);
        ctx.machine.set_tag(page + PAGE - 16, 0);
    }
    buffer.give(ctx);
}
