//! The QEMU to boot with.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest QEMU whose `max` CPU has all that the tests need (FEAT_MTE_PERM came with 11.1).
pub const OLDEST: Version = Version(11, 1, 0);

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// Reads the first line of `qemu-system-aarch64 --version`.
    #[must_use]
    pub fn parse(output: &str) -> Option<Self> {
        let words = output.lines().next()?.split_once("version ")?.1;
        let digits = words.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = digits.split('.').map(|part| part.parse().ok());
        Some(Self(parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
    }
}

/// A QEMU that starts and is new enough.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// The program.
    pub path: PathBuf,
    /// What it says it is.
    pub version: Version,
}

impl Qemu {
    /// The QEMU of `RAMPART_QEMU`, else the one that `scripts/setup.sh` left under `target/`, else the system's.
    ///
    /// # Errors
    /// There is none, or it is too old; the message says what to do.
    pub fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os("RAMPART_QEMU").filter(|path| !path.is_empty()) {
            return Self::at(Path::new(&path)).context("RAMPART_QEMU does not name a usable QEMU");
        }
        let private = crate::workspace().join("target/qemu/qemu-system-aarch64");
        let path = if private.exists() { private.as_path() } else { Path::new("qemu-system-aarch64") };
        Self::at(path).context("no usable QEMU: run scripts/setup.sh")
    }

    fn at(path: &Path) -> Result<Self> {
        let output = Command::new(path)
            .arg("--version")
            .output()
            .with_context(|| format!("{} does not start", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = Version::parse(&text) else {
            bail!("{} does not say its version: {text}", path.display());
        };
        ensure!(version >= OLDEST, "{} is QEMU {version}, {OLDEST} is needed", path.display());
        Ok(Self { path: path.to_path_buf(), version })
    }

    /// A command that runs this QEMU with these arguments.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.path);
        command.args(args);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_and_of_developers_are_read() {
        let debian = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright (c) 2003-2026";
        assert_eq!(Version::parse(debian), Some(Version(11, 1, 3)));
        assert_eq!(
            Version::parse("QEMU emulator version 11.1.50 (v11.1.0-1-gabc)"),
            Some(Version(11, 1, 50))
        );
        assert_eq!(Version::parse("QEMU emulator version 12.0"), Some(Version(12, 0, 0)));
        assert_eq!(Version::parse("bash: qemu: not found"), None);
        assert_eq!(Version::parse("QEMU emulator version x.y"), None);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(Version(7, 2, 22) < OLDEST && Version(11, 0, 9) < OLDEST);
        assert!(Version(11, 1, 0) >= OLDEST && Version(12, 0, 0) >= OLDEST);
    }
}
