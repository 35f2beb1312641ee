//! Bugs that other hypervisors had, as calls: docs/known-bugs.md says which, and where the others are tested.

use crate::rig::{DONE, PC, Rig, SECRET, TestVm, plain};
use abi::Errno::{E2big, Ebusy, Eexist, Einval, Enoent, Eperm, Erange};
use abi::HostFn;
use abi::exit::Reason;
use abi::fault::Site;
use abi::vm::VmFlags;
use std::collections::BTreeSet;
use testkit::features::{CORTEX_A53, MAX};

/// A number of pages, or a frame, that wraps when it is shifted, multiplied or added to.
#[test]
fn bug_05_a_number_of_pages_that_wraps_is_refused_before_it_is_used() {
    let rig = Rig::new();
    let (own, lent) = (TestVm::active(&rig, true, 1), TestVm::active(&rig, false, 1));
    own.give(0x5000);
    lent.give(0x5000);
    let page = rig.pages(8);
    let before = rig.state();
    let huge = [
        513,
        1 << 20,
        1 << 36,
        1 << 51,
        (1 << 51) + 1,
        1 << 52,
        (1 << 52) + 1,
        1 << 63,
        u64::MAX - 4,
        u64::MAX,
    ];
    for nr in huge {
        for (call, args) in [
            (HostFn::HostDonateHyp, vec![page, nr]),
            (HostFn::HypDonateHost, vec![page, nr]),
            (HostFn::GuestUnshare, vec![lent.handle, 5, nr]),
            (HostFn::GuestWrprotect, vec![lent.handle, 5, nr]),
            (HostFn::GuestAge, vec![lent.handle, 5, nr, 0]),
            (HostFn::UnprotUnmap, vec![own.handle, 5, nr]),
            (HostFn::VmTopup, vec![own.handle, page, nr]),
            (HostFn::VmTeardownFinish, vec![own.handle, nr]),
        ] {
            let got = rig.call(call, &args).map_err(|(errno, _)| errno);
            assert!(matches!(got, Err(Einval | E2big)), "{call:?} of {nr:#x}: {got:?}");
        }
    }
    for beyond in [1 << 36, 1 << 40, (1 << 52) - 1, 1 << 52, (1 << 52) | page, u64::MAX >> 12, u64::MAX - 1] {
        for (call, args) in [
            (HostFn::HostShareHyp, vec![beyond]),
            (HostFn::HostDonateHyp, vec![beyond, 1]),
            (HostFn::GuestDonate, vec![own.handle, 6, beyond, 0, 7]),
            (HostFn::GuestDonate, vec![own.handle, beyond, page, 0, 7]),
            (HostFn::GuestShare, vec![lent.handle, beyond, page, 0, 7]),
            (HostFn::GuestUnshare, vec![lent.handle, beyond, 1]),
            (HostFn::VmTopup, vec![own.handle, beyond, 1]),
        ] {
            let got = rig.call(call, &args).map_err(|(errno, _)| errno);
            assert!(matches!(got, Err(Einval | Erange)), "{call:?} at {beyond:#x}: {got:?}");
        }
    }
    assert_eq!(rig.state(), before);
}

/// A vCPU that cannot be made leaves no pin on its record, no page and no index behind.
#[test]
fn bug_06_a_vcpu_that_cannot_be_made_leaves_its_record_unpinned() {
    let rig = Rig::new();
    let vm = TestVm::new(&rig, true, 1);
    let (page, record) = (rig.pages(1), rig.pages(1));
    let args = |idx, page| [vm.handle, idx, page, 1, record, 0, 0];
    for site in
        [None, Some((Site::VcpuCreateStep, 1)), Some((Site::VcpuCreateStep, 2)), Some((Site::HostPrepare, 1))]
    {
        rig.ok(HostFn::HostShareHyp, &[record]);
        let faults = rig.world.hyp.faults();
        faults.clear();
        rig.judge(false);
        let got = match site {
            // There is a vCPU of that index; the page for another is not the host's.
            None => {
                rig.refused(HostFn::VcpuCreate, &args(0, page), Eexist);
                rig.call(HostFn::VcpuCreate, &args(1, record)).map_err(|(errno, _)| errno)
            }
            Some((site, nth)) => {
                faults.arm(site, nth);
                rig.call(HostFn::VcpuCreate, &args(1, page)).map_err(|(errno, _)| errno)
            }
        };
        faults.clear();
        rig.judge(true);
        assert_eq!(got, Err(site.map_or(Eperm, |(site, _)| site.errno())), "{site:?}");
        rig.refused(HostFn::VcpuLoad, &[vm.handle, 1], Ebusy);
        rig.ok(HostFn::HostUnshareHyp, &[record]);
        assert!(rig.host_reads(page));
        rig.audit();
    }
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
    rig.refused(HostFn::VcpuLoad, &[vm.handle, 1], Enoent);
    vm.destroy();
}

/// A page that a VM begins with is given once: a second image in its place is refused, and the first stays.
#[test]
fn bug_44_what_a_vm_begins_with_is_put_there_once() {
    let rig = Rig::new();
    let vm = TestVm::new(&rig, true, 1);
    let (first, second) = (rig.filled(SECRET), rig.filled(!SECRET));
    rig.ok(HostFn::VmPopulate, &[vm.handle, 5, first, 0]);
    rig.refused(HostFn::VmPopulate, &[vm.handle, 5, second, 0], Eexist);
    rig.refused(HostFn::GuestDonate, &[vm.handle, 5, second, 0, 7], Eexist);
    assert_eq!((rig.word(first, 7), rig.word(second, 7)), (SECRET, !SECRET));
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
    rig.refused(HostFn::VmPopulate, &[vm.handle, 6, second, 0], Ebusy);
    assert!(rig.host_reads(second) && !rig.host_reads(first));
    vm.destroy();
}

/// The root of a small space is several pages: they must lie as one, and each of them is checked.
#[test]
fn bug_h4_a_root_that_is_not_aligned_to_its_size_makes_no_vm() {
    for (features, bits, nr) in [(CORTEX_A53, 40, 2), (MAX, 41, 4), (MAX, 42, 8), (MAX, 43, 16)] {
        let rig = Rig::on(features);
        let (vm, reserve, root) = (rig.pages(1), rig.pages(1), rig.pages(64));
        let before = rig.state();
        let protected = VmFlags::PROTECTED.bits();
        for offset in 1..nr {
            rig.refused(HostFn::VmCreate, &[protected, bits, vm, 1, root + offset, nr, reserve], Einval);
        }
        rig.refused(HostFn::VmCreate, &[protected, bits, vm, 1, root, nr + 1, reserve], Einval);
        // One of its pages is not the host's alone.
        rig.ok(HostFn::HostShareHyp, &[root + nr - 1]);
        rig.refused(HostFn::VmCreate, &[protected, bits, vm, 1, root, nr, reserve], Eperm);
        rig.ok(HostFn::HostUnshareHyp, &[root + nr - 1]);
        assert_eq!(rig.state(), before, "{bits} bits");
        let handle = rig.ok(HostFn::VmCreate, &[protected, bits, vm, 1, root, nr, reserve]);
        rig.ok(HostFn::VmTeardownStart, &[handle]);
        while rig.call(HostFn::VmTeardownFinish, &[handle, 512]).is_err() {}
        // Their order on the way out is the hypervisor's.
        rig.audit();
        assert!((root..root + nr).all(|page| rig.host_reads(page)));
    }
}

/// vCPUs are made in any order, loaded where they are, run once loaded and put once.
#[test]
fn softerr_vcpus_are_loaded_run_and_put_in_no_other_order() {
    let rig = Rig::new();
    let vm = TestVm::new(&rig, true, 0);
    for idx in [3, 0, 1] {
        vm.add_vcpu(idx);
    }
    rig.refused(HostFn::VcpuLoad, &[vm.handle, 0], Ebusy);
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
    rig.world.sim.program(PC, &[DONE, DONE]);
    rig.refused(HostFn::VcpuRun, &[], Enoent);
    rig.refused(HostFn::VcpuPut, &[], Enoent);
    for nobody in [2, 4, 31, 32, 1 << 32, u64::MAX, u64::MAX - 9] {
        let got = rig.call(HostFn::VcpuLoad, &[vm.handle, nobody]).map_err(|(errno, _)| errno);
        assert!(matches!(got, Err(Enoent | Einval)), "{nobody:#x}: {got:?}");
    }
    for wrong in [0, vm.handle + 1, vm.handle | 1 << 16, u64::MAX] {
        rig.refused(HostFn::VcpuLoad, &[wrong, 0], Enoent);
    }
    vm.load(0, 0);
    rig.refused(HostFn::VcpuLoad, &[vm.handle, 0], Ebusy);
    rig.refused(HostFn::VcpuLoad, &[vm.handle, 1], Ebusy);
    assert_eq!(rig.call_on(1, HostFn::VcpuLoad, &[vm.handle, 0]).map_err(|(errno, _)| errno), Err(Ebusy));
    rig.refused(HostFn::VmTeardownStart, &[vm.handle], Ebusy);
    assert_eq!(vm.try_run(0, 1).map(|exit| exit.reason), Ok(Reason::Wfx));
    vm.put(0);
    rig.refused(HostFn::VcpuPut, &[], Enoent);
    rig.refused(HostFn::VcpuRun, &[], Enoent);
    assert!(rig.call_on(1, HostFn::VcpuLoad, &[vm.handle, 0]).is_ok(), "and then by another CPU");
    vm.put(1);
    vm.destroy();
}

/// A page that is shared is not given, one that is given is not shared, and neither twice, nor two to one frame.
#[test]
fn softerr_a_page_is_shared_or_given_once_and_a_frame_has_one() {
    let rig = Rig::new();
    let (own, lent) = (TestVm::active(&rig, true, 1), TestVm::active(&rig, false, 1));
    own.topup(4);
    lent.topup(4);
    let (shared, given, other) = (rig.pages(1), rig.pages(1), rig.pages(1));
    rig.ok(HostFn::HostShareHyp, &[shared]);
    rig.refused(HostFn::HostShareHyp, &[shared], Eperm);
    rig.refused(HostFn::GuestDonate, &[own.handle, 5, shared, 0, 7], Eperm);
    rig.refused(HostFn::GuestShare, &[lent.handle, 5, shared, 0, 7], Eperm);
    rig.ok(HostFn::HostUnshareHyp, &[shared]);
    rig.refused(HostFn::HostUnshareHyp, &[shared], Eperm);

    // No vCPU is loaded, and none needs to be.
    rig.ok(HostFn::GuestDonate, &[own.handle, 5, given, 0, 7]);
    let before = rig.state();
    rig.refused(HostFn::GuestDonate, &[own.handle, 5, given, 0, 7], Eperm);
    rig.refused(HostFn::GuestDonate, &[own.handle, 6, given, 0, 7], Eperm);
    rig.refused(HostFn::GuestDonate, &[own.handle, 5, other, 0, 7], Eexist);
    rig.refused(HostFn::GuestShare, &[lent.handle, 5, given, 0, 7], Eperm);
    rig.refused(HostFn::HostShareHyp, &[given], Eperm);
    rig.refused(HostFn::HostUnshareHyp, &[given], Eperm);
    rig.refused(HostFn::HostDonateHyp, &[given, 1], Eperm);
    rig.refused(HostFn::HypDonateHost, &[given, 1], Eperm);
    assert_eq!(rig.state(), before);
    own.destroy();
    lent.destroy();
}

/// Every call that changes the entries of a VM's frames by number answers for a protected VM that it is not for it.
#[test]
fn bug_46_calls_of_plain_vms_do_nothing_to_a_protected_one() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    vm.give(0x5000);
    let (before, page) = (rig.state(), rig.pages(1));
    let calls = [
        (HostFn::GuestShare, vec![vm.handle, 6, page, 0, 7]),
        (HostFn::GuestUnshare, vec![vm.handle, 5, 1]),
        (HostFn::GuestRelax, vec![vm.handle, 5, 7]),
        (HostFn::GuestWrprotect, vec![vm.handle, 5, 1]),
        (HostFn::GuestAge, vec![vm.handle, 5, 1, 1]),
        (HostFn::GuestTlbFlush, vec![vm.handle]),
        (HostFn::VmReset, vec![vm.handle]),
        (HostFn::UnprotMap, vec![vm.handle, 6, page, 0, 1]),
        (HostFn::UnprotUnmap, vec![vm.handle, 5, 1]),
    ];
    let answers: BTreeSet<_> =
        calls.iter().map(|(call, args)| rig.call(*call, args).err().map(|(e, _)| e as u64)).collect();
    assert_eq!(answers, BTreeSet::from([Some(abi::Errno::Eacces as u64)]));
    vm.load(0, 0);
    for (call, args) in [(HostFn::VcpuGetReg, vec![0]), (HostFn::VcpuSetReg, vec![0, 1])] {
        rig.refused(call, &args, abi::Errno::Eacces);
    }
    rig.world.sim.program(PC, &[DONE]);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    vm.put(0);
    assert_eq!(rig.state(), before);
    vm.destroy();
}
