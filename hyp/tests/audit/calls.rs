//! The registers of HYP_AUDIT, FI_ARM, FI_CLEAR and FI_STATS.

use crate::rig::Rig;
use abi::fault::Site;
use abi::inspect::{Damage, FINDINGS, Figure, InspectFn, LOOK, MAX_FINDINGS};
use abi::{Errno, HostFn};
use hyp::hcall::{HostRegs, dispatch};
use testkit::World;

fn call(world: &World, id: u32, args: [u64; 2]) -> Result<[u64; 2], Errno> {
    let mut regs: HostRegs = [0xdead; 18];
    [regs[0], regs[1], regs[2]] = [id.into(), args[0], args[1]];
    let before = regs;
    dispatch(&world.hyp, &world.cpus[0], &mut regs);
    assert_eq!(regs[0], 0, "there is such a call");
    assert_eq!(regs[4..], before[4..]);
    let answer = Errno::from_reg(regs[1]).unwrap();
    if answer.is_err() {
        assert_eq!(regs[2..4], [0, 0]);
    }
    answer.map(|()| [regs[2], regs[3]])
}

fn world() -> World {
    testkit::Setup::new(testkit::features::MAX).start()
}

#[test]
fn an_audit_is_looked_at_and_then_read() {
    let world = world();
    let audit = |what, handle| call(&world, InspectFn::HypAudit.id(), [what, handle]);
    assert_eq!(audit(LOOK, 0), Ok([0, 0]));
    let host = world.hyp.vmemmap().map().pages();
    let owned = audit(Figure::HostOwned.number(), 0).unwrap()[0];
    assert_eq!(owned, u64::from(host) - world.carve_out.nr());
    call(&world, HostFn::HostShareHyp.id(), [world.page(1000).raw(), 0]).unwrap();
    assert_eq!(audit(Figure::HostOwned.number(), 0), Ok([owned, 0]), "figures are those of the last look");
    assert_eq!(audit(LOOK, 0), Ok([0, 0]));
    assert_eq!(audit(Figure::HostOwned.number(), 0), Ok([owned - 1, 0]));
    assert_eq!(audit(FINDINGS, 0), Ok([0, 0]));
    let page = world.page(1001);
    world.hyp.vmemmap().get(page).unwrap().set_aux(7);
    assert_eq!(audit(LOOK, 0), Ok([1, 0]));
    assert_eq!(audit(FINDINGS, 0), Ok([Damage::Record.number(), page.raw()]));
    assert_eq!(audit(FINDINGS + 1, 0), Ok([0, 0]));
}

#[test]
fn what_an_audit_cannot_tell_is_refused() {
    let world = world();
    let audit = |what, handle| call(&world, InspectFn::HypAudit.id(), [what, handle]);
    let past = u64::try_from(Figure::ALL.len()).unwrap() + 1;
    for what in [past, FINDINGS - 1, FINDINGS + MAX_FINDINGS as u64, 1 << 32, u64::MAX] {
        assert_eq!(audit(what, 0), Err(Errno::Einval), "{what:#x}");
    }
    for handle in [1, 0xffff, 1 << 16, u64::MAX] {
        assert_eq!(audit(LOOK, handle), Err(Errno::Enoent), "{handle:#x}");
    }
}

#[test]
fn a_figure_of_a_vm_is_read_by_its_handle() {
    let rig = Rig::new();
    rig.donate(0x400, 1500, 0);
    let audit = rig.world.hyp.audit(&rig.world.cpus[0], Some(crate::CLASSIC), &rig.vms).unwrap();
    assert!(audit.is_clean());
    let read = |figure: Figure| call(&rig.world, InspectFn::HypAudit.id(), [figure.number(), 0]).unwrap()[0];
    assert_eq!((read(Figure::GuestOwned), read(Figure::VmReserve)), (1, 1));
}

#[test]
fn an_armed_site_fails_the_call_once_with_its_errno() {
    let world = world();
    let pfn = world.page(1000).raw();
    let lend = || call(&world, HostFn::HostDonateHyp.id(), [pfn, 1]);
    let stats = |site: Site| call(&world, InspectFn::FiStats.id(), [site.number(), 0]).unwrap();
    for site in [Site::DonateCheck, Site::HostPrepare, Site::HostPoolAlloc] {
        call(&world, InspectFn::FiClear.id(), [0; 2]).unwrap();
        assert_eq!(call(&world, InspectFn::FiArm.id(), [site.number(), 1]), Ok([0, 0]));
        assert_eq!(lend(), Err(site.errno()), "{site:?}");
        assert_eq!(stats(site), [1, 1]);
        assert_eq!(lend(), Ok([0, 0]));
        call(&world, HostFn::HypDonateHost.id(), [pfn, 1]).unwrap();
    }
    call(&world, InspectFn::FiArm.id(), [Site::DonateCheck.number(), 1]).unwrap();
    call(&world, InspectFn::FiClear.id(), [0; 2]).unwrap();
    assert_eq!(lend(), Ok([0, 0]), "cleared");
    assert_eq!(stats(Site::DonateCheck), [1, 0]);
    for function in [InspectFn::FiArm, InspectFn::FiStats] {
        for number in [Site::ALL.len() as u64, u64::MAX] {
            assert_eq!(call(&world, function.id(), [number, 1]), Err(Errno::Einval));
        }
    }
}
