//! MTE_UPGRADE.

use crate::machine::{
    MACHINES, RWX, RWX_NO_TAG, active, donate, lazy, load, no_tag_state, rig, store, tag_access, tag_info,
    untagged,
};
use crate::rig::{DONE, Exit, PC, Rig, SECRET, TestVm};
use abi::Errno::{self, Eacces, Ebusy, Eexist, Ehwpoison, Einval, Enoent, Enomem, Eperm, Erange};
use abi::exit::Reason;
use abi::inspect::Figure;
use abi::vm::{MtePolicy, NO_PAGE, VmFlags};
use abi::{HostFn, fault::Site};
use hyp::hw::CpuFeatures;
use testkit::features::MAX;
use testkit::guest::Instr;
use testkit::machine::Op;

const AT: u64 = 0x5000;
const BLOCK: u64 = 0x4000_0000;
/// A frame number of a device.
const MMIO: u64 = 0x0900_0000 >> 12;

fn upgrade(vm: &TestVm<'_>, ipa: u64, new: u64) -> Result<u64, Errno> {
    let answer = vm.rig.call(HostFn::MteUpgrade, &[vm.handle, ipa >> 12, new]);
    answer.map(|[old, _]| old).map_err(|(errno, _)| errno)
}

/// Fills a guest's page, tags 0 but one, as a guest does.
fn pattern(rig: &Rig, page: u64) {
    (0..512).for_each(|n| rig.world.sim.memory().write(page, n, 0x1000 + n as u64));
}

fn has_pattern(rig: &Rig, page: u64) -> bool {
    (0..512).all(|n| rig.word(page, n) == 0x1000 + n as u64)
}

fn is_zero(rig: &Rig, page: u64) -> bool {
    (0..512).all(|n| rig.word(page, n) == 0 && rig.world.sim.memory().read_ram(page, n) == 0)
}

fn tags(rig: &Rig, page: u64) -> Vec<u8> {
    (0..=255).map(|granule| rig.world.sim.memory().tag(page, granule)).collect()
}

#[test]
fn m_05_a_page_keeps_its_bytes_gets_tags_and_the_old_one_is_the_hosts_and_empty() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = lazy(&rig);
        let (old, new) = (untagged(&rig, 0), rig.filled(SECRET));
        (0..=255).for_each(|granule| rig.world.sim.memory().set_tag(new, granule, 9));
        donate(&vm, AT, old, RWX);
        pattern(&rig, old);
        assert_eq!(tag_info(&vm, AT), no_tag_state(&features), "{name}");
        assert_eq!(upgrade(&vm, AT, new), Ok(old), "{name}");
        assert_eq!(tag_info(&vm, AT), 1, "{name}");
        assert!(has_pattern(&rig, new), "{name}");
        assert_eq!(tags(&rig, new), [0; 256], "{name}");
        assert!(rig.host_reads(old) && is_zero(&rig, old), "{name}");
        assert!(!rig.host_reads(new), "{name}");
        let code = [
            load(2, AT + 8),
            Instr::SetTag { ipa: AT + 0x40, tag: 5 },
            Instr::GetTag { rt: 3, ipa: AT + 0x40 },
            Instr::GetTag { rt: 4, ipa: AT + 0x50 },
            Instr::Fetch { ipa: AT },
            DONE,
        ];
        rig.world.sim.program(PC, &code);
        vm.load(0, 0);
        assert_eq!(vm.run().reason, Reason::Wfx, "{name}: no exit");
        assert_eq!(rig.loaded_registers(0)[2..5], [0x1001, 5, 0], "{name}");
        vm.put(0);
        rig.audit();
        vm.destroy();
        assert_eq!(tags(&rig, new), [0; 256], "{name}: the guest's tags are its secret");
    }
}

#[test]
fn m_05_one_page_of_a_block_is_upgraded_and_511_stay_as_they_are() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = lazy(&rig);
        let (block, new) = (untagged(&rig, 512), rig.pages(1));
        rig.ok(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, block, 9, RWX]);
        pattern(&rig, block + 7);
        assert_eq!(upgrade(&vm, BLOCK + 0x7000, new), Ok(block + 7), "{name}");
        assert!(has_pattern(&rig, new), "{name}");
        for n in 0..512 {
            let wanted = if n == 7 { 1 } else { no_tag_state(&features) };
            assert_eq!(tag_info(&vm, BLOCK + n * 0x1000), wanted, "{name}: page {n}");
        }
        // All of them go back, in part by force.
        let [base, top] = [BLOCK + 0x6000, BLOCK + 0x9000];
        assert_eq!(rig.call(HostFn::GuestReclaim, &[vm.handle, base, top, NO_PAGE]), Ok([top, NO_PAGE]));
        assert!(rig.host_reads(new) && is_zero(&rig, new), "{name}");
        vm.destroy();
    }
}

/// A VM with a block without tags, of which one page has a pattern, and the page that it is to move to.
fn with_block(rig: &Rig) -> (TestVm<'_>, u64) {
    let vm = lazy(rig);
    rig.ok(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, untagged(rig, 512), 9, RWX]);
    pattern(rig, untagged(rig, 512));
    // So far from all else that the host's table has to be split.
    (vm, rig.world.page(15 * 1024).raw())
}

#[test]
fn m_09_every_step_that_fails_leaves_everything_and_the_next_try_succeeds() {
    for (name, features) in MACHINES {
        let calm = rig(features);
        let (vm, new) = with_block(&calm);
        calm.world.hyp.faults().clear();
        let old = upgrade(&vm, BLOCK, new);
        let hits = Site::ALL.map(|site| calm.world.hyp.faults().stats(site).hits);
        let passes = |site: Site| hits[usize::try_from(site.number()).unwrap()];
        assert_eq!(passes(Site::NtaPrepHost), 1, "{name}");
        assert_eq!(passes(Site::NtaSplit), u64::from(features.mte_perm), "{name}: notes are pages already");

        let rig = rig(features);
        let (vm, new) = with_block(&rig);
        let faults = rig.world.hyp.faults();
        for (site, hits) in Site::ALL.into_iter().zip(hits) {
            for nth in 1..=hits {
                let before = rig.audit();
                faults.clear();
                faults.arm(site, nth);
                rig.judge(false);
                let got = upgrade(&vm, BLOCK, new);
                rig.judge(true);
                let what = format!("{name}: pass {nth} of {site:?}");
                assert_eq!((got, faults.stats(site).fired), (Err(site.errno()), 1), "{what}");
                assert!(rig.audit().ownership().eq(before.ownership()), "{what}");
                assert!(has_pattern(&rig, untagged(&rig, 512)) && rig.host_reads(new), "{what}");
                assert_eq!(tag_info(&vm, BLOCK), no_tag_state(&features), "{what}");
            }
        }
        faults.clear();
        assert_eq!(upgrade(&vm, BLOCK, new), old, "{name}");
        assert!(rig.audit().ownership().eq(calm.audit().ownership()), "{name}: both came to the same end");
        vm.destroy();
    }
}

#[test]
fn m_09_a_block_is_split_only_if_the_vm_has_a_table_for_it() {
    let rig = rig(MAX);
    let vm = TestVm::with_flags(&rig, VmFlags::PROTECTED | MtePolicy::Lazy.flags(), 1, 32);
    vm.topup(1);
    rig.ok(HostFn::GuestDonate, &[vm.handle, BLOCK >> 12, untagged(&rig, 512), 9, RWX]);
    let (new, before) = (rig.pages(1), rig.audit());
    assert_eq!(rig.call(HostFn::MteUpgrade, &[vm.handle, BLOCK >> 12, new]), Err((Enomem, [0, 1])));
    assert!(rig.audit().ownership().eq(before.ownership()));
    vm.topup(1);
    assert_eq!(upgrade(&vm, BLOCK, new), Ok(untagged(&rig, 512)));
    vm.destroy();
}

#[test]
fn m_12_no_page_but_one_of_the_hosts_own_with_tags_becomes_the_guests() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let (vm, other) = (lazy(&rig), lazy(&rig));
        let old = untagged(&rig, 0);
        donate(&vm, AT, old, RWX);
        let own = vm.give(0x9000);
        let theirs = other.give(0x9000);
        let shared = rig.filled(1);
        rig.ok(HostFn::HostShareHyp, &[shared]);
        let lent = rig.pages(1);
        rig.ok(HostFn::HostDonateHyp, &[lent, 1]);
        let before = rig.audit();
        let hyp = rig.world.carve_out.start().raw();
        for (what, page, errno) in [
            ("the old page", old, Eperm),
            ("a page of its own", own, Eperm),
            ("another VM's page", theirs, Eperm),
            ("a shared page", shared, Eperm),
            ("a lent page", lent, Eperm),
            ("EL2's page", hyp, Eperm),
            ("a page without tags", untagged(&rig, 1), Eperm),
            ("a device", MMIO, Erange),
            ("beyond memory", 1 << 36, Erange),
        ] {
            assert_eq!(upgrade(&vm, AT, page), Err(errno), "{name}: {what}");
            assert!(rig.audit().ownership().eq(before.ownership()), "{name}: {what}");
            assert_eq!(tag_info(&vm, AT), no_tag_state(&features), "{name}: {what}");
        }
        vm.destroy();
        other.destroy();
    }
}

#[test]
fn m_13_a_frame_without_such_a_page_is_refused_and_each_refusal_is_told_apart() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = lazy(&rig);
        let new = rig.pages(1);
        donate(&vm, AT, rig.pages(1), RWX);
        donate(&vm, 0x7000, untagged(&rig, 0), RWX);
        rig.ok(HostFn::GuestReclaim, &[vm.handle, 0x7000, 0x8000, NO_PAGE]);
        donate(&vm, 0x8000, untagged(&rig, 1), RWX);
        assert_eq!(upgrade(&vm, AT, new), Err(Eexist), "{name}: it has tags");
        assert_eq!(upgrade(&vm, 0x6000, new), Err(Enoent), "{name}: nothing there");
        assert_eq!(upgrade(&vm, 0x7000, new), Err(Ehwpoison), "{name}: destroyed");
        assert_eq!(upgrade(&vm, 1 << 32, new), Err(Erange), "{name}: beyond the space");
        rig.refused(HostFn::MteUpgrade, &[vm.handle, u64::MAX, new], Einval);
        rig.refused(HostFn::MteUpgrade, &[vm.handle, 1 << 36, new], Erange);
        rig.refused(HostFn::MteUpgrade, &[vm.handle ^ 0x100, 8, new], Enoent);
        rig.refused(HostFn::VmTagInfo, &[vm.handle ^ 0x100, 8], Enoent);
        rig.refused(HostFn::VmTagInfo, &[vm.handle, 1 << 20], Erange);
        rig.refused(HostFn::VmTagInfo, &[vm.handle, u64::MAX], Einval);
        assert_eq!([AT, 0x6000, 0x7000].map(|ipa| tag_info(&vm, ipa)), [1, 0, 0], "{name}");
        rig.ok(HostFn::VmTeardownStart, &[vm.handle]);
        assert_eq!(upgrade(&vm, 0x8000, new), Err(Ebusy), "{name}: it is taken apart");
        assert_eq!(tag_info(&vm, 0x8000), no_tag_state(&features), "{name}: in any phase");
    }
}

#[test]
fn m_13_a_vm_without_mte_and_memory_to_come_have_nothing_to_upgrade() {
    let rig = rig(MAX);
    let off = active(&rig, VmFlags::PROTECTED, MtePolicy::Off);
    donate(&off, AT, untagged(&rig, 0), RWX_NO_TAG);
    assert_eq!(upgrade(&off, AT, rig.pages(1)), Err(Eacces));
    let split = active(&rig, VmFlags::PROTECTED | VmFlags::SPLIT_IPA, MtePolicy::Lazy);
    assert_eq!(upgrade(&split, AT, rig.pages(1)), Err(Enoent), "RAM, and no page");
    donate(&split, AT, untagged(&rig, 1), RWX);
    assert_eq!(upgrade(&split, AT, rig.pages(1)), Ok(untagged(&rig, 1)));
    rig.audit();
}

#[test]
fn m_18_what_a_vm_was_populated_with_is_what_it_finds_behind_its_first_tag_access() {
    for (name, features) in MACHINES {
        let rig = rig(features);
        let vm = TestVm::with_flags(&rig, VmFlags::PROTECTED | MtePolicy::Lazy.flags(), 1, 32);
        vm.topup(8);
        let page = untagged(&rig, 0);
        rig.fill(page, SECRET);
        rig.ok(HostFn::VmPopulate, &[vm.handle, AT >> 12, page, 0]);
        rig.ok(HostFn::VmFinalise, &[vm.handle]);
        rig.world.sim.program(PC, &[Instr::GetTag { rt: 3, ipa: AT }, load(2, AT + 0x10), DONE]);
        vm.load(0, 0);
        assert_eq!(vm.run(), tag_access(AT), "{name}");
        assert_eq!(upgrade(&vm, AT, rig.pages(1)), Ok(page), "{name}");
        assert_eq!(vm.run().reason, Reason::Wfx, "{name}");
        assert_eq!(rig.loaded_registers(0)[2..4], [SECRET, 0], "{name}");
        vm.put(0);
        vm.destroy();
    }
}

/// What a host does, and what comes of it.
#[derive(PartialEq, Eq, Debug)]
enum Step {
    Call(HostFn, Vec<u64>, Result<[u64; 2], (Errno, [u64; 2])>),
    Run(Exit),
}

/// A guest's memory, and how many pages are whose.
#[derive(PartialEq, Eq, Debug)]
struct End {
    contents: Vec<Vec<u64>>,
    tags: Vec<Vec<u8>>,
    pages: Vec<(Figure, u64)>,
}

/// The frames of a guest that stores to each page, sets a tag of it, and loads what it stored.
const FRAMES: [u64; 4] = [AT, AT + 0x1000, AT + 0x2000, AT + 0x3000];

fn tagging() -> Vec<Instr> {
    let mut code = vec![Instr::Mov { rt: 1, value: SECRET }];
    for (tag, ipa) in (1..).zip(FRAMES) {
        code.extend([store(1, ipa + 8), Instr::SetTag { ipa: ipa + 0x30, tag }, load(2, ipa + 8)]);
    }
    code.push(DONE);
    code
}

/// Plays a host on a machine with `features`: that of `script`, call by call, or one that answers each exit and whose script
/// this gives.
fn play(features: CpuFeatures, script: Option<&[Step]>) -> (Vec<Step>, End) {
    let rig = rig(features);
    let vm = lazy(&rig);
    rig.world.sim.program(PC, &tagging());
    vm.load(0, 0);
    let mut done = Vec::new();
    let call = |function, args: &[u64]| Step::Call(function, args.to_vec(), rig.call(function, args));
    if let Some(script) = script {
        done.extend(script.iter().map(|step| match step {
            Step::Call(function, args, _) => call(*function, args),
            Step::Run(_) => Step::Run(vm.run()),
        }));
    } else {
        for (n, ipa) in (0..).zip(FRAMES) {
            let prot = if n % 2 == 0 { RWX } else { RWX_NO_TAG };
            done.push(call(HostFn::GuestDonate, &[vm.handle, ipa >> 12, untagged(&rig, n), 0, prot]));
        }
        loop {
            let exit = vm.run();
            done.push(Step::Run(exit));
            if exit.reason == Reason::Wfx {
                break;
            }
            done.push(call(HostFn::MteUpgrade, &[vm.handle, exit.gpa >> 12, rig.pages(1)]));
        }
    }
    vm.put(0);
    // Where the guest's pages are in the end: what the upgrades were given.
    let given = done.iter().filter_map(|step| match step {
        Step::Call(HostFn::MteUpgrade, args, Ok(_)) => args.get(2).copied(),
        _ => None,
    });
    let now: Vec<u64> = given.collect();
    assert_eq!(now.len(), FRAMES.len());
    let words = |page: &u64| (0..512).map(|n| rig.word(*page, n)).collect();
    let contents = now.iter().map(words).collect();
    let tags = now.iter().map(|page| tags(&rig, *page)).collect();
    let owned = rig.audit().ownership().filter(|(figure, _)| *figure != Figure::Owners).collect();
    (done, End { contents, tags, pages: owned })
}

#[test]
fn m_21_the_same_script_succeeds_on_precise_and_conservative_machines_with_equal_memory() {
    let machines = MACHINES.map(|(_, features)| features);
    for recorder in machines {
        let (script, end) = play(recorder, None);
        assert_eq!(end.contents[3][1], SECRET);
        assert_eq!(end.tags[3][3], 4);
        for player in machines {
            // Every answer and every exit too.
            let (replayed, memory) = play(player, Some(&script));
            assert_eq!(script, replayed);
            assert_eq!(end, memory);
        }
    }
}

/// A store to the old page after its words were copied would be lost.
#[test]
fn m_11_no_vcpu_reaches_the_old_page_once_its_contents_are_copied() {
    // Where a page waits for its tags, no entry leads to it anyway.
    for (name, features) in MACHINES.into_iter().filter(|(_, features)| features.mte_perm) {
        let rig = rig(features);
        let vm = lazy(&rig);
        let (old, new) = (untagged(&rig, 0), rig.filled(SECRET));
        donate(&vm, AT, old, RWX);
        rig.world.sim.clear_trace();
        assert_eq!(upgrade(&vm, AT, new), Ok(old), "{name}");
        let trace: Vec<Op> = rig.world.sim.trace().into_iter().map(|record| record.op).collect();
        let leads_to = |word: u64, page: u64| word & 1 == 1 && word << 16 >> 28 == page;
        let copied = trace.iter().position(|op| *op == Op::Copy(old, new)).expect("it is copied");
        let (before, after) = trace.split_at(copied);
        let gone = before
            .iter()
            .rposition(|op| matches!(*op, Op::Write(.., was, now) if leads_to(was, old) && now & 1 == 0));
        let gone = gone.unwrap_or_else(|| panic!("{name}: the guest still has the old page"));
        let Op::Write(table, index, ..) = before[gone] else { panic!("{name}: a write") };
        let forgotten = before[gone..].iter().rposition(|op| matches!(op, Op::Tlbi(_, Some(_))));
        let forgotten = gone + forgotten.unwrap_or_else(|| panic!("{name}: a CPU may remember the old page"));
        assert!(before[forgotten..].iter().any(|op| matches!(op, Op::Dsb(_))), "{name}: for how long?");
        let comes = |op: &Op| matches!(*op, Op::Write(t, i, _, now) if (t, i) == (table, index) && leads_to(now, new));
        assert!(after.iter().any(comes), "{name}: then the guest has the new page");
        vm.destroy();
    }
}
