//! Who may touch a page: the states, and every transition between them.
//!
//! A transition is named *initiator_action_target* and has three parts, always in this order:
//! **check** reads only; **reserve** may fail, and leaves at most a split table that says the
//! same; **commit** cannot fail. Invariant, between any two transitions: every RAM page has
//! exactly one owner, and the host's table, EL2's map, the guests' tables and the vmemmap agree
//! about it. docs/ownership.md has the table of all transitions.
//!
//! Locks: [`HostS2`] then [`HypS1`] then a guest's table; see docs/locking.md.
#![forbid(unsafe_code)]

mod abort;
mod attributes;
#[cfg(feature = "fault-injection")]
mod audit;
mod boot;
mod content;
mod guest_host;
mod guest_s2;
mod host_guest;
mod host_hyp;
mod host_s2;
mod leave;
mod own_page;
mod reclaim;
mod store;
mod tags;
mod token;
mod txn;
mod upgrade;

pub use abort::{HostAbort, HostFault};
#[cfg(feature = "fault-injection")]
pub use audit::{Audit, Census, Finding, Tenant, Tenants};
pub use boot::{Boot, BootError};
pub use content::Contents;
pub use guest_host::guest_frames;
pub use guest_s2::{Guest, GuestConfig, GuestKind, GuestS2, GuestS2Guard};
pub use host_guest::GuestPages;
pub use host_s2::{HostS2, LEND};
pub use own_page::{OwnPage, OwnWords};
pub use reclaim::Reclaimed;
pub use store::Chain;
pub use token::{OwnedPages, Pinned, VmPages};
pub use txn::DonationTxn;

pub(crate) use guest_s2::{View, guest_error, view};
pub(crate) use host_guest::check_bound;
pub(crate) use store::MAX_VISITED;

use crate::fault::Faults;
use crate::hw::{Machine, Stage2Ctx};
use crate::lock::{Guard, Lock};
use crate::mm::{Cx, HypStates, PageState, Pool, Vmemmap};
use crate::pgtable::HypTable;
use abi::caps::Caps;

/// The hypervisor: everything that outlives a call, in one value, passed by reference.
#[derive(Debug)]
pub struct Hypervisor<M: Machine> {
    vmemmap: Vmemmap,
    faults: Faults,
    caps: Caps,
    host_context: Stage2Ctx,
    host: Lock<HostS2, M>,
    hyp: Lock<HypS1, M>,
    pool: Lock<Pool, M>,
    #[cfg(feature = "debug-snapshot")]
    snapshot: Lock<(), M>,
}

/// EL2's own map and the hyp half of the vmemmap.
#[derive(Debug)]
pub struct HypS1 {
    table: HypTable,
    states: HypStates,
}

/// The host's table, locked.
pub type HostS2Guard<'a, M> = Guard<'a, HostS2, M>;
/// EL2's own map, locked.
pub type HypS1Guard<'a, M> = Guard<'a, HypS1, M>;

impl HypS1 {
    /// EL2's own table.
    #[must_use]
    pub const fn table(&self) -> &HypTable {
        &self.table
    }
}

impl<M: Machine> Hypervisor<M> {
    /// What this build can do on this machine.
    #[must_use]
    #[inline]
    pub const fn caps(&self) -> Caps {
        self.caps
    }

    /// The records of all RAM pages.
    #[must_use]
    #[inline]
    pub const fn vmemmap(&self) -> &Vmemmap {
        &self.vmemmap
    }

    /// What all work on pages needs at hand.
    #[inline]
    pub(crate) const fn cx<'a>(&'a self, hw: &'a M) -> Cx<'a, M> {
        Cx { hw, vmemmap: &self.vmemmap, faults: &self.faults }
    }

    /// The fault sites.
    #[must_use]
    #[inline]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What VTTBR_EL2 and VTCR_EL2 hold while the host runs, on every CPU.
    #[must_use]
    #[inline]
    pub const fn host_context(&self) -> Stage2Ctx {
        self.host_context
    }

    /// Locks the host's table, to look at it.
    pub fn host<'a>(&'a self, hw: &'a M) -> HostS2Guard<'a, M> {
        self.host.lock(hw)
    }

    /// Locks EL2's own map, to look at it. After the host's table, if both are needed.
    pub fn hyp<'a>(&'a self, hw: &'a M) -> HypS1Guard<'a, M> {
        self.hyp.lock(hw)
    }

    /// The right to take a snapshot, if nobody has it.
    #[cfg(feature = "debug-snapshot")]
    pub(crate) fn try_snapshot<'a>(&'a self, hw: &'a M) -> Option<Guard<'a, (), M>> {
        self.snapshot.try_lock(hw)
    }

    /// Locks the pool of EL2's own pages.
    pub fn pool<'a>(&'a self, hw: &'a M) -> Guard<'a, Pool, M> {
        self.pool.lock(hw)
    }
}

/// The state of an ordinary page of each owner, host's half first.
const HOST_SHARES_HYP: (PageState, PageState) = (PageState::SharedOwned, PageState::SharedBorrowed);
