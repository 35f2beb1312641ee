//! Bytes as a whole test: which CPU, which table, and what is done to it.
//!
//! The fuzzer mutates the bytes; what it found is kept as files and replayed by a plain test.
//! Every byte string means something, so none is wasted.
#![forbid(unsafe_code)]

use crate::action::Action;
use crate::engine::{Engine, Tally};
use crate::features::MATRIX;
use crate::subject::{Setup, Subject};
use arbitrary::{Arbitrary, Unstructured};
use hyp::hw::{CpuFeatures, TableOwner};
use hyp::pgtable::{HypStage1, Stage2};

/// Actions beyond these are left out: a long script hides what matters in it.
const MOST: usize = 64;

/// A table on a CPU, and what is done to it.
#[derive(Clone, Debug)]
pub struct Script {
    /// The CPU.
    pub features: CpuFeatures,
    /// The table.
    pub setup: Setup,
    /// What is done, in this order.
    pub actions: Vec<Action>,
}

impl Script {
    /// The script that `bytes` stand for: one chooses the CPU, one the table, the rest is actions.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut bytes = Unstructured::new(bytes);
        // Where there are no more bytes a number is 0.
        let mut choose = |from: usize| usize::from(u8::arbitrary(&mut bytes).unwrap_or(0)) % from;
        let (_, features) = MATRIX[choose(MATRIX.len())];
        let setups = Setup::all(&features);
        let setup = setups[choose(setups.len())];
        let mut actions = Vec::new();
        while !bytes.is_empty() && actions.len() < MOST {
            match Action::arbitrary(&mut bytes) {
                Ok(action) => actions.push(action),
                Err(_) => break,
            }
        }
        Self { features, setup, actions }
    }

    /// Does it, and looks at everything after each step.
    ///
    /// # Panics
    /// If anything is not as it must be.
    #[must_use]
    pub fn run(&self) -> Tally {
        match self.setup.owner {
            TableOwner::Hyp => self.run_on::<HypStage1>(),
            _ => self.run_on::<Stage2>(),
        }
    }

    fn run_on<R: Subject>(&self) -> Tally {
        let mut engine = Engine::<R>::new(self.features, self.setup);
        engine.run(&self.actions);
        engine.tally().clone()
    }
}
