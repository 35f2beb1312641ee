//! `Honest`: writes its memory, reads it back, and says how long that took.
#![forbid(unsafe_code)]

use super::{Env, Outcome};
use crate::protocol::{SCRATCH, honest, pattern, word};

const PAGES: u64 = 16;
/// Bytes from one word that is used to the next.
const STRIDE: u64 = 64;

pub(super) fn run(env: &Env<'_>) -> Outcome {
    let places = || (SCRATCH..SCRATCH + PAGES * 4096).step_by(usize::try_from(STRIDE).unwrap_or(1));
    let mut longest = 0;
    for round in 1.. {
        let (pauses, began) = (env.mail(honest::PAUSES), env.cpu.ticks());
        for at in places() {
            env.cpu.store(at, pattern(at ^ round));
        }
        for at in places() {
            env.equal(env.cpu.load(at), pattern(at ^ round))?;
        }
        let took = env.cpu.ticks().wrapping_sub(began);
        // The first round waits for its pages.
        if round > 1 && env.mail(honest::PAUSES) == pauses && took > longest {
            longest = took;
            env.report(honest::LONGEST, longest);
        }
        env.report(honest::ROUNDS, round);
        if env.mail(word::ANSWER) != 0 {
            break;
        }
    }
    Ok(())
}
