//! The EL1 host of Rampart's tests and demo: honest or hostile, as the boot argument `scenario` says.
//!
//! `arch` is the runtime (MMU, exceptions, CPUs, console); [`machine`] is the seam; [`vmm`] runs
//! guests; [`scenarios`] are the tests, in plain safe Rust that also runs against a model of EL2 on the developer's machine.
#![no_std]
#![deny(unsafe_code)]
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test program: an overflow is a panic, the panic is a @fail line, and that is a verdict"
)]

#[cfg(test)]
extern crate std;

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub mod arch;
pub mod args;
pub mod board;
pub mod dump;
pub mod hvc;
pub mod inject;
pub mod inspect;
pub mod linux;
pub mod machine;
pub mod report;
pub mod scenarios;
pub mod span;
pub mod stage1;
pub mod vmm;

pub use el1::random;

use args::Args;
use board::Board;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use inject::Injection;
use machine::Machine;
use report::Report;
use scenarios::{Ctx, SCENARIOS};
use span::Pages;
use spin::Mutex;

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET.
    Reset,
    /// Semihosting, with an exit status that says whether all passed.
    Exit,
}

/// A machine that is ready for a scenario.
#[derive(Debug)]
pub struct Shim<'a> {
    /// The machine.
    pub machine: &'a dyn Machine,
    /// Its device tree.
    pub board: &'a Board<'a>,
    /// Memory that nothing uses yet.
    pub pages: Pages,
    /// The CPU that runs the scenario.
    pub boot_cpu: usize,
}

/// Calls of each kind that are held between two audits, with the word `faults`.
const AUDITS: u64 = 3;

/// Runs the scenario that the boot arguments name; says how to end, and whether all checks held.
#[must_use]
pub fn run(shim: Shim<'_>) -> (Ending, bool) {
    let args = Args::new(shim.board.bootargs);
    let name = args.get("scenario").unwrap_or("demo");
    let report = Report::begin(shim.machine, name);
    let ctx = Ctx {
        machine: shim.machine,
        board: shim.board,
        pages: Mutex::new(shim.pages),
        boot_cpu: shim.boot_cpu,
        report,
        args,
        reboot: AtomicBool::new(false),
        left_lent: AtomicU64::new(0),
        injection: Injection::new(args.number("audits", AUDITS)),
    };
    let mut ending = if args.has("semihosting") { Ending::Exit } else { Ending::PowerOff };
    match SCENARIOS.iter().find(|s| s.name == name) {
        Some(scenario) => {
            let census = scenarios::census_before(&ctx);
            let faults = ctx.args.has("faults");
            if faults {
                ctx.injection.start();
            }
            (scenario.run)(&ctx);
            if faults {
                ctx.injection.stop(&ctx.report);
            }
            // A scenario that resets the machine leaves its VMs to the reset.
            if let Some(census) = census
                && !ctx.reboot.load(Ordering::Relaxed)
            {
                scenarios::census_after(&ctx, &census);
            }
            ending = scenario.ending.unwrap_or(ending);
        }
        None => ctx.report.fail("unknown scenario", name),
    }
    if ctx.reboot.into_inner() {
        return (Ending::Reset, ctx.report.reboot());
    }
    (ending, ctx.report.end(name))
}
