//! A VM's guard: what its guest asks of it, and starting again without it.
//!
//! Lock: the VM's, so that the guard and the marks in the table change together.
#![forbid(unsafe_code)]

use super::memory::{GROWING, GuestCall};
use super::psci::Power;
use super::vcpu::boots;
use super::vms::{Progress, VcpuSlot, Vm, Vms};
use crate::addr::Ipa;
use crate::error::Error;
use crate::hw::GuestMachine;
use crate::mem_protect::{GuestKind, Hypervisor};
use crate::mmio_guard::{Guard, GuardCall, GuardOp};
use abi::Errno;

impl<M: GuestMachine> Vm<M> {
    /// Serves a call of the guest about its guard.
    pub(super) fn guard_call(&mut self, hyp: &Hypervisor<M>, hw: &M, call: GuardCall) -> GuestCall {
        let done = |pages| GuestCall::Done { pages, relinquished: None };
        match call {
            GuardCall::Enroll => {
                self.guard = self.guard.enrolled();
                done(0)
            }
            GuardCall::Pages { .. } if self.guard != Guard::On => GuestCall::Refused,
            GuardCall::Pages { op, range, .. } => {
                let result = match op {
                    GuardOp::Map => hyp.guest_map_guard(hw, &self.guest, range),
                    GuardOp::Unmap => hyp.guest_unmap_guard(hw, &self.guest, range),
                };
                result.map_or_else(GuestCall::refused, done)
            }
        }
    }
}

impl<M: GuestMachine> Vms<M> {
    /// VM_RESET: a VM that is not protected has no guard and no marks any more, vCPU 0 is on and
    /// the others are off. Until it is [`Progress::Done`] no vCPU can be loaded.
    ///
    /// # Errors
    /// ENOENT: no such VM. EACCES: protected. EBUSY: not NEW or ACTIVE, or a CPU has a vCPU of it.
    pub fn vm_reset(&self, hyp: &Hypervisor<M>, hw: &M, handle: u64) -> Result<Progress, Error> {
        self.with(hw, handle, |slot, _, vm| {
            vm.check_kind(GuestKind::is_non_protected)?;
            slot.check_phase(GROWING)?;
            if vm.is_loaded() {
                return Err(Error::from(Errno::Ebusy));
            }
            if vm.guard == Guard::On {
                let at = vm.resetting.unwrap_or(Ipa::truncated(0));
                vm.resetting = hyp.host_drop_guards(hw, &vm.guest, at)?;
                if let Some(next) = vm.resetting {
                    return Ok(Progress::Again(next));
                }
            }
            vm.guard = Guard::of(vm.kind);
            for (idx, slot) in (0..).zip(&mut vm.vcpus) {
                if let VcpuSlot::Idle(boxed) = slot {
                    boxed.vcpu.reset();
                    vm.power.set(idx, if boots(idx) { Power::On } else { Power::Off });
                }
            }
            Ok(Progress::Done)
        })
    }
}
