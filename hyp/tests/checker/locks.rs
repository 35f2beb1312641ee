//! Locks.

use crate::rig::{HYP_LEAF, LEAF, LOCKED, page};
use hyp::hw::{Event, Observe, PhysMem, Tlb, Tlbi};
use hyp::lock::{Lock, Rank};

crate::examples! {
    bad_unlocked_write breaks UnlockedWrite on CORTEX_A72: |rig| {
        rig.make(rig.guest.l3, 3, rig.leaf(3) & !(0b1111 << 2) | 0b0001 << 2);
    }

    /// Another VM's lock is not the right one.
    bad_write_under_another_lock breaks UnlockedWrite on MAX: |rig| {
        rig.locked(&rig.host, || rig.make(rig.guest.l3, 3, DEVICE));
    }

    /// Two CPUs write one table; only one holds the lock.
    bad_race breaks UnlockedWrite on MAX: |rig| {
        rig.lock(&rig.guest);
        rig.other.write_entry(rig.guest.l3, 3, DEVICE);
        rig.make(rig.guest.l3, 4, DEVICE);
        rig.unlock(&rig.guest);
    }

    /// A window needs no lock because it has one CPU.
    bad_window_of_another_cpu breaks UnlockedWrite on MAX: |rig| {
        rig.cpu.observe(Event::Window { table: rig.hyp.l3, index: 300 });
        rig.make(rig.hyp.l3, 300, page(rig.ram(300), HYP_LEAF));
        rig.other.write_entry(rig.hyp.l3, 300, 0);
    }

    bad_window_reused_without_tlbi breaks MissingTlbi on MAX: |rig| {
        rig.cpu.observe(Event::Window { table: rig.hyp.l3, index: 300 });
        rig.make(rig.hyp.l3, 300, page(rig.ram(300), HYP_LEAF));
        rig.cpu.write_entry(rig.hyp.l3, 300, 0);
        rig.dsb();
        rig.make(rig.hyp.l3, 300, page(rig.ram(301), HYP_LEAF));
    }

    bad_lock_held_by_two breaks LockHeldElsewhere on MAX: |rig| {
        rig.lock(&rig.host);
        rig.other.observe(Event::Lock { rank: Rank::HostS2, held: true });
    }

    bad_lock_order breaks LockOrder on MAX: |rig| {
        rig.lock(&rig.guest);
        rig.lock(&rig.host);
    }

    /// Two locks of one rank are taken by handle.
    bad_lock_order_of_two_vms breaks LockOrder on MAX: |rig| {
        rig.cpu.observe(Event::Lock { rank: Rank::Vm(4), held: true });
        rig.cpu.observe(Event::Lock { rank: Rank::Vm(3), held: true });
    }

    bad_unlock_of_a_lock_not_held breaks LockNotHeld on MAX: |rig| {
        rig.lock(&rig.host);
        rig.other.observe(Event::Lock { rank: Rank::HostS2, held: false });
    }

    bad_locked_note_left breaks LockedNoteLeft on CORTEX_A72: |rig| {
        rig.locked(&rig.guest, || {
            rig.cpu.write_entry(rig.guest.l3, 300, LOCKED);
            rig.invalidate(&rig.guest, 300, None);
        });
    }

    bad_locked_note_left_where_nothing_was breaks LockedNoteLeft on CORTEX_A72: |rig| {
        rig.locked(&rig.guest, || rig.make(rig.guest.l3, 3, LOCKED));
    }
}

/// A leaf that is nobody's memory.
const DEVICE: u64 = LEAF & !(0b1111 << 2) | 0b0001 << 2 | 1 << 54;

#[test]
fn good_write() {
    let rig = crate::rig::Rig::new(testkit::features::CORTEX_A72);
    rig.locked(&rig.guest, || rig.make(rig.guest.l3, 3, page(rig.ram(3), DEVICE)));
    assert_eq!(rig.sim.violations(), []);
}

/// The real lock says what it does, taken either way.
#[test]
fn good_trylock() {
    let rig = crate::rig::Rig::new(testkit::features::MAX);
    let (outer, inner) = (Lock::new(Rank::HostS2, ()), Lock::new(Rank::GuestS2(1), ()));
    {
        let _host = outer.try_lock(&rig.cpu).unwrap();
        let _guest = inner.lock(&rig.cpu);
        rig.make(rig.guest.l3, 3, DEVICE);
        assert!(outer.try_lock(&rig.other).is_none());
    }
    drop(outer.lock(&rig.other));
    assert_eq!(rig.sim.violations(), []);
}

#[test]
fn good_window() {
    let rig = crate::rig::Rig::new(testkit::features::MAX);
    rig.cpu.observe(Event::Window { table: rig.hyp.l3, index: 300 });
    for n in [300, 301] {
        rig.make(rig.hyp.l3, 300, page(rig.ram(n), HYP_LEAF));
        rig.cpu.write_entry(rig.hyp.l3, 300, 0);
        rig.dsb();
        rig.cpu.tlbi(Tlbi::AllHyp);
        rig.dsb();
    }
    assert_eq!(rig.sim.violations(), []);
}

#[test]
fn good_locked_note_gone_before_the_lock() {
    let rig = crate::rig::Rig::new(testkit::features::CORTEX_A72);
    rig.locked(&rig.guest, || {
        rig.cpu.write_entry(rig.guest.l3, 300, LOCKED);
        rig.invalidate(&rig.guest, 300, Some(3));
        rig.make(rig.guest.l3, 300, rig.leaf(300));
    });
    assert_eq!(rig.sim.violations(), []);
}
