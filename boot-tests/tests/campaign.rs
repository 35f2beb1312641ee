//! A campaign with one CPU at a time is its seed's and nothing else's. Other boots at once would hold a guest up for
//! longer than its turn lasts, so this program has no other test.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test a panic is a verdict")]

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use xtask::campaign::once;
use xtask::protocol::Report;

/// The sum over every call, its arguments and its answer; the last lot is whole.
fn schedule(report: &Report) -> u64 {
    report.metrics.iter().find(|figure| figure.name == "schedule").unwrap().value
}

fn the_same_seed_gives_the_same_calls_and_answers() {
    let boot = |seed: u64| once("max", &format!("seed={seed} calls=800 schedule=logical")).unwrap();
    let (first, again, other) = (boot(7), boot(7), boot(8));
    assert_eq!(schedule(&first), schedule(&again));
    assert_ne!(schedule(&first), schedule(&other));
}

fn main() -> ExitCode {
    let test = || {
        the_same_seed_gives_the_same_calls_and_answers();
        Ok(())
    };
    let trials = vec![Trial::test("boot::campaign_by_seed[max]", test)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
