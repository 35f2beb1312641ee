//! Notes: what an invalid stage-2 entry says (design: one typed enum, one encoder, one decoder).
//!
//! The hardware ignores bits 63:1 of an entry whose bit 0 is clear (Arm ARM table D8-55), at every
//! level. Rampart keeps a type in bits 63:60 and a payload below it:
//!
//! | type | note | payload |
//! |---|---|---|
//! | 0 | none | the whole word is 0: [`super::Entry::Absent`] |
//! | 1 | LOCKED | only while an entry is being changed; not a [`Note`], so nobody can ask for it |
//! | 2 | [`Note::HostDonated`] | owner 3:1, VM handle 19:4, gfn 59:20 |
//! | 3 | [`Note::Ripas`] | 2:1 |
//! | 4 | [`Note::MmioGuard`] | none |
//! | 5 | [`Note::NoTagPending`] | r 1, w 2, x 3, page state 5:4, pfn 51:12 |
//!
//! Invariant: `decode(encode(n)) == n`, and every word that `encode` cannot produce is refused.
//! Values, so they need no lock.
#![forbid(unsafe_code)]

use super::entry::Corrupt;
use super::level::Level;
use super::stage2::{Access, LeafState};
use crate::addr::{Gfn, PFN_LIMIT, Pfn};
use bitflags::bitflags;
use static_assertions::const_assert_eq;

/// An entry of the host's table for a page it may not touch, or of a guest's for a page that has
/// no memory but a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Note {
    /// Host table: the page belongs to somebody else. Level 3 only, unless it is EL2's for good.
    HostDonated(Owner),
    /// Guest table: state of an unbacked page of a protected VM. Levels 1 to 3.
    Ripas(Ripas),
    /// Guest table: the guest declared this page to be device emulation by the host. Level 3 only.
    MmioGuard,
    /// Guest table: a page without tag storage that may only be mapped once it has some, on a CPU
    /// without FEAT_MTE_PERM. Level 3 only.
    NoTagPending {
        /// The page that waits.
        page: Pfn,
        /// What the guest was given.
        access: Access,
        /// Owned or SharedBorrowed.
        state: PendingState,
    },
}

/// Who owns a page that the host's table withholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// EL2.
    Hyp,
    /// A guest, at this frame of its IPA space.
    Guest {
        /// VM handle.
        handle: u16,
        /// Where the guest has it.
        gfn: Gfn,
    },
    /// The secure world, by FF-A.
    Ffa,
}

/// State of a protected page that has no memory; EMPTY is the absent entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ripas {
    /// The guest expects memory here; the host has not given any yet.
    Ram,
    /// The host took the memory away; the contents are lost.
    Destroyed,
}

/// Page states that a page waiting for tags can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PendingState {
    /// The guest owns the page.
    Owned,
    /// The host owns the page and shares it.
    SharedBorrowed,
}

impl Owner {
    #[inline]
    const fn decode(payload: u64) -> Option<Self> {
        match OWNER.get(payload) {
            OWNER_GUEST => {
                let Ok(gfn) = Gfn::new(GFN.get(payload)) else { return None };
                #[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
                let handle = HANDLE.get(payload) as u16;
                Some(Self::Guest { handle, gfn })
            }
            OWNER_HYP if payload == OWNER.put(OWNER_HYP) => Some(Self::Hyp),
            OWNER_FFA if payload == OWNER.put(OWNER_FFA) => Some(Self::Ffa),
            _ => None,
        }
    }
}

bitflags! {
    /// Which notes may stand in a table: any other is corruption there.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NoteKinds: u8 {
        /// [`Note::HostDonated`]: the host's table.
        const HOST_DONATED = 1 << 0;
        /// [`Ripas::Ram`]: VMs with split IPA.
        const RIPAS_RAM = 1 << 1;
        /// [`Ripas::Destroyed`]: protected VMs.
        const RIPAS_DESTROYED = 1 << 2;
        /// [`Note::MmioGuard`].
        const MMIO_GUARD = 1 << 3;
        /// [`Note::NoTagPending`]: VMs with lazy tags on a CPU without FEAT_MTE_PERM.
        const NO_TAG_PENDING = 1 << 4;
    }
}

/// A field of a note word.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    bits: u32,
}

impl Field {
    const fn mask(self) -> u64 {
        u64::MAX.wrapping_shr(64_u32.wrapping_sub(self.bits)).wrapping_shl(self.shift)
    }

    const fn put(self, value: u64) -> u64 {
        value.wrapping_shl(self.shift) & self.mask()
    }

    const fn get(self, word: u64) -> u64 {
        (word & self.mask()).wrapping_shr(self.shift)
    }
}

const TYPE: Field = Field { shift: 60, bits: 4 };
const OWNER: Field = Field { shift: 1, bits: 3 };
const HANDLE: Field = Field { shift: 4, bits: 16 };
const GFN: Field = Field { shift: 20, bits: 40 };
const RIPAS: Field = Field { shift: 1, bits: 2 };
const PENDING_ACCESS: Field = Field { shift: 1, bits: 3 };
const PENDING_STATE: Field = Field { shift: 4, bits: 2 };
const PENDING_PFN: Field = Field { shift: 12, bits: 40 };

const VALID_BIT: u64 = 1;
// Fields of one type and the type field are disjoint, leave bit 0 clear, and type 2 uses it all.
const_assert_eq!(VALID_BIT ^ OWNER.mask() ^ HANDLE.mask() ^ GFN.mask() ^ TYPE.mask(), u64::MAX);
const_assert_eq!(RIPAS.mask() & (VALID_BIT | TYPE.mask()), 0);
const_assert_eq!(PENDING_ACCESS.mask() & (VALID_BIT | PENDING_STATE.mask()), 0);
const_assert_eq!(
    PENDING_PFN.mask() & (VALID_BIT | TYPE.mask() | PENDING_ACCESS.mask() | PENDING_STATE.mask()),
    0
);

const TYPE_LOCKED: u64 = 1;
const TYPE_HOST_DONATED: u64 = 2;
const TYPE_RIPAS: u64 = 3;
const TYPE_MMIO_GUARD: u64 = 4;
const TYPE_NO_TAG_PENDING: u64 = 5;

/// The word of an entry whose change is under way.
pub(super) const LOCKED: u64 = TYPE.put(TYPE_LOCKED);

const OWNER_HYP: u64 = 1;
const OWNER_GUEST: u64 = 2;
const OWNER_FFA: u64 = 3;
const RIPAS_RAM: u64 = 1;
const RIPAS_DESTROYED: u64 = 2;

/// True for the word of a note that carries a page: what is true of leaves, but for translation, is true of it.
#[inline]
pub(super) const fn carries_page(word: u64) -> bool {
    word & VALID_BIT == 0 && TYPE.get(word) == TYPE_NO_TAG_PENDING
}

impl Note {
    /// The word of this note.
    #[must_use]
    #[inline(always)]
    pub(super) const fn encode(self) -> u64 {
        match self {
            Self::HostDonated(owner) => {
                let payload = match owner {
                    Owner::Hyp => OWNER.put(OWNER_HYP),
                    Owner::Guest { handle, gfn } => {
                        OWNER.put(OWNER_GUEST) | HANDLE.put(handle as u64) | GFN.put(gfn.raw())
                    }
                    Owner::Ffa => OWNER.put(OWNER_FFA),
                };
                TYPE.put(TYPE_HOST_DONATED) | payload
            }
            Self::Ripas(Ripas::Ram) => TYPE.put(TYPE_RIPAS) | RIPAS.put(RIPAS_RAM),
            Self::Ripas(Ripas::Destroyed) => TYPE.put(TYPE_RIPAS) | RIPAS.put(RIPAS_DESTROYED),
            Self::MmioGuard => TYPE.put(TYPE_MMIO_GUARD),
            Self::NoTagPending { page, access, state } => {
                let state = match state {
                    PendingState::Owned => LeafState::Owned,
                    PendingState::SharedBorrowed => LeafState::SharedBorrowed,
                };
                TYPE.put(TYPE_NO_TAG_PENDING)
                    | PENDING_ACCESS.put(access.bits() as u64)
                    | PENDING_STATE.put(state.bits())
                    | PENDING_PFN.put(page.raw())
            }
        }
    }

    /// The note that `word`, invalid and not 0, says. What its type does not define must be 0.
    ///
    /// # Errors
    /// [`Corrupt::Locked`], [`Corrupt::NoteType`], [`Corrupt::NotePayload`].
    #[inline]
    pub(super) const fn decode(word: u64) -> Result<Self, Corrupt> {
        let payload = word & !TYPE.mask();
        let note = match TYPE.get(word) {
            TYPE_LOCKED if payload == 0 => return Err(Corrupt::Locked),
            TYPE_HOST_DONATED => match Owner::decode(payload) {
                Some(owner) => Self::HostDonated(owner),
                None => return Err(Corrupt::NotePayload),
            },
            TYPE_RIPAS if payload == RIPAS.put(RIPAS_RAM) => Self::Ripas(Ripas::Ram),
            TYPE_RIPAS if payload == RIPAS.put(RIPAS_DESTROYED) => Self::Ripas(Ripas::Destroyed),
            TYPE_MMIO_GUARD if payload == 0 => Self::MmioGuard,
            TYPE_NO_TAG_PENDING => match Self::decode_pending(payload) {
                Some(note) => note,
                None => return Err(Corrupt::NotePayload),
            },
            TYPE_RIPAS | TYPE_MMIO_GUARD => return Err(Corrupt::NotePayload),
            _ => return Err(Corrupt::NoteType),
        };
        Ok(note)
    }

    const fn decode_pending(payload: u64) -> Option<Self> {
        let defined = PENDING_PFN.mask() | PENDING_ACCESS.mask() | PENDING_STATE.mask();
        let Ok(page) = Pfn::new(PENDING_PFN.get(payload)) else { return None };
        #[expect(clippy::cast_possible_truncation, reason = "the field has 3 bits")]
        let access = Access::from_bits_truncate(PENDING_ACCESS.get(payload) as u8);
        let state = match LeafState::from_bits(PENDING_STATE.get(payload)) {
            Some(LeafState::Owned) => PendingState::Owned,
            Some(LeafState::SharedBorrowed) => PendingState::SharedBorrowed,
            _ => return None,
        };
        if payload & !defined != 0 {
            return None;
        }
        Some(Self::NoTagPending { page, access, state })
    }

    /// The shallowest level at which the note may stand.
    #[must_use]
    #[inline]
    pub const fn shallowest(self) -> Level {
        match self {
            // A withheld device window may fill a level-0 entry, and it never comes back.
            Self::HostDonated(Owner::Hyp) => Level::L0,
            Self::Ripas(_) => Level::L1,
            Self::HostDonated(_) | Self::MmioGuard | Self::NoTagPending { .. } => Level::L3,
        }
    }

    /// The set that holds just this note's kind.
    #[must_use]
    #[inline]
    pub const fn kind(self) -> NoteKinds {
        match self {
            Self::HostDonated(_) => NoteKinds::HOST_DONATED,
            Self::Ripas(Ripas::Ram) => NoteKinds::RIPAS_RAM,
            Self::Ripas(Ripas::Destroyed) => NoteKinds::RIPAS_DESTROYED,
            Self::MmioGuard => NoteKinds::MMIO_GUARD,
            Self::NoTagPending { .. } => NoteKinds::NO_TAG_PENDING,
        }
    }

    /// The words of this note over `pages` pages: the first, and what to add for each page further
    /// on, since a note that names a page names the next one there.
    ///
    /// `None` if the last page would be beyond the last frame.
    #[must_use]
    pub(super) const fn run(self, pages: u64) -> Option<(u64, u64)> {
        let (frame, field) = match self {
            Self::HostDonated(Owner::Guest { gfn, .. }) => (gfn.raw(), GFN),
            Self::NoTagPending { page, .. } => (page.raw(), PENDING_PFN),
            _ => return Some((self.encode(), 0)),
        };
        if frame.saturating_add(pages) > PFN_LIMIT {
            return None;
        }
        Some((self.encode(), field.put(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        GFN, HANDLE, LOCKED, Note, NoteKinds, OWNER, Owner, PENDING_ACCESS, PENDING_PFN, PENDING_STATE,
        PendingState, RIPAS, Ripas, TYPE, TYPE_HOST_DONATED, TYPE_MMIO_GUARD, TYPE_NO_TAG_PENDING,
        TYPE_RIPAS,
    };
    use crate::addr::{Gfn, Pfn};
    use crate::pgtable::{Access, Corrupt, Level};
    use std::vec::Vec;

    /// What a snapshot tells its readers about notes.
    #[test]
    fn the_fields_that_the_interface_describes_are_these() {
        let ours = [
            (TYPE_HOST_DONATED, OWNER),
            (TYPE_HOST_DONATED, HANDLE),
            (TYPE_HOST_DONATED, GFN),
            (TYPE_RIPAS, RIPAS),
            (TYPE_NO_TAG_PENDING, PENDING_ACCESS),
            (TYPE_NO_TAG_PENDING, PENDING_STATE),
            (TYPE_NO_TAG_PENDING, PENDING_PFN),
        ];
        let bits = |note: u64, fields: &[super::Field]| {
            fields.iter().fold(TYPE.put(note), |word, field| word | field.mask())
        };
        for note in 1..16 {
            let ours: Vec<_> = ours.iter().filter(|(n, _)| *n == note).map(|(_, field)| *field).collect();
            let theirs = abi::snapshot::FIELDS.iter().filter(|field| u64::from(field.note) == note);
            let theirs: Vec<_> = theirs
                .map(|field| super::Field { shift: field.shift.into(), bits: field.bits.into() })
                .filter(|field| field.bits != 0)
                .collect();
            assert_eq!(bits(note, &ours), bits(note, &theirs), "type {note}");
        }
        let guard = abi::snapshot::FIELDS.iter().find(|field| u64::from(field.note) == TYPE_MMIO_GUARD);
        assert_eq!(guard.map(|field| field.bits), Some(0));
    }

    /// Every class of note, with the extremes of each field.
    fn legal() -> Vec<Note> {
        let mut notes = Vec::from([
            Note::HostDonated(Owner::Hyp),
            Note::HostDonated(Owner::Ffa),
            Note::Ripas(Ripas::Ram),
            Note::Ripas(Ripas::Destroyed),
            Note::MmioGuard,
        ]);
        let frames = [0, 1, 0x5_5555_5555, (1 << 36) - 1];
        for raw in frames {
            for handle in [0, 1, 0x5aa5, u16::MAX] {
                notes.push(Note::HostDonated(Owner::Guest { handle, gfn: Gfn::new(raw).unwrap() }));
            }
            for bits in 0..8 {
                for state in [PendingState::Owned, PendingState::SharedBorrowed] {
                    let access = Access::from_bits(bits).unwrap();
                    notes.push(Note::NoTagPending { page: Pfn::new(raw).unwrap(), access, state });
                }
            }
        }
        notes
    }

    #[test]
    fn every_legal_note_survives_the_round_trip_and_is_invalid_and_not_zero() {
        for note in legal() {
            let word = note.encode();
            assert_eq!(word & 1, 0, "{note:?} is valid");
            assert_ne!(word, 0, "{note:?} is absent");
            assert_eq!(Note::decode(word), Ok(note));
        }
    }

    /// The positions that dumps and other tools rely on.
    #[test]
    fn fields_are_where_the_table_says() {
        let guest = Owner::Guest { handle: 0xabcd, gfn: Gfn::new(0x1_2345_6789).unwrap() };
        assert_eq!(Note::HostDonated(guest).encode(), 2 << 60 | 2 << 1 | 0xabcd << 4 | 0x1_2345_6789 << 20);
        assert_eq!(Note::HostDonated(Owner::Hyp).encode(), 2 << 60 | 1 << 1);
        assert_eq!(Note::HostDonated(Owner::Ffa).encode(), 2 << 60 | 3 << 1);
        assert_eq!(Note::Ripas(Ripas::Ram).encode(), 3 << 60 | 1 << 1);
        assert_eq!(Note::Ripas(Ripas::Destroyed).encode(), 3 << 60 | 2 << 1);
        assert_eq!(Note::MmioGuard.encode(), 4 << 60);
        let (page, access) = (Pfn::new(0x40_0001).unwrap(), Access::R | Access::X);
        let pending = Note::NoTagPending { page, access, state: PendingState::SharedBorrowed };
        assert_eq!(pending.encode(), 5 << 60 | 0x40_0001 << 12 | 2 << 4 | 0b101 << 1);
    }

    #[test]
    fn illegal_words_are_refused_by_name() {
        assert_eq!(Note::decode(LOCKED), Err(Corrupt::Locked));
        for (word, why) in [
            (1 << 1, Corrupt::NoteType),           // type 0 with a payload
            (1 << 60 | 1 << 5, Corrupt::NoteType), // LOCKED with a payload
            (6 << 60, Corrupt::NoteType),          // reserved types
            (15 << 60 | 1 << 1, Corrupt::NoteType),
            (2 << 60, Corrupt::NotePayload), // owner 0: the host is never stored
            (2 << 60 | 4 << 1, Corrupt::NotePayload), // owners nobody defined
            (2 << 60 | 7 << 1, Corrupt::NotePayload),
            (2 << 60 | 1 << 1 | 1 << 4, Corrupt::NotePayload), // EL2 with a handle
            (2 << 60 | 3 << 1 | 1 << 20, Corrupt::NotePayload), // FF-A with a gfn
            (2 << 60 | 2 << 1 | 1 << 56, Corrupt::NotePayload), // gfn beyond 48 bits
            (3 << 60, Corrupt::NotePayload),                   // EMPTY is absent, not a note
            (3 << 60 | 3 << 1, Corrupt::NotePayload),
            (3 << 60 | 1 << 1 | 1 << 3, Corrupt::NotePayload),
            (4 << 60 | 1 << 1, Corrupt::NotePayload),
            (5 << 60 | 1 << 4, Corrupt::NotePayload), // pending and SHARED_OWNED
            (5 << 60 | 3 << 4, Corrupt::NotePayload),
            (5 << 60 | 1 << 6, Corrupt::NotePayload),
            (5 << 60 | 1 << 48, Corrupt::NotePayload), // page beyond 48 bits
        ] {
            assert_eq!(Note::decode(word), Err(why), "{word:#x}");
        }
    }

    /// Whatever the decoder accepts is exactly what the encoder makes: legal words with one, two
    /// and three bits flipped, which crosses from every type into every other.
    #[test]
    fn what_is_accepted_is_what_is_encoded() {
        let accepted =
            |word: u64| assert!(Note::decode(word).map_or(true, |note| note.encode() == word), "{word:#x}");
        for note in legal() {
            let word = note.encode();
            for a in 1..64 {
                for b in a..64 {
                    accepted(word ^ (1 << a) ^ (1 << b));
                    accepted(word ^ (1 << a) ^ (1 << b) ^ (1 << 61));
                }
            }
        }
    }

    /// The word that the first MMIO guard of KVM wrote: its bits are in the payload of type 0.
    #[test]
    fn g_24_a_guard_is_a_type_and_not_a_magic_number() {
        assert_eq!(Note::decode(0x9a9a_929e), Err(Corrupt::NoteType));
        assert_eq!(Note::MmioGuard.encode(), 4 << 60);
        for payload in [1_u64 << 1, 1 << 12, 1 << 59, 0x9a9a_929e] {
            assert_eq!(Note::decode(Note::MmioGuard.encode() | payload), Err(Corrupt::NotePayload));
        }
    }

    /// A block note is copied into all children of a split, so it must mean the same in each.
    #[test]
    fn only_notes_that_name_no_page_stand_above_level_3() {
        for note in legal() {
            if note.shallowest() < Level::L3 {
                assert_eq!(note.run(512), Some((note.encode(), 0)));
            }
        }
        assert_eq!(Note::HostDonated(Owner::Hyp).shallowest(), Level::L0);
        assert_eq!(Note::Ripas(Ripas::Ram).shallowest(), Level::L1);
        assert_eq!(Note::MmioGuard.shallowest(), Level::L3);
    }

    #[test]
    fn a_note_that_names_a_page_names_the_next_for_the_next() {
        let guest = |n| Note::HostDonated(Owner::Guest { handle: 3, gfn: Gfn::new(n).unwrap() });
        let pending = |n| Note::NoTagPending {
            page: Pfn::new(n).unwrap(),
            access: Access::R,
            state: PendingState::Owned,
        };
        for make in [&guest as &dyn Fn(u64) -> Note, &pending] {
            let (first, step) = make(7).run(6).unwrap();
            assert_eq!(Note::decode(first.wrapping_add(step.wrapping_mul(5))), Ok(make(12)));
            let last = (1 << 36) - 1;
            assert!(make(last).run(1).is_some());
            assert_eq!(make(last).run(2), None);
            assert_eq!(make(0).run(u64::MAX), None);
        }
    }

    #[test]
    fn each_note_is_of_one_kind() {
        for note in legal() {
            assert_eq!(note.kind().bits().count_ones(), 1);
        }
        assert_eq!(NoteKinds::all().bits().count_ones(), 5);
    }
}
