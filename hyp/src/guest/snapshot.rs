//! VMs whose table the host may look at. Feature `debug-snapshot` only.
#![forbid(unsafe_code)]

use super::vms::{Phase, Vms};
use crate::error::Error;
use crate::hw::GuestMachine;
use crate::mem_protect::Guest;
use abi::Errno;

impl<M: GuestMachine> Vms<M> {
    /// Calls `f` with the table of the VM that is named `handle`. The VM is locked meanwhile, so
    /// that it cannot end; a table that `f` finds corrupt does not end it either.
    ///
    /// # Errors
    /// ENOENT: no such VM. EBUSY: it is DYING. EACCES: it is protected and not DEBUGGABLE.
    pub fn inspect<T>(&self, hw: &M, handle: u64, f: impl FnOnce(&Guest<M>) -> T) -> Result<T, Error> {
        self.with(hw, handle, |slot, _, vm| {
            slot.check_phase(&[Phase::New, Phase::Active, Phase::Stopped, Phase::Dead])?;
            if vm.kind.is_protected() && !vm.debuggable {
                return Err(Errno::Eacces);
            }
            Ok(f(&vm.guest))
        })
    }
}
