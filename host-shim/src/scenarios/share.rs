//! `share`: HOST_SHARE_HYP and HOST_UNSHARE_HYP, and what all four ownership calls refuse.
#![forbid(unsafe_code)]

use super::{Ctx, refused};
use crate::span::{GIB, PAGE};
use abi::Errno::{self, E2big, Einval, Eperm, Erange};
use abi::host::MAX_PAGES;
use core::fmt::Display;

/// One past the largest frame number: addresses have 48 bits.
const PFN_LIMIT: u64 = 1 << 36;

pub(super) fn run(ctx: &Ctx<'_>) {
    share_and_unshare(ctx);
    lent_pages_are_not_the_hosts(ctx);
    not_memory(ctx);
    hypervisor_memory(ctx);
    malformed_ranges(ctx);
    ranges_change_all_or_nothing(ctx);
    ctx.expect_el2_alive();
}

fn share_and_unshare(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let Some(pages) = ctx.take(3, PAGE) else { return };
    let page = pages.start() + PAGE;
    let pfn = page / PAGE;
    report.equal("the host writes its page", ctx.store(page, 0x5ec0), Ok(()));
    report.equal("unshare of what was never shared", hyp.unshare(pfn), refused(Eperm));
    report.equal("share", hyp.share(pfn), Ok(()));
    report.equal("share twice", hyp.share(pfn), refused(Eperm));
    report.equal("the host reads what it shared", ctx.load(page), Ok(0x5ec0));
    report.equal("the host writes what it shared", ctx.store(page, 0x5ec1), Ok(()));
    report.equal("a shared page cannot be lent", hyp.lend(pfn, 1), refused(Eperm));
    report.equal("nor a range that ends with it", hyp.lend(pfn - 1, 2), refused(Eperm));
    report.equal("nor taken back", hyp.take_back(pfn, 1), refused(Eperm));
    report.equal("its neighbour is not shared", hyp.unshare(pfn + 1), refused(Eperm));
    report.equal("unshare", hyp.unshare(pfn), Ok(()));
    report.equal("unshare twice", hyp.unshare(pfn), refused(Eperm));
    report.equal("the page kept its content", ctx.load(page), Ok(0x5ec1));
    report.equal("share again", hyp.share(pfn), Ok(()));
    report.equal("unshare again", hyp.unshare(pfn), Ok(()));
}

fn lent_pages_are_not_the_hosts(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let Some(page) = ctx.take(1, PAGE) else { return };
    let pfn = page.start() / PAGE;
    report.equal("lend", hyp.lend(pfn, 1), Ok(()));
    report.equal("share of a lent page", hyp.share(pfn), refused(Eperm));
    report.equal("unshare of a lent page", hyp.unshare(pfn), refused(Eperm));
    report.equal("lend twice", hyp.lend(pfn, 1), refused(Eperm));
    report.equal("take back", hyp.take_back(pfn, 1), Ok(()));
    report.equal("take back twice", hyp.take_back(pfn, 1), refused(Eperm));
}

/// All four calls for one page; `want` for the two that take a frame, then the two that take a range.
fn all_refuse(ctx: &Ctx<'_>, what: impl Display, pfn: u64, want: [Errno; 2]) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let [one, range] = want;
    report.equal(format_args!("share of {what}"), hyp.share(pfn), refused(one));
    report.equal(format_args!("unshare of {what}"), hyp.unshare(pfn), refused(one));
    report.equal(format_args!("lend of {what}"), hyp.lend(pfn, 1), refused(range));
    report.equal(format_args!("take back of {what}"), hyp.take_back(pfn, 1), refused(range));
}

fn not_memory(ctx: &Ctx<'_>) {
    if let Some(uart) = ctx.board.console {
        all_refuse(ctx, "the console's registers", uart / PAGE, [Erange; 2]);
    }
    let device = ctx.board.devices.iter().find(|d| d.disabled);
    if let Some(device) = device {
        all_refuse(ctx, "a withheld device", device.span.start() / PAGE, [Erange; 2]);
    }
    let top = ctx.board.ram.iter().map(|r| r.end()).max().unwrap_or(0);
    let hole = top.next_multiple_of(GIB) + GIB;
    all_refuse(ctx, "a hole", hole / PAGE, [Erange; 2]);
    for edge in ctx.board.ram.iter().flat_map(|r| [r.start(), r.end()]).filter(|e| e % PAGE != 0) {
        all_refuse(ctx, "a page that is memory in part", edge / PAGE, [Erange; 2]);
    }
    all_refuse(ctx, "frame 2^36 - 1", PFN_LIMIT - 1, [Erange; 2]);
    all_refuse(ctx, "frame 2^36", PFN_LIMIT, [Erange; 2]);
    all_refuse(ctx, "frame 2^52", 1 << 52, [Erange; 2]);
    all_refuse(ctx, "frame 2^63", 1 << 63, [Erange; 2]);
    // One page from there ends at 2^64: no range.
    all_refuse(ctx, "frame 2^64 - 1", u64::MAX, [Erange, Einval]);
}

fn hypervisor_memory(ctx: &Ctx<'_>) {
    for (place, page) in ctx.board.carveouts().flat_map(|c| c.corner_pages()) {
        all_refuse(ctx, format_args!("the carve-out's {place} page"), page / PAGE, [Eperm; 2]);
    }
}

fn malformed_ranges(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let Some(page) = ctx.take(1, PAGE) else { return };
    let pfn = page.start() / PAGE;
    let cases = [
        ("no page", pfn, 0, Einval),
        ("no page, and outside memory", 1 << 52, 0, Einval),
        ("a range that wraps", pfn, u64::MAX, Einval),
        ("a range that wraps by one", u64::MAX, 2, Einval),
        ("513 pages", pfn, MAX_PAGES + 1, E2big),
        ("2^52 pages", pfn, 1 << 52, E2big),
        ("2^63 / 4096 pages", pfn, 1 << 51, E2big),
        ("513 pages outside memory", 1 << 52, MAX_PAGES + 1, E2big),
        ("512 pages outside memory", 1 << 52, MAX_PAGES, Erange),
        ("a range across 2^36", PFN_LIMIT - 1, 2, Erange),
    ];
    for (what, pfn, nr, want) in cases {
        report.equal(format_args!("lend of {what}"), hyp.lend(pfn, nr), refused(want));
        report.equal(format_args!("take back of {what}"), hyp.take_back(pfn, nr), refused(want));
    }
    report.equal("the page of these is still the host's", hyp.share(pfn), Ok(()));
    report.equal("and is given up", hyp.unshare(pfn), Ok(()));
}

/// Passes if `pfn` is the host's own: it can be shared and unshared.
fn expect_own(ctx: &Ctx<'_>, what: &str, pfn: u64) {
    let hyp = ctx.hypervisor();
    ctx.report.equal(what, [hyp.share(pfn), hyp.unshare(pfn)], [Ok(()), Ok(())]);
}

fn ranges_change_all_or_nothing(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    for carveout in ctx.board.carveouts() {
        let (before, after) = (carveout.start() / PAGE - 1, carveout.end() / PAGE);
        if ctx.board.touches_ram(before * PAGE) {
            report.equal("lend across the carve-out's start", hyp.lend(before, 2), refused(Eperm));
            expect_own(ctx, "the page below the carve-out stays the host's", before);
        }
        if ctx.board.touches_ram(after * PAGE) {
            report.equal("lend across the carve-out's end", hyp.lend(after - 1, 2), refused(Eperm));
            expect_own(ctx, "the page above the carve-out stays the host's", after);
        }
    }
    if let Some(pages) = ctx.take(3, PAGE) {
        let pfn = pages.start() / PAGE;
        report.equal("share of the last of three", hyp.share(pfn + 2), Ok(()));
        report.equal("lend of the three", hyp.lend(pfn, 3), refused(Eperm));
        expect_own(ctx, "the first of the three stays the host's", pfn);
        expect_own(ctx, "the second of the three stays the host's", pfn + 1);
        report.equal("unshare of the last of three", hyp.unshare(pfn + 2), Ok(()));
    }
    // The last page of memory, if it is the shim's to use: a range that leaves memory is ERANGE even
    // if a page in it is not the host's to give.
    let top = ctx.board.ram.iter().map(|r| r.end()).max().unwrap_or(0);
    let free = ctx.pages.lock().spans().any(|s| s.end() == top);
    if free && top % PAGE == 0 {
        let last = top / PAGE - 1;
        report.equal("share of the last page of memory", hyp.share(last), Ok(()));
        report.equal("lend past the end of memory", hyp.lend(last, 2), refused(Erange));
        report.equal("take back past the end of memory", hyp.take_back(last, 2), refused(Erange));
        report.equal("unshare of the last page of memory", hyp.unshare(last), Ok(()));
    }
}
