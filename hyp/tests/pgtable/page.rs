//! One page at a time: what is found once and written once says what a range would say.

use crate::rig::{BORROWED, DESTROYED, GIB, KIB4, MIB2, RAM, RO, RW, RWX, Rig, donated, pfn};
use hyp::addr::{AddrError, Ipa, Pfn};
use hyp::hw::PhysMem;
use hyp::pgtable::{BadAttrs, Change, Corrupt, Entry, Error, LeafState, Level, MemType, Note, Prot, S2Attrs};
use testkit::features::{MATRIX, MAX};

/// What a page's entry can say.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Nothing,
    Note(Note),
    Page(u64, S2Attrs),
}

const SAYINGS: [Says; 7] = [
    Says::Nothing,
    Says::Note(RAM),
    Says::Note(DESTROYED),
    Says::Page(0x8000_0000, RWX),
    Says::Page(0x8000_0000, RO),
    Says::Page(0x8000_0000, BORROWED),
    Says::Page(0x9000_0000, RWX),
];
const AT: u64 = GIB + 3 * KIB4;

/// A table whose entry for `AT` says `says`, beside a neighbour.
fn rig(features: hyp::hw::CpuFeatures, says: Says) -> Rig {
    let mut rig = Rig::guest(features, 40);
    rig.spy(AT);
    rig.spy(AT + KIB4);
    rig.map(AT + KIB4, AT + 2 * KIB4, 0xa000_0000, RW);
    match says {
        Says::Nothing => {}
        Says::Note(note) => rig.annotate(AT, AT + KIB4, note),
        Says::Page(output, attrs) => rig.map(AT, AT + KIB4, output, attrs),
    }
    rig
}

fn says(rig: &Rig) -> Says {
    match rig.lookup(AT) {
        (_, Entry::Absent) => Says::Nothing,
        (_, Entry::Note(note)) => Says::Note(note),
        (_, Entry::Leaf(leaf)) => Says::Page(leaf.output.base().raw(), leaf.attrs),
        (_, Entry::Table(_)) => panic!("a table at level 3"),
    }
}

/// From everything to everything: every CPU sees the new word and none the old, the neighbour
/// stays, entries are counted, no page is taken.
#[test]
fn a_page_goes_from_anything_to_anything_with_one_walk() {
    for (_, features) in MATRIX {
        for (before, after) in SAYINGS.into_iter().flat_map(|from| SAYINGS.map(|to| (from, to))) {
            let mut rig = rig(features, before);
            rig.pool.left = 0;
            let table = rig.table.lock(&rig.hw);
            let at = table.page(&rig.hw, Ipa::new(AT).unwrap()).unwrap().unwrap();
            match after {
                Says::Nothing => at.prepare_clear().commit(&rig.hw, &mut rig.pool),
                Says::Note(note) => at.prepare_note(note).unwrap().commit(&rig.hw, &mut rig.pool),
                Says::Page(output, attrs) => {
                    at.prepare_leaf(pfn(output), attrs).unwrap().commit(&rig.hw, &mut rig.pool);
                }
            }
            drop(table);
            rig.check();
            assert_eq!(says(&rig), after, "from {before:?}");
            assert_eq!(rig.leaf(AT + KIB4), Some((Level::L3, 0xa_0000, RW)));
        }
    }
}

/// The same change as for a range, and nothing where no page is.
#[test]
fn a_change_of_one_page_is_the_change_of_a_range() {
    let changes = [
        Change::WriteProtect,
        Change::State(LeafState::SharedOwned),
        Change::Accessed(false),
        Change::Relax(hyp::pgtable::Access::X),
    ];
    for (_, features) in MATRIX {
        for (before, change) in SAYINGS.into_iter().flat_map(|from| changes.map(|change| (from, change))) {
            let (mut one, range) = (rig(features, before), rig(features, before));
            let whole = range.range(AT, AT + KIB4);
            range.table.lock(&range.hw).change(&range.hw, whole, change).unwrap();
            let table = one.table.lock(&one.hw);
            let at = table.page(&one.hw, Ipa::new(AT).unwrap()).unwrap().unwrap();
            at.prepare_change(change).unwrap().commit(&one.hw, &mut one.pool);
            drop(table);
            one.check();
            assert_eq!(says(&one), says(&range), "{change:?} of {before:?}");
        }
    }
}

#[test]
fn what_is_no_page_and_what_no_entry_can_say_is_refused() {
    let mut rig = rig(MAX, Says::Nothing);
    rig.map(GIB + MIB2, GIB + 2 * MIB2, 0x8020_0000, RWX);
    let table = rig.table.lock(&rig.hw);
    let page = |ipa| table.page(&rig.hw, Ipa::new(ipa).unwrap());
    assert!(page(GIB + MIB2).unwrap().is_none(), "a block decides");
    assert!(page(3 * GIB).unwrap().is_none(), "no table is there");
    assert_eq!(page(1 << 40).unwrap_err(), Error::Range(AddrError::OutOfSpace(1 << 40)));
    let at = page(AT).unwrap().unwrap();
    assert_eq!(at.entry(), Entry::Absent);
    assert_eq!(at.prepare_note(donated(7)).unwrap_err(), Error::NoteRefused);
    let code = S2Attrs::owned(Prot::RWX, MemType::Device);
    assert_eq!(at.prepare_leaf(pfn(0), code).unwrap_err(), Error::Attrs(BadAttrs::ExecutableDevice));
    let beyond = Pfn::new(1 << (MAX.pa_bits - 12)).unwrap_or(pfn(0));
    if beyond != pfn(0) {
        assert_eq!(at.prepare_leaf(beyond, RW).unwrap_err(), Error::Output(beyond));
    }
    let found = rig.sim.walk(rig.ctx, AT).unwrap();
    rig.hw.untraced().write_entry(Pfn::new(found.table).unwrap(), found.index, 1 << 60);
    let error = Error::Corrupt { ia: AT, level: Level::L3, word: 1 << 60, why: Corrupt::Locked };
    assert_eq!(table.page(&rig.hw, Ipa::new(AT).unwrap()).unwrap_err(), error);
}

/// Absent pages that follow each other are shown as one, never beyond the range or their table.
#[test]
fn absent_pages_are_shown_as_runs_that_tile_the_range() {
    let mut rig = Rig::guest(MAX, 40);
    for page in [0, 1, 5, 511, 512, 700] {
        rig.map(GIB + page * KIB4, GIB + (page + 1) * KIB4, 0x8000_0000, RW);
    }
    for (first, end) in [(0, 1024), (1, 512), (2, 5), (3, 4), (6, 1024), (505, 701), (0, 4096)] {
        let range = rig.range(GIB + first * KIB4, GIB + end * KIB4);
        let table = rig.table.lock(&rig.hw);
        let (mut at, mut pages) = (first, 0);
        let visited = table.visit_runs(&rig.hw, range, |slot, nr, entry| {
            assert_eq!(slot.ia().max(GIB + first * KIB4), GIB + at * KIB4);
            assert!(nr == 1 || entry == Entry::Absent && slot.level() == Level::L3 && nr <= 512);
            at = ((slot.end_of(nr) - GIB) / KIB4).min(end);
            pages += u64::from(entry != Entry::Absent);
            std::ops::ControlFlow::<()>::Continue(())
        });
        assert_eq!((visited, at), (Ok(None), end));
        let there = [0, 1, 5, 511, 512, 700].into_iter().filter(|page| (first..end).contains(page));
        assert_eq!(pages, there.count() as u64);
    }
}
