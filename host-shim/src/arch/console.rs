//! The PL011 that the device tree names. Without one, lines go nowhere.

use super::wait_until;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use spin::Mutex;

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const TRANSMIT_FULL: u32 = 1 << 5;
const RECEIVE_EMPTY: u32 = 1 << 4;

static BASE: AtomicUsize = AtomicUsize::new(0);
static LINE: Mutex<()> = Mutex::new(());
/// The last byte was lost.
static STUCK: AtomicBool = AtomicBool::new(false);

/// Sends lines to the UART at `base` from here on.
pub(super) fn set(base: u64) {
    BASE.store(usize::try_from(base).unwrap_or(0), Ordering::Relaxed);
}

/// Prints a line that no other CPU's line mixes with.
pub(super) fn line(text: fmt::Arguments<'_>) {
    let _whole_line = LINE.lock();
    write_line(text);
}

/// Prints a character.
pub(super) fn say(character: u8) {
    let _between_lines = LINE.lock();
    put(character);
}

/// A character that has arrived, if there is a UART.
pub(super) fn hear() -> Option<u8> {
    let base = BASE.load(Ordering::Relaxed);
    let waits = base != 0 && read_register(base + FLAGS) & RECEIVE_EMPTY == 0;
    waits.then(|| {
        let [character, ..] = read_register(base + DATA).to_le_bytes();
        character
    })
}

/// Prints a line even if a CPU died in the middle of one.
pub(super) fn urgent_line(text: fmt::Arguments<'_>) {
    let mut guard = None;
    wait_until(1, || {
        guard = LINE.try_lock();
        guard.is_some()
    });
    write_line(text);
}

fn write_line(text: fmt::Arguments<'_>) {
    // Uart's writes cannot fail; a Display that does loses the rest of its line.
    let _ = writeln!(Uart, "{text}");
}

struct Uart;

impl Write for Uart {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 {
        return;
    }
    // A UART that is never ready loses bytes, not the machine: behind one that was lost nothing waits.
    let patience = if STUCK.load(Ordering::Relaxed) { 1 } else { 1_000_000 };
    let ready = (0..patience).any(|_| read_register(base + FLAGS) & TRANSMIT_FULL == 0);
    STUCK.store(!ready, Ordering::Relaxed);
    if ready {
        write_data(base, byte);
    }
}

/// Reads a register of the UART. Of the data register that takes the character out.
fn read_register(address: usize) -> u32 {
    let register = core::ptr::with_exposed_provenance::<u32>(address);
    // SAFETY: the device tree says that a PL011 is there, and the map has it as device memory.
    unsafe { register.read_volatile() }
}

fn write_data(base: usize, byte: u8) {
    let register = core::ptr::with_exposed_provenance_mut::<u32>(base + DATA);
    // SAFETY: as for `read_register`; the register takes the byte and nothing else happens.
    unsafe { register.write_volatile(u32::from(byte)) }
}
