//! `bench`: the library for people; `scripts/bench.sh` calls it.
#![forbid(unsafe_code)]

use anyhow::Result;
use bench::compare::{self, Pair};
use bench::operation::{CPUS, Cell, Cells};
use bench::peer;
use clap::Parser;
use xtask::cost;
use xtask::images::Build;
use xtask::machine::Memory;
use xtask::qemu::Qemu;

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
}

fn main() -> Result<()> {
    let options = Command::parse();
    let (qemu, images) = (Qemu::find()?, Build::default().run()?);
    let columns = cost::measure(&qemu, &images)?;
    let mut pairs = Vec::new();
    for cpu in CPUS {
        let column = columns.iter().find(|column| column.cpu == cpu && column.mem == Memory::gib(1));
        let metrics = column.map(|column| column.metrics.as_slice()).unwrap_or_default();
        let ours: Cells =
            metrics.iter().map(|metric| (metric.name.clone(), Cell::Figure(metric.value))).collect();
        pairs.push(Pair { cpu: cpu.to_owned(), ours, peer: peer::measure(&qemu, cpu) });
    }
    if options.json {
        println!("{:#}", serde_json::to_value(&pairs)?);
        return Ok(());
    }
    let table = compare::table(&pairs);
    print!("{}", if options.markdown { table.markdown() } else { table.text() });
    compare::reasons(&pairs).iter().for_each(|reason| println!("\n{reason}"));
    Ok(())
}
