//! `Realm`: what a Linux that knows Realms asks of EL2 when it boots, and the three things that only
//! a realm can do: share a page by giving it up, take it back, and get over the loss of one.
//!
//! docs/ipa-state.md has the calls. Nothing that comes through the shared half is believed.
#![forbid(unsafe_code)]

use super::instruction::{BR, LDP, LDR, STR};
use super::{Env, Failure, Outcome, hello};
use crate::cpu::Width;
use crate::protocol::realm::{
    CALL, CONFIG, CONTESTED, GIVER, INVERT, LOADER, PAGE, SAID_BYTES, SHARED_PAGE, TAKE, TAKEN,
};
use crate::protocol::{ABSENT, FAILED, IMAGE, IPA_BITS, RAM_END, REPLY, SECRET, SHARED, UART, pattern, word};
use abi::{guest, psci, rsi, smccc, vm};

const SIZE: u64 = 4096;
/// Tries to move a range on before the guest calls it a failure: a host may make no progress.
const TRIES: u64 = 16;

pub(super) fn run(env: &Env<'_>) -> Outcome {
    discover(env)?;
    claim_memory(env)?;
    hello::say(env)?;
    measure(env)?;
    call_the_host(env)?;
    abort_where_nothing_is(env)?;
    for round in 0..env.start.argument {
        share(env, round == 0)?;
    }
    recover(env)?;
    give_up_what_is_written(env)
}

/// vCPUs 1 and 2: one task each, and word CPUS + n says what came of it.
pub(super) fn secondary(env: &Env<'_>) {
    let me = env.cpu.index();
    let result = match me {
        // It stays in this instruction for as long as the page is lost.
        LOADER => Ok(env.cpu.load(TAKEN)),
        _ => give_up(env, CONTESTED).map(|()| 0),
    };
    env.report(word::CPUS + me, done(result));
}

/// What a vCPU that found `result` reports: 0 is kept for "not yet".
fn done(result: Result<u64, Failure>) -> u64 {
    match result {
        Ok(value) => value + 1,
        Err(Failure { line, .. }) => FAILED | u64::from(line),
    }
}

/// Sets the state of `[base, top)`; how far it got, and whether it is of use to go on.
#[track_caller]
fn set(env: &Env<'_>, [base, top]: [u64; 2], state: u64, flags: u64) -> Result<(u64, u64), Failure> {
    let [x0, at, answer, _] = env.call4(rsi::IPA_STATE_SET, [base, top, state, flags])?;
    env.equal(x0, rsi::SUCCESS)?;
    env.require(base <= at && at <= top, at)?;
    Ok((at, answer))
}

/// Sets the state of a whole range, in as many calls as it takes.
#[track_caller]
fn set_all(env: &Env<'_>, [base, top]: [u64; 2], state: u64, flags: u64) -> Outcome {
    let (mut at, mut tries) = (base, 0);
    while at < top {
        let (next, answer) = set(env, [at, top], state, flags)?;
        env.equal(answer, rsi::ACCEPT)?;
        tries = if next == at { tries + 1 } else { 0 };
        env.require(tries < TRIES, at)?;
        at = next;
    }
    Ok(())
}

/// Passes if the page at `ipa` is in `state`.
#[track_caller]
fn is(env: &Env<'_>, ipa: u64, state: u64) -> Outcome {
    let [x0, top, found, _] = env.call(rsi::IPA_STATE_GET, [ipa, ipa + SIZE, 0])?;
    env.require([x0, top, found] == [rsi::SUCCESS, ipa + SIZE, state], found)
}

/// Gives the page at `ipa` up: from now on the host's is at the same place in the shared half.
pub(super) fn give_up(env: &Env<'_>, ipa: u64) -> Outcome {
    set_all(env, [ipa, ipa + SIZE], rsi::EMPTY, rsi::CHANGE_DESTROYED)
}

/// What a kernel finds out before it uses memory that it has not been loaded to.
fn discover(env: &Env<'_>) -> Outcome {
    let status = |id, args| env.call(id, args).map(|[x0, ..]| x0);
    env.equal(status(psci::VERSION, [0; 3])?, psci::VERSION_1_1)?;
    env.equal(status(psci::FEATURES, [smccc::VERSION.into(), 0, 0])?, psci::SUCCESS)?;
    env.equal(status(smccc::VERSION, [0; 3])?, smccc::VERSION_1_2)?;
    let version = env.call(rsi::VERSION, [rsi::VERSION_1_0, 0, 0])?;
    env.require(version[..3] == [rsi::SUCCESS, rsi::VERSION_1_0, rsi::VERSION_1_0], version[1])?;
    env.equal(status(rsi::VERSION, [rsi::VERSION_1_0 + 1, 0, 0])?, rsi::ERROR_INPUT)?;
    let features = env.call(rsi::FEATURES, [0; 3])?;
    env.require(features[..2] == [rsi::SUCCESS, 0], features[1])?;
    // The page is yet to come: the call waits for it.
    env.equal(status(rsi::REALM_CONFIG, [CONFIG, 0, 0])?, rsi::SUCCESS)?;
    let want = rsi::Config { ipa_width: IPA_BITS, hash_algorithm: rsi::SHA_256 }.words();
    for (n, word) in (0..512).zip(want.into_iter().chain(core::iter::repeat(0))) {
        env.equal(env.cpu.load(CONFIG + 8 * n), word)?;
    }
    for nowhere in [CONFIG + 8, ABSENT, UART, CONFIG + SHARED] {
        env.equal(status(rsi::REALM_CONFIG, [nowhere, 0, 0])?, rsi::ERROR_INPUT)?;
    }
    // One personality: no other hypervisor answers, by either instruction.
    for id in [guest::VENDOR_UID, guest::FEATURES, guest::MEM_SHARE, guest::GUARD_INFO] {
        env.equal(status(id, [0; 3])?, smccc::NOT_SUPPORTED)?;
    }
    for id in [rsi::VERSION, psci::VERSION, smccc::VERSION, guest::VENDOR_UID] {
        let mut regs = [0; 18];
        regs[0] = u64::from(id);
        env.equal(env.cpu.hvc(&regs)[0], smccc::NOT_SUPPORTED)?;
    }
    Ok(())
}

/// All of RAM is RAM, and a device is not.
fn claim_memory(env: &Env<'_>) -> Outcome {
    // All but the mailbox, which was given up.
    let mailbox = crate::protocol::MAILBOX;
    for range in [[IMAGE, mailbox], [mailbox + SIZE, RAM_END]] {
        set_all(env, range, rsi::RAM, 0)?;
    }
    for (ipa, state) in [(IMAGE, rsi::RAM), (RAM_END - SIZE, rsi::RAM), (RAM_END, rsi::EMPTY)] {
        is(env, ipa, state)?;
    }
    for ipa in [mailbox, UART, ABSENT] {
        is(env, ipa, rsi::EMPTY)?;
    }
    // One answer for a run of pages, none for what is not private.
    let [x0, top, state, _] = env.call(rsi::IPA_STATE_GET, [UART, UART + 16 * SIZE, 0])?;
    env.require([x0, top, state] == [rsi::SUCCESS, UART + 16 * SIZE, rsi::EMPTY], top)?;
    let shared = [UART + SHARED, UART + SHARED + SIZE, 0];
    env.equal(env.call(rsi::IPA_STATE_GET, shared)?[0], rsi::ERROR_INPUT)
}

/// An SMC with these arguments; every register that comes back.
fn smc(env: &Env<'_>, id: u32, args: &[u64]) -> [u64; 18] {
    let mut regs = [0; 18];
    let words = [u64::from(id)].into_iter().chain(args.iter().copied());
    regs.iter_mut().zip(words).for_each(|(reg, word)| *reg = word);
    env.cpu.smc(&regs)
}

/// Reports measurement `index` in the eight words from `at` on.
pub(super) fn report_measurement(env: &Env<'_>, index: u64, at: u64) -> Outcome {
    let read = smc(env, rsi::MEASUREMENT_READ, &[index]);
    env.equal(read[0], rsi::SUCCESS)?;
    for (n, value) in (at..).zip(&read[1..9]) {
        env.report(n, *value);
    }
    Ok(())
}

/// Reports what it was when it began, and what it says of itself.
fn measure(env: &Env<'_>) -> Outcome {
    let call = |id: u32, args: &[u64]| smc(env, id, args);
    let said: [u64; 8] = core::array::from_fn(|n| pattern(n as u64));
    let [a, b, c, d, e, f, g, h] = said;
    let extended = call(rsi::MEASUREMENT_EXTEND, &[1, SAID_BYTES, a, b, c, d, e, f, g, h]);
    env.equal(extended[0], rsi::SUCCESS)?;
    report_measurement(env, 0, word::RESULTS)?;
    report_measurement(env, 1, word::RESULTS + 8)?;
    for (id, args) in [
        (rsi::MEASUREMENT_READ, [5, 0]),
        (rsi::MEASUREMENT_EXTEND, [0, 8]),
        (rsi::MEASUREMENT_EXTEND, [1, 65]),
    ] {
        env.equal(call(id, &args)[0], rsi::ERROR_INPUT)?;
    }
    // There is nobody who could sign a token.
    for id in [rsi::ATTESTATION_TOKEN_INIT, rsi::ATTESTATION_TOKEN_CONTINUE] {
        env.equal(call(id, &[])[0], rsi::ERROR_STATE)?;
    }
    Ok(())
}

/// Registers for the host, in a structure behind which, and before which, nothing changes.
fn call_the_host(env: &Env<'_>) -> Outcome {
    const WORDS: u64 = rsi::HOST_CALL_BYTES / 8;
    let call = |at| env.call(rsi::HOST_CALL, [at, 0, 0]).map(|[x0, ..]| x0);
    let at = CALL + rsi::HOST_CALL_BYTES;
    // The page is yet to come: the host is asked for it, and then called with zeros.
    env.equal(call(at)?, rsi::SUCCESS)?;
    for n in 0..3 * WORDS {
        env.cpu.store(CALL + 8 * n, pattern(n));
    }
    let first = pattern(WORDS) & !0xffff | u64::from(INVERT);
    env.cpu.store(at, first);
    env.equal(call(at)?, rsi::SUCCESS)?;
    for n in 0..3 * WORDS {
        let want = match n.checked_sub(WORDS) {
            Some(0) => first,
            Some(1..WORDS) => !pattern(n),
            _ => pattern(n),
        };
        env.equal(env.cpu.load(CALL + 8 * n), want)?;
    }
    for nowhere in [at + 8, at + 0x80, ABSENT, UART, CALL + SHARED] {
        env.equal(call(nowhere)?, rsi::ERROR_INPUT)?;
    }
    Ok(())
}

/// Passes if `instruction` with `x0` takes an external abort of `class` there.
#[track_caller]
fn aborts(env: &Env<'_>, instruction: u32, x0: u64, class: u64) -> Outcome {
    /// IL, EA and DFSC 0x10.
    const ABORT: u64 = 0x0200_0210;
    const WRITE: u64 = 1 << 6;
    let Some(e) = env.cpu.execute(instruction, x0).exception else { return env.require(false, x0) };
    env.equal(e.esr & !WRITE, class << 26 | ABORT)?;
    env.equal(e.far, x0)
}

const DATA: u64 = 0x25;
const FETCH: u64 = 0x21;

fn abort_where_nothing_is(env: &Env<'_>) -> Outcome {
    for instruction in [LDR, STR, LDP] {
        aborts(env, instruction, ABSENT + 8, DATA)?;
    }
    aborts(env, BR, ABSENT, FETCH)?;
    // The device is in the shared half only.
    aborts(env, LDR, UART, DATA)?;
    // Nothing in that half is ever executed, whether the host has put a page there or not.
    aborts(env, BR, env.mailbox(), FETCH)?;
    aborts(env, BR, PAGE + SHARED, FETCH)
}

/// The recipe: private, given up, seen in the other half, private again and empty.
fn share(env: &Env<'_>, thoroughly: bool) -> Outcome {
    let alias = PAGE + SHARED;
    env.equal(env.cpu.load(PAGE), 0)?;
    env.cpu.store(PAGE, SECRET);
    give_up(env, PAGE)?;
    is(env, PAGE, rsi::EMPTY)?;
    if thoroughly {
        aborts(env, LDR, PAGE, DATA)?;
        aborts(env, STR, PAGE, DATA)?;
    }
    // The first access finds no page there: the host puts one of its own, in which there is no secret.
    env.cpu.write(Width::Double, alias, REPLY);
    env.equal(env.cpu.load(alias), REPLY)?;
    env.cpu.store(alias, SECRET);
    env.doorbell(SHARED_PAGE)?;
    env.equal(env.cpu.load(alias + 8), REPLY)?;
    set_all(env, [PAGE, PAGE + SIZE], rsi::RAM, 0)?;
    is(env, PAGE, rsi::RAM)?;
    env.equal(env.cpu.load(PAGE), 0)?;
    env.equal(env.cpu.load(PAGE + 8), 0)
}

/// Starts another vCPU.
fn start(env: &Env<'_>, n: u64) -> Outcome {
    env.report(word::CPUS + n, 0);
    let target = u8::try_from(n).map_or(u64::MAX, vm::mpidr) & 0xff_ffff;
    let [x0, ..] = env.call(psci::CPU_ON_64, [target, env.cpu.secondary_entry(), 0])?;
    env.equal(x0, psci::SUCCESS)
}

/// Waits until another vCPU is done; what it found.
fn finished(env: &Env<'_>, n: u64) -> Result<u64, Failure> {
    loop {
        match env.mail(word::CPUS + n) {
            0 => env.cpu.pause(),
            word if word & FAILED == 0 => return Ok(word - 1),
            word => return env.require(false, word).map(|()| word),
        }
    }
}

/// A page is taken by force: it shows, nobody gets past it, and the guest alone ends it.
fn recover(env: &Env<'_>) -> Outcome {
    let page = [TAKEN, TAKEN + SIZE];
    env.cpu.store(TAKEN, SECRET);
    env.report(word::ANSWER, 0);
    env.doorbell(TAKE)?;
    is(env, TAKEN, rsi::DESTROYED)?;
    start(env, LOADER)?;
    while env.mail(word::ANSWER) == 0 {
        env.cpu.pause();
    }
    is(env, TAKEN, rsi::DESTROYED)?;
    // A kernel that has just begun takes no page for its own that was lost: it cannot know.
    let (at, answer) = set(env, page, rsi::RAM, 0)?;
    env.require([at, answer] == [TAKEN, rsi::REJECT], at)?;
    is(env, TAKEN, rsi::DESTROYED)?;
    env.equal(env.mail(word::CPUS + LOADER), 0)?;
    set_all(env, page, rsi::RAM, rsi::CHANGE_DESTROYED)?;
    is(env, TAKEN, rsi::RAM)?;
    // The load that waited goes on, and finds an empty page.
    env.equal(finished(env, LOADER)?, 0)?;
    env.equal(env.cpu.load(TAKEN), 0)
}

/// One vCPU writes a page until it is gone, another gives it up.
fn give_up_what_is_written(env: &Env<'_>) -> Outcome {
    env.cpu.store(CONTESTED, SECRET);
    start(env, GIVER)?;
    while env.cpu.execute(STR, CONTESTED).exception.is_none() {}
    aborts(env, STR, CONTESTED, DATA)?;
    env.equal(finished(env, GIVER)?, 0)?;
    is(env, CONTESTED, rsi::EMPTY)?;
    set_all(env, [CONTESTED, CONTESTED + SIZE], rsi::RAM, 0)?;
    env.equal(env.cpu.load(CONTESTED), 0)
}
