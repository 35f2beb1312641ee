//! How much memory Rampart keeps from its host, beside what the protected KVM of Debian's kernel keeps from the rest of
//! that kernel.

use anyhow::{Context, Result};
use boot_tests::bare::{self, Below};
use serde::{Deserialize, Serialize};
use std::fs;
use xtask::cost::tail;
use xtask::images::Images;
use xtask::linux::{Linux, Run};
use xtask::machine::{Host, Machine, Memory};
use xtask::qemu::Qemu;
use xtask::run::{Limits, run};
use xtask::show::grouped;
use xtask::table::Table;

/// Machines, by GiB of RAM.
pub const GIBIBYTES: [u32; 3] = [1, 4, 16];
/// A kernel that sets memory of the whole machine up, beside other work.
const SECONDS: u64 = 300;

/// What is kept on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figure {
    /// RAM in GiB.
    pub ram: u32,
    /// KiB that Rampart keeps.
    pub rampart: u64,
    /// KiB that protected KVM keeps.
    pub kvm: u64,
}

/// Boots both on a machine with so many GiB, one CPU of model `cpu`.
///
/// # Errors
/// The kernel is not there; a machine does not say what it keeps.
pub fn measure(qemu: &Qemu, images: &Images, cpu: &str, ram: u32) -> Result<Figure> {
    let folder = xtask::workspace().join("target/boot-tests/carve-out");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let board = Machine {
        cpu: cpu.to_owned(),
        smp: 1,
        mem: Memory::gib(ram),
        ..Machine::new(&images.hypervisor.flat)
    };
    let host = Host { image: images.host.flat.clone(), args: "scenario=smoke".to_owned() };
    let ours = Machine { host: Some(host), ..board.clone() };
    let args = format!("{} kvm-arm.mode=protected", Run::Cost.args(board.smp, false));
    let theirs = bare::machine(qemu, board, &Linux::find()?, args, Below::Itself, &folder)?;
    Ok(Figure { ram, rampart: kept(qemu, &ours, rampart)?, kvm: kept(qemu, &theirs, kvm)? })
}

fn kept(qemu: &Qemu, machine: &Machine, read: fn(&str) -> Option<u64>) -> Result<u64> {
    let outcome = run(qemu.command(machine.args()), &Limits::seconds(SECONDS), |_| {})?;
    outcome.console.lines().find_map(read).with_context(|| {
        format!("{}; the machine does not say what it keeps:\n{}", outcome.end, tail(&outcome.console, 20))
    })
}

/// KiB in `rampart: info: carve-out 3784 KiB in all, image 660 KiB`.
fn rampart(line: &str) -> Option<u64> {
    line.strip_prefix("rampart: info: carve-out ")?.split_once(" KiB in all")?.0.parse().ok()
}

/// KiB in `[    0.000000] kvm [0]: nVHE hyp: Reserved 12 MiB at 0x7ca00000`.
fn kvm(line: &str) -> Option<u64> {
    let (before, rest) = line.split_once("Reserved ")?;
    let mebibytes: u64 = rest.split_once(" MiB at ")?.0.parse().ok()?;
    before.contains("kvm").then(|| mebibytes.checked_mul(1024)).flatten()
}

/// A column for each machine.
#[must_use]
pub fn table(figures: &[Figure]) -> Table {
    let row = |name: &str, of: fn(&Figure) -> String| {
        std::iter::once(name.to_owned()).chain(figures.iter().map(of)).collect::<Vec<_>>()
    };
    let rows = vec![
        row("kept from the host, KiB", |figure| format!("{} GiB", figure.ram)),
        row("Rampart", |figure| grouped(figure.rampart)),
        row("KVM, protected", |figure| grouped(figure.kvm)),
    ];
    Table { rows, words: 1 }
}

#[cfg(test)]
mod tests {
    use super::{Figure, kvm, rampart, table};

    #[test]
    fn both_say_what_they_keep() {
        assert_eq!(rampart("rampart: info: carve-out 3784 KiB in all, image 660 KiB"), Some(3784));
        assert_eq!(rampart("rampart: info: carve-out [0x40200000, 0x40420000)"), None);
        assert_eq!(kvm("[    0.000000] kvm [0]: nVHE hyp: Reserved 12 MiB at 0x7ca00000"), Some(12 << 10));
        assert_eq!(kvm("[    0.000000] cma: Reserved 64 MiB at 0x7ca00000"), None);
    }

    #[test]
    fn a_machine_is_a_column() {
        let figures = [Figure { ram: 1, rampart: 3784, kvm: 12_288 }];
        let rows = table(&figures).rows;
        assert_eq!(
            rows.iter().map(|row| row.join("|")).collect::<Vec<_>>(),
            ["kept from the host, KiB|1 GiB", "Rampart|3 784", "KVM, protected|12 288"]
        );
    }
}
