//! Calls of guests, and the host's calls about halves and blocks, made to fail at every pass of every site.
//!
//! Each attempt has a machine of its own that was made alike, so that every pass comes as it came when nothing failed.

use crate::rig::{BITS, DONE, Exit, PC, Rig, SECRET, TestVm};
use abi::exit::{Reason, Resp};
use abi::fault::Site;
use abi::inspect::Figure;
use abi::vm::{NO_PAGE, VmFlags};
use abi::{Errno, HostFn, guest, rsi};
use hyp::fault::Which;
use std::collections::BTreeSet;
use testkit::guest::Instr;

const BLOCK: u64 = 0x4000_0000;
const SHARED: u64 = 1 << (BITS - 1);

/// A VM, and pages of the host for the call.
struct Scene<'a> {
    vm: TestVm<'a>,
    page: u64,
}

/// What a call comes to: x0 and x1 of a guest's, x2 and x3 of the host's.
type Outcome = Result<[u64; 2], Errno>;

struct Case {
    name: &'static str,
    scene: for<'a> fn(&'a Rig) -> Scene<'a>,
    act: fn(&Scene<'_>) -> Outcome,
}

fn mov(rt: u8, value: u64) -> Instr {
    Instr::Mov { rt, value }
}

/// A VM whose vCPU 0 is about to make a guest's call, or to do `last`.
fn about_to<'a>(vm: TestVm<'a>, call: Option<(u32, [u64; 3])>, last: &[Instr]) -> Scene<'a> {
    let mut code = Vec::new();
    if let Some((id, args)) = call {
        code.push(mov(0, id.into()));
        code.extend((1..).zip(args).map(|(rt, value)| mov(rt, value)));
        code.push(Instr::Hvc { imm: 0 });
    }
    code.extend(last);
    code.push(DONE);
    vm.rig.world.sim.program(PC, &code);
    let page = vm.rig.filled(SECRET);
    vm.load(0, 0);
    Scene { vm, page }
}

fn classic<'a>(rig: &'a Rig, id: u32, args: [u64; 3]) -> Scene<'a> {
    let vm = TestVm::active(rig, true, 1);
    vm.topup(6);
    rig.ok(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, rig.pages(512), 9, 7]);
    about_to(vm, Some((id, args)), &[])
}

fn guarded(rig: &Rig, id: u32, args: [u64; 3]) -> Scene<'_> {
    let scene = classic(rig, guest::GUARD_ENROLL, [0; 3]);
    assert_eq!(scene.vm.run().reason, Reason::Wfx);
    let mut code = vec![mov(0, id.into())];
    code.extend((1..).zip(args).map(|(rt, value)| mov(rt, value)));
    code.extend([Instr::Hvc { imm: 0 }, DONE]);
    // Behind the first call: five moves and calls, and a WFI.
    rig.world.sim.program(PC + 4 * 6, &code);
    scene
}

fn realm(rig: &Rig, ram: u64) -> TestVm<'_> {
    let vm = TestVm::split(rig, 1);
    vm.topup(8);
    assert_eq!(rig.ok(HostFn::VmInitRipas, &[vm.handle, 0, ram]), ram);
    vm
}

fn active(vm: TestVm<'_>) -> TestVm<'_> {
    vm.rig.ok(HostFn::VmFinalise, &[vm.handle]);
    vm
}

/// A turn; a guest's call that lacks table pages is ENOMEM.
fn turn(scene: &Scene<'_>) -> Outcome {
    let Exit { reason, need_pages, .. } = scene.vm.try_run(0, 0)?;
    match reason {
        Reason::NeedMem => {
            assert!(need_pages > 0, "it says how many");
            Err(Errno::Enomem)
        }
        Reason::Wfx | Reason::Relinquished => {
            let [x0, x1, ..] = scene.vm.rig.loaded_registers(0);
            Ok([x0, x1])
        }
        other => panic!("{other:?}"),
    }
}

/// A turn that begins with the page for the exit before.
fn supplied(scene: &Scene<'_>) -> Outcome {
    scene.vm.answer(0, Resp::Map as u32, scene.page);
    turn(scene)
}

/// A guest that has run into a page that is missing.
fn missing(vm: TestVm<'_>, ipa: u64) -> Scene<'_> {
    let load = Instr::Load { rt: 9, ipa, log2: 3, sign: false, wide: true };
    let scene = about_to(vm, None, &[load, mov(0, 0), mov(1, 0)]);
    assert!(matches!(scene.vm.run().reason, Reason::MemFault | Reason::Mmio));
    scene
}

fn host(scene: &Scene<'_>, call: HostFn, args: &[u64]) -> Outcome {
    scene.vm.rig.call(call, args).map_err(|(errno, _)| errno)
}

/// Makes a call that does a part until all is done: where it came to.
fn to_the_top(scene: &Scene<'_>, call: HostFn, before: &[u64], [base, top]: [u64; 2]) -> Outcome {
    let mut at = base;
    while at < top {
        let args: Vec<u64> = before.iter().copied().chain([at, top]).collect();
        let [done, _] = host(scene, call, &args)?;
        assert!(done > at, "it gets on");
        at = done;
    }
    Ok([at, 0])
}

/// A realm that has asked for a state of its memory.
fn asking(rig: &Rig, [base, top, state]: [u64; 3]) -> Scene<'_> {
    let vm = active(realm(rig, 64 << 20));
    rig.ok(HostFn::GuestDonate, &[vm.handle, 0x20_0000 >> 12, rig.pages(512), 9, 7]);
    let code =
        [mov(0, rsi::IPA_STATE_SET.into()), mov(1, base), mov(2, top), mov(3, state), mov(4, 1), Instr::Smc];
    let scene = about_to(vm, None, &code);
    assert_eq!(scene.vm.run().reason, Reason::RipasChange);
    scene
}

const CASES: &[Case] = &[
    Case {
        name: "MEM_SHARE of a part of a block",
        scene: |rig| classic(rig, guest::MEM_SHARE, [BLOCK + 0x3000, 2, 0]),
        act: turn,
    },
    Case {
        name: "MEM_UNSHARE of a part of a block",
        scene: |rig| {
            let scene = classic(rig, guest::MEM_SHARE, [BLOCK, 512, 0]);
            assert_eq!(turn(&scene), Ok([0, 512]));
            let code = [
                mov(0, guest::MEM_UNSHARE.into()),
                mov(1, BLOCK + 0x1000),
                mov(2, 3),
                mov(3, 0),
                Instr::Hvc { imm: 0 },
                DONE,
            ];
            rig.world.sim.program(PC + 4 * 6, &code);
            scene
        },
        act: turn,
    },
    Case {
        name: "MEM_RELINQUISH of a part of a block",
        scene: |rig| classic(rig, guest::MEM_RELINQUISH, [BLOCK + 0x1f_f000, 1, 0]),
        act: turn,
    },
    Case { name: "GUARD_MAP", scene: |rig| guarded(rig, guest::GUARD_MAP, [0x900_0000, 0, 0]), act: turn },
    Case {
        name: "RGUARD_MAP across two tables",
        scene: |rig| guarded(rig, guest::RGUARD_MAP, [0x91f_f000, 3, 0]),
        act: turn,
    },
    Case {
        name: "MAP for a page of its own",
        scene: |rig| missing(active(topped(rig, VmFlags::PROTECTED)), BLOCK),
        act: supplied,
    },
    Case {
        name: "MAP for a page that is lent",
        scene: |rig| missing(active(topped(rig, VmFlags::empty())), BLOCK),
        act: supplied,
    },
    Case {
        name: "MAP for a realm's own page",
        scene: |rig| missing(active(realm(rig, 64 << 20)), 0x5000),
        act: supplied,
    },
    Case {
        name: "MAP for the shared half",
        scene: |rig| missing(active(realm(rig, 64 << 20)), SHARED | 0x5000),
        act: supplied,
    },
    Case {
        name: "VM_INIT_RIPAS",
        scene: |rig| {
            let vm = TestVm::split(rig, 1);
            Scene { vm, page: 0 }
        },
        act: |scene| to_the_top(scene, HostFn::VmInitRipas, &[scene.vm.handle], [0x1000, 0x40_3000]),
    },
    Case {
        name: "RIPAS_APPLY of RAM",
        scene: |rig| asking(rig, [0x500_0000, 0x520_1000, 1]),
        act: |scene| to_the_top(scene, HostFn::RipasApply, &[scene.vm.handle, 0], [0x500_0000, 0x520_1000]),
    },
    Case {
        name: "RIPAS_APPLY of EMPTY",
        scene: |rig| asking(rig, [0x20_1000, 0x60_1000, 0]),
        act: |scene| to_the_top(scene, HostFn::RipasApply, &[scene.vm.handle, 0], [0x20_1000, 0x60_1000]),
    },
    Case {
        name: "UNPROT_MAP of a page",
        scene: |rig| Scene { vm: active(realm(rig, 64 << 20)), page: rig.pages(1) },
        act: |scene| host(scene, HostFn::UnprotMap, &[scene.vm.handle, SHARED >> 12, scene.page, 0, 1]),
    },
    Case {
        name: "UNPROT_MAP of a block",
        scene: |rig| Scene { vm: active(realm(rig, 64 << 20)), page: rig.pages(512) },
        act: |scene| host(scene, HostFn::UnprotMap, &[scene.vm.handle, SHARED >> 12, scene.page, 9, 1]),
    },
    Case {
        name: "VM_POPULATE of a realm",
        scene: |rig| Scene { vm: realm(rig, 64 << 20), page: rig.filled(SECRET) },
        act: |scene| host(scene, HostFn::VmPopulate, &[scene.vm.handle, 0x1000, scene.page, 1]),
    },
    Case {
        name: "VM_FINALISE of a realm",
        scene: |rig| Scene { vm: realm(rig, 64 << 20), page: 0 },
        act: |scene| host(scene, HostFn::VmFinalise, &[scene.vm.handle]),
    },
    Case {
        name: "GUEST_DONATE of a page in a realm",
        scene: |rig| Scene { vm: active(realm(rig, 64 << 20)), page: rig.pages(1) },
        act: |scene| host(scene, HostFn::GuestDonate, &[scene.vm.handle, 0x1000, scene.page, 0, 7]),
    },
    Case {
        name: "GUEST_DONATE of a block in a realm",
        scene: |rig| Scene { vm: active(realm(rig, 64 << 20)), page: rig.pages(512) },
        act: |scene| host(scene, HostFn::GuestDonate, &[scene.vm.handle, 0x1000, scene.page, 9, 7]),
    },
    Case {
        name: "GUEST_SHARE of a block",
        scene: |rig| Scene { vm: active(topped(rig, VmFlags::empty())), page: rig.pages(512) },
        act: |scene| host(scene, HostFn::GuestShare, &[scene.vm.handle, BLOCK >> 12, scene.page, 9, 7]),
    },
    Case {
        name: "VCPU_LOAD",
        scene: |rig| Scene { vm: TestVm::active(rig, true, 1), page: 0 },
        act: |scene| host(scene, HostFn::VcpuLoad, &[scene.vm.handle, 0]),
    },
    Case {
        name: "GUEST_RECLAIM of a part of a block",
        scene: |rig| {
            let scene = classic(rig, guest::MEM_SHARE, [BLOCK, 1, 0]);
            scene.vm.put(0);
            scene
        },
        act: |scene| {
            let args = [scene.vm.handle, BLOCK + 0x1000, BLOCK + 0x4000, NO_PAGE];
            host(scene, HostFn::GuestReclaim, &args).map(|[done, _]| [done, 0])
        },
    },
    Case {
        name: "VM_TEARDOWN_START",
        scene: |rig| Scene { vm: TestVm::active(rig, true, 1), page: 0 },
        act: |scene| host(scene, HostFn::VmTeardownStart, &[scene.vm.handle]),
    },
    Case {
        name: "RECLAIM_DYING",
        scene: |rig| dying(rig),
        act: |scene| host(scene, HostFn::ReclaimDying, &[scene.vm.handle, 0, 1 << BITS]),
    },
    Case {
        name: "VM_TEARDOWN_FINISH",
        scene: |rig| {
            let scene = dying(rig);
            rig.ok(HostFn::ReclaimDying, &[scene.vm.handle, 0, 1 << BITS]);
            scene
        },
        act: |scene| loop {
            match host(scene, HostFn::VmTeardownFinish, &[scene.vm.handle, 512]) {
                Err(Errno::Eagain) => {}
                answer => return answer.map(|_| [0, 0]),
            }
        },
    },
];

/// Cases that pass no site at all: they only take away, or move registers.
const WITHOUT: [&str; 6] = [
    "VM_FINALISE of a realm",
    "VCPU_LOAD",
    "GUEST_RECLAIM of a part of a block",
    "VM_TEARDOWN_START",
    "RECLAIM_DYING",
    "VM_TEARDOWN_FINISH",
];

/// Cases that may do a part: where a pass fails the rest is done one by one, or for the next call.
const IN_PARTS: [&str; 3] = ["VM_INIT_RIPAS", "RIPAS_APPLY of RAM", "RIPAS_APPLY of EMPTY"];

fn topped(rig: &Rig, flags: VmFlags) -> TestVm<'_> {
    let vm = TestVm::with_flags(rig, flags, 1, BITS);
    vm.topup(6);
    vm
}

fn dying(rig: &Rig) -> Scene<'_> {
    let scene = classic(rig, guest::MEM_SHARE, [BLOCK + 0x3000, 2, 0]);
    assert_eq!(turn(&scene), Ok([0, 2]));
    scene.vm.put(0);
    rig.ok(HostFn::VmTeardownStart, &[scene.vm.handle]);
    scene
}

fn ownership(rig: &Rig) -> Vec<(Figure, u64)> {
    rig.audit().ownership().collect()
}

#[test]
fn every_pass_of_a_guests_call_fails_once_and_then_it_does_what_it_always_does() {
    let (mut reached, mut without) = (BTreeSet::new(), BTreeSet::new());
    for Case { name, scene, act } in CASES {
        let calm = Rig::new();
        let undisturbed = scene(&calm);
        calm.world.hyp.faults().clear();
        let wanted = act(&undisturbed);
        assert!(wanted.is_ok(), "{name}: {wanted:?}");
        let hits = Site::ALL.map(|site| calm.world.hyp.faults().stats(site).hits);
        let end = calm.state();
        let passed = Site::ALL.into_iter().zip(hits).filter(|(_, hits)| *hits > 0);
        println!("{name}: {:?}", passed.map(|(site, hits)| (site.name(), hits)).collect::<Vec<_>>());
        if hits.iter().all(|hits| *hits == 0) {
            without.insert(*name);
        }
        for (site, nth) in
            Site::ALL.into_iter().zip(hits).flat_map(|(site, hits)| (1..=hits).map(move |n| (site, n)))
        {
            let what = format!("{name}: pass {nth} of {site:?}");
            let rig = Rig::new();
            let scene = scene(&rig);
            let before = ownership(&rig);
            let faults = rig.world.hyp.faults();
            faults.clear();
            faults.arm(site, nth);
            rig.judge(false);
            let got = act(&scene);
            rig.judge(true);
            assert_eq!(faults.stats(Which::Any).fired, 1, "{what}");
            assert_eq!(faults.stats(site).fired, 1, "{what}");
            faults.clear();
            reached.insert(site);
            if !(got.is_ok() && IN_PARTS.contains(name)) {
                assert_eq!(got, Err(site.errno()), "{what}");
                assert_eq!(ownership(&rig), before, "{what}");
                rig.judge(false);
                assert_eq!(act(&scene), wanted, "{what}, and then again");
                rig.judge(true);
            }
            assert_eq!(rig.state(), end, "{what}: the end is the same");
        }
    }
    assert_eq!(without, BTreeSet::from(WITHOUT), "what fails is what can");
    for site in [Site::GuardTable, Site::RipasTable, Site::LeaveSplit] {
        assert!(reached.contains(&site), "a site that nothing reaches is no site: {site:?}");
    }
}
