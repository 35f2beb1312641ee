//! `calls`: the calling convention, and what is no call.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::hvc::{first_change, registers};
use crate::machine::{Imm, Regs};
use abi::caps::Caps;
use abi::inspect::InspectFn;
use abi::smccc::{HINT_SVE, NOT_SUPPORTED, SUCCESS};
use abi::{HostFn, host, psci, smccc};
use core::fmt::Display;

pub(super) fn run(ctx: &Ctx<'_>) {
    capabilities(ctx);
    for id in unknown_ids() {
        expect_nothing(ctx, format_args!("unknown id {id:#x}"), Imm::Zero, u64::from(id));
        expect_nothing(
            ctx,
            format_args!("unknown id {id:#x} with the SVE hint flipped"),
            Imm::Zero,
            u64::from(id ^ HINT_SVE),
        );
    }
    // Calls of a development image are no calls to any other.
    let development = crate::inspect::Inspector::new(ctx.hypervisor()).is_some();
    for call in InspectFn::ALL.into_iter().filter(|_| !development) {
        expect_nothing(ctx, format_args!("{} in a release", call.name()), Imm::Zero, u64::from(call.id()));
    }
    let inspection = InspectFn::ALL.map(|call| (call.name(), u64::from(call.id())));
    for (name, id) in
        HostFn::ALL.map(|call| (call.name(), u64::from(call.id()))).into_iter().chain(inspection)
    {
        expect_nothing(ctx, format_args!("{name} with immediate 1"), Imm::One, id);
        expect_nothing(ctx, format_args!("{name} with immediate 0xffff"), Imm::Max, id);
        for bit in [32, 48, 63] {
            expect_nothing(ctx, format_args!("{name} with bit {bit} of x0"), Imm::Zero, id | 1 << bit);
        }
        expect_nothing(ctx, format_args!("{name} with bit 17 of x0"), Imm::Zero, id | 1 << 17);
    }
    ctx.expect_el2_alive();
}

fn capabilities(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    match ctx.hypervisor().caps() {
        Ok(reply) => {
            report.equal("HYP_CAPS version", reply.version, abi::caps::VERSION);
            let known = Caps::from_bits(reply.caps);
            report.check(
                "HYP_CAPS says that ownership calls are there",
                known.is_some_and(|c| c.contains(Caps::OWNERSHIP)),
                format_args!("capabilities {:#x}", reply.caps),
            );
        }
        Err(e) => report.fail("HYP_CAPS", e),
    }
    let before = registers(u64::from(HostFn::HypCaps.id()), &[]);
    let plain = ctx.machine.hvc(Imm::Zero, &before);
    let hinted = ctx.machine.hvc(Imm::Zero, &registers(u64::from(HostFn::HypCaps.id() | HINT_SVE), &[]));
    report.equal("the SVE hint changes nothing", hinted, plain);
    let [x0, x1, ..] = plain;
    report.equal("HYP_CAPS status", [x0, x1], [SUCCESS, 0]);
    report.equal("HYP_CAPS keeps x4 to x17", first_change(&before, &plain, 4), None);
}

/// Ids that are no host call: the old stub's, neighbours, other owners and widths, firmware's.
fn unknown_ids() -> impl Iterator<Item = u32> {
    let last = HostFn::ALL.last().map_or(host::BASE, |call| call.id());
    let near = [host::BASE - 1, last + 1, host::BASE + 0xff, host::BASE & !0xffff];
    let widths = [host::BASE & !(1 << 31), host::BASE & !(1 << 30), host::BASE & 0x3fff_ffff];
    let owners = [0xc500_0100, 0xc400_0100, 0xf200_0100];
    let firmware = [psci::VERSION, psci::SYSTEM_OFF, psci::CPU_ON_64, smccc::VERSION, u32::MAX];
    (0..=4).chain(near).chain(widths).chain(owners).chain(firmware)
}

/// Passes if the HVC answers -1 in x0 and changes no other register.
fn expect_nothing(ctx: &Ctx<'_>, name: impl Display, imm: Imm, x0: u64) {
    let before: Regs = registers(x0, &[]);
    let after = ctx.machine.hvc(imm, &before);
    let [status, ..] = after;
    let changed = first_change(&before, &after, 1);
    ctx.report.check(
        name,
        status == NOT_SUPPORTED && changed.is_none(),
        format_args!("x0 = {status:#x}, first other register changed: {changed:x?}"),
    );
}
