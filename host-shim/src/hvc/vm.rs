//! The calls that make, fill, run and take apart VMs.
#![forbid(unsafe_code)]

use super::{CallError, Hypervisor};
use abi::vm::{GuestProt, NO_PAGE, VmFlags};
use abi::{Errno, HostFn};

/// Arguments of `VM_CREATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are the arguments of the call, see docs/abi.md")]
pub struct NewVm {
    pub flags: VmFlags,
    pub ipa_bits: u64,
    pub vm_pfn: u64,
    pub vm_nr: u64,
    pub root_pfn: u64,
    pub root_nr: u64,
    pub reserve_pfn: u64,
}

/// Arguments of `VCPU_CREATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are the arguments of the call, see docs/abi.md")]
pub struct NewVcpu {
    pub idx: u64,
    pub pfn: u64,
    pub nr: u64,
    pub record_pfn: u64,
    pub pc: u64,
    pub x0: u64,
}

/// How far a call that takes pages back got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Everything below this address is done.
    pub done: u64,
    /// A page that the VM kept although it was among those taken.
    pub retained: Option<u64>,
}

/// What `VM_TEARDOWN_FINISH` gave back: a chain of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// The VM is gone.
    pub gone: bool,
    /// First frame of the chain, if it has one.
    pub head: Option<u64>,
    /// Pages in it.
    pub count: u64,
}

const NOTHING: [bool; 2] = [false, false];
const X2: [bool; 2] = [true, false];
const BOTH: [bool; 2] = [true, true];

/// The page that an output names.
fn page(pfn: u64) -> Option<u64> {
    (pfn != NO_PAGE).then_some(pfn)
}

impl Hypervisor<'_> {
    /// Any call with any arguments, of which only the verdict matters.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn attempt(self, call: HostFn, args: &[u64]) -> Result<(), CallError> {
        let (result, _) = self.reply(call.id(), args, |_| BOTH)?;
        result.map_err(CallError::Errno)
    }

    /// `VM_CREATE`: a handle.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vm_create(self, vm: &NewVm) -> Result<u64, CallError> {
        let NewVm { flags, ipa_bits, vm_pfn, vm_nr, root_pfn, root_nr, reserve_pfn } = *vm;
        let args = [flags.bits(), ipa_bits, vm_pfn, vm_nr, root_pfn, root_nr, reserve_pfn];
        self.call(HostFn::VmCreate, &args, X2).map(|[handle, _]| handle)
    }

    /// `VCPU_CREATE`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vcpu_create(self, handle: u64, vcpu: &NewVcpu) -> Result<(), CallError> {
        let NewVcpu { idx, pfn, nr, record_pfn, pc, x0 } = *vcpu;
        self.call(HostFn::VcpuCreate, &[handle, idx, pfn, nr, record_pfn, pc, x0], NOTHING).map(drop)
    }

    /// `VM_TOPUP`: pages taken.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vm_topup(self, handle: u64, head_pfn: u64, nr: u64) -> Result<u64, CallError> {
        self.call(HostFn::VmTopup, &[handle, head_pfn, nr], X2).map(|[taken, _]| taken)
    }

    /// `VM_POPULATE`, with `measure` of a page whose contents are measured.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn vm_populate(self, handle: u64, gfn: u64, pfn: u64, measure: bool) -> Result<(), (CallError, u64)> {
        self.with_lack(HostFn::VmPopulate, &[handle, gfn, pfn, measure.into()])
    }

    /// `VM_INIT_RIPAS`: the address up to which it is done.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn vm_init_ripas(self, handle: u64, base: u64, top: u64) -> Result<u64, (CallError, u64)> {
        self.ranged(HostFn::VmInitRipas, &[handle, base, top], X2).map(|[done, _]| done)
    }

    /// `RIPAS_APPLY`.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn ripas_apply(self, handle: u64, idx: u64, base: u64, top: u64) -> Result<Chunk, (CallError, u64)> {
        let [done, retained] = self.ranged(HostFn::RipasApply, &[handle, idx, base, top], BOTH)?;
        Ok(Chunk { done, retained: page(retained) })
    }

    /// `UNPROT_MAP`.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn unprot_map(
        self,
        handle: u64,
        gfn: u64,
        pfn: u64,
        order: u64,
        write: bool,
    ) -> Result<(), (CallError, u64)> {
        self.with_lack(HostFn::UnprotMap, &[handle, gfn, pfn, order, write.into()])
    }

    /// `UNPROT_UNMAP`: the first frame that went, and how many did.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn unprot_unmap(self, handle: u64, gfn: u64, nr: u64) -> Result<(u64, u64), CallError> {
        self.call(HostFn::UnprotUnmap, &[handle, gfn, nr], BOTH).map(|[first, count]| (first, count))
    }

    /// `VM_FINALISE`, in as many calls as it takes.
    ///
    /// # Errors
    /// See [`CallError`]; EAGAIN if a call got no further than the one before.
    pub fn vm_finalise(self, handle: u64) -> Result<(), CallError> {
        let defined = |result| if result == Err(Errno::Eagain) { X2 } else { NOTHING };
        let mut before = 0;
        loop {
            match self.reply(HostFn::VmFinalise.id(), &[handle], defined)? {
                (Err(Errno::Eagain), [at, _]) if at > before => before = at,
                (result, _) => return result.map_err(CallError::Errno),
            }
        }
    }

    /// `VM_TEARDOWN_START`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vm_teardown_start(self, handle: u64) -> Result<(), CallError> {
        self.call(HostFn::VmTeardownStart, &[handle], NOTHING).map(drop)
    }

    /// `VM_TEARDOWN_FINISH`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vm_teardown_finish(self, handle: u64, budget: u64) -> Result<Finish, CallError> {
        let defined = |result| match result {
            Ok(()) | Err(Errno::Eagain) => BOTH,
            Err(Errno::Ebusy) => X2,
            Err(_) => NOTHING,
        };
        let (result, [head, count]) =
            self.reply(HostFn::VmTeardownFinish.id(), &[handle, budget], defined)?;
        let finish = |gone| Finish { gone, head: page(head), count };
        match result {
            Ok(()) => Ok(finish(true)),
            Err(Errno::Eagain) => Ok(finish(false)),
            Err(e) => Err(CallError::Errno(e)),
        }
    }

    /// `GUEST_DONATE` of memory that the guest may read, write and execute.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn guest_donate(self, handle: u64, gfn: u64, pfn: u64, order: u64) -> Result<(), (CallError, u64)> {
        let prot = GuestProt::R | GuestProt::W | GuestProt::X;
        self.with_lack(HostFn::GuestDonate, &[handle, gfn, pfn, order, prot.bits()])
    }

    /// `GUEST_DONATE` of a page or a block of which the guest may do anything but reach its tags.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn guest_donate_without_tags(
        self,
        handle: u64,
        gfn: u64,
        pfn: u64,
        order: u64,
    ) -> Result<(), (CallError, u64)> {
        self.with_lack(HostFn::GuestDonate, &[handle, gfn, pfn, order, GuestProt::all().bits()])
    }

    /// `MTE_UPGRADE`: the frame that the page was in.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn mte_upgrade(self, handle: u64, gfn: u64, pfn: u64) -> Result<u64, (CallError, u64)> {
        self.ranged(HostFn::MteUpgrade, &[handle, gfn, pfn], X2).map(|[old, _]| old)
    }

    /// `VM_TAG_INFO`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vm_tag_info(self, handle: u64, gfn: u64) -> Result<u64, CallError> {
        self.call(HostFn::VmTagInfo, &[handle, gfn], X2).map(|[state, _]| state)
    }

    /// `GUEST_SHARE`.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn guest_share(
        self,
        handle: u64,
        gfn: u64,
        pfn: u64,
        order: u64,
        prot: GuestProt,
    ) -> Result<(), (CallError, u64)> {
        self.with_lack(HostFn::GuestShare, &[handle, gfn, pfn, order, prot.bits()])
    }

    /// `GUEST_UNSHARE`: the frames done.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn guest_unshare(self, handle: u64, gfn: u64, nr: u64) -> Result<u64, CallError> {
        self.call(HostFn::GuestUnshare, &[handle, gfn, nr], X2).map(|[done, _]| done)
    }

    /// `GUEST_RECLAIM`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn guest_reclaim(self, handle: u64, base: u64, top: u64) -> Result<Chunk, CallError> {
        let [done, retained] = self.call(HostFn::GuestReclaim, &[handle, base, top, NO_PAGE], BOTH)?;
        Ok(Chunk { done, retained: page(retained) })
    }

    /// `RECLAIM_DYING`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn reclaim_dying(self, handle: u64, base: u64, top: u64) -> Result<Chunk, CallError> {
        let [done, retained] = self.call(HostFn::ReclaimDying, &[handle, base, top], BOTH)?;
        Ok(Chunk { done, retained: page(retained) })
    }

    /// `VCPU_LOAD`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vcpu_load(self, handle: u64, idx: u64) -> Result<(), CallError> {
        self.call(HostFn::VcpuLoad, &[handle, idx], NOTHING).map(drop)
    }

    /// `VCPU_PUT`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vcpu_put(self) -> Result<(), CallError> {
        self.call(HostFn::VcpuPut, &[], NOTHING).map(drop)
    }

    /// `VCPU_RUN`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vcpu_run(self) -> Result<(), CallError> {
        self.call(HostFn::VcpuRun, &[], NOTHING).map(drop)
    }

    /// `VCPU_RUN` with an answer that may supply a page.
    ///
    /// # Errors
    /// [`CallError`] with the table pages that the VM lacks.
    pub fn vcpu_run_with_page(self) -> Result<(), (CallError, u64)> {
        self.with_lack(HostFn::VcpuRun, &[])
    }

    /// `VCPU_GET_REG`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vcpu_get_reg(self, reg: u64) -> Result<u64, CallError> {
        self.call(HostFn::VcpuGetReg, &[reg], X2).map(|[value, _]| value)
    }

    /// `VCPU_SET_REG`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn vcpu_set_reg(self, reg: u64, value: u64) -> Result<(), CallError> {
        self.call(HostFn::VcpuSetReg, &[reg, value], NOTHING).map(drop)
    }

    /// A call without outputs; ENOMEM comes with its x3, other errors with 0.
    fn with_lack(self, call: HostFn, args: &[u64]) -> Result<(), (CallError, u64)> {
        self.ranged(call, args, NOTHING).map(drop)
    }

    /// A call whose success defines the outputs that `defined` says; ENOMEM comes with its x3, other errors with 0.
    fn ranged(self, call: HostFn, args: &[u64], defined: [bool; 2]) -> Result<[u64; 2], (CallError, u64)> {
        let defined = |result| match result {
            Ok(()) => defined,
            Err(e) => [false, e == Errno::Enomem],
        };
        let (result, [x2, x3]) = self.reply(call.id(), args, defined).map_err(|e| (e, 0))?;
        result.map(|()| [x2, x3]).map_err(|e| (CallError::Errno(e), x3))
    }
}
