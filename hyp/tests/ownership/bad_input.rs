//! What no host and no guest should ask for: the documented errno, and nothing changed.

use abi::Errno::Ebusy;
use hyp::pgtable::Access;
use hyp::spec::model::{Call, Kind, Page};
use testkit::features::{CORTEX_A72, MAX};
use testkit::{Setup, VmSetup, Vms};

#[test]
fn a_page_is_pinned_65535_times_and_no_more() {
    let world = Setup::new(CORTEX_A72).start();
    let (hyp, cpu, page) = (&world.hyp, &world.cpus[0], world.page(500));
    hyp.host_share_hyp(cpu, page).unwrap();
    let pins: Vec<_> = (0..u16::MAX).map(|_| hyp.hyp_pin(cpu, page).unwrap()).collect();
    let before = world.state(&[]);
    assert_eq!(before.pages.get(page.raw()), Some(Page::SharedWithHyp { pins: u16::MAX }));
    assert_eq!(hyp.hyp_pin(cpu, page).unwrap_err().errno(), Ebusy);
    assert_eq!(world.state(&[]), before);
    pins.into_iter().for_each(|pin| hyp.hyp_unpin(cpu, pin));
    assert_eq!(hyp.host_unshare_hyp(cpu, page), Ok(()));
}

#[test]
fn a_page_is_lent_65535_times_and_no_more() {
    let world = Setup::new(MAX).start();
    let mut vms = Vms::default();
    vms.create(&world, 0, VmSetup::new(2, Kind::NonProtected, 400, 128));
    let share = |gfn| {
        let pfn = world.page(1000).raw();
        vms.call(&world, 0, Call::HostShareGuest { handle: 2, gfn, pfn, order: 0, prot: 7 })
    };
    // 128 tables of level 3, and one above them.
    assert!((0..127 * 512).all(|gfn| share(gfn).is_ok()));
    let guest = &vms.find(2).unwrap().guest;
    assert_eq!(world.hyp.topup(&world.cpus[0], guest, world.page(900), 1), Ok(1));
    let most = u64::from(u16::MAX);
    assert!((127 * 512..most).all(|gfn| share(gfn).is_ok()));
    assert_eq!(share(most), Err(Ebusy));
    assert!(world.touch(1, world.page(1000), Access::W), "the host keeps its page");
    let page = world.hyp.vmemmap().get(world.page(1000)).unwrap();
    assert_eq!(page.aux() >> 16, u32::from(u16::MAX));
    let unshare = |gfn| vms.call(&world, 0, Call::HostUnshareGuest { handle: 2, gfn, nr: 1 });
    assert_eq!(unshare(7), Ok([1, 0]));
    assert_eq!(share(most), Ok([0; 2]));
}
