//! A host that races with itself over what a realm is, and over a page that it gives one.
#![forbid(unsafe_code)]

use super::realm::task;
use super::{Guests, Spec};
use crate::hvc::CallError;
use crate::inspect::Inspector;
use crate::span::PAGE;
use crate::vmm::{Exit, Stop, Vm, nobody, serve};
use abi::Errno::Ebusy;
use abi::exit::Reason;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use guest_shim::protocol::{ABSENT, Payload, SCRATCH, word};
use spin::Mutex;

/// Bytes that become RAM as well, or do not.
const MORE: u64 = PAGE;

/// What a realm was when it began.
type Measurement = [u64; 4];

/// A realm that will report its measurement, filled, with table pages for [`MORE`].
fn filled<'v>(g: &'v Guests<'_>) -> Option<Vm<'v>> {
    let vm =
        g.ok("an empty realm", g.vmm.create_empty(&Spec { vcpus: 1, start: task(Payload::Measured, 0) }))?;
    g.ok("its memory", g.vmm.fill_vm(&vm))?;
    g.ok("table pages", vm.top_up(4))?;
    Some(vm)
}

/// What a realm that can run says of itself; it is no more after that.
fn measurement(g: &Guests<'_>, vm: Vm<'_>) -> Option<Measurement> {
    let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
    g.judge("a measured realm", &vm, stop);
    let mut words = [0; 4];
    for (value, n) in words.iter_mut().zip(word::RESULTS..) {
        *value = g.ok("its measurement", vm.mail(n))?;
    }
    g.destroy("a measured realm", vm);
    Some(words)
}

/// The CPU that started the others, and another.
fn pair(g: &Guests<'_>) -> Option<[usize; 2]> {
    Some([g.ctx.boot_cpu, g.ctx.other_cpu()?])
}

/// INIT_RIPAS while another CPU finalises is before that, and measured, or it is refused.
pub(super) fn init_races_finalise(g: &Guests<'_>) {
    // Where each call is judged and followed by a look at all pages, it does less often.
    let often = if Inspector::new(g.hyp()).is_some() { 10 } else { 100 };
    let rounds = usize::try_from(g.ctx.args.number("rounds", often)).unwrap_or(100);
    let (ctx, hyp) = (g.ctx, g.hyp());
    let Some(pair) = pair(g) else {
        return ctx.report.skip("R-04: INIT_RIPAS while a realm is finalised", "there is one CPU");
    };
    let reference = |more: bool| {
        let vm = filled(g)?;
        if more {
            g.ok("more RAM", hyp.vm_init_ripas(vm.handle, ABSENT, ABSENT + MORE).map_err(|(e, _)| e))?;
        }
        g.ok("VM_FINALISE", vm.finalise())?;
        measurement(g, vm)
    };
    let (Some(without), Some(with)) = (reference(false), reference(true)) else { return };
    ctx.report.check("more RAM is another measurement", without != with, "they are equal");
    let (mut wrong, mut before) = (0, 0);
    for round in 0..rounds {
        let Some(vm) = filled(g) else { return };
        let (there, init, finalised) = (AtomicUsize::new(0), Mutex::new(None), Mutex::new(None));
        let initialises = pair.get(round % 2).copied();
        ctx.machine.run_on(&pair, &|cpu| {
            there.fetch_add(1, Ordering::AcqRel);
            while there.load(Ordering::Acquire) < pair.len() {
                core::hint::spin_loop();
            }
            if Some(cpu) == initialises {
                *init.lock() = Some(hyp.vm_init_ripas(vm.handle, ABSENT, ABSENT + MORE).map_err(|(e, _)| e));
            } else {
                *finalised.lock() = Some(hyp.vm_finalise(vm.handle));
            }
        });
        let (init, finalised) = (init.into_inner(), finalised.into_inner());
        let want = match init {
            Some(Ok(end)) if end == ABSENT + MORE => Some(with),
            Some(Err(CallError::Errno(Ebusy))) => Some(without),
            _ => None,
        };
        before += u64::from(want == Some(with));
        let got = if finalised == Some(Ok(())) { measurement(g, vm) } else { None };
        wrong += u64::from(want.is_none() || got != want);
    }
    g.expect(format_args!("R-04: RAM that was not measured, in {rounds} races"), wrong, 0);
    ctx.report.step(format_args!("{before} of {rounds} were before"));
}

/// P-04: a page is zero when the guest gets it, though another CPU of the host writes it all the time.
pub(super) fn stores_race_donation(g: &Guests<'_>) {
    const PAGES: u32 = 64;
    let (ctx, hyp) = (g.ctx, g.hyp());
    let Some(pair) = pair(g) else {
        return ctx.report.skip("P-04: stores while a page is given", "there is one CPU");
    };
    let spec = Spec { vcpus: 1, start: task(Payload::Memory, PAGES) };
    let Some(vm) = g.ok("a realm", g.vmm.create(&spec)) else { return };
    let scratch = SCRATCH..SCRATCH + u64::from(PAGES) * PAGE;
    let (target, stores, aborts) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (done, given) = (AtomicBool::new(false), AtomicU64::new(0));
    let watch = |vm: &Vm<'_>, _: u64, exit: &Exit| {
        if exit.reason != Reason::MemFault || !scratch.contains(&exit.gpa) || vm.page(exit.gpa).is_some() {
            return false;
        }
        let Some(pfn) = g.page() else { return true };
        let before = stores.load(Ordering::Acquire);
        target.store(pfn * PAGE, Ordering::Release);
        while stores.load(Ordering::Acquire) < before + 2 {
            core::hint::spin_loop();
        }
        let result = hyp.guest_donate(vm.handle, exit.gpa / PAGE, pfn, 0).map_err(|(e, _)| e);
        let noted = result.is_ok() && vm.remember(exit.gpa, pfn).is_ok();
        given.fetch_add(u64::from(noted), Ordering::Relaxed);
        !noted
    };
    ctx.machine.run_on(&pair, &|cpu| {
        if cpu == ctx.boot_cpu {
            serve(ctx.machine, &[&vm], &watch);
            return done.store(true, Ordering::Release);
        }
        let mut value: u64 = 1;
        while !done.load(Ordering::Acquire) {
            let page = target.load(Ordering::Acquire);
            if page == 0 {
                continue;
            }
            value = value.wrapping_add(1) | 1;
            let stored = ctx.store(page + (value * 8) % PAGE, value).is_ok();
            let count = if stored { &stores } else { &aborts };
            count.fetch_add(1, Ordering::Release);
        }
    });
    g.judge(
        "P-04: pages that the host wrote until it had them no more",
        &vm,
        vm.stopped().unwrap_or(Stop::Dead),
    );
    g.expect("pages given while they were written", given.into_inner(), u64::from(PAGES));
    ctx.report.check("the host writes on and is refused", aborts.into_inner() > 0, "it never was");
    g.destroy("a realm whose pages were written", vm);
}
