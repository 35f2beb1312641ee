//! Policies, and what CPUs they need.

use crate::rig::{BITS, Rig, TestVm};
use abi::vm::{MtePolicy, NO_PAGE, VmFlags};
use abi::{Errno, HostFn};
use testkit::features::{MATRIX, MAX, NEOVERSE_N2};

/// What VM_CREATE with `policy` answers; nothing has changed if it refuses.
fn create(rig: &Rig, policy: MtePolicy) -> Result<(), Errno> {
    let flags = (policy.flags() | VmFlags::PROTECTED).bits();
    let before = rig.audit();
    let [vm, root, reserve] = [rig.pages(1), rig.pages(1), rig.pages(1)];
    let answer = rig.call(HostFn::VmCreate, &[flags, BITS, vm, 1, root, 1, reserve]);
    if answer.is_err() {
        assert!(rig.audit().ownership().eq(before.ownership()));
        assert!([vm, root, reserve].iter().all(|page| rig.host_reads(*page)));
    }
    answer.map(|_| ()).map_err(|(errno, _)| errno)
}

#[test]
fn a_policy_needs_the_cpu_that_can_keep_it() {
    for (name, features) in MATRIX {
        let rig = Rig::on(features);
        let can = |yes: bool| if yes { Ok(()) } else { Err(Errno::Eopnotsupp) };
        assert_eq!(create(&rig, MtePolicy::Off), Ok(()), "{name}");
        assert_eq!(create(&rig, MtePolicy::Strict), can(features.mte >= 2), "{name}");
        assert_eq!(create(&rig, MtePolicy::Lazy), can(features.mte >= 2), "{name}");
        assert_eq!(create(&rig, MtePolicy::LazyPrecise), can(features.mte_perm), "{name}");
    }
}

#[test]
fn m_16_require_precise_fails_at_creation_and_every_page_is_back() {
    let rig = Rig::on(NEOVERSE_N2);
    assert_eq!(create(&rig, MtePolicy::LazyPrecise), Err(Errno::Eopnotsupp));
    let rig = Rig::on(MAX);
    assert_eq!(create(&rig, MtePolicy::LazyPrecise), Ok(()));
}

#[test]
fn vms_of_every_kind_and_policy_come_and_go() {
    let rig = Rig::new();
    for policy in MtePolicy::ALL {
        for kind in [VmFlags::empty(), VmFlags::PROTECTED, VmFlags::PROTECTED | VmFlags::SPLIT_IPA] {
            let before = rig.audit();
            let vm = TestVm::with_flags(&rig, kind | policy.flags(), 1, BITS);
            vm.topup(4);
            if !vm.split {
                vm.give(0x1000);
            }
            vm.destroy();
            assert!(rig.audit().ownership().eq(before.ownership()));
        }
    }
    let capable = rig.pages(1);
    let flags = MtePolicy::Strict.flags().bits() | 1 << 6;
    rig.refused(HostFn::VmCreate, &[flags, BITS, capable, 1, capable, 1, NO_PAGE], Errno::Einval);
}
