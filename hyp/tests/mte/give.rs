//! Which pages VMs of each policy take, and what stays with a page.

use crate::machine::{
    MACHINES, RWX, RWX_NO_TAG, active, donate, lazy, load, no_tag_state, rig, store, tag_info, untagged,
};
use crate::rig::{DONE, PC, Rig, TestVm, mem_fault};
use abi::Errno::{Einval, Eperm};
use abi::HostFn;
use abi::exit::{ExitFlags, Reason};
use abi::fault::Site;
use abi::vm::{MtePolicy, NO_PAGE, VmFlags};
use hyp::addr::Ipa;
use hyp::pgtable::{Entry, Prot};
use testkit::features::{CORTEX_A72, MAX, MAX_NO_MTE};
use testkit::guest::Instr;

const AT: u64 = 0x5000;
const BLOCK: u64 = 0x4000_0000;
const SPLIT: VmFlags = VmFlags::PROTECTED.union(VmFlags::SPLIT_IPA);
/// First frame of the shared half of a VM with split IPA.
const UPPER: u64 = 1 << 31;

/// What the VM's table says of `ipa`: level, and permissions of a leaf.
fn leaf(vm: &TestVm<'_>, ipa: u64) -> Option<(u8, Prot)> {
    let hw = &vm.rig.world.cpus[0];
    let mut found = None;
    vm.rig.vms.for_each(hw, |_, guest| {
        if u64::from(guest.handle()) == vm.handle
            && let Ok((level, Entry::Leaf(leaf))) = guest.table().lookup(hw, Ipa::new(ipa).unwrap())
        {
            found = Some((level.number(), leaf.attrs.prot));
        }
    });
    found
}

#[test]
fn m_02_every_page_of_a_block_without_tags_stays_so_when_it_becomes_pages() {
    let rig = rig(MAX);
    let vm = lazy(&rig);
    rig.ok(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, untagged(&rig, 512), 9, RWX]);
    let all = Prot::RWX | Prot::NO_TAG;
    assert_eq!(leaf(&vm, BLOCK), Some((2, all)));
    // By force, of a part: the children are a split of the block.
    rig.ok(HostFn::GuestReclaim, &[vm.handle, BLOCK + 0x3000, BLOCK + 0x4000, NO_PAGE]);
    for n in (0..512).filter(|n| *n != 3) {
        assert_eq!(leaf(&vm, BLOCK + n * 0x1000), Some((3, all)), "page {n}");
    }
    vm.destroy();
}

#[test]
fn m_02_lent_pages_without_tags_stay_so_through_every_change_of_permissions() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = active(&rig, VmFlags::empty(), MtePolicy::Lazy);
        for (gfn, page, order) in [(5, untagged(&rig, 0), 0), (BLOCK >> 12, untagged(&rig, 512), 9)] {
            rig.ok(HostFn::GuestShare, &[vm.handle, gfn, page, order, 1]);
            let state = || rig.ok(HostFn::VmTagInfo, &[vm.handle, gfn]);
            let check = |what: &str| assert_eq!(state(), no_tag_state(&features), "{name}: {what}");
            check("lent");
            rig.ok(HostFn::GuestRelax, &[vm.handle, gfn, 7]);
            check("relaxed");
            rig.ok(HostFn::GuestWrprotect, &[vm.handle, gfn, 1 << order]);
            check("write-protected");
            rig.ok(HostFn::GuestAge, &[vm.handle, gfn, 1 << order, 1]);
            check("aged");
        }
        if features.mte_perm {
            let read = Prot::R | Prot::X | Prot::NO_TAG;
            assert_eq!(leaf(&vm, AT), Some((3, read)), "{name}");
            assert_eq!(leaf(&vm, BLOCK), Some((2, read)), "{name}");
        }
        // A load ages it again, where it is mapped.
        rig.world.sim.program(PC, &[load(1, AT), DONE]);
        vm.load(0, 0);
        let reason = if features.mte_perm { Reason::Wfx } else { Reason::MemFault };
        assert_eq!(vm.run().reason, reason, "{name}");
        assert_eq!(tag_info(&vm, AT), no_tag_state(&features), "{name}");
        vm.put(0);
        vm.destroy();
    }
}

#[test]
fn m_09_a_donation_without_tags_that_fails_leaves_every_page_the_hosts() {
    for (name, features) in MACHINES {
        for (frame, nth_page, order) in [(AT >> 12, 0, 0), (BLOCK >> 12, 512, 9)] {
            let give = |rig: &Rig, vm: &TestVm<'_>| {
                let args = [vm.handle, frame, untagged(rig, nth_page), order, RWX_NO_TAG];
                rig.call(HostFn::GuestDonate, &args).map_err(|(errno, _)| errno)
            };
            let calm = rig(features);
            let vm = lazy(&calm);
            calm.world.hyp.faults().clear();
            assert_eq!(give(&calm, &vm), Ok([0; 2]), "{name}");
            let hits = Site::ALL.map(|site| calm.world.hyp.faults().stats(site).hits);
            assert!(hits.iter().sum::<u64>() >= 2, "{name}: a table of the VM, and one of the host's");

            let rig = rig(features);
            let (vm, faults) = (lazy(&rig), rig.world.hyp.faults());
            for (site, hits) in Site::ALL.into_iter().zip(hits) {
                for nth in 1..=hits {
                    let (before, what) = (rig.audit(), format!("{name}: pass {nth} of {site:?}"));
                    faults.clear();
                    faults.arm(site, nth);
                    rig.judge(false);
                    let got = give(&rig, &vm);
                    rig.judge(true);
                    assert_eq!((got, faults.stats(site).fired), (Err(site.errno()), 1), "{what}");
                    assert!(rig.audit().ownership().eq(before.ownership()), "{what}");
                    assert!(rig.host_reads(untagged(&rig, nth_page)), "{what}");
                    assert_eq!(tag_info(&vm, frame << 12), 0, "{what}");
                }
            }
            faults.clear();
            assert_eq!(give(&rig, &vm), Ok([0; 2]), "{name}");
            assert_eq!(tag_info(&vm, frame << 12), no_tag_state(&features), "{name}");
            vm.destroy();
        }
    }
}

#[test]
fn m_14_memory_without_tags_is_no_tag_whatever_the_host_says_and_refused_by_strict() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = lazy(&rig);
        donate(&vm, AT, untagged(&rig, 0), RWX);
        donate(&vm, AT + 0x1000, rig.pages(1), RWX);
        donate(&vm, AT + 0x2000, rig.pages(1), RWX_NO_TAG);
        let states = [0, 1, 2].map(|n| tag_info(&vm, AT + n * 0x1000));
        assert_eq!(states, [no_tag_state(&features), 1, no_tag_state(&features)], "{name}");
        for prot in [0, 8, 6, 16 | 7, 16 | 15, u64::MAX] {
            rig.refused(HostFn::GuestDonate, &[vm.handle, 9, rig.pages(1), 0, prot], Einval);
        }
        // A block of which one page has none is all without.
        rig.ok(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, untagged(&rig, 512), 9, RWX]);
        assert_eq!(tag_info(&vm, BLOCK + 0x5000), no_tag_state(&features), "{name}");
        rig.audit();
        vm.destroy();
    }
}

#[test]
fn m_15_a_strict_vm_takes_tagged_memory_only_and_never_exits_for_tags() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = active(&rig, VmFlags::PROTECTED, MtePolicy::Strict);
        let before = rig.audit();
        rig.refused(HostFn::GuestDonate, &[vm.handle, 5, untagged(&rig, 0), 0, RWX], Eperm);
        rig.refused(HostFn::GuestDonate, &[vm.handle, 5, untagged(&rig, 0), 0, RWX_NO_TAG], Eperm);
        rig.refused(HostFn::GuestDonate, &[vm.handle, 5, rig.pages(1), 0, RWX_NO_TAG], Eperm);
        rig.refused(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, untagged(&rig, 512), 9, RWX], Eperm);
        assert!(rig.audit().ownership().eq(before.ownership()), "{name}");
        donate(&vm, AT, rig.pages(1), RWX);
        let code = [store(1, AT), Instr::SetTag { ipa: AT, tag: 4 }, Instr::GetTag { rt: 2, ipa: AT }, DONE];
        rig.world.sim.program(PC, &code);
        vm.load(0, 0);
        assert_eq!(vm.run().reason, Reason::Wfx, "{name}");
        assert_eq!(rig.loaded_registers(0)[2], 4, "{name}");
        vm.put(0);
        vm.destroy();

        let plain = active(&rig, VmFlags::empty(), MtePolicy::Strict);
        rig.refused(HostFn::GuestShare, &[plain.handle, 5, untagged(&rig, 0), 0, 7], Eperm);
        plain.destroy();
        let split = active(&rig, SPLIT, MtePolicy::Strict);
        rig.refused(HostFn::UnprotMap, &[split.handle, UPPER >> 12, untagged(&rig, 0), 0, 1], Eperm);
        split.destroy();
        let populated = TestVm::with_flags(&rig, VmFlags::PROTECTED | MtePolicy::Strict.flags(), 1, 32);
        populated.topup(4);
        rig.refused(HostFn::VmPopulate, &[populated.handle, 5, untagged(&rig, 0), 0], Eperm);
        populated.destroy();
    }
}

/// Sets a tag in the page at [`AT`] of a VM, whose page is `page`.
fn set_tag(rig: &Rig, vm: &TestVm<'_>, page: u64) {
    rig.world.sim.program(PC, &[Instr::SetTag { ipa: AT + 0x70, tag: 6 }, DONE]);
    vm.load(0, 0);
    assert_eq!(vm.run().reason, Reason::Wfx);
    vm.put(0);
    assert_eq!(rig.world.sim.memory().tag(page, 7), 6);
}

#[test]
fn m_17_neither_the_host_nor_the_next_guest_finds_a_tag() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let (page, tag) = (rig.pages(1), |page| rig.world.sim.memory().tag(page, 7));
        let (vm, split) = (lazy(&rig), active(&rig, SPLIT, MtePolicy::Strict));
        rig.world.sim.memory().set_tag(page, 7, 3);
        donate(&vm, AT, page, RWX);
        assert_eq!(tag(page), 0, "{name}: the host's tag");
        set_tag(&rig, &vm, page);
        rig.ok(HostFn::GuestReclaim, &[vm.handle, AT, AT + 0x1000, NO_PAGE]);
        assert_eq!(tag(page), 0, "{name}: taken by force");
        donate(&split, AT, page, RWX);
        // The guest says that the page is no memory, then that the frame is, and sets a tag in it again.
        let mov = |rt, value| Instr::Mov { rt, value };
        let becomes = |state| {
            let id = abi::rsi::IPA_STATE_SET.into();
            [mov(0, id), mov(1, AT), mov(2, AT + 0x1000), mov(3, state), mov(4, 0), Instr::Smc]
        };
        let tagged = Instr::SetTag { ipa: AT + 0x70, tag: 6 };
        let mut code = vec![tagged];
        code.extend([abi::rsi::EMPTY, abi::rsi::RAM].into_iter().flat_map(becomes).chain([tagged, DONE]));
        rig.world.sim.program(PC, &code);
        split.load(0, 0);
        for was in [6, 0] {
            assert_eq!(split.run().reason, Reason::RipasChange, "{name}");
            assert_eq!(tag(page), was, "{name}");
            rig.ok(HostFn::RipasApply, &[split.handle, 0, AT, AT + 0x1000]);
            assert!(rig.host_reads(page) && tag(page) == 0, "{name}: the frame is EMPTY, or has no page");
        }
        donate(&split, AT, page, RWX);
        assert_eq!(split.run().reason, Reason::Wfx, "{name}");
        split.put(0);
        assert_eq!(tag(page), 6, "{name}");
        split.destroy();
        assert_eq!(tag(page), 0, "{name}: its VM is gone");
        // A VM without MTE cannot set a tag, and its host's stay as they are: nobody touches them.
        let off = active(&rig, VmFlags::PROTECTED, MtePolicy::Off);
        rig.world.sim.memory().set_tag(page, 7, 3);
        donate(&off, AT, page, RWX);
        rig.world.sim.program(PC, &[Instr::SetTag { ipa: AT + 0x70, tag: 6 }, DONE]);
        off.load(0, 0);
        assert_eq!(off.run().reason, Reason::Wfx, "{name}");
        off.put(0);
        off.destroy();
        assert_eq!(tag(page), 3, "{name}");
        vm.destroy();
    }
}

#[test]
fn m_22_a_vm_without_mte_takes_any_memory_and_never_exits_for_tags() {
    for features in MACHINES.map(|(_, features)| features).into_iter().chain([MAX_NO_MTE, CORTEX_A72]) {
        let rig = rig(features);
        let vm = active(&rig, VmFlags::PROTECTED, MtePolicy::Off);
        donate(&vm, AT, untagged(&rig, 0), RWX);
        donate(&vm, AT + 0x1000, untagged(&rig, 1), RWX_NO_TAG);
        rig.ok(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, untagged(&rig, 512), 9, RWX_NO_TAG]);
        let share = Instr::Mov { rt: 0, value: u64::from(abi::guest::MEM_SHARE) };
        let mov = |rt, value| Instr::Mov { rt, value };
        let code = [
            Instr::SetTag { ipa: AT, tag: 3 },
            Instr::GetTag { rt: 1, ipa: AT + 0x1000 },
            load(1, AT + 0x1000),
            load(1, BLOCK + 0x1000),
            share,
            mov(1, AT + 0x1000),
            mov(2, 1),
            mov(3, 0),
            Instr::Hvc { imm: 0 },
            DONE,
        ];
        rig.world.sim.program(PC, &code);
        vm.load(0, 0);
        assert_eq!(vm.run().reason, Reason::Wfx);
        assert_eq!(rig.loaded_registers(0)[0], 0, "shared all the same");
        vm.put(0);
        vm.destroy();
    }
}

#[test]
fn pages_that_wait_for_tags_come_back_on_every_way() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let before = rig.audit();
        let split = active(&rig, SPLIT, MtePolicy::Lazy);
        rig.ok(HostFn::GuestDonate, &[split.handle, BLOCK >> 12, untagged(&rig, 512), 9, RWX]);
        donate(&split, AT, untagged(&rig, 0), RWX);
        rig.ok(HostFn::UnprotMap, &[split.handle, UPPER >> 12, untagged(&rig, 1), 0, 1]);
        let exit = mem_fault(UPPER, ExitFlags::TAG_ACCESS);
        rig.world.sim.program(PC, &[Instr::SetTag { ipa: UPPER, tag: 1 }]);
        split.load(0, 0);
        assert_eq!(split.run(), exit, "{name}");
        split.put(0);
        rig.ok(HostFn::UnprotUnmap, &[split.handle, UPPER >> 12, 1]);
        // The guest says that the page is no memory.
        let call = |rt, value| Instr::Mov { rt, value };
        let code = [
            call(0, u64::from(abi::rsi::IPA_STATE_SET)),
            call(1, AT),
            call(2, AT + 0x1000),
            call(3, abi::rsi::EMPTY),
            call(4, 0),
            Instr::Smc,
            DONE,
        ];
        rig.world.sim.program(PC, &code);
        split.load(0, 0);
        assert_eq!(split.run().reason, Reason::RipasChange, "{name}");
        split.put(0);
        rig.ok(HostFn::RipasApply, &[split.handle, 0, AT, AT + 0x1000]);
        assert!(rig.host_reads(untagged(&rig, 0)), "{name}");
        assert_eq!(rig.word(untagged(&rig, 0), 9), 0, "{name}");
        split.destroy();

        let plain = active(&rig, VmFlags::empty(), MtePolicy::Lazy);
        rig.ok(HostFn::GuestShare, &[plain.handle, 5, untagged(&rig, 0), 0, 7]);
        rig.ok(HostFn::VmReset, &[plain.handle]);
        assert_eq!(tag_info(&plain, AT), no_tag_state(&features), "{name}: a reset drops marks, not pages");
        plain.destroy();

        let classic = lazy(&rig);
        donate(&classic, AT, untagged(&rig, 2), RWX);
        let code = [
            call(0, u64::from(abi::guest::MEM_RELINQUISH)),
            call(1, AT),
            call(2, 1),
            call(3, 0),
            Instr::Hvc { imm: 0 },
            DONE,
        ];
        rig.world.sim.program(PC, &code);
        classic.load(0, 0);
        assert_eq!(classic.run().reason, Reason::Relinquished, "{name}");
        classic.put(0);
        assert!(rig.host_reads(untagged(&rig, 2)), "{name}");
        classic.destroy();
        assert!(rig.audit().ownership().eq(before.ownership()), "{name}");
    }
}
