//! The audit: whether records, tables, counts and stores of the whole machine agree, and how many
//! pages of each kind there are. Development images only (HYP_AUDIT).
//!
//! It is no second model of the calls (that is `spec`): it knows nothing of what was called, only
//! what must hold between any two calls:
//! - every record is in a state that a page can be in, and the host's table, EL2's map and the
//!   tables of VMs say the same of the page, the note that names its VM and frame included;
//! - every table word decodes, none says LOCKED, every table is a page of the owner's, with the
//!   right number of entries and pins;
//! - the table pool, and every VM's store and reserve, have the pages that are marked as theirs;
//! - EL2 holds one pin for each vCPU.
//!
//! It looks at all pages in one call, however long that takes: what is looked at in parts is not
//! one moment.
//!
//! Locks: records, host's table and EL2's map under host_s2 and hyp_s1; each VM under its own as
//! well. Between VMs no lock is held; if any page changed its state meanwhile, the look is worth
//! nothing and starts again.
#![forbid(unsafe_code)]

mod census;
mod guests;
mod own;
mod page;

pub use census::{Audit, Census, Finding};

use super::{Guest, Hypervisor};
use crate::error::Error;
use crate::hw::Machine;
use abi::Errno;
use abi::inspect::{Damage, Figure};
use abi::vm::MAX_VMS;
use arrayvec::ArrayVec;

/// Looks in a row at pages that keep changing hands.
const ATTEMPTS: u32 = 16;

/// A VM, as an audit needs it.
#[derive(Debug)]
pub struct Tenant<'a, M: Machine> {
    /// Its memory.
    pub guest: &'a Guest<M>,
    /// Pages that hold its and its vCPUs' state.
    pub state: u64,
    /// vCPUs that it has, each with an exit record that is pinned.
    pub vcpus: u64,
}

/// All VMs, as an audit needs them.
pub trait Tenants<M: Machine> {
    /// Calls `f` with each VM. A lock that comes before host_s2 may be held meanwhile, no later one.
    fn each(&self, hw: &M, f: &mut dyn FnMut(Tenant<'_, M>));
}

/// A machine without VMs.
impl<M: Machine> Tenants<M> for () {
    fn each(&self, _hw: &M, _f: &mut dyn FnMut(Tenant<'_, M>)) {}
}

/// What must come out the same from both ends: once by pages, once by VMs and their tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ends {
    /// Pages that a note gives to a VM.
    owned: u64,
    /// Sum over the pages that VMs share with the host.
    shared: u64,
    /// Sum over the tables of EL2's map that are held for blocks of VMs.
    held: u64,
    /// Pins of pages that the host shares with EL2.
    pins: u64,
}

impl<M: Machine> Hypervisor<M> {
    /// Looks at everything, and keeps what it saw for [`Hypervisor::audited`]. The figures about
    /// VMs are those of the VM `whose`, or of all.
    ///
    /// # Errors
    /// ENOENT: there is no VM `whose`. EAGAIN: pages keep changing hands.
    pub fn audit<T: Tenants<M>>(&self, hw: &M, whose: Option<u16>, vms: &T) -> Result<Audit, Error> {
        for _ in 0..ATTEMPTS {
            if let Some(audit) = self.look(hw, whose, vms)? {
                self.host.lock(hw).audited = audit.clone();
                return Ok(audit);
            }
        }
        Err(Errno::Eagain.into())
    }

    /// What the last audit of any CPU saw.
    pub fn audited(&self, hw: &M) -> Audit {
        self.host.lock(hw).audited.clone()
    }

    /// One look; `None` if a page changed its state in the meantime.
    fn look<T: Tenants<M>>(&self, hw: &M, whose: Option<u16>, vms: &T) -> Result<Option<Audit>, Error> {
        let mut audit = Audit::default();
        let (changes, pages) = {
            let (host, hyp) = (self.host.lock(hw), self.hyp.lock(hw));
            (host.states.changes(), own::look(self.cx(hw), &host, &hyp, &mut audit))
        };
        let mut tables = Ends::default();
        let mut handles = ArrayVec::<u16, MAX_VMS>::new();
        let mut settled = true;
        vms.each(hw, &mut |Tenant { guest, state, vcpus }| {
            let (host, hyp) = (self.host.lock(hw), self.hyp.lock(hw));
            settled = settled && host.states.changes() == changes;
            if settled {
                tables.pins = tables.pins.saturating_add(vcpus);
                let guest = guest.lock(hw);
                let handle = guest.handle();
                let counted = whose.is_none_or(|whose| whose == handle);
                handles.try_push(handle).unwrap_or_default();
                let look = guests::Look { cx: self.cx(hw), host: &host, hyp: &hyp, guest: &guest };
                look.at_all(&mut audit, &mut tables, counted, state);
            }
        });
        let host = self.host.lock(hw);
        if !settled || host.states.changes() != changes {
            return Ok(None);
        }
        if whose.is_some_and(|whose| !handles.contains(&whose)) {
            return Err(Errno::Enoent.into());
        }
        if pages.owned != tables.owned {
            // The notes of VMs that exist were each looked up.
            own::notes_of_nobody(self.cx(hw), &host, &handles, &mut audit);
        }
        audit.check(pages.shared == tables.shared, Damage::Shares, 0, 0);
        audit.check(pages.held == tables.held, Damage::TableCount, 0, 0);
        audit.check(pages.pins == tables.pins, Damage::Pins, 0, 0);
        Ok(Some(audit))
    }
}

/// Books that a page of EL2's has an owner.
fn not_loose(audit: &mut Audit, nr: u64) {
    audit.census.add(Figure::Loose, nr.wrapping_neg());
}
