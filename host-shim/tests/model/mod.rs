//! A model of a machine with EL2, simple enough to be seen to be right, that can be told to break one
//! rule. Written from docs/abi.md; it shares no code with the hypervisor.

mod inspect;

use abi::fault::Site;
use abi::inspect::InspectFn;
use abi::{Errno, HostFn, caps, psci, smccc};
use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use host_shim::board::Board;
use host_shim::machine::{Access, CallRun, CpuEntry, Fault, Imm, Machine, Regs, Timed, TurnRun, Work};
use host_shim::span::{PAGE, Span};
use host_shim::{Ending, Shim};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const CPUS: usize = 4;
const RAM: (u64, u64) = (0x4000_0000, 0x3000_0000);
/// Ends in the middle of a page.
const MORE_RAM: (u64, u64) = (0x9000_0000, 0x20_0800);
const CARVEOUT: (u64, u64) = (0x5010_0000, 0x10_0000);
const UART: u64 = 0x900_0000;
const FW_CFG: u64 = 0x902_0000;
const VIRTIO: u64 = 0xa00_0000;
const ITS: u64 = 0x808_0000;
/// Lent pages that the model uses as tables once this many blocks have one.
const OWN_TABLES: usize = 20;

/// Calls that the model answers; the others of the ABI are not in its build.
const OFFERED: [HostFn; 5] = [
    HostFn::HypCaps,
    HostFn::HostShareHyp,
    HostFn::HostUnshareHyp,
    HostFn::HostDonateHyp,
    HostFn::HypDonateHost,
];

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    CallClobbersX9,
    CallLeavesX2,
    UnknownCallClearsX1,
    HvcImmediateIgnored,
    HvcHighBitsIgnored,
    HvcHintUnknown,
    StubCallsAnswered,
    ShareTwice,
    UnshareOfUnshared,
    DeviceIsEperm,
    RangeBeforeSize,
    PartialPageIsMemory,
    LendWhatItCan,
    LentPageReachable,
    ComesBackDirty,
    CarveoutGivenAway,
    UsedPageGivenBack,
    CarveoutLoad,
    CarveoutStore,
    CarveoutFetch,
    CarveoutWalk,
    TranslationFault,
    FwCfgReachable,
    FwCfgEnabled,
    VirtioReachable,
    SmcImmediateIgnored,
    Smc32CpuOn,
    UnknownSmcClobbersX3,
    SuspendDenied,
    AnyMpidrStarts,
    RunningCpuStarts,
    SecondaryWithoutStage2,
    MemoryAliases,
    LastByteMissing,
    RaceHasTwoWinners,
    NotCounting,
    AuditFinds,
    AuditInRelease,
    CensusDrifts,
    FaultIgnored,
    FaultLeavesPageLent,
    FaultOtherErrno,
    PageLost,
    SiteSkipped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Shared,
    Lent,
}

#[derive(Debug, Default)]
struct State {
    owner: BTreeMap<u64, Owner>,
    /// Contents by page; a page that is not here is zero.
    memory: HashMap<u64, Box<[u64; 512]>>,
    on: HashSet<usize>,
    sites: [inspect::Counter; inspect::COUNTERS],
    /// Audits so far.
    looks: u64,
}

impl State {
    fn index(address: u64) -> usize {
        usize::try_from(address % PAGE / 8).unwrap()
    }

    fn read(&self, address: u64) -> u64 {
        self.memory.get(&(address / PAGE)).map_or(0, |page| page[Self::index(address)])
    }

    fn write(&mut self, address: u64, value: u64) {
        let page = self.memory.entry(address / PAGE).or_insert_with(|| Box::new([0; 512]));
        page[Self::index(address)] = value;
    }
}

pub(crate) struct Model {
    bug: Bug,
    state: Mutex<State>,
    lines: Mutex<Vec<String>>,
    clock: AtomicU64,
    files: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({:?})", self.bug)
    }
}

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static FP: Cell<u64> = const { Cell::new(0) };
    static KEYS: Cell<u64> = const { Cell::new(0) };
}

fn within(address: u64, (start, size): (u64, u64)) -> bool {
    address >= start && address < start + size
}

fn node(name: &str, properties: Vec<DeviceTreeProperty>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new(name).unwrap();
    for p in properties {
        node.add_property(p);
    }
    node
}

fn prop<T: dtoolkit::ToPropertyValue>(name: &str, value: T) -> DeviceTreeProperty {
    DeviceTreeProperty::new(name, value).unwrap()
}

fn regs(pairs: &[(u64, u64)]) -> Vec<u8> {
    pairs.iter().flat_map(|(start, size)| [start.to_be_bytes(), size.to_be_bytes()]).flatten().collect()
}

fn reg(start: u64, size: u64) -> DeviceTreeProperty {
    prop("reg", regs(&[(start, size)]))
}

/// The device tree that the hypervisor hands to its host.
pub(crate) fn device_tree(bug: Bug, bootargs: &str) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    tree.memory_reservations.push(MemoryReservation::new(0x4800_0000, 0x1000));
    let root = &mut tree.root;
    root.add_property(prop("#address-cells", 2_u32));
    root.add_property(prop("#size-cells", 2_u32));
    for (start, size) in [RAM, MORE_RAM] {
        root.add_child(node(&format!("memory@{start:x}"), vec![reg(start, size)]));
    }
    let mut reserved = node(
        "reserved-memory",
        vec![prop("#address-cells", 2_u32), prop("#size-cells", 2_u32), prop("ranges", Vec::<u8>::new())],
    );
    let no_map = prop("no-map", Vec::<u8>::new());
    reserved.add_child(node("hyp@50100000", vec![reg(CARVEOUT.0, CARVEOUT.1), no_map]));
    root.add_child(reserved);
    let mut cpus = node("cpus", vec![prop("#address-cells", 1_u32), prop("#size-cells", 0_u32)]);
    for n in 0..u32::try_from(CPUS).unwrap() {
        cpus.add_child(node(&format!("cpu@{n}"), vec![prop("reg", n)]));
    }
    root.add_child(cpus);
    root.add_child(node("psci", vec![prop("method", "smc")]));
    let uart = vec![prop("compatible", &["arm,pl011", "arm,primecell"][..]), reg(UART, PAGE)];
    root.add_child(node("pl011@9000000", uart));
    let mut aliases = node("aliases", vec![]);
    aliases.add_property(prop("serial0", "/pl011@9000000"));
    root.add_child(aliases);
    let status = |disabled| prop("status", if disabled { "disabled" } else { "okay" });
    let fw_cfg =
        vec![prop("compatible", "qemu,fw-cfg-mmio"), reg(FW_CFG, 0x18), status(bug != Bug::FwCfgEnabled)];
    root.add_child(node("fw-cfg@9020000", fw_cfg));
    let virtio = vec![prop("compatible", "virtio,mmio"), reg(VIRTIO, 0x200), status(true)];
    root.add_child(node("virtio_mmio@a000000", virtio));
    // The ITS is a child of the interrupt controller, on a bus whose addresses are offset.
    let gic = vec![
        prop("compatible", "arm,gic-v3"),
        prop("#redistributor-regions", 2_u32),
        prop("#address-cells", 1_u32),
        prop("#size-cells", 1_u32),
        prop("ranges", [0_u32, 0, 0x800_0000, 0x100_0000]),
        prop("reg", regs(&[(0x800_0000, 0x1_0000), (0x80a_0000, 0x4_0000), (0x40_0000_0000, 0x4_0000)])),
    ];
    let mut gic = node("intc@8000000", gic);
    let its = vec![prop("compatible", "arm,gic-v3-its"), prop("reg", [0x8_0000_u32, 0x2_0000]), status(true)];
    gic.add_child(node("its@80000", its));
    root.add_child(gic);
    let interrupts = [1_u32, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4];
    root.add_child(node(
        "timer",
        vec![prop("compatible", "arm,armv8-timer"), prop("interrupts", interrupts)],
    ));
    let chosen = vec![
        prop("bootargs", bootargs),
        prop("stdout-path", "serial0:115200n8"),
        prop("linux,initrd-start", 0x4400_0000_u32),
        prop("linux,initrd-end", 0x4400_1800_u64),
    ];
    root.add_child(node("chosen", chosen));
    tree.to_dtb()
}

/// Runs a scenario on a machine that breaks one rule.
pub(crate) fn run(scenario: &str, bug: Bug) -> (Ending, bool, Vec<String>) {
    let dtb = device_tree(bug, &format!("scenario={scenario} rounds=6"));
    let board = Board::read(Fdt::new(&dtb).unwrap()).unwrap();
    let model = Model {
        bug,
        state: Mutex::default(),
        lines: Mutex::default(),
        clock: AtomicU64::new(0),
        files: Mutex::default(),
    };
    model.state.lock().unwrap().on.insert(0);
    CPU.set(0);
    let pages = board.free_pages(&[]).unwrap();
    let (ending, passed) = host_shim::run(Shim { machine: &model, board: &board, pages, boot_cpu: 0 });
    (ending, passed, model.lines.into_inner().unwrap())
}

impl Model {
    fn is(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn is_ram(&self, address: u64) -> bool {
        within(address, RAM) || within(address, MORE_RAM)
    }

    fn whole_page_of_ram(&self, pfn: u64) -> bool {
        let Some(address) = pfn.checked_mul(PAGE) else { return false };
        let last = address.saturating_add(PAGE - 1);
        self.is_ram(address) && (self.is_ram(last) || self.is(Bug::PartialPageIsMemory))
    }

    fn host_call(&self, id: HostFn, pfn: u64, nr: u64) -> Result<[u64; 2], Errno> {
        let mut state = self.state.lock().unwrap();
        let nr = match id {
            HostFn::HypCaps => {
                let mut caps = caps::Caps::OWNERSHIP;
                caps.set(caps::Caps::FAULT_INJECTION, !self.is(Bug::AuditInRelease));
                return Ok([caps::VERSION, caps.bits()]);
            }
            HostFn::HostShareHyp | HostFn::HostUnshareHyp => 1,
            HostFn::HostDonateHyp | HostFn::HypDonateHost => {
                let end = pfn.checked_add(nr).filter(|_| nr > 0).ok_or(Errno::Einval)?;
                if self.is(Bug::RangeBeforeSize) && end > 1 << 36 {
                    return Err(Errno::Erange);
                }
                if nr > 512 {
                    return Err(Errno::E2big);
                }
                nr
            }
            _ => return Err(Errno::Eopnotsupp),
        };
        let range = || pfn..pfn.saturating_add(nr);
        let not_ram = if self.is(Bug::DeviceIsEperm) { Errno::Eperm } else { Errno::Erange };
        if !range().all(|p| self.whole_page_of_ram(p)) || pfn == u64::MAX {
            return Err(not_ram);
        }
        for p in range() {
            self.check(&state, id, p)?;
            if self.is(Bug::LendWhatItCan) && id == HostFn::HostDonateHyp {
                state.owner.insert(p, Owner::Lent);
            }
        }
        if id == HostFn::HostDonateHyp {
            for site in [Site::DonateCheck, Site::HostPrepare, Site::HostPoolAlloc] {
                if let Err(e) = self.pass(&mut state, site) {
                    if self.is(Bug::FaultLeavesPageLent) {
                        state.owner.insert(pfn, Owner::Lent);
                    }
                    return Err(e);
                }
            }
        }
        for p in range() {
            match id {
                HostFn::HostShareHyp => drop(state.owner.insert(p, Owner::Shared)),
                HostFn::HostDonateHyp => drop(state.owner.insert(p, Owner::Lent)),
                _ => drop(state.owner.remove(&p)),
            }
            if id == HostFn::HypDonateHost && !self.is(Bug::ComesBackDirty) {
                state.memory.remove(&p);
            }
        }
        Ok([0, 0])
    }

    fn check(&self, state: &State, id: HostFn, pfn: u64) -> Result<(), Errno> {
        if within(pfn * PAGE, CARVEOUT) {
            let given = self.is(Bug::CarveoutGivenAway) && id == HostFn::HypDonateHost;
            return if given { Ok(()) } else { Err(Errno::Eperm) };
        }
        let allowed = match (id, state.owner.get(&pfn)) {
            (HostFn::HostShareHyp, None) | (HostFn::HostUnshareHyp, Some(Owner::Shared)) => true,
            (HostFn::HostShareHyp, Some(Owner::Shared)) => {
                // A race that two win, but only when somebody else is there to race with.
                self.is(Bug::ShareTwice) || self.is(Bug::RaceHasTwoWinners) && state.on.len() > 1
            }
            (HostFn::HostUnshareHyp, None) => self.is(Bug::UnshareOfUnshared),
            (HostFn::HostDonateHyp, None) | (HostFn::HypDonateHost, Some(Owner::Lent)) => true,
            _ => false,
        };
        if !allowed {
            return Err(Errno::Eperm);
        }
        let in_use = id == HostFn::HypDonateHost && pfn == first_lent(state) && blocks(state) > OWN_TABLES;
        if in_use && !self.is(Bug::UsedPageGivenBack) { Err(Errno::Ebusy) } else { Ok(()) }
    }

    /// What stage 2 lets the host do.
    fn allowed(&self, state: &State, access: Access, address: u64) -> bool {
        if self.is(Bug::SecondaryWithoutStage2) && CPU.get() == 2 {
            return true;
        }
        let store =
            matches!(access, Access::Store | Access::StoreByte | Access::StorePair | Access::ZeroLine);
        if within(address, CARVEOUT) {
            let last = within(address, (CARVEOUT.0 + CARVEOUT.1 - PAGE, PAGE));
            return last
                && match access {
                    Access::Fetch => self.is(Bug::CarveoutFetch),
                    _ if store => self.is(Bug::CarveoutStore),
                    _ => self.is(Bug::CarveoutLoad),
                };
        }
        if self.is(Bug::LastByteMissing) && address == RAM.0 + RAM.1 - 1 {
            return false;
        }
        if self.is_ram(address) {
            let lent = state.owner.get(&(address / PAGE)) == Some(&Owner::Lent);
            return !lent || self.is(Bug::LentPageReachable);
        }
        if within(address, (FW_CFG, 0x18)) {
            return self.is(Bug::FwCfgReachable);
        }
        if within(address, (VIRTIO, 0x200)) {
            return self.is(Bug::VirtioReachable);
        }
        !within(address, (ITS, 0x2_0000))
    }

    fn fault(&self, access: Access, far: u64) -> Fault {
        let class = if access == Access::Fetch { Fault::EC_INSTRUCTION_ABORT } else { Fault::EC_DATA_ABORT };
        let status = if self.is(Bug::TranslationFault) { 0x07 } else { Fault::FSC_EXTERNAL };
        Fault { esr: class << 26 | 1 << 25 | status, far, elr: 0x4020_0000 }
    }

    fn psci(&self, id: u32, args: [u64; 3]) -> Option<u64> {
        let mut state = self.state.lock().unwrap();
        let [a, b, _] = args;
        let cpu = |mpidr: u64| usize::try_from(mpidr).ok().filter(|n| *n < CPUS);
        Some(match id {
            psci::VERSION => 0x1_0001,
            psci::MIGRATE_INFO_TYPE => psci::MIGRATE_NOT_NEEDED,
            psci::FEATURES => match u32::try_from(a).ok()? {
                psci::CPU_ON_32 if self.is(Bug::Smc32CpuOn) => 0,
                smccc::VERSION | psci::VERSION | psci::CPU_ON_64 | psci::CPU_OFF => 0,
                psci::AFFINITY_INFO_32 | psci::AFFINITY_INFO_64 | psci::SYSTEM_OFF => 0,
                psci::SYSTEM_RESET | psci::FEATURES | psci::MIGRATE_INFO_TYPE => 0,
                psci::CPU_SUSPEND_64 => 0,
                _ => psci::NOT_SUPPORTED,
            },
            psci::CPU_SUSPEND_64 if a & 0xfffe_0000 != 0 => psci::INVALID_PARAMETERS,
            psci::CPU_SUSPEND_64 if self.is(Bug::SuspendDenied) => psci::DENIED,
            psci::CPU_SUSPEND_64 => psci::SUCCESS,
            smccc::VERSION => smccc::VERSION_1_2,
            smccc::ARCH_FEATURES if a == u64::from(smccc::VERSION) => smccc::SUCCESS,
            smccc::ARCH_FEATURES => smccc::NOT_SUPPORTED,
            psci::AFFINITY_INFO_64 if b != 0 => psci::INVALID_PARAMETERS,
            psci::AFFINITY_INFO_32 | psci::AFFINITY_INFO_64 => match cpu(a) {
                Some(n) => u64::from(!state.on.contains(&n)),
                None => psci::INVALID_PARAMETERS,
            },
            psci::CPU_ON_64 | psci::CPU_ON_32 => {
                if id == psci::CPU_ON_32 && !self.is(Bug::Smc32CpuOn) {
                    return None;
                }
                match cpu(a) {
                    None if self.is(Bug::AnyMpidrStarts) => 0,
                    None => psci::INVALID_PARAMETERS,
                    _ if within(b, CARVEOUT) => psci::INVALID_ADDRESS,
                    Some(n) if state.on.insert(n) || self.is(Bug::RunningCpuStarts) => 0,
                    Some(_) => psci::ALREADY_ON,
                }
            }
            _ => return None,
        })
    }

    /// fw_cfg's DMA engine.
    fn dma(&self, state: &mut State, descriptor: u64) {
        let target = state.read(descriptor + 8).swap_bytes();
        state.write(target, u64::from(u32::from_le_bytes(*b"QEMU")));
    }

    fn place(&self, address: u64) -> u64 {
        let place = address & !7;
        if self.is(Bug::MemoryAliases) { place & !(1 << 28) } else { place }
    }
}

fn first_lent(state: &State) -> u64 {
    state.owner.iter().find(|(_, o)| **o == Owner::Lent).map_or(0, |(p, _)| *p)
}

fn blocks(state: &State) -> usize {
    let lent = state.owner.iter().filter(|(_, o)| **o == Owner::Lent);
    lent.map(|(p, _)| p / 512).collect::<HashSet<_>>().len()
}

impl Machine for Model {
    fn line(&self, text: fmt::Arguments<'_>) {
        self.lines.lock().unwrap().push(text.to_string());
    }

    fn say(&self, _character: u8) {}

    fn hear(&self) -> Option<u8> {
        None
    }

    fn exception_level(&self) -> u8 {
        1
    }

    fn hvc(&self, imm: Imm, regs: &Regs) -> Regs {
        self.clock.fetch_add(100, Ordering::Relaxed);
        let mut out = *regs;
        let id = if self.is(Bug::HvcHighBitsIgnored) { regs[0] & 0xffff_ffff } else { regs[0] };
        let hinted = self.is(Bug::HvcHintUnknown) && id & u64::from(smccc::HINT_SVE) != 0;
        let wrong_imm = imm != Imm::Zero && !self.is(Bug::HvcImmediateIgnored);
        let call = abi::FunctionId::from_reg(id).and_then(|id| HostFn::try_from(id).ok());
        let call = call.filter(|call| OFFERED.contains(call));
        let inspection = abi::FunctionId::from_reg(id).and_then(|id| InspectFn::try_from(id).ok());
        if let Some(inspection) = inspection.filter(|_| !wrong_imm) {
            out[0] = smccc::SUCCESS;
            (out[1], out[2], out[3]) = match self.inspect(inspection, regs[1], regs[2]) {
                Ok([x2, x3]) => (0, x2, x3),
                Err(e) => (e.to_reg(), 0, 0),
            };
            return out;
        }
        let call = if self.is(Bug::StubCallsAnswered) && id == 3 { Some(HostFn::HypCaps) } else { call };
        let Some(call) = call.filter(|_| !wrong_imm && !hinted) else {
            out[0] = smccc::NOT_SUPPORTED;
            if self.is(Bug::UnknownCallClearsX1) {
                out[1] = 0;
            }
            return out;
        };
        out[0] = smccc::SUCCESS;
        (out[1], out[2], out[3]) = match self.host_call(call, regs[1], regs[2]) {
            Ok([x2, x3]) => (0, x2, x3),
            Err(e) => (e.to_reg(), 0, 0),
        };
        if self.is(Bug::CallClobbersX9) {
            out[9] = 0;
        }
        if self.is(Bug::CallLeavesX2) && call != HostFn::HypCaps {
            out[2] = regs[2];
        }
        out
    }

    fn smc(&self, imm: Imm, regs: &Regs) -> Regs {
        let mut out = *regs;
        let wrong_imm = imm != Imm::Zero && !self.is(Bug::SmcImmediateIgnored);
        let id = abi::FunctionId::from_reg(regs[0]).filter(|_| !wrong_imm);
        match id.and_then(|id| self.psci(id.raw(), [regs[1], regs[2], regs[3]])) {
            Some(x0) => {
                out[0] = x0;
                out[1..4].fill(0);
            }
            None => {
                out[0] = smccc::NOT_SUPPORTED;
                if self.is(Bug::UnknownSmcClobbersX3) {
                    out[3] = 0;
                }
            }
        }
        out
    }

    fn probe(&self, access: Access, address: u64, value: u64) -> Result<u64, Fault> {
        let mut state = self.state.lock().unwrap();
        let last = match access {
            Access::Load | Access::Store => address + 7,
            Access::LoadPair | Access::StorePair => address + 15,
            _ => address,
        };
        for byte in [address, last] {
            if !self.allowed(&state, access, byte) {
                return Err(self.fault(access, byte));
            }
        }
        if access == Access::Store && address == FW_CFG + 0x10 {
            self.dma(&mut state, value.swap_bytes());
        }
        let place = self.place(address);
        match access {
            Access::Store | Access::StoreByte | Access::StorePair => state.write(place, value),
            Access::ZeroLine => state.write(place, 0),
            _ => {}
        }
        Ok(state.read(place))
    }

    fn load_through_table(&self, table: u64) -> Result<u64, Fault> {
        if within(table, CARVEOUT) && !self.is(Bug::CarveoutWalk) {
            return Err(self.fault(Access::Load, 511 << 39));
        }
        Err(Fault { esr: Fault::EC_DATA_ABORT << 26 | 0x05, far: 511 << 39, elr: 0 })
    }

    fn fill(&self, span: Span, word: u64) {
        for address in (span.start()..span.end()).step_by(8) {
            self.probe(Access::Store, address, word).unwrap();
        }
    }

    fn copy(&self, to: u64, from: Span) {
        for offset in (0..from.size()).step_by(8) {
            let word = self.probe(Access::Load, from.start() + offset, 0).unwrap();
            self.probe(Access::Store, to + offset, word).unwrap();
        }
    }

    fn read_bytes(&self, address: u64, into: &mut [u8]) {
        for (at, byte) in (address..).zip(into) {
            let word = self.probe(Access::Load, at & !7, 0).unwrap() >> (8 * (at & 7));
            [*byte, ..] = word.to_le_bytes();
        }
    }

    fn write_bytes(&self, address: u64, from: &[u8]) {
        for (at, byte) in (address..).zip(from) {
            let (word, shift) = (at & !7, 8 * (at & 7));
            let others = self.probe(Access::Load, word, 0).unwrap() & !(0xff << shift);
            self.probe(Access::Store, word, others | u64::from(*byte) << shift).unwrap();
        }
    }

    fn ticks(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn frequency(&self) -> u64 {
        62_500_000
    }

    fn ticks_at_entry(&self) -> u64 {
        1000
    }

    fn cpu(&self) -> usize {
        CPU.get()
    }

    fn cpu_entry(&self, cpu: usize) -> Option<CpuEntry> {
        let mpidr = u64::try_from(cpu).ok().filter(|_| cpu < CPUS)?;
        Some(CpuEntry { mpidr, entry: 0x4020_0000, context: 0 })
    }

    fn start_cpu(&self, cpu: usize) -> Result<(), i64> {
        self.state.lock().unwrap().on.insert(cpu);
        Ok(())
    }

    fn wait_for_cpu(&self, cpu: usize) -> bool {
        self.state.lock().unwrap().on.contains(&cpu)
    }

    fn stop_cpu(&self, cpu: usize) {
        self.state.lock().unwrap().on.remove(&cpu);
    }

    fn run_on(&self, cpus: &[usize], work: Work<'_>) {
        std::thread::scope(|scope| {
            for cpu in cpus {
                scope.spawn(move || {
                    CPU.set(*cpu);
                    work(*cpu);
                });
            }
        });
    }

    fn wake_after(&self, ticks: u64) -> bool {
        ticks > 0
    }

    fn cancel_wake(&self) {}

    fn heed_kicks(&self) {}

    fn kick(&self, _cpu: usize) {}

    fn wait(&self) {}

    fn set_guest_timer_active(&self, _active: bool) {}

    fn fill_fp(&self, seed: u64) {
        FP.set(seed);
    }

    fn fp_holds(&self, seed: u64) -> bool {
        FP.get() == seed
    }

    fn fill_keys(&self, seed: u64) {
        KEYS.set(seed);
    }

    fn keys_hold(&self, seed: u64) -> bool {
        KEYS.get() == seed
    }

    fn has_tags(&self) -> bool {
        false
    }

    fn tag(&self, _address: u64) -> u64 {
        0
    }

    fn set_tag(&self, _address: u64, _tag: u64) {}

    fn check_tags(&self, _on: bool) {}

    fn swap_tag_registers(&self, values: [u64; 4]) -> [u64; 4] {
        values
    }

    fn time_turns(&self, run: &TurnRun, _call: bool) -> Timed {
        Timed { ticks: run.count, status: 0 }
    }

    fn write_file(&self, name: &str, append: bool, bytes: &[u8]) -> bool {
        let mut files = self.files.lock().unwrap();
        let file = files.entry(name.to_owned()).or_default();
        if !append {
            file.clear();
        }
        file.extend_from_slice(bytes);
        true
    }

    fn time_calls(&self, run: &CallRun, call: bool) -> Timed {
        let loops = 10 * run.count / if self.is(Bug::NotCounting) { 8 } else { 16 };
        if !call {
            return Timed { ticks: loops, status: 0 };
        }
        let mut status = 0;
        for n in 0..run.count {
            let mut regs = [0; 18];
            regs[..3].copy_from_slice(&[u64::from(run.id), run.arg1 + n * run.stride, run.arg2]);
            let [x0, x1, ..] = self.hvc(Imm::Zero, &regs);
            status |= x0 | x1;
        }
        Timed { ticks: loops + 9 * run.count, status }
    }

    fn time_loads(&self, _first: u64, _stride: u64, count: u64) -> u64 {
        4 * count
    }
}

/// The span of a pair.
pub(crate) fn span((start, size): (u64, u64)) -> Span {
    Span::new(start, size).unwrap()
}

/// What the tree of [`device_tree`] describes, for the test that reads it back.
pub(crate) const LAYOUT: [(u64, u64); 3] = [RAM, MORE_RAM, CARVEOUT];
