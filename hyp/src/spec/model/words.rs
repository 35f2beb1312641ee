//! Table words as the architecture and docs/pgtable.md define them, read apart from `pgtable` so
//! that one misreading does not hide in both.
//!
//! Arm ARM D8.3, 4 KiB granule, 48 bits.
#![forbid(unsafe_code)]

use super::state::{NO_TAG, RWX};

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Absent,
    Note(Note),
    Table(u64),
    /// A page, or the first page of a block, with what it allows (R 1, W 2, X 4), 8 if not its tags, and bits 56:55.
    /// A note that names a page is one too.
    Leaf {
        pfn: u64,
        prot: u8,
        state: u8,
    },
    /// Nothing that may stand in a table whose lock is free.
    Corrupt,
}

/// What an invalid word that is not 0 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    OfHyp,
    OfGuest { handle: u16, gfn: u64 },
    Ram,
    Destroyed,
    Guard,
}

const FRAME_BITS: u64 = (1 << 36) - 1;

const fn bits(word: u64, high: u32, low: u32) -> u64 {
    word << 63_u32.saturating_sub(high) >> 63_u32.saturating_sub(high).saturating_add(low)
}

const fn frame(word: u64) -> u64 {
    word >> 12 & FRAME_BITS
}

/// Low bits of a number that has no others.
#[allow(clippy::cast_possible_truncation, reason = "fields of at most 16 bits")]
const fn low16(n: u64) -> u16 {
    n as u16
}

fn note(word: u64, level: u8) -> Word {
    const PENDING: u64 = 5;
    if bits(word, 63, 60) == PENDING {
        let [prot, ..] = bits(word, 3, 1).to_le_bytes();
        let [state, ..] = bits(word, 5, 4).to_le_bytes();
        let rest = bits(word, 59, 52) | bits(word, 11, 6);
        return match (level, state, rest) {
            (3, 0 | 2, 0) => Word::Leaf { pfn: frame(word), prot: prot | NO_TAG, state },
            _ => Word::Corrupt,
        };
    }
    let note = match (bits(word, 63, 60), bits(word, 3, 1), bits(word, 59, 4)) {
        (2, 1, 0) => Note::OfHyp,
        (2, 2, _) => Note::OfGuest { handle: low16(bits(word, 19, 4)), gfn: bits(word, 59, 20) },
        (3, 1, 0) => Note::Ram,
        (3, 2, 0) => Note::Destroyed,
        (4, 0, 0) => Note::Guard,
        _ => return Word::Corrupt,
    };
    Word::Note(note)
}

/// True for a valid word that points to a table, or `None` for one that may not stand at `level`.
const fn is_table(word: u64, level: u8) -> Option<bool> {
    match (word & 2 != 0, level) {
        (true, 0..=2) => Some(true),
        (true, 3) | (false, 1 | 2) => Some(false),
        _ => None,
    }
}

/// A word of a stage-2 table.
pub(super) fn stage2(word: u64, level: u8) -> Word {
    if word == 0 {
        return Word::Absent;
    }
    if word & 1 == 0 {
        return note(word, level);
    }
    match is_table(word, level) {
        None => Word::Corrupt,
        Some(true) => Word::Table(frame(word)),
        Some(false) => {
            // XN in bit 54 means the same with and without FEAT_XNX as long as bit 53 is 0.
            let execute = if bits(word, 54, 53) == 0 { 4 } else { 0 };
            let no_tag = bits(word, 57, 57) << 3;
            let [prot, ..] = (bits(word, 7, 6) | execute | no_tag).to_le_bytes();
            let [state, ..] = bits(word, 56, 55).to_le_bytes();
            Word::Leaf { pfn: frame(word), prot, state }
        }
    }
}

const WINDOW: u64 = 6 << 60;

/// A word of EL2's own table.
pub(super) fn stage1(word: u64, level: u8) -> Word {
    if word & 1 == 0 {
        // A window slot that shows nothing keeps its table by a note of type 6.
        return match (word, level) {
            (0, _) | (WINDOW, 2 | 3) => Word::Absent,
            _ => Word::Corrupt,
        };
    }
    match is_table(word, level) {
        None => Word::Corrupt,
        Some(true) => Word::Table(frame(word)),
        Some(false) => {
            let read_only = if bits(word, 7, 7) == 1 { 2 } else { 0 };
            let execute_never = if bits(word, 54, 54) == 1 { 4 } else { 0 };
            Word::Leaf { pfn: frame(word), prot: RWX & !read_only & !execute_never, state: 0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Note, Word, stage1, stage2};

    #[test]
    fn stage_2_words_by_hand() {
        assert_eq!(stage2(0, 3), Word::Absent);
        assert_eq!(stage2(0x4012_3003, 2), Word::Table(0x40123));
        assert_eq!(stage2(0x4012_37ff, 3), Word::Leaf { pfn: 0x40123, prot: 7, state: 0 });
        assert_eq!(stage2(0x4020_07fd, 2), Word::Leaf { pfn: 0x40200, prot: 7, state: 0 });
        let read_only_borrowed = 0x4012_377f | 1 << 54 | 1 << 56;
        assert_eq!(stage2(read_only_borrowed, 3), Word::Leaf { pfn: 0x40123, prot: 1, state: 2 });
        assert_eq!(
            stage2(0x4012_37ff | 1 << 57, 3),
            Word::Leaf { pfn: 0x40123, prot: 15, state: 0 },
            "without tags"
        );
        assert_eq!(stage2(0x4012_37fd, 3), Word::Corrupt);
        assert_eq!(stage2(0x4012_37fd, 0), Word::Corrupt);
    }

    #[test]
    fn notes_by_hand() {
        assert_eq!(stage2(0x2000_0000_0000_0002, 3), Word::Note(Note::OfHyp));
        let guest = Note::OfGuest { handle: 0x1234, gfn: 0x0056_789a };
        assert_eq!(stage2(0x2000_0567_89a1_2344, 3), Word::Note(guest));
        assert_eq!(stage2(0x3000_0000_0000_0002, 2), Word::Note(Note::Ram));
        assert_eq!(stage2(0x3000_0000_0000_0004, 2), Word::Note(Note::Destroyed));
        assert_eq!(stage2(0x4000_0000_0000_0000, 3), Word::Note(Note::Guard));
        let waits = |state| Word::Leaf { pfn: 0x40123, prot: 15, state };
        assert_eq!(stage2(0x5000_0000_4012_300e, 3), waits(0));
        assert_eq!(stage2(0x5000_0000_4012_302e, 3), waits(2));
        for word in [0x5000_0000_4012_301e, 0x5000_0000_4012_304e, 0x5010_0000_4012_300e] {
            assert_eq!(stage2(word, 3), Word::Corrupt, "{word:#x}");
        }
        assert_eq!(stage2(0x5000_0000_4020_000e, 2), Word::Corrupt);
        // LOCKED, reserved types, payload where there is none.
        for word in [1 << 60, 6 << 60, 15 << 60, 3 << 60, 0x3000_0000_0000_0006, 0x4000_0000_0000_0010, 2] {
            assert_eq!(stage2(word, 3), Word::Corrupt, "{word:#x}");
        }
    }

    #[test]
    fn stage_1_words_by_hand() {
        assert_eq!(stage1(0x4012_3703 | 1 << 54, 3), Word::Leaf { pfn: 0x40123, prot: 3, state: 0 });
        assert_eq!(stage1(0x4012_3783, 3), Word::Leaf { pfn: 0x40123, prot: 5, state: 0 });
        assert_eq!(stage1(0x4012_3003, 1), Word::Table(0x40123));
        assert_eq!(stage1(0x4012_3002, 3), Word::Corrupt);
        let window = [1, 2, 3].map(|level| stage1(6 << 60, level));
        assert_eq!(window, [Word::Corrupt, Word::Absent, Word::Absent]);
    }
}
