//! What a guest says on its UART, line by line.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;

/// Longest line; of a longer one the end is lost.
const LONGEST: usize = 160;

/// The line that is being sent, and the last whole one.
#[derive(Debug, Default)]
pub struct Console {
    sent: ArrayVec<u8, LONGEST>,
    line: ArrayVec<u8, LONGEST>,
}

impl Console {
    /// Takes a character; true if it ends a line. Carriage returns are dropped.
    pub fn take(&mut self, character: u8) -> bool {
        match character {
            b'\n' => {
                self.line = core::mem::take(&mut self.sent);
                return true;
            }
            b'\r' => {}
            _ => drop(self.sent.try_push(character)),
        }
        false
    }

    /// The last whole line, or nothing if it is no text.
    #[must_use]
    pub fn line(&self) -> &str {
        core::str::from_utf8(&self.line).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::{Console, LONGEST};

    #[test]
    fn characters_become_lines() {
        let mut console = Console::default();
        let ends = b"one\ntwo\r\nthr".iter().filter(|character| console.take(**character)).count();
        assert_eq!((ends, console.line()), (2, "two"));
        for _ in 0..2 * LONGEST {
            assert!(!console.take(b'x'));
        }
        assert!(console.take(b'\n'));
        assert_eq!(console.line().len(), LONGEST);
    }
}
