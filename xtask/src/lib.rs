//! Builds Rampart's images, boots them under QEMU and reads what they say.
//!
//! A library for `boot-tests` and a small command for people (`cargo xtask`-style: `cargo run -q -p xtask -- help`).
//! [`images`] builds, [`machine`] composes a QEMU command line, [`run`] runs it under a time limit, [`protocol`]
//! judges the console, [`symbols`] names the addresses of a panic, [`ownership`] draws who owns which page,
//! [`linux`] makes a host of Debian's kernel, [`linux_guest`] a guest, [`handed`] takes files from the console.
#![forbid(unsafe_code)]

pub mod campaign;
pub mod cost;
pub mod coverage;
pub mod cpio;
pub mod flat;
pub mod handed;
pub mod images;
pub mod kernel;
pub mod lines;
pub mod linux;
pub mod linux_guest;
pub mod machine;
pub mod ownership;
pub mod programs;
pub mod protocol;
pub mod qemu;
pub mod run;
pub mod show;
pub mod symbols;
pub mod table;

use std::path::{Path, PathBuf};

/// The top folder of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}
