//! The end: EL2 itself is corrupt. Say what can be said, then stop the machine.
//!
//! It never resets: RAM outlives a reset, and a reset machine no longer keeps anybody's secrets.
//! No input reaches this; `docs/abi.md` gives every refusal an errno instead.

use super::percpu::PerCpu;
use super::{IMAGE, regs, smc};
use core::panic::PanicInfo;

const REASONS: [&str; 16] = [
    "synchronous exception at EL2 (SP_EL0)",
    "IRQ at EL2 (SP_EL0)",
    "FIQ at EL2 (SP_EL0)",
    "SError at EL2 (SP_EL0)",
    "synchronous exception at EL2",
    "IRQ at EL2",
    "FIQ at EL2",
    "SError at EL2",
    "",
    "IRQ from the host, which is not routed to EL2",
    "FIQ from the host, which is not routed to EL2",
    "SError from the host, which is not routed to EL2",
    "",
    "IRQ from the host (AArch32), which is not routed to EL2",
    "FIQ from the host (AArch32), which is not routed to EL2",
    "SError from the host (AArch32), which is not routed to EL2",
];

/// A fatal vector: `reason` is its number, `frame` the x29 of what was interrupted.
pub(super) extern "C" fn fatal_exception(reason: usize, stack: u64, frame: usize) -> ! {
    let text = REASONS.get(reason).copied().unwrap_or("unknown vector");
    stop(format_args!("{text}, sp {stack:#x}"), Some(regs::elr_el2()), frame)
}

/// EL2 runs on a CPU without a record: `secondary` or `boot` did not install it.
#[cfg(feature = "spec")]
#[cold]
pub(super) fn no_record() -> ! {
    stop(format_args!("a CPU without a record"), None, regs::frame_pointer())
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    stop(format_args!("{info}"), None, regs::frame_pointer())
}

/// `at` is the instruction that an exception was taken from, `frame` the innermost frame record.
fn stop(reason: core::fmt::Arguments<'_>, at: Option<u64>, frame: usize) -> ! {
    let console = &IMAGE.console;
    let cpu = PerCpu::current().map_or(0, |c| c.index);
    let base = super::image_base();
    console.line(format_args!("PANIC: cpu {cpu}: {reason}"));
    console.line(format_args!(
        "  ESR {:#x} ELR {:#x} FAR {:#x} HPFAR {:#x} SPSR {:#x}",
        regs::esr_el2(),
        regs::elr_el2(),
        regs::far_el2(),
        regs::hpfar_el2(),
        regs::spsr_el2()
    ));
    console.line(format_args!("  image base {base:#x}"));
    let calls = Frames(frame).map(|link| link as u64);
    for (n, address) in at.into_iter().chain(calls).enumerate() {
        console.line(format_args!("  #{n} {:#x}", address.wrapping_sub(base)));
    }
    console.line(format_args!("end of panic"));
    smc::system_off()
}

/// Return addresses, innermost first: frame records are {previous x29, x30} pairs (AAPCS64).
struct Frames(usize);

impl Iterator for Frames {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if !super::is_stack(self.0) {
            return None;
        }
        let at = core::ptr::with_exposed_provenance::<[usize; 2]>(self.0);
        // SAFETY: aligned and inside one of EL2's stacks, which are mapped (is_stack).
        let [previous, link] = unsafe { at.read_volatile() };
        // Frames of one stack grow towards higher addresses; anything else is a broken chain.
        self.0 = if previous > self.0 { previous } else { 0 };
        (link != 0).then_some(link)
    }
}
