//! Mapping, demand mapping, unmapping.

use crate::rig::{FAR, GIB, KIB4, MIB2, RAM, RO, RW, RWX, Rig, pfn};
use hyp::addr::{AddrError, Ipa};
use hyp::pgtable::{BadAttrs, Demand, Error, Geometry, Level, MemType, Prot, S2Attrs};
use testkit::features::{CORTEX_A53, CORTEX_A72, MATRIX, MAX};

#[test]
fn one_gib_of_fresh_memory_is_one_entry() {
    for (_, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        rig.spy(3 * GIB + 5 * MIB2);
        rig.map(3 * GIB, 4 * GIB, 0x8000_0000, RWX);
        assert_eq!(rig.leaf(3 * GIB + 5 * MIB2), Some((Level::L1, 0x8_0000 + 5 * 512, RWX)));
        assert_eq!(rig.tables(), 0);
    }
}

#[test]
fn the_largest_legal_block_is_used() {
    let mut rig = Rig::guest(MAX, 40);
    // From a page below 2 MiB to a page beyond the next GiB: 1 + blocks + 1 GiB + blocks + 1.
    let (start, end) = (GIB - MIB2 - KIB4, 2 * GIB + MIB2 + KIB4);
    rig.map(start, end, start + 8 * GIB, RWX);
    for (ipa, level) in [
        (start, Level::L3),
        (GIB - MIB2, Level::L2),
        (GIB, Level::L1),
        (2 * GIB, Level::L2),
        (2 * GIB + MIB2, Level::L3),
    ] {
        assert_eq!(rig.leaf(ipa), Some((level, (ipa + 8 * GIB) >> 12, RWX)), "{ipa:#x}");
    }
    assert_eq!(rig.leaf(start - KIB4), None);
    assert_eq!(rig.leaf(end), None);
}

#[test]
fn an_output_that_is_not_aligned_like_the_input_limits_the_block() {
    for (skew, level) in [(0, Level::L1), (MIB2, Level::L2), (KIB4, Level::L3)] {
        let mut rig = Rig::guest(MAX, 40);
        let (start, end) = if skew == KIB4 { (GIB, GIB + MIB2) } else { (GIB, 2 * GIB) };
        rig.map(start, end, 4 * GIB + skew, RWX);
        assert_eq!(rig.leaf(GIB), Some((level, (4 * GIB + skew) >> 12, RWX)));
    }
}

#[test]
fn blocks_larger_than_asked_are_not_used() {
    let mut rig = Rig::guest(MAX, 40);
    for (n, largest) in [Level::L2, Level::L3].into_iter().enumerate() {
        let start = GIB * (4 + n as u64);
        let range = rig.range(start, start + MIB2);
        let table = rig.table.lock(&rig.hw);
        table.map(&rig.hw, &mut rig.pool, range, pfn(start), RWX, largest).unwrap();
        drop(table);
        assert_eq!(rig.leaf(start).unwrap().0, largest);
    }
    rig.check();
}

#[test]
fn roots_of_several_pages_map_across_their_edges() {
    let mut rig = Rig::host(CORTEX_A53);
    let edge = 1 << 39;
    for ipa in [edge - KIB4, edge, edge + KIB4] {
        rig.spy(ipa);
    }
    rig.map(edge - MIB2, edge + MIB2, edge - MIB2, RWX);
    assert_eq!(rig.tables(), 2);
    rig.unmap(edge - KIB4, edge + KIB4);
    assert_eq!(rig.leaf(edge - KIB4), None);
    assert_eq!(rig.leaf(edge), None);
    assert_eq!(rig.leaf(edge + KIB4), Some((Level::L3, (edge + KIB4) >> 12, RWX)));
    rig.unmap(0, 1 << 40);
    assert_eq!(rig.tables(), 0);
}

#[test]
fn the_whole_space_of_every_geometry_maps_and_unmaps() {
    for (_, features) in MATRIX {
        for bits in 32..=u32::from(features.pa_bits) {
            let mut rig = Rig::guest(features, bits);
            let last = (1_u64 << bits) - KIB4;
            rig.spy(last);
            rig.map(last, last + KIB4, 0x9000_0000, RW);
            rig.map(0, KIB4, 0x9000_1000, RW);
            assert_eq!(rig.leaf(last), Some((Level::L3, 0x9_0000, RW)));
            rig.unmap(0, 1 << bits);
            assert_eq!(rig.tables(), 0, "{bits} bits");
        }
    }
}

/// Without LPA2 a descriptor has 48 address bits, whatever the CPU could drive.
#[test]
fn a_machine_of_52_bits_is_used_with_48() {
    let wide = hyp::hw::CpuFeatures { pa_bits: 52, ..MAX };
    let mut rig = Rig::host(wide);
    assert_eq!(rig.table.lock(&rig.hw).geometry(), Geometry::identity(48));
    let last = (1 << 48) - KIB4;
    rig.spy(last);
    rig.map(last, last + KIB4, last, RWX);
    assert_eq!(rig.leaf(last), Some((Level::L3, last >> 12, RWX)));
    let (below, beyond) = (rig.range(0, 2 * KIB4), pfn(last));
    let refused = rig.table.lock(&rig.hw).map(&rig.hw, &mut rig.pool, below, beyond, RWX, Level::L1);
    assert_eq!(refused, Err(Error::Output(beyond)));
    rig.check();
}

#[test]
fn mapping_over_anything_is_refused_and_changes_nothing() {
    let mut rig = Rig::guest(MAX, 40);
    rig.map(GIB, GIB + KIB4, 0x8000_0000, RWX);
    rig.annotate(GIB + 2 * KIB4, GIB + 3 * KIB4, RAM);
    let tables = rig.pool.out();
    for (start, end, at) in
        [(GIB - KIB4, GIB + KIB4, GIB), (GIB + KIB4, GIB + 4 * KIB4, GIB + 2 * KIB4), (0, 2 * GIB, GIB)]
    {
        let range = rig.range(start, end);
        let table = rig.table.lock(&rig.hw);
        let got = table.map(&rig.hw, &mut rig.pool, range, pfn(4 * GIB), RW, Level::L1);
        assert_eq!(got, Err(Error::Exists { ia: at }));
        drop(table);
        assert_eq!(rig.pool.out(), tables);
        rig.check();
    }
}

#[test]
fn attributes_output_and_range_are_checked_before_anything_is_touched() {
    let mut rig = Rig::guest(CORTEX_A72, 40);
    let inside = rig.range(GIB, 2 * GIB);
    let beyond = hyp::addr::IpaRange::new(0, 1 << 41, 48).unwrap();
    let table = rig.table.lock(&rig.hw);
    let mut map = |range, output, attrs| table.map(&rig.hw, &mut rig.pool, range, output, attrs, Level::L1);
    let device = S2Attrs::owned(Prot::RWX, MemType::Device);
    assert_eq!(map(beyond, pfn(0), RWX), Err(Error::Range(AddrError::OutOfSpace(1 << 41))));
    assert_eq!(map(inside, pfn(0), device), Err(Error::Attrs(BadAttrs::ExecutableDevice)));
    let last = pfn((1 << 44) - KIB4);
    assert_eq!(map(inside, last, RWX), Err(Error::Output(last)));
    let fits = pfn((1 << 44) - GIB);
    assert_eq!(map(inside, fits, RWX), Ok(()));
    drop(table);
    assert_eq!(rig.leaf(GIB), Some((Level::L1, fits.raw(), RWX)));
    rig.check();
}

#[test]
fn a_fault_maps_the_largest_block_in_its_region() {
    let mut rig = Rig::host(MAX);
    let ram = rig.range(0x2_4000_0000, 0x3_0000_0000 + MIB2 + KIB4);
    let fault = |rig: &mut Rig, ipa: u64, bounds| {
        let table = rig.table.lock(&rig.hw);
        let got = table.map_largest(&rig.hw, &mut rig.pool, Ipa::new(ipa).unwrap(), bounds, pfn(ipa), RWX);
        drop(table);
        rig.check();
        got
    };
    for (ipa, level) in [
        (0x2_4000_0123, Level::L1),
        (0x2_ffff_fff8, Level::L1),
        (0x3_0000_0fff, Level::L2),
        (0x3_0020_0000, Level::L3),
    ] {
        rig.spy(ipa & !0xfff);
        assert_eq!(fault(&mut rig, ipa, ram), Ok(Demand::Mapped(level)), "{ipa:#x}");
        assert_eq!(rig.leaf(ipa & !0xfff).unwrap().1, ipa >> 12);
        assert!(matches!(fault(&mut rig, ipa, ram), Ok(Demand::Leaf(_))));
    }
    let beyond = 0x3_0020_1000;
    assert_eq!(fault(&mut rig, beyond, ram), Err(Error::Range(AddrError::OutOfSpace(beyond))));
}

#[test]
fn a_fault_never_covers_a_note_or_a_leaf() {
    let mut rig = Rig::host(MAX);
    let all = rig.range(0, 1 << 48);
    rig.annotate(FAR + 3 * MIB2 + 5 * KIB4, FAR + 3 * MIB2 + 6 * KIB4, crate::rig::donated(9));
    rig.map(FAR + 7 * MIB2, FAR + 7 * MIB2 + KIB4, FAR + 7 * MIB2, RO);
    let fault = |rig: &mut Rig, ipa: u64| {
        let table = rig.table.lock(&rig.hw);
        let got =
            table.map_largest(&rig.hw, &mut rig.pool, Ipa::new(ipa).unwrap(), all, pfn(ipa), RWX).unwrap();
        drop(table);
        rig.check();
        got
    };
    // The GiB has a table: blocks around the two that have one too, pages in those.
    assert_eq!(fault(&mut rig, FAR), Demand::Mapped(Level::L2));
    assert_eq!(fault(&mut rig, FAR + 3 * MIB2), Demand::Mapped(Level::L3));
    assert_eq!(fault(&mut rig, FAR + 7 * MIB2 + KIB4), Demand::Mapped(Level::L3));
    assert_eq!(fault(&mut rig, FAR + 3 * MIB2 + 5 * KIB4), Demand::Note(crate::rig::donated(9)));
    assert!(matches!(fault(&mut rig, FAR + 7 * MIB2), Demand::Leaf(l) if l.attrs == RO));
}

#[test]
fn unmapping_part_of_a_block_keeps_the_rest() {
    for (_, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        for ipa in [GIB, GIB + MIB2, GIB + MIB2 + KIB4, GIB + 2 * MIB2] {
            rig.spy(ipa);
        }
        rig.map(GIB, 2 * GIB, 0x8000_0000, RWX);
        rig.unmap(GIB + MIB2, GIB + MIB2 + KIB4);
        assert_eq!(rig.leaf(GIB + MIB2), None);
        assert_eq!(rig.leaf(GIB + MIB2 + KIB4), Some((Level::L3, 0x8_0201, RWX)));
        assert_eq!(rig.leaf(GIB), Some((Level::L2, 0x8_0000, RWX)));
        assert_eq!(rig.tables(), 2);
        rig.unmap(GIB, 2 * GIB);
        assert_eq!(rig.tables(), 0);
    }
}

#[test]
fn unmapping_what_is_absent_is_no_work() {
    let mut rig = Rig::guest(MAX, 40);
    rig.unmap(0, 1 << 40);
    assert_eq!(rig.pool.allocs, 0);
}
