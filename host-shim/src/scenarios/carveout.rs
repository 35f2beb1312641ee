//! `carveout_load`, `carveout_store`, `carveout_fetch`: the hypervisor's memory, touched in every way.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::machine::{Access, Fault};
use crate::span::PAGE;

pub(super) fn load(ctx: &Ctx<'_>) {
    touch(ctx, &[Access::Load, Access::LoadByte, Access::LoadPair, Access::LoadExclusive]);
    walk(ctx);
    straddle(ctx, Access::Load);
    end(ctx);
}

pub(super) fn store(ctx: &Ctx<'_>) {
    touch(ctx, &[Access::Store, Access::StoreByte, Access::StorePair, Access::ZeroLine]);
    straddle(ctx, Access::Store);
    end(ctx);
}

pub(super) fn fetch(ctx: &Ctx<'_>) {
    touch(ctx, &[Access::Fetch]);
    end(ctx);
}

/// Every access at the corners, the first of them at every page.
fn touch(ctx: &Ctx<'_>, accesses: &[Access]) {
    let report = &ctx.report;
    if !report.check("there is a carve-out", ctx.board.carveouts().next().is_some(), "no no-map memory") {
        return;
    }
    for carveout in ctx.board.carveouts() {
        for (place, page) in carveout.corner_pages() {
            for access in accesses {
                ctx.expect_refused(format_args!("{access:?} of the {place} page"), *access, page);
                ctx.expect_refused(format_args!("{access:?} inside the {place} page"), *access, page + 0x7c0);
            }
        }
        for access in accesses.iter().take(1) {
            let reached = carveout.pages().find(|page| {
                !ctx.machine.probe(*access, *page, 0xbad).is_err_and(|f| f.is_refusal_of(*access))
            });
            report.equal(
                format_args!("{access:?} of each of {} pages", carveout.size() / PAGE),
                reached,
                None,
            );
        }
    }
}

/// The table walker is the host's hand too: a stage-1 table in the carve-out is not read.
fn walk(ctx: &Ctx<'_>) {
    // The injected syndrome may say "on a table walk" (0x14 and the level) or not (0x10).
    let refused = |f: Fault| {
        f.class() == Fault::EC_DATA_ABORT && matches!(f.status(), Fault::FSC_EXTERNAL | 0x14..=0x17)
    };
    for (place, page) in ctx.board.carveouts().flat_map(|c| c.corner_pages()) {
        let result = ctx.machine.load_through_table(page);
        ctx.report.check(
            format_args!("a stage-1 table in the {place} page"),
            result.is_err_and(refused),
            format_args!("{result:x?}, want an external abort"),
        );
    }
}

/// An access that begins in the host's memory and ends in the carve-out, or the other way round.
fn straddle(ctx: &Ctx<'_>, access: Access) {
    for carveout in ctx.board.carveouts() {
        for (edge, outside) in [(carveout.start(), carveout.start() - PAGE), (carveout.end(), carveout.end())]
        {
            // A store that is not refused, or is refused half way, must not hit what the shim needs.
            let free = ctx.pages.lock().spans().any(|s| s.contains(outside));
            if !free && (access == Access::Store || !ctx.board.touches_ram(outside)) {
                continue;
            }
            let result = ctx.machine.probe(access, edge - 4, u64::MAX);
            ctx.report.check(
                format_args!("{access:?} across the edge {edge:#x}"),
                result.is_err_and(|f| f.is_refusal_of(access)),
                format_args!("{result:x?}, want an external abort"),
            );
        }
    }
}

fn end(ctx: &Ctx<'_>) {
    ctx.expect_el2_alive();
    // Its tables and records still work, not only its text.
    let Some(page) = ctx.take(1, PAGE) else { return };
    let (hyp, pfn) = (ctx.hypervisor(), page.start() / PAGE);
    let cycle = [hyp.share(pfn), hyp.unshare(pfn), hyp.lend(pfn, 1), hyp.take_back(pfn, 1)];
    ctx.report.equal("ownership still works", cycle, [Ok(()); 4]);
}
