//! Fault sites: a name for every step of a call that can fail. FI_ARM and FI_STATS number them.

use crate::Errno;

/// A step that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Site {
    /// A page for a table of the host or of EL2.
    HostPoolAlloc,
    /// Splitting the host's table down to the page that is about to change hands.
    HostPrepare,
    /// The last check before a donation.
    DonateCheck,
    /// A page for a table of a guest.
    PtCachePop,
    /// Taking one page of a chain into a VM's cache.
    TopupStep,
    /// Taking pages for a VM.
    VmCreateStep,
    /// Taking pages for a vCPU, or pinning its record.
    VcpuCreateStep,
    /// Being the one snapshot at a time.
    SnapLock,
    /// Taking the descriptor of a snapshot.
    SnapDesc,
    /// Taking a page for the root of a snapshot.
    SnapPgd,
    /// Taking a page for a table of a snapshot.
    SnapTbl,
    /// Finding that the chain of a snapshot is long enough.
    SnapCount,
    /// Copying a table of a snapshot.
    SnapCopy,
    /// Splitting the host's table down to the page that a guest's page is about to move to.
    NtaPrepHost,
    /// Splitting the block that a guest's page is about to leave.
    NtaSplit,
    /// Finding a name for a VM.
    VmName,
    /// Finding the tables that a guest's marks need.
    GuardTable,
    /// Finding the tables that a run of frames needs to become RAM; each of its entries is tried by itself then.
    RipasTable,
    /// Splitting the block of which a guest gives a part to the host, or shows it.
    LeaveSplit,
}

/// The number that FI_ARM and FI_STATS take for all sites at once: the nth pass of whichever comes.
pub const ANY: u64 = 0xff;

impl Site {
    /// Every site, in the order of the encoding.
    pub const ALL: [Self; 19] = [
        Self::HostPoolAlloc,
        Self::HostPrepare,
        Self::DonateCheck,
        Self::PtCachePop,
        Self::TopupStep,
        Self::VmCreateStep,
        Self::VcpuCreateStep,
        Self::SnapLock,
        Self::SnapDesc,
        Self::SnapPgd,
        Self::SnapTbl,
        Self::SnapCount,
        Self::SnapCopy,
        Self::NtaPrepHost,
        Self::NtaSplit,
        Self::VmName,
        Self::GuardTable,
        Self::RipasTable,
        Self::LeaveSplit,
    ];

    /// The site with this number, which is its place in [`Site::ALL`].
    #[must_use]
    pub fn of(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// The number that calls use.
    #[must_use]
    pub const fn number(self) -> u64 {
        self as u64
    }

    /// What the caller is told when the site fails because it was armed.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::HostPoolAlloc
            | Self::HostPrepare
            | Self::PtCachePop
            | Self::VmCreateStep
            | Self::VcpuCreateStep
            | Self::SnapCount
            | Self::NtaPrepHost
            | Self::NtaSplit
            | Self::GuardTable
            | Self::RipasTable
            | Self::LeaveSplit => Errno::Enomem,
            Self::DonateCheck | Self::TopupStep | Self::SnapDesc | Self::SnapPgd | Self::SnapTbl => {
                Errno::Eperm
            }
            Self::SnapLock | Self::VmName => Errno::Ebusy,
            Self::SnapCopy => Errno::Eio,
        }
    }

    /// The name that docs and tests know it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostPoolAlloc => "HOST_POOL_ALLOC",
            Self::HostPrepare => "HOST_PREPARE",
            Self::DonateCheck => "DONATE_CHECK",
            Self::PtCachePop => "PT_CACHE_POP",
            Self::TopupStep => "TOPUP_STEP",
            Self::VmCreateStep => "VM_CREATE_STEP",
            Self::VcpuCreateStep => "VCPU_CREATE_STEP",
            Self::SnapLock => "SNAP_LOCK",
            Self::SnapDesc => "SNAP_DESC",
            Self::SnapPgd => "SNAP_PGD",
            Self::SnapTbl => "SNAP_TBL",
            Self::SnapCount => "SNAP_COUNT",
            Self::SnapCopy => "SNAP_COPY",
            Self::NtaPrepHost => "NTA_PREP_HOST",
            Self::NtaSplit => "NTA_SPLIT",
            Self::VmName => "VM_NAME",
            Self::GuardTable => "GUARD_TABLE",
            Self::RipasTable => "RIPAS_TABLE",
            Self::LeaveSplit => "LEAVE_SPLIT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ANY, Site};

    #[test]
    fn every_site_has_its_number_and_a_name_of_its_own() {
        for site in Site::ALL {
            assert_eq!(Site::of(site.number()), Some(site));
            assert_eq!(Site::ALL.iter().filter(|other| other.name() == site.name()).count(), 1);
        }
        assert_eq!(Site::of(Site::ALL.len() as u64), None);
        assert_eq!(Site::of(u64::MAX), None);
        assert_eq!(Site::of(ANY), None, "no site has the number of all");
    }
}
