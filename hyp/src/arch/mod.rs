//! Everything with an instruction in it: entry, vectors, registers, the hardware seam, the world
//! switch, the panic.
//!
//! The only place with `unsafe`. What it decides is how; what and whether is decided by the
//! portable core, which it calls with plain values.
//!
//! Invariant: [`IMAGE`] is the one global. Per-CPU state hangs on TPIDR_EL2 (`percpu`).

#[cfg(feature = "bench")]
mod bench;
mod boot;
mod console;
mod copy;
mod cpu;
mod el1;
mod entry;
mod exception;
mod features;
mod fp;
mod gic;
mod guests;
mod host;
#[cfg(feature = "fault-injection")]
mod inject;
mod machine;
#[cfg(feature = "bench")]
mod marks;
mod mem;
mod panic;
mod percpu;
mod place;
mod regs;
mod smc;
mod switch;
mod vectors;
#[cfg_attr(feature = "spec", path = "watched.rs")]
#[cfg_attr(not(feature = "spec"), path = "unwatched.rs")]
mod watch;

use console::Console;
use core::sync::atomic::AtomicUsize;
use hyp::guest::Vms;
use hyp::mem_protect::Hypervisor;
use hyp::psci::Relay;
use percpu::PerCpu;
use smccc::Smc;
use spin::Once;
use watch::{Hw, Judges, Watched, watched};

/// All that EL2 keeps outside the CPUs' own records.
#[repr(C)]
pub(crate) struct Image {
    /// Address of the CPUs' records, read by a CPU that starts, before its MMU is on. First, so
    /// that it is near for `entry`.
    records: AtomicUsize,
    console: Console,
    running: Once<Running>,
    vms: Vms<Hw>,
    judges: Judges,
}

/// What exists from the end of the boot on.
struct Running {
    hw: Watched,
    state: Hypervisor<Hw>,
    relay: Relay<Smc>,
    host: boot::HostEntry,
    cpus: &'static [PerCpu],
}

static IMAGE: Image = Image {
    records: AtomicUsize::new(0),
    console: Console::new(),
    running: Once::new(),
    vms: Vms::new(),
    judges: Judges::new(),
};

impl Image {
    /// The hypervisor, once it is built; always `Some` while a host runs.
    #[inline]
    fn running(&self) -> Option<&Running> {
        self.running.get()
    }
}

macro_rules! linker_symbols {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal;)*) => {$(
        $(#[$doc])*
        fn $name() -> u64 {
            unsafe extern "C" {
                #[link_name = $symbol]
                safe static SYMBOL: u8;
            }
            (&raw const SYMBOL).expose_provenance() as u64
        }
    )*};
}

linker_symbols! {
    /// Where the image was loaded.
    image_base = "__image_start";
    /// End of the code, start of the constants.
    text_end = "__text_end";
    /// End of the constants and relocations, start of what can be written.
    rodata_end = "__rodata_end";
    /// End of what can be written, without the boot stack.
    data_end = "__bss_end";
    /// First byte of the boot stack; the page below is never mapped.
    boot_stack_bottom = "__boot_stack_bottom";
    /// One past the boot stack.
    boot_stack_top = "__boot_stack_top";
    /// Table pages for the time before there is a pool.
    boot_tables = "__boot_tables";
    /// One past the image.
    image_end = "__image_end";
    /// The vectors while the host runs.
    vectors_base = "vectors";
    /// The vectors while a guest is loaded.
    guest_vectors_base = "guest_vectors";
    /// Where firmware starts the other CPUs.
    secondary_entry = "secondary_entry";
}

/// True if a frame record at `at` lies in a stack that this CPU may be on.
fn is_stack(at: usize) -> bool {
    let at = at as u64;
    let inside = |bottom: u64, top: u64| at >= bottom && at.checked_add(16).is_some_and(|end| end <= top);
    let own = PerCpu::current().is_some_and(|cpu| {
        inside(cpu.stack_top.saturating_sub(percpu::STACK_BYTES), cpu.stack_top)
            || inside(cpu.panic_stack_top.saturating_sub(percpu::PANIC_STACK_BYTES), cpu.panic_stack_top)
    });
    at.is_multiple_of(16) && (own || inside(boot_stack_bottom(), boot_stack_top()))
}
