//! `smp`: all CPUs call at once, each for itself and all for the same page.
#![forbid(unsafe_code)]

use super::{Ctx, refused};
use crate::hvc::CallError;
use crate::machine::{Access, words};
use crate::span::{BLOCK, PAGE};
use abi::Errno::{Ebusy, Eperm};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

pub(super) fn run(ctx: &Ctx<'_>) {
    if !ctx.start_all_cpus() {
        return;
    }
    // CPUs of an emulator that outnumber the real ones hand a fair lock over slowly.
    let rounds = ctx.args.number("rounds", (64 / ctx.board.cpus.len() as u64).max(4));
    each_for_itself(ctx, rounds);
    race(ctx, "share and unshare", rounds, &|pfn, odd| {
        let hyp = ctx.hypervisor();
        if odd { hyp.unshare(pfn) } else { hyp.share(pfn) }
    });
    race(ctx, "lend and take back", rounds, &|pfn, odd| {
        let hyp = ctx.hypervisor();
        if odd { hyp.take_back(pfn, 1) } else { hyp.lend(pfn, 1) }
    });
    all_touch_fresh_memory(ctx);
    touch_while_lent(ctx, rounds);
    ctx.expect_el2_alive();
}

/// Every CPU shares, lends and writes its own pages. A lent page may be in use as a table for another
/// CPU by the time it is taken back; then it stays lent.
fn each_for_itself(ctx: &Ctx<'_>, rounds: u64) {
    const PER_ROUND: u64 = 2;
    let cpus = ctx.all_cpus();
    let rounds = rounds.min(256);
    let Some(pages) = ctx.take(PER_ROUND * rounds * cpus.len() as u64, PAGE) else { return };
    let (bad, in_use) = (AtomicU64::new(0), AtomicU64::new(0));
    ctx.machine.run_on(&cpus, &|cpu| {
        let hyp = ctx.hypervisor();
        for round in 0..rounds {
            let pfn = pages.start() / PAGE + (cpu as u64 * rounds + round) * PER_ROUND;
            let shared = hyp.caps().is_ok()
                && hyp.share(pfn).is_ok()
                && ctx.store(pfn * PAGE, round).is_ok()
                && ctx.load(pfn * PAGE) == Ok(round)
                && hyp.unshare(pfn).is_ok();
            let lent = hyp.lend(pfn, PER_ROUND).is_ok() && ctx.load(pfn * PAGE).is_err();
            let back = match hyp.take_back(pfn, PER_ROUND) {
                Ok(()) => ctx.load(pfn * PAGE) == Ok(0),
                stays => {
                    in_use.fetch_add(1, Ordering::Relaxed);
                    stays == refused(Ebusy) && ctx.load(pfn * PAGE).is_err()
                }
            };
            bad.fetch_add(u64::from(!(shared && lent && back)), Ordering::Relaxed);
        }
    });
    let (n, in_use) = (cpus.len(), in_use.into_inner());
    // Of a range that is in use in part, no page comes back.
    ctx.leave_lent(in_use * PER_ROUND);
    let name = format_args!("{n} CPUs, {rounds} rounds of calls each for itself");
    ctx.report.equal(name, bad.into_inner(), 0);
    let some_came_back = in_use < rounds;
    ctx.report.check("most lent pages come back", some_came_back, format_args!("{in_use} are in use"));
}

/// Where `n` CPUs meet, again and again.
struct Meeting {
    n: usize,
    arrived: AtomicUsize,
}

impl Meeting {
    fn wait(&self, nth: usize) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while self.arrived.load(Ordering::Acquire) < self.n * nth {
            core::hint::spin_loop();
        }
    }
}

/// Each round, all CPUs make the same call for the same page: one must win, the others get EPERM.
/// `attempt` is told whether the round is odd, to undo what the even one did.
fn race(
    ctx: &Ctx<'_>,
    what: &str,
    rounds: u64,
    attempt: &(dyn Fn(u64, bool) -> Result<(), CallError> + Sync),
) {
    let cpus = ctx.all_cpus();
    let Some(page) = ctx.take(1, PAGE) else { return };
    let pfn = page.start() / PAGE;
    let meeting = Meeting { n: cpus.len(), arrived: AtomicUsize::new(0) };
    let (won, lost, fair) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
    let rounds = rounds & !1;
    ctx.machine.run_on(&cpus, &|cpu| {
        let mut met = 0;
        let mut meet = || {
            met += 1;
            meeting.wait(met);
        };
        for round in 0..rounds {
            meet();
            match attempt(pfn, round % 2 == 1) {
                Ok(()) => won.fetch_add(1, Ordering::Relaxed),
                r if r == refused(Eperm) => lost.fetch_add(1, Ordering::Relaxed),
                Err(_) => 0,
            };
            meet();
            if cpu == ctx.boot_cpu {
                let score = (won.swap(0, Ordering::Relaxed), lost.swap(0, Ordering::Relaxed));
                fair.fetch_add(u64::from(score == (1, cpus.len() - 1)), Ordering::Relaxed);
            }
        }
    });
    ctx.report.equal(
        format_args!("{what}: one of {} CPUs wins each of {rounds} races", cpus.len()),
        fair.into_inner(),
        rounds,
    );
}

/// All CPUs touch the same block for the first time: each store is seen, none faults.
fn all_touch_fresh_memory(ctx: &Ctx<'_>) {
    const BLOCKS: u64 = 8;
    let cpus = ctx.all_cpus();
    let Some(fresh) = ctx.take(BLOCKS * BLOCK / PAGE, BLOCK) else { return };
    let meeting = Meeting { n: cpus.len(), arrived: AtomicUsize::new(0) };
    let bad = AtomicU64::new(0);
    ctx.machine.run_on(&cpus, &|cpu| {
        for n in 0..BLOCKS {
            let mine = fresh.start() + n * BLOCK + cpu as u64 * 8;
            meeting.wait(usize::try_from(n).unwrap_or(0) + 1);
            let good = ctx.store(mine, mine).is_ok() && ctx.load(mine) == Ok(mine);
            bad.fetch_add(u64::from(!good), Ordering::Relaxed);
        }
    });
    ctx.report.equal(format_args!("{} CPUs touch fresh blocks at once", cpus.len()), bad.into_inner(), 0);
}

/// One CPU lends a page and takes it back while the others load from it: a load gives what the host
/// wrote, zero, or a refusal, and nothing of what was there in between.
fn touch_while_lent(ctx: &Ctx<'_>, rounds: u64) {
    const WRITTEN: u64 = 0x1234_5678;
    let cpus = ctx.all_cpus();
    let Some(page) = ctx.take(1, PAGE) else { return };
    let (pfn, word) = (page.start() / PAGE, page.start() + 8);
    let (done, odd, calls) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    ctx.machine.run_on(&cpus, &|cpu| {
        if cpu != ctx.boot_cpu {
            while !done.load(Ordering::Acquire) {
                let good = match ctx.load(word) {
                    Ok(value) => value == 0 || value == WRITTEN,
                    Err(fault) => fault.is_refusal_of(Access::Load),
                };
                odd.fetch_add(u64::from(!good), Ordering::Relaxed);
            }
            return;
        }
        let hyp = ctx.hypervisor();
        for _ in 0..rounds {
            let good = ctx.store(word, WRITTEN).is_ok()
                && hyp.lend(pfn, 1).is_ok()
                && hyp.take_back(pfn, 1).is_ok()
                && words(page.start()).all(|w| ctx.load(w) == Ok(0));
            calls.fetch_add(u64::from(good), Ordering::Relaxed);
        }
        done.store(true, Ordering::Release);
    });
    ctx.report.equal("a page is lent and comes back while CPUs load from it", calls.into_inner(), rounds);
    ctx.report.equal("loads meanwhile give the host's word, zero or a refusal", odd.into_inner(), 0);
}
