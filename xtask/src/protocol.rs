//! The line protocol that the host image speaks on the console, and the verdict over a whole console.
//!
//! A protocol line stands at the start of a line: `@begin SCENARIO`, `@step TEXT`, `@pass NAME`,
//! `@fail NAME: REASON`, `@skip NAME: REASON`, `@metric NAME VALUE UNIT`, `@reboot passed=N failed=N`,
//! `@end SCENARIO passed=N failed=N`.
//! The hypervisor's own lines start with `rampart: `; one that goes on with `metric: NAME VALUE UNIT` is a figure too.

use serde::Serialize;
use std::fmt;

/// What a line of the console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// A scenario starts.
    Begin(&'a str),
    /// What happens next, in words for people.
    Step(&'a str),
    /// A check held.
    Pass(&'a str),
    /// A check did not hold, and why.
    Fail(&'a str, &'a str),
    /// A check does not apply here, and why.
    Skip(&'a str, &'a str),
    /// A figure.
    Metric {
        /// What was measured.
        name: &'a str,
        /// How much.
        value: u64,
        /// Of what.
        unit: &'a str,
    },
    /// The machine resets on purpose and the scenario goes on in the next boot; its count so far.
    Reboot {
        /// Checks that held.
        passed: usize,
        /// Checks that did not.
        failed: usize,
    },
    /// A scenario is over, by its own count.
    End {
        /// Its name.
        scenario: &'a str,
        /// Checks that held.
        passed: usize,
        /// Checks that did not.
        failed: usize,
    },
    /// The hypervisor speaks; the text after `rampart: `.
    Hypervisor(&'a str),
    /// Starts with `@` and is none of the above.
    Malformed(&'a str),
    /// Anything else.
    Other(&'a str),
}

impl<'a> Line<'a> {
    /// Reads one line.
    #[must_use]
    pub fn parse(line: &'a str) -> Self {
        let line = line.trim_end();
        if let Some(text) = line.strip_prefix("rampart: ") {
            return Self::Hypervisor(text);
        }
        if !line.starts_with('@') {
            return Self::Other(line);
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let parsed = match word {
            "@begin" if is_name(rest) => Some(Self::Begin(rest)),
            "@step" if !rest.is_empty() => Some(Self::Step(rest)),
            "@pass" if !rest.is_empty() => Some(Self::Pass(rest)),
            "@fail" => {
                Some(rest.split_once(": ").map_or(Self::Fail(rest, ""), |(n, why)| Self::Fail(n, why)))
            }
            "@skip" => rest.split_once(": ").map(|(name, why)| Self::Skip(name, why)),
            "@metric" => metric(rest),
            "@reboot" => counts(rest).map(|(passed, failed)| Self::Reboot { passed, failed }),
            "@end" => end(rest),
            _ => None,
        };
        parsed.unwrap_or(Self::Malformed(line))
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(' ')
}

fn metric(rest: &str) -> Option<Line<'_>> {
    let mut words = rest.split(' ');
    let (name, value, unit) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    words.next().is_none().then_some(Line::Metric { name, value, unit })
}

fn end(rest: &str) -> Option<Line<'_>> {
    let (scenario, rest) = rest.split_once(' ')?;
    let (passed, failed) = counts(rest)?;
    Some(Line::End { scenario, passed, failed })
}

fn counts(rest: &str) -> Option<(usize, usize)> {
    let (passed, failed) = rest.split_once(' ')?;
    Some((passed.strip_prefix("passed=")?.parse().ok()?, failed.strip_prefix("failed=")?.parse().ok()?))
}

/// A figure that a scenario measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: u64,
    /// Of what.
    pub unit: String,
}

/// A check and what is to be said about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// The check.
    pub name: String,
    /// Why it failed or was left out.
    pub reason: String,
}

/// How a scenario ended by its own count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// The scenario's name.
    pub scenario: String,
    /// Checks that held.
    pub passed: usize,
    /// Checks that did not.
    pub failed: usize,
}

/// All that a console said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Scenarios that started.
    pub begun: Vec<String>,
    /// What happened, in words.
    pub steps: Vec<String>,
    /// Checks that held.
    pub passed: Vec<String>,
    /// Checks that did not.
    pub failed: Vec<Remark>,
    /// Checks that did not apply.
    pub skipped: Vec<Remark>,
    /// Figures.
    pub metrics: Vec<Metric>,
    /// Scenarios that ended.
    pub ended: Vec<Totals>,
    /// The hypervisor panicked: its first line about it.
    pub panic: Option<String>,
    /// Lines that start with `@` and say nothing known.
    pub malformed: Vec<String>,
}

/// Why a console does not show a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// EL2 panicked.
    Panic(String),
    /// A check failed.
    Checks(Vec<Remark>),
    /// Protocol lines that cannot be read.
    Malformed(Vec<String>),
    /// The scenario did not start exactly once; these started.
    Begin(Vec<String>),
    /// The scenario did not reach its end exactly once.
    NoEnd,
    /// The scenario's count of (passed, failed) differs from the lines seen.
    Count {
        /// What `@end` says.
        said: (usize, usize),
        /// What the lines before it say.
        seen: (usize, usize),
    },
    /// Nothing was checked.
    Nothing,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(line) => write!(f, "the hypervisor panicked: {line}"),
            Self::Checks(remarks) => {
                write!(f, "{} failed", if remarks.len() == 1 { "a check" } else { "checks" })?;
                remarks.iter().try_for_each(|Remark { name, reason }| write!(f, "\n  {name}: {reason}"))
            }
            Self::Malformed(lines) => write!(f, "broken protocol lines: {lines:?}"),
            Self::Begin(seen) if seen.is_empty() => write!(f, "the scenario did not start"),
            Self::Begin(seen) => write!(f, "other scenarios started than the one asked for: {seen:?}"),
            Self::NoEnd => write!(f, "the scenario did not come to its end"),
            Self::Count { said, seen } => write!(
                f,
                "the scenario counted {} passed, {} failed, the console shows {} and {}",
                said.0, said.1, seen.0, seen.1
            ),
            Self::Nothing => write!(f, "the scenario checked nothing"),
        }
    }
}

impl std::error::Error for Failure {}

impl Report {
    /// Reads a whole console.
    #[must_use]
    pub fn parse(console: &str) -> Self {
        let mut report = Self::default();
        console.lines().for_each(|line| report.add(line));
        report
    }

    /// Reads one more line.
    pub fn add(&mut self, line: &str) {
        let remark = |name: &str, reason: &str| Remark { name: name.to_owned(), reason: reason.to_owned() };
        match Line::parse(line) {
            Line::Begin(scenario) => self.begun.push(scenario.to_owned()),
            Line::Step(text) => self.steps.push(text.to_owned()),
            Line::Pass(name) => self.passed.push(name.to_owned()),
            Line::Fail(name, reason) => self.failed.push(remark(name, reason)),
            Line::Skip(name, reason) => self.skipped.push(remark(name, reason)),
            Line::Metric { name, value, unit } => self.figure(name, value, unit),
            Line::End { scenario, passed, failed } => {
                self.ended.push(Totals { scenario: scenario.to_owned(), passed, failed });
            }
            Line::Hypervisor(text) => self.add_of_hypervisor(text),
            Line::Reboot { passed, failed } => {
                // What comes is a second start of the same scenario, which counts its own checks.
                if (passed, failed) == (self.passed.len(), self.failed.len()) && self.begun.pop().is_some() {
                    self.passed.clear();
                } else {
                    self.malformed.push(line.to_owned());
                }
            }
            Line::Malformed(line) => self.malformed.push(line.to_owned()),
            Line::Other(_) => {}
        }
    }

    fn add_of_hypervisor(&mut self, text: &str) {
        if let Some(figure) = text.strip_prefix("metric: ") {
            match metric(figure) {
                Some(Line::Metric { name, value, unit }) => self.figure(name, value, unit),
                _ => self.malformed.push(text.to_owned()),
            }
        } else if let (None, Some(reason)) = (&self.panic, text.strip_prefix("PANIC: ")) {
            self.panic = Some(reason.to_owned());
        }
    }

    fn figure(&mut self, name: &str, value: u64, unit: &str) {
        self.metrics.push(Metric { name: name.to_owned(), value, unit: unit.to_owned() });
    }

    /// Whether `scenario` ran once, to its end, with at least one check and none failed.
    ///
    /// # Errors
    /// The most telling reason why not.
    pub fn verdict(&self, scenario: &str) -> Result<(), Failure> {
        if let Some(line) = &self.panic {
            return Err(Failure::Panic(line.clone()));
        }
        if !self.failed.is_empty() {
            return Err(Failure::Checks(self.failed.clone()));
        }
        if !self.malformed.is_empty() {
            return Err(Failure::Malformed(self.malformed.clone()));
        }
        if self.begun != [scenario] {
            return Err(Failure::Begin(self.begun.clone()));
        }
        let [Totals { scenario: ended, passed, failed }] = self.ended.as_slice() else {
            return Err(Failure::NoEnd);
        };
        if ended != scenario {
            return Err(Failure::NoEnd);
        }
        let seen = (self.passed.len(), self.failed.len());
        if (*passed, *failed) != seen {
            return Err(Failure::Count { said: (*passed, *failed), seen });
        }
        if seen.0 == 0 {
            return Err(Failure::Nothing);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "rampart: info: 4 CPUs\n@begin demo\r\n@step ask for the version\r\n@pass version\r\n\
                        noise\n@metric empty_call 142 instructions\n@skip tags: no MTE here\n\
                        @end demo passed=1 failed=0\n";

    #[test]
    fn a_whole_console_is_read() {
        let report = Report::parse(GOOD);
        assert_eq!(report.begun, ["demo"]);
        assert_eq!(report.steps, ["ask for the version"]);
        assert_eq!(report.passed, ["version"]);
        assert_eq!(report.metrics[0].value, 142);
        assert_eq!(report.skipped[0].reason, "no MTE here");
        assert_eq!(report.ended, [Totals { scenario: "demo".to_owned(), passed: 1, failed: 0 }]);
        assert_eq!(report.verdict("demo"), Ok(()));
    }

    fn verdict(console: &str) -> Failure {
        Report::parse(console).verdict("demo").unwrap_err()
    }

    #[test]
    fn a_failed_check_fails_even_if_the_totals_deny_it() {
        let console = GOOD.replace("@skip tags: no MTE here", "@fail tags: got 3: not 4");
        let remark = Remark { name: "tags".to_owned(), reason: "got 3: not 4".to_owned() };
        assert_eq!(verdict(&console), Failure::Checks(vec![remark]));
        assert!(matches!(verdict("@begin demo\n@fail demo\n"), Failure::Checks(_)));
    }

    #[test]
    fn a_panic_outweighs_everything() {
        let console = format!("{GOOD}rampart: PANIC: cpu 1: lost\nrampart: PANIC: cpu 1: again\n");
        assert_eq!(verdict(&console), Failure::Panic("cpu 1: lost".to_owned()));
    }

    #[test]
    fn a_scenario_must_begin_once_end_once_and_count_right() {
        assert_eq!(verdict("hello\n"), Failure::Begin(vec![]));
        assert_eq!(verdict(&GOOD.replace("demo", "other")), Failure::Begin(vec!["other".to_owned()]));
        assert!(matches!(verdict(&format!("{GOOD}{GOOD}")), Failure::Begin(_)));
        assert_eq!(verdict("@begin demo\n@pass a\n"), Failure::NoEnd);
        assert_eq!(verdict("@begin demo\n@pass a\n@end other passed=1 failed=0\n"), Failure::NoEnd);
        assert_eq!(
            verdict(&GOOD.replace("passed=1", "passed=2")),
            Failure::Count { said: (2, 0), seen: (1, 0) }
        );
        assert_eq!(
            verdict(&GOOD.replace("failed=0", "failed=1")),
            Failure::Count { said: (1, 1), seen: (1, 0) }
        );
        assert_eq!(verdict("@begin demo\n@end demo passed=0 failed=0\n"), Failure::Nothing);
    }

    #[test]
    fn a_scenario_may_go_on_behind_a_reset_that_it_announced() {
        let before = "@begin demo\n@pass a\n@pass b\n@reboot passed=2 failed=0\n";
        assert_eq!(Report::parse(&format!("{before}{GOOD}")).verdict("demo"), Ok(()));
        assert_eq!(verdict(before), Failure::Begin(vec![]), "the second boot did not get that far");
        let unannounced = before.replace("@reboot passed=2 failed=0\n", "");
        assert!(matches!(verdict(&format!("{unannounced}{GOOD}")), Failure::Begin(_)));
        let lost = before.replace("@pass b\n", "");
        assert!(matches!(verdict(&format!("{lost}{GOOD}")), Failure::Malformed(_)), "the counts differ");
        let failed =
            before.replace("@pass b", "@fail b: c").replace("passed=2 failed=0", "passed=1 failed=1");
        assert!(matches!(verdict(&format!("{failed}{GOOD}")), Failure::Checks(_)), "failures count on");
        assert!(matches!(verdict(&format!("@reboot passed=0 failed=0\n{GOOD}")), Failure::Malformed(_)));
    }

    #[test]
    fn what_cannot_be_read_is_a_failure() {
        for line in [
            "@pass",
            "@begin",
            "@begin a b",
            "@metric x many y",
            "@metric x 1",
            "@end demo",
            "@reboot",
            "@reboot passed=1",
            "@skip x",
            "@hello",
        ] {
            assert_eq!(Line::parse(line), Line::Malformed(line));
            assert!(matches!(verdict(&format!("{GOOD}{line}\n")), Failure::Malformed(_)), "{line}");
        }
    }

    #[test]
    fn the_hypervisor_gives_figures_too() {
        let with = |line: &str| Report::parse(&format!("rampart: metric: {line}\r\n{GOOD}"));
        let report = with("table_map_4k 300 instructions");
        let figure = Metric { name: "table_map_4k".to_owned(), value: 300, unit: "instructions".to_owned() };
        assert_eq!(report.metrics.first(), Some(&figure));
        assert_eq!(report.verdict("demo"), Ok(()));
        assert!(matches!(with("table_map_4k many").verdict("demo"), Err(Failure::Malformed(_))));
    }

    #[test]
    fn protocol_words_inside_a_line_mean_nothing() {
        assert_eq!(Line::parse(" @pass x"), Line::Other(" @pass x"));
        assert_eq!(Line::parse("rampart: warn: @pass x"), Line::Hypervisor("warn: @pass x"));
    }
}
