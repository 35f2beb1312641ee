//! `Time`: what a call costs that EL2 answers, by the guest's own clock.
#![forbid(unsafe_code)]

use super::{Env, Outcome};
use crate::cpu::CallRun;
use crate::protocol::time::{COUNT, LOOP, MEMINFO, SHARE, UNSHARE};
use crate::protocol::{SCRATCH, word};
use abi::guest::{HYP_MEMINFO, MEM_SHARE, MEM_UNSHARE};

pub(super) fn run(env: &Env<'_>) -> Outcome {
    for n in 0..COUNT {
        env.cpu.store(SCRATCH + 4096 * n, n);
    }
    for (result, id, arg1, stride) in [
        (LOOP, 0, 0, 0),
        (MEMINFO, HYP_MEMINFO, 0, 0),
        (SHARE, MEM_SHARE, SCRATCH, 4096),
        (UNSHARE, MEM_UNSHARE, SCRATCH, 4096),
    ] {
        let (ticks, status) = env.cpu.time_calls(&CallRun { id, arg1, stride, count: COUNT });
        if id != 0 && id != HYP_MEMINFO {
            env.equal(status, 0)?;
        }
        env.report(word::RESULTS + result, ticks);
    }
    Ok(())
}
