//! VMs come, live and go, and every page comes back.

use crate::rig::{BITS, DONE, PC, Rig, SECRET, TestVm, mem_fault, plain};
use abi::Errno::{Eacces, Ebusy, Eexist, Einval, Enoent, Enomem, Eopnotsupp, Eperm, Erange};
use abi::HostFn;
use abi::exit::{ExitFlags, Reason};
use abi::inspect::{Damage, Figure};
use abi::vm::{MAX_VCPUS, MAX_VMS, NO_PAGE};
use hyp::addr::Pfn;
use hyp::hw::{Event, Observe};
use hyp::lock::Rank;
use testkit::features;
use testkit::guest::Instr;
use testkit::world::Setup;

const PROTECTED: u64 = 1;

#[test]
fn each_vcpu_has_one_pin_on_its_exit_record_and_an_audit_counts_them() {
    let rig = Rig::on(features::MAX);
    let vm = TestVm::active(&rig, true, 2);
    // One of them is with its CPU.
    vm.load(0, 1);
    assert_eq!(rig.audit().get(Figure::HypPins), 2);
    let record = rig.world.hyp.vmemmap().get(Pfn::new(vm.record(1)).unwrap()).unwrap();
    let findings = || {
        let audit = rig.world.hyp.audit(&rig.world.cpus[0], None, &*rig.vms).unwrap();
        audit.findings().iter().map(|finding| finding.damage).collect::<Vec<_>>()
    };
    record.set_count(2);
    assert_eq!(findings(), [Damage::Pins], "pinned twice for one vCPU");
    record.set_count(0);
    assert_eq!(findings(), [Damage::HypEntry, Damage::Pins], "mapped, and the host could take it back");
    record.set_count(1);
    vm.put(0);
    vm.destroy();
    assert_eq!(rig.audit().get(Figure::HypPins), 0);
}

#[test]
fn a_vm_lives_and_every_page_comes_back() {
    for (name, features) in features::MATRIX {
        for protected in [true, false] {
            let rig = Rig::on(features);
            let before = rig.state();
            let vm = TestVm::new(&rig, protected, 2);
            if protected {
                let image = rig.filled(0x1234);
                rig.ok(HostFn::VmPopulate, &[vm.handle, 0x8_0000, image, 0]);
                assert!(!rig.host_reads(image));
            } else {
                vm.give(0x8000_0000);
            }
            rig.ok(HostFn::VmFinalise, &[vm.handle]);
            let word = if protected { 0x1234 } else { SECRET };
            let code = [
                Instr::Load { rt: 1, ipa: 0x8000_0008, log2: 3, sign: false, wide: true },
                Instr::Store { rt: 1, ipa: 0x8000_1000, log2: 3 },
                DONE,
                DONE,
            ];
            rig.world.sim.program(PC, &code);
            vm.load(0, 0);
            let flags = if protected { ExitFlags::PRIVATE } else { ExitFlags::WRITE };
            let fault = vm.run();
            if protected {
                assert_eq!(fault, mem_fault(0x8000_1000, flags), "{name}");
            } else {
                assert_eq!((fault.reason, fault.gpa), (Reason::Mmio, 0x8000_1000), "{name}");
            }
            let page = vm.give(0x8000_1000);
            assert_eq!(vm.run(), plain(Reason::Wfx), "{name}");
            assert_eq!(rig.word(page, 0), word, "what it read is what it wrote");
            let wanted = if protected { 0 } else { SECRET };
            assert_eq!(rig.word(page, 1), wanted, "a page is given zeroed, lent as it is");
            assert_eq!(rig.host_reads(page), !protected);
            vm.put(0);
            vm.destroy();
            assert_eq!(rig.word(page, 0), if protected { 0 } else { word });
            assert_eq!(rig.state(), before, "{name}");
        }
    }
}

#[test]
fn a_scrub_leaves_no_page_and_no_register_of_a_protected_vm() {
    let rig = Rig::new();
    let (vm, plain_vm) = (TestVm::active(&rig, true, 2), TestVm::active(&rig, false, 1));
    let lent = plain_vm.give(0x8000_0000);
    let pages = [vm.give(0x8000_0000), vm.give(0xc000_0000)];
    let code = [
        Instr::Mov { rt: 1, value: SECRET },
        Instr::Store { rt: 1, ipa: 0x8000_0000, log2: 3 },
        Instr::Store { rt: 1, ipa: 0xc000_0000, log2: 3 },
        DONE,
    ];
    rig.world.sim.program(PC, &code);
    vm.load(0, 0);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert!(rig.loaded_registers(0).contains(&SECRET));
    rig.scrub(0);
    for page in pages {
        assert!(rig.host_reads(page));
        assert_eq!(rig.word(page, 0), 0);
    }
    assert!(!vm.idle_registers(0).contains(&SECRET));
    assert_eq!(vm.try_run(0, 0), Err(Enoent), "it never runs again");
    assert_eq!(rig.word(lent, 0), SECRET, "what the host lent is the host's business");
}

#[test]
fn a_scrub_takes_a_protected_vcpu_from_the_cpu_that_has_it_loaded() {
    let rig = Rig::new();
    let (vm, other) = (TestVm::active(&rig, true, 1), TestVm::active(&rig, false, 1));
    rig.world.sim.program(PC, &[Instr::Mov { rt: 1, value: SECRET }, DONE]);
    vm.load(1, 0);
    assert_eq!(vm.try_run(1, 0), Ok(plain(Reason::Wfx)));
    assert!(rig.loaded_registers(1).contains(&SECRET));
    other.load(0, 0);
    rig.scrub(0);
    assert!(!vm.idle_registers(0).contains(&SECRET));
    assert_eq!(rig.call_on(1, HostFn::VcpuPut, &[]), Err((Enoent, [0; 2])), "it is not loaded any more");
    other.put(0);
    for vm in [&vm, &other] {
        let load = rig.call(HostFn::VcpuLoad, &[vm.handle, 0]);
        assert_eq!(load, Err((Ebusy, [0; 2])), "nothing is loaded while the machine ends");
    }
}

#[test]
fn a_vm_is_refused_for_what_its_arguments_say_before_any_page_is_looked_at() {
    let rig = Rig::on(features::CORTEX_A72);
    let before = rig.state();
    let (vm, root, reserve) = (rig.pages(1), rig.pages(16), rig.pages(1));
    let good = [PROTECTED, BITS, vm, 1, root, 1, reserve];
    let with = |at: usize, value: u64| {
        let mut args = good;
        args[at] = value;
        args
    };
    for (args, errno) in [
        (with(0, 1 << 6 | PROTECTED), Einval),
        (with(0, 1 << 63 | PROTECTED), Einval),
        (with(0, 2), Einval),
        (with(0, 0), Einval),
        (with(6, NO_PAGE), Einval),
        (with(6, 1 << 36), Erange),
        (with(0, 9), Einval),
        (with(1, 31), Erange),
        (with(1, 45), Erange),
        (with(1, 49), Erange),
        (with(1, 1 << 32 | 40), Erange),
        (with(3, 2), Einval),
        (with(5, 2), Einval),
        (with(2, 1 << 36), Erange),
        (with(4, u64::MAX), Einval),
    ] {
        rig.refused(HostFn::VmCreate, &args, errno);
    }
    let lacks = |args: &[u64]| rig.call(HostFn::VmCreate, args);
    assert_eq!(lacks(&with(3, 0)), Err((Enomem, [0, 1])));
    assert_eq!(lacks(&[PROTECTED, 43, vm, 0, root, 3, reserve]), Err((Enomem, [0, 14])));
    rig.refused(HostFn::VmCreate, &[PROTECTED, 43, vm, 1, root + 1, 16, reserve], Einval);
    assert_eq!(rig.state(), before);
    rig.ok(HostFn::VmCreate, &[PROTECTED, 43, vm, 1, root, 16, reserve]);
}

///
#[test]
fn a_vm_that_cannot_be_made_gives_every_page_back() {
    let rig = Rig::new();
    let taken = TestVm::active(&rig, true, 1);
    let guests_page = taken.give(0x1000);
    let before = rig.state();
    let (vm, root, reserve) = (rig.pages(1), rig.pages(1), rig.pages(1));
    let hyps = rig.world.page(0).raw();
    for bad in [guests_page, hyps, taken.record(0)] {
        rig.refused(HostFn::VmCreate, &[PROTECTED, BITS, bad, 1, root, 1, reserve], Eperm);
        rig.refused(HostFn::VmCreate, &[PROTECTED, BITS, vm, 1, bad, 1, reserve], Eperm);
        rig.refused(HostFn::VmCreate, &[PROTECTED, BITS, vm, 1, root, 1, bad], Eperm);
    }
    rig.refused(HostFn::VmCreate, &[PROTECTED, BITS, vm, 1, vm, 1, reserve], Eperm);
    rig.refused(HostFn::VmCreate, &[PROTECTED, BITS, vm, 1, root, 1, vm], Eperm);
    rig.refused(HostFn::VmCreate, &[PROTECTED, BITS, vm, 1, root, 1, 0x10_0000], Erange);
    assert_eq!(rig.state(), before);
    let handle = rig.ok(HostFn::VmCreate, &[PROTECTED, BITS, vm, 1, root, 1, reserve]);
    assert_ne!(handle, taken.handle);
}

#[test]
fn there_are_as_many_vms_as_the_interface_says() {
    let rig = Rig::with(Setup { table_pages: 256, ..Setup::new(features::CORTEX_A72) });
    // The specification has no room for so many.
    rig.judge(false);
    let before = rig.state();
    let mut all: Vec<_> = (0..MAX_VMS).map(|_| TestVm::new(&rig, true, 0)).collect();
    rig.refused(HostFn::VmCreate, &[PROTECTED, BITS, rig.pages(1), 1, rig.pages(1), 1, rig.pages(1)], Ebusy);
    let middle = all.remove(100);
    let name = middle.handle;
    middle.destroy();
    let again = TestVm::new(&rig, false, 0);
    assert_eq!(again.handle & 0xff, name & 0xff, "the only free slot");
    assert_ne!(again.handle, name, "an old name does not name the next VM");
    rig.refused(HostFn::VmFinalise, &[name], Enoent);
    again.destroy();
    all.into_iter().for_each(TestVm::destroy);
    assert_eq!(rig.state(), before);
}

#[test]
fn on_a_machine_that_runs_no_guests_none_is_made_or_run() {
    let rig = Rig::without_guests(Setup::new(features::MAX));
    // The specification knows nothing of such machines.
    rig.judge(false);
    let (before, page) = (rig.audit(), || rig.pages(1));
    rig.refused(HostFn::VmCreate, &[PROTECTED, BITS, page(), 1, page(), 1, page()], Eopnotsupp);
    rig.refused(HostFn::VcpuRun, &[], Eopnotsupp);
    assert_eq!(rig.audit(), before);
}

#[test]
fn a_vcpu_is_refused_for_its_arguments_then_its_vm_then_its_pages() {
    let rig = Rig::new();
    let vm = TestVm::new(&rig, true, 1);
    let plain = TestVm::active(&rig, false, 1);
    let (page, record) = (rig.pages(1), rig.pages(1));
    rig.ok(HostFn::HostShareHyp, &[record]);
    let before = rig.state();
    let last = MAX_VCPUS as u64;
    for (args, errno) in [
        ([vm.handle, last, page, 1, record, 0, 0], Einval),
        ([vm.handle, 1 << 32, page, 1, record, 0, 0], Einval),
        ([vm.handle, 1, page, 1, record, 0x1000, 0], Einval),
        ([vm.handle, 1, page, 1, record, 0, 1], Einval),
        ([vm.handle, 0, page, 1, record, 2, 0], Einval),
        ([vm.handle, 1, page, 2, record, 0, 0], Einval),
        ([vm.handle, 1, page, 1, 1 << 36, 0, 0], Erange),
        ([vm.handle, 1, 1 << 36, 1, record, 0, 0], Erange),
        ([0, 1, page, 1, record, 0, 0], Enoent),
        ([vm.handle + 1 + 256, 1, page, 1, record, 0, 0], Enoent),
        ([1 << 16 | vm.handle, 1, page, 1, record, 0, 0], Enoent),
        ([plain.handle, 1, page, 1, record, 0, 0], Ebusy),
        ([vm.handle, 0, page, 1, record, 0, 0], Eexist),
        ([vm.handle, 1, record, 1, record, 0, 0], Eperm),
        ([vm.handle, 1, page, 1, page, 0, 0], Eperm),
        ([vm.handle, 1, page, 1, rig.pages(1), 0, 0], Eperm),
    ] {
        rig.refused(HostFn::VcpuCreate, &args, errno);
        assert_eq!(rig.state(), before, "{args:x?}");
    }
    let short = rig.call(HostFn::VcpuCreate, &[vm.handle, 1, page, 0, record, 0, 0]);
    assert_eq!(short, Err((Enomem, [0, 1])));
    let fresh = TestVm::new(&rig, true, 0);
    rig.refused(HostFn::VcpuCreate, &[fresh.handle, 0, page, 1, record, 1 << BITS, 0], Erange);
    // A failed pin keeps neither the page nor a count.
    rig.ok(HostFn::HostUnshareHyp, &[record]);
    assert!(rig.host_reads(page));
    for idx in 1..last {
        vm.add_vcpu(idx);
    }
    vm.destroy();
}

#[test]
fn a_record_is_pinned_until_the_vm_is_gone() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    rig.refused(HostFn::HostUnshareHyp, &[vm.record(0)], Ebusy);
    rig.ok(HostFn::VmTeardownStart, &[vm.handle]);
    rig.refused(HostFn::HostUnshareHyp, &[vm.record(0)], Ebusy);
}

/// Every call that names a VM, with arguments that are good otherwise.
fn calls(rig: &Rig, handle: u64) -> Vec<(HostFn, Vec<u64>)> {
    let (page, record) = (rig.pages(1), rig.pages(1));
    rig.ok(HostFn::HostShareHyp, &[record]);
    vec![
        (HostFn::VcpuCreate, vec![handle, 5, rig.pages(1), 1, record, 0, 0]),
        (HostFn::VmTopup, vec![handle, page, 1]),
        (HostFn::VmPopulate, vec![handle, 9, page, 0]),
        (HostFn::VmFinalise, vec![handle]),
        (HostFn::VmTeardownStart, vec![handle]),
        (HostFn::VmTeardownFinish, vec![handle, 512]),
        (HostFn::GuestDonate, vec![handle, 9, page, 0, 7]),
        (HostFn::GuestReclaim, vec![handle, 0x9000, 0xa000, NO_PAGE]),
        (HostFn::ReclaimDying, vec![handle, 0x9000, 0xa000]),
        (HostFn::GuestShare, vec![handle, 9, page, 0, 7]),
        (HostFn::GuestUnshare, vec![handle, 9, 1]),
        (HostFn::GuestRelax, vec![handle, 9, 7]),
        (HostFn::GuestWrprotect, vec![handle, 9, 1]),
        (HostFn::GuestAge, vec![handle, 9, 1, 1]),
        (HostFn::GuestTlbFlush, vec![handle]),
        (HostFn::VcpuLoad, vec![handle, 0]),
    ]
}

#[test]
fn a_call_on_no_vm_is_enoent_whatever_the_handle() {
    let rig = Rig::new();
    let gone = TestVm::new(&rig, true, 0);
    let stale = gone.handle;
    gone.destroy();
    let vm = TestVm::new(&rig, true, 1);
    for handle in [0, stale, vm.handle + 1, vm.handle + 0x100, vm.handle | 1 << 16, 0xff, 0xffff, u64::MAX] {
        for (call, args) in calls(&rig, handle) {
            rig.refused(call, &args, Enoent);
        }
    }
    assert_eq!(rig.state().vms().len(), 1);
}

#[test]
fn each_call_has_its_phases_and_its_kind_of_vm() {
    use HostFn as F;
    // What each call answers in NEW, ACTIVE and DYING, for a protected VM and another.
    let ok = None;
    let rows: [(F, [[Option<abi::Errno>; 3]; 2]); 16] = [
        (F::VcpuCreate, [[ok, Some(Ebusy), Some(Ebusy)], [ok, Some(Ebusy), Some(Ebusy)]]),
        (F::VmTopup, [[ok, ok, Some(Ebusy)], [ok, ok, Some(Ebusy)]]),
        (F::VmPopulate, [[ok, Some(Ebusy), Some(Ebusy)], [Some(Eacces); 3]]),
        (F::VmFinalise, [[ok, Some(Ebusy), Some(Ebusy)], [ok, Some(Ebusy), Some(Ebusy)]]),
        (F::VmTeardownStart, [[ok, ok, Some(Ebusy)], [ok, ok, Some(Ebusy)]]),
        (F::VmTeardownFinish, [[Some(Ebusy), Some(Ebusy), Some(abi::Errno::Eagain)]; 2]),
        (F::GuestDonate, [[ok, ok, Some(Ebusy)], [Some(Eacces); 3]]),
        (F::GuestReclaim, [[ok, ok, Some(Ebusy)], [Some(Eacces); 3]]),
        (F::ReclaimDying, [[Some(Ebusy), Some(Ebusy), ok], [Some(Eacces); 3]]),
        (F::GuestShare, [[Some(Eacces); 3], [ok, ok, Some(Ebusy)]]),
        (F::GuestUnshare, [[Some(Eacces); 3], [Some(Enoent); 3]]),
        (F::GuestRelax, [[Some(Eacces); 3], [Some(Enoent); 3]]),
        (F::GuestWrprotect, [[Some(Eacces); 3], [ok; 3]]),
        (F::GuestAge, [[Some(Eacces); 3], [ok; 3]]),
        (F::GuestTlbFlush, [[Some(Eacces); 3], [ok; 3]]),
        (F::VcpuLoad, [[Some(Ebusy), ok, Some(Ebusy)], [Some(Ebusy), ok, Some(Ebusy)]]),
    ];
    for (kind, protected) in [true, false].into_iter().enumerate() {
        for phase in 0..3 {
            let rig = Rig::new();
            for (call, wanted) in rows {
                let vm = TestVm::new(&rig, protected, 1);
                if phase > 0 {
                    rig.ok(F::VmFinalise, &[vm.handle]);
                }
                if phase == 2 {
                    rig.ok(F::VmTeardownStart, &[vm.handle]);
                }
                let (_, args) = calls(&rig, vm.handle).into_iter().find(|(c, _)| *c == call).unwrap();
                let got = rig.call(call, &args).err().map(|(e, _)| e);
                assert_eq!(got, wanted[kind][phase], "{call:?} of {protected} in phase {phase}");
                if call == F::VcpuLoad && got.is_none() {
                    vm.put(0);
                }
            }
            let _ = rig.state();
        }
    }
}

/// CPU 0 calls on one of two VMs while CPU 1 is in a call on the second of them.
fn call_beside_a_call(on: usize) {
    let rig = Rig::new();
    let vms = [TestVm::active(&rig, false, 1), TestVm::active(&rig, false, 1)];
    // A VM's lock is numbered by its VMID, the slot of its handle.
    let vmid = u16::try_from(vms[1].handle & 0xff).unwrap();
    rig.judge(false);
    rig.world.cpus[1].observe(Event::Lock { rank: Rank::Vm(vmid), held: true });
    rig.ok(HostFn::GuestTlbFlush, &[vms[on].handle]);
}

#[test]
fn calls_on_two_vms_take_two_locks() {
    call_beside_a_call(0);
}

#[test]
#[should_panic(expected = "LockHeldElsewhere")]
fn calls_on_one_vm_take_one_lock() {
    call_beside_a_call(1);
}
