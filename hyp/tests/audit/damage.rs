//! Each kind of damage, one at a time: the audit finds it, where it is, and nothing else.

use crate::rig::{CLASSIC, PLAIN, Rig};
use abi::inspect::Damage::{
    Corrupt, GuestEntry, HostEntry, HypEntry, Locked, Note, Pins, Pool, Record, Shares, Store, TableCount,
    TablePage, TablePins, Tags,
};
use abi::vm::MtePolicy;
use hyp::hw::PhysMem;
use hyp::mm::{PageState, PageUse};
use hyp::pgtable::Access;

/// Two pages of the protected VM, one of the other's, and one that the host lent.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.donate(0x400, 1500, 0);
    rig.donate(0x401, 1501, 0);
    rig.share(0x700, 1502);
    rig.world.hyp.host_donate_hyp(&rig.world.cpus[0], rig.world.pages(1503, 1)).unwrap();
    rig.clean();
    rig
}

#[test]
fn a_record_in_no_state() {
    let rig = rig();
    let page = rig.world.page(1600);
    rig.record(page).set_aux(5);
    assert_eq!(rig.findings(), [(Record, 0, page.raw())]);
    rig.record(page).set_aux(0);
    rig.record(page).set_use(PageUse::Image);
    assert_eq!(rig.findings(), [(Record, 0, page.raw())]);
}

#[test]
fn a_note_of_the_host_that_names_another_owner() {
    let rig = rig();
    let page = rig.world.page(1503);
    let (entry, of_guest) = (rig.host_entry(page), rig.host_entry(rig.world.page(1500)));
    let word = rig.word(of_guest);
    rig.damage(entry, word);
    assert_eq!(rig.findings(), [(HostEntry, 0, page.raw()), (Note, CLASSIC, page.raw())]);
}

#[test]
fn a_note_of_the_host_that_names_another_frame() {
    let rig = rig();
    let page = rig.world.page(1500);
    let entry = rig.host_entry(page);
    // Guest frames stand from bit 20 on.
    rig.damage(entry, rig.word(entry) + (0x100 << 20));
    assert_eq!(rig.findings(), [(GuestEntry, CLASSIC, 0x400), (Note, CLASSIC, page.raw())]);
}

#[test]
fn a_page_that_the_host_can_reach_and_may_not() {
    let rig = rig();
    let (lent, own) = (rig.world.page(1503), rig.world.page(1504));
    assert!(rig.world.touch(0, own, Access::R));
    let word = rig.word(rig.host_entry(own)) - (1 << 12);
    rig.damage(rig.host_entry(lent), word);
    let (table, _) = rig.host_entry(lent);
    let pins = (TablePins, 0, table.raw());
    assert_eq!(rig.findings(), [(HostEntry, 0, lent.raw()), pins]);
}

#[test]
fn a_default_mapping_that_leads_elsewhere() {
    let rig = rig();
    let page = rig.world.page(1504);
    assert!(rig.world.touch(0, page, Access::R));
    let entry = rig.host_entry(page);
    rig.damage(entry, rig.word(entry) ^ 1 << 12);
    assert_eq!(rig.findings(), [(HostEntry, 0, page.raw())]);
}

#[test]
fn a_page_of_el2_mapped_elsewhere_or_not_at_all() {
    let rig = rig();
    let page = rig.world.page(1503);
    let entry = rig.hyp_entry(page);
    let word = rig.word(entry);
    rig.damage(entry, word ^ 1 << 12);
    assert_eq!(rig.findings(), [(HypEntry, 0, page.raw())]);
    // Read-only.
    rig.damage(entry, word | 1 << 7);
    assert_eq!(rig.findings(), [(HypEntry, 0, page.raw())]);
    rig.damage(entry, 0);
    assert_eq!(rig.findings(), [(HypEntry, 0, page.raw()), (TableCount, 0, 0)]);
}

#[test]
fn a_page_of_the_host_that_el2_can_reach() {
    let rig = rig();
    let lent = rig.world.page(1503);
    let (table, index) = rig.hyp_entry(lent);
    let word = rig.word((table, index)) + (1 << 12);
    rig.damage((table, index + 1), word);
    let findings = rig.findings();
    assert_eq!(findings[0], (HypEntry, 0, lent.raw() + 1));
    assert_eq!(findings[1], (TableCount, 0, table.raw()));
}

#[test]
fn a_guests_page_that_leads_to_another_page() {
    let rig = rig();
    let (page, host) = (rig.world.page(1500), rig.world.page(1600));
    let entry = rig.guest_entry(CLASSIC, 0x400);
    rig.damage(entry, rig.word(entry) + ((host.raw() - page.raw()) << 12));
    assert_eq!(rig.findings(), [(GuestEntry, CLASSIC, 0x400), (Note, CLASSIC, page.raw())]);
}

#[test]
fn two_guest_frames_with_one_page() {
    let rig = rig();
    let (first, second) = (rig.guest_entry(CLASSIC, 0x400), rig.guest_entry(CLASSIC, 0x401));
    rig.damage(second, rig.word(first));
    assert_eq!(rig.findings(), [(GuestEntry, CLASSIC, 0x401), (Note, CLASSIC, rig.world.page(1501).raw())]);
}

#[test]
fn a_guests_page_in_another_state() {
    let rig = rig();
    let entry = rig.guest_entry(CLASSIC, 0x400);
    // SHARED_OWNED, which its record is not.
    rig.damage(entry, rig.word(entry) | 1 << 55);
    assert_eq!(rig.findings(), [(GuestEntry, CLASSIC, 0x400), (Note, CLASSIC, rig.world.page(1500).raw())]);
}

/// S2AP in bits 7:6, XN in bits 54:53.
#[test]
fn a_guests_own_page_with_which_it_may_not_do_everything() {
    let rig = rig();
    let entry = rig.guest_entry(CLASSIC, 0x400);
    let word = rig.word(entry);
    for less in [word & !(1 << 6), word & !(1 << 7), word | 1 << 54] {
        rig.damage(entry, less);
        assert_eq!(rig.findings(), [(GuestEntry, CLASSIC, 0x400)], "{less:#x}");
    }
    // What the host lends, it may lend for reading alone.
    let lent = rig.guest_entry(PLAIN, 0x700);
    rig.damage(entry, word);
    rig.damage(lent, rig.word(lent) & !(1 << 7));
    rig.clean();
}

#[test]
fn a_note_whose_guest_has_no_page() {
    let rig = rig();
    let page = rig.world.page(1500);
    // A guard note keeps the count right.
    rig.damage(rig.guest_entry(CLASSIC, 0x400), 4 << 60);
    assert_eq!(rig.findings(), [(Note, CLASSIC, page.raw())]);
}

#[test]
fn a_note_whose_guest_does_not_exist() {
    let rig = rig();
    let audit = rig.world.hyp.audit(&rig.world.cpus[0], None, &()).unwrap();
    let findings: Vec<_> = audit.findings().iter().map(|f| (f.damage, f.handle, f.frame)).collect();
    let pages = [1500, 1501].map(|nth| (Note, CLASSIC, rig.world.page(nth).raw()));
    assert_eq!(findings, pages);
    assert!(audit.census.get(abi::inspect::Figure::Loose) > 20, "and its tables are nobody's");
}

#[test]
fn words_that_nothing_writes() {
    for (word, damage) in [(6 << 60, Corrupt), (2, Corrupt), (1 << 60, Locked)] {
        let rig = rig();
        let page = rig.world.page(1504);
        assert!(rig.world.touch(0, page, Access::R));
        rig.damage(rig.host_entry(page), word);
        assert_eq!(rig.findings(), [(damage, 0, page.raw())], "{word:#x}");
        let rig = Rig::new();
        rig.share(0x700, 1502);
        rig.damage(rig.guest_entry(PLAIN, 0x700), word);
        let shares = (Shares, PLAIN, 0);
        assert_eq!(rig.findings(), [(damage, PLAIN, 0x700), shares], "{word:#x}");
    }
}

#[test]
fn a_table_that_is_no_page_of_its_owner() {
    let rig = rig();
    let host = rig.world.page(1600);
    let guest = rig.vms.find(PLAIN.into()).unwrap();
    let root = guest.guest.lock(&rig.world.cpus[0]).table().root();
    let index = (0..512).find(|&index| rig.word((root, index)) & 1 == 1).unwrap();
    rig.damage((root, index), host.base().raw() | 3);
    assert_eq!(rig.findings(), [(TablePage, PLAIN, host.raw()), (Shares, PLAIN, 0)]);
}

#[test]
fn a_count_or_a_pin_too_many() {
    let rig = rig();
    let (host, _) = rig.host_entry(rig.world.page(1503));
    let (guest, _) = rig.guest_entry(CLASSIC, 0x400);
    for (table, handle) in [(host, 0), (guest, CLASSIC)] {
        let record = rig.record(table);
        record.set_count(record.count() + 1);
        assert_eq!(rig.findings(), [(TableCount, handle, table.raw())]);
        record.set_count(record.count() - 1);
    }
    let record = rig.record(host);
    record.set_aux(record.aux() + 1);
    assert_eq!(rig.findings(), [(TablePins, 0, host.raw())]);
    let (hyp, _) = rig.hyp_entry(rig.world.page(1503));
    record.set_aux(record.aux() - 1);
    rig.record(hyp).set_count(rig.record(hyp).count() + 1);
    // One more is what a block of a VM asks for, and there is none.
    assert_eq!(rig.findings(), [(TableCount, 0, 0)]);
    rig.record(hyp).set_count(rig.record(hyp).count() + 1);
    assert!(rig.findings().contains(&(TableCount, 0, hyp.raw())));
}

#[test]
fn a_table_that_is_not_held_for_a_block() {
    let rig = Rig::new();
    rig.donate(0x200, 1024, 9);
    rig.clean();
    let (table, _) = rig.hyp_entry(rig.world.page(1024));
    let record = rig.record(table);
    record.set_count(record.count() - 1);
    assert_eq!(rig.findings(), [(TableCount, 0, 0)]);
}

#[test]
fn a_pool_whose_list_is_cut() {
    let rig = rig();
    let free = |record: &hyp::mm::Record| record.page_use() == PageUse::TablePool && record.is_free();
    let mut pages = rig.world.hyp.vmemmap().iter().filter(|(_, record)| free(record));
    // A page that another one follows.
    let (page, _) = pages.find(|(page, _)| rig.word((*page, 0)) != 0).unwrap();
    rig.damage((page, 0), 0);
    assert_eq!(rig.findings(), [(Pool, 0, 0)]);
}

#[test]
fn a_loan_that_is_counted_wrong() {
    let rig = rig();
    let record = rig.record(rig.world.page(1502));
    record.set_aux(record.aux() + (1 << 16));
    assert_eq!(rig.findings(), [(Shares, PLAIN, 0)]);
}

#[test]
fn a_pin_that_is_no_vcpus() {
    let rig = rig();
    let (hyp, cpu, page) = (&rig.world.hyp, &rig.world.cpus[0], rig.world.page(1600));
    hyp.host_share_hyp(cpu, page).unwrap();
    rig.clean();
    let pin = hyp.hyp_pin(cpu, page).unwrap();
    assert_eq!(rig.findings(), [(Pins, 0, 0)]);
    hyp.hyp_unpin(cpu, pin);
    rig.clean();
}

#[test]
fn a_page_that_a_guest_shares_and_the_host_does_not_know_of() {
    let rig = rig();
    rig.guest_share(0x400, 1);
    rig.clean();
    assert_eq!(rig.record(rig.world.page(1500)).host(), PageState::SharedBorrowed);
    let entry = rig.guest_entry(CLASSIC, 0x400);
    rig.damage(entry, 4 << 60);
    assert_eq!(rig.findings(), [(Shares, 0, 0)]);
}

#[test]
fn a_page_in_a_store_that_is_not_marked_so() {
    let rig = rig();
    let (vmemmap, cpu) = (rig.world.hyp.vmemmap(), &rig.world.cpus[0]);
    let cached = vmemmap.iter().find(|(_, record)| record.page_use() == PageUse::PtCache).unwrap();
    let reserve = rig.vms.find(CLASSIC.into()).unwrap().guest.lock(cpu).reserve().page().unwrap();
    cached.1.set_use(PageUse::Vm);
    assert_eq!(rig.findings(), [(Store, CLASSIC, cached.0.raw())]);
    cached.1.set_use(PageUse::Token);
    rig.record(reserve).set_use(PageUse::Vm);
    assert_eq!(rig.findings(), [(Store, CLASSIC, cached.0.raw()), (Store, CLASSIC, reserve.raw())]);
    assert_eq!(cpu.untraced().read_entry(reserve, 7), 0, "nothing was written to either");
}

/// What NO_TAG is in an entry: bit 57, and 1110 for 0110 in bits 5:2.
const NO_TAG: u64 = 1 << 57 | 1 << 5;

#[test]
fn a_page_without_tags_whose_tags_the_guest_could_use() {
    let rig = Rig::with_mte(MtePolicy::Lazy);
    rig.donate(0x400, 1600, 0);
    rig.donate(0x401, 1500, 0);
    rig.share(0x700, 1601);
    rig.clean();
    for (handle, gfn) in [(CLASSIC, 0x400), (PLAIN, 0x700)] {
        let entry = rig.guest_entry(handle, gfn);
        let word = rig.word(entry);
        assert_eq!(word & NO_TAG, NO_TAG);
        rig.damage(entry, word & !NO_TAG);
        assert_eq!(rig.findings(), [(Tags, handle, gfn)]);
        rig.damage(entry, word);
    }
    // A page that has tags may be without them all the same: the host may ask for that.
    let entry = rig.guest_entry(CLASSIC, 0x401);
    rig.damage(entry, rig.word(entry) | NO_TAG);
    rig.clean();
}

#[test]
fn no_tag_of_the_hardware_and_of_the_software_that_differ() {
    for bit in [1 << 57, 1 << 5] {
        let rig = Rig::with_mte(MtePolicy::Lazy);
        rig.share(0x700, 1600);
        let entry = rig.guest_entry(PLAIN, 0x700);
        rig.damage(entry, rig.word(entry) ^ bit);
        assert_eq!(rig.findings(), [(Corrupt, PLAIN, 0x700), (Shares, PLAIN, 0)], "{bit:#x}");
    }
}

#[test]
fn a_page_without_tags_that_its_vm_cannot_have() {
    let rig = Rig::with_mte(MtePolicy::Strict);
    rig.donate(0x400, 1500, 0);
    rig.clean();
    let entry = rig.guest_entry(CLASSIC, 0x400);
    // The tables of a VM that is not lazy have NO_TAG in software alone.
    rig.damage(entry, rig.word(entry) | 1 << 57);
    assert_eq!(rig.findings(), [(Tags, CLASSIC, 0x400)]);

    // Shared with the host: of a lazy VM either.
    let rig = Rig::with_mte(MtePolicy::Lazy);
    rig.donate(0x400, 1500, 0);
    rig.guest_share(0x400, 1);
    rig.clean();
    let entry = rig.guest_entry(CLASSIC, 0x400);
    rig.damage(entry, rig.word(entry) | NO_TAG);
    assert_eq!(rig.findings(), [(Tags, CLASSIC, 0x400)]);
}
