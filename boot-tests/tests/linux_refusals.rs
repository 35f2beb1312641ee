//! What is refused before a boot, tried with Debian's kernel: docs/linux-host.md lists the words.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that panics says that it failed")]

use std::fs;
use std::path::PathBuf;
use xtask::kernel;
use xtask::linux::{Extras, Linux};
use xtask::machine::{Host, Machine, Memory};

/// The kernel, or why there is nothing to try.
fn linux() -> Option<Linux> {
    Linux::find().inspect_err(|error| eprintln!("NOT RUN: {error:#}")).ok()
}

/// A copy of the kernel after a change.
fn changed(linux: &Linux, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let folder = xtask::workspace().join("target/boot-tests/linux-refusals");
    fs::create_dir_all(&folder).unwrap();
    let mut bytes = fs::read(&linux.kernel).unwrap();
    change(&mut bytes);
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// What is said of a copy that is removed afterwards.
fn refusal(path: PathBuf) -> String {
    let error = kernel::check(&path).unwrap_err();
    fs::remove_file(path).unwrap();
    format!("{error:#}")
}

#[test]
fn a_kernel_that_is_whole_is_taken() {
    let Some(linux) = linux() else { return };
    kernel::check(&linux.kernel).unwrap();
}

#[test]
fn a_kernel_whose_end_is_missing_is_refused() {
    let Some(linux) = linux() else { return };
    for (name, kept) in [("half", 2), ("tenth", 10)] {
        let path = changed(&linux, name, |bytes| bytes.truncate(bytes.len() / kept));
        assert!(refusal(path).contains("it is cut short"), "{name}");
    }
    let path = changed(&linux, "header", |bytes| bytes.truncate(60));
    assert!(refusal(path).contains("it is cut short"));
}

#[test]
fn a_kernel_with_another_magic_number_is_refused() {
    let Some(linux) = linux() else { return };
    let path = changed(&linux, "magic", |bytes| *bytes.get_mut(56).unwrap() ^= 1);
    assert!(refusal(path).contains("no arm64 Image header"));
}

fn placed(linux: &Linux, mem: Memory, initrd: PathBuf) -> anyhow::Result<()> {
    let host = Host { image: linux.kernel.clone(), args: String::new() };
    Machine { host: Some(host), initrd: Some(initrd), mem, ..Machine::new("rampart.bin") }.check()
}

#[test]
fn a_kernel_too_large_for_ram_is_refused() {
    let Some(linux) = linux() else { return };
    let initrd = linux.initrd(&Extras::default()).unwrap();
    assert!(placed(&linux, Memory::mib(256), initrd.clone()).is_ok());
    let error = placed(&linux, Memory::mib(96), initrd).unwrap_err().to_string();
    assert!(error.contains("96 MiB of RAM"), "{error}");
}

#[test]
fn a_ram_disk_that_has_no_place_is_refused() {
    let Some(linux) = linux() else { return };
    let large = xtask::workspace().join("target/boot-tests/large-ram-disk");
    fs::create_dir_all(large.parent().unwrap()).unwrap();
    fs::File::create(&large).unwrap().set_len(800 << 20).unwrap();
    let error = placed(&linux, Memory::gib(1), large.clone()).unwrap_err().to_string();
    fs::remove_file(large).unwrap();
    assert!(error.contains("the RAM disk at 0x50000000 is not in 1 GiB of RAM"), "{error}");
}
