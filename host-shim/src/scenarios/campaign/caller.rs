//! Making one call of the campaign: every answer is held against docs/abi.md, counted, and in a schedule that repeats
//! added to a sum that says whether it did.
#![forbid(unsafe_code)]

use super::world::World;
use crate::hvc::CallError;
use crate::scenarios::Ctx;
use abi::{Errno, HostFn};
use core::fmt::{self, Display};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Verdicts of a call: success, and each errno.
const VERDICTS: usize = 1 + Errno::ALL.len();

/// Answers, counted over all CPUs.
#[derive(Debug)]
pub(super) struct Tally {
    counts: [[AtomicU32; VERDICTS]; HostFn::ALL.len()],
    /// Answers that say that there is no such call.
    pub(super) unknown: AtomicU64,
    /// All calls.
    pub(super) calls: AtomicU64,
    /// Accesses to memory that EL2 refused.
    pub(super) refused: AtomicU64,
    /// Accesses that went through.
    pub(super) reached: AtomicU64,
    /// Turns of vCPUs.
    pub(super) turns: AtomicU64,
    /// Sum over every call and its answer.
    pub(super) sum: AtomicU64,
    /// Something was not as it should be: the lot ends.
    pub(super) failed: AtomicBool,
}

impl Tally {
    pub(super) fn new() -> Self {
        let counts = core::array::from_fn(|_| core::array::from_fn(|_| AtomicU32::new(0)));
        let zero = AtomicU64::default;
        Self {
            counts,
            unknown: zero(),
            calls: zero(),
            refused: zero(),
            reached: zero(),
            turns: zero(),
            sum: AtomicU64::new(0xcbf2_9ce4_8422_2325),
            failed: AtomicBool::new(false),
        }
    }

    fn count(&self, call: HostFn, verdict: Result<(), Errno>) {
        let nth = match verdict {
            Ok(()) => Some(0),
            Err(errno) => Errno::ALL.iter().position(|e| *e == errno).map(|n| n + 1),
        };
        let row = HostFn::ALL.iter().zip(&self.counts).find(|(f, _)| **f == call).map(|(_, row)| row);
        if let Some(counter) = nth.zip(row).and_then(|(nth, row)| row.get(nth)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Adds a word to the sum.
    pub(super) fn add(&self, word: u64) {
        let sum = (self.sum.load(Relaxed) ^ word).wrapping_mul(0x0100_0000_01b3);
        self.sum.store(sum.rotate_left(29), Relaxed);
    }

    /// Every call and verdict that there was, with its count.
    pub(super) fn each(&self) -> impl Iterator<Item = (HostFn, Result<(), Errno>, u64)> + '_ {
        let verdicts = || core::iter::once(Ok(())).chain(Errno::ALL.into_iter().map(Err));
        let rows = HostFn::ALL.iter().zip(&self.counts);
        let cells = rows.flat_map(move |(call, row)| verdicts().zip(row).map(|(v, n)| (*call, v, n)));
        cells.map(|(call, verdict, n)| (call, verdict, n.load(Relaxed).into())).filter(|(_, _, n)| *n > 0)
    }
}

/// Whether a verdict defines x2 and x3.
const fn outputs(call: HostFn, verdict: Result<(), Errno>) -> [bool; 2] {
    match (call, verdict) {
        (
            HostFn::HypCaps
            | HostFn::GuestReclaim
            | HostFn::ReclaimDying
            | HostFn::RipasApply
            | HostFn::GuestAge
            | HostFn::UnprotUnmap
            | HostFn::S2SnapshotQuery,
            Ok(()),
        )
        | (HostFn::VmTeardownFinish, Ok(()) | Err(Errno::Eagain))
        | (HostFn::S2Snapshot, Err(Errno::Enomem | Errno::Einval)) => [true, true],
        (
            HostFn::VmCreate
            | HostFn::VmTopup
            | HostFn::GuestUnshare
            | HostFn::GuestWrprotect
            | HostFn::VcpuGetReg
            | HostFn::S2Snapshot
            | HostFn::VmReset
            | HostFn::VmInitRipas
            | HostFn::MteUpgrade
            | HostFn::VmTagInfo,
            Ok(()),
        )
        | (HostFn::VmFinalise | HostFn::VmReset, Err(Errno::Eagain))
        | (HostFn::VmTeardownFinish, Err(Errno::Ebusy)) => [true, false],
        (HostFn::S2Snapshot, Err(_)) | (_, Err(Errno::Enomem)) => [false, true],
        _ => [false, false],
    }
}

/// What of a successful call's outputs is the same whenever the calls before it are.
fn settled(call: HostFn, [x2, x3]: [u64; 2]) -> [u64; 2] {
    match call {
        // Registers of a guest that an interrupt stopped, and what it touched until then.
        HostFn::VcpuGetReg => [0, 0],
        HostFn::GuestAge => [x2, 0],
        _ => [x2, x3],
    }
}

/// What a call answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its verdict; a call that this image does not have answers EOPNOTSUPP here.
    pub(super) verdict: Result<(), Errno>,
    pub(super) x2: u64,
    pub(super) x3: u64,
}

impl Answer {
    pub(super) const fn is_ok(self) -> bool {
        self.verdict.is_ok()
    }

    /// Pages that the VM's store, or with 0 the pool of host tables, lacks.
    pub(super) fn lack(self) -> Option<u64> {
        (self.verdict == Err(Errno::Enomem)).then_some(self.x3)
    }
}

/// A list of arguments as a person reads it.
struct Words<'w>(&'w [u64]);

impl Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, " {word:#x}"))
    }
}

/// One CPU that calls.
#[derive(Clone, Copy)]
pub(super) struct Caller<'c> {
    pub(super) ctx: &'c Ctx<'c>,
    pub(super) world: &'c World<'c>,
    pub(super) tally: &'c Tally,
    /// Calls come one at a time.
    pub(super) logical: bool,
    /// Each call is printed before it is made.
    pub(super) trace: bool,
    /// Steps inside calls are made to fail.
    pub(super) arms: bool,
}

impl Caller<'_> {
    /// Something is not as docs/abi.md says.
    pub(super) fn fail(&self, name: impl Display, why: impl Display) {
        self.tally.failed.store(true, Relaxed);
        self.ctx.report.fail(name, why);
    }

    /// Says what is done besides calls, in a run that says what it does.
    pub(super) fn say(&self, what: fmt::Arguments<'_>) {
        if self.trace {
            self.ctx.machine.line(format_args!("  cpu{} {what}", self.ctx.machine.cpu()));
        }
    }

    /// Makes `call` and judges the answer.
    pub(super) fn call(&self, call: HostFn, args: &[u64]) -> Answer {
        let machine = self.ctx.machine;
        self.say(format_args!("{}{}", call.name(), Words(args)));
        if call == HostFn::VcpuRun {
            // A guest that spins comes back; one that does not has left long before.
            machine.wake_after(machine.frequency() / if self.logical { 4 } else { 1000 });
            self.tally.turns.fetch_add(1, Relaxed);
        }
        let reply = self.ctx.hypervisor().reply(call.id(), args, |verdict| outputs(call, verdict));
        if call == HostFn::VcpuRun {
            machine.cancel_wake();
            machine.set_guest_timer_active(false);
        }
        self.tally.calls.fetch_add(1, Relaxed);
        let answer = match reply {
            Ok((verdict, [x2, x3])) => Answer { verdict, x2, x3 },
            Err(CallError::NotSupported) if !self.world.offers(call) => {
                self.tally.unknown.fetch_add(1, Relaxed);
                return Answer { verdict: Err(Errno::Eopnotsupp), x2: 0, x3: 0 };
            }
            Err(e) => {
                self.fail(format_args!("{}{}", call.name(), Words(args)), e);
                return Answer { verdict: Err(Errno::Eopnotsupp), x2: 0, x3: 0 };
            }
        };
        self.judge(call, args, answer);
        answer
    }

    fn judge(&self, call: HostFn, args: &[u64], answer: Answer) {
        let Answer { verdict, x2, x3 } = answer;
        if self.trace {
            self.say(format_args!("= {verdict:?} {x2:#x} {x3:#x}"));
        }
        self.tally.count(call, verdict);
        if self.logical {
            let number = verdict.map_or_else(Errno::to_reg, |()| 0);
            let [x2, x3] = settled(call, [x2, x3]);
            let head = [self.ctx.machine.cpu() as u64, call.id().into()];
            let tail = [number, x2, x3];
            let words = head.iter().chain(args).chain(&tail);
            words.for_each(|word| self.tally.add(*word));
        }
        if let Err(errno) = verdict
            && !call.refusals().contains(&errno)
        {
            self.fail(
                format_args!("{}{}", call.name(), Words(args)),
                format_args!("{errno:?} is no answer of this call"),
            );
        }
        self.world.learn(call, args, answer);
    }
}
