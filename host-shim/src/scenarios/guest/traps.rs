//! Every class of instruction that leaves a guest: the table of the guest shim, judged by the host.
#![forbid(unsafe_code)]

use super::{Ctx, Guests, kind, task};
use crate::vmm::{Spec, Stop, Vm, nobody};
use abi::exit::Reason;
use guest_shim::payloads::traps::DEEDS;
use guest_shim::protocol::{EXCEPTION, Payload, word};

pub(in super::super) fn traps(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    for protected in [false, true] {
        let spec = Spec { vcpus: 1, start: task(Payload::Traps, protected, 0) };
        g.run(format_args!("traps of {}", kind(protected)), &spec, &[ctx.boot_cpu], &nobody, |vm| {
            judge_deeds(ctx, vm);
            let traps = vm.exits(Reason::Trap);
            let right = (traps > 0) != protected;
            ctx.report.check("the host hears of traps of plain VMs alone", right, traps);
        });
    }
    aarch32(&g);
    g.close();
}

fn judge_deeds(ctx: &Ctx<'_>, vm: &Vm<'_>) {
    for (n, deed) in (0..).zip(DEEDS).filter(|(_, deed)| !(deed.plain_only && vm.kind.is_protected())) {
        let at = word::RESULTS + 2 * n;
        let (Ok(esr), Ok(x0)) = (vm.mail(at), vm.mail(at + 1)) else { continue };
        let name = format_args!("{}: {}", kind(vm.kind.is_protected()), deed.name);
        let seen = format_args!("ESR {esr:#x}, x0 {x0:#x}, not {:?}", deed.expect);
        ctx.report.check(name, deed.expect.holds(esr, x0), seen);
    }
}

/// Where the CPU has AArch32 at EL0, no trap prevents it: the VM dies. Where it has not, the guest
/// takes an illegal exception return.
fn aarch32(g: &Guests<'_>) {
    const ILLEGAL_STATE: u64 = 0x0e;
    for protected in [false, true] {
        let Some(vm) = g.vm(&g.vmm, task(Payload::Aarch32, protected, 0)) else { continue };
        let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
        let own = vm.mail(word::OUTCOME).is_ok_and(|outcome| outcome >> 32 == EXCEPTION >> 32)
            && vm.mail(word::DETAIL).is_ok_and(|esr| esr >> 26 == ILLEGAL_STATE);
        let fits = stop == Stop::Dead || stop == Stop::Off && own;
        g.ctx.report.check(format_args!("AArch32 in {}", kind(protected)), fits, stop);
        if stop == Stop::Dead {
            let load = g.hyp().vcpu_load(vm.handle, 0);
            g.expect("a dead VM does not run again", load, super::super::refused(abi::Errno::Ebusy));
        }
        g.destroy("a VM after AArch32", vm);
    }
}
