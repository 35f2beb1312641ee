//! Host calls as the host makes them: registers in, registers out.

use abi::{Errno, HostFn, caps};
use hyp::hcall::{HostRegs, dispatch};
use testkit::features::{CORTEX_A72, MAX};
use testkit::{Setup, World};

fn regs(x0: u64, args: &[u64]) -> HostRegs {
    let mut regs: HostRegs = std::array::from_fn(|n| 0xdead_0000 + n as u64);
    regs[0] = x0;
    regs[1..=args.len()].copy_from_slice(args);
    regs
}

fn call(world: &World, f: HostFn, args: &[u64]) -> (Option<Result<(), Errno>>, u64, u64) {
    let before = regs(f.id().into(), args);
    let mut after = before;
    dispatch(&world.hyp, &world.cpus[0], &mut after);
    assert_eq!(after[0], 0, "{f:?} is a call");
    assert_eq!(after[4..], before[4..], "{f:?} changes x0 to x3 only");
    (Errno::from_reg(after[1]), after[2], after[3])
}

#[test]
fn an_unknown_id_changes_x0_and_nothing_else() {
    let world = Setup::new(CORTEX_A72).start();
    let share = u64::from(HostFn::HostShareHyp.id());
    for x0 in [0, 1, 2, 3, 4, share | 1 << 32, u64::from(abi::host::BASE) + 0x100, u64::MAX] {
        let before = regs(x0, &[world.page(500).raw()]);
        let mut after = before;
        dispatch(&world.hyp, &world.cpus[0], &mut after);
        assert_eq!(after[0], u64::MAX, "{x0:#x}");
        assert_eq!(after[1..], before[1..], "{x0:#x}");
    }
    assert!(world.hyp.vmemmap().get(world.page(500)).unwrap().is_host_owned());
}

#[test]
fn capabilities_say_what_the_machine_has() {
    for (features, fwb) in [(CORTEX_A72, false), (MAX, true)] {
        let world = Setup::new(features).start();
        let (x1, version, bits) = call(&world, HostFn::HypCaps, &[]);
        assert_eq!((x1, version), (Some(Ok(())), caps::VERSION));
        let caps = caps::Caps::from_bits(bits).unwrap();
        assert!(caps.contains(caps::Caps::OWNERSHIP));
        assert_eq!(caps.contains(caps::Caps::FWB), fwb);
    }
}

#[test]
fn outputs_that_a_call_does_not_define_are_zero() {
    let world = Setup::new(CORTEX_A72).start();
    let pfn = world.page(500).raw();
    assert_eq!(call(&world, HostFn::HostShareHyp, &[pfn]), (Some(Ok(())), 0, 0));
    assert_eq!(call(&world, HostFn::HostShareHyp, &[pfn]), (Some(Err(Errno::Eperm)), 0, 0));
    assert_eq!(call(&world, HostFn::HostUnshareHyp, &[pfn]), (Some(Ok(())), 0, 0));
    assert_eq!(call(&world, HostFn::HostDonateHyp, &[pfn, 3]), (Some(Ok(())), 0, 0));
    assert_eq!(call(&world, HostFn::HypDonateHost, &[pfn, 3]), (Some(Ok(())), 0, 0));
    assert_eq!(call(&world, HostFn::HypDonateHost, &[pfn, 0]), (Some(Err(Errno::Einval)), 0, 0));
}
