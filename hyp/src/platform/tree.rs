//! Reads the flattened device tree into a [`Platform`]: memory, CPUs, PSCI, GIC, console, modules.
//!
//! The blob is validated as a whole first (dtoolkit), so that no later step meets a bad offset.
//! Addresses are those the CPU uses: every `reg` is taken through the `ranges` of the buses above
//! it, with the `#address-cells` and `#size-cells` of each.
//!
//! Invariant of a [`Platform`]: memory is sorted, merged and free of overlap, there is at least
//! one CPU, no MPIDR occurs twice, PSCI is 0.2 or later by SMC, and there is one host kernel.
#![forbid(unsafe_code)]

use super::PaRange;
use crate::mm::MAX_NO_TAGS;
use arrayvec::ArrayVec;
use dtoolkit::error::FdtParseError;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// Most memory regions, after merging neighbours none is left out.
pub const MAX_REGIONS: usize = 128;
/// Most reserved ranges.
pub const MAX_RESERVED: usize = 64;
/// Most separate ranges of withheld devices.
pub const MAX_WITHHELD: usize = 64;
/// Most CPUs that Rampart runs on; the host cannot start further ones.
pub const MAX_CPUS: usize = 64;
/// Most separate ranges of GICv3 redistributors.
pub const MAX_REDISTRIBUTORS: usize = 8;
/// In a memory node: its memory has no allocation tags. Without it all memory has them where the CPU
/// has MTE2, as Linux takes it.
const NO_TAGS: &str = "rampart,no-tags";
/// Deepest node, the root being at depth 1.
pub(super) const MAX_DEPTH: usize = 16;

/// Devices that reach memory without an IOMMU that EL2 owns (docs/threat-model.md): their
/// registers are kept from the host and their nodes disabled in the tree it gets.
const WITHHELD: [&str; 7] = [
    "qemu,fw-cfg-mmio",
    "virtio,mmio",
    "pci-host-ecam-generic",
    "arm,gic-v3-its",
    // It reads and writes queues and tables itself, wherever its registers say.
    "arm,smmu-v3",
    // Whatever was plugged in with -device, vfio-platform included.
    "qemu,platform",
    "arm,pl330",
];

/// Compatible string of everything that QEMU's guest-loader adds to `/chosen`.
const MODULE: &str = "multiboot,module";

/// MPIDR_EL1 affinity fields: 39:32 and 23:0.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// Why a device tree cannot be used. One line each; `'a` is the blob's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError<'a> {
    /// Not a device tree, truncated, or inconsistent in itself.
    #[error("device tree: {0}")]
    Malformed(FdtParseError),
    /// Nodes nested more than 16 deep.
    #[error("device tree: {0}: nested too deep")]
    TooDeep(&'a str),
    /// More of something than Rampart has room for.
    #[error("device tree: more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A property that must be there is not.
    #[error("device tree: {node}: no {property}")]
    Missing {
        /// Node name.
        node: &'a str,
        /// Property name.
        property: &'static str,
    },
    /// A property of a length or type that it cannot have.
    #[error("device tree: {node}: malformed {property}")]
    Property {
        /// Node name.
        node: &'a str,
        /// Property name.
        property: &'a str,
    },
    /// An address range that wraps, passes 48 bits, or is behind a bus that does not lead there.
    #[error("device tree: {node}: address {start:#x} with size {len:#x} is out of reach")]
    Unreachable {
        /// Node name.
        node: &'a str,
        /// Start in the address space of the node's bus.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// No enabled node with `device_type = "memory"` and a size.
    #[error("device tree: no memory node")]
    NoMemory,
    /// Two memory regions share bytes.
    #[error("device tree: memory regions {0} and {1} overlap")]
    MemoryOverlap(PaRange, PaRange),
    /// No CPU under `/cpus`.
    #[error("device tree: no CPU node")]
    NoCpus,
    /// A `reg` that is no MPIDR: bits outside the four affinity fields.
    #[error("device tree: {node}: {mpidr:#x} is not an MPIDR")]
    Mpidr {
        /// Node name.
        node: &'a str,
        /// Value of `reg`.
        mpidr: u64,
    },
    /// Two CPU nodes with one MPIDR.
    #[error("device tree: {node}: MPIDR {mpidr:#x} occurs twice")]
    DuplicateCpu {
        /// Name of the second.
        node: &'a str,
        /// Value of `reg`.
        mpidr: u64,
    },
    /// A CPU that is not started by PSCI: the host could start it at EL2 past Rampart.
    #[error("device tree: {node}: enable-method is {method}, not psci")]
    EnableMethod {
        /// Node name.
        node: &'a str,
        /// Its enable-method.
        method: &'a str,
    },
    /// No node compatible with PSCI 0.2 or later.
    #[error("device tree: no PSCI 0.2 or later")]
    NoPsci,
    /// PSCI calls are not made by SMC: Rampart is not the highest that answers.
    #[error("device tree: PSCI method is {0}, not smc (does the machine start at EL2?)")]
    PsciMethod(&'a str),
    /// No node compatible with `arm,gic-v3`.
    #[error("device tree: no GICv3")]
    NoGicV3,
    /// `/chosen` has no `stdout-path`.
    #[error("device tree: no stdout-path in /chosen")]
    NoStdoutPath,
    /// `stdout-path` leads nowhere.
    #[error("device tree: stdout-path {0} names no node")]
    StdoutPath(&'a str),
    /// `stdout-path` names a device that Rampart cannot drive.
    #[error("device tree: console {0} is not a PL011")]
    ConsoleType(&'a str),
    /// No `multiboot,kernel` module in `/chosen`.
    #[error("device tree: no host kernel (pass one with -device guest-loader,addr=ADDRESS,kernel=FILE)")]
    NoKernel,
    /// More than one module of a kind.
    #[error("device tree: {node}: second {kind} module")]
    SecondModule {
        /// Node name.
        node: &'a str,
        /// `kernel` or `ramdisk`.
        kind: &'static str,
    },
    /// A `multiboot,module` that is neither kernel nor ramdisk.
    #[error("device tree: {0}: module is neither a kernel nor a ramdisk")]
    ModuleKind(&'a str),
}

/// The host kernel as the boot loader put it into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel<'a> {
    /// The file's bytes; its BSS is not counted.
    pub file: PaRange,
    /// Its command line, or an empty one.
    pub bootargs: &'a str,
}

/// Registers of a GICv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3 {
    /// GICD.
    pub distributor: PaRange,
    /// GICR regions, at least one.
    pub redistributors: ArrayVec<PaRange, MAX_REDISTRIBUTORS>,
}

/// The console that `stdout-path` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// Registers of a PL011.
    pub pl011: PaRange,
}

/// The machine, as far as Rampart needs to know it. About 6 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform<'a> {
    /// RAM in bytes: sorted, neighbours merged, no overlap, any alignment, at least one.
    pub memory: ArrayVec<PaRange, MAX_REGIONS>,
    /// Those of [`Self::memory`] that have no allocation tags, in no order.
    pub no_tags: ArrayVec<PaRange, MAX_NO_TAGS>,
    /// Bytes not to be touched: the reservation block and `/reserved-memory`, in no order.
    pub reserved: ArrayVec<PaRange, MAX_RESERVED>,
    /// MPIDR_EL1 affinity of each CPU, in tree order: at least one, no duplicates.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// CPUs beyond [`MAX_CPUS`], which are left off.
    pub cpus_ignored: usize,
    /// The interrupt controller.
    pub gic: GicV3,
    /// Registers (and, for PCIe, windows) of devices kept from the host: sorted, merged, page
    /// aligned outwards.
    pub withheld: ArrayVec<PaRange, MAX_WITHHELD>,
    /// The host's kernel.
    pub kernel: Kernel<'a>,
    /// The host's initial RAM disk.
    pub initrd: Option<PaRange>,
}

/// True if the host must not see devices of this kind.
pub fn is_withheld(compatible: &str) -> bool {
    WITHHELD.contains(&compatible)
}

/// A device tree whose structure was found sound.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    fdt: Fdt<'a>,
}

impl<'a> Tree<'a> {
    /// Validates the blob; its length must be the `totalsize` of its header.
    ///
    /// # Errors
    /// [`TreeError::Malformed`].
    pub fn new(blob: &'a [u8]) -> Result<Self, TreeError<'a>> {
        Ok(Self { fdt: Fdt::new(blob).map_err(TreeError::Malformed)? })
    }

    /// The tree itself.
    pub(super) fn fdt(&self) -> Fdt<'a> {
        self.fdt
    }

    /// The hypervisor's own command line, empty if there is none.
    ///
    /// # Errors
    /// [`TreeError::Property`] if it is not a string.
    pub fn bootargs(&self) -> Result<&'a str, TreeError<'a>> {
        let Some(chosen) = self.fdt.find_node("/chosen") else { return Ok("") };
        Ok(string(chosen, "bootargs")?.unwrap_or(""))
    }

    /// The console, before anything else is looked at: errors of the rest can be printed on it.
    ///
    /// # Errors
    /// [`TreeError::NoStdoutPath`], [`TreeError::StdoutPath`], [`TreeError::ConsoleType`], or what
    /// its `reg` gives.
    pub fn console(&self) -> Result<Console, TreeError<'a>> {
        let chosen = self.fdt.find_node("/chosen").ok_or(TreeError::NoStdoutPath)?;
        let stdout = string(chosen, "stdout-path")?.ok_or(TreeError::NoStdoutPath)?;
        // "serial0:115200n8": what follows the colon is for a driver.
        let target = stdout.split(':').next().unwrap_or(stdout);
        let path = if target.starts_with('/') {
            target
        } else {
            let aliases = self.fdt.find_node("/aliases").ok_or(TreeError::StdoutPath(stdout))?;
            string(aliases, target)?.ok_or(TreeError::StdoutPath(stdout))?
        };
        let nodes = self.resolve(path)?.ok_or(TreeError::StdoutPath(stdout))?;
        let Some((&node, buses)) = nodes.split_last() else { return Err(TreeError::StdoutPath(stdout)) };
        if !["arm,pl011", "arm,sbsa-uart"].iter().any(|kind| node.is_compatible(kind)) {
            return Err(TreeError::ConsoleType(node.name()));
        }
        let registers = regs(buses, node)?.next();
        let pl011 = registers.ok_or(TreeError::Missing { node: node.name(), property: "reg" })??;
        Ok(Console { pl011 })
    }

    /// Everything else.
    ///
    /// # Errors
    /// The first thing that is missing or malformed.
    pub fn platform(&self) -> Result<Platform<'a>, TreeError<'a>> {
        let root = self.fdt.root();
        let (memory, no_tags) = memory(root)?;
        let (cpus, cpus_ignored) = self.cpus()?;
        let mut devices = Devices::default();
        devices.visit(&mut Path::new(), root)?;
        if !devices.psci {
            return Err(TreeError::NoPsci);
        }
        let (kernel, initrd) = self.modules()?;
        coalesce(&mut devices.withheld);
        Ok(Platform {
            memory,
            no_tags,
            reserved: self.reserved()?,
            cpus,
            cpus_ignored,
            gic: devices.gic.ok_or(TreeError::NoGicV3)?,
            withheld: devices.withheld,
            kernel,
            initrd,
        })
    }

    /// The nodes from the root to the one that `path` names.
    fn resolve(&self, path: &'a str) -> Result<Option<Path<'a>>, TreeError<'a>> {
        let mut nodes = Path::new();
        let mut node = self.fdt.root();
        for component in path.split('/').filter(|component| !component.is_empty()) {
            push_node(&mut nodes, node)?;
            let Some(child) = node.child(component) else { return Ok(None) };
            node = child;
        }
        push_node(&mut nodes, node)?;
        Ok(Some(nodes))
    }

    fn reserved(&self) -> Result<ArrayVec<PaRange, MAX_RESERVED>, TreeError<'a>> {
        let mut reserved = ArrayVec::new();
        for entry in self.fdt.memory_reservations().filter(|entry| entry.size() != 0) {
            push_range(&mut reserved, "reserved ranges", "/memreserve/", entry.address(), entry.size())?;
        }
        let root = self.fdt.root();
        let Some(parent) = root.child("reserved-memory") else { return Ok(reserved) };
        for node in parent.children() {
            // A node with a size alone asks the kernel for a place; nothing is there yet.
            for range in regs(&[root, parent], node)? {
                push(&mut reserved, "reserved ranges", range?)?;
            }
        }
        Ok(reserved)
    }

    fn cpus(&self) -> Result<(ArrayVec<u64, MAX_CPUS>, usize), TreeError<'a>> {
        let mut cpus = ArrayVec::new();
        let mut ignored = 0_usize;
        let parent = self.fdt.root().child("cpus").ok_or(TreeError::NoCpus)?;
        for node in parent.children().filter(|node| node.name_without_address() == "cpu") {
            let mpidr = mpidr(node)?;
            if cpus.contains(&mpidr) {
                return Err(TreeError::DuplicateCpu { node: node.name(), mpidr });
            }
            match string(node, "enable-method")? {
                None | Some("psci") => {}
                Some(method) => return Err(TreeError::EnableMethod { node: node.name(), method }),
            }
            if cpus.try_push(mpidr).is_err() {
                ignored = ignored.saturating_add(1);
            }
        }
        if cpus.is_empty() {
            return Err(TreeError::NoCpus);
        }
        Ok((cpus, ignored))
    }

    /// What QEMU's guest-loader left in `/chosen`.
    fn modules(&self) -> Result<(Kernel<'a>, Option<PaRange>), TreeError<'a>> {
        let chosen = self.fdt.find_node("/chosen").ok_or(TreeError::NoKernel)?;
        let mut kernel = None;
        let mut initrd = None;
        for node in chosen.children().filter(|node| is_module(*node)) {
            let file = module_range(node)?;
            if node.is_compatible("multiboot,kernel") {
                let bootargs = string(node, "bootargs")?.unwrap_or("");
                if kernel.replace(Kernel { file, bootargs }).is_some() {
                    return Err(TreeError::SecondModule { node: node.name(), kind: "kernel" });
                }
            } else if node.is_compatible("multiboot,ramdisk") {
                if initrd.replace(file).is_some() {
                    return Err(TreeError::SecondModule { node: node.name(), kind: "ramdisk" });
                }
            } else {
                return Err(TreeError::ModuleKind(node.name()));
            }
        }
        Ok((kernel.ok_or(TreeError::NoKernel)?, initrd))
    }
}

/// Nodes from the root downwards.
type Path<'a> = ArrayVec<FdtNode<'a>, MAX_DEPTH>;

fn push_node<'a>(path: &mut Path<'a>, node: FdtNode<'a>) -> Result<(), TreeError<'a>> {
    path.try_push(node).map_err(|_| TreeError::TooDeep(node.name()))
}

/// What can be anywhere in the tree.
#[derive(Default)]
struct Devices {
    psci: bool,
    gic: Option<GicV3>,
    withheld: ArrayVec<PaRange, MAX_WITHHELD>,
}

impl Devices {
    /// Looks at `node` and everything below; `buses` are the nodes above it.
    fn visit<'a>(&mut self, buses: &mut Path<'a>, node: FdtNode<'a>) -> Result<(), TreeError<'a>> {
        for kind in node.compatible().into_iter().flatten() {
            match kind {
                "arm,psci-0.2" | "arm,psci-1.0" if is_okay(node) => match string(node, "method")? {
                    Some("smc") => self.psci = true,
                    method => return Err(TreeError::PsciMethod(method.unwrap_or("absent"))),
                },
                "arm,gic-v3" if is_okay(node) && self.gic.is_none() => self.gic = Some(gic(buses, node)?),
                kind if is_withheld(kind) => self.withhold(buses, node)?,
                _ => {}
            }
        }
        push_node(buses, node)?;
        for child in node.children() {
            self.visit(buses, child)?;
        }
        buses.pop();
        Ok(())
    }

    /// Registers of `node` and, if it is a bus, its windows: behind them are devices that firmware
    /// may have left ready to read and write memory.
    fn withhold<'a>(&mut self, buses: &[FdtNode<'a>], node: FdtNode<'a>) -> Result<(), TreeError<'a>> {
        for range in regs(buses, node)? {
            self.withhold_range(range?)?;
        }
        let malformed = TreeError::Property { node: node.name(), property: "ranges" };
        for window in node.ranges().map_err(|_| malformed.clone())?.into_iter().flatten() {
            let start = window.parent_bus_address::<u64>().map_err(|_| malformed.clone())?;
            let len = window.length::<u64>().map_err(|_| malformed.clone())?;
            self.withhold_range(cpu_range(buses, node, start, len)?)?;
        }
        Ok(())
    }

    fn withhold_range<'a>(&mut self, range: PaRange) -> Result<(), TreeError<'a>> {
        let pages = PaRange::from_pages(range.pages_touched());
        if let Some(last) = self.withheld.last_mut()
            && pages.start() <= last.end()
            && last.start() <= pages.end()
        {
            *last = last.hull(pages);
            return Ok(());
        }
        push(&mut self.withheld, "ranges of withheld devices", pages)
    }
}

/// All memory, and that without tags.
type Memory = (ArrayVec<PaRange, MAX_REGIONS>, ArrayVec<PaRange, MAX_NO_TAGS>);

fn memory(root: FdtNode<'_>) -> Result<Memory, TreeError<'_>> {
    let mut memory = ArrayVec::new();
    let mut no_tags = ArrayVec::new();
    for node in root.children() {
        if string(node, "device_type")? != Some("memory") || !is_okay(node) {
            continue;
        }
        if node.property("reg").is_none() {
            return Err(TreeError::Missing { node: node.name(), property: "reg" });
        }
        for range in regs(&[root], node)? {
            let range = range?;
            push(&mut memory, "memory regions", range)?;
            if node.property(NO_TAGS).is_some() {
                push(&mut no_tags, "memory regions without tags", range)?;
            }
        }
    }
    memory.sort_unstable();
    for pair in memory.windows(2) {
        if let [low, high] = pair
            && low.overlaps(*high)
        {
            return Err(TreeError::MemoryOverlap(*low, *high));
        }
    }
    coalesce(&mut memory);
    if memory.is_empty() {
        return Err(TreeError::NoMemory);
    }
    Ok((memory, no_tags))
}

fn mpidr(node: FdtNode<'_>) -> Result<u64, TreeError<'_>> {
    let malformed = TreeError::Property { node: node.name(), property: "reg" };
    let reg = node.reg().map_err(|_| malformed.clone())?.and_then(|mut reg| reg.next());
    let reg = reg.ok_or(TreeError::Missing { node: node.name(), property: "reg" })?;
    let mpidr = reg.address::<u64>().map_err(|_| malformed)?;
    if mpidr & !MPIDR_AFFINITY != 0 {
        return Err(TreeError::Mpidr { node: node.name(), mpidr });
    }
    Ok(mpidr)
}

fn gic<'a>(buses: &[FdtNode<'a>], node: FdtNode<'a>) -> Result<GicV3, TreeError<'a>> {
    let missing = TreeError::Missing { node: node.name(), property: "reg" };
    let regions = match node.property("#redistributor-regions") {
        None => 1,
        Some(property) => property
            .value_as::<u32>()
            .map_err(|_| TreeError::Property { node: node.name(), property: "#redistributor-regions" })?,
    };
    let mut regs = regs(buses, node)?;
    let distributor = regs.next().ok_or(missing.clone())??;
    let mut redistributors = ArrayVec::new();
    for _ in 0..regions {
        let range = regs.next().ok_or(missing.clone())??;
        push(&mut redistributors, "redistributor regions", range)?;
    }
    if redistributors.is_empty() {
        return Err(missing);
    }
    Ok(GicV3 { distributor, redistributors })
}

/// True for the nodes that QEMU's guest-loader adds to `/chosen`.
pub(super) fn is_module(node: FdtNode<'_>) -> bool {
    node.is_compatible(MODULE)
}

/// A module's `reg` is two 64-bit numbers whatever the cell counts of `/chosen` are: QEMU's
/// guest-loader writes no counts.
fn module_range(node: FdtNode<'_>) -> Result<PaRange, TreeError<'_>> {
    let reg = node.property("reg").ok_or(TreeError::Missing { node: node.name(), property: "reg" })?;
    let malformed = |_| TreeError::Property { node: node.name(), property: "reg" };
    let [a, b, c, d] = reg.value_as::<[u32; 4]>().map_err(malformed)?;
    let word = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let (start, len) = (word(a, b), word(c, d));
    PaRange::new(start, len).map_err(|_| TreeError::Unreachable { node: node.name(), start, len })
}

/// True if `status` is absent or says so.
fn is_okay(node: FdtNode<'_>) -> bool {
    node.property("status").is_none_or(|status| matches!(status.value(), b"okay\0" | b"ok\0"))
}

/// A property that is a string, if it is there.
fn string<'a>(node: FdtNode<'a>, name: &'a str) -> Result<Option<&'a str>, TreeError<'a>> {
    let Some(property) = node.property(name) else { return Ok(None) };
    let value = property.value_as::<&'a str>();
    value.map(Some).map_err(|_| TreeError::Property { node: node.name(), property: name })
}

/// The ranges of a node's `reg` as the CPU sees them, empty ones left out; `buses` are the nodes
/// above it from the root.
fn regs<'a, 'b>(
    buses: &'b [FdtNode<'a>],
    node: FdtNode<'a>,
) -> Result<impl Iterator<Item = Result<PaRange, TreeError<'a>>> + use<'a, 'b>, TreeError<'a>> {
    let malformed = TreeError::Property { node: node.name(), property: "reg" };
    let reg = node.reg().map_err(|_| malformed.clone())?;
    Ok(reg.into_iter().flatten().filter_map(move |reg| {
        let (Ok(start), Ok(len)) = (reg.address::<u64>(), reg.size::<u64>()) else {
            return Some(Err(malformed.clone()));
        };
        (len != 0).then(|| cpu_range(buses, node, start, len))
    }))
}

/// Takes an address range on the bus of `node` up to the CPU's address space.
fn cpu_range<'a>(
    buses: &[FdtNode<'a>],
    node: FdtNode<'a>,
    start: u64,
    len: u64,
) -> Result<PaRange, TreeError<'a>> {
    let unreachable = TreeError::Unreachable { node: node.name(), start, len };
    let mut address = start;
    // The root's own address space is the CPU's.
    for bus in buses.iter().skip(1).rev() {
        address = parent_address(*bus, address, len)?.ok_or(unreachable.clone())?;
    }
    PaRange::new(address, len).map_err(|_| unreachable)
}

/// The address on the bus above `bus` of `[address, address + len)` on it, if `ranges` has one.
fn parent_address(bus: FdtNode<'_>, address: u64, len: u64) -> Result<Option<u64>, TreeError<'_>> {
    let malformed = TreeError::Property { node: bus.name(), property: "ranges" };
    let Some(property) = bus.property("ranges") else { return Ok(None) };
    if property.value().is_empty() {
        return Ok(Some(address));
    }
    for range in bus.ranges().map_err(|_| malformed.clone())?.into_iter().flatten() {
        let (Ok(child), Ok(parent), Ok(size)) =
            (range.child_bus_address::<u64>(), range.parent_bus_address::<u64>(), range.length::<u64>())
        else {
            return Err(malformed);
        };
        let Some(offset) = address.checked_sub(child) else { continue };
        if offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(parent.checked_add(offset));
        }
    }
    Ok(None)
}

fn push_range<'a, const N: usize>(
    list: &mut ArrayVec<PaRange, N>,
    what: &'static str,
    node: &'a str,
    start: u64,
    len: u64,
) -> Result<(), TreeError<'a>> {
    push(list, what, PaRange::new(start, len).map_err(|_| TreeError::Unreachable { node, start, len })?)
}

fn push<'a, const N: usize>(
    list: &mut ArrayVec<PaRange, N>,
    what: &'static str,
    range: PaRange,
) -> Result<(), TreeError<'a>> {
    list.try_push(range).map_err(|_| TreeError::TooMany { what, limit: N })
}

/// Sorts, and makes one range of those that touch or overlap.
fn coalesce<const N: usize>(list: &mut ArrayVec<PaRange, N>) {
    list.sort_unstable();
    let mut merged: ArrayVec<PaRange, N> = ArrayVec::new();
    for &range in list.iter() {
        match merged.last_mut() {
            Some(last) if range.start() <= last.end() => *last = last.hull(range),
            // `merged` is at most as long as `list`.
            _ => merged.push(range),
        }
    }
    *list = merged;
}
