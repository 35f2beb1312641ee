//! VMs that are not protected: lent pages, permissions, age.

use crate::rig::{DONE, PC, Rig, TestVm, mem_fault, plain};
use abi::Errno::{E2big, Eexist, Einval, Enoent, Eperm, Erange};
use abi::HostFn;
use abi::exit::{ExitFlags, Reason};
use testkit::features;
use testkit::guest::Instr;

const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;

fn touch(rig: &Rig, code: &[Instr]) {
    let mut code = code.to_vec();
    code.push(DONE);
    rig.world.sim.program(PC, &code);
}

#[test]
fn a_lent_page_does_what_it_is_lent_for_until_it_is_relaxed() {
    for (name, features) in features::MATRIX {
        let rig = Rig::on(features);
        let vm = TestVm::active(&rig, false, 1);
        let page = rig.filled(0x77);
        rig.ok(HostFn::GuestShare, &[vm.handle, 5, page, 0, R]);
        let code = [
            Instr::Load { rt: 1, ipa: 0x5000, log2: 3, sign: false, wide: true },
            Instr::Store { rt: 1, ipa: 0x5008, log2: 3 },
            Instr::Fetch { ipa: 0x5000 },
        ];
        touch(&rig, &code);
        vm.load(0, 0);
        assert_eq!(vm.run(), mem_fault(0x5000, ExitFlags::WRITE), "{name}");
        rig.ok(HostFn::GuestRelax, &[vm.handle, 5, W]);
        assert_eq!(vm.run(), mem_fault(0x5000, ExitFlags::EXEC), "{name}");
        rig.ok(HostFn::GuestRelax, &[vm.handle, 5, X]);
        assert_eq!(vm.run(), plain(Reason::Wfx), "{name}");
        assert!(rig.host_reads(page), "the host keeps its page");
        rig.ok(HostFn::GuestWrprotect, &[vm.handle, 0, 512]);
        rig.ok(HostFn::VcpuSetReg, &[abi::vm::reg::PC, PC]);
        assert_eq!(vm.run(), mem_fault(0x5000, ExitFlags::WRITE), "{name}");
    }
}

#[test]
fn a_page_that_is_used_is_young_again() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 1);
    for gfn in 5..8_u64 {
        vm.give(gfn << 12);
    }
    let age = |clear| rig.call(HostFn::GuestAge, &[vm.handle, 0, 512, clear]).unwrap();
    assert_eq!(age(0), [512, 3]);
    assert_eq!(age(1), [512, 3]);
    assert_eq!(age(0), [512, 0]);
    touch(&rig, &[Instr::Load { rt: 1, ipa: 0x6000, log2: 3, sign: false, wide: true }]);
    vm.load(0, 0);
    assert_eq!(vm.run(), plain(Reason::Wfx), "EL2 sets the flag, the host hears nothing");
    assert_eq!(age(0), [512, 1]);
}

#[test]
fn a_block_is_lent_aged_and_taken_back_whole() {
    let rig = Rig::new();
    let before = rig.state();
    let vm = TestVm::active(&rig, false, 1);
    let block = rig.pages(512);
    rig.ok(HostFn::GuestShare, &[vm.handle, 0x40000, block, 9, R]);
    rig.refused(HostFn::GuestUnshare, &[vm.handle, 0x40000, 511], E2big);
    rig.refused(HostFn::GuestUnshare, &[vm.handle, 0x40001, 511], E2big);
    rig.refused(HostFn::GuestWrprotect, &[vm.handle, 0x40001, 1], E2big);
    rig.refused(HostFn::GuestAge, &[vm.handle, 0x40001, 1, 1], E2big);
    rig.ok(HostFn::GuestRelax, &[vm.handle, 0x40007, W]);
    assert_eq!(rig.call(HostFn::GuestAge, &[vm.handle, 0x40000, 512, 1]), Ok([512, 1]));
    touch(&rig, &[Instr::Store { rt: 1, ipa: 0x4010_0000, log2: 3 }]);
    vm.load(0, 0);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    vm.put(0);
    assert_eq!(rig.ok(HostFn::GuestUnshare, &[vm.handle, 0x40000, 512]), 512);
    vm.destroy();
    assert_eq!(rig.state(), before);
}

#[test]
fn the_arguments_of_lending_are_checked_in_order() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 1);
    let page = vm.give(0x5000);
    let fresh = rig.pages(1);
    for (args, errno) in [
        ([vm.handle, 6, fresh, 1, 7], Einval),
        ([vm.handle, 6, fresh, 9, 7], Einval),
        ([vm.handle, 6, fresh, 0, 1 << 4], Einval),
        ([vm.handle, 6, fresh, 0, 8 | R], Einval),
        ([vm.handle, 6, 1 << 36, 0, 7], Erange),
        ([vm.handle, 1 << 20, fresh, 0, 7], Erange),
        ([vm.handle, 6, 0x100, 0, 7], Erange),
        ([vm.handle, 5, fresh, 0, 7], Eexist),
        ([vm.handle, 6, rig.world.page(0).raw(), 0, 7], Eperm),
        ([vm.handle, 6, vm.record(0), 0, 7], Eperm),
    ] {
        rig.refused(HostFn::GuestShare, &args, errno);
    }
    rig.ok(HostFn::GuestShare, &[vm.handle, 7, page, 0, R]);
    let other = TestVm::active(&rig, false, 1);
    rig.refused(HostFn::GuestShare, &[other.handle, 7, page, 0, R], Eperm);
    for (call, args) in
        [(HostFn::GuestUnshare, vec![vm.handle, 8, 1]), (HostFn::GuestRelax, vec![vm.handle, 8, R])]
    {
        rig.refused(call, &args, Enoent);
    }
    rig.refused(HostFn::GuestUnshare, &[vm.handle, 5, 0], Einval);
    rig.refused(HostFn::GuestUnshare, &[vm.handle, 5, u64::MAX], Einval);
    rig.refused(HostFn::GuestUnshare, &[vm.handle, 5, 513], E2big);
    rig.refused(HostFn::GuestUnshare, &[vm.handle, 1 << 36, 1], Erange);
    rig.refused(HostFn::GuestAge, &[vm.handle, 5, 1, 2], Einval);
    rig.refused(HostFn::GuestRelax, &[vm.handle, 5, 1 << 5], Einval);
    assert_eq!(rig.ok(HostFn::GuestUnshare, &[vm.handle, 5, 9]), 1, "up to the first hole");
}
