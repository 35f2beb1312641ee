//! The cases of `boot_tests::matrix` as tests, and boots that are held against something else.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says that it failed"
)]

mod docs_snapshot;
mod linux_view;
mod measurement;

use boot_tests::case::Case;
use boot_tests::matrix::{GUESTS, cases};
use libtest_mimic::{Arguments, Failed, Trial};
use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;
use xtask::linux::Linux;

/// A machine has 4 CPUs of its own: more at once would only take time from each other's limits.
const MOST_AT_ONCE: usize = 3;

/// A test that cannot be run here counts as ignored, and says why.
fn ignored_for(trial: Trial, obstacle: Option<String>) -> Trial {
    if let Some(obstacle) = &obstacle {
        eprintln!("{}: NOT RUN: {obstacle}", trial.name());
    }
    trial.with_ignored_flag(obstacle.is_some())
}

fn trial(case: Case) -> Trial {
    let (name, obstacle) = (case.name.clone(), case.obstacle());
    let boot = move || case.run().map_err(|error| Failed::from(format!("{error:#}")));
    ignored_for(Trial::test(name, boot), obstacle)
}

/// A test that panics if it fails.
fn compared(name: String, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// Boots that are held against something else, the longest first.
fn comparisons() -> Vec<Trial> {
    let no_linux = Linux::find().err().map(|error| format!("{error:#}"));
    let view = |cpu: &&'static str| {
        let cpu = *cpu;
        let test = move || linux_view::linux_sees_the_same_with_and_without(cpu);
        ignored_for(compared(format!("boot::linux_view[{cpu}]"), test), no_linux.clone())
    };
    let mut trials: Vec<Trial> = GUESTS.iter().map(view).collect();
    trials.push(compared(
        "boot::measurement[max]".to_owned(),
        measurement::a_realm_on_el2_reads_what_anyone_can_compute,
    ));
    trials.push(compared(
        "boot::docs_snapshot[max]".to_owned(),
        docs_snapshot::docs_snapshot_shows_what_the_demo_shows,
    ));
    trials
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let at_once = available_parallelism().map_or(1, NonZero::get).min(MOST_AT_ONCE);
    arguments.test_threads.get_or_insert(at_once);
    // What is left at the end leaves a CPU idle: the long ones begin.
    let trials = comparisons().into_iter().chain(cases().into_iter().map(trial)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
