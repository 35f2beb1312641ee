//! The hypervisor's core on the simulated machine, as the image leaves it when the host starts.
//!
//! RAM starts with the carve-out: root of the host's table, EL2's own tables, pools. A test calls
//! the transitions on [`World::hyp`], and plays the host with [`World::touch`].

use crate::machine::{Config, Cpu, RAM_BASE, Sim};
use crate::mmu::Via;
use hyp::addr::{Ipa, PAGE_SIZE, Pfn, PfnRange, VaRange};
use hyp::hw::{CpuFeatures, Event, Machine};
use hyp::lock::Rank;
use hyp::mem_protect::{Boot, HostAbort, HostFault, Hypervisor};
use hyp::mm::{RamMap, Record};
use hyp::pgtable::{Access, Geometry, HypAttrs, HypProt, HypTable, Level, TablePool, Window};
use hyp::spec::model::live::read_hypervisor;
use hyp::spec::model::{Flaw, Root, State, Vm};
use std::sync::{Arc, Mutex};

/// Pages of the carve-out before the table pages: host root, EL2's first tables.
const FIXED: u64 = 64;
/// Pages for the buddy pool.
const POOL: u64 = 32;

/// Runs that an abstract state of a [`World`] can have.
pub const RUNS: usize = 1024;

/// What the machine and the carve-out look like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What the CPUs can do.
    pub features: CpuFeatures,
    /// How many there are.
    pub cpus: usize,
    /// Pages from [`RAM_BASE`] on, that of holes included.
    pub pages: u64,
    /// First page and number of pages that are no RAM, counted from [`RAM_BASE`].
    pub hole: Option<(u64, u64)>,
    /// First page and number of pages that have no allocation tags, counted from [`RAM_BASE`].
    pub no_tags: Option<(u64, u64)>,
    /// Pages of the carve-out for tables.
    pub table_pages: u64,
    /// Frames that are withheld from the host.
    pub withheld: Vec<PfnRange>,
}

impl Setup {
    /// Two CPUs, 64 MiB without holes, 64 table pages.
    #[must_use]
    pub fn new(features: CpuFeatures) -> Self {
        Self {
            features,
            cpus: 2,
            pages: 16384,
            hole: None,
            no_tags: None,
            table_pages: 64,
            withheld: Vec::new(),
        }
    }

    /// The machine, started.
    ///
    /// # Panics
    /// If the carve-out does not fit.
    #[must_use]
    pub fn start(self) -> World {
        self.start_with(|cpu| cpu)
    }

    /// The same, with every CPU wrapped in a machine of the test's own.
    ///
    /// # Panics
    /// If the carve-out does not fit.
    #[must_use]
    pub fn start_with<C: Machine>(self, wrap: impl Fn(Cpu) -> C) -> World<C> {
        World::new(&self, wrap)
    }
}

/// A machine with the hypervisor on it.
#[derive(Debug)]
pub struct World<C: Machine = Cpu> {
    /// The machine.
    pub sim: Arc<Sim>,
    /// Its CPUs.
    pub cpus: Vec<C>,
    /// One window slot a CPU: a test's CPU is used by one thread at a time.
    pub windows: Vec<Mutex<Window>>,
    /// What the image has in its one static.
    pub hyp: Hypervisor<C>,
    /// What EL2 has for good.
    pub carve_out: PfnRange,
}

impl<C: Machine> World<C> {
    fn new(setup: &Setup, wrap: impl Fn(Cpu) -> C) -> Self {
        let config = Config {
            cpus: setup.cpus,
            ram: setup.pages * PAGE_SIZE,
            no_tags: setup.no_tags,
            ..Config::new(setup.features)
        };
        let sim = config.build();
        let cpus: Vec<_> = (0..setup.cpus).map(|id| wrap(sim.cpu(id))).collect();
        let cpu = &cpus[0];
        let base = RAM_BASE / PAGE_SIZE;
        let range = |first, nr| PfnRange::new(base + first, nr).expect("the range is in memory");
        let carve_out = range(0, FIXED + setup.table_pages + POOL);
        let memory = match setup.hole {
            None => vec![range(0, setup.pages)],
            Some((hole, nr)) => vec![range(0, hole), range(hole + nr, setup.pages - hole - nr)],
        };
        let no_tags = setup.no_tags.map(|(first, nr)| range(first, nr)).into_iter().collect();
        let memory = RamMap::new(memory).expect("the memory is a map").without_tags(no_tags);
        let records: Vec<_> = (0..memory.pages()).map(|_| Record::new()).collect();

        // The host's root takes up to 16 pages, EL2's first tables follow.
        let mut boot_tables = BootTables { next: base + 17, end: base + FIXED };
        sim.translate_el2(false);
        let hyp_geometry = Geometry::hyp(48).expect("48 bits are legal");
        let hyp_table =
            HypTable::new(cpu, range(16, 1).start(), hyp_geometry).expect("the root is in memory");
        let (va, attrs) = (VaRange::linear(carve_out), HypAttrs::normal(HypProt::Rw));
        // Nobody else is there yet: the lock that the checker asks for is a formality.
        let lock = |held| cpu.observe(Event::Lock { rank: Rank::HypS1, held });
        lock(true);
        hyp_table
            .map(cpu, &mut boot_tables, va, carve_out.start(), attrs, Level::L3)
            .expect("the linear map fits the first tables");
        lock(false);
        sim.translate_el2(true);

        let boot = Boot {
            memory,
            records: Vec::leak(records),
            carve_out: &[carve_out],
            withheld: &setup.withheld,
            host_root: range(0, 1).start(),
            table_pages: range(FIXED, setup.table_pages),
            pool_pages: Some(range(FIXED + setup.table_pages, POOL)),
            hyp_table,
            guests: true,
        };
        let hyp = Hypervisor::new(cpu, boot).expect("the machine is one the hypervisor can use");
        let windows = (0..setup.cpus)
            .map(|id| hyp.window(cpu, u16::try_from(id).expect("few CPUs")).expect("window slots fit"))
            .map(Mutex::new)
            .collect();
        for cpu in &cpus {
            let _ = cpu.enter_stage2(hyp.host_context());
        }
        Self { sim, cpus, windows, hyp, carve_out }
    }

    /// The `nth` page of RAM.
    #[must_use]
    pub fn page(&self, nth: u64) -> Pfn {
        self.sim.ram(nth)
    }

    /// `nr` pages from the `nth` of RAM.
    ///
    /// # Panics
    /// If that is no range.
    #[must_use]
    pub fn pages(&self, nth: u64, nr: u64) -> PfnRange {
        PfnRange::new(RAM_BASE / PAGE_SIZE + nth, nr).expect("the range is in memory")
    }

    /// The first page that is not the carve-out's, counted from the start of RAM.
    #[must_use]
    pub const fn first_free(&self) -> u64 {
        self.carve_out.nr()
    }

    /// The host accesses `page` on CPU `cpu`, faulting as often as it must; whether it got there.
    ///
    /// # Panics
    /// If it gets anywhere else, or faults for ever.
    pub fn touch(&self, cpu: usize, page: Pfn, access: Access) -> bool {
        let ipa = Ipa::new(page.base().raw()).expect("a page has an address");
        for _ in 0..3 {
            let found = self.sim.walk(self.hyp.host_context(), ipa.raw());
            if found.is_some_and(|found| self.allows(found.word, access)) {
                let reached = self.sim.reach(self.hyp.host_context(), ipa.raw());
                let astray = reached.iter().find(|r| r.page != page.raw() && r.via == Via::Walk);
                assert_eq!(astray, None, "the host is not where it wants to be");
                return true;
            }
            match self.hyp.host_abort(&self.cpus[cpu], HostFault { ipa, access }) {
                HostAbort::Resume => {}
                HostAbort::InjectExternalAbort => return false,
            }
        }
        panic!("the host faults on {page:?} for ever");
    }

    fn allows(&self, word: u64, access: Access) -> bool {
        let leaf = crate::walk::stage2_leaf(word, self.sim.features());
        word & 1 == 1
            && (!access.contains(Access::R) || leaf.read)
            && (!access.contains(Access::W) || leaf.write)
            && (!access.contains(Access::X) || leaf.exec_el1)
    }

    /// Every word of a page as EL2 would see it.
    #[must_use]
    pub fn contents(&self, page: Pfn) -> Vec<u64> {
        (0..512).map(|index| self.sim.memory().read(page.raw(), index)).collect()
    }

    /// Every word of a page as a device would see it.
    #[must_use]
    pub fn contents_in_ram(&self, page: Pfn) -> Vec<u64> {
        (0..512).map(|index| self.sim.memory().read_ram(page.raw(), index)).collect()
    }

    /// The abstract state of the real tables and records, with these VMs.
    ///
    /// # Panics
    /// If they contradict each other.
    #[must_use]
    #[track_caller]
    pub fn state(&self, guests: &[(Vm, Root)]) -> Box<State<RUNS>> {
        let mut state = Box::new(State::empty());
        if let Err(flaw) = self.read(guests, &mut state) {
            panic!("the machine contradicts itself: {flaw}");
        }
        state
    }

    /// Reads the abstract state of the real tables and records, with these VMs, past the checker.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn read<const N: usize>(&self, guests: &[(Vm, Root)], state: &mut State<N>) -> Result<(), Flaw> {
        let bare = self.sim.cpu(0);
        read_hypervisor(&self.hyp, &self.cpus[0], bare.untraced(), guests.iter().copied(), state)
    }
}

/// Tables before there are records to count in.
struct BootTables {
    next: u64,
    end: u64,
}

impl TablePool for BootTables {
    fn alloc(&mut self) -> Option<Pfn> {
        (self.next < self.end).then(|| {
            self.next += 1;
            Pfn::new(self.next - 1).expect("RAM lies below 2^48")
        })
    }

    fn free(&mut self, _page: Pfn) {}
    fn add_entries(&mut self, _table: Pfn, _nr: u16) {}
    fn remove_entries(&mut self, _table: Pfn, _nr: u16) {}

    fn entries(&self, _table: Pfn) -> u16 {
        0
    }
}
