//! Calls that the host makes: `HVC #0`, x0 = id, x1.. arguments; reply x0 = SMCCC status,
//! x1 = 0 or a negative [`crate::Errno`], x2/x3 = outputs (0 unless the call defines them).
//!
//! Ids are SMC64 fast calls of owner 6 (vendor hypervisor) from 0xC600_0100 up, apart from the
//! numbers that guests use (0..127), so that a log line tells who called.

/// First id of the host calls.
pub const BASE: u32 = 0xc600_0100;

/// Largest number of pages one call works on.
pub const MAX_PAGES: u64 = 512;

/// The host calls. `docs/abi.md` has a section for each, with the order of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum HostFn {
    /// `() -> x2 version, x3 capabilities`.
    HypCaps = BASE,
    /// `(pfn)`: the host lets EL2 see one of its pages.
    HostShareHyp = BASE + 1,
    /// `(pfn)`: takes such a page back; EBUSY while EL2 has it pinned.
    HostUnshareHyp = BASE + 2,
    /// `(pfn, nr)`: lends pages to the pool that host tables come from.
    HostDonateHyp = BASE + 3,
    /// `(pfn, nr)`: takes lent pages back while none of them is in use.
    HypDonateHost = BASE + 4,
    /// `(flags, ipa_bits, vm_pfn, vm_nr, pgd_pfn, pgd_nr, reserve_pfn) -> x2 handle`: a VM in
    /// state NEW; on ENOMEM x3 = pages that `vm_nr` or `pgd_nr` lacks.
    VmCreate = BASE + 5,
    /// `(handle, idx, pfn, nr, record_pfn, pc, x0)`: a vCPU and its exit record; on ENOMEM x3 =
    /// pages that `nr` lacks.
    VcpuCreate = BASE + 6,
    /// `(handle, head_pfn, nr) -> x2 taken`: pages for the VM's tables, as a chain.
    VmTopup = BASE + 7,
    /// `(handle, gfn, pfn, flags)`: a page of the initial image, contents kept.
    VmPopulate = BASE + 8,
    /// `(handle)`: the VM may run from here on.
    VmFinalise = BASE + 9,
    /// `(handle)`: no vCPU runs from here on.
    VmTeardownStart = BASE + 10,
    /// `(handle, budget) -> x2 head_pfn, x3 count`: pages of a VM that owns no memory any more, as
    /// a chain; EAGAIN while there are more. On EBUSY x2 = first IPA that is still owned.
    VmTeardownFinish = BASE + 11,
    /// `(handle, gfn, pfn, order, prot)`: gives a zeroed page or block to a protected VM.
    GuestDonate = BASE + 12,
    /// `(handle, base, top, refill_pfn) -> x2 done, x3 retained pfn`: takes pages back by force.
    GuestReclaim = BASE + 13,
    /// `(handle, base, top) -> x2 done, x3 retained pfn`: takes the pages of a dying VM back.
    ReclaimDying = BASE + 14,
    /// `(handle, gfn, pfn, order, prot)`: lends a page or block to a VM that is not protected.
    GuestShare = BASE + 15,
    /// `(handle, gfn, nr) -> x2 pages done`: ends such a loan.
    GuestUnshare = BASE + 16,
    /// `(handle, gfn, prot)`: adds permissions to a lent page.
    GuestRelax = BASE + 17,
    /// `(handle, gfn, nr) -> x2 pages done`: takes the permission to write away.
    GuestWrprotect = BASE + 18,
    /// `(handle, gfn, nr, clear) -> x2 pages done, x3 entries used since last cleared`.
    GuestAge = BASE + 19,
    /// `(handle)`: invalidates all of the VM's translations on all CPUs.
    GuestTlbFlush = BASE + 20,
    /// `(handle, idx)`: binds a vCPU to this CPU.
    VcpuLoad = BASE + 21,
    /// `()`: ends that.
    VcpuPut = BASE + 22,
    /// `()`: enters the loaded vCPU; the exit record says why it came back.
    VcpuRun = BASE + 23,
    /// `(reg) -> x2 value`: a register of the loaded vCPU, not of a protected VM.
    VcpuGetReg = BASE + 24,
    /// `(reg, value)`: sets one.
    VcpuSetReg = BASE + 25,
    /// `(target) -> x2 geometry, x3 root pages << 32 | tables`: what a snapshot of a stage-2 table
    /// would take. `target` is 0 for the host's, else a VM's handle.
    S2SnapshotQuery = BASE + 26,
    /// `(target, desc_pfn, flags) -> x2 tables`: copies a stage-2 table into pages of the host. On an
    /// error x2 = pages needed, x3 = index of the page that is meant. Development builds only.
    S2Snapshot = BASE + 27,
    /// `(handle) -> x2 address up to which it is done`: a VM that is not protected starts again;
    /// EAGAIN while there is more to do.
    VmReset = BASE + 28,
    /// `(handle, base, top) -> x2 done`: private memory of a VM with split IPA that has not run.
    VmInitRipas = BASE + 29,
    /// `(handle, idx, base, top) -> x2 done, x3 retained pfn`: does what a vCPU has asked for.
    RipasApply = BASE + 30,
    /// `(handle, gfn, pfn, order, write)`: shows a page or block to a VM with split IPA.
    UnprotMap = BASE + 31,
    /// `(handle, gfn, nr) -> x2 first gfn, x3 pages done`: ends that.
    UnprotUnmap = BASE + 32,
    /// `(handle, gfn, new_pfn) -> x2 old pfn`: a guest's page moves to memory with tags.
    MteUpgrade = BASE + 33,
    /// `(handle, gfn) -> x2 tag state`: what a guest may do with the tags of a page.
    VmTagInfo = BASE + 34,
}

impl HostFn {
    /// Every call, in the order of the ids.
    pub const ALL: [Self; 35] = [
        Self::HypCaps,
        Self::HostShareHyp,
        Self::HostUnshareHyp,
        Self::HostDonateHyp,
        Self::HypDonateHost,
        Self::VmCreate,
        Self::VcpuCreate,
        Self::VmTopup,
        Self::VmPopulate,
        Self::VmFinalise,
        Self::VmTeardownStart,
        Self::VmTeardownFinish,
        Self::GuestDonate,
        Self::GuestReclaim,
        Self::ReclaimDying,
        Self::GuestShare,
        Self::GuestUnshare,
        Self::GuestRelax,
        Self::GuestWrprotect,
        Self::GuestAge,
        Self::GuestTlbFlush,
        Self::VcpuLoad,
        Self::VcpuPut,
        Self::VcpuRun,
        Self::VcpuGetReg,
        Self::VcpuSetReg,
        Self::S2SnapshotQuery,
        Self::S2Snapshot,
        Self::VmReset,
        Self::VmInitRipas,
        Self::RipasApply,
        Self::UnprotMap,
        Self::UnprotUnmap,
        Self::MteUpgrade,
        Self::VmTagInfo,
    ];

    /// The id for x0.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The name used in docs and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HypCaps => "HYP_CAPS",
            Self::HostShareHyp => "HOST_SHARE_HYP",
            Self::HostUnshareHyp => "HOST_UNSHARE_HYP",
            Self::HostDonateHyp => "HOST_DONATE_HYP",
            Self::HypDonateHost => "HYP_DONATE_HOST",
            Self::VmCreate => "VM_CREATE",
            Self::VcpuCreate => "VCPU_CREATE",
            Self::VmTopup => "VM_TOPUP",
            Self::VmPopulate => "VM_POPULATE",
            Self::VmFinalise => "VM_FINALISE",
            Self::VmTeardownStart => "VM_TEARDOWN_START",
            Self::VmTeardownFinish => "VM_TEARDOWN_FINISH",
            Self::GuestDonate => "GUEST_DONATE",
            Self::GuestReclaim => "GUEST_RECLAIM",
            Self::ReclaimDying => "RECLAIM_DYING",
            Self::GuestShare => "GUEST_SHARE",
            Self::GuestUnshare => "GUEST_UNSHARE",
            Self::GuestRelax => "GUEST_RELAX",
            Self::GuestWrprotect => "GUEST_WRPROTECT",
            Self::GuestAge => "GUEST_AGE",
            Self::GuestTlbFlush => "GUEST_TLB_FLUSH",
            Self::VcpuLoad => "VCPU_LOAD",
            Self::VcpuPut => "VCPU_PUT",
            Self::VcpuRun => "VCPU_RUN",
            Self::VcpuGetReg => "VCPU_GET_REG",
            Self::VcpuSetReg => "VCPU_SET_REG",
            Self::S2SnapshotQuery => "S2_SNAPSHOT_QUERY",
            Self::S2Snapshot => "S2_SNAPSHOT",
            Self::VmReset => "VM_RESET",
            Self::VmInitRipas => "VM_INIT_RIPAS",
            Self::RipasApply => "RIPAS_APPLY",
            Self::UnprotMap => "UNPROT_MAP",
            Self::UnprotUnmap => "UNPROT_UNMAP",
            Self::MteUpgrade => "MTE_UPGRADE",
            Self::VmTagInfo => "VM_TAG_INFO",
        }
    }
}

/// An id that is no host call of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownCall;

impl TryFrom<crate::FunctionId> for HostFn {
    type Error = UnknownCall;

    #[inline]
    fn try_from(id: crate::FunctionId) -> Result<Self, UnknownCall> {
        let n = id.raw().checked_sub(BASE).ok_or(UnknownCall)?;
        usize::try_from(n).ok().and_then(|n| Self::ALL.get(n)).copied().ok_or(UnknownCall)
    }
}

#[cfg(test)]
mod tests {
    use super::{BASE, HostFn};
    use crate::FunctionId;

    #[test]
    fn ids_are_dense_and_decode_to_themselves() {
        for (n, f) in (0..).zip(HostFn::ALL) {
            assert_eq!(f.id(), BASE + n);
            let id = FunctionId::from_reg(u64::from(f.id())).unwrap();
            assert_eq!(HostFn::try_from(id), Ok(f));
            let hinted = FunctionId::from_reg(u64::from(f.id() | crate::smccc::HINT_SVE)).unwrap();
            assert_eq!(HostFn::try_from(hinted), Ok(f));
        }
    }

    #[test]
    fn stub_ids_and_neighbours_are_unknown() {
        let past = BASE + u32::try_from(HostFn::ALL.len()).unwrap();
        for raw in [0, 1, 2, 3, 4, BASE - 1, past, 0xc600_0000] {
            let id = FunctionId::from_reg(u64::from(raw)).unwrap();
            assert!(HostFn::try_from(id).is_err(), "{raw:#x}");
        }
        assert_eq!(FunctionId::from_reg(1 << 32), None);
    }
}
