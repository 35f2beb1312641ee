//! Words that nothing here wrote, and arguments that make no table: typed errors, nothing changed.

use crate::rig::{GIB, KIB4, MIB2, RAM, RWX, Rig, pfn};
use hyp::addr::{AddrError, Ipa, IpaRange, Pfn};
use hyp::hw::{PhysMem, TableOwner};
use hyp::pgtable::{
    Change, Corrupt, Entry, Error, Geometry, GeometryError, Level, NoteKinds, Stage2Config, Stage2Format,
    Stage2Table, TagControl,
};
use testkit::features::{CORTEX_A72, MAX};

/// Stores `word` over the entry that decides about `ipa`, behind everybody's back.
fn damage(rig: &Rig, ipa: u64, word: u64) -> u64 {
    let found = rig.sim.walk(rig.ctx, ipa).unwrap();
    rig.hw.untraced().write_entry(Pfn::new(found.table).unwrap(), found.index, word);
    found.word
}

/// Every operation on a range with a corrupt entry: the error names it, no word is different.
#[test]
fn every_operation_refuses_a_corrupt_entry_and_changes_nothing() {
    let cases = [
        (1 << 60, Corrupt::Locked),
        (7 << 60, Corrupt::NoteType),
        (3 << 60 | 3 << 1, Corrupt::NotePayload),
        (2 << 60 | 1 << 1, Corrupt::NotePlace),
        (0x8000_0001, Corrupt::ReservedType),
        (0x8000_0003 | 1 << 63, Corrupt::ReservedBits),
    ];
    for (word, why) in cases {
        let mut rig = Rig::guest(MAX, 40);
        rig.map(GIB, GIB + 4 * KIB4, 0x8000_0000, RWX);
        let bad = GIB + 2 * KIB4;
        let good = damage(&rig, bad, word);
        let range = rig.range(GIB + KIB4, GIB + 4 * KIB4);
        let error = Error::Corrupt { ia: bad, level: Level::L3, word, why };
        let before: Vec<u64> = (0..6).map(|n| rig.sim.walk(rig.ctx, GIB + n * KIB4).unwrap().word).collect();
        let (hw, pool) = (&rig.hw, &mut rig.pool);
        let mut table = rig.table.lock(hw);
        let ipa = Ipa::new(bad).unwrap();
        assert_eq!(table.lookup(hw, ipa), Err(error));
        let visited = table.visit(hw, range, |_, _| std::ops::ControlFlow::<()>::Continue(()));
        assert_eq!(visited, Err(error));
        assert_eq!(table.annotate(hw, pool, range, RAM), Err(error));
        assert_eq!(table.unmap(hw, pool, range), Err(error));
        assert_eq!(table.prepare_clear(hw, pool, range).err(), Some(error));
        let leaf = table.prepare_leaf(hw, pool, range, pfn(0), RWX, Level::L1).err();
        assert_eq!(leaf, Some(error));
        assert_eq!(table.change(hw, range, Change::WriteProtect), Err(error));
        let whole = IpaRange::new(GIB, 2 * GIB, 40).unwrap();
        assert_eq!(table.map_largest(hw, pool, ipa, whole, pfn(0), RWX), Err(error));
        assert_eq!(table.evict(hw, pool, whole, 1, |_, _| true), Err(error));
        drop(table);
        let after: Vec<u64> = (0..6).map(|n| rig.sim.walk(rig.ctx, GIB + n * KIB4).unwrap().word).collect();
        assert_eq!(before, after, "{why:?}");
        damage(&rig, bad, good);
        rig.check();
    }
}

/// What is checked of a long run of pages is checked of each.
#[test]
fn a_page_like_its_neighbours_but_for_one_bad_bit_is_corrupt() {
    for (bit, why) in [(45, Corrupt::BeyondPa), (11, Corrupt::ReservedBits), (58, Corrupt::ReservedBits)] {
        let mut rig = Rig::guest(CORTEX_A72, 40);
        rig.map(GIB, GIB + MIB2, 0x8000_1000, RWX);
        let bad = GIB + 300 * KIB4;
        let word = rig.sim.walk(rig.ctx, bad).unwrap().word | 1 << bit;
        let good = damage(&rig, bad, word);
        let error = Error::Corrupt { ia: bad, level: Level::L3, word, why };
        let range = rig.range(GIB, GIB + MIB2);
        let (hw, pool) = (&rig.hw, &mut rig.pool);
        let table = rig.table.lock(hw);
        assert_eq!(table.prepare_clear(hw, pool, range).err(), Some(error));
        assert_eq!(table.annotate(hw, pool, range, RAM), Err(error));
        drop(table);
        damage(&rig, bad, good);
        rig.check();
    }
}

#[test]
fn a_corrupt_table_descriptor_is_not_followed() {
    let mut rig = Rig::guest(CORTEX_A72, 40);
    rig.map(GIB, GIB + KIB4, 0x8000_0000, RWX);
    let l2 = rig.sim.walk(rig.ctx, GIB + MIB2).unwrap().table;
    let descriptor = rig.hw.untraced().read_entry(Pfn::new(l2).unwrap(), 0);
    for (flip, why) in [(1 << 59, Corrupt::ReservedBits), (1 << 45, Corrupt::BeyondPa)] {
        let word = descriptor | flip;
        rig.hw.untraced().write_entry(Pfn::new(l2).unwrap(), 0, word);
        let error = Error::Corrupt { ia: GIB, level: Level::L2, word, why };
        let range = rig.range(GIB, GIB + MIB2);
        let (hw, pool) = (&rig.hw, &mut rig.pool);
        let mut table = rig.table.lock(hw);
        let ipa = Ipa::new(GIB).unwrap();
        assert_eq!(table.lookup(hw, ipa), Err(error));
        assert_eq!(table.path(hw, ipa).err(), Some(error));
        let visited = table.visit(hw, range, |_, _| std::ops::ControlFlow::Break(()));
        assert_eq!(visited, Err(error));
        assert_eq!(table.annotate(hw, pool, range, RAM), Err(error));
        assert_eq!(table.unmap(hw, pool, range), Err(error));
        assert_eq!(table.map(hw, pool, range, pfn(0), RWX, Level::L1), Err(error));
        assert_eq!(table.fold(hw, pool, range), Err(error));
        assert_eq!(table.fold_block(hw, pool, ipa, Level::L2), Err(error));
        assert_eq!(table.change(hw, range, Change::WriteProtect), Err(error));
        assert_eq!(table.evict(hw, pool, range, 1, |_, _| true), Err(error));
    }
}

/// A walk goes down or forward and no deeper than level 3, so no contents of memory keep it busy.
#[test]
fn a_table_that_leads_back_to_itself_ends_every_walk() {
    let mut rig = Rig::guest(MAX, 48);
    rig.map(GIB, 2 * GIB, 0x8000_0000, RWX);
    let last = 512 * GIB - KIB4;
    let table = rig.sim.walk(rig.ctx, last).unwrap().table;
    let word = table << 12 | 3;
    damage(&rig, last, word);
    let error = Error::Corrupt { ia: last, level: Level::L3, word, why: Corrupt::ReservedBits };
    let all = rig.range(0, 1 << 48);
    let (hw, pool) = (&rig.hw, &mut rig.pool);
    let mut table = rig.table.lock(hw);
    assert_eq!(table.lookup(hw, Ipa::new(last).unwrap()), Err(error));
    let visited = table.visit(hw, all, |_, _| std::ops::ControlFlow::<()>::Continue(()));
    assert!(matches!(visited, Err(Error::Corrupt { .. })));
    assert!(matches!(table.unmap(hw, pool, all), Err(Error::Corrupt { .. })));
    // A fold asks tables of level 3 for their counts alone.
    assert_eq!(table.fold(hw, pool, all), Ok(0));
    // What cannot fail ends too: the root, and the one below it as three tables.
    let mut tables = 0;
    table.tables(hw, |_, _| tables += 1);
    assert_eq!(tables, 4);
    table.cut(hw);
    assert_eq!(table.lookup(hw, Ipa::new(last).unwrap()), Ok((Level::L0, Entry::Absent)));
}

#[test]
fn ranges_beyond_the_input_space_are_refused_by_every_operation() {
    let mut rig = Rig::guest(MAX, 40);
    let beyond = IpaRange::new((1 << 40) - KIB4, (1 << 40) + KIB4, 48).unwrap();
    let error = Error::Range(AddrError::OutOfSpace((1 << 40) + KIB4));
    let (hw, pool) = (&rig.hw, &mut rig.pool);
    let mut table = rig.table.lock(hw);
    assert_eq!(table.annotate(hw, pool, beyond, RAM), Err(error));
    assert_eq!(table.unmap(hw, pool, beyond), Err(error));
    assert_eq!(table.map(hw, pool, beyond, pfn(0), RWX, Level::L1), Err(error));
    assert_eq!(table.split(hw, pool, beyond, Level::L3), Err(error));
    assert_eq!(table.fold(hw, pool, beyond), Err(error));
    assert_eq!(table.change(hw, beyond, Change::WriteProtect), Err(error));
    assert_eq!(table.evict(hw, pool, beyond, 1, |_, _| true), Err(error));
    let ipa = Ipa::new(1 << 40).unwrap();
    assert_eq!(table.lookup(hw, ipa), Err(Error::Range(AddrError::OutOfSpace(1 << 40))));
    let folded = table.fold_block(hw, pool, ipa, Level::L2);
    assert_eq!(folded, Err(Error::Range(AddrError::OutOfSpace(1 << 40))));
    drop(table);
    assert_eq!(rig.pool.allocs, 0);
    rig.check();
}

#[test]
fn a_table_with_a_bad_root_vmid_or_shape_is_not_made() {
    let sim = testkit::Sim::new(CORTEX_A72);
    let hw = sim.cpu(0);
    let format = Stage2Format::guest(&CORTEX_A72, TagControl::Unused, NoteKinds::empty());
    let geometry = Geometry::stage2(42, 44).unwrap();
    let config = Stage2Config { root: sim.ram(8), geometry, format, vmid: 7, owner: TableOwner::Guest(1) };
    let unaligned = sim.ram(4);
    let made = Stage2Table::new(&hw, Stage2Config { root: unaligned, ..config });
    assert_eq!(made.err(), Some(Error::Root(unaligned)));
    let beyond = Pfn::new(1 << 32).unwrap();
    let made = Stage2Table::new(&hw, Stage2Config { root: beyond, ..config });
    assert_eq!(made.err(), Some(Error::Root(beyond)));
    let made = Stage2Table::new(&hw, Stage2Config { vmid: 256, ..config });
    assert_eq!(made.err(), Some(Error::Vmid(256)));
    assert_eq!(Geometry::stage2(45, 44), Err(GeometryError::BeyondPa(45, 44)));
    let table = Stage2Table::new(&hw, config).unwrap();
    assert_eq!(table.context().vmid(), 7);
    assert_eq!(table.root_pages().nr(), 8);
}
