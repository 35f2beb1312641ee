//! Host calls about the memory tags of a VM: MTE_UPGRADE and VM_TAG_INFO.
//!
//! Lock: the VM's, held across the transition, so that its phase stays what was checked.
#![forbid(unsafe_code)]

use super::cpu::CpuState;
use super::memory::GROWING;
use super::vms::Vms;
use crate::addr::Pfn;
use crate::error::Error;
use crate::hw::GuestMachine;
use crate::mem_protect::{Hypervisor, guest_frames};
use crate::mte;
use abi::Errno;
use abi::vm::TagState;

impl<M: GuestMachine> Vms<M> {
    /// MTE_UPGRADE: the guest's page at `gfn` moves to `new`, which has tags. Returns the old page.
    ///
    /// # Errors
    /// EINVAL, ERANGE of the frame; ENOENT; EACCES no MTE; EBUSY not NEW or ACTIVE; then those of
    /// [`Hypervisor::host_upgrade_guest`].
    pub fn mte_upgrade(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        handle: u64,
        gfn: u64,
        new: Pfn,
    ) -> Result<u64, Error> {
        let frame = guest_frames(gfn, 1)?;
        self.with(hw, handle, |slot, _, vm| {
            if !vm.mte().has_mte() {
                return Err(Error::from(Errno::Eacces));
            }
            slot.check_phase(GROWING)?;
            hyp.host_upgrade_guest(hw, &mut cpu.window, &vm.guest, frame, new).map(Pfn::raw)
        })
    }

    /// VM_TAG_INFO: what the guest may do with the tags of the page at `gfn`, in any phase.
    ///
    /// # Errors
    /// EINVAL, ERANGE of the frame; ENOENT; ERANGE beyond the IPA space.
    pub fn vm_tag_info(&self, hw: &M, handle: u64, gfn: u64) -> Result<TagState, Error> {
        let frame = guest_frames(gfn, 1)?;
        self.with(hw, handle, |_, _, vm| mte::tag_state(hw, &vm.guest.lock(hw), frame.start()))
    }
}
