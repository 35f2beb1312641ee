//! A VM with split IPA: the host calls about what its pages are and what it shares.
//!
//! A guest's request is in the vCPU that made it, which is on one CPU or in its VM: whoever has the
//! vCPU needs no lock for it. It ends when the vCPU goes on.
//!
//! Lock: the VM's, held across the transition, so that its phase stays what was checked.
#![forbid(unsafe_code)]

use super::cpu::CpuState;
use super::memory::GROWING;
use super::vcpu::{RealmCall, Vcpu};
use super::vms::{Phase, VcpuSlot, Vm, Vms};
use crate::addr::{IpaRange, PAGE_SHIFT};
use crate::error::Error;
use crate::hw::GuestMachine;
use crate::ipa_state::{Algorithm, Request, Run, Want};
use crate::mem_protect::{Guest, GuestKind, GuestPages, Hypervisor, OwnPage, Reclaimed, guest_frames};
use crate::pgtable::Window;
use abi::{Errno, rsi};

impl<M: GuestMachine> Vm<M> {
    /// The first frames of `range` of one state, as far as so many entries say.
    pub(super) fn ipa_states(&self, hw: &M, range: IpaRange, entries: u64) -> Result<Run, Error> {
        self.guest.lock(hw).ipa_states(hw, range, entries)
    }

    /// Says in the guest's own page `at` what the VM is.
    pub(super) fn write_config(&self, hw: &M, window: &mut Window, at: IpaRange) -> Result<OwnPage, Error> {
        let algorithm = self.measured.as_ref().map_or(Algorithm::Sha256, |of| of.values.algorithm());
        let words = rsi::Config { ipa_width: self.ipa_bits.into(), hash_algorithm: algorithm.number() };
        self.guest.lock(hw).fill_own_page(hw, window, at, &words.words())
    }
}

impl<M: GuestMachine> Vms<M> {
    /// VM_INIT_RIPAS: which frames are memory when the VM begins. Returns the address up to which it
    /// is done.
    ///
    /// # Errors
    /// ENOENT, EACCES no split IPA, EBUSY not NEW; then those of [`Hypervisor::host_init_ripas`].
    pub fn vm_init_ripas(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        handle: u64,
        range: IpaRange,
    ) -> Result<u64, Error> {
        self.of_kind(hw, handle, GuestKind::is_split, &[Phase::New], |_, vm| {
            hyp.host_init_ripas(hw, &vm.guest, range)
        })
    }

    /// RIPAS_APPLY: does `range`, the next part of what vCPU `idx` has asked for and waits for.
    ///
    /// # Errors
    /// ENOENT, EACCES no split IPA, EBUSY not ACTIVE. ENOENT: no such vCPU. EBUSY: another CPU has it.
    /// EPERM: it has asked for nothing, or not for this part next. Then those of
    /// [`Hypervisor::host_apply_ram`] or [`Hypervisor::host_apply_empty`].
    pub fn ripas_apply(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        (handle, idx): (u64, u64),
        range: IpaRange,
    ) -> Result<Reclaimed, Error> {
        let CpuState { window, loaded, .. } = cpu;
        self.of_kind(hw, handle, GuestKind::is_split, &[Phase::Active], |n, vm| {
            let idx = u8::try_from(idx).map_err(|_| Errno::Enoent)?;
            let here = loaded.as_mut().filter(|loaded| loaded.slot == n && loaded.vcpu.vcpu.idx == idx);
            let Vm { vcpus, guest, .. } = vm;
            let vcpu: &mut Vcpu = match (vcpus.get_mut(usize::from(idx)), here) {
                (Some(VcpuSlot::Idle(boxed)), _) => &mut boxed.vcpu,
                (Some(VcpuSlot::Loaded), Some(loaded)) => &mut loaded.vcpu.vcpu,
                (Some(VcpuSlot::Loaded), None) => return Err(Errno::Ebusy.into()),
                (Some(VcpuSlot::Absent) | None, _) => return Err(Errno::Enoent.into()),
            };
            let Some(RealmCall::Ripas(request)) = &mut vcpu.realm_call else {
                return Err(Errno::Eperm.into());
            };
            apply(hyp, hw, window, guest, request, range)
        })
    }

    /// UNPROT_MAP: shows pages of the host to the VM.
    ///
    /// # Errors
    /// ENOENT, EACCES no split IPA, EBUSY not NEW or ACTIVE; then those of
    /// [`Hypervisor::host_share_unprotected`].
    pub fn unprot_map(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        handle: u64,
        pages: GuestPages,
        write: bool,
    ) -> Result<(), Error> {
        self.of_kind(hw, handle, GuestKind::is_split, GROWING, |_, vm| {
            hyp.host_share_unprotected(hw, &mut cpu.window, &vm.guest, pages, write)
        })
    }

    /// UNPROT_UNMAP: ends that, in any phase. Returns the first frame that went, and how many.
    ///
    /// # Errors
    /// EINVAL, E2BIG, ERANGE of the range; ENOENT, EACCES no split IPA; then those of
    /// [`Hypervisor::host_unshare_unprotected`].
    pub fn unprot_unmap(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        handle: u64,
        gfn: u64,
        nr: u64,
    ) -> Result<(u64, u64), Error> {
        let range = guest_frames(gfn, nr)?;
        self.with(hw, handle, |_, _, vm| {
            vm.check_kind(GuestKind::is_split)?;
            let went = hyp.host_unshare_unprotected(hw, &vm.guest, range)?;
            Ok::<_, Error>((went.start().raw() >> PAGE_SHIFT, went.len() >> PAGE_SHIFT))
        })
    }
}

/// Does `part` of `request`, and notes how far it got.
fn apply<M: GuestMachine>(
    hyp: &Hypervisor<M>,
    hw: &M,
    window: &mut Window,
    guest: &Guest<M>,
    request: &mut Request,
    part: IpaRange,
) -> Result<Reclaimed, Error> {
    request.check(part)?;
    let done = match request.want() {
        Want::Empty => hyp.host_apply_empty(hw, window, guest, part)?,
        Want::Ram { destroyed } => {
            let end = hyp.host_apply_ram(hw, guest, part, destroyed)?;
            Reclaimed { end, retained: None }
        }
    };
    request.advance(done.end);
    Ok(done)
}
