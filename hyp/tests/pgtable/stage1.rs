//! EL2's own map and its window slots.

use crate::rig::{GIB, KIB4, MIB2, Pool, pfn};
use hyp::addr::{HypVa, Pfn, VaRange};
use hyp::hw::PhysMem;
use hyp::lock::{Lock, Rank};
use hyp::pgtable::{
    BadAttrs, Entry, Error, Geometry, HypAttrs, HypMem, HypNote, HypProt, HypTable, Level, WINDOW_SLOTS,
    WindowAt,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use testkit::features::{CORTEX_A72, MATRIX, MAX};
use testkit::{Cpu, Sim};

const RW: HypAttrs = HypAttrs::normal(HypProt::Rw);
/// Where the tests put windows: behind the linear map.
const WINDOWS: u64 = 16 * GIB;
const BLOCK: u64 = WINDOWS + MIB2;

struct Hyp {
    sim: Arc<Sim>,
    hw: Cpu,
    table: Lock<HypTable, Cpu>,
    pool: Pool,
}

impl Hyp {
    /// EL2's map with the GiB that has the RAM in it.
    fn new(features: hyp::hw::CpuFeatures) -> Self {
        let sim = Sim::new(features);
        let hw = sim.cpu(0);
        let mut pool = Pool::new((1024..1024 + 64).rev().map(|n| sim.ram(n)));
        pool.adopt(sim.ram(0));
        let table = HypTable::new(&hw, sim.ram(0), Geometry::hyp(39).unwrap()).unwrap();
        let mut hyp = Self { sim, hw, table: Lock::new(Rank::HypS1, table), pool };
        hyp.map(GIB, 2 * GIB, GIB, RW).unwrap();
        hyp
    }

    fn map(&mut self, start: u64, end: u64, output: u64, attrs: HypAttrs) -> Result<(), Error> {
        let range = VaRange::new(start, end).unwrap();
        let table = self.table.lock(&self.hw);
        table.map(&self.hw, &mut self.pool, range, pfn(output), attrs, Level::L1)
    }

    fn reach(&self, va: u64) -> BTreeSet<u64> {
        self.sim.reach_hyp(va).into_iter().map(|reach| reach.page).collect()
    }

    fn check(&self) {
        let mut tables = BTreeMap::new();
        self.table
            .lock(&self.hw)
            .tables(&self.hw, |page, used| assert!(tables.insert(page.raw(), used).is_none()));
        assert_eq!(tables, self.pool.out());
        assert_eq!(self.sim.watch().checker().open_entries(), 0);
    }
}

#[test]
fn linear_map_is_blocks_and_unmaps_to_nothing() {
    for (_, features) in MATRIX {
        let mut hyp = Hyp::new(features);
        let page = 4 * GIB + 3 * MIB2 + KIB4;
        hyp.sim.spy_hyp(page);
        hyp.sim.spy_hyp(page + KIB4);
        hyp.map(4 * GIB, 5 * GIB, 4 * GIB, RW).unwrap();
        assert_eq!(hyp.reach(page), BTreeSet::from([page >> 12]));
        let range = VaRange::new(page, page + KIB4).unwrap();
        hyp.table.lock(&hyp.hw).unmap(&hyp.hw, &mut hyp.pool, range).unwrap();
        assert_eq!(hyp.reach(page), BTreeSet::new());
        assert_eq!(hyp.reach(page + KIB4), BTreeSet::from([(page + KIB4) >> 12]));
        hyp.check();
        let range = VaRange::new(4 * GIB, 5 * GIB).unwrap();
        hyp.table.lock(&hyp.hw).unmap(&hyp.hw, &mut hyp.pool, range).unwrap();
        assert_eq!(hyp.reach(page + KIB4), BTreeSet::new());
        assert_eq!(hyp.pool.out().len(), 1);
        hyp.check();
    }
}

/// The documented order, instruction by instruction, for a page that comes and goes.
#[test]
fn the_canonical_sequence_of_a_page_of_el2() {
    use hyp::hw::{Dsb, Tlbi};
    use testkit::Op;
    let mut hyp = Hyp::new(MAX);
    hyp.map(4 * GIB, 4 * GIB + KIB4, 4 * GIB, RW).unwrap();
    let (page, va) = (4 * GIB + KIB4, HypVa::new(4 * GIB + KIB4).unwrap());
    let ops = |hyp: &Hyp| -> Vec<Op> {
        let barriers = |op: &Op| !matches!(op, Op::Event(_));
        hyp.sim.trace().iter().map(|record| record.op).filter(barriers).collect()
    };
    hyp.sim.clear_trace();
    hyp.map(page, page + KIB4, page, RW).unwrap();
    let [Op::Write(table, 1, 0, word), Op::Dsb(Dsb::IshSt), Op::Isb] = ops(&hyp)[..] else {
        panic!("{:x?}", ops(&hyp))
    };
    hyp.sim.clear_trace();
    let range = VaRange::new(page, page + KIB4).unwrap();
    hyp.table
        .lock(&hyp.hw)
        .prepare_clear(&hyp.hw, &mut hyp.pool, range)
        .unwrap()
        .commit(&hyp.hw, &mut hyp.pool);
    let tlbi = Op::Tlbi(Tlbi::Hyp { va, level: Some(3) }, None);
    let gone = [Op::Write(table, 1, word, 0), Op::Dsb(Dsb::Ish), tlbi, Op::Dsb(Dsb::Ish), Op::Isb];
    assert_eq!(ops(&hyp), gone);
}

#[test]
fn protection_changes_in_place_and_reaches_every_cpu() {
    let mut hyp = Hyp::new(MAX);
    hyp.sim.spy_hyp(4 * GIB);
    hyp.map(4 * GIB, 4 * GIB + 3 * KIB4, 4 * GIB, RW).unwrap();
    let range = VaRange::new(4 * GIB, 4 * GIB + 2 * KIB4).unwrap();
    for prot in [HypProt::Ro, HypProt::Rx, HypProt::Rw] {
        assert_eq!(hyp.table.lock(&hyp.hw).protect(&hyp.hw, range, prot), Ok(2));
        let words: BTreeSet<u64> = hyp.sim.reach_hyp(4 * GIB).into_iter().map(|r| r.word).collect();
        assert_eq!(words.len(), 1, "{prot:?}");
        let (_, entry) = hyp.table.lock(&hyp.hw).lookup(&hyp.hw, HypVa::new(4 * GIB).unwrap()).unwrap();
        assert!(matches!(entry, Entry::Leaf(leaf) if leaf.attrs == HypAttrs::normal(prot)));
        hyp.check();
    }
    hyp.map(5 * GIB, 5 * GIB + KIB4, 5 * GIB, HypAttrs::DEVICE).unwrap();
    let device = VaRange::new(5 * GIB, 5 * GIB + KIB4).unwrap();
    let got = hyp.table.lock(&hyp.hw).protect(&hyp.hw, device, HypProt::Rx);
    assert_eq!(got, Err(Error::Attrs(BadAttrs::ExecutableDevice)));
}

#[test]
fn tagged_memory_is_refused_on_a_cpu_without_tags() {
    let mut hyp = Hyp::new(CORTEX_A72);
    let tagged = HypAttrs { prot: HypProt::Rw, mem: HypMem::NormalTagged };
    assert_eq!(hyp.map(4 * GIB, 5 * GIB, 4 * GIB, tagged), Err(Error::Attrs(BadAttrs::NoTags)));
}

fn at() -> WindowAt {
    let [pages, block] = [WINDOWS, BLOCK].map(|va| HypVa::new(va).unwrap());
    WindowAt { pages, block }
}

/// A window shows one page at a time, on no CPU longer than it is borrowed, without the lock of
/// EL2's table and without a page from the pool.
#[test]
fn a_window_shows_a_page_and_hides_it_from_every_cpu() {
    for (_, features) in MATRIX {
        let mut hyp = Hyp::new(features);
        hyp.sim.spy_hyp(WINDOWS);
        let va = HypVa::new(WINDOWS).unwrap();
        let mut window = hyp.table.lock(&hyp.hw).window(&hyp.hw, &mut hyp.pool, at()).unwrap();
        let (_, entry) = hyp.table.lock(&hyp.hw).lookup(&hyp.hw, va).unwrap();
        assert_eq!(entry, Entry::Note(HypNote::Window));
        let allocs = hyp.pool.allocs;
        for n in [40, 41] {
            let page = hyp.sim.ram(n);
            let shown = window.show(&hyp.hw, page);
            assert_eq!((shown.page().pfn(), shown.page().va()), (page, va));
            assert_eq!(hyp.reach(WINDOWS), BTreeSet::from([page.raw()]));
            hyp.hw.zero_page(shown.page());
            drop(shown);
            assert_eq!(hyp.reach(WINDOWS), BTreeSet::new());
            hyp.check();
        }
        let pages = [43, 44].map(|n| hyp.sim.ram(n));
        let shown = window.show_two(&hyp.hw, pages);
        for (shown, (page, at)) in shown.iter().zip(pages.iter().zip([WINDOWS, WINDOWS + KIB4])) {
            assert_eq!((shown.page().pfn(), shown.page().va()), (*page, HypVa::new(at).unwrap()));
            assert_eq!(hyp.reach(at), BTreeSet::from([page.raw()]));
        }
        drop(shown);
        assert_eq!([WINDOWS, WINDOWS + KIB4].map(|at| hyp.reach(at)), [BTreeSet::new(), BTreeSet::new()]);
        let tagged = window.show_tagged(&hyp.hw, hyp.sim.ram(42));
        assert_eq!(tagged.is_some(), features.mte >= 2);
        drop(tagged);
        assert_eq!(hyp.reach(WINDOWS), BTreeSet::new());
        assert_eq!(hyp.pool.allocs, allocs);
        hyp.check();
    }
}

/// The same of a block: each page at its place, the block before it forgotten when the next comes.
#[test]
fn a_window_shows_a_block_and_hides_it_from_every_cpu() {
    for (_, features) in MATRIX {
        let mut hyp = Hyp::new(features);
        let places = [0, 1, 511].map(|nth| (nth, BLOCK + nth * KIB4));
        places.iter().for_each(|(_, va)| hyp.sim.spy_hyp(*va));
        let mut window = hyp.table.lock(&hyp.hw).window(&hyp.hw, &mut hyp.pool, at()).unwrap();
        let hidden = |hyp: &Hyp| places.iter().all(|(_, va)| hyp.reach(*va).is_empty());
        assert!(hidden(&hyp));
        let allocs = hyp.pool.allocs;
        for first in [4 * GIB, 4 * GIB + MIB2] {
            let first = Pfn::new(first / KIB4).unwrap();
            let shown = window.show_block(&hyp.hw, first);
            let pages: Vec<_> = shown.block().pages().collect();
            assert_eq!(pages.len(), 512);
            for (nth, va) in places {
                let page = pages[usize::try_from(nth).unwrap()];
                assert_eq!((page.pfn().raw(), page.va()), (first.raw() + nth, HypVa::new(va).unwrap()));
                assert_eq!(hyp.reach(va), BTreeSet::from([first.raw() + nth]));
            }
            assert_eq!(hyp.reach(WINDOWS), BTreeSet::new());
            drop(shown);
            assert!(hidden(&hyp));
            hyp.check();
        }
        assert_eq!(hyp.pool.allocs, allocs);
    }
}

#[test]
fn a_window_is_not_mapped_over_and_its_table_not_folded() {
    let mut hyp = Hyp::new(MAX);
    let va = HypVa::new(WINDOWS).unwrap();
    let _window = hyp.table.lock(&hyp.hw).window(&hyp.hw, &mut hyp.pool, at()).unwrap();
    let again = hyp.table.lock(&hyp.hw).window(&hyp.hw, &mut hyp.pool, at()).err();
    assert_eq!(again, Some(Error::Exists { ia: WINDOWS }));
    assert_eq!(hyp.map(WINDOWS, WINDOWS + KIB4, GIB, RW), Err(Error::Exists { ia: WINDOWS }));
    let beside = WINDOWS + WINDOW_SLOTS * KIB4;
    assert_eq!(hyp.map(beside - KIB4, beside, GIB, RW), Err(Error::Exists { ia: beside - KIB4 }));
    assert_eq!(hyp.map(BLOCK + KIB4, BLOCK + 2 * KIB4, GIB, RW), Err(Error::Exists { ia: BLOCK }));
    hyp.map(beside, beside + KIB4, 4 * GIB, RW).unwrap();
    let range = VaRange::new(beside, beside + KIB4).unwrap();
    hyp.table.lock(&hyp.hw).unmap(&hyp.hw, &mut hyp.pool, range).unwrap();
    assert!(matches!(
        hyp.table.lock(&hyp.hw).lookup(&hyp.hw, va),
        Ok((Level::L3, Entry::Note(HypNote::Window)))
    ));
    let block = hyp.table.lock(&hyp.hw).lookup(&hyp.hw, HypVa::new(BLOCK).unwrap());
    assert!(matches!(block, Ok((Level::L2, Entry::Note(HypNote::Window)))));
    hyp.check();
}

/// EL2's first map is made before there is anything to count in.
#[test]
fn counts_can_be_booked_afterwards() {
    struct Boot(Vec<Pfn>);
    impl hyp::pgtable::TablePool for Boot {
        fn alloc(&mut self) -> Option<Pfn> {
            self.0.pop()
        }
        fn free(&mut self, page: Pfn) {
            unreachable!("{page:?}")
        }
        fn add_entries(&mut self, _: Pfn, _: u16) {}
        fn remove_entries(&mut self, _: Pfn, _: u16) {}
        fn entries(&self, _: Pfn) -> u16 {
            1
        }
    }
    let sim = Sim::new(MAX);
    let hw = sim.cpu(0);
    let pages: Vec<Pfn> = (1024..1032).map(|n| sim.ram(n)).collect();
    let table = Lock::new(Rank::HypS1, HypTable::new(&hw, sim.ram(0), Geometry::hyp(39).unwrap()).unwrap());
    let mut boot = Boot(pages.clone());
    let map = |start: u64, end: u64, boot: &mut Boot| {
        let range = VaRange::new(start, end).unwrap();
        table.lock(&hw).map(&hw, boot, range, pfn(start), RW, Level::L1).unwrap();
    };
    map(GIB, 2 * GIB, &mut boot);
    map(4 * GIB, 4 * GIB + MIB2 + KIB4, &mut boot);
    let mut pool = Pool::new(std::iter::empty());
    let used: Vec<Pfn> = pages.into_iter().filter(|page| !boot.0.contains(page)).collect();
    for page in used.into_iter().chain([sim.ram(0)]) {
        pool.adopt(page);
    }
    table.lock(&hw).recount(&hw, &mut pool);
    let mut tables = BTreeMap::new();
    table.lock(&hw).tables(&hw, |page, used| assert!(tables.insert(page.raw(), used).is_none()));
    assert_eq!(tables, pool.out());
    assert_eq!(tables.values().sum::<u16>(), 2 + 2 + 1);
}
