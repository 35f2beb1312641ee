//! A table on the simulated machine, with everything that must hold after each step.

use hyp::addr::{Gfn, Ipa, IpaRange, Pfn};
use hyp::hw::{CpuFeatures, Stage2Ctx, TableOwner, Tlb};
use hyp::lock::{Lock, Rank};
use hyp::pgtable::{
    Entry, Geometry, LeafState, Level, MemType, Note, NoteKinds, Owner, Prot, Ripas, S2Attrs, Stage2,
    Stage2Config, Stage2Format, Stage2Table, TablePool, TagControl,
};
use hyp::spec::checker::Scope;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use testkit::machine::Config;
use testkit::{Cpu, Sim};

pub(crate) const KIB4: u64 = 4 << 10;
pub(crate) const MIB2: u64 = 2 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// An address at which the machine has no RAM, and so no tables: identity maps are made there.
pub(crate) const FAR: u64 = 8 * GIB;

/// Normal read-write-execute memory that the table's owner owns.
pub(crate) const RWX: S2Attrs = S2Attrs::owned(Prot::RWX, MemType::Normal);
/// The same, read-write.
pub(crate) const RW: S2Attrs = S2Attrs::owned(Prot::RW, MemType::Normal);
/// The same, read-only.
pub(crate) const RO: S2Attrs = S2Attrs::owned(Prot::R, MemType::Normal);
/// Borrowed from the host.
pub(crate) const BORROWED: S2Attrs = RW.with_state(LeafState::SharedBorrowed);

pub(crate) const RAM: Note = Note::Ripas(Ripas::Ram);
pub(crate) const DESTROYED: Note = Note::Ripas(Ripas::Destroyed);

/// What the CPU runs while the hypervisor works on the table: somebody else.
const RUNNING: Stage2Ctx = Stage2Ctx { vttbr: 77 << 48 | 0x4030_0000, vtcr: 0x8005_3559 };

/// Bits of a leaf that no hardware looks at: a cached copy may have old ones.
const SOFTWARE: u64 = 0xf << 55;

/// Table pages, counted, that run out when told to.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Vec<Pfn>,
    used: BTreeMap<u64, u16>,
    /// How often `alloc` may still succeed.
    pub(crate) left: usize,
    pub(crate) allocs: usize,
}

impl Pool {
    pub(crate) fn new(pages: impl Iterator<Item = Pfn>) -> Self {
        Self { free: pages.collect(), used: BTreeMap::new(), left: usize::MAX, allocs: 0 }
    }

    /// Tells the pool of a page that it counts but never gave out: a root.
    pub(crate) fn adopt(&mut self, page: Pfn) {
        assert!(self.used.insert(page.raw(), 0).is_none());
    }

    /// Pages that are out, roots included.
    pub(crate) fn out(&self) -> BTreeMap<u64, u16> {
        self.used.clone()
    }

    fn count(&mut self, page: Pfn) -> &mut u16 {
        self.used.get_mut(&page.raw()).expect("count of a page that is no table")
    }
}

impl TablePool for Pool {
    fn alloc(&mut self) -> Option<Pfn> {
        self.left = self.left.checked_sub(1)?;
        // The page that was freed last comes first: reuse is where mistakes show.
        let page = self.free.pop()?;
        assert!(self.used.insert(page.raw(), 0).is_none());
        self.allocs += 1;
        Some(page)
    }

    fn free(&mut self, page: Pfn) {
        assert_eq!(self.used.remove(&page.raw()), Some(0), "freed twice, or with entries");
        self.free.push(page);
    }

    fn add_entries(&mut self, table: Pfn, nr: u16) {
        let count = self.count(table);
        *count += nr;
        assert!(*count <= 512);
    }

    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        let count = self.count(table);
        *count = count.checked_sub(nr).expect("count below 0");
    }

    fn entries(&self, table: Pfn) -> u16 {
        self.used[&table.raw()]
    }
}

pub(crate) struct Rig {
    pub(crate) sim: Arc<Sim>,
    pub(crate) hw: Cpu,
    pub(crate) table: Lock<Stage2Table, Cpu>,
    pub(crate) ctx: Stage2Ctx,
    pub(crate) pool: Pool,
    spied: BTreeSet<u64>,
    format: Stage2Format,
}

impl Rig {
    /// A guest's table of `ipa_bits` that may hold every guest note.
    pub(crate) fn guest(features: CpuFeatures, ipa_bits: u32) -> Self {
        let notes = NoteKinds::all().difference(NoteKinds::HOST_DONATED);
        let format = Stage2Format::guest(&features, TagControl::Enforced, notes);
        let geometry = Geometry::stage2(ipa_bits, u32::from(features.pa_bits)).unwrap();
        Self::new(features, format, geometry, TableOwner::Guest(1), Rank::GuestS2(1), 5)
    }

    /// The host's table.
    pub(crate) fn host(features: CpuFeatures) -> Self {
        let format = Stage2Format::host(&features);
        let geometry = Geometry::identity(u32::from(features.pa_bits));
        Self::new(features, format, geometry, TableOwner::Host, Rank::HostS2, 0)
    }

    pub(crate) fn new(
        features: CpuFeatures,
        format: Stage2Format,
        geometry: Geometry,
        owner: TableOwner,
        rank: Rank,
        vmid: u16,
    ) -> Self {
        let sim = Config { scope: Scope::Tables, ram: 8 << 20, ..Config::new(features) }.build();
        sim.record(false);
        let hw = sim.cpu(0);
        let mut pool = Pool::new((1024..1024 + 96).rev().map(|n| sim.ram(n)));
        let root = sim.ram(0);
        for page in 0..u64::from(geometry.root_pages()) {
            pool.adopt(sim.ram(page));
        }
        let table = Stage2Table::new(&hw, Stage2Config { root, geometry, format, vmid, owner }).unwrap();
        let ctx = table.context();
        let _ = hw.untraced().enter_stage2(RUNNING);
        Self { sim, hw, table: Lock::new(rank, table), ctx, pool, spied: BTreeSet::new(), format }
    }

    /// Every CPU keeps touching `ipa` from here on, and so keeps what it may keep.
    pub(crate) fn spy(&mut self, ipa: u64) {
        self.sim.spy(self.ctx, ipa);
        self.spied.insert(ipa);
    }

    pub(crate) fn lookup(&self, ipa: u64) -> (Level, Entry<Stage2>) {
        self.table.lock(&self.hw).lookup(&self.hw, Ipa::new(ipa).unwrap()).unwrap()
    }

    /// The leaf at `ipa`: level, page, attributes.
    pub(crate) fn leaf(&self, ipa: u64) -> Option<(Level, u64, S2Attrs)> {
        match self.lookup(ipa) {
            (level, Entry::Leaf(leaf)) => {
                let offset = (ipa & (level.size() - 1)) >> 12;
                Some((level, leaf.output.raw() + offset, leaf.attrs))
            }
            _ => None,
        }
    }

    pub(crate) fn note(&self, ipa: u64) -> Option<(Level, Note)> {
        match self.lookup(ipa) {
            (level, Entry::Note(note)) => Some((level, note)),
            _ => None,
        }
    }

    /// What every CPU can reach is what the tables say, an independent walker agrees with the
    /// lookup, every table is counted right and none is lost.
    #[track_caller]
    pub(crate) fn check(&self) {
        for &ipa in &self.spied {
            let expected = self.leaf(ipa);
            let reached: BTreeSet<(u64, u64)> =
                self.sim.reach(self.ctx, ipa).into_iter().map(|r| (r.page, r.word & !SOFTWARE)).collect();
            let walked = self.sim.walk(self.ctx, ipa).unwrap();
            match expected {
                Some((level, page, attrs)) => {
                    assert_eq!(walked.level, level.number(), "level at {ipa:#x}");
                    let seen = if attrs.accessed {
                        BTreeSet::from([(page, walked.word & !SOFTWARE)])
                    } else {
                        BTreeSet::new()
                    };
                    assert_eq!(reached, seen, "reach at {ipa:#x}");
                    let leaf = testkit::walk::stage2_leaf(walked.word, self.sim.features());
                    assert_eq!(leaf.read, attrs.prot.contains(Prot::R));
                    assert_eq!(leaf.write, attrs.prot.contains(Prot::W));
                    assert_eq!(leaf.exec_el1, attrs.prot.contains(Prot::X));
                    assert_eq!(leaf.exec_el0, attrs.prot.contains(Prot::X));
                    assert_eq!(leaf.accessed, attrs.accessed);
                }
                None => assert_eq!(reached, BTreeSet::new(), "reach at {ipa:#x}"),
            }
        }
        let mut tables = BTreeMap::new();
        self.table.lock(&self.hw).tables(&self.hw, |page, used| {
            assert!(tables.insert(page.raw(), used).is_none(), "table {page:?} linked twice");
        });
        assert_eq!(tables, self.pool.out(), "counts, or a lost table");
        assert_eq!(self.sim.watch().checker().open_entries(), 0);
        assert_eq!(self.hw.untraced().enter_stage2(RUNNING).stage2, RUNNING, "the VMID was not put back");
    }

    /// Tables in use beside the root.
    pub(crate) fn tables(&self) -> usize {
        let roots = self.table.lock(&self.hw).geometry().root_pages();
        self.pool.out().len() - usize::from(roots)
    }

    pub(crate) fn range(&self, start: u64, end: u64) -> IpaRange {
        let bits = self.table.lock(&self.hw).geometry().ia_bits();
        IpaRange::new(start, end, bits).unwrap()
    }

    pub(crate) fn format(&self) -> &Stage2Format {
        &self.format
    }

    /// Maps `[start, end)` to memory from `output`.
    #[track_caller]
    pub(crate) fn map(&mut self, start: u64, end: u64, output: u64, attrs: S2Attrs) {
        let range = self.range(start, end);
        let table = self.table.lock(&self.hw);
        table.map(&self.hw, &mut self.pool, range, pfn(output), attrs, Level::L1).unwrap();
        drop(table);
        self.check();
    }

    /// Writes `note` over `[start, end)`.
    #[track_caller]
    pub(crate) fn annotate(&mut self, start: u64, end: u64, note: Note) {
        let range = self.range(start, end);
        self.table.lock(&self.hw).annotate(&self.hw, &mut self.pool, range, note).unwrap();
        self.check();
    }

    /// Unmaps `[start, end)`.
    #[track_caller]
    pub(crate) fn unmap(&mut self, start: u64, end: u64) {
        let range = self.range(start, end);
        self.table.lock(&self.hw).unmap(&self.hw, &mut self.pool, range).unwrap();
        self.check();
    }

    /// Folds what lies in `[start, end)`; the number of freed tables.
    #[track_caller]
    pub(crate) fn fold(&mut self, start: u64, end: u64) -> u32 {
        let range = self.range(start, end);
        let freed = self.table.lock(&self.hw).fold(&self.hw, &mut self.pool, range).unwrap();
        self.check();
        freed
    }
}

/// Frame of a physical address.
pub(crate) fn pfn(pa: u64) -> Pfn {
    Pfn::new(pa >> 12).unwrap()
}

/// The note that a page given to guest 1 at `gfn` leaves in the host's table.
pub(crate) fn donated(gfn: u64) -> Note {
    Note::HostDonated(Owner::Guest { handle: 1, gfn: Gfn::new(gfn).unwrap() })
}
