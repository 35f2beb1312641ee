//! What is protected: a guest's memory and registers are out of the host's reach while it lives,
//! and gone when it ends.
#![forbid(unsafe_code)]

use super::{Ctx, Guests, task};
use crate::hvc::CallError;
use crate::machine::{Access, words};
use crate::span::{PAGE, Span};
use crate::vmm::{Exit, Stop, Vm};
use abi::Errno;
use abi::exit::Reason;
use abi::vm::reg;
use guest_shim::protocol::{IMAGE, Payload, SCRATCH, SECRET};

pub(in super::super) fn protect(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let Some(vm) = g.vm(&g.vmm, task(Payload::Secret, true, 0)) else { return };
    // Past the doorbell, to the WFI that it idles in with the secret in its registers.
    let stop = vm.run(&[ctx.boot_cpu], &|_, _, exit: &Exit| exit.reason == Reason::Wfx);
    g.expect("the guest keeps a secret", stop, Stop::Watcher);
    let pages = [("its secret", SCRATCH), ("its code", IMAGE)].map(|(what, ipa)| (what, vm.page(ipa)));
    for (what, pfn) in pages {
        let Some(pfn) = pfn else {
            ctx.report.fail(what, "the guest has no page there");
            continue;
        };
        memory(&g, what, pfn);
    }
    registers(&g, &vm);
    record(&g, &vm);
    let secret = vm.page(SCRATCH);
    g.destroy("a protected VM with a secret", vm);
    if let Some(pfn) = secret {
        g.expect("the page of the secret comes back as zeros", g.vmm.first_nonzero(pfn), Ok(None));
    }
    no_secret_left(&g, pages.map(|(_, pfn)| pfn));
    g.close();
}

/// Every access and every call that would move the page is refused.
fn memory(g: &Guests<'_>, what: &str, pfn: u64) {
    let (ctx, hyp) = (g.ctx, g.hyp());
    for offset in [0, 8, PAGE - 16] {
        for access in Access::TO_DATA {
            let at = pfn * PAGE + offset;
            ctx.expect_refused(format_args!("{what}, {access:?} at {offset:#x}"), access, at);
        }
    }
    ctx.expect_refused(format_args!("{what}, Fetch"), Access::Fetch, pfn * PAGE);
    let refused = super::super::refused(Errno::Eperm);
    g.expect(format_args!("{what}: HOST_SHARE_HYP"), hyp.share(pfn), refused);
    g.expect(format_args!("{what}: HOST_UNSHARE_HYP"), hyp.unshare(pfn), refused);
    g.expect(format_args!("{what}: HOST_DONATE_HYP"), hyp.lend(pfn, 1), refused);
    g.expect(format_args!("{what}: HYP_DONATE_HOST"), hyp.take_back(pfn, 1), refused);
    let table = ctx.machine.load_through_table(pfn * PAGE);
    let walked = table.is_err_and(|fault| fault.is_refusal_of(Access::Load));
    ctx.report.check(format_args!("{what}: a table walk through it"), walked, "it was read");
}

/// No register of the vCPU is the host's to read or write, loaded or not.
fn registers(g: &Guests<'_>, vm: &Vm<'_>) {
    let hyp = g.hyp();
    let none = Err(CallError::Errno(Errno::Enoent));
    g.expect("no register of a vCPU that is not loaded", hyp.vcpu_get_reg(0), none);
    g.expect("VCPU_LOAD", hyp.vcpu_load(vm.handle, 0), Ok(()));
    let denied = Err(CallError::Errno(Errno::Eacces));
    let readable = (0..reg::END).filter(|n| hyp.vcpu_get_reg(*n) != denied).count();
    g.expect("registers that the host can read", readable, 0);
    let writable = (0..reg::END).filter(|n| hyp.vcpu_set_reg(*n, 0).map(|()| 0) != denied).count();
    g.expect("registers that the host can write", writable, 0);
    g.expect("VCPU_PUT", hyp.vcpu_put(), Ok(()));
}

/// The exit record holds no word of the secret.
fn record(g: &Guests<'_>, vm: &Vm<'_>) {
    let Some(record) = vm.record(0) else { return g.ctx.report.fail("a record", "none") };
    let leaks = words(record).filter(|at| g.vmm.load(*at) == Ok(SECRET)).count();
    g.expect("words of the secret in the exit record", leaks, 0);
}

/// The secret is nowhere in the memory around the pages that came back.
fn no_secret_left(g: &Guests<'_>, pages: [Option<u64>; 2]) {
    let mut found = 0;
    for pfn in pages.into_iter().flatten() {
        let Some(around) = Span::new((pfn & !0x1f) * PAGE, 32 * PAGE) else { continue };
        let readable = around.pages().flat_map(words).filter_map(|at| g.ctx.load(at).ok());
        found += readable.filter(|word| *word == SECRET).count();
    }
    g.expect("copies of the secret in the host's memory", found, 0);
}
