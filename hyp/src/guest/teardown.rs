//! Taking VMs apart, in bounded steps that give every page back.
//!
//! START: no vCPU runs from here on, no CPU remembers the VM. Then the host takes the VM's own
//! pages (RECLAIM_DYING), and FINISH does the rest, in this order: what the VM borrows, its tables,
//! its cache, its vCPUs, its own record, the root and last the reserve.
#![forbid(unsafe_code)]

use super::cpu::{CpuState, Share};
use super::vms::{Phase, Slot, VcpuBox, VcpuSlot, Vm, VmBox, Vms};
use crate::addr::{Ipa, IpaRange};
use crate::error::Error;
use crate::hw::GuestMachine;
use crate::mem_protect::{Chain, GuestKind, Hypervisor};
use abi::Errno;
use abi::host::MAX_PAGES;
use spin::RelaxStrategy;

/// How far a call of FINISH got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The VM is gone; these are its last pages.
    Gone(Chain),
    /// There is more to do; these pages are the host's already.
    Again(Chain),
}

/// Why FINISH refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishError {
    /// The VM still owns a page here: EBUSY.
    Owns(Ipa),
    /// Anything else.
    Other(Error),
}

impl From<Error> for FinishError {
    fn from(e: Error) -> Self {
        Self::Other(e)
    }
}

impl From<Errno> for FinishError {
    fn from(e: Errno) -> Self {
        Self::Other(e.into())
    }
}

impl<M: GuestMachine> Slot<M> {
    /// A CPU has a vCPU of the protected VM that is here.
    fn has_secrets_loaded(&self, hw: &M) -> bool {
        self.lock(hw).as_ref().is_some_and(|boxed| boxed.vm.kind.is_protected() && boxed.vm.is_loaded())
    }
}

impl<M: GuestMachine> Vm<M> {
    /// DEAD: its pages are the host's, zeroed, and so are the registers of the vCPUs that are here.
    fn kill(&mut self, slot: &Slot<M>, hyp: &Hypervisor<M>, hw: &M, cpu: &mut CpuState<M>) {
        if slot.phase() != Some(Phase::Dying) {
            slot.set_phase(Some(Phase::Dead));
        }
        // With split IPA the upper half is the host's memory.
        let split = self.guest.lock(hw).kind() == GuestKind::Split;
        let top = 1 << self.ipa_bits >> u32::from(split);
        let mut from = 0;
        while let Ok(range) = IpaRange::new(from, top, self.ipa_bits) {
            // EIO: a table that is corrupt names no page that could be found.
            let Ok(done) = hyp.host_reclaim_dying_guest(hw, &mut cpu.window, &self.guest, range) else {
                break;
            };
            from = done.end;
        }
        for at in &mut self.vcpus {
            if let VcpuSlot::Idle(vcpu) = at {
                vcpu.forget(hw);
            }
        }
    }
}

impl<M: GuestMachine> Vms<M> {
    /// VM_TEARDOWN_START: nothing of the VM runs from here on.
    ///
    /// # Errors
    /// ENOENT: no such VM. EBUSY: a CPU has a vCPU of it, or it is DYING.
    pub fn vm_teardown_start(&self, hw: &M, handle: u64) -> Result<(), Error> {
        self.with(hw, handle, |slot, _, vm| {
            slot.check_phase(&[Phase::New, Phase::Finalising, Phase::Active, Phase::Stopped, Phase::Dead])?;
            if vm.is_loaded() {
                return Err(Errno::Ebusy);
            }
            slot.set_phase(Some(Phase::Dying));
            vm.guest.lock(hw).table().flush(hw);
            Ok(())
        })
    }

    /// Before the machine ends or starts again, which RAM outlives: every protected VM is DEAD, its
    /// pages are the host's, zeroed, and the registers of its vCPUs are gone. `cpu` is the caller's
    /// and `shares` are all CPUs', of which it holds its own.
    ///
    /// A vCPU that is loaded on another CPU is put for it. If it runs there, its turn ends by
    /// itself: there is not even an instruction left that it could fetch.
    ///
    /// Takes as long as there are pages: nothing comes after it but firmware's end of the machine.
    pub fn scrub<'a>(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        shares: impl Iterator<Item = &'a Share<M>> + Clone,
    ) where
        M: 'a,
    {
        self.set_ending();
        for slot in self.slots() {
            let mut guard = slot.lock(hw);
            if let Some(vm) = guard.as_mut().map(|boxed| &mut *boxed.vm).filter(|vm| vm.kind.is_protected()) {
                vm.kill(slot, hyp, hw, cpu);
            }
        }
        self.put_if_protected(hw, cpu);
        while self.slots().any(|slot| slot.has_secrets_loaded(hw)) {
            for share in shares.clone() {
                if let Some(mut share) = share.try_lock()
                    && let Some(cpu) = share.as_mut()
                {
                    self.put_if_protected(hw, cpu);
                }
            }
            M::Relax::relax();
        }
    }

    fn put_if_protected(&self, hw: &M, cpu: &mut CpuState<M>) {
        if cpu.loaded.as_ref().is_some_and(|loaded| loaded.kind.is_protected()) {
            // EIO is not possible: what is loaded has a slot.
            let _ = self.vcpu_put(hw, cpu);
        }
    }

    /// VM_TEARDOWN_FINISH: gives back about `budget` pages of a dying VM that owns none any more;
    /// the last call gives at most 18 more.
    ///
    /// # Errors
    /// EINVAL: `budget` is 0. E2BIG: it is more than 512. ENOENT: no such VM. EBUSY: not DYING.
    /// [`FinishError::Owns`]. EIO.
    pub fn vm_teardown_finish(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        handle: u64,
        budget: u64,
    ) -> Result<Finish, FinishError> {
        match budget {
            0 => return Err(Errno::Einval.into()),
            1..=MAX_PAGES => {}
            _ => return Err(Errno::E2big.into()),
        }
        let (n, slot) = self.slot_of(handle).ok_or(Errno::Enoent)?;
        let mut guard = slot.lock(hw);
        let named = guard.as_mut().filter(|boxed| u64::from(boxed.vm.handle) == handle);
        let boxed = named.ok_or(Errno::Enoent)?;
        slot.check_phase(&[Phase::Dying])?;

        let mut chain = Chain::new();
        if !boxed.vm.drain(hyp, hw, budget, &mut chain)? {
            return Ok(Finish::Again(chain));
        }
        let Some(VmBox { vm, pages }) = guard.take() else { return Err(Errno::Eio.into()) };
        let Vm { guest, .. } = hw.displace(vm);
        chain.give(pages.end(hyp, hw));
        hyp.end_guest(hw, guest, &mut chain);
        slot.set_phase(None);
        drop(guard);
        self.free_name(hw, n, true);
        Ok(Finish::Gone(chain))
    }
}

impl<M: GuestMachine> Vm<M> {
    /// One step towards a VM without anything but its root and reserve; true if it is there.
    fn drain(
        &mut self,
        hyp: &Hypervisor<M>,
        hw: &M,
        budget: u64,
        chain: &mut Chain,
    ) -> Result<bool, FinishError> {
        if let Some(at) = self.draining {
            self.draining = hyp.drop_borrowed(hw, &self.guest, at).map_err(|(e, ipa)| {
                if e.errno() == Errno::Ebusy { FinishError::Owns(ipa) } else { FinishError::Other(e) }
            })?;
            // Other steps wait for the next call: this one may have looked at 4096 entries.
            return Ok(false);
        }
        if !hyp.drop_cache(hw, &self.guest, budget, chain) {
            return Ok(false);
        }
        for slot in &mut self.vcpus {
            if chain.count() >= budget {
                return Ok(false);
            }
            if let VcpuSlot::Idle(VcpuBox { vcpu, pages }) = core::mem::take(slot) {
                hyp.hyp_unpin(hw, hw.displace(vcpu).record);
                chain.give(pages.end(hyp, hw));
            }
        }
        Ok(true)
    }
}
