//! Two halves: what fails fails in the first, and leaves what it found.

use crate::rig::{GIB, KIB4, MIB2, Pool, RAM, RO, RW, RWX, Rig, pfn};
use hyp::addr::{IpaRange, Pfn};
use hyp::pgtable::{Corrupt, Entry, Error, Level, S2Attrs, Select, TablePool};
use testkit::features::{CORTEX_A72, MATRIX, MAX};

/// What the table says about every page in and around the probed area.
fn meaning(rig: &Rig) -> Vec<String> {
    let probes = [0, KIB4, MIB2 - KIB4, MIB2, MIB2 + KIB4, 5 * MIB2, GIB - KIB4, GIB, GIB + KIB4, 2 * GIB];
    probes
        .iter()
        .map(|offset| {
            let ipa = GIB + offset;
            match rig.lookup(ipa) {
                (level, Entry::Leaf(leaf)) => {
                    let page = leaf.output.raw() + ((ipa & (level.size() - 1)) >> 12);
                    format!("{ipa:#x}: page {page:#x} {:?}", leaf.attrs)
                }
                (_, other) => format!("{ipa:#x}: {other:?}"),
            }
        })
        .collect()
}

/// A table with a block, a block note and nothing.
fn mixed(features: hyp::hw::CpuFeatures) -> Rig {
    let mut rig = Rig::guest(features, 44);
    rig.map(GIB, 2 * GIB, 0x8000_0000, RWX);
    rig.annotate(2 * GIB, 3 * GIB, RAM);
    rig
}

enum What {
    Leaf(S2Attrs, Level),
    Note,
    Clear,
}

fn ranges() -> Vec<(u64, u64)> {
    vec![
        (GIB + KIB4, GIB + 2 * KIB4),
        (GIB + MIB2, GIB + 2 * MIB2),
        (GIB + MIB2 - KIB4, GIB + MIB2 + KIB4),
        (2 * GIB - KIB4, 2 * GIB + KIB4),
        (GIB + KIB4, 3 * GIB - KIB4),
        (3 * GIB - MIB2, 3 * GIB + MIB2),
        (GIB, 4 * GIB),
        (3 * GIB + KIB4, 3 * GIB + 3 * MIB2),
        ((1 << 40) - KIB4, (1 << 40) + KIB4),
    ]
}

fn needed(rig: &Rig, range: IpaRange, what: &What) -> u32 {
    let table = rig.table.lock(&rig.hw);
    match *what {
        What::Leaf(attrs, largest) => table
            .plan_leaf(&rig.hw, range, pfn(16 * GIB + range.start().raw()), attrs, largest)
            .map(|plan| plan.tables()),
        What::Note => table.plan_note(&rig.hw, range, crate::rig::DESTROYED).map(|plan| plan.tables()),
        What::Clear => table.plan_clear(&rig.hw, range).map(|plan| plan.tables()),
    }
    .unwrap()
}

/// Prepares, and commits if that worked.
fn change(rig: &mut Rig, range: IpaRange, what: &What) -> Result<(), Error> {
    let table = rig.table.lock(&rig.hw);
    let prepared = match *what {
        What::Leaf(attrs, largest) => table.prepare_leaf(
            &rig.hw,
            &mut rig.pool,
            range,
            pfn(16 * GIB + range.start().raw()),
            attrs,
            largest,
        ),
        What::Note => table.prepare_note(&rig.hw, &mut rig.pool, range, crate::rig::DESTROYED),
        What::Clear => table.prepare_clear(&rig.hw, &mut rig.pool, range),
    }?;
    prepared.commit(&rig.hw, &mut rig.pool);
    drop(table);
    rig.check();
    Ok(())
}

/// For each change: the count of tables is exact, and with any smaller number of pages nothing
/// is different afterwards and the second try goes on where the first one stopped.
#[test]
fn with_a_page_too_few_nothing_changes() {
    let whats = [What::Leaf(RW, Level::L1), What::Leaf(RO, Level::L2), What::Note, What::Clear];
    for what in &whats {
        for (start, end) in ranges() {
            // Thousands of blocks show nothing that a few do not.
            if matches!(what, What::Leaf(_, Level::L2)) && end - start > 4 * MIB2 {
                continue;
            }
            let total = {
                let mut rig = mixed(MAX);
                let range = rig.range(start, end);
                let needed = needed(&rig, range, what);
                let before = rig.pool.allocs;
                change(&mut rig, range, what).unwrap();
                assert_eq!(rig.pool.allocs - before, needed as usize, "{start:#x}..{end:#x}");
                needed
            };
            for pages in 0..total as usize {
                let mut rig = mixed(MAX);
                let range = rig.range(start, end);
                let before = meaning(&rig);
                rig.pool.left = pages;
                let failed = change(&mut rig, range, what);
                assert!(matches!(failed, Err(Error::NoTables { needed }) if needed >= 1 && needed <= total));
                rig.check();
                assert_eq!(meaning(&rig), before, "{pages} of {total} for {start:#x}..{end:#x}");
                let Err(Error::NoTables { needed }) = failed else { unreachable!() };
                rig.pool.left = needed as usize;
                change(&mut rig, range, what).unwrap();
                assert_eq!(rig.pool.left, 0, "the error told the number of pages");
            }
        }
    }
}

#[test]
fn a_preparation_that_is_dropped_changes_nothing() {
    for (_, features) in MATRIX.into_iter().filter(|(_, f)| f.pa_bits >= 44) {
        let mut rig = mixed(features);
        rig.spy(GIB + MIB2);
        let before = meaning(&rig);
        let range = rig.range(GIB + MIB2, GIB + MIB2 + KIB4);
        let table = rig.table.lock(&rig.hw);
        let _ = table.prepare_clear(&rig.hw, &mut rig.pool, range).unwrap();
        drop(table);
        rig.check();
        assert_eq!(meaning(&rig), before);
    }
}

#[test]
fn a_locked_range_is_out_of_reach_until_it_is_committed() {
    for (_, features) in MATRIX.into_iter().filter(|(_, f)| f.pa_bits >= 44) {
        let mut rig = mixed(features);
        let page = GIB + 5 * KIB4;
        rig.spy(page);
        let range = rig.range(page, page + 2 * KIB4);
        let table = rig.table.lock(&rig.hw);
        let output = pfn(16 * GIB);
        let mut change = table.prepare_leaf(&rig.hw, &mut rig.pool, range, output, RW, Level::L1).unwrap();
        change.lock(&rig.hw, &mut rig.pool);
        assert_eq!(rig.sim.reach(rig.ctx, page).len(), 0);
        // Whoever looks now is told that a change is under way.
        let seen = table.lookup(&rig.hw, hyp::addr::Ipa::new(page).unwrap());
        assert!(matches!(seen, Err(Error::Corrupt { why: Corrupt::Locked, .. })));
        change.commit(&rig.hw, &mut rig.pool);
        drop(table);
        rig.check();
        assert_eq!(rig.leaf(page), Some((Level::L3, output.raw(), RW)));
    }
}

/// Several changes are open at once; the last commit finds what the others split.
#[test]
fn open_changes_do_not_disturb_each_other() {
    let mut rig = mixed(CORTEX_A72);
    for ipa in [GIB, GIB + KIB4, GIB + MIB2, 3 * GIB] {
        rig.spy(ipa);
    }
    let (whole, page) = (rig.range(GIB, 2 * GIB), rig.range(GIB + KIB4, GIB + 2 * KIB4));
    let other = rig.range(3 * GIB, 3 * GIB + KIB4);
    let table = rig.table.lock(&rig.hw);
    let block = table.prepare_leaf(&rig.hw, &mut rig.pool, whole, pfn(16 * GIB), RW, Level::L1).unwrap();
    let inner = table.prepare_note(&rig.hw, &mut rig.pool, page, RAM).unwrap();
    let third = table.prepare_leaf(&rig.hw, &mut rig.pool, other, pfn(20 * GIB), RO, Level::L1).unwrap();
    inner.commit(&rig.hw, &mut rig.pool);
    block.commit(&rig.hw, &mut rig.pool);
    third.commit(&rig.hw, &mut rig.pool);
    drop(table);
    rig.check();
    assert_eq!(rig.leaf(GIB + KIB4), Some((Level::L3, (16 * GIB + KIB4) >> 12, RW)));
    assert_eq!(rig.leaf(GIB + MIB2), Some((Level::L2, (16 * GIB + MIB2) >> 12, RW)));
    assert_eq!(rig.leaf(3 * GIB), Some((Level::L3, (20 * GIB) >> 12, RO)));
}

#[test]
fn five_hundred_pages_are_one_invalidation() {
    use testkit::Op;
    for (name, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        let (start, end) = (GIB + KIB4, GIB + KIB4 + 512 * KIB4);
        rig.spy(start);
        rig.spy(end - KIB4);
        rig.map(start, end, 0x8000_1000, RWX);
        let range = rig.range(start, end);
        let table = rig.table.lock(&rig.hw);
        let change = table.prepare_note_over(&rig.hw, &mut rig.pool, range, RAM, Select::all()).unwrap();
        rig.sim.clear_trace();
        rig.sim.record(true);
        change.commit(&rig.hw, &mut rig.pool);
        rig.sim.record(false);
        drop(table);
        rig.check();
        let tlbis = rig.sim.trace().iter().filter(|r| matches!(r.op, Op::Tlbi(..))).count();
        assert!(tlbis <= 4, "{name}: {tlbis} TLBIs");
    }
}

/// A pool that must not be asked for a page.
struct NoPages<'a>(&'a mut Pool);

impl TablePool for NoPages<'_> {
    fn alloc(&mut self) -> Option<Pfn> {
        panic!("a table page was asked for")
    }
    fn free(&mut self, page: Pfn) {
        self.0.free(page);
    }
    fn add_entries(&mut self, table: Pfn, nr: u16) {
        self.0.add_entries(table, nr);
    }
    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        self.0.remove_entries(table, nr);
    }
    fn entries(&self, table: Pfn) -> u16 {
        self.0.entries(table)
    }
}

/// docs/pgtable.md lists what takes no page; of those the ones that are given a pool at all.
#[test]
fn what_is_documented_not_to_allocate_asks_for_no_page() {
    for (_, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        rig.map(GIB, GIB + MIB2, 0x8000_0000, RWX);
        rig.annotate(2 * GIB, 2 * GIB + KIB4, RAM);
        let (block, page) = (rig.range(GIB, GIB + MIB2), rig.range(GIB + KIB4, GIB + 2 * KIB4));
        let (hw, pool) = (&rig.hw, &mut rig.pool);
        let mut table = rig.table.lock(hw);
        // Both halves of a change, where the entry stands at level 3.
        table.split(hw, pool, page, Level::L3).unwrap();
        table.prepare_note(hw, &mut NoPages(pool), page, RAM).unwrap().commit(hw, &mut NoPages(pool));
        let back = table.prepare_leaf(hw, &mut NoPages(pool), page, pfn(0x8000_1000), RWX, Level::L3);
        back.unwrap().commit(hw, &mut NoPages(pool));
        // The second half, where the first one split.
        let mut other = table.prepare_leaf(hw, pool, block, pfn(0x9000_0000), RW, Level::L3).unwrap();
        other.lock(hw, &mut NoPages(pool));
        other.commit(hw, &mut NoPages(pool));
        let first = hyp::addr::Ipa::new(GIB).unwrap();
        assert_eq!(table.fold_block(hw, &mut NoPages(pool), first, Level::L2), Ok(true));
        let all = IpaRange::new(0, 1 << 40, 40).unwrap();
        assert_eq!(table.fold(hw, &mut NoPages(pool), all), Ok(0));
        assert_eq!(table.evict(hw, &mut NoPages(pool), all, 9, |_, _| true), Ok(1));
        drop(table);
        rig.check();
    }
}

/// The documented order, instruction by instruction, for one page.
#[test]
fn the_canonical_sequence_of_one_page() {
    use hyp::hw::{Dsb, Tlbi};
    use testkit::Op;
    let mut rig = Rig::guest(MAX, 40);
    rig.map(GIB, GIB + KIB4, 0x8000_0000, RWX);
    let range = rig.range(GIB, GIB + KIB4);
    let table = rig.table.lock(&rig.hw);
    let change = table.prepare_leaf(&rig.hw, &mut rig.pool, range, pfn(16 * GIB), RWX, Level::L1).unwrap();
    rig.sim.clear_trace();
    rig.sim.record(true);
    change.commit(&rig.hw, &mut rig.pool);
    rig.sim.record(false);
    drop(table);
    let ops: Vec<_> =
        rig.sim.trace().iter().map(|r| r.op).filter(|op| !matches!(op, Op::Install(_))).collect();
    let [Op::Write(table, 0, old, locked), rest @ ..] = ops.as_slice() else { panic!("{ops:x?}") };
    assert_eq!((old & 1, *locked), (1, 1 << 60));
    let ipa = hyp::addr::Ipa::new(GIB).unwrap();
    let [before @ .., Op::Write(again, 0, was, new), Op::Dsb(Dsb::IshSt)] = rest else { panic!("{ops:x?}") };
    assert_eq!((again, *was, new & 1), (table, *locked, 1));
    assert_eq!(
        before,
        [
            Op::Dsb(Dsb::Ish),
            Op::Tlbi(Tlbi::Ipa { ipa, level: Some(3) }, Some(5)),
            Op::Dsb(Dsb::Ish),
            Op::Tlbi(Tlbi::StageOneAndCombined, Some(5)),
            Op::Dsb(Dsb::Ish),
            Op::Isb,
        ]
    );
}
