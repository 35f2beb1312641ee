//! Snapshots made to fail at every step: part of scenario `faults`.
#![forbid(unsafe_code)]

use super::Ctx;
use super::bare_vm::BareVm;
use super::custody::same_owners;
use super::faults::{Hits, hits};
use super::snapshot::{dirt, error};
use crate::dump::{Buffer, with_slack};
use crate::inspect::Inspector;
use crate::span::{BLOCK, PAGE};
use abi::Errno::{Einval, Enomem};
use abi::fault::Site;
use abi::snapshot::HOST;
use abi::vm::VmFlags;
use core::fmt::Display;

/// In each page of a buffer, behind the link, as long as it has not been taken.
const MARK: u64 = 0x5ec2_e700_0000_0005;

/// Makes snapshots of the host's table and of a VM's fail at every pass of every site; how often
/// each site was passed.
pub(super) fn exhaust(ctx: &Ctx<'_>, inspector: Inspector<'_>) -> Hits {
    let mut seen = every_pass(ctx, inspector, HOST, "a snapshot of the host");
    let Some(page) = ctx.take(1, PAGE) else { return seen };
    let made = BareVm::make(ctx, VmFlags::empty(), 8);
    let Ok(mut vm) = made else {
        ctx.report.fail("a VM to look at", format_args!("{made:?}"));
        return seen;
    };
    let lent = [5, 0x4_0000].map(|gfn| vm.lend(gfn, page.start() / PAGE));
    ctx.report.equal("a VM with two pages", lent, [Ok(()); 2]);
    for (seen, hits) in seen.iter_mut().zip(every_pass(ctx, inspector, vm.handle, "a snapshot of a VM")) {
        *seen += hits;
    }
    vm.end();
    no_table_to_split_with(ctx, inspector);
    seen
}

fn every_pass(ctx: &Ctx<'_>, inspector: Inspector<'_>, target: u64, name: &str) -> Hits {
    let nothing = [0; Site::ALL.len()];
    let Ok(query) = ctx.hypervisor().snapshot_query(target) else { return nothing };
    let buffer = Buffer::take(ctx, query.roots.into(), with_slack(query.tables.into()));
    let Some(buffer) = buffer else { return nothing };
    // The first splits what the buffer is in; the others pass the same steps.
    let first = buffer.snapshot(ctx, target);
    ctx.report.check(format_args!("{name}, undisturbed"), first.is_ok(), format_args!("{first:?}"));
    ctx.report.equal("FI_CLEAR", inspector.clear(), Ok(()));
    let needed = buffer.snapshot(ctx, target).unwrap_or(0);
    let seen = hits(inspector);
    let Ok(before) = inspector.audit() else { return nothing };
    for (site, hits) in Site::ALL.into_iter().zip(seen) {
        for nth in 1..=hits {
            let what = format_args!("{name}: pass {nth} of {}", site.name());
            fail(ctx, inspector, &buffer, (target, needed), (site, nth), what);
            match inspector.audit() {
                Ok(after) => {
                    same_owners(ctx, format_args!("{what} leaves every page where it was"), &before, &after)
                }
                Err(e) => ctx.report.check(format_args!("{what}: audit"), false, e),
            };
        }
    }
    ctx.report.equal("FI_CLEAR", inspector.clear(), Ok(()));
    ctx.report.equal(format_args!("{name}, undisturbed again"), buffer.snapshot(ctx, target), Ok(needed));
    buffer.give(ctx);
    seen
}

/// S-04, S-05: the errno of the site and the page that is meant; what was taken is back and zero,
/// what was not taken is untouched.
fn fail(
    ctx: &Ctx<'_>,
    inspector: Inspector<'_>,
    buffer: &Buffer,
    (target, needed): (u64, u64),
    (site, nth): (Site, u64),
    what: impl Display,
) {
    let report = &ctx.report;
    let pages =
        || (0..buffer.roots()).map(|n| buffer.root(n)).chain((0..buffer.tables()).map(|n| buffer.table(n)));
    let written =
        buffer.write(ctx, buffer.request()) && pages().all(|page| ctx.store(page + 8, MARK).is_ok());
    let armed = inspector.clear().and_then(|()| inspector.arm(site, nth));
    let got = ctx.hypervisor().snapshot(target, buffer.desc() / PAGE, 0);
    let (needed, index) = match site {
        Site::SnapCount => (needed, 0),
        Site::SnapLock | Site::SnapDesc | Site::SnapCopy => (0, 0),
        Site::SnapPgd => (0, nth),
        Site::SnapTbl => (0, buffer.roots() + nth),
        // Those that every page passes, the descriptor first.
        _ => (0, nth - 1),
    };
    report.equal(
        format_args!("{what} fails"),
        (written, armed, got),
        (true, Ok(()), Err(error(site.errno(), needed, index))),
    );
    report.equal(format_args!("{what} failed once"), inspector.stats(site).map(|[_, fired]| fired), Ok(1));
    let taken = match site {
        Site::SnapCount | Site::SnapCopy => u64::MAX,
        _ => index.saturating_sub(1),
    };
    let as_it_should = pages().zip(0..).all(|(page, n)| match n < taken {
        true => dirt(ctx, page) == 0,
        false => ctx.load(page + 8) == Ok(MARK),
    });
    report.check(format_args!("{what}: pages are back, zero or untouched"), as_it_should, "one is not");
}

/// S-15: the descriptor lies in a block that the host has mapped whole, and there is no page for
/// the table that it would take.
fn no_table_to_split_with(ctx: &Ctx<'_>, inspector: Inspector<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    for nth in 1..=8 {
        let Some(block) = ctx.take(BLOCK / PAGE, BLOCK) else { return };
        let used = ctx.store(block.start() + 8, MARK);
        let armed = inspector.clear().and_then(|()| inspector.arm(Site::HostPoolAlloc, nth));
        let got = hyp.snapshot(HOST, block.start() / PAGE, 0);
        let fired = inspector.stats(Site::HostPoolAlloc).map_or(0, |[_, fired]| fired);
        report.equal("a block of the host", (used, armed), (Ok(()), Ok(())));
        if fired == 0 {
            report.check("a block is split for a descriptor", nth > 1, "no table was needed");
            report.equal("what is in it is no request", got, Err(error(Einval, 0, 0)));
            return;
        }
        report.equal(
            format_args!("no table number {nth} to split a block with"),
            got,
            Err(error(Enomem, 0, 0)),
        );
        report.equal("the block is the host's", ctx.load(block.start() + 8), Ok(MARK));
    }
    report.fail("a block is split for a descriptor", "it takes more than 8 tables");
}
