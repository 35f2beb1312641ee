//! `Fp`: FP and SIMD registers through exits, interrupts of the host, and other guests.
#![forbid(unsafe_code)]

use super::{Env, Outcome};

const ROUNDS: u64 = 8;

pub(super) fn run(env: &Env<'_>) -> Outcome {
    for round in 0..ROUNDS {
        let seed = u64::from(env.start.argument) + round;
        env.cpu.fill_fp(seed);
        env.doorbell(round)?;
        env.require(env.cpu.fp_holds(seed), round)?;
        // Long enough for ticks of the host.
        let until = env.cpu.ticks() + env.cpu.frequency() / 200;
        while env.cpu.ticks() < until {
            env.require(env.cpu.fp_holds(seed), round)?;
        }
    }
    Ok(())
}
