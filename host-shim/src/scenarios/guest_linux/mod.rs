//! `guest_linux`: Debian's unmodified kernel as a guest, plain or as a realm, on its emulated board.
//!
//! Words of the command line: `realm`, `protected`, `vcpus=N`, `mem=MIB`, `shell`, `quiet`, `measured`, `append=WORD`, `until-init`
//! (no further than the first process; on one CPU with `-icount shift=0` it also says what EL2 executed).
#![forbid(unsafe_code)]

mod attack;
mod beside;
mod ended;
mod hostile;
mod seen;
mod together;

pub(super) use ended::ended;
pub(super) use hostile::hostile;
pub(super) use together::together;

use super::Ctx;
use super::guest::Guests;
use crate::args::Args;
use crate::board::MAX_CPUS;
use crate::linux::Linux;
use crate::machine::Find;
use crate::span::{PAGE, Pages, Span};
use crate::vmm::{Stop, Vm};
use abi::exit::Reason;
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::Write;
use guest_shim::protocol::VmKind;
use seen::Seen;

/// What the guest is told. It keeps each letter 13 places further on in its memory, many times.
const SECRET: [u8; 15] = *b"rampartkeepsout";

pub(super) fn run(ctx: &Ctx<'_>) {
    // Everything but the shim itself, where the words that are looked for may be by accident.
    let searched = ctx.pages.lock().clone();
    let g = Guests::open(ctx);
    let kind = match (ctx.args.has("realm"), ctx.args.has("protected")) {
        (true, _) => VmKind::Realm,
        (false, true) => VmKind::Protected,
        (false, false) => VmKind::Plain,
    };
    let vcpus = ctx.args.number("vcpus", 1);
    let bootargs = bootargs(&ctx.args, kind, vcpus, if ctx.args.has("shell") { "shell" } else { "checks" });
    let linux = Linux {
        kind,
        vcpus,
        ram: ctx.args.number("mem", 256) << 20,
        bootargs: &bootargs,
        listens: ctx.args.has("shell"),
        measured: ctx.args.has("measured"),
    };
    let Some(vm) = g.ok("a VM with Linux", linux.create(&g.vmm, ctx.board.initrd)) else { return };
    ctx.report.step(format_args!("Linux in {} MiB with {vcpus} vCPUs, {}", linux.ram >> 20, name(kind)));

    let cpus = cpus(ctx, vcpus);
    let seen = Seen::new(ctx, "", linux.listens);
    let until_init = ctx.args.has("until-init");
    let counts = until_init && ctx.machine.count_instructions();
    let started = ctx.machine.ticks();
    let stop = vm.run(&cpus, &|vm, _, exit| seen.exit(vm, exit) || until_init && seen.began() != 0);
    if until_init {
        ctx.report.equal("the first process runs", stop, Stop::Watcher);
        figures(ctx, &vm, &seen, started);
        if counts {
            executed(ctx, &vm);
        }
        g.destroy("Linux", vm);
        return g.close();
    }
    ctx.report.equal("the guest turned itself off", stop, Stop::Off);
    if !linux.listens {
        ctx.report.check("the guest came to its end", seen.ended(), "its script did not");
        let heard = vm.with_virtio_line(|line| line == "over");
        ctx.report.check("the host hears the virtio console", heard, "its last line is another");
    }
    figures(ctx, &vm, &seen, started);
    if kind == VmKind::Realm {
        ctx.report.equal("device accesses in the private half", seen.private(), 0);
    }
    if !linux.listens {
        search(ctx, kind, &searched);
    }
    g.destroy("Linux", vm);
    g.close();
}

const fn name(kind: VmKind) -> &'static str {
    match kind {
        VmKind::Realm => "a realm",
        VmKind::Protected => "a protected VM",
        VmKind::Plain => "a plain VM",
    }
}

/// The first `count` of the machine's CPUs, the boot CPU before all: what others do without it has a time limit.
fn cpus(ctx: &Ctx<'_>, count: u64) -> ArrayVec<usize, MAX_CPUS> {
    let others = ctx.all_cpus().into_iter().filter(|cpu| *cpu != ctx.boot_cpu);
    core::iter::once(ctx.boot_cpu).chain(others).take(usize::try_from(count).unwrap_or(0)).collect()
}

/// The kernel's command line.
fn bootargs(args: &Args<'_>, kind: VmKind, vcpus: u64, run: &str) -> ArrayString<256> {
    let mut text = ArrayString::new();
    let realm = u8::from(kind == VmKind::Realm);
    let secret = core::str::from_utf8(&SECRET).unwrap_or("");
    // Room for all of it: what is appended is what may be cut.
    let _ = write!(text, "console=ttyAMA0 panic=-1 run={run} realm={realm} vcpus={vcpus} secret={secret}");
    if args.has("quiet") {
        let _ = text.write_str(" quiet");
    }
    if let Some(word) = args.get("append") {
        let _ = write!(text, " {word}");
    }
    text
}

fn figures(ctx: &Ctx<'_>, vm: &Vm<'_>, seen: &Seen<'_>, started: u64) {
    let report = &ctx.report;
    let since = |ticks: u64| (ticks.saturating_sub(started) * 1000).div_ceil(ctx.machine.frequency() / 1000);
    report.metric("linux_until_init", since(seen.began()), "us");
    report.metric("linux_until_off", since(ctx.machine.ticks()), "us");
    let uart = seen.uart();
    report.metric("linux_exits_uart", uart, "exits");
    report.metric("linux_exits_other_mmio", vm.exits(Reason::Mmio).saturating_sub(uart), "exits");
    for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::Mmio && vm.exits(*reason) != 0) {
        report.metric(format_args!("linux_exits_{reason:?}"), vm.exits(reason), "exits");
    }
}

/// What EL2 executed for the guest.
fn executed(ctx: &Ctx<'_>, vm: &Vm<'_>) {
    for reason in Reason::ALL.into_iter().filter(|reason| vm.exits(*reason) != 0) {
        let (run, calls) = vm.el2_for(reason);
        ctx.report.metric(format_args!("linux_el2_run_{reason:?}"), run, "instructions");
        ctx.report.metric(format_args!("linux_el2_calls_{reason:?}"), calls, "instructions");
    }
    ctx.report.metric("linux_el2_load_put", vm.el2_for_switches(), "instructions");
}

/// Looks through the host's memory for what the guest keeps. A plain guest's is there, and shows that it would be
/// found.
fn search(ctx: &Ctx<'_>, kind: VmKind, searched: &Pages) {
    let rotated = SECRET.map(|letter| (letter - b'a' + 13) % 26 + b'a');
    let Some(word) = rotated.first_chunk().map(|word| u64::from_le_bytes(*word)) else { return };
    let (mut found, mut refused, mut read) = (0_u64, 0_u64, 0_u64);
    let pages = searched.spans().chain(ctx.board.initrd).flat_map(Span::pages);
    for page in pages.filter_map(|page| Span::new(page, PAGE)) {
        match ctx.machine.find(page, Find::Word(word)) {
            Ok(None) => read += 1,
            Ok(Some(_)) => found += 1,
            Err(_) => refused += 1,
        }
    }
    let mebibytes = |pages: u64| (pages * PAGE) >> 20;
    ctx.report.step(format_args!(
        "the host reads {} MiB and finds the secret in {found} pages; it may not read {} MiB",
        mebibytes(read + found),
        mebibytes(refused)
    ));
    match kind {
        VmKind::Realm | VmKind::Protected => {
            ctx.report.equal(format_args!("pages with the secret of {}", name(kind)), found, 0);
            let title = format_args!("the memory of {} cannot be read", name(kind));
            ctx.report.check(title, refused > 0, "all of it was read");
        }
        VmKind::Plain => {
            ctx.report.check("a plain guest's secret is found", found > 0, "the search finds nothing");
        }
    }
}
