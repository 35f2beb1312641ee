//! `guest_linux_hostile`: a Linux realm whose host attacks it, beside a protected guest that it leaves in peace.
//!
//! The realm may fail; nobody else does, its memory stays its own, and all of it comes back.
//! Words of the command line: `attack=NAME` (all of them), `seed=N`, `quiet`, `append=WORD`.
#![forbid(unsafe_code)]

use super::super::guest::{Guests, task};
use super::attack::{Attack, Attacker};
use super::beside::go_on;
use super::seen::Seen;
use super::{Ctx, bootargs, cpus, search};
use crate::linux::{Linux, guest_shim};
use crate::span::{Pages, Span};
use crate::vmm::{Exit, Vm, serve};
use abi::exit::Reason;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::protocol::{Payload, VmKind};

/// The realm's RAM.
const MEMORY: u64 = 192 << 20;
/// Exits of the other guest after the realm's end that are enough.
const MORE: u64 = 100;

pub(in super::super) fn hostile(ctx: &Ctx<'_>) {
    let Some(archive) = ctx.board.initrd else { return ctx.report.fail("an archive", "none") };
    let wanted = ctx.args.get("attack");
    let chosen = |attack: &Attack| wanted.is_none_or(|wanted| wanted == attack.names().0);
    let mut done = 0;
    for attack in Attack::ALL.into_iter().filter(chosen) {
        suffer(ctx, archive, attack);
        done += 1;
    }
    ctx.report.check("there is such an attack", done > 0, wanted.unwrap_or_default());
}

/// One attack, from the realm's first page to its last.
fn suffer(ctx: &Ctx<'_>, archive: Span, attack: Attack) {
    let searched = ctx.pages.lock().clone();
    let g = Guests::open(ctx);
    let Some(image) = g.ok("the guest shim", guest_shim(&g.vmm, archive)) else { return };
    let g = g.with_image(image);
    let bootargs = bootargs(&ctx.args, VmKind::Realm, 1, attack.run());
    let linux = Linux {
        kind: VmKind::Realm,
        vcpus: 1,
        ram: MEMORY,
        bootargs: &bootargs,
        listens: false,
        measured: false,
    };
    let attacker = Attacker::new(ctx, attack);
    let Some(realm) = g.ok("a realm", linux.create(&g.vmm, Some(archive))) else { return };
    let realm = realm.treated(&attacker);
    let Some(bare) = g.vm(&g.vmm, task(Payload::Exits, true, 0)) else { return };
    let seen = Seen::new(ctx, attack.names().1, false);
    let seen = if attack.harmless() { seen } else { seen.unjudged() };

    run(ctx, attack, &attacker, &realm, &bare, &seen);
    judge(ctx, attack, &attacker, &realm, &seen, &searched);
    g.destroy(format_args!("{}the realm", attack.names().1), realm);
    g.destroy("the guest beside it", bare);
    g.close();
}

/// Runs both guests until the realm has stopped and the other one has gone on for a while. Each has a CPU of its own, as
/// has the one that scribbles.
fn run<'v>(
    ctx: &Ctx<'_>,
    attack: Attack,
    attacker: &Attacker<'_>,
    realm: &Vm<'v>,
    bare: &Vm<'v>,
    seen: &Seen<'_>,
) {
    let cpus = cpus(ctx, if attack == Attack::Scribble { 3 } else { 2 });
    realm.pin(cpus.get(..1).unwrap_or(&[]));
    bare.pin(cpus.get(1..2).unwrap_or(&[]));
    let watch = |vm: &Vm<'_>, _: u64, exit: &Exit| {
        let said = seen.uart();
        seen.exit(vm, exit);
        attacker.enough(exit, seen.uart() != said)
    };
    let (words, went_on) = (AtomicU64::new(0), AtomicU64::new(0));
    let runs = || realm.stopped().is_none();
    ctx.machine.run_on(&cpus, &|_| match cpus.iter().position(|cpu| *cpu == ctx.machine.cpu()) {
        Some(0) => serve(ctx.machine, &[realm], &watch),
        Some(1) => went_on.store(go_on(ctx, bare, &runs, MORE), Ordering::Relaxed),
        _ => {
            let seed = ctx.args.number("seed", 1);
            words.store(attacker.scribble(realm, seed), Ordering::Relaxed);
        }
    });
    if attack == Attack::Scribble {
        ctx.report.metric("scribble_words", words.into_inner(), "words");
    }
    let went_on = went_on.into_inner();
    ctx.report.check("the guest beside it goes on", went_on >= MORE, format_args!("it made {went_on} exits"));
}

/// How the realm ended, and what the host knows of it.
fn judge(
    ctx: &Ctx<'_>,
    attack: Attack,
    attacker: &Attacker<'_>,
    realm: &Vm<'_>,
    seen: &Seen<'_>,
    searched: &Pages,
) {
    let name = attack.names().1;
    let (blows, stop) = (attacker.blows(), realm.stopped());
    ctx.report.check(format_args!("{name}the host attacked"), blows > 0, "it did not");
    let allowed = stop.is_some_and(|stop| attack.allows(stop));
    ctx.report.check(format_args!("{name}the realm's end"), allowed, format_args!("{stop:?}"));
    let said = match (seen.works(), seen.ended()) {
        (false, _) => "nothing",
        (true, false) => "some of its script",
        (true, true) => "all of its script",
    };
    ctx.report.step(format_args!(
        "{name}{blows} blows, stopped by {stop:?}; the realm said {said}; {} ticks, {} faults, {} requests",
        realm.exits(Reason::Irq),
        realm.exits(Reason::MemFault),
        realm.exits(Reason::RipasChange),
    ));
    if attack.harmless() {
        ctx.report.check("a guest gets over lies", seen.ended(), "its script did not come to its end");
    }
    if seen.works() {
        search(ctx, VmKind::Realm, searched);
    }
}
