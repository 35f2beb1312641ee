//! What EL2 executes for a VM, by kind of exit: where one instruction takes one nanosecond, the time that passed less
//! the instructions that were counted below EL2. Of a VM that runs on one CPU.
#![forbid(unsafe_code)]

use crate::machine::Machine;
use abi::exit::Reason;
use core::sync::atomic::{AtomicU64, Ordering};

const KINDS: usize = Reason::ALL.len();

/// Nanoseconds of EL2, sums modulo 2^64; all 0 where nothing is counted.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// In VCPU_RUN, by the exit that ended it.
    runs: [AtomicU64; KINDS],
    /// In the calls that the host makes for an exit.
    services: [AtomicU64; KINDS],
    /// In VCPU_LOAD and VCPU_PUT.
    switches: AtomicU64,
}

/// A moment of this CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    ticks: u64,
    instructions: u32,
}

impl Moment {
    /// Now, if instructions are counted.
    pub(crate) fn now(machine: &dyn Machine) -> Option<Self> {
        let instructions = machine.instructions()?;
        Some(Self { ticks: machine.ticks(), instructions })
    }

    /// Nanoseconds between two moments that were EL2's: less than 0 by up to a tick, which the sum over many evens out.
    pub(crate) fn of_el2(self, end: Self, machine: &dyn Machine) -> i64 {
        let ticks = u128::from(end.ticks.wrapping_sub(self.ticks));
        let time = ticks.saturating_mul(1_000_000_000) / u128::from(machine.frequency().max(1));
        let below = end.instructions.wrapping_sub(self.instructions);
        u64::try_from(time).unwrap_or(u64::MAX).wrapping_sub(below.into()).cast_signed()
    }
}

fn slot(slots: &[AtomicU64; KINDS], reason: Reason) -> Option<&AtomicU64> {
    Reason::ALL.iter().zip(slots).find(|(kind, _)| **kind == reason).map(|(_, slot)| slot)
}

/// A sum; one that rounding left below 0 is 0.
fn total(slot: &AtomicU64) -> u64 {
    slot.load(Ordering::Relaxed).cast_signed().max(0).cast_unsigned()
}

fn add(slot: Option<&AtomicU64>, machine: &dyn Machine, since: Option<Moment>) {
    if let (Some(slot), Some(since), Some(now)) = (slot, since, Moment::now(machine)) {
        slot.fetch_add(since.of_el2(now, machine).cast_unsigned(), Ordering::Relaxed);
    }
}

impl Meter {
    /// A VCPU_RUN between these moments ended with `reason`.
    pub(super) fn ran(&self, machine: &dyn Machine, reason: Reason, entered: Moment, left: Moment) {
        if let Some(slot) = slot(&self.runs, reason) {
            slot.fetch_add(entered.of_el2(left, machine).cast_unsigned(), Ordering::Relaxed);
        }
    }

    /// What such an exit asked for has been done since.
    pub(super) fn served(&self, machine: &dyn Machine, reason: Reason, since: Option<Moment>) {
        add(slot(&self.services, reason), machine, since);
    }

    /// A vCPU was loaded or put since.
    pub(super) fn switched(&self, machine: &dyn Machine, since: Option<Moment>) {
        add(Some(&self.switches), machine, since);
    }

    /// In VCPU_RUN and in the host's calls, for exits of this kind.
    pub(super) fn of(&self, reason: Reason) -> (u64, u64) {
        let of = |slots| slot(slots, reason).map_or(0, total);
        (of(&self.runs), of(&self.services))
    }

    /// In VCPU_LOAD and VCPU_PUT.
    pub(super) fn of_switches(&self) -> u64 {
        total(&self.switches)
    }
}
