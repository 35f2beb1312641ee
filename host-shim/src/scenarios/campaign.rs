//! `campaign`: random calls from all CPUs at once, half of them about realms (`campaign_realm`), a quarter with
//! arguments that make sense and a quarter hostile, with an audit every so often. Without guests the latter two alone.
//!
//! `seed=N` (default 1) repeats the calls of each CPU, `calls=N` (default 1000) is their number in
//! all, `every=N` (default 250) the number between two audits. The order of CPUs is the machine's.
#![forbid(unsafe_code)]

use super::Ctx;
use super::campaign_realm::{Made, Realms};
use super::guest::Guests;
use crate::hvc::{CallError, registers};
use crate::inspect::Inspector;
use crate::machine::Imm;
use crate::random::Random;
use crate::span::{BLOCK, PAGE, Span};
use abi::host::MAX_PAGES;
use abi::{Errno, HostFn, smccc};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Pages that the calls with arguments that make sense are about, half of them in either of two
/// blocks.
const ARENA: u64 = 256;

/// Answers, counted over all CPUs.
#[derive(Debug, Default)]
struct Answers {
    calls: AtomicU64,
    ok: AtomicU64,
    refused: [AtomicU64; Errno::ALL.len()],
    unknown: AtomicU64,
    /// Replies that break the calling convention, or errnos that the call does not have.
    odd: AtomicU64,
}

impl Answers {
    fn count(&self, (answer, documented): Made) {
        self.calls.fetch_add(1, Relaxed);
        let counter = match answer {
            Ok(_) => &self.ok,
            Err(CallError::NotSupported) => &self.unknown,
            Err(CallError::Malformed { .. }) => &self.odd,
            Err(CallError::Errno(e)) => {
                let counters = Errno::ALL.iter().zip(&self.refused);
                match counters.into_iter().find(|(errno, _)| **errno == e) {
                    Some((_, counter)) if documented.contains(&e) => counter,
                    _ => &self.odd,
                }
            }
        };
        counter.fetch_add(1, Relaxed);
    }
}

pub(super) fn run(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    let (seed, calls) = (ctx.args.number("seed", 1), ctx.args.number("calls", 1000));
    let every = ctx.args.number("every", 250).max(1);
    let blocks = ctx.take(2 * BLOCK / PAGE, BLOCK);
    let middle = blocks.and_then(|span| Span::new(span.start() + BLOCK - ARENA / 2 * PAGE, ARENA * PAGE));
    let Some(arena) = middle else { return };
    if !ctx.start_all_cpus() {
        return;
    }
    let cpus = ctx.all_cpus();
    report.step(format_args!("{calls} calls on {} CPUs, seed {seed}, an audit every {every}", cpus.len()));
    let answers = Answers::default();
    let inspector = Inspector::new(ctx.hypervisor());
    let guests = (ctx.hypervisor().vm_finalise(0) != Err(CallError::NotSupported)).then(|| Guests::open(ctx));
    let (mut made, mut lot) = (0, 0);
    while made < calls {
        let each = every.min(calls - made).div_ceil(cpus.len() as u64);
        lot += 1;
        let realms = guests.as_ref().and_then(|g| Realms::new(g, lot));
        ctx.machine.run_on(&cpus, &|cpu| {
            let mut random = Random::new(seed ^ lot << 32, cpu);
            for _ in 0..each {
                answers.count(one_call(ctx, &mut random, arena, realms.as_ref()));
            }
        });
        made += each * cpus.len() as u64;
        if let Some(Err(e)) = inspector.map(Inspector::audit) {
            return report.fail(format_args!("audit after {made} calls"), e);
        }
        if let (Some(realms), Some(g)) = (realms, &guests) {
            realms.end(g);
        }
    }
    report.equal("every call was answered", answers.calls.load(Relaxed), made);
    report.equal("every answer is one that the call has", answers.odd.load(Relaxed), 0);
    report.metric("calls", made, "calls");
    report.metric("audits", if inspector.is_some() { lot } else { 0 }, "audits");
    report.metric("ok", answers.ok.load(Relaxed), "calls");
    report.metric("no_such_call", answers.unknown.load(Relaxed), "calls");
    for (errno, count) in Errno::ALL.iter().zip(&answers.refused) {
        match count.load(Relaxed) {
            0 => {}
            count => report.metric(format_args!("{errno:?}"), count, "calls"),
        }
    }
    give_up(ctx, arena);
    match guests {
        Some(g) => g.close(),
        None => drop(ctx.expect_el2_alive()),
    }
}

fn one_call(ctx: &Ctx<'_>, random: &mut Random, arena: Span, realms: Option<&Realms<'_>>) -> Made {
    use Errno::{E2big, Ebusy, Einval, Enomem, Eperm, Erange};
    let answer = match (random.below(4), realms) {
        (0 | 1, Some(realms)) => return realms.call(ctx, random, arena),
        (0 | 2, _) => legal(ctx, random, arena),
        _ => hostile(ctx, random, arena),
    };
    (answer, &[Eperm, E2big, Enomem, Ebusy, Einval, Erange])
}

const CALLS: [HostFn; 4] =
    [HostFn::HostShareHyp, HostFn::HostUnshareHyp, HostFn::HostDonateHyp, HostFn::HypDonateHost];

/// A call that may well succeed.
fn legal(ctx: &Ctx<'_>, random: &mut Random, arena: Span) -> Result<[u64; 2], CallError> {
    // Most are about few pages, so that what one call did meets the next.
    let (offset, nr) = match random.below(16) {
        0 => (random.below(ARENA - 64), 1 + random.below(64)),
        1..=5 => (random.below(ARENA), 1),
        _ => (ARENA / 2 - 4 + random.below(8), 1),
    };
    let call = random.of(&CALLS).unwrap_or(HostFn::HypCaps);
    let pfn = arena.start() / PAGE + offset;
    let nr = if random.below(64) == 0 { 0 } else { nr };
    ctx.hypervisor().call_id(call.id(), &[pfn, nr], [false, false])
}

/// A word that has nothing to do in the register that it goes in.
fn odd_word(random: &mut Random) -> u64 {
    let word = random.next_word();
    match random.below(6) {
        0 => word,
        1 => word >> random.below(64),
        2 => u64::MAX - random.below(4),
        3 => 1 << random.below(64),
        4 => (1_u64 << random.below(64)).wrapping_sub(1 + random.below(2)),
        _ => random.below(2048),
    }
}

/// A call that nobody should make. It never names memory of the host outside the arena in a way
/// that could succeed: the host stands on it.
fn hostile(ctx: &Ctx<'_>, random: &mut Random, arena: Span) -> Result<[u64; 2], CallError> {
    let hyp = ctx.hypervisor();
    match random.below(4) {
        0 => nonsense(ctx, random),
        1 => {
            // The hypervisor's memory, and what is no memory at all.
            let carveout = ctx.board.carveouts().next().unwrap_or(arena);
            let pfn = carveout.start() / PAGE + random.below(carveout.size() / PAGE);
            let device = ctx.board.devices.first().map_or(0, |device| device.span.start() / PAGE);
            let pfn = random.of(&[pfn, pfn, device]).unwrap_or(device);
            let odd = odd_word(random);
            let nr = random.of(&[1, 1, odd]).unwrap_or(1);
            let call = random.of(&CALLS).unwrap_or(HostFn::HypCaps);
            hyp.call_id(call.id(), &[pfn, nr], [false, false])
        }
        2 => {
            // Any frame; only to be taken, or to be given where there is no memory.
            let pfn = odd_word(random);
            let is_ram = pfn < 1 << 52 && ctx.board.touches_ram(pfn * PAGE);
            let taking = [HostFn::HostUnshareHyp, HostFn::HypDonateHost];
            let call = if is_ram { random.of(&taking) } else { random.of(&CALLS) };
            let call = call.unwrap_or(HostFn::HypCaps);
            hyp.call_id(call.id(), &[pfn, 1 + odd_word(random) % MAX_PAGES], [false, false])
        }
        _ => {
            // The arena with any length: what reaches out of it is more than a call takes.
            let offset = random.below(ARENA / 2);
            let nr = odd_word(random);
            let nr = if nr <= MAX_PAGES { nr % (ARENA / 2) } else { nr };
            let call = random.of(&CALLS).unwrap_or(HostFn::HypCaps);
            hyp.call_id(call.id(), &[arena.start() / PAGE + offset, nr], [false, false])
        }
    }
}

/// Ids, immediates and high halves that are no call.
fn nonsense(ctx: &Ctx<'_>, random: &mut Random) -> Result<[u64; 2], CallError> {
    let known = u64::from(random.of(&CALLS).unwrap_or(HostFn::HypCaps).id());
    let (imm, id) = match random.below(3) {
        0 => (Imm::Zero, random.next_word() | 1 << 63),
        1 => (Imm::Zero, known | 1 << (32 + random.below(32))),
        _ => (random.of(&[Imm::One, Imm::Max]).unwrap_or(Imm::One), known),
    };
    let before = registers(id, &[odd_word(random), odd_word(random), odd_word(random)]);
    let after = ctx.machine.hvc(imm, &before);
    let [status, ..] = after;
    match crate::hvc::first_change(&before, &after, 1) {
        None if status == smccc::NOT_SUPPORTED => Err(CallError::NotSupported),
        Some((register, value)) => Err(CallError::Malformed { register, value }),
        None => Err(CallError::Malformed { register: 0, value: status }),
    }
}

/// Ends all shares and loans of the arena, but for lent pages that are tables.
fn give_up(ctx: &Ctx<'_>, arena: Span) {
    let hyp = ctx.hypervisor();
    let mut tables = 0;
    // A page may hold the table of one that was lent later: twice round finds it idle.
    for last in [false, true] {
        for page in arena.pages() {
            let pfn = page / PAGE;
            // Refused unless it is shared: nothing to do then.
            let _ = hyp.unshare(pfn);
            let lent = ctx.load(page).is_err();
            if lent && hyp.take_back(pfn, 1) == Err(CallError::Errno(Errno::Ebusy)) && last {
                tables += 1;
            }
        }
    }
    ctx.leave_lent(tables);
    ctx.report.metric("lent_pages_still_in_use", tables, "pages");
}
