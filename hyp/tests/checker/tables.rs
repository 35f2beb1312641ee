//! Live tables: break-before-make, invalidation, the life of a table page.

use crate::rig::{AF, DONATED, HYP_LEAF, LEAF, LOCKED, Rig, Tree, W, ipa, linear, page, table};
use hyp::addr::HypVa;
use hyp::hw::{Dsb, Event, Observe, PhysMem, TableOwner, Tlb, Tlbi};
use hyp::lock::Rank;
use hyp::spec::checker::Rule;
use testkit::features::{CORTEX_A72, MAX, NEOVERSE_N2};

crate::examples! {
    bad_no_bbm breaks NoBreakBeforeMake on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.make(rig.host.l3, 3, rig.leaf(4));
            rig.dsb();
        });
    }

    bad_no_bbm_stage1 breaks NoBreakBeforeMake on MAX: |rig| {
        rig.locked(&rig.hyp, || rig.make(rig.hyp.l3, 3, page(rig.ram(4), HYP_LEAF)));
    }

    /// A change of memory type needs it too.
    bad_no_bbm_memory_type breaks NoBreakBeforeMake on MAX: |rig| {
        rig.locked(&rig.host, || rig.make(rig.host.l3, 3, rig.leaf(3) ^ 0b0011 << 2));
    }

    /// And one of block size, though all pages stay where they are.
    bad_no_bbm_fold breaks NoBreakBeforeMake on MAX: |rig| {
        rig.locked(&rig.hyp, || rig.make(rig.hyp.l2, 0, rig.ram(0).base().raw() | HYP_LEAF & !2));
    }

    bad_bbm_missing_tlbi breaks MissingTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, LOCKED);
            rig.dsb();
            rig.make(rig.host.l3, 3, rig.leaf(4));
        });
    }

    bad_unmap_missing_tlbi breaks MissingTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.dsb();
        });
    }

    /// No break-before-make is needed, but an invalidation is.
    bad_write_protect_missing_tlbi breaks MissingTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || rig.make(rig.host.l3, 3, rig.leaf(3) & !W));
    }

    /// Until it is, the leaf is cached and what it loses next is not noticed.
    bad_access_flag_cleared_missing_tlbi breaks MissingTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || rig.make(rig.host.l3, 3, rig.leaf(3) & !AF));
    }

    bad_tlbi_of_another_page breaks MissingTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.invalidate(&rig.host, 4, None);
        });
    }

    /// Maintenance on one CPU does not complete what another has written.
    bad_tlbi_by_another_cpu breaks MissingTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.other.dsb(Dsb::Ish);
            let previous = rig.other.enter_stage2(rig.host.ctx());
            rig.other.tlbi(Tlbi::CurrentVmid);
            rig.other.dsb(Dsb::Ish);
            rig.other.leave_stage2(previous);
        });
    }

    bad_unmap_stage1_missing_tlbi breaks MissingTlbi on MAX: |rig| {
        rig.locked(&rig.hyp, || {
            rig.cpu.write_entry(rig.hyp.l3, 3, 0);
            rig.dsb();
        });
    }

    bad_bbm_by_wrong_vmid breaks WrongVmid on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, LOCKED);
            rig.invalidate(&rig.guest, 3, None);
            rig.make(rig.host.l3, 3, rig.leaf(4));
        });
    }

    bad_second_tlbi_by_wrong_vmid breaks WrongVmid on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.dsb();
            rig.installed(&rig.host, || rig.tlbi_ipa(3, None));
            rig.dsb();
            rig.installed(&rig.guest, || rig.cpu.tlbi(Tlbi::StageOneAndCombined));
            rig.dsb();
        });
    }

    bad_tlbi_before_dsb breaks MissingDsbBeforeTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.installed(&rig.host, || {
                rig.cpu.tlbi(Tlbi::CurrentVmid);
                rig.dsb();
            });
        });
    }

    bad_no_dsb_between_tlbis breaks MissingDsbBetweenTlbis on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.dsb();
            rig.installed(&rig.host, || {
                rig.tlbi_ipa(3, None);
                rig.cpu.tlbi(Tlbi::StageOneAndCombined);
                rig.dsb();
            });
        });
    }

    bad_only_ipa_tlbi breaks MissingCombinedTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.dsb();
            rig.installed(&rig.host, || rig.tlbi_ipa(3, None));
            rig.dsb();
        });
    }

    bad_no_dsb_after_tlbi breaks MissingDsbAfterTlbi on CORTEX_A72: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.dsb();
            rig.installed(&rig.host, || rig.cpu.tlbi(Tlbi::CurrentVmid));
        });
    }

    /// A DSB that reaches this CPU only does not complete broadcast maintenance.
    bad_local_dsb_after_tlbi breaks MissingDsbAfterTlbi on MAX: |rig| {
        rig.locked(&rig.hyp, || {
            rig.cpu.write_entry(rig.hyp.l3, 3, 0);
            rig.dsb();
            rig.cpu.tlbi(Tlbi::AllHyp);
            rig.cpu.dsb(Dsb::Nsh);
        });
    }

    bad_make_without_dsb breaks MissingDsbAfterMake on MAX: |rig| {
        rig.locked(&rig.hyp, || rig.cpu.write_entry(rig.hyp.l3, 300, page(rig.ram(300), HYP_LEAF)));
    }

    bad_level_hint breaks WrongLevelHint on MAX: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.invalidate(&rig.host, 3, Some(2));
        });
    }

    /// All entries of the table were invalid and clean: its descriptor is cached all the same.
    bad_emptied_table_reused_after_leaf_tlbi breaks WrongLevelHint on MAX: |rig| {
        let l3 = rig.fresh();
        rig.locked(&rig.guest, || {
            rig.make(rig.guest.l2, 2, table(l3));
            rig.cpu.write_entry(rig.guest.l2, 2, 0);
            rig.invalidate(&rig.guest, 1024, Some(3));
        });
    }

    bad_emptied_table_reused breaks ReusedBeforeInvalidation on MAX: |rig| {
        let l3 = rig.fresh();
        rig.locked(&rig.guest, || {
            rig.make(rig.guest.l2, 2, table(l3));
            rig.cpu.write_entry(rig.guest.l2, 2, 0);
            rig.make(rig.guest.l2, 3, table(l3));
            rig.invalidate(&rig.guest, 1024, None);
        });
    }

    /// One page of the 512 is left out.
    bad_table_invalidated_in_part breaks MissingTlbi on MAX: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l2, 0, 0);
            rig.dsb();
            rig.installed(&rig.host, || {
                for n in (0..512).filter(|n| *n != 100) {
                    rig.tlbi_ipa(n, None);
                }
                rig.dsb();
                rig.cpu.tlbi(Tlbi::StageOneAndCombined);
                rig.dsb();
            });
        });
    }

    bad_free_page_without_clean breaks FreedBeforeInvalidation on MAX: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l2, 0, 0);
            rig.cpu.observe(Event::TableFreed { page: rig.host.l3 });
            rig.dsb();
            rig.installed(&rig.host, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.dsb();
        });
    }

    bad_free_reachable_table breaks FreedWhileReachable on MAX: |rig| {
        rig.cpu.observe(Event::TableFreed { page: rig.host.l3 });
    }

    bad_reuse_page breaks ReusedBeforeInvalidation on MAX: |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l2, 0, 0);
            rig.cpu.write_word(rig.host.l3, 0, 1);
            rig.dsb();
            rig.installed(&rig.host, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.dsb();
        });
    }

    bad_reuse_zeroed_page breaks ReusedBeforeInvalidation on MAX: |rig| {
        let l3 = rig.fresh();
        rig.locked(&rig.guest, || {
            rig.make(rig.guest.l2, 2, table(l3));
            rig.cpu.write_entry(rig.guest.l2, 2, 0);
            rig.cpu.zero_page(linear(l3));
            rig.invalidate(&rig.guest, 1024, None);
        });
    }

    bad_link_page_twice breaks LinkedTwice on MAX: |rig| {
        rig.locked(&rig.guest, || rig.make(rig.guest.l2, 3, table(rig.guest.l3)));
    }

    bad_zero_live_table breaks LiveTableOverwritten on MAX: |rig| {
        rig.cpu.zero_page(linear(rig.guest.l3));
    }

    bad_map_live_table breaks TableMapped on MAX: |rig| {
        rig.locked(&rig.host, || rig.make(rig.host.l3, 300, page(rig.guest.l3, rig.normal())));
    }

    bad_overlap_vmid breaks VmidOverlap on MAX: |rig| {
        let root = rig.fresh();
        rig.cpu.observe(Event::Root { root, pages: 1, level: 1, owner: TableOwner::Guest(2), vmid: 5 });
    }

    bad_reuse_vmid breaks VmidReusedBeforeInvalidation on MAX: |rig| {
        rig.cpu.observe(Event::RootGone { root: rig.guest.root });
        let root = rig.fresh();
        rig.cpu.observe(Event::Root { root, pages: 1, level: 1, owner: TableOwner::Guest(2), vmid: 5 });
    }

    /// The tree was empty when its VMID was invalidated, and is not when it dies.
    bad_flush_before_the_last_make breaks VmidReusedBeforeInvalidation on MAX: |rig| {
        let root = rig.empty_guest(6);
        rig.cpu.observe(Event::Lock { rank: Rank::GuestS2(2), held: true });
        rig.flush(root, 6);
        rig.make(root, 1, table(rig.fresh()));
        rig.cpu.observe(Event::RootGone { root });
        rig.empty_guest(6);
    }

    /// The tree is dead but every CPU remembers it.
    bad_free_root_without_clean breaks FreedBeforeInvalidation on MAX: |rig| {
        rig.cpu.observe(Event::RootGone { root: rig.guest.root });
        rig.cpu.observe(Event::TableFreed { page: rig.guest.l3 });
    }

    bad_switch_wrong_vmid breaks SwitchWrongVmid on MAX: |rig| {
        let mut wrong = rig.host.ctx();
        wrong.vttbr |= 5 << 48;
        let _ = rig.cpu.enter_stage2(wrong);
    }

    bad_leave_to_another_context breaks SwitchWrongVmid on MAX: |rig| {
        let _ = rig.cpu.enter_stage2(rig.host.ctx());
        rig.cpu.leave_stage2(rig.guest.ctx().into());
    }

    bad_el2_asid breaks HypVmid on MAX: |rig| {
        let root = rig.fresh();
        rig.cpu.observe(Event::Root { root, pages: 1, level: 1, owner: TableOwner::Hyp, vmid: 1 });
    }

    /// Bits 1:0 = 01 at level 3.
    bad_reserved_type breaks Malformed on MAX: |rig| {
        rig.locked(&rig.guest, || rig.make(rig.guest.l3, 3, rig.leaf(3) & !2));
    }

    bad_output_beyond_pa breaks Malformed on CORTEX_A72: |rig| {
        rig.locked(&rig.guest, || rig.make(rig.guest.l2, 3, 1 << 44 | DEVICE_BLOCK));
    }

    bad_unaligned_block breaks Malformed on CORTEX_A72: |rig| {
        rig.locked(&rig.guest, || rig.make(rig.guest.l2, 3, 0x1000 | DEVICE_BLOCK));
    }

    /// MemAttr 1111 without FEAT_MTE_PERM on a CPU with FWB.
    bad_memory_attribute breaks Malformed on MAX_NO_MTE: |rig| {
        rig.locked(&rig.host, || rig.make(rig.host.l2, 3, 0x60_0000 | LEAF & !2));
    }

    /// A table in a tree that becomes live is looked at as well.
    bad_malformed_child breaks Malformed on CORTEX_A72: |rig| {
        let l3 = rig.fresh();
        rig.cpu.write_entry(l3, 7, 1);
        rig.locked(&rig.guest, || rig.make(rig.guest.l2, 3, table(l3)));
    }

    bad_root_alignment breaks Malformed on CORTEX_A72: |rig| {
        rig.fresh();
        let odd = rig.ram(8203);
        rig.cpu.observe(Event::Root { root: odd, pages: 2, level: 1, owner: TableOwner::Guest(2), vmid: 6 });
    }

    bad_more_open_entries_than_it_can_hold breaks Capacity on CORTEX_A72: |rig| {
        let tables = [2, 3, 4, 5].map(|slot| (slot, rig.fresh()));
        rig.locked(&rig.guest, || {
            for (slot, l3) in tables {
                for n in 0..512 {
                    rig.cpu.write_entry(l3, n, page(rig.ram(0), DEVICE_PAGE));
                }
                rig.make(rig.guest.l2, slot, table(l3));
            }
            for n in 0..512 {
                tables.iter().for_each(|(_, l3)| rig.cpu.write_entry(*l3, n, 0));
            }
            rig.cpu.write_entry(rig.guest.l3, 300, 0);
            rig.dsb();
            rig.installed(&rig.guest, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.dsb();
        });
    }
}

const DEVICE_PAGE: u64 = LEAF & !(0b1111 << 2) | 0b0001 << 2 | 1 << 54;
const DEVICE_BLOCK: u64 = DEVICE_PAGE & !2;

/// Broken by an example that the machine refuses as well.
pub(crate) const BROKEN_BY_PANIC: Rule = Rule::Undefined;

#[test]
fn bad_range_tlbi_undefined() {
    let rig = Rig::new(CORTEX_A72);
    let op = Tlbi::IpaRange { ipa: ipa(0), scale: 0, num: 0, level: None };
    let run = std::panic::AssertUnwindSafe(|| rig.cpu.tlbi(op));
    assert!(std::panic::catch_unwind(run).is_err());
    assert_eq!(rig.sim.violations(), [BROKEN_BY_PANIC]);
}

fn good(features: hyp::hw::CpuFeatures, steps: impl FnOnce(&Rig)) {
    let rig = Rig::new(features);
    steps(&rig);
    assert_eq!(rig.sim.violations(), []);
    assert_eq!(rig.sim.watch().checker().open_entries(), 0);
}

fn break_and_make(rig: &Rig, tree: &Tree, hint: Option<u8>) {
    rig.locked(tree, || {
        rig.cpu.write_entry(tree.l3, 3, LOCKED);
        rig.invalidate(tree, 3, hint);
        rig.make(tree.l3, 3, rig.leaf(4));
    });
}

#[test]
fn good_bbm() {
    good(CORTEX_A72, |rig| break_and_make(rig, &rig.host, None));
    good(MAX, |rig| break_and_make(rig, &rig.host, Some(3)));
}

#[test]
fn good_bbm_by_vmid() {
    good(CORTEX_A72, |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, LOCKED);
            rig.dsb();
            rig.installed(&rig.host, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.dsb();
            rig.make(rig.host.l3, 3, rig.leaf(4));
        });
    });
}

#[test]
fn good_bbm_by_all_vmids() {
    good(CORTEX_A72, |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, 0);
            rig.dsb();
            rig.cpu.tlbi(Tlbi::AllVmids);
            rig.dsb();
        });
    });
}

#[test]
fn good_bbm_stage1() {
    good(MAX, |rig| {
        let va = HypVa::new(0x8000_3000).unwrap();
        rig.locked(&rig.hyp, || {
            rig.cpu.write_entry(rig.hyp.l3, 3, 0);
            rig.dsb();
            rig.cpu.tlbi(Tlbi::Hyp { va, level: Some(3) });
            rig.dsb();
            rig.make(rig.hyp.l3, 3, page(rig.ram(4), HYP_LEAF));
        });
    });
}

/// Permissions may change in place; what is taken away is invalidated, what is added is not.
#[test]
fn good_permissions_without_bbm() {
    good(CORTEX_A72, |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l3, 3, rig.leaf(3) & !W);
            rig.invalidate(&rig.host, 3, None);
            rig.make(rig.host.l3, 3, rig.leaf(3));
            // Software bits.
            rig.make(rig.host.l3, 4, rig.leaf(4) | 1 << 55);
            // What no TLB may hold has nothing to lose.
            rig.cpu.write_entry(rig.host.l3, 5, rig.leaf(5) & !AF);
            rig.invalidate(&rig.host, 5, None);
            rig.make(rig.host.l3, 5, rig.leaf(5) & !(AF | W));
            rig.make(rig.host.l3, 5, rig.leaf(5));
        });
    });
}

#[test]
fn good_notes_need_no_tlbi() {
    good(CORTEX_A72, |rig| {
        rig.locked(&rig.host, || {
            rig.make(rig.host.l3, 300, 0);
            rig.make(rig.host.l3, 300, DONATED);
        });
    });
}

#[test]
fn good_range_tlbi_for_a_table() {
    good(NEOVERSE_N2, |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l2, 0, 0);
            rig.dsb();
            rig.installed(&rig.host, || {
                // (7 + 1) << (5 * 1 + 1) = 512 pages.
                rig.cpu.tlbi(Tlbi::IpaRange { ipa: ipa(0), scale: 1, num: 7, level: None });
                rig.dsb();
                rig.cpu.tlbi(Tlbi::StageOneAndCombined);
                rig.dsb();
            });
            rig.cpu.observe(Event::TableFreed { page: rig.host.l3 });
        });
        rig.cpu.zero_page(linear(rig.host.l3));
    });
}

#[test]
fn good_free_page() {
    good(MAX, |rig| {
        let l3 = rig.fresh();
        rig.locked(&rig.guest, || {
            rig.make(rig.guest.l2, 2, table(l3));
            rig.cpu.write_entry(rig.guest.l2, 2, 0);
            rig.invalidate(&rig.guest, 1024, None);
            rig.cpu.observe(Event::TableFreed { page: l3 });
            rig.cpu.zero_page(linear(l3));
            rig.make(rig.guest.l2, 3, table(l3));
        });
    });
}

#[test]
fn good_free_tree() {
    good(MAX, |rig| {
        let guest = &rig.guest;
        rig.locked(guest, || {
            rig.cpu.observe(Event::RootGone { root: guest.root });
            rig.dsb();
            rig.installed(guest, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.dsb();
            for page in [guest.l3, guest.l2, guest.root] {
                rig.cpu.observe(Event::TableFreed { page });
                rig.cpu.zero_page(linear(page));
            }
        });
        let root = rig.fresh();
        rig.cpu.observe(Event::Root { root, pages: 1, level: 1, owner: TableOwner::Guest(2), vmid: 5 });
    });
}

/// An empty tree may be invalidated before its end is told, if nothing was made since.
#[test]
fn good_flush_then_end() {
    good(MAX, |rig| {
        let root = rig.empty_guest(6);
        rig.flush(root, 6);
        rig.cpu.observe(Event::RootGone { root });
        rig.cpu.observe(Event::TableFreed { page: root });
        rig.cpu.zero_page(linear(root));
        rig.empty_guest(6);
    });
}

/// A page that was a table and is invalidated can be a table of another tree.
#[test]
fn good_release_table() {
    good(MAX, |rig| {
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l2, 0, 0);
            rig.dsb();
            rig.installed(&rig.host, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.dsb();
        });
        rig.cpu.zero_page(linear(rig.host.l3));
        rig.locked(&rig.guest, || rig.make(rig.guest.l2, 3, table(rig.host.l3)));
    });
}

#[test]
fn good_switch() {
    good(MAX, |rig| {
        rig.installed(&rig.host, || rig.dsb());
        rig.installed(&rig.guest, || {});
    });
}

/// The new child is filled before it is linked, and written like any other table after.
#[test]
fn good_write_child() {
    good(MAX, |rig| {
        let l3 = rig.fresh();
        rig.cpu.write_entry(l3, 0, page(rig.ram(0), DEVICE_PAGE));
        rig.locked(&rig.guest, || {
            rig.make(rig.guest.l2, 2, table(l3));
            rig.make(l3, 1, page(rig.ram(1), DEVICE_PAGE));
            rig.cpu.write_entry(l3, 0, 0);
            rig.invalidate(&rig.guest, 1024, Some(3));
        });
    });
}

/// A block becomes a table and a block again; nothing about its pages has to be done twice.
#[test]
fn good_split_and_fold() {
    good(CORTEX_A72, |rig| {
        let (l3, block) = (rig.fresh(), rig.ram(512).base().raw() | LEAF & !2);
        rig.locked(&rig.host, || rig.make(rig.host.l2, 1, block));
        for n in 0..512 {
            rig.cpu.write_entry(l3, n, rig.leaf(512 + n));
        }
        rig.locked(&rig.host, || {
            rig.cpu.write_entry(rig.host.l2, 1, LOCKED);
            rig.invalidate(&rig.host, 512, None);
            rig.make(rig.host.l2, 1, table(l3));
            rig.cpu.write_entry(rig.host.l2, 1, LOCKED);
            rig.dsb();
            rig.installed(&rig.host, || rig.cpu.tlbi(Tlbi::CurrentVmid));
            rig.dsb();
            rig.make(rig.host.l2, 1, block);
            rig.cpu.observe(Event::TableFreed { page: l3 });
        });
    });
}
