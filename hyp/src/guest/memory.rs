//! A VM's memory: what the host calls about it and what the guest itself asks for. The
//! transitions are `mem_protect`'s; here is which VM, in which phase, and what comes of it.
//!
//! Lock: the VM's, held across the transition, so that its phase stays what was checked.
#![forbid(unsafe_code)]

use super::calls::{MemoryCall, MemoryOp};
use super::cpu::CpuState;
use super::vcpu::Pending;
use super::vms::{Phase, Slot, Vm, Vms};
use crate::addr::{Ipa, IpaRange, PAGE_SHIFT, Pfn};
use crate::error::Error;
use crate::exception::{self, Syndrome};
use crate::hw::GuestMachine;
use crate::mem_protect::{Contents, GuestKind, GuestPages, Hypervisor, Reclaimed, guest_frames};
use crate::mmio_guard::Leaf;
use crate::pgtable::{Access, Entry, Note, PendingState, Prot, Ripas, Window};
use abi::Errno;
use abi::guest::MAX_GRANULES;
use core::ops::ControlFlow;

/// A VM that can be given pages.
pub(super) const GROWING: &[Phase] = &[Phase::New, Phase::Active];

/// What comes of a guest's call about its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuestCall {
    /// The leading `pages` of the range are done; those in `relinquished` (base, top) are the
    /// host's.
    Done {
        /// How many.
        pages: u64,
        /// What the host got.
        relinquished: Option<(u64, u64)>,
    },
    /// The first page is not acceptable.
    Refused,
    /// The first page is not there: the host may give it.
    Absent(Ipa),
    /// The first page is without tags: the host must give one that has them.
    NoTag(Ipa),
    /// The VM's cache lacks this many pages.
    NeedMem(u32),
    /// The table holds what it cannot.
    Corrupt,
}

impl GuestCall {
    /// What becomes of a call that `mem_protect` refused.
    pub(super) const fn refused(e: Error) -> Self {
        match e {
            Error::NoTables(pages) => Self::NeedMem(pages),
            Error::Errno(Errno::Eio) => Self::Corrupt,
            Error::Addr(_) | Error::Errno(_) => Self::Refused,
        }
    }
}

/// What the table of `vm` says about the access `syndrome` to `ipa`, which is in its IPA space.
pub(super) fn leaf<M: GuestMachine>(hw: &M, vm: &Vm<M>, ipa: Ipa, syndrome: Syndrome) -> Leaf {
    let wanted = || match syndrome.access() {
        exception::Access::Read => Prot::R,
        exception::Access::Write => Prot::W,
        exception::Access::Fetch => Prot::X,
    };
    match vm.guest.lock(hw).table().lookup(hw, ipa) {
        Ok((_, Entry::Absent)) => Leaf::Absent,
        Ok((_, Entry::Leaf(leaf))) if leaf.attrs.prot.contains(wanted()) => {
            Leaf::Allows { accessed: leaf.attrs.accessed }
        }
        Ok((_, Entry::Leaf(_))) => Leaf::Forbids,
        Ok((_, Entry::Note(Note::MmioGuard))) => Leaf::Guarded,
        Ok((_, Entry::Note(Note::Ripas(Ripas::Destroyed)))) => Leaf::Destroyed,
        Ok((_, Entry::Note(Note::Ripas(Ripas::Ram)))) => Leaf::Ram,
        Ok((_, Entry::Note(Note::NoTagPending { state, .. }))) => {
            Leaf::NoTag { private: state == PendingState::Owned }
        }
        Ok((_, Entry::Note(_) | Entry::Table(_))) | Err(_) => Leaf::Corrupt,
    }
}

impl<M: GuestMachine> Vm<M> {
    /// Serves MEM_SHARE, MEM_UNSHARE or MEM_RELINQUISH.
    pub(super) fn memory_call(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        window: &mut Window,
        call: MemoryCall,
    ) -> GuestCall {
        let Some(range) = self.frames_of(call) else { return GuestCall::Refused };
        let mut relinquished = None;
        let done = match call.op {
            MemoryOp::Share => hyp.guest_share_host(hw, &self.guest, range),
            MemoryOp::Unshare => hyp.guest_unshare_host(hw, &self.guest, range),
            MemoryOp::Relinquish => {
                let had_pages = self.has_page(hw, range);
                let done = hyp.guest_relinquish_host(hw, window, &self.guest, range);
                if let Ok(pages) = done
                    && had_pages
                {
                    let base = range.start().raw();
                    relinquished = Some((base, base.saturating_add(pages << PAGE_SHIFT)));
                }
                done
            }
        };
        match done {
            Ok(pages) => GuestCall::Done { pages, relinquished },
            Err(e) if e.errno() == Errno::Enoent && call.op == MemoryOp::Share => {
                GuestCall::Absent(range.start())
            }
            Err(e) if e.errno() == Errno::Eopnotsupp && call.op == MemoryOp::Share => {
                GuestCall::NoTag(range.start())
            }
            Err(e) => GuestCall::refused(e),
        }
    }

    /// The frames of a guest's call that the VM has, at most [`MAX_GRANULES`]; `None` if the first
    /// is none.
    fn frames_of(&self, call: MemoryCall) -> Option<IpaRange> {
        let limit = 1_u64.checked_shl(self.ipa_bits)?;
        let room = limit.checked_sub(call.ipa)? >> PAGE_SHIFT;
        let nr = call.nr.min(MAX_GRANULES).min(room);
        let top = call.ipa.checked_add(nr.checked_shl(PAGE_SHIFT)?)?;
        IpaRange::new(call.ipa, top, self.ipa_bits).ok()
    }

    /// True if a page is mapped in `range`.
    fn has_page(&self, hw: &M, range: IpaRange) -> bool {
        let guest = self.guest.lock(hw);
        let found = guest.table().visit(hw, range, |_, entry| match entry {
            Entry::Leaf(_) | Entry::Note(Note::NoTagPending { .. }) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        matches!(found, Ok(Some(())))
    }
}

impl<M: GuestMachine> Slot<M> {
    /// The host's frame `pfn` becomes the page that the exit `pending` is about: the VM's own, zeroed, or lent, as its kind
    /// and the place want it, with every permission, and the access is tried again. Nothing if the exit is not about a page.
    ///
    /// # Errors
    /// ERANGE, EBUSY not ACTIVE; then those of [`Hypervisor::host_donate_guest`], [`Hypervisor::host_share_guest`] or
    /// [`Hypervisor::host_share_unprotected`].
    #[inline(never)]
    pub(super) fn supply(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        window: &mut Window,
        pending: &mut Pending,
        pfn: u64,
    ) -> Result<(), Error> {
        let Some((page, private)) = pending.wanted() else { return Ok(()) };
        let what = GuestPages::new(page.raw() >> PAGE_SHIFT, pfn, 0)?;
        let mut guard = self.lock(hw);
        let Vm { guest, kind, .. } = &*guard.as_mut().ok_or(Errno::Eio)?.vm;
        self.check_phase(&[Phase::Active])?;
        self.known(match (kind.is_protected(), private) {
            (true, true) => hyp.host_donate_guest(hw, window, guest, what, Prot::RWX, Contents::Zeroed),
            (true, false) => hyp.host_share_unprotected(hw, window, guest, what, true),
            (false, _) => hyp.host_share_guest(hw, window, guest, what, Prot::RWX),
        })?;
        *pending = Pending::Nothing;
        Ok(())
    }
}

impl<M: GuestMachine> Vms<M> {
    /// Does `f` to a VM of a kind that `kind` accepts, in one of `phases`, and to the number of its slot.
    ///
    /// # Errors
    /// ENOENT, EACCES, EBUSY, then what `f` says.
    pub(super) fn of_kind<T>(
        &self,
        hw: &M,
        handle: u64,
        kind: impl Fn(GuestKind) -> bool,
        phases: &[Phase],
        f: impl FnOnce(usize, &mut Vm<M>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.with(hw, handle, |slot: &Slot<M>, n, vm| {
            vm.check_kind(kind)?;
            slot.check_phase(phases)?;
            f(n, vm)
        })
    }

    /// VM_POPULATE: a page of the initial image, with what the host has put there. With `measure` the contents are part
    /// of the VM's measurement.
    ///
    /// # Errors
    /// ENOENT, EACCES not protected or nothing is measured of it, EBUSY not NEW; then those of
    /// [`Hypervisor::host_donate_guest`].
    pub fn vm_populate(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        handle: u64,
        page: GuestPages,
        measure: bool,
    ) -> Result<(), Error> {
        let kind = if measure { GuestKind::is_split } else { GuestKind::is_protected };
        self.of_kind(hw, handle, kind, &[Phase::New], |_, vm| {
            let Vm { guest, measured, .. } = vm;
            let algorithm = measured.as_ref().filter(|_| measure).map(|of| of.values.algorithm());
            let at = page.ipa()?.start();
            let mut contents = None;
            let mut look = |page| contents = algorithm.map(|algorithm| algorithm.page(hw, page));
            let kept = Contents::Kept(&mut look);
            hyp.host_donate_guest(hw, &mut cpu.window, guest, page, Prot::RWX, kept)?;
            if let Some(measured) = measured {
                measured.values.page(at, contents);
            }
            Ok(())
        })
    }

    /// GUEST_DONATE: zeroed pages for a protected VM, without access to their tags if `prot` says so.
    ///
    /// # Errors
    /// ENOENT, EACCES not protected, EBUSY not NEW or ACTIVE; then those of
    /// [`Hypervisor::host_donate_guest`].
    pub fn guest_donate(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        handle: u64,
        pages: GuestPages,
        prot: Prot,
    ) -> Result<(), Error> {
        self.of_kind(hw, handle, GuestKind::is_protected, GROWING, |_, vm| {
            hyp.host_donate_guest(hw, &mut cpu.window, &vm.guest, pages, prot, Contents::Zeroed)
        })
    }

    /// GUEST_RECLAIM: takes pages back by force.
    ///
    /// # Errors
    /// ENOENT, EACCES not protected, EBUSY not NEW or ACTIVE; then those of [`Hypervisor::host_reclaim_guest`].
    pub fn guest_reclaim(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        handle: u64,
        range: IpaRange,
        refill: Option<Pfn>,
    ) -> Result<Reclaimed, Error> {
        self.of_kind(hw, handle, GuestKind::is_protected, GROWING, |_, vm| {
            hyp.host_reclaim_guest(hw, &mut cpu.window, &vm.guest, range, refill)
        })
    }

    /// RECLAIM_DYING: takes the pages of a dying VM back.
    ///
    /// # Errors
    /// ENOENT, EACCES not protected, EBUSY not DYING; then those of
    /// [`Hypervisor::host_reclaim_dying_guest`].
    pub fn reclaim_dying(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        handle: u64,
        range: IpaRange,
    ) -> Result<Reclaimed, Error> {
        self.of_kind(hw, handle, GuestKind::is_protected, &[Phase::Dying], |_, vm| {
            hyp.host_reclaim_dying_guest(hw, &mut cpu.window, &vm.guest, range)
        })
    }

    /// GUEST_SHARE: lends pages to a VM that is not protected.
    ///
    /// # Errors
    /// ENOENT, EACCES protected, EBUSY not NEW or ACTIVE; then those of
    /// [`Hypervisor::host_share_guest`].
    pub fn guest_share(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        handle: u64,
        pages: GuestPages,
        access: Access,
    ) -> Result<(), Error> {
        self.of_kind(hw, handle, GuestKind::is_non_protected, GROWING, |_, vm| {
            hyp.host_share_guest(hw, &mut cpu.window, &vm.guest, pages, access.into())
        })
    }

    /// GUEST_UNSHARE: takes lent pages back, in any phase. Returns how many.
    ///
    /// # Errors
    /// EINVAL, E2BIG, ERANGE of the range; ENOENT, EACCES protected; then those of
    /// [`Hypervisor::host_unshare_guest`].
    pub fn guest_unshare(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        handle: u64,
        gfn: u64,
        nr: u64,
    ) -> Result<u64, Error> {
        let range = guest_frames(gfn, nr)?;
        self.with(hw, handle, |_, _, vm| {
            vm.check_kind(GuestKind::is_non_protected)?;
            hyp.host_unshare_guest(hw, &vm.guest, range)
        })
    }

    /// GUEST_RELAX: lets a VM that is not protected do more with a page.
    ///
    /// # Errors
    /// ENOENT, EACCES protected; then those of [`Hypervisor::host_relax_guest`].
    pub fn guest_relax(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        cpu: &mut CpuState<M>,
        handle: u64,
        gfn: u64,
        access: Access,
    ) -> Result<(), Error> {
        let page = guest_frames(gfn, 1)?;
        self.with(hw, handle, |_, _, vm| {
            vm.check_kind(GuestKind::is_non_protected)?;
            hyp.host_relax_guest(hw, &mut cpu.window, &vm.guest, page, access)
        })
    }

    /// GUEST_WRPROTECT: takes the permission to write away. Returns how many pages were passed.
    ///
    /// # Errors
    /// EINVAL, E2BIG, ERANGE of the range; ENOENT, EACCES protected; then those of
    /// [`Hypervisor::host_wrprotect_guest`].
    pub fn guest_wrprotect(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        handle: u64,
        gfn: u64,
        nr: u64,
    ) -> Result<u64, Error> {
        let range = guest_frames(gfn, nr)?;
        self.with(hw, handle, |_, _, vm| {
            vm.check_kind(GuestKind::is_non_protected)?;
            hyp.host_wrprotect_guest(hw, &vm.guest, range)?;
            Ok::<_, Error>(nr)
        })
    }

    /// GUEST_AGE: how many entries of the range the guest used since their access flags were last
    /// cleared; clears them with `clear`.
    ///
    /// # Errors
    /// As [`Vms::guest_wrprotect`].
    pub fn guest_age(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        handle: u64,
        (gfn, nr): (u64, u64),
        clear: bool,
    ) -> Result<u64, Error> {
        let range = guest_frames(gfn, nr)?;
        self.with(hw, handle, |_, _, vm| {
            vm.check_kind(GuestKind::is_non_protected)?;
            hyp.host_age_guest(hw, &vm.guest, range, clear)
        })
    }

    /// GUEST_TLB_FLUSH: no CPU remembers anything of a VM that is not protected.
    ///
    /// # Errors
    /// ENOENT, EACCES protected.
    pub fn guest_tlb_flush(&self, hw: &M, handle: u64) -> Result<(), Error> {
        self.with(hw, handle, |_, _, vm| {
            vm.check_kind(GuestKind::is_non_protected)?;
            vm.guest.lock(hw).table().flush(hw);
            Ok::<_, Errno>(())
        })
    }
}
