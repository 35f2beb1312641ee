//! What a table entry means, once decoded; and what a translation regime must define.
//!
//! Invariant: a raw word is read and written in this directory only. `decode` is total: a word is
//! one of the four kinds of [`Entry`] or [`Corrupt`], never a guess. Values, so they need no lock.
#![forbid(unsafe_code)]

use super::level::Level;
use super::publish::Invalidation;
use crate::addr::Pfn;
use crate::hw::Machine;
use core::fmt::Debug;

/// Bit 0: the entry translates.
pub(super) const VALID: u64 = 1;
/// Bit 1: a table at levels 0 to 2, a page at level 3; clear: a block.
pub(super) const TABLE_OR_PAGE: u64 = 1 << 1;
/// Bits 47:12: output address or next table.
pub(super) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Bit 10: access flag.
pub(super) const AF: u64 = 1 << 10;
/// Bits 9:8 = 11: inner shareable.
pub(super) const INNER_SHAREABLE: u64 = 3 << 8;

/// A decoded entry of a table of regime `R`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<R: Regime> {
    /// The word 0: nothing is known, nothing translates.
    Absent,
    /// Invalid for the hardware, a message from us to us.
    Note(R::Note),
    /// The next table.
    Table(Pfn),
    /// A block or page.
    Leaf(Leaf<R>),
}

/// A valid block or page: where it points and how it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf<R: Regime> {
    /// First output frame.
    pub output: Pfn,
    /// Everything else; survives encode and decode exactly.
    pub attrs: R::Attrs,
}

/// Why a word is no entry at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    /// A block descriptor at level 0 or 3 (the architecture's reserved encodings).
    ReservedType,
    /// A bit is set that nothing here writes.
    ReservedBits,
    /// A block's output address is not a multiple of its size.
    UnalignedOutput,
    /// An output address or table beyond the CPU's physical addresses.
    BeyondPa,
    /// A memory type that this table never uses.
    MemType,
    /// Permissions that this regime never grants.
    Permissions,
    /// Page state 3.
    State,
    /// NO_TAG of the memory attribute and of the software bit differ.
    NoTag,
    /// LOCKED, with the table's lock held by the reader: a change was never finished.
    Locked,
    /// A note of a type nobody defined.
    NoteType,
    /// A note with payload bits that its type does not define.
    NotePayload,
    /// A note at a level, or in a table, where it may not stand.
    NotePlace,
}

/// Why attributes cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadAttrs {
    /// Device memory cannot be executable.
    ExecutableDevice,
    /// The CPU has no allocation tags.
    NoTags,
    /// Without FEAT_MTE_PERM a page without tags is a NOTAG_PENDING note in this table.
    NeedsNote,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::super::stage1::HypStage1 {}
    impl Sealed for super::super::stage2::Stage2 {}
}

/// A translation regime: the format of its entries and the maintenance its TLB entries need.
///
/// The two are types, so that attributes, notes and addresses of one cannot be given to a table
/// of the other.
pub trait Regime: sealed::Sealed + Copy + Debug + PartialEq + Eq + Sized + 'static {
    /// An input address.
    type Addr: Copy + Debug + PartialEq + Eq;
    /// A range of input addresses.
    type Range: Copy + Debug;
    /// Attributes of a leaf.
    type Attrs: Copy + Debug + PartialEq + Eq;
    /// Notes; a type without values where there are none.
    type Note: Copy + Debug + PartialEq + Eq;
    /// What the encoding depends on beside the attributes: a plain value, fixed for a table.
    type Format: Copy + Debug;
    /// What TLB maintenance must name.
    type Context: Copy + Debug;

    /// The word that stands while an entry is being changed.
    const BROKEN: u64;
    /// Bits of a valid leaf that may change while it is valid (Arm ARM D8.17.1).
    const EDITABLE: u64;
    /// Of these, the bits that TLBs remember: a change of one needs an invalidation.
    const CACHED: u64;

    /// False if the architecture keeps a valid leaf like this out of TLBs (access flag clear).
    fn may_be_cached(word: u64) -> bool;
    /// True for an invalid word that stands for a page all the same.
    #[inline]
    fn carries_page(_word: u64) -> bool {
        false
    }

    /// An address as a number.
    fn raw(addr: Self::Addr) -> u64;
    /// The address of a number below the table's limit.
    fn addr(raw: u64) -> Self::Addr;
    /// First address of a range and one past its last.
    fn bounds(range: Self::Range) -> (u64, u64);

    /// What `word` is at `level`.
    ///
    /// # Errors
    /// [`Corrupt`] for every word that no encoder here produces for that level.
    fn decode(format: &Self::Format, level: Level, word: u64) -> Result<Entry<Self>, Corrupt>;
    /// The word of a page with `attrs` and output 0.
    ///
    /// # Errors
    /// [`BadAttrs`].
    fn encode_attrs(format: &Self::Format, attrs: Self::Attrs) -> Result<u64, BadAttrs>;
    /// The word of a note.
    fn encode_note(note: Self::Note) -> u64;
    /// The shallowest level at which the note may stand, if it may stand in this table at all.
    fn note_level(format: &Self::Format, note: Self::Note) -> Option<Level>;
    /// The words of `note` over `pages` pages: the first, and what to add for each page further
    /// on. `None` if the last one would name a page that cannot be.
    fn note_run(note: Self::Note, pages: u64) -> Option<(u64, u64)>;
    /// Output bits that the CPU has not.
    fn beyond_pa(format: &Self::Format) -> u64;
    /// Physical address bits of the CPU.
    fn pa_bits(format: &Self::Format) -> u32;
    /// Issues the maintenance that `inv` describes, and completes it.
    fn invalidate<M: Machine>(hw: &M, context: Self::Context, inv: &Invalidation);
    /// Completes stores of entries that were invalid before.
    fn complete<M: Machine>(hw: &M);
}

/// True if `word` points to a table at `level`: this much the architecture says for both regimes.
#[inline]
pub(super) fn is_table(level: Level, word: u64) -> bool {
    word & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE && !matches!(level, Level::L3)
}

/// True if `word`, of a level above 3, points to a table, and to one that the CPU can reach: what
/// `check_table` accepts.
#[inline(always)]
pub(super) fn leads_on(beyond_pa: u64, word: u64) -> bool {
    word & (beyond_pa | !ADDRESS) == VALID | TABLE_OR_PAGE
}

/// The frame in a valid word.
#[inline]
pub(super) fn frame_of(word: u64) -> Pfn {
    crate::addr::Pa::truncated(word & ADDRESS).frame()
}

/// The word that points to the table page `table`.
#[inline]
pub(super) fn table_word(table: Pfn) -> u64 {
    table.base().raw() | VALID | TABLE_OR_PAGE
}

/// The word of `attrs` (as `encode_attrs` gives them) with an output address, at `level`.
#[inline]
pub(super) fn leaf_word(attrs: u64, output: Pfn, level: Level) -> u64 {
    let kind = if matches!(level, Level::L3) { TABLE_OR_PAGE } else { 0 };
    (attrs & !(TABLE_OR_PAGE | ADDRESS)) | output.base().raw() | kind
}

/// Output bits that a CPU with `pa_bits` has not.
pub(super) const fn beyond_pa(pa_bits: u8) -> u64 {
    ADDRESS & u64::MAX.wrapping_shl(pa_bits as u32)
}

/// Checks a word that points to a table: nothing but an address that the CPU has.
#[inline]
pub(super) fn check_table(beyond_pa: u64, word: u64) -> Result<Pfn, Corrupt> {
    if word & beyond_pa != 0 {
        return Err(Corrupt::BeyondPa);
    }
    if word & !(ADDRESS | VALID | TABLE_OR_PAGE) != 0 {
        return Err(Corrupt::ReservedBits);
    }
    Ok(frame_of(word))
}

/// True if `word` decodes at level 3 because `known` does: it is the same, or a page that differs
/// in nothing but an output address that the CPU has.
#[inline(always)]
pub(super) fn is_page_like(beyond_pa: u64, known: u64, word: u64) -> bool {
    let may_differ = if known & VALID == 0 { 0 } else { ADDRESS & !beyond_pa };
    (known ^ word) & !may_differ == 0
}

/// Checks the parts of a leaf that both regimes share: type, output, `known` bits, and those
/// that `must` be set.
#[inline(always)]
pub(super) fn check_leaf(
    beyond_pa: u64,
    known: u64,
    must: u64,
    level: Level,
    word: u64,
) -> Result<(), Corrupt> {
    let kind = if matches!(level, Level::L3) { TABLE_OR_PAGE } else { 0 };
    let unaligned = ADDRESS & level.offset_mask();
    // One test for all that is hardly ever wrong.
    let never = !known | beyond_pa | unaligned | TABLE_OR_PAGE;
    if (word ^ kind) & never == 0 && word & must == must && level.maps() {
        return Ok(());
    }
    Err(what_is_wrong(beyond_pa, known, must, level, word))
}

#[cold]
fn what_is_wrong(beyond_pa: u64, known: u64, must: u64, level: Level, word: u64) -> Corrupt {
    if word & beyond_pa != 0 {
        Corrupt::BeyondPa
    } else if !level.maps() || (word & TABLE_OR_PAGE != 0) != matches!(level, Level::L3) {
        Corrupt::ReservedType
    } else if word & !known != 0 || word & must != must {
        Corrupt::ReservedBits
    } else {
        Corrupt::UnalignedOutput
    }
}
