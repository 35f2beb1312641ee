//! `faults`: every step of a host call that can fail is made to fail, in every call that passes it.
//!
//! Each attempt is on memory that no table was made for yet, so that it passes the same steps.
#![forbid(unsafe_code)]

use super::custody::same_owners;
use super::{Ctx, refused};
use crate::hvc::CallError;
use crate::inspect::Inspector;
use crate::span::{BLOCK, PAGE};
use abi::HostFn;
use abi::caps::Caps;
use abi::fault::Site;
use abi::host::MAX_PAGES;

/// A call, what undoes it, and the blocks of 2 MiB that it may work in.
struct Case {
    name: &'static str,
    blocks: u64,
    /// First page behind the start of the memory, and number of pages.
    pages: (u64, u64),
    call: HostFn,
    undo: HostFn,
}

const CASES: &[Case] = &[
    Case {
        name: "share",
        blocks: 1,
        pages: (3, 1),
        call: HostFn::HostShareHyp,
        undo: HostFn::HostUnshareHyp,
    },
    Case {
        name: "lend of a page",
        blocks: 1,
        pages: (3, 1),
        call: HostFn::HostDonateHyp,
        undo: HostFn::HypDonateHost,
    },
    Case {
        name: "lend of a whole block",
        blocks: 1,
        pages: (0, MAX_PAGES),
        call: HostFn::HostDonateHyp,
        undo: HostFn::HypDonateHost,
    },
    Case {
        name: "lend across two blocks",
        blocks: 2,
        pages: (MAX_PAGES - 2, 5),
        call: HostFn::HostDonateHyp,
        undo: HostFn::HypDonateHost,
    },
];

/// The sites of calls about VMs, and of snapshots; an image may have neither.
const OF_VMS: [Site; 8] = [
    Site::PtCachePop,
    Site::TopupStep,
    Site::VmCreateStep,
    Site::VcpuCreateStep,
    Site::VmName,
    Site::GuardTable,
    Site::RipasTable,
    Site::LeaveSplit,
];
const OF_SNAPSHOTS: [Site; 6] =
    [Site::SnapLock, Site::SnapDesc, Site::SnapPgd, Site::SnapTbl, Site::SnapCount, Site::SnapCopy];
/// The sites of MTE_UPGRADE, and what the CPU must have: blocks without tags are split only where there can be such.
const OF_UPGRADES: [(Site, Caps); 2] = [(Site::NtaPrepHost, Caps::MTE), (Site::NtaSplit, Caps::MTE_PRECISE)];

pub(super) fn run(ctx: &Ctx<'_>) {
    let Some(inspector) = Inspector::new(ctx.hypervisor()) else {
        return ctx.report.fail("fault injection", "the hypervisor does not offer it");
    };
    let mut reached = [false; Site::ALL.len()];
    let mut note = |hits: Hits| reached.iter_mut().zip(hits).for_each(|(seen, hits)| *seen |= hits > 0);
    CASES.iter().for_each(|case| note(exhaust(ctx, inspector, case)));
    let vms = ctx.hypervisor().vm_finalise(0) != Err(CallError::NotSupported);
    if vms {
        note(super::vm_faults::exhaust(ctx, inspector));
        note(of_guests(ctx));
    }
    let caps = ctx.hypervisor().caps().map_or(Caps::empty(), |reply| Caps::from_bits_retain(reply.caps));
    if caps.contains(Caps::MTE) {
        note(super::upgrade_faults::exhaust(ctx, inspector));
    }
    let snapshots = vms && crate::dump::is_there(ctx);
    if snapshots {
        note(super::snapshot_faults::exhaust(ctx, inspector));
    }
    expect(ctx, "the sites are cleared", inspector.clear());
    for (site, seen) in Site::ALL.into_iter().zip(reached) {
        let name = format_args!("{} was made to fail", site.name());
        if !vms && OF_VMS.contains(&site) || !snapshots && OF_SNAPSHOTS.contains(&site) {
            ctx.report.skip(name, "this hypervisor does not have the calls");
        } else if OF_UPGRADES.iter().any(|&(of, needs)| of == site && !caps.contains(needs)) {
            ctx.report.skip(name, "this CPU has no tags, or no blocks without them");
        } else {
            ctx.report.check(name, seen, "no call passes it");
        }
    }
    ctx.expect_el2_alive();
}

/// The calls of guests, and all that the host does for them.
fn of_guests(ctx: &Ctx<'_>) -> Hits {
    ctx.injection.start();
    super::guard::run(ctx);
    super::guest::share_of_blocks(ctx);
    ctx.injection.stop(&ctx.report)
}

fn expect(ctx: &Ctx<'_>, name: &str, done: Result<(), CallError>) {
    if let Err(e) = done {
        ctx.report.fail(name, e);
    }
}

/// How often each site is passed.
pub(super) type Hits = [u64; Site::ALL.len()];

/// Makes every pass of every site fail once; gives how often each is passed.
fn exhaust(ctx: &Ctx<'_>, inspector: Inspector<'_>, case: &Case) -> Hits {
    // Tables that cover more than a block are made with the first call and stay.
    let counted = undisturbed(ctx, inspector, case).and_then(|_| undisturbed(ctx, inspector, case));
    let hits = match counted {
        Ok(hits) => hits,
        Err(e) => {
            ctx.report.fail(format_args!("{}, undisturbed", case.name), e);
            return [0; Site::ALL.len()];
        }
    };
    for (site, hits) in Site::ALL.into_iter().zip(hits) {
        for nth in 1..=hits {
            fail(ctx, inspector, case, (site, nth));
        }
    }
    hits
}

/// Memory that nothing has touched: first frame of the pages that the call works on.
fn fresh(ctx: &Ctx<'_>, case: &Case) -> Result<u64, CallError> {
    let (offset, _) = case.pages;
    let span = ctx.take(case.blocks * BLOCK / PAGE, BLOCK);
    span.map(|span| span.start() / PAGE + offset).ok_or(CallError::NotSupported)
}

fn make(ctx: &Ctx<'_>, call: HostFn, case: &Case, first: u64) -> Result<(), CallError> {
    let (_, nr) = case.pages;
    ctx.hypervisor().call_id(call.id(), &[first, nr], [false, false]).map(drop)
}

pub(super) fn hits(inspector: Inspector<'_>) -> Hits {
    Site::ALL.map(|site| inspector.stats(site).map_or(0, |[hits, _]| hits))
}

/// Makes the call and undoes it; how often the call passed each site.
fn undisturbed(ctx: &Ctx<'_>, inspector: Inspector<'_>, case: &Case) -> Result<Hits, CallError> {
    let first = fresh(ctx, case)?;
    inspector.clear()?;
    make(ctx, case.call, case, first)?;
    let hits = hits(inspector);
    make(ctx, case.undo, case, first)?;
    Ok(hits)
}

/// Makes the call fail where it passes a site for the nth time: it answers the errno of the site,
/// no page has another owner, and the next call succeeds.
fn fail(ctx: &Ctx<'_>, inspector: Inspector<'_>, case: &Case, (site, nth): (Site, u64)) {
    let (report, what) = (&ctx.report, format_args!("{}: pass {nth} of {}", case.name, site.name()));
    let Ok(first) = fresh(ctx, case) else { return };
    let audit = || inspector.audit().map_err(|e| report.fail(format_args!("{what}: audit"), e));
    let Ok(before) = audit() else { return };
    let armed = inspector.clear().and_then(|()| inspector.arm(site, nth));
    report.equal(format_args!("{what} is armed"), armed, Ok(()));
    let got = make(ctx, case.call, case, first);
    report.equal(format_args!("{what} fails with the errno of the site"), got, refused(site.errno()));
    let fired = inspector.stats(site).map(|[_, fired]| fired);
    report.equal(format_args!("{what} failed once"), fired, Ok(1));
    let Ok(after) = audit() else { return };
    same_owners(ctx, format_args!("{what} leaves every page where it was"), &before, &after);
    expect(ctx, "FI_CLEAR", inspector.clear());
    let again = make(ctx, case.call, case, first);
    let undone = make(ctx, case.undo, case, first);
    report.equal(format_args!("{what}: the next call succeeds"), [again, undone], [Ok(()); 2]);
}
