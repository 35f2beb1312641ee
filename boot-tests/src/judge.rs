//! Decides whether a boot did what its case says it must.

use anyhow::{Context, Result, bail, ensure};
use xtask::protocol::{Line, Report};
use xtask::run::{End, Outcome};
use xtask::symbols::Frame;

/// What a boot must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The scenario passes and the machine comes to an orderly end.
    Pass,
    /// As `Pass`, and the end is this one.
    PassBy(Ending),
    /// As `Pass`, and each of these is a part of a line of the console.
    PassSaying(&'static [&'static str]),
    /// A check fails, and the machine ends with exit status 1.
    Fail,
    /// The scenario passes, as the exit status says, and nothing has come out of the console.
    Silence,
    /// The hypervisor gives exactly one error line, which contains these words, starts no host and powers off.
    Refusal(&'static str),
    /// The hypervisor panics for this reason, with these functions on its stack, innermost first.
    Panic {
        /// Part of the line that says why.
        reason: &'static str,
        /// Each is part of a function's name.
        functions: &'static [&'static str],
    },
}

/// How firmware was asked to end the machine. QEMU's exit status is 0 for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET.
    Reset,
}

/// The trace event of QEMU, on its standard error, that only a request to power off makes.
pub const POWER_OFF_EVENT: &str = "qemu_system_shutdown_request";

/// Compares what happened with what must happen; `name` gives the functions of the panic's frames.
///
/// # Errors
/// They differ; the message says how.
pub fn judge(
    expect: Expect,
    scenario: &str,
    outcome: &Outcome,
    name: impl FnOnce(&str) -> Result<Vec<Frame>>,
) -> Result<()> {
    let report = Report::parse(&outcome.console);
    match expect {
        Expect::Pass => pass(scenario, &report, outcome)?,
        Expect::PassBy(ending) => {
            pass(scenario, &report, outcome)?;
            let seen =
                if outcome.errors.contains(POWER_OFF_EVENT) { Ending::PowerOff } else { Ending::Reset };
            ensure!(seen == ending, "the end was to be by {ending:?}, not by {seen:?}");
        }
        Expect::PassSaying(words) => {
            pass(scenario, &report, outcome)?;
            for words in words {
                ensure!(outcome.console.contains(words), "nobody said '{words}'");
            }
        }
        Expect::Fail => {
            ensure!(report.panic.is_none(), "a panic instead of a failed check");
            ensure!(!report.failed.is_empty(), "no check failed");
            ensure!(outcome.end == End::Exited(1), "exit status 1 was to come, not: {}", outcome.end);
        }
        Expect::Silence => {
            ensure!(outcome.console.is_empty(), "the console was to stay silent");
            ensure!(outcome.end == End::Exited(0), "exit status 0 was to come, not: {}", outcome.end);
        }
        Expect::Refusal(words) => refusal(words, &report, outcome)?,
        Expect::Panic { reason, functions } => {
            let Some(panic) = &report.panic else { bail!("no panic ({})", outcome.end) };
            ensure!(panic.contains(reason), "another panic than '{reason}': {panic}");
            ensure!(outcome.end != End::TimedOut, "the panic did not stop the machine");
            stack(functions, &name(&outcome.console)?)?;
        }
    }
    Ok(())
}

fn pass(scenario: &str, report: &Report, outcome: &Outcome) -> Result<()> {
    report.verdict(scenario).with_context(|| format!("the machine ended: {}", outcome.end))?;
    ensure!(outcome.orderly(), "the scenario passed, but the machine did not end well: {}", outcome.end);
    Ok(())
}

/// With no console known yet, the line comes by semihosting, which QEMU writes to its standard error.
fn refusal(words: &str, report: &Report, outcome: &Outcome) -> Result<()> {
    let lines = outcome.console.lines().chain(outcome.errors.lines());
    let errors: Vec<&str> = lines
        .filter_map(|line| match Line::parse(line) {
            Line::Hypervisor(text) => text.strip_prefix("error: "),
            _ => None,
        })
        .collect();
    ensure!(report.panic.is_none(), "a panic instead of a refusal");
    ensure!(report.begun.is_empty(), "the host was started");
    ensure!(errors.len() == 1, "one error line was to come, not {}: {errors:?}", errors.len());
    ensure!(errors.iter().all(|line| line.contains(words)), "another error than '{words}': {errors:?}");
    ensure!(outcome.orderly(), "the machine did not power off: {}", outcome.end);
    Ok(())
}

/// `functions` stand among the frames in this order, each with a place in a source file.
fn stack(functions: &[&str], frames: &[Frame]) -> Result<()> {
    let mut rest = frames.iter();
    for function in functions {
        let Some(frame) = rest.find(|frame| frame.function.contains(function)) else {
            let names: Vec<String> = frames.iter().map(ToString::to_string).collect();
            bail!("no {function} (in this order) in the backtrace:\n  {}", names.join("\n  "));
        };
        ensure!(frame.file.ends_with(".rs") && frame.line > 0, "no file and line: {frame}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn outcome(console: &str, errors: &str, end: End) -> Outcome {
        Outcome { console: console.to_owned(), errors: errors.to_owned(), end, took: Duration::ZERO }
    }

    fn frame(function: &str, file: &str, line: u32) -> Frame {
        Frame { function: function.to_owned(), file: file.to_owned(), line }
    }

    fn verdict(expect: Expect, outcome: &Outcome) -> Result<()> {
        let stack =
            || vec![frame("rampart::stop", "hyp/src/a.rs", 3), frame("rampart::boot", "hyp/src/b.rs", 9)];
        judge(expect, "smoke", outcome, |_| Ok(stack()))
    }

    const PASSED: &str = "@begin smoke\n@pass a\n@end smoke passed=1 failed=0\n";

    #[test]
    fn a_pass_needs_the_protocol_and_an_orderly_end() {
        assert!(verdict(Expect::Pass, &outcome(PASSED, "", End::Exited(0))).is_ok());
        for end in [End::Exited(1), End::TimedOut, End::LastWord, End::Killed, End::TooMuchOutput] {
            assert!(verdict(Expect::Pass, &outcome(PASSED, "", end)).is_err(), "{end}");
        }
        assert!(verdict(Expect::Pass, &outcome("@begin smoke\n@pass a\n", "", End::Exited(0))).is_err());
        assert!(verdict(Expect::Pass, &outcome(&PASSED.replace("smoke", "x"), "", End::Exited(0))).is_err());
    }

    #[test]
    fn power_off_and_reset_are_told_apart() {
        let by = |ending, errors| verdict(Expect::PassBy(ending), &outcome(PASSED, errors, End::Exited(0)));
        let off = "qemu_system_shutdown_request reason=6\n";
        assert!(by(Ending::PowerOff, off).is_ok() && by(Ending::Reset, "").is_ok());
        assert!(by(Ending::PowerOff, "").is_err() && by(Ending::Reset, off).is_err());
    }

    #[test]
    fn what_was_to_be_said_is_said() {
        let console = format!("{PASSED}rampart: warn: CPU 3 is lost\n");
        let saying = |words| verdict(Expect::PassSaying(words), &outcome(&console, "", End::Exited(0)));
        assert!(saying(&["warn: CPU 3", "@pass a"]).is_ok());
        assert!(saying(&["warn: CPU 3", "warn: CPU 2"]).is_err());
        let failed = outcome("@begin smoke\nrampart: warn: CPU 3 is lost\n", "", End::Exited(0));
        assert!(verdict(Expect::PassSaying(&["CPU 3"]), &failed).is_err());
    }

    #[test]
    fn a_failure_needs_a_failed_check_and_the_exit_status() {
        let failed = "@begin smoke\n@fail a: b\n@end smoke passed=0 failed=1\n";
        assert!(verdict(Expect::Fail, &outcome(failed, "", End::Exited(1))).is_ok());
        assert!(verdict(Expect::Fail, &outcome(failed, "", End::Exited(0))).is_err());
        assert!(verdict(Expect::Fail, &outcome(PASSED, "", End::Exited(1))).is_err());
    }

    #[test]
    fn silence_is_an_empty_console_and_exit_status_0() {
        assert!(verdict(Expect::Silence, &outcome("", "", End::Exited(0))).is_ok());
        assert!(verdict(Expect::Silence, &outcome(PASSED, "", End::Exited(0))).is_err());
        assert!(verdict(Expect::Silence, &outcome("", "", End::Exited(1))).is_err());
        assert!(verdict(Expect::Silence, &outcome("", "", End::TimedOut)).is_err());
    }

    const REFUSED: &str = "rampart: info: here\nrampart: error: device tree: no CPU node\n";
    const NO_CPU: Expect = Expect::Refusal("no CPU node");

    #[test]
    fn a_refusal_is_one_line_on_the_console_or_by_semihosting() {
        assert!(verdict(NO_CPU, &outcome(REFUSED, "", End::Exited(0))).is_ok());
        assert!(verdict(NO_CPU, &outcome("", REFUSED, End::Exited(0))).is_ok());
        assert!(verdict(NO_CPU, &outcome(REFUSED, REFUSED, End::Exited(0))).is_err());
        assert!(verdict(NO_CPU, &outcome("", "", End::Exited(0))).is_err());
        assert!(verdict(Expect::Refusal("no GIC"), &outcome(REFUSED, "", End::Exited(0))).is_err());
    }

    #[test]
    fn a_refusal_starts_no_host_and_stops_the_machine_without_a_panic() {
        assert!(verdict(NO_CPU, &outcome(&format!("{REFUSED}{PASSED}"), "", End::Exited(0))).is_err());
        assert!(verdict(NO_CPU, &outcome(REFUSED, "", End::TimedOut)).is_err());
        let panicked = format!("{REFUSED}rampart: PANIC: cpu 0: oh\n");
        assert!(verdict(NO_CPU, &outcome(&panicked, "", End::Exited(0))).is_err());
    }

    const PANICKED: &str = "rampart: PANIC: cpu 2: on purpose\nrampart: end of panic\n";

    #[test]
    fn a_panic_must_be_the_expected_one_with_the_expected_stack() {
        let case = |reason, functions| {
            verdict(Expect::Panic { reason, functions }, &outcome(PANICKED, "", End::Exited(0)))
        };
        assert!(case("on purpose", &["stop", "boot"]).is_ok());
        assert!(case("by accident", &["stop"]).is_err());
        assert!(case("on purpose", &["boot", "stop"]).is_err());
        assert!(case("on purpose", &["host"]).is_err());
        let hung = outcome(PANICKED, "", End::TimedOut);
        assert!(verdict(Expect::Panic { reason: "on purpose", functions: &[] }, &hung).is_err());
        let silent = outcome(PASSED, "", End::Exited(0));
        assert!(verdict(Expect::Panic { reason: "", functions: &[] }, &silent).is_err());
    }

    #[test]
    fn a_frame_without_file_and_line_does_not_count() {
        assert!(stack(&["a"], &[frame("a", "?", 0)]).is_err());
        assert!(stack(&["a"], &[frame("a", "x.rs", 0)]).is_err());
        assert!(stack(&["a"], &[frame("a", "x.rs", 1)]).is_ok());
    }
}
