//! The committed figures, and what today's are against them.

use crate::figures::SECTIONS;
use crate::ours::{Measured, Run, Values};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use xtask::show::{grouped, words};

/// A figure may be so many hundredths above that of the baseline.
const PERCENT: u64 = 3;

/// What was measured when the baseline was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// What compiled the images, as it names itself.
    pub compiler: String,
    /// The figures.
    pub figures: Measured,
}

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Each is a regression.
    pub worse: Vec<String>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

/// The file of the committed baseline.
#[must_use]
pub fn file() -> PathBuf {
    xtask::workspace().join("bench/baseline.json")
}

/// What the compiler says that it is.
///
/// # Errors
/// It cannot be started.
pub fn compiler() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().context("cannot start rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Baseline {
    /// The committed one.
    ///
    /// # Errors
    /// There is none that can be read.
    pub fn read() -> Result<Self> {
        let path = file();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no baseline", path.display()))
    }

    /// Makes it the committed one.
    ///
    /// # Errors
    /// A figure that has no description; the file cannot be written.
    pub fn write(&self) -> Result<()> {
        for (run, values) in &self.figures {
            if let Some(name) = values.keys().find(|name| !is_described(name)) {
                bail!("{run} has the figure {name}, which bench/src/figures.rs does not describe");
            }
        }
        let text = format!("{:#}\n", serde_json::to_value(self)?);
        fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
    }

    /// Holds `now` to the budgets and, if it is of the same compiler, to the baseline.
    #[must_use]
    pub fn compare(&self, now: &Self) -> Findings {
        let mut findings = Findings::default();
        let nothing = Values::new();
        let comparable = self.compiler == now.compiler;
        for run in Run::all() {
            let name = run.name();
            let (before, now) =
                (self.figures.get(&name).unwrap_or(&nothing), now.figures.get(&name).unwrap_or(&nothing));
            findings.regressions(&name, before, now, comparable);
            for figure in run.section.figures {
                let (value, most) = (now.get(figure.name), figure.most(run.cpu, run.gibibytes));
                if let Some((value, most)) = value.zip(most).filter(|(value, most)| *value > most) {
                    findings.worse.push(format!(
                        "{} is {}, its budget {} ({name})",
                        words(figure.name),
                        grouped(*value),
                        grouped(most)
                    ));
                }
            }
        }
        findings
    }
}

fn is_described(name: &str) -> bool {
    SECTIONS.iter().any(|section| section.figures.iter().any(|figure| figure.name == name))
}

impl Findings {
    fn regressions(&mut self, run: &str, before: &Values, now: &Values, comparable: bool) {
        for (name, old) in before {
            let shown = words(name);
            let Some(new) = now.get(name) else {
                self.worse.push(format!("{shown} is gone, it was {} ({run})", grouped(*old)));
                continue;
            };
            let line = format!("{shown}: {}, the baseline is {} ({run})", grouped(*new), grouped(*old));
            let beyond = new.saturating_mul(100) > old.saturating_mul(100_u64.saturating_add(PERCENT));
            if beyond && comparable {
                self.worse.push(line);
            } else if beyond {
                self.notes.push(format!("worse, by another compiler: {line}"));
            } else if new < old {
                self.notes.push(format!("better: {line}"));
            } else if new > old {
                self.notes.push(format!("worse, but no more than {PERCENT} %: {line}"));
            }
        }
        for (name, new) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
            self.notes.push(format!("new: {} is {} ({run})", words(name), grouped(*new)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(before: &[(&str, u64)], now: &[(&str, u64)]) -> Findings {
        let measured = |values: &[(&str, u64)]| {
            let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            Measured::from([("calls, max, 1 GiB".to_owned(), values)])
        };
        let baseline = |values| Baseline { compiler: String::new(), figures: measured(values) };
        baseline(before).compare(&baseline(now))
    }

    #[test]
    fn another_compiler_is_held_to_the_budgets_alone() {
        let figures = |value| {
            Measured::from([(
                "calls, max, 1 GiB".to_owned(),
                Values::from([("empty_call".to_owned(), value)]),
            )])
        };
        let before = Baseline { compiler: "one".to_owned(), figures: figures(100) };
        let now = |value| Baseline { compiler: "two".to_owned(), figures: figures(value) };
        let found = before.compare(&now(149));
        assert_eq!((found.worse.len(), found.notes.len()), (0, 1));
        assert_eq!(before.compare(&now(151)).worse.len(), 1);
    }

    #[test]
    fn three_percent_more_is_worse_and_both_numbers_are_said() {
        let found = findings(&[("boot", 1000)], &[("boot", 1031)]);
        assert_eq!(found.worse, ["boot: 1 031, the baseline is 1 000 (calls, max, 1 GiB)"]);
        let found = findings(&[("boot", 1000)], &[("boot", 1030)]);
        assert_eq!((found.worse.len(), found.notes.len()), (0, 1));
    }

    #[test]
    fn a_vanished_figure_is_worse() {
        assert_eq!(findings(&[("boot", 7)], &[]).worse, ["boot is gone, it was 7 (calls, max, 1 GiB)"]);
    }

    #[test]
    fn a_better_and_a_new_figure_are_said() {
        let found = findings(&[("boot", 1000)], &[("boot", 10), ("share", 5)]);
        assert_eq!(
            found.notes,
            [
                "better: boot: 10, the baseline is 1 000 (calls, max, 1 GiB)",
                "new: share is 5 (calls, max, 1 GiB)"
            ]
        );
        assert!(found.worse.is_empty());
    }

    #[test]
    fn a_budget_holds_whatever_the_baseline_says() {
        let found = findings(&[("empty_call", 151)], &[("empty_call", 151)]);
        assert_eq!(found.worse, ["empty call is 151, its budget 150 (calls, max, 1 GiB)"]);
    }

    #[test]
    fn equal_figures_need_no_word() {
        assert_eq!(findings(&[("boot", 9)], &[("boot", 9)]), Findings::default());
    }

    #[test]
    fn the_committed_baseline_has_every_boot_and_every_figure() {
        let baseline = Baseline::read().unwrap();
        for run in Run::all() {
            assert!(baseline.figures.contains_key(&run.name()), "{}", run.name());
        }
        for figure in SECTIONS.iter().flat_map(|section| section.figures) {
            assert!(
                baseline.figures.values().any(|values| values.contains_key(figure.name)),
                "{}",
                figure.name
            );
        }
        assert!(baseline.figures.values().flat_map(Values::keys).all(|name| is_described(name)));
    }
}
