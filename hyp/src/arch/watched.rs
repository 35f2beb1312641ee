//! The checker and the executable specification on the real CPUs: feature `spec`; the other face
//! of `unwatched`.
//!
//! Every hardware operation of the portable core goes through a [`Traced`] machine, every host
//! call through the oracle; what either of them refuses is a panic. Both are meant for emulators:
//! the checker's lock is taken before the MMU is on.

use super::machine::El2;
use super::{IMAGE, Running, percpu::PerCpu};
use arrayvec::ArrayVec;
use hyp::hcall::HostRegs;
use hyp::platform::tree::MAX_CPUS;
use hyp::spec::checker::{Scope, Violation};
use hyp::spec::model::live::{self, judged, read_hypervisor};
use hyp::spec::model::{Complaint, Flaw, Oracle, State};
use hyp::spec::{Traced, Watch};

/// Pages that the checker can know of at a time.
const PAGES: usize = 8192;
/// Entries that can wait for their invalidation at a time.
const OPEN: usize = 2048;
/// Runs of pages with one owner that the specification has room for.
const RUNS: usize = 1024;

/// This CPU under the eyes of the checker.
pub(crate) type Hw = Traced<El2, &'static Watch<PAGES, OPEN>>;

/// Both judges.
pub(crate) struct Judges {
    watch: Watch<PAGES, OPEN>,
    oracle: Oracle<spin::relax::Spin, RUNS>,
}

impl Judges {
    pub(super) const fn new() -> Self {
        Self { watch: Watch::new(Scope::All, violation), oracle: Oracle::new(complaint) }
    }
}

#[expect(clippy::panic, reason = "a rule of live tables was broken: EL2 is not what it must be")]
fn violation(violation: &Violation) {
    panic!("checker: {violation:?}");
}

#[expect(clippy::panic, reason = "a call did something else than it must")]
fn complaint(complaint: &Complaint) {
    panic!("specification: {complaint}");
}

/// CPU `index`, watched.
pub(crate) fn watched(el2: El2, index: usize) -> Hw {
    Traced::new(el2, &IMAGE.judges.watch, index)
}

/// Every CPU, by index.
#[derive(Debug)]
pub(crate) struct Watched(ArrayVec<Hw, MAX_CPUS>);

impl From<El2> for Watched {
    fn from(el2: El2) -> Self {
        Self((0..MAX_CPUS).map(|index| watched(el2, index)).collect())
    }
}

impl Running {
    /// This CPU.
    pub(super) fn hw(&self) -> &Hw {
        let index = PerCpu::current().map_or(0, |cpu| cpu.index);
        // There are no more CPUs than records of them.
        self.hw.0.get(index).unwrap_or_else(|| super::panic::no_record())
    }

    /// This CPU, unwatched.
    pub(super) fn el2(&self) -> &El2 {
        self.hw().untraced()
    }

    /// Takes the state before the first call.
    pub(super) fn look(&self) {
        IMAGE.judges.oracle.look(|state| read(self, state));
    }

    /// Answers a host call and judges it.
    pub(super) fn host_call(&self, regs: &mut HostRegs) {
        let serve = |regs: &mut HostRegs| super::guests::host_call(self, regs);
        judged(&IMAGE.judges.oracle, true, regs, serve, |state| read(self, state));
    }
}

fn read(running: &Running, state: &mut State<RUNS>) -> Result<(), Flaw> {
    let hw = running.hw();
    let vms = live::vms(&IMAGE.vms, hw);
    read_hypervisor(&running.state, hw, hw.untraced(), vms.iter().copied(), state)
}
