//! Turns of a vCPU: loading, running, exits, answers, and what the host can and cannot see.

use crate::rig::{DONE, Exit, PC, Rig, SECRET, TestVm, mem_fault, plain};
use abi::Errno::{Eacces, Ebusy, Einval, Enoent, Eperm};
use abi::HostFn;
use abi::exit::{ExitFlags, Reason, Resp, word};
use abi::vm::reg;
use testkit::features;
use testkit::guest::Instr;

const DEVICE: u64 = 0x0900_0000;
const VBAR: u64 = 0x20_0000;
const SYNC_EL1H: u64 = VBAR + 0x200;

fn mov(rt: u8, value: u64) -> Instr {
    Instr::Mov { rt, value }
}

fn load(rt: u8, ipa: u64) -> Instr {
    Instr::Load { rt, ipa, log2: 3, sign: false, wide: true }
}

fn store(rt: u8, ipa: u64) -> Instr {
    Instr::Store { rt, ipa, log2: 3 }
}

fn mmio(gpa: u64, size: u32, write: bool, data: u64) -> Exit {
    Exit { gpa, size, dir: write.into(), data, ..plain(Reason::Mmio) }
}

/// An ACTIVE VM with one vCPU, loaded on CPU 0, and its program.
fn running<'a>(rig: &'a Rig, protected: bool, code: &[Instr]) -> TestVm<'a> {
    let vm = TestVm::active(rig, protected, 1);
    rig.world.sim.program(PC, code);
    vm.load(0, 0);
    vm
}

#[test]
fn a_vcpu_is_on_one_cpu_and_a_cpu_has_one_vcpu() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 2);
    let other = TestVm::active(&rig, false, 1);
    let on = |cpu, call, args: &[u64]| rig.call_on(cpu, call, args).map_err(|(e, _)| e);
    assert_eq!(on(0, HostFn::VcpuRun, &[]), Err(Enoent), "run without load");
    assert_eq!(on(0, HostFn::VcpuPut, &[]), Err(Enoent), "put without load");
    assert_eq!(on(0, HostFn::VcpuLoad, &[vm.handle, 2]), Err(Enoent));
    assert_eq!(on(0, HostFn::VcpuLoad, &[vm.handle, 32]), Err(Enoent));
    assert_eq!(on(0, HostFn::VcpuLoad, &[vm.handle, u64::MAX]), Err(Enoent));
    vm.load(0, 0);
    assert_eq!(on(0, HostFn::VcpuLoad, &[vm.handle, 0]), Err(Ebusy), "again");
    assert_eq!(on(0, HostFn::VcpuLoad, &[vm.handle, 1]), Err(Ebusy), "another one");
    assert_eq!(on(0, HostFn::VcpuLoad, &[other.handle, 0]), Err(Ebusy), "of another VM");
    assert_eq!(on(1, HostFn::VcpuLoad, &[vm.handle, 0]), Err(Ebusy), "on another CPU");
    vm.load(1, 1);
    rig.refused(HostFn::VmTeardownStart, &[vm.handle], Ebusy);
    vm.put(0);
    rig.refused(HostFn::VmTeardownStart, &[vm.handle], Ebusy);
    vm.put(1);
    vm.load(1, 0);
    vm.put(1);
    vm.destroy();
    assert_eq!(on(1, HostFn::VcpuPut, &[]), Err(Enoent));
}

#[test]
fn stores_to_a_device_show_their_bytes_and_nothing_else() {
    let rig = Rig::new();
    let value = 0x8877_6655_4433_2211;
    let mut code = vec![mov(3, value)];
    for log2 in 0..4 {
        code.push(Instr::Store { rt: 3, ipa: DEVICE + 0xff8, log2 });
    }
    code.push(Instr::Store { rt: 31, ipa: DEVICE, log2: 3 });
    code.push(DONE);
    let vm = running(&rig, false, &code);
    for log2 in 0..4 {
        let size = 1 << log2;
        let data = if size == 8 { value } else { value & ((1 << (8 * size)) - 1) };
        let exit = if log2 == 0 { vm.run() } else { vm.reply(Resp::Done, u64::MAX) };
        assert_eq!(exit, mmio(DEVICE + 0xff8, size, true, data));
    }
    assert_eq!(vm.reply(Resp::Done, 0), mmio(DEVICE, 8, true, 0));
    assert_eq!(vm.reply(Resp::Done, u64::MAX), plain(Reason::Wfx));
    for n in 0..31 {
        assert_eq!(vm.reg(n), if n == 3 { value } else { 0 }, "x{n}");
    }
}

/// G-02 for a VM without guard.
#[test]
fn loads_from_a_device_get_what_the_instruction_would_and_no_bit_more() {
    let rig = Rig::new();
    let at = |rt, log2, sign, wide| Instr::Load { rt, ipa: DEVICE + 8, log2, sign, wide };
    let code = [
        at(1, 0, false, false),
        at(2, 0, true, false),
        at(3, 0, true, true),
        at(4, 1, true, true),
        at(5, 2, true, true),
        at(6, 2, false, false),
        at(7, 3, false, true),
        at(31, 3, false, true),
        DONE,
    ];
    let vm = running(&rig, false, &code);
    let mut exit = vm.run();
    for size in [1, 1, 1, 2, 4, 4, 8, 8] {
        assert_eq!(exit, mmio(DEVICE + 8, size, false, 0));
        exit = vm.reply(Resp::Done, u64::MAX);
    }
    assert_eq!(exit, plain(Reason::Wfx));
    let m1 = u64::MAX;
    let expected = [0, 0xff, 0xffff_ffff, m1, m1, m1, 0xffff_ffff, m1, 0];
    for (n, want) in (0..).zip(expected) {
        assert_eq!(vm.reg(n), want, "x{n}");
    }
}

/// G-16.
#[test]
fn an_answer_that_nobody_asked_for_changes_no_register() {
    let rig = Rig::new();
    let code = [mov(1, 11), DONE, store(1, DEVICE), DONE, load(2, DEVICE), DONE];
    let vm = running(&rig, false, &code);
    let registers = |vm: &TestVm<'_>| (0..31).map(|n| vm.reg(n)).collect::<Vec<_>>();
    assert_eq!(vm.run(), plain(Reason::Wfx));
    let before = registers(&vm);
    for resp in [1, 2, 3, 4, u32::MAX] {
        vm.answer(0, resp, u64::MAX);
        rig.world.sim.interrupt(0, true);
        assert_eq!(vm.run().reason, Reason::Irq);
        assert_eq!(registers(&vm), before, "resp {resp}");
        assert_eq!(vm.reg(reg::PC), PC + 8, "nothing was skipped");
        rig.world.sim.interrupt(0, false);
    }
    // An answer that the exit does not define is a REPLAY: the access comes again.
    assert_eq!(vm.reply(Resp::Replay, 0), mmio(DEVICE, 8, true, 11));
    assert_eq!(vm.reply(Resp::Replay, 7), mmio(DEVICE, 8, true, 11));
    assert_eq!(vm.reply(Resp::Reject, 7), mmio(DEVICE, 8, true, 11));
    assert_eq!(vm.reply(Resp::Done, 7), plain(Reason::Wfx));
    assert_eq!(registers(&vm), before);
    // An answer counts for one exit.
    assert_eq!(vm.run(), mmio(DEVICE, 8, false, 0));
    assert_eq!(vm.reply(Resp::Done, 0x77), plain(Reason::Wfx));
    assert_eq!(vm.reg(2), 0x77);
}

#[test]
fn an_access_that_is_aborted_faults_in_the_guest_where_it_was() {
    let rig = Rig::new();
    let code = [Instr::Sys { reg: [3, 0, 12, 0, 0], rt: 0, read: false }, store(1, DEVICE + 16), DONE];
    let vm = running(&rig, false, &code);
    rig.world.sim.program(SYNC_EL1H, &[DONE]);
    rig.ok(HostFn::VcpuSetReg, &[reg::VBAR_EL1, VBAR]);
    rig.ok(HostFn::VcpuSetReg, &[reg::PC, PC + 4]);
    assert_eq!(vm.run(), mmio(DEVICE + 16, 8, true, 0));
    assert_eq!(vm.reply(Resp::Sea, 0), plain(Reason::Wfx));
    assert_eq!(vm.reg(reg::ESR_EL1), 0x9600_0210);
    assert_eq!(vm.reg(reg::FAR_EL1), DEVICE + 16);
    assert_eq!(vm.reg(reg::ELR_EL1), PC + 4);
    assert_eq!(vm.reg(reg::SPSR_EL1), 0x3c5);
    assert_eq!(vm.reg(reg::PC), SYNC_EL1H + 4);
}

#[test]
fn accesses_without_a_syndrome_ask_for_memory_and_say_what_for() {
    let rig = Rig::new();
    let code = [
        Instr::Opaque { ipa: 0x5000 },
        Instr::Fetch { ipa: 0x6000 },
        Instr::Walk { ipa: 0x7008, update: false },
        Instr::Clean { ipa: 0x8010 },
        Instr::Store { rt: 0, ipa: 0x9004, log2: 3 },
        DONE,
    ];
    let vm = running(&rig, false, &code);
    for (ipa, flags) in [
        (0x5000, ExitFlags::empty()),
        (0x6000, ExitFlags::EXEC),
        (0x7000, ExitFlags::empty()),
        (0x8000, ExitFlags::empty()),
    ] {
        let fault = mem_fault(ipa, flags);
        assert_eq!(vm.run(), fault);
        for repeat in 1..4 {
            assert_eq!(vm.reply(Resp::Replay, 0), Exit { repeat, ..fault });
        }
        vm.give(ipa);
    }
    assert_eq!(vm.run(), mem_fault(0x9000, ExitFlags::WRITE), "not aligned");
}

#[test]
fn a_protected_vm_asks_for_its_pages_and_tells_nothing_of_the_access() {
    let rig = Rig::new();
    let code = [
        mov(1, SECRET),
        store(1, 0x5018),
        load(2, 0x6ff8),
        Instr::Opaque { ipa: 0x7ff0 },
        Instr::Fetch { ipa: 0x8abc },
        Instr::Walk { ipa: 0x9008, update: true },
        Instr::Clean { ipa: 0xa010 },
        DONE,
    ];
    let vm = running(&rig, true, &code);
    for ipa in [0x5000, 0x6000, 0x7000, 0x8000, 0x9000, 0xa000] {
        assert_eq!(vm.run(), mem_fault(ipa, ExitFlags::PRIVATE));
        let page = vm.give(ipa);
        assert_eq!(rig.word(page, 1), 0, "zeroed");
        assert!(!rig.host_reads(page));
    }
    assert_eq!(vm.run(), plain(Reason::Wfx));
}

/// P-08, G-03.
#[test]
fn a_host_cannot_abort_or_answer_an_access_to_private_memory() {
    let rig = Rig::new();
    let vm = running(&rig, true, &[load(1, 0x5000), store(1, 0x6000), DONE]);
    let fault = mem_fault(0x5000, ExitFlags::PRIVATE);
    assert_eq!(vm.run(), fault);
    let record: Vec<u64> = (0..512).map(|n| rig.word(vm.record(0), n)).collect();
    vm.answer(0, Resp::Sea as u32, 1);
    assert_eq!(vm.try_run(0, 0), Err(Eperm));
    let (loads, _) = rig.world.sim.turns(0);
    assert_eq!(loads, 1, "nothing was entered");
    let after: Vec<u64> = (0..512).map(|n| rig.word(vm.record(0), n)).collect();
    assert_eq!(after[..word::RESP], record[..word::RESP], "and the record is as it was");
    assert_eq!(vm.reply(Resp::Done, 0x1bad), Exit { repeat: 1, ..fault });
    vm.give(0x5000);
    let next = mem_fault(0x6000, ExitFlags::PRIVATE);
    assert_eq!(vm.reply(Resp::Done, 0x1bad), next);
    let page = vm.give(0x6000);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!(rig.word(page, 0), 0, "what it loaded were the zeros of its page");
}

#[test]
fn registers_of_a_protected_vcpu_are_out_of_reach() {
    let rig = Rig::new();
    rig.refused(HostFn::VcpuGetReg, &[0], Enoent);
    rig.refused(HostFn::VcpuSetReg, &[0, 0], Enoent);
    let vm = running(&rig, true, &[DONE]);
    for n in 0..reg::END + 2 {
        rig.refused(HostFn::VcpuGetReg, &[n], Eacces);
        rig.refused(HostFn::VcpuSetReg, &[n, 1], Eacces);
    }
    vm.put(0);
    let other = running(&rig, false, &[DONE]);
    assert_eq!(other.reg(reg::PC), PC);
    for (n, value) in [(reg::END, 0), (u64::MAX, 0), (reg::MPIDR_EL1, 0), (reg::CNTVOFF, 0)] {
        rig.refused(HostFn::VcpuSetReg, &[n, value], Einval);
    }
    for pstate in [0x3c9, 0x3cd, 0x3c8, 0x10, 0x1d3, 0x3c5 | 1 << 20, 0x3c5 | 1 << 40] {
        rig.refused(HostFn::VcpuSetReg, &[reg::PSTATE, pstate], Einval);
        assert_eq!(other.reg(reg::PSTATE), 0x3c5, "guest PSTATE = EL2h and its kin");
    }
    rig.ok(HostFn::VcpuSetReg, &[reg::V0 + 63, 5]);
    assert_eq!(other.reg(reg::V0 + 63), 5);
}

#[test]
fn a_record_holds_nothing_of_an_earlier_exit() {
    let rig = Rig::new();
    let code = [mov(1, u64::MAX), store(1, DEVICE + 8), Instr::Opaque { ipa: 0x5000 }];
    let vm = running(&rig, false, &code);
    rig.fill_record(&vm);
    assert_eq!(vm.run(), mmio(DEVICE + 8, 8, true, u64::MAX));
    rig.fill_record(&vm);
    vm.list_registers(0, &[], 0);
    assert_eq!(vm.reply(Resp::Done, 0), mem_fault(0x5000, ExitFlags::empty()));
}

#[test]
fn the_host_learns_when_the_guests_timer_fires() {
    let rig = Rig::new();
    rig.world.sim.set_counter(5000);
    let vm = running(&rig, false, &[DONE, DONE, DONE]);
    assert_eq!(vm.reg(reg::CNTVOFF), 5000, "the virtual counter starts with the VM");
    assert_eq!(vm.run().vtimer, u64::MAX);
    rig.ok(HostFn::VcpuSetReg, &[reg::CNTV_CVAL_EL0, 77]);
    rig.ok(HostFn::VcpuSetReg, &[reg::CNTV_CTL_EL0, 1]);
    assert_eq!(vm.run().vtimer, 5077);
    rig.ok(HostFn::VcpuSetReg, &[reg::CNTV_CTL_EL0, 3]);
    assert_eq!(vm.run().vtimer, u64::MAX, "masked");
}

#[test]
fn list_registers_are_checked_before_anything_is_entered() {
    let rig = Rig::new();
    let vm = running(&rig, true, &[DONE, DONE, DONE]);
    let pending = 1 << 62 | 1 << 60;
    for (lrs, hcr) in [
        (&[pending | 27; 2][..], 0),
        (&[1 << 62 | 40], 0),
        (&[pending | 1 << 61 | 30 << 32 | 30], 0),
        (&[pending | 40; 5], 0),
        (&[0; 17], 0),
        (&[], 1),
        (&[], 1 << 10),
    ] {
        vm.list_registers(0, lrs, hcr);
        assert_eq!(vm.try_run(0, 0), Err(Einval), "{lrs:x?} {hcr:#x}");
    }
    rig.world.sim.memory().write(vm.record(0), word::GIC, u64::from(u32::MAX));
    assert_eq!(vm.try_run(0, 0), Err(Einval), "used_lrs = 0xffffffff");
    assert_eq!(rig.world.sim.turns(0).0, 0);
    let timer = pending | 1 << 61 | 27 << 32 | 27;
    vm.list_registers(0, &[timer, pending | 40], 0b1010);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!(rig.word(vm.record(0), word::LR), timer, "as the guest left them");
}

#[test]
fn a_host_that_streams_runs_no_guest() {
    let rig = Rig::new();
    let vm = running(&rig, true, &[DONE]);
    rig.world.sim.stream(0, true);
    assert_eq!(vm.try_run(0, 0), Err(Einval));
    rig.world.sim.stream(0, false);
    assert_eq!(vm.run(), plain(Reason::Wfx));
}

#[test]
fn interrupts_and_serrors_end_the_turn() {
    let rig = Rig::new();
    let vm = running(&rig, true, &[Instr::Jump { pc: PC }]);
    assert_eq!(vm.run(), plain(Reason::Irq), "a guest that spins");
    let vm2 = TestVm::active(&rig, true, 1);
    vm.put(0);
    rig.world.sim.program(PC, &[Instr::SError, Instr::Wfx { wfe: true }]);
    vm2.load(0, 0);
    assert_eq!(vm2.run(), Exit { flags: ExitFlags::SERROR, ..plain(Reason::Irq) });
    assert_eq!(vm2.run(), Exit { want: 1, ..plain(Reason::Wfx) });
}

#[test]
fn a_trap_that_nobody_knows_is_undefined_in_the_guest() {
    let rig = Rig::new();
    for protected in [true, false] {
        let vm = running(&rig, protected, &[]);
        rig.world.sim.program(SYNC_EL1H, &[DONE]);
        if protected {
            // VBAR_EL1 of a protected guest is 0 here: its vector is at 0x200.
            rig.world.sim.program(0x200, &[DONE]);
        } else {
            rig.ok(HostFn::VcpuSetReg, &[reg::VBAR_EL1, VBAR]);
        }
        for class in 0..64_u8 {
            if matches!(class, 0x01 | 0x07 | 0x09 | 0x16 | 0x17 | 0x18 | 0x20 | 0x24) {
                continue;
            }
            let code = [Instr::Trap { class }];
            rig.world.sim.program(PC, &code);
            rig.world.sim.program(if protected { 0x204 } else { SYNC_EL1H + 4 }, &[Instr::Jump { pc: PC }]);
            assert_eq!(vm.run(), plain(Reason::Wfx), "class {class:#x}");
            if !protected {
                assert_eq!(vm.reg(reg::ESR_EL1), 0x0200_0000);
                assert_eq!(vm.reg(reg::ELR_EL1), PC);
            }
        }
        vm.put(0);
    }
}

#[test]
fn an_unknown_register_is_undefined_or_the_vmms() {
    let rig = Rig::new();
    let pmcr = Instr::Sys { reg: [3, 3, 9, 12, 0], rt: 4, read: true };
    rig.world.sim.program(0x200, &[DONE]);
    let vm = running(&rig, true, &[pmcr]);
    assert_eq!(vm.run(), plain(Reason::Wfx), "its own vector");
    vm.put(0);
    let vm = running(&rig, false, &[pmcr, DONE]);
    let exit = vm.run();
    assert_eq!(exit.reason, Reason::Trap);
    assert_eq!(exit, Exit { data: exit.data, ..plain(Reason::Trap) });
    assert_eq!(exit.data >> 26, 0x18);
    rig.ok(HostFn::VcpuSetReg, &[4, 99]);
    rig.ok(HostFn::VcpuSetReg, &[reg::PC, PC + 4]);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!(vm.reg(4), 99);
}

#[test]
fn id_registers_and_sgis_are_served() {
    let rig = Rig::new();
    let code = [
        Instr::Sys { reg: [3, 0, 0, 4, 0], rt: 1, read: true },
        mov(2, 0x10_0003),
        Instr::Sys { reg: [3, 0, 12, 11, 5], rt: 2, read: false },
        DONE,
    ];
    let vm = running(&rig, false, &code);
    assert_eq!(vm.run(), Exit { data: 0x10_0003, ..plain(Reason::Sgi) });
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!(vm.reg(1), 0x1101_0000_1111_1111);
}

#[test]
fn a_guest_in_aarch32_kills_its_vm_and_no_more() {
    for protected in [true, false] {
        let rig = Rig::new();
        let before = rig.state();
        let vm = running(&rig, protected, &[Instr::Aarch32]);
        vm.give(0x5000);
        assert_eq!(vm.run(), plain(Reason::Dead));
        assert_eq!(vm.try_run(0, 0), Err(Ebusy));
        vm.put(0);
        rig.refused(HostFn::VcpuLoad, &[vm.handle, 0], Ebusy);
        let call = if protected { HostFn::GuestDonate } else { HostFn::GuestShare };
        rig.refused(call, &[vm.handle, 9, rig.pages(1), 0, 7], Ebusy);
        vm.destroy();
        assert_eq!(rig.state(), before);
    }
}

#[test]
fn fp_is_switched_once_a_turn_and_stays_the_vcpus() {
    let rig = Rig::new();
    let code = [Instr::Fp { value: 7 }, Instr::Fp { value: 8 }, DONE, DONE, Instr::Fp { value: 9 }, DONE];
    let vm = running(&rig, false, &code);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!(vm.reg(reg::V0), 8);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!(vm.reg(reg::V0), 8);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!(vm.reg(reg::V0 + 63), 9);
}

#[test]
fn keys_trap_until_a_guest_uses_one_and_move_with_its_turns_from_then_on() {
    const KEY: u64 = 0x4b45_5900;
    let rig = Rig::new();
    let sign = Instr::Sign { rt: 1 };
    let vm = running(&rig, false, &[sign, DONE, sign, sign, DONE, sign, DONE]);
    rig.ok(HostFn::VcpuSetReg, &[1, 7]);
    rig.ok(HostFn::VcpuSetReg, &[reg::PAUTH_KEYS + 8, KEY]);
    for x1 in [7 ^ KEY, 7 ^ KEY, 7] {
        assert_eq!(vm.run(), plain(Reason::Wfx), "no exit but the program's own");
        assert_eq!(vm.reg(1), x1);
    }
}

#[test]
fn an_ipa_beyond_the_space_is_the_guests_own_fault() {
    for protected in [true, false] {
        for instr in [load(1, 1 << 32), store(1, 1 << 40), Instr::Fetch { ipa: 1 << 32 }] {
            let rig = Rig::on(features::CORTEX_A53);
            rig.world.sim.program(0x200, &[DONE]);
            let vm = running(&rig, protected, &[instr]);
            assert_eq!(vm.run(), plain(Reason::Wfx), "{instr:?}: no exit but the handler's");
            if !protected {
                let class = if matches!(instr, Instr::Fetch { .. }) { 0x21 } else { 0x25 };
                assert_eq!(vm.reg(reg::ESR_EL1) >> 26, class);
                assert_eq!(vm.reg(reg::ESR_EL1) & 0x3f, 0, "address size, level 0");
            }
        }
    }
}

#[test]
fn a_bus_abort_stays_in_the_guest() {
    let rig = Rig::new();
    rig.world.sim.program(0x200, &[DONE]);
    for dfsc in [0x10, 0x14, 0x21, 0x30] {
        let vm = running(&rig, false, &[Instr::Bus { dfsc }]);
        assert_eq!(vm.run(), plain(Reason::Wfx));
        assert_eq!(vm.reg(reg::ESR_EL1), 0x9600_0210);
        vm.put(0);
    }
}

#[test]
fn a_vcpu_that_follows_another_of_its_vm_finds_no_entries_of_it() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 2);
    let other = TestVm::active(&rig, false, 1);
    rig.world.sim.program(PC, &[Instr::Jump { pc: PC }]);
    let run = |vm: &TestVm<'_>, cpu: usize| {
        vm.load(cpu, 0);
        assert_eq!(vm.try_run(cpu, 0).unwrap().reason, Reason::Irq);
        vm.put(cpu);
        rig.world.sim.turns(cpu).1
    };
    let first = run(&vm, 0);
    assert_eq!(run(&vm, 0), first, "the same again needs nothing");
    let with_other = run(&other, 0);
    assert_eq!(run(&vm, 0), with_other, "another VM has another VMID");
    let elsewhere = run(&vm, 1);
    assert!(elsewhere > 0 || first > 0);
    assert_eq!(run(&vm, 0), with_other, "it never left entries of another vCPU here");
}
