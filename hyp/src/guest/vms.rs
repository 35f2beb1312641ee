//! The table of VMs: names, life, and where each VM is.
//!
//! A handle is generation (bits 15:8) and slot + 1 (bits 7:0); a slot that was used gets the next
//! generation, so a stale handle does not name the next VM. The VMID is slot + 1: a slot is free
//! again only after FINISH has made every CPU forget its VMID.
//!
//! Locks: `names` (Rank::VmTable), then a slot's `vm` (Rank::Vm), then those of `mem_protect`. The
//! phase of a VM changes under its lock, except that a vCPU that runs may end it (DEAD, STOPPED);
//! it is read without the lock by VCPU_RUN.
#![forbid(unsafe_code)]

use super::calls::Services;
use super::idregs::GuestCpu;
use super::psci::PowerTable;
use super::traps::Traps;
use super::vcpu::Vcpu;
use crate::addr::Ipa;
use crate::error::Error;
use crate::hw::{CpuFeatures, GuestMachine, MappedPage, Stage2Ctx};
use crate::ipa_state::{Closing, Measurements};
use crate::lock::{Guard as LockGuard, Lock, Rank};
use crate::mem_protect::{Guest, GuestKind, GuestS2, VmPages};
use crate::mmio_guard::Guard;
use abi::Errno;
use abi::vm::{MAX_VCPUS, MAX_VMS, MtePolicy};
#[cfg(feature = "fault-injection")]
use abi::vm::{VCPU_PAGES, VM_PAGES};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use spin::Once;

/// Where in its life a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Being filled; no vCPU runs.
    New = 1,
    /// May run.
    Active = 2,
    /// Its guest ended it (SYSTEM_OFF or SYSTEM_RESET of a protected VM): only teardown is left.
    Stopped = 3,
    /// Its table or its CPU state made no sense: only teardown is left.
    Dead = 4,
    /// Being taken apart.
    Dying = 5,
    /// What it is when it begins is being measured: nothing of that changes any more, and no vCPU runs yet.
    Finalising = 6,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::New, Self::Active, Self::Stopped, Self::Dead, Self::Dying, Self::Finalising];
}

/// How far a call got that does a bounded part of its work at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All is done.
    Done,
    /// There is more to do, from this address on.
    Again(Ipa),
}

/// What guests of this machine see and get, found out at boot.
#[derive(Clone, Debug)]
pub struct Config {
    /// The CPU that they see.
    pub cpu: GuestCpu,
    /// What depends on firmware and CPU.
    pub services: Services,
    /// The trap registers while one runs.
    pub traps: Traps,
}

impl Config {
    /// For guests that see `cpu` of a machine with `features`.
    #[must_use]
    pub const fn new(features: &CpuFeatures, cpu: GuestCpu, services: Services) -> Self {
        let traps = Traps::new(features, &cpu.has);
        Self { cpu, services, traps }
    }
}

/// All VMs.
#[derive(Debug)]
pub struct Vms<M: GuestMachine> {
    slots: [Slot<M>; MAX_VMS],
    names: Lock<Names, M>,
    config: Once<Config>,
    /// The machine is being ended: no vCPU is loaded any more.
    ending: AtomicBool,
}

/// The place of one VM.
pub(super) struct Slot<M: GuestMachine> {
    phase: AtomicU8,
    vm: Lock<Option<VmBox<M>>, M>,
}

impl<M: GuestMachine> core::fmt::Debug for Slot<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slot").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

/// A VM in the pages that the host donated for it.
pub(super) struct VmBox<M: GuestMachine> {
    pub(super) vm: M::Placed<Vm<M>>,
    pub(super) pages: VmPages,
}

/// A vCPU in the pages that the host donated for it.
pub(super) struct VcpuBox<M: GuestMachine> {
    pub(super) vcpu: M::Placed<Vcpu>,
    pub(super) pages: VmPages,
}

impl<M: GuestMachine> VcpuBox<M> {
    /// The vCPU never runs again: its registers are gone, from memory too.
    pub(super) fn forget(&mut self, hw: &M) {
        let idx = self.vcpu.idx;
        self.vcpu.ctx.restart(idx, 0, 0);
        for page in self.pages.pages().iter() {
            hw.clean_to_poc(MappedPage::linear(page));
        }
    }
}

/// What a VM has at a vCPU index.
#[derive(Default)]
pub(super) enum VcpuSlot<M: GuestMachine> {
    /// No vCPU.
    #[default]
    Absent,
    /// A vCPU that is on no CPU.
    Idle(VcpuBox<M>),
    /// A vCPU that a CPU has loaded.
    Loaded,
}

/// What is measured of a VM.
#[derive(Debug)]
pub(super) struct Measured {
    /// The measurements.
    pub(super) values: Measurements,
    /// How far its memory is among them.
    pub(super) closing: Closing,
}

/// A VM. Guarded by the lock of its slot.
pub(super) struct Vm<M: GuestMachine> {
    pub(super) handle: u16,
    /// The host may look at its table.
    #[cfg(feature = "debug-snapshot")]
    pub(super) debuggable: bool,
    pub(super) kind: GuestKind,
    pub(super) mte: MtePolicy,
    pub(super) guard: Guard,
    /// Where VM_RESET goes on, if it has begun: no vCPU is loaded until it has ended.
    pub(super) resetting: Option<Ipa>,
    pub(super) ipa_bits: u32,
    /// CNTVOFF_EL2 of its vCPUs.
    pub(super) offset: u64,
    /// VTTBR_EL2 and VTCR_EL2 of its table.
    pub(super) stage2: Stage2Ctx,
    /// Its memory.
    pub(super) guest: Guest<M>,
    /// What was and is measured of it, with split IPA.
    pub(super) measured: Option<Measured>,
    pub(super) power: PowerTable,
    pub(super) vcpus: [VcpuSlot<M>; MAX_VCPUS],
    /// Where FINISH goes on dropping what the VM borrows.
    pub(super) draining: Option<Ipa>,
}

impl<M: GuestMachine> Vm<M> {
    /// What is at vCPU index `idx`.
    ///
    /// # Errors
    /// ENOENT: no index.
    pub(super) fn vcpu_slot(&mut self, idx: u8) -> Result<&mut VcpuSlot<M>, Errno> {
        self.vcpus.get_mut(usize::from(idx)).ok_or(Errno::Enoent)
    }

    /// True if some CPU has a vCPU of this VM.
    pub(super) fn is_loaded(&self) -> bool {
        self.vcpus.iter().any(|slot| matches!(slot, VcpuSlot::Loaded))
    }

    /// What the VM may do with allocation tags, as VM_CREATE said.
    pub(super) const fn mte(&self) -> MtePolicy {
        self.mte
    }

    /// EACCES unless the VM is of a kind that `wanted` accepts.
    pub(super) fn check_kind(&self, wanted: impl Fn(GuestKind) -> bool) -> Result<(), Errno> {
        if wanted(self.kind) { Ok(()) } else { Err(Errno::Eacces) }
    }
}

impl<M: GuestMachine> Slot<M> {
    const fn new() -> Self {
        Self { phase: AtomicU8::new(0), vm: Lock::new(Rank::Vm(0), None) }
    }

    /// All slots, each with a lock of its own number, the VMID.
    const fn all() -> [Self; MAX_VMS] {
        let mut slots = [const { Self::new() }; MAX_VMS];
        let (mut rest, mut vmid): (&mut [Self], u16) = (&mut slots, 1);
        while let [slot, others @ ..] = rest {
            slot.vm.set_rank(Rank::Vm(vmid));
            (rest, vmid) = (others, vmid.saturating_add(1));
        }
        slots
    }

    /// Where the VM is in its life; `None` if there is no VM.
    pub(super) fn phase(&self) -> Option<Phase> {
        Phase::ALL.into_iter().find(|phase| self.is_in(*phase))
    }

    /// True if the VM is in `phase`.
    #[inline]
    pub(super) fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) == phase as u8
    }

    /// Sets it.
    pub(super) fn set_phase(&self, phase: Option<Phase>) {
        self.phase.store(phase.map_or(0, |phase| phase as u8), Ordering::Release);
    }

    /// EBUSY unless the VM is in one of `phases`.
    pub(super) fn check_phase(&self, phases: &[Phase]) -> Result<(), Errno> {
        if phases.iter().any(|phase| self.is_in(*phase)) { Ok(()) } else { Err(Errno::Ebusy) }
    }

    /// `result` of a call about the VM, which is DEAD if its table was found corrupt.
    #[inline]
    pub(super) fn known<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(e) = &result
            && e.errno() == Errno::Eio
            && self.phase() != Some(Phase::Dying)
        {
            self.set_phase(Some(Phase::Dead));
        }
        result
    }

    /// Locks the VM; `None` inside if there is none.
    pub(super) fn lock<'a>(&'a self, hw: &'a M) -> LockGuard<'a, Option<VmBox<M>>, M> {
        self.vm.lock(hw)
    }

    /// Does `f` to the VM, locked; `None` if there is none.
    #[inline]
    pub(super) fn with_vm<T>(&self, hw: &M, f: impl FnOnce(&mut Vm<M>) -> T) -> Option<T> {
        self.lock(hw).as_mut().map(|boxed| f(&mut boxed.vm))
    }
}

/// Which slots are taken.
#[derive(Debug)]
struct Names {
    taken: [bool; MAX_VMS],
    generation: [u8; MAX_VMS],
}

/// A name that was handed out, for a VM that is being made: dropped without [`Name::keep`] it is
/// free again.
#[derive(Debug)]
#[must_use = "dropping frees the name"]
pub(super) struct Name<'a, M: GuestMachine> {
    vms: &'a Vms<M>,
    hw: &'a M,
    slot: usize,
    generation: u8,
}

impl<M: GuestMachine> Name<'_, M> {
    /// The handle.
    pub(super) fn handle(&self) -> u16 {
        u16::from(self.generation) << 8 | self.vmid()
    }

    /// The VMID.
    pub(super) fn vmid(&self) -> u16 {
        u16::try_from(self.slot).unwrap_or(u16::MAX).saturating_add(1)
    }

    /// The number of the slot, which is in use from here on.
    pub(super) fn keep(self) -> usize {
        let slot = self.slot;
        core::mem::forget(self);
        slot
    }
}

impl<M: GuestMachine> Drop for Name<'_, M> {
    fn drop(&mut self) {
        self.vms.free_name(self.hw, self.slot, false);
    }
}

impl<M: GuestMachine> Vms<M> {
    /// No VMs, and none can be made before [`Vms::start`].
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: Slot::all(),
            names: Lock::new(Rank::VmTable, Names { taken: [false; MAX_VMS], generation: [0; MAX_VMS] }),
            config: Once::new(),
            ending: AtomicBool::new(false),
        }
    }

    /// Says what guests see; the first call counts.
    pub fn start(&self, config: Config) {
        self.config.call_once(|| config);
    }

    /// From here on whoever locks a VM that [`Vms::scrub`] has seen loads none of its vCPUs.
    pub(super) fn set_ending(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// True once it is.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// What guests see and get.
    ///
    /// # Errors
    /// EOPNOTSUPP: boot found that this machine cannot run any.
    pub(super) fn config(&self) -> Result<&Config, Errno> {
        self.config.get().ok_or(Errno::Eopnotsupp)
    }

    /// The slot of `handle`, which may name another VM, or none, by now.
    pub(super) fn slot_of(&self, handle: u64) -> Option<(usize, &Slot<M>)> {
        let handle = u16::try_from(handle).ok()?;
        let n = usize::from(handle & 0xff).checked_sub(1)?;
        self.slots.get(n).map(|slot| (n, slot))
    }

    /// Every slot.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot<M>> {
        self.slots.iter()
    }

    /// The slot `n`.
    pub(super) fn slot(&self, n: usize) -> Option<&Slot<M>> {
        self.slots.get(n)
    }

    /// Does `f` to the VM that is named `handle`, locked. A VM whose table was found corrupt is DEAD.
    ///
    /// # Errors
    /// ENOENT: no such VM. What `f` says.
    pub(super) fn with<T, E: Into<Error>>(
        &self,
        hw: &M,
        handle: u64,
        f: impl FnOnce(&Slot<M>, usize, &mut Vm<M>) -> Result<T, E>,
    ) -> Result<T, Error> {
        let (n, slot) = self.slot_of(handle).ok_or(Errno::Enoent)?;
        let mut guard = slot.lock(hw);
        let vm = guard.as_mut().map(|boxed| &mut *boxed.vm);
        let vm = vm.filter(|vm| u64::from(vm.handle) == handle).ok_or(Errno::Enoent)?;
        slot.known(f(slot, n, vm).map_err(Into::into))
    }

    /// Calls `f` with the table and the phase of every VM, one after the other.
    pub fn for_each(&self, hw: &M, mut f: impl FnMut(Phase, &GuestS2)) {
        for slot in &self.slots {
            let guard = slot.lock(hw);
            if let (Some(boxed), Some(phase)) = (guard.as_ref(), slot.phase()) {
                f(phase, &boxed.vm.guest.lock(hw));
            }
        }
    }

    /// A free name.
    ///
    /// # Errors
    /// EBUSY: [`MAX_VMS`] VMs exist.
    pub(super) fn name<'a>(&'a self, hw: &'a M) -> Result<Name<'a, M>, Errno> {
        let mut names = self.names.lock(hw);
        let slot = names.taken.iter().position(|taken| !taken).ok_or(Errno::Ebusy)?;
        if let Some(taken) = names.taken.get_mut(slot) {
            *taken = true;
        }
        let generation = names.generation.get(slot).copied().unwrap_or_default();
        Ok(Name { vms: self, hw, slot, generation })
    }

    /// Nobody has the name of `slot` any more; if somebody `used` it, the next VM gets another.
    pub(super) fn free_name(&self, hw: &M, slot: usize, used: bool) {
        let mut names = self.names.lock(hw);
        if let Some(taken) = names.taken.get_mut(slot) {
            *taken = false;
        }
        if let Some(generation) = names.generation.get_mut(slot) {
            *generation = generation.wrapping_add(u8::from(used));
        }
    }
}

#[cfg(feature = "fault-injection")]
impl<M: GuestMachine> crate::mem_protect::Tenants<M> for Vms<M> {
    fn each(&self, hw: &M, f: &mut dyn FnMut(crate::mem_protect::Tenant<'_, M>)) {
        for slot in &self.slots {
            if let Some(boxed) = slot.lock(hw).as_ref() {
                let vcpus = boxed.vm.vcpus.iter().filter(|slot| !matches!(slot, VcpuSlot::Absent)).count();
                let vcpus = u64::try_from(vcpus).unwrap_or(u64::MAX);
                let state = vcpus.saturating_mul(VCPU_PAGES).saturating_add(VM_PAGES);
                f(crate::mem_protect::Tenant { guest: &boxed.vm.guest, state, vcpus });
            }
        }
    }
}

impl<M: GuestMachine> Default for Vms<M> {
    fn default() -> Self {
        Self::new()
    }
}
