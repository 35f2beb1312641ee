//! What Rampart costs Linux on its way to the first process, counted instruction by instruction, beside no hypervisor
//! and beside the protected KVM of the same kernel.
//!
//! `-icount shift=0` makes one instruction one nanosecond of virtual time; where the CPU waits, time goes on to the next
//! event. The first process reads the counter, which starts with the machine. All three machines show Linux the same
//! devices, and neither seeds nor the time of day differ, so a boot repeats exactly. But Linux waits for a tick of 4 ms here
//! and there, and one instruction more before it can cost or save a whole one: a figure is the mean of a few boots whose
//! command lines differ in a word that means nothing.

use crate::bare::{self, Below};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use xtask::cost::tail;
use xtask::images::Images;
use xtask::linux::{Extras, Linux, Run};
use xtask::machine::{Host, Machine, Memory};
use xtask::protocol::Report;
use xtask::qemu::Qemu;
use xtask::run::{Limits, run};
use xtask::show::grouped;

/// The figure of the first process.
const METRIC: &str = "first_process";
/// Boots for a figure.
const BOOTS: u64 = 5;
/// Counting instructions is slower than running them.
const SECONDS: u64 = 300;

/// What is in the place of EL2, in words.
const SIDES: [(&str, Option<(Below, &str)>); 3] = [
    ("no hypervisor", Some((Below::Nothing, ""))),
    ("Rampart", None),
    ("KVM, protected", Some((Below::Itself, " kvm-arm.mode=protected"))),
];

/// Nanoseconds of virtual time until the first process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// What is below Linux.
    pub below: &'static str,
    /// Mean of the boots.
    pub mean: u64,
    /// Between the shortest and the longest of them.
    pub spread: u64,
}

impl Figure {
    fn of(below: &'static str, times: &[u64]) -> Option<Self> {
        let sum = times.iter().fold(0_u64, |sum, time| sum.saturating_add(*time));
        let mean = sum.checked_div(u64::try_from(times.len()).ok()?)?;
        Some(Self { below, mean, spread: times.iter().max()?.saturating_sub(*times.iter().min()?) })
    }
}

/// Boots all three on one CPU of model `cpu` with `mem` of RAM.
///
/// # Errors
/// The kernel is not there; a machine did not come to an orderly end.
pub fn measure(qemu: &Qemu, images: &Images, cpu: &str, mem: Memory) -> Result<Vec<Figure>> {
    let linux = Linux::find()?;
    let folder = xtask::workspace().join("target/boot-tests/linux-cost");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let board = Machine {
        cpu: cpu.to_owned(),
        smp: 1,
        mem,
        icount: true,
        extra: ["-M", "dtb-randomness=off", "-rtc", "base=2020-01-01,clock=vm"].map(Into::into).to_vec(),
        ..Machine::new(&images.hypervisor.flat)
    };
    let mut figures = Vec::new();
    for (below, bare) in SIDES {
        let mut times = Vec::new();
        for nth in 0..BOOTS {
            let args = format!("{} nth={nth}", Run::Cost.args(board.smp, true));
            let machine = match bare {
                Some((below, more)) => {
                    bare::machine(qemu, board.clone(), &linux, format!("{args}{more}"), below, &folder)?
                }
                None => Machine {
                    host: Some(Host { image: linux.kernel.clone(), args }),
                    initrd: Some(linux.initrd(&Extras::default())?),
                    ..board.clone()
                },
            };
            times.push(first_process(qemu, &machine).with_context(|| format!("{below} on {cpu}"))?);
        }
        figures.push(Figure::of(below, &times).context("no boot")?);
    }
    Ok(figures)
}

/// One boot.
fn first_process(qemu: &Qemu, machine: &Machine) -> Result<u64> {
    let outcome = run(qemu.command(machine.args()), &Limits::seconds(SECONDS), |_| {})?;
    let said = || format!("the machine said:\n{}{}", outcome.errors, tail(&outcome.console, 20));
    let report = Report::parse(&outcome.console);
    ensure!(outcome.orderly(), "{}; {}", outcome.end, said());
    Ok(report.metrics.iter().find(|metric| metric.name == METRIC).with_context(said)?.value)
}

/// How much more than the first of them, in hundredths of a percent.
fn more_than_first(figures: &[Figure], time: u64) -> Option<u64> {
    let first = figures.first()?.mean;
    time.checked_sub(first)?.checked_mul(10_000)?.checked_div(first)
}

/// A Markdown table of one CPU model a column.
#[must_use]
pub fn markdown(columns: &[(String, Vec<Figure>)]) -> String {
    let mut out = String::from("| until the first process |");
    for (name, _) in columns {
        let _ = write!(out, " {name} | spread | more |");
    }
    out.push_str("\n|---|");
    out.push_str(&"---:|---:|---:|".repeat(columns.len()));
    for (row, (below, _)) in SIDES.iter().enumerate() {
        let _ = write!(out, "\n| {below} |");
        for (_, figures) in columns {
            let Some(figure) = figures.get(row) else { continue };
            let more = more_than_first(figures, figure.mean)
                .map_or("less".to_owned(), |more| format!("{}.{:02} %", more / 100, more % 100));
            let _ = write!(out, " {} | {} | {more} |", grouped(figure.mean), grouped(figure.spread));
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_compared_with_the_first() {
        let times = [[600_000, 600_000], [602_000, 604_000], [636_000, 636_000]];
        let figures =
            times.iter().zip(SIDES).map(|(times, (below, _))| Figure::of(below, times).unwrap()).collect();
        assert_eq!(
            markdown(&[("cortex-a72".to_owned(), figures)]),
            "| until the first process | cortex-a72 | spread | more |\n|---|---:|---:|---:|\n\
             | no hypervisor | 600 000 | 0 | 0.00 % |\n| Rampart | 603 000 | 2 000 | 0.50 % |\n\
             | KVM, protected | 636 000 | 0 | 6.00 % |\n"
        );
    }
}
