//! Notes, splits and folds.

use crate::rig::{DESTROYED, GIB, KIB4, MIB2, RAM, RWX, Rig, donated};
use hyp::addr::{Ipa, Pfn};
use hyp::pgtable::{
    Access, Entry, Error, LeafState, Level, Note, Owner, PendingState, Prot, Select, Stage2, TablePool,
};
use testkit::features::{CORTEX_A72, MATRIX, MAX, NEOVERSE_N2, PATCHWORK};

#[test]
fn notes_stand_at_the_largest_level_they_may_have() {
    let mut rig = Rig::guest(MAX, 40);
    rig.annotate(KIB4, 2 * GIB + MIB2 + 4 * KIB4, RAM);
    assert_eq!(rig.note(0), None);
    for (ipa, level) in [
        (KIB4, Level::L3),
        (MIB2, Level::L2),
        (GIB, Level::L1),
        (2 * GIB, Level::L2),
        (2 * GIB + MIB2, Level::L3),
    ] {
        assert_eq!(rig.note(ipa), Some((level, RAM)), "{ipa:#x}");
    }
    assert_eq!(rig.lookup(2 * GIB + MIB2 + 4 * KIB4).1, Entry::Absent);
    rig.annotate(3 * GIB, 3 * GIB + MIB2, Note::MmioGuard);
    assert_eq!(rig.note(3 * GIB + 7 * KIB4), Some((Level::L3, Note::MmioGuard)));
}

/// Has the page at `ipa` say `note`, or nothing, if its table is there. Gives what it said, and
/// whether its table holds nothing any more.
fn set_one(rig: &mut Rig, ipa: u64, note: Option<Note>) -> Option<(Entry<Stage2>, Result<bool, Error>)> {
    let table = rig.table.lock(&rig.hw);
    let at = table.page(&rig.hw, Ipa::new(ipa).unwrap()).unwrap()?;
    let change = note.map_or(Ok(at.prepare_clear()), |note| at.prepare_note(note));
    let empty = change.map(|change| {
        change.commit(&rig.hw, &mut rig.pool);
        rig.pool.entries(at.table_page()) == 0
    });
    let said = at.entry();
    drop(table);
    rig.check();
    Some((said, empty))
}

#[test]
fn one_page_is_changed_where_it_stands_and_nothing_else_is() {
    let mut rig = Rig::guest(CORTEX_A72, 40);
    let guard = Entry::Note(Note::MmioGuard);
    rig.spy(GIB);
    rig.map(GIB, GIB + KIB4, 0x8000_0000, RWX);
    rig.map(2 * GIB, 2 * GIB + MIB2, 0x9000_0000, RWX);
    for ipa in [2 * GIB, 2 * GIB + KIB4, 3 * GIB, GIB + MIB2] {
        assert_eq!(set_one(&mut rig, ipa, Some(Note::MmioGuard)), None, "{ipa:#x}: a block, or no table");
    }
    let (first, last) = (GIB + KIB4, GIB + MIB2 - KIB4);
    assert_eq!(set_one(&mut rig, first, Some(Note::MmioGuard)), Some((Entry::Absent, Ok(false))));
    assert_eq!(set_one(&mut rig, first, Some(Note::MmioGuard)), Some((guard, Ok(false))));
    assert_eq!(set_one(&mut rig, last, Some(DESTROYED)), Some((Entry::Absent, Ok(false))));
    assert_eq!(set_one(&mut rig, last, Some(Note::MmioGuard)), Some((Entry::Note(DESTROYED), Ok(false))));
    assert_eq!((rig.note(first), rig.note(last)), (Some((Level::L3, Note::MmioGuard)), rig.note(first)));
    let refused = set_one(&mut rig, first, Some(donated(7)));
    assert_eq!(refused, Some((guard, Err(Error::NoteRefused))), "a note of another kind of table");
    assert_eq!(set_one(&mut rig, last, None), Some((guard, Ok(false))));
    assert_eq!(rig.leaf(GIB), Some((Level::L3, 0x8_0000, RWX)));
    rig.unmap(GIB, GIB + KIB4);
    assert_eq!(set_one(&mut rig, first, None), Some((guard, Ok(true))), "its table is empty");
    assert_eq!(rig.fold(first, first + KIB4), 2);
}

#[test]
fn a_root_entry_may_be_a_note() {
    let mut rig = Rig::host(MAX);
    let hyp = Note::HostDonated(Owner::Hyp);
    rig.annotate(1 << 39, 2 << 39, hyp);
    assert_eq!(rig.note((1 << 39) + 5 * GIB), Some((Level::L0, hyp)));
    assert_eq!(rig.tables(), 0);
    rig.unmap((1 << 39) + 5 * GIB, (1 << 39) + 5 * GIB + KIB4);
    assert_eq!(rig.note((1 << 39) + 5 * GIB), None);
    assert_eq!(rig.note((1 << 39) + 5 * GIB + KIB4), Some((Level::L3, hyp)));
    assert_eq!(rig.note(1 << 39), Some((Level::L1, hyp)));
}

#[test]
fn a_note_that_names_pages_names_them_one_by_one() {
    let mut rig = Rig::host(MAX);
    rig.annotate(8 * GIB + KIB4, 8 * GIB + 4 * KIB4, donated(0x77));
    for n in 0..3 {
        assert_eq!(rig.note(8 * GIB + (1 + n) * KIB4), Some((Level::L3, donated(0x77 + n))));
    }
    let mut rig = Rig::guest(NEOVERSE_N2, 40);
    let pending = |page| Note::NoTagPending {
        page: Pfn::new(page).unwrap(),
        access: Access::all(),
        state: PendingState::Owned,
    };
    rig.annotate(GIB, GIB + MIB2, pending(0x200));
    assert_eq!(rig.note(GIB + 511 * KIB4), Some((Level::L3, pending(0x3ff))));
    assert_eq!(rig.fold(GIB, GIB + MIB2), 0);
}

#[test]
fn a_note_that_this_table_has_not_is_refused() {
    let mut rig = Rig::guest(MAX, 40);
    let range = rig.range(GIB, 2 * GIB);
    let table = rig.table.lock(&rig.hw);
    assert_eq!(table.annotate(&rig.hw, &mut rig.pool, range, donated(1)), Err(Error::NoteRefused));
}

#[test]
fn a_note_over_a_mapping_takes_it_from_every_cpu() {
    for (_, features) in MATRIX {
        let mut rig = Rig::host(features);
        let page = 8 * GIB + 3 * KIB4;
        rig.spy(page);
        rig.spy(page + KIB4);
        rig.map(8 * GIB, 9 * GIB, 8 * GIB, RWX);
        rig.annotate(page, page + KIB4, donated(4));
        assert_eq!(rig.note(page), Some((Level::L3, donated(4))));
        assert_eq!(rig.leaf(page + KIB4), Some((Level::L3, (page + KIB4) >> 12, RWX)));
        // Giving back rewrites one entry and needs no page.
        let allocs = rig.pool.allocs;
        rig.pool.left = 0;
        let range = rig.range(page, page + KIB4);
        let table = rig.table.lock(&rig.hw);
        let back = table.prepare_leaf(&rig.hw, &mut rig.pool, range, crate::rig::pfn(page), RWX, Level::L3);
        back.unwrap().commit(&rig.hw, &mut rig.pool);
        drop(table);
        rig.check();
        assert_eq!(rig.pool.allocs, allocs);
        assert_eq!(rig.leaf(page), Some((Level::L3, page >> 12, RWX)));
    }
}

#[test]
fn a_split_says_the_same() {
    for (_, features) in MATRIX {
        for largest in [Level::L2, Level::L3] {
            let mut rig = Rig::guest(features, 40);
            let attrs = RWX.with_prot(Prot::R | Prot::X).with_state(LeafState::SharedOwned);
            let probe = GIB + 77 * MIB2 + 5 * KIB4;
            rig.spy(probe);
            rig.map(GIB, 2 * GIB, 0x8000_0000, attrs);
            let range = rig.range(probe, probe + KIB4);
            let table = rig.table.lock(&rig.hw);
            table.split(&rig.hw, &mut rig.pool, range, largest).unwrap();
            drop(table);
            rig.check();
            for ipa in [GIB, probe - KIB4, probe, probe + KIB4, 2 * GIB - KIB4] {
                let (_, page, got) = rig.leaf(ipa).unwrap();
                assert_eq!((page, got), (0x8_0000 + ((ipa - GIB) >> 12), attrs), "{ipa:#x}");
            }
            assert_eq!(rig.leaf(probe).unwrap().0, Level::L3);
            assert_eq!(rig.tables(), 2);
        }
    }
}

#[test]
fn a_split_of_a_note_or_of_nothing_says_the_same() {
    let mut rig = Rig::guest(MAX, 40);
    rig.annotate(GIB, 2 * GIB, RAM);
    for base in [GIB, 3 * GIB] {
        let range = rig.range(base + MIB2, base + MIB2 + KIB4);
        let table = rig.table.lock(&rig.hw);
        table.split(&rig.hw, &mut rig.pool, range, Level::L3).unwrap();
        drop(table);
        rig.check();
    }
    assert_eq!(rig.note(GIB + MIB2), Some((Level::L3, RAM)));
    assert_eq!(rig.note(GIB + MIB2 + KIB4), Some((Level::L3, RAM)));
    assert_eq!(rig.note(GIB), Some((Level::L2, RAM)));
    assert_eq!(rig.lookup(3 * GIB + MIB2), (Level::L3, Entry::Absent));
    assert_eq!(rig.tables(), 4);
    assert_eq!(rig.fold(0, 1 << 40), 4);
    assert_eq!(rig.note(GIB + MIB2), Some((Level::L1, RAM)));
}

#[test]
fn equal_notes_fold_level_by_level_and_others_do_not() {
    let mut rig = Rig::guest(MAX, 40);
    rig.annotate(GIB, GIB + KIB4, DESTROYED);
    rig.annotate(GIB + KIB4, GIB + MIB2, DESTROYED);
    assert_eq!(rig.fold(GIB, GIB + KIB4), 1);
    assert_eq!(rig.note(GIB), Some((Level::L2, DESTROYED)));
    rig.annotate(GIB + MIB2, 2 * GIB - KIB4, DESTROYED);
    assert_eq!(rig.fold(GIB, 2 * GIB), 0);
    rig.annotate(2 * GIB - KIB4, 2 * GIB, RAM);
    assert_eq!(rig.fold(GIB, 2 * GIB), 0, "511 of one and one of another");
    rig.annotate(2 * GIB - KIB4, 2 * GIB, DESTROYED);
    assert_eq!(rig.fold(GIB, 2 * GIB), 2);
    assert_eq!(rig.note(GIB), Some((Level::L1, DESTROYED)));
    // A guard is for pages only.
    rig.annotate(3 * GIB, 3 * GIB + MIB2, Note::MmioGuard);
    assert_eq!(rig.fold(3 * GIB, 3 * GIB + MIB2), 0);
}

/// A table that was emptied is used for something else at once: the walkers must have forgotten
/// its descriptor, or they read the new entries as the old table's.
#[test]
fn an_emptied_table_is_forgotten_before_it_is_used_again() {
    for (_, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        rig.spy(GIB);
        rig.spy(GIB + KIB4);
        rig.map(GIB, GIB + KIB4, 0x8000_0000, RWX);
        rig.unmap(GIB, GIB + KIB4);
        assert_eq!(rig.tables(), 0);
        rig.map(5 * GIB + MIB2, 5 * GIB + MIB2 + 2 * KIB4, 0x9000_0000, RWX);
        assert_eq!(rig.leaf(GIB), None);
    }
}

#[test]
fn pages_fold_back_to_the_block_they_were() {
    for (_, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        rig.spy(GIB + KIB4);
        rig.map(GIB, GIB + MIB2, 0x8000_0000, RWX);
        let range = rig.range(GIB + KIB4, GIB + 2 * KIB4);
        let fold = |rig: &mut Rig| {
            let mut table = rig.table.lock(&rig.hw);
            let ipa = Ipa::new(GIB + KIB4).unwrap();
            let folded = table.fold_block(&rig.hw, &mut rig.pool, ipa, Level::L2).unwrap();
            drop(table);
            rig.check();
            folded
        };
        assert!(!fold(&mut rig), "it is a block");
        rig.table.lock(&rig.hw).split(&rig.hw, &mut rig.pool, range, Level::L3).unwrap();
        assert!(fold(&mut rig));
        assert_eq!(rig.leaf(GIB + KIB4), Some((Level::L2, 0x8_0001, RWX)));
        rig.unmap(GIB + KIB4, GIB + 2 * KIB4);
        assert!(!fold(&mut rig), "a page is missing");
        rig.map(GIB + KIB4, GIB + 2 * KIB4, 0x9000_0000, RWX);
        assert!(!fold(&mut rig), "a page is elsewhere");
        rig.unmap(GIB + KIB4, GIB + 2 * KIB4);
        rig.map(GIB + KIB4, GIB + 2 * KIB4, 0x8000_1000, RWX.with_prot(Prot::RW));
        assert!(!fold(&mut rig), "a page has other permissions");
    }
}

#[test]
fn pages_at_an_unaligned_output_are_no_block() {
    let mut rig = Rig::guest(MAX, 40);
    rig.map(GIB, GIB + MIB2, 0x8000_1000, RWX);
    let mut table = rig.table.lock(&rig.hw);
    let folded = table.fold_block(&rig.hw, &mut rig.pool, Ipa::new(GIB).unwrap(), Level::L2);
    assert_eq!(folded, Ok(false));
}

/// The order of a 2 MiB donation over 512 notes: fold first, then one block.
#[test]
fn a_block_replaces_a_folded_table_of_notes() {
    let mut rig = Rig::guest(PATCHWORK, 40);
    rig.spy(GIB);
    rig.annotate(GIB, GIB + MIB2, RAM);
    rig.annotate(GIB + MIB2, GIB + MIB2 + KIB4, RAM);
    rig.map(GIB + 2 * MIB2, GIB + 2 * MIB2 + KIB4, 0xa000_0000, RWX);
    for page in 0..512 {
        rig.annotate(GIB + page * KIB4, GIB + (page + 1) * KIB4, RAM);
    }
    let range = rig.range(GIB, GIB + MIB2);
    let mut table = rig.table.lock(&rig.hw);
    table.fold(&rig.hw, &mut rig.pool, range).unwrap();
    let block =
        table.prepare_leaf(&rig.hw, &mut rig.pool, range, crate::rig::pfn(0x8000_0000), RWX, Level::L2);
    block.unwrap().commit(&rig.hw, &mut rig.pool);
    drop(table);
    rig.check();
    assert_eq!(rig.leaf(GIB), Some((Level::L2, 0x8_0000, RWX)));
}

#[test]
fn a_selective_note_leaves_what_it_does_not_name() {
    let mut rig = Rig::guest(MAX, 40);
    for page in [0, 2, 4] {
        rig.spy(GIB + page * KIB4);
        rig.map(GIB + page * KIB4, GIB + (page + 1) * KIB4, 0x8000_0000 + page * KIB4, RWX);
    }
    rig.annotate(GIB + KIB4, GIB + 2 * KIB4, RAM);
    let range = rig.range(GIB, GIB + 5 * KIB4);
    let table = rig.table.lock(&rig.hw);
    // Reclaim: what is assigned becomes DESTROYED, holes stay.
    let mut change =
        table.prepare_note_over(&rig.hw, &mut rig.pool, range, DESTROYED, Select::LEAVES).unwrap();
    change.lock(&rig.hw, &mut rig.pool);
    change.commit(&rig.hw, &mut rig.pool);
    drop(table);
    rig.check();
    let kinds: Vec<_> = (0..6).map(|page| rig.note(GIB + page * KIB4).map(|(_, note)| note)).collect();
    assert_eq!(kinds, [Some(DESTROYED), Some(RAM), Some(DESTROYED), None, Some(DESTROYED), None]);
    // INIT: what is absent becomes RAM, the rest stays; a large absent part is one note.
    let range = rig.range(GIB, 2 * GIB);
    let table = rig.table.lock(&rig.hw);
    let change = table.prepare_note_over(&rig.hw, &mut rig.pool, range, RAM, Select::ABSENT).unwrap();
    change.commit(&rig.hw, &mut rig.pool);
    drop(table);
    rig.check();
    let kinds: Vec<_> = (0..4).map(|page| rig.note(GIB + page * KIB4).map(|(_, note)| note)).collect();
    assert_eq!(kinds, [Some(DESTROYED), Some(RAM), Some(DESTROYED), Some(RAM)]);
    assert_eq!(rig.note(GIB + MIB2), Some((Level::L2, RAM)));
    // And back: notes go, nothing else.
    let table = rig.table.lock(&rig.hw);
    let change = table.prepare_clear_of(&rig.hw, &mut rig.pool, range, Select::NOTES).unwrap();
    change.commit(&rig.hw, &mut rig.pool);
    drop(table);
    assert_eq!(rig.fold(0, 1 << 40), 2);
}

/// An entry that reaches out of the range is split only if it is to be replaced.
#[test]
fn a_selective_change_does_not_split_what_it_leaves() {
    let mut rig = Rig::guest(MAX, 40);
    rig.map(GIB, GIB + MIB2, 0x8000_0000, RWX);
    let tables = rig.tables();
    let range = rig.range(GIB + MIB2 - KIB4, GIB + MIB2 + KIB4);
    let table = rig.table.lock(&rig.hw);
    let needed = table.plan_note_over(&rig.hw, range, RAM, Select::ABSENT).map(|plan| plan.tables());
    assert_eq!(needed, Ok(1));
    let change = table.prepare_note_over(&rig.hw, &mut rig.pool, range, RAM, Select::ABSENT).unwrap();
    change.commit(&rig.hw, &mut rig.pool);
    drop(table);
    rig.check();
    assert_eq!(rig.leaf(GIB + MIB2 - KIB4).unwrap().0, Level::L2);
    assert_eq!(rig.note(GIB + MIB2), Some((Level::L3, RAM)));
    assert_eq!(rig.tables(), tables + 1);
}
