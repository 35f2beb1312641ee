//! Machines of which some memory has no tags, and VMs with MTE on them.

use crate::rig::{BITS, Exit, Rig, TestVm, mem_fault};
use abi::HostFn;
use abi::exit::ExitFlags;
use abi::vm::{MtePolicy, VmFlags};
use hyp::hw::CpuFeatures;
use testkit::Setup;
use testkit::features::{MAX, NEOVERSE_N2, PATCHWORK};
use testkit::guest::Instr;

/// Without FEAT_MTE_PERM, FWB and a coherent instruction cache.
pub(crate) const CONSERVATIVE_PATCHWORK: CpuFeatures = CpuFeatures { mte_perm: false, ..PATCHWORK };

/// Every kind of CPU with MTE2: whether it tells tag accesses, and whether it forces write-back.
pub(crate) const MACHINES: [(&str, CpuFeatures); 4] = [
    ("precise", MAX),
    ("precise, no FWB", PATCHWORK),
    ("conservative", NEOVERSE_N2),
    ("conservative, no FWB", CONSERVATIVE_PATCHWORK),
];

/// First page of RAM without tags, counted from its start, aligned to a block, and how many.
const NO_TAGS: (u64, u64) = (8192, 2048);

/// R, W and X, and the same without tags.
pub(crate) const RWX: u64 = 7;
pub(crate) const RWX_NO_TAG: u64 = 15;

/// The machine: pages of [`Rig::pages`] have tags.
pub(crate) fn rig(features: CpuFeatures) -> Rig {
    Rig::with(Setup { no_tags: Some(NO_TAGS), ..Setup::new(features) })
}

/// The `nth` page without tags.
pub(crate) fn untagged(rig: &Rig, nth: u64) -> u64 {
    assert!(nth < NO_TAGS.1);
    rig.world.page(NO_TAGS.0 + nth).raw()
}

/// A VM of `kind` with `policy` in phase ACTIVE, and eight pages in its store.
pub(crate) fn active(rig: &Rig, kind: VmFlags, policy: MtePolicy) -> TestVm<'_> {
    let vm = TestVm::with_flags(rig, kind | policy.flags(), 1, BITS);
    vm.topup(8);
    if vm.split {
        rig.ok(HostFn::VmInitRipas, &[vm.handle, 0, 1 << 31]);
    }
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
    vm
}

/// A protected VM with tags on demand.
pub(crate) fn lazy(rig: &Rig) -> TestVm<'_> {
    active(rig, VmFlags::PROTECTED, MtePolicy::Lazy)
}

/// The exit for the tags of the guest's own page at `ipa`.
pub(crate) fn tag_access(ipa: u64) -> Exit {
    mem_fault(ipa, ExitFlags::TAG_ACCESS | ExitFlags::PRIVATE)
}

/// Gives `page` at `ipa`.
pub(crate) fn donate(vm: &TestVm<'_>, ipa: u64, page: u64, prot: u64) {
    vm.rig.ok(HostFn::GuestDonate, &[vm.handle, ipa >> 12, page, 0, prot]);
}

/// What VM_TAG_INFO says of `ipa`: 0 no page, 1 tags, 2 none, 3 not mapped.
pub(crate) fn tag_info(vm: &TestVm<'_>, ipa: u64) -> u64 {
    vm.rig.ok(HostFn::VmTagInfo, &[vm.handle, ipa >> 12])
}

/// What it says of a page without tags.
pub(crate) fn no_tag_state(features: &CpuFeatures) -> u64 {
    if features.mte_perm { 2 } else { 3 }
}

pub(crate) fn load(rt: u8, ipa: u64) -> Instr {
    Instr::Load { rt, ipa, log2: 3, sign: false, wide: true }
}

pub(crate) fn store(rt: u8, ipa: u64) -> Instr {
    Instr::Store { rt, ipa, log2: 3 }
}
