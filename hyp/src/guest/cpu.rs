//! What a CPU has for guests: its window, the vCPU it loaded, and whose TLB entries it may hold.
//!
//! One exists for each physical CPU. That CPU locks it for each of its calls, and so for each turn of
//! a guest; who ends the machine ([`Vms::scrub`]) takes a vCPU out of another CPU's.
#![forbid(unsafe_code)]

use super::context::VcpuContext;
use super::vms::{Phase, VcpuBox, VcpuSlot, Vms};
use crate::error::Error;
use crate::hw::{GuestMachine, Machine, Stage2Ctx};
use crate::mem_protect::GuestKind;
use crate::pgtable::Window;
use abi::Errno;
use abi::vm::MAX_VMS;
use spin::mutex::SpinMutex;

/// One physical CPU, as far as guests are concerned.
#[derive(Debug)]
pub struct CpuState<M: GuestMachine> {
    /// Where this CPU shows a page to itself.
    pub window: Window,
    pub(super) loaded: Option<Loaded<M>>,
    pub(super) last_ran: LastRan,
}

/// [`number`] of the vCPU that ran here last, by slot of its VM; 0 for none.
pub(super) type LastRan = [u8; MAX_VMS];

/// What [`LastRan`] says of vCPU `idx`.
const fn number(idx: u8) -> u8 {
    idx.saturating_add(1)
}

/// What a CPU has, where the others find it; `None` before the end of the boot. Taken before every other
/// lock, and by nobody who waits while holding one.
pub type Share<M> = SpinMutex<Option<CpuState<M>>, <M as Machine>::Relax>;

/// A vCPU that this CPU has, and what it needs of its VM without a lock.
pub(super) struct Loaded<M: GuestMachine> {
    pub(super) vcpu: VcpuBox<M>,
    /// Slot of its VM, which cannot be freed while this exists.
    pub(super) slot: usize,
    pub(super) handle: u16,
    pub(super) kind: GuestKind,
    pub(super) ipa_bits: u32,
    pub(super) stage2: Stage2Ctx,
    /// It has not run since it was loaded, and another vCPU of its VM was the last to run here: this CPU may
    /// hold entries of that one. vCPUs of a VM share a VMID, and each may use an ASID for something else.
    pub(super) after_another: bool,
}

impl<M: GuestMachine> core::fmt::Debug for Loaded<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Loaded").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl<M: GuestMachine> CpuState<M> {
    /// A CPU that has loaded nothing.
    #[must_use]
    pub const fn new(window: Window) -> Self {
        Self { window, loaded: None, last_ran: [0; MAX_VMS] }
    }

    /// The registers of the vCPU that is loaded, between its turns.
    #[must_use]
    pub fn loaded_context(&self) -> Option<&VcpuContext> {
        self.loaded.as_ref().map(|loaded| &loaded.vcpu.vcpu.ctx)
    }
}

/// Notes that vCPU `idx` of the VM in `slot` runs here.
#[cold]
pub(super) fn runs_here(last_ran: &mut LastRan, slot: usize, idx: u8) {
    if let Some(last) = last_ran.get_mut(slot) {
        *last = number(idx);
    }
}

impl<M: GuestMachine> Vms<M> {
    /// Shows `f` the registers of vCPU `idx` of the VM `handle`, which no CPU has loaded.
    pub fn idle_context<T>(
        &self,
        hw: &M,
        handle: u64,
        idx: u8,
        f: impl FnOnce(&VcpuContext) -> T,
    ) -> Option<T> {
        let (_, slot) = self.slot_of(handle)?;
        let mut guard = slot.lock(hw);
        match guard.as_mut()?.vm.vcpu_slot(idx).ok()? {
            VcpuSlot::Idle(vcpu) => Some(f(&vcpu.vcpu.ctx)),
            VcpuSlot::Absent | VcpuSlot::Loaded => None,
        }
    }

    /// VCPU_LOAD: binds a vCPU to this CPU.
    ///
    /// # Errors
    /// ENOENT: no such VM. EBUSY: this CPU has one, or the VM is not ACTIVE, or VM_RESET has begun and
    /// not ended, or the machine is being ended. ENOENT: no such vCPU. EBUSY: another CPU has it.
    pub fn vcpu_load(&self, hw: &M, cpu: &mut CpuState<M>, handle: u64, idx: u64) -> Result<(), Error> {
        let busy = cpu.loaded.is_some();
        let last_ran = &cpu.last_ran;
        let loaded = self.with(hw, handle, |slot, n, vm| {
            if busy || vm.resetting.is_some() || self.is_ending() {
                return Err(Errno::Ebusy);
            }
            slot.check_phase(&[Phase::Active])?;
            let at = vm.vcpu_slot(u8::try_from(idx).map_err(|_| Errno::Enoent)?)?;
            match core::mem::replace(at, VcpuSlot::Loaded) {
                VcpuSlot::Idle(vcpu) => Ok(Loaded {
                    after_another: last_ran.get(n).is_none_or(|last| *last != number(vcpu.vcpu.idx)),
                    vcpu,
                    slot: n,
                    handle: vm.handle,
                    kind: vm.kind,
                    ipa_bits: vm.ipa_bits,
                    stage2: vm.stage2,
                }),
                VcpuSlot::Loaded => Err(Errno::Ebusy),
                VcpuSlot::Absent => {
                    *at = VcpuSlot::Absent;
                    Err(Errno::Enoent)
                }
            }
        })?;
        cpu.loaded = Some(loaded);
        Ok(())
    }

    /// VCPU_PUT: ends that. A host CPU that goes off puts what it has loaded.
    ///
    /// # Errors
    /// ENOENT: nothing is loaded here.
    pub fn vcpu_put(&self, hw: &M, cpu: &mut CpuState<M>) -> Result<(), Error> {
        let Loaded { mut vcpu, slot, kind, .. } = cpu.loaded.take().ok_or(Errno::Enoent)?;
        let idx = usize::from(vcpu.vcpu.idx);
        let slot = self.slot(slot).ok_or(Errno::Eio)?;
        let mut guard = slot.lock(hw);
        if kind.is_protected() && slot.phase() != Some(Phase::Active) {
            vcpu.forget(hw);
        }
        let at = guard.as_mut().and_then(|boxed| boxed.vm.vcpus.get_mut(idx));
        // A VM with a loaded vCPU is where it was.
        if let Some(at) = at {
            *at = VcpuSlot::Idle(vcpu);
        }
        Ok(())
    }

    /// VCPU_GET_REG: a register of the vCPU that is loaded here.
    ///
    /// # Errors
    /// ENOENT: none is loaded. EACCES: its VM is protected. EINVAL: no such register.
    pub fn vcpu_get_reg(&self, cpu: &CpuState<M>, reg: u64) -> Result<u64, Error> {
        let loaded = cpu.loaded.as_ref().ok_or(Errno::Enoent)?;
        if loaded.kind.is_protected() {
            return Err(Errno::Eacces.into());
        }
        loaded.vcpu.vcpu.ctx.register(reg).ok_or(Errno::Einval.into())
    }

    /// VCPU_SET_REG: sets one.
    ///
    /// # Errors
    /// ENOENT: none is loaded. EACCES: its VM is protected. EINVAL: no such register, it is read
    /// only, or PSTATE asks for what a guest cannot be in.
    pub fn vcpu_set_reg(&self, cpu: &mut CpuState<M>, reg: u64, value: u64) -> Result<(), Error> {
        let loaded = cpu.loaded.as_mut().ok_or(Errno::Enoent)?;
        if loaded.kind.is_protected() {
            return Err(Errno::Eacces.into());
        }
        loaded.vcpu.vcpu.ctx.set_register(reg, value).ok_or(Errno::Einval.into())
    }
}
