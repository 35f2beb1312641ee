//! What the host sees of a Linux guest while it runs: the lines of its script, and how often it uses its UART.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::machine::Machine;
use crate::report::Report;
use crate::vmm::{Console, Exit, Vm};
use ::vmm::layout::UART;
use abi::exit::Reason;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use guest_shim::protocol::VmKind;
use spin::Mutex;

/// One guest.
pub(super) struct Seen<'a> {
    machine: &'a dyn Machine,
    report: &'a Report<'a>,
    /// What its lines begin with.
    name: &'static str,
    /// What the guest says goes out as it comes: somebody talks to it.
    aloud: bool,
    /// What it finds wrong is a failure.
    judged: bool,
    console: Mutex<Console>,
    works: AtomicBool,
    ended: AtomicBool,
    /// When its script began, in ticks.
    began: AtomicU64,
    uart: AtomicU64,
    /// MMIO exits in a realm's private half.
    private: AtomicU64,
}

impl<'a> Seen<'a> {
    pub(super) fn new(ctx: &'a Ctx<'a>, name: &'static str, aloud: bool) -> Self {
        Self {
            machine: ctx.machine,
            report: &ctx.report,
            name,
            aloud,
            judged: true,
            console: Mutex::default(),
            works: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            began: AtomicU64::new(0),
            uart: AtomicU64::new(0),
            private: AtomicU64::new(0),
        }
    }

    /// The same of a guest that may find something wrong: it is only told.
    pub(super) fn unjudged(self) -> Self {
        Self { judged: false, ..self }
    }

    /// When the guest's script began, in ticks; 0 if it did not.
    pub(super) fn began(&self) -> u64 {
        self.began.load(Ordering::Relaxed)
    }

    /// True once the guest has done its first check.
    pub(super) fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// True once the guest's script has come to its end.
    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Exits that were accesses to the UART.
    pub(super) fn uart(&self) -> u64 {
        self.uart.load(Ordering::Relaxed)
    }

    /// Exits that were accesses of a realm to what should be a device, but in its private half.
    pub(super) fn private(&self) -> u64 {
        self.private.load(Ordering::Relaxed)
    }

    /// Looks at an exit; never stops the VM.
    pub(super) fn exit(&self, vm: &Vm<'_>, exit: &Exit) -> bool {
        let device = exit.gpa & !vm.kind.shared();
        if exit.reason == Reason::Mmio && vm.kind == VmKind::Realm && device == exit.gpa {
            self.private.fetch_add(1, Ordering::Relaxed);
        }
        if exit.reason != Reason::Mmio || !(UART.start()..UART.end()).contains(&device) {
            return false;
        }
        self.uart.fetch_add(1, Ordering::Relaxed);
        if !exit.write || device != UART.start() {
            return false;
        }
        let [character, ..] = exit.data.to_le_bytes();
        if self.aloud {
            self.machine.say(character);
            return false;
        }
        let mut console = self.console.lock();
        if console.take(character) {
            self.line(console.line());
        }
        false
    }

    fn line(&self, line: &str) {
        let name = self.name;
        if line == "begin" {
            self.began.store(self.machine.ticks(), Ordering::Relaxed);
        } else if let Some(check) = line.strip_prefix("pass ") {
            self.works.store(true, Ordering::Relaxed);
            self.report.pass(format_args!("{name}{check}"));
        } else if let Some(rest) = line.strip_prefix("fail ").filter(|_| self.judged) {
            self.report.fail(format_args!("{name}in the guest"), rest);
        } else if line == "end" {
            self.ended.store(true, Ordering::Relaxed);
        } else {
            self.report.step(format_args!("{name}| {line}"));
        }
    }
}
