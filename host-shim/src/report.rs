//! The line protocol by which a scenario tells the judge what it saw.
//!
//! `@begin`, `@step`, `@pass`, `@fail`, `@metric`, `@skip`, `@reboot`, `@end`, each at the start of a line.
#![forbid(unsafe_code)]

use crate::machine::Machine;
use core::fmt::{Debug, Display};
use core::sync::atomic::{AtomicU32, Ordering};

/// Counts and prints outcomes; shared by all CPUs.
#[derive(Debug)]
pub struct Report<'a> {
    machine: &'a dyn Machine,
    passed: AtomicU32,
    failed: AtomicU32,
}

impl<'a> Report<'a> {
    /// Starts the report of a scenario.
    #[must_use]
    pub fn begin(machine: &'a dyn Machine, scenario: &str) -> Self {
        machine.line(format_args!("@begin {scenario}"));
        Self { machine, passed: AtomicU32::new(0), failed: AtomicU32::new(0) }
    }

    /// Something a person wants to read.
    pub fn step(&self, text: impl Display) {
        self.machine.line(format_args!("@step {text}"));
    }

    /// A check that held.
    pub fn pass(&self, name: impl Display) {
        self.passed.fetch_add(1, Ordering::Relaxed);
        self.machine.line(format_args!("@pass {name}"));
    }

    /// A check that did not.
    pub fn fail(&self, name: impl Display, reason: impl Display) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.machine.line(format_args!("@fail {name}: {reason}"));
    }

    /// A check that this machine gives no occasion for.
    pub fn skip(&self, name: impl Display, reason: impl Display) {
        self.machine.line(format_args!("@skip {name}: {reason}"));
    }

    /// A figure.
    pub fn metric(&self, name: impl Display, value: u64, unit: &str) {
        self.machine.line(format_args!("@metric {name} {value} {unit}"));
    }

    /// Passes if `got` equals `want`; says whether it did.
    pub fn equal<T: PartialEq + Debug>(&self, name: impl Display, got: T, want: T) -> bool {
        let equal = got == want;
        if equal {
            self.pass(name);
        } else {
            self.fail(name, format_args!("got {got:x?}, want {want:x?} (hex)"));
        }
        equal
    }

    /// Passes if `held`; says whether it did.
    pub fn check(&self, name: impl Display, held: bool, reason: impl Display) -> bool {
        if held {
            self.pass(name);
        } else {
            self.fail(name, reason);
        }
        held
    }

    /// The machine is about to reset on purpose, and the next boot goes on with the same scenario.
    /// Says whether all checks before it held.
    #[must_use]
    pub fn reboot(self) -> bool {
        let (passed, failed) = (self.passed.into_inner(), self.failed.into_inner());
        self.machine.line(format_args!("@reboot passed={passed} failed={failed}"));
        failed == 0
    }

    /// Ends the report and says whether all checks, and at least one, held.
    #[must_use]
    pub fn end(self, scenario: &str) -> bool {
        let (passed, failed) = (self.passed.into_inner(), self.failed.into_inner());
        self.machine.line(format_args!("@end {scenario} passed={passed} failed={failed}"));
        failed == 0 && passed > 0
    }
}
