//! `Hole`: memory that the host did not give, and memory that it takes away.
#![forbid(unsafe_code)]

use super::{Env, Outcome, guard};
use crate::protocol::hole::{LEFT, TAKE, TAKEN};
use crate::protocol::{SCRATCH, SECRET, UART, word};
use abi::guest::GUARD_MAP;
use abi::smccc;

pub(super) fn run(env: &Env<'_>) -> Outcome {
    guard::enrol(env)?;
    env.equal(env.call(GUARD_MAP, [UART, 0, 0])?[0], smccc::SUCCESS)?;
    env.doorbell(LEFT)?;
    env.cpu.store(SCRATCH, SECRET);
    // The store went to memory and nowhere else: nobody could answer it.
    env.equal(env.cpu.load(SCRATCH), SECRET)?;
    env.cpu.store(TAKEN, SECRET);
    env.doorbell(TAKE)?;
    env.report(word::RESULTS, env.cpu.load(TAKEN));
    Ok(())
}
