//! Pages that change hands.

use crate::rig::{DONATED, Rig, XN, linear, page};
use hyp::hw::{CacheOps, Event, Observe, PhysMem, Tags, Tlb, Tlbi};
use testkit::features::{CORTEX_A72, MAX, NEOVERSE_N2};

crate::examples! {
    bad_scrub_before_tlbi breaks ScrubbedBeforeTlbi on MAX: |rig| {
        rig.locked(&rig.guest, || {
            rig.cpu.write_entry(rig.guest.l3, 300, 0);
            rig.cpu.zero_page(linear(rig.ram(300)));
            rig.invalidate(&rig.guest, 300, None);
        });
    }

    /// The TLBI was issued, but nothing has completed it.
    bad_scrub_before_dsb breaks ScrubbedBeforeTlbi on MAX: |rig| {
        rig.locked(&rig.guest, || {
            rig.cpu.write_entry(rig.guest.l3, 300, 0);
            rig.dsb();
            rig.installed(&rig.guest, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.cpu.zero_page(linear(rig.ram(300)));
            rig.dsb();
        });
    }

    /// The page lies under a table that went away whole.
    bad_scrub_under_removed_table breaks ScrubbedBeforeTlbi on MAX: |rig| {
        rig.locked(&rig.guest, || {
            rig.cpu.write_entry(rig.guest.l2, 0, 0);
            rig.cpu.zero_page(linear(rig.ram(300)));
            rig.dsb();
            rig.installed(&rig.guest, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.dsb();
        });
    }

    bad_read_before_tlbi breaks ReadBeforeTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.cpu.read_entry(rig.ram(3), 0);
            rig.invalidate(&rig.host, 3, None);
        });
    }

    bad_copy_before_tlbi breaks ReadBeforeTlbi on MAX: |rig| {
        rig.locked(&rig.guest, || {
            rig.cpu.write_entry(rig.guest.l3, 300, 0);
            rig.cpu.copy_page(linear(rig.ram(300)), linear(rig.ram(1000)));
            rig.invalidate(&rig.guest, 300, None);
        });
    }

    /// What the guest stores to its page meanwhile is not in the copy.
    bad_copy_of_a_page_that_a_guest_has breaks CopiedWithinReach on MAX: |rig| {
        rig.cpu.copy_page(linear(rig.ram(300)), linear(rig.ram(1000)));
    }

    /// It was taken from the host, but a guest has got it since.
    bad_copy_of_a_page_that_was_given_on breaks CopiedWithinReach on MAX: |rig| {
        rig.take_from_host(3);
        rig.cpu.zero_page(linear(rig.ram(3)));
        rig.give(&rig.guest, 3, rig.leaf(3));
        rig.cpu.copy_page(linear(rig.ram(3)), linear(rig.ram(1000)));
    }

    bad_hand_over_before_tlbi breaks HandedOverBeforeTlbi on MAX: |rig| {
        rig.lock(&rig.host);
        rig.cpu.write_entry(rig.host.l3, 3, DONATED);
        rig.give(&rig.guest, 3, rig.leaf(3));
        rig.invalidate(&rig.host, 3, None);
        rig.unlock(&rig.host);
    }

    /// A page that the host may still write becomes a table.
    bad_table_from_page_before_tlbi breaks HandedOverBeforeTlbi on MAX: |rig| {
        rig.lock(&rig.host);
        rig.cpu.write_entry(rig.host.l3, 3, DONATED);
        rig.locked(&rig.guest, || rig.make(rig.guest.l2, 3, crate::rig::table(rig.ram(3))));
        rig.invalidate(&rig.host, 3, None);
        rig.unlock(&rig.host);
    }

    bad_hash_before_clean_invalidate breaks ReadBeforeCleanInvalidate on MAX: |rig| {
        rig.take_from_host(3);
        rig.cpu.clean_to_poc(linear(rig.ram(3)));
        rig.cpu.read_entry(rig.ram(3), 0);
    }

    /// Done too early it counts for nothing: the host can still make lines.
    bad_clean_invalidate_before_tlbi breaks ReadBeforeCleanInvalidate on MAX: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, DONATED);
            rig.cpu.clean_invalidate_to_poc(linear(rig.ram(3)));
            rig.invalidate(&rig.host, 3, None);
        });
        rig.cpu.read_entry(rig.ram(3), 0);
    }

    /// Without FWB a guest reads past the cache if it likes.
    bad_give_guest_without_clean breaks NotCleaned on CORTEX_A72: |rig| {
        rig.take_from_host(3);
        rig.cpu.zero_page(linear(rig.ram(3)));
        rig.cpu.invalidate_icache(linear(rig.ram(3)));
        rig.give(&rig.guest, 3, rig.leaf(3));
    }

    bad_share_with_guest_without_clean breaks NotCleaned on CORTEX_A72: |rig| {
        rig.give(&rig.guest, 3, rig.leaf(3) | XN);
    }

    /// FWB does not bind the host's other masters.
    bad_give_host_without_clean breaks NotCleaned on MAX: |rig| {
        rig.take_from_guest(300);
        rig.cpu.zero_page(linear(rig.ram(300)));
        rig.give(&rig.host, 300, rig.leaf(300));
    }

    bad_clean_before_scrub breaks NotCleaned on MAX: |rig| {
        rig.take_from_guest(300);
        rig.cpu.clean_to_poc(linear(rig.ram(300)));
        rig.cpu.zero_page(linear(rig.ram(300)));
        rig.give(&rig.host, 300, rig.leaf(300));
    }

    /// What a guest asked for is in memory before another CPU can take the page from it.
    bad_put_in_a_guests_page_without_clean breaks NotCleaned on CORTEX_A72: |rig| {
        rig.locked(&rig.guest, || rig.cpu.put_word(linear(rig.ram(300)), 1, 7));
    }

    /// What a guest wrote round the cache is what EL2 reads.
    bad_get_from_a_guests_page_without_clean_invalidate breaks ReadBeforeCleanInvalidate on CORTEX_A72: |rig| {
        rig.cpu.get_word(linear(rig.ram(300)), 1);
    }

    bad_give_host_unscrubbed breaks NotScrubbed on MAX: |rig| {
        rig.take_from_guest(300);
        rig.cpu.clean_to_poc(linear(rig.ram(300)));
        rig.give(&rig.host, 300, rig.leaf(300));
    }

    /// One word is not the page.
    bad_give_host_scrubbed_in_part breaks NotScrubbed on MAX: |rig| {
        rig.take_from_guest(300);
        rig.cpu.write_word(rig.ram(300), 0, 0);
        rig.cpu.clean_to_poc(linear(rig.ram(300)));
        rig.give(&rig.host, 300, rig.leaf(300));
    }

    bad_give_guest_with_tags breaks TagsNotZeroed on MAX: |rig| {
        rig.cpu.observe(Event::UsesTags { root: rig.guest.root });
        rig.take_from_host(3);
        rig.cpu.zero_page(linear(rig.ram(3)));
        rig.give(&rig.guest, 3, rig.leaf(3));
    }

    bad_give_host_with_tags breaks TagsNotZeroed on MAX: |rig| {
        rig.cpu.observe(Event::UsesTags { root: rig.guest.root });
        rig.take_from_guest(300);
        rig.cpu.zero_page(linear(rig.ram(300)));
        rig.cpu.clean_to_poc(linear(rig.ram(300)));
        rig.give(&rig.host, 300, rig.leaf(300));
    }

    /// Its owner may have set them again.
    bad_tags_zeroed_before_the_page_is_taken breaks TagsNotZeroed on MAX: |rig| {
        rig.cpu.observe(Event::UsesTags { root: rig.guest.root });
        rig.cpu.zero_tags(linear(rig.ram(3)));
        rig.take_from_host(3);
        rig.cpu.zero_page(linear(rig.ram(3)));
        rig.give(&rig.guest, 3, rig.leaf(3));
    }

    bad_exec_without_icache_maintenance breaks IcacheStale on NEOVERSE_N2: |rig| {
        rig.take_from_host(3);
        rig.cpu.zero_page(linear(rig.ram(3)));
        rig.give(&rig.guest, 3, rig.leaf(3));
    }

    bad_icache_maintenance_before_scrub breaks IcacheStale on NEOVERSE_N2: |rig| {
        rig.take_from_host(3);
        rig.cpu.invalidate_icache(linear(rig.ram(3)));
        rig.cpu.zero_page(linear(rig.ram(3)));
        rig.give(&rig.guest, 3, rig.leaf(3));
    }

    /// A page that is there already and becomes executable.
    bad_relax_to_exec_without_icache_maintenance breaks IcacheStale on NEOVERSE_N2: |rig| {
        rig.give(&rig.guest, 3, rig.leaf(3) | 0b10 << 53);
        rig.locked(&rig.guest, || rig.make(rig.guest.l3, 3, rig.leaf(3)));
    }
}

/// Host to guest with its contents hashed, and back.
fn round_trip(rig: &Rig) {
    let there = rig.ram(3);
    rig.take_from_host(3);
    rig.cpu.clean_invalidate_to_poc(linear(there));
    let _ = (0..512).map(|word| rig.cpu.read_entry(there, word)).fold(0, u64::wrapping_add);
    rig.cpu.clean_to_poc(linear(there));
    rig.cpu.invalidate_icache(linear(there));
    rig.give(&rig.guest, 3, rig.leaf(3));
    rig.take_from_guest(3);
    rig.cpu.zero_page(linear(there));
    rig.cpu.clean_to_poc(linear(there));
    rig.give(&rig.host, 3, rig.leaf(3));
}

#[test]
fn good_hand_over() {
    for features in [CORTEX_A72, NEOVERSE_N2, MAX] {
        let rig = Rig::new(features);
        round_trip(&rig);
        round_trip(&rig);
        assert_eq!(rig.sim.violations(), []);
        assert_eq!(rig.sim.watch().checker().open_entries(), 0);
    }
}

/// With FWB the guest sees the cache whatever it does; without, the page is cleaned.
#[test]
fn good_put_in_a_guests_page() {
    for features in [CORTEX_A72, NEOVERSE_N2, MAX] {
        let rig = Rig::new(features);
        rig.locked(&rig.guest, || {
            rig.cpu.put_word(linear(rig.ram(300)), 1, 7);
            if !features.fwb {
                rig.cpu.clean_to_poc(linear(rig.ram(300)));
            }
        });
        assert_eq!(rig.sim.violations(), []);
    }
}

#[test]
fn good_get_from_a_guests_page() {
    for features in [CORTEX_A72, NEOVERSE_N2, MAX] {
        let rig = Rig::new(features);
        if !features.fwb {
            rig.cpu.clean_invalidate_to_poc(linear(rig.ram(300)));
        }
        rig.cpu.get_word(linear(rig.ram(300)), 1);
        assert_eq!(rig.sim.violations(), []);
    }
}

/// DIC: the instruction cache sees stores by itself.
#[test]
fn good_exec_with_dic() {
    let rig = Rig::new(MAX);
    rig.take_from_host(3);
    rig.cpu.zero_page(linear(rig.ram(3)));
    rig.give(&rig.guest, 3, rig.leaf(3));
    assert_eq!(rig.sim.violations(), []);
}

#[test]
fn good_share_enters_as_it_is() {
    for features in [CORTEX_A72, NEOVERSE_N2, MAX] {
        let rig = Rig::new(features);
        rig.cpu.clean_to_poc(linear(rig.ram(3)));
        rig.cpu.invalidate_icache(linear(rig.ram(3)));
        rig.give(&rig.guest, 3, rig.leaf(3));
        assert_eq!(rig.sim.violations(), []);
    }
}

/// A shared page that goes back is the host's as the guest left it.
#[test]
fn good_shared_page_is_not_scrubbed() {
    let rig = Rig::new(MAX);
    rig.give(&rig.host, 300, rig.leaf(300));
    rig.take_from_guest(300);
    assert_eq!(rig.sim.violations(), []);
}

/// EL2 hashes nothing, so it may copy what a guest that FWB binds has written.
#[test]
fn good_copy_from_guest() {
    for (features, clean) in [(MAX, false), (CORTEX_A72, true)] {
        let rig = Rig::new(features);
        let to = rig.ram(1000);
        rig.take_from_guest(300);
        if clean {
            rig.cpu.clean_invalidate_to_poc(linear(rig.ram(300)));
        }
        rig.cpu.copy_page(linear(rig.ram(300)), linear(to));
        rig.cpu.clean_to_poc(linear(to));
        rig.cpu.invalidate_icache(linear(to));
        rig.give(&rig.guest, 300, page(to, rig.normal()));
        assert_eq!(rig.sim.violations(), []);
    }
}

/// What a guest borrowed was never its own: the host may lend it again as it is.
#[test]
fn good_page_lent_again_is_not_scrubbed() {
    const BORROWED: u64 = 2 << 55;
    let rig = Rig::new(MAX);
    for _ in 0..2 {
        rig.give(&rig.guest, 3, rig.leaf(3) | BORROWED);
        rig.take_from_guest(3);
    }
    assert_eq!(rig.sim.violations(), []);
}
