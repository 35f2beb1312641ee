//! Pages taken by force, and what a page is replaced by: never an allocation that could fail.

use crate::rig::{BLOCK, GIB, PAGES, Rig, SECRET, VM};
use abi::Errno::{Eexist, Ehwpoison, Eperm};
use hyp::fault::Site;
use hyp::ipa_state::State;
use hyp::pgtable::{Level, Note, Ripas};
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Page, Phase, Slot};
use testkit::features::MATRIX;

const DESTROYED: Note = Note::Ripas(Ripas::Destroyed);
/// Every step of a call that can fail for want of a page.
const ALLOCATIONS: [Site; 3] = [Site::PtCachePop, Site::HostPoolAlloc, Site::HostPrepare];

/// A machine whose VM has blocks at 0 and 2 MiB and an empty store.
fn with_blocks(rig: &Rig) {
    assert_eq!(rig.init(0, 2 * BLOCK), Ok(2 * BLOCK));
    assert_eq!(rig.donate(0, PAGES, 9), Ok(0));
    assert_eq!(rig.donate(BLOCK, PAGES + 512, 9), Ok(0));
    rig.activate();
    for n in 0..1024 {
        rig.store(n * 4096, SECRET + n);
    }
    assert_eq!(rig.cached(), 0);
}

#[test]
fn r_07_a_page_goes_only_where_the_guest_has_ram() {
    let rig = Rig::new(4);
    assert_eq!(rig.donate(0, PAGES, 0), Err(Eperm), "EMPTY");
    assert_eq!(rig.init(0, 8192), Ok(8192));
    rig.fill(PAGES);
    assert_eq!(rig.donate(0, PAGES, 0), Ok(0));
    assert_eq!(rig.load(0), Some(0), "zeroed");
    assert!(!rig.judged.world.touch(0, rig.judged.world.page(PAGES), hyp::pgtable::Access::R));
    assert_eq!(rig.donate(0, PAGES + 1, 0), Err(Eexist));
    assert_eq!(rig.donate(4096, PAGES, 0), Err(Eperm), "it is not the host's any more");
}

#[test]
fn r_08_a_whole_block_is_taken_without_a_table() {
    for (name, features) in MATRIX {
        let rig = Rig::with(features, 32, 1);
        with_blocks(&rig);
        let reserve = rig.reserve();
        let (answer, passes) = rig.passes(&ALLOCATIONS, || rig.reclaim(0, BLOCK, NONE));
        assert_eq!((answer, passes), (Ok([BLOCK, NONE]), 0), "{name}: nothing that could fail");
        assert_eq!(rig.note(BLOCK - 4096), Some((Level::L2, DESTROYED)), "{name}");
        assert!((0..512).all(|n| rig.is_back_and_zero(PAGES + n)), "{name}");
        assert_eq!((rig.reserve(), rig.cached()), (reserve, 0), "{name}");
        assert_eq!(rig.load(BLOCK), Some(SECRET + 512), "{name}");
    }
}

#[test]
fn r_09_one_page_out_of_a_block_is_replaced_by_itself() {
    for (name, features) in MATRIX {
        let rig = Rig::with(features, 32, 1);
        with_blocks(&rig);
        let (answer, passes) = rig.passes(&ALLOCATIONS, || rig.reclaim(300 * 4096, 301 * 4096, NONE));
        let retained = rig.page(PAGES + 300);
        assert_eq!((answer, passes), (Ok([301 * 4096, retained]), 0), "{name}");
        assert_eq!(rig.reserve(), Some(retained), "{name}");
        assert_eq!(rig.owner(PAGES + 300), Page::Vm, "{name}: the host has no page more than before");
        for n in 0..512 {
            let found = (n != 300).then_some(SECRET + n);
            assert_eq!(rig.load(n * 4096), found, "{name}");
        }
        assert_eq!(rig.state(300 * 4096), State::Destroyed, "{name}");
    }
}

#[test]
fn r_10_a_page_that_the_host_offers_is_taken_in_its_place() {
    let rig = Rig::new(1);
    with_blocks(&rig);
    let refill = rig.page(PAGES + 2000);
    for bad in
        [rig.page(0), rig.page(PAGES + 600), rig.page(PAGES + 300), rig.reserve().unwrap(), rig.page(0) - 1]
    {
        let before = rig.judged.state();
        assert_eq!(rig.reclaim(300 * 4096, 301 * 4096, bad), Err(Eperm), "{bad:#x}");
        assert_eq!(rig.judged.state(), before);
        assert!(matches!(rig.slot(300 * 4096), Some(Slot::Mapped { block: true, .. })), "untouched");
    }
    assert_eq!(rig.reclaim(300 * 4096, 301 * 4096, refill), Ok([301 * 4096, NONE]));
    assert!(rig.is_back_and_zero(PAGES + 300));
    assert_eq!(rig.reserve(), Some(refill));
}

#[test]
fn r_12_the_rest_of_a_block_folds_to_one_note_and_no_table_is_lost() {
    let rig = Rig::new(1);
    with_blocks(&rig);
    assert!(rig.reclaim(300 * 4096, 301 * 4096, NONE).is_ok());
    assert_eq!(rig.reclaim(0, BLOCK, NONE), Ok([BLOCK, NONE]));
    assert_eq!(rig.note(0), Some((Level::L2, DESTROYED)));
    assert_eq!(rig.cached(), 1, "the table");
    // A second block repays with it.
    assert_eq!(rig.reclaim(BLOCK + 4096, BLOCK + 8192, NONE), Ok([BLOCK + 8192, NONE]));
    assert_eq!(rig.cached(), 0);
}

#[test]
fn r_13_a_vm_with_blocks_pages_and_notes_is_taken_apart_whatever_is_short() {
    let rig = Rig::new(6);
    let mut at = 0;
    while at < GIB {
        at = rig.init(at, GIB).unwrap();
    }
    assert_eq!(rig.donate(0, PAGES, 9), Ok(0));
    assert_eq!(rig.donate(BLOCK, PAGES + 512, 9), Ok(0));
    assert_eq!(rig.donate(4 * BLOCK, PAGES + 1024, 0), Ok(0));
    assert_eq!(rig.reclaim(4096, 8192, NONE).map(|[end, _]| end), Ok(8192));
    let unprotected = Call::HostShareUnprotected {
        handle: VM,
        gfn: (2 * GIB) >> 12,
        pfn: rig.page(PAGES + 1536),
        order: 9,
        write: 1,
    };
    assert_eq!(rig.call(unprotected), Ok(0));
    rig.activate();
    assert_eq!(rig.call(Call::VmTeardownStart { handle: VM }), Ok(0));
    let ((), passes) = rig.passes(&ALLOCATIONS, || {
        let mut at = 0;
        while at < 2 * GIB {
            let call = Call::HostReclaimDyingGuest { handle: VM, base: at, top: 2 * GIB, kept: NONE };
            at = rig.call(call).unwrap();
        }
    });
    assert_eq!(passes, 0, "nothing that could fail");
    let mut judged = rig.judged;
    judged.finish(0, 1);
    let state = judged.state();
    for nth in PAGES..8192 {
        assert_eq!(state.pages.get(judged.world.page(nth).raw()), Some(Page::Host), "{nth}");
    }
    judged.audit(0);
}

#[test]
fn a_page_that_was_taken_before_the_vm_ran_stays_lost() {
    let rig = Rig::new(4);
    assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
    assert_eq!(rig.donate(0, PAGES, 0), Ok(0));
    assert_eq!(rig.reclaim(0, 4096, NONE), Ok([4096, NONE]));
    assert_eq!(rig.donate(0, PAGES, 0), Err(Ehwpoison));
    rig.judged.enter(1, Phase::Active);
    assert_eq!(rig.donate(0, PAGES, 0), Err(Ehwpoison));
}
