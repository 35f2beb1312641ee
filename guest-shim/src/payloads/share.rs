//! `Share`: the calls by which a protected guest lets the host see a page, and no more than that.
#![forbid(unsafe_code)]

use super::{Env, Outcome};
use crate::protocol::share::{
    GIVEN_UP, GIVEN_UP_AGAIN, PRIVATE, RANGE, SHARED, TAKE, TAKEN, UNSHARED, UNTOUCHED,
};
use crate::protocol::{ABSENT, BEYOND, IMAGE, REPLY, SCRATCH, SECRET};
use abi::guest::{HAS_RANGE, HYP_MEMINFO, MEM_RELINQUISH, MEM_SHARE, MEM_UNSHARE};
use abi::{guest, smccc};

const DONE: (u64, u64) = (smccc::SUCCESS, 1);
const REFUSED: (u64, u64) = (smccc::INVALID_PARAMETER, 0);
const CALLS: [u32; 3] = [MEM_SHARE, MEM_UNSHARE, MEM_RELINQUISH];

pub(super) fn run(env: &Env<'_>) -> Outcome {
    discover(env)?;
    one_page(env)?;
    ranges(env)?;
    malformed(env)?;
    taken(env)?;
    given_up(env)
}

/// A memory call and what it must answer.
#[track_caller]
fn expect(env: &Env<'_>, id: u32, ipa: u64, granules: u64, want: (u64, u64)) -> Outcome {
    let got = env.memory_call(id, ipa, granules)?;
    env.require(got == want, got.0 << 32 | got.1)
}

fn discover(env: &Env<'_>) -> Outcome {
    let uid = env.call(guest::VENDOR_UID, [0; 3])?;
    env.require(uid == guest::VENDOR_UID_WORDS, uid[0])?;
    let [features, ..] = env.call(guest::FEATURES, [0; 3])?;
    for id in [guest::FEATURES, HYP_MEMINFO].into_iter().chain(CALLS) {
        env.require(features & guest::feature_bit(id) != 0, features)?;
    }
    let [granule, flags, ..] = env.call(HYP_MEMINFO, [0; 3])?;
    env.equal(granule, 4096)?;
    env.equal(flags, HAS_RANGE)?;
    for args in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        env.equal(env.call(HYP_MEMINFO, args)?[0], smccc::INVALID_PARAMETER)?;
    }
    env.equal(env.call(smccc::VERSION, [0; 3])?[0], smccc::VERSION_1_2)?;
    env.equal(env.call(0xc600_003f, [0; 3])?[0], smccc::NOT_SUPPORTED)
}

fn one_page(env: &Env<'_>) -> Outcome {
    env.cpu.store(SCRATCH, SECRET);
    env.doorbell(PRIVATE)?;
    env.equal(env.cpu.load(SCRATCH), SECRET)?;
    expect(env, MEM_UNSHARE, SCRATCH, 1, REFUSED)?;
    expect(env, MEM_SHARE, SCRATCH, 1, DONE)?;
    expect(env, MEM_SHARE, SCRATCH, 1, REFUSED)?;
    expect(env, MEM_RELINQUISH, SCRATCH, 1, REFUSED)?;
    env.doorbell(SHARED)?;
    env.equal(env.cpu.load(SCRATCH), SECRET)?;
    env.equal(env.cpu.load(SCRATCH + 8), REPLY)?;
    expect(env, MEM_UNSHARE, SCRATCH, 1, DONE)?;
    expect(env, MEM_UNSHARE, SCRATCH, 1, REFUSED)?;
    env.doorbell(UNSHARED)?;
    env.equal(env.cpu.load(SCRATCH), SECRET)?;
    env.equal(env.cpu.load(SCRATCH + 8), REPLY)
}

/// The leading pages of a range are done; the rest is for another call.
fn ranges(env: &Env<'_>) -> Outcome {
    const PAGE: u64 = 4096;
    for n in 0..4 {
        env.cpu.store(RANGE + n * PAGE, n);
    }
    expect(env, MEM_SHARE, RANGE, 4, (smccc::SUCCESS, 4))?;
    expect(env, MEM_UNSHARE, RANGE + PAGE, 2, (smccc::SUCCESS, 2))?;
    // Pages 0 and 3 are shared, 1 and 2 are not.
    expect(env, MEM_UNSHARE, RANGE, 4, DONE)?;
    expect(env, MEM_SHARE, RANGE, 4, (smccc::SUCCESS, 3))?;
    expect(env, MEM_UNSHARE, RANGE, 4, (smccc::SUCCESS, 4))?;
    for n in 0..4 {
        env.equal(env.cpu.load(RANGE + n * PAGE), n)?;
    }
    // A page that is not there comes by way of the host, and is zero.
    expect(env, MEM_SHARE, UNTOUCHED, 1, DONE)?;
    env.equal(env.cpu.load(UNTOUCHED), 0)?;
    expect(env, MEM_UNSHARE, UNTOUCHED, 1, DONE)
}

fn malformed(env: &Env<'_>) -> Outcome {
    for id in CALLS {
        for ipa in [SCRATCH + 1, SCRATCH + 0xfff, SCRATCH + 8, BEYOND, BEYOND - 1, u64::MAX, u64::MAX - 4095]
        {
            expect(env, id, ipa, 1, REFUSED)?;
        }
        let [x0, x1, ..] = env.call(id, [SCRATCH, 1, 1])?;
        env.require((x0, x1) == REFUSED, x0)?;
    }
    // Nothing is there, and nothing to unshare.
    expect(env, MEM_UNSHARE, ABSENT, 1, REFUSED)?;
    // The guest's own code stays where it is whatever it asks: it can share it, and take it back.
    expect(env, MEM_SHARE, IMAGE, 1, DONE)?;
    expect(env, MEM_UNSHARE, IMAGE, 1, DONE)
}

/// A page that the host took is lost to every call.
fn taken(env: &Env<'_>) -> Outcome {
    env.cpu.store(TAKEN, SECRET);
    env.doorbell(TAKE)?;
    for id in CALLS {
        expect(env, id, TAKEN, 1, REFUSED)?;
    }
    Ok(())
}

fn given_up(env: &Env<'_>) -> Outcome {
    env.cpu.store(GIVEN_UP, SECRET);
    expect(env, MEM_RELINQUISH, GIVEN_UP, 1, DONE)?;
    // The host gives another page when it is asked.
    env.equal(env.cpu.load(GIVEN_UP), 0)?;
    env.doorbell(GIVEN_UP_AGAIN)
}
