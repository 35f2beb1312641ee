//! Eviction, and the end of a table.

use crate::rig::{BORROWED, FAR, GIB, KIB4, MIB2, RAM, RWX, Rig, donated};
use hyp::addr::Pfn;
use hyp::hw::TableOwner;
use hyp::pgtable::{
    Entry, Geometry, LeafState, Level, NoteKinds, Stage2Config, Stage2Format, Stage2Table, TagControl,
};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::thread;
use testkit::features::{MATRIX, MAX};

fn evict(rig: &mut Rig, start: u64, end: u64, want: u32) -> u32 {
    let range = rig.range(start, end);
    let mut table = rig.table.lock(&rig.hw);
    let freed =
        table.evict(&rig.hw, &mut rig.pool, range, want, |_, leaf| leaf.attrs.state == LeafState::Owned);
    drop(table);
    rig.check();
    freed.unwrap()
}

/// What was mapped on demand goes; notes and borrowed pages stay, with their tables.
#[test]
fn eviction_frees_what_can_be_mapped_again_and_nothing_else() {
    for (_, features) in MATRIX {
        let mut rig = Rig::host(features);
        for n in 0..4 {
            rig.spy(FAR + n * MIB2);
            rig.map(FAR + n * MIB2, FAR + n * MIB2 + KIB4, FAR + n * MIB2, RWX);
        }
        rig.annotate(FAR + MIB2 + KIB4, FAR + MIB2 + 2 * KIB4, donated(3));
        rig.map(FAR + 2 * MIB2 + KIB4, FAR + 2 * MIB2 + 2 * KIB4, FAR + 2 * MIB2 + KIB4, BORROWED);
        let tables = rig.tables();
        assert_eq!(evict(&mut rig, FAR, FAR + GIB, 9), 2);
        assert_eq!(rig.tables(), tables - 2);
        assert_eq!(rig.leaf(FAR), None);
        assert_eq!(rig.note(FAR + MIB2 + KIB4), Some((Level::L3, donated(3))));
        assert!(rig.leaf(FAR + MIB2).is_some(), "its table stays, so it stays");
        assert!(rig.leaf(FAR + 2 * MIB2 + KIB4).is_some());
        assert_eq!(rig.leaf(FAR + 3 * MIB2), None);
    }
}

/// A page that was a table with mappings in it becomes the table of something else: no walker may
/// see an entry of its last life through the new descriptor.
#[test]
fn a_table_is_filled_for_all_walkers_before_it_is_linked() {
    for (_, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        let (old, new) = (GIB + 5 * KIB4, 2 * GIB + 5 * KIB4);
        rig.spy(old);
        rig.spy(new);
        rig.annotate(2 * GIB, 2 * GIB + MIB2, RAM);
        rig.map(old, old + KIB4, 0x8000_0000, RWX);
        let table = rig.sim.walk(rig.ctx, old).unwrap().table;
        assert_eq!(evict(&mut rig, GIB, GIB + MIB2, 1), 1);
        let range = rig.range(new, new + KIB4);
        rig.table.lock(&rig.hw).split(&rig.hw, &mut rig.pool, range, Level::L3).unwrap();
        assert_eq!(rig.sim.walk(rig.ctx, new).unwrap().table, table, "the same page again");
        rig.check();
    }
}

#[test]
fn eviction_stops_when_it_has_what_was_wanted_and_stays_in_its_range() {
    let mut rig = Rig::host(MAX);
    for n in 0..4 {
        rig.map(FAR + n * MIB2, FAR + n * MIB2 + KIB4, FAR + n * MIB2, RWX);
    }
    assert_eq!(evict(&mut rig, FAR + KIB4, FAR + 2 * MIB2 - KIB4, 9), 0, "no table lies in the range");
    assert_eq!(evict(&mut rig, FAR, FAR + GIB, 3), 3);
    assert!(rig.leaf(FAR + 3 * MIB2).is_some());
    assert_eq!(evict(&mut rig, 0, 1 << 48, 9), 3, "the last one, and the two above it");
    assert_eq!(rig.tables(), 0);
}

#[test]
fn a_cut_table_translates_nothing() {
    for (_, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        rig.spy(GIB);
        rig.spy(5 * GIB);
        rig.map(GIB, GIB + KIB4, 0x8000_0000, RWX);
        rig.map(5 * GIB, 6 * GIB, 0x1_0000_0000, RWX);
        rig.table.lock(&rig.hw).cut(&rig.hw);
        assert_eq!(rig.sim.reach(rig.ctx, GIB).len(), 0);
        assert_eq!(rig.sim.reach(rig.ctx, 5 * GIB).len(), 0);
    }
}

/// Two CPUs on threads of their own: what each maps is there when both are done, and nothing else.
#[test]
fn cpus_take_turns_at_one_table() {
    let mut rig = Rig::guest(MAX, 40);
    let all = rig.range(0, 1 << 40);
    let page = |cpu: usize, n: u64| {
        rig.range(GIB * (1 + cpu as u64) + n * KIB4, GIB * (1 + cpu as u64) + (n + 1) * KIB4)
    };
    let pages = [0, 1].map(|cpu| [0, 1, 2].map(|n| page(cpu, n)));
    let (sim, table, pool) = (&rig.sim, &rig.table, Mutex::new(&mut rig.pool));
    thread::scope(|scope| {
        for (cpu, pages) in pages.iter().enumerate() {
            let pool = &pool;
            scope.spawn(move || {
                let hw = sim.cpu(cpu);
                for range in pages {
                    let table = table.lock(&hw);
                    let mut pool = pool.lock().unwrap();
                    let output = (FAR + range.start().raw()) >> 12;
                    table.map(&hw, *pool, *range, Pfn::new(output).unwrap(), RWX, Level::L3).unwrap();
                }
                let (mut table, mut pool) = (table.lock(&hw), pool.lock().unwrap());
                table.unmap(&hw, *pool, pages[1]).unwrap();
            });
        }
    });
    rig.check();
    let table = rig.table.lock(&rig.hw);
    let mut mapped = Vec::new();
    let visited = table.visit(&rig.hw, all, |slot, entry| {
        if entry != Entry::Absent {
            mapped.push(slot.ia());
        }
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(visited, Ok(None));
    assert_eq!(mapped, [GIB, GIB + 2 * KIB4, 2 * GIB, 2 * GIB + 2 * KIB4]);
}

/// The VMID and the root of a table that is gone serve another one at once.
#[test]
fn a_retired_table_leaves_its_vmid_and_root_clean() {
    for (_, features) in MATRIX {
        let sim = testkit::Sim::new(features);
        let hw = sim.cpu(0);
        let format = Stage2Format::guest(&features, TagControl::Unused, NoteKinds::empty());
        let geometry = Geometry::stage2(40, 40).unwrap();
        let mut owners = 1..;
        let mut make = || {
            let owner = TableOwner::Guest(owners.next().unwrap());
            Stage2Table::new(&hw, Stage2Config { root: sim.ram(0), geometry, format, vmid: 5, owner })
                .unwrap()
        };
        let first = make();
        sim.spy(first.context(), GIB);
        sim.unspy(5);
        assert_eq!(first.retire(&hw).start(), sim.ram(0));
        let second = make();
        assert_eq!(sim.reach(second.context(), GIB).len(), 0);
    }
}
