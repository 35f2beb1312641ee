//! Cost figures under `-icount shift=0`: the scenario `cost` on the machines of the budget, and any other that measures.

use crate::images::Images;
use crate::machine::{Host, Machine, Memory};
use crate::protocol::{Metric, Report};
use crate::qemu::Qemu;
use crate::run::{Limits, run};
use crate::show::{grouped, words};
use crate::table::Table;
use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// The scenario that measures.
pub const SCENARIO: &str = "cost";
const CPUS: [&str; 2] = ["cortex-a72", "max"];
const MEMORY: [Memory; 2] = [Memory::gib(1), Memory::gib(16)];
/// Counting instructions is slower than running them.
const SECONDS: u64 = 120;

/// The figures of one machine.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    /// CPU model.
    pub cpu: String,
    /// RAM.
    pub mem: Memory,
    /// What was measured there.
    pub metrics: Vec<Metric>,
}

/// Boots every machine of the budget, one CPU each, and gives their figures.
///
/// # Errors
/// A machine did not come to an orderly end; the message holds the end of its console.
pub fn measure(qemu: &Qemu, images: &Images) -> Result<Vec<Column>> {
    let machines = MEMORY.into_iter().flat_map(|mem| CPUS.map(|cpu| (cpu, mem)));
    let args = format!("scenario={SCENARIO}");
    machines.map(|(cpu, mem)| Counted { args: &args, cpu, smp: 1, mem }.boot(qemu, images)).collect()
}

/// A machine whose instructions are counted. With several CPUs the emulator runs one at a time, and counts the instructions
/// of all.
#[derive(Debug, Clone, Copy)]
pub struct Counted<'a> {
    /// The host's command line, which begins with `scenario=NAME`.
    pub args: &'a str,
    /// CPU model.
    pub cpu: &'a str,
    /// Number of CPUs.
    pub smp: u32,
    /// RAM.
    pub mem: Memory,
}

impl Counted<'_> {
    /// Boots it and gives its figures.
    ///
    /// # Errors
    /// As [`measure`].
    pub fn boot(&self, qemu: &Qemu, images: &Images) -> Result<Column> {
        let Self { args, cpu, smp, mem } = *self;
        let first = args.split(' ').next().and_then(|word| word.strip_prefix("scenario="));
        let scenario = first.context("a command line that names no scenario first")?;
        let machine = Machine {
            cpu: cpu.to_owned(),
            smp,
            mem,
            icount: true,
            host: Some(Host { image: images.host.flat.clone(), args: args.to_owned() }),
            initrd: Some(images.guest.flat.clone()),
            ..Machine::new(&images.hypervisor.flat)
        };
        let outcome = run(qemu.command(machine.args()), &Limits::seconds(SECONDS), |_| {})?;
        let report = Report::parse(&outcome.console);
        let tail =
            || format!("on {smp} x {cpu} with {mem}:\n{}{}", outcome.errors, tail(&outcome.console, 20));
        report.verdict(scenario).with_context(tail)?;
        ensure!(outcome.orderly(), "{} {}", outcome.end, tail());
        Ok(Column { cpu: cpu.to_owned(), mem, metrics: report.metrics })
    }
}

/// The last `count` lines of `text`.
#[must_use]
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines.get(from..).unwrap_or_default().join("\n")
}

/// Metrics that describe the run rather than the hypervisor.
const NO_COST: [&str; 2] = ["calibration", "memory"];

/// A figure without its unit; bytes are shown as KiB where that is exact.
fn figure(metric: &Metric) -> String {
    grouped(if is_size(metric) { metric.value >> 10 } else { metric.value })
}

fn unit(metric: &Metric) -> &str {
    if is_size(metric) { "KiB" } else { &metric.unit }
}

fn is_size(metric: &Metric) -> bool {
    metric.unit == "bytes" && metric.value.is_multiple_of(1 << 10)
}

/// One line a figure, one column a machine, in the order in which figures first appear.
fn rows(columns: &[Column]) -> Vec<Vec<String>> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for metric in columns.iter().flat_map(|column| &column.metrics) {
        let key = (metric.name.as_str(), unit(metric));
        if !names.contains(&key) && !NO_COST.contains(&key.0) {
            names.push(key);
        }
    }
    let mut head = vec!["figure".to_owned(), "unit".to_owned()];
    head.extend(columns.iter().map(|column| format!("{}, {}", column.cpu, column.mem)));
    let mut rows = vec![head];
    for key in names {
        let mut row = vec![words(key.0), key.1.to_owned()];
        for column in columns {
            let found = column.metrics.iter().find(|metric| (metric.name.as_str(), unit(metric)) == key);
            row.push(found.map_or("-".to_owned(), figure));
        }
        rows.push(row);
    }
    rows
}

/// The figures, one line each, one column a machine.
#[must_use]
pub fn table(columns: &[Column]) -> Table {
    Table { rows: rows(columns), words: 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let metric =
            |name: &str, value| Metric { name: name.to_owned(), value, unit: "instructions".to_owned() };
        vec![
            Column {
                cpu: "cortex-a72".to_owned(),
                mem: Memory::gib(1),
                metrics: vec![metric("empty_call", 142), metric("boot", 1_500_000)],
            },
            Column { cpu: "max".to_owned(), mem: Memory::gib(16), metrics: vec![metric("empty_call", 99)] },
        ]
    }

    #[test]
    fn a_figure_that_a_machine_lacks_is_a_dash() {
        assert_eq!(
            table(&columns()).markdown(),
            "| figure     | unit         | cortex-a72, 1 GiB | max, 16 GiB |\n\
             | ---------- | ------------ | ----------------: | ----------: |\n\
             | empty call | instructions |               142 |          99 |\n\
             | boot       | instructions |         1 500 000 |           - |\n"
        );
    }

    #[test]
    fn sizes_are_in_kib_and_what_is_no_cost_is_left_out() {
        let metric =
            |name: &str, value, unit: &str| Metric { name: name.to_owned(), value, unit: unit.to_owned() };
        let metrics = vec![metric("memory", 1 << 30, "bytes"), metric("carve_out", 3 << 20, "bytes")];
        let column = Column { cpu: "max".to_owned(), mem: Memory::gib(1), metrics };
        assert_eq!(table(&[column]).text(), "  figure     unit  max, 1 GiB\n  carve out  KiB        3 072\n");
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\n", 2), "a");
        assert_eq!(tail("", 2), "");
    }
}
