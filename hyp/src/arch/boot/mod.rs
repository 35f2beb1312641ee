//! From the first Rust instruction to the first host instruction.
//!
//! In order: EL2's own map of the image (MMU off), MMU on, console, device tree, layout of the
//! carve-out, the hypervisor's state, the host's device tree, the host. Every refusal is one line
//! on the console and the machine stops; docs/boot.md lists them.
//!
//! Runs on the boot CPU alone; `secondary` is the short way of the others.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "sums of sizes that the checked layout bounds; an overflow is a checked panic at boot"
)]

mod data;
mod map;

use super::percpu::{MmuSetup, PerCpu};
use super::{Hw, IMAGE, Running, console, cpu, guests, host, machine::El2, regs, smc};
use arrayvec::ArrayVec;
use core::fmt;
use core::sync::atomic::Ordering;
use data::Data;
use hyp::addr::{PAGE_SIZE, Pa, PfnRange};
use hyp::hw::{CacheOps, CpuFeatures, MappedPage};
use hyp::mem_protect::{Boot, Hypervisor};
use hyp::mm;
use hyp::pgtable::{Geometry, HypAttrs, HypProt, MAIR_EL2};
use hyp::platform::PaRange;
use hyp::platform::cmdline::Options;
use hyp::platform::edit::{self, Edits};
use hyp::platform::image::{HEADER_LEN, KernelImage};
use hyp::platform::memory::{Kind, Layout, LayoutError, Loaded, MemoryMap, Use};
use hyp::platform::tags::without_tags;
use hyp::platform::tree::{MAX_WITHHELD, Platform, Tree};
use hyp::psci::{Relay, Start};
use map::Map;

/// Largest device tree that is accepted, bytes (Linux booting.rst).
const MAX_TREE: u64 = 2 << 20;
/// One line on the console, then the machine stops.
fn refuse(reason: impl fmt::Display) -> ! {
    console::last_words(format_args!("error: {reason}"));
    smc::system_off()
}

/// The result, or a refusal.
fn must<T, E: fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| refuse(e))
}

/// The result of something that fails only if EL2's own arithmetic is wrong.
fn sure<T, E: fmt::Debug>(what: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| refuse(format_args!("internal: {what}: {e:?}")))
}

/// Bytes that EL2 has mapped.
fn bytes(range: PaRange) -> &'static [u8] {
    let at = core::ptr::with_exposed_provenance::<u8>(usize_of(range.start()));
    // SAFETY: the caller mapped the range (or the MMU is off) and nothing writes it meanwhile:
    // there is one CPU and no host yet.
    unsafe { core::slice::from_raw_parts(at, usize_of(range.len())) }
}

/// Bytes that EL2 has mapped and only the caller knows of.
fn bytes_mut(range: PaRange) -> &'static mut [u8] {
    let at = core::ptr::with_exposed_provenance_mut::<u8>(usize_of(range.start()));
    // SAFETY: as `bytes`; the layout gave this range to one purpose.
    unsafe { core::slice::from_raw_parts_mut(at, usize_of(range.len())) }
}

#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits at EL2")]
const fn usize_of(raw: u64) -> usize {
    raw as usize
}

/// The bytes of the device tree at `at`, from its own header.
fn tree_range(at: u64) -> PaRange {
    if at == 0 || !at.is_multiple_of(8) {
        refuse(format_args!("no device tree: x0 = {at:#x}"));
    }
    let head = bytes(must_range(at, 8));
    let word = |i: usize| head.get(i..i + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
    let (magic, size) = (word(0), u64::from(word(4)));
    if magic != 0xd00d_feed || !(40..=MAX_TREE).contains(&size) {
        refuse(format_args!("no device tree at {at:#x}: magic {magic:#x}, size {size:#x}"));
    }
    must_range(at, size)
}

fn must_range(start: u64, len: u64) -> PaRange {
    PaRange::new(start, len).unwrap_or_else(|e| refuse(format_args!("{start:#x}: {e:?}")))
}

/// First Rust code: MMU off, `tree` = x0, `hcr` = HCR_EL2 after an attempt to clear E2H, `start`
/// = CNTPCT at the first instruction. Returns the boot CPU's record.
pub(super) extern "C" fn boot(tree: u64, hcr: u64, start: u64) -> &'static PerCpu {
    // SAFETY: the vectors are code of this image, 2 KiB aligned.
    unsafe { regs::set_vbar_el2(super::vectors_base()) };
    regs::set_tpidr_el2(0);
    regs::isb();
    let tree = tree_range(tree);
    if hcr & 1 << 34 != 0 {
        if let Ok(console) = Tree::new(bytes(tree)).and_then(|t| t.console()) {
            IMAGE.console.connect(Pa::truncated(console.pl011.start()));
        }
        refuse("this CPU cannot leave VHE (HCR_EL2.E2H is fixed at 1); nVHE is needed");
    }
    let hw = El2::new();
    let mut map = Map::new(hw);
    map.map(super::image_base(), super::text_end(), HypAttrs::normal(HypProt::Rx));
    map.map(super::text_end(), super::rodata_end(), HypAttrs::normal(HypProt::Ro));
    map.map(super::rodata_end(), super::data_end(), HypAttrs::normal(HypProt::Rw));
    map.map(super::boot_stack_bottom(), super::image_end(), HypAttrs::normal(HypProt::Rw));
    map.map(tree.start(), tree.end(), HypAttrs::normal(HypProt::Ro));
    let mmu = MmuSetup {
        mair: MAIR_EL2,
        tcr: sure("geometry", Geometry::hyp(48)).tcr_el2(&hw.features),
        ttbr0: map.table.root().base().raw(),
        sctlr: cpu::sctlr_el2_mmu_on(&hw.features),
    };
    mmu_on(&mmu);
    with_mmu(map, mmu, tree, start)
}

/// Switches EL2's MMU and caches on.
fn mmu_on(mmu: &MmuSetup) {
    // SAFETY: the table maps this code, its data and its stack at their own addresses.
    unsafe { regs::set_mair_el2(mmu.mair) };
    // SAFETY: as above.
    unsafe { regs::set_tcr_el2(mmu.tcr) };
    // SAFETY: as above.
    unsafe { regs::set_ttbr0_el2(mmu.ttbr0) };
    regs::isb();
    regs::tlbi_alle2();
    regs::dsb_nsh();
    regs::isb();
    // SAFETY: as above.
    unsafe { regs::set_sctlr_el2(mmu.sctlr) };
    regs::isb();
}

fn connect_console<'a>(map: &mut Map, tree: &Tree<'a>) -> Options<'a> {
    let uart = must(tree.console()).pl011;
    map.map(uart.start(), uart.end(), HypAttrs::DEVICE);
    IMAGE.console.connect(Pa::truncated(uart.start()));
    let options = Options::new(must(tree.bootargs()));
    // Fails only if a logger is set, and this is the one place that sets it.
    let _ = log::set_logger(&IMAGE.console);
    log::set_max_level(options.log);
    for unknown in options.ignored() {
        #[cfg(feature = "fault-injection")]
        if super::inject::way(unknown).is_some() {
            continue;
        }
        log::warn!("unknown argument {unknown:?} ignored");
    }
    options
}

fn with_mmu(mut map: Map, mmu: MmuSetup, tree_at: PaRange, start: u64) -> &'static PerCpu {
    let tree = must(Tree::new(bytes(tree_at)));
    let options = connect_console(&mut map, &tree);
    if options.conservative {
        map.forget_mte_perm();
    }
    log::info!("Rampart {} at EL2, nVHE", env!("CARGO_PKG_VERSION"));
    let platform = must(tree.platform());
    let mut memory = must(MemoryMap::new(&platform, map.hw.features.pa_bits));
    let kernel = kernel_image(&mut map, &memory, platform.kernel.file);
    let image = must_range(super::image_base(), super::image_end() - super::image_base());
    let loaded = Loaded { image, tree: tree_at, kernel, initrd: platform.initrd };
    let root_pages = Geometry::identity(map.hw.features.pa_bits.into()).root_pages().into();
    let sizes = data::Sizes::new(memory.records().into(), platform.cpus.len(), root_pages);
    let layout = must(Layout::new(&memory, &platform, &loaded, sizes.total()));
    let no_tags = must(without_tags(&memory, &platform, &options));
    must(memory.carve_out(&layout));
    report_machine(&platform, &memory, &layout);
    report_tags(&map.hw.features, &no_tags);

    let data = Data::new(&layout, &sizes);
    data.map(&mut map);
    let host_tree = host_tree(&mut map, &tree, &platform, &layout);
    let cpus = data.cpu_records(map.hw, mmu);
    let host = HostEntry {
        pc: kernel.memory().start(),
        tree: host_tree,
        start,
        #[cfg(feature = "bench")]
        scratch: data.scratch,
        #[cfg(feature = "fault-injection")]
        fail: must(tree.bootargs()).split_ascii_whitespace().find_map(super::inject::way),
    };
    let mpidr = regs::mpidr_el1() & AFFINITY;
    let relay = Relay::new(&platform.cpus, mpidr, super::secondary_entry());
    let boot_cpu = relay.as_ref().and_then(|relay| relay.index_of(mpidr)).and_then(|index| cpus.get(index));
    let (Some(relay), Some(boot_cpu)) = (relay, boot_cpu) else {
        refuse(format_args!("device tree: no CPU with this CPU's MPIDR {mpidr:#x}"))
    };
    publish(map.hw, cpus);
    map.unmap(tree_at.start(), tree_at.end());

    let hw = map.hw;
    let state = hypervisor(map, &memory, no_tags, &layout, &data);
    #[cfg_attr(not(feature = "spec"), expect(clippy::useless_conversion, reason = "one value for all CPUs"))]
    let hw = hw.into();
    let running = IMAGE.running.call_once(|| Running { hw, state, relay, host, cpus });
    boot_cpu.install();
    sure("windows", guests::start(running));
    running.look();
    boot_cpu
}

/// Checks the header of the host's kernel, which is in RAM at `file`.
fn kernel_image(map: &mut Map, memory: &MemoryMap, file: PaRange) -> KernelImage {
    if !memory.is_ram(file.pages_touched()) {
        refuse(LayoutError::NotInRam { what: Use::Kernel, range: file });
    }
    let head = must_range(file.start(), (HEADER_LEN as u64).min(file.len()));
    map.map(head.start(), head.end(), HypAttrs::normal(HypProt::Ro));
    let kernel = must(KernelImage::new(file, bytes(head)));
    map.unmap(head.start(), head.end());
    kernel
}

/// Tells CPUs that will start where their records are.
fn publish(hw: El2, cpus: &'static [PerCpu]) {
    IMAGE.records.store(cpus.as_ptr().expose_provenance(), Ordering::Release);
    let at = Pa::truncated((&raw const IMAGE.records).expose_provenance() as u64);
    hw.clean_to_poc(MappedPage::linear(at.frame()));
}

fn hypervisor(
    map: Map,
    memory: &MemoryMap,
    no_tags: ArrayVec<PfnRange, { mm::MAX_NO_TAGS }>,
    layout: &Layout,
    data: &Data,
) -> Hypervisor<Hw> {
    let ram = memory.runs().filter(|r| r.kind.is_memory()).map(|r| r.pages);
    let withheld: ArrayVec<PfnRange, MAX_WITHHELD> =
        memory.runs().filter(|r| r.kind == Kind::Withheld).map(|r| r.pages).collect();
    let boot = Boot {
        memory: sure("memory", mm::RamMap::new(ram)).without_tags(no_tags),
        records: data.records(map.hw),
        carve_out: &layout.carve_out(),
        withheld: &withheld,
        host_root: data.host_root,
        table_pages: data.tables,
        pool_pages: None,
        hyp_table: map.table,
        guests: map.hw.host.gic.is_some(),
    };
    sure("hypervisor", Hypervisor::new(&map.watched, boot))
}

/// Aff3, Aff2, Aff1 and Aff0 of MPIDR_EL1.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// Writes the host's device tree and returns where it is.
fn host_tree(map: &mut Map, tree: &Tree<'_>, platform: &Platform<'_>, layout: &Layout) -> u64 {
    let place = PaRange::from_pages(layout.tree);
    map.map(place.start(), place.end(), HypAttrs::normal(HypProt::Rw));
    let carve_out = layout.carve_out();
    let edits = Edits { carve_out: &carve_out, bootargs: platform.kernel.bootargs, initrd: platform.initrd };
    let length = must(edit::write(tree, &edits, bytes_mut(place)));
    log::debug!("host device tree: {length} bytes at {:#x}", place.start());
    // The host reads it with its MMU off.
    for page in layout.tree.iter().take(length.div_ceil(usize_of(PAGE_SIZE))) {
        map.hw.clean_invalidate_to_poc(MappedPage::linear(page));
    }
    map.unmap(place.start(), place.end());
    place.start()
}

fn report_machine(platform: &Platform<'_>, memory: &MemoryMap, layout: &Layout) {
    let mib = |pages: u64| pages >> 8;
    log::info!(
        "{} CPUs, {} MiB of RAM, {} kept-back devices",
        platform.cpus.len(),
        mib(u64::from(memory.records())),
        platform.withheld.len()
    );
    if platform.cpus_ignored != 0 {
        log::warn!("{} CPUs beyond the first {} stay off", platform.cpus_ignored, platform.cpus.len());
    }
    let pages: u64 = layout.carve_out().iter().map(|p| p.nr()).sum();
    for piece in layout.carve_out() {
        log::info!("carve-out {}", PaRange::from_pages(piece));
    }
    log::info!("carve-out {} KiB in all, image {} KiB", pages * 4, layout.image.nr() * 4);
}

fn report_tags(features: &CpuFeatures, no_tags: &[PfnRange]) {
    if features.mte < 2 {
        return;
    }
    log::info!("memory tags, tag accesses {}", if features.mte_perm { "trapped" } else { "not trapped" });
    for &pages in no_tags {
        log::info!("no tags in {}", PaRange::from_pages(pages));
    }
}

/// Where and when the host starts.
#[derive(Debug)]
pub(super) struct HostEntry {
    /// First instruction of its kernel.
    pc: u64,
    /// Its device tree.
    tree: u64,
    /// CNTPCT when EL2 started.
    start: u64,
    /// Pages for the benchmarks.
    #[cfg(feature = "bench")]
    scratch: PfnRange,
    /// How EL2 is to fail before the host starts.
    #[cfg(feature = "fault-injection")]
    fail: Option<fn()>,
}

/// The boot CPU on its own stack: reports and enters the host.
pub(super) extern "C" fn boot_host() -> ! {
    let (Some(running), Some(cpu)) = (IMAGE.running(), PerCpu::current()) else {
        refuse("internal: nothing to run")
    };
    prepare(running);
    let HostEntry { pc, tree, start, .. } = running.host;
    #[cfg(feature = "bench")]
    {
        super::bench::run(running.hw(), running.host.scratch);
        super::marks::fill_own(*running.el2());
    }
    #[cfg(feature = "fault-injection")]
    if let Some(fail) = running.host.fail {
        fail();
    }
    let ticks = regs::cntpct_el0().wrapping_sub(start);
    log::info!(
        "entering the host at {pc:#x}, {ticks} ticks of {} Hz after the first instruction",
        regs::cntfrq_el0()
    );
    host::enter(pc, tree, cpu.stack_top)
}

/// Everything that this CPU needs before a host instruction runs on it.
fn prepare(running: &Running) {
    cpu::prepare_host(&running.el2().host, running.state.host_context());
}

/// A CPU that firmware started because the host asked for it, or that woke from a power-down;
/// its MMU is on.
pub(super) extern "C" fn secondary(record: &'static PerCpu) -> ! {
    // SAFETY: the vectors are code of this image, 2 KiB aligned.
    unsafe { regs::set_vbar_el2(super::vectors_base()) };
    record.install();
    regs::isb();
    let Some(running) = IMAGE.running() else { smc::system_off() };
    prepare(running);
    // Nobody asked for this CPU: it does not enter the host.
    let Some(Start { entry, context }) = running.relay.start(record.index) else { smc::cpu_off() };
    host::enter(entry, context, record.stack_top)
}
