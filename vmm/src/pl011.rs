//! A PL011 UART (Arm DDI 0183), revision r1p3: 16 characters in, any number out.
//!
//! What is sent leaves at once, so the transmitter is never full and its interrupt is raised by
//! every character. The receive interrupt is up for as long as a character waits: the trigger
//! levels of UARTIFLS are kept but mean 1, and there is no receive timeout, which would say the same.
//! Baud rate, parity, modem lines, loopback and DMA are registers without effect. A character is sent
//! whether the UART is enabled or not, as a boot console expects that firmware did that.

use arrayvec::ArrayVec;

/// UARTDR.
const DATA: u64 = 0x000;
/// UARTFR.
const FLAGS: u64 = 0x018;
const ILPR: u64 = 0x020;
const IBRD: u64 = 0x024;
const FBRD: u64 = 0x028;
const LINE_CONTROL: u64 = 0x02c;
const CONTROL: u64 = 0x030;
const IFLS: u64 = 0x034;
/// UARTIMSC.
const MASK: u64 = 0x038;
/// UARTRIS.
const RAW_STATUS: u64 = 0x03c;
/// UARTMIS.
const MASKED_STATUS: u64 = 0x040;
/// UARTICR.
const CLEAR: u64 = 0x044;
const DMA_CONTROL: u64 = 0x048;
/// UARTPeriphID0..3 and UARTPCellID0..3.
const IDENTITY: [u32; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
const IDENTITY_AT: u64 = 0xfe0;

/// UARTFR: transmit FIFO empty.
const TXFE: u32 = 1 << 7;
/// UARTFR: receive FIFO full.
const RXFF: u32 = 1 << 6;
/// UARTFR: receive FIFO empty.
const RXFE: u32 = 1 << 4;
/// Transmit and receive bit of the interrupt registers.
const TX: u32 = 1 << 5;
const RX: u32 = 1 << 4;

/// Characters that wait to be read at most.
pub const FIFO: usize = 16;

/// The device.
#[derive(Clone, Debug)]
pub struct Pl011 {
    received: ArrayVec<u8, FIFO>,
    sent: bool,
    mask: u32,
    control: u32,
    line_control: u32,
    levels: u32,
    ilpr: u32,
    divisor: [u32; 2],
    dma: u32,
}

impl Default for Pl011 {
    /// As after reset.
    fn default() -> Self {
        Self {
            received: ArrayVec::new(),
            sent: false,
            mask: 0,
            control: 0x300,
            line_control: 0,
            levels: 0x12,
            ilpr: 0,
            divisor: [0; 2],
            dma: 0,
        }
    }
}

impl Pl011 {
    /// What a load finds at `offset`, and what it takes out: UARTDR has each character once.
    pub fn read(&mut self, offset: u64) -> u32 {
        match offset {
            DATA => self.received.pop_at(0).map_or(0, u32::from),
            FLAGS => self.flags(),
            ILPR => self.ilpr,
            IBRD => self.divisor[0],
            FBRD => self.divisor[1],
            LINE_CONTROL => self.line_control,
            CONTROL => self.control,
            IFLS => self.levels,
            MASK => self.mask,
            RAW_STATUS => self.status(),
            MASKED_STATUS => self.status() & self.mask,
            DMA_CONTROL => self.dma,
            IDENTITY_AT.. if offset.is_multiple_of(4) => {
                let nth = offset.wrapping_sub(IDENTITY_AT).wrapping_div(4);
                usize::try_from(nth).ok().and_then(|nth| IDENTITY.get(nth)).copied().unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// What a store does; a character that is sent.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<u8> {
        match offset {
            DATA => {
                self.sent = true;
                let [character, ..] = value.to_le_bytes();
                return Some(character);
            }
            ILPR => self.ilpr = value & 0xff,
            IBRD => self.divisor[0] = value & 0xffff,
            FBRD => self.divisor[1] = value & 0x3f,
            LINE_CONTROL => self.line_control = value & 0xff,
            CONTROL => self.control = value & 0xff87,
            IFLS => self.levels = value & 0x3f,
            MASK => self.mask = value & 0x7ff,
            CLEAR => self.sent &= value & TX == 0,
            DMA_CONTROL => self.dma = value & 7,
            _ => {}
        }
        None
    }

    /// A character arrives.
    ///
    /// # Errors
    /// The character again if [`FIFO`] others wait: it may be offered later.
    pub fn receive(&mut self, character: u8) -> Result<(), u8> {
        self.received.try_push(character).map_err(|full| full.element())
    }

    /// True if its interrupt is asserted.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.status() & self.mask != 0
    }

    fn status(&self) -> u32 {
        let sent = if self.sent { TX } else { 0 };
        if self.received.is_empty() { sent } else { sent | RX }
    }

    fn flags(&self) -> u32 {
        let empty = if self.received.is_empty() { RXFE } else { 0 };
        let full = if self.received.is_full() { RXFF } else { 0 };
        TXFE | empty | full
    }
}

#[cfg(test)]
mod tests {
    use super::{CLEAR, DATA, FIFO, FLAGS, MASK, MASKED_STATUS, Pl011, RAW_STATUS, RX, RXFE, RXFF, TX};

    #[test]
    fn what_is_stored_is_sent_and_the_transmitter_is_never_full() {
        let mut uart = Pl011::default();
        for byte in *b"hello" {
            assert_eq!(uart.read(FLAGS) & (1 << 5 | 1 << 3), 0, "full or busy");
            assert_eq!(uart.write(DATA, 0xff00 | u32::from(byte)), Some(byte));
        }
        assert_eq!(uart.write(0x2c, 0x70), None);
    }

    #[test]
    fn a_character_that_was_sent_raises_the_interrupt_until_it_is_cleared_or_masked() {
        let mut uart = Pl011::default();
        uart.write(MASK, TX);
        assert!(!uart.interrupt(), "nothing was sent yet");
        uart.write(DATA, 0x41);
        assert!(uart.interrupt());
        uart.write(MASK, 0);
        assert_eq!((uart.interrupt(), uart.read(RAW_STATUS), uart.read(MASKED_STATUS)), (false, TX, 0));
        uart.write(MASK, TX);
        assert!(uart.interrupt());
        uart.write(CLEAR, RX);
        assert!(uart.interrupt());
        uart.write(CLEAR, TX);
        assert!(!uart.interrupt());
    }

    #[test]
    fn characters_arrive_in_order_and_the_interrupt_stays_until_the_last_is_read() {
        let mut uart = Pl011::default();
        uart.write(MASK, RX);
        assert_eq!((uart.read(FLAGS) & RXFE, uart.read(DATA)), (RXFE, 0));
        for byte in 0..u8::try_from(FIFO).unwrap() {
            uart.receive(byte).unwrap();
        }
        assert_eq!(uart.receive(b'x'), Err(b'x'));
        assert_eq!(uart.read(FLAGS) & (RXFE | RXFF), RXFF);
        // Linux clears what it finds before it opens the port: what waits must not be forgotten.
        uart.write(CLEAR, 0x7ff);
        for byte in 0..u32::try_from(FIFO).unwrap() {
            assert!(uart.interrupt());
            assert_eq!(uart.read(DATA), byte);
        }
        assert!(!uart.interrupt());
    }

    #[test]
    fn it_says_what_it_is() {
        let mut uart = Pl011::default();
        let identity: u32 = (0..4).map(|n| uart.read(0xfe0 + 4 * n) << (8 * n)).sum();
        assert_eq!(identity & 0x000f_ffff, 0x0004_1011);
        let cell: u32 = (0..4).map(|n| uart.read(0xff0 + 4 * n) << (8 * n)).sum();
        assert_eq!(cell, 0xb105_f00d, "PrimeCell");
        assert_eq!((uart.read(0xfe1), uart.read(0x30), uart.read(0x1000)), (0, 0x300, 0));
    }
}
