//! The guest's device tree: what [`layout`](crate::layout) and [`Devices`](crate::Devices) are, in the
//! words of the Linux bindings.
//!
//! Every address in it is in the private half of a realm's address space: the realm adds the bit of
//! the shared half itself. Device nodes are `dma-coherent`, without which a realm would see
//! its rings in the shared half before it has shared them.

mod writer;

use crate::gic::REDISTRIBUTOR_SIZE;
use crate::layout::{
    DISTRIBUTOR, RAM, REDISTRIBUTORS, Region, UART, UART_SPI, VIRTIO_CONSOLE, VIRTIO_CONSOLE_SPI,
};
use crate::vcpu::VcpuCount;
use thiserror::Error;
use writer::Writer;

/// Why a tree could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FdtError {
    /// It does not fit in the bytes that were given.
    #[error("the device tree does not fit")]
    Full,
    /// A text has a zero byte in it.
    #[error("a text for the device tree has a zero byte")]
    Nul,
    /// RAM begins below [`RAM`], where devices are.
    #[error("RAM begins among the devices")]
    Ram,
    /// The initial RAM disk is not in RAM.
    #[error("the initial RAM disk is not in RAM")]
    Initrd,
}

/// By which instruction the guest makes PSCI calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// HVC: a VM that is not a realm.
    Hvc,
    /// SMC: a realm. A Linux that is told `hvc` does not look whether it is one.
    Smc,
}

/// What the tree says of the guest, besides its devices, which are the same for all.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Its vCPUs.
    pub vcpus: VcpuCount,
    /// Its RAM, all of it.
    pub ram: Region,
    /// How it calls PSCI.
    pub conduit: Conduit,
    /// The kernel's command line.
    pub bootargs: &'a str,
    /// Where the initial RAM disk is.
    pub initrd: Option<Region>,
    /// True if it has a virtio console besides its PL011.
    pub virtio_console: bool,
}

const GIC: u32 = 1;
const CLOCK: u32 = 2;
/// Cells of an interrupt (arm,gic-v3): shared or private, which, how it is triggered.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const LEVEL_HIGH: u32 = 4;
const LEVEL_LOW: u32 = 8;
/// The architected timers' private interrupts, INTID less 16: secure, non-secure, virtual, hypervisor's.
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// Of the PL011; nothing depends on it.
const CLOCK_HZ: u32 = 24_000_000;

impl Guest<'_> {
    /// Writes the tree; how many bytes of `out` it takes. A guest with eight vCPUs and a command line of 256
    /// bytes needs less than 4 KiB.
    ///
    /// # Errors
    /// As [`FdtError`] says; `out` then holds a part of a tree without a header.
    pub fn write(&self, out: &mut [u8]) -> Result<usize, FdtError> {
        if self.ram.start() < RAM {
            return Err(FdtError::Ram);
        }
        if self.initrd.is_some_and(|initrd| !self.ram.contains(initrd)) {
            return Err(FdtError::Initrd);
        }
        let mut tree = Writer::new(out)?;
        tree.node(format_args!(""), |root| {
            root.texts("compatible", &["linux,dummy-virt"])?;
            root.cells("#address-cells", &[2])?;
            root.cells("#size-cells", &[2])?;
            root.cells("interrupt-parent", &[GIC])?;
            self.chosen(root)?;
            let ram = self.ram;
            root.node(format_args!("memory@{:x}", ram.start()), |node| {
                node.texts("device_type", &["memory"])?;
                node.wide("reg", &[ram.start(), ram.size()])
            })?;
            self.cpus(root)?;
            self.psci(root)?;
            timer(root)?;
            self.interrupt_controller(root)?;
            uart(root)?;
            if self.virtio_console { virtio(root, VIRTIO_CONSOLE, VIRTIO_CONSOLE_SPI) } else { Ok(()) }
        })?;
        tree.finish(0)
    }

    fn chosen(&self, root: &mut Writer<'_>) -> Result<(), FdtError> {
        root.node(format_args!("chosen"), |node| {
            node.texts("bootargs", &[self.bootargs])?;
            node.texts("stdout-path", &["/pl011@9000000"])?;
            let Some(initrd) = self.initrd else { return Ok(()) };
            node.wide("linux,initrd-start", &[initrd.start()])?;
            node.wide("linux,initrd-end", &[initrd.end()])
        })
    }

    fn cpus(&self, root: &mut Writer<'_>) -> Result<(), FdtError> {
        root.node(format_args!("cpus"), |cpus| {
            cpus.cells("#address-cells", &[1])?;
            cpus.cells("#size-cells", &[0])?;
            self.vcpus.all().try_for_each(|vcpu| {
                cpus.node(format_args!("cpu@{:x}", vcpu.affinity()), |cpu| {
                    cpu.texts("device_type", &["cpu"])?;
                    cpu.texts("compatible", &["arm,armv8"])?;
                    cpu.texts("enable-method", &["psci"])?;
                    cpu.cells("reg", &[vcpu.affinity()])
                })
            })
        })
    }

    fn psci(&self, root: &mut Writer<'_>) -> Result<(), FdtError> {
        let method = match self.conduit {
            Conduit::Hvc => "hvc",
            Conduit::Smc => "smc",
        };
        root.node(format_args!("psci"), |node| {
            node.texts("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
            node.texts("method", &[method])
        })
    }

    fn interrupt_controller(&self, root: &mut Writer<'_>) -> Result<(), FdtError> {
        let redistributors = self.vcpus.all().fold(0_u64, |sum, _| sum.saturating_add(REDISTRIBUTOR_SIZE));
        root.node(format_args!("interrupt-controller@{:x}", DISTRIBUTOR.start()), |node| {
            node.texts("compatible", &["arm,gic-v3"])?;
            node.flag("interrupt-controller")?;
            node.cells("#interrupt-cells", &[3])?;
            node.cells("phandle", &[GIC])?;
            let distributor = [DISTRIBUTOR.start(), DISTRIBUTOR.size()];
            node.wide("reg", &[distributor[0], distributor[1], REDISTRIBUTORS.start(), redistributors])
        })
    }
}

fn timer(root: &mut Writer<'_>) -> Result<(), FdtError> {
    root.node(format_args!("timer"), |node| {
        node.texts("compatible", &["arm,armv8-timer"])?;
        node.flag("always-on")?;
        let [s, ns, virt, hyp] = TIMERS;
        let one = |nr| [PRIVATE, nr, LEVEL_LOW];
        node.cells("interrupts", [one(s), one(ns), one(virt), one(hyp)].as_flattened())
    })
}

fn uart(root: &mut Writer<'_>) -> Result<(), FdtError> {
    root.node(format_args!("clock"), |node| {
        node.texts("compatible", &["fixed-clock"])?;
        node.cells("#clock-cells", &[0])?;
        node.cells("clock-frequency", &[CLOCK_HZ])?;
        node.cells("phandle", &[CLOCK])
    })?;
    root.node(format_args!("pl011@{:x}", UART.start()), |node| {
        node.texts("compatible", &["arm,pl011", "arm,primecell"])?;
        node.wide("reg", &[UART.start(), UART.size()])?;
        node.cells("interrupts", &[SHARED, UART_SPI, LEVEL_HIGH])?;
        node.cells("clocks", &[CLOCK, CLOCK])?;
        node.texts("clock-names", &["uartclk", "apb_pclk"])?;
        node.flag("dma-coherent")
    })
}

fn virtio(root: &mut Writer<'_>, registers: Region, spi: u32) -> Result<(), FdtError> {
    root.node(format_args!("virtio_mmio@{:x}", registers.start()), |node| {
        node.texts("compatible", &["virtio,mmio"])?;
        node.wide("reg", &[registers.start(), registers.size()])?;
        node.cells("interrupts", &[SHARED, spi, LEVEL_HIGH])?;
        node.flag("dma-coherent")
    })
}

#[cfg(test)]
mod tests {
    use super::{Conduit, FdtError, Guest};
    use crate::layout::{DISTRIBUTOR, REDISTRIBUTORS, Region, UART, VIRTIO_CONSOLE};
    use crate::vcpu::VcpuCount;
    use dtoolkit::fdt::{Fdt, FdtNode};
    use dtoolkit::{Node, Property};

    const RAM: Region = match Region::new(0x8000_0000, 0x4000_0000) {
        Some(region) => region,
        None => panic!(),
    };

    fn guest() -> Guest<'static> {
        Guest {
            vcpus: VcpuCount::new(4).unwrap(),
            ram: RAM,
            conduit: Conduit::Smc,
            bootargs: "console=ttyAMA0 panic=-1",
            initrd: Region::new(0x9000_0000, 0x12_3456),
            virtio_console: true,
        }
    }

    fn text<'a>(node: &FdtNode<'a>, name: &str) -> Vec<String> {
        let value = node.property(name).unwrap().value().to_vec();
        let texts = value.strip_suffix(b"\0").unwrap().split(|byte| *byte == 0);
        texts.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
    }

    fn cells(node: &FdtNode<'_>, name: &str) -> Vec<u32> {
        let value = node.property(name).unwrap().value().to_vec();
        value.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
    }

    fn with_tree(guest: &Guest<'_>, f: impl FnOnce(&Fdt<'_>)) {
        let mut bytes = [0xff; 4096];
        let size = guest.write(&mut bytes).unwrap();
        f(&Fdt::new(&bytes[..size]).unwrap());
    }

    #[test]
    fn the_tree_says_what_linux_has_to_know() {
        with_tree(&guest(), |tree| {
            let chosen = tree.find_node("/chosen").unwrap();
            assert_eq!(text(&chosen, "bootargs"), ["console=ttyAMA0 panic=-1"]);
            assert!(tree.find_node(&text(&chosen, "stdout-path")[0]).is_some());
            assert_eq!(cells(&chosen, "linux,initrd-start"), [0, 0x9000_0000]);
            assert_eq!(cells(&chosen, "linux,initrd-end"), [0, 0x9012_3456]);
            let memory = tree.find_node("/memory@80000000").unwrap();
            assert_eq!(cells(&memory, "reg"), [0, 0x8000_0000, 0, 0x4000_0000]);
            let psci = tree.find_node("/psci").unwrap();
            assert_eq!(
                (text(&psci, "method"), &text(&psci, "compatible")[0]),
                (vec!["smc".into()], &"arm,psci-1.0".into())
            );
            for n in 0..4 {
                let cpu = tree.find_node(&format!("/cpus/cpu@{n}")).unwrap();
                assert_eq!((cells(&cpu, "reg"), text(&cpu, "enable-method")), (vec![n], vec!["psci".into()]));
            }
            assert!(tree.find_node("/cpus/cpu@4").is_none());
        });
        with_tree(&Guest { conduit: Conduit::Hvc, ..guest() }, |tree| {
            assert_eq!(text(&tree.find_node("/psci").unwrap(), "method"), ["hvc"]);
        });
    }

    #[test]
    fn devices_are_where_the_bus_has_them() {
        with_tree(&guest(), |tree| {
            let reg = |path: &str| {
                let node = tree.find_node(path).unwrap();
                let reg: Vec<_> = node.reg().unwrap().unwrap().collect();
                reg.iter()
                    .map(|r| (r.address::<u64>().unwrap(), r.size::<u64>().unwrap()))
                    .collect::<Vec<_>>()
            };
            let gic = reg("/interrupt-controller@8000000");
            assert_eq!(
                gic,
                [(DISTRIBUTOR.start(), DISTRIBUTOR.size()), (REDISTRIBUTORS.start(), 4 * 0x2_0000)]
            );
            assert_eq!(reg("/pl011@9000000"), [(UART.start(), UART.size())]);
            assert_eq!(reg("/virtio_mmio@a000000"), [(VIRTIO_CONSOLE.start(), VIRTIO_CONSOLE.size())]);
            for path in ["/pl011@9000000", "/virtio_mmio@a000000"] {
                assert!(tree.find_node(path).unwrap().property("dma-coherent").is_some());
            }
        });
        with_tree(&Guest { virtio_console: false, ..guest() }, |tree| {
            assert!(tree.find_node("/virtio_mmio@a000000").is_none());
        });
    }

    #[test]
    fn a_tree_that_does_not_fit_is_refused_at_every_size() {
        let mut bytes = [0; 4096];
        let size = guest().write(&mut bytes).unwrap();
        for room in 0..size {
            assert_eq!(guest().write(&mut bytes[..room]), Err(FdtError::Full), "{room}");
        }
        assert_eq!(guest().write(&mut bytes[..size]), Ok(size));
        let long = "x".repeat(5000);
        assert_eq!(Guest { bootargs: &long, ..guest() }.write(&mut bytes), Err(FdtError::Full));
    }

    #[test]
    fn what_would_be_a_wrong_tree_is_refused() {
        let mut bytes = [0; 4096];
        let mut write = |guest: Guest<'_>| guest.write(&mut bytes);
        assert_eq!(write(Guest { bootargs: "a\0b", ..guest() }), Err(FdtError::Nul));
        let low = Region::new(0x3fff_f000, 0x4000_0000).unwrap();
        assert_eq!(write(Guest { ram: low, ..guest() }), Err(FdtError::Ram));
        for initrd in [Region::new(0x7fff_ffff, 2), Region::new(0xbfff_ffff, 2)] {
            assert_eq!(write(Guest { initrd, ..guest() }), Err(FdtError::Initrd));
        }
    }
}
