//! `Timer`: ticks of the virtual timer, taken as interrupts.
#![forbid(unsafe_code)]

use super::{Env, Outcome};
use crate::protocol::word;

pub(super) fn run(env: &Env<'_>) -> Outcome {
    // Two milliseconds: long enough for the host to be asked to wait.
    let period = env.cpu.frequency() / 500;
    env.cpu.enable_interrupts();
    for n in 1..=u64::from(env.start.argument) {
        let due = env.cpu.ticks() + period;
        env.cpu.set_timer(period);
        let fired = || env.cpu.timer_interrupts() >= n;
        if n % 2 == 0 {
            env.cpu.wait_until(&fired);
        }
        while !fired() {}
        let now = env.cpu.ticks();
        env.require(now >= due, due.wrapping_sub(now))?;
        env.equal(env.cpu.timer_interrupts(), n)?;
    }
    env.report(word::RESULTS, env.cpu.timer_interrupts());
    Ok(())
}
