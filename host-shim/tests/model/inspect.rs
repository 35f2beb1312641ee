//! The calls of a development image, as the model answers them.

use super::{Bug, CARVEOUT, Model, Owner, State};
use abi::Errno;
use abi::fault::{ANY, Site};
use abi::inspect::{Damage, FINDINGS, Figure, InspectFn, LOOK};
use host_shim::span::PAGE;

/// Behind the sites: all of them at once.
pub(super) const COUNTERS: usize = Site::ALL.len() + 1;

/// A fault site: passes, passes left until it fails, failures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter {
    hits: u64,
    armed: u64,
    fired: u64,
}

impl Model {
    /// Passes the sites of a donation.
    pub(super) fn pass(&self, state: &mut State, site: Site) -> Result<(), Errno> {
        if self.is(Bug::SiteSkipped) && site == Site::HostPrepare {
            return Ok(());
        }
        let both = [site as usize, Site::ALL.len()];
        let mut fails = false;
        for n in both {
            let counter = &mut state.sites[n];
            counter.hits += 1;
            fails |= counter.armed == 1;
            counter.armed = counter.armed.saturating_sub(1);
        }
        if !fails || self.is(Bug::FaultIgnored) {
            return Ok(());
        }
        both.into_iter().for_each(|n| state.sites[n].fired += 1);
        Err(if self.is(Bug::FaultOtherErrno) { Errno::Einval } else { site.errno() })
    }

    pub(super) fn inspect(&self, call: InspectFn, x1: u64, x2: u64) -> Result<[u64; 2], Errno> {
        let mut state = self.state.lock().unwrap();
        let site = |n: u64| match Site::of(n) {
            Some(site) => Ok(site as usize),
            None if n == ANY => Ok(Site::ALL.len()),
            None => Err(Errno::Einval),
        };
        match call {
            InspectFn::HypAudit if x1 == LOOK => {
                state.looks += 1;
                return Ok([u64::from(self.is(Bug::AuditFinds)), u64::from(self.is(Bug::PageLost))]);
            }
            InspectFn::HypAudit if x1 == FINDINGS => return Ok([Damage::HostEntry.number(), 0x40000]),
            InspectFn::HypAudit => {
                let figure = Figure::of(x1).ok_or(Errno::Einval)?;
                return Ok([self.figure(&state, figure), 0]);
            }
            InspectFn::FiArm => state.sites[site(x1)?].armed = x2,
            InspectFn::FiClear => state.sites = Default::default(),
            InspectFn::FiStats => {
                let counter = state.sites[site(x1)?];
                return Ok([counter.hits, counter.fired]);
            }
        }
        Ok([0, 0])
    }

    fn figure(&self, state: &State, figure: Figure) -> u64 {
        let count = |owner| state.owner.values().filter(|o| **o == owner).count() as u64;
        match figure {
            Figure::HostOwned => (1 << 20) - state.owner.len() as u64,
            Figure::HostSharedHyp => count(Owner::Shared),
            Figure::HypLent => count(Owner::Lent),
            Figure::HypImage => CARVEOUT.1 / PAGE,
            Figure::Owners => {
                let drift = if self.is(Bug::CensusDrifts) { state.looks } else { 0 };
                let pages = state.owner.iter().map(|(pfn, owner)| pfn * 31 + (*owner as u64));
                pages.fold(drift, u64::wrapping_add)
            }
            _ => 0,
        }
    }
}
