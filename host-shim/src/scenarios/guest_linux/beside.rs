//! A guest that is left in peace beside a Linux guest, on a CPU of its own.
//!
//! It makes every exit there is, and rests between two lots of them: where CPUs are threads of an emulator, one that is
//! never idle takes its time from the guest that is watched.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::vmm::{Exit, Vm, serve};
use core::sync::atomic::{AtomicU64, Ordering};

/// Exits of a lot.
const LOT: u64 = 64;
/// Rests in a second.
const RESTS: u64 = 50;

/// Runs `vm` on this CPU as long as `meanwhile` says, and until it has made `more` exits after that; how many it made
/// then, which is less if it stopped.
pub(super) fn go_on(ctx: &Ctx<'_>, vm: &Vm<'_>, meanwhile: &(dyn Fn() -> bool + Sync), more: u64) -> u64 {
    let (exits, after) = (AtomicU64::new(0), AtomicU64::new(0));
    let watch = |_: &Vm<'_>, _: u64, _: &Exit| {
        let nth = exits.fetch_add(1, Ordering::Relaxed) + 1;
        if nth.is_multiple_of(LOT) && ctx.machine.wake_after(ctx.machine.frequency() / RESTS) {
            ctx.machine.wait();
        }
        !meanwhile() && after.fetch_add(1, Ordering::Relaxed) + 1 >= more
    };
    serve(ctx.machine, &[vm], &watch);
    after.into_inner()
}
