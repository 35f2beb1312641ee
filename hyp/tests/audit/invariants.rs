//! The invariants of docs/ipa-state.md, broken one at a time on a machine with a realm: the audit finds each, and the
//! specification finds none of these states to be one.

use crate::rig::{CLASSIC, PLAIN, REALM, Rig, UPPER};
use abi::inspect::Damage::{Corrupt, GuestEntry, HostEntry, Note, Shares, Store};
use hyp::mm::PageUse;
use hyp::spec::model::{Flaw, Place};
use testkit::features::{CORTEX_A72, NEOVERSE_N2};
use testkit::{World, features::MAX};

/// A realm with RAM, two pages of its own at frames 0x400 and 0x401, and a page of the host twice in its upper half; and
/// a page of each other VM.
fn rig() -> Rig {
    let rig = Rig::with_realm(MAX);
    rig.donate(0x400, 1500, 0);
    rig.share(0x700, 1501);
    rig.give_realm(0x400, 1502);
    rig.give_realm(0x401, 1503);
    rig.show_realm(UPPER, 1504);
    rig.show_realm(UPPER + 1, 1504);
    rig.clean();
    assert_eq!(rig.flaw(), None);
    rig
}

/// The state of an entry that is borrowed, in bits 56:55.
const BORROWED: u64 = 2 << 55;
/// Not executable: bits 54:53.
const XN: u64 = 3 << 53;
const RAM: u64 = 3 << 60 | 1 << 1;
const DESTROYED: u64 = 3 << 60 | 2 << 1;
const GUARD: u64 = 4 << 60;

fn frame(world: &World, nth: u64) -> u64 {
    world.page(nth).raw()
}

impl Rig {
    /// Writes `word` where a VM has frame `gfn`; what the audit finds, and that the specification finds something.
    #[track_caller]
    fn broken(&self, handle: u16, gfn: u64, word: u64) -> Vec<(abi::inspect::Damage, u16, u64)> {
        let entry = self.guest_entry(handle, gfn);
        let before = self.word(entry);
        self.damage(entry, word);
        let findings = self.findings();
        assert!(self.flaw().is_some(), "{gfn:#x}: {word:#x} is no flaw");
        self.damage(entry, before);
        self.clean();
        assert_eq!(self.flaw(), None);
        findings
    }

    fn realm_word(&self, gfn: u64) -> u64 {
        self.word(self.guest_entry(REALM, gfn))
    }
}

#[test]
fn i1_a_page_of_a_guest_is_mapped_once_in_the_private_half_of_one_vm_and_the_host_knows_where() {
    let rig = rig();
    let [first, second] = [1502, 1503].map(|nth| frame(&rig.world, nth));
    let own = rig.realm_word(0x400);
    // Twice, in another VM, in the other half.
    let lost = (Note, REALM, second);
    assert_eq!(rig.broken(REALM, 0x401, own), [(GuestEntry, REALM, 0x401), lost]);
    let stolen = rig.broken(CLASSIC, 0x400, own);
    assert_eq!(stolen, [(GuestEntry, CLASSIC, 0x400), (Note, CLASSIC, frame(&rig.world, 1500))]);
    let shown = rig.broken(REALM, UPPER, own);
    // As one of its own there, and as one that it may execute.
    assert_eq!(shown, [(GuestEntry, REALM, UPPER), (GuestEntry, REALM, UPPER), (Shares, REALM, 0)]);
    // The host's table names another frame, another VM, or nobody.
    let entry = rig.host_entry(rig.world.page(1502));
    let note = rig.word(entry);
    for (word, what) in [
        (note + (1 << 20), [(GuestEntry, REALM, 0x400), (Note, REALM, first)].as_slice()),
        (note + (1 << 4), &[(GuestEntry, REALM, 0x400)]),
    ] {
        rig.damage(entry, word);
        assert_eq!(rig.findings(), what, "{word:#x}");
        assert!(rig.flaw().is_some());
    }
    rig.damage(entry, 0);
    assert!(rig.findings().contains(&(HostEntry, 0, first)) && rig.flaw().is_some());
}

#[test]
fn i2_what_is_in_the_upper_half_is_the_hosts_and_counted() {
    let rig = rig();
    let (lent, other) = (rig.realm_word(UPPER), frame(&rig.world, 1600));
    // A page of the host that it does not share.
    let unshared = lent & !(((1 << 36) - 1) << 12) | other << 12;
    assert_eq!(rig.broken(REALM, UPPER, unshared), [(GuestEntry, REALM, UPPER), (Shares, REALM, 0)]);
    // What another VM borrows.
    let of_plain = lent & !(((1 << 36) - 1) << 12) | frame(&rig.world, 1501) << 12;
    let both = [(GuestEntry, REALM, UPPER), (Shares, REALM, 0)];
    assert_eq!(rig.broken(REALM, UPPER, of_plain), both);
    // One more and one less than there are.
    let record = rig.record(rig.world.page(1504));
    let aux = record.aux();
    for wrong in [aux + (1 << 16), aux - (1 << 16)] {
        record.set_aux(wrong);
        assert_eq!(rig.findings(), [(Shares, REALM, 0)]);
        assert!(rig.flaw().is_some());
    }
}

#[test]
fn i3_no_page_is_in_both_halves() {
    let rig = rig();
    let lent = rig.realm_word(UPPER);
    let gone = (Note, REALM, frame(&rig.world, 1503));
    // As what it borrows, and as its own.
    for word in [lent, lent & !BORROWED & !XN] {
        let mut findings = rig.broken(REALM, 0x401, word);
        findings.retain(|finding| *finding != (Shares, REALM, 0));
        assert_eq!(findings, [(GuestEntry, REALM, 0x401), gone], "{word:#x}");
    }
}

#[test]
fn i4_no_page_of_el2_is_in_either_half() {
    let rig = rig();
    let lent = rig.realm_word(UPPER);
    let reserve =
        rig.vms.find(REALM.into()).unwrap().guest.lock(&rig.world.cpus[0]).reserve().page().unwrap();
    let (table, _) = rig.guest_entry(REALM, 0x400);
    let carveout = rig.world.hyp.vmemmap().iter().find(|(_, record)| record.page_use() == PageUse::Image);
    for page in [reserve, table, carveout.unwrap().0] {
        for gfn in [0x401, UPPER] {
            let word = rig.realm_word(gfn) & !(((1 << 36) - 1) << 12) | page.raw() << 12;
            assert_eq!(rig.broken(REALM, gfn, word)[0], (GuestEntry, REALM, gfn), "{page:?}");
        }
    }
    assert_eq!(rig.realm_word(UPPER), lent);
}

#[test]
fn i5_nothing_in_the_upper_half_is_executable() {
    for features in [MAX, CORTEX_A72] {
        let rig = Rig::with_realm(features);
        rig.give_realm(0x400, 1502);
        rig.show_realm(UPPER, 1504);
        // XN is 0b10 in bits 54:53; 0b00 executes everywhere.
        let word = rig.realm_word(UPPER) & !(3 << 53);
        assert_eq!(rig.broken(REALM, UPPER, word), [(GuestEntry, REALM, UPPER)]);
    }
    // Nor will it be when the page has tags.
    let rig = Rig::with_lazy_realm(NEOVERSE_N2);
    rig.give_realm(0x400, 1502);
    rig.show_realm(UPPER, 1600);
    let word = rig.realm_word(UPPER);
    assert_eq!(word >> 60, 5, "a page without tags waits for them");
    assert_eq!(rig.broken(REALM, UPPER, word | 1 << 3), [(GuestEntry, REALM, UPPER)]);
}

#[test]
fn i6_what_names_no_page_has_no_room_for_one_and_stands_in_its_own_half() {
    let rig = rig();
    let page = frame(&rig.world, 1503) << 12;
    let lost = (Note, REALM, frame(&rig.world, 1503));
    // A note with a page, an absent entry with one, a state that is none.
    for word in [RAM | page, DESTROYED | page, page, 3 << 60, RAM | DESTROYED] {
        assert_eq!(rig.broken(REALM, 0x401, word), [(Corrupt, REALM, 0x401), lost], "{word:#x}");
    }
    for word in [RAM, DESTROYED] {
        let wrong_half = [(GuestEntry, REALM, UPPER), (Shares, REALM, 0)];
        assert_eq!(rig.broken(REALM, UPPER, word), wrong_half, "{word:#x}");
    }
    // Each kind of VM has its own notes.
    let of_classic = (Note, CLASSIC, frame(&rig.world, 1500));
    assert_eq!(rig.broken(REALM, 0x401, GUARD), [(Corrupt, REALM, 0x401), lost]);
    assert_eq!(rig.broken(CLASSIC, 0x400, RAM), [(Corrupt, CLASSIC, 0x400), of_classic]);
    for word in [RAM, DESTROYED] {
        assert_eq!(
            rig.broken(PLAIN, 0x700, word),
            [(Corrupt, PLAIN, 0x700), (Shares, PLAIN, 0)],
            "{word:#x}"
        );
    }
}

#[test]
fn r_every_protected_vm_has_its_reserve_and_no_other_page_is_one() {
    let rig = rig();
    let reserve =
        rig.vms.find(REALM.into()).unwrap().guest.lock(&rig.world.cpus[0]).reserve().page().unwrap();
    let record = rig.record(reserve);
    record.set_use(PageUse::PtCache);
    assert_eq!(rig.findings(), [(Store, REALM, reserve.raw())]);
    let missing = Some(Flaw { place: Place::Reserves, what: "not one for each protected VM" });
    assert_eq!(rig.flaw(), missing);
    record.set_use(PageUse::Reserve);
    rig.clean();
    // One too many.
    let cached = |record: &&hyp::mm::Record| record.page_use() == PageUse::PtCache;
    let (_, spare) = rig.world.hyp.vmemmap().iter().find(|(_, record)| cached(record)).unwrap();
    spare.set_use(PageUse::Reserve);
    assert_eq!(rig.flaw(), missing);
    assert!(rig.findings().iter().any(|(damage, ..)| *damage == Store));
}
