//! Stage-2 aborts of the host: fill in what is the host's, refuse the rest.
//!
//! Lock: host_s2, so that a fault that raced with a transition on another CPU sees the table
//! before or after it, never between.
#![forbid(unsafe_code)]

use super::Hypervisor;
use super::host_s2::{allows, default_attrs, identity};
use crate::addr::{Ipa, IpaRange, Pfn, PfnRange};
use crate::hw::Machine;
use crate::mm::{PageState, SpanKind};
use crate::pgtable::{Access, Demand, Error};

/// What the host tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFault {
    /// Where: from HPFAR_EL2 for the fault classes that set it, otherwise by translating
    /// FAR_EL2; the caller resumes the host if that fails.
    pub ipa: Ipa,
    /// How: R for a load or a walk of the host's own tables, W, or X for a fetch.
    pub access: Access,
}

/// What becomes of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum HostAbort {
    /// It tries the same instruction again.
    Resume,
    /// It gets a synchronous external abort: a translation fault would make a Linux that finds
    /// its own tables right retry for ever.
    InjectExternalAbort,
}

impl<M: Machine> Hypervisor<M> {
    /// Answers a stage-2 abort of the host.
    ///
    /// Absent: the largest block that fits the RAM region or the MMIO between regions and covers
    /// no note is mapped. Mapped, and allowing the access: another CPU was faster. A note, a page
    /// that is not the host's, an address beyond the table, or an access that a default mapping
    /// does not allow (fetching from MMIO): external abort. Cannot fail, whatever was lent: the
    /// pool keeps the tables that this needs.
    pub fn host_abort(&self, hw: &M, fault: HostFault) -> HostAbort {
        self.demand(hw, fault).unwrap_or(HostAbort::InjectExternalAbort)
    }

    fn demand(&self, hw: &M, fault: HostFault) -> Option<HostAbort> {
        let page = Pfn::new(fault.ipa.frame().raw()).ok()?;
        let cx = self.cx(hw);
        let mut host = self.host.lock(hw);
        if self.vmemmap.get(page).is_some_and(|record| record.host() == PageState::NoPage) {
            return None;
        }
        let span = self.vmemmap.span(page);
        let attrs = default_attrs(span.kind);
        if span.kind == SpanKind::Mmio && fault.access.contains(Access::X) {
            return None;
        }
        let end = span.pages.end().min(host.frames());
        let start = span.pages.start().raw();
        let bounds = IpaRange::identity(PfnRange::new(start, end.checked_sub(start)?).ok()?);
        let ipa = identity(page);
        let (table, mut source) = host.parts(cx);
        let demand = match table.map_largest(hw, &mut source, ipa, bounds, page, attrs) {
            Err(Error::NoTables { needed }) => {
                let keep = IpaRange::identity(PfnRange::one(page));
                host.make_room(cx, needed.into(), keep).ok()?;
                let (table, mut source) = host.parts(cx);
                table.map_largest(hw, &mut source, ipa, bounds, page, attrs)
            }
            demand => demand,
        };
        match demand.ok()? {
            Demand::Mapped(_) => Some(HostAbort::Resume),
            Demand::Leaf(leaf) if allows(leaf.attrs, fault.access) => Some(HostAbort::Resume),
            Demand::Leaf(_) | Demand::Note(_) => None,
        }
    }
}
