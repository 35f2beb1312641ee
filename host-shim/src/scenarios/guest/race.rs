//! A host that rewrites the exit record, and moves pages, while EL2 works on them on another CPU.
#![forbid(unsafe_code)]

use super::super::refused;
use super::{Ctx, Guests, kind, task};
use crate::machine::words;
use crate::span::PAGE;
use crate::vmm::{Spec, Stop, nobody};
use abi::Errno::{Einval, Eperm};
use abi::exit::{Reason, word};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use guest_shim::protocol::Payload;

pub(in super::super) fn race(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    for protected in [false, true] {
        rewrite_record(&g, protected);
        faults_on_one_page(&g, protected);
    }
    chain_changes(&g);
    super::realm_race::init_races_finalise(&g);
    super::realm_race::stores_race_donation(&g);
    g.close();
}

/// The next of a sequence of words that looks like noise.
const fn noise(seed: u64) -> u64 {
    let x = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    x ^ x >> 29
}

/// Every word of the record changes while the vCPU runs: a turn is refused with EINVAL, or works.
fn rewrite_record(g: &Guests<'_>, protected: bool) {
    let rounds = g.ctx.args.number("rounds", 300);
    let (ctx, hyp, cpus) = (g.ctx, g.hyp(), g.ctx.all_cpus());
    if cpus.len() < 2 {
        return ctx.report.skip("the record changes during a turn", "there is one CPU");
    }
    let Some(vm) = g.vm(&g.vmm, task(Payload::Idle, protected, 0)) else { return };
    vm.run(&[ctx.boot_cpu], &|_, _, exit| exit.reason == Reason::Wfx);
    let Some(record) = vm.record(0) else { return };
    let (done, wrong, turns) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    ctx.machine.run_on(&cpus, &|cpu| {
        if cpu != ctx.boot_cpu {
            let mut seed = cpu as u64;
            while !done.load(Ordering::Acquire) {
                for address in words(record).take(word::END) {
                    seed = noise(seed);
                    let failed = ctx.store(address, seed >> (seed & 0x3f)).is_err();
                    wrong.fetch_add(u64::from(failed), Ordering::Relaxed);
                }
            }
            return;
        }
        let mut good = hyp.vcpu_load(vm.handle, 0).is_ok();
        for _ in 0..rounds {
            // So that some answers are good ones.
            good &= ctx.store(record + 8 * word::GIC as u64, 0).is_ok();
            match hyp.vcpu_run() {
                Ok(()) => drop(turns.fetch_add(1, Ordering::Relaxed)),
                e => good &= e == refused(Einval),
            }
        }
        good &= hyp.vcpu_put().is_ok();
        wrong.fetch_add(u64::from(!good), Ordering::Relaxed);
        done.store(true, Ordering::Release);
    });
    ctx.machine.set_guest_timer_active(false);
    let name = format_args!("the record of {} changes during {rounds} turns", kind(protected));
    ctx.report.equal(name, wrong.into_inner(), 0);
    ctx.report.check("some turns took place", turns.into_inner() > 0, "none");
    for address in words(record) {
        g.ok("the record is the host's", g.vmm.store(address, 0));
    }
    let again = vm.run(&[ctx.boot_cpu], &|_, _, exit| exit.reason == Reason::Wfx);
    g.expect("the guest was not hurt", again, Stop::Watcher);
    g.destroy("a VM whose record was rewritten", vm);
}

/// vCPUs on all CPUs touch the same fresh pages at once.
fn faults_on_one_page(g: &Guests<'_>, protected: bool) {
    let all = g.ctx.all_cpus();
    let spec = Spec { vcpus: 4, start: task(Payload::Smp, protected, 4) };
    g.run(format_args!("faults of {} on one page", kind(protected)), &spec, &all, &nobody, |vm| {
        g.ctx.report.check("it faulted", vm.exits(Reason::MemFault) + vm.exits(Reason::Mmio) > 0, "never");
    });
}

/// The links of a TOPUP chain, and the owner of its pages, change while it is taken: each page is
/// taken once or not at all, and comes back.
fn chain_changes(g: &Guests<'_>) {
    const PAGES: u64 = 8;
    let rounds = g.ctx.args.number("rounds", 20).min(40);
    let (ctx, hyp, cpus) = (g.ctx, g.hyp(), g.ctx.all_cpus());
    if cpus.len() < 2 {
        return ctx.report.skip("a chain changes while it is taken", "there is one CPU");
    }
    for round in 0..rounds {
        let Some(pages) = ctx.take(PAGES, PAGE) else { return };
        let first = pages.start() / PAGE;
        let spec = Spec { vcpus: 1, start: task(Payload::Idle, true, 0) };
        let Some(vm) = g.ok("an empty VM", g.vmm.create_empty(&spec)) else { return };
        let (done, odd, taken) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        for pfn in first..first + PAGES {
            let next = if pfn + 1 < first + PAGES { pfn + 1 } else { u64::MAX };
            g.ok("a link", g.vmm.store(pfn * PAGE, next));
        }
        ctx.machine.run_on(&cpus, &|cpu| {
            if cpu == ctx.boot_cpu {
                match hyp.vm_topup(vm.handle, first, PAGES) {
                    Ok(nr) => taken.store(nr, Ordering::Relaxed),
                    // Somebody else had lent or shared the first page.
                    e => drop(odd.fetch_add(u64::from(e.map(drop) != refused(Eperm)), Ordering::Relaxed)),
                }
                done.store(true, Ordering::Release);
                return;
            }
            let mut seed = cpu as u64 + round;
            while !done.load(Ordering::Acquire) {
                seed = noise(seed);
                let pfn = first + seed % PAGES;
                match seed >> 60 {
                    0..8 => drop(ctx.store(pfn * PAGE, first + (seed >> 8) % PAGES)),
                    8..12 => drop(ctx.store(pfn * PAGE, seed)),
                    _ if hyp.share(pfn).is_ok() => {
                        // Shared by us: it cannot have been taken since, nor be in use.
                        let back = hyp.unshare(pfn) == Ok(());
                        odd.fetch_add(u64::from(!back), Ordering::Relaxed);
                    }
                    _ => {}
                }
            }
        });
        g.expect("a chain that changes is taken in part", odd.into_inner(), 0);
        let mut gone = 0;
        for pfn in first..first + PAGES {
            if ctx.load(pfn * PAGE).is_err() {
                vm.note_given(pfn);
                gone += 1;
            } else {
                g.drop_page(pfn);
            }
        }
        g.expect("pages that the VM took", gone, taken.into_inner());
        g.destroy("a VM whose chain changed", vm);
    }
}
