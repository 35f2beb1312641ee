//! `lend`: HOST_DONATE_HYP and HYP_DONATE_HOST.
#![forbid(unsafe_code)]

use super::{Ctx, refused};
use crate::hvc::CallError;
use crate::machine::{Access, words};
use crate::span::{BLOCK, PAGE, Span};
use abi::Errno::{Ebusy, Eperm};
use abi::host::MAX_PAGES;
use arrayvec::ArrayVec;

const SECRET: u64 = 0x5ec2_e700_0000_0001;

pub(super) fn run(ctx: &Ctx<'_>) {
    for nr in [1, 2, 65, MAX_PAGES] {
        lend_and_take_back(ctx, nr);
    }
    take_back_in_parts(ctx);
    only_lent_pages_come_back(ctx);
    a_page_in_use_stays(ctx);
    ctx.expect_el2_alive();
}

fn lend_and_take_back(ctx: &Ctx<'_>, nr: u64) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    // One page more at each end, to see that neighbours are left alone.
    let Some(span) = ctx.take(nr + 2, PAGE) else { return };
    let (below, above) = (span.start(), span.end() - PAGE);
    let Some(lent) = Span::between(below + PAGE, above) else { return };
    let pfn = lent.start() / PAGE;
    let written = span.pages().all(|p| words(p).all(|w| ctx.store(w, SECRET ^ w).is_ok()));
    report.check(format_args!("{nr} pages and their neighbours are written"), written, "a store faulted");

    report.equal(format_args!("lend of {nr} pages"), hyp.lend(pfn, nr), Ok(()));
    let denied = lent.pages().filter(|p| ctx.load(*p).is_err_and(|f| f.is_refusal_of(Access::Load))).count();
    report.equal(format_args!("all of {nr} lent pages are out of reach"), u64::try_from(denied), Ok(nr));
    for (place, page) in lent.corner_pages() {
        for access in [Access::LoadPair, Access::Store, Access::StoreByte, Access::ZeroLine, Access::Fetch] {
            ctx.expect_refused(
                format_args!("{access:?} of the {place} of {nr} lent pages"),
                access,
                page + 64,
            );
        }
    }
    for (place, page) in [("below", below), ("above", above)] {
        report.equal(
            format_args!("the page {place} {nr} lent ones is untouched"),
            ctx.load(page),
            Ok(SECRET ^ page),
        );
    }

    report.equal(format_args!("take back of {nr} pages"), hyp.take_back(pfn, nr), Ok(()));
    let zero = lent.pages().all(|p| words(p).all(|w| ctx.load(w) == Ok(0)));
    report.check(format_args!("{nr} pages come back zeroed"), zero, "a word is not zero, or faults");
    let own = lent.pages().all(|p| ctx.store(p, p).is_ok() && ctx.load(p) == Ok(p));
    report.check(format_args!("{nr} pages are the host's again"), own, "an access failed");
    give(ctx, span);
}

fn take_back_in_parts(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let Some(span) = ctx.take(6, PAGE) else { return };
    let pfn = span.start() / PAGE;
    report.equal("lend of two ranges", [hyp.lend(pfn, 2), hyp.lend(pfn + 2, 2)], [Ok(()), Ok(())]);
    report.equal("take back of the middle", hyp.take_back(pfn + 1, 2), Ok(()));
    ctx.expect_refused("the first page is still lent", Access::Load, span.start());
    ctx.expect_refused("the last page is still lent", Access::Load, span.start() + 3 * PAGE);
    report.equal("a range with idle pages of the host", hyp.take_back(pfn, 4), refused(Eperm));
    report.equal("a range that ends past the lent page", hyp.take_back(pfn + 3, 2), refused(Eperm));
    ctx.expect_refused("which is still lent after that", Access::Load, span.start() + 3 * PAGE);
    report.equal("lend of a range that is lent in part", hyp.lend(pfn + 3, 2), refused(Eperm));
    report.equal("the other page of it stays the host's", ctx.store(span.start() + 4 * PAGE, 1), Ok(()));
    report.equal("take back of the ends", [hyp.take_back(pfn, 1), hyp.take_back(pfn + 3, 1)], [Ok(()); 2]);
    give(ctx, span);
}

/// Text, tables, vmemmap and pool are all in the carve-out: not one of its pages comes back.
fn only_lent_pages_come_back(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    for carveout in ctx.board.carveouts() {
        let got = carveout.pages().find(|p| hyp.take_back(p / PAGE, 1) != refused(Eperm));
        report.equal("no page of the carve-out is given to the host", got, None);
        let nr = MAX_PAGES.min(carveout.size() / PAGE);
        report.equal("nor is a range of it", hyp.take_back(carveout.start() / PAGE, nr), refused(Eperm));
    }
    let Some(page) = ctx.take(1, PAGE) else { return };
    report.equal("a page that was never lent", hyp.take_back(page.start() / PAGE, 1), refused(Eperm));
}

/// Gives the hypervisor a batch of pages, then makes it need tables until it uses one of them: a page
/// lent from a 2 MiB block of its own needs a level-3 table for that block.
fn a_page_in_use_stays(ctx: &Ctx<'_>) {
    const BATCH: u64 = 8;
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let Some(batch) = ctx.take(BATCH, PAGE) else { return };
    let first = batch.start() / PAGE;
    report.equal("lend of a batch", hyp.lend(first, BATCH), Ok(()));
    let mut lent: ArrayVec<u64, 512> = ArrayVec::new();
    let mut refusal = Ok(());
    while refusal.is_ok() && !lent.is_full() {
        let Some(block) = ctx.pages.lock().take(BLOCK, BLOCK) else { break };
        if let Err(e) = hyp.lend(block.start() / PAGE, 1) {
            report.fail("lend of a page in a block of its own", e);
            break;
        }
        lent.push(block.start() / PAGE);
        refusal = hyp.take_back(first, BATCH);
        if refusal.is_ok() && hyp.lend(first, BATCH).is_err() {
            report.fail("lend of a batch again", "refused");
            return;
        }
    }
    match refusal {
        Ok(()) => {
            report.skip("a page in use does not come back", format_args!("{} tables fitted", lent.len()))
        }
        Err(e) => {
            report.equal("a page in use does not come back", e, CallError::Errno(Ebusy));
            ctx.expect_refused("and no other page of the range did", Access::Load, batch.start());
        }
    }
    // The tables held nothing but these notes: with the notes gone, the pages are idle again. A page
    // may hold the table of one that was lent later, so the newest come back first.
    while let Some(pfn) = lent.pop() {
        report.equal(format_args!("page {pfn:#x} comes back"), hyp.take_back(pfn, 1), Ok(()));
    }
    // A page may go on as a table of the host's default mappings, until the pool needs room.
    let mut in_use = 0;
    for pfn in first..first + BATCH {
        match hyp.take_back(pfn, 1) {
            Ok(()) => {
                report.equal("a page that came back is zero", ctx.load(pfn * PAGE).ok(), Some(0));
            }
            answer => {
                report.equal("a page that does not come back is in use", answer, refused(Ebusy));
                ctx.expect_refused("and stays out of reach", Access::Load, pfn * PAGE);
                in_use += 1;
            }
        }
    }
    ctx.leave_lent(in_use);
    report.metric("lent_pages_still_in_use", in_use, "pages");
}

fn give(ctx: &Ctx<'_>, span: Span) {
    if ctx.pages.lock().give(span).is_err() {
        ctx.report.fail("free memory", "too fragmented to list");
    }
}
