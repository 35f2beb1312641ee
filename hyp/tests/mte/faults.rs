//! What a guest's accesses to a page without tags come to.

use crate::machine::{MACHINES, donate, lazy, load, rig, store, tag_access, untagged};
use crate::rig::{DONE, Exit, PC, plain};
use abi::HostFn;
use abi::exit::{ExitFlags, Reason};
use abi::vm::{MtePolicy, VmFlags};
use testkit::guest::Instr;

const AT: u64 = 0x5000;

#[test]
fn m_03_plain_accesses_exit_once_at_most_and_never_where_the_cpu_tells_tag_accesses() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = lazy(&rig);
        donate(&vm, AT, untagged(&rig, 0), 7);
        rig.world.sim.program(PC, &[Instr::Mov { rt: 1, value: 7 }, store(1, AT), load(2, AT), DONE]);
        vm.load(0, 0);
        let mut exits = 0;
        while vm.run().reason != Reason::Wfx {
            assert_eq!(vm.exit(0), tag_access(AT), "{name}");
            exits += 1;
            rig.ok(HostFn::MteUpgrade, &[vm.handle, AT >> 12, rig.pages(1)]);
        }
        assert_eq!(exits, u32::from(!features.mte_perm), "{name}");
        assert_eq!(rig.loaded_registers(0)[2], 7, "{name}");
        vm.put(0);
        vm.destroy();
    }
}

#[test]
fn m_04_each_tag_access_exits_with_the_page_and_nothing_of_the_access() {
    for (name, features) in MACHINES {
        for instr in [Instr::SetTag { ipa: AT + 0xab0, tag: 3 }, Instr::GetTag { rt: 4, ipa: AT + 0xff0 }] {
            let rig = rig(features);
            let vm = lazy(&rig);
            donate(&vm, AT, untagged(&rig, 0), 7);
            rig.world.sim.program(PC, &[instr, DONE]);
            vm.load(0, 0);
            rig.fill_record(&vm);
            // M-06: page, size and two flags; everything else of the record is 0.
            assert_eq!(vm.run(), tag_access(AT), "{name}");
            rig.ok(HostFn::MteUpgrade, &[vm.handle, AT >> 12, rig.pages(1)]);
            assert_eq!(vm.run().reason, Reason::Wfx, "{name}: the access is done now");
            vm.put(0);
            vm.destroy();
        }
    }
}

#[test]
fn m_06_a_lent_page_exits_without_private_and_its_host_may_answer_with_an_abort() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = crate::machine::active(&rig, VmFlags::empty(), MtePolicy::Lazy);
        let (page, tagged) = (untagged(&rig, 0), rig.pages(1));
        rig.ok(HostFn::GuestShare, &[vm.handle, AT >> 12, page, 0, 7]);
        rig.world.sim.program(PC, &[Instr::SetTag { ipa: AT + 0x10, tag: 3 }, DONE]);
        vm.load(0, 0);
        let exit = Exit { flags: ExitFlags::TAG_ACCESS, ..tag_access(AT) };
        assert_eq!(vm.run(), exit, "{name}");
        rig.refused(HostFn::MteUpgrade, &[vm.handle, AT >> 12, tagged], abi::Errno::Eperm);
        // The host takes its page away and lends one with tags.
        rig.ok(HostFn::GuestUnshare, &[vm.handle, AT >> 12, 1]);
        rig.ok(HostFn::GuestShare, &[vm.handle, AT >> 12, tagged, 0, 7]);
        assert_eq!(vm.run(), plain(Reason::Wfx), "{name}");
        assert_eq!(rig.world.sim.memory().tag(tagged, 1), 3, "{name}");
        vm.put(0);
        vm.destroy();
    }
}

#[test]
fn m_07_a_host_that_only_runs_again_gets_the_same_exit_without_end() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = lazy(&rig);
        donate(&vm, AT, untagged(&rig, 0), 7);
        rig.world.sim.program(PC, &[Instr::SetTag { ipa: AT, tag: 3 }, DONE]);
        vm.load(0, 0);
        for repeat in 0..10_000 {
            assert_eq!(vm.run(), Exit { repeat, ..tag_access(AT) }, "{name}");
        }
        vm.answer(0, abi::exit::Resp::Sea as u32, 0);
        assert_eq!(vm.try_run(0, 0), Err(abi::Errno::Eperm), "{name}: its own memory is no abort");
        vm.answer(0, 0, 0);
        rig.ok(HostFn::MteUpgrade, &[vm.handle, AT >> 12, rig.pages(1)]);
        assert_eq!(vm.run().reason, Reason::Wfx, "{name}: not an instruction was lost");
        vm.put(0);
        vm.destroy();
    }
}

#[test]
fn a_fault_on_a_page_that_has_tags_by_now_is_forgotten_and_counted() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = lazy(&rig);
        donate(&vm, AT, rig.pages(1), 7);
        rig.world.sim.program(PC, &[Instr::StaleTag { ipa: AT + 0x20 }, DONE]);
        rig.world.sim.remember_no_tag(3);
        vm.load(0, 0);
        let counted = || {
            let mut counted = 0;
            rig.vms.for_each(&rig.world.cpus[0], |_, guest| counted = guest.spurious_tag_faults());
            counted
        };
        assert_eq!(vm.run().reason, Reason::Wfx, "{name}: the host hears nothing of it");
        assert_eq!(counted(), 3, "{name}");
        vm.put(0);
        vm.destroy();
    }
}

#[test]
fn a_page_that_is_shared_has_tags_first() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = lazy(&rig);
        donate(&vm, AT, untagged(&rig, 0), 7);
        let share = Instr::Mov { rt: 0, value: u64::from(abi::guest::MEM_SHARE) };
        let mov = |rt, value| Instr::Mov { rt, value };
        let code = [share, mov(1, AT), mov(2, 1), mov(3, 0), Instr::Hvc { imm: 0 }, DONE];
        rig.world.sim.program(PC, &code);
        vm.load(0, 0);
        assert_eq!(vm.run(), tag_access(AT), "{name}");
        assert_eq!(vm.run(), Exit { repeat: 1, ..tag_access(AT) }, "{name}");
        rig.ok(HostFn::MteUpgrade, &[vm.handle, AT >> 12, rig.pages(1)]);
        assert_eq!(vm.run().reason, Reason::Wfx, "{name}");
        assert_eq!(rig.loaded_registers(0)[..2], [0, 1], "{name}: one page is shared");
        vm.put(0);
        vm.destroy();
    }
}
