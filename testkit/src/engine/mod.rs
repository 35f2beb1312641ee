//! The harness of the table engine: one table, a model of it, and everything that can be asked
//! after an operation.
//!
//! After every step ([`Engine::check`]):
//! - the words in memory, read by the independent walker, say what the model says, no more;
//! - every table page is reachable from the root exactly once, is in use in the pool, and has the
//!   count that its entries have: nothing leaks, nothing is freed too early;
//! - every descriptor that any CPU remembers translates as the model does, or less;
//! - what every CPU reaches at the edges of the operation is what the model says;
//! - the engine's own lookup agrees;
//! - the checker has no open entry.

mod look;
mod perform;

use crate::action::Action;
use crate::machine::{Config, Cpu, Sim};
use crate::model::Model;
use crate::pool::TestPool;
use crate::subject::{Setup, Subject};
use hyp::hw::CpuFeatures;
use hyp::lock::Lock;
use hyp::pgtable::Table;
use hyp::spec::checker::Scope;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Pages that the pool has: more than any sequence of bounded operations can use.
const POOL: u64 = 6000;
/// Entries that one operation may write, so that a test stays short.
const MOST_ENTRIES: u64 = 500;

/// A table of regime `R` and the model of it.
pub struct Engine<R: Subject> {
    sim: Arc<Sim>,
    cpus: Vec<Cpu>,
    table: Lock<Table<R>, Cpu>,
    pool: TestPool,
    model: Model<R::Attrs, R::Note>,
    setup: Setup,
    limit: u64,
    tally: Tally,
    current: &'static str,
}

/// How many operations of each kind were answered, and how many of these were refused.
pub type Tally = BTreeMap<&'static str, (u32, u32)>;

impl<R: Subject> fmt::Debug for Engine<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("setup", &self.setup)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl<R: Subject> Engine<R> {
    /// An empty table on a machine of two such CPUs.
    ///
    /// # Panics
    /// If the engine refuses to make it.
    #[must_use]
    pub fn new(features: CpuFeatures, setup: Setup) -> Self {
        let sim = Config { scope: Scope::Tables, ..Config::new(features) }.build();
        sim.record(false);
        // EL2's own table, if that is the one, is made while EL2 does not translate yet.
        sim.translate_el2(false);
        let cpus: Vec<Cpu> = (0..sim.cpus()).map(|id| sim.cpu(id)).collect();
        let mut pool = TestPool::new(&sim, POOL);
        let table = R::table(&cpus[0], &mut pool, setup).expect("a table of a shape that fits the CPU");
        let limit = table.geometry().limit();
        let table = Lock::new(R::rank(setup), table);
        Self {
            sim,
            cpus,
            table,
            pool,
            model: Model::default(),
            setup,
            limit,
            tally: Tally::new(),
            current: "",
        }
    }

    /// Does one thing after another, and looks at everything after each.
    ///
    /// # Panics
    /// If anything is not as it must be.
    pub fn run(&mut self, actions: &[Action]) {
        self.check(&[]);
        for action in actions {
            self.perform(action);
        }
    }

    /// The machine.
    #[must_use]
    pub fn sim(&self) -> &Arc<Sim> {
        &self.sim
    }

    /// What was done so far. Operations whose arguments make no range are not counted.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The pool.
    #[must_use]
    pub const fn pool(&self) -> &TestPool {
        &self.pool
    }

    /// Addresses at and beside both ends of a range, inside the space.
    fn edges(&self, start: u64, end: u64) -> Vec<u64> {
        let middle = (start + (end - start) / 2) & !0xfff;
        let all = [start.wrapping_sub(4096), start, middle, end.wrapping_sub(4096), end];
        all.into_iter().filter(|ia| *ia < self.limit).collect()
    }
}
