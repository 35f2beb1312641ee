//! `smoke`: the shortest run that means something.
#![forbid(unsafe_code)]

use super::Ctx;
use core::sync::atomic::{AtomicU64, Ordering};

pub(super) fn run(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    report.equal("the host runs at EL1", ctx.machine.exception_level(), 1);
    report.check("there is a carve-out", ctx.board.carveouts().next().is_some(), "no no-map memory");
    ctx.expect_el2_alive();

    if let Some(page) = ctx.take(1, crate::span::PAGE) {
        let pfn = page.start() / crate::span::PAGE;
        report.equal("a page is shared", ctx.hypervisor().share(pfn), Ok(()));
        report.equal("and unshared", ctx.hypervisor().unshare(pfn), Ok(()));
    }

    if ctx.start_all_cpus() {
        let seen = AtomicU64::new(0);
        ctx.machine.run_on(&ctx.all_cpus(), &|cpu| {
            seen.fetch_or(1 << cpu, Ordering::Relaxed);
        });
        let all = (1 << ctx.board.cpus.len()) - 1;
        report.equal("every CPU works", seen.into_inner(), all);
    }
}
