//! One case: which machine boots, what is wrong with it, and what must happen.

use crate::judge::{Expect, POWER_OFF_EVENT, judge};
use crate::{linux_table, placed, tree};
use anyhow::{Context, Error, Result, anyhow, ensure};
use dtoolkit::model::DeviceTree;
use std::fmt::Write as _;
use std::fs;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread::available_parallelism;
use std::time::SystemTime;
use xtask::cost::tail;
use xtask::images::{Build, Image, Images};
use xtask::linux::{Driver, Extras, Linux, Run};
use xtask::linux_guest::{self, Guest};
use xtask::machine::{Host, Machine, Memory, shell_line};
use xtask::qemu::Qemu;
use xtask::run::{Limits, Outcome, run};
use xtask::symbols::{self, Symbols, backtrace};

/// The word with which the host makes its calls fail before they succeed.
pub const FAULTS: &str = "faults";

/// How much slower than the authors' a machine may be. Only a boot that hangs lasts as long as its limit.
const SLOWER: u64 = 3;

/// The images are built once in a run: of this process, or of nextest, which starts a process for each test.
static RUN: LazyLock<String> = LazyLock::new(|| {
    std::env::var("NEXTEST_RUN_ID")
        .unwrap_or_else(|_| format!("{} {:?}", std::process::id(), SystemTime::now()))
});

/// What is unusual about the machine.
#[derive(Debug, Clone, Copy)]
pub enum Twist {
    /// Nothing.
    None,
    /// No host image.
    NoHost,
    /// The host image after this change.
    HostImage(fn(&mut Vec<u8>)),
    /// Debian's unmodified Linux as the host, which does this. The scenario is the one that it, or what it starts
    /// with kexec, is to come to the end of.
    Linux(Run),
    /// The same Linux as a guest of the host image.
    Guest(Guest),
    /// QEMU's device tree after this change, and the image not where QEMU puts it.
    Tree(fn(&mut DeviceTree) -> Result<()>),
    /// The bytes of that tree after this change.
    TreeBytes(fn(&mut [u8])),
    /// The hypervisor's function whose name ends with this executes these instructions as soon as it has made its
    /// frame record.
    Defect(&'static str, &'static [u32]),
    /// The tree says that the console is where a word says "full" for ever.
    DeadConsole,
    /// This in x0 in place of the address of a tree.
    X0(u64),
    /// These words on the hypervisor's command line.
    Arguments(&'static str),
}

/// One boot.
#[derive(Debug, Clone)]
pub struct Case {
    /// What `cargo test` lists.
    pub name: String,
    /// The scenario that the host runs.
    pub scenario: &'static str,
    /// CPU model.
    pub cpu: &'static str,
    /// Number of CPUs.
    pub smp: u32,
    /// RAM.
    pub mem: Memory,
    /// One instruction is one nanosecond.
    pub icount: bool,
    /// The host may end the machine with an exit status.
    pub semihosting: bool,
    /// A reset starts the machine again.
    pub reboot: bool,
    /// Cargo features of the images, as `package/feature`.
    pub features: &'static [&'static str],
    /// What is unusual.
    pub twist: Twist,
    /// What must happen.
    pub expect: Expect,
    /// Time limit in seconds, on a machine like the authors' that has nothing else to do; [`SLOWER`] ones have more.
    pub seconds: u64,
}

impl Case {
    /// Why this case cannot be run here: what it needs could not be fetched.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        let found = match self.twist {
            Twist::Linux(run) if wants_driver(run) => Linux::find().and_then(|_| Driver::can_be_built()),
            Twist::Linux(_) | Twist::Guest(_) => Linux::find().map(drop),
            _ => Ok(()),
        };
        found.err().map(|error| format!("{error:#}"))
    }

    /// Boots and judges; the message of a failure is all that a person needs first.
    ///
    /// # Errors
    /// What must happen did not, or the machine could not be booted.
    pub fn run(&self) -> Result<()> {
        let qemu = Qemu::find()?;
        let build = Build { debug: false, features: self.features };
        let images = build.run_once_for(&RUN)?;
        let folder = self.folder();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let machine = self.machine(&qemu, &images)?;
        let limits = Limits::seconds(self.seconds.saturating_mul(SLOWER.saturating_mul(crowding())));
        let outcome = run(qemu.command(machine.args()), &limits, |_| {})?;
        let log = folder.join("console.log");
        let verdict = judge(self.expect, self.scenario, &outcome, |console| {
            let symbols = Symbols::read(&images.hypervisor.elf)?;
            Ok(backtrace(console).into_iter().flat_map(|entry| symbols.of(entry)).collect())
        });
        let verdict = verdict.and_then(|()| match self.twist {
            Twist::Linux(Run::Driver) => linux_table::judge(&outcome.console),
            _ => Ok(()),
        });
        let Err(error) = verdict else {
            // A log that stays would look like a failure of this run.
            let _ = fs::remove_dir_all(&folder);
            return Ok(());
        };
        let text = self.transcript(&qemu, &machine, &images, &outcome);
        fs::write(&log, &text).with_context(|| format!("cannot write {}", log.display()))?;
        Err(anyhow!("{error:#}\n--- the last lines of {}\n{}", log.display(), tail(&text, 40)))
    }

    /// Where the files of this case go.
    fn folder(&self) -> PathBuf {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = self.name.chars().map(plain).collect();
        xtask::workspace().join("target/boot-tests").join(name.trim_end_matches('-'))
    }

    fn machine(&self, qemu: &Qemu, images: &Images) -> Result<Machine> {
        let folder = self.folder();
        let mut args = format!("scenario={}", self.scenario);
        if self.semihosting {
            args.push_str(" semihosting");
        }
        if let Twist::Arguments(words) = self.twist {
            // The host has to know which of its memory has no tags, and that its calls are to fail.
            for word in words.split(' ').filter(|word| word.starts_with("no-tags=") || *word == FAULTS) {
                let _ = write!(args, " {word}");
            }
        }
        let mut host = Host { image: images.host.flat.clone(), args };
        if let Twist::HostImage(change) = self.twist {
            let mut image = fs::read(&host.image).context("cannot read the host image")?;
            change(&mut image);
            host.image = folder.join("host.bin");
            fs::write(&host.image, image).context("cannot write the host image")?;
        }
        let mut initrd = images.guest.flat.clone();
        if let Twist::Linux(run) = self.twist {
            let linux = Linux::find()?;
            let driver = wants_driver(run).then(Driver::build).transpose()?;
            let next = (run == Run::Kexec).then_some(host.image.as_path());
            initrd = linux.initrd(&Extras { driver: driver.as_ref(), next })?;
            // Linux and what it starts read the same words.
            host.args = format!("{} {}", run.args(self.smp, true), host.args);
            host.image = linux.kernel;
        }
        if let Twist::Guest(guest) = self.twist {
            initrd = linux_guest::archive(&Linux::find()?, &images.guest.flat)?;
            host.args = guest.args();
        }
        let machine = Machine {
            cpu: self.cpu.to_owned(),
            smp: self.smp,
            mem: self.mem,
            icount: self.icount,
            semihosting: self.semihosting,
            reboot: self.reboot,
            host: (!matches!(self.twist, Twist::NoHost)).then_some(host),
            initrd: Some(initrd),
            hypervisor_args: match self.twist {
                Twist::Arguments(words) => {
                    words.split(' ').filter(|word| *word != FAULTS).collect::<Vec<_>>().join(" ")
                }
                _ => String::new(),
            },
            extra: match self.expect {
                Expect::PassBy(_) => vec!["-trace".into(), POWER_OFF_EVENT.into()],
                _ => Vec::new(),
            },
            ..Machine::new(match self.twist {
                Twist::Defect(function, code) => self.with_defect(&images.hypervisor, function, code)?,
                _ => images.hypervisor.flat.clone(),
            })
        };
        let original = || tree::of(qemu, &machine, &folder.join("qemu.dtb"));
        let (blob, x0) = match self.twist {
            Twist::None
            | Twist::NoHost
            | Twist::HostImage(_)
            | Twist::Linux(_)
            | Twist::Guest(_)
            | Twist::Defect(..)
            | Twist::Arguments(_) => {
                return Ok(machine);
            }
            Twist::Tree(edit) => (tree::edited(&original()?, edit)?, placed::TREE_AT),
            Twist::DeadConsole => {
                let mut blob = tree::edited(&original()?, tree::dead_console)?;
                blob.resize(blob.len().next_multiple_of(8), 0);
                (blob, placed::TREE_AT)
            }
            Twist::TreeBytes(change) => {
                let mut blob = original()?;
                change(&mut blob);
                (blob, placed::TREE_AT)
            }
            Twist::X0(x0) => (original()?, x0),
        };
        let machine = match self.twist {
            Twist::DeadConsole => placed::with_dead_console(machine, &folder)?,
            _ => machine,
        };
        // Who has no readable tree knows no console: the refusal then comes by semihosting.
        placed::machine(Machine { semihosting: true, ..machine }, &blob, x0, &folder)
    }

    /// A copy of the flat image in which `function` goes on with `code` after it has made its frame record.
    fn with_defect(&self, image: &Image, function: &str, code: &[u32]) -> Result<PathBuf> {
        let (start, size) = symbols::function(&image.elf, function)?;
        let (start, size) = (usize::try_from(start)?, usize::try_from(size)?);
        let mut flat = fs::read(&image.flat).context("cannot read the hypervisor image")?;
        let body = flat.get_mut(start..).and_then(|rest| rest.get_mut(..size));
        let (words, _) = body.context("a function outside the flat image")?.as_chunks_mut();
        // add x29, sp, #N
        let makes_record = |word: &[u8; 4]| u32::from_le_bytes(*word) & 0xffc0_03ff == 0x9100_03fd;
        let made = words.iter().position(makes_record);
        let made = made.with_context(|| format!("{function} makes no frame record"))?;
        let rest = words.get_mut(made.saturating_add(1)..).unwrap_or_default();
        ensure!(code.len() <= rest.len(), "{function} is too short for {} instructions", code.len());
        rest.iter_mut().zip(code).for_each(|(word, instruction)| *word = instruction.to_le_bytes());
        let path = self.folder().join("rampart.bin");
        fs::write(&path, flat).context("cannot write the changed image")?;
        Ok(path)
    }

    fn transcript(&self, qemu: &Qemu, machine: &Machine, images: &Images, outcome: &Outcome) -> String {
        let mut text = format!("{} {}\n", shell_line([&qemu.path]), shell_line(machine.args()));
        let symbols = if backtrace(&outcome.console).is_empty() {
            Err(Error::msg("no backtrace"))
        } else {
            Symbols::read(&images.hypervisor.elf)
        };
        match symbols {
            Ok(symbols) => text.push_str(&symbols.annotate(&outcome.console)),
            Err(_) => text.push_str(&outcome.console),
        }
        if !outcome.errors.is_empty() {
            let _ = write!(text, "--- QEMU's standard error\n{}", outcome.errors);
        }
        let _ = writeln!(text, "--- {} after {:.1} s", outcome.end, outcome.took.as_secs_f32());
        text
    }
}

fn wants_driver(run: Run) -> bool {
    matches!(run, Run::Driver | Run::Kexec)
}

/// How many times slower than an idle machine this one may be, 1 to 3: runnable tasks for each CPU.
fn crowding() -> u64 {
    let cpus = available_parallelism().map_or(1, NonZero::get);
    let tasks = fs::read_to_string("/proc/loadavg").ok();
    let tasks = tasks.and_then(|text| text.split('.').next()?.parse::<usize>().ok()).unwrap_or(0);
    u64::try_from(tasks.div_ceil(cpus).clamp(1, 3)).unwrap_or(1)
}

/// Checks of the list itself.
///
/// # Errors
/// Two cases have one name.
pub fn check_names(cases: &[Case]) -> Result<()> {
    let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        ensure!(pair.first() != pair.last(), "two cases are named {pair:?}");
    }
    Ok(())
}
