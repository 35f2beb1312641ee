//! `race`: all CPUs share, unshare, lend and take back the same few pages, without any order.
//!
//! Whatever the order was, each page went round: what was given and not taken back is exactly what
//! is still there to take.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::board::MAX_CPUS;
use crate::hvc::CallError;
use crate::random::Random;
use crate::span::PAGE;
use abi::Errno::{Ebusy, Eperm};
use abi::HostFn;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Pages that all CPUs fight for.
const PAGES: u64 = 6;
/// Calls that a CPU makes at most to win once.
const MOST: u64 = 1000;
const CALLS: [HostFn; 4] =
    [HostFn::HostShareHyp, HostFn::HostUnshareHyp, HostFn::HostDonateHyp, HostFn::HypDonateHost];

/// What the CPUs saw, counted together.
#[derive(Debug, Default)]
struct Score {
    /// Successes of each call.
    done: [AtomicU64; CALLS.len()],
    /// EPERM: another CPU was faster.
    lost: AtomicU64,
    /// EBUSY: a lent page is a table.
    busy: AtomicU64,
    /// Any other answer.
    odd: AtomicU64,
    /// Rounds of each CPU, and those that it won.
    rounds: [AtomicU64; MAX_CPUS],
    won: [AtomicU64; MAX_CPUS],
}

pub(super) fn run(ctx: &Ctx<'_>) {
    if !ctx.start_all_cpus() {
        return;
    }
    let Some(arena) = ctx.take(PAGES, PAGE) else { return };
    let first = arena.start() / PAGE;
    // CPUs of an emulator that outnumber the real ones hand a fair lock over slowly.
    let rounds = ctx.args.number("rounds", (128 / ctx.board.cpus.len() as u64).max(8));
    let seed = ctx.args.number("seed", 1);
    let (cpus, score) = (ctx.all_cpus(), Score::default());
    ctx.machine.run_on(&cpus, &|cpu| one_cpu(ctx, &score, cpu, (first, rounds, seed)));

    let report = &ctx.report;
    let all = |counts: &[AtomicU64]| counts.iter().take(cpus.len()).map(|n| n.load(Relaxed)).min();
    let made = all(&score.rounds).is_some_and(|made| made >= rounds);
    report.check("every CPU made all its calls", made, format_args!("one made fewer than {rounds}"));
    report.check("every CPU won some", all(&score.won).is_some_and(|won| won > 0), "one won none");
    report.equal("no call answered anything but 0, EPERM or EBUSY", score.odd.load(Relaxed), 0);
    let done = |call: HostFn| {
        CALLS.iter().zip(&score.done).find(|(c, _)| **c == call).map_or(0, |(_, n)| n.load(Relaxed))
    };
    for (call, count) in CALLS.iter().zip(&score.done) {
        report.metric(call.name(), count.load(Relaxed), "successes");
    }
    report.metric("lost", score.lost.load(Relaxed), "calls");
    report.metric("busy", score.busy.load(Relaxed), "calls");
    let (mut shared, mut lent) = (0, 0);
    for pfn in first..first + PAGES {
        let hyp = ctx.hypervisor();
        shared += u64::from(hyp.unshare(pfn).is_ok());
        lent += match hyp.take_back(pfn, 1) {
            Ok(()) => 1,
            Err(CallError::Errno(Ebusy)) => {
                ctx.leave_lent(1);
                1
            }
            Err(_) => 0,
        };
    }
    let kept = |give, take| done(give).checked_sub(done(take));
    report.equal(
        "shares and unshares add up to what is still shared",
        kept(HostFn::HostShareHyp, HostFn::HostUnshareHyp),
        Some(shared),
    );
    report.equal(
        "loans and returns add up to what is still lent",
        kept(HostFn::HostDonateHyp, HostFn::HypDonateHost),
        Some(lent),
    );
    ctx.expect_el2_alive();
}

fn one_cpu(ctx: &Ctx<'_>, score: &Score, cpu: usize, (first, rounds, seed): (u64, u64, u64)) {
    let mut random = Random::new(seed, cpu);
    let mut round = 0;
    let won = || score.won.get(cpu).is_none_or(|won| won.load(Relaxed) > 0);
    // A CPU that lost them all by chance goes on until it wins, or plainly cannot.
    while round < rounds || !won() && round < MOST {
        let pfn = first + random.below(PAGES);
        let call = random.below(CALLS.len() as u64);
        let Some((call, done)) = CALLS.iter().zip(&score.done).nth(usize::try_from(call).unwrap_or(0)) else {
            return;
        };
        let answer = ctx.hypervisor().call_id(call.id(), &[pfn, 1], [false, false]);
        let counter = match answer {
            Ok(_) => {
                if let Some(won) = score.won.get(cpu) {
                    won.fetch_add(1, Relaxed);
                }
                done
            }
            Err(CallError::Errno(Eperm)) => &score.lost,
            Err(CallError::Errno(Ebusy)) => &score.busy,
            Err(_) => &score.odd,
        };
        counter.fetch_add(1, Relaxed);
        round += 1;
        if let Some(rounds) = score.rounds.get(cpu) {
            rounds.store(round, Relaxed);
        }
    }
}
