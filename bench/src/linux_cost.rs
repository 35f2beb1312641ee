//! What Rampart costs Linux on its way to the first process, beside no hypervisor and beside the protected KVM of the same
//! kernel.
//!
//! All three machines show Linux the same devices, and neither seeds, nor random numbers, nor the time of day differ, so a boot
//! repeats exactly.
//! But Linux waits for a tick of 4 ms here and there, and one instruction more before it can cost or save a whole one: what
//! is compared is what EL2 executes, and its part of the time.

use crate::boot::{Boot, LEAVE_COUNTER, boot};
use crate::carve_out;
use crate::operation::CPUS;
use crate::ours::in_parallel;
use anyhow::{Context, Result, ensure};
use boot_tests::bare::{self, Below};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use xtask::images::{Build, Images};
use xtask::linux::{Extras, Linux, Run};
use xtask::machine::{Host, Machine, Memory};
use xtask::qemu::Qemu;
use xtask::show::grouped;
use xtask::table::Table;

/// What is below Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// No EL2.
    Nothing,
    /// Rampart.
    Rampart,
    /// Its own hypervisor.
    Kvm,
}

const SIDES: [Side; 3] = [Side::Nothing, Side::Rampart, Side::Kvm];

impl Side {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no hypervisor",
            Self::Rampart => "Rampart",
            Self::Kvm => "KVM, protected",
        }
    }

    /// A boot on one CPU of this model with 1 GiB.
    ///
    /// # Errors
    /// The kernel is not there, and cannot be fetched; the machine does not come to its first process.
    pub fn boot(self, qemu: &Qemu, images: &Images, cpu: &str) -> Result<Boot> {
        fetch()?;
        let linux = Linux::find()?;
        // Boots of several machines may run at once.
        let folder = xtask::workspace().join(format!("target/boot-tests/linux-cost-{cpu}-{self:?}"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let board = Machine {
            cpu: cpu.to_owned(),
            smp: 1,
            mem: Memory::gib(1),
            icount: true,
            extra: ["-M", "dtb-randomness=off", "-seed", "1", "-rtc", "base=2020-01-01,clock=vm"]
                .map(Into::into)
                .to_vec(),
            ..Machine::new(&images.hypervisor.flat)
        };
        let args = format!("{} {LEAVE_COUNTER}", Run::Cost.args(board.smp, true));
        let bare = |args, below| bare::machine(qemu, board.clone(), &linux, args, below, &folder);
        let machine = match self {
            Self::Nothing => bare(args, Below::Nothing)?,
            Self::Kvm => bare(format!("{args} kvm-arm.mode=protected"), Below::Itself)?,
            Self::Rampart => Machine {
                host: Some(Host { image: linux.kernel.clone(), args }),
                initrd: Some(linux.initrd(&Extras::default())?),
                ..board.clone()
            },
        };
        boot(qemu, &machine).with_context(|| format!("{} on {cpu}", self.name()))
    }
}

/// Fetches the kernel, if it is not there.
fn fetch() -> Result<()> {
    let script = xtask::workspace().join("scripts/setup.sh");
    let output =
        Command::new(&script).arg("--linux").output().with_context(|| script.display().to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", said.lines().last().unwrap_or("scripts/setup.sh says nothing"));
    Ok(())
}

/// All boots, by CPU model and what is below Linux.
pub type Boots = BTreeMap<String, BTreeMap<String, Boot>>;

/// All that is measured of Linux as the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// What boots took.
    pub boots: Boots,
    /// What is kept from Linux.
    pub kept: Vec<carve_out::Figure>,
}

/// Boots all three on both CPU models, and looks at what is kept of RAM; `said` is told of each.
///
/// # Errors
/// The kernel is not there; a machine did not come to its first process, or does not say what it keeps.
pub fn measure(qemu: &Qemu, said: impl Fn(&str) + Sync) -> Result<Costs> {
    let images = Build::default().run()?;
    let work = CPUS.into_iter().flat_map(|cpu| SIDES.map(|side| (cpu, side))).collect();
    let done: Vec<(&str, Side, Boot)> = in_parallel(work, |(cpu, side)| {
        said(&format!("{} on {cpu}", side.name()));
        Ok((cpu, side, side.boot(qemu, &images, cpu)?))
    })?;
    let mut boots = Boots::new();
    for (cpu, side, boot) in done {
        boots.entry(cpu.to_owned()).or_default().insert(side.name().to_owned(), boot);
    }
    let kept = carve_out::GIBIBYTES.map(|ram| carve_out::measure(qemu, &images, CPUS[0], ram));
    Ok(Costs { boots, kept: kept.into_iter().collect::<Result<_>>()? })
}

impl Costs {
    /// Times, and what is kept.
    #[must_use]
    pub fn tables(&self) -> [Table; 2] {
        [times(&self.boots), carve_out::table(&self.kept)]
    }

    /// Puts a new boot of Rampart in the place of the old one.
    pub fn set_rampart(&mut self, cpu: &str, boot: Boot) {
        self.boots.entry(cpu.to_owned()).or_default().insert(Side::Rampart.name().to_owned(), boot);
    }

    /// What EL2 executes until the first process, with `side` below Linux.
    #[must_use]
    pub fn el2(&self, cpu: &str, side: Side) -> Option<u64> {
        Some(self.boots.get(cpu)?.get(side.name())?.el2)
    }
}

/// How much `part` is of `whole`, in hundredths of a percent.
fn percent(part: u64, whole: u64) -> Option<String> {
    let part = part.checked_mul(10_000)?.checked_add(whole / 2)?.checked_div(whole)?;
    Some(format!("{}.{:02} %", part / 100, part % 100))
}

fn times(boots: &Boots) -> Table {
    let mut head = vec!["until the first process".to_owned()];
    for cpu in boots.keys() {
        head.extend([format!("{cpu}, 1 GiB, ns"), "of it EL2".into(), "part".into()]);
    }
    let mut rows = vec![head];
    for side in SIDES {
        let mut row = vec![side.name().to_owned()];
        for sides in boots.values() {
            let boot = sides.get(side.name());
            let has_el2 = boot.filter(|_| side != Side::Nothing);
            let cells = [
                boot.map(|boot| grouped(boot.time)),
                has_el2.map(|boot| grouped(boot.el2)),
                has_el2.and_then(|boot| percent(boot.el2, boot.time)),
            ];
            row.extend(cells.map(|cell| cell.unwrap_or("-".to_owned())));
        }
        rows.push(row);
    }
    Table { rows, words: 1 }
}

fn file() -> PathBuf {
    xtask::workspace().join("bench/linux.json")
}

/// The committed costs.
///
/// # Errors
/// They cannot be read.
pub fn read() -> Result<Costs> {
    let text = fs::read_to_string(file()).with_context(|| format!("cannot read {}", file().display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds no costs", file().display()))
}

/// Makes these the committed ones.
///
/// # Errors
/// They cannot be written.
pub fn write(costs: &Costs) -> Result<()> {
    let text = format!("{:#}\n", serde_json::to_value(costs)?);
    fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn el2_is_a_part_of_the_time_where_there_is_one() {
        let boots = SIDES.into_iter().zip([(600_000, 1), (602_000, 1204), (636_000, 6360)]);
        let sides = boots.map(|(side, (time, el2))| (side.name().to_owned(), Boot { time, el2 })).collect();
        let rows = super::times(&Boots::from([("max".to_owned(), sides)])).rows;
        assert_eq!(rows[1][1..], ["600 000", "-", "-"]);
        assert_eq!(rows[2][1..], ["602 000", "1 204", "0.20 %"]);
        assert_eq!(rows[3][1..], ["636 000", "6 360", "1.00 %"]);
    }

    #[test]
    fn the_committed_costs_have_every_boot() {
        let costs = read().unwrap();
        for cpu in CPUS {
            for side in SIDES {
                assert!(costs.boots[cpu].contains_key(side.name()), "{cpu}");
            }
        }
        assert_eq!(costs.kept.iter().map(|figure| figure.ram).collect::<Vec<_>>(), carve_out::GIBIBYTES);
    }
}
