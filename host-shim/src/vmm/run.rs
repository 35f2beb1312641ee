//! Running vCPUs: turns, exits and what is done about them.
//!
//! Any CPU runs any vCPU that nobody else runs: it loads it, runs it until it sleeps, yields or
//! goes off, and puts it. The host's timer ticks while it does, so a guest that spins comes back.
#![forbid(unsafe_code)]

use super::exit::WORDS;
use super::memory::Memory;
use super::meter::Moment;
use super::{Deed, Exit, Vm, VmmError, of};
use crate::hvc::{CallError, Hypervisor};
use crate::machine::Machine;
use crate::span::{BLOCK, PAGE, Span};
use ::vmm::{Effect, NoDevice, VcpuIndex, VcpuSet, Width};
use abi::exit::{ExitFlags, Reason, Resp, WANT_WFI, word};
use abi::vm::{ORDER_BLOCK, ORDER_PAGE, reg};
use abi::{Errno, psci};
use core::fmt;
use core::sync::atomic::Ordering;
use guest_shim::protocol::VmKind;

/// List registers that are used; every GICv3 with virtualisation that the tests run on has four.
const LIST_REGISTERS: usize = 4;

/// Why a VM does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest asked for SYSTEM_OFF.
    Off,
    /// The guest asked for SYSTEM_RESET.
    Reset,
    /// The VM is dead.
    Dead,
    /// The guest wants a page that the host took by force.
    Destroyed,
    /// The watcher said so.
    Watcher,
    /// The guest wants what it cannot have.
    Stray(u64),
    /// Something went wrong.
    Failed(VmmError),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(e) => write!(f, "{e}"),
            Self::Stray(ipa) => write!(f, "the guest wants memory at {ipa:#x}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl From<VmmError> for Stop {
    fn from(e: VmmError) -> Self {
        Self::Failed(e)
    }
}

/// Sees every exit, with the vCPU's index, before it is served; true stops the VM there.
pub type Watch<'w> = &'w (dyn Fn(&Vm<'_>, u64, &Exit) -> bool + Sync + 'w);

/// A watcher that lets everything pass.
#[must_use]
pub const fn nobody(_: &Vm<'_>, _: u64, _: &Exit) -> bool {
    false
}

/// One vCPU, as the host sees it.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) idx: u64,
    /// The same number, as the devices know it.
    index: VcpuIndex,
    /// Address of its exit record.
    pub(super) record: u64,
    off: bool,
    /// It waits for an interrupt; the counter value at which its timer fires.
    asleep: Option<u64>,
    /// The answer to its last exit.
    resp: Resp,
    mmio_data: u64,
    /// What it answers with MAP: where, and the frame.
    mapping: Option<(u64, u64)>,
}

impl Vcpu {
    pub(super) fn new(index: VcpuIndex, record: u64) -> Self {
        let idx = index.get() as u64;
        Self {
            idx,
            index,
            record,
            off: idx != 0,
            asleep: None,
            resp: Resp::Replay,
            mmio_data: 0,
            mapping: None,
        }
    }

    pub(super) fn answer(&mut self, resp: Resp, mmio_data: u64) {
        (self.resp, self.mmio_data) = (resp, mmio_data);
    }
}

/// What a vCPU does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Again,
    /// Others first.
    Yield,
}

/// Runs vCPUs of `vms` on this CPU until all of them have stopped.
pub fn serve(machine: &dyn Machine, vms: &[&Vm<'_>], watch: Watch<'_>) {
    while vms.iter().any(|vm| vm.stopped().is_none()) {
        machine.heed_kicks();
        let ran = vms.iter().filter(|vm| vm.serve_once(watch)).count();
        let patience = vms.iter().map(|vm| vm.patience()).min().unwrap_or(0);
        if ran == 0 && machine.wake_after(patience) {
            machine.wait();
        }
    }
    machine.cancel_wake();
}

impl Vm<'_> {
    fn hyp(&self) -> Hypervisor<'_> {
        self.vmm.hypervisor()
    }

    /// Runs the VM on `cpus` until it stops; one that a watcher stopped goes on where it was.
    pub fn run(&self, cpus: &[usize], watch: Watch<'_>) -> Stop {
        let machine = self.vmm.machine;
        self.go_on();
        if self.pinned {
            self.pin(cpus);
        }
        machine.run_on(cpus, &|_| serve(machine, &[self], watch));
        self.stop.lock().unwrap_or(Stop::Watcher)
    }

    /// A watcher's stop is over.
    pub fn go_on(&self) {
        self.stop.lock().take_if(|stop| *stop == Stop::Watcher);
    }

    /// Each vCPU runs on the CPU that has its place in `cpus`, and nowhere else; if they are fewer, everywhere.
    pub fn pin(&self, cpus: &[usize]) {
        let enough = self.vcpus.len() <= cpus.len();
        for (home, cpu) in self.homes.iter().zip(cpus) {
            home.store(if enough { cpu + 1 } else { 0 }, Ordering::Relaxed);
        }
    }

    /// Why it stopped, if it did.
    pub fn stopped(&self) -> Option<Stop> {
        *self.stop.lock()
    }

    /// Stops it, unless something else did before.
    pub fn halt(&self, why: Stop) {
        self.stop.lock().get_or_insert(why);
        (0..self.vcpus.len()).for_each(|vcpu| self.kick_vcpu(vcpu));
    }

    /// The CPU that runs a vCPU, where it is one.
    fn home(&self, vcpu: usize) -> Option<usize> {
        self.homes.get(vcpu).and_then(|home| home.load(Ordering::Relaxed).checked_sub(1))
    }

    /// Ticks that this CPU may wait where it has nothing to run: kicks and the timers of its own vCPUs are what it
    /// waits for; without CPUs of their own vCPUs are looked at often.
    fn patience(&self) -> u64 {
        let machine = self.vmm.machine;
        let own = |idx: &usize| self.home(*idx) == Some(machine.cpu());
        let Some(vcpu) = (0..self.vcpus.len()).find(own).and_then(|idx| self.vcpus.get(idx)) else {
            return machine.frequency() / if self.home(0).is_some() { 100 } else { 2000 };
        };
        let deadline = vcpu.try_lock().and_then(|vcpu| vcpu.asleep).unwrap_or(u64::MAX);
        deadline.saturating_sub(machine.ticks()).clamp(1, machine.frequency() / 100)
    }

    /// Runs each vCPU that can run for a while; false if there is none.
    fn serve_once(&self, watch: Watch<'_>) -> bool {
        let mut ran = false;
        for (idx, vcpu) in self.vcpus.iter().enumerate() {
            if self.home(idx).is_some_and(|home| home != self.vmm.machine.cpu()) {
                continue;
            }
            let Some(mut vcpu) = vcpu.try_lock() else { continue };
            if self.stopped().is_none() && self.runnable(&mut vcpu) {
                ran = true;
                if let Err(stop) = self.slice(&mut vcpu, watch) {
                    self.halt(stop);
                }
            }
        }
        ran
    }

    fn runnable(&self, vcpu: &mut Vcpu) -> bool {
        if vcpu.off {
            let mine = 1 << vcpu.idx;
            vcpu.off = self.starts.fetch_and(!mine, Ordering::AcqRel) & mine == 0;
        }
        self.listen();
        if let Some(deadline) = vcpu.asleep {
            self.timer_is(vcpu.index, deadline);
            if self.devices.lock().gic.wakes(vcpu.index) {
                vcpu.asleep = None;
            }
        }
        !vcpu.off && vcpu.asleep.is_none()
    }

    /// Brings the guest what has arrived at the host's console.
    fn listen(&self) {
        if !self.listens {
            return;
        }
        let Some(mut heard) = self.heard.try_lock() else { return };
        while let Some(character) = heard.take().or_else(|| self.vmm.machine.hear()) {
            let received = self.devices.lock().receive(character);
            match received {
                Ok(effect) => self.kick(effect.kick),
                Err(character) => {
                    *heard = Some(character);
                    return;
                }
            }
        }
    }

    /// Tells the interrupt controller whether the timer that fires at `deadline` has.
    fn timer_is(&self, vcpu: VcpuIndex, deadline: u64) {
        let fired = deadline <= self.vmm.machine.ticks();
        self.kick(self.devices.lock().gic.set_timer(vcpu, fired));
    }

    /// Something has changed for these vCPUs that they have to come back, or wake up, to see.
    pub(super) fn kick(&self, vcpus: VcpuSet) {
        let has = |idx: &usize| self.count.vcpu(*idx).is_some_and(|vcpu| vcpus.has(vcpu));
        (0..self.vcpus.len()).filter(has).for_each(|idx| self.kick_vcpu(idx));
    }

    /// The same for one. Without a CPU of its own it is looked at with the next tick of some CPU.
    fn kick_vcpu(&self, idx: usize) {
        if let Some(home) = self.home(idx).filter(|home| *home != self.vmm.machine.cpu()) {
            self.vmm.machine.kick(home);
        }
    }

    /// Loads a vCPU, runs it for a while, puts it.
    fn slice(&self, vcpu: &mut Vcpu, watch: Watch<'_>) -> Result<(), Stop> {
        let machine = self.vmm.machine;
        let before = Moment::now(machine);
        match self.hyp().vcpu_load(self.handle, vcpu.idx) {
            Ok(()) => self.meter.switched(machine, before),
            // Another CPU's vCPU has ended the VM, and that CPU is about to say so.
            Err(CallError::Errno(Errno::Ebusy)) => return self.wait_for_the_end("VCPU_LOAD"),
            Err(e) => return Err(of("VCPU_LOAD")(e).into()),
        }
        let result = loop {
            match self.turn(vcpu, watch) {
                Ok(Next::Again) if self.stopped().is_none() => {}
                Ok(_) => break Ok(()),
                Err(stop) => break Err(stop),
            }
        };
        machine.set_guest_timer_active(false);
        let before = Moment::now(machine);
        let put = self.hyp().vcpu_put();
        self.meter.switched(machine, before);
        result.and(put.map_err(|e| of("VCPU_PUT")(e).into()))
    }

    /// The hypervisor says that the VM does not run any more: one of its exits must say why.
    fn wait_for_the_end(&self, what: &'static str) -> Result<(), Stop> {
        let machine = self.vmm.machine;
        let until = machine.ticks() + 10 * machine.frequency();
        while self.stopped().is_none() {
            if machine.ticks() > until {
                return Err(of(what)(CallError::Errno(Errno::Ebusy)).into());
            }
            core::hint::spin_loop();
        }
        Ok(())
    }

    /// One VCPU_RUN and what follows from it.
    fn turn(&self, vcpu: &mut Vcpu, watch: Watch<'_>) -> Result<Next, Stop> {
        let machine = self.vmm.machine;
        let turn = if self.home(0).is_some() { 100 } else { 1000 };
        machine.wake_after(machine.frequency() / turn);
        machine.heed_kicks();
        self.write_answer(vcpu)?;
        let entered = Moment::now(machine);
        match self.enter(vcpu) {
            Ok(()) => {}
            Err(VmmError::Call(_, CallError::Errno(Errno::Ebusy))) => {
                return self.wait_for_the_end("VCPU_RUN").map(|()| Next::Yield);
            }
            Err(e) => return Err(e.into()),
        }
        let left = Moment::now(machine);
        let exit = self.read_exit(vcpu)?;
        if let (Some(entered), Some(left)) = (entered, left) {
            self.meter.ran(machine, exit.reason, entered, left);
        }
        vcpu.answer(Resp::Replay, 0);
        self.count(exit.reason);
        if watch(self, vcpu.idx, &exit) {
            return Err(Stop::Watcher);
        }
        let served = Moment::now(machine);
        let next = self.deal_with(vcpu, &exit);
        self.meter.served(machine, exit.reason, served);
        next
    }

    /// What the host's conduct makes of an exit.
    fn deal_with(&self, vcpu: &mut Vcpu, exit: &Exit) -> Result<Next, Stop> {
        match self.conduct.deed(self, vcpu.idx, exit) {
            Deed::Serve => self.serve_exit(vcpu, exit),
            Deed::ServeAs(other) => self.serve_exit(vcpu, &other),
            Deed::ServeAndSay(resp, data) => {
                let next = self.serve_exit(vcpu, exit)?;
                if vcpu.resp == Resp::Replay {
                    vcpu.answer(resp, data);
                }
                Ok(next)
            }
            Deed::Say(resp, data) => {
                vcpu.answer(resp, data);
                Ok(Next::Yield)
            }
        }
    }

    /// VCPU_RUN; a page that the answer was to supply and that was not taken is the host's as before.
    fn enter(&self, vcpu: &mut Vcpu) -> Result<(), VmmError> {
        let hyp = self.hyp();
        let entered = self.with_tables("VCPU_RUN", || hyp.vcpu_run_with_page());
        if let Some((ipa, pfn)) = vcpu.mapping.take() {
            // Who looks into the record finds no answer that has been given.
            self.vmm.store(vcpu.record + 8 * word::RESP as u64, Resp::Replay as u64)?;
            if entered.is_err() {
                self.memory.lock().set(ipa, None)?;
                self.vmm.free_page(pfn)?;
            }
        }
        entered
    }

    fn write_answer(&self, vcpu: &Vcpu) -> Result<(), VmmError> {
        let at = |word: usize| vcpu.record + 8 * word as u64;
        let set = |word, value| self.vmm.store(at(word), value);
        set(word::RESP, vcpu.resp as u64)?;
        set(word::MMIO_DATA, vcpu.mmio_data)?;
        let mut devices = self.devices.lock();
        let listing = devices.gic.list(vcpu.index, LIST_REGISTERS);
        self.vmm.machine.set_guest_timer_active(devices.gic.timer_held(vcpu.index));
        drop(devices);
        set(word::GIC, listing.registers.len() as u64 | u64::from(listing.hcr) << 32)?;
        // Those that are not used are 0, so that what is read back later is what the guest left.
        for n in 0..LIST_REGISTERS {
            set(word::LR + n, listing.registers.get(n).copied().unwrap_or(0))?;
        }
        Ok(())
    }

    fn read_exit(&self, vcpu: &Vcpu) -> Result<Exit, VmmError> {
        let at = |word: usize| self.vmm.load(vcpu.record + 8 * word as u64);
        let mut words = [0; WORDS];
        for (n, word) in words.iter_mut().enumerate() {
            *word = at(n)?;
        }
        let mut lrs = [0; LIST_REGISTERS];
        for (n, lr) in lrs.iter_mut().enumerate() {
            *lr = at(word::LR + n)?;
        }
        let exit = Exit::from_words(&words)?;
        let fired = exit.vtimer <= self.vmm.machine.ticks();
        let mut devices = self.devices.lock();
        devices.gic.fold(vcpu.index, &lrs);
        let kick = devices.gic.set_timer(vcpu.index, fired);
        drop(devices);
        self.kick(kick);
        Ok(exit)
    }

    fn serve_exit(&self, vcpu: &mut Vcpu, exit: &Exit) -> Result<Next, Stop> {
        match exit.reason {
            Reason::Irq => Ok(Next::Yield),
            Reason::Wfx => {
                if exit.want == WANT_WFI {
                    vcpu.asleep = Some(exit.vtimer);
                }
                Ok(Next::Yield)
            }
            Reason::Psci => self.psci(vcpu, exit),
            Reason::Mmio => Ok(self.mmio(vcpu, exit)),
            Reason::MemFault => self.fault(vcpu, exit),
            Reason::NeedMem => {
                self.top_up(exit.need_pages.into())?;
                Ok(Next::Again)
            }
            Reason::Dead => Err(Stop::Dead),
            Reason::Sgi => {
                self.kick(self.devices.lock().gic.send_sgi(vcpu.index, exit.data));
                Ok(Next::Again)
            }
            Reason::Relinquished => {
                self.take_relinquished(exit)?;
                Ok(Next::Again)
            }
            Reason::Trap => {
                self.inject_undefined()?;
                Ok(Next::Again)
            }
            Reason::RipasChange => Ok(self.ripas_change(vcpu, exit)?),
            Reason::HostCall => Ok(self.host_call(vcpu, exit)?),
        }
    }

    fn psci(&self, vcpu: &mut Vcpu, exit: &Exit) -> Result<Next, Stop> {
        match u32::try_from(exit.data) {
            Ok(psci::CPU_SUSPEND_32 | psci::CPU_SUSPEND_64) => Ok(Next::Again),
            Ok(psci::CPU_ON_32 | psci::CPU_ON_64) => {
                let there = usize::try_from(exit.base).is_ok_and(|idx| idx < self.vcpus.len());
                if !there {
                    return Err(VmmError::Contract("CPU_ON of a vCPU that is not", exit.base).into());
                }
                self.starts.fetch_or(1 << exit.base, Ordering::AcqRel);
                usize::try_from(exit.base).into_iter().for_each(|idx| self.kick_vcpu(idx));
                vcpu.answer(Resp::Done, 0);
                Ok(Next::Again)
            }
            Ok(psci::CPU_OFF) => {
                vcpu.off = true;
                Ok(Next::Yield)
            }
            Ok(psci::SYSTEM_OFF) => Err(Stop::Off),
            Ok(psci::SYSTEM_RESET) => Err(Stop::Reset),
            _ => Err(VmmError::Contract("PSCI function", exit.data).into()),
        }
    }

    fn mmio(&self, vcpu: &mut Vcpu, exit: &Exit) -> Next {
        // A realm's devices are in the shared half.
        let device = exit.gpa & !self.kind.shared();
        let (resp, data) = if self.is_ram(exit.gpa) {
            // Memory that is not there looks like a device to the hypervisor.
            match self.supply(exit.gpa) {
                Ok(()) => (Resp::Replay, 0),
                Err(_) => (Resp::Sea, 0),
            }
        } else {
            match self.access(device, exit) {
                Ok(data) => (Resp::Done, data),
                Err(NoDevice(_)) => (Resp::Sea, 0),
            }
        };
        vcpu.answer(resp, data);
        Next::Again
    }

    /// An access to a device: what a load finds, 0 for a store.
    fn access(&self, device: u64, exit: &Exit) -> Result<u64, NoDevice> {
        let width = Width::try_from(exit.size).map_err(|_| NoDevice(device))?;
        let mut devices = self.devices.lock();
        let (data, effect) = if exit.write {
            (0, devices.write(device, width, exit.data)?)
        } else {
            devices.read(device, width)?
        };
        drop(devices);
        let Effect { kick, sent, rings } = effect;
        self.kick(kick);
        if let Some(character) = sent {
            self.console.lock().take(character);
        }
        if rings {
            self.serve_console();
        }
        Ok(data)
    }

    fn fault(&self, vcpu: &mut Vcpu, exit: &Exit) -> Result<Next, Stop> {
        if exit.flags.contains(ExitFlags::TAG_ACCESS) {
            return Ok(self.tag_access(exit).map(|()| Next::Again)?);
        }
        if exit.flags.contains(ExitFlags::PRIVATE) == self.is_shared(exit.gpa) {
            return Err(VmmError::Contract("a fault of the wrong kind", exit.gpa).into());
        }
        if exit.flags.contains(ExitFlags::DESTROYED) {
            // Another vCPU of a realm can end that.
            let hope = self.kind == VmKind::Realm && self.vcpus.len() > 1;
            return if hope { Ok(Next::Yield) } else { Err(Stop::Destroyed) };
        }
        if self.is_ram(exit.gpa) {
            // Both ways to give a page, one as often as the other.
            if self.in_blocks || exit.gpa & PAGE == 0 {
                self.supply(exit.gpa)?;
            } else {
                self.supply_by_answer(vcpu, exit.gpa)?;
            }
        } else if !self.is_shared(exit.gpa) {
            return Err(Stop::Stray(exit.gpa));
        } else {
            vcpu.answer(Resp::Sea, 0);
        }
        Ok(Next::Again)
    }

    /// Gives the guest zeroed memory at `ipa`: where the VM has blocks all that it lacks of one, as a block if it has
    /// nothing of it.
    pub fn supply(&self, ipa: u64) -> Result<(), VmmError> {
        if self.in_blocks && self.supply_block(ipa)? {
            return Ok(());
        }
        self.supply_page(ipa & !(PAGE - 1))?;
        if self.in_blocks { self.supply_rest(ipa) } else { Ok(()) }
    }

    /// Gives it a page, unless it has got one in the meantime.
    fn supply_page(&self, ipa: u64) -> Result<(), VmmError> {
        let pfn = self.vmm.take_page()?;
        match self.give(ipa, pfn, ORDER_PAGE) {
            Ok(()) => self.memory.lock().set(ipa, Some(pfn)),
            // Another vCPU wanted the same page.
            Err(VmmError::Call(_, CallError::Errno(Errno::Eexist))) => self.vmm.free_page(pfn),
            Err(e) => self.vmm.free_page(pfn).and(Err(e)),
        }
    }

    /// Answers with a page for `ipa`, unless the guest has got one in the meantime.
    fn supply_by_answer(&self, vcpu: &mut Vcpu, ipa: u64) -> Result<(), VmmError> {
        let ipa = ipa & !(PAGE - 1);
        let pfn = self.vmm.take_page()?;
        self.make_ready(ipa, pfn, ORDER_PAGE)?;
        let memory = self.memory.lock();
        if memory.get(ipa).is_some() {
            drop(memory);
            return self.vmm.free_page(pfn);
        }
        memory.set(ipa, Some(pfn))?;
        drop(memory);
        vcpu.mapping = Some((ipa, pfn));
        vcpu.answer(Resp::Map, pfn);
        Ok(())
    }

    /// The same with a block; false if it has to be a page.
    fn supply_block(&self, ipa: u64) -> Result<bool, VmmError> {
        let Some(place) = Span::new(ipa & !(BLOCK - 1), BLOCK) else { return Ok(false) };
        let free = |memory: &Memory<'_>| place.pages().all(|page| memory.get(page).is_none());
        if self.ram.intersection(place) != Some(place) || !free(&self.memory.lock()) {
            return Ok(false);
        }
        let Ok(pages) = self.vmm.take(BLOCK / PAGE, BLOCK) else { return Ok(false) };
        match self.give(place.start(), pages.start() / PAGE, ORDER_BLOCK) {
            Ok(()) => self.remember_block(place, pages).map(|()| true),
            // A part of it has a page by now, or is no memory of the guest's.
            Err(VmmError::Call(_, CallError::Errno(Errno::Eexist | Errno::Eperm | Errno::Ehwpoison))) => {
                self.vmm.give_back(pages).map(|()| false)
            }
            Err(e) => Err(e),
        }
    }

    /// Gives a protected guest what else it lacks of the block around `ipa`, as far as that is memory of its own: a part
    /// of it was loaded, and the guest wants the rest soon.
    fn supply_rest(&self, ipa: u64) -> Result<(), VmmError> {
        let place = Span::new(ipa & !(BLOCK - 1), BLOCK).and_then(|block| self.ram.intersection(block));
        for page in place.into_iter().flat_map(Span::pages).filter(|_| !self.is_shared(ipa)) {
            if self.page(page).is_some() {
                continue;
            }
            match self.supply_page(page) {
                Err(VmmError::Call(_, CallError::Errno(Errno::Eperm | Errno::Ehwpoison))) => break,
                other => other?,
            }
        }
        Ok(())
    }

    /// Puts into pages of the host what the guest is to get at `ipa`: zeros if the host goes on seeing them, else rubbish,
    /// as the hypervisor has to zero them.
    fn make_ready(&self, ipa: u64, pfn: u64, order: u64) -> Result<(), VmmError> {
        if self.is_shared(ipa) {
            return (pfn..pfn + (1 << order)).try_for_each(|pfn| self.vmm.fill(pfn, 0));
        }
        self.vmm.store(pfn * PAGE + 8, 0xbad_bad)?;
        self.vmm.spoil_tags(pfn);
        Ok(())
    }

    /// Makes the call that gives pages of the host to the guest, or shows them to it.
    fn give(&self, ipa: u64, pfn: u64, order: u64) -> Result<(), VmmError> {
        self.make_ready(ipa, pfn, order)?;
        let (hyp, gfn) = (self.hyp(), ipa / PAGE);
        if !self.is_shared(ipa) {
            self.with_tables("GUEST_DONATE", || hyp.guest_donate(self.handle, gfn, pfn, order))
        } else if self.kind == VmKind::Realm {
            self.with_tables("UNPROT_MAP", || hyp.unprot_map(self.handle, gfn, pfn, order, true))
        } else {
            self.lend_pages(ipa, pfn, order)
        }
    }

    fn take_relinquished(&self, exit: &Exit) -> Result<(), VmmError> {
        for ipa in (exit.base..exit.top).step_by(4096) {
            let memory = self.memory.lock();
            let Some(pfn) = memory.get(ipa) else { continue };
            memory.set(ipa, None)?;
            drop(memory);
            if let Some(at) = self.vmm.first_nonzero(pfn)? {
                return Err(VmmError::Contract("a relinquished page is not zero", at));
            }
            self.vmm.free_page(pfn)?;
        }
        Ok(())
    }

    /// The loaded vCPU, of a VM that is not protected, finds that its instruction does not exist.
    fn inject_undefined(&self) -> Result<(), VmmError> {
        const UNKNOWN_REASON: u64 = 1 << 25;
        const SYNC_SAME_STACK: u64 = 0x200;
        const EL1H_MASKED: u64 = 0x3c5;
        let hyp = self.hyp();
        let get = |reg| hyp.vcpu_get_reg(reg).map_err(of("VCPU_GET_REG"));
        let set = |reg, value| hyp.vcpu_set_reg(reg, value).map_err(of("VCPU_SET_REG"));
        set(reg::ELR_EL1, get(reg::PC)?)?;
        set(reg::SPSR_EL1, get(reg::PSTATE)?)?;
        set(reg::ESR_EL1, UNKNOWN_REASON)?;
        set(reg::PC, get(reg::VBAR_EL1)? + SYNC_SAME_STACK)?;
        set(reg::PSTATE, EL1H_MASKED)
    }
}
