//! The peer on machines that lack what it needs: each cell says why it is empty. Each test boots Linux, which has to be
//! fetched, so they run when asked: `cargo test -p bench --test peer -- --ignored`.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use bench::operation::{Cell, OPERATIONS};
use bench::peer::{Peer, operations};
use xtask::qemu::Qemu;

/// The one reason that all cells have.
fn reason(cpu: &str, mode: &str) -> Result<String> {
    let cells = operations(&Qemu::find()?, &Peer { cpu, mode, padding: 0 });
    ensure!(cells.len() == OPERATIONS.len(), "{cells:?}");
    let one = cells.values().next().context("no cell")?;
    ensure!(cells.values().all(|cell| cell == one), "{cells:?}");
    match one {
        Cell::None(reason) => Ok(reason.clone()),
        cell => bail!("{cell:?}"),
    }
}

#[test]
#[ignore = "boots Linux"]
fn a_cpu_without_a_counter() {
    let reason = reason("max,pmu=off", "protected").unwrap();
    assert!(reason.starts_with("no counter of EL2: perf_event_open"), "{reason}");
}

#[test]
#[ignore = "boots Linux"]
fn a_kernel_without_a_hypervisor() {
    let reason = reason("max", "none").unwrap();
    assert!(reason.starts_with("/dev/kvm"), "{reason}");
}
