//! Guests that do what guests do: talk, use memory, vCPUs, a timer, floating point.
#![forbid(unsafe_code)]

use super::{Ctx, Guests, kind, task};
use crate::machine::Access;
use crate::span::PAGE;
use crate::vmm::{Exit, Spec, Stop, Vm, nobody, serve};
use abi::exit::Reason;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::protocol::{HELLO, Payload, SCRATCH, checksum, pattern, word};

pub(in super::super) fn hello(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let spec = Spec { vcpus: 1, start: task(Payload::Hello, false, 0) };
    g.run("hello", &spec, &[ctx.boot_cpu], &nobody, |vm| {
        vm.with_line(|line| ctx.report.equal("the guest's line arrives", line, HELLO));
        let (mmio, traps) = (vm.exits(Reason::Mmio), vm.exits(Reason::Trap));
        // A load of the flags and a store for each byte, and what it read to know the device.
        let least = 2 * (HELLO.len() as u64 + 1) + 12;
        ctx.report.check("each access is an exit", mmio >= least && traps == 0, mmio);
    });
    g.close();
}

pub(in super::super) fn memory(ctx: &Ctx<'_>) {
    const PAGES: u32 = 40;
    let g = Guests::open(ctx);
    for protected in [false, true] {
        let spec = Spec { vcpus: 1, start: task(Payload::Memory, protected, PAGES) };
        let name = format_args!("memory of {}", kind(protected));
        g.run(name, &spec, &[ctx.boot_cpu], &nobody, |vm| {
            let sum = vm.mail(word::RESULTS);
            ctx.report.equal("its sum is that of the pattern", sum, Ok(checksum(PAGES.into())));
            let pages = (0..u64::from(PAGES)).map(|n| SCRATCH + n * PAGE);
            let host_sees = pages.filter(|ipa| sees_pattern(ctx, vm, *ipa)).count();
            let want = if protected { 0 } else { usize::try_from(PAGES).unwrap_or(0) };
            ctx.report.equal("pages that the host can read", host_sees, want);
        });
    }
    g.close();
}

/// True if the host reads the guest's pattern at `ipa`; anything but that or a refusal is a failure.
fn sees_pattern(ctx: &Ctx<'_>, vm: &Vm<'_>, ipa: u64) -> bool {
    let Some(pfn) = vm.page(ipa) else {
        ctx.report.fail("the guest has a page", format_args!("none at {ipa:#x}"));
        return false;
    };
    match ctx.load(pfn * PAGE) {
        Ok(word) => word == pattern(ipa),
        Err(fault) => {
            if !fault.is_refusal_of(Access::Load) {
                ctx.report.fail("a private page is refused", fault);
            }
            false
        }
    }
}

pub(in super::super) fn smp(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let all = ctx.all_cpus();
    for protected in [false, true] {
        let spec = Spec { vcpus: 4, start: task(Payload::Smp, protected, 4) };
        for cpus in [all.as_slice(), &[ctx.boot_cpu]] {
            let name = format_args!("4 vCPUs of {} on {} CPUs", kind(protected), cpus.len());
            g.run(name, &spec, cpus, &nobody, |vm| {
                let sgis = vm.exits(Reason::Sgi);
                ctx.report.equal("SGIs by way of the host", sgis, 2);
            });
        }
    }
    g.close();
}

pub(in super::super) fn timer(ctx: &Ctx<'_>) {
    const TICKS: u32 = 20;
    let g = Guests::open(ctx);
    let Some(_) = ctx.board.gic else {
        ctx.report.fail("a GICv3 with both timers", "the device tree has none");
        return;
    };
    for protected in [false, true] {
        let spec = Spec { vcpus: 1, start: task(Payload::Timer, protected, TICKS) };
        for cpus in [&[ctx.boot_cpu][..], ctx.all_cpus().as_slice()] {
            let name = format_args!("ticks of {} on {} CPUs", kind(protected), cpus.len());
            g.run(name, &spec, cpus, &nobody, |vm| {
                ctx.report.equal("ticks that the guest took", vm.mail(word::RESULTS), Ok(TICKS.into()));
                // It sleeps for every other tick and spins for the rest.
                let (slept, irqs) = (vm.exits(Reason::Wfx), vm.exits(Reason::Irq));
                let enough = slept >= u64::from(TICKS) / 2 && irqs >= u64::from(TICKS) / 2;
                ctx.report.check("it slept and spun", enough, format_args!("{slept} and {irqs}"));
            });
        }
    }
    g.close();
}

/// Registers that the host and each guest fill with something else.
struct Registers<'a> {
    name: &'static str,
    payload: Payload,
    fill: &'a (dyn Fn(u64) + Sync),
    hold: &'a (dyn Fn(u64) -> bool + Sync),
}

/// Two guests and the host use every vector register on one CPU in turn.
pub(in super::super) fn fp(ctx: &Ctx<'_>) {
    let (fill, hold) = (|seed| ctx.machine.fill_fp(seed), |seed| ctx.machine.fp_holds(seed));
    in_turn(ctx, &Registers { name: "FP", payload: Payload::Fp, fill: &fill, hold: &hold });
}

/// The same with pointer authentication keys.
pub(in super::super) fn keys(ctx: &Ctx<'_>) {
    let (fill, hold) = (|seed| ctx.machine.fill_keys(seed), |seed| ctx.machine.keys_hold(seed));
    in_turn(ctx, &Registers { name: "keys", payload: Payload::Keys, fill: &fill, hold: &hold });
}

fn in_turn(ctx: &Ctx<'_>, registers: &Registers<'_>) {
    const HOST: u64 = 0x4057_0000_0000;
    let &Registers { name, payload, fill, hold } = registers;
    let g = Guests::open(ctx);
    let changed = AtomicU64::new(0);
    let watch = |_: &Vm<'_>, _: u64, _: &Exit| {
        changed.fetch_add(u64::from(!hold(HOST)), Ordering::Relaxed);
        fill(HOST);
        false
    };
    let vms: ArrayVec<_, 2> = [(false, 0x1111), (true, 0x2222)]
        .into_iter()
        .filter_map(|(protected, seed)| g.vm(&g.vmm, task(payload, protected, seed)))
        .collect();
    fill(HOST);
    {
        let running: ArrayVec<&Vm<'_>, 2> = vms.iter().collect();
        serve(ctx.machine, &running, &watch);
    }
    let held = hold(HOST);
    ctx.report.equal("the host's registers are its own", (changed.into_inner(), held), (0, true));
    for vm in vms {
        let name = format_args!("{name} of {}", kind(vm.kind.is_protected()));
        g.judge(name, &vm, vm.stopped().unwrap_or(Stop::Watcher));
        ctx.report.check("it was interrupted", vm.exits(Reason::Irq) > 0, "no interrupt");
        g.destroy(name, vm);
    }
    g.close();
}

/// Two VMs at once, each on a CPU of its own; then both on all CPUs.
pub(in super::super) fn two_vms(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let all = ctx.all_cpus();
    for apart in [true, false] {
        let tasks = [task(Payload::Memory, true, 64), task(Payload::Memory, false, 64)];
        let vms: ArrayVec<_, 2> = tasks.into_iter().filter_map(|start| g.vm(&g.vmm, start)).collect();
        let cpus: ArrayVec<usize, 2> = all.iter().copied().take(2).collect();
        if apart && cpus.len() == 2 {
            ctx.machine.run_on(&cpus, &|cpu| {
                let mine = cpus.iter().zip(&vms).filter(|(c, _)| **c == cpu);
                mine.for_each(|(_, vm)| serve(ctx.machine, &[vm], &nobody));
            });
        } else {
            let running: ArrayVec<&Vm<'_>, 2> = vms.iter().collect();
            ctx.machine.run_on(&all, &|_| serve(ctx.machine, &running, &nobody));
        }
        for vm in vms {
            let name = format_args!("{} beside another", kind(vm.kind.is_protected()));
            g.judge(name, &vm, vm.stopped().unwrap_or(Stop::Watcher));
            ctx.report.equal("its memory is its own", vm.mail(word::RESULTS), Ok(checksum(64)));
            g.destroy(name, vm);
        }
    }
    g.close();
}
