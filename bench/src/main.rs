//! `bench`: the library for people; `scripts/bench.sh` calls it.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use bench::baseline::{self, Baseline};
use bench::compare::{self, Pair};
use bench::curves::{self, CURVES};
use bench::figures::SECTIONS;
use bench::{ours, page, peer, peer_file, peer_linux, size};
use clap::Parser;
use std::collections::BTreeMap;
use xtask::qemu::Qemu;
use xtask::table::Table;

/// Counts the instructions of EL2 that each operation takes, Rampart's and protected KVM's.
#[derive(Debug, Parser)]
#[command(name = "bench", override_usage = "scripts/bench.sh [OPTIONS]")]
struct Command {
    /// As Markdown.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Commit what is measured: to bench/*.json and docs/performance.md.
    #[arg(long)]
    write: bool,
    /// Measure how figures grow, and sizes, in place of the figures themselves.
    #[arg(long)]
    curves: bool,
    /// Hold Rampart alone to bench/baseline.json: fails if a figure is more than 3 % above it, is gone, or is beyond its
    /// budget.
    #[arg(long, conflicts_with_all = ["markdown", "json", "write", "curves", "update_baseline", "page"])]
    check: bool,
    /// Measure Rampart alone, and make that bench/baseline.json and docs/performance.md.
    #[arg(long, conflicts_with_all = ["markdown", "json", "write", "curves", "page"])]
    update_baseline: bool,
    /// Measure protected KVM alone, and make that bench/peer.json and docs/performance.md.
    #[arg(long, conflicts_with_all = ["markdown", "json", "write", "page", "check", "update_baseline"])]
    update_peer: bool,
    /// Boot Linux as a guest of protected KVM, and show when it has its first process and how often it left.
    #[arg(long, conflicts_with_all = ["json", "write", "page", "check", "update_baseline", "update_peer"])]
    peer_linux: bool,
    /// Measure nothing: write docs/performance.md from the committed figures.
    #[arg(long, conflicts_with_all = ["markdown", "json", "write", "curves"])]
    page: bool,
}

/// Measures the curves and the sizes.
fn curves(qemu: &Qemu, options: &Command) -> Result<()> {
    let measured = curves::measure(qemu, |name| eprintln!("  {name}"))?;
    let sizes = size::measure(qemu)?;
    if let Ok(before) = curves::read() {
        curves::differences(&before, &measured).iter().for_each(|line| eprintln!("{line}"));
    }
    if options.write {
        curves::write(&measured)?;
        size::write(&sizes)?;
        page::write()?;
    }
    if options.json {
        println!("{:#}", serde_json::json!({ "curves": measured, "sizes": sizes }));
        return Ok(());
    }
    for curve in CURVES {
        let none = BTreeMap::new();
        let table = curve.table(measured.get(curve.name).unwrap_or(&none));
        println!("{}", show(&table, options));
    }
    sizes.tables().iter().for_each(|table| println!("{}", show(table, options)));
    Ok(())
}

fn show(table: &Table, options: &Command) -> String {
    if options.markdown { table.markdown() } else { table.text() }
}

fn main() -> Result<()> {
    let options = Command::parse();
    if options.page {
        return page::write();
    }
    let qemu = Qemu::find()?;
    if options.update_peer {
        peer_file::write(&peer::measure_all(&qemu))?;
        return page::write();
    }
    if options.peer_linux {
        print!("{}", show(&peer_linux::table(&qemu), &options));
        return Ok(());
    }
    if options.curves {
        return curves(&qemu, &options);
    }
    let figures = ours::measure(&qemu, |run| eprintln!("  {}", run.name()))?;
    let now = Baseline { compiler: baseline::compiler()?, figures };
    if options.check {
        return check(&now);
    }
    if options.update_baseline {
        now.write()?;
        return page::write();
    }
    let peer = peer::measure_all(&qemu);
    if options.write {
        now.write()?;
        peer_file::write(&peer)?;
        page::write()?;
    }
    let pairs: Vec<Pair> = peer.into_iter().map(|(cpu, cells)| page::pair(&now, &cpu, cells)).collect();
    if options.json {
        println!("{:#}", serde_json::json!({ "rampart": now, "comparison": pairs }));
        return Ok(());
    }
    println!("{}", show(&compare::table(&pairs), &options));
    compare::reasons(&pairs).iter().for_each(|reason| println!("{reason}\n"));
    SECTIONS.iter().for_each(|section| println!("{}", show(&page::figures(&now, section), &options)));
    Ok(())
}

/// Says what differs from the committed baseline.
fn check(now: &Baseline) -> Result<()> {
    let before = Baseline::read()?;
    let findings = before.compare(now);
    findings.notes.iter().for_each(|note| println!("{note}"));
    findings.worse.iter().for_each(|line| println!("WORSE: {line}"));
    if findings.worse.is_empty() {
        let count: usize = now.figures.values().map(BTreeMap::len).sum();
        let equal =
            if findings.notes.is_empty() { "all as in the baseline" } else { "none worse than the baseline" };
        println!("{count} figures, {equal}");
    } else if before.compiler != now.compiler {
        println!("The baseline is of {}, this is {}.", before.compiler, now.compiler);
    }
    ensure!(
        findings.worse.is_empty(),
        "{} figures are worse; if that is meant: scripts/bench.sh --update-baseline",
        findings.worse.len()
    );
    Ok(())
}
