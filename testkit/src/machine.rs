//! The machine: CPUs that the hypervisor runs on, and that a test makes hostile.
#![forbid(unsafe_code)]

use crate::guest::Guests;
use crate::memory::{Memory, lock};
use crate::mmu::{Access, Mmu, Reach, Remembered};
use crate::walk::{self, Shape, stage2_leaf};
use hyp::addr::{PAGE_SIZE, Pfn};
use hyp::hw::{
    CacheOps, CpuFeatures, Dsb, ENTRIES, Event, Machine, MappedPage, Observe, Outer, PhysMem, Stage2Ctx,
    TableOwner, Tags, Tlb, Tlbi,
};
use hyp::spec::checker::{Rule, Scope, Violation};
use hyp::spec::{Traced, Watch};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The checker at the size that a test needs.
pub type SimWatch = Watch<4096, 2048>;
/// One CPU under the checker's eyes: the `M` that a test gives the hypervisor's core.
pub type Cpu = Traced<SimCpu, Arc<SimWatch>>;

/// Operations that the recorder keeps.
const KEPT: usize = 1 << 14;
/// First byte of RAM, as on QEMU's `virt`.
pub const RAM_BASE: u64 = 0x4000_0000;

/// One operation of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Table entry or word: frame, index, old and new value.
    Write(u64, usize, u64, u64),
    /// TLB maintenance under a VMID.
    Tlbi(Tlbi, Option<u16>),
    /// Data synchronisation barrier.
    Dsb(Dsb),
    /// Instruction synchronisation barrier.
    Isb,
    /// VTTBR_EL2 and VTCR_EL2 written.
    Install(Stage2Ctx),
    /// Page zeroed.
    Zero(u64),
    /// Page copied.
    Copy(u64, u64),
    /// Page cleaned, and invalidated if so.
    Clean(u64, bool),
    /// Instruction cache maintenance.
    Icache(u64),
    /// Tags zeroed.
    ZeroTags(u64),
    /// What [`Observe`] was told.
    Event(Event),
}

/// An operation and the CPU it was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The CPU.
    pub cpu: usize,
    /// The operation.
    pub op: Op,
}

/// A machine: build one, take its CPUs, give them to the code under test.
#[derive(Debug)]
pub struct Sim {
    memory: Memory,
    features: CpuFeatures,
    mmu: Mutex<Mmu>,
    trace: Mutex<VecDeque<Record>>,
    recording: AtomicBool,
    el2_mmu: AtomicBool,
    entry_reads: AtomicU64,
    word_reads: AtomicU64,
    watch: Arc<SimWatch>,
    guests: Guests,
    cpus: usize,
}

/// How a [`Sim`] is built.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What the CPUs can do.
    pub features: CpuFeatures,
    /// How many there are.
    pub cpus: usize,
    /// Bytes of RAM from [`RAM_BASE`].
    pub ram: u64,
    /// First page and number of pages of RAM that have no allocation tags.
    pub no_tags: Option<(u64, u64)>,
    /// What the checker looks at.
    pub scope: Scope,
    /// A broken rule is a panic at once; otherwise it waits for [`Sim::violations`].
    pub strict: bool,
}

impl Config {
    /// Two CPUs, 64 MiB, every rule, strict.
    #[must_use]
    pub const fn new(features: CpuFeatures) -> Self {
        Self { features, cpus: 2, ram: 64 << 20, no_tags: None, scope: Scope::All, strict: true }
    }

    /// The machine.
    #[must_use]
    pub fn build(self) -> Arc<Sim> {
        let Self { features, cpus, ram, no_tags, scope, strict } = self;
        let base = RAM_BASE / PAGE_SIZE;
        let no_tags = no_tags.map_or(0..0, |(first, nr)| base + first..base + first + nr);
        let report: fn(&Violation) = if strict { panic_on } else { |_| {} };
        let pages = usize::try_from(ram / PAGE_SIZE).expect("RAM fits the address space");
        Arc::new(Sim {
            memory: Memory::new(base, pages, no_tags, features.dic, features.idc),
            features,
            mmu: Mutex::new(Mmu::new(features, cpus)),
            trace: Mutex::new(VecDeque::new()),
            recording: AtomicBool::new(true),
            el2_mmu: AtomicBool::new(true),
            entry_reads: AtomicU64::new(0),
            word_reads: AtomicU64::new(0),
            watch: Arc::new(SimWatch::new(scope, report)),
            guests: Guests::new(cpus),
            cpus,
        })
    }
}

fn panic_on(violation: &Violation) {
    // A guard that is dropped while a test fails must not turn that into an abort.
    if !std::thread::panicking() {
        panic!("checker: {violation}");
    }
}

impl Sim {
    /// A strict machine with two CPUs and 64 MiB.
    #[must_use]
    pub fn new(features: CpuFeatures) -> Arc<Self> {
        Config::new(features).build()
    }

    /// How often EL2 has read an entry of a table so far.
    #[must_use]
    pub fn entry_reads(&self) -> u64 {
        self.entry_reads.load(Ordering::Relaxed)
    }

    /// How often EL2 has read a word of a page that is no table of its own so far.
    #[must_use]
    pub fn word_reads(&self) -> u64 {
        self.word_reads.load(Ordering::Relaxed)
    }

    /// A CPU of this machine. Each may be driven by a thread of its own.
    ///
    /// # Panics
    /// If there is no such CPU.
    #[must_use]
    pub fn cpu(self: &Arc<Self>, id: usize) -> Cpu {
        assert!(id < self.cpus, "machine has {} CPUs", self.cpus);
        Traced::new(SimCpu { sim: Arc::clone(self), id }, Arc::clone(&self.watch), id)
    }

    /// Number of CPUs.
    #[must_use]
    pub const fn cpus(&self) -> usize {
        self.cpus
    }

    /// RAM and caches.
    #[must_use]
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What the CPUs can do.
    #[must_use]
    pub const fn features(&self) -> &CpuFeatures {
        &self.features
    }

    /// A frame of RAM, counted from its start.
    ///
    /// # Panics
    /// Beyond the end of RAM.
    #[must_use]
    pub fn ram(&self, nth: u64) -> Pfn {
        assert!(nth < self.memory.pages(), "RAM has {} pages", self.memory.pages());
        Pfn::new(self.memory.base() + nth).expect("RAM lies below 2^48")
    }

    /// Broken rules so far, oldest first.
    #[must_use]
    pub fn violations(&self) -> Vec<Rule> {
        self.watch.checker().violations().iter().map(|v| v.rule).collect()
    }

    pub(crate) const fn guests(&self) -> &Guests {
        &self.guests
    }

    /// The checker's view.
    #[must_use]
    pub fn watch(&self) -> &SimWatch {
        &self.watch
    }

    /// The latest operations, oldest first.
    #[must_use]
    pub fn trace(&self) -> Vec<Record> {
        lock(&self.trace).iter().copied().collect()
    }

    /// Forgets the operations so far.
    pub fn clear_trace(&self) {
        lock(&self.trace).clear();
    }

    /// Switches the recorder; it is on in a fresh machine.
    pub fn record(&self, on: bool) {
        self.recording.store(on, Ordering::Relaxed);
    }

    /// Switches EL2's own translation, as SCTLR_EL2.M does: while it is off, EL2's accesses are not
    /// held against its map. It is on in a fresh machine, and matters once there is a map.
    pub fn translate_el2(&self, on: bool) {
        self.el2_mmu.store(on, Ordering::Relaxed);
    }

    /// From here on every CPU touches `ipa` of `ctx` after every operation of any CPU.
    pub fn spy(&self, ctx: Stage2Ctx, ipa: u64) {
        let mut mmu = lock(&self.mmu);
        mmu.spy(ctx, ipa);
        mmu.run_spies(&self.memory);
    }

    /// From here on every CPU touches `va` at EL2 after every operation of any CPU.
    pub fn spy_hyp(&self, va: u64) {
        let mut mmu = lock(&self.mmu);
        mmu.spy_hyp(va);
        mmu.run_spies(&self.memory);
    }

    /// No CPU runs with this VMID any more.
    pub fn unspy(&self, vmid: u16) {
        lock(&self.mmu).unspy(Some(vmid));
    }

    /// Ends all that [`Sim::spy`] and [`Sim::spy_hyp`] began.
    pub fn unspy_all(&self) {
        lock(&self.mmu).unspy(None);
    }

    /// All that any CPU can reach at `ipa` of `ctx`: by a walk, and by what it remembers.
    #[must_use]
    pub fn reach(&self, ctx: Stage2Ctx, ipa: u64) -> BTreeSet<Reach> {
        self.reached(&mut lock(&self.mmu), ctx, ipa)
    }

    fn reached(&self, mmu: &mut Mmu, ctx: Stage2Ctx, ipa: u64) -> BTreeSet<Reach> {
        (0..self.cpus).flat_map(|cpu| mmu.touch(&self.memory, cpu, ctx, ipa)).collect()
    }

    /// The same for EL2's own map.
    #[must_use]
    pub fn reach_hyp(&self, va: u64) -> BTreeSet<Reach> {
        let mut mmu = lock(&self.mmu);
        (0..self.cpus).flat_map(|cpu| mmu.touch_hyp(&self.memory, cpu, va)).collect()
    }

    /// Every descriptor that any CPU remembers of a VMID; `None` asks for EL2's own map.
    #[must_use]
    pub fn remembered(&self, vmid: Option<u16>) -> Vec<Remembered> {
        lock(&self.mmu).remembered(vmid)
    }

    /// True if any CPU remembers the frame as a table.
    #[must_use]
    pub fn remembers_table(&self, page: u64) -> bool {
        lock(&self.mmu).remembers_table(page)
    }

    /// What the tables of `ctx` say about `ipa`, without any TLB: `None` beyond the input space.
    #[must_use]
    pub fn walk(&self, ctx: Stage2Ctx, ipa: u64) -> Option<walk::Found> {
        let shape = Shape::of_stage2(ctx, &self.features)?;
        walk::walk(shape, ipa, |table, index| self.memory.read(table, index))
    }

    /// What a hostile CPU gets when it reads the word at `ipa` by every way it has; `cacheable`
    /// is its stage-1 type.
    #[must_use]
    pub fn load(&self, ctx: Stage2Ctx, ipa: u64, cacheable: bool) -> BTreeSet<u64> {
        self.ways(ctx, ipa, Access::Read)
            .map(|reach| match self.effective(reach.word, cacheable) {
                true => self.memory.read_and_cache(reach.page, word_index(ipa)),
                false => self.memory.read_ram(reach.page, word_index(ipa)),
            })
            .collect()
    }

    /// A hostile CPU writes the word at `ipa` by every way it has. A DSB of another CPU that comes after the translation
    /// comes after the write.
    pub fn store(&self, ctx: Stage2Ctx, ipa: u64, cacheable: bool, value: u64) {
        let mut mmu = lock(&self.mmu);
        let reached = self.reached(&mut mmu, ctx, ipa);
        for reach in reached.into_iter().filter(|reach| stage2_leaf(reach.word, &self.features).write) {
            match self.effective(reach.word, cacheable) {
                true => self.memory.write(reach.page, word_index(ipa), value),
                false => self.memory.write_ram(reach.page, word_index(ipa), value),
            }
        }
    }

    /// What a hostile CPU executes at `ipa`, by every way it has.
    #[must_use]
    pub fn fetch(&self, ctx: Stage2Ctx, ipa: u64) -> BTreeSet<u64> {
        self.ways(ctx, ipa, Access::Fetch)
            .map(|reach| self.memory.fetch(reach.page, word_index(ipa)))
            .collect()
    }

    fn ways(&self, ctx: Stage2Ctx, ipa: u64, access: Access) -> impl Iterator<Item = Reach> {
        let features = self.features;
        self.reach(ctx, ipa).into_iter().filter(move |reach| {
            let leaf = stage2_leaf(reach.word, &features);
            match access {
                Access::Read => leaf.read,
                Access::Write => leaf.write,
                Access::Fetch => leaf.exec_el1,
            }
        })
    }

    /// True if the access is cacheable in the end.
    fn effective(&self, word: u64, cacheable: bool) -> bool {
        match stage2_leaf(word, &self.features).memory {
            Some(walk::Memory::ForcedWriteBack) => true,
            Some(walk::Memory::AsStage1) => cacheable,
            _ => false,
        }
    }
}

fn word_index(ipa: u64) -> usize {
    usize::try_from(ipa % PAGE_SIZE / 8).unwrap_or_default()
}

/// One CPU, without a checker.
#[derive(Clone, Debug)]
pub struct SimCpu {
    sim: Arc<Sim>,
    id: usize,
}

impl SimCpu {
    /// The machine it belongs to.
    #[must_use]
    pub fn sim(&self) -> &Arc<Sim> {
        &self.sim
    }

    pub(crate) const fn id(&self) -> usize {
        self.id
    }

    fn record(&self, op: Op) {
        if self.sim.recording.load(Ordering::Relaxed) {
            let mut trace = lock(&self.sim.trace);
            if trace.len() == KEPT {
                trace.pop_front();
            }
            trace.push_back(Record { cpu: self.id, op });
        }
    }

    fn with_mmu<T>(&self, f: impl FnOnce(&mut Mmu, &Memory) -> T) -> T {
        f(&mut lock(&self.sim.mmu), &self.sim.memory)
    }

    /// EL2 uses the page at the address that it was told: once its MMU is on, that must lead there
    /// and nowhere else, whatever this CPU remembers.
    #[track_caller]
    fn mapped(&self, page: MappedPage) -> u64 {
        let (frame, va) = (page.pfn().raw(), page.va().raw());
        self.with_mmu(|mmu, memory| {
            if mmu.has_hyp() && self.sim.el2_mmu.load(Ordering::Relaxed) {
                let reached: BTreeSet<u64> =
                    mmu.touch_hyp(memory, self.id, va).into_iter().map(|reach| reach.page).collect();
                assert!(
                    reached == BTreeSet::from([frame]),
                    "EL2 has {reached:x?} at {va:#x}, wants {frame:#x}"
                );
            }
        });
        frame
    }
}

impl PhysMem for SimCpu {
    fn read_entry(&self, page: Pfn, index: usize) -> u64 {
        self.sim.entry_reads.fetch_add(1, Ordering::Relaxed);
        self.sim.memory.read(page.raw(), index)
    }

    fn write_entry(&self, page: Pfn, index: usize, value: u64) {
        let page = page.raw();
        let old = self.sim.memory.read(page, index);
        self.record(Op::Write(page, index, old, value));
        self.with_mmu(|mmu, memory| {
            mmu.store(self.id, page, index, old);
            memory.write(page, index, value);
            mmu.run_spies(memory);
        });
    }

    fn write_word(&self, page: Pfn, index: usize, value: u64) {
        let old = self.sim.memory.read(page.raw(), index);
        self.record(Op::Write(page.raw(), index, old, value));
        self.sim.memory.write(page.raw(), index, value);
    }

    fn put_word(&self, page: MappedPage, index: usize, value: u64) {
        let page = self.mapped(page);
        let old = self.sim.memory.read(page, index);
        self.record(Op::Write(page, index, old, value));
        self.sim.memory.write(page, index, value);
    }

    fn get_word(&self, page: MappedPage, index: usize) -> u64 {
        self.sim.word_reads.fetch_add(1, Ordering::Relaxed);
        self.sim.memory.read(self.mapped(page), index)
    }

    fn zero_page(&self, page: MappedPage) {
        let page = self.mapped(page);
        self.record(Op::Zero(page));
        (0..ENTRIES).for_each(|index| self.sim.memory.write(page, index, 0));
    }

    fn copy_page(&self, from: MappedPage, to: MappedPage) {
        let (from, to) = (self.mapped(from), self.mapped(to));
        self.record(Op::Copy(from, to));
        (0..ENTRIES).for_each(|index| self.sim.memory.write(to, index, self.sim.memory.read(from, index)));
    }

    fn copy_entries(&self, from: MappedPage, to: MappedPage, accessed: bool) -> u64 {
        const ACCESS_FLAG: u64 = 1 << 10;
        let (from, to) = (self.mapped(from), self.mapped(to));
        self.record(Op::Copy(from, to));
        let memory = &self.sim.memory;
        (0..ENTRIES).fold(0, |groups, index| {
            assert_eq!(memory.read(to, index), 0, "word {index} of {to:#x} is to be 0 before a copy");
            let word = memory.read(from, index);
            let mark = if accessed && word & 1 == 1 { ACCESS_FLAG } else { 0 };
            memory.write(to, index, word | mark);
            groups | (word & 1) << (index / 8)
        })
    }
}

impl Tlb for SimCpu {
    fn dsb(&self, scope: Dsb) {
        self.record(Op::Dsb(scope));
        self.with_mmu(|mmu, memory| mmu.dsb(memory, self.id, scope));
    }

    fn isb(&self) {
        self.record(Op::Isb);
    }

    fn tlbi(&self, op: Tlbi) {
        assert!(self.sim.features.tlbi_range || !matches!(op, Tlbi::IpaRange { .. }), "UNDEFINED: {op:?}");
        self.with_mmu(|mmu, _| {
            self.record(Op::Tlbi(op, mmu.installed(self.id).map(Stage2Ctx::vmid)));
            mmu.tlbi(self.id, op);
        });
    }

    fn enter_stage2(&self, target: Stage2Ctx) -> Outer {
        let previous = self.with_mmu(|mmu, _| mmu.installed(self.id));
        if previous != Some(target) {
            self.record(Op::Install(target));
            self.with_mmu(|mmu, _| mmu.install(self.id, target));
        }
        previous.unwrap_or(Stage2Ctx { vttbr: 0, vtcr: 0 }).into()
    }

    fn leave_stage2(&self, outer: Outer) {
        self.record(Op::Install(outer.stage2));
        self.with_mmu(|mmu, _| mmu.install(self.id, outer.stage2));
    }
}

impl CacheOps for SimCpu {
    fn clean_to_poc(&self, page: MappedPage) {
        let page = self.mapped(page);
        self.record(Op::Clean(page, false));
        self.sim.memory.clean(page, false);
    }

    fn clean_invalidate_to_poc(&self, page: MappedPage) {
        let page = self.mapped(page);
        self.record(Op::Clean(page, true));
        self.sim.memory.clean(page, true);
    }

    fn invalidate_icache(&self, page: MappedPage) {
        let page = self.mapped(page);
        self.record(Op::Icache(page));
        self.sim.memory.invalidate_icache(page);
    }
}

impl Tags for SimCpu {
    fn zero_tags(&self, page: MappedPage) {
        let page = self.mapped(page);
        self.record(Op::ZeroTags(page));
        self.sim.memory.zero_tags(page);
    }
}

impl Observe for SimCpu {
    fn observe(&self, event: Event) {
        self.record(Op::Event(event));
        if let Event::Root { root, level, owner: TableOwner::Hyp, .. } = event {
            let ia_bits = if level == 0 { 48 } else { 39 };
            self.with_mmu(|mmu, _| mmu.set_hyp(Shape { root: root.raw(), start: level, ia_bits }));
        }
    }
}

impl Machine for SimCpu {
    type Relax = Yield;

    fn features(&self) -> &CpuFeatures {
        &self.sim.features
    }
}

/// What a simulated CPU does while it waits: its thread lets the others run.
#[derive(Clone, Copy, Debug)]
pub struct Yield;

impl spin::RelaxStrategy for Yield {
    fn relax() {
        std::thread::yield_now();
    }
}
