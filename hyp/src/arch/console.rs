//! The console: a PL011 that the device tree named, shared with the host.
//!
//! The host owns the UART too and may stop it, so every wait is bounded and what does not fit is
//! lost; behind a byte that was lost nothing waits until one is taken again. Lines of different CPUs
//! are kept apart by a lock that a panic does not wait for.

use super::regs;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use hyp::addr::Pa;
use log::{Log, Metadata, Record};
use spin::mutex::TicketMutex;

/// PL011 registers (Arm DDI 0183): data, and flags with TXFF in bit 5.
const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const TX_FULL: u32 = 1 << 5;
/// Reads of a full FIFO before a byte is dropped: some ms on any machine.
const PATIENCE: u32 = 1 << 16;

/// The console of the machine; silent until it is told where the UART is.
#[derive(Debug)]
pub(crate) struct Console {
    /// 0 until connected: a plain store, since it may happen before the MMU is on.
    base: AtomicUsize,
    line: TicketMutex<(), spin::relax::Spin>,
    /// The last byte was lost.
    stuck: AtomicBool,
}

impl Console {
    /// A console that is not connected.
    pub(crate) const fn new() -> Self {
        Self { base: AtomicUsize::new(0), line: TicketMutex::new(()), stuck: AtomicBool::new(false) }
    }

    /// Connects to a PL011 that EL2 has mapped as Device memory, or reaches with its MMU off.
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits at EL2")]
    pub(crate) fn connect(&self, uart: Pa) {
        self.base.store(uart.raw() as usize, Ordering::Release);
    }

    /// Writes a whole line; waits a bounded time for other CPUs' lines.
    pub(crate) fn line(&self, text: fmt::Arguments<'_>) {
        let guard = (0..PATIENCE).find_map(|_| self.line.try_lock());
        self.line_unlocked(text);
        drop(guard);
    }

    /// Writes a line when there is nobody to wait for, or no MMU to wait with.
    pub(crate) fn line_unlocked(&self, text: fmt::Arguments<'_>) {
        let mut port = Port(self);
        // A port never fails: it drops what does not fit.
        let _ = port.write_fmt(format_args!("rampart: {text}\n"));
    }

    fn byte(&self, base: usize, byte: u8) {
        let flags = core::ptr::with_exposed_provenance::<u32>(base.wrapping_add(FLAGS));
        let data = core::ptr::with_exposed_provenance_mut::<u32>(base.wrapping_add(DATA));
        let patience = if self.stuck.load(Ordering::Relaxed) { 1 } else { PATIENCE };
        for _ in 0..patience {
            // SAFETY: the UART is mapped as Device memory (see `connect`).
            if unsafe { flags.read_volatile() } & TX_FULL == 0 {
                // SAFETY: as above.
                unsafe { data.write_volatile(u32::from(byte)) };
                self.stuck.store(false, Ordering::Relaxed);
                return;
            }
        }
        self.stuck.store(true, Ordering::Relaxed);
    }
}

struct Port<'a>(&'a Console);

impl Write for Port<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let base = self.0.base.load(Ordering::Acquire);
        if base != 0 {
            for b in s.bytes() {
                if b == b'\n' {
                    self.0.byte(base, b'\r');
                }
                self.0.byte(base, b);
            }
        }
        Ok(())
    }
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                log::Level::Error => "error",
                log::Level::Warn => "warn",
                log::Level::Info => "info",
                log::Level::Debug => "debug",
                log::Level::Trace => "trace",
            };
            self.line(format_args!("{level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// The last line before the machine stops, for times when there may be no console: then it goes
/// to the emulator's own log by semihosting (SYS_WRITE0), if that is listening.
pub(super) fn last_words(text: fmt::Arguments<'_>) {
    let console = &super::IMAGE.console;
    if console.base.load(Ordering::Acquire) != 0 {
        console.line_unlocked(text);
        return;
    }
    let mut line = Line { bytes: [0; 256], len: 0 };
    let _ = line.write_fmt(format_args!("rampart: {text}\n"));
    regs::semihosting_write0(&line.bytes);
}

/// A line with a zero at its end.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for &b in s.as_bytes() {
            // The last byte stays zero.
            if let [free @ .., _] = self.bytes.get_mut(self.len..).unwrap_or_default()
                && let Some(slot) = free.first_mut()
            {
                *slot = b;
                self.len = self.len.saturating_add(1);
            }
        }
        Ok(())
    }
}
