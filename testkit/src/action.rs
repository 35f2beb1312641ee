//! What can be done to a table, as data: property tests make it up, the fuzzer mutates it.
//!
//! Numbers are small on purpose. An address is a place that matters (the ends of tables, blocks,
//! root pages and the space) and a few units to its side.
#![forbid(unsafe_code)]

use arbitrary::Arbitrary;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{collection, option};

/// Entry sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Unit {
    /// 4 KiB.
    Page,
    /// 2 MiB.
    Block2,
    /// 1 GiB.
    Block1,
}

impl Unit {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Page => 4096,
            Self::Block2 => 2 << 20,
            Self::Block1 => 1 << 30,
        }
    }

    /// Level of an entry of this size.
    #[must_use]
    pub const fn level(self) -> u8 {
        match self {
            Self::Page => 3,
            Self::Block2 => 2,
            Self::Block1 => 1,
        }
    }
}

/// An address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub struct Place {
    /// Which landmark, see [`Place::resolve`].
    pub landmark: u8,
    /// Units to its side.
    pub delta: i8,
    /// Of this size.
    pub unit: Unit,
}

impl Place {
    /// The address in a space of `limit` bytes: it may lie beyond the end, as callers may.
    #[must_use]
    pub fn resolve(self, limit: u64) -> u64 {
        const GIB: u64 = 1 << 30;
        // Ends of the space and its halves, of a level-1 table, of 2 MiB and 1 GiB blocks.
        let landmarks = [
            0,
            limit / 2,
            limit,
            512 * GIB,
            GIB,
            511 * GIB,
            3 * GIB + (2 << 20),
            7 * (2 << 20),
            2 * GIB + 0x1f_f000,
        ];
        let landmark = landmarks[usize::from(self.landmark) % landmarks.len()];
        let landmark = if landmark > limit { limit / 4 } else { landmark };
        let bytes = u64::from(self.delta.unsigned_abs() % 16) * self.unit.bytes();
        if self.delta < 0 { landmark.saturating_sub(bytes) } else { landmark + bytes }
    }
}

/// A range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub struct Stretch {
    /// Where it starts.
    pub place: Place,
    /// How many units.
    pub length: u8,
    /// Of this size.
    pub unit: Unit,
}

impl Stretch {
    /// Its ends in a space of `limit` bytes.
    #[must_use]
    pub fn resolve(self, limit: u64) -> (u64, u64) {
        let start = self.place.resolve(limit);
        (start, start + u64::from(self.length % 18) * self.unit.bytes())
    }
}

/// Where memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Output {
    /// At the address itself, shifted so that it misses the simulated RAM.
    Aligned,
    /// At the same place in a block, elsewhere.
    Congruent(Unit),
    /// Some pages off: no block fits.
    Skewed(u8),
    /// Such that the last page is the last one of the CPU, or one beyond.
    Top(u8),
}

/// Attributes, each as few bits that the regimes read as they can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub struct Attributes {
    /// Load, store, fetch, no tag accesses.
    pub access: u8,
    /// Memory type.
    pub memory: u8,
    /// Page state.
    pub state: u8,
    /// Access flag.
    pub accessed: bool,
}

/// A note, as a number that the regime reads as one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub struct NoteChoice(pub u8, pub u16);

/// What a range is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Contents {
    /// Nothing.
    Nothing,
    /// A note.
    Note(NoteChoice),
    /// Memory in entries no larger than `largest`.
    Memory {
        /// From where.
        output: Output,
        /// How.
        attributes: Attributes,
        /// Largest entry.
        largest: Unit,
    },
}

/// A change of attributes in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Edit {
    /// Allow more.
    Relax(u8),
    /// Forbid stores.
    WriteProtect,
    /// Access flag.
    Accessed(bool),
    /// Page state.
    State(u8),
    /// NO_TAG.
    NoTag(bool),
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Operation {
    /// Map what must be vacant.
    Map(Stretch, Output, Attributes, Unit),
    /// Map one largest entry around an address.
    Demand(Place, Stretch, Output, Attributes),
    /// Unmap and free tables.
    Unmap(Stretch),
    /// Write a note.
    Annotate(Stretch, NoteChoice),
    /// Prepare, then lock if so, then commit if so.
    Replace(Stretch, Contents, bool, bool),
    /// Prepare two changes, then commit both.
    Pair(Stretch, Contents, Stretch, Contents),
    /// Split to entries of at most this size.
    Split(Stretch, Unit),
    /// Fold empty tables and equal notes.
    Fold(Stretch),
    /// Fold a table to a block.
    FoldBlock(Place, Unit),
    /// Free tables whose leaves come again: up to so many, of leaves of so few kinds.
    Evict(Stretch, u8, u8),
    /// Change attributes.
    Change(Stretch, Edit),
    /// Forget everything in the TLBs.
    Flush,
}

impl Operation {
    /// Names of all kinds.
    pub const NAMES: [&str; 12] = [
        "map",
        "demand",
        "unmap",
        "annotate",
        "replace",
        "pair",
        "split",
        "fold",
        "fold_block",
        "evict",
        "change",
        "flush",
    ];

    /// The name of its kind.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        let index = match self {
            Self::Map(..) => 0,
            Self::Demand(..) => 1,
            Self::Unmap(_) => 2,
            Self::Annotate(..) => 3,
            Self::Replace(..) => 4,
            Self::Pair(..) => 5,
            Self::Split(..) => 6,
            Self::Fold(_) => 7,
            Self::FoldBlock(..) => 8,
            Self::Evict(..) => 9,
            Self::Change(..) => 10,
            Self::Flush => 11,
        };
        Self::NAMES[index]
    }
}

/// An operation, on a CPU; with `faults` every allocation it makes fails once before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub struct Action {
    /// Which CPU does it.
    pub cpu: u8,
    /// Fail first.
    pub faults: bool,
    /// What.
    pub operation: Operation,
}

fn unit() -> impl Strategy<Value = Unit> + Clone {
    prop_oneof![4 => Just(Unit::Page), 4 => Just(Unit::Block2),
        1 => Just(Unit::Block1)]
}

fn place() -> impl Strategy<Value = Place> + Clone {
    // Mostly a few landmarks, so that operations meet.
    (prop_oneof![3 => 3..6_u8, 1 => any::<u8>()], prop_oneof![4 => -2..3_i8, 1 => any::<i8>()], unit())
        .prop_map(|(landmark, delta, unit)| Place { landmark, delta, unit })
}

fn stretch() -> impl Strategy<Value = Stretch> + Clone {
    (place(), prop_oneof![6 => 1..4_u8, 1 => any::<u8>()], unit()).prop_map(|(place, length, unit)| Stretch {
        place,
        length,
        unit,
    })
}

fn output() -> impl Strategy<Value = Output> + Clone {
    prop_oneof![
        4 => Just(Output::Aligned),
        2 => unit().prop_map(Output::Congruent),
        1 => any::<u8>().prop_map(Output::Skewed),
        1 => (0..3_u8).prop_map(Output::Top),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> + Clone {
    let plain = Just(Attributes { access: 0b0111, memory: 0, state: 0, accessed: true });
    let any = (any::<u8>(), any::<u8>(), any::<u8>(), any::<bool>())
        .prop_map(|(access, memory, state, accessed)| Attributes { access, memory, state, accessed });
    prop_oneof![2 => plain, 1 => any]
}

fn note() -> impl Strategy<Value = NoteChoice> + Clone {
    (any::<u8>(), any::<u16>()).prop_map(|(kind, payload)| NoteChoice(kind, payload))
}

fn contents() -> impl Strategy<Value = Contents> + Clone {
    prop_oneof![
        1 => Just(Contents::Nothing),
        1 => note().prop_map(Contents::Note),
        2 => (output(), attributes(), unit())
            .prop_map(|(output, attributes, largest)| Contents::Memory { output, attributes, largest }),
    ]
}

fn edit() -> impl Strategy<Value = Edit> + Clone {
    prop_oneof![
        any::<u8>().prop_map(Edit::Relax),
        Just(Edit::WriteProtect),
        any::<bool>().prop_map(Edit::Accessed),
        any::<u8>().prop_map(Edit::State),
        any::<bool>().prop_map(Edit::NoTag),
    ]
}

fn operation() -> impl Strategy<Value = Operation> + Clone {
    prop_oneof![
        8 => (stretch(), output(), attributes(), unit()).prop_map(|(s, o, a, u)| Operation::Map(s, o, a, u)),
        3 => (place(), stretch(), output(), attributes()).prop_map(|(p, s, o, a)| Operation::Demand(p, s, o, a)),
        4 => stretch().prop_map(Operation::Unmap),
        4 => (stretch(), note()).prop_map(|(s, n)| Operation::Annotate(s, n)),
        6 => (stretch(), contents(), any::<bool>(), proptest::bool::weighted(0.8))
            .prop_map(|(s, c, lock, commit)| Operation::Replace(s, c, lock, commit)),
        3 => (stretch(), contents(), stretch(), contents()).prop_map(|(a, b, c, d)| Operation::Pair(a, b, c, d)),
        3 => (stretch(), unit()).prop_map(|(s, u)| Operation::Split(s, u)),
        3 => stretch().prop_map(Operation::Fold),
        3 => (place(), unit()).prop_map(|(p, u)| Operation::FoldBlock(p, u)),
        1 => (stretch(), 0..4_u8, 0..4_u8).prop_map(|(s, want, kinds)| Operation::Evict(s, want, kinds)),
        5 => (stretch(), edit()).prop_map(|(s, e)| Operation::Change(s, e)),
        1 => Just(Operation::Flush),
    ]
}

/// A block that is mapped, split, perhaps altered, and folded: random operations hardly ever find
/// a table that can become a block again.
fn round_trip() -> impl Strategy<Value = Vec<Operation>> + Clone {
    let block = prop_oneof![3 => Just(Unit::Block2), 1 => Just(Unit::Block1)];
    (0..10_u8, -1..3_i8, block, attributes(), option::weighted(0.4, operation())).prop_map(
        |(landmark, delta, unit, attributes, between)| {
            let place = Place { landmark, delta, unit };
            let stretch = Stretch { place, length: 1, unit };
            let memory = Contents::Memory { output: Output::Aligned, attributes, largest: unit };
            let finer = if unit == Unit::Block1 { Unit::Block2 } else { Unit::Page };
            let story = [
                Some(Operation::Replace(stretch, memory, false, true)),
                Some(Operation::Split(Stretch { unit: finer, ..stretch }, finer)),
                between,
                Some(Operation::FoldBlock(place, unit)),
            ];
            story.into_iter().flatten().collect()
        },
    )
}

/// Sequences of about `most` actions at most.
pub fn sequences(most: usize) -> impl Strategy<Value = Vec<Action>> {
    let part = prop_oneof![8 => operation().prop_map(|operation| vec![operation]), 1 => round_trip()];
    let part = (0..2_u8, proptest::bool::weighted(0.3), part).prop_map(|(cpu, faults, operations)| {
        operations.into_iter().map(move |operation| Action { cpu, faults, operation }).collect::<Vec<_>>()
    });
    collection::vec(part, 1..=most).prop_map(|parts| parts.concat())
}
