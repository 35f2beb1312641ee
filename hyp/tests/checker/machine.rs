//! The machine itself, without the checker's word: what a forgotten step lets a CPU do.
//!
//! Every example has a spy: all CPUs touch the page after every operation.

use crate::rig::{DONATED, LEAF, Rig, Tree, VTCR, W, ipa, linear, page, table};
use hyp::addr::{HypVa, Pfn};
use hyp::hw::{CacheOps, CpuFeatures, Dsb, PhysMem, Stage2Ctx, Tags, Tlb, Tlbi};
use hyp::pgtable::TablePool;
use std::collections::BTreeSet;
use std::sync::Arc;
use testkit::features::{CORTEX_A72, MAX, NEOVERSE_N2};
use testkit::{Op, Sim, TestPool, Via};

/// How the host still reaches page 3 after its entry became invalid and `steps` were done.
fn ways_left(features: CpuFeatures, steps: impl FnOnce(&Rig)) -> BTreeSet<Via> {
    let rig = Rig::new(features);
    rig.sim.spy(rig.host.ctx(), ipa(3).raw());
    rig.cpu.write_entry(rig.host.l3, 3, 0);
    steps(&rig);
    rig.sim.reach(rig.host.ctx(), ipa(3).raw()).into_iter().map(|reach| reach.via).collect()
}

fn under(rig: &Rig, tree: &Tree, op: Tlbi) {
    rig.installed(tree, || rig.cpu.tlbi(op));
}

#[test]
fn the_whole_sequence_leaves_no_way() {
    for features in [CORTEX_A72, NEOVERSE_N2, MAX] {
        assert_eq!(ways_left(features, |rig| rig.invalidate(&rig.host, 3, Some(3))), BTreeSet::new());
        let by_vmid = |rig: &Rig| {
            rig.dsb();
            under(rig, &rig.host, Tlbi::CurrentVmid);
            rig.dsb();
        };
        assert_eq!(ways_left(features, by_vmid), BTreeSet::new());
    }
}

#[test]
fn without_tlbi_leaf_and_combination_stay() {
    assert_eq!(ways_left(MAX, Rig::dsb), BTreeSet::from([Via::Leaf, Via::Combined]));
}

#[test]
fn tlbi_by_ipa_leaves_the_combination() {
    let steps = |rig: &Rig| {
        rig.dsb();
        under(rig, &rig.host, Tlbi::Ipa { ipa: ipa(3), level: None });
        rig.dsb();
    };
    assert_eq!(ways_left(MAX, steps), BTreeSet::from([Via::Combined]));
}

/// The combined entries go, and are made again from the stage-2 leaf.
#[test]
fn vmalle1_leaves_the_stage_2_leaf() {
    let steps = |rig: &Rig| {
        rig.dsb();
        under(rig, &rig.host, Tlbi::StageOneAndCombined);
        rig.dsb();
    };
    assert!(ways_left(MAX, steps).contains(&Via::Leaf));
}

#[test]
fn no_dsb_between_the_two_leaves_a_new_combination() {
    let steps = |rig: &Rig| {
        rig.dsb();
        under(rig, &rig.host, Tlbi::Ipa { ipa: ipa(3), level: None });
        under(rig, &rig.host, Tlbi::StageOneAndCombined);
        rig.dsb();
    };
    assert_eq!(ways_left(MAX, steps), BTreeSet::from([Via::Combined]));
}

#[test]
fn tlbi_before_the_store_is_visible_is_in_vain() {
    let steps = |rig: &Rig| {
        under(rig, &rig.host, Tlbi::CurrentVmid);
        rig.dsb();
    };
    assert_eq!(ways_left(MAX, steps), BTreeSet::from([Via::Leaf, Via::Combined]));
}

#[test]
fn wrong_vmid_leaves_everything() {
    assert_eq!(
        ways_left(MAX, |rig| rig.invalidate(&rig.guest, 3, None)),
        BTreeSet::from([Via::Leaf, Via::Combined])
    );
}

#[test]
fn wrong_level_hint_leaves_the_leaf() {
    assert!(ways_left(MAX, |rig| rig.invalidate(&rig.host, 3, Some(2))).contains(&Via::Leaf));
    // A CPU without FEAT_TTL does not look at it.
    assert_eq!(ways_left(CORTEX_A72, |rig| rig.invalidate(&rig.host, 3, Some(2))), BTreeSet::new());
}

#[test]
fn without_last_dsb_everything_stays() {
    let steps = |rig: &Rig| {
        rig.dsb();
        under(rig, &rig.host, Tlbi::CurrentVmid);
    };
    assert_eq!(ways_left(MAX, steps), BTreeSet::from([Via::Leaf, Via::Combined]));
}

/// The other CPU has not heard of it.
#[test]
fn local_dsb_completes_nothing_elsewhere() {
    let steps = |rig: &Rig| {
        rig.dsb();
        under(rig, &rig.host, Tlbi::CurrentVmid);
        rig.cpu.dsb(Dsb::Nsh);
    };
    assert_eq!(ways_left(MAX, steps), BTreeSet::from([Via::Leaf, Via::Combined]));
}

#[test]
fn range_tlbi_covers_its_range_and_no_more() {
    let steps = |first: u64| {
        move |rig: &Rig| {
            let ipa = hyp::addr::Ipa::new(ipa(0).raw() + first * 4096).unwrap();
            rig.dsb();
            under(rig, &rig.host, Tlbi::IpaRange { ipa, scale: 0, num: 0, level: Some(3) });
            rig.dsb();
            under(rig, &rig.host, Tlbi::StageOneAndCombined);
            rig.dsb();
        }
    };
    assert_eq!(ways_left(MAX, steps(2)), BTreeSet::new());
    assert_ne!(ways_left(MAX, steps(4)), BTreeSet::new());
}

/// A table page that was emptied and is reused without forgetting its descriptor: every CPU
/// walks into what is now somebody else's data.
#[test]
fn reused_table_is_walked_through_the_walk_cache() {
    let rig = Rig::new(MAX);
    let (ctx, l3) = (rig.guest.ctx(), rig.fresh());
    rig.locked(&rig.guest, || rig.make(rig.guest.l2, 2, table(l3)));
    rig.sim.spy(ctx, ipa(1024).raw());
    rig.locked(&rig.guest, || {
        rig.cpu.write_entry(rig.guest.l2, 2, 0);
        rig.invalidate(&rig.guest, 1024, Some(3));
    });
    rig.cpu.write_word(l3, 0, page(rig.ram(0), LEAF));
    let reached = rig.sim.reach(ctx, ipa(1024).raw());
    assert!(reached.iter().any(|reach| reach.via == Via::WalkCache && reach.page == rig.ram(0).raw()));
    rig.invalidate(&rig.guest, 1024, None);
    assert_eq!(rig.sim.reach(ctx, ipa(1024).raw()), BTreeSet::new());
}

/// Two roots with one VMID share what is cached.
#[test]
fn shared_vmid_leaks_translations() {
    let rig = Rig::new(MAX);
    let stranger = Stage2Ctx { vttbr: rig.guest.ctx().vttbr, vtcr: VTCR };
    let same_vmid = Stage2Ctx { vttbr: 5 << 48 | rig.fresh().base().raw(), vtcr: VTCR };
    assert_eq!(rig.sim.reach(same_vmid, ipa(300).raw()), BTreeSet::new());
    assert_ne!(rig.sim.reach(stranger, ipa(300).raw()), BTreeSet::new());
    assert_ne!(rig.sim.reach(same_vmid, ipa(300).raw()), BTreeSet::new());
}

/// A store before the TLBI lands in a page that is no longer the host's.
#[test]
fn stale_writer_overwrites_a_scrubbed_page() {
    let rig = Rig::new(MAX);
    let ctx = rig.host.ctx();
    rig.sim.spy(ctx, ipa(3).raw());
    rig.lock(&rig.host);
    rig.cpu.write_entry(rig.host.l3, 3, DONATED);
    rig.cpu.zero_page(linear(rig.ram(3)));
    rig.sim.store(ctx, ipa(3).raw(), true, 0xbad);
    rig.invalidate(&rig.host, 3, None);
    assert_eq!(rig.cpu.untraced().read_entry(rig.ram(3), 0), 0xbad);
    rig.sim.store(ctx, ipa(3).raw(), true, 0xdead);
    assert_eq!(rig.cpu.untraced().read_entry(rig.ram(3), 0), 0xbad);
}

#[test]
fn write_protection_without_tlbi_does_not_protect() {
    let rig = Rig::new(MAX);
    let ctx = rig.host.ctx();
    rig.sim.spy(ctx, ipa(3).raw());
    rig.cpu.write_entry(rig.host.l3, 3, rig.leaf(3) & !W);
    rig.sim.store(ctx, ipa(3).raw(), true, 1);
    assert_eq!(rig.sim.load(ctx, ipa(3).raw(), true), BTreeSet::from([1]));
    rig.invalidate(&rig.host, 3, None);
    rig.sim.store(ctx, ipa(3).raw(), true, 2);
    assert_eq!(rig.sim.load(ctx, ipa(3).raw(), true), BTreeSet::from([1]));
}

/// Zeros in the cache do not hide the secret in RAM from a non-cacheable alias.
#[test]
fn scrub_without_clean_shows_the_secret_past_the_cache() {
    let rig = Rig::new(CORTEX_A72);
    let (guest, host) = (rig.guest.ctx(), rig.host.ctx());
    rig.sim.store(guest, ipa(300).raw(), false, 0x5ec);
    rig.take_from_guest(300);
    rig.cpu.zero_page(linear(rig.ram(300)));
    rig.give(&rig.host, 300, rig.leaf(300));
    assert_eq!(rig.sim.load(host, ipa(300).raw(), true), BTreeSet::from([0]));
    assert_eq!(rig.sim.load(host, ipa(300).raw(), false), BTreeSet::from([0x5ec]));
    rig.cpu.clean_to_poc(linear(rig.ram(300)));
    assert_eq!(rig.sim.load(host, ipa(300).raw(), false), BTreeSet::from([0]));
}

/// What EL2 hashes is not what the guest gets when the stale line is gone.
#[test]
fn hash_without_invalidate_reads_a_line_that_differs_from_ram() {
    let rig = Rig::new(CORTEX_A72);
    let host = rig.host.ctx();
    rig.sim.store(host, ipa(3).raw(), false, 0x900d);
    let _ = rig.sim.load(host, ipa(3).raw(), true);
    rig.sim.store(host, ipa(3).raw(), false, 0xbad);
    rig.take_from_host(3);
    assert_eq!(rig.cpu.untraced().read_entry(rig.ram(3), 0), 0x900d);
    rig.cpu.clean_to_poc(linear(rig.ram(3)));
    assert_eq!(rig.cpu.untraced().read_entry(rig.ram(3), 0), 0x900d);
    rig.cpu.clean_invalidate_to_poc(linear(rig.ram(3)));
    assert_eq!(rig.cpu.untraced().read_entry(rig.ram(3), 0), 0xbad);
}

/// With FWB stage 2 decides, so that the alias does not exist.
#[test]
fn fwb_forces_write_back() {
    let rig = Rig::new(MAX);
    let guest = rig.guest.ctx();
    rig.sim.store(guest, ipa(300).raw(), false, 7);
    assert_eq!(rig.cpu.untraced().read_entry(rig.ram(300), 0), 7);
    assert_eq!(rig.sim.memory().read_ram(rig.ram(300).raw(), 0), 0);
}

#[test]
fn stale_instructions_run_until_the_icache_is_invalidated() {
    for (features, stale) in [(NEOVERSE_N2, true), (MAX, false)] {
        let rig = Rig::new(features);
        let guest = rig.guest.ctx();
        rig.sim.store(guest, ipa(300).raw(), true, 1);
        assert_eq!(rig.sim.fetch(guest, ipa(300).raw()), BTreeSet::from([1]));
        rig.sim.store(guest, ipa(300).raw(), true, 2);
        assert_eq!(rig.sim.fetch(guest, ipa(300).raw()), BTreeSet::from([if stale { 1 } else { 2 }]));
        rig.cpu.invalidate_icache(linear(rig.ram(300)));
        assert_eq!(rig.sim.fetch(guest, ipa(300).raw()), BTreeSet::from([2]));
    }
}

/// Without IDC a fetch does not see what no clean has brought to the point of unification.
#[test]
fn fetch_misses_stores_that_are_not_cleaned() {
    let rig = Rig::new(CORTEX_A72);
    let guest = rig.guest.ctx();
    rig.sim.store(guest, ipa(300).raw(), true, 1);
    assert_eq!(rig.sim.fetch(guest, ipa(300).raw()), BTreeSet::from([0]));
    rig.cpu.invalidate_icache(linear(rig.ram(300)));
    assert_eq!(rig.sim.fetch(guest, ipa(300).raw()), BTreeSet::from([1]));
}

/// EL2 keeps its own stale translations as well.
#[test]
fn el2_uses_a_stale_window() {
    let rig = Rig::new(MAX);
    let slot = HypVa::new(0x8000_3000).unwrap();
    rig.sim.spy_hyp(slot.raw());
    rig.locked(&rig.hyp, || {
        rig.cpu.write_entry(rig.hyp.l3, 3, 0);
        rig.dsb();
        assert_ne!(rig.sim.reach_hyp(slot.raw()), BTreeSet::new());
        rig.cpu.tlbi(Tlbi::Hyp { va: slot, level: Some(3) });
        rig.dsb();
    });
    assert_eq!(rig.sim.reach_hyp(slot.raw()), BTreeSet::new());
}

/// The page that EL2 names must be the one its own map shows.
#[test]
#[should_panic(expected = "EL2 has")]
fn el2_scrub_through_a_wrong_window_is_refused() {
    let rig = Rig::new(MAX);
    let slot = HypVa::new(0x8000_3000).unwrap();
    rig.cpu.zero_page(hyp::hw::MappedPage::at(rig.ram(4), slot));
}

/// A pool of the last eight pages, whose next page is out.
fn pool(sim: &Arc<Sim>) -> (TestPool, Pfn) {
    let mut pool = TestPool::new(sim, 8);
    let page = pool.alloc().unwrap();
    (pool, page)
}

#[test]
#[should_panic(expected = "is freed")]
fn a_table_page_freed_twice_is_noticed() {
    let (mut pool, page) = pool(&Sim::new(MAX));
    pool.free(page);
    pool.free(page);
}

#[test]
#[should_panic(expected = "is freed")]
fn a_table_page_freed_with_entries_is_noticed() {
    let (mut pool, page) = pool(&Sim::new(MAX));
    pool.add_entries(page, 1);
    pool.free(page);
}

#[test]
fn a_table_page_that_leaks_is_still_live() {
    let (mut pool, page) = pool(&Sim::new(MAX));
    assert_eq!(pool.live().get(&page.raw()), Some(&0));
    pool.free(page);
    assert!(pool.live().is_empty());
}

#[test]
fn an_allocation_fails_when_it_is_told_to() {
    let (mut pool, _) = pool(&Sim::new(MAX));
    pool.fail_at(2);
    assert!(pool.alloc().is_some());
    assert!(pool.alloc().is_none() && pool.alloc().is_none());
    pool.recover();
    assert!(pool.alloc().is_some());
}

#[test]
fn tags_survive_until_they_are_zeroed() {
    let rig = Rig::new(MAX);
    let page = rig.ram(1000);
    rig.sim.memory().set_tag(page.raw(), 255, 0x1a);
    rig.cpu.zero_page(linear(page));
    assert_eq!(rig.sim.memory().tag(page.raw(), 255), 0xa);
    rig.cpu.zero_tags(linear(page));
    assert_eq!(rig.sim.memory().tag(page.raw(), 255), 0);
}

#[test]
fn the_recorder_keeps_order_and_cpu() {
    let rig = Rig::new(MAX);
    rig.sim.clear_trace();
    rig.locked(&rig.guest, || rig.take(&rig.guest, 300, 0));
    let ops: Vec<Op> = rig.sim.trace().iter().filter(|r| r.cpu == 0).map(|r| r.op).collect();
    let index = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted).unwrap();
    let write = index(&|op| matches!(op, Op::Write(table, 300, _, 0) if *table == rig.guest.l3.raw()));
    let by_ipa = index(&|op| matches!(op, Op::Tlbi(Tlbi::Ipa { .. }, Some(5))));
    let combined = index(&|op| *op == Op::Tlbi(Tlbi::StageOneAndCombined, Some(5)));
    assert!(write < by_ipa && by_ipa < combined);
    assert_eq!(ops.iter().filter(|op| **op == Op::Dsb(Dsb::Ish)).count(), 3);
}
