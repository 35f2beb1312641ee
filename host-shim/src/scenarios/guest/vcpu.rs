//! vCPUs on the wrong CPU, on none, on two, and with registers that no guest may have.
#![forbid(unsafe_code)]

use super::super::psci::stop;
use super::super::refused;
use super::{Ctx, Guests, task};
use crate::hvc::CallError;
use crate::vmm::{Spec, Vm};
use abi::Errno::{self, Eacces, Ebusy, Einval, Enoent};
use abi::exit::{Reason, word};
use abi::vm::{MAX_VCPUS, reg};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::protocol::{IMAGE, Payload};
use spin::Mutex;

pub(in super::super) fn vcpu(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let spec = Spec { vcpus: 2, start: task(Payload::Idle, false, 0) };
    if let Some(vm) = g.ok("a VM with two vCPUs", g.vmm.create(&spec)) {
        without_load(&g);
        first_turn(&g, &vm);
        one_cpu(&g, &vm);
        match ctx.other_cpu() {
            Some(other) => two_cpus(&g, &vm, other),
            None => ctx.report.skip("a vCPU on two CPUs", "there is one CPU"),
        }
        pstate(&g, &vm);
        registers(&g, &vm);
        g.destroy("a VM whose vCPUs were misused", vm);
    }
    protected_registers(&g);
    g.close();
}

fn without_load(g: &Guests<'_>) {
    let hyp = g.hyp();
    for (name, got) in [
        ("run", hyp.vcpu_run()),
        ("put", hyp.vcpu_put()),
        ("get a register", hyp.vcpu_get_reg(0).map(drop)),
        ("set a register", hyp.vcpu_set_reg(0, 0)),
    ] {
        g.expect(format_args!("{name} without a vCPU"), got, refused(Enoent));
    }
}

/// Runs vCPU 0 until it idles, whatever memory that takes.
fn first_turn(g: &Guests<'_>, vm: &Vm<'_>) {
    let idle = vm.run(&[g.ctx.boot_cpu], &|_, _, exit| exit.reason == Reason::Wfx);
    g.expect("vCPU 0 idles", idle, crate::vmm::Stop::Watcher);
}

/// Runs the vCPU that is loaded here; the reason it came back for.
fn turn(g: &Guests<'_>, vm: &Vm<'_>, idx: usize) -> Result<Option<Reason>, CallError> {
    g.hyp().vcpu_run()?;
    let first = vm.record(idx).and_then(|record| g.vmm.load(record + 8 * word::REASON as u64).ok());
    let reason = first.and_then(|word| u32::try_from(word & 0xffff_ffff).ok());
    Ok(reason.and_then(Reason::from_u32))
}

fn one_cpu(g: &Guests<'_>, vm: &Vm<'_>) {
    let (hyp, handle) = (g.hyp(), vm.handle);
    for idx in [2, MAX_VCPUS as u64, 255, 256, 1 << 32, u64::MAX] {
        g.expect(format_args!("load of vCPU {idx:#x}"), hyp.vcpu_load(handle, idx), refused(Enoent));
    }
    g.expect("load", hyp.vcpu_load(handle, 0), Ok(()));
    g.expect("load of the same on the same CPU", hyp.vcpu_load(handle, 0), refused(Ebusy));
    g.expect("load of a second", hyp.vcpu_load(handle, 1), refused(Ebusy));
    g.expect("teardown with a loaded vCPU", hyp.vm_teardown_start(handle), refused(Ebusy));
    g.expect("it runs all the same", turn(g, vm, 0), Ok(Some(Reason::Wfx)));
    g.expect("put", hyp.vcpu_put(), Ok(()));
    g.expect("put twice", hyp.vcpu_put(), refused(Enoent));
    g.expect("load of a vCPU that is off", hyp.vcpu_load(handle, 1), Ok(()));
    g.expect("run of a vCPU that is off", hyp.vcpu_run(), refused(Ebusy));
    g.expect("put of a vCPU that is off", hyp.vcpu_put(), Ok(()));
}

/// Does `f` on another CPU.
fn on<T: Send>(g: &Guests<'_>, cpu: usize, f: impl Fn() -> T + Sync) -> Option<T> {
    let result = Mutex::new(None);
    g.ctx.machine.run_on(&[cpu], &|_| *result.lock() = Some(f()));
    result.into_inner()
}

fn two_cpus(g: &Guests<'_>, vm: &Vm<'_>, other: usize) {
    let (hyp, handle, ctx) = (g.hyp(), vm.handle, g.ctx);
    g.expect("load here", hyp.vcpu_load(handle, 0), Ok(()));
    let there = on(g, other, || (hyp.vcpu_load(handle, 0), hyp.vcpu_run(), hyp.vcpu_put()));
    let want = (refused(Ebusy), refused(Enoent), refused(Enoent));
    g.expect("load of the same there, run and put", there, Some(want));
    g.expect("it runs here", turn(g, vm, 0), Ok(Some(Reason::Wfx)));
    g.expect("put here", hyp.vcpu_put(), Ok(()));
    let there = on(g, other, || (hyp.vcpu_load(handle, 0), turn(g, vm, 0)));
    g.expect("it moves and runs there", there, Some((Ok(()), Ok(Some(Reason::Wfx)))));
    g.expect("put of what another CPU has", hyp.vcpu_put(), refused(Enoent));
    g.expect("load of what another CPU has", hyp.vcpu_load(handle, 0), refused(Ebusy));

    // The CPU goes off with the vCPU loaded.
    if !stop(ctx, other) {
        return;
    }
    g.expect("CPU_OFF puts the vCPU", hyp.vcpu_load(handle, 0), Ok(()));
    g.expect("and it runs here again", turn(g, vm, 0), Ok(Some(Reason::Wfx)));
    g.expect("put after CPU_OFF", hyp.vcpu_put(), Ok(()));
    g.expect("the CPU comes back", ctx.machine.start_cpu(other), Ok(()));
    g.expect("without a vCPU", on(g, other, || hyp.vcpu_run()), Some(refused(Enoent)));
    race_to_load(g, vm);
}

/// All CPUs load the same vCPU at once: one has it.
fn race_to_load(g: &Guests<'_>, vm: &Vm<'_>) {
    let rounds = g.ctx.args.number("rounds", 16);
    let (hyp, handle, cpus) = (g.hyp(), vm.handle, g.ctx.all_cpus());
    let (won, inside, wrong) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    g.ctx.machine.run_on(&cpus, &|_| {
        for _ in 0..rounds {
            while hyp.vcpu_load(handle, 0) == refused(Ebusy) {
                core::hint::spin_loop();
            }
            let alone = inside.fetch_add(1, Ordering::AcqRel) == 0;
            let ran = turn(g, vm, 0) == Ok(Some(Reason::Wfx));
            inside.fetch_sub(1, Ordering::AcqRel);
            let put = hyp.vcpu_put() == Ok(());
            won.fetch_add(1, Ordering::Relaxed);
            wrong.fetch_add(u64::from(!(alone && ran && put)), Ordering::Relaxed);
        }
    });
    let all = rounds * cpus.len() as u64;
    g.expect("CPUs race for one vCPU, and one has it", (won.into_inner(), wrong.into_inner()), (all, 0));
}

/// PSTATE of a plain vCPU: EL0 and EL1 of AArch64 and nothing else.
fn pstate(g: &Guests<'_>, vm: &Vm<'_>) {
    let hyp = g.hyp();
    g.expect("load for registers", hyp.vcpu_load(vm.handle, 0), Ok(()));
    let before = hyp.vcpu_get_reg(reg::PSTATE);
    // EL2t, EL2h, EL3t, EL3h, EL0h, AArch32 modes, the illegal-state bit, bits nobody has.
    let modes = [0x8, 0x9, 0xc, 0xd, 0x1, 0x2, 0x3, 0x10, 0x13, 0x1a, 0x1f];
    let wrong = modes.into_iter().map(|mode| 0x3c0 | mode).chain([1 << 20 | 0x3c5, 1 << 63 | 0x3c5]);
    for value in wrong {
        let got = hyp.vcpu_set_reg(reg::PSTATE, value);
        g.expect(format_args!("PSTATE {value:#x}"), got, refused(Einval));
    }
    g.expect("PSTATE is as before", hyp.vcpu_get_reg(reg::PSTATE), before);
    for value in [0x3c0, 0x3c4, 0x3c5] {
        g.expect(format_args!("PSTATE {value:#x}"), hyp.vcpu_set_reg(reg::PSTATE, value), Ok(()));
    }
    g.expect("it still runs", turn(g, vm, 0), Ok(Some(Reason::Wfx)));
    g.expect("put after PSTATE", hyp.vcpu_put(), Ok(()));
}

fn registers(g: &Guests<'_>, vm: &Vm<'_>) {
    let hyp = g.hyp();
    g.expect("load for more registers", hyp.vcpu_load(vm.handle, 0), Ok(()));
    for n in [reg::END, reg::END + 1, 1 << 32, u64::MAX] {
        g.expect(format_args!("read of register {n:#x}"), hyp.vcpu_get_reg(n).map(drop), refused(Einval));
        g.expect(format_args!("write of register {n:#x}"), hyp.vcpu_set_reg(n, 0), refused(Einval));
    }
    for n in [reg::CNTVOFF, reg::MPIDR_EL1] {
        g.expect("write of a read-only register", hyp.vcpu_set_reg(n, 1), refused(Einval));
    }
    g.expect("MPIDR_EL1", hyp.vcpu_get_reg(reg::MPIDR_EL1), Ok(abi::vm::mpidr(0)));
    let pc = hyp.vcpu_get_reg(reg::PC).unwrap_or(0);
    g.ctx.report.check("PC is in the image", (IMAGE..IMAGE + (1 << 20)).contains(&pc), pc);
    // A value comes back, through a turn of the guest, which uses none of these.
    for n in [5, reg::X30, reg::SP_EL0, reg::TPIDR_EL0, reg::V0, reg::END - 1] {
        g.expect("a register is set", hyp.vcpu_set_reg(n, 0x1234_5678 + n), Ok(()));
    }
    g.expect("it runs with them", turn(g, vm, 0), Ok(Some(Reason::Wfx)));
    for n in [5, reg::X30, reg::SP_EL0, reg::TPIDR_EL0, reg::V0, reg::END - 1] {
        g.expect(format_args!("register {n} is kept"), hyp.vcpu_get_reg(n), Ok(0x1234_5678 + n));
    }
    g.expect("put after registers", hyp.vcpu_put(), Ok(()));
}

fn protected_registers(g: &Guests<'_>) {
    let hyp = g.hyp();
    let Some(vm) = g.vm(&g.vmm, task(Payload::Idle, true, 0)) else { return };
    first_turn(g, &vm);
    g.expect("load of a protected vCPU", hyp.vcpu_load(vm.handle, 0), Ok(()));
    let eacces: Result<u64, CallError> = Err(CallError::Errno(Errno::Eacces));
    // The kind of VM is looked at before the number of the register.
    for n in [0, reg::PC, reg::PSTATE, reg::END, u64::MAX] {
        g.expect("read of a protected register", hyp.vcpu_get_reg(n), eacces);
        g.expect("write of a protected register", hyp.vcpu_set_reg(n, 0x3c9), refused(Eacces));
    }
    g.expect("put of a protected vCPU", hyp.vcpu_put(), Ok(()));
    g.destroy("a protected VM whose registers were asked for", vm);
}
