//! Builds the images of hypervisor, host and guest and makes them flat.

use crate::flat::{ImageHeader, flatten};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the images are compiled for.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";
const HYPERVISOR: &str = "rampart";
const HOST: &str = "host-shim";
const GUEST: &str = "guest-shim";

/// One built image.
#[derive(Debug, Clone)]
pub struct Image {
    /// With symbols, for people and debuggers.
    pub elf: PathBuf,
    /// What is loaded.
    pub flat: PathBuf,
}

/// The images of one build.
#[derive(Debug, Clone)]
pub struct Images {
    /// The hypervisor.
    pub hypervisor: Image,
    /// The host that runs scenarios.
    pub host: Image,
    /// The guest that this host runs: its initial RAM disk.
    pub guest: Image,
}

/// Which images to build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Build<'a> {
    /// With debug assertions and no optimisation.
    pub debug: bool,
    /// Cargo features, each as `package/feature`.
    pub features: &'a [&'a str],
}

/// The image for looking inside: the release image, and the host may take snapshots of its table.
pub const DEVELOPMENT: Build<'static> = Build { debug: false, features: &["hyp/debug-snapshot"] };

impl Build<'_> {
    /// Where the images of this build go: one folder a variant, so that no build replaces another's.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        let mut name = if self.debug { "debug".to_owned() } else { "release".to_owned() };
        for feature in self.features {
            name.push('+');
            name.push_str(&feature.replace('/', "."));
        }
        images_folder().join(name)
    }

    /// The images' paths, whether they are built or not.
    #[must_use]
    pub fn images(&self) -> Images {
        let image = |name: &str| {
            let path = self.folder().join(name);
            Image { elf: path.with_extension("elf"), flat: path.with_extension("bin") }
        };
        Images { hypervisor: image(HYPERVISOR), host: image(HOST), guest: image(GUEST) }
    }

    /// Builds what is not up to date. Several processes may call it at once: one builds, the others wait.
    ///
    /// # Errors
    /// The compiler's own, or an image that a boot loader could not load.
    pub fn run(&self) -> Result<Images> {
        self.run_for(None)
    }

    /// As [`run`](Self::run), but the processes of one test run, which share `run_id`, build once only.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_once_for(&self, run_id: &str) -> Result<Images> {
        self.run_for(Some(run_id))
    }

    fn run_for(&self, run_id: Option<&str>) -> Result<Images> {
        let images = self.images();
        let mark = self.folder().join("built-for");
        let built = || run_id.is_some() && fs::read_to_string(&mark).ok().as_deref() == run_id;
        // The mark is written last. Who finds it does not wait while another variant is built.
        if built() {
            return Ok(images);
        }
        fs::create_dir_all(self.folder()).context("cannot make the folder of the images")?;
        let lock = fs::File::create(images_folder().join("lock")).context("cannot make the build lock")?;
        let mut lock = fd_lock::RwLock::new(lock);
        let _held = lock.write().context("cannot take the build lock")?;
        if built() {
            return Ok(images);
        }
        let mut programs = self.cargo()?;
        for (name, image) in [(HYPERVISOR, &images.hypervisor), (HOST, &images.host), (GUEST, &images.guest)]
        {
            let elf = programs.remove(name).with_context(|| format!("cargo built no {name}"))?;
            install(&elf, image).with_context(|| format!("the image {name} is unusable"))?;
        }
        replace(&mark, run_id.unwrap_or_default().as_bytes())?;
        Ok(images)
    }

    /// Runs cargo; gives the executables by name.
    fn cargo(&self) -> Result<HashMap<String, PathBuf>> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(crate::workspace()).args(["build", "--quiet", "--locked", "--target", TARGET]);
        command
            .args(["-p", "hyp", "--bin", HYPERVISOR, "-p", HOST, "--bin", HOST, "-p", GUEST, "--bin", GUEST]);
        command.arg("--message-format=json-render-diagnostics").arg("--config").arg(without_machine_paths());
        if !self.debug {
            command.arg("--release");
        }
        if !self.features.is_empty() {
            command.arg("--features").arg(self.features.join(","));
        }
        build_core_if_needed(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
        let stdout = child.stdout.take().context("cargo has no output")?;
        let mut built = HashMap::new();
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read cargo's output")?;
            if let Ok(Message { target, executable: Some(executable) }) = serde_json::from_str(&line) {
                built.insert(target.name, executable);
            }
        }
        let status = child.wait().context("cannot wait for cargo")?;
        if !status.success() {
            bail!("the images do not build: cargo ended with {status}");
        }
        Ok(built)
    }
}

#[derive(Deserialize)]
struct Message {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// A setting of cargo: the same sources give the same image in whatever folder and for whichever user.
fn without_machine_paths() -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let folders = [(Some(crate::workspace()), "."), (home, "cargo")];
    let flags = folders.into_iter().filter_map(|(folder, name)| {
        // A path that is no text, or has a quote in it, stays as it is.
        let folder = folder?.to_str().filter(|text| !text.contains(['"', '\\', '=']))?.to_owned();
        Some(format!("\"--remap-path-prefix={folder}={name}\""))
    });
    format!("target.{TARGET}.rustflags=[{}]", flags.collect::<Vec<_>>().join(","))
}

fn images_folder() -> PathBuf {
    crate::workspace().join("target/images")
}

/// Where `scripts/setup.sh` could not get the target's core library it left a compiler that comes with the source
/// of it, and the linker to use.
fn build_core_if_needed(command: &mut Command) {
    let rust = crate::workspace().join("target/rust");
    let rustc = rust.join("rustc");
    if rustc.exists() {
        command.arg("-Zbuild-std=core").env("RUSTC_BOOTSTRAP", "1").env("RUSTC", rustc);
        command.env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER", rust.join("linker"));
    }
}

/// Copies the ELF file and makes the flat one beside it, unless both are there. Readers never see half a file.
fn install(elf: &Path, image: &Image) -> Result<()> {
    let bytes = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    if image.flat.exists() && fs::read(&image.elf).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let flat = flatten(&bytes)?;
    let header = ImageHeader::read(&flat)?;
    let size = u64::try_from(flat.len())?;
    ensure!(
        header.image_size >= size,
        "image_size {:#x} is less than the file's {size:#x}",
        header.image_size
    );
    replace(&image.flat, &flat)?;
    replace(&image.elf, &bytes)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_extension("new");
    fs::write(&draft, bytes).with_context(|| format!("cannot write {}", draft.display()))?;
    fs::rename(&draft, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_its_own_folder() {
        let folder = |debug, features| Build { debug, features }.folder().file_name().unwrap().to_owned();
        assert_eq!(folder(false, &[]), "release");
        assert_eq!(folder(true, &["hyp/spec", "hyp/fault-injection"]), "debug+hyp.spec+hyp.fault-injection");
    }

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"rampart","kind":["bin"]},"executable":"/t/rampart","fresh":true}"#;
        let message: Message = serde_json::from_str(line).unwrap();
        assert_eq!(
            (message.target.name.as_str(), message.executable),
            ("rampart", Some("/t/rampart".into()))
        );
        assert!(serde_json::from_str::<Message>(r#"{"reason":"build-finished","success":true}"#).is_err());
    }
}
