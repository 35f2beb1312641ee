//! The page pools: nothing is lost, and the host never starves.

use abi::Errno::Enomem;
use hyp::Error;
use hyp::addr::{Pfn, PfnRange};
use hyp::mm::{MAX_ORDER, Order, REFILL};
use hyp::pgtable::Access;
use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};
use proptest::{collection, sample};
use std::collections::BTreeSet;
use testkit::features::{CORTEX_A72, MATRIX, MAX};
use testkit::{Setup, World};

fn host_reaches_all_it_owns(world: &World, taken: &BTreeSet<u64>, step: usize) {
    for nth in (world.first_free()..world.sim.memory().pages()).step_by(step) {
        let pfn = world.page(nth);
        assert_eq!(world.touch(0, pfn, Access::W), !taken.contains(&nth), "{nth}");
    }
    for mmio in [0x8000, 0x9_0000, 0x80_0000] {
        assert!(world.touch(1, hyp::addr::Pfn::new(mmio).unwrap(), Access::R));
    }
}

/// One page given away in every 2 MiB, until no table page is left to note it.
#[test]
fn a_dry_pool_refuses_donations_and_still_maps_everything_the_host_owns() {
    for (name, features) in MATRIX {
        let world = Setup { pages: 64 * 512, table_pages: 48, ..Setup::new(features) }.start();
        let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
        let (mut tokens, mut taken) = (Vec::new(), BTreeSet::new());
        let dry = (1..64).map(|block| block * 512 + block).find(|&nth| {
            assert!(world.touch(0, world.page(nth ^ 256), Access::R));
            match hyp.host_donate_token(cpu, world.pages(nth, 1)) {
                Ok(token) => {
                    tokens.push(token);
                    taken.insert(nth);
                    false
                }
                Err(e) => {
                    assert_eq!(e.errno(), Enomem, "{name}");
                    true
                }
            }
        });
        let dry = dry.expect("48 tables do not cover 64 blocks twice");
        assert!(tokens.len() > 8, "{name}: dry after {} blocks", tokens.len());
        let refused = hyp.host_share_hyp(cpu, world.page(dry));
        assert_eq!(refused, Ok(()), "{name}: the page is still the host's alone");
        host_reaches_all_it_owns(&world, &taken, 61);

        // What is given away no longer needs a table of its own: all of one block.
        let at = *taken.iter().next().unwrap() + 1;
        hyp.host_donate_hyp(cpu, world.pages(at, 16)).expect("lending goes on when nothing else does");
        taken.extend(at..at + 16);
        let token = hyp.host_donate_token(cpu, world.pages(dry + 1, 1)).expect("and then the rest does");
        taken.insert(dry + 1);
        host_reaches_all_it_owns(&world, &taken, 61);
        drop((token, tokens));
        let unpinned = hyp.host(cpu).table_pages().unpinned_pages();
        assert!(unpinned >= REFILL, "{name}");
    }
}

/// Lending page by page into blocks of their own costs more tables than it brings: it is refused
/// before it eats what lending itself needs.
#[test]
fn lending_that_costs_more_than_it_brings_never_uses_up_the_lenders_reserve() {
    let world = Setup { pages: 64 * 512, table_pages: 40, ..Setup::new(CORTEX_A72) }.start();
    let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
    let refused = (2..60).filter(|block| hyp.host_donate_hyp(cpu, world.pages(block * 512, 1)).is_err());
    assert!(refused.count() > 0, "40 tables are enough for 58 blocks");
    hyp.host_donate_hyp(cpu, world.pages(61 * 512, 64)).expect("64 pages bring more than they cost");
    assert_eq!(hyp.host_donate_hyp(cpu, world.pages(62 * 512, 1)).map_err(Error::errno), Ok(()));
}

#[test]
fn what_is_lent_can_all_be_taken_back_when_nothing_uses_it() {
    let world = Setup::new(CORTEX_A72).start();
    let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
    let before = hyp.host(cpu).table_pages().unpinned_pages();
    for round in 0..3 {
        let lent = world.pages(4096 - 200, 400);
        hyp.host_donate_hyp(cpu, lent).unwrap();
        assert!(hyp.host(cpu).table_pages().unpinned_pages() > before);
        hyp.hyp_donate_host(cpu, lent).unwrap_or_else(|e| panic!("round {round}: {e:?}"));
        assert_eq!(hyp.host(cpu).table_pages().unpinned_pages(), before, "round {round}");
    }
}

/// The table over what a call is about is the first that could be dropped, and stays.
#[test]
fn a_table_prepared_under_the_same_hold_is_not_recycled() {
    const LAST_GIB: u64 = 2 << 18;
    const EDGE: u64 = LAST_GIB + 64 * 512;
    for (name, features) in [("max", MAX), ("cortex-a72", CORTEX_A72)] {
        let world = Setup { pages: LAST_GIB + (1 << 17), table_pages: 24, ..Setup::new(features) }.start();
        let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
        // RAM ends within its last GiB: a table of default mappings there, and one for each device far off.
        assert!(world.touch(0, world.page(EDGE), Access::R));
        let dry = (1..32).find(|far| {
            assert!(world.touch(0, Pfn::new(far << 27).unwrap(), Access::R), "{name}");
            hyp.host(cpu).table_pages().free_pages() == 0
        });
        assert!(dry.is_some(), "{name}: 24 tables last for 32 places");
        let token = hyp.host_donate_token(cpu, world.pages(EDGE - 1, 2)).expect("older tables make room");
        for nth in [EDGE - 2, EDGE - 1, EDGE, EDGE + 1] {
            let given = (EDGE - 1..=EDGE).contains(&nth);
            assert_eq!(world.touch(0, world.page(nth), Access::W), !given, "{name}: {nth}");
        }
        drop(token);
        assert!(world.touch(0, world.page(EDGE), Access::W), "{name}");
    }
}

/// A first touch that finds no table page drops tables of default mappings elsewhere, which come again.
#[test]
fn a_first_touch_never_lacks_a_table() {
    for (name, features) in MATRIX {
        let world = Setup { table_pages: 24, ..Setup::new(features) }.start();
        let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
        let edge = 1 << (hyp.host(cpu).table().geometry().ia_bits() - 12);
        // One for each device far off, where the table reaches that far.
        let far: Vec<Pfn> = (1..40).map(|n| Pfn::new((n << 27) % edge + (n << 18)).unwrap()).collect();
        let mut dry = false;
        for _ in 0..2 {
            for &page in &far {
                assert!(world.touch(0, page, Access::R), "{name}: {page:?}");
                dry |= hyp.host(cpu).table_pages().free_pages() == 0;
            }
        }
        assert!(dry || edge <= 1 << 28, "{name}: 24 tables last for 39 places");
    }
}

/// As long as the pool has pages of its own, tables are made from those.
#[test]
fn lent_pages_are_idle_until_the_pools_own_are_used_up() {
    let world = Setup { pages: 16 * 512, ..Setup::new(CORTEX_A72) }.start();
    let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
    let lent = world.pages(15 * 512, 64);
    hyp.host_donate_hyp(cpu, lent).unwrap();
    let tokens: Vec<_> =
        (4..8).map(|block| hyp.host_donate_token(cpu, world.pages(block * 512, 1)).unwrap()).collect();
    assert_eq!(hyp.hyp_donate_host(cpu, lent), Ok(()));
    drop(tokens);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc(u8),
    Free(sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    proptest::prop_oneof![
        (0..=MAX_ORDER + 1).prop_map(Step::Alloc),
        proptest::prelude::any::<sample::Index>().prop_map(Step::Free),
    ]
}

proptest! {
    #[test]
    fn buddy_blocks_are_aligned_zeroed_disjoint_and_merge_again(steps in collection::vec(step(), 1..80)) {
        let world = Setup { pages: 1024, ..Setup::new(CORTEX_A72) }.start();
        let cpu = &world.cpus[0];
        let mut pool = world.hyp.pool(cpu);
        let total = pool.free_pages();
        let mut blocks: Vec<PfnRange> = Vec::new();
        for step in steps {
            match step {
                Step::Alloc(order) => {
                    let Some(order) = Order::new(order) else { continue };
                    let Some(block) = pool.alloc(cpu, world.hyp.vmemmap(), order) else { continue };
                    let block = PfnRange::new(block.raw(), order.pages()).unwrap();
                    prop_assert_eq!(block.start().raw() % order.pages(), 0);
                    for pfn in block.iter() {
                        prop_assert!(world.contents(pfn).iter().all(|&word| word == 0));
                        prop_assert!(blocks.iter().all(|other| !other.contains(pfn)));
                        hyp::hw::PhysMem::write_word(cpu, pfn, 1, u64::MAX);
                    }
                    blocks.push(block);
                }
                Step::Free(index) if !blocks.is_empty() => {
                    let block = blocks.swap_remove(index.index(blocks.len()));
                    pool.free(cpu, world.hyp.vmemmap(), block.start());
                }
                Step::Free(_) => {}
            }
            let used: u64 = blocks.iter().map(|block| block.nr()).sum();
            prop_assert_eq!(pool.free_pages() + used, total);
        }
        for block in blocks {
            pool.free(cpu, world.hyp.vmemmap(), block.start());
        }
        // Everything has merged: 32 pages from an aligned start are one block again.
        prop_assert_eq!(total, 32);
        prop_assert!(pool.alloc(cpu, world.hyp.vmemmap(), Order::new(5).unwrap()).is_some());
    }
}
