//! `Keys`: pointer authentication with keys of the guest's own, through exits, interrupts of the host, and beside
//! a host and guests with other keys.
#![forbid(unsafe_code)]

use super::{Env, Failure, Outcome};
use crate::protocol::IMAGE;

const ROUNDS: u64 = 8;
/// Words of the five keys.
const WORDS: u32 = 10;
/// What is signed.
const DATA: u64 = 0x6461_7461_0000_0001;
/// ESR_EL1 of an instruction that does not exist.
const UNDEFINED: u64 = 1 << 25;

/// Instructions (Arm ARM C6.2), with x0 as the register.
mod code {
    const MRS: u32 = 0xd538_0000;
    const MSR: u32 = 0xd518_0000;
    pub(super) const READ_ISAR1: u32 = MRS | 6 << 8 | 1 << 5;
    pub(super) const READ_ISAR2: u32 = MRS | 6 << 8 | 2 << 5;
    pub(super) const READ_SCTLR: u32 = MRS | 1 << 12;
    pub(super) const WRITE_SCTLR: u32 = MSR | 1 << 12;
    /// PACGA x0, x0, x0.
    pub(super) const SIGN_DATA: u32 = 0x9ac0_3000;
    /// PACIZA x0.
    pub(super) const SIGN: u32 = 0xdac1_23e0;
    /// AUTIZA x0.
    pub(super) const AUTHENTICATE: u32 = 0xdac1_33e0;

    /// CRn 2, CRm 1 to 3: APIA, APIB, then APDA, APDB, then APGA, each Lo and Hi.
    const fn key(word: u32) -> u32 {
        2 << 12 | (1 + word / 4) << 8 | (word % 4) << 5
    }

    pub(super) const fn read_key(word: u32) -> u32 {
        MRS | key(word)
    }

    pub(super) const fn write_key(word: u32) -> u32 {
        MSR | key(word)
    }
}

impl Env<'_> {
    /// Executes an instruction that takes no exception.
    #[track_caller]
    fn execute(&self, instruction: u32, x0: u64) -> Result<u64, Failure> {
        let seen = self.cpu.execute(instruction, x0);
        self.require(seen.exception.is_none(), seen.exception.map_or(0, |e| e.esr))?;
        Ok(seen.x0)
    }

    /// True if the CPU says that it has FEAT_PAuth.
    fn has_keys(&self) -> Result<bool, Failure> {
        let (isar1, isar2) = (self.execute(code::READ_ISAR1, 0)?, self.execute(code::READ_ISAR2, 0)?);
        Ok(isar1 & 0xff00_0ff0 != 0 || isar2 & 0xff00 != 0)
    }

    /// Rings and goes on for long enough for ticks of the host, and again; `holds` all the time.
    fn hold(&self, holds: impl Fn() -> Outcome) -> Outcome {
        for round in 0..ROUNDS {
            self.doorbell(round)?;
            let until = self.cpu.ticks() + self.cpu.frequency() / 200;
            while self.cpu.ticks() < until {
                holds()?;
            }
        }
        Ok(())
    }

    /// Fails unless there are no keys.
    fn no_keys(&self) -> Outcome {
        for instruction in [code::SIGN_DATA, code::read_key(0), code::write_key(WORDS - 1)] {
            let seen = self.cpu.execute(instruction, DATA).exception.map(|e| e.esr);
            self.require(seen == Some(UNDEFINED), seen.unwrap_or_default())?;
        }
        Ok(())
    }

    /// Fails unless each word of the keys is what `want` says.
    #[track_caller]
    fn keys_are(&self, want: impl Fn(u32) -> u64) -> Outcome {
        (0..WORDS).try_for_each(|word| self.equal(self.execute(code::read_key(word), 0)?, want(word)))
    }
}

/// Uses a key, if there is one, and idles.
pub(super) fn idle(env: &Env<'_>) -> Outcome {
    if env.has_keys()? {
        env.execute(code::SIGN_DATA, DATA)?;
    }
    env.cpu.idle()
}

/// Of an odd `argument` an instruction is the first to need a key, of an even one the read of a key.
pub(super) fn run(env: &Env<'_>) -> Outcome {
    if !env.has_keys()? {
        return env.hold(|| env.no_keys());
    }
    let seed = u64::from(env.start.argument);
    let first = if seed % 2 == 1 { Some(env.execute(code::SIGN_DATA, DATA)?) } else { None };
    // A vCPU starts with keys of 0, whatever the host's are.
    env.keys_are(|_| 0)?;
    let by_no_key = env.execute(code::SIGN_DATA, DATA)?;
    env.require(first.is_none_or(|first| first == by_no_key), by_no_key)?;

    let key = |word: u32| seed << 32 | u64::from(word);
    for word in 0..WORDS {
        env.execute(code::write_key(word), key(word))?;
    }
    const EN_IA: u64 = 1 << 31;
    let control = env.execute(code::READ_SCTLR, 0)?;
    env.execute(code::WRITE_SCTLR, control | EN_IA)?;
    let (signature, pointer) = (env.execute(code::SIGN_DATA, DATA)?, env.execute(code::SIGN, IMAGE)?);
    env.require(signature != by_no_key && pointer != IMAGE, pointer)?;
    env.hold(|| {
        env.keys_are(key)?;
        env.equal(env.execute(code::SIGN_DATA, DATA)?, signature)?;
        env.equal(env.execute(code::AUTHENTICATE, pointer)?, IMAGE)
    })
}
