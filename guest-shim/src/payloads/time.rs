//! `Time`: what a call costs that EL2 answers, by the guest's own clock.
#![forbid(unsafe_code)]

use super::{Env, Outcome};
use crate::cpu::CallRun;
use crate::protocol::time::{self, COUNT, LOOP, MEMINFO, RANGE, SHARE, UNSHARE};
use crate::protocol::{DEVICES, SCRATCH, word};
use abi::guest::{GUARD_MAP, GUARD_UNMAP, HYP_MEMINFO, MEM_SHARE, MEM_UNSHARE, RGUARD_MAP, RGUARD_UNMAP};

pub(super) fn run(env: &Env<'_>) -> Outcome {
    let many = if env.start.argument == 0 { RANGE } else { env.start.argument.into() };
    for n in 0..COUNT {
        env.cpu.store(SCRATCH + 4096 * n, n);
    }
    // A mark that stays keeps its table, and one at the range's first page brings the table there.
    let [pages, range] = DEVICES;
    for page in [pages + 4096 * COUNT, range] {
        env.equal(env.call(GUARD_MAP, [page, 0, 0])?[0], 0)?;
    }
    let each = |id, arg1, arg2| CallRun { id, arg1, stride: 4096, arg2, count: COUNT };
    let once = |id, arg1, arg2| CallRun { id, arg1, stride: 0, arg2, count: 1 };
    let same = |id| CallRun { id, arg1: 0, stride: 0, arg2: 0, count: COUNT };
    for (result, run) in [
        (LOOP, same(0)),
        (MEMINFO, same(HYP_MEMINFO)),
        (SHARE, each(MEM_SHARE, SCRATCH, 1)),
        (UNSHARE, each(MEM_UNSHARE, SCRATCH, 1)),
        (time::GUARD_MAP, each(GUARD_MAP, pages, 0)),
        (time::GUARD_UNMAP, each(GUARD_UNMAP, pages, 0)),
        (time::RGUARD_MAP, once(RGUARD_MAP, range, many)),
        (time::RGUARD_UNMAP, once(RGUARD_UNMAP, range, many)),
    ] {
        let (ticks, status) = env.cpu.time_calls(&run);
        if run.id != 0 && run.id != HYP_MEMINFO {
            env.equal(status, 0)?;
        }
        env.report(word::RESULTS + result, ticks);
    }
    Ok(())
}
