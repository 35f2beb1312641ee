//! What a guest asks of EL2 on HVC: discovery, sharing in place, replay.

use crate::rig::{BITS, DONE, Exit, PC, Rig, SECRET, TestVm, mem_fault, plain};
use abi::HostFn;
use abi::exit::{ExitFlags, Reason, Resp};
use abi::{guest, smccc};
use testkit::features;
use testkit::guest::Instr;

pub(crate) const OUT: u64 = 0x10_0000;

/// A program that makes `calls` and stores x0 and x1 of each, one after the other, from [`OUT`] on.
pub(crate) fn program(calls: &[(u64, [u64; 3])]) -> Vec<Instr> {
    let mut code = Vec::new();
    for (n, (id, args)) in (0..).zip(calls) {
        code.push(Instr::Mov { rt: 0, value: *id });
        code.extend((1..).zip(args).map(|(rt, &value)| Instr::Mov { rt, value }));
        code.push(Instr::Hvc { imm: 0 });
        code.push(Instr::Store { rt: 0, ipa: OUT + 16 * n, log2: 3 });
        code.push(Instr::Store { rt: 1, ipa: OUT + 16 * n + 8, log2: 3 });
    }
    code.push(DONE);
    code
}

/// A protected VM that runs [`program`], with a page for its results.
struct Caller<'a> {
    vm: TestVm<'a>,
    out: u64,
}

impl<'a> Caller<'a> {
    fn new(rig: &'a Rig, calls: &[(u64, [u64; 3])]) -> Self {
        let vm = TestVm::active(rig, true, 1);
        let out = vm.give(OUT);
        rig.world.sim.program(PC, &program(calls));
        vm.load(0, 0);
        Self { vm, out }
    }

    /// x0 and x1 of call `n`.
    fn result(&self, n: usize) -> [u64; 2] {
        [self.vm.rig.word(self.out, 2 * n), self.vm.rig.word(self.out, 2 * n + 1)]
    }
}

const SHARE: u64 = guest::MEM_SHARE as u64;
const UNSHARE: u64 = guest::MEM_UNSHARE as u64;
const RELINQUISH: u64 = guest::MEM_RELINQUISH as u64;
const INVALID: [u64; 2] = [smccc::INVALID_PARAMETER, 0];

#[test]
fn the_discovery_of_linux_finds_what_is_there() {
    let rig = Rig::new();
    let ids = [
        (smccc::VERSION, 0, 0x1_0002),
        (smccc::ARCH_FEATURES, smccc::ARCH_WORKAROUND_1, 0),
        (smccc::ARCH_FEATURES, smccc::ARCH_WORKAROUND_2, u64::MAX),
        (smccc::ARCH_WORKAROUND_1, 0, 0),
        (guest::FEATURES, 0, 0b1111_1111_1101),
        (guest::HYP_MEMINFO, 0, 4096),
        (0xc600_000c, 0, u64::MAX),
        (0x0400_0000, 0, u64::MAX),
    ];
    let calls: Vec<_> = ids.iter().map(|&(id, x1, _)| (id.into(), [x1.into(), 0, 0])).collect();
    let caller = Caller::new(&rig, &calls);
    assert_eq!(caller.vm.run(), plain(Reason::Wfx), "answered at EL2");
    for (n, (id, _, x0)) in ids.iter().enumerate() {
        assert_eq!(caller.result(n)[0], *x0, "{id:#x}");
    }
    assert_eq!(rig.world.sim.workarounds(), 1);
}

#[test]
fn an_hvc_with_an_immediate_and_an_smc_are_not_supported_and_keep_registers() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 1);
    let set = (0..18).map(|rt| Instr::Mov { rt, value: 0x8000_0000 + u64::from(rt) });
    let mut code: Vec<_> = set.clone().collect();
    code.extend([Instr::Hvc { imm: 1 }, DONE]);
    code.extend(set);
    code.extend([Instr::Smc, DONE]);
    rig.world.sim.program(PC, &code);
    vm.load(0, 0);
    for _ in 0..2 {
        assert_eq!(vm.run(), plain(Reason::Wfx));
        assert_eq!(vm.reg(0), u64::MAX);
        for n in 1..18 {
            assert_eq!(vm.reg(n), 0x8000_0000 + n);
        }
    }
}

#[test]
fn the_generator_answers_or_says_that_it_is_empty() {
    let rig = Rig::new();
    let id = u64::from(guest::trng::RND64);
    let caller = Caller::new(&rig, &[(id, [192, 0, 0]), (id, [64, 0, 0])]);
    rig.world.sim.set_entropy(3);
    assert_eq!(caller.vm.run(), plain(Reason::Wfx));
    assert_eq!(caller.result(0), [0, u64::MAX]);
    assert_eq!(caller.result(1), [guest::trng::NO_ENTROPY, 0]);
}

#[test]
fn a_shared_page_is_the_hosts_to_see_until_it_is_taken_back() {
    for (name, features) in features::MATRIX {
        let rig = Rig::on(features);
        let caller = Caller::new(
            &rig,
            &[
                (SHARE, [0x5000, 0, 0]),
                (SHARE, [0x5000, 1, 0]),
                (UNSHARE, [0x5000, 1, 0]),
                (UNSHARE, [0x5000, 1, 0]),
            ],
        );
        let vm = &caller.vm;
        let page = vm.give(0x5000);
        let before = rig.state();
        // Stop after each call: its first result goes to a page that is not there yet.
        let code = program(&[(SHARE, [0x5000, 0, 0])]);
        rig.world.sim.program(PC, &code);
        assert_eq!(vm.run(), plain(Reason::Wfx), "{name}");
        assert_eq!(caller.result(0), [0, 1]);
        assert!(rig.host_reads(page), "{name}");
        rig.world.sim.memory().write(page, 3, 0x33);
        let again = PC + 4 * (code.len() as u64);
        rig.world.sim.program(
            again,
            &program(&[(SHARE, [0x5000, 1, 0]), (UNSHARE, [0x5000, 1, 0]), (UNSHARE, [0x5000, 1, 0])]),
        );
        assert_eq!(vm.run(), plain(Reason::Wfx));
        assert_eq!([caller.result(0), caller.result(1), caller.result(2)], [INVALID, [0, 1], INVALID]);
        assert!(!rig.host_reads(page));
        assert_eq!(rig.word(page, 3), 0x33, "contents are kept both ways");
        assert_eq!(rig.state(), before, "{name}");
    }
}

#[test]
fn a_call_on_a_page_that_is_not_there_replays_once_it_is() {
    let rig = Rig::new();
    let caller = Caller::new(&rig, &[(SHARE, [0x5000, 2, 0])]);
    let vm = &caller.vm;
    let fault = mem_fault(0x5000, ExitFlags::PRIVATE);
    assert_eq!(vm.run(), fault);
    assert_eq!(vm.reply(Resp::Done, 7), Exit { repeat: 1, ..fault }, "nothing else to say");
    vm.answer(0, Resp::Sea as u32, 0);
    assert_eq!(vm.try_run(0, 0), Err(abi::Errno::Eperm));
    vm.answer(0, Resp::Replay as u32, 0);
    vm.give(0x5000);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!(caller.result(0), [0, 1], "the second page is not there");
}

#[test]
fn a_call_on_what_is_not_the_guests_is_invalid_and_changes_nothing() {
    let rig = Rig::new();
    let limit = 1 << BITS;
    let args = [
        [0x5001, 1, 0],
        [0x5000, 1, 1],
        [limit, 1, 0],
        [limit - 0x1000, 1 << 52, 0],
        [!0xfff, 1, 0],
        [0x6000, 1, 0],
    ];
    for op in [SHARE, UNSHARE, RELINQUISH] {
        let calls: Vec<_> = args.iter().map(|a| (op, *a)).collect();
        let caller = Caller::new(&rig, &calls);
        caller.vm.give(0x5000);
        let lost = caller.vm.give(0x6000);
        rig.ok(HostFn::GuestReclaim, &[caller.vm.handle, 0x6000, 0x7000, u64::MAX]);
        assert!(rig.host_reads(lost));
        let last = caller.vm.give(limit - 0x1000);
        let before = rig.state();
        if op == RELINQUISH {
            let exit = caller.vm.run();
            assert_eq!(exit, Exit { base: limit - 0x1000, top: limit, ..plain(Reason::Relinquished) });
        }
        assert_eq!(caller.vm.run(), plain(Reason::Wfx));
        for n in [0, 1, 2, 4, 5] {
            assert_eq!(caller.result(n), INVALID, "{op:#x} {:x?}", args[n]);
        }
        match op {
            SHARE => assert_eq!(caller.result(3), [0, 1]),
            UNSHARE => assert_eq!(caller.result(3), INVALID),
            _ => assert_eq!(caller.result(3), [0, 1]),
        }
        if op == UNSHARE {
            assert_eq!(rig.state(), before);
        } else {
            assert!(rig.host_reads(last));
        }
        caller.vm.put(0);
        caller.vm.destroy();
    }
}

#[test]
fn a_page_that_is_given_up_is_the_hosts_and_empty() {
    let rig = Rig::new();
    let caller = Caller::new(&rig, &[(RELINQUISH, [0x5000, 3, 0]), (RELINQUISH, [0x5000, 3, 0])]);
    let vm = &caller.vm;
    let (first, third) = (vm.give(0x5000), vm.give(0x7000));
    rig.world.sim.memory().write(first, 9, SECRET);
    assert_eq!(vm.run(), Exit { base: 0x5000, top: 0x8000, ..plain(Reason::Relinquished) });
    for page in [first, third] {
        assert!(rig.host_reads(page));
        assert_eq!(rig.word(page, 9), 0);
    }
    assert_eq!(vm.run(), plain(Reason::Wfx), "nothing was there: no exit");
    assert_eq!([caller.result(0), caller.result(1)], [[0, 3], [0, 3]]);
}

#[test]
fn a_call_works_on_512_pages_at_most() {
    let rig = Rig::new();
    let caller = Caller::new(&rig, &[(RELINQUISH, [0x20_0000, 10_000, 0])]);
    assert_eq!(caller.vm.run(), plain(Reason::Wfx));
    assert_eq!(caller.result(0), [0, 512]);
}

#[test]
fn pages_that_do_not_follow_each_other_are_shared_and_taken_back_in_one_call() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, true, 1);
    let out = vm.give(OUT);
    let first = rig.pages(6);
    // Two that do, and two that come before them, in the other order.
    let given = [4, 5, 1, 0].map(|n| first + n);
    (5..).zip(given).for_each(|(gfn, page)| vm.give_page(gfn << 12, page));
    let mut code = program(&[(SHARE, [0x5000, 4, 0])]);
    code.extend(program(&[(UNSHARE, [0x5000, 4, 0])]));
    rig.world.sim.program(PC, &code);
    vm.load(0, 0);
    let before = rig.state();
    for shared in [true, false] {
        assert_eq!(vm.run(), plain(Reason::Wfx));
        assert_eq!([rig.word(out, 0), rig.word(out, 1)], [0, 4]);
        for page in first..first + 6 {
            let seen = rig.host_reads(page);
            assert_eq!(seen, !given.contains(&page) || shared, "page {}", page - first);
        }
    }
    assert_eq!(rig.state(), before);
    vm.put(0);
    vm.destroy();
}

/// G-10's rule for MEM_SHARE.
#[test]
fn a_share_of_part_of_a_block_asks_for_the_table_and_replays() {
    let rig = Rig::new();
    let vm = TestVm::new(&rig, true, 1);
    let out = vm.give(OUT);
    let block = rig.pages(512);
    rig.ok(HostFn::GuestDonate, &[vm.handle, 0x4000_0000 >> 12, block, 9, 7]);
    // Use up what is in the cache: a table for each 2 MiB.
    let mut gfn = (0x4000_0000 >> 12) + 512;
    while rig.call(HostFn::GuestDonate, &[vm.handle, gfn, rig.pages(1), 0, 7]).is_ok() {
        gfn += 512;
    }
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
    rig.world.sim.program(PC, &program(&[(SHARE, [0x4000_3000, 1, 0])]));
    vm.load(0, 0);
    let before = rig.state();
    let need = Exit { need_pages: 1, ..plain(Reason::NeedMem) };
    assert_eq!(vm.run(), need);
    assert_eq!(vm.run(), need, "a host that gives nothing gets no further");
    assert_eq!(rig.state(), before);
    vm.topup(1);
    assert_eq!(vm.run(), plain(Reason::Wfx));
    assert_eq!([rig.word(out, 0), rig.word(out, 1)], [0, 1]);
    assert!(rig.host_reads(block + 3));
    assert!(!rig.host_reads(block + 2) && !rig.host_reads(block + 4));
    vm.put(0);
    vm.destroy();
}
