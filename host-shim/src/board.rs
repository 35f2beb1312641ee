//! The machine as the device tree tells it. Nothing of a board is known otherwise.
#![forbid(unsafe_code)]

use crate::span::{Full, PAGE, Pages, Span};
use arrayvec::ArrayVec;
use core::fmt;
use dtoolkit::error::FdtParseError;
use dtoolkit::fdt::{Fdt, FdtNode, FdtProperty};
use dtoolkit::{Node, Property, ToCellInt};

/// CPUs the shim can use; more are left off.
pub const MAX_CPUS: usize = 32;

/// MPIDR_EL1 bits that name a CPU: Aff3 and Aff2..Aff0.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// Depth of device-tree nodes that is looked at.
const MAX_DEPTH: usize = 8;

/// How firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// By SMC: what a hypervisor that owns EL2 must leave in the tree.
    Smc,
    /// By HVC: there is no EL2, firmware stands in for it.
    Hvc,
}

/// A part of memory that the tree says is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Where.
    pub span: Span,
    /// The system must not even map it: EL2's own memory.
    pub no_map: bool,
}

/// A device that can write memory behind the CPU's back, known by its binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusMaster {
    /// QEMU's fw_cfg: its DMA port writes anywhere.
    FwCfg,
    /// A virtio-mmio transport.
    VirtioMmio,
    /// A PCIe root complex, by its configuration space.
    Pcie,
    /// A GIC interrupt translation service.
    Its,
}

impl BusMaster {
    /// The kind for a `compatible` string.
    #[must_use]
    pub fn from_compatible(name: &str) -> Option<Self> {
        match name {
            "qemu,fw-cfg-mmio" => Some(Self::FwCfg),
            "virtio,mmio" => Some(Self::VirtioMmio),
            "pci-host-ecam-generic" => Some(Self::Pcie),
            "arm,gic-v3-its" => Some(Self::Its),
            _ => None,
        }
    }
}

/// One register window of a device that is disabled, or that can master the bus.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Node name.
    pub name: &'a str,
    /// Physical addresses of the window.
    pub span: Span,
    /// `status = "disabled"`.
    pub disabled: bool,
    /// Set if its binding is one of a bus master's.
    pub bus_master: Option<BusMaster>,
}

/// A GICv3, as far as the timers need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// Registers of the distributor.
    pub distributor: u64,
    /// Regions of redistributors.
    pub redistributors: ArrayVec<Span, 8>,
    /// INTID of the EL1 physical timer, the host's.
    pub timer: u32,
    /// INTID of the EL1 virtual timer, which is the guest's while one runs.
    pub guest_timer: u32,
    /// INTID of the maintenance interrupt, which ends the turn of a guest whose list registers run empty.
    pub maintenance: Option<u32>,
}

/// Why a tree cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoardError {
    /// The blob is no device tree.
    Malformed(FdtParseError),
    /// A property that must be there is missing or has the wrong size.
    Property(&'static str),
    /// More of something than the shim has room for.
    TooMany(&'static str),
}

impl fmt::Display for BoardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(e) => write!(f, "device tree: {e}"),
            Self::Property(what) => write!(f, "device tree: {what} is missing or malformed"),
            Self::TooMany(what) => write!(f, "device tree: too many {what}"),
        }
    }
}

/// Everything the shim uses of the tree.
#[derive(Debug)]
pub struct Board<'a> {
    /// Memory, in the order of the tree.
    pub ram: ArrayVec<Span, 128>,
    /// What of it is taken: /reserved-memory, the reservation block, the initrd, the tree itself is not.
    pub reserved: ArrayVec<Reserved, 64>,
    /// MPIDR affinities.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// CPUs in the tree that did not fit.
    pub cpus_left_out: usize,
    /// How to reach PSCI, if the tree has it.
    pub conduit: Option<Conduit>,
    /// The PL011 that `stdout-path` names.
    pub console: Option<u64>,
    /// The initial RAM disk.
    pub initrd: Option<Span>,
    /// `/chosen/bootargs`.
    pub bootargs: &'a str,
    /// The interrupt controller, if it is a GICv3 and the timer is wired to it.
    pub gic: Option<Gic>,
    /// Disabled devices and bus masters.
    pub devices: ArrayVec<Device<'a>, 128>,
}

impl<'a> Board<'a> {
    /// Reads a device tree.
    ///
    /// # Errors
    /// [`BoardError`] says what is wrong with it.
    pub fn read(fdt: Fdt<'a>) -> Result<Self, BoardError> {
        let root = fdt.root();
        let mut board = Self {
            ram: ArrayVec::new(),
            reserved: ArrayVec::new(),
            cpus: ArrayVec::new(),
            cpus_left_out: 0,
            conduit: None,
            console: console(fdt),
            initrd: None,
            bootargs: "",
            gic: gic(fdt),
            devices: ArrayVec::new(),
        };
        for node in root.children().filter(|n| n.name_without_address() == "memory") {
            for span in spans(node)? {
                board.ram.try_push(span).map_err(|_| BoardError::TooMany("memory regions"))?;
            }
        }
        if let Some(node) = fdt.find_node("/reserved-memory") {
            for child in node.children().filter(|c| !disabled(*c)) {
                let no_map = child.property("no-map").is_some();
                for span in spans(child)? {
                    board.reserve(Reserved { span, no_map })?;
                }
            }
        }
        for r in fdt.memory_reservations() {
            if let Some(span) = Span::new(r.address(), r.size()) {
                board.reserve(Reserved { span, no_map: false })?;
            }
        }
        board.read_cpus(fdt)?;
        board.read_chosen(fdt)?;
        board.conduit = fdt.find_node("/psci").and_then(|n| match string(n, "method")? {
            "smc" => Some(Conduit::Smc),
            "hvc" => Some(Conduit::Hvc),
            _ => None,
        });
        board.read_devices(root, Window::ALL, 0)?;
        Ok(board)
    }

    /// Memory that nothing uses: RAM without what is reserved, and without `used`.
    ///
    /// # Errors
    /// [`Full`] if it is too fragmented to list.
    pub fn free_pages(&self, used: &[Span]) -> Result<Pages, Full> {
        let reserved = self.reserved.iter().map(|r| r.span);
        Pages::new(self.ram.iter().copied(), reserved.chain(used.iter().copied()))
    }

    /// The carve-out: memory that the tree forbids to map.
    pub fn carveouts(&self) -> impl Iterator<Item = Span> + Clone + '_ {
        self.reserved.iter().filter(|r| r.no_map).map(|r| r.span)
    }

    /// True if any byte of the page at `address` is RAM.
    #[must_use]
    pub fn touches_ram(&self, address: u64) -> bool {
        let Some(page) = Span::new(address & !(PAGE - 1), PAGE) else { return false };
        self.ram.iter().any(|r| r.intersection(page).is_some())
    }

    fn reserve(&mut self, r: Reserved) -> Result<(), BoardError> {
        self.reserved.try_push(r).map_err(|_| BoardError::TooMany("memory reservations"))
    }

    fn read_cpus(&mut self, fdt: Fdt<'a>) -> Result<(), BoardError> {
        let cpus = fdt.cpus().map_err(|_| BoardError::Property("/cpus"))?;
        for cpu in cpus.cpus() {
            let id = (*cpu)
                .reg()
                .ok()
                .flatten()
                .and_then(|mut regs| regs.next())
                .and_then(|r| r.address::<u64>().ok())
                .ok_or(BoardError::Property("/cpus/cpu/reg"))?;
            if self.cpus.try_push(id & MPIDR_AFFINITY).is_err() {
                self.cpus_left_out += 1;
            }
        }
        Ok(())
    }

    fn read_chosen(&mut self, fdt: Fdt<'a>) -> Result<(), BoardError> {
        let Some(chosen) = fdt.find_node("/chosen") else { return Ok(()) };
        self.bootargs = string(chosen, "bootargs").unwrap_or("");
        let start = address(chosen, "linux,initrd-start");
        let end = address(chosen, "linux,initrd-end");
        self.initrd = start.zip(end).and_then(|(start, end)| Span::between(start, end));
        match self.initrd {
            Some(span) => self.reserve(Reserved { span, no_map: false }),
            None => Ok(()),
        }
    }

    fn read_devices(&mut self, bus: FdtNode<'a>, window: Window, depth: usize) -> Result<(), BoardError> {
        for node in bus.children() {
            let disabled = disabled(node);
            let bus_master =
                node.compatible().and_then(|mut names| names.find_map(BusMaster::from_compatible));
            if disabled || bus_master.is_some() {
                for span in spans(node)?.filter_map(|s| window.to_cpu(s)) {
                    let device = Device { name: name(node), span, disabled, bus_master };
                    self.devices.try_push(device).map_err(|_| BoardError::TooMany("withheld devices"))?;
                }
            }
            if let Some(below) = window.below(node)
                && depth < MAX_DEPTH
            {
                self.read_devices(node, below, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// How addresses of a bus become the CPU's: one `ranges` entry, or all as they are.
#[derive(Clone, Copy)]
struct Window {
    child: Option<Span>,
    cpu: u64,
}

impl Window {
    const ALL: Self = Self { child: None, cpu: 0 };

    fn to_cpu(self, span: Span) -> Option<Span> {
        match self.child {
            None => Some(span),
            Some(child) => {
                let inside = span.intersection(child)?;
                Span::new(self.cpu.checked_add(inside.start() - child.start())?, inside.size())
            }
        }
    }

    /// The window of the bus that `node` is, if its children have addresses of the CPU at all.
    fn below(self, node: FdtNode<'_>) -> Option<Self> {
        let ranges = node.property("ranges")?;
        if ranges.value().is_empty() {
            return Some(self);
        }
        let entry = node.ranges().ok()??.next()?;
        let child = Span::new(entry.child_bus_address().ok()?, entry.length().ok()?)?;
        let parent = Span::new(entry.parent_bus_address().ok()?, child.size())?;
        Some(Self { child: Some(child), cpu: self.to_cpu(parent)?.start() })
    }
}

fn disabled(node: FdtNode<'_>) -> bool {
    string(node, "status").is_some_and(|s| s != "okay" && s != "ok")
}

fn name<'a>(node: FdtNode<'a>) -> &'a str {
    node.name()
}

fn string<'a>(node: FdtNode<'a>, property: &str) -> Option<&'a str> {
    node.property(property)?.value_as::<&'a str>().ok()
}

/// A one- or two-cell property.
fn address(node: FdtNode<'_>, property: &str) -> Option<u64> {
    let property = node.property(property)?;
    let cells = property.value().len() / 4;
    let [value] = property.as_prop_encoded_array([cells]).ok()?.next()?;
    value.to_int().ok()
}

fn spans<'a>(node: FdtNode<'a>) -> Result<impl Iterator<Item = Span> + 'a, BoardError> {
    let regs = node.reg().map_err(|_| BoardError::Property("reg"))?;
    Ok(regs.into_iter().flatten().filter_map(|r| Span::new(r.address().ok()?, r.size().ok()?)))
}

/// First INTID of the private peripheral interrupts.
const FIRST_PPI: u32 = 16;

fn gic(fdt: Fdt<'_>) -> Option<Gic> {
    let is_gic = |n: &FdtNode<'_>| n.compatible().is_some_and(|mut names| names.any(|c| c == "arm,gic-v3"));
    let node = fdt.root().children().find(is_gic)?;
    let mut regions = spans(node).ok()?;
    let distributor = regions.next()?.start();
    let count = node.property("#redistributor-regions").map_or(Ok(1), |p| p.value_as::<u32>()).ok()?;
    let redistributors = regions.take(usize::try_from(count).ok()?.min(8)).collect();
    let is_timer =
        |n: &FdtNode<'_>| n.compatible().is_some_and(|mut names| names.any(|c| c == "arm,armv8-timer"));
    let timers = fdt.root().children().find(is_timer)?.property("interrupts")?;
    // The second is the physical timer's, the third the virtual one's.
    let (timer, guest_timer) = (ppi(timers, 1)?, ppi(timers, 2)?);
    let maintenance = node.property("interrupts").and_then(|interrupts| ppi(interrupts, 0));
    Some(Gic { distributor, redistributors, timer, guest_timer, maintenance })
}

/// The INTID of the `nth` interrupt of a property, if that is private: (1 = PPI, number, flags).
fn ppi(interrupts: FdtProperty<'_>, nth: usize) -> Option<u32> {
    let [kind, number, _] = interrupts.as_prop_encoded_array([1, 1, 1]).ok()?.nth(nth)?;
    let is_ppi = kind.to_int::<u32>().ok()? == 1;
    FIRST_PPI.checked_add(number.to_int().ok()?).filter(|id| is_ppi && *id < 32)
}

fn console(fdt: Fdt<'_>) -> Option<u64> {
    let path = string(fdt.find_node("/chosen")?, "stdout-path")?;
    let path = path.split(':').next()?;
    let node = if path.starts_with('/') {
        fdt.find_node(path)?
    } else {
        fdt.find_node(string(fdt.find_node("/aliases")?, path)?)?
    };
    let pl011 = node.compatible()?.any(|name| name == "arm,pl011");
    let console = spans(node).ok()?.next()?;
    pl011.then_some(console.start())
}
