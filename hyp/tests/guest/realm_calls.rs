//! What a realm asks for in memory of its own, and P-17: any registers in any of its calls.

use crate::realm::{BLOCK, DEVICE, RAM_END, Realm, SET, SHARED, mov, private};
use crate::rig::{BITS, DONE, Exit, PC, Rig, SECRET, plain};
use abi::Errno::Eperm;
use abi::exit::{Reason, Resp, word};
use abi::vm::NO_PAGE;
use abi::{HostFn, rsi};
use testkit::features::{CORTEX_A72, MAX};
use testkit::guest::Instr;

const CONFIG: u64 = rsi::REALM_CONFIG as u64;
const HOST_CALL: u64 = rsi::HOST_CALL as u64;

/// The page says what the VM is, whatever was in it and wherever it stands: in an entry of its own or in a block.
#[test]
fn a_realm_reads_what_it_is() {
    for features in [MAX, CORTEX_A72] {
        let rig = Rig::on(features);
        let realm = Realm::new(&rig, 1);
        let page = realm.vm.give(0x5000);
        let block = rig.pages(512);
        rig.ok(HostFn::GuestDonate, &[realm.handle(), BLOCK >> 12, block, 9, 7]);
        for (ipa, page) in [(0x5000, page), (BLOCK, block), (BLOCK + 0x3000, block + 3)] {
            (0..512).for_each(|index| rig.world.sim.memory().write(page, index, SECRET));
            assert_eq!(realm.smc(CONFIG, [ipa, 0, 0, 0]), plain(Reason::Wfx));
            assert_eq!(realm.x(0), [rsi::SUCCESS, ipa, 0]);
            let found: Vec<u64> = (0..512).map(|index| rig.word(page, index)).collect();
            assert_eq!(found[..2], [BITS, rsi::SHA_256], "width and algorithm");
            assert_eq!(found[2..], [0; 510]);
        }
        assert!((0..512).all(|index| rig.word(block + 1, index) == 0), "no other page is written");
        rig.audit();
    }
}

#[test]
fn p_26_what_a_realm_is_waits_for_the_page_it_goes_to() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    // Memory without a page: the host may give one, and the call is made again.
    assert_eq!(realm.smc(CONFIG, [0x5000, 0, 0, 0]), private(0x5000));
    assert_eq!(realm.vm.reply(Resp::Done, 0), Exit { repeat: 1, ..private(0x5000) });
    realm.vm.answer(0, Resp::Sea as u32, 0);
    assert_eq!(realm.vm.try_run(0, 0), Err(Eperm), "nor is it the host's to say that there is none");
    realm.vm.answer(0, Resp::Replay as u32, 0);
    let page = realm.vm.give(0x5000);
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(realm.x(0)[0], rsi::SUCCESS);
    assert_eq!((rig.word(page, 0), rig.word(page, 1), rig.word(page, 2)), (BITS, rsi::SHA_256, 0));
}

#[test]
fn what_a_realm_is_goes_to_its_own_memory_and_nowhere_else() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    realm.vm.give(0x5000);
    let chunk = rig.ok(HostFn::GuestReclaim, &[realm.handle(), 0x5000, 0x6000, NO_PAGE]);
    assert_eq!((chunk, realm.state(0x5000)), (0x6000, rsi::DESTROYED));
    let shown = rig.filled(SECRET);
    realm.map(DEVICE + SHARED, shown, 1);
    let nowhere = [0x5000, RAM_END, DEVICE, DEVICE + SHARED, 0x6008, 1, SHARED, 1 << BITS, !0xfff, u64::MAX];
    for (id, ipa) in [CONFIG, HOST_CALL].into_iter().flat_map(|id| nowhere.map(|ipa| (id, ipa))) {
        assert_eq!(realm.smc(id, [ipa, 0, 0, 0]), plain(Reason::Wfx), "{ipa:#x} is no exit");
        assert_eq!(realm.x(0), [rsi::ERROR_INPUT, ipa, 0], "{ipa:#x}");
    }
    assert!((0..512).all(|index| rig.word(shown, index) == SECRET), "the host's page is as it was");
}

/// The exit of a HOST_CALL.
fn host_call(imm: u32) -> Exit {
    Exit { want: imm, ..plain(Reason::HostCall) }
}

/// Registers of a HOST_CALL in the exit record of vCPU 0.
fn registers(realm: &Realm<'_>) -> Vec<u64> {
    (0..31).map(|n| realm.rig().word(realm.vm.record(0), word::GPR + n)).collect()
}

/// The host answers with registers `base`, `base` + 1 and so on.
fn answer_host_call(realm: &Realm<'_>, base: u64) {
    let memory = realm.rig().world.sim.memory();
    (0..31).for_each(|n| memory.write(realm.vm.record(0), word::GPR + n, base + n as u64));
}

/// The guest has a page at 0x5000, with a structure at 0x5100: an immediate under rubbish, and registers `base` on.
fn with_structure(realm: &Realm<'_>, page: u64, base: u64) {
    let memory = realm.rig().world.sim.memory();
    (0..512).for_each(|index| memory.write(page, index, SECRET));
    memory.write(page, 32, SECRET << 32 | 0x1_0000 | 0xbeef);
    (0..31).for_each(|n| memory.write(page, 33 + n, base + n as u64));
}

#[test]
fn p_26_a_host_call_carries_registers_both_ways_and_nothing_else() {
    for features in [MAX, CORTEX_A72] {
        let rig = Rig::on(features);
        let realm = Realm::new(&rig, 1);
        assert_eq!(realm.smc(HOST_CALL, [0x5100, 7, 7, 7]), private(0x5000), "a page comes first");
        let page = realm.vm.give(0x5000);
        with_structure(&realm, page, 0x1000);
        rig.fill_record(&realm.vm);
        assert_eq!(realm.vm.run(), host_call(0xbeef), "the call is made again");
        assert_eq!(registers(&realm), (0x1000..0x101f).collect::<Vec<_>>());
        answer_host_call(&realm, 0x2000);
        assert_eq!(realm.vm.reply(Resp::Done, SECRET), plain(Reason::Wfx));
        assert_eq!(rig.loaded_registers(0)[..5], [rsi::SUCCESS, 0x5100, 7, 7, 7]);
        let found: Vec<u64> = (0..512).map(|index| rig.word(page, index)).collect();
        assert_eq!(found[33..64], (0x2000..0x201f).collect::<Vec<_>>());
        assert_eq!(found[32], SECRET << 32 | 0x1_0000 | 0xbeef, "the immediate is the guest's");
        assert!(found[..32].iter().chain(&found[64..]).all(|word| *word == SECRET), "so is what lies beside");
        rig.audit();
    }
}

/// Another vCPU may write the structure at the same time: what was read twice could be two things.
#[test]
fn p_26_each_word_of_a_host_call_is_read_once() {
    for features in [MAX, CORTEX_A72] {
        let rig = Rig::on(features);
        rig.judge(false);
        let realm = Realm::new(&rig, 1);
        let page = realm.vm.give(0x5000);
        with_structure(&realm, page, 0x1000);
        let before = rig.world.sim.word_reads();
        assert_eq!(realm.smc(HOST_CALL, [0x5100, 0, 0, 0]), host_call(0xbeef));
        assert_eq!(rig.world.sim.word_reads() - before, 32, "the structure");
        answer_host_call(&realm, 0x2000);
        assert_eq!(realm.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
        assert_eq!(rig.world.sim.word_reads() - before, 32, "and nothing to answer");
    }
}

/// Without forced write-back a guest can get round the cache, in which EL2 has a line of the structure.
#[test]
fn p_26_what_the_guest_writes_past_the_cache_meanwhile_stays() {
    let rig = Rig::on(CORTEX_A72);
    let realm = Realm::new(&rig, 1);
    let page = realm.vm.give(0x5000);
    with_structure(&realm, page, 0x1000);
    assert_eq!(realm.smc(HOST_CALL, [0x5100, 0, 0, 0]), host_call(0xbeef));
    let memory = rig.world.sim.memory();
    assert_eq!(memory.read_and_cache(page, 32) & 0xffff, 0xbeef, "a line is there");
    memory.write_ram(page, 32, 0x5678);
    answer_host_call(&realm, 0x2000);
    assert_eq!(realm.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    assert_eq!((memory.read_ram(page, 32), memory.read_ram(page, 33)), (0x5678, 0x2000));
}

#[test]
fn a_host_call_that_is_not_answered_is_made_again() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let page = realm.vm.give(0x5000);
    with_structure(&realm, page, 0x1000);
    assert_eq!(realm.smc(HOST_CALL, [0x5100, 0, 0, 0]), host_call(0xbeef));
    for resp in [Resp::Replay, Resp::Sea, Resp::Reject] {
        answer_host_call(&realm, 0x2000);
        assert_eq!(realm.vm.reply(resp, 0), host_call(0xbeef), "{resp:?}");
        assert_eq!(registers(&realm), (0x1000..0x101f).collect::<Vec<_>>(), "{resp:?}");
    }
    assert_eq!(realm.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    // Nothing waits for an answer any more.
    answer_host_call(&realm, 0x3000);
    realm.vm.answer(0, Resp::Done as u32, 0);
    assert_eq!(realm.go(0, &[]), plain(Reason::Wfx));
    assert_eq!(rig.word(page, 33), 0x1000);
}

#[test]
fn p_26_a_host_call_whose_page_is_gone_fails_and_writes_nothing() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 2);
    let page = realm.vm.give(0x5000);
    let becomes = |state| {
        assert_eq!(realm.smc_on(1, SET, [0x5000, 0x6000, state, 1]).reason, Reason::RipasChange);
        rig.call_on(1, HostFn::RipasApply, &[realm.handle(), 1, 0x5000, 0x6000]).unwrap();
        assert_eq!(realm.vm.try_run(1, 1), Ok(plain(Reason::Wfx)));
    };
    let given_up = || becomes(rsi::EMPTY);
    let asked_for_again = || [rsi::EMPTY, rsi::RAM].into_iter().for_each(becomes);
    let taken =
        || assert_eq!(rig.ok(HostFn::GuestReclaim, &[realm.handle(), 0x5000, 0x6000, NO_PAGE]), 0x6000);
    for gone in [&given_up as &dyn Fn(), &asked_for_again, &taken] {
        assert_eq!(realm.smc(HOST_CALL, [0x5100, 0, 0, 0]), host_call(0));
        gone();
        rig.fill(page, SECRET);
        answer_host_call(&realm, 0x2000);
        assert_eq!(realm.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
        assert_eq!(realm.x(0)[0], rsi::ERROR_INPUT);
        assert!((0..512).all(|index| rig.word(page, index) == SECRET), "nothing is written");
        becomes(rsi::RAM);
        realm.vm.give_page(0x5000, page);
    }
}

/// Register sets of P-17: 100,000, or as many as GUEST_CALL_ROUNDS says.
fn rounds() -> u64 {
    std::env::var("GUEST_CALL_ROUNDS").map_or(100_000, |rounds| rounds.parse().expect("a number of rounds"))
}

/// P-17: whatever a guest has in its registers when it calls, it gets a status that is documented.
#[test]
fn p_17_no_registers_of_a_guest_lead_anywhere_else() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let page = rig.filled(SECRET);
    let mut host_calls = 0;
    let code = PC + 0x20_0000;
    rig.world.sim.program(realm.at[0].get(), &[Instr::Jump { pc: code }]);
    rig.world.sim.program(code + 4 * 6, &[DONE, Instr::Jump { pc: code }]);
    for round in 0..rounds() {
        let near =
            [0, 0x1000, 0x5000, RAM_END, RAM_END + 0x1000, SHARED - 0x1000, SHARED, 1 << BITS, u64::MAX];
        let mut word = || match next() % 4 {
            0 => next(),
            1 => next() % 4,
            _ => near[usize::try_from(next() % 9).unwrap()],
        };
        let args = [word(), word(), word(), word()];
        let id = 0xc400_0190 + next() % 12;
        let mut program = vec![mov(0, id)];
        program.extend((1..).zip(args).map(|(rt, value)| mov(rt, value)));
        program.push(if next() % 8 == 0 { Instr::Hvc { imm: 0 } } else { Instr::Smc });
        let hvc = program[5] == Instr::Hvc { imm: 0 };
        rig.world.sim.program(code, &program);
        let mut exit = realm.vm.run();
        // The host has one page, which is the guest's for as long as the guest wants it where it is.
        if matches!(id, CONFIG | HOST_CALL) && exit.reason == Reason::MemFault {
            let given = rig.call(HostFn::GuestDonate, &[realm.handle(), args[0] >> 12, page, 0, 7]);
            if given.is_ok() {
                exit = realm.vm.run();
            }
        }
        if exit.reason == Reason::HostCall {
            assert!(id == HOST_CALL && args[0] < SHARED && args[0] & 0xff == 0, "{args:x?}");
            host_calls += 1;
            answer_host_call(&realm, next() >> 1);
            exit = realm.vm.reply(Resp::Done, next());
        }
        if exit.reason == Reason::RipasChange {
            assert!(exit.base < exit.top && exit.top <= SHARED && (exit.base | exit.top) & 0xfff == 0);
            if next() % 2 == 0 {
                let _ = realm.apply(0, exit.base, exit.top);
            }
            exit = realm.vm.reply(if next() % 4 == 0 { Resp::Reject } else { Resp::Done }, 0);
        }
        if matches!(id, CONFIG | HOST_CALL) && exit.reason == Reason::MemFault {
            // There is no page yet: the guest goes on where it is told, and the call is not made.
            assert_eq!(exit, Exit { repeat: exit.repeat, ..private(args[0] & !0xfff) });
            rig.world.sim.program(code + 4 * 5, &[Instr::Hvc { imm: 0 }]);
            exit = realm.vm.run();
            assert_eq!(realm.x(0)[0], u64::MAX);
        }
        assert_eq!(exit, plain(Reason::Wfx), "{id:#x} {args:x?}");
        let [status, ..] = realm.x(0);
        let allowed = if hvc { status == u64::MAX } else { status <= rsi::ERROR_STATE || status == u64::MAX };
        assert!(allowed, "{id:#x} {args:x?}: {status:#x}");
        if round % 100 == 0 {
            let _ = rig.state();
        }
    }
    let _ = rig.state();
    assert!(host_calls > 0, "some are good");
}
