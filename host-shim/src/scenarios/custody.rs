//! What every scenario ends with where the hypervisor can be asked: nothing is damaged, and every
//! page has the owner that it had before.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::inspect::{Census, Inspector};
use abi::inspect::Figure;
use core::sync::atomic::Ordering;

/// The census before a scenario; `None` where the hypervisor has no audit.
pub(crate) fn before(ctx: &Ctx<'_>) -> Option<Census> {
    let inspector = Inspector::new(ctx.hypervisor())?;
    match inspector.audit() {
        Ok(census) => Some(census),
        Err(e) => {
            ctx.report.fail("audit before the scenario", e);
            None
        }
    }
}

/// Holds the census after a scenario against the one before.
pub(crate) fn after(ctx: &Ctx<'_>, before: &Census) {
    let Some(inspector) = Inspector::new(ctx.hypervisor()) else {
        return ctx.report.fail("audit after the scenario", "the hypervisor does not offer it any more");
    };
    let now = match inspector.audit() {
        Ok(now) => now,
        Err(e) => return ctx.report.fail("audit after the scenario", e),
    };
    ctx.report.pass("audit after the scenario: nothing is damaged, no page is nobody's");
    let left = ctx.left_lent.load(Ordering::Relaxed);
    if left == 0 {
        same_owners(ctx, "every page has the owner that it had before the scenario", before, &now);
        return;
    }
    // Pages that are tables cannot be had back; that they are lent is all that changed.
    for (figure, was, is) in before.kept(&now) {
        let right = match figure {
            Figure::HostOwned => is + left == was,
            Figure::HypLent => is == was + left,
            Figure::Owners => is != was,
            _ => is == was,
        };
        ctx.report.check(
            format_args!("{}, with {left} pages still lent", figure.name()),
            right,
            format_args!("{was:#x} before, {is:#x} after"),
        );
    }
}

/// Passes if every page has the same owner in both.
pub(super) fn same_owners(ctx: &Ctx<'_>, name: impl core::fmt::Display, was: &Census, is: &Census) -> bool {
    match is.difference(was) {
        None => {
            ctx.report.pass(name);
            true
        }
        Some(difference) => {
            ctx.report.fail(name, difference);
            false
        }
    }
}
