//! The cases of `boot_tests::matrix` as tests.

use boot_tests::case::Case;
use boot_tests::matrix::cases;
use libtest_mimic::{Arguments, Failed, Trial};
use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;

/// A machine has 4 CPUs of its own: more at once would only take time from each other's limits.
const MOST_AT_ONCE: usize = 3;

/// A case that cannot be run here counts as ignored, and says why.
fn trial(case: Case) -> Trial {
    let obstacle = case.obstacle();
    if let Some(obstacle) = &obstacle {
        eprintln!("{}: NOT RUN: {obstacle}", case.name);
    }
    Trial::test(case.name.clone(), move || case.run().map_err(|error| Failed::from(format!("{error:#}"))))
        .with_ignored_flag(obstacle.is_some())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let at_once = available_parallelism().map_or(1, NonZero::get).min(MOST_AT_ONCE);
    arguments.test_threads.get_or_insert(at_once);
    libtest_mimic::run(&arguments, cases().into_iter().map(trial).collect()).exit_code()
}
