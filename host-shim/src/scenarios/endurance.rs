//! `endurance`: what a host does all day, so often that a page lost each time would be missed.
//!
//! `vms=N` (default 200) VMs of every kind are made, run and taken apart; `snapshots=N` (20) of the host's table and of
//! a VM's are taken; `shares=N` (20000) pages are shared and unshared, half of them by the host with the hypervisor,
//! half by a guest with the host. Each of the three is divided into tenths, behind each of which there is an audit:
//! every page has the owner that it had behind the first tenth, and of the pool of host tables no more is in use.
#![forbid(unsafe_code)]

use super::Ctx;
use super::guest::{Guests, task};
use crate::dump::{Buffer, is_there, with_slack};
use crate::inspect::{Census, Inspector};
use crate::machine::CallRun;
use crate::span::{PAGE, Span};
use crate::vmm::{Shape, Spec, Stop, Vm, VmmError, nobody};
use abi::inspect::Figure;
use abi::snapshot::HOST;
use abi::{HostFn, psci};
use core::fmt::Display;
use guest_shim::protocol::{IMAGE, Payload, VmKind};

/// Parts of each of the three.
const PARTS: u64 = 10;
/// Pages that are shared with the hypervisor at once.
const ARENA: u64 = 256;
/// RAM of a VM that comes and goes.
const RAM: u64 = 1 << 20;

pub(super) fn run(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let number = |key, default| ctx.args.number(key, default).div_ceil(PARTS).max(1);
    let (vms, snapshots, shares) = (number("vms", 200), number("snapshots", 20), number("shares", 20_000));
    each_tenth(ctx, "vms", |part| (0..vms).all(|n| come_and_go(&g, part * vms + n)));
    if is_there(ctx) {
        take_snapshots(&g, snapshots);
    } else {
        ctx.report.skip("snapshots", "this hypervisor takes none");
    }
    if let Some(arena) = ctx.take(ARENA, PAGE) {
        each_tenth(ctx, "shares", |_| {
            share_with_hypervisor(ctx, arena, shares / 2) && share_with_host(&g, shares / 2)
        });
        let freed = ctx.pages.lock().give(arena);
        ctx.report.check("the arena is free again", freed.is_ok(), "no room to say so");
    }
    g.close();
}

/// What an audit says between two tenths.
#[derive(Clone, Copy, Debug)]
struct Sample {
    census: Census,
    /// Pages of the pool that are tables.
    tables: u64,
}

fn sample(ctx: &Ctx<'_>) -> Option<Sample> {
    let inspector = Inspector::new(ctx.hypervisor())?;
    match inspector.audit() {
        Ok(census) => {
            let pool = census.get(Figure::HypTablePool) + census.get(Figure::HypLent);
            Some(Sample { census, tables: pool - census.get(Figure::TablesFree) })
        }
        Err(e) => {
            ctx.report.fail("audit between two tenths", e);
            None
        }
    }
}

/// Does something ten times; nothing may be other behind the last than behind the first.
fn each_tenth(ctx: &Ctx<'_>, name: &str, tenth: impl Fn(u64) -> bool) {
    let (mut first, mut began) = (None::<Sample>, ctx.machine.ticks());
    for part in 0..PARTS {
        if !tenth(part) {
            ctx.report.fail(format_args!("{name}: tenth {part}"), "see above");
            return;
        }
        let now = ctx.machine.ticks();
        let millis = now.wrapping_sub(began) * 1000 / ctx.machine.frequency().max(1);
        began = now;
        let Some(sample) = sample(ctx) else {
            ctx.report.step(format_args!("{name}: tenth {part} took {millis} ms"));
            continue;
        };
        ctx.report.step(format_args!("{name}: tenth {part} took {millis} ms, {} tables", sample.tables));
        ctx.report.metric(format_args!("{name}_tables_{part}"), sample.tables, "pages");
        match first {
            None => first = Some(sample),
            Some(first) => hold(ctx, format_args!("{name}, tenth {part}"), &first, &sample),
        }
    }
    ctx.report.pass(format_args!("{name}: ten tenths"));
}

fn hold(ctx: &Ctx<'_>, name: impl Display, first: &Sample, now: &Sample) {
    // Which free page of the pool is a table is no page's owner.
    let other = first.census.kept(&now.census).find(|(_, was, is)| was != is);
    ctx.report.check(
        format_args!("{name}: no page changed hands"),
        other.is_none(),
        format_args!("{other:?}"),
    );
    let grown = format_args!("{} tables, {} behind the first tenth", now.tables, first.tables);
    ctx.report.check(format_args!("{name}: no more tables"), now.tables <= first.tables, grown);
}

/// Number `n` of the VMs: two pages, one turn or some, and its end.
fn come_and_go(g: &Guests<'_>, n: u64) -> bool {
    let Some(kind) = VmKind::ALL.get(usize::try_from(n % 3).unwrap_or(0)) else { return false };
    match live(g, *kind) {
        Ok(Stop::Off) => true,
        other => {
            g.ctx.report.fail(format_args!("VM {n}, {kind:?}"), format_args!("{other:?}"));
            false
        }
    }
}

fn live(g: &Guests<'_>, kind: VmKind) -> Result<Stop, VmmError> {
    let ram = Span::new(IMAGE, RAM).ok_or(VmmError::NoMemory)?;
    let shape = Shape {
        kind,
        vcpus: 1,
        ram,
        pc: IMAGE,
        x0: psci::SYSTEM_OFF.into(),
        in_blocks: false,
        opened: true,
        pinned: false,
        listens: false,
        virtio_console: false,
        measured: kind == VmKind::Realm,
    };
    let vm = g.vmm.create_shape(&shape)?;
    vm.top_up(4)?;
    if kind == VmKind::Realm {
        vm.init_ripas()?;
    }
    put_code(g, &vm)?;
    vm.finalise()?;
    let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
    vm.destroy().map(|()| stop)
}

/// A guest that stores to its second page and turns itself off, with the call that x0 names.
fn put_code(g: &Guests<'_>, vm: &Vm<'_>) -> Result<(), VmmError> {
    const NEXT_PAGE: u32 = 0xb000_0001; // adrp x1, . + 4096
    const STORE: u32 = 0xf900_0020; // str x0, [x1]
    const HVC: u32 = 0xd400_0002;
    const SMC: u32 = 0xd400_0003;
    const STAY: u32 = 0x1400_0000; // b .
    let call = if vm.kind == VmKind::Realm { SMC } else { HVC };
    let page = g.vmm.take_page()?;
    g.vmm.fill(page, 0)?;
    for (n, [low, high]) in (0..).zip([[NEXT_PAGE, STORE], [call, STAY]]) {
        g.vmm.store(page * PAGE + 8 * n, u64::from(low) | u64::from(high) << 32)?;
    }
    vm.put(IMAGE, page)
}

fn take_snapshots(g: &Guests<'_>, snapshots: u64) {
    let Some(vm) = g.vm(&g.vmm, task(Payload::Idle, false, 0)) else { return };
    for (name, target) in [("host_snapshots", HOST), ("vm_snapshots", vm.handle)] {
        let Some(query) = g.ok(name, g.ctx.hypervisor().snapshot_query(target)) else { break };
        let tables = with_slack(query.tables.into());
        let Some(buffer) = Buffer::take(g.ctx, query.roots.into(), tables) else { break };
        each_tenth(g.ctx, name, |_| {
            (0..snapshots.div_ceil(2)).all(|_| {
                let taken = buffer.snapshot(g.ctx, target);
                taken.is_ok() || g.ctx.report.check(name, false, format_args!("{taken:?}"))
            })
        });
        buffer.give(g.ctx);
    }
    g.destroy("the VM of the snapshots", vm);
}

/// Shares each page of the arena and takes it back, `nr` times in all.
fn share_with_hypervisor(ctx: &Ctx<'_>, arena: Span, nr: u64) -> bool {
    let mut left = nr;
    while left > 0 {
        let count = left.min(ARENA);
        for call in [HostFn::HostShareHyp, HostFn::HostUnshareHyp] {
            let run = CallRun { id: call.id(), arg1: arena.start() / PAGE, stride: 1, arg2: 0, count };
            let timed = ctx.machine.time_calls(&run, true);
            if timed.status != 0 {
                ctx.report
                    .fail(call.name(), format_args!("x0 and x1 of all calls, ORed: {:#x}", timed.status));
                return false;
            }
        }
        left -= count;
    }
    true
}

/// Has a guest share a page with the host and take it back, `nr` times.
fn share_with_host(g: &Guests<'_>, nr: u64) -> bool {
    let start = task(Payload::Shares, true, u32::try_from(nr).unwrap_or(u32::MAX));
    let Some(vm) = g.ok("a guest that shares", g.vmm.create(&Spec { vcpus: 1, start })) else { return false };
    let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
    g.judge("a guest that shares", &vm, stop);
    g.ok("its end", vm.destroy()).is_some() && stop == Stop::Off
}
