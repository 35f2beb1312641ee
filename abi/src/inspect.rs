//! Calls that only a development image has: the audit of who owns what, and fault injection.
//!
//! The release image answers -1 to all of them. Their ids are apart from those of
//! [`crate::HostFn`], so that no host takes them for part of the interface.

/// First id of these calls.
pub const BASE: u32 = 0xc600_0170;

/// The calls. `docs/abi.md` has a section for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum InspectFn {
    /// `(what, handle) -> x2, x3`: looks at every page and table, or tells what was found.
    HypAudit = BASE,
    /// `(site, nth)`: makes the nth pass of a fault site from here on fail, once.
    FiArm = BASE + 1,
    /// `()`: disarms all sites and forgets their counts.
    FiClear = BASE + 2,
    /// `(site) -> x2 passes, x3 failures`: since the last FI_CLEAR.
    FiStats = BASE + 3,
}

impl InspectFn {
    /// Every call, in the order of the ids.
    pub const ALL: [Self; 4] = [Self::HypAudit, Self::FiArm, Self::FiClear, Self::FiStats];

    /// The id for x0.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The name used in docs and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HypAudit => "HYP_AUDIT",
            Self::FiArm => "FI_ARM",
            Self::FiClear => "FI_CLEAR",
            Self::FiStats => "FI_STATS",
        }
    }
}

impl TryFrom<crate::FunctionId> for InspectFn {
    type Error = crate::host::UnknownCall;

    fn try_from(id: crate::FunctionId) -> Result<Self, Self::Error> {
        Self::ALL.into_iter().find(|call| call.id() == id.raw()).ok_or(crate::host::UnknownCall)
    }
}

/// `what` of HYP_AUDIT that looks at everything. The numbers of [`Figure`] read what it counted.
pub const LOOK: u64 = 0;
/// `what` of HYP_AUDIT that reads the first finding; the next ones follow.
pub const FINDINGS: u64 = 0x100;
/// Findings that are kept; more are counted only.
pub const MAX_FINDINGS: usize = 8;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $number,)*
        }

        impl $name {
            /// Every one, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number that calls use.
            #[must_use]
            pub const fn number(self) -> u64 {
                self as u64
            }

            /// The one with this number.
            #[must_use]
            pub fn of(number: u64) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.number() == number)
            }

            /// The name used in docs and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

numbered! {
    /// What an audit counts, in pages unless it says otherwise.
    Figure {
        /// The host's alone.
        HostOwned = 1, "HOST_OWNED";
        /// The host's, shared with EL2.
        HostSharedHyp = 2, "HOST_SHARED_HYP";
        /// Pins of such pages.
        HypPins = 3, "HYP_PINS";
        /// The host's, lent to VMs.
        HostSharedGuest = 4, "HOST_SHARED_GUEST";
        /// EL2's image, stacks, records and first tables.
        HypImage = 5, "HYP_IMAGE";
        /// EL2's pool.
        HypPool = 6, "HYP_POOL";
        /// The table pool's own.
        HypTablePool = 7, "HYP_TABLE_POOL";
        /// Lent by the host to the table pool.
        HypLent = 8, "HYP_LENT";
        /// State of VMs and vCPUs.
        VmState = 9, "VM_STATE";
        /// Tables of VMs.
        VmTables = 10, "VM_TABLES";
        /// Stores of table pages of VMs.
        VmCache = 11, "VM_CACHE";
        /// Reserve pages of VMs.
        VmReserve = 12, "VM_RESERVE";
        /// VMs' own.
        GuestOwned = 13, "GUEST_OWNED";
        /// VMs' own, shared with the host.
        GuestSharedHost = 14, "GUEST_SHARED_HOST";
        /// Frames of VMs that lead to pages of the host.
        GuestBorrowed = 15, "GUEST_BORROWED";
        /// EL2's, and no pool, table or VM has them: in a call that is under way, or lost.
        Loose = 16, "LOOSE";
        /// A number that says which page is whose.
        Owners = 17, "OWNERS";
        /// Tables of the host, which come and go with its accesses.
        TablesHost = 18, "TABLES_HOST";
        /// Tables of EL2's own map.
        TablesHyp = 19, "TABLES_HYP";
        /// Pages of the table pool that are no table.
        TablesFree = 20, "TABLES_FREE";
    }
}

impl Figure {
    /// Figures of which only the sum is kept: a VM's tables and its store have the same pages, and
    /// a table of EL2's first map that is not needed any more goes to the pool.
    pub const SUMS: [[Self; 2]; 2] = [[Self::VmTables, Self::VmCache], [Self::HypImage, Self::HypTablePool]];

    /// True if no call that is refused, and no access, changes the figure.
    #[must_use]
    pub fn is_kept(self) -> bool {
        let comes_and_goes = matches!(self, Self::TablesHost | Self::TablesHyp | Self::TablesFree);
        !comes_and_goes && !Self::SUMS.iter().flatten().any(|figure| *figure == self)
    }
}

numbered! {
    /// What an audit can find.
    Damage {
        /// The record of a page is in a state that no page can be in.
        Record = 1, "RECORD";
        /// The host's table and the record of a page disagree.
        HostEntry = 2, "HOST_ENTRY";
        /// EL2's map and the record of a page disagree.
        HypEntry = 3, "HYP_ENTRY";
        /// A VM's table leads to a page that is not the VM's, or not in this way.
        GuestEntry = 4, "GUEST_ENTRY";
        /// A word of a table that nothing writes.
        Corrupt = 5, "CORRUPT";
        /// A word of a table that stands only while an entry is being changed.
        Locked = 6, "LOCKED";
        /// A table entry leads to a page that is no table of this owner.
        TablePage = 7, "TABLE_PAGE";
        /// The count of a table is not the number of its entries.
        TableCount = 8, "TABLE_COUNT";
        /// A host's table is not pinned as often as its entries ask for.
        TablePins = 9, "TABLE_PINS";
        /// The table pool's numbers are not those of its pages.
        Pool = 10, "POOL";
        /// The host's table says that a VM has a page which it does not have.
        Note = 11, "NOTE";
        /// Pages shared between host and VMs are not counted as often as they are used.
        Shares = 12, "SHARES";
        /// A VM's store or reserve has a page that is not marked as such.
        Store = 13, "STORE";
        /// A VM with MTE could use tags that a page does not have, or its policy has no page without tags.
        Tags = 14, "TAGS";
        /// EL2 does not hold as many pins as there are vCPUs: each has one, on its exit record.
        Pins = 15, "PINS";
    }
}

#[cfg(test)]
mod tests {
    use super::{BASE, Damage, Figure, InspectFn};
    use crate::{FunctionId, HostFn};

    #[test]
    fn the_calls_are_none_of_the_interfaces() {
        for (n, call) in (0..).zip(InspectFn::ALL) {
            assert_eq!(call.id(), BASE + n);
            let id = FunctionId::from_reg(u64::from(call.id())).unwrap();
            assert_eq!(InspectFn::try_from(id), Ok(call));
            assert!(HostFn::try_from(id).is_err());
        }
        for host in HostFn::ALL {
            assert!(InspectFn::try_from(FunctionId::from_reg(u64::from(host.id())).unwrap()).is_err());
        }
    }

    #[test]
    fn numbers_are_dense_and_below_the_next_kind() {
        for (n, figure) in (1..).zip(Figure::ALL) {
            assert_eq!((figure.number(), Figure::of(n)), (n, Some(*figure)));
        }
        for (n, damage) in (1..).zip(Damage::ALL) {
            assert_eq!((damage.number(), Damage::of(n)), (n, Some(*damage)));
        }
        assert_eq!((Figure::of(0), Damage::of(0)), (None, None));
        assert!(Figure::ALL.len() < usize::try_from(super::FINDINGS).unwrap());
    }
}
