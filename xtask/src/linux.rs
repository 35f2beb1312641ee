//! Debian's arm64 Linux as the host: an unmodified kernel, and a RAM disk of busybox, a few [programs](crate::programs)
//! and one script.
//!
//! `scripts/setup.sh --linux` fetches kernel and busybox. `linux/init.sh` is the script: it checks the machine, or gives
//! a shell, and speaks the [line protocol](crate::protocol) as a scenario named [`SCENARIO`]. The driver of the workspace's
//! `linux/` and `rampartctl` come into the RAM disk where they are asked for.

use crate::cpio::Archive;
use crate::programs::{FEATURES, TOOLS};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the script's checks are named in the line protocol.
pub const SCENARIO: &str = "linux";
/// What to do where the kernel is missing.
pub const FETCH: &str = "scripts/setup.sh --linux";
/// What to do where the driver cannot be built.
pub const FETCH_DRIVER: &str = "scripts/setup.sh --driver";
/// What the snapshot is named that the driver's checks hand out.
pub const SNAPSHOT: &str = "linux.s2";
/// What the list of what the kernel sees is named.
pub const SEEN: &str = "seen";
/// What the hypervisor needs for the driver's checks: it counts pages and copies tables.
pub const DRIVER_FEATURES: [&str; 2] = ["hyp/fault-injection", "hyp/debug-snapshot"];
const INIT: &str = include_str!("../linux/init.sh");
/// What it has in common with the guest's script.
pub(crate) const CHECKS: &str = include_str!("../linux/checks.sh");

/// How much the checks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// As little of each as shows something.
    Short,
    /// Hotplug in a loop, most of the memory, every file of /proc and /sys.
    Full,
}

/// What the first process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Checks, then power off.
    Checks(Effort),
    /// Checks of the driver, a snapshot on the console, then power off.
    Driver,
    /// What the kernel sees of the machine, as file [`SEEN`] on the console; then power off.
    See,
    /// The kernel in `/next` in place of this one, while the hypervisor has pages of it.
    Kexec,
    /// A shell.
    Shell,
    /// The time until it runs, as a figure; then power off.
    Cost,
}

impl Run {
    /// The kernel's command line on a machine of so many CPUs; `quiet` leaves its own messages out.
    #[must_use]
    pub fn args(self, cpus: u32, quiet: bool) -> String {
        let run = match self {
            Self::Checks(Effort::Short) => "checks effort=short",
            Self::Checks(Effort::Full) => "checks effort=full",
            Self::Driver => "driver",
            Self::See => "see",
            Self::Kexec => "kexec",
            Self::Shell => "shell",
            Self::Cost => "cost",
        };
        let quiet = if quiet { " quiet" } else { "" };
        // A kernel that dies before it has a console still says why; not where each instruction counts.
        let early = if self == Self::Cost { "" } else { " earlycon" };
        // A panic resets, which ends the machine.
        format!("console=ttyAMA0{early} panic=-1{quiet} cpus={cpus} run={run}")
    }
}

/// The packages' files.
#[derive(Debug, Clone)]
pub struct Linux {
    /// An arm64 `Image`.
    pub kernel: PathBuf,
    /// Static, of all programs that Debian has in it.
    pub busybox: PathBuf,
    /// Its driver for virtio over MMIO, the only one that the guest needs and the image has not.
    pub(crate) virtio_mmio: PathBuf,
}

impl Linux {
    /// The kernel that [`FETCH`] left.
    ///
    /// # Errors
    /// It is not there.
    pub fn find() -> Result<Self> {
        let folder = folder();
        let linux = Self {
            kernel: folder.join("Image"),
            busybox: folder.join("busybox"),
            virtio_mmio: folder.join("virtio_mmio.ko.xz"),
        };
        for file in [&linux.kernel, &linux.busybox] {
            ensure!(file.exists(), "Debian's Linux is not here: fetch it with {FETCH}");
        }
        Ok(linux)
    }

    /// The RAM disk, written anew if anything in it changed.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn initrd(&self, extras: &Extras<'_>) -> Result<PathBuf> {
        replace(extras.name(), &initrd(&read(&self.busybox)?, &extras.files()?)?)
    }
}

/// Writes a file beside the kernel, if it is not there with these bytes.
pub(crate) fn replace(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = folder().join(name);
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(path);
    }
    // Several tests may write it at once, all the same bytes; none reads half of it.
    let draft = path.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::write(&draft, bytes).with_context(|| format!("cannot write {}", draft.display()))?;
    fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The driver, and the program that uses it.
#[derive(Debug, Clone)]
pub struct Driver {
    module: PathBuf,
    program: PathBuf,
}

impl Driver {
    /// Refuses where what builds it is not here.
    ///
    /// # Errors
    /// That, with what to do.
    pub fn can_be_built() -> Result<()> {
        ensure!(
            folder().join("tools/for").exists(),
            "what builds the driver is not here: fetch it with {FETCH_DRIVER}"
        );
        Ok(())
    }

    /// Builds what is not up to date. Several processes may call it at once.
    ///
    /// # Errors
    /// The compilers' own.
    pub fn build() -> Result<Self> {
        let lock = fs::File::create(folder().join("lock")).context("cannot make the build lock")?;
        let mut lock = fd_lock::RwLock::new(lock);
        let _held = lock.write().context("cannot take the build lock")?;
        let script = crate::workspace().join("linux/build.sh");
        let status =
            Command::new(&script).status().with_context(|| format!("cannot start {}", script.display()))?;
        ensure!(status.success(), "the driver does not build: {} ended with {status}", script.display());
        Ok(Self { module: folder().join("rampart.ko"), program: folder().join("rampartctl") })
    }
}

/// What a RAM disk has beside busybox, programs and script.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// In `/driver`.
    pub driver: Option<&'a Driver>,
    /// An arm64 `Image`, as `/next`.
    pub next: Option<&'a Path>,
}

impl Extras<'_> {
    /// One file for each kind of RAM disk: tests that run at once do not write over each other's.
    fn name(&self) -> &'static str {
        match (self.driver, self.next) {
            (None, None) => "initrd.cpio",
            (None, Some(_)) => "initrd-next.cpio",
            (Some(_), None) => "initrd-driver.cpio",
            (Some(_), Some(_)) => "initrd-driver-next.cpio",
        }
    }

    /// Names and contents.
    fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let mut files = Vec::new();
        if let Some(driver) = self.driver {
            files.push(("driver/rampart.ko", read(&driver.module)?));
            files.push(("bin/rampartctl", read(&driver.program)?));
        }
        if let Some(next) = self.next {
            files.push(("next", read(next)?));
        }
        Ok(files)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn folder() -> PathBuf {
    crate::workspace().join("target/linux")
}

fn initrd(busybox: &[u8], extras: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "driver", "features", "proc", "sys", "tmp"] {
        archive.folder(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.program("bin/busybox", busybox)?;
    for program in FEATURES {
        archive.program(&format!("features/{}", program.name), &program.elf())?;
    }
    for program in TOOLS {
        archive.program(&format!("bin/{}", program.name), &program.elf())?;
    }
    for (name, contents) in extras {
        archive.program(name, contents)?;
    }
    archive.program("checks.sh", CHECKS.as_bytes())?;
    archive.program("init", INIT.as_bytes())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ram_disk_is_the_same_each_time_and_holds_the_script() {
        let extras = [("next", b"another kernel".to_vec())];
        let disk = initrd(b"busybox", &extras).unwrap();
        assert_eq!(disk, initrd(b"busybox", &extras).unwrap());
        assert_ne!(disk, initrd(b"busybox", &[]).unwrap());
        for script in [INIT, CHECKS] {
            assert!(disk.windows(script.len()).any(|window| window == script.as_bytes()));
        }
    }

    #[test]
    fn the_script_knows_every_run_and_ends_as_the_scenario() {
        let checks = [Run::Checks(Effort::Short), Run::Checks(Effort::Full), Run::Driver];
        for run in checks.into_iter().chain([Run::See, Run::Kexec, Run::Shell, Run::Cost]) {
            let args = run.args(4, true);
            let (_, name) = args.split_once("run=").unwrap();
            let name = name.split(' ').next().unwrap();
            assert!(INIT.contains(&format!("\n{name})\n")), "{name}");
        }
        for word in ["@begin", "@end"] {
            assert!(INIT.contains(&format!("echo \"{word} {SCENARIO}")), "{word}");
        }
    }

    #[test]
    fn a_panic_of_the_kernel_ends_the_machine() {
        assert_eq!(
            Run::Checks(Effort::Short).args(2, true),
            "console=ttyAMA0 earlycon panic=-1 quiet cpus=2 run=checks effort=short"
        );
        assert!(Run::Shell.args(4, false).contains(" panic=-1 cpus=4"));
    }
}
