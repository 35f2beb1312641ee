//! What Linux sees of a machine with Rampart, and without.

use crate::bare::{self, Below};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use xtask::cost::tail;
use xtask::handed;
use xtask::images::Images;
use xtask::linux::{Extras, Linux, Run, SEEN};
use xtask::machine::{Host, Machine, Memory};
use xtask::qemu::Qemu;
use xtask::run::{Limits, run};

/// On a machine that has other work too.
const SECONDS: u64 = 300;

/// Lines that one of two lists has and the other has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Only with Rampart.
    pub with: BTreeSet<String>,
    /// Only without.
    pub without: BTreeSet<String>,
    /// Lines that both have.
    pub both: usize,
}

/// Boots Linux on a CPU model with Rampart and on a machine without EL2.
///
/// # Errors
/// The kernel is not there, or does not say what it sees.
pub fn compare(qemu: &Qemu, images: &Images, cpu: &str) -> Result<Difference> {
    let linux = Linux::find()?;
    let folder = xtask::workspace().join("target/boot-tests/linux-view").join(cpu);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let board =
        Machine { cpu: cpu.to_owned(), mem: Memory::mib(256), ..Machine::new(&images.hypervisor.flat) };
    let args = Run::See.args(board.smp, true);
    let bare = bare::machine(qemu, board.clone(), &linux, args.clone(), Below::Nothing, &folder)?;
    let host = Host { image: linux.kernel.clone(), args };
    let ours = Machine { host: Some(host), initrd: Some(linux.initrd(&Extras::default())?), ..board };
    Ok(difference(&seen(qemu, &ours)?, &seen(qemu, &bare)?))
}

fn seen(qemu: &Qemu, machine: &Machine) -> Result<String> {
    let outcome = run(qemu.command(machine.args()), &Limits::seconds(SECONDS), |_| {})?;
    ensure!(outcome.orderly(), "{}; the machine said:\n{}", outcome.end, tail(&outcome.console, 20));
    Ok(String::from_utf8_lossy(&handed::file(&outcome.console, SEEN)?).into_owned())
}

fn difference(with: &str, without: &str) -> Difference {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (with, without) = (lines(with), lines(without));
    Difference {
        both: with.intersection(&without).count(),
        with: with.difference(&without).cloned().collect(),
        without: without.difference(&with).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn lines_are_compared_without_their_order() {
        let found = difference("a\nb\nc\n", "c\nb\nd\n");
        assert_eq!((found.with.len(), found.without.len(), found.both), (1, 1, 2));
        assert!(found.with.contains("a") && found.without.contains("d"));
    }
}
