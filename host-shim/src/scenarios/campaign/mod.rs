//! `campaign`: a hostile host on all CPUs at once, that knows what is legal and does it half of the time.
//!
//! It makes VMs of every kind, runs guests in them, gives, lends, shows, shares and takes pages, takes snapshots, and takes
//! VMs apart; it forges calls, touches what is not its own, and rewrites records, chains and descriptors while calls on
//! other CPUs read them. Every answer must be one that docs/abi.md has for the call; what a call did is judged by the
//! specification where the image has it, and by an audit after each lot of calls, after which all VMs go and every page
//! comes back.
//!
//! | argument | default | meaning |
//! |---|---|---|
//! | `seed=N` | 1 | what is drawn |
//! | `calls=N` | 1000 | at least so many calls; the lot that passes it is the last |
//! | `seconds=N` | | no lot begins after so many seconds |
//! | `steps=N` | 240 | steps of a lot: a step is one call, or a few that belong together |
//! | `schedule=logical` | | one CPU at a time, in an order drawn from the seed: the same seed, the same calls and answers |
//! | `lot=N` | | this lot alone |
//! | `only=A-B,C` | | of each lot these steps alone; the others are as if they had never been drawn |
//! | `arms` | | steps inside calls are made to fail as well, in an image that can ([`abi::fault`]) |
//! | `trace` | | every call is printed before it is made |
#![forbid(unsafe_code)]

mod around;
mod caller;
mod hostile;
mod legal;
mod life;
mod turn;
mod world;

use super::Ctx;
use crate::inspect::Inspector;
use crate::random::Random;
use abi::HostFn;
use caller::{Caller, Tally};
use core::sync::atomic::Ordering::Relaxed;
use world::World;

pub(super) fn run(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    if !ctx.start_all_cpus() {
        return;
    }
    let Some(world) = World::open(ctx) else { return };
    let tally = Tally::new();
    let logical = ctx.args.get("schedule") == Some("logical");
    let c = Caller {
        ctx,
        world: &world,
        tally: &tally,
        logical,
        trace: ctx.args.has("trace"),
        arms: ctx.args.has("arms"),
    };
    let plan = Plan::of(ctx);
    let inspector = Inspector::new(ctx.hypervisor());
    report.step(format_args!("{} calls on {} CPUs, seed {}", plan.calls, ctx.board.cpus.len(), plan.seed));
    let (mut lots, mut lot, mut tables) = (0, plan.lot.unwrap_or(1), 0);
    while plan.goes_on(ctx, &tally, lots) {
        report.step(format_args!("lot {lot}"));
        if logical {
            plan.one_by_one(&c, lot)
        } else {
            plan.at_once(&c, lot)
        }
        if let Some(Err(e)) = inspector.map(Inspector::audit) {
            c.fail(format_args!("audit after lot {lot}"), e);
        }
        if c.arms {
            around::disarm(&c);
        }
        // What each CPU still has goes, in the same order every time.
        for cpu in ctx.all_cpus() {
            ctx.machine.run_on(&[cpu], &|_| {
                c.call(HostFn::VcpuPut, &[]);
            });
        }
        if !tally.failed.load(Relaxed) {
            tables = around::give_up(&c);
        }
        if tally.failed.load(Relaxed) {
            crate::dump::on_request(ctx, "after a failure of the campaign", &[]);
        }
        lots += 1;
        lot += 1;
    }
    if !tally.failed.load(Relaxed) {
        report.pass("every answer is one that the call has, every refused access an external abort");
        report.pass("every page of every lot came back");
    }
    ctx.leave_lent(tables);
    report.metric("calls", tally.calls.load(Relaxed), "calls");
    report.metric("lots", lots, "lots");
    report.metric("turns", tally.turns.load(Relaxed), "turns");
    report.metric("audits", if inspector.is_some() { lots } else { 0 }, "audits");
    report.metric("accesses_refused", tally.refused.load(Relaxed), "accesses");
    report.metric("accesses", tally.reached.load(Relaxed), "accesses");
    report.metric("no_such_call", tally.unknown.load(Relaxed), "calls");
    if logical {
        report.metric("schedule", tally.sum.load(Relaxed) >> 1, "sum");
    }
    for (call, verdict, count) in tally.each() {
        match verdict {
            Ok(()) => report.metric(format_args!("{}.OK", call.name()), count, "answers"),
            Err(errno) => report.metric(format_args!("{}.{errno:?}", call.name()), count, "answers"),
        }
    }
    ctx.expect_el2_alive();
}

/// What is drawn, and for how long.
struct Plan<'a> {
    seed: u64,
    calls: u64,
    steps: u64,
    lot: Option<u64>,
    /// Counter value after which no lot begins.
    deadline: Option<u64>,
    only: Option<&'a str>,
}

impl<'a> Plan<'a> {
    fn of(ctx: &Ctx<'a>) -> Self {
        let number = |key| ctx.args.get(key).map(|_| ctx.args.number(key, 0));
        let end = |seconds: u64| ctx.machine.ticks() + seconds * ctx.machine.frequency();
        Self {
            seed: ctx.args.number("seed", 1),
            calls: ctx.args.number("calls", 1000),
            steps: ctx.args.number("steps", 240),
            lot: number("lot"),
            deadline: number("seconds").map(end),
            only: ctx.args.get("only"),
        }
    }

    fn goes_on(&self, ctx: &Ctx<'_>, tally: &Tally, lots: u64) -> bool {
        let late = self.deadline.is_some_and(|end| ctx.machine.ticks() > end);
        let enough = match self.lot {
            Some(_) => lots > 0,
            None => tally.calls.load(Relaxed) >= self.calls,
        };
        !late && !enough && !tally.failed.load(Relaxed)
    }

    /// True if step `nth` of a lot is to be done.
    fn has(&self, nth: u64) -> bool {
        let Some(list) = self.only else { return true };
        list.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let bound = |text: &str| text.parse::<u64>().ok();
            bound(first).is_some_and(|first| first <= nth) && bound(last).is_some_and(|last| nth <= last)
        })
    }

    /// What is drawn for one step depends on its number alone, so that the others can be left out.
    fn random(&self, lot: u64, nth: u64) -> Random {
        let lot = lot.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Random::new(self.seed ^ lot.rotate_left(17), usize::try_from(nth).unwrap_or(0))
    }

    /// One CPU at a time.
    fn one_by_one(&self, c: &Caller<'_>, lot: u64) {
        let cpus = c.ctx.all_cpus();
        for nth in (0..self.steps).filter(|nth| self.has(*nth)) {
            if c.tally.failed.load(Relaxed) {
                return;
            }
            let mut random = self.random(lot, nth);
            let Some(cpu) = random.of(&cpus) else { return };
            if c.trace {
                c.ctx.machine.line(format_args!("lot {lot} step {nth}"));
            }
            c.ctx.machine.run_on(&[cpu], &|_| step(c, &mut random.clone()));
        }
    }

    /// All CPUs, in any order.
    fn at_once(&self, c: &Caller<'_>, lot: u64) {
        let cpus = c.ctx.all_cpus();
        c.ctx.machine.run_on(&cpus, &|cpu| {
            let each = self.steps.div_ceil(cpus.len() as u64);
            for nth in (0..each).map(|n| n * cpus.len() as u64 + cpu as u64).filter(|nth| self.has(*nth)) {
                if c.tally.failed.load(Relaxed) {
                    return;
                }
                let mut random = self.random(lot, nth);
                // The CPU that it would be with one at a time: what follows is drawn the same.
                random.next_word();
                step(c, &mut random);
            }
        });
    }
}

/// One step of one CPU.
fn step(c: &Caller<'_>, random: &mut Random) {
    let guests = c.world.has_guests();
    match random.below(100) {
        0..=19 if guests => life::advance(c, random),
        20..=37 if guests => legal::memory(c, random),
        38..=50 if guests => turn::turns(c, random),
        51..=52 if guests => around::snapshot(c, random),
        0..=60 => legal::pages(c, random),
        61 if c.arms => around::inject(c, random),
        61..=63 => around::firmware(c, random),
        64..=71 => around::poke(c, random),
        72..=79 => around::scribble(c, random),
        _ => hostile::any(c, random),
    }
}
