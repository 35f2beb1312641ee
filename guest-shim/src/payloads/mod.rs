//! What a guest can be told to do, and how it says what it saw.
#![forbid(unsafe_code)]

mod exits;
mod fp;
pub mod guard;
mod hello;
mod hole;
mod honest;
mod hostile;
mod instruction;
mod keys;
mod memory;
mod realm;
pub mod registers;
mod share;
mod shares;
mod smp;
pub mod system;
mod tags;
mod time;
mod timer;
pub mod traps;

use crate::cpu::{Cpu, Regs};
use crate::protocol::realm::CALL;
use crate::protocol::{
    ABSENT, BEYOND, BLOCK, CACHED, FAILED, IMAGE, MAILBOX, PASSED, Payload, SCRATCH, SECRET, SHARED, Start,
    UART, VmKind, word,
};
use abi::{guest, psci, rsi, smccc};
use core::panic::Location;

/// A check that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    line: u32,
    detail: u64,
}

/// What a payload comes to.
pub type Outcome = Result<(), Failure>;

/// A vCPU with something to do.
#[derive(Clone, Copy, Debug)]
pub struct Env<'a> {
    cpu: &'a dyn Cpu,
    start: Start,
}

/// A value for register `n` that nobody has a reason to write.
const fn filler(n: u64) -> u64 {
    0x6e57_0000_0000_0000 | n
}

impl<'a> Env<'a> {
    /// `cpu` with the task that x0 named.
    #[must_use]
    pub const fn new(cpu: &'a dyn Cpu, start: Start) -> Self {
        Self { cpu, start }
    }

    /// Fails unless `got` is `want`.
    #[track_caller]
    fn equal(&self, got: u64, want: u64) -> Outcome {
        self.require(got == want, got)
    }

    /// Fails unless `held`.
    #[track_caller]
    fn require(&self, held: bool, detail: u64) -> Outcome {
        if held { Ok(()) } else { Err(Failure { line: Location::caller().line(), detail }) }
    }

    /// Calls EL2 as this kind of VM does; fails if a register changes that a call leaves alone.
    #[track_caller]
    fn call(&self, id: u32, args: [u64; 3]) -> Result<[u64; 4], Failure> {
        let [x1, x2, x3] = args;
        self.call4(id, [x1, x2, x3, filler(4)])
    }

    /// The same with one more argument.
    #[track_caller]
    fn call4(&self, id: u32, args: [u64; 4]) -> Result<[u64; 4], Failure> {
        let [x1, x2, x3, x4] = args;
        let mut before: Regs = [u64::from(id), x1, x2, x3, x4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (n, reg) in (0..).zip(&mut before).skip(5) {
            *reg = filler(n);
        }
        let after = match self.start.kind {
            VmKind::Plain | VmKind::Protected => self.cpu.hvc(&before),
            VmKind::Realm => self.cpu.smc(&before),
        };
        let changed = before.iter().zip(&after).skip(4).find(|(b, a)| b != a);
        self.require(changed.is_none(), changed.map_or(0, |(_, a)| *a))?;
        let [x0, x1, x2, x3, ..] = after;
        Ok([x0, x1, x2, x3])
    }

    /// One of the memory calls: status and granules done.
    #[track_caller]
    fn memory_call(&self, id: u32, ipa: u64, granules: u64) -> Result<(u64, u64), Failure> {
        let [x0, x1, ..] = self.call(id, [ipa, granules, 0])?;
        Ok((x0, x1))
    }

    /// Where the host sees what is written.
    const fn mailbox(&self) -> u64 {
        MAILBOX + self.start.kind.shared()
    }

    /// Sets a word of the mailbox.
    fn report(&self, word: u64, value: u64) {
        self.cpu.store(self.mailbox() + 8 * word, value);
    }

    /// A word of the mailbox.
    fn mail(&self, word: u64) -> u64 {
        self.cpu.load(self.mailbox() + 8 * word)
    }

    /// Lets the host look at the mailbox and come back.
    #[track_caller]
    fn doorbell(&self, stage: u64) -> Outcome {
        self.report(word::STAGE, stage);
        let [x0, ..] = self.call(psci::CPU_SUSPEND_64, [0; 3])?;
        self.equal(x0, psci::SUCCESS)
    }
}

/// vCPU 0: does what it was told, reports, and turns the VM off.
pub fn run(env: &Env<'_>) -> Outcome {
    match env.start.kind {
        VmKind::Plain => {}
        VmKind::Protected => {
            let done = env.memory_call(guest::MEM_SHARE, MAILBOX, 1)?;
            env.require(done == (smccc::SUCCESS, 1), done.0)?;
        }
        VmKind::Realm => realm::give_up(env, MAILBOX)?,
    }
    let outcome = payload(env);
    match outcome {
        Ok(()) => env.report(word::OUTCOME, PASSED),
        Err(Failure { line, detail }) => {
            env.report(word::DETAIL, detail);
            env.report(word::OUTCOME, FAILED | u64::from(line));
        }
    }
    env.call(psci::SYSTEM_OFF, [0; 3]).map(drop)
}

fn payload(env: &Env<'_>) -> Outcome {
    match env.start.payload {
        Payload::Idle => env.cpu.idle(),
        Payload::Hello => hello::run(env),
        Payload::Memory => memory::run(env),
        Payload::Share => share::run(env),
        Payload::Smp => smp::run(env),
        Payload::Timer => timer::run(env),
        Payload::Fp => fp::run(env),
        Payload::Traps => traps::run(env),
        Payload::Touch => env.cpu.touch_for_ever(SCRATCH, u64::from(env.start.argument.max(1)) << 12),
        Payload::Load => {
            guard::mark_uart(env)?;
            env.cpu.load_for_ever(UART)
        }
        Payload::Store => {
            guard::mark_uart(env)?;
            env.cpu.store_for_ever(UART)
        }
        Payload::Guard => guard::run(env),
        Payload::Hole => hole::run(env),
        Payload::Realm => realm::run(env),
        Payload::Measured => realm::report_measurement(env, 0, word::RESULTS),
        Payload::Claim => env.cpu.claim_for_ever(rsi::IPA_STATE_SET, ABSENT, ABSENT + BLOCK),
        // What else is in the registers is no argument of this call.
        Payload::CallHost => env.cpu.claim_for_ever(rsi::HOST_CALL, CALL, 0),
        Payload::Keys => keys::run(env),
        Payload::KeysIdle => keys::idle(env),
        Payload::Tags => tags::run(env),
        Payload::TagPages => tags::pages(env),
        Payload::TagStores => tags::stores(env),
        Payload::Registers => registers::run_chunks(env),
        Payload::Hostile => hostile::run(env),
        Payload::Honest => honest::run(env),
        Payload::Shares => shares::run(env),
        Payload::Time => time::run(env),
        Payload::Aarch32 => env.cpu.enter_aarch32(),
        Payload::Secret => {
            env.cpu.store(SCRATCH, SECRET);
            env.doorbell(1)?;
            env.cpu.idle_with(SECRET)
        }
        Payload::Exits => exits::run(env),
        Payload::Reset => env.call(psci::SYSTEM_RESET, [0; 3]).map(drop),
    }
}

/// Another vCPU, started with `context`.
pub fn secondary(env: &Env<'_>, context: u64) -> Outcome {
    match env.start.payload {
        Payload::Smp => smp::secondary(env, context),
        Payload::Realm => realm::secondary(env),
        Payload::TagStores => tags::store_loop(env),
        Payload::Hostile => hostile::secondary(env, context),
        _ => {}
    }
    env.call(psci::CPU_OFF, [0; 3]).map(drop)
}

const _: () = assert!(IMAGE < MAILBOX && MAILBOX < SCRATCH && SCRATCH < ABSENT && ABSENT < SHARED);
const _: () = assert!(SHARED < BEYOND && BEYOND < CACHED);
