//! `bench`: the library for people; `scripts/bench.sh` calls it.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use bench::baseline::{self, Baseline};
use bench::boot::Boot;
use bench::compare::{self, Pair};
use bench::curves::{self, CURVES};
use bench::figures::SECTIONS;
use bench::linux_cost::{self, Side};
use bench::operation::{CPUS, Cell, Cells};
use bench::{ours, page, peer, peer_file, peer_linux, size};
use clap::Parser;
use std::collections::BTreeMap;
use xtask::images::{Build, Images};
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
    /// Boot Linux as the host of Rampart, of protected KVM and of nothing, in place of the figures: time until its first
    /// process, and what is kept of RAM.
    #[arg(long, conflicts_with = "curves")]
    linux: bool,
    /// Hold Rampart alone to bench/baseline.json: fails if a figure is more than 3 % above it, is gone, or is beyond its
    /// budget.
    #[arg(long, conflicts_with_all = ["markdown", "json", "write", "curves", "linux", "update_baseline", "page"])]
    check: bool,
    /// Measure Rampart alone, and make that bench/baseline.json and docs/performance.md.
    #[arg(long, conflicts_with_all = ["markdown", "json", "write", "curves", "linux", "page"])]
    update_baseline: bool,
    /// Measure protected KVM alone, and make that bench/peer.json and docs/performance.md.
    #[arg(long, conflicts_with_all = ["markdown", "json", "write", "curves", "linux", "page", "check", "update_baseline"])]
    update_peer: bool,
    /// Boot Linux as a guest of protected KVM, and show when it has its first process and how often it left.
    #[arg(long, conflicts_with_all = ["json", "write", "curves", "linux", "page", "check", "update_baseline", "update_peer"])]
    peer_linux: bool,
    /// Measure nothing: write docs/performance.md from the committed figures.
    #[arg(long, conflicts_with_all = ["markdown", "json", "write", "curves", "linux"])]
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

/// Measures Linux as the host.
fn linux(qemu: &Qemu, options: &Command) -> Result<()> {
    let costs = linux_cost::measure(qemu, |name| eprintln!("  {name}"))?;
    if options.write {
        linux_cost::write(&costs)?;
        page::write()?;
    }
    if options.json {
        println!("{:#}", serde_json::to_value(&costs)?);
    } else {
        costs.tables().iter().for_each(|table| println!("{}", show(table, options)));
    }
    Ok(())
}

/// A boot of Linux as Rampart's host, by CPU model. Where there is none the peer, whose kernel it is, says why.
fn boots(qemu: &Qemu, images: &Images, said: impl Fn(&str)) -> BTreeMap<String, Boot> {
    let boot = |cpu: &str| {
        said(&format!("Rampart, {cpu}, boot"));
        let boot = Side::Rampart.boot(qemu, images, cpu);
        Some((cpu.to_owned(), boot.inspect_err(|error| eprintln!("{error:#}")).ok()?))
    };
    CPUS.into_iter().filter_map(boot).collect()
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
    let said = |name: &str| eprintln!("  {name}");
    if options.update_peer {
        peer_file::write(&peer::measure_all(&qemu, &Build::default().run()?, said))?;
        return page::write();
    }
    if options.peer_linux {
        print!("{}", show(&peer_linux::table(&qemu), &options));
        return Ok(());
    }
    if options.curves {
        return curves(&qemu, &options);
    }
    if options.linux {
        return linux(&qemu, &options);
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
    let images = Build::default().run()?;
    let peer = peer::measure_all(&qemu, &images, said);
    let boots = boots(&qemu, &images, said);
    if options.write {
        now.write()?;
        peer_file::write(&peer)?;
        let mut costs = linux_cost::read()?;
        boots.iter().for_each(|(cpu, boot)| costs.set_rampart(cpu, *boot));
        linux_cost::write(&costs)?;
        page::write()?;
    }
    let pair = |(cpu, cells): (String, Cells)| {
        let boot = boots.get(&cpu).map(|boot| Cell::Figure(boot.el2));
        page::pair(&now, &cpu, boot, cells)
    };
    let pairs: Vec<Pair> = peer.into_iter().map(pair).collect();
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
