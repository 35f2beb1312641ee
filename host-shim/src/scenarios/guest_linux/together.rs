//! `guest_linux_together`: a plain Linux and a realm at once, beside a protected guest that leaves in every way it can.
//! In the middle of it the host takes pages of the realm's kernel away: the realm ends, and nobody else.
#![forbid(unsafe_code)]

use super::super::guest::{Guests, task};
use super::beside::go_on;
use super::seen::Seen;
use super::{Ctx, bootargs, cpus, name};
use crate::linux::{Linux, LinuxError, guest_shim};
use crate::span::{BLOCK, Span};
use crate::vmm::{Exit, Stop, Vm, VmmError, serve};
use ::vmm::layout::RAM;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use guest_shim::protocol::{Payload, VmKind};

/// Each Linux's RAM.
const MEMORY: u64 = 192 << 20;
/// Exits of the bare guest after the others' end that are enough.
const MORE: u64 = 1000;
/// What the host takes: code that the kernel runs all the time.
const TAKEN: u64 = RAM + BLOCK;

pub(in super::super) fn together(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let Some(archive) = ctx.board.initrd else { return ctx.report.fail("an archive", LinuxError::NoArchive) };
    let Some(image) = g.ok("the guest shim", guest_shim(&g.vmm, archive)) else { return };
    let g = g.with_image(image);
    let make = |kind| {
        let bootargs = bootargs(&ctx.args, kind, 1, "checks");
        let linux =
            Linux { kind, vcpus: 1, ram: MEMORY, bootargs: &bootargs, listens: false, measured: false };
        g.ok(name(kind), linux.create(&g.vmm, Some(archive)))
    };
    let Some(plain) = make(VmKind::Plain) else { return };
    let Some(realm) = make(VmKind::Realm) else { return };
    // A protected guest that makes every exit there is, again and again.
    let Some(bare) = g.vm(&g.vmm, task(Payload::Exits, true, 0)) else { return };
    let cpus = cpus(ctx, 3);
    plain.pin(cpus.get(..1).unwrap_or(&[]));
    realm.pin(cpus.get(1..2).unwrap_or(&[]));
    bare.pin(cpus.get(2..).unwrap_or(&[]));

    let (plain_seen, realm_seen) = (Seen::new(ctx, "plain: ", false), Seen::new(ctx, "realm: ", false));
    let (taken, went_on) = (AtomicBool::new(false), AtomicU64::new(0));
    let watch = |vm: &Vm<'_>, _: u64, exit: &Exit| {
        if vm.handle == plain.handle {
            return plain_seen.exit(vm, exit);
        }
        let stop = realm_seen.exit(vm, exit);
        if realm_seen.works() && !taken.swap(true, Ordering::Relaxed) {
            g.ok("pages of the kernel are taken", take(&g, vm));
        }
        stop
    };
    let runs = || plain.stopped().is_none() || realm.stopped().is_none();
    ctx.machine.run_on(&cpus, &|_| match cpus.iter().position(|cpu| *cpu == ctx.machine.cpu()) {
        // Each waits for both: what others do without the boot CPU has a time limit.
        Some(0 | 1) => serve(ctx.machine, &[&plain, &realm], &watch),
        _ => went_on.store(go_on(ctx, &bare, &runs, MORE), Ordering::Relaxed),
    });

    ctx.report.equal("the plain guest turned itself off", plain.stopped(), Some(Stop::Off));
    ctx.report.check("the plain guest came to its end", plain_seen.ended(), "its script did not");
    ctx.report.equal("the realm wants what was taken", realm.stopped(), Some(Stop::Destroyed));
    ctx.report.check("the realm did not come to its end", !realm_seen.ended(), "it did");
    let went_on = went_on.into_inner();
    ctx.report.check("the bare guest went on", went_on >= MORE, format_args!("it made {went_on} exits more"));
    g.destroy("the plain guest", plain);
    g.destroy("the realm", realm);
    g.destroy("the bare guest", bare);
    g.close();
}

/// Takes 2 MiB of a realm's kernel by force: they come back as zeros.
fn take(g: &Guests<'_>, vm: &Vm<'_>) -> Result<(), VmmError> {
    let mut at = TAKEN;
    while at < TAKEN + BLOCK {
        let chunk = g.hyp().guest_reclaim(vm.handle, at, TAKEN + BLOCK);
        let chunk = chunk.map_err(|e| VmmError::Call("GUEST_RECLAIM", e))?;
        if chunk.done <= at || chunk.retained.is_some() {
            return Err(VmmError::Contract("GUEST_RECLAIM makes no progress", chunk.done));
        }
        for ipa in Span::between(at, chunk.done).into_iter().flat_map(Span::pages) {
            let Some(pfn) = vm.page(ipa) else { continue };
            vm.forget(ipa)?;
            if let Some(address) = g.vmm.first_nonzero(pfn)? {
                return Err(VmmError::Contract("a page that was taken is not zero", address));
            }
            g.vmm.free_page(pfn)?;
        }
        at = chunk.done;
    }
    Ok(())
}
