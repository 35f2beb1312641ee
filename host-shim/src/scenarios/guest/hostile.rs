//! `guest_hostile`: a guest that does what no guest should, of every kind, beside guests that want to be left alone.
//!
//! First every system register is read and written, and what came of it held against docs/vm.md. Then come `rounds`
//! (default 200) seeded rounds of each kind; a round that ends the guest ends a *life*, and the next begins behind
//! it. `registers=N` (default 1) of the 32 chunks of registers are tried, beginning where `seed` (default 1) says.
//!
//! The hostile guest shares a CPU with one protected guest, the *near* one; the *far* one has a CPU of its own, where
//! there are more.
#![forbid(unsafe_code)]

use super::{Ctx, Guests, Shown};
use crate::span::PAGE;
use crate::vmm::{Exit, Spec, Stop, Vm, nobody, serve};
use abi::exit::{ExitFlags, Reason};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_shim::payloads::registers::{documented, nth};
use guest_shim::protocol::hostile::{ASK, Class, FIRST, Outcome, ROUNDS, VCPUS, counter};
use guest_shim::protocol::registers::{CHUNK, CHUNKS, IN_WORD, WRITE_SHIFT};
use guest_shim::protocol::{PASSED, Payload, SHARED, Start, VmKind, honest, word};

const CLASSES: usize = Class::ALL.len();
const OUTCOMES: usize = Outcome::ALL.len();
const REASONS: usize = Reason::ALL.len();
/// Turns of its neighbour after which a guest that makes no round is taken for dead.
const PATIENCE: u64 = 100;
/// Seconds that no round of a guest beside may take: under an emulator on a machine with other work it is late that a
/// CPU gets on.
const LONGEST: u64 = 60;
/// Rounds of each kind, unless the boot arguments say otherwise.
const ROUNDS_EACH: u64 = 200;
/// Rounds of each kind from which on every class must have happened, and from which on every exit.
const EVERY_CLASS: u64 = 100;
const EVERY_EXIT: u64 = 4000;

pub(in super::super) fn hostile(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let seed = ctx.args.number("seed", 1);
    for kind in VmKind::ALL {
        registers(&g, kind, seed);
    }
    let mut sums = Sums::default();
    let rounds = ctx.args.number("rounds", ROUNDS_EACH);
    for kind in VmKind::ALL.into_iter().filter(|_| rounds > 0) {
        lives(&g, kind, seed, rounds, &mut sums);
    }
    sums.tell(ctx, rounds);
    g.close();
}

const fn name(kind: VmKind) -> &'static str {
    match kind {
        VmKind::Plain => "a plain VM",
        VmKind::Protected => "a protected VM",
        VmKind::Realm => "a realm",
    }
}

/// Every register that is tried does what docs/vm.md says.
fn registers(g: &Guests<'_>, kind: VmKind, seed: u64) {
    let nr = g.ctx.args.number("registers", 1).min(CHUNKS);
    if nr == 0 {
        return;
    }
    let chunks = u32::try_from((seed.wrapping_mul(nr) % CHUNKS) | (nr << 16)).unwrap_or(0);
    let start = Start { payload: Payload::Registers, kind, argument: chunks };
    let (judged, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    let watch = |vm: &Vm<'_>, _: u64, exit: &Exit| {
        if exit.reason == Reason::Psci {
            judge_chunk(g.ctx, vm, &judged, &wrong);
        }
        kind.is_protected() && exit.reason == Reason::Trap
    };
    let spec = Spec { vcpus: 1, start };
    let name = format_args!("registers of {}", name(kind));
    g.run(name, &spec, &[g.ctx.boot_cpu], &watch, |vm| {
        g.expect(format_args!("{name}: reported"), judged.load(Relaxed), nr * CHUNK);
        g.expect(format_args!("{name}: other than documented"), wrong.load(Relaxed), 0);
        let traps = vm.exits(Reason::Trap);
        let right = (traps > 0) != kind.is_protected();
        g.ctx.report.check(format_args!("{name}: the host hears of a plain VM's alone"), right, traps);
    });
}

/// Holds one chunk of a report against the documents.
fn judge_chunk(ctx: &Ctx<'_>, vm: &Vm<'_>, judged: &AtomicU64, wrong: &AtomicU64) {
    let Some(chunk) = vm.mail(word::STAGE).ok().and_then(|stage| stage.checked_sub(1)) else { return };
    if chunk >= CHUNKS || vm.mail(word::OUTCOME) != Ok(0) {
        return;
    }
    for n in (0..CHUNK).step_by(usize::try_from(IN_WORD).unwrap_or(1)) {
        let Ok(report) = vm.mail(word::RESULTS + n / IN_WORD) else { return };
        for k in 0..IN_WORD {
            let register = nth(chunk * CHUNK + n + k);
            let seen = [0, 1].map(|write| report >> ((2 * k + write) * WRITE_SHIFT) & 3);
            let fates = documented(register);
            judged.fetch_add(1, Relaxed);
            if !fates.iter().zip(seen).all(|(fate, seen)| fate.holds(seen))
                && wrong.fetch_add(1, Relaxed) < 16
            {
                let found = format_args!("MRS and MSR came to {seen:?}, not {fates:?}");
                ctx.report.fail(format_args!("{} in {}", register, name(vm.kind)), found);
            }
        }
    }
}

/// What came of all lives.
#[derive(Debug, Default)]
struct Sums {
    outcomes: [[u64; OUTCOMES]; CLASSES],
    exits: [u64; REASONS],
    lives: u64,
    ends: [u64; ENDS.len()],
}

/// How a life can end.
const ENDS: [&str; 7] = ["done", "off", "reset", "dead", "stray", "stuck", "lost"];

fn end_of(stop: Stop, outcome: u64) -> Option<&'static str> {
    Some(match stop {
        Stop::Off if outcome == PASSED => "done",
        Stop::Off if outcome != 0 => "lost",
        Stop::Off => "off",
        Stop::Reset => "reset",
        Stop::Dead => "dead",
        Stop::Stray(_) => "stray",
        Stop::Watcher => "stuck",
        Stop::Destroyed | Stop::Failed(_) => return None,
    })
}

/// The honest guests and what is asked of them.
struct Neighbours<'v, 'm> {
    near: &'v Vm<'m>,
    far: Option<&'v Vm<'m>>,
}

/// One kind's rounds.
fn lives<'m>(g: &'m Guests<'m>, kind: VmKind, seed: u64, rounds: u64, sums: &mut Sums) {
    let vm = || {
        let start = Start { payload: Payload::Honest, kind: VmKind::Protected, argument: 0 };
        g.vm(&g.vmm, start)
    };
    let Some(near) = vm() else { return };
    let far = g.ctx.other_cpu().and_then(|_| vm());
    let mut first = 0;
    while first < rounds {
        let neighbours = Neighbours { near: &near, far: far.as_ref() };
        let Some(next) = life(g, kind, seed, first..rounds, &neighbours, sums) else { break };
        if next <= first {
            g.ctx.report.fail(format_args!("{}: a life without a round", name(kind)), first);
            break;
        }
        first = next;
    }
    g.expect(format_args!("{}: rounds that were made", name(kind)), first, rounds);
    for (vm, place) in [(Some(near), "near"), (far, "far")] {
        let Some(vm) = vm else { continue };
        let what = format_args!("the {place} guest beside {}", name(kind));
        if g.ok(what, vm.write_mail(word::ANSWER, 1)).is_some() {
            let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
            g.judge(what, &vm, stop);
        }
        let made = vm.mail(honest::ROUNDS).unwrap_or(0);
        g.ctx.report.check(format_args!("{what}: it got on"), made > 1, made);
        let longest = vm.mail(honest::LONGEST).unwrap_or(0);
        let micros = longest.saturating_mul(1_000_000) / g.ctx.machine.frequency().max(1);
        g.ctx.report.metric(format_args!("{place}_longest_round_{kind:?}"), micros, "us");
        g.ctx.report.check(
            format_args!("{what}: no round took {LONGEST} s"),
            micros < LONGEST * 1_000_000,
            micros,
        );
        g.destroy(what, vm);
    }
}

/// One life of the hostile guest: the round after its last, or `None` if something is wrong.
fn life<'m>(
    g: &'m Guests<'m>,
    kind: VmKind,
    seed: u64,
    rounds: core::ops::Range<u64>,
    neighbours: &Neighbours<'_, 'm>,
    sums: &mut Sums,
) -> Option<u64> {
    let (ctx, first) = (g.ctx, rounds.start);
    let argument = u32::try_from((seed ^ seed >> 32) & 0xffff_ffff).unwrap_or(0);
    let start = Start { payload: Payload::Hostile, kind, argument };
    let vm = g.ok("making a hostile guest", g.vmm.create(&Spec { vcpus: VCPUS, start }))?;
    let all = neighbours.far.into_iter().chain([neighbours.near]);
    all.clone().for_each(|vm| {
        vm.go_on();
        // What the host did meanwhile is no affair of the guest beside.
        let _ = vm.mail(honest::PAUSES).and_then(|n| vm.write_mail(honest::PAUSES, n + 1));
    });
    let idle_turns = AtomicU64::new(0);
    let told = AtomicU64::new(0);
    let watch = |seen: &Vm<'_>, _: u64, exit: &Exit| {
        if seen.handle != vm.handle {
            // Before its first round it is a guest like others, however slow.
            let beside = seen.handle == neighbours.near.handle && told.load(Relaxed) != 0;
            if beside && idle_turns.fetch_add(1, Relaxed) > PATIENCE {
                vm.halt(Stop::Watcher);
            }
            return vm.stopped().is_some();
        }
        if let Some(broken) = undocumented(kind, exit) {
            ctx.report.fail(format_args!("an exit of {}", name(kind)), broken);
        }
        let stage = vm.mail(word::STAGE).unwrap_or(0);
        if stage == ASK {
            let _ = vm.write_mail(FIRST, rounds.start).and(vm.write_mail(ROUNDS, rounds.end));
        }
        if told.swap(stage, Relaxed) != stage {
            idle_turns.store(0, Relaxed);
        }
        false
    };
    let beside = [&vm, neighbours.near];
    match (neighbours.far, ctx.other_cpu()) {
        (Some(far), Some(other)) => ctx.machine.run_on(&[ctx.boot_cpu, other], &|cpu| {
            let mine: &[&Vm<'_>] = if cpu == other { &[far] } else { &beside };
            serve(ctx.machine, mine, &watch);
        }),
        _ => serve(ctx.machine, &beside, &watch),
    }
    for vm in neighbours.far.into_iter().chain([neighbours.near]) {
        let stop = vm.stopped();
        if stop != Some(Stop::Watcher) {
            ctx.report
                .fail("a guest beside goes on", format_args!("{stop:?}, {}", Shown(vm.mail(word::OUTCOME))));
        }
    }
    let stop = vm.stopped().unwrap_or(Stop::Watcher);
    sums.add(&vm);
    let stage = vm.mail(word::STAGE).unwrap_or(ASK);
    let outcome = vm.mail(word::OUTCOME).unwrap_or(0);
    let next = if stage == ASK { first } else { stage };
    let end = end_of(stop, outcome);
    let detail = format_args!("{stop}, {}", Shown(Ok(outcome)));
    ctx.report.step(format_args!("{}: rounds {first} to {next}: {detail}", name(kind)));
    ENDS.iter().zip(&mut sums.ends).filter(|(e, _)| Some(**e) == end).for_each(|(_, n)| *n += 1);
    sums.lives += 1;
    let gone = vm.destroy();
    if end.is_none() || gone.is_err() {
        let what = format_args!("{stop}, then {gone:?}");
        ctx.report.fail(format_args!("{} ends at round {next}", name(kind)), what);
        return None;
    }
    Some(next)
}

/// What an exit shows that it must not, beyond what the VMM itself refuses to read.
fn undocumented(kind: VmKind, exit: &Exit) -> Option<&'static str> {
    let shown = ExitFlags::WRITE | ExitFlags::EXEC;
    match exit.reason {
        Reason::Trap if kind.is_protected() => Some("TRAP"),
        Reason::Mmio if kind == VmKind::Realm && exit.gpa & SHARED == 0 => Some("MMIO of a private address"),
        Reason::MemFault
            if exit.flags.contains(ExitFlags::PRIVATE)
                && (!exit.gpa.is_multiple_of(PAGE) || exit.flags.intersects(shown)) =>
        {
            Some("more of a private fault than its page")
        }
        Reason::RipasChange | Reason::HostCall if kind != VmKind::Realm => Some("a realm's"),
        Reason::Relinquished if kind != VmKind::Protected => Some("a protected VM's"),
        _ => None,
    }
}

impl Sums {
    /// Adds what a guest says that it did, and its exits.
    fn add(&mut self, vm: &Vm<'_>) {
        for ((class, _), sums) in Class::ALL.iter().zip(&mut self.outcomes) {
            for ((outcome, _), sum) in Outcome::ALL.iter().zip(sums) {
                *sum += vm.mail(counter(*class, *outcome)).unwrap_or(0);
            }
        }
        for (reason, sum) in Reason::ALL.iter().zip(&mut self.exits) {
            *sum += vm.exits(*reason);
        }
    }

    /// Figures; a class, an exit or an end that never happened in enough rounds is a failure.
    fn tell(&self, ctx: &Ctx<'_>, rounds: u64) {
        for ((_, class), sums) in Class::ALL.iter().zip(&self.outcomes) {
            for ((_, outcome), sum) in Outcome::ALL.iter().zip(sums) {
                ctx.report.metric(format_args!("{class}_{outcome}"), *sum, "rounds");
            }
            let all: u64 = sums.iter().sum();
            ctx.report.check(format_args!("class {class} happens"), all > 0 || rounds < EVERY_CLASS, all);
        }
        for (reason, sum) in Reason::ALL.iter().zip(self.exits) {
            ctx.report.metric(format_args!("exits_{reason:?}"), sum, "exits");
            ctx.report.check(format_args!("exit {reason:?} happens"), sum > 0 || rounds < EVERY_EXIT, sum);
        }
        for (end, sum) in ENDS.iter().zip(self.ends) {
            ctx.report.metric(format_args!("lives_{end}"), sum, "lives");
        }
        ctx.report.metric("lives", self.lives, "lives");
    }
}
