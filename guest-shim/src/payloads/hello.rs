//! `Hello`: a line over the PL011, and every width of load from it.
#![forbid(unsafe_code)]

use super::{Env, Outcome, guard};
use crate::cpu::Width;
use crate::protocol::{HELLO, UART};

const DATA: u64 = 0;
const FLAGS: u64 = 0x18;
const TRANSMIT_FULL: u64 = 1 << 5;
/// UARTPeriphID0 to 3, one byte each in a word (Arm DDI 0183).
const PERIPHERAL_ID: [(u64, u64); 4] = [(0xfe0, 0x11), (0xfe4, 0x10), (0xfe8, 0x14), (0xfec, 0x00)];

pub(super) fn run(env: &Env<'_>) -> Outcome {
    guard::mark_uart(env)?;
    say(env)
}

/// Looks what device it is, and says [`HELLO`].
pub(super) fn say(env: &Env<'_>) -> Outcome {
    let uart = UART + env.start.kind.shared();
    for (offset, value) in PERIPHERAL_ID {
        for width in [Width::Byte, Width::Half, Width::Word] {
            env.equal(env.cpu.read(width, uart + offset), value)?;
        }
    }
    let widths = [Width::Byte, Width::Half, Width::Word];
    for (byte, width) in HELLO.bytes().chain([b'\n']).zip(widths.into_iter().cycle()) {
        while env.cpu.read(Width::Word, uart + FLAGS) & TRANSMIT_FULL != 0 {}
        // What is beyond the width, or beyond the register's eight bits, is nobody's business.
        env.cpu.write(width, uart + DATA, u64::from(byte) | 0xdead_0000_0000);
    }
    Ok(())
}
