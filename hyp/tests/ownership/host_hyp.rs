//! Sharing with EL2, lending to it, and what a refusal leaves.

use abi::Errno::{self, Ebusy, Eperm, Erange};
use hyp::Error;
use hyp::addr::{Pfn, PfnRange};
use hyp::hw::PhysMem;
use hyp::pgtable::Access;
use hyp::spec::model::Page;
use testkit::features::{CORTEX_A72, MATRIX};
use testkit::{Setup, World};

fn errno(result: Result<(), Error>) -> Result<(), Errno> {
    result.map_err(Error::errno)
}

fn page(world: &World, pfn: Pfn) -> Option<Page> {
    world.state(&[]).pages.get(pfn.raw())
}

#[test]
fn a_shared_page_is_shared_once_and_unshared_once() {
    let world = Setup::new(CORTEX_A72).start();
    let (hyp, cpu, pfn) = (&world.hyp, &world.cpus[0], world.page(500));
    assert_eq!(errno(hyp.host_unshare_hyp(cpu, pfn)), Err(Eperm));
    assert_eq!(errno(hyp.host_share_hyp(cpu, pfn)), Ok(()));
    assert_eq!(page(&world, pfn), Some(Page::SharedWithHyp { pins: 0 }));
    assert!(world.touch(0, pfn, Access::W), "the host keeps its page");
    assert_eq!(errno(hyp.host_share_hyp(cpu, pfn)), Err(Eperm));
    assert_eq!(errno(hyp.host_donate_hyp(cpu, PfnRange::one(pfn))), Err(Eperm));
    assert_eq!(errno(hyp.hyp_donate_host(cpu, PfnRange::one(pfn))), Err(Eperm));
    assert_eq!(errno(hyp.host_unshare_hyp(cpu, pfn)), Ok(()));
    assert_eq!(errno(hyp.host_unshare_hyp(cpu, pfn)), Err(Eperm));
    assert_eq!(page(&world, pfn), Some(Page::Host));
}

#[test]
fn a_pinned_page_is_mapped_once_and_cannot_be_unshared() {
    let world = Setup::new(CORTEX_A72).start();
    let (hyp, cpu, pfn) = (&world.hyp, &world.cpus[0], world.page(500));
    assert_eq!(hyp.hyp_pin(cpu, pfn).unwrap_err().errno(), Eperm);
    hyp.host_share_hyp(cpu, pfn).unwrap();
    assert!(world.sim.reach_hyp(pfn.base().raw()).is_empty(), "sharing alone maps nothing");
    let (one, two) = (hyp.hyp_pin(cpu, pfn).unwrap(), hyp.hyp_pin(cpu, pfn).unwrap());
    assert!(!world.sim.reach_hyp(pfn.base().raw()).is_empty());
    assert_eq!(page(&world, pfn), Some(Page::SharedWithHyp { pins: 2 }));
    assert_eq!(errno(hyp.host_unshare_hyp(cpu, pfn)), Err(Ebusy));
    assert_eq!(errno(hyp.host_donate_hyp(cpu, PfnRange::one(pfn))), Err(Eperm));
    hyp.hyp_unpin(cpu, one);
    assert_eq!(errno(hyp.host_unshare_hyp(cpu, pfn)), Err(Ebusy));
    hyp.hyp_unpin(cpu, two);
    assert!(world.sim.reach_hyp(pfn.base().raw()).is_empty());
    assert_eq!(errno(hyp.host_unshare_hyp(cpu, pfn)), Ok(()));
}

#[test]
fn a_lent_page_is_out_of_the_hosts_reach_and_comes_back_zeroed() {
    for (name, features) in MATRIX {
        let world = Setup::new(features).start();
        let (hyp, cpu, pages) = (&world.hyp, &world.cpus[0], world.pages(700, 5));
        for pfn in pages.iter() {
            assert!(world.touch(1, pfn, Access::W), "{name}");
            world.sim.store(hyp.host_context(), pfn.base().raw(), true, 0x5ec2_e700);
        }
        hyp.host_donate_hyp(cpu, pages).unwrap();
        for pfn in pages.iter() {
            assert_eq!(page(&world, pfn), Some(Page::Lent), "{name}");
            assert!(world.sim.reach(hyp.host_context(), pfn.base().raw()).is_empty(), "{name}");
            for access in [Access::R, Access::W, Access::X] {
                assert!(!world.touch(1, pfn, access), "{name}");
            }
        }
        assert_eq!(errno(hyp.host_donate_hyp(cpu, pages)), Err(Eperm), "{name}");
        hyp.hyp_donate_host(cpu, pages).unwrap();
        for pfn in pages.iter() {
            assert_eq!(page(&world, pfn), Some(Page::Host), "{name}");
            assert!(world.touch(1, pfn, Access::R), "{name}");
            assert_eq!(world.contents_in_ram(pfn), [0; 512], "{name}");
            assert_eq!(world.contents(pfn), [0; 512], "{name}");
            assert!(world.sim.reach_hyp(pfn.base().raw()).is_empty(), "{name}");
        }
        assert_eq!(errno(hyp.hyp_donate_host(cpu, pages)), Err(Eperm), "{name}");
    }
}

#[test]
fn a_range_with_one_wrong_page_is_refused_whole() {
    let setup = Setup { hole: Some((8192, 64)), ..Setup::new(CORTEX_A72) };
    let world = setup.start();
    let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
    let before = world.state(&[]);
    let edge = world.first_free();
    for (pages, why) in [
        (world.pages(8190, 3), Erange),
        (world.pages(8255, 3), Erange),
        (world.pages(8192, 1), Erange),
        (world.pages(16383, 2), Erange),
        (world.pages(edge - 1, 2), Eperm),
        (world.pages(0, 512), Eperm),
    ] {
        assert_eq!(errno(hyp.host_donate_hyp(cpu, pages)), Err(why), "{pages:?}");
    }
    for pfn in [Pfn::new(0).unwrap(), Pfn::new((1 << 36) - 1).unwrap(), world.page(8192)] {
        assert_eq!(errno(hyp.host_share_hyp(cpu, pfn)), Err(Erange));
        assert_eq!(errno(hyp.host_unshare_hyp(cpu, pfn)), Err(Erange));
    }
    assert_eq!(world.state(&[]), before);
}

#[test]
fn only_lent_pages_are_given_back_and_none_that_is_in_use() {
    let world = Setup { pages: 64 * 512, table_pages: 48, ..Setup::new(CORTEX_A72) }.start();
    let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
    // Text, tables, pools: every page of the carve-out.
    for pfn in world.carve_out.iter() {
        assert_eq!(errno(hyp.hyp_donate_host(cpu, PfnRange::one(pfn))), Err(Eperm), "{pfn:?}");
    }
    let lent = world.pages(1000, 4);
    hyp.host_donate_hyp(cpu, lent).unwrap();
    assert_eq!(errno(hyp.hyp_donate_host(cpu, world.pages(999, 2))), Err(Eperm));
    assert_eq!(errno(hyp.hyp_donate_host(cpu, world.pages(1003, 2))), Err(Eperm));
    // A page out of each block needs a table each, until the pool's own are used up.
    let single = |block: &u64| hyp.host_donate_hyp(cpu, world.pages(block * 512, 1)).is_ok();
    let singles = (8..60).take_while(single).map(|block| world.page(block * 512));
    let all: Vec<_> = lent.iter().chain(singles).collect();
    let give_back = |pfn| errno(hyp.hyp_donate_host(cpu, PfnRange::one(pfn)));
    let busy = all.into_iter().find(|&pfn| give_back(pfn).is_err());
    let busy = busy.expect("some lent page became a table");
    assert_eq!(give_back(busy), Err(Ebusy));
    assert_eq!(page(&world, busy), Some(Page::Lent));
}

#[test]
fn a_token_that_is_dropped_gives_its_pages_back_scrubbed() {
    let world = Setup::new(CORTEX_A72).start();
    let (hyp, cpu, pages) = (&world.hyp, &world.cpus[0], world.pages(510, 4));
    let before = world.state(&[]);
    let token = hyp.host_donate_token(cpu, pages).unwrap();
    assert_eq!(token.pages(), pages);
    for pfn in pages.iter() {
        assert!(!world.touch(1, pfn, Access::R));
        cpu.write_word(pfn, 3, 0x5ec2_e700);
    }
    drop(token);
    assert_eq!(world.state(&[]), before);
    for pfn in pages.iter() {
        assert_eq!(world.contents_in_ram(pfn), [0; 512]);
        assert!(world.touch(1, pfn, Access::R));
    }
}
