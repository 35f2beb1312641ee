//! PSCI of a guest: who is on is EL2's knowledge.

use crate::rig::{DONE, Exit, PC, Rig, TestVm, mem_fault, plain};
use abi::Errno::Ebusy;
use abi::HostFn;
use abi::exit::{ExitFlags, Reason, Resp};
use abi::psci;
use abi::vm::reg;
use testkit::guest::Instr;

const SECOND: u64 = 0x30_0000;

fn call(id: u32, args: &[u64]) -> Vec<Instr> {
    let mut code = vec![Instr::Mov { rt: 0, value: id.into() }];
    code.extend((1..).zip(args).map(|(rt, &value)| Instr::Mov { rt, value }));
    code.push(Instr::Hvc { imm: 0 });
    code
}

fn exit(function: u32, target: u64) -> Exit {
    Exit { data: function.into(), base: target, ..plain(Reason::Psci) }
}

/// CPU_ON of vCPU 1, then a store of x0 to a device.
fn starter() -> Vec<Instr> {
    let mut code = call(psci::CPU_ON_64, &[1, SECOND, 0x77]);
    code.extend([Instr::Store { rt: 0, ipa: 0x0900_0000, log2: 3 }, DONE]);
    code
}

#[test]
fn a_vcpu_starts_where_its_guest_says_and_the_host_is_not_told_where() {
    for protected in [false, true] {
        let rig = Rig::new();
        let vm = TestVm::active(&rig, protected, 2);
        rig.world.sim.program(PC, &starter());
        rig.world.sim.program(SECOND, &[Instr::Store { rt: 0, ipa: 0x5000, log2: 3 }, DONE, DONE]);
        vm.load(0, 0);
        vm.load(1, 1);
        assert_eq!(vm.try_run(1, 1), Err(Ebusy), "off");
        assert_eq!(vm.run(), exit(psci::CPU_ON_64, 1), "neither entry point nor context");
        // The target may run before the caller goes on.
        let turn = vm.try_run(1, 1).unwrap();
        if protected {
            assert_eq!(turn, mem_fault(0x5000, ExitFlags::PRIVATE));
            let page = vm.give(0x5000);
            assert_eq!(vm.try_run(1, 1).unwrap(), plain(Reason::Wfx));
            assert_eq!(rig.word(page, 0), 0x77, "the context");
        } else {
            assert_eq!((turn.reason, turn.data), (Reason::Mmio, 0x77));
            let second = rig.call_on(1, HostFn::VcpuGetReg, &[reg::MPIDR_EL1]).unwrap()[0];
            assert_eq!(second, 1 << 31 | 1);
            assert_eq!(vm.reply(Resp::Done, 0).data, psci::SUCCESS);
        }
        // It is on: running it again does not start it again.
        assert_ne!(vm.try_run(1, 1), Err(Ebusy));
    }
}

#[test]
fn a_refused_start_is_a_failure_in_the_guest_and_the_target_stays_off() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 2);
    rig.world.sim.program(PC, &starter());
    vm.load(0, 0);
    vm.load(1, 1);
    assert_eq!(vm.run(), exit(psci::CPU_ON_64, 1));
    let shown = vm.reply(Resp::Reject, 0);
    assert_eq!((shown.reason, shown.data), (Reason::Mmio, psci::INTERNAL_FAILURE));
    assert_eq!(vm.try_run(1, 1), Err(Ebusy));
}

#[test]
fn a_start_that_has_happened_cannot_be_refused() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 2);
    rig.world.sim.program(PC, &starter());
    rig.world.sim.program(SECOND, &[DONE, DONE]);
    vm.load(0, 0);
    vm.load(1, 1);
    assert_eq!(vm.run(), exit(psci::CPU_ON_64, 1));
    assert_eq!(vm.try_run(1, 1), Ok(plain(Reason::Wfx)));
    let shown = vm.reply(Resp::Reject, 0);
    assert_eq!((shown.reason, shown.data), (Reason::Mmio, psci::SUCCESS));
    assert_eq!(vm.try_run(1, 1), Ok(plain(Reason::Wfx)));
}

#[test]
fn a_vcpu_that_turned_itself_off_runs_again_only_from_a_new_start() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 2);
    let mut code = starter();
    code.truncate(5);
    code.extend([DONE, Instr::Jump { pc: PC }]);
    rig.world.sim.program(PC, &code);
    let mut off = call(psci::CPU_OFF, &[]);
    off.insert(0, Instr::Mov { rt: 9, value: 9 });
    rig.world.sim.program(SECOND, &off);
    vm.load(0, 0);
    vm.load(1, 1);
    for _ in 0..2 {
        assert_eq!(vm.run(), exit(psci::CPU_ON_64, 1));
        assert_eq!(vm.run(), plain(Reason::Wfx));
        assert_eq!(vm.try_run(1, 1), Ok(exit(psci::CPU_OFF, 0)));
        assert_eq!(vm.try_run(1, 1), Err(Ebusy));
    }
}

#[test]
fn suspend_goes_on_with_success_and_other_calls_are_answered_without_an_exit() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 1);
    let mut code = call(psci::CPU_SUSPEND_64, &[0x1000_0000, 1, 2]);
    code.push(Instr::Store { rt: 0, ipa: 0x0900_0000, log2: 3 });
    code.extend(call(psci::VERSION, &[]));
    code.push(Instr::Store { rt: 0, ipa: 0x0900_0000, log2: 3 });
    code.extend(call(0xc400_0012, &[]));
    code.extend([Instr::Store { rt: 0, ipa: 0x0900_0000, log2: 3 }, DONE]);
    rig.world.sim.program(PC, &code);
    vm.load(0, 0);
    assert_eq!(vm.run(), exit(psci::CPU_SUSPEND_64, 0));
    for data in [psci::SUCCESS, psci::VERSION_1_1, psci::NOT_SUPPORTED] {
        let shown = vm.reply(Resp::Done, 0);
        assert_eq!((shown.reason, shown.data), (Reason::Mmio, data));
    }
}

#[test]
fn a_protected_vm_that_ends_itself_never_runs_again() {
    for id in [psci::SYSTEM_OFF, psci::SYSTEM_RESET] {
        for protected in [true, false] {
            let rig = Rig::new();
            let before = rig.state();
            let vm = TestVm::active(&rig, protected, 2);
            let mut code = call(id, &[]);
            code.push(DONE);
            rig.world.sim.program(PC, &code);
            vm.load(0, 0);
            assert_eq!(vm.run(), exit(id, 0));
            if protected {
                assert_eq!(vm.try_run(0, 0), Err(Ebusy));
                vm.put(0);
                for idx in 0..2 {
                    rig.refused(HostFn::VcpuLoad, &[vm.handle, idx], Ebusy);
                }
            } else {
                assert_eq!(vm.run(), plain(Reason::Wfx), "the VMM's affair");
                assert_eq!(vm.reg(0), psci::INTERNAL_FAILURE);
                vm.put(0);
            }
            vm.destroy();
            assert_eq!(rig.state(), before);
        }
    }
}

#[test]
fn a_vcpu_that_follows_another_of_its_vm_finds_no_entries_of_it() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 2);
    rig.world.sim.program(PC, &starter());
    rig.world.sim.program(SECOND, &[DONE, Instr::Jump { pc: SECOND }]);
    let turn = |idx: u64, cpu: usize| {
        let before = rig.world.sim.turns(cpu).1;
        vm.load(cpu, idx);
        vm.try_run(cpu, usize::try_from(idx).unwrap()).unwrap();
        vm.put(cpu);
        rig.world.sim.turns(cpu).1 - before
    };
    let _ = turn(0, 0);
    assert_eq!(turn(1, 0), 1, "another vCPU was here");
    assert_eq!(turn(1, 0), 0, "the same again");
    let _ = turn(1, 1);
    assert_eq!(turn(1, 0), 0, "it has been elsewhere, nobody here");
    assert_eq!(turn(0, 0), 1);
    vm.load(0, 1);
    vm.put(0);
    assert_eq!(turn(1, 0), 1, "it was loaded and did not run");
}
