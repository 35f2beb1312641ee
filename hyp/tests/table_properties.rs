//! The table engine under random sequences of operations, on every kind of CPU and every shape of
//! table: `testkit::engine` says what is looked at after each step.
//!
//! `PROPTEST_CASES` raises the number of sequences for each property.
#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a test that panics says that it failed"
)]

use hyp::hw::CpuFeatures;
use hyp::pgtable::Level;
use proptest::prelude::{ProptestConfig, Strategy, any, proptest};
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use testkit::action::{Action, Attributes, Operation, Output, Place, Stretch, Unit, sequences};
use testkit::engine::Tally;
use testkit::features::MATRIX;
use testkit::script::Script;
use testkit::subject::Setup;

/// Sequences of one property where `PROPTEST_CASES` does not say otherwise.
const CASES: u32 = 150;
/// Operations in a sequence.
const MOST: usize = 16;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")) as Box<_>);
    ProptestConfig { cases, failure_persistence, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

/// A CPU of the matrix and a table that fits it.
fn machines() -> impl Strategy<Value = (CpuFeatures, Setup)> {
    (0..MATRIX.len(), any::<proptest::sample::Index>()).prop_map(|(cpu, setup)| {
        let (_, features) = MATRIX.get(cpu).unwrap();
        let setups = Setup::all(features);
        (*features, *setup.get(&setups))
    })
}

fn run(features: CpuFeatures, setup: Setup, actions: &[Action]) -> Tally {
    Script { features, setup, actions: actions.to_vec() }.run()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_is_done_cpus_reach_what_the_model_says(
        (features, setup) in machines(),
        actions in sequences(MOST),
    ) {
        run(features, setup, &actions);
    }
}

/// Random operations are worth their time only if most of them do something.
#[test]
fn most_random_operations_are_done() {
    let mut runner = TestRunner::deterministic();
    let mut tally = Tally::new();
    for _ in 0..40 {
        let (features, setup) = machines().new_tree(&mut runner).unwrap().current();
        let actions = sequences(MOST).new_tree(&mut runner).unwrap().current();
        for (name, (all, refused)) in run(features, setup, &actions) {
            let (a, b) = tally.entry(name).or_default();
            (*a, *b) = (*a + all, *b + refused);
        }
    }
    for name in Operation::NAMES {
        let (all, refused) = tally.get(name).copied().unwrap_or_default();
        assert!(all >= 3 && refused * 4 <= all * 3, "{name}: {refused} of {all} refused; {tally:?}");
    }
    println!("{tally:?}");
}

/// A table that starts at level 2 has no entry of level 1, so there is nothing to fold to one.
#[test]
fn a_block_is_folded_at_the_level_that_was_asked_for() {
    let features = testkit::features::MAX;
    let shape = |setup: &&Setup| setup.geometry.start() == Level::L2;
    let setup = *Setup::all(&features).iter().find(shape).unwrap();
    let place = Place { landmark: 0, delta: 0, unit: Unit::Block2 };
    let stretch = Stretch { place, length: 1, unit: Unit::Block2 };
    let attributes = Attributes { access: 7, memory: 0, state: 0, accessed: true };
    let operations = [
        Operation::Map(stretch, Output::Aligned, attributes, Unit::Block2),
        Operation::Split(stretch, Unit::Page),
        Operation::FoldBlock(place, Unit::Block1),
        Operation::FoldBlock(place, Unit::Block2),
    ];
    run(features, setup, &operations.map(|operation| Action { cpu: 0, faults: false, operation }));
}

/// Every CPU and every shape once: the random choice may take long to come by.
#[test]
fn every_shape_works_on_every_cpu() {
    let attributes = Attributes { access: 1, memory: 0, state: 0, accessed: true };
    for (name, features) in MATRIX {
        for setup in Setup::all(&features) {
            // The first and the last 2 MiB, and what lies around the middle.
            let places = [(0, 0, 0), (2, -1, 1), (1, -2, 4)];
            let actions: Vec<Action> = places
                .into_iter()
                .flat_map(|(landmark, delta, length)| {
                    let place = Place { landmark, delta, unit: Unit::Block2 };
                    let stretch = Stretch { place, length: 1_u8.max(length), unit: Unit::Block2 };
                    let map = Operation::Map(stretch, Output::Aligned, attributes, Unit::Block1);
                    let page = Stretch { place, length: 1, unit: Unit::Page };
                    [map, Operation::Unmap(page), Operation::Fold(stretch), Operation::Unmap(stretch)]
                })
                .map(|operation| Action { cpu: 1, faults: true, operation })
                .collect();
            println!("{name} {setup:?}");
            run(features, setup, &actions);
        }
    }
}
