//! `rampartctl`: what Rampart says of itself to the Linux that it has below it, and a few things to try with it. It needs
//! the driver of `linux/`. docs/linux-driver.md explains it.

mod arch;
mod device;
mod dump;
mod kexec;
mod refusals;
mod tree;

use abi::caps::Caps;
use abi::inspect::Figure;
use anyhow::{Context, Result, bail, ensure};
use device::{ABI, Census, Device, Donation, Info, Lend, MOST_PAGES, Share, TakeBack, Unshare, Vm};
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
usage: rampartctl                   version, capabilities, carve-out, pages that the hypervisor has
       rampartctl census            who owns how many pages; its development build only
       rampartctl snapshot FILE     the host's stage-2 table, for ptdump; its development build only
       rampartctl try               lends, shares and donates pages and takes them back
       rampartctl hold              the same, but nothing is taken back until it is killed
       rampartctl churn             the same over and over, until it is killed
       rampartctl refusals          makes every request that the driver must refuse
       rampartctl kexec FILE ADDR   starts an arm64 Image at a physical address, with this machine's own device tree";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [] | ["info"] => info(),
        ["census"] => census(),
        ["snapshot", file] => snapshot(Path::new(file)),
        ["try"] => try_all(),
        ["hold"] => hold(),
        ["churn"] => churn(),
        ["refusals"] => refuse(),
        ["kexec", file, at] => kexec(Path::new(file), at),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rampartctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn info() -> Result<()> {
    let info = Device::open()?.ask(Info::default()).context("RAMPART_INFO")?;
    ensure!(info.abi == ABI, "the driver speaks version {}, this program {ABI}", info.abi);
    println!("interface     {}.{}", info.version >> 16, info.version & 0xffff);
    let caps = Caps::from_bits_retain(info.capabilities);
    let names: Vec<&str> = caps.iter_names().map(|(name, _)| name).collect();
    println!("capabilities  {:#x} {}", info.capabilities, names.join(" "));
    for piece in tree::carve_out() {
        let size = piece.end.saturating_sub(piece.start);
        println!("carve-out     {:#x}-{:#x} {} KiB", piece.start, piece.end, size >> 10);
    }
    println!("pages kept    {}", info.kept);
    Ok(())
}

fn census() -> Result<()> {
    let census = Device::open()?.ask(Census::default());
    let census = census.context("RAMPART_CENSUS (a hypervisor with feature fault-injection counts)")?;
    for (figure, value) in Figure::ALL.iter().zip(census.figure) {
        println!("{:<18} {value}{}", figure.name(), if figure.is_kept() { "" } else { " (comes and goes)" });
    }
    println!("{:<18} {}", "findings", census.findings);
    ensure!(census.findings == 0, "the hypervisor's audit found {} faults", census.findings);
    Ok(())
}

fn snapshot(path: &Path) -> Result<()> {
    let device = Device::open()?;
    let mut out = File::create(path).with_context(|| path.display().to_string())?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    dump::write(&device, 0, &format!("Linux {} as the host", release.trim_end()), &mut out)
}

/// First frame of the VM's memory.
const MEMORY: u64 = 0x1_0000;
/// Requests that give it memory.
const ROUNDS: u64 = 4;

fn give(device: &Device, rounds: u64) -> Result<()> {
    device.ask(Lend::of(MOST_PAGES)).context("RAMPART_LEND")?;
    device.ask(Share::of(MOST_PAGES)).context("RAMPART_SHARE")?;
    device.ask(Vm { ipa_bits: 36, ..Vm::default() }).context("RAMPART_VM_CREATE")?;
    for round in 0..rounds {
        let gfn = round.checked_mul(MOST_PAGES.into()).and_then(|offset| offset.checked_add(MEMORY));
        let donation = Donation { gfn: gfn.context("too many frames")?, nr: MOST_PAGES, reserved: 0 };
        device.ask(donation).context("RAMPART_VM_DONATE")?;
    }
    Ok(())
}

fn try_all() -> Result<()> {
    let device = Device::open()?;
    give(&device, ROUNDS)?;
    let info = device.ask(Info::default()).context("RAMPART_INFO")?;
    let most = u64::from(MOST_PAGES);
    ensure!((info.lent, info.shared) == (most, most), "{info:?}");
    ensure!(info.given > most.saturating_mul(ROUNDS) && info.vm != 0, "{info:?}");
    device.destroy_vm().context("RAMPART_VM_DESTROY")?;
    device.ask(Unshare::of(MOST_PAGES)).context("RAMPART_UNSHARE")?;
    device.ask(TakeBack::of(MOST_PAGES)).context("RAMPART_TAKE_BACK")?;
    let info = device.ask(Info::default()).context("RAMPART_INFO")?;
    ensure!((info.lent, info.shared, info.given, info.vm) == (0, 0, 0, 0), "{info:?}");
    println!("{most} pages lent and shared, {} donated: all are back", most.saturating_mul(ROUNDS));
    Ok(())
}

fn hold() -> Result<()> {
    let device = Device::open()?;
    give(&device, ROUNDS)?;
    loop {
        std::thread::park();
    }
}

/// Each round has a file of its own, which closing it empties; the one that is open when the process dies as well.
fn churn() -> Result<()> {
    loop {
        let device = Device::open()?;
        give(&device, ROUNDS)?;
    }
}

fn refuse() -> Result<()> {
    let (count, wrong) = refusals::check(&Device::open()?);
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    println!("{count} requests were refused");
    Ok(())
}

fn kexec(file: &Path, at: &str) -> Result<()> {
    let digits = at.strip_prefix("0x").unwrap_or(at);
    let Ok(at) = usize::from_str_radix(digits, 16) else { bail!("{at} is no address") };
    kexec::start(file, at)
}
