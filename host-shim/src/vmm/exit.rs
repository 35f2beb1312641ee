//! The exit record as the host reads it: one reason, and nothing that the reason does not define.
#![forbid(unsafe_code)]

use super::VmmError;
use abi::exit::{ExitFlags, MAX_LRS, Reason, word};

/// Why a vCPU came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are those of the record, see docs/abi.md")]
pub struct Exit {
    pub reason: Reason,
    pub flags: ExitFlags,
    pub gpa: u64,
    pub size: u32,
    pub write: bool,
    pub data: u64,
    pub base: u64,
    pub top: u64,
    pub want: u32,
    pub need_pages: u32,
    pub repeat: u32,
    pub vtimer: u64,
}

/// Words of the record that an exit defines, besides the reason's.
pub(super) const WORDS: usize = word::VTIMER + 1;

const fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

impl Exit {
    /// Reads the first words of a record.
    pub(super) fn from_words(words: &[u64; WORDS]) -> Result<Self, VmmError> {
        let &[first, gpa, third, data, base, top, seventh, eighth, vtimer] = words;
        let ((reason, flags), (size, dir)) = (halves(first), halves(third));
        let ((want, need_pages), (repeat, pad)) = (halves(seventh), halves(eighth));
        let reason = Reason::from_u32(reason).ok_or(VmmError::Contract("unknown reason", first))?;
        let flags = ExitFlags::from_bits(flags).ok_or(VmmError::Contract("unknown flags", first))?;
        let write = match dir {
            0 => false,
            1 => true,
            _ => return Err(VmmError::Contract("dir is neither", third)),
        };
        let exit =
            Self { reason, flags, gpa, size, write, data, base, top, want, need_pages, repeat, vtimer };
        if pad == 0 && exit.only_defined() == exit {
            Ok(exit)
        } else {
            Err(VmmError::Contract("a field that the reason does not define", first))
        }
    }

    /// The same exit with every field 0 that its reason does not define.
    fn only_defined(self) -> Self {
        let Self { reason, flags, gpa, size, write, data, base, top, want, need_pages, repeat, vtimer } =
            self;
        let none = Self {
            reason,
            flags: ExitFlags::empty(),
            gpa: 0,
            size: 0,
            write: false,
            data: 0,
            base: 0,
            top: 0,
            want: 0,
            need_pages: 0,
            repeat: 0,
            vtimer,
        };
        match reason {
            Reason::Irq => Self { flags: flags & ExitFlags::SERROR, ..none },
            Reason::Wfx | Reason::HostCall => Self { want, ..none },
            Reason::Psci => Self { data, base, ..none },
            Reason::Mmio => Self { gpa, size, write, data, ..none },
            Reason::MemFault => {
                let of_a_fault = ExitFlags::PRIVATE
                    | ExitFlags::TAG_ACCESS
                    | ExitFlags::DESTROYED
                    | ExitFlags::WRITE
                    | ExitFlags::EXEC;
                Self { flags: flags & of_a_fault, gpa, size, repeat, ..none }
            }
            Reason::NeedMem => Self { need_pages, ..none },
            Reason::Sgi | Reason::Trap => Self { data, ..none },
            Reason::Relinquished => Self { base, top, ..none },
            Reason::RipasChange => {
                Self { flags: flags & ExitFlags::CHANGE_DESTROYED, base, top, want, ..none }
            }
            Reason::Dead => none,
        }
    }
}

const _: () = assert!(MAX_LRS == 16);

#[cfg(test)]
mod tests {
    use super::{Exit, Reason, WORDS};

    fn words(reason: Reason) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[0] = reason as u64;
        words
    }

    #[test]
    fn an_mmio_store_is_read_whole() {
        let mut w = words(Reason::Mmio);
        (w[1], w[2], w[3], w[8]) = (0x900_0000, 1 << 32 | 2, 0xbeef, 77);
        let exit = Exit::from_words(&w).unwrap();
        assert_eq!(
            (exit.gpa, exit.size, exit.write, exit.data, exit.vtimer),
            (0x900_0000, 2, true, 0xbeef, 77)
        );
    }

    #[test]
    fn what_the_reason_does_not_define_must_be_zero() {
        for reason in Reason::ALL {
            assert!(Exit::from_words(&words(reason)).is_ok());
            // The padding, and fields that no reason but one has.
            let mut w = words(reason);
            w[7] = 1 << 32;
            assert!(Exit::from_words(&w).is_err(), "{reason:?}");
            let mut w = words(reason);
            w[6] = 1 << 32;
            assert_eq!(Exit::from_words(&w).is_ok(), reason == Reason::NeedMem, "{reason:?}");
            let mut w = words(reason);
            w[5] = 1;
            let ranges = [Reason::Relinquished, Reason::RipasChange];
            assert_eq!(Exit::from_words(&w).is_ok(), ranges.contains(&reason), "{reason:?}");
        }
        let mut w = words(Reason::Irq);
        w[0] |= 1 << 32 << 3;
        assert!(Exit::from_words(&w).is_err(), "PRIVATE belongs to a fault");
    }

    #[test]
    fn nonsense_is_refused() {
        for first in [0, 13, u64::MAX, 1 | 1 << 63] {
            let mut w = [0; WORDS];
            w[0] = first;
            assert!(Exit::from_words(&w).is_err(), "{first:#x}");
        }
        let mut w = words(Reason::Mmio);
        w[2] = 2 << 32;
        assert!(Exit::from_words(&w).is_err());
    }
}
