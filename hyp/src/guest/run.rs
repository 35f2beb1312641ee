//! A turn of a vCPU: from the host's answer to the next exit that the host must hear of.
//!
//! Order: everything that can refuse the turn comes first and changes nothing but the list
//! registers, which each turn brings anew; then the vCPU is started if it waits for that, a page that
//! the host supplies changes hands or the turn is refused, the answer takes effect, and the guest runs
//! until something is the host's business. No lock is held while it runs; an exit that needs the VM
//! takes the VM's lock for that alone. Each turn ends at the next physical interrupt at the latest.
#![forbid(unsafe_code)]

use super::calls::{self, Call, Caller, MemoryCall, Regs, random_regs};
use super::context::Extra;
use super::cpu::{CpuState, runs_here};
use super::exit::{Abort, Exit};
use super::memory::{GuestCall, leaf};
use super::psci::Outcome;
use super::record::{Answer, ExitInfo, list_register};
use super::rsi;
use super::sysregs::{self, SysTrap};
use super::vcpu::{Pending, Reply, Vcpu};
use super::vms::{Config, Phase, Slot, Vm, Vms};
use crate::addr::Ipa;
use crate::error::Error;
use crate::hw::GuestMachine;
use crate::mem_protect::{GuestKind, Hypervisor};
use crate::mmio_guard::{Guard, GuardCall, Leaf, Route, route};
use crate::mte::{self, TagFault};
use crate::pgtable::Window;
use abi::exit::{ExitFlags, Resp};
use abi::{Errno, psci, smccc};

/// A turn that is on its way, and what it may use.
pub(super) struct Turn<'a, M: GuestMachine> {
    hyp: &'a Hypervisor<M>,
    pub(super) hw: &'a M,
    config: &'a Config,
    pub(super) slot: &'a Slot<M>,
    pub(super) window: &'a mut Window,
    pub(super) vcpu: &'a mut Vcpu,
    kind: GuestKind,
    ipa_bits: u32,
}

impl<M: GuestMachine> Vms<M> {
    /// VCPU_RUN: enters the vCPU that is loaded here; its exit record says why it came back.
    ///
    /// # Errors
    /// In this order, and nothing was entered. ENOENT: none is loaded. EINVAL: the host streams.
    /// EBUSY: the VM is not ACTIVE. EINVAL: list registers. EPERM: an abort on the guest's own
    /// memory. EBUSY: the vCPU is off. What [`Slot::supply`] says.
    pub fn vcpu_run(&self, hyp: &Hypervisor<M>, hw: &M, cpu: &mut CpuState<M>) -> Result<(), Error> {
        let config = self.config()?;
        let CpuState { window, loaded, last_ran } = cpu;
        let loaded = loaded.as_mut().ok_or(Errno::Enoent)?;
        let slot = self.slot(loaded.slot).ok_or(Errno::Eio)?;
        if hw.host_streams() {
            return Err(Errno::Einval.into());
        }
        slot.check_phase(&[Phase::Active])?;
        let vcpu = &mut *loaded.vcpu.vcpu;
        let answer = Answer::read(hw, vcpu.record.page());
        let (record, implemented) = (vcpu.record.page(), config.cpu.list_registers);
        vcpu.ctx
            .gic
            .supply(answer.nr_lr, answer.gic_hcr, implemented, |n| list_register(hw, record, n))
            .map_err(|()| Errno::Einval)?;
        vcpu.pending.check(&answer)?;
        if !vcpu.on {
            start(slot, hw, vcpu)?;
        }
        if matches!(answer.resp, Resp::Map) {
            slot.supply(hyp, hw, window, &mut vcpu.pending, answer.mmio_data)?;
        }

        let flush = core::mem::take(&mut loaded.after_another);
        if flush {
            runs_here(last_ran, loaded.slot, vcpu.idx);
        }
        let (kind, ipa_bits, stage2) = (loaded.kind, loaded.ipa_bits, loaded.stage2);
        let mut turn = Turn { hyp, hw, config, slot, window, vcpu, kind, ipa_bits };
        hw.load_guest(&mut turn.vcpu.ctx, &config.traps, stage2, flush);
        if !matches!(turn.vcpu.pending, Pending::Nothing) {
            turn.apply(&answer);
        }
        let exit = turn.run();
        hw.unload_guest(&mut turn.vcpu.ctx, hyp.host_context());
        if !matches!(exit, ExitInfo::MemFault { .. }) {
            turn.vcpu.other_exit();
        }
        let (ctx, page) = (&turn.vcpu.ctx, turn.vcpu.record.page());
        exit.write(hw, page, ctx.timer.deadline(), ctx.gic.used());
        if kind.is_protected() && !slot.is_in(Phase::Active) {
            loaded.vcpu.forget(hw);
        }
        Ok(())
    }
}

/// Starts a vCPU that its guest asked for.
///
/// # Errors
/// EBUSY: it is off, and nobody asked.
fn start<M: GuestMachine>(slot: &Slot<M>, hw: &M, vcpu: &mut Vcpu) -> Result<(), Errno> {
    let mut guard = slot.lock(hw);
    let vm = guard.as_mut().ok_or(Errno::Eio)?;
    let start = vm.vm.power.take_start(vcpu.idx).ok_or(Errno::Ebusy)?;
    vcpu.ctx.restart(vcpu.idx, start.pc, start.x0);
    vcpu.on = true;
    Ok(())
}

impl<M: GuestMachine> Turn<'_, M> {
    /// Does `f` to the VM, locked.
    pub(super) fn vm<T>(&self, f: impl FnOnce(&mut Vm<M>) -> T) -> Option<T> {
        self.slot.with_vm(self.hw, f)
    }

    /// The VM makes no sense any more: nothing of it runs again.
    pub(super) fn die(&self) -> ExitInfo {
        self.slot.set_phase(Some(Phase::Dead));
        ExitInfo::Dead
    }

    /// What PSCI's CPU_ON returns, now that the host has answered.
    #[inline(never)]
    fn answer_cpu_on(&mut self, target: u8, accepted: bool) {
        let refused = !accepted && self.vm(|vm| vm.power.refuse_start(target)).unwrap_or(false);
        self.vcpu.ctx.set_x(0, if refused { psci::INTERNAL_FAILURE } else { psci::SUCCESS });
    }

    /// What the answer to the pending exit does to the loaded vCPU.
    fn apply(&mut self, answer: &Answer) {
        match self.vcpu.pending.reply(answer) {
            Reply::Done(transfer, data) => {
                self.vcpu.pending = Pending::Nothing;
                if let Some(value) = transfer.loaded(data) {
                    self.vcpu.ctx.set_x(transfer.rt(), value);
                }
                self.vcpu.ctx.skip_instruction();
            }
            other => self.apply_other(other),
        }
    }

    /// The same where no access is done.
    #[inline(never)]
    fn apply_other(&mut self, reply: Reply) {
        self.vcpu.pending = Pending::Nothing;
        match reply {
            Reply::Replay | Reply::Done(..) => {}
            Reply::Abort(abort) => self.vcpu.inject_abort(self.hw, &abort),
            Reply::CpuOn { target, accepted } => self.answer_cpu_on(target, accepted),
            Reply::Realm(resp) => self.answer_realm(resp),
        }
    }

    /// Runs the guest until the host must hear of it.
    #[inline(always)]
    fn run(&mut self) -> ExitInfo {
        loop {
            let raw = self.hw.enter_guest(&mut self.vcpu.ctx);
            let Some(pstate) = raw.pstate() else { return self.die() };
            self.vcpu.ctx.pstate = pstate;
            let exit = match Exit::classify(&raw, || self.hw.fault_address()) {
                Exit::Hvc { zero: true } => self.call(),
                Exit::Abort { abort, ipa } => self.abort(abort, ipa),
                Exit::Irq => Some(ExitInfo::Irq { serror: false }),
                Exit::SError => Some(ExitInfo::Irq { serror: true }),
                Exit::Fp => {
                    self.hw.load_fp(&mut self.vcpu.ctx);
                    None
                }
                Exit::Keys => self.first_key(),
                Exit::Sys(trap) => self.system_register(trap, raw.esr),
                Exit::Wfx { wfe } => {
                    self.vcpu.ctx.skip_instruction();
                    Some(ExitInfo::Wfx { wfe })
                }
                Exit::Hvc { zero: false } => self.not_supported(),
                Exit::Smc { zero } => {
                    // A trapped SMC has not been executed, an HVC has.
                    self.vcpu.ctx.skip_instruction();
                    if zero && self.kind.is_split() { self.secure_call() } else { self.not_supported() }
                }
                Exit::Unknown => {
                    self.vcpu.inject_undefined(self.hw);
                    None
                }
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    fn not_supported(&mut self) -> Option<ExitInfo> {
        self.vcpu.ctx.set_x(0, smccc::NOT_SUPPORTED);
        None
    }

    /// From here on the guest has its keys, or no use of them on a CPU without.
    #[cold]
    fn first_key(&mut self) -> Option<ExitInfo> {
        if self.config.cpu.has.pauth {
            self.vcpu.ctx.extra |= Extra::KEYS;
            self.hw.load_keys(&self.vcpu.ctx);
        } else {
            self.vcpu.inject_undefined(self.hw);
        }
        None
    }

    #[inline(never)]
    fn system_register(&mut self, trap: SysTrap, esr: u64) -> Option<ExitInfo> {
        match sysregs::access(trap, &mut self.vcpu.ctx, &self.config.cpu, self.ipa_bits) {
            sysregs::Outcome::Done => None,
            sysregs::Outcome::Keys => self.first_key(),
            sysregs::Outcome::Sgi(value) => Some(ExitInfo::Sgi { value }),
            sysregs::Outcome::Denied if self.kind.is_protected() => {
                self.vcpu.inject_undefined(self.hw);
                None
            }
            sysregs::Outcome::Denied => Some(ExitInfo::Trap { esr }),
        }
    }

    #[inline(never)]
    fn abort(&mut self, abort: Abort, ipa: Option<u64>) -> Option<ExitInfo> {
        // Without MTE in the VM no access is one to tags.
        if self.vcpu.ctx.extra.contains(Extra::TAGS) && abort.syndrome.is_tag_access() {
            return self.tag_access(abort);
        }
        let ipa = ipa.or_else(|| self.hw.translate(abort.far));
        let look = |ipa| {
            let found = self.vm(|vm| (vm.guard, leaf(self.hw, vm, ipa, abort.syndrome)));
            found.unwrap_or((Guard::of(self.kind), Leaf::Corrupt))
        };
        match route(abort.syndrome, ipa, self.ipa_bits, self.kind, look) {
            Route::Resume => None,
            Route::SetAccessFlag(ipa) => {
                let set = |vm: &mut Vm<M>| self.hyp.guest_access(self.hw, &vm.guest, ipa).is_ok();
                if self.vm(set) == Some(true) { None } else { Some(self.die()) }
            }
            Route::Skip => {
                self.vcpu.ctx.skip_instruction();
                None
            }
            Route::Mmio(access) => {
                self.vcpu.pending = Pending::Mmio(access, abort);
                let data = access.transfer.shown(self.vcpu.ctx.x(access.transfer.rt()));
                Some(ExitInfo::Mmio { access, data })
            }
            Route::MemFault(page, flags) => Some(self.vcpu.mem_fault(page, flags, Some(abort))),
            Route::ExternalAbort => {
                self.vcpu.inject_abort(self.hw, &abort);
                None
            }
            Route::AddressSize => {
                self.vcpu.inject_address_size(self.hw, &abort);
                None
            }
            Route::Corrupt => Some(self.die()),
        }
    }

    /// An access to the tags of a page that had none when the CPU looked.
    #[inline(never)]
    fn tag_access(&mut self, abort: Abort) -> Option<ExitInfo> {
        // A guest that has changed its tables since finds out by trying again.
        let ipa = self.hw.translate(abort.far).filter(|ipa| ipa >> self.ipa_bits == 0)?;
        let page = Ipa::truncated(ipa).frame().base();
        match self.vm(|vm| mte::tag_fault(self.hw, &vm.guest, page)) {
            Some(Ok(TagFault::Exit(flags))) => Some(self.vcpu.mem_fault(page, flags, Some(abort))),
            Some(Ok(TagFault::Resume)) => None,
            Some(Err(_)) | None => Some(self.die()),
        }
    }

    /// A guest's HVC #0, which PC is behind.
    #[inline(always)]
    fn call(&mut self) -> Option<ExitInfo> {
        let Some(regs) = calls::info(&self.vcpu.ctx.x, self.kind) else { return self.other_call() };
        regs.put(&mut self.vcpu.ctx.x);
        None
    }

    #[inline(never)]
    fn other_call(&mut self) -> Option<ExitInfo> {
        let caller = Caller { kind: self.kind, ipa_bits: self.ipa_bits };
        self.serve(calls::decode(&self.vcpu.ctx.x, caller, &self.config.services))
    }

    /// An SMC #0 of a guest with split IPA, which PC is behind.
    #[inline(never)]
    fn secure_call(&mut self) -> Option<ExitInfo> {
        self.serve(rsi::decode(&self.vcpu.ctx.x, self.ipa_bits, &self.config.services))
    }

    #[inline(always)]
    fn serve(&mut self, call: Call) -> Option<ExitInfo> {
        match call {
            Call::Answer(regs) => regs.put(&mut self.vcpu.ctx.x),
            Call::Psci(function, args) => return self.psci(function, args),
            Call::Memory(call) => return self.memory(call),
            Call::Guard(call) => return self.guard(call),
            Call::Rsi(call) => return self.realm_service(call),
            Call::Workaround(id) => {
                self.hw.workaround(id);
                self.vcpu.ctx.set_x(0, smccc::SUCCESS);
            }
            Call::Random { bits, wide } => self.random(bits, wide).put(&mut self.vcpu.ctx.x),
        }
        None
    }

    fn random(&self, bits: u32, wide: bool) -> Regs {
        let mut words = [0; 3];
        let width = if wide { 64 } else { 32 };
        for word in words.iter_mut().take(usize::try_from(bits.div_ceil(width)).unwrap_or(3)) {
            let Some(random) = self.hw.random() else {
                return Regs::Four([abi::guest::trng::NO_ENTROPY, 0, 0, 0]);
            };
            *word = random;
        }
        random_regs(bits, wide, words)
    }

    fn psci(&mut self, function: u32, args: [u64; 3]) -> Option<ExitInfo> {
        // A vCPU starts in memory that is the guest's own.
        let bits = self.ipa_bits.saturating_sub(u32::from(self.kind.is_split()));
        let me = self.vcpu.idx;
        let Some(outcome) = self.vm(|vm| vm.power.call(function, args, me, bits)) else {
            return Some(self.die());
        };
        let mut target = None;
        match outcome {
            None => return self.not_supported(),
            Some(Outcome::Answer(x0)) => {
                self.vcpu.ctx.set_x(0, x0);
                return None;
            }
            Some(Outcome::CpuOn { target: cpu }) => {
                self.vcpu.pending = Pending::CpuOn { target: cpu };
                target = Some(cpu);
            }
            Some(Outcome::CpuOff) => self.vcpu.on = false,
            Some(Outcome::Suspend) => self.vcpu.ctx.set_x(0, psci::SUCCESS),
            Some(Outcome::SystemOff | Outcome::SystemReset) => {
                // Neither returns; a host that goes on all the same goes on behind a failure.
                self.vcpu.ctx.set_x(0, psci::INTERNAL_FAILURE);
                if self.kind.is_protected() {
                    self.slot.set_phase(Some(Phase::Stopped));
                }
            }
        }
        Some(ExitInfo::Psci { function, target })
    }

    fn memory(&mut self, call: MemoryCall) -> Option<ExitInfo> {
        let outcome = self.vm_call(call);
        self.settle(outcome, true)
    }

    fn guard(&mut self, call: GuardCall) -> Option<ExitInfo> {
        let outcome = self.vm(|vm| vm.guard_call(self.hyp, self.hw, call));
        self.settle(outcome.unwrap_or(GuestCall::Corrupt), call.counts())
    }

    /// Answers a call about the guest's own memory: with a status, and the pages that are done if it
    /// `counts` them.
    fn settle(&mut self, outcome: GuestCall, counts: bool) -> Option<ExitInfo> {
        let regs = |status, pages| if counts { Regs::Two(status, pages) } else { Regs::One(status) };
        let (done, exit) = match outcome {
            GuestCall::Done { pages, relinquished } => (
                Some(regs(smccc::SUCCESS, pages)),
                relinquished.map(|(base, top)| ExitInfo::Relinquished { base, top }),
            ),
            GuestCall::Refused => (Some(regs(smccc::INVALID_PARAMETER, 0)), None),
            GuestCall::Absent(page) => (None, Some(self.vcpu.mem_fault(page, ExitFlags::PRIVATE, None))),
            GuestCall::NoTag(page) => (None, Some(self.vcpu.mem_fault(page, mte::exit_flags(true), None))),
            GuestCall::NeedMem(pages) => (None, Some(ExitInfo::NeedMem { pages })),
            GuestCall::Corrupt => (None, Some(self.die())),
        };
        match done {
            Some(regs) => regs.put(&mut self.vcpu.ctx.x),
            // The call replays: PC goes back onto the HVC, x0..x3 are as they were.
            None => self.vcpu.ctx.pc = self.vcpu.ctx.pc.wrapping_sub(4),
        }
        exit
    }

    fn vm_call(&mut self, call: MemoryCall) -> GuestCall {
        let (hyp, hw) = (self.hyp, self.hw);
        let mut guard = self.slot.lock(hw);
        match guard.as_mut() {
            Some(boxed) => boxed.vm.memory_call(hyp, hw, self.window, call),
            None => GuestCall::Corrupt,
        }
    }
}
