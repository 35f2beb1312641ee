//! What ties guests to this machine: what they see of it, each CPU's share, and the host's calls.

use super::percpu::PerCpu;
use super::{Hw, IMAGE, Running, features};
use abi::{HostFn, smccc as arch};
use hyp::guest::calls::Services;
use hyp::guest::idregs::GuestCpu;
use hyp::guest::{Config, CpuState};
use hyp::hcall::{self, HostRegs};
use hyp::hw::Machine;
use hyp::pgtable;
use smccc::{Call, Smc};

/// Makes each CPU's share, and says what guests see. A machine without GICv3 runs none: a guest's
/// interrupts go through list registers.
///
/// # Errors
/// No table page for a window.
pub(super) fn start(running: &Running) -> Result<(), pgtable::Error> {
    for (index, cpu) in (0..).zip(running.cpus) {
        *cpu.guests.lock() = Some(CpuState::new(running.state.window(running.hw(), index)?));
    }
    let host = &running.el2().host;
    if host.gic.is_some() {
        let services = Services { workarounds: firmware_workarounds(), random: host.has().rng };
        let cpu = GuestCpu::new(&features::id_registers());
        IMAGE.vms.start(Config::new(running.hw().features(), cpu, services));
    }
    Ok(())
}

/// What firmware says of ARCH_WORKAROUND_1 to 3; one that knows none of this says NOT_SUPPORTED.
fn firmware_workarounds() -> [Option<u64>; 3] {
    [arch::ARCH_WORKAROUND_1, arch::ARCH_WORKAROUND_2, arch::ARCH_WORKAROUND_3].map(|id| {
        let [answer, ..] = Smc::call32(arch::ARCH_FEATURES, [id, 0, 0, 0, 0, 0, 0]);
        Some(i64::from(answer.cast_signed()).cast_unsigned())
    })
}

/// Answers a host call on this CPU.
#[inline]
pub(super) fn host_call(running: &Running, regs: &mut HostRegs) {
    if hcall::vm::is_run(regs) { vcpu_run(running, regs) } else { other_call(running, regs) }
}

#[inline(never)]
fn other_call(running: &Running, regs: &mut HostRegs) {
    match hcall::function(regs) {
        Some(function) if hcall::concerns_vm(function) => vm_call(running, Some(function), regs),
        function => hosts_own(running, function, regs),
    }
}

#[inline(never)]
fn vcpu_run(running: &Running, regs: &mut HostRegs) {
    with_share(|share| hcall::vm::run(&running.state, &IMAGE.vms, running.hw(), share, regs));
}

#[inline(never)]
fn hosts_own(running: &Running, function: Option<HostFn>, regs: &mut HostRegs) {
    if !function.is_some_and(|function| hcall::answer(&running.state, running.hw(), function, regs)) {
        vm_call(running, function, regs);
    }
}

#[inline(never)]
fn vm_call(running: &Running, function: Option<HostFn>, regs: &mut HostRegs) {
    let answer =
        |share: &mut _| hcall::vm::answer(&running.state, &IMAGE.vms, running.hw(), share, function, regs);
    if with_share(answer) != Some(true)
        && let Some(x0) = regs.first_mut()
    {
        *x0 = arch::NOT_SUPPORTED;
    }
}

/// What this CPU has of guests, taken by the call that is being answered.
fn with_share<T>(f: impl FnOnce(&mut CpuState<Hw>) -> T) -> Option<T> {
    let mut share = PerCpu::current()?.guests.lock();
    share.as_mut().map(f)
}

/// Before this CPU goes off: the vCPU that it has loaded can be loaded elsewhere.
pub(super) fn put(running: &Running) {
    // ENOENT: nothing is loaded.
    let _ = with_share(|share| IMAGE.vms.vcpu_put(running.hw(), share));
}

/// Before firmware ends the machine: RAM outlives a reset, secrets in it must not.
pub(super) fn scrub(running: &Running) {
    let shares = running.cpus.iter().map(|cpu| &cpu.guests);
    with_share(|share| IMAGE.vms.scrub(&running.state, running.hw(), share, shares));
}
