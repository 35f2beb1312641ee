//! Debian's arm64 Linux as a guest: the same unmodified kernel as [`crate::linux`], and a RAM disk with one script.
//!
//! Host-shim gets both as one archive, its own initial RAM disk, since the boot protocol has room for one file:
//! [`KERNEL`], [`DISK`] and [`SHIM`] are the names in it. `linux/guest.sh` is the script.

use crate::cpio::Archive;
use crate::kernel;
use crate::linux::{CHECKS, FETCH, Linux, replace};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// The scenario that runs the guest.
pub const SCENARIO: &str = "guest_linux";
/// The scenario that runs two of them, beside a third guest.
pub const TOGETHER: &str = "guest_linux_together";
/// The scenario in which the host attacks a realm in one way after the other.
pub const HOSTILE: &str = "guest_linux_hostile";
/// The scenario in which many of them are ended while they run.
pub const ENDED: &str = "guest_linux_ended";
/// The kernel's name in the archive.
pub const KERNEL: &str = "Image";
/// The RAM disk's name in the archive.
pub const DISK: &str = "initrd";
/// The name of the guest shim's image, for a guest beside Linux.
pub const SHIM: &str = "guest-shim";
const INIT: &str = include_str!("../linux/guest.sh");

/// How many guests, and what becomes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Story {
    /// One, to its end.
    Alone,
    /// A plain VM and a realm at once, of which the host takes memory away.
    Together,
    /// A realm after the other, attacked by the host.
    Hostile,
    /// One after the other, each ended while it runs.
    Ended,
}

/// What the guest is, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// A realm, rather than a VM whose memory the host can see.
    pub realm: bool,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// RAM in MiB.
    pub mebibytes: u32,
    /// A shell rather than checks.
    pub shell: bool,
    /// How many, and what becomes of them; nothing but `quiet` counts beside this, unless it is [`Story::Alone`].
    pub story: Story,
    /// Without the kernel's own messages.
    pub quiet: bool,
}

impl Guest {
    /// The scenario.
    #[must_use]
    pub const fn scenario(&self) -> &'static str {
        match self.story {
            Story::Alone => SCENARIO,
            Story::Together => TOGETHER,
            Story::Hostile => HOSTILE,
            Story::Ended => ENDED,
        }
    }

    /// The words of host-shim's command line.
    #[must_use]
    pub fn args(&self) -> String {
        let kind = if self.realm { " realm" } else { "" };
        let shell = if self.shell { " shell" } else { "" };
        let quiet = if self.quiet { " quiet" } else { "" };
        let scenario = self.scenario();
        format!("scenario={scenario} vcpus={} mem={}{kind}{shell}{quiet}", self.vcpus, self.mebibytes)
    }
}

/// The archive with the guest shim's image at `shim`, written anew if anything in it changed.
///
/// # Errors
/// A file cannot be read or written, or the kernel is none, or not whole.
pub fn archive(linux: &Linux, shim: &Path) -> Result<PathBuf> {
    kernel::check(&linux.kernel)?;
    let bytes = pack(&read(&linux.kernel)?, &disk_of(linux)?, &read(shim)?)?;
    replace("guest.cpio", &bytes)
}

/// The guest's RAM disk.
///
/// # Errors
/// A file cannot be read.
pub fn disk_of(linux: &Linux) -> Result<Vec<u8>> {
    ensure!(linux.virtio_mmio.exists(), "the guest's driver is not here: fetch it with {FETCH}");
    disk(&read(&linux.busybox)?, &read(&linux.virtio_mmio)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn pack(kernel: &[u8], disk: &[u8], shim: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.program(KERNEL, kernel)?;
    archive.program(DISK, disk)?;
    archive.program(SHIM, shim)?;
    archive.finish()
}

fn disk(busybox: &[u8], virtio_mmio: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.folder(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.program("bin/busybox", busybox)?;
    archive.program("virtio_mmio.ko.xz", virtio_mmio)?;
    archive.program("checks.sh", CHECKS.as_bytes())?;
    archive.program("init", INIT.as_bytes())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_and_disk_are_in_the_archive_whole() {
        let archive = pack(b"the kernel", &disk(b"busybox", b"a driver").unwrap(), b"the shim").unwrap();
        for part in [
            &b"Image\0"[..],
            b"the kernel",
            b"the shim",
            b"initrd\0",
            b"bin/busybox\0",
            b"a driver",
            CHECKS.as_bytes(),
            INIT.as_bytes(),
        ] {
            assert!(archive.windows(part.len()).any(|window| window == part));
        }
    }

    #[test]
    fn the_host_learns_what_the_guest_is_to_be() {
        let guest =
            Guest { realm: true, vcpus: 2, mebibytes: 256, shell: false, story: Story::Alone, quiet: true };
        assert_eq!(guest.args(), "scenario=guest_linux vcpus=2 mem=256 realm quiet");
        let guest = Guest { realm: false, shell: true, quiet: false, ..guest };
        assert_eq!(guest.args(), "scenario=guest_linux vcpus=2 mem=256 shell");
    }
}
