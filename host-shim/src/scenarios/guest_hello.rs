//! `guest-hello`: the smallest protected VM there is: one page, a call to EL2, a WFI, a store.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::hvc::registers;
use crate::machine::{Access, Imm, Regs};
use crate::span::PAGE;
use abi::caps::Caps;
use abi::exit::word::REASON;
use abi::exit::{ExitFlags, Reason};
use abi::vm::{NO_PAGE, VmFlags};
use abi::{Errno, HostFn};

/// Where the guest's page is.
const GUEST_PAGE: u64 = 0x4000_0000;

/// The guest, as words of A64; X0 is its page:
/// ```text
///     mov  x1, x0
///     mov  w0, #0x80000000    // SMCCC_VERSION
///     hvc  #0
///     str  x0, [x1, #0x800]
///     wfi
///     mov  x2, #0x09000000
///     str  w0, [x2]           // nothing is there
/// ```
const CODE: [u64; 4] = [0x52b0_0000_aa00_03e1, 0xf904_0020_d400_0002, 0xd2a1_2002_d503_207f, 0xb900_0040];

pub(super) fn run(ctx: &Ctx<'_>) {
    let Some(pages) = ctx.take(8, PAGE) else { return };
    let report = &ctx.report;
    let call = |call: HostFn, args: &[u64]| -> Result<[u64; 2], Option<Errno>> {
        let [x0, x1, x2, x3, ..] = ctx.machine.hvc(Imm::Zero, &registers(call.id().into(), args));
        match (x0, Errno::from_reg(x1)) {
            (0, Some(Ok(()))) => Ok([x2, x3]),
            (0, Some(Err(errno))) => Err(Some(errno)),
            _ => Err(None),
        }
    };
    let [vm, root, reserve, vcpu, record, table, last_table, image] =
        [0, 1, 2, 3, 4, 5, 6, 7].map(|n| pages.start() / PAGE + n);
    let word = |page: u64, index: usize| ctx.load(page * PAGE + 8 * index as u64).unwrap_or(u64::MAX);
    for (n, code) in (0..).zip(CODE) {
        let _ = ctx.store(image * PAGE + 8 * n, code);
    }
    let _ = ctx.store(table * PAGE, last_table);

    report.equal("share of the record", call(HostFn::HostShareHyp, &[record]), Ok([0, 0]));
    let flags = VmFlags::PROTECTED.bits();
    let created = call(HostFn::VmCreate, &[flags, 32, vm, 1, root, 1, reserve]);
    if !ctx.hypervisor().caps().is_ok_and(|reply| reply.caps & Caps::GUESTS.bits() != 0) {
        report.check("a machine without guests makes none", created.is_err(), "there is one");
        report.equal("unshare of the record", call(HostFn::HostUnshareHyp, &[record]), Ok([0, 0]));
        return;
    }
    let handle = match created {
        Ok([handle, _]) => handle,
        Err(e) => return report.fail("VM_CREATE", format_args!("{e:?}")),
    };
    let created = call(HostFn::VcpuCreate, &[handle, 0, vcpu, 1, record, GUEST_PAGE, GUEST_PAGE]);
    report.equal("VCPU_CREATE", created, Ok([0, 0]));
    report.equal("VM_TOPUP", call(HostFn::VmTopup, &[handle, table, 2]), Ok([2, 0]));
    report.equal("VM_POPULATE", call(HostFn::VmPopulate, &[handle, GUEST_PAGE / PAGE, image, 0]), Ok([0, 0]));
    ctx.expect_refused("the host does not read the guest's page", Access::Load, image * PAGE);
    report.equal("VM_FINALISE", call(HostFn::VmFinalise, &[handle]), Ok([0, 0]));
    report.equal("VCPU_LOAD", call(HostFn::VcpuLoad, &[handle, 0]), Ok([0, 0]));

    report.equal("VCPU_RUN", call(HostFn::VcpuRun, &[]), Ok([0, 0]));
    report.equal(
        "the guest called, stored and waits",
        word(record, REASON) & 0xffff_ffff,
        Reason::Wfx as u64,
    );
    report.equal("VCPU_RUN again", call(HostFn::VcpuRun, &[]), Ok([0, 0]));
    let fault = word(record, REASON);
    report.equal("the guest lacks a page", fault & 0xffff_ffff, Reason::MemFault as u64);
    report.equal("of its own", fault >> 32, ExitFlags::PRIVATE.bits().into());
    report.equal("at this address", word(record, 1), 0x0900_0000);

    report.equal("VCPU_PUT", call(HostFn::VcpuPut, &[]), Ok([0, 0]));
    report.equal("VM_TEARDOWN_START", call(HostFn::VmTeardownStart, &[handle]), Ok([0, 0]));
    let reclaimed = call(HostFn::ReclaimDying, &[handle, 0, 1 << 32]);
    report.equal("RECLAIM_DYING", reclaimed, Ok([1 << 32, NO_PAGE]));
    report.equal("its code is gone", word(image, 0), 0);
    report.equal("and what it stored", word(image, 0x100), 0);
    let mut returned = 0;
    let ended = loop {
        let [x0, x1, _, nr, ..] = finish(ctx, handle);
        returned += nr;
        if (x0, Errno::from_reg(x1)) != (0, Some(Err(Errno::Eagain))) {
            break (x0, x1);
        }
    };
    report.equal("VM_TEARDOWN_FINISH", ended, (0, 0));
    report.equal("every page is back", returned, 6);
    report.equal("unshare of the record", call(HostFn::HostUnshareHyp, &[record]), Ok([0, 0]));
    ctx.expect_el2_alive();
}

/// VM_TEARDOWN_FINISH, which gives pages back with EAGAIN too.
fn finish(ctx: &Ctx<'_>, handle: u64) -> Regs {
    ctx.machine.hvc(Imm::Zero, &registers(HostFn::VmTeardownFinish.id().into(), &[handle, 512]))
}
