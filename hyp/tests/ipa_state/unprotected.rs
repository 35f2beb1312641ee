//! The half of the IPA space in which a VM sees pages of its host.

use crate::rig::{BLOCK, GIB, OTHER, PAGES, Rig, VM};
use abi::Errno::{self, Ebusy, Eexist, Einval, Enoent, Enomem, Eperm, Erange};
use hyp::fault::Site;
use hyp::pgtable::Access;
use hyp::spec::model::{Call, Page, Phase};
use testkit::features::MATRIX;

/// Where the upper half begins.
const UPPER: u64 = 2 * GIB;

fn map_to(rig: &Rig, handle: u64, ipa: u64, nth: u64, order: u64) -> Result<u64, Errno> {
    let pfn = rig.page(nth);
    rig.call(Call::HostShareUnprotected { handle, gfn: ipa >> 12, pfn, order, write: 1 })
}

fn map(rig: &Rig, ipa: u64, nth: u64, order: u64) -> Result<u64, Errno> {
    map_to(rig, VM, ipa, nth, order)
}

/// First frame that went, counted from the upper half, and how many did.
fn unmap(rig: &Rig, ipa: u64, nr: u64) -> Result<(u64, u64), Errno> {
    let call = Call::HostUnshareUnprotected { handle: VM, gfn: ipa >> 12, nr, first: 0, done: 0 };
    rig.call2(call).map(|[first, done]| (first - (UPPER >> 12), done))
}

#[test]
fn a_page_of_the_hosts_is_seen_by_both_and_never_executed() {
    for (name, features) in MATRIX {
        let rig = Rig::with(features, 32, 4);
        rig.fill(PAGES);
        assert_eq!(map(&rig, UPPER, PAGES, 0), Ok(0), "{name}");
        assert_eq!(rig.load(UPPER), Some(crate::rig::SECRET), "{name}");
        rig.store(UPPER, 5);
        assert!(rig.judged.world.touch(1, rig.judged.world.page(PAGES), Access::W), "{name}");
        let hyp::spec::model::Slot::Mapped { prot, .. } = rig.slot(UPPER).unwrap() else { panic!() };
        assert_eq!(prot, 0b011, "{name}: not executable");
        let read_only = Call::HostShareUnprotected {
            handle: VM,
            gfn: (UPPER >> 12) + 1,
            pfn: rig.page(PAGES + 1),
            order: 0,
            write: 0,
        };
        assert_eq!(rig.call(read_only), Ok(0), "{name}");
        let hyp::spec::model::Slot::Mapped { prot, .. } = rig.slot(UPPER + 4096).unwrap() else { panic!() };
        assert_eq!(prot, 0b001, "{name}");
        assert_eq!(unmap(&rig, UPPER, 512), Ok((0, 2)), "{name}: the leading ones");
        assert_eq!(rig.owner(PAGES), Page::Host, "{name}");
        assert_eq!(unmap(&rig, UPPER, 1), Err(Enoent), "{name}");
    }
}

#[test]
fn p_13_only_a_page_of_the_hosts_goes_there_and_only_there() {
    let rig = Rig::new(4);
    assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
    assert_eq!(rig.donate(0, PAGES, 0), Ok(0));
    assert_eq!(rig.call(Call::HostInitRipas { handle: OTHER, base: 0, top: BLOCK }), Ok(BLOCK));
    let other = Call::HostDonateGuest { handle: OTHER, gfn: 0, pfn: rig.page(PAGES + 1), order: 0 };
    assert_eq!(rig.call(other), Ok(0));
    assert_eq!(rig.call(Call::HostShareHyp { pfn: rig.page(PAGES + 2) }), Ok(0));
    let before = rig.judged.state();
    for (pfn, errno) in [
        (rig.page(PAGES), Eperm),
        (rig.page(PAGES + 1), Eperm),
        (rig.page(PAGES + 2), Eperm),
        (rig.page(0), Eperm),
        (rig.reserve().unwrap(), Eperm),
        (rig.page(0) - 1, Erange),
        (1 << 36, Erange),
        (u64::MAX, Erange),
    ] {
        let call = Call::HostShareUnprotected { handle: VM, gfn: UPPER >> 12, pfn, order: 0, write: 1 };
        assert_eq!(rig.call(call), Err(errno), "{pfn:#x}");
    }
    for (gfn, order, write, errno) in [
        (0, 0, 1, Einval),
        ((UPPER >> 12) - 1, 0, 1, Einval),
        (UPPER >> 11, 0, 1, Erange),
        (u64::MAX, 0, 1, Erange),
        (UPPER >> 12, 1, 1, Einval),
        (UPPER >> 12, 0, 2, Einval),
        ((UPPER >> 12) + 1, 9, 1, Einval),
    ] {
        let pfn = rig.page(PAGES + 512);
        let call = Call::HostShareUnprotected { handle: VM, gfn, pfn, order, write };
        assert_eq!(rig.call(call), Err(errno), "{gfn:#x} {order} {write}");
    }
    assert_eq!(rig.judged.state(), before);
}

#[test]
fn p_14_a_page_may_be_there_twice_for_one_vm_and_not_for_two() {
    let rig = Rig::new(4);
    assert_eq!(map(&rig, UPPER, PAGES, 0), Ok(0));
    assert_eq!(map(&rig, UPPER, PAGES + 1, 0), Err(Eexist));
    assert_eq!(map(&rig, UPPER + 4096, PAGES, 0), Ok(0));
    assert_eq!(rig.owner(PAGES), Page::SharedWithGuest { handle: 1, leaves: 2 });
    assert_eq!(map_to(&rig, OTHER, UPPER, PAGES, 0), Err(Eperm));
    assert_eq!(unmap(&rig, UPPER, 1), Ok((0, 1)));
    assert_eq!(rig.owner(PAGES), Page::SharedWithGuest { handle: 1, leaves: 1 });
    assert_eq!(unmap(&rig, UPPER + 4096, 1), Ok((1, 1)));
    assert_eq!(rig.owner(PAGES), Page::Host);
    assert_eq!(map_to(&rig, OTHER, UPPER, PAGES, 0), Ok(0));
}

#[test]
fn p_15_a_page_that_is_still_seen_is_not_given() {
    let rig = Rig::new(4);
    assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
    assert_eq!(map(&rig, UPPER, PAGES, 0), Ok(0));
    assert_eq!(rig.donate(0, PAGES, 0), Err(Eperm));
    assert_eq!(unmap(&rig, UPPER, 1), Ok((0, 1)));
    assert_eq!(rig.donate(0, PAGES, 0), Ok(0));
}

#[test]
fn p_18_a_step_that_fails_leaves_everything_as_it_was() {
    for (order, ipa) in [(0, UPPER + 4096), (9, UPPER)] {
        let rig = Rig::new(4);
        let faults = rig.judged.world.hyp.faults();
        let mut nth = 1;
        loop {
            let before = (rig.judged.state(), rig.cached());
            faults.clear();
            faults.arm(Site::PtCachePop, nth);
            let answer = map(&rig, ipa, PAGES, order);
            if faults.stats(Site::PtCachePop).fired == 0 {
                assert_eq!(answer, Ok(0));
                break;
            }
            assert_eq!(answer, Err(Enomem));
            assert_eq!(rig.judged.state(), before.0);
            nth += 1;
        }
        assert!(nth > 1);
    }
}

#[test]
fn p_19_a_part_of_a_block_goes_with_a_table_and_the_whole_without() {
    let rig = Rig::new(3);
    for block in 0..3 {
        assert_eq!(map(&rig, UPPER + block * BLOCK, PAGES + block * 512, 9), Ok(0));
    }
    assert_eq!(rig.cached(), 2);
    assert_eq!(unmap(&rig, UPPER + 5 * 4096, 1), Ok((5, 1)), "with a table");
    assert_eq!(rig.owner(PAGES + 6), Page::SharedWithGuest { handle: 1, leaves: 1 });
    // Armed to fail is as good as not there.
    let faults = rig.judged.world.hyp.faults();
    faults.clear();
    faults.arm(Site::PtCachePop, 1);
    assert_eq!(unmap(&rig, UPPER + BLOCK + 7 * 4096, 2), Ok((512, 512)), "all of it");
    assert!((0..512).all(|n| rig.owner(PAGES + 512 + n) == Page::Host));
    assert_eq!(map(&rig, UPPER + BLOCK, PAGES + 512, 9), Ok(0), "and back again");
    faults.clear();
    faults.arm(Site::PtCachePop, 1);
    assert_eq!(unmap(&rig, UPPER + 500 * 4096, 512), Ok((500, 12)), "up to the block that would be cut");
    assert_eq!(unmap(&rig, UPPER + BLOCK, 512), Ok((512, 512)), "which goes whole by itself");
}

#[test]
fn pages_go_in_while_the_vm_lives_and_out_at_any_time() {
    let rig = Rig::new(4);
    rig.activate();
    assert_eq!(map(&rig, UPPER, PAGES, 0), Ok(0));
    rig.judged.enter(1, Phase::Dying);
    assert_eq!(map(&rig, UPPER + 4096, PAGES + 1, 0), Err(Ebusy));
    assert_eq!(unmap(&rig, UPPER, 1), Ok((0, 1)));
    rig.judged.enter(1, Phase::Active);
    let rig = Rig::new(0);
    assert_eq!(map(&rig, UPPER, PAGES, 0), Err(Enomem));
}
