//! Every call about a VM, on handles that name none and on VMs of the wrong kind or phase.
#![forbid(unsafe_code)]

use super::super::refused;
use super::{Ctx, Guests, task};
use crate::span::PAGE;
use crate::vmm::{Spec, Vm, nobody};
use abi::Errno::{self, Eacces, Ebusy, Enoent};
use abi::HostFn;
use abi::vm::NO_PAGE;
use guest_shim::protocol::{IMAGE, Payload, SCRATCH};

const GFN: u64 = SCRATCH / PAGE;

/// Arguments behind the handle that are in order: what is refused is the VM.
fn arguments(page: u64, record: u64) -> [(HostFn, [u64; 6]); 17] {
    use HostFn::{
        GuestAge, GuestDonate, GuestReclaim, GuestRelax, GuestShare, GuestTlbFlush, GuestUnshare,
        GuestWrprotect, ReclaimDying, VcpuCreate, VcpuLoad, VmFinalise, VmPopulate, VmTeardownFinish,
        VmTeardownStart, VmTopup,
    };
    [
        (VcpuCreate, [5, page, 1, record, 0, 0]),
        (VmTopup, [page, 1, 0, 0, 0, 0]),
        (VmPopulate, [GFN, page, 0, 0, 0, 0]),
        (VmFinalise, [0; 6]),
        (VmTeardownStart, [0; 6]),
        (VmTeardownFinish, [1, 0, 0, 0, 0, 0]),
        (GuestDonate, [GFN, page, 0, 7, 0, 0]),
        (GuestReclaim, [SCRATCH, SCRATCH + PAGE, NO_PAGE, 0, 0, 0]),
        (ReclaimDying, [SCRATCH, SCRATCH + PAGE, 0, 0, 0, 0]),
        (GuestShare, [GFN, page, 0, 7, 0, 0]),
        (GuestUnshare, [GFN, 1, 0, 0, 0, 0]),
        (GuestRelax, [GFN, 7, 0, 0, 0, 0]),
        (GuestWrprotect, [GFN, 1, 0, 0, 0, 0]),
        (GuestAge, [GFN, 1, 0, 0, 0, 0]),
        (GuestTlbFlush, [0; 6]),
        (VcpuLoad, [0; 6]),
        (VcpuLoad, [31, 0, 0, 0, 0, 0]),
    ]
}

pub(in super::super) fn handles(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let (Some(page), Some(record)) = (g.page(), g.page()) else { return };
    g.expect("share of a record", g.hyp().share(record), Ok(()));
    nameless(&g, page, record);
    for protected in [false, true] {
        phases(&g, protected, page, record);
    }
    g.expect("the page is still the host's", ctx.load(page * PAGE), Ok(0x4057));
    g.expect("unshare of the record", g.hyp().unshare(record), Ok(()));
    g.drop_page(page);
    g.drop_page(record);
    g.close();
}

/// Calls with `handle` answer what `want` says, in the order of [`arguments`].
fn all(
    g: &Guests<'_>,
    what: &str,
    handle: u64,
    page: u64,
    record: u64,
    want: impl Fn(HostFn) -> Option<Errno>,
) {
    for (call, rest) in arguments(page, record) {
        let Some(errno) = want(call) else { continue };
        let [a, b, c, d, e, f] = rest;
        let got = g.hyp().attempt(call, &[handle, a, b, c, d, e, f]);
        g.expect(format_args!("{} on {what}", call.name()), got, refused(errno));
    }
}

/// Handles of no VM: never given, out of range, the next generation's, and one of a VM that is gone.
fn nameless(g: &Guests<'_>, page: u64, record: u64) {
    for handle in [0, 1, 0xff, 0x100, 0xffff, 0x1_0001, 1 << 32 | 1, u64::MAX] {
        // Nobody has made a VM yet.
        all(g, "a handle of nobody", handle, page, record, |_| Some(Enoent));
    }
    let Some(vm) = g.vm(&g.vmm, task(Payload::Idle, true, 0)) else { return };
    let handle = vm.handle;
    for wrong in [handle + 1, handle + 0x100, handle | 1 << 16, handle | 1 << 63, !handle] {
        all(g, "a handle beside a VM's", wrong, page, record, |_| Some(Enoent));
    }
    g.destroy("a VM beside which handles were tried", vm);
    all(g, "a handle of a VM that is gone", handle, page, record, |_| Some(Enoent));
    let Some(next) = g.vm(&g.vmm, task(Payload::Idle, true, 0)) else { return };
    g.ctx.report.check("a handle is not given twice", next.handle != handle, handle);
    all(g, "the handle of the VM before", handle, page, record, |_| Some(Enoent));
    g.destroy("the next VM", next);
}

/// What a call is for: NEW, both of NEW and ACTIVE, ACTIVE, DYING, or any phase.
fn wanted(call: HostFn, protected: bool, phase: &str) -> Option<Errno> {
    use HostFn::{
        GuestAge, GuestDonate, GuestReclaim, GuestRelax, GuestShare, GuestTlbFlush, GuestUnshare,
        GuestWrprotect, ReclaimDying, VcpuCreate, VcpuLoad, VmFinalise, VmPopulate, VmTeardownFinish,
        VmTopup,
    };
    let kind = match call {
        VmPopulate | GuestDonate | GuestReclaim | ReclaimDying => Some(true),
        GuestShare | GuestUnshare | GuestRelax | GuestWrprotect | GuestAge | GuestTlbFlush => Some(false),
        _ => None,
    };
    if kind.is_some_and(|kind| kind != protected) {
        return Some(Eacces);
    }
    let phases: &[&str] = match call {
        VcpuCreate | VmPopulate | VmFinalise => &["NEW"],
        VmTopup | GuestDonate | GuestReclaim | GuestShare => &["NEW", "ACTIVE"],
        VcpuLoad => &["ACTIVE"],
        VmTeardownFinish | ReclaimDying => &["DYING"],
        _ => return None,
    };
    (!phases.contains(&phase)).then_some(Ebusy)
}

/// A VM from NEW to gone: in each phase the calls of the others are refused, and it works after that.
fn phases(g: &Guests<'_>, protected: bool, page: u64, record: u64) {
    let hyp = g.hyp();
    let spec = Spec { vcpus: 1, start: task(Payload::Memory, protected, 2) };
    let Some(vm) = g.ok("an empty VM", g.vmm.create_empty(&spec)) else { return };
    let refuse = |phase: &'static str| {
        all(g, phase, vm.handle, page, record, |call| wanted(call, protected, phase));
    };
    refuse("NEW");
    if g.ok("the VM is filled", g.vmm.fill_and_finalise(&vm)).is_none() {
        return;
    }
    refuse("ACTIVE");
    g.expect("finalise twice", hyp.vm_finalise(vm.handle), refused(Ebusy));
    let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
    g.judge("a guest after calls in the wrong phase", &vm, stop);
    if protected {
        stopped(g, &vm);
    }
    g.expect("teardown starts", hyp.vm_teardown_start(vm.handle), Ok(()));
    refuse("DYING");
    g.expect("teardown starts twice", hyp.vm_teardown_start(vm.handle), refused(Ebusy));
    let budgets = [(0, Errno::Einval), (513, Errno::E2big), (u64::MAX, Errno::E2big)];
    for (budget, errno) in budgets {
        let got = hyp.vm_teardown_finish(vm.handle, budget).map(drop);
        g.expect(format_args!("FINISH of {budget:#x} pages"), got, refused(errno));
    }
    if protected {
        // It looks at a bounded part of the table in each call.
        let finish = || hyp.vm_teardown_finish(vm.handle, 8);
        let early = (0..64).map(|_| finish()).find(|got| !matches!(got, Ok(f) if !f.gone && f.count == 0));
        let early = early.map(|got| got.map(drop));
        g.expect("FINISH while the VM owns pages", early, Some(refused(Ebusy)));
        g.ctx.expect_refused("and they stay its own", crate::machine::Access::Load, {
            vm.page(IMAGE).unwrap_or(0) * PAGE
        });
    }
    let gone = vm.destroy_started();
    g.ok("the VM of all phases: all of it comes back", gone);
}

/// Behind SYSTEM_OFF nothing of a protected VM runs.
fn stopped(g: &Guests<'_>, vm: &Vm<'_>) {
    let load = g.hyp().vcpu_load(vm.handle, 0);
    let run = if load.is_ok() { g.hyp().vcpu_run() } else { load };
    g.expect("run behind SYSTEM_OFF", run, refused(Ebusy));
    if load.is_ok() {
        g.expect("put behind SYSTEM_OFF", g.hyp().vcpu_put(), Ok(()));
    }
}
