//! What memory tags cost: a tag access that the host does nothing about, an upgrade, a donation to a
//! guest with MTE. Only where the CPU has MTE.
#![forbid(unsafe_code)]

use super::guest::{Guests, task};
use super::guest_cost::{leave, metric, per_turn};
use crate::machine::{Before, TurnRun};
use crate::span::{BLOCK, PAGE};
use crate::vmm::{Exit, Stop, Vm};
use abi::HostFn;
use abi::caps::Caps;
use abi::exit::{ExitFlags, Reason, word};
use abi::vm::{GuestProt, MtePolicy};
use guest_shim::protocol::{Payload, SCRATCH};

/// Pages that are upgraded.
const PAGES: u64 = 64;

pub(super) fn run(g: &Guests<'_>) {
    let has = g.hyp().caps().is_ok_and(|reply| reply.caps & Caps::MTE.bits() != 0);
    if !has {
        return;
    }
    let mte = Guests::open_with_tags(g.ctx, MtePolicy::Lazy, None);
    upgrades(&mte);
    donations(&mte);
    mte.close();
}

/// A VM at its first exit that `there` knows; its vCPU is loaded here.
fn at<'v>(g: &'v Guests<'_>, vm: Vm<'v>, there: impl Fn(&Exit) -> bool + Sync) -> Option<Vm<'v>> {
    let stop = vm.run(&[g.ctx.boot_cpu], &|_, _, exit| there(exit));
    g.expect("a guest with MTE is there", stop, Stop::Watcher);
    g.ok("its record", vm.write_record(0, word::GIC, 0))?;
    g.expect("load", g.hyp().vcpu_load(vm.handle, 0), Ok(()));
    Some(vm)
}

/// The guest wants the tags of one page for ever; behind it pages are upgraded.
fn upgrades(g: &Guests<'_>) {
    let Some(vm) = g.vm(&g.vmm, task(Payload::TagPages, true, 1)) else { return };
    let (Some(old), Some(new)) =
        (g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK)), g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK)))
    else {
        return;
    };
    let (first, old, new) = (SCRATCH / PAGE, old.start() / PAGE, new.start() / PAGE);
    for n in 0..PAGES {
        g.ok("a page without tags", vm.donate_without_tags(SCRATCH + n * PAGE, old + n, 0));
    }
    // The host's table is split by the first of them.
    let upgrade = || g.hyp().mte_upgrade(vm.handle, first + 1, new + 1).map_err(|(e, _)| e);
    g.ok("an upgrade", g.vmm.with_pool(upgrade));
    let Some(vm) = at(g, vm, |exit| exit.flags.contains(ExitFlags::TAG_ACCESS)) else { return };
    let turns = TurnRun { before: Before::Nothing, args: [0; 5], strides: [0; 3], count: 1000 };
    let turn = per_turn(g, "tag_access", &turns);
    metric(g, "tag_access", turn);
    let run = TurnRun {
        before: Before::Call(HostFn::MteUpgrade.id()),
        args: [vm.handle, first + 2, new + 2, 0, 0],
        strides: [0, 1, 1],
        count: PAGES - 2,
    };
    metric(g, "mte_upgrade", per_turn(g, "mte_upgrade", &run).saturating_sub(turn));
    for n in 1..PAGES {
        g.ok("the page is the VM's", vm.remember(SCRATCH + n * PAGE, new + n));
        g.drop_page(old + n);
    }
    for n in (0..1).chain(PAGES..BLOCK / PAGE) {
        g.drop_page(new + n);
    }
    for n in PAGES..BLOCK / PAGE {
        g.drop_page(old + n);
    }
    leave(g, "a VM whose upgrades were timed", vm);
}

/// As `guest_fault_donated`, with tags to zero.
fn donations(g: &Guests<'_>) {
    let Some(vm) = g.vm(&g.vmm, task(Payload::Touch, true, 0)) else { return };
    let Some(vm) = at(g, vm, |exit| exit.reason == Reason::MemFault && exit.gpa == SCRATCH) else { return };
    let Some(block) = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK)) else { return };
    g.expect("the block is used", g.ctx.store(block.end() - 8, 1), Ok(()));
    g.ok("table pages", vm.top_up(4));
    let (gfn, pfn) = (SCRATCH / PAGE, block.start() / PAGE);
    let prot = GuestProt::R | GuestProt::W | GuestProt::X;
    let run = |first, count| TurnRun {
        before: Before::Call(HostFn::GuestDonate.id()),
        args: [vm.handle, gfn + first, pfn + first, 0, prot.bits()],
        strides: [0, 1, 1],
        count,
    };
    let _first = per_turn(g, "a first donation", &run(0, 1));
    metric(g, "guest_fault_donated_mte", per_turn(g, "guest_fault_donated_mte", &run(1, PAGES)));
    for n in 0..=PAGES {
        g.ok("the page is the VM's", vm.remember(SCRATCH + n * PAGE, pfn + n));
    }
    for n in PAGES + 1..BLOCK / PAGE {
        g.drop_page(pfn + n);
    }
    leave(g, "a VM with MTE whose faults were timed", vm);
}
