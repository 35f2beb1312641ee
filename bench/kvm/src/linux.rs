//! Debian's Linux as a guest of KVM, up to its first process: the kernel, RAM disk and command line that it has as a guest
//! of Rampart, and a console. KVM has the interrupt controller and PSCI.
#![forbid(unsafe_code)]

use crate::arch::{Mapping, Pages};
use crate::counter::Counter;
use crate::kvm::{Exit, Keys, Kind, Kvm, RAM, Register, Vm};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::rc::Rc;
use std::time::Instant;
use vmm::fdt::{Conduit, Guest};
use vmm::layout::{Region, UART, UART_SPI};
use vmm::{Pl011, VcpuCount};

const BOOTARGS: &str = "console=ttyAMA0 panic=-1 run=checks realm=0 vcpus=1 secret=rampartkeepsout quiet";
const MEMORY: u64 = 256 << 20;
const BLOCK: u64 = 2 << 20;
/// Room for the device tree, in bytes.
const TREE: usize = 0x2000;
/// What the guest's script says first.
const FIRST_LINE: &[u8] = b"begin";
/// Shared interrupts are numbered from here.
const FIRST_SPI: u32 = 32;
/// KVM's own counts of exits, and what they are called here. The first is of all.
const EXITS: [(&str, &str); 5] = [
    ("exits", "linux_exits"),
    ("mmio_exit_kernel", "linux_exits_gic"),
    ("hvc_exit_stat", "linux_exits_hvc"),
    ("wfi_exit_stat", "linux_exits_wfi"),
    ("wfe_exit_stat", "linux_exits_wfe"),
];

/// Name, value and unit of a metric.
pub(crate) type Figure = (&'static str, u64, &'static str);

/// Boots it.
///
/// # Errors
/// The kernel's; the guest does not come so far.
pub(crate) fn boot(kind: Kind) -> Result<Vec<Figure>> {
    let vm = create(kind)?;
    let counter = Counter::new()?;
    let before = exits()?;
    let (since, executed) = (Instant::now(), counter.read()?);
    let uart = until_first_line(&vm)?;
    let took = u64::try_from(since.elapsed().as_micros()).context("it took for ever")?;
    let executed = counter.read()?.checked_sub(executed).context("the counter of EL2 goes back")?;
    let mut figures = vec![("linux_until_init", took, "us"), ("linux_el2", executed, "instructions")];
    figures.push(("linux_exits_uart", uart, "exits"));
    for ((name, after), before) in exits()?.into_iter().zip(before) {
        figures.push((name, after.saturating_sub(before.1), "exits"));
    }
    Ok(figures)
}

fn create(kind: Kind) -> Result<Vm> {
    // A protected guest gets single pages, another one blocks where there are some.
    let pages = if kind == Kind::Protected { Pages::Small } else { Pages::Huge };
    let memory = Mapping::anonymous(usize::try_from(MEMORY)?, pages)?;
    let kernel = fs::read("/guest/Image").context("the guest's kernel")?;
    let disk = fs::read("/guest/initrd").context("the guest's RAM disk")?;
    let word = |offset: usize| kernel.get(offset..)?.first_chunk().copied().map(u64::from_le_bytes);
    // Image header: where it wants to be in a block, and how much memory it takes.
    let (offset, size) = word(8).zip(word(16)).context("the guest's kernel has no header")?;
    ensure!(offset < BLOCK && size < MEMORY, "the guest's kernel wants {size} bytes at {offset:#x}");
    let disk_at = offset.saturating_add(size).next_multiple_of(4096);
    let disk_size = u64::try_from(disk.len())?;
    let tree_at = disk_at.saturating_add(disk_size).next_multiple_of(BLOCK);
    let mut tree = [0; TREE];
    let guest = Guest {
        vcpus: VcpuCount::new(1).context("one vCPU")?,
        ram: Region::new(RAM, MEMORY).context("no RAM")?,
        conduit: Conduit::Hvc,
        bootargs: BOOTARGS,
        initrd: Region::new(RAM.saturating_add(disk_at), disk_size),
        virtio_console: false,
    };
    guest.write(&mut tree).map_err(|error| anyhow::anyhow!("{error}"))?;
    for (at, bytes) in [(offset, kernel.as_slice()), (disk_at, &disk), (tree_at, &tree)] {
        memory.write(usize::try_from(at)?, bytes)?;
    }
    let vm = Kvm::open()?.create(kind, Keys::Own, Rc::new(memory))?;
    vm.add_interrupt_controller()?;
    vm.set(Register::X(0), RAM.saturating_add(tree_at))?;
    vm.set(Register::Pc, RAM.saturating_add(offset))?;
    Ok(vm)
}

/// Runs it to the end of its first line; how often it used the console.
fn until_first_line(vm: &Vm) -> Result<u64> {
    let (mut uart, mut uses, mut high) = (Pl011::default(), 0_u64, false);
    let mut said = Vec::new();
    loop {
        let (address, data, write) = match vm.run()? {
            Exit::Mmio { address, data, write, .. } => (address, data, write),
            Exit::Interrupted => continue,
            exit => {
                bail!("{exit:?} at {:#x}; it said: {}", vm.get(Register::Pc)?, String::from_utf8_lossy(&said))
            }
        };
        let Some(offset) = address.checked_sub(UART.start()).filter(|offset| *offset < UART.size()) else {
            bail!("an access to {address:#x}, where nothing is");
        };
        uses = uses.saturating_add(1);
        if write {
            let [a, b, c, d, ..] = data;
            said.extend(uart.write(offset, u32::from_le_bytes([a, b, c, d])).filter(|byte| *byte != b'\r'));
        } else {
            vm.answer(uart.read(offset).into())?;
        }
        if said.split(|byte| *byte == b'\n').rev().skip(1).any(|line| line == FIRST_LINE) {
            return Ok(uses);
        }
        if uart.interrupt() != high {
            high = uart.interrupt();
            vm.set_line(FIRST_SPI.saturating_add(UART_SPI), high)?;
        }
    }
}

/// What KVM has counted of the VMs that there are.
fn exits() -> Result<Vec<(&'static str, u64)>> {
    let count = |(file, name)| {
        let text = fs::read_to_string(format!("/sys/kernel/debug/kvm/{file}")).context("KVM's counts")?;
        Ok((name, text.trim().parse().with_context(|| format!("{file} is {text}"))?))
    };
    EXITS.into_iter().map(count).collect()
}
