//! One emulated machine: what is plugged in, and the QEMU command line for it.

use crate::flat::ImageHeader;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the host image is placed; any address that the images leave free would do.
pub const HOST_AT: u64 = 0x4400_0000;
/// Where the host's initial RAM disk is placed: behind the largest kernel, or if RAM ends before that
/// behind the last place that QEMU has for its device tree.
const INITRD_AT: [u64; 2] = [0x5000_0000, 0x4820_0000];
const RAM_AT: u64 = 0x4000_0000;
/// The largest device tree (Linux booting.rst), and what QEMU aligns its own to.
const MOST_TREE: u64 = 2 << 20;

/// An amount of RAM in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u64);

impl Memory {
    /// So many GiB, at most 2^33.
    #[must_use]
    pub const fn gib(count: u32) -> Self {
        Self((count as u64) << 30)
    }

    /// So many MiB.
    #[must_use]
    pub const fn mib(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// The amount in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// With the largest unit that divides it: the number and `K`, `M` or `G`.
    fn in_unit(self) -> (u64, char) {
        let units = [(30, 'G'), (20, 'M')];
        let fits = |shift: &u32| self.0.trailing_zeros() >= *shift;
        let (shift, unit) = units.into_iter().find(|(shift, _)| fits(shift)).unwrap_or((10, 'K'));
        (self.0 >> shift, unit)
    }
}

impl FromStr for Memory {
    type Err = anyhow::Error;

    /// Reads QEMU's form: a number with K, M or G; without a unit it means MiB.
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text.get(digits.len()..) {
            Some("" | "M" | "m") => 20,
            Some("K" | "k") => 10,
            Some("G" | "g") => 30,
            _ => anyhow::bail!("unknown unit in '{text}': use K, M or G, for instance 1G"),
        };
        let count: u64 = digits.parse().with_context(|| format!("'{text}' is not an amount of memory"))?;
        let bytes = count.checked_mul(1 << shift).context("more memory than an address reaches")?;
        ensure!(bytes > 0, "a machine without memory cannot start");
        Ok(Self(bytes))
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (count, unit) = self.in_unit();
        write!(f, "{count} {unit}iB")
    }
}

impl Serialize for Memory {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// The host image that the hypervisor starts at EL1, and its command line.
#[derive(Debug, Clone)]
pub struct Host {
    /// A flat arm64 `Image`.
    pub image: PathBuf,
    /// What the host finds as `/chosen/bootargs`.
    pub args: String,
}

/// A `virt` machine with an EL2 and a GICv3. Every field is what QEMU is told, nothing is derived twice.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The CPU model; `max` also gets tag memory.
    pub cpu: String,
    /// Number of CPUs.
    pub smp: u32,
    /// Amount of RAM.
    pub mem: Memory,
    /// One instruction is one nanosecond of virtual time: figures repeat exactly. CPUs take turns.
    pub icount: bool,
    /// The flat hypervisor image.
    pub hypervisor: PathBuf,
    /// The hypervisor's own command line.
    pub hypervisor_args: String,
    /// The host; without one the hypervisor has nothing to start.
    pub host: Option<Host>,
    /// The host's initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// EL1 may use semihosting, to end with an exit status and to read files. Never for a hostile host.
    pub semihosting: bool,
    /// A reset starts the machine again, with its RAM as it was; otherwise it ends it.
    pub reboot: bool,
    /// Wait for a debugger on TCP port 1234 before the first instruction.
    pub gdb: bool,
    /// Added at the end of the command line.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// A machine with 4 CPUs of model `max`, 1 GiB and nothing but a hypervisor.
    #[must_use]
    pub fn new(hypervisor: impl Into<PathBuf>) -> Self {
        Self {
            cpu: "max".to_owned(),
            smp: 4,
            mem: Memory::gib(1),
            icount: false,
            hypervisor: hypervisor.into(),
            hypervisor_args: String::new(),
            host: None,
            initrd: None,
            semihosting: false,
            reboot: false,
            gdb: false,
            extra: Vec::new(),
        }
    }

    fn initrd_at(&self) -> u64 {
        let [far, near] = INITRD_AT;
        if self.mem > Memory::mib(256) { far } else { near }
    }

    /// Where QEMU puts the device tree: in the middle of RAM, or 128 MiB into it if that is less.
    fn tree_at(&self) -> u64 {
        let middle = (self.mem.bytes() / 2).min(128 << 20);
        RAM_AT.saturating_add(middle.next_multiple_of(MOST_TREE))
    }

    /// Whether tree, host and RAM disk each have a place of their own in RAM. QEMU does not say when it
    /// loads one over the other, and without a tree the hypervisor finds no console to say it on.
    ///
    /// # Errors
    /// What RAM has no room for, or which two meet; a file that cannot be read.
    pub fn check(&self) -> Result<()> {
        let ram = RAM_AT..RAM_AT.saturating_add(self.mem.bytes());
        let mut parts = vec![("the device tree", self.tree_at(), MOST_TREE)];
        if let Some(host) = &self.host {
            parts.push(("the host", HOST_AT, memory_of(&host.image)?));
        }
        if let Some(initrd) = &self.initrd {
            parts.push(("the RAM disk", self.initrd_at(), length_of(initrd)?));
        }
        let parts = parts.into_iter().map(|(name, at, size)| (name, at..at.saturating_add(size)));
        let parts: Vec<_> = parts.collect();
        for (nth, (name, place)) in parts.iter().enumerate() {
            ensure!(
                ram.start <= place.start && place.end <= ram.end,
                "{name} at {:#x} is not in {} of RAM",
                place.start,
                self.mem
            );
            for (other, its) in parts.iter().take(nth) {
                ensure!(
                    place.end <= its.start || its.end <= place.start,
                    "with {} of RAM {other} at {:#x} and {name} at {:#x} overlap",
                    self.mem,
                    its.start,
                    place.start
                );
            }
        }
        Ok(())
    }

    /// The arguments for QEMU, the program's name not included.
    #[must_use]
    pub fn args(&self) -> Vec<OsString> {
        let mut board = "virt,virtualization=on,gic-version=3".to_owned();
        if self.cpu.split(',').next() == Some("max") {
            board.push_str(",mte=on");
        }
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |words: &[&OsStr]| args.extend(words.iter().map(OsString::from));
        let (count, unit) = self.mem.in_unit();
        let size = format!("{count}{unit}");
        // Large RAM is not reserved in advance: a guest touches little of it, and the machine at hand may have less.
        // A memfd has small pages: of huge ones, each first touch takes and clears 2 MiB.
        if self.mem > Memory::gib(4) {
            board.push_str(",memory-backend=ram");
            let backend = format!("memory-backend-memfd,id=ram,size={size},reserve=off");
            add(&["-object".as_ref(), backend.as_ref()]);
        }
        add(&["-M".as_ref(), board.as_ref(), "-cpu".as_ref(), self.cpu.as_ref()]);
        add(&["-smp".as_ref(), self.smp.to_string().as_ref(), "-m".as_ref(), size.as_ref()]);
        add(&["-display", "none", "-monitor", "none", "-serial", "stdio"].map(OsStr::new));
        add(&["-net", "none"].map(OsStr::new));
        if !self.reboot {
            add(&["-no-reboot"].map(OsStr::new));
        }
        if self.icount {
            add(&["-icount", "shift=0,sleep=off"].map(OsStr::new));
        }
        if self.semihosting {
            add(&["-semihosting-config", "enable=on,target=native"].map(OsStr::new));
        }
        if self.gdb {
            add(&["-gdb", "tcp::1234", "-S"].map(OsStr::new));
        }
        add(&["-kernel".as_ref(), self.hypervisor.as_ref()]);
        if !self.hypervisor_args.is_empty() {
            add(&["-append".as_ref(), self.hypervisor_args.as_ref()]);
        }
        if let Some(host) = &self.host {
            let mut device = loader(HOST_AT, "kernel", host.image.as_os_str());
            device.push(",bootargs=");
            device.push(doubled_commas(host.args.as_ref()));
            add(&["-device".as_ref(), &device]);
        }
        if let Some(initrd) = &self.initrd {
            add(&["-device".as_ref(), &loader(self.initrd_at(), "initrd", initrd.as_os_str())]);
        }
        args.extend(self.extra.iter().cloned());
        args
    }
}

fn length_of(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len())
}

/// Memory that an arm64 Image takes; of any other file its length.
fn memory_of(image: &Path) -> Result<u64> {
    let mut head = Vec::new();
    let file = File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
    file.take(64).read_to_end(&mut head).with_context(|| format!("cannot read {}", image.display()))?;
    Ok(length_of(image)?.max(ImageHeader::read(&head).map_or(0, |header| header.image_size)))
}

fn loader(at: u64, kind: &str, file: &OsStr) -> OsString {
    let mut device = OsString::from(format!("guest-loader,addr={at:#x},{kind}="));
    device.push(doubled_commas(file));
    device
}

/// QEMU's way to write a comma inside an option's value.
fn doubled_commas(text: &OsStr) -> OsString {
    match text.to_str() {
        Some(text) => text.replace(',', ",,").into(),
        // A name that is no text goes through as it is; QEMU complains if it holds a comma.
        None => text.to_owned(),
    }
}

/// Words as a shell line that gives the same words.
#[must_use]
pub fn shell_line<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> String {
    let quoted = words.into_iter().map(|word| {
        let word = word.as_ref().to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: &Machine) -> String {
        shell_line(machine.args())
    }

    #[test]
    fn the_default_machine_has_an_el2_tags_and_no_network() {
        assert_eq!(
            line(&Machine::new("rampart.bin")),
            "-M virt,virtualization=on,gic-version=3,mte=on -cpu max -smp 4 -m 1G -display none -monitor none \
             -serial stdio -net none -no-reboot -kernel rampart.bin"
        );
    }

    #[test]
    fn only_max_gets_tag_memory() {
        let with = |cpu: &str| line(&Machine { cpu: cpu.to_owned(), ..Machine::new("h") });
        assert!(!with("cortex-a72").contains("mte"));
        assert!(with("max,pauth=off").contains("mte=on"));
    }

    #[test]
    fn host_and_ram_disk_are_handed_over_by_guest_loader() {
        let host = Host { image: "a,b.bin".into(), args: "scenario=demo list=1,2".to_owned() };
        let machine = Machine { host: Some(host), initrd: Some("rd".into()), ..Machine::new("h") };
        assert!(line(&machine).ends_with(
            "-kernel h -device 'guest-loader,addr=0x44000000,kernel=a,,b.bin,bootargs=scenario=demo list=1,,2' \
             -device guest-loader,addr=0x50000000,initrd=rd"
        ));
    }

    #[test]
    fn the_ram_disk_is_in_ram() {
        let machine = Machine { initrd: Some("rd".into()), mem: Memory::mib(160), ..Machine::new("h") };
        assert!(line(&machine).ends_with("-device guest-loader,addr=0x48200000,initrd=rd"));
    }

    #[test]
    fn what_is_loaded_has_a_place_of_its_own() {
        let image = std::env::current_exe().unwrap().with_file_name("rampart-places.bin");
        let check = |mem: u32, host: u64, initrd: u64| {
            let file = |name: &str, size: u64| {
                let path = image.with_extension(format!("{mem}.{host}.{initrd}.{name}"));
                File::create(&path).unwrap().set_len(size << 20).unwrap();
                path
            };
            let (host, initrd) = (file("host", host), file("initrd", initrd));
            let machine = Machine {
                host: Some(Host { image: host.clone(), args: String::new() }),
                initrd: Some(initrd.clone()),
                mem: Memory::mib(mem),
                ..Machine::new("h")
            };
            let result = machine.check().map_err(|error| error.to_string());
            for path in [host, initrd] {
                fs::remove_file(path).unwrap();
            }
            result
        };
        let refused = |text: &str| Err(text.to_owned());
        for mem in [160, 200, 256, 320, 1024] {
            assert_eq!(check(mem, 2, 1), Ok(()), "{mem}");
        }
        assert_eq!(check(64, 2, 1), refused("the host at 0x44000000 is not in 64 MiB of RAM"));
        assert_eq!(
            check(128, 2, 1),
            refused("with 128 MiB of RAM the device tree at 0x44000000 and the host at 0x44000000 overlap")
        );
        assert_eq!(check(132, 1, 3), refused("the RAM disk at 0x48200000 is not in 132 MiB of RAM"));
        assert_eq!(
            check(1024, 65, 1),
            refused("with 1 GiB of RAM the device tree at 0x48000000 and the host at 0x44000000 overlap")
        );
    }

    #[test]
    fn an_image_takes_the_memory_that_its_header_says() {
        let path = std::env::current_exe().unwrap().with_file_name("rampart-header.bin");
        let mut image = [0; 64];
        image[16..24].copy_from_slice(&0x1000_0000_u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        fs::write(&path, image).unwrap();
        let host = Some(Host { image: path.clone(), args: String::new() });
        let result = Machine { host, ..Machine::new("h") }.check();
        assert!(result.unwrap_err().to_string().ends_with("overlap"));
        assert!(
            Machine { host: Some(Host { image: "none".into(), args: String::new() }), ..Machine::new("h") }
                .check()
                .is_err()
        );
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn large_memory_is_not_reserved_in_advance() {
        let large = line(&Machine { mem: Memory::gib(16), ..Machine::new("h") });
        assert!(large.starts_with("-object memory-backend-memfd,id=ram,size=16G,reserve=off -M virt,"));
        assert!(large.contains(",memory-backend=ram ") && large.contains("-m 16G "));
    }

    #[test]
    fn options_appear_when_asked_for() {
        let machine = Machine {
            icount: true,
            semihosting: true,
            gdb: true,
            hypervisor_args: "log=debug".to_owned(),
            extra: vec!["-d".into(), "int".into()],
            ..Machine::new("h")
        };
        assert!(line(&machine).ends_with(
            "-no-reboot -icount shift=0,sleep=off -semihosting-config enable=on,target=native -gdb tcp::1234 -S \
             -kernel h -append log=debug -d int"
        ));
    }

    #[test]
    fn a_reset_ends_the_machine_unless_it_is_to_start_again() {
        assert!(line(&Machine::new("h")).contains("-no-reboot"));
        assert!(!line(&Machine { reboot: true, ..Machine::new("h") }).contains("-no-reboot"));
    }

    #[test]
    fn amounts_of_memory_are_read_and_shown() {
        let shown = |text: &str| text.parse::<Memory>().map(|memory| memory.to_string()).ok();
        assert_eq!(shown("1G").as_deref(), Some("1 GiB"));
        assert_eq!(shown("512").as_deref(), Some("512 MiB"));
        assert_eq!(shown("1048577k").as_deref(), Some("1048577 KiB"));
        for wrong in ["", "G", "0", "1T", "-1G", "99999999999G", "1.5G"] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_shell_line_keeps_words_apart() {
        assert_eq!(shell_line(["a b", "", "it's", "x=1,2"]), r"'a b' '' 'it'\''s' x=1,2");
    }
}
