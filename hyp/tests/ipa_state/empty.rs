//! Frames become EMPTY, as the guest has asked.

use crate::rig::{BLOCK, GIB, PAGES, Rig};
use abi::Errno::{Enomem, Erange};
use hyp::fault::Site;
use hyp::ipa_state::State;
use hyp::pgtable::Level;
use hyp::spec::model::Page;
use hyp::spec::model::guest_calls::NONE;
use testkit::features::MATRIX;

#[test]
fn p_10_a_page_that_is_given_up_is_the_hosts_and_zero() {
    for (name, features) in MATRIX {
        let rig = Rig::with(features, 32, 6);
        assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
        assert_eq!(rig.donate(4096, PAGES, 0), Ok(0));
        rig.store(4096, 77);
        let (page, tags) = (rig.page(PAGES), &rig.judged.world.sim);
        tags.memory().set_tag(page, 3, 5);
        rig.activate();
        assert_eq!(rig.empty(4096, 3 * 4096), Ok([3 * 4096, NONE]), "{name}");
        assert!(rig.is_back_and_zero(PAGES), "{name}");
        if features.mte >= 2 {
            assert_eq!(tags.memory().tag(page, 3), 0, "{name}");
        }
        for (ipa, state) in
            [(0, State::Ram), (4096, State::Empty), (8192, State::Empty), (3 * 4096, State::Ram)]
        {
            assert_eq!(rig.state(ipa), state, "{name} {ipa:#x}");
        }
        assert_eq!(rig.load(4096), None, "{name}");
    }
}

#[test]
fn r_20_a_note_is_split_with_a_table_of_the_store_or_not_at_all() {
    let rig = Rig::new(0);
    assert_eq!(rig.init(0, GIB), Ok(GIB));
    rig.activate();
    let before = rig.judged.state();
    assert_eq!(rig.empty(BLOCK, BLOCK + 4096), Err(Enomem));
    assert_eq!(rig.judged.state(), before);
    rig.topup(1);
    let before = rig.judged.state();
    assert_eq!(rig.empty(BLOCK, BLOCK + 4096), Err(Enomem), "two are needed");
    assert_eq!((rig.judged.state(), rig.cached()), (before, 1));
    // Whole blocks need the one table alone, and the page behind them waits.
    assert_eq!(rig.empty(BLOCK, 3 * BLOCK + 4096), Ok([3 * BLOCK, NONE]));
    assert_eq!(rig.empty(3 * BLOCK, 3 * BLOCK + 4096), Err(Enomem));
    rig.topup(1);
    assert_eq!(rig.empty(3 * BLOCK, 3 * BLOCK + 4096), Ok([3 * BLOCK + 4096, NONE]));
    assert_eq!((rig.state(BLOCK - 4096), rig.state(3 * BLOCK + 4096)), (State::Ram, State::Ram));
    assert_eq!(rig.run(BLOCK, 3 * BLOCK + 4096, 4096).state, State::Empty);
}

#[test]
fn a_part_of_a_block_is_given_up_without_a_table_from_anybody() {
    let rig = Rig::new(1);
    assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
    assert_eq!(rig.donate(0, PAGES, 9), Ok(0));
    rig.activate();
    assert_eq!(rig.cached(), 0);
    for n in 0..512 {
        rig.store(n * 4096, n);
    }
    let first = PAGES + 100;
    assert_eq!(rig.empty(100 * 4096, 103 * 4096), Ok([103 * 4096, rig.page(first)]));
    assert_eq!(rig.reserve(), Some(rig.page(first)), "the first page is the new reserve");
    assert_eq!(rig.owner(first), Page::Vm);
    assert!(rig.is_back_and_zero(first + 1) && rig.is_back_and_zero(first + 2));
    for n in (0..512).filter(|n| !(100..103).contains(n)) {
        assert_eq!(rig.load(n * 4096), Some(n), "the others are as they were");
    }
}

#[test]
fn what_is_destroyed_becomes_empty_and_a_table_of_nothing_goes_to_the_store() {
    let rig = Rig::new(2);
    assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
    assert_eq!(rig.donate(0, PAGES, 0), Ok(0));
    assert_eq!(rig.reclaim(0, 4096, NONE), Ok([4096, NONE]));
    rig.activate();
    assert_eq!(rig.cached(), 0);
    assert_eq!(rig.empty(0, BLOCK), Ok([BLOCK, NONE]));
    assert_eq!(rig.cached(), 2, "both tables");
    assert_eq!(rig.note(0), None);
    assert_eq!(rig.run(0, 2 * GIB, 512).end, 2 * GIB);
    assert_eq!(rig.empty(0, 2 * GIB), Ok([2 * GIB, NONE]), "what is EMPTY stays so");
    assert_eq!(rig.empty(0, 3 * GIB), Err(Erange));
    assert_eq!(rig.ram(0, GIB, 0), Ok(GIB));
    assert_eq!(rig.note(0).map(|(level, _)| level), Some(Level::L1));
}

/// A part of a block goes with the reserve, a part of a note with a table of the store: the one step
/// that can fail comes before the reserve is lent.
#[test]
fn a_table_that_cannot_be_had_is_found_out_before_the_reserve_is_lent() {
    let rig = Rig::new(6);
    assert_eq!(rig.init(0, 2 * BLOCK), Ok(2 * BLOCK));
    assert_eq!(rig.donate(0, PAGES, 9), Ok(0));
    rig.activate();
    let before = (rig.judged.state(), rig.reserve(), rig.cached());
    let faults = rig.judged.world.hyp.faults();
    faults.clear();
    faults.arm(Site::PtCachePop, 1);
    assert_eq!(rig.empty(100 * 4096, BLOCK + 4096), Err(Enomem));
    assert_eq!((rig.judged.state(), rig.reserve(), rig.cached()), before);
    faults.clear();
    assert_eq!(rig.empty(100 * 4096, BLOCK + 4096), Ok([BLOCK + 4096, NONE]));
    assert!((100..512).all(|n| rig.is_back_and_zero(PAGES + n)));
    assert_eq!((rig.state(99 * 4096), rig.state(BLOCK + 4096)), (State::Ram, State::Ram));
}
