//! Attributes that change under a mapping that stays.

use crate::rig::{BORROWED, GIB, KIB4, MIB2, RAM, RO, RW, RWX, Rig};
use hyp::addr::Ipa;
use hyp::pgtable::{
    Access, BadAttrs, Change, Error, LeafState, Level, MemType, NoteKinds, Prot, S2Attrs, Stage2Format,
    TagControl,
};
use testkit::features::{CORTEX_A72, MATRIX, MAX, NEOVERSE_N2};
use testkit::{Op, Via};

fn apply(rig: &Rig, start: u64, end: u64, change: Change) -> Result<u64, Error> {
    let range = rig.range(start, end);
    let got = rig.table.lock(&rig.hw).change(&rig.hw, range, change);
    rig.check();
    got
}

/// A table with a page, a note, nothing and a block.
fn mixed(features: hyp::hw::CpuFeatures, attrs: S2Attrs) -> Rig {
    let mut rig = Rig::guest(features, 40);
    for ipa in [GIB, GIB + MIB2, GIB + MIB2 + KIB4] {
        rig.spy(ipa);
    }
    rig.map(GIB, GIB + KIB4, 0x8000_0000, attrs);
    rig.annotate(GIB + KIB4, GIB + 2 * KIB4, RAM);
    rig.map(GIB + MIB2, GIB + 2 * MIB2, 0x8020_0000, attrs);
    rig
}

#[test]
fn every_change_and_back_keeps_the_rest() {
    for (_, features) in MATRIX {
        let all = [
            (RWX, Change::WriteProtect, RWX.with_prot(Prot::R | Prot::X)),
            (RO, Change::Relax(Access::W), RW),
            (RO, Change::Relax(Access::X), RO.with_prot(Prot::R | Prot::X)),
            (RWX, Change::State(LeafState::SharedOwned), RWX.with_state(LeafState::SharedOwned)),
            (BORROWED, Change::State(LeafState::Owned), RW),
            (RWX, Change::Accessed(false), S2Attrs { accessed: false, ..RWX }),
            (S2Attrs { accessed: false, ..RW }, Change::Accessed(true), RW),
        ];
        for (before, change, after) in all {
            let rig = mixed(features, before);
            assert_eq!(apply(&rig, 0, 2 * GIB, change), Ok(2), "{change:?}");
            assert_eq!(rig.leaf(GIB), Some((Level::L3, 0x8_0000, after)));
            assert_eq!(rig.leaf(GIB + MIB2), Some((Level::L2, 0x8_0200, after)));
            assert_eq!(rig.note(GIB + KIB4), Some((Level::L3, RAM)));
            assert_eq!(apply(&rig, 0, 2 * GIB, change), Ok(0), "again: nothing to do");
        }
    }
}

#[test]
fn a_cpu_can_store_until_write_protect_returns_and_not_after() {
    for (_, features) in MATRIX {
        let rig = mixed(features, RWX);
        apply(&rig, GIB, GIB + KIB4, Change::WriteProtect).unwrap();
        assert!(rig.sim.reach(rig.ctx, GIB).iter().all(|reach| reach.word & 1 << 7 == 0));
        assert!(rig.sim.reach(rig.ctx, GIB).iter().any(|reach| reach.via == Via::Walk));
    }
}

#[test]
fn setting_the_access_flag_or_the_state_is_no_tlb_work() {
    for change in [Change::Accessed(true), Change::State(LeafState::SharedOwned)] {
        let rig = mixed(MAX, S2Attrs { accessed: !matches!(change, Change::Accessed(_)), ..RWX });
        rig.sim.clear_trace();
        rig.sim.record(true);
        assert_eq!(apply(&rig, GIB, GIB + KIB4, change), Ok(1));
        rig.sim.record(false);
        assert!(!rig.sim.trace().iter().any(|r| matches!(r.op, Op::Tlbi(..))), "{change:?}");
    }
}

#[test]
fn a_block_that_reaches_out_of_the_range_is_refused_and_nothing_changes() {
    let rig = mixed(MAX, RWX);
    let got = apply(&rig, GIB, GIB + MIB2 + KIB4, Change::WriteProtect);
    assert_eq!(got, Err(Error::Block { ia: GIB + MIB2, level: Level::L2 }));
    assert_eq!(rig.leaf(GIB).unwrap().2, RWX);
}

/// M-02: whatever is done to a NO_TAG block, its children stay NO_TAG in hardware and software.
#[test]
fn no_tag_survives_split_and_every_other_change() {
    for (name, features) in MATRIX.into_iter().filter(|(_, f)| f.mte_perm) {
        let no_tag = RWX.with_prot(Prot::RWX | Prot::NO_TAG);
        let mut rig = mixed(features, no_tag);
        let range = rig.range(GIB + MIB2 + KIB4, GIB + MIB2 + 2 * KIB4);
        rig.table.lock(&rig.hw).split(&rig.hw, &mut rig.pool, range, Level::L3).unwrap();
        for change in [
            Change::WriteProtect,
            Change::Relax(Access::W),
            Change::Accessed(false),
            Change::Accessed(true),
            Change::State(LeafState::SharedOwned),
        ] {
            apply(&rig, GIB, 2 * GIB, change).unwrap();
            for page in 0..512 {
                let ipa = GIB + MIB2 + page * KIB4;
                assert!(rig.leaf(ipa).unwrap().2.prot.contains(Prot::NO_TAG), "{name}");
                let word = rig.sim.walk(rig.ctx, ipa).unwrap().word;
                assert!(testkit::walk::stage2_leaf(word, &features).no_tag, "{name}");
            }
        }
    }
}

#[test]
fn no_tag_is_set_and_cleared_by_break_before_make() {
    for (_, features) in MATRIX.into_iter().filter(|(_, f)| f.mte_perm) {
        let rig = mixed(features, RWX);
        for on in [true, false] {
            assert_eq!(apply(&rig, GIB, 2 * GIB, Change::NoTag(on)), Ok(2));
            for ipa in [GIB, GIB + MIB2 + KIB4] {
                assert_eq!(rig.leaf(ipa).unwrap().2.prot.contains(Prot::NO_TAG), on);
                let word = rig.sim.walk(rig.ctx, ipa).unwrap().word;
                assert_eq!(testkit::walk::stage2_leaf(word, &features).no_tag, on);
            }
        }
    }
}

/// Without FEAT_MTE_PERM the leaf would fail open: it is refused, in a table whose VM uses tags.
#[test]
fn no_tag_without_the_feature_is_refused_where_tags_are_used() {
    let rig = mixed(NEOVERSE_N2, RWX);
    let got = apply(&rig, GIB, 2 * GIB, Change::NoTag(true));
    assert_eq!(got, Err(Error::Attrs(BadAttrs::NeedsNote)));
    assert_eq!(rig.leaf(GIB).unwrap().2, RWX);
    let unused = Stage2Format::guest(&NEOVERSE_N2, TagControl::Unused, NoteKinds::empty());
    assert!(unused.maps_no_tag() && !rig.format().maps_no_tag());
}

#[test]
fn device_memory_does_not_become_executable() {
    let rig = mixed(CORTEX_A72, S2Attrs::owned(Prot::RW, MemType::Device));
    let got = apply(&rig, GIB, 2 * GIB, Change::Relax(Access::X));
    assert_eq!(got, Err(Error::Attrs(BadAttrs::ExecutableDevice)));
}

/// Test and clear of one page: the count says whether it was set.
#[test]
fn ageing_tells_what_was_accessed() {
    let rig = mixed(CORTEX_A72, RWX);
    assert_eq!(apply(&rig, GIB, GIB + KIB4, Change::Accessed(false)), Ok(1));
    assert_eq!(apply(&rig, GIB, GIB + KIB4, Change::Accessed(false)), Ok(0));
    assert_eq!(rig.sim.reach(rig.ctx, GIB).len(), 0, "an access faults");
    let table = rig.table.lock(&rig.hw);
    let (_, entry) = table.lookup(&rig.hw, Ipa::new(GIB).unwrap()).unwrap();
    assert!(matches!(entry, hyp::pgtable::Entry::Leaf(leaf) if !leaf.attrs.accessed));
}
