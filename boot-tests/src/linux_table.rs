//! What the stage-2 table of a Linux host says, in the snapshot that the driver's checks hand out: it contradicts nothing,
//! and Linux, which works on all of its memory, is mapped in blocks.

use anyhow::{Context, Result, ensure};
use hyp::pgtable::Level;
use ptdump::walk::What;
use ptdump::{Dump, Map};
use xtask::handed;
use xtask::linux::SNAPSHOT;

/// So many of a hundred mapped bytes of memory are in blocks.
const BLOCKS: u64 = 95;

/// Judges the snapshot on a console.
///
/// # Errors
/// It is not there, or not as it must be.
pub fn judge(console: &str) -> Result<()> {
    let dump = Dump::parse(handed::file(console, SNAPSHOT)?)?;
    let map = Map::new(&dump, &[])?;
    ensure!(map.problems.count() == 0, "the table contradicts itself: {:?}", map.problems.first());
    let memory = dump.places().iter().find(|place| place.name == "memory").context("no memory")?;
    let (mut all, mut blocks) = (0_u64, 0_u64);
    for run in dump.runs() {
        let What::Leaf(pa, _) = run.what else { continue };
        if (memory.start..memory.end).contains(&pa) {
            all = all.saturating_add(run.len());
            if run.level != Level::L3 {
                blocks = blocks.saturating_add(run.len());
            }
        }
    }
    ensure!(all > memory.end.saturating_sub(memory.start) >> 1, "Linux has touched only {all} bytes");
    let percent = blocks.saturating_mul(100).checked_div(all).unwrap_or(0);
    ensure!(percent >= BLOCKS, "{blocks} of {all} bytes of Linux are mapped in blocks: {percent} %");
    Ok(())
}
