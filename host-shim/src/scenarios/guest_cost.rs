//! What guests cost: instructions of EL2 for an exit, a fault, a call.
//!
//! A figure of a turn is all that passes between the host's HVC and its next instruction, less the
//! same loop without the call: EL2 both ways, and the two or three instructions of the guest.
#![forbid(unsafe_code)]

use super::Ctx;
use super::cost::instructions;
use super::guest::{Guests, kind, task};
use crate::hvc::CallError;
use crate::machine::{Before, Timed, TurnRun};
use crate::span::{BLOCK, PAGE};
use crate::vmm::{Exit, Stop, Vm, nobody};
use abi::HostFn;
use abi::exit::{Reason, Resp, word};
use abi::vm::ORDER_BLOCK;
use guest_shim::protocol::{self, Payload, SCRATCH, Start, UART, time};

pub(super) fn run(ctx: &Ctx<'_>) {
    if ctx.hypervisor().vm_finalise(0) == Err(CallError::NotSupported) {
        return ctx.report.skip("guests", "this hypervisor runs none");
    }
    let g = Guests::open(ctx);
    for protected in [false, true] {
        let name = if protected { "guest_exit_protected" } else { "guest_exit" };
        exit(&g, name, Payload::Idle, protected);
        fault(&g, protected);
        fault_of_blocks(&g, protected);
    }
    exit(&g, "guest_exit_keys", Payload::KeysIdle, true);
    for (name, payload, protected) in [
        ("guest_mmio", Payload::Load, false),
        ("guarded_read", Payload::Load, true),
        ("guarded_write", Payload::Store, true),
    ] {
        answered(&g, name, task(payload, protected, 0), Reason::Mmio);
    }
    calls(&g);
    super::vm_cost::run(&g);
    super::realm_cost::run(&g);
    super::mte_cost::run(&g);
    g.close();
}

/// A VM whose guest does `start`, at its first exit for `reason`; its vCPU is loaded here.
pub(super) fn at_exit<'v>(g: &'v Guests<'_>, start: Start, reason: Reason) -> Option<Vm<'v>> {
    let vm = g.vm(&g.vmm, start)?;
    // Not the faults by which it gets its own memory.
    let places = [0, SCRATCH, UART];
    let there = |exit: &Exit| exit.reason == reason && places.contains(&exit.gpa);
    let stop = vm.run(&[g.ctx.boot_cpu], &|_, _, exit| there(exit));
    g.expect(format_args!("{} is there", kind(start.kind.is_protected())), stop, Stop::Watcher);
    g.ok("its record", vm.write_record(0, word::GIC, 0));
    g.expect("load", g.hyp().vcpu_load(vm.handle, 0), Ok(()));
    Some(vm)
}

/// Instructions of one turn of `run`.
pub(super) fn per_turn(g: &Guests<'_>, name: &str, run: &TurnRun) -> u64 {
    let Timed { ticks, status } = g.ctx.machine.time_turns(run, true);
    g.expect(format_args!("{name} is timed"), status, 0);
    let loops = g.ctx.machine.time_turns(run, false).ticks;
    (instructions(g.ctx, ticks.saturating_sub(loops)) + run.count / 2) / run.count
}

pub(super) fn leave(g: &Guests<'_>, what: &str, vm: Vm<'_>) {
    g.expect("put", g.hyp().vcpu_put(), Ok(()));
    g.destroy(what, vm);
}

pub(super) fn metric(g: &Guests<'_>, name: &str, value: u64) {
    g.ctx.report.metric(name, value, "instructions");
}

pub(super) const TURNS: TurnRun =
    TurnRun { before: Before::Nothing, args: [0; 5], strides: [0; 3], count: 1000 };

fn exit(g: &Guests<'_>, name: &str, payload: Payload, protected: bool) {
    let Some(vm) = at_exit(g, task(payload, protected, 0), Reason::Wfx) else { return };
    metric(g, name, per_turn(g, name, &TURNS));
    leave(g, "a VM whose exits were timed", vm);
}

/// Exits for `reason`, which the host answers with DONE.
pub(super) fn answered(g: &Guests<'_>, name: &str, start: Start, reason: Reason) {
    let Some(vm) = at_exit(g, start, reason) else { return };
    g.ok("an answer that stays", vm.write_record(0, word::RESP, Resp::Done as u64));
    metric(g, name, per_turn(g, name, &TURNS));
    leave(g, "a VM whose answers were timed", vm);
}

/// New pages on fault: the first, which splits a block of the host's table, and the rest.
fn fault(g: &Guests<'_>, protected: bool) {
    const PAGES: u64 = 256;
    const HALF: u64 = PAGES / 2;
    let reason = if protected { Reason::MemFault } else { Reason::Mmio };
    let Some(vm) = at_exit(g, task(Payload::Touch, protected, 0), reason) else { return };
    let Some(block) = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK)) else { return };
    // The host has used it: its table maps the block.
    g.expect("the block is used", g.ctx.store(block.start() + BLOCK - 8, 1), Ok(()));
    g.ok("table pages", vm.top_up(4));
    let (call, by_call, name, first_name) = if protected {
        (
            HostFn::GuestDonate,
            "guest_fault_donated_by_call",
            "guest_fault_donated",
            "guest_fault_donated_split",
        )
    } else {
        (HostFn::GuestShare, "guest_fault_shared_by_call", "guest_fault_shared", "guest_fault_shared_split")
    };
    let Some(record) = vm.record(0) else { return };
    let (gfn, pfn) = (SCRATCH / PAGE, block.start() / PAGE);
    let run = |first, count| TurnRun {
        before: Before::Call(call.id()),
        args: [vm.handle, gfn + first, pfn + first, 0, 7],
        strides: [0, 1, 1],
        count,
    };
    metric(g, first_name, per_turn(g, first_name, &run(0, 1)));
    metric(g, by_call, per_turn(g, by_call, &run(1, HALF - 1)));
    // The same, answered by VCPU_RUN itself.
    let answer = TurnRun {
        before: Before::Store,
        args: [0, pfn + HALF, 0, 0, record + 8 * word::MMIO_DATA as u64],
        strides: [0, 1, 0],
        count: PAGES - HALF,
    };
    g.ok("an answer that stays", vm.write_record(0, word::RESP, Resp::Map as u64));
    metric(g, name, per_turn(g, name, &answer));
    for n in 0..PAGES {
        g.ok("the page is the VM's", vm.remember(SCRATCH + n * PAGE, pfn + n));
    }
    for n in PAGES..BLOCK / PAGE {
        g.drop_page(pfn + n);
    }
    leave(g, "a VM whose faults were timed", vm);
}

/// New blocks of 2 MiB on fault, which the host's table maps as such.
fn fault_of_blocks(g: &Guests<'_>, protected: bool) {
    const BLOCKS: u64 = 8;
    const STRIDE: u64 = BLOCK / PAGE;
    let (reason, call, name) = if protected {
        (Reason::MemFault, HostFn::GuestDonate, "guest_fault_donated_2m")
    } else {
        (Reason::Mmio, HostFn::GuestShare, "guest_fault_shared_2m")
    };
    let Some(vm) = at_exit(g, task(Payload::Touch, protected, 512), reason) else { return };
    let Some(blocks) = g.ok("blocks", g.vmm.take(BLOCKS * STRIDE, BLOCK)) else { return };
    g.ctx.machine.time_loads(blocks.start(), BLOCK, BLOCKS);
    g.ok("table pages", vm.top_up(4));
    let (gfn, pfn) = (SCRATCH / PAGE, blocks.start() / PAGE);
    let run = TurnRun {
        before: Before::Call(call.id()),
        args: [vm.handle, gfn, pfn, ORDER_BLOCK, 7],
        strides: [0, STRIDE, STRIDE],
        count: BLOCKS,
    };
    metric(g, name, per_turn(g, name, &run));
    for n in 0..BLOCKS * STRIDE {
        g.ok("the page is the VM's", vm.remember(SCRATCH + n * PAGE, pfn + n));
    }
    leave(g, "a VM whose faults for blocks were timed", vm);
}

/// Calls that EL2 answers, by the guest's own clock.
fn calls(g: &Guests<'_>) {
    let Some(vm) = g.vm(&g.vmm, task(Payload::Time, true, 0)) else { return };
    let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
    g.judge("calls are timed", &vm, stop);
    let ticks = |result| vm.mail(protocol::word::RESULTS + result).unwrap_or(0);
    for (name, result, calls, pages) in [
        ("guest_call", time::MEMINFO, time::COUNT, 1),
        ("guest_mem_share", time::SHARE, time::COUNT, 1),
        ("guest_mem_unshare", time::UNSHARE, time::COUNT, 1),
        ("guard_map", time::GUARD_MAP, time::COUNT, 1),
        ("guard_unmap", time::GUARD_UNMAP, time::COUNT, 1),
        ("guard_map_512_per_page", time::RGUARD_MAP, 1, time::RANGE),
        ("guard_unmap_512_per_page", time::RGUARD_UNMAP, 1, time::RANGE),
    ] {
        let loops = ticks(time::LOOP) * calls / time::COUNT;
        let total = instructions(g.ctx, ticks(result).saturating_sub(loops));
        metric(g, name, (total + calls * pages / 2) / (calls * pages));
    }
    g.destroy("a VM that timed calls", vm);
}
