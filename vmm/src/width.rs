//! How many bytes an access has.

use thiserror::Error;

/// An access is not of 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an access of {0} bytes")]
pub struct BadWidth(pub u32);

/// Bytes of an access that one load or store makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the numbers of bytes")]
pub enum Width {
    One,
    Two,
    Four,
    Eight,
}

impl Width {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// As much of `value` as the access has.
    #[must_use]
    pub const fn of(self, value: u64) -> u64 {
        match self {
            Self::One => value & 0xff,
            Self::Two => value & 0xffff,
            Self::Four => value & 0xffff_ffff,
            Self::Eight => value,
        }
    }
}

impl TryFrom<u32> for Width {
    type Error = BadWidth;

    /// # Errors
    /// [`BadWidth`] for any number but 1, 2, 4 and 8.
    fn try_from(bytes: u32) -> Result<Self, BadWidth> {
        [Self::One, Self::Two, Self::Four, Self::Eight]
            .into_iter()
            .find(|width| width.bytes() == u64::from(bytes))
            .ok_or(BadWidth(bytes))
    }
}

/// The low 32 bits of a value.
pub(crate) const fn low_word(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The high 32 bits of a value.
pub(crate) const fn high_word(value: u64) -> u32 {
    let [.., a, b, c, d] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::{Width, high_word, low_word};

    #[test]
    fn only_powers_of_two_up_to_eight_are_widths() {
        let widths: Vec<u32> = (0..20).filter(|n| Width::try_from(*n).is_ok()).collect();
        assert_eq!(widths, [1, 2, 4, 8]);
        assert_eq!(Width::Two.of(0x1234_5678), 0x5678);
        assert_eq!((low_word(0x1_0000_0002), high_word(0x1_0000_0002)), (2, 1));
    }
}
