//! `Smp`: vCPUs that start each other by PSCI, count together, and take interrupts.
#![forbid(unsafe_code)]

use super::{Env, Outcome};
use crate::protocol::{BEYOND, SCRATCH, word};
use abi::{psci, vm};

/// Increments of each vCPU.
const ROUNDS: u64 = 500;
const SGI: u64 = 3;
/// What CPU_ON passes on to vCPU `n`.
const fn context(n: u64) -> u64 {
    0xc0de_0000 + n
}

const ARRIVED: u64 = 1;
const WRONG_CONTEXT: u64 = 2;
const TOOK_SGI: u64 = 3;

/// What CPU_ON calls a vCPU.
fn affinity(n: u64) -> u64 {
    u8::try_from(n).map_or(u64::MAX, vm::mpidr) & 0xff_ffff
}

pub(super) fn run(env: &Env<'_>) -> Outcome {
    let vcpus = u64::from(env.start.argument);
    wrong_starts(env, vcpus)?;
    for round in 1..=2 {
        start_all(env, vcpus)?;
        wait_for(env, vcpus, ARRIVED)?;
        env.cpu.send_sgi(SGI, (1 << vcpus) - 2);
        wait_for_off(env, vcpus)?;
        for n in 1..vcpus {
            env.equal(env.mail(word::CPUS + n), TOOK_SGI)?;
        }
        env.equal(env.cpu.load(SCRATCH), round * ROUNDS * (vcpus - 1))?;
    }
    Ok(())
}

fn status(env: &Env<'_>, id: u32, args: [u64; 3]) -> Result<u64, super::Failure> {
    env.call(id, args).map(|[x0, ..]| x0)
}

fn wrong_starts(env: &Env<'_>, vcpus: u64) -> Outcome {
    let entry = env.cpu.secondary_entry();
    let on = |target, entry| status(env, psci::CPU_ON_64, [target, entry, 0]);
    env.equal(status(env, psci::VERSION, [0; 3])?, psci::VERSION_1_1)?;
    env.equal(on(0, entry)?, psci::ALREADY_ON)?;
    for nobody in [affinity(vcpus), 1 << 31 | 1, 1 << 32 | 1, 0x10, u64::MAX] {
        env.equal(on(nobody, entry)?, psci::INVALID_PARAMETERS)?;
    }
    for nowhere in [entry + 1, entry + 2, BEYOND, u64::MAX - 3] {
        env.equal(on(1, nowhere)?, psci::INVALID_ADDRESS)?;
    }
    for n in 1..vcpus {
        env.equal(status(env, psci::AFFINITY_INFO_64, [affinity(n), 0, 0])?, psci::AFFINITY_OFF)?;
    }
    env.equal(status(env, psci::AFFINITY_INFO_64, [0, 0, 0])?, psci::AFFINITY_ON)?;
    env.equal(status(env, psci::AFFINITY_INFO_64, [0, 4, 0])?, psci::INVALID_PARAMETERS)
}

fn start_all(env: &Env<'_>, vcpus: u64) -> Outcome {
    for n in 1..vcpus {
        env.report(word::CPUS + n, 0);
        let args = [affinity(n), env.cpu.secondary_entry(), context(n)];
        env.equal(status(env, psci::CPU_ON_64, args)?, psci::SUCCESS)?;
        // It cannot have gone off again: it waits for an SGI.
        let again = status(env, psci::CPU_ON_64, args)?;
        env.require(matches!(again, psci::ALREADY_ON | psci::ON_PENDING), again)?;
    }
    Ok(())
}

fn wait_for(env: &Env<'_>, vcpus: u64, state: u64) -> Outcome {
    for n in 1..vcpus {
        loop {
            match env.mail(word::CPUS + n) {
                0 => env.cpu.pause(),
                seen => break env.equal(seen, state)?,
            }
        }
    }
    Ok(())
}

fn wait_for_off(env: &Env<'_>, vcpus: u64) -> Outcome {
    for n in 1..vcpus {
        while status(env, psci::AFFINITY_INFO_64, [affinity(n), 0, 0])? != psci::AFFINITY_OFF {
            env.cpu.pause();
        }
    }
    Ok(())
}

pub(super) fn secondary(env: &Env<'_>, given: u64) {
    let me = env.cpu.index();
    let before = env.cpu.sgis();
    for _ in 0..ROUNDS {
        env.cpu.increment(SCRATCH);
    }
    env.cpu.enable_interrupts();
    env.report(word::CPUS + me, if given == context(me) { ARRIVED } else { WRONG_CONTEXT });
    env.cpu.wait_until(&|| env.cpu.sgis() != before);
    env.report(word::CPUS + me, TOOK_SGI);
}
