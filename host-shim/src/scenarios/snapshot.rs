//! `snapshot`: S2_SNAPSHOT_QUERY and S2_SNAPSHOT, by a host that is friendly, careless and hostile.
//! The scenarios S-nn are those of docs/snapshot.md.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::dump::{self, Buffer};
use crate::hvc::{CallError, Query, SnapshotRefused};
use crate::machine::{Access, words};
use crate::span::{BLOCK, PAGE};
use abi::Errno::{self, Einval, Enoent, Enomem, Eperm, Erange};
use abi::HostFn;
use abi::snapshot::{END, HOST, MAX_TABLES, Request};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SECRET: u64 = 0x5ec2_e700_0000_0003;

pub(super) fn run(ctx: &Ctx<'_>) {
    if !dump::is_there(ctx) {
        absent(ctx);
        return;
    }
    tree(ctx);
    boundaries(ctx);
    malformed(ctx);
    pages_of_others(ctx);
    blocks(ctx);
    arguments(ctx);
    races(ctx);
    ctx.expect_el2_alive();
}

pub(super) const fn error(errno: Errno, needed: u64, index: u64) -> SnapshotRefused {
    SnapshotRefused { error: CallError::Errno(errno), needed, index }
}

/// S-18: a release build has no such calls.
fn absent(ctx: &Ctx<'_>) {
    for call in [HostFn::S2SnapshotQuery, HostFn::S2Snapshot] {
        let before = crate::hvc::registers(u64::from(call.id()), &[HOST, 0x4_0000, 0]);
        let after = ctx.machine.hvc(crate::machine::Imm::Zero, &before);
        ctx.report.equal(format_args!("{} is not there", call.name()), after[0], abi::smccc::NOT_SUPPORTED);
        let changed = crate::hvc::first_change(&before, &after, 1);
        ctx.report.equal(format_args!("{} changes no register", call.name()), changed, None);
    }
}

/// Words of a page that are not zero.
pub(super) fn dirt(ctx: &Ctx<'_>, page: u64) -> u64 {
    words(page).filter(|at| ctx.load(*at) != Ok(0)).count() as u64
}

/// The root, and the first `tables` pages of the chain, are the host's and zero.
fn expect_zero(ctx: &Ctx<'_>, what: &str, buffer: &Buffer, tables: u64) {
    let roots = (0..buffer.roots()).map(|n| buffer.root(n));
    let dirt: u64 = roots.chain((0..tables).map(|n| buffer.table(n))).map(|page| dirt(ctx, page)).sum();
    ctx.report.equal(format_args!("{what}: all pages are back and zero"), dirt, 0);
}

/// S-01, S-13, S-22: the copy says what the host can find out by itself.
fn tree(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    let taken = dump::take(ctx, HOST);
    let Ok((buffer, outcome)) = taken else {
        report.fail("a snapshot of the host's table", format_args!("{taken:?}"));
        return;
    };
    let query = ctx.hypervisor().snapshot_query(HOST);
    let want = query.map(|q| (q.geometry, u64::from(q.roots)));
    report.equal("geometry and root are those of the query", Ok((outcome.geometry, buffer.roots())), want);
    report.equal("status and root", (outcome.status, outcome.root_pa), (0, buffer.root(0)));
    report.equal("as many tables as were needed", outcome.used, outcome.needed);
    report.equal(
        "what was brought is used or unused",
        u64::from(outcome.used + outcome.unused),
        buffer.tables(),
    );

    let entry = |address: u64| find(ctx, &buffer, outcome.geometry, address);
    for carveout in ctx.board.carveouts() {
        for (place, page) in carveout.corner_pages() {
            report.equal(
                format_args!("the {place} page of the carve-out is EL2's"),
                entry(page),
                Some(NOTE_HYP),
            );
        }
    }
    for device in ctx.board.devices.iter().filter(|d| d.disabled) {
        let page = device.span.start() & !(PAGE - 1);
        report.equal(format_args!("{} is withheld", device.name), entry(page), Some(NOTE_HYP));
    }
    for page in [buffer.root(0), buffer.table(0), buffer.desc()] {
        report.equal("the snapshot's own pages are EL2's while it is taken", entry(page), Some(NOTE_HYP));
    }
    let own = ctx.take(1, PAGE);
    if let Some(own) = own {
        let word = entry(own.start()).unwrap_or(u64::MAX);
        let mapped = word == 0 || word & 1 == 1;
        report.check("a page of the host is nobody else's", mapped, format_args!("{word:#x}"));
    }
    let wrote = ctx.store(buffer.root(0), u64::MAX).is_ok() && ctx.store(buffer.table(0), u64::MAX).is_ok();
    report.check("a copy is memory like any other", wrote, "a store faulted");
    buffer.give(ctx);
}

/// The note of a page that EL2 has.
const NOTE_HYP: u64 = 2 << 60 | 1 << 1;

/// The entry of the copy that decides about `address`; `None` if a load faults.
fn find(ctx: &Ctx<'_>, buffer: &Buffer, geometry: u64, address: u64) -> Option<u64> {
    let start = geometry >> 8 & 0xff;
    let mut level = start;
    let mut table = buffer.root(address >> (48 - 9 * start));
    loop {
        let index = address >> (39 - 9 * level) & 511;
        let word = ctx.load(table + 8 * index).ok()?;
        if level == 3 || word & 3 != 3 {
            return Some(word);
        }
        table = word & 0xffff_ffff_f000;
        level += 1;
    }
}

/// S-02, S-05: exactly enough, one too few, five too many.
fn boundaries(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    let Ok(Query { roots, tables, .. }) = ctx.hypervisor().snapshot_query(HOST) else {
        report.fail("a query", "refused");
        return;
    };
    let roots = u64::from(roots);
    let Some(large) = Buffer::take(ctx, roots, dump::with_slack(tables.into())) else { return };
    let needed = large.snapshot(ctx, HOST).unwrap_or(0);
    large.give(ctx);
    for (name, brought) in [("as many tables as there are", needed), ("five more", needed + 5)] {
        let Some(buffer) = Buffer::take(ctx, roots, brought) else { return };
        report.equal(name, buffer.snapshot(ctx, HOST), Ok(needed));
        let outcome = buffer.outcome(ctx).unwrap_or_default();
        let unused = brought - needed;
        report.equal(format_args!("{name}: pages not used"), u64::from(outcome.unused), unused);
        let mut at = outcome.unused_head;
        for _ in 0..unused {
            let address = at.wrapping_mul(PAGE);
            let clean = words(address).skip(1).all(|word| ctx.load(word) == Ok(0));
            report.check(format_args!("{name}: a page not used holds its link alone"), clean, "it does not");
            at = ctx.load(address).unwrap_or(0);
        }
        report.equal(format_args!("{name}: the chain of them ends"), at, END);
        buffer.give(ctx);
    }
    let Some(buffer) = Buffer::take(ctx, roots, needed.saturating_sub(1)) else { return };
    report.equal("one table too few", buffer.snapshot(ctx, HOST), Err(error(Enomem, needed, 0)));
    expect_zero(ctx, "one table too few", &buffer, buffer.tables());
    let outcome = buffer.outcome(ctx).unwrap_or_default();
    let status = outcome.status.cast_unsigned();
    report.equal(
        "and the descriptor says so",
        (status, u64::from(outcome.needed)),
        (Enomem.to_reg(), needed),
    );
    buffer.give(ctx);
}

/// S-07: nothing but the descriptor is taken.
fn malformed(ctx: &Ctx<'_>) {
    let Ok(Query { roots, .. }) = ctx.hypervisor().snapshot_query(HOST) else { return };
    let Some(buffer) = Buffer::take(ctx, roots.into(), 4) else { return };
    let good = buffer.request();
    let cases: [(&str, Request, SnapshotRefused); 9] = [
        ("magic", Request { magic: 1, ..good }, error(Einval, 0, 0)),
        ("version", Request { version: 9, ..good }, error(Einval, 0, 0)),
        ("flags", Request { flags: 1, ..good }, error(Einval, 0, 0)),
        ("reserved", Request { reserved: [0, 1, 0, 0], ..good }, error(Einval, 0, 0)),
        ("tables", Request { nr_tables: MAX_TABLES + 1, ..good }, error(Einval, 0, 0)),
        ("a chain without pages", Request { nr_tables: 0, ..good }, error(Einval, 0, 0)),
        ("no root pages", Request { pgd_pages: 0, ..good }, error(Einval, roots.into(), 0)),
        ("many root pages", Request { pgd_pages: u32::MAX, ..good }, error(Einval, roots.into(), 0)),
        ("root far out", Request { pgd_pfn: 1 << 52, ..good }, error(Erange, 0, 1)),
    ];
    let marks = [buffer.root(0) + 8, buffer.table(0) + 8, buffer.table(3) + 8];
    for (name, request, want) in cases {
        buffer.write(ctx, request);
        let marked = marks.iter().all(|at| ctx.store(*at, SECRET).is_ok());
        let answer = ctx.hypervisor().snapshot(HOST, buffer.desc() / PAGE, 0);
        ctx.report.equal(format_args!("a descriptor with a wrong {name}"), answer, Err(want));
        let kept = marked && marks.iter().all(|at| ctx.load(*at) == Ok(SECRET));
        ctx.report.check(format_args!("wrong {name}: no other page was taken"), kept, "one was");
    }
    buffer.give(ctx);
}

/// S-08: pages that are not the host's alone, as descriptor, root and link.
fn pages_of_others(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let Ok(Query { roots, .. }) = hyp.snapshot_query(HOST) else { return };
    let roots = u64::from(roots);
    let Some(buffer) = Buffer::take(ctx, roots, 4) else { return };
    let Some(own) = ctx.take(2, PAGE) else { return };
    let (lent, shared) = (own.start() / PAGE, own.start() / PAGE + 1);
    report.equal("a page is lent, one shared", [hyp.lend(lent, 1), hyp.share(shared)], [Ok(()); 2]);
    let carveout = ctx.board.carveouts().next().map_or(lent, |c| (c.start() + c.size() / 2) / PAGE);
    let victims = [
        ("the carve-out", carveout, Eperm),
        ("a lent page", lent, Eperm),
        ("a shared page", shared, Eperm),
        ("a device", ctx.board.console.unwrap_or(0) / PAGE, Erange),
        ("nothing", (1 << 36) - 1, Erange),
        ("no frame", 1 << 36, Erange),
    ];
    for (name, victim, errno) in victims {
        let answer = hyp.snapshot(HOST, victim, 0);
        report.equal(format_args!("{name} as descriptor"), answer, Err(error(errno, 0, 0)));
        for nth in 0..3 {
            buffer.write(ctx, buffer.request());
            let linked = ctx.store(buffer.table(nth), victim).is_ok();
            let answer = hyp.snapshot(HOST, buffer.desc() / PAGE, 0);
            let want = Err(error(errno, 0, 2 + roots + nth));
            report.equal(format_args!("{name} behind page {nth} of a chain"), (linked, answer), (true, want));
        }
        if victim & (roots - 1) == 0 || victim == 1 << 36 {
            buffer.write(ctx, Request { pgd_pfn: victim, ..buffer.request() });
            let answer = hyp.snapshot(HOST, buffer.desc() / PAGE, 0);
            report.equal(format_args!("{name} as root"), answer, Err(error(errno, 0, 1)));
        }
    }
    for carveout in ctx.board.carveouts() {
        ctx.expect_refused("the carve-out is still EL2's", Access::Load, carveout.start());
    }
    ctx.expect_refused("the lent page is still lent", Access::Load, own.start());
    report.equal("both come back", [hyp.take_back(lent, 1), hyp.unshare(shared)], [Ok(()); 2]);
    // A page twice.
    buffer.write(ctx, buffer.request());
    let linked = ctx.store(buffer.table(1), buffer.table(0) / PAGE);
    let answer = hyp.snapshot(HOST, buffer.desc() / PAGE, 0);
    report.equal("a chain that bites its tail", (linked, answer), (Ok(()), Err(error(Eperm, 0, 3 + roots))));
    expect_zero(ctx, "a chain that bites its tail", &buffer, 2);
    buffer.give(ctx);
}

/// S-14: the rest of a block that a page was taken from stays the host's.
fn blocks(ctx: &Ctx<'_>) {
    let Ok(Query { roots, .. }) = ctx.hypervisor().snapshot_query(HOST) else { return };
    let Some(block) = ctx.take(BLOCK / PAGE, BLOCK) else { return };
    let written = block.pages().all(|page| ctx.store(page + 8, page).is_ok());
    let Some(buffer) = Buffer::take(ctx, roots.into(), 64) else { return };
    // The descriptor lies in the middle of the block.
    let desc = block.start() + BLOCK / 2;
    buffer.write(ctx, buffer.request());
    let moved =
        (0..8).all(|n| ctx.load(buffer.desc() + 8 * n).and_then(|w| ctx.store(desc + 8 * n, w)).is_ok());
    let answer = ctx.hypervisor().snapshot(HOST, desc / PAGE, 0);
    ctx.report.check("a snapshot from the middle of a block", answer.is_ok(), format_args!("{answer:x?}"));
    let others = block.pages().filter(|page| *page != desc);
    let kept = written && moved && others.clone().all(|page| ctx.load(page + 8) == Ok(page));
    ctx.report.check("the other pages of the block are untouched", kept, "one is not");
    buffer.give(ctx);
}

/// S-19.
fn arguments(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    for flags in [2, 1 << 32, 1 << 63] {
        report.equal("an unknown flag", hyp.snapshot(HOST, 0x4_0000, flags), Err(error(Einval, 0, 0)));
    }
    for target in [1, 0xffff, 0x1_0000, u64::MAX] {
        report.equal("no such VM", hyp.snapshot(target, 0x4_0000, 0), Err(error(Enoent, 0, 0)));
        report.equal("no such VM to ask about", hyp.snapshot_query(target), Err(CallError::Errno(Enoent)));
    }
}

/// S-10, S-11: of the other CPUs one rewrites descriptor and chain, one lends and shares pages of the
/// chain, and the rest take snapshots of their own. A call that found another CPU's snapshot under way
/// is no round: it looked at nothing. Those take one snapshot each for a round, so one comes.
fn races(ctx: &Ctx<'_>) {
    let rounds = ctx.args.number("rounds", 200);
    if !ctx.start_all_cpus() || ctx.board.cpus.len() < 2 {
        ctx.report.skip("races", "one CPU");
        return;
    }
    let Ok(Query { roots, tables, .. }) = ctx.hypervisor().snapshot_query(HOST) else { return };
    let mine = Buffer::take(ctx, roots.into(), dump::with_slack(tables.into()));
    let theirs = Buffer::take(ctx, roots.into(), dump::with_slack(tables.into()));
    let (Some(mine), Some(theirs)) = (mine, theirs) else { return };
    let (done, odd, worked) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (given, met) = (AtomicU64::new(0), AtomicU64::new(0));
    let role = |cpu: usize| (cpu + ctx.board.cpus.len() - ctx.boot_cpu) % ctx.board.cpus.len();
    ctx.machine.run_on(&ctx.all_cpus(), &|cpu| {
        if role(cpu) == 0 {
            while met.load(Ordering::Relaxed) < rounds {
                let answer = mine.snapshot(ctx, HOST);
                worked.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
                odd.fetch_add(u64::from(!is_fair(answer)), Ordering::Relaxed);
                let busy =
                    matches!(answer, Err(SnapshotRefused { error: CallError::Errno(Errno::Ebusy), .. }));
                met.fetch_add(u64::from(!busy), Ordering::Relaxed);
            }
            done.store(true, Ordering::Relaxed);
            return;
        }
        let mut n = 0_u64;
        while !done.load(Ordering::Relaxed) {
            n += 1;
            if role(cpu) == 1 {
                // A store that faults met a page that EL2 had.
                let links = [END, mine.desc() / PAGE, mine.root(0) / PAGE, mine.table(1) / PAGE, n % 7];
                let places = [mine.desc() + 0x18, mine.desc() + 0x10, mine.table(n % mine.tables())];
                let link = links.into_iter().cycle().nth((n % 5) as usize).unwrap_or(END);
                let place = places.into_iter().cycle().nth((n % 3) as usize).unwrap_or(mine.desc());
                let _ = ctx.store(place, link);
                // Now and then a call comes through undisturbed.
                (0..n % 64 * 64).for_each(|_| core::hint::spin_loop());
            } else if role(cpu) == 2 {
                match give_and_take(ctx, mine.table(n % mine.tables()) / PAGE, n.is_multiple_of(2)) {
                    Some(true) => given.fetch_add(1, Ordering::Relaxed),
                    Some(false) => odd.fetch_add(1, Ordering::Relaxed),
                    None => 0,
                };
                (0..n % 64 * 64).for_each(|_| core::hint::spin_loop());
            } else {
                let before = met.load(Ordering::Relaxed);
                let answer = theirs.snapshot(ctx, HOST);
                odd.fetch_add(u64::from(!is_fair(answer)), Ordering::Relaxed);
                while met.load(Ordering::Relaxed) == before && !done.load(Ordering::Relaxed) {
                    core::hint::spin_loop();
                }
            }
        }
    });
    ctx.report.equal("races: every answer is one that the interface has", odd.into_inner(), 0);
    ctx.report.metric("snapshots_that_won", worked.into_inner(), "calls");
    if ctx.board.cpus.len() > 2 {
        let given = given.into_inner();
        ctx.report.check("races: pages of a chain were lent and shared meanwhile", given > 0, "none was");
    }
    let after = mine.snapshot(ctx, HOST);
    ctx.report.check("races: and then it works", after.is_ok(), format_args!("{after:x?}"));
    mine.give(ctx);
    theirs.give(ctx);
}

/// Lends or shares a page and takes it back: whether both answers are right; `None` if a snapshot has it.
fn give_and_take(ctx: &Ctx<'_>, pfn: u64, lend: bool) -> Option<bool> {
    let hyp = ctx.hypervisor();
    match if lend { hyp.lend(pfn, 1) } else { hyp.share(pfn) } {
        Ok(()) => Some(if lend { hyp.take_back(pfn, 1) } else { hyp.unshare(pfn) }.is_ok()),
        Err(CallError::Errno(Eperm)) => None,
        Err(_) => Some(false),
    }
}

/// True for an answer that a call may have while others do their worst.
fn is_fair(answer: Result<u64, SnapshotRefused>) -> bool {
    match answer {
        Ok(_) => true,
        Err(SnapshotRefused { error: CallError::Errno(e), .. }) => {
            matches!(e, Einval | Eperm | Erange | Enomem | Errno::Ebusy)
        }
        Err(_) => false,
    }
}
