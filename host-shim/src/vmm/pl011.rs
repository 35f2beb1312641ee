//! As much of a PL011 (Arm DDI 0183) as a guest needs to say something.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use guest_shim::protocol::UART;

const DATA: u64 = 0x00;
const FLAGS: u64 = 0x18;
/// Transmitter and receiver are empty.
const EMPTY: u64 = 1 << 7 | 1 << 4;
/// UARTPeriphID0..3 and UARTPCellID0..3.
const IDENTITY: [u64; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
const IDENTITY_AT: u64 = 0xfe0;
const SIZE: u64 = 0x1000;
/// Longest line.
const LINE: usize = 80;

/// The device, and the last line that was sent.
#[derive(Debug, Default)]
pub(super) struct Pl011 {
    sent: ArrayVec<u8, LINE>,
    line: ArrayVec<u8, LINE>,
}

impl Pl011 {
    /// True if `address` is one of its registers.
    pub(super) fn has(address: u64) -> bool {
        (UART..UART + SIZE).contains(&address)
    }

    /// What a load finds.
    pub(super) fn load(&self, address: u64) -> u64 {
        match address - UART {
            FLAGS => EMPTY,
            at @ IDENTITY_AT.. if at % 4 == 0 => {
                let nth = usize::try_from((at - IDENTITY_AT) / 4).ok();
                nth.and_then(|n| IDENTITY.get(n)).copied().unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// What a store does. A line that is too long loses its end.
    pub(super) fn store(&mut self, address: u64, value: u64) {
        if address - UART != DATA {
            return;
        }
        match value.to_le_bytes()[0] {
            b'\n' => self.line = core::mem::take(&mut self.sent),
            byte => drop(self.sent.try_push(byte)),
        }
    }

    /// The last whole line.
    pub(super) fn line(&self) -> &str {
        core::str::from_utf8(&self.line).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::{LINE, Pl011, UART};

    #[test]
    fn bytes_become_lines() {
        let mut uart = Pl011::default();
        for byte in b"one\ntwo\nthr" {
            uart.store(UART, 0xff00 | u64::from(*byte));
            uart.store(UART + 0x30, 0x301);
        }
        assert_eq!(uart.line(), "two");
        for _ in 0..2 * LINE {
            uart.store(UART, u64::from(b'x'));
        }
        uart.store(UART, u64::from(b'\n'));
        assert_eq!(uart.line().len(), LINE);
    }

    #[test]
    fn it_is_never_full_and_says_what_it_is() {
        let uart = Pl011::default();
        assert_eq!(uart.load(UART + 0x18) & 1 << 5, 0);
        assert_eq!([0xfe0, 0xfe4, 0xfe8, 0xfec].map(|at| uart.load(UART + at)), [0x11, 0x10, 0x14, 0]);
        assert_eq!(uart.load(UART + 0xffc), 0xb1);
        assert!(Pl011::has(UART + 0xfff) && !Pl011::has(UART + 0x1000) && !Pl011::has(UART - 1));
    }
}
