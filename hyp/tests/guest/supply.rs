//! Pages that the host supplies by its answer to an exit.

use crate::rig::{DONE, Exit, PC, Rig, SECRET, TestVm, mem_fault, plain};
use abi::Errno::{Eacces, Ebusy, Eexist, Ehwpoison, Enomem, Eperm, Erange};
use abi::HostFn;
use abi::exit::{ExitFlags, Reason, Resp};
use abi::vm::NO_PAGE;
use testkit::guest::Instr;

const AT: u64 = 0x5000;
/// The half of a realm that the host serves.
const SHARED: u64 = 1 << 31;

const fn load(ipa: u64) -> Instr {
    Instr::Load { rt: 9, ipa, log2: 3, sign: false, wide: true }
}

/// A kind of VM, the call that gives it a page, and where the page goes.
#[derive(Clone, Copy, Debug)]
enum Place {
    Own,
    Lent,
    RealmsOwn,
    RealmsShared,
}

impl Place {
    const ALL: [Self; 4] = [Self::Own, Self::Lent, Self::RealmsOwn, Self::RealmsShared];

    fn vm(self, rig: &Rig) -> TestVm<'_> {
        match self {
            Self::Own | Self::Lent => TestVm::active(rig, matches!(self, Self::Own), 1),
            Self::RealmsOwn | Self::RealmsShared => {
                let vm = TestVm::split(rig, 1);
                rig.ok(HostFn::VmInitRipas, &[vm.handle, 0, 0x10_0000]);
                rig.ok(HostFn::VmFinalise, &[vm.handle]);
                vm
            }
        }
    }

    const fn ipa(self) -> u64 {
        if matches!(self, Self::RealmsShared) { SHARED | AT } else { AT }
    }

    const fn is_own(self) -> bool {
        matches!(self, Self::Own | Self::RealmsOwn)
    }

    fn call(self, rig: &Rig, vm: &TestVm<'_>, page: u64) {
        let (call, prot) = match self {
            Self::Own | Self::RealmsOwn => (HostFn::GuestDonate, 7),
            Self::Lent => (HostFn::GuestShare, 7),
            Self::RealmsShared => (HostFn::UnprotMap, 1),
        };
        rig.ok(call, &[vm.handle, self.ipa() >> 12, page, 0, prot]);
    }
}

/// The guest of `vm` reads at `ipa` and finds nothing there; the exit.
fn missing(rig: &Rig, vm: &TestVm<'_>, ipa: u64) -> Exit {
    rig.world.sim.program(PC, &[load(ipa), DONE]);
    vm.load(0, 0);
    vm.run()
}

#[test]
fn the_answer_to_a_fault_does_what_the_call_does() {
    for place in Place::ALL {
        let [by_call, by_answer] = [false, true].map(|answer| {
            let rig = Rig::new();
            let vm = place.vm(&rig);
            let page = rig.filled(SECRET);
            let exit = missing(&rig, &vm, place.ipa());
            assert!(matches!(exit.reason, Reason::MemFault | Reason::Mmio), "{place:?}: {exit:?}");
            if answer {
                assert_eq!(vm.reply(Resp::Map, page), plain(Reason::Wfx), "{place:?}");
            } else {
                place.call(&rig, &vm, page);
                assert_eq!(vm.run(), plain(Reason::Wfx), "{place:?}");
            }
            let read = rig.loaded_registers(0)[9];
            assert_eq!(read, if place.is_own() { 0 } else { SECRET }, "{place:?}");
            assert_eq!(rig.host_reads(page), !place.is_own(), "{place:?}");
            rig.audit();
            rig.state()
        });
        assert_eq!(by_call, by_answer, "{place:?}");
    }
}

#[test]
fn what_the_call_refuses_the_answer_is_refused_and_the_exit_stays() {
    for place in Place::ALL {
        let rig = Rig::new();
        let vm = place.vm(&rig);
        let other = TestVm::active(&rig, true, 1);
        let foreign = other.give(0x7000);
        let exit = missing(&rig, &vm, place.ipa());
        let (before, registers) = (rig.state(), rig.loaded_registers(0));
        for (pfn, errno) in [(1 << 36, Erange), (u64::MAX, Erange), (0x100, Erange), (foreign, Eperm)] {
            vm.answer(0, Resp::Map as u32, pfn);
            assert_eq!(vm.try_run(0, 0), Err(errno), "{place:?} {pfn:#x}");
            assert_eq!(vm.exit(0), exit, "{place:?}: the record is as it was");
            assert_eq!(rig.loaded_registers(0), registers);
            assert_eq!(rig.state(), before, "{place:?} {pfn:#x}");
        }
        let page = rig.filled(SECRET);
        place.call(&rig, &vm, page);
        let (before, another) = (rig.state(), rig.pages(1));
        vm.answer(0, Resp::Map as u32, another);
        assert_eq!(vm.try_run(0, 0), Err(Eexist), "{place:?}: it has one in the meantime");
        assert_eq!(rig.state(), before);
        assert_eq!(vm.reply(Resp::Replay, 0), plain(Reason::Wfx), "{place:?}");
        rig.audit();
    }
}

#[test]
fn an_answer_that_lacks_table_pages_says_how_many_and_may_come_again() {
    // Far from everything: all levels are missing, and the VM's store is empty.
    let far = 0x8000_0000;
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    // Each page needs a table of its own until none is left.
    let full = (1..512)
        .map(|n| rig.call(HostFn::GuestDonate, &[vm.handle, (far >> 12) + 512 * n, rig.pages(1), 0, 7]));
    assert_eq!(full.filter_map(Result::err).next().map(|(errno, _)| errno), Some(Enomem));
    let exit = missing(&rig, &vm, far);
    assert_eq!(exit, mem_fault(far, ExitFlags::PRIVATE));
    let (before, page) = (rig.state(), rig.filled(SECRET));
    vm.answer(0, Resp::Map as u32, page);
    let (errno, [_, lack]) = rig.call(HostFn::VcpuRun, &[]).unwrap_err();
    assert_eq!((errno, rig.state()), (Enomem, before));
    assert!(lack > 0);
    vm.topup(lack);
    assert_eq!(vm.run(), plain(Reason::Wfx), "the answer stands");
    rig.audit();
}

#[test]
fn a_page_that_was_destroyed_or_is_guarded_is_not_supplied() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    let page = vm.give(AT);
    assert_eq!(
        rig.call(HostFn::GuestReclaim, &[vm.handle, AT, AT + 0x1000, NO_PAGE]),
        Ok([AT + 0x1000, NO_PAGE])
    );
    assert_eq!(missing(&rig, &vm, AT), mem_fault(AT, ExitFlags::PRIVATE | ExitFlags::DESTROYED));
    vm.answer(0, Resp::Map as u32, page);
    assert_eq!(vm.try_run(0, 0), Err(Ehwpoison));
    vm.put(0);

    // What a guarded guest has for a device is not a place for a page of the host either.
    let guarded = TestVm::active(&rig, true, 1);
    let enrol = [abi::guest::GUARD_ENROLL, abi::guest::GUARD_MAP];
    let mut code = Vec::new();
    for id in enrol {
        code.extend([Instr::Mov { rt: 0, value: id.into() }, Instr::Mov { rt: 1, value: 0x9000 }]);
        code.extend([Instr::Mov { rt: 2, value: 0 }, Instr::Mov { rt: 3, value: 0 }, Instr::Hvc { imm: 0 }]);
    }
    code.extend([load(0x9000), DONE]);
    rig.world.sim.program(PC, &code);
    guarded.load(0, 0);
    assert_eq!(guarded.run().reason, Reason::Mmio);
    let before = rig.state();
    guarded.answer(0, Resp::Map as u32, page);
    assert_eq!(guarded.try_run(0, 0), Err(Eacces));
    assert_eq!(rig.state(), before);
    assert_eq!(guarded.reply(Resp::Done, 7), plain(Reason::Wfx));
    assert_eq!(rig.loaded_registers(0)[9], 7);
}

#[test]
fn a_page_that_no_exit_asked_for_stays_the_hosts() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    rig.world.sim.program(PC, &[DONE, DONE]);
    vm.load(0, 0);
    let (page, before) = (rig.filled(SECRET), rig.state());
    assert_eq!(vm.reply(Resp::Map, page), plain(Reason::Wfx), "the first turn answers nothing");
    assert_eq!(vm.reply(Resp::Map, page), plain(Reason::Wfx), "nor is WFI about a page");
    assert!(rig.host_reads(page));
    assert_eq!(rig.state(), before);
}

#[test]
fn a_vm_that_ends_takes_no_page() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    assert_eq!(missing(&rig, &vm, AT), mem_fault(AT, ExitFlags::PRIVATE));
    let page = rig.filled(SECRET);
    vm.answer(0, Resp::Map as u32, page);
    assert_eq!(rig.call(HostFn::VmTeardownStart, &[vm.handle]).err().map(|(e, _)| e), Some(Ebusy));
    assert_eq!(vm.run(), plain(Reason::Wfx));
}
