//! The specification judged by itself: whatever is called, it stays consistent, refuses without
//! doing, and answers the ownership self-test of pKVM as the rules say, as does the machine.

#![allow(clippy::arithmetic_side_effects, reason = "small numbers of a test")]

use abi::Errno::{self, Ebusy, Eexist, Ehwpoison, Enoent, Eperm};
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::state::RWX;
use hyp::spec::model::{Call, Hold, Kind, Page, Phase, Slot, State, Vm};
use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
use testkit::features::{CORTEX_A72, MAX};
use testkit::{Judged, Setup, VmSetup};

const RAM: u64 = 0x40000;
const CLASSIC: u64 = 1;
const PLAIN: u64 = 2;
const SPLIT: u64 = 3;
const DYING: u64 = 4;

type Model = State<128>;

/// 1024 pages of RAM with a page of EL2, and a VM of each kind.
fn machine() -> Model {
    let mut state = Model::new([(RAM, RAM + 1024)]);
    state.pages.set(RAM, RAM + 1, Page::Hyp);
    for (handle, kind, phase) in [
        (1, Kind::Classic, Phase::Active),
        (2, Kind::NonProtected, Phase::Active),
        (3, Kind::Split, Phase::New),
        (4, Kind::Classic, Phase::Dying),
    ] {
        state.put_vm(Vm::new(handle, kind, 32, phase));
    }
    state.set_slots(3, 0..4, Slot::Ram);
    state.pages.set(RAM + 8, RAM + 10, Page::Guest { handle: 4 });
    let owned = Slot::Mapped { pfn: RAM + 8, hold: Hold::Owned, prot: RWX, block: false };
    state.set_slots(4, 0..2, owned);
    state
}

fn pfn() -> impl Strategy<Value = u64> {
    prop_oneof![8 => RAM..RAM + 8, 1 => Just(RAM + 512), 1 => RAM - 1..RAM + 1026, 1 => proptest::num::u64::ANY]
}

fn gfn() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..6, 1 => Just(512), 1 => proptest::num::u64::ANY]
}

fn nr() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 1_u64..5, 1 => Just(512), 1 => proptest::num::u64::ANY]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![8 => gfn().prop_map(|gfn| gfn << 12), 1 => proptest::num::u64::ANY]
}

fn call() -> impl Strategy<Value = Call> {
    let handle = || 0_u64..6;
    let page = || prop_oneof![3 => Just(NONE), 1 => pfn()];
    let order = || prop_oneof![8 => Just(0_u64), 2 => Just(9), 1 => proptest::num::u64::ANY];
    prop_oneof![
        pfn().prop_map(|pfn| Call::HostShareHyp { pfn }),
        pfn().prop_map(|pfn| Call::HostUnshareHyp { pfn }),
        pfn().prop_map(|pfn| Call::HypPin { pfn }),
        pfn().prop_map(|pfn| Call::HypUnpin { pfn }),
        (pfn(), nr()).prop_map(|(pfn, nr)| Call::HostDonateHyp { pfn, nr }),
        (pfn(), nr()).prop_map(|(pfn, nr)| Call::HypDonateHost { pfn, nr }),
        (handle(), gfn(), pfn(), order()).prop_map(|(handle, gfn, pfn, order)| Call::HostDonateGuest {
            handle,
            gfn,
            pfn,
            order
        }),
        (handle(), gfn(), pfn(), order(), 0_u64..9).prop_map(|(handle, gfn, pfn, order, prot)| {
            Call::HostShareGuest { handle, gfn, pfn, order, prot }
        }),
        (handle(), gfn(), nr()).prop_map(|(handle, gfn, nr)| Call::HostUnshareGuest { handle, gfn, nr }),
        (handle(), gfn(), nr()).prop_map(|(handle, gfn, nr)| Call::GuestShareHost { handle, gfn, nr }),
        (handle(), gfn(), nr()).prop_map(|(handle, gfn, nr)| Call::GuestUnshareHost { handle, gfn, nr }),
        (handle(), gfn(), nr()).prop_map(|(handle, gfn, nr)| Call::GuestRelinquishHost { handle, gfn, nr }),
        (handle(), gfn(), nr()).prop_map(|(handle, gfn, nr)| Call::GuestMapGuard { handle, gfn, nr }),
        (handle(), gfn(), nr()).prop_map(|(handle, gfn, nr)| Call::GuestUnmapGuard { handle, gfn, nr }),
        handle().prop_map(|handle| Call::HostDropGuards { handle }),
        (handle(), address(), address(), page(), page()).prop_map(|(handle, base, top, refill, kept)| {
            Call::HostReclaimGuest { handle, base, top, refill, kept }
        }),
        (handle(), address(), address(), page())
            .prop_map(|(handle, base, top, kept)| Call::HostReclaimDyingGuest { handle, base, top, kept }),
        (handle(), pfn(), nr()).prop_map(|(handle, pfn, nr)| Call::VmTopup { handle, pfn, nr }),
    ]
}

proptest! {
    #[test]
    fn every_state_is_consistent_and_a_refusal_changes_nothing(
        calls in proptest::collection::vec(call(), 1..60)
    ) {
        let mut state = machine();
        prop_assert_eq!(state.consistent(), Ok(()));
        for call in calls {
            let before = state.clone();
            let answer = state.call(call);
            if answer.is_err() {
                prop_assert!(state == before, "{call:x?} changed a state that it refused to");
            }
            prop_assert_eq!(state.consistent(), Ok(()), "after {:x?}", call);
            let mut after = Model::empty();
            prop_assert_eq!(before.accept(call, answer.map(|word| [word, 0]), &mut after), Ok(()));
            prop_assert!(after == state);
        }
    }
}

/// A page that the self-test passes around, and two frames for it.
const P: u64 = RAM + 520;
const G: u64 = 0x10;

fn donate(gfn: u64) -> Call {
    Call::HostDonateGuest { handle: CLASSIC, gfn, pfn: P, order: 0 }
}
fn share(gfn: u64) -> Call {
    Call::HostShareGuest { handle: PLAIN, gfn, pfn: P, order: 0, prot: u64::from(RWX) }
}
fn unshare(gfn: u64) -> Call {
    Call::HostUnshareGuest { handle: PLAIN, gfn, nr: 1 }
}
fn guest_share() -> Call {
    Call::GuestShareHost { handle: CLASSIC, gfn: G, nr: 1 }
}
fn guest_unshare() -> Call {
    Call::GuestUnshareHost { handle: CLASSIC, gfn: G, nr: 1 }
}
fn reclaim(gfn: u64) -> Call {
    Call::HostReclaimGuest {
        handle: CLASSIC,
        base: gfn << 12,
        top: (gfn + 1) << 12,
        refill: NONE,
        kept: NONE,
    }
}
const SHARE_HYP: Call = Call::HostShareHyp { pfn: P };
const UNSHARE_HYP: Call = Call::HostUnshareHyp { pfn: P };
const PIN: Call = Call::HypPin { pfn: P };
const UNPIN: Call = Call::HypUnpin { pfn: P };
const LEND: Call = Call::HostDonateHyp { pfn: P, nr: 1 };
const TAKE_BACK: Call = Call::HypDonateHost { pfn: P, nr: 1 };

#[test]
fn the_self_test_of_pkvm_is_answered_as_the_rules_say() {
    let mut state = machine();
    self_test(|call| {
        let before = state.clone();
        let got = state.call(call).map(|_| ());
        assert!(got.is_ok() || state == before, "{call:x?} was refused and changed something");
        got
    });
}

#[test]
fn the_self_test_of_pkvm_is_answered_by_the_machine() {
    for features in [CORTEX_A72, MAX] {
        let vms = [VmSetup::new(1, Kind::Classic, 400, 16), VmSetup::new(2, Kind::NonProtected, 420, 16)];
        let judged = Judged::new(Setup::new(features)).with(&vms);
        self_test(|call| {
            let before = judged.state();
            let got = judged.call(0, call).map(|_| ());
            assert!(got.is_ok() || judged.state() == before, "{call:x?} was refused and changed something");
            judged.audit(0);
            got
        });
    }
}

/// The self-test of pKVM, without FF-A, in our errno: `call` gives what comes of a call.
fn self_test(mut call: impl FnMut(Call) -> Result<(), Errno>) {
    let mut expect = |calls: &[Call], answer: Result<(), Errno>| {
        for &each in calls {
            assert_eq!(call(each), answer, "{each:x?}");
        }
    };
    let ok = Ok(());
    // 1: EL2's.
    expect(&[LEND], ok);
    expect(&[LEND, SHARE_HYP, UNSHARE_HYP, PIN, share(G), donate(G)], Err(Eperm));
    expect(&[unshare(G)], Err(Enoent));
    // 2: back.
    expect(&[TAKE_BACK], ok);
    expect(&[TAKE_BACK, UNSHARE_HYP, PIN], Err(Eperm));
    // 3, 4: shared with EL2, pinned.
    expect(&[SHARE_HYP], ok);
    let not_while_shared = [SHARE_HYP, LEND, TAKE_BACK, share(G), donate(G)];
    expect(&not_while_shared, Err(Eperm));
    expect(&[PIN, PIN, UNPIN], ok);
    expect(&[UNSHARE_HYP], Err(Ebusy));
    expect(&not_while_shared, Err(Eperm));
    expect(&[UNPIN, UNSHARE_HYP], ok);
    // 6: shared with a guest, twice.
    expect(&[share(G)], ok);
    expect(&[share(G)], Err(Eexist));
    expect(&[LEND, SHARE_HYP, UNSHARE_HYP, TAKE_BACK, donate(G), PIN], Err(Eperm));
    expect(&[share(G + 1), unshare(G)], ok);
    expect(&[LEND], Err(Eperm));
    expect(&[unshare(G + 1)], ok);
    // 7, 8: a guest's, shared back.
    expect(&[donate(G)], ok);
    let not_while_the_guests =
        [donate(G), donate(G + 1), share(G), share(G + 1), LEND, SHARE_HYP, UNSHARE_HYP, TAKE_BACK];
    expect(&not_while_the_guests, Err(Eperm));
    expect(&[guest_unshare()], Err(Eperm));
    expect(&[guest_share()], ok);
    expect(&[guest_share(), reclaim(G)], Err(Eperm));
    expect(&not_while_the_guests, Err(Eperm));
    expect(&[guest_unshare()], ok);
    expect(&[guest_unshare()], Err(Eperm));
    expect(&not_while_the_guests, Err(Eperm));
    // 9, 10: taken by force.
    expect(&[reclaim(G)], ok);
    expect(&[donate(G), guest_share(), guest_unshare()], Err(Ehwpoison));
    expect(&[donate(G + 1), reclaim(G + 1)], ok);
    expect(&[donate(G), donate(G + 1)], Err(Ehwpoison));
    expect(&[LEND], ok);
}

#[test]
fn a_dying_vm_loses_everything_and_nothing_else_is_taken_from_it() {
    let mut state = machine();
    let all = Call::HostReclaimDyingGuest { handle: DYING, base: 0, top: 1 << 32, kept: NONE };
    let one = Call::HostReclaimGuest { handle: DYING, base: 0, top: 4096, refill: NONE, kept: NONE };
    assert_eq!(state.call(one), Err(Ebusy));
    assert_eq!(state.call(all), Ok(1 << 32));
    assert!(state.slot_runs().all(|(handle, ..)| u64::from(handle) != DYING));
    assert_eq!(state.pages.get(RAM + 8), Some(Page::Host));
    let split = |gfn| Call::HostDonateGuest { handle: SPLIT, gfn, pfn: RAM + 8, order: 0 };
    assert_eq!(state.call(split(4)), Err(Eperm));
    assert_eq!(state.call(split(1 << 19)), Err(Errno::Erange));
    assert_eq!(state.call(split(3)), Ok(0));
}
