//! A protected guest decides what the host sees of its memory.
#![forbid(unsafe_code)]

use super::{Ctx, Guests, task};
use crate::machine::Access;
use crate::span::PAGE;
use crate::vmm::{Exit, Spec, Vm};
use abi::exit::Reason;
use abi::psci;
use guest_shim::protocol::share::{
    GIVEN_UP, GIVEN_UP_AGAIN, PRIVATE, SHARED, TAKE, TAKEN, UNSHARED, UNTOUCHED,
};
use guest_shim::protocol::{Payload, REPLY, SCRATCH, SECRET, word};

pub(in super::super) fn share(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    g.run("share", &SPEC, &[ctx.boot_cpu], &|vm, _, exit| watch(&g, vm, exit), |vm| looks(&g, vm));
    g.close();
}

/// The same of a guest whose memory is in blocks: what it shares, or gives up, splits one.
pub(in super::super) fn share_of_blocks(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    if let Some(vm) = g.ok("a VM with blocks", g.vmm.create_in_blocks(&SPEC)) {
        let stop = vm.run(&[ctx.boot_cpu], &|vm, _, exit| watch(&g, vm, exit));
        g.judge("share of blocks", &vm, stop);
        g.destroy("share of blocks", vm);
    }
    g.close();
}

const SPEC: Spec = Spec { vcpus: 1, start: task(Payload::Share, true, 0) };

fn watch(g: &Guests<'_>, vm: &Vm<'_>, exit: &Exit) -> bool {
    if exit.reason == Reason::Psci && exit.data == u64::from(psci::CPU_SUSPEND_64) {
        match vm.mail(word::STAGE) {
            Ok(stage) => at_stage(g, vm, stage),
            Err(e) => g.ctx.report.fail("the mailbox is shared", e),
        }
    }
    false
}

fn looks(g: &Guests<'_>, vm: &Vm<'_>) {
    g.ctx.report.equal("the guest gave up one page", vm.exits(Reason::Relinquished), 1);
    let untouched = vm.page(UNTOUCHED).is_some();
    g.ctx.report.check("a page that was shared unseen was asked for", untouched, "none");
}

fn at_stage(g: &Guests<'_>, vm: &Vm<'_>, stage: u64) {
    let ctx = g.ctx;
    let Some(secret) = vm.page(SCRATCH).map(|pfn| pfn * PAGE) else {
        return ctx.report.fail("the guest has a page", "none");
    };
    let refused = |what: &str, address| {
        for access in [Access::Load, Access::Store, Access::Fetch] {
            ctx.expect_refused(format_args!("{what}: {access:?}"), access, address);
        }
    };
    match stage {
        PRIVATE => refused("a private page", secret),
        SHARED => {
            ctx.report.equal("a shared page is read", ctx.load(secret), Ok(SECRET));
            ctx.report.equal("and written", ctx.store(secret + 8, REPLY), Ok(()));
        }
        UNSHARED => refused("a page that was shared", secret),
        TAKE => take_by_force(g, vm),
        GIVEN_UP_AGAIN => {
            let again = vm.page(GIVEN_UP).map_or(0, |pfn| pfn * PAGE);
            refused("a page that replaces one that was given up", again);
        }
        other => ctx.report.fail("a known stage", other),
    }
}

/// A page that the guest shares stays; one that is private goes, scrubbed, and for good.
fn take_by_force(g: &Guests<'_>, vm: &Vm<'_>) {
    let (hyp, handle) = (g.hyp(), vm.handle);
    let mailbox = guest_shim::protocol::MAILBOX;
    let shared = hyp.guest_reclaim(handle, mailbox, mailbox + PAGE).map(drop);
    g.expect("a shared page is not taken", shared, super::super::refused(abi::Errno::Eperm));
    let Some(pfn) = vm.page(TAKEN) else { return g.ctx.report.fail("a page to take", "none") };
    let taken = hyp.guest_reclaim(handle, TAKEN, TAKEN + PAGE).map(|chunk| chunk.done);
    g.expect("a private page is taken", taken, Ok(TAKEN + PAGE));
    g.expect("it comes scrubbed", g.vmm.first_nonzero(pfn), Ok(None));
    let again = hyp.guest_donate(handle, TAKEN / PAGE, pfn, 0).map_err(|(e, _)| e);
    g.expect("its place is lost", again, super::super::refused(abi::Errno::Ehwpoison));
    g.ok("the VM forgets the page", vm.forget(TAKEN));
    g.drop_page(pfn);
}
