//! `scripts/linux-cost.sh`: the table of [`boot_tests::linux_cost`].
#![forbid(unsafe_code)]

use anyhow::Result;
use boot_tests::linux_cost::{markdown, measure};
use xtask::images::Build;
use xtask::machine::Memory;
use xtask::qemu::Qemu;

const CPUS: [&str; 2] = ["cortex-a72", "max"];

fn main() -> Result<()> {
    let (qemu, images) = (Qemu::find()?, Build::default().run()?);
    let mut columns = Vec::new();
    for cpu in CPUS {
        columns.push((format!("{cpu}, 1 GiB"), measure(&qemu, &images, cpu, Memory::gib(1))?));
    }
    print!("{}", markdown(&columns));
    Ok(())
}
