//! `scripts/linux-cost.sh`: the tables of [`boot_tests::linux_cost`] and [`boot_tests::carve_out`].
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use boot_tests::{carve_out, linux_cost};
use xtask::images::Build;
use xtask::machine::Memory;
use xtask::qemu::Qemu;

const CPUS: [&str; 2] = ["cortex-a72", "max"];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let memory_only = words == ["--carve-out"];
    ensure!(words.is_empty() || memory_only, "there is no option but --carve-out");
    let (qemu, images) = (Qemu::find()?, Build::default().run()?);
    if !memory_only {
        let mut columns = Vec::new();
        for cpu in CPUS {
            let figures = linux_cost::measure(&qemu, &images, cpu, Memory::gib(1))?;
            columns.push((format!("{cpu}, 1 GiB"), figures));
        }
        println!("{}", linux_cost::markdown(&columns));
    }
    let figures = carve_out::GIBIBYTES.map(|ram| carve_out::measure(&qemu, &images, CPUS[0], ram));
    let figures: Vec<carve_out::Figure> = figures.into_iter().collect::<Result<_>>()?;
    print!("{}", carve_out::markdown(&figures));
    Ok(())
}
