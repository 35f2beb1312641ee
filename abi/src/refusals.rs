//! Which errnos each host call may answer: the sections of `docs/abi.md` as a table, for hosts and tests that hold the
//! hypervisor to it. `tests/docs.rs` holds the table to the sections.

use crate::Errno::{
    self, E2big, Eacces, Eagain, Ebusy, Eexist, Ehwpoison, Einval, Eio, Enoent, Enomem, Eopnotsupp, Eperm,
    Erange,
};
use crate::HostFn;

/// Calls that give a protected VM a page.
const GIVE: &[Errno] = &[Eperm, Enoent, Enomem, Eacces, Ebusy, Eexist, Einval, Erange, Ehwpoison];
/// Calls that lend a VM a page.
const LEND: &[Errno] = &[Eperm, Enoent, Enomem, Eacces, Ebusy, Eexist, Einval, Erange];
/// Calls that take pages by force.
const TAKE: &[Errno] = &[Enoent, Eacces, Ebusy, Einval, Erange];
/// Calls on a range of lent pages.
const RANGE: &[Errno] = &[Enoent, E2big, Eacces, Einval, Erange];

impl HostFn {
    /// The errnos that the call may answer, in the order of [`Errno::ALL`].
    #[must_use]
    pub const fn refusals(self) -> &'static [Errno] {
        match self {
            Self::HypCaps => &[],
            Self::HostShareHyp => &[Eperm, Erange],
            Self::HostUnshareHyp => &[Eperm, Ebusy, Erange],
            Self::HostDonateHyp => &[Eperm, E2big, Enomem, Einval, Erange],
            Self::HypDonateHost => &[Eperm, E2big, Ebusy, Einval, Erange],
            Self::VmCreate => &[Eperm, Enomem, Ebusy, Einval, Erange, Eopnotsupp],
            Self::VcpuCreate => &[Eperm, Enoent, Enomem, Ebusy, Eexist, Einval, Erange],
            Self::VmTopup => &[Eperm, Enoent, E2big, Enomem, Ebusy, Einval, Erange],
            Self::VmPopulate | Self::GuestDonate => GIVE,
            Self::VmFinalise => &[Enoent, Eagain, Ebusy],
            Self::VmTeardownStart => &[Enoent, Ebusy],
            Self::VmTeardownFinish => &[Enoent, E2big, Eagain, Ebusy, Einval],
            Self::GuestReclaim => &[Eperm, Enoent, Eacces, Ebusy, Einval, Erange],
            Self::ReclaimDying => TAKE,
            Self::GuestShare | Self::UnprotMap => LEND,
            Self::GuestUnshare | Self::GuestWrprotect | Self::GuestAge | Self::UnprotUnmap => RANGE,
            Self::GuestRelax => &[Enoent, Eacces, Einval, Erange],
            Self::GuestTlbFlush => &[Enoent, Eacces],
            Self::VcpuLoad => &[Enoent, Ebusy],
            Self::VcpuPut => &[Enoent],
            Self::VcpuRun => &[Eperm, Enoent, Enomem, Ebusy, Eexist, Einval, Erange, Eopnotsupp, Ehwpoison],
            Self::VcpuGetReg | Self::VcpuSetReg => &[Enoent, Eacces, Einval],
            Self::S2SnapshotQuery => &[Enoent, Eio, Eacces, Ebusy],
            Self::S2Snapshot => &[Eperm, Enoent, Eio, Enomem, Eacces, Ebusy, Einval, Erange],
            Self::VmReset => &[Enoent, Eagain, Eacces, Ebusy],
            Self::VmInitRipas => &[Enoent, Enomem, Eacces, Ebusy, Einval, Erange, Ehwpoison],
            Self::RipasApply => &[Eperm, Enoent, Enomem, Eacces, Ebusy, Einval, Erange],
            Self::MteUpgrade => GIVE,
            Self::VmTagInfo => &[Enoent, Einval, Erange],
        }
    }
}
