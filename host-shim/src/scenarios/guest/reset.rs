//! The machine resets under a protected VM: RAM outlives it, the guest does not.
#![forbid(unsafe_code)]

use super::{Ctx, Guests, task};
use crate::machine::words;
use crate::span::{BLOCK, PAGE};
use crate::vmm::{Exit, Stop};
use abi::exit::Reason;
use core::sync::atomic::Ordering;
use guest_shim::protocol::{IMAGE, MAILBOX, Payload, SCRATCH, SECRET};
use spin::Mutex;

/// What the page says in which a boot tells the next one where the guest's pages were.
const NOTE: u64 = 0x0b00_7ed0_9a1e_55ed;

/// SYSTEM_RESET with a protected VM alive. RAM outlives the reset, the guest's pages do not: the host
/// of the next boot finds zeros there.
pub(in super::super) fn reset(ctx: &Ctx<'_>) {
    // What is taken first is the same in every boot. The loader writes to the start of RAM again.
    let (Some(_), Some(page)) = (ctx.take(BLOCK / PAGE, PAGE), ctx.take(1, PAGE)) else { return };
    let note = page.start();
    if ctx.load(note) == Ok(NOTE) {
        after_reset(ctx, note);
    } else {
        before_reset(ctx, note);
    }
}

fn before_reset(ctx: &Ctx<'_>, note: u64) {
    let g = Guests::open(ctx);
    let Some(vm) = g.vm(&g.vmm, task(Payload::Secret, true, 0)) else { return };
    let stop = vm.run(&[ctx.boot_cpu], &|_, _, exit: &Exit| exit.reason == Reason::Wfx);
    g.expect("the guest keeps a secret", stop, Stop::Watcher);
    // The mailbox is the host's too: it shows that RAM outlives the reset.
    let [secret, code, mailbox] = [SCRATCH, IMAGE, MAILBOX].map(|ipa| vm.page(ipa).unwrap_or(0));
    let vcpu = vm.vcpu_pfn(0).unwrap_or(0);
    for (at, word) in words(note).zip([NOTE, secret, code, mailbox, vcpu]) {
        g.ok("a note to the next boot", g.vmm.store(at, word));
    }
    g.ok("a word that outlives the reset", g.vmm.store(mailbox * PAGE + 8, SECRET));
    // Its registers are full of the secret, and another CPU has them loaded.
    let last = ctx.all_cpus().last().copied().unwrap_or(ctx.boot_cpu);
    let turn = Mutex::new(None);
    ctx.machine.run_on(&[last], &|_| {
        *turn.lock() = Some(g.hyp().vcpu_load(vm.handle, 0).and_then(|()| g.hyp().vcpu_run()));
    });
    g.expect("a vCPU stays loaded", turn.into_inner(), Some(Ok(())));
    ctx.reboot.store(true, Ordering::Relaxed);
}

fn after_reset(ctx: &Ctx<'_>, note: u64) {
    let place = |n| ctx.load(note + 8 * n).unwrap_or(0);
    for (n, what) in [(1_u64, "the secret"), (2, "the guest's code")] {
        let dirty = words(place(n) * PAGE).filter(|at| ctx.load(*at) != Ok(0)).count();
        ctx.report.equal(format_args!("words left of the page of {what}"), dirty, 0);
    }
    let left = words(place(4) * PAGE).filter(|at| ctx.load(*at) == Ok(SECRET)).count();
    ctx.report.equal("secrets left of the page of the vCPU", left, 0);
    ctx.report.equal("RAM outlives the reset", ctx.load(place(3) * PAGE + 8), Ok(SECRET));
    ctx.report.equal("the note is struck out", ctx.store(note, 0), Ok(()));
    ctx.expect_el2_alive();
}
