//! `xtask campaign`: boots scenario `campaign` again and again, each time from another seed, until the time is over.
//!
//! Boots alternate between the image with the specification and the checker and the one with the audit alone, and between
//! all CPUs at once and one at a time; between them scenario `guest_hostile` is booted. What fails is kept under `target/campaign/SEED/`: the console, and where the failure
//! comes again with one CPU at a time, the shortest list of steps that this module finds, what those steps call, and a dump
//! of the host's table.

use crate::images::{Build, Images};
use crate::machine::{Host, Machine, Memory, shell_line};
use crate::protocol::Report;
use crate::qemu::Qemu;
use crate::run::{Limits, Outcome, run};
use crate::symbols::Symbols;
use abi::{Errno, HostFn};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The scenario of the host.
pub const SCENARIO: &str = "campaign";
/// Images with the specification, the checker, the audit and fault injection.
const CHECKED: &[&str] = &["hyp/spec", "hyp/fault-injection", "hyp/debug-snapshot"];
/// Without the first two.
const AUDITED: &[&str] = &["hyp/fault-injection", "hyp/debug-snapshot"];
/// Little RAM: the specification looks at every page after every call.
const RAM: Memory = Memory::mib(160);
/// Seconds after which a boot begins no lot, and after which it is given up.
const SECONDS: u64 = 60;
const LIMIT: u64 = 900;
/// Steps of a lot, as the scenario has them by itself.
const STEPS: u64 = 240;
/// Boots that making one list shorter may take.
const MOST_REPLAYS: u32 = 60;

/// What to do, and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// Minutes after which no boot begins.
    pub minutes: u64,
    /// What the seeds of the boots are drawn from.
    pub seed: u64,
    /// CPU model.
    pub cpu: String,
    /// The image with the audit alone.
    pub audited: bool,
    /// Nothing but the result, as JSON.
    pub json: bool,
}

/// One sort of boot.
#[derive(Debug, Clone, Copy)]
struct Sort {
    name: &'static str,
    features: &'static [&'static str],
    scenario: &'static str,
    words: &'static str,
}

const SORTS: [Sort; 5] = [
    Sort {
        name: "checked, one by one",
        features: CHECKED,
        scenario: SCENARIO,
        words: "calls=2500 schedule=logical",
    },
    Sort {
        name: "audited, one by one",
        features: AUDITED,
        scenario: SCENARIO,
        words: "calls=30000 arms schedule=logical",
    },
    Sort { name: "checked, racing", features: CHECKED, scenario: SCENARIO, words: "calls=1500" },
    Sort {
        name: "checked, hostile guests",
        features: CHECKED,
        scenario: "guest_hostile",
        words: "rounds=300",
    },
    Sort { name: "audited, racing", features: AUDITED, scenario: SCENARIO, words: "calls=6000 arms" },
];

/// Every call and what it answered, counted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Coverage(BTreeMap<String, u64>);

impl Coverage {
    /// The name of a cell: the call and what it answers, as the scenario's figures have it.
    #[must_use]
    pub fn cell(call: HostFn, verdict: Result<(), Errno>) -> String {
        match verdict {
            Ok(()) => format!("{}.OK", call.name()),
            Err(errno) => format!("{}.{errno:?}", call.name()),
        }
    }

    /// Every cell that docs/abi.md has.
    pub fn possible() -> impl Iterator<Item = (HostFn, Result<(), Errno>)> {
        let verdicts = |call: HostFn| std::iter::once(Ok(())).chain(call.refusals().iter().copied().map(Err));
        HostFn::ALL.into_iter().flat_map(move |call| verdicts(call).map(move |verdict| (call, verdict)))
    }

    /// Adds the figures of a boot.
    pub fn add(&mut self, report: &Report) {
        for figure in report.metrics.iter().filter(|figure| figure.unit == "answers") {
            self.add_count(&figure.name, figure.value);
        }
    }

    /// Adds to a cell.
    pub(crate) fn add_count(&mut self, name: &str, value: u64) {
        let count = self.0.entry(name.to_owned()).or_default();
        *count = count.saturating_add(value);
    }

    /// How often a cell was reached.
    #[must_use]
    pub fn count(&self, call: HostFn, verdict: Result<(), Errno>) -> u64 {
        self.0.get(&Self::cell(call, verdict)).copied().unwrap_or(0)
    }

    /// Cells that were reached.
    #[must_use]
    pub fn reached(&self) -> usize {
        Self::possible().filter(|&(call, verdict)| self.count(call, verdict) > 0).count()
    }
}

/// The result of a campaign.
#[derive(Debug, Serialize)]
struct Sum {
    seed: u64,
    cpu: String,
    boots: u64,
    seconds: u64,
    calls: u64,
    turns: u64,
    accesses_refused: u64,
    failures: Vec<String>,
    reached: usize,
    possible: usize,
    answers: Coverage,
}

/// Runs a campaign; what failed is kept.
///
/// # Errors
/// Something failed, or no machine could be booted.
pub fn campaign(options: &Options) -> Result<()> {
    let folder = crate::workspace().join("target/campaign").join(format!("{:#x}", options.seed));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let bench = Bench { qemu: Qemu::find()?, cpu: options.cpu.clone() };
    let started = Instant::now();
    let end = Duration::from_secs(options.minutes.saturating_mul(60));
    let mut sum = Sum {
        seed: options.seed,
        cpu: options.cpu.clone(),
        boots: 0,
        seconds: 0,
        calls: 0,
        turns: 0,
        accesses_refused: 0,
        failures: Vec::new(),
        reached: 0,
        possible: Coverage::possible().count(),
        answers: Coverage::default(),
    };
    if !options.json {
        println!("campaign: seed {:#x}, {} minutes on {}", options.seed, options.minutes, options.cpu);
    }
    let mut sorts = SORTS.iter().filter(|sort| !options.audited || sort.features == AUDITED).cycle();
    while started.elapsed() < end {
        let Some(sort) = sorts.next() else { break };
        let seed = seed_of(options.seed, sum.boots);
        sum.boots = sum.boots.saturating_add(1);
        let images = Build { debug: false, features: sort.features }.run()?;
        let words = format!("seed={seed:#x} seconds={SECONDS} {}", sort.words);
        let outcome = bench.boot(&images, sort.scenario, &words, None)?;
        let report = Report::parse(&outcome.console);
        sum.add(&report, started.elapsed());
        if let Err(why) = bench.judge(sort.scenario, &outcome) {
            let kept = folder.join(format!("{}-boot-{}", options.cpu, sum.boots));
            println!("FAILED: {}, {words}\n{why:#}", sort.name);
            bench.keep(&kept, sort, seed, &images, &outcome, &why)?;
            println!("kept in {}", kept.display());
            sum.failures.push(kept.display().to_string());
        }
        if !options.json {
            println!("{}", sum.line(sort.name, seed));
        }
        let result = folder.join(format!("{}.json", options.cpu));
        fs::write(&result, sum.text()?).with_context(|| result.display().to_string())?;
    }
    if options.json {
        println!("{}", sum.text()?);
    }
    ensure!(sum.failures.is_empty(), "{} of {} boots failed", sum.failures.len(), sum.boots);
    Ok(())
}

/// Boots the scenario once, on the image with the audit; `words` are its arguments.
///
/// # Errors
/// A check failed, or the machine could not be booted.
pub fn once(cpu: &str, words: &str) -> Result<Report> {
    let bench = Bench { qemu: Qemu::find()?, cpu: cpu.to_owned() };
    let images = Build { debug: false, features: AUDITED }.run()?;
    let outcome = bench.boot(&images, SCENARIO, words, None)?;
    bench.judge(SCENARIO, &outcome)?;
    Ok(Report::parse(&outcome.console))
}

/// The seed of one boot.
const fn seed_of(seed: u64, boot: u64) -> u64 {
    let x = seed.wrapping_add(boot.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ (x >> 27)) >> 16
}

impl Sum {
    fn add(&mut self, report: &Report, elapsed: Duration) {
        let figure = |name: &str| {
            let figures = report.metrics.iter().filter(|figure| figure.name == name);
            figures.map(|figure| figure.value).fold(0, u64::saturating_add)
        };
        self.calls = self.calls.saturating_add(figure("calls"));
        self.turns = self.turns.saturating_add(figure("turns"));
        self.accesses_refused = self.accesses_refused.saturating_add(figure("accesses_refused"));
        self.seconds = elapsed.as_secs();
        self.answers.add(report);
        self.reached = self.answers.reached();
    }

    fn text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    fn line(&self, name: &str, seed: u64) -> String {
        let rate = self.calls.checked_div(self.seconds.max(1)).unwrap_or(0);
        let (minutes, seconds) = (self.seconds.div_euclid(60), self.seconds.rem_euclid(60));
        format!(
            "{minutes:3} min {seconds:02} s: boot {} ({name}, seed {seed:#x}); {} calls, {rate} a second, {} turns, {} of {} outcomes, {} failures",
            self.boots,
            self.calls,
            self.turns,
            self.reached,
            self.possible,
            self.failures.len()
        )
    }
}

/// What boots run on.
struct Bench {
    qemu: Qemu,
    cpu: String,
}

impl Bench {
    fn machine(&self, images: &Images, scenario: &str, words: &str, dump: bool) -> Machine {
        let args = format!("scenario={scenario} {words}{}", if dump { " dump=after" } else { "" });
        Machine {
            cpu: self.cpu.clone(),
            smp: 4,
            mem: RAM,
            semihosting: dump,
            host: Some(Host { image: images.host.flat.clone(), args }),
            initrd: Some(images.guest.flat.clone()),
            ..Machine::new(&images.hypervisor.flat)
        }
    }

    /// Boots; a dump of the host's table goes to `dumps`, if that is anywhere and the scenario fails.
    fn boot(&self, images: &Images, scenario: &str, words: &str, dumps: Option<&Path>) -> Result<Outcome> {
        let machine = self.machine(images, scenario, words, dumps.is_some());
        let mut command = self.qemu.command(machine.args());
        if let Some(folder) = dumps {
            command.current_dir(folder);
        }
        run(command, &Limits::seconds(LIMIT), |_| {})
    }

    fn judge(&self, scenario: &str, outcome: &Outcome) -> Result<()> {
        Report::parse(&outcome.console).verdict(scenario)?;
        ensure!(outcome.orderly(), "the machine did not end well: {}", outcome.end);
        Ok(())
    }

    /// Keeps what there is to know of a failure.
    fn keep(
        &self,
        folder: &Path,
        sort: &Sort,
        seed: u64,
        images: &Images,
        outcome: &Outcome,
        why: &anyhow::Error,
    ) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let machine = self.machine(images, sort.scenario, &format!("seed={seed:#x} {}", sort.words), false);
        let mut log = format!("{} {}\n", shell_line([&self.qemu.path]), shell_line(machine.args()));
        log.push_str(&Symbols::read(&images.hypervisor.elf)?.annotate(&outcome.console));
        let _ = writeln!(log, "--- {}\n--- {why:#}", outcome.end);
        fs::write(folder.join("console.log"), log).context("cannot keep the console")?;
        if sort.scenario != SCENARIO {
            return Ok(());
        }
        let Some(lot) = last_lot(&outcome.console) else { return Ok(()) };
        println!("looking for the steps of lot {lot} that it takes");
        let mut replays = 0_u32;
        let arms = if sort.words.contains("arms") { " arms" } else { "" };
        let base = format!("seed={seed:#x} schedule=logical lot={lot} steps={STEPS}{arms}");
        let short = shrink((0..STEPS).collect(), |steps| {
            if replays == MOST_REPLAYS {
                return Ok(false);
            }
            replays = replays.saturating_add(1);
            let words = format!("{base} only={}", ranges(steps));
            Ok(self.judge(SCENARIO, &self.boot(images, SCENARIO, &words, None)?).is_err())
        })?;
        let text = match short {
            None => {
                "It does not come again with one CPU at a time: a matter of timing, or of the lots before.\n"
                    .to_owned()
            }
            Some(steps) => {
                let words = format!("{base} only={} trace", ranges(&steps));
                let outcome = self.boot(images, SCENARIO, &words, Some(folder))?;
                let called = outcome.console.lines().filter(|line| {
                    line.starts_with("lot ") || line.starts_with("  cpu") || line.starts_with("@fail")
                });
                let calls: Vec<&str> = called.collect();
                fs::write(folder.join("short.log"), &outcome.console).context("cannot keep the console")?;
                format!("{} steps of {STEPS}: {words}\n{}\n", steps.len(), calls.join("\n"))
            }
        };
        print!("{text}");
        fs::write(folder.join("steps.txt"), text).context("cannot keep the steps")
    }
}

/// The lot that a console ends in.
fn last_lot(console: &str) -> Option<u64> {
    let lots = console.lines().filter_map(|line| line.trim_end().strip_prefix("@step lot "));
    lots.rev().find_map(|lot| lot.parse().ok())
}

/// Numbers as ranges: `0-3,7`.
fn ranges(steps: &[u64]) -> String {
    let mut text = String::new();
    let mut rest = steps;
    while let [first, ..] = rest {
        let run = rest.iter().zip(*first..).take_while(|(step, want)| *step == want).count();
        let last = rest.get(run.saturating_sub(1)).unwrap_or(first);
        let comma = if text.is_empty() { "" } else { "," };
        let _ = if first == last {
            write!(text, "{comma}{first}")
        } else {
            write!(text, "{comma}{first}-{last}")
        };
        rest = rest.get(run..).unwrap_or_default();
    }
    text
}

/// Leaves out of `steps` what a failure does not need, by halves, quarters and so on (Zeller's delta debugging); `None` if
/// it does not fail with all of them.
///
/// # Errors
/// What `fails` says.
pub fn shrink(steps: Vec<u64>, mut fails: impl FnMut(&[u64]) -> Result<bool>) -> Result<Option<Vec<u64>>> {
    if !fails(&steps)? {
        return Ok(None);
    }
    let (mut steps, mut parts) = (steps, 2_usize);
    while steps.len() > 1 {
        let size = steps.len().div_ceil(parts);
        let mut left = None;
        for from in (0..steps.len()).step_by(size) {
            let part = from..from.saturating_add(size).min(steps.len());
            let rest: Vec<u64> =
                steps.iter().enumerate().filter(|(n, _)| !part.contains(n)).map(|(_, step)| *step).collect();
            if fails(&rest)? {
                left = Some(rest);
                break;
            }
        }
        match left {
            Some(rest) => (steps, parts) = (rest, parts.saturating_sub(1).max(2)),
            None if size == 1 => break,
            None => parts = parts.saturating_mul(2).min(steps.len()),
        }
    }
    Ok(Some(steps))
}

#[cfg(test)]
mod tests {
    use super::{Coverage, last_lot, ranges, seed_of, shrink};
    use abi::{Errno, HostFn};

    #[test]
    fn a_failure_shrinks_to_the_steps_that_it_takes() {
        for needed in [vec![7], vec![0, 239], vec![3, 77, 78, 200], (10..20).collect()] {
            let mut tries = 0;
            let found = shrink((0..240).collect(), |steps| {
                tries += 1;
                Ok(needed.iter().all(|step| steps.contains(step)))
            });
            assert_eq!(found.unwrap(), Some(needed));
            assert!(tries < 250, "{tries}");
        }
        assert_eq!(shrink(vec![1, 2], |_| Ok(false)).unwrap(), None);
    }

    #[test]
    fn steps_are_written_as_the_scenario_reads_them() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    }

    #[test]
    fn the_lot_that_failed_is_the_last() {
        assert_eq!(last_lot("@step lot 1\n@step lot 12\r\nlot 3 step 1\n"), Some(12));
        assert_eq!(last_lot("@step 12 lots\n"), None);
    }

    #[test]
    fn boots_have_seeds_of_their_own() {
        let seeds: std::collections::BTreeSet<u64> = (0..1000).map(|boot| seed_of(1, boot)).collect();
        assert_eq!(seeds.len(), 1000);
        assert_ne!(seed_of(1, 0), seed_of(2, 0));
    }

    #[test]
    fn coverage_counts_what_the_interface_has() {
        let mut coverage = Coverage::default();
        let console =
            "@metric VM_CREATE.OK 3 answers\n@metric VM_CREATE.Eperm 2 answers\n@metric calls 9 calls\n";
        coverage.add(&crate::protocol::Report::parse(console));
        coverage.add(&crate::protocol::Report::parse(console));
        assert_eq!(coverage.count(HostFn::VmCreate, Ok(())), 6);
        assert_eq!(coverage.count(HostFn::VmCreate, Err(Errno::Eperm)), 4);
        assert_eq!(coverage.reached(), 2);
        assert!(Coverage::possible().count() > 150);
    }
}
