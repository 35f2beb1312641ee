//! `Shares`: one page is shared with the host and taken back, over and over.
#![forbid(unsafe_code)]

use super::{Env, Outcome};
use crate::protocol::{SCRATCH, SECRET};
use abi::{guest, smccc};

pub(super) fn run(env: &Env<'_>) -> Outcome {
    env.cpu.store(SCRATCH, SECRET);
    for _ in 0..env.start.argument {
        for call in [guest::MEM_SHARE, guest::MEM_UNSHARE] {
            let done = env.memory_call(call, SCRATCH, 1)?;
            env.require(done == (smccc::SUCCESS, 1), done.0)?;
        }
    }
    env.equal(env.cpu.load(SCRATCH), SECRET)
}
