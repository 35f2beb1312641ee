//! A protected VM's memory: blocks, forced reclaim, the reserve, teardown with everything in use.

use crate::rig::{DONE, Exit, PC, Rig, SECRET, TestVm, mem_fault};
use abi::Errno::{Eacces, Ebusy, Eexist, Ehwpoison, Einval, Enoent, Eperm, Erange};
use abi::HostFn;
use abi::exit::ExitFlags;
use abi::vm::NO_PAGE;
use testkit::guest::Instr;

const BLOCK: u64 = 0x4000_0000;

fn load(ipa: u64) -> Instr {
    Instr::Load { rt: 1, ipa, log2: 3, sign: false, wide: true }
}

/// A VM with a block at [`BLOCK`], each of whose pages holds its own number.
fn with_block(rig: &Rig) -> (TestVm<'_>, u64) {
    let vm = TestVm::active(rig, true, 1);
    let block = rig.pages(512);
    rig.ok(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, block, 9, 7]);
    for n in 0..512 {
        assert_eq!(rig.word(block + n, 5), 0);
        rig.world.sim.memory().write(block + n, 5, 0x1000 + n);
    }
    (vm, block)
}

#[test]
fn a_page_that_was_taken_by_force_is_lost_for_good() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    let page = vm.give(0x5000);
    rig.world.sim.memory().write(page, 1, SECRET);
    assert_eq!(rig.call(HostFn::GuestReclaim, &[vm.handle, 0x5000, 0x6000, NO_PAGE]), Ok([0x6000, NO_PAGE]));
    assert!(rig.host_reads(page));
    assert_eq!(rig.word(page, 1), 0);
    rig.refused(HostFn::GuestDonate, &[vm.handle, 5, page, 0, 7], Ehwpoison);
    rig.world.sim.program(PC, &[load(0x5008), Instr::Fetch { ipa: 0x5000 }]);
    vm.load(0, 0);
    let lost = mem_fault(0x5000, ExitFlags::PRIVATE | ExitFlags::DESTROYED);
    assert_eq!(vm.run(), lost);
    assert_eq!(vm.run(), Exit { repeat: 1, ..lost });
    vm.put(0);
    vm.destroy();
}

///
#[test]
fn one_page_out_of_a_block_costs_no_table_and_the_rest_stays() {
    for refill in [false, true] {
        let rig = Rig::new();
        let before = rig.state();
        let (vm, block) = with_block(&rig);
        let spare = if refill { rig.pages(1) } else { NO_PAGE };
        let at = BLOCK + 0x7000;
        let [end, retained] = rig.call(HostFn::GuestReclaim, &[vm.handle, at, at + 0x1000, spare]).unwrap();
        assert_eq!(end, at + 0x1000);
        for n in 0..512 {
            assert_eq!(rig.word(block + n, 5), if n == 7 { 0 } else { 0x1000 + n });
        }
        assert!(!rig.host_reads(block + 6) && !rig.host_reads(block + 8));
        if refill {
            assert!(rig.host_reads(block + 7), "the host has exactly its page back");
        }
        if retained != NO_PAGE {
            assert!(!rig.host_reads(retained));
        }
        rig.world.sim.program(PC, &[load(BLOCK + 0x6028), load(BLOCK + 0x8028), load(at), DONE]);
        vm.load(0, 0);
        assert_eq!(vm.run(), mem_fault(at, ExitFlags::PRIVATE | ExitFlags::DESTROYED));
        vm.put(0);
        vm.destroy();
        assert_eq!(rig.state(), before);
    }
}

#[test]
fn the_arguments_of_giving_and_taking_are_checked_in_order() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    let mine = vm.give(0x5000);
    let fresh = rig.pages(1);
    for (args, errno) in [
        ([vm.handle, 6, fresh, 1, 7], Einval),
        ([vm.handle, 6, fresh | 1, 9, 7], Einval),
        ([vm.handle, 6, fresh, 0, 5], Einval),
        ([vm.handle, 6, fresh, 0, 1 << 8 | 7], Einval),
        ([vm.handle, 6, fresh, 0, 8], Einval),
        ([vm.handle, 6, 1 << 36, 0, 7], Erange),
        ([vm.handle, 1 << 20, fresh, 0, 7], Erange),
        ([vm.handle, u64::MAX, fresh, 0, 7], Erange),
        ([vm.handle, 6, 0x100, 0, 7], Erange),
        ([vm.handle, 6, mine, 0, 7], Eperm),
        ([vm.handle, 5, fresh, 0, 7], Eexist),
    ] {
        rig.refused(HostFn::GuestDonate, &args, errno);
    }
    for (range, errno) in [
        ([0x5001, 0x6000], Einval),
        ([0x5000, 0x6001], Einval),
        ([0x5000, 0x5000], Einval),
        ([0x6000, 0x5000], Einval),
        ([0x5000, (1 << 32) + 0x1000], Erange),
        ([0x5000, 1 << 52], Erange),
    ] {
        rig.refused(HostFn::GuestReclaim, &[vm.handle, range[0], range[1], NO_PAGE], errno);
        // What depends on the VM is asked after its phase.
        let dying = if range[1] == (1 << 32) + 0x1000 { Ebusy } else { errno };
        rig.refused(HostFn::ReclaimDying, &[vm.handle, range[0], range[1]], dying);
    }
    rig.refused(HostFn::GuestReclaim, &[vm.handle, 0x5000, 0x6000, 1 << 36], Erange);
    // The range is looked at first.
    rig.refused(HostFn::GuestReclaim, &[vm.handle, 0x6000, 0x6000, 1 << 36], Einval);
    rig.refused(HostFn::GuestReclaim, &[vm.handle, 0x5000, 0x6000, mine], Eperm);
    let early = rig.filled(1);
    rig.refused(HostFn::VmPopulate, &[vm.handle, 6, early, 0], Ebusy);
    rig.refused(HostFn::VmPopulate, &[vm.handle, 6, early, 1], Eacces);
    rig.refused(HostFn::VmPopulate, &[vm.handle, 6, early, 2], Einval);
    let two = TestVm::active(&rig, true, 1);
    rig.refused(HostFn::GuestDonate, &[two.handle, 5, mine, 0, 7], Eperm);
}

/// The specification, which judges each call, has to find the same of two faults first.
#[test]
fn the_arguments_of_lending_are_checked_in_order() {
    let rig = Rig::new();
    let plain = TestVm::active(&rig, false, 1);
    let split = TestVm::split(&rig, 1);
    let page = rig.pages(1);
    for (call, vm, unknown) in
        [(HostFn::GuestShare, plain.handle, 1 << 8), (HostFn::UnprotMap, split.handle, 2)]
    {
        rig.refused(call, &[vm, 6, 1 << 36, 9, unknown], Einval);
        rig.refused(call, &[vm, 6, 1 << 36, 0, unknown], Erange);
        rig.refused(call, &[0x1_0000, 6, page, 0, unknown], Einval);
        rig.refused(call, &[0x1_0000, 6, page, 0, 1], Enoent);
    }
}

#[test]
fn a_vm_that_still_owns_a_page_is_not_finished_and_says_where() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    vm.give(0x8000_5000);
    rig.ok(HostFn::VmTeardownStart, &[vm.handle]);
    let mut answer = rig.call(HostFn::VmTeardownFinish, &[vm.handle, 512]);
    // Steps before the page may be done first.
    while let Err((abi::Errno::Eagain, _)) = answer {
        answer = rig.call(HostFn::VmTeardownFinish, &[vm.handle, 512]);
    }
    assert_eq!(answer, Err((Ebusy, [0x8000_5000, 0])));
    rig.refused(HostFn::VmTeardownFinish, &[vm.handle, 0], Einval);
    rig.refused(HostFn::VmTeardownFinish, &[vm.handle, 513], abi::Errno::E2big);
}

/// P-25.
#[test]
fn a_vm_dies_with_everything_in_use() {
    let rig = Rig::new();
    let before = rig.state();
    let (vm, block) = with_block(&rig);
    let shared = vm.give(0x5000);
    rig.ok(HostFn::GuestReclaim, &[vm.handle, BLOCK + 0x9000, BLOCK + 0xb000, NO_PAGE]);
    let code = [
        Instr::Mov { rt: 0, value: abi::guest::MEM_SHARE.into() },
        Instr::Mov { rt: 1, value: 0x5000 },
        Instr::Mov { rt: 2, value: 1 },
        Instr::Mov { rt: 3, value: 0 },
        Instr::Hvc { imm: 0 },
        load(0x9000),
    ];
    rig.world.sim.program(PC, &code);
    vm.load(0, 0);
    assert_eq!(vm.run(), mem_fault(0x9000, ExitFlags::PRIVATE));
    rig.world.sim.memory().write(shared, 0, 0xbeef);
    rig.refused(HostFn::GuestReclaim, &[vm.handle, 0x5000, 0x6000, NO_PAGE], Eperm);
    vm.put(0);
    vm.destroy();
    assert_eq!(rig.word(shared, 0), 0xbeef, "the host saw it already");
    for n in 0..512 {
        assert_eq!(rig.word(block + n, 5), 0);
    }
    assert_eq!(rig.state(), before);
}

#[test]
fn small_budgets_get_there_as_well() {
    let rig = Rig::new();
    let before = rig.state();
    let vm = TestVm::active(&rig, false, 3);
    for n in 0..40 {
        vm.give(0x1000 * n);
    }
    rig.ok(HostFn::VmTeardownStart, &[vm.handle]);
    let mut calls = 0;
    loop {
        calls += 1;
        assert!(calls < 200);
        match rig.call(HostFn::VmTeardownFinish, &[vm.handle, 1]) {
            Ok([_, count]) => {
                assert!(count <= 19);
                break;
            }
            Err((abi::Errno::Eagain, [_, count])) => assert!(count <= 1),
            Err(e) => panic!("{e:x?}"),
        }
    }
    for idx in 0..3 {
        rig.ok(HostFn::HostUnshareHyp, &[vm.record(idx)]);
    }
    assert_eq!(rig.state(), before);
}
