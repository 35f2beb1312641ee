//! `Memory`: fresh pages are zero, and keep what is written to them.
#![forbid(unsafe_code)]

use super::{Env, Outcome};
use crate::protocol::{SCRATCH, pattern, word};

pub(super) fn run(env: &Env<'_>) -> Outcome {
    let words = || (0..u64::from(env.start.argument) * 512).map(|n| SCRATCH + 8 * n);
    for address in words() {
        env.equal(env.cpu.load(address), 0)?;
        env.cpu.store(address, pattern(address));
    }
    let mut sum: u64 = 0;
    for address in words() {
        let found = env.cpu.load(address);
        env.equal(found, pattern(address))?;
        sum = sum.wrapping_add(found);
    }
    env.report(word::RESULTS, sum);
    Ok(())
}
