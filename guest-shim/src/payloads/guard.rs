//! `Guard`: a guest says which pages are devices, uses one, and tries on it what no device serves.
//!
//! [`TRIALS`] is the column "marked" of the table of docs/mmio-guard.md. The guest executes and
//! reports; the VMM holds the report against the table.
#![forbid(unsafe_code)]

use super::instruction::{BR, LDP, LDR};
use super::{Env, Outcome, hello};
use crate::cpu::Seen;
use crate::protocol::{BEYOND, CACHED, DEVICES, IMAGE, UART, USER, WALKED, word};
use abi::guest::{
    FEATURES, GUARD_ENROLL, GUARD_INFO, GUARD_MAP, GUARD_UNMAP, HAS_RANGE, MAX_GRANULES, RGUARD_MAP,
    RGUARD_UNMAP, feature_bit,
};
use abi::smccc;

/// What the guest must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// An exception of this class, the guest's own affair.
    Own(u64),
    /// A synchronous external abort for data at this address.
    Data(u64),
    /// The same, or the CPU does not have the instruction.
    DataIfThere(u64),
    /// The same for an instruction.
    Fetch(u64),
    /// No exception, and this in x0.
    Value(u64),
}

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// For people.
    pub name: &'static str,
    instruction: u32,
    /// x0 before.
    pub x0: u64,
    /// It is executed at EL0.
    pub user: bool,
    /// What must come of it.
    pub expect: Expect,
}

const fn trial(name: &'static str, instruction: u32, x0: u64, expect: Expect) -> Trial {
    Trial { name, instruction, x0, user: false, expect }
}

const fn user(name: &'static str, instruction: u32, x0: u64, expect: Expect) -> Trial {
    Trial { user: true, ..trial(name, instruction, x0, expect) }
}

/// The device page as Normal memory: what goes wrong is the kind of access.
const PAGE: u64 = CACHED + UART;
const LAST: u64 = PAGE + 0xffc;
const FLAGS: u64 = 0x18;
/// What the PL011's flags say: transmitter and receiver are empty.
const EMPTY: u64 = 0x90;

const LDR_W: u32 = 0xb940_0000; // ldr w0, [x0]

/// Everything that is tried, in this order.
#[rustfmt::skip]
pub const TRIALS: &[Trial] = &[
    // Taken by the CPU itself: the others must look the same but for ESR, FAR and what they name.
    trial("BRK", 0xd420_0000, 0, Expect::Own(0x3c)),
    // No syndrome.
    trial("LDP", LDP, PAGE, Expect::Data(PAGE)),
    trial("LDP of Device memory", LDP, UART, Expect::Data(UART)),
    trial("STP", 0xa900_0000 | 31 << 10 | 31, PAGE + 0x10, Expect::Data(PAGE + 0x10)),
    trial("LDR with write-back", 0xf840_8400 | 31, PAGE, Expect::Data(PAGE)),
    trial("STR with write-back", 0xf800_8c00 | 31, PAGE, Expect::Data(PAGE + 8)),
    trial("LDXR", 0xc85f_7c00, PAGE, Expect::Data(PAGE)),
    trial("LDAXRB", 0x085f_fc00, PAGE + 3, Expect::Data(PAGE + 3)),
    trial("LDXP", 0xc87f_0000 | 31 << 10, PAGE, Expect::Data(PAGE)),
    trial("LDADD", 0xf820_0000 | 31 << 16, PAGE, Expect::DataIfThere(PAGE)),
    trial("SWP of a word", 0xb820_8000 | 31 << 16, PAGE + 4, Expect::DataIfThere(PAGE + 4)),
    trial("CAS", 0xc8a0_7c00 | 31 << 16 | 31, PAGE, Expect::DataIfThere(PAGE)),
    trial("LDR of a Q register", 0x3dc0_0000, PAGE, Expect::Data(PAGE)),
    trial("STR of a Q register", 0x3d80_0000, PAGE, Expect::Data(PAGE)),
    trial("LDR of a D register", 0xfd40_0000, PAGE, Expect::Data(PAGE)),
    trial("STR of a B register", 0x3d00_0000, PAGE, Expect::Data(PAGE)),
    trial("LD1", 0x4c40_7000, PAGE, Expect::Data(PAGE)),
    trial("ST1", 0x4c00_7000, PAGE, Expect::Data(PAGE)),
    trial("DC ZVA", 0xd50b_7420, PAGE + 0x40, Expect::Data(PAGE + 0x40)),
    // It may have begun elsewhere, or end there.
    trial("unaligned LDR", 0xf840_1000, PAGE, Expect::Data(PAGE + 1)),
    trial("unaligned LDRH", 0x7840_1000, PAGE, Expect::Data(PAGE + 1)),
    trial("unaligned STR", 0xb800_2000 | 31, PAGE, Expect::Data(PAGE + 2)),
    trial("LDR across the end", LDR, LAST, Expect::Data(LAST)),
    trial("STR across the end", 0xf900_0000 | 31, LAST, Expect::Data(LAST)),
    // No data at all.
    trial("fetch", BR, PAGE + 0x40, Expect::Fetch(PAGE + 0x40)),
    trial("a load whose table is the device", LDR, WALKED + 0x1238, Expect::Data(WALKED + 0x1238)),
    trial("a fetch whose table is the device", BR, WALKED + 0x1238, Expect::Fetch(WALKED + 0x1238)),
    trial("DC CIVAC", 0xd50b_7e20, PAGE, Expect::Value(PAGE)),
    trial("DC CVAC", 0xd50b_7a20, PAGE + 0x40, Expect::Value(PAGE + 0x40)),
    // At EL0.
    user("LDR of a word at EL0", LDR_W, USER + UART + FLAGS, Expect::Value(EMPTY)),
    user("LDP at EL0", LDP, USER + UART, Expect::Data(USER + UART)),
    user("STR of a Q register at EL0", 0x3d80_0000, USER + UART, Expect::Data(USER + UART)),
    user("unaligned LDR at EL0", 0xf840_1000, USER + UART, Expect::Data(USER + UART + 1)),
    user("fetch at EL0", BR, USER + UART, Expect::Fetch(USER + UART)),
    // One register, aligned.
    trial("LDR of a word", LDR_W, UART + FLAGS, Expect::Value(EMPTY)),
    trial("LDRB", 0x3940_0000, PAGE + FLAGS, Expect::Value(EMPTY)),
    trial("LDRSB to an X register", 0x3980_0000, PAGE + FLAGS, Expect::Value(0xffff_ffff_ffff_ff90)),
    trial("LDRSB to a W register", 0x39c0_0000, PAGE + FLAGS, Expect::Value(0xffff_ff90)),
    trial("LDRSH to an X register", 0x7980_0000, PAGE + FLAGS, Expect::Value(EMPTY)),
    trial("LDAR", 0x88df_fc00, PAGE + FLAGS, Expect::Value(EMPTY)),
];

/// Pages that need two tables each.
const FAR: [u64; 4] = [4 << 30, 5 << 30, 6 << 30, 7 << 30];

/// Trials that the host serves: exits for loads.
pub const SERVED: u64 = 7;

/// The words that a trial leaves in the mailbox.
pub mod field {
    /// x0 afterwards.
    pub const X0: u64 = 0;
    /// Where the instruction stands.
    pub const AT: u64 = 1;
    /// Offset of the vector; all ones if no exception was taken.
    pub const VECTOR: u64 = 2;
    /// ESR_EL1.
    pub const ESR: u64 = 3;
    /// FAR_EL1.
    pub const FAR: u64 = 4;
    /// ELR_EL1.
    pub const ELR: u64 = 5;
    /// SPSR_EL1.
    pub const SPSR: u64 = 6;
    /// DAIF.
    pub const MASKS: u64 = 7;
    /// Words of a trial.
    pub const COUNT: u64 = 8;
}

/// True if FEATURES names `id`.
fn has(env: &Env<'_>, id: u32) -> Result<bool, super::Failure> {
    Ok(env.call(FEATURES, [0; 3])?[0] & feature_bit(id) != 0)
}

/// Turns the guard of a VM that is not protected on.
pub(super) fn enrol(env: &Env<'_>) -> Outcome {
    env.equal(env.call(GUARD_ENROLL, [0; 3])?[0], smccc::SUCCESS)
}

/// Marks the UART's page, if the VM is protected.
pub(super) fn mark_uart(env: &Env<'_>) -> Outcome {
    if env.start.kind.is_protected() {
        env.equal(env.call(GUARD_MAP, [UART, 0, 0])?[0], smccc::SUCCESS)
    } else {
        Ok(())
    }
}

pub(super) fn run(env: &Env<'_>) -> Outcome {
    marks(env)?;
    hello::say(env)?;
    for (n, trial) in (0..).zip(TRIALS) {
        // The VMM finds here how far it got.
        env.report(word::STAGE, n);
        let seen = if trial.user {
            env.cpu.execute_user(trial.instruction, trial.x0)
        } else {
            env.cpu.execute(trial.instruction, trial.x0)
        };
        report(env, word::RESULTS + field::COUNT * n, &seen);
    }
    Ok(())
}

fn report(env: &Env<'_>, at: u64, seen: &Seen) {
    env.report(at + field::X0, seen.x0);
    env.report(at + field::AT, seen.at);
    env.report(at + field::VECTOR, seen.exception.map_or(u64::MAX, |e| e.vector));
    if let Some(e) = seen.exception {
        for (n, value) in [
            (field::ESR, e.esr),
            (field::FAR, e.far),
            (field::ELR, e.elr),
            (field::SPSR, e.spsr),
            (field::MASKS, e.masks),
        ] {
            env.report(at + n, value);
        }
    }
}

/// The calls, and what they refuse.
fn marks(env: &Env<'_>) -> Outcome {
    let calls = [GUARD_INFO, GUARD_ENROLL, GUARD_MAP, GUARD_UNMAP, RGUARD_MAP, RGUARD_UNMAP];
    for id in calls {
        env.require(has(env, id)?, id.into())?;
    }
    let status = |id, args| env.call(id, args).map(|[x0, ..]| x0);
    let [granule, flags, ..] = env.call(GUARD_INFO, [0; 3])?;
    env.equal(granule, 4096)?;
    env.equal(flags, HAS_RANGE)?;
    if !env.start.kind.is_protected() {
        env.equal(status(GUARD_MAP, [UART, 0, 0])?, smccc::INVALID_PARAMETER)?;
    }
    enrol(env)?;
    enrol(env)?;
    for args in [[UART + 8, 0, 0], [BEYOND, 0, 0], [UART, 7, 0], [UART, 0, 1], [IMAGE, 0, 0]] {
        env.equal(status(GUARD_MAP, args)?, smccc::INVALID_PARAMETER)?;
    }
    let [far, range] = DEVICES;
    for (id, want) in [
        (GUARD_UNMAP, smccc::INVALID_PARAMETER),
        (GUARD_MAP, smccc::SUCCESS),
        (GUARD_MAP, smccc::SUCCESS),
        (GUARD_UNMAP, smccc::SUCCESS),
        (GUARD_UNMAP, smccc::INVALID_PARAMETER),
    ] {
        env.equal(status(id, [far, 0, 0])?, want)?;
    }
    for id in [RGUARD_MAP, RGUARD_UNMAP] {
        let [x0, done, ..] = env.call(id, [range, 2 * MAX_GRANULES, 0])?;
        env.require((x0, done) == (smccc::SUCCESS, MAX_GRANULES), done)?;
    }
    // More tables than a VM is made with.
    for page in FAR {
        env.equal(status(GUARD_MAP, [page, 0, 0])?, smccc::SUCCESS)?;
    }
    env.equal(status(GUARD_MAP, [UART, 0, 0])?, smccc::SUCCESS)
}

const _: () =
    assert!(word::RESULTS + field::COUNT * (TRIALS.len() as u64) <= word::CPUS, "results fit the mailbox");
