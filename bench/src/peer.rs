//! The peer: the protected KVM of Debian's unmodified Linux, on the machine on which Rampart is measured.
//!
//! `bench/kvm` is the program that measures it, the second process of a RAM disk that has little else. It speaks the line
//! protocol: a figure as `@metric`, and why there is none as `@skip`.

use crate::linux_cost::Side;
use crate::operation::{BOOT, CPUS, Cell, Cells, OPERATIONS};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use xtask::cost::tail;
use xtask::cpio::Archive;
use xtask::images::Images;
use xtask::linux::Linux;
use xtask::machine::{Machine, Memory};
use xtask::protocol::Report;
use xtask::qemu::Qemu;
use xtask::run::{Limits, run};

const INIT: &str = include_str!("../kvm/init.sh");
/// Counting instructions is slow, and `max` authenticates pointers in software.
const SECONDS: u64 = 1800;
/// Bytes in a file that nothing reads, by boot: what is behind them gets other memory of the host's.
const PADDING: [usize; 2] = [0, 3 << 20];
/// `kvm-arm.mode` of the peer.
pub(crate) const PROTECTED: &str = "protected";
/// The name under which the program says why it measures nothing at all.
pub(crate) const ALL: &str = "all";

/// A boot of the peer.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// CPU model, and what it is to lack.
    pub cpu: &'a str,
    /// The kernel's `kvm-arm.mode`.
    pub mode: &'a str,
    /// Bytes in a file of the RAM disk that nothing reads.
    pub padding: usize,
}

/// What each operation costs protected KVM, by CPU model. That it cannot be measured is no error: the cell says why. `said` is
/// told of each boot.
#[must_use]
pub fn measure_all(qemu: &Qemu, images: &Images, said: impl Fn(&str)) -> BTreeMap<String, Cells> {
    CPUS.map(|cpu| (cpu.to_owned(), measure(qemu, images, cpu, &said))).into()
}

fn measure(qemu: &Qemu, images: &Images, cpu: &str, said: impl Fn(&str)) -> Cells {
    let boots = PADDING.map(|padding| {
        said(&format!("protected KVM, {cpu}, {padding} bytes of padding"));
        operations(qemu, &Peer { cpu, mode: PROTECTED, padding })
    });
    let mut cells = boots.into_iter().reduce(both).unwrap_or_default();
    said(&format!("protected KVM, {cpu}, boot"));
    let boot = Side::Kvm.boot(qemu, images, cpu);
    let boot = boot.map_or_else(|error| Cell::None(format!("{error:#}")), |boot| Cell::Figure(boot.el2));
    cells.insert(BOOT.to_owned(), boot);
    cells
}

/// What two boots say of the same operations.
fn both(one: Cells, mut other: Cells) -> Cells {
    let cell = |(name, cell): (String, Cell)| match other.remove(&name) {
        Some(again) => (name, cell.and(again)),
        None => (name, cell),
    };
    one.into_iter().map(cell).collect()
}

/// What each operation costs in one boot, or why that is not known.
#[must_use]
pub fn operations(qemu: &Qemu, peer: &Peer<'_>) -> Cells {
    match boot(qemu, peer, "operations", |_| Ok(vec![("guest/padding", vec![0x55; peer.padding])])) {
        Ok(report) => cells(&report),
        Err(error) => cells_of(|_| Cell::None(format!("{error:#}"))),
    }
}

fn cells_of(cell: impl Fn(&str) -> Cell) -> Cells {
    OPERATIONS.iter().map(|operation| (operation.name.to_owned(), cell(operation.name))).collect()
}

fn cells(report: &Report) -> Cells {
    cells_of(|name| {
        if let Some(metric) = report.metrics.iter().find(|metric| metric.name == name) {
            return Cell::Figure(metric.value);
        }
        let skipped = report.skipped.iter().find(|remark| remark.name == name || remark.name == ALL);
        Cell::None(skipped.map_or("the program does not measure it", |remark| &remark.reason).to_owned())
    })
}

/// A file of the RAM disk: its name and contents.
pub(crate) type Entry = (&'static str, Vec<u8>);

/// What the program says on a machine with one CPU and the RAM that Rampart is measured with. `more` is in the RAM disk too.
pub(crate) fn boot(
    qemu: &Qemu,
    peer: &Peer<'_>,
    words: &str,
    more: impl FnOnce(&Linux) -> Result<Vec<Entry>>,
) -> Result<Report> {
    let Peer { cpu, mode, .. } = *peer;
    let program = build(&xtask::workspace(), None)?;
    let linux = Linux::find()?;
    let disk = program.with_file_name("peer.cpio");
    let files = archive(&read(&linux.busybox)?, &read(&program)?, &more(&linux)?)?;
    fs::write(&disk, files).context("cannot write the RAM disk")?;
    let machine = Machine {
        cpu: cpu.to_owned(),
        smp: 1,
        mem: Memory::gib(1),
        icount: true,
        hypervisor_args: format!("console=ttyAMA0 panic=-1 quiet kvm-arm.mode={mode} run={words}"),
        extra: ["-M", "dtb-randomness=off", "-seed", "1", "-rtc", "base=2020-01-01,clock=vm", "-initrd"]
            .map(Into::into)
            .to_vec(),
        ..Machine::new(&linux.kernel)
    };
    let args = machine.args().into_iter().chain([disk.into_os_string()]);
    let outcome = run(qemu.command(args), &Limits::seconds(SECONDS), |_| {})?;
    ensure!(
        outcome.orderly(),
        "Linux on {cpu}: {}; it said:\n{}{}",
        outcome.end,
        outcome.errors,
        tail(&outcome.console, 20)
    );
    Ok(Report::parse(&outcome.console))
}

/// Builds the program and fetches the kernel, in the workspace at `root` with programs from `path`.
fn build(root: &Path, path: Option<&OsStr>) -> Result<PathBuf> {
    let script = root.join("bench/kvm/build.sh");
    let mut command = Command::new(&script);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let output = command.output().with_context(|| format!("cannot start {}", script.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}", said.lines().last().unwrap_or("bench/kvm/build.sh fails and says nothing"));
    }
    Ok(root.join("target/linux/kvm-bench"))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn archive(busybox: &[u8], program: &[u8], more: &[Entry]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "guest", "proc", "sys"] {
        archive.folder(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.program("bin/busybox", busybox)?;
    archive.program("bin/kvm-bench", program)?;
    for (name, contents) in more {
        archive.program(name, contents)?;
    }
    archive.program("init", INIT.as_bytes())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(cells: &Cells, name: &str) -> String {
        match &cells[name] {
            Cell::None(reason) => reason.clone(),
            cell => panic!("{name} is {cell:?}"),
        }
    }

    #[test]
    fn a_figure_a_reason_and_a_silence_each_have_their_cell() {
        let console = "[    0.1] Linux\n@step Protected nVHE mode initialized successfully\n\
                       @metric guest_exit 12534 instructions\n@metric another 1 instructions\n\
                       @skip vm_create: KVM_CREATE_VM: Invalid argument (os error 22)\n";
        let cells = cells(&Report::parse(console));
        assert_eq!(cells.len(), OPERATIONS.len());
        assert_eq!(cells["guest_exit"], Cell::Figure(12534));
        assert_eq!(reason(&cells, "vm_create"), "KVM_CREATE_VM: Invalid argument (os error 22)");
        assert_eq!(reason(&cells, "guest_mmio"), "the program does not measure it");
    }

    #[test]
    fn without_a_counter_every_cell_says_so() {
        let cells = cells(&Report::parse("@skip all: no counter of EL2: perf_event_open: No such device\n"));
        assert!(cells.keys().all(|name| reason(&cells, name).starts_with("no counter of EL2")));
    }

    #[test]
    fn without_a_network_the_reason_says_what_is_missing() {
        let root = std::env::temp_dir().join(format!("rampart-bench-{}", std::process::id()));
        let copy = |name: &str| {
            let to = root.join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(xtask::workspace().join(name), to).unwrap();
        };
        ["bench/kvm/build.sh", "scripts/setup.sh"].iter().for_each(|name| copy(name));
        // Nothing can be loaded with this one; a copy may be executed.
        fs::copy(root.join("scripts/setup.sh"), root.join("apt-get")).unwrap();
        fs::write(root.join("apt-get"), "#!/bin/sh\nexit 100\n").unwrap();
        let mut path = root.clone().into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let error = format!("{:#}", build(&root, Some(&path)).unwrap_err());
        fs::remove_dir_all(&root).unwrap();
        assert!(
            error.contains("could not be fetched") && error.contains("connect to the network"),
            "{error}"
        );
    }

    #[test]
    fn the_script_starts_the_program_and_ends_the_machine() {
        assert!(INIT.contains("\nkvm-bench $(") && INIT.ends_with("\npoweroff -f\n"));
        let disk = archive(b"busybox", b"the program", &[("guest/Image", b"a kernel".to_vec())]).unwrap();
        for part in [&b"bin/kvm-bench\0"[..], b"the program", b"a kernel", INIT.as_bytes()] {
            assert!(disk.windows(part.len()).any(|window| window == part));
        }
    }
}
