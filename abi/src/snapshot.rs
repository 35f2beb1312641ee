//! The stage-2 snapshot: what `S2_SNAPSHOT` is told and answers, and the file in which a host keeps
//! what it got. docs/snapshot.md explains both.
//!
//! All numbers are little-endian.

use bitflags::bitflags;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `target` of the calls: the host's own table. Anything else is the handle of a VM.
pub const HOST: u64 = 0;
/// First word of a descriptor: "S2NS".
pub const MAGIC: u32 = 0x534e_3253;
/// Version of the descriptor.
pub const VERSION: u16 = 1;
/// Most table pages of one snapshot, root pages not counted.
pub const MAX_TABLES: u32 = 16384;
/// End of a chain of pages, or no chain.
pub const END: u64 = u64::MAX;

bitflags! {
    /// x3 of `S2_SNAPSHOT`. Other bits are EINVAL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct SnapshotFlags: u64 {
        /// Pages that were not needed come back zero, not as a chain.
        const RETURN_CHAIN_ZEROED = 1 << 0;
    }
}

/// What the host asks for: the first 0x40 bytes of the descriptor page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u16,
    /// 0.
    pub flags: u16,
    /// First page for the copy of the root, a multiple of `pgd_pages`.
    pub pgd_pfn: u64,
    /// Root pages: exactly as many as the table has.
    pub pgd_pages: u32,
    /// Pages in the chain, at most [`MAX_TABLES`].
    pub nr_tables: u32,
    /// First page of the chain, [`END`] exactly if `nr_tables` is 0. Word 0 of each page is the
    /// frame number of the next, [`END`] in the last.
    pub head_pfn: u64,
    /// 0.
    pub reserved: [u64; 4],
}

/// What EL2 answers: the next 0x30 bytes. The rest of the page is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Outcome {
    /// What x1 says: 0 or a negative errno.
    pub status: i64,
    /// Physical address of the copied root; 0 if there is no copy.
    pub root_pa: u64,
    /// [`Geometry`] of the table; 0 if the request was refused before the table was looked at.
    pub geometry: u64,
    /// Pages of the chain that hold a table now.
    pub used: u32,
    /// Tables that there are, if they were counted.
    pub needed: u32,
    /// First page of the chain of pages that were not needed, or [`END`].
    pub unused_head: u64,
    /// How many those are.
    pub unused: u32,
    /// 0.
    pub reserved: u32,
}

/// The descriptor page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Written by the host, read once by EL2.
    pub request: Request,
    /// Written by EL2.
    pub outcome: Outcome,
    /// 0.
    pub rest: [u64; 498],
}

/// 64-bit words of a [`Request`].
pub const REQUEST_WORDS: usize = size_of::<Request>() / 8;
/// 64-bit words of an [`Outcome`].
pub const OUTCOME_WORDS: usize = size_of::<Outcome>() / 8;

const_assert_eq!(size_of::<Request>(), 0x40);
const_assert_eq!(size_of::<Outcome>(), 0x30);
const_assert_eq!(size_of::<Descriptor>(), 4096);

/// Why a word is no geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    /// Entries of another version than [`ENTRY_VERSION`].
    Version(u8),
    /// A bit that this version does not define.
    Reserved(u64),
    /// Another granule than 4 KiB.
    Granule(u8),
}

/// Version of the encoding of entries and notes.
pub const ENTRY_VERSION: u8 = 1;
/// log2 of the only granule.
pub const GRANULE_SHIFT: u8 = 12;

/// Whose table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The host's.
    Host = 0,
    /// A VM's to which the host lends its pages.
    NonProtected = 1,
    /// A VM's that owns its pages and shares them in place.
    Protected = 2,
    /// A VM's with private and shared IPA space.
    Split = 3,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Host, Self::NonProtected, Self::Protected, Self::Split];
}

/// How NO_TAG is written in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NoTag {
    /// In the software bit alone.
    Software = 0,
    /// As a memory attribute of its own too (FEAT_MTE_PERM).
    MemAttr = 1,
    /// Such a page is not mapped: there is a note.
    Note = 2,
}

impl NoTag {
    const ALL: [Self; 3] = [Self::Software, Self::MemAttr, Self::Note];
}

/// Shape of a table and encoding of its entries: all that a reader must know, in one word.
///
/// | bits | what |
/// |---|---|
/// | 7:0 | bits of the input address |
/// | 15:8 | level of the root |
/// | 23:16 | log2 of the granule, 12 |
/// | 24 | FEAT_S2FWB is in use: what MemAttr means |
/// | 26:25 | [`NoTag`] |
/// | 39:32 | bits of a physical address |
/// | 44:40 | notes that may stand in the table: type 2, 3 (RAM), 3 (DESTROYED), 4, 5 |
/// | 47:46 | [`Kind`] |
/// | 63:56 | [`ENTRY_VERSION`] |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Bits of the input address.
    pub ia_bits: u8,
    /// Level of the root.
    pub start_level: u8,
    /// FEAT_S2FWB is in use.
    pub fwb: bool,
    /// How NO_TAG is written.
    pub no_tag: NoTag,
    /// Bits of a physical address.
    pub pa_bits: u8,
    /// Notes that may stand in the table, 5 bits.
    pub notes: u8,
    /// Whose table it is.
    pub kind: Kind,
}

const NOTES: u8 = 0x1f;
const DEFINED: u64 = 0xff << 56 | 3 << 46 | (NOTES as u64) << 40 | 0xff << 32 | 0x07ff_ffff;

impl Geometry {
    /// The word.
    #[must_use]
    pub const fn encode(self) -> u64 {
        let Self { ia_bits, start_level, fwb, no_tag, pa_bits, notes, kind } = self;
        let shape = ia_bits as u64 | (start_level as u64) << 8 | (GRANULE_SHIFT as u64) << 16;
        let entries = (fwb as u64) << 24 | (no_tag as u64) << 25 | (pa_bits as u64) << 32;
        let meaning = ((notes & NOTES) as u64) << 40 | (kind as u64) << 46;
        shape | entries | meaning | (ENTRY_VERSION as u64) << 56
    }

    /// Reads the word.
    ///
    /// # Errors
    /// [`GeometryError`]. Whether such a table can be is for the reader to say.
    pub fn decode(word: u64) -> Result<Self, GeometryError> {
        let [ia_bits, start_level, granule, flags, pa_bits, notes, _, version] = word.to_le_bytes();
        if version != ENTRY_VERSION {
            return Err(GeometryError::Version(version));
        }
        let no_tag = NoTag::ALL.into_iter().find(|n| *n as u8 == flags >> 1 & 3);
        let kind = Kind::ALL.into_iter().find(|k| *k as u8 == notes >> 6);
        let (Some(no_tag), Some(kind), 0) = (no_tag, kind, word & !DEFINED) else {
            return Err(GeometryError::Reserved(word));
        };
        if granule != GRANULE_SHIFT {
            return Err(GeometryError::Granule(granule));
        }
        let fwb = flags & 1 != 0;
        Ok(Self { ia_bits, start_level, fwb, no_tag, pa_bits, notes: notes & NOTES, kind })
    }
}

/// A dump file: this header, [`Region`]s, [`Field`]s, then a [`DumpPage`] for each root page and
/// table, roots first and in order, tables in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DumpHeader {
    /// [`DUMP_MAGIC`].
    pub magic: [u8; 8],
    /// [`DUMP_VERSION`].
    pub version: u16,
    /// Bytes of this header: a later version only appends.
    pub header_bytes: u16,
    /// 0 or the VM's handle.
    pub target: u32,
    /// [`Geometry`].
    pub geometry: u64,
    /// Physical address of the copied root.
    pub root_pa: u64,
    /// Root pages.
    pub roots: u32,
    /// Other table pages.
    pub tables: u32,
    /// [`Region`]s that follow.
    pub regions: u32,
    /// [`Field`]s that follow.
    pub fields: u32,
    /// What `HYP_CAPS` answered: version.
    pub hyp_version: u64,
    /// What `HYP_CAPS` answered: capabilities.
    pub hyp_caps: u64,
    /// What the dump shows, in UTF-8, filled up with zeros.
    pub title: [u8; 64],
}

/// First bytes of a dump file. The line end tells a file that was taken for text.
pub const DUMP_MAGIC: [u8; 8] = *b"S2DUMP\r\n";
/// Version of the dump file.
pub const DUMP_VERSION: u16 = 1;

/// What the host knows about a range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// [`RegionKind`].
    pub kind: u32,
    /// 0.
    pub reserved: u32,
    /// Its name, in UTF-8, filled up with zeros.
    pub name: [u8; 40],
}

/// What a [`Region`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RegionKind {
    /// Memory, by the device tree.
    Memory = 1,
    /// The hypervisor's memory.
    CarveOut = 2,
    /// A device that EL2 keeps from the host.
    Withheld = 3,
    /// A device of the host.
    Device = 4,
    /// The host's image.
    Host = 5,
    /// Pages of the snapshot itself: the table says that EL2 has them, as it had while it copied.
    Snapshot = 6,
}

impl RegionKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Memory, Self::CarveOut, Self::Withheld, Self::Device, Self::Host, Self::Snapshot];

    /// Reads the field.
    #[must_use]
    pub fn from_u32(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == raw)
    }
}

/// A field of a note: an entry with bit 0 clear and a type in bits 63:60.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Field {
    /// Type of the note, 1 to 15.
    pub note: u8,
    /// Lowest bit.
    pub shift: u8,
    /// Number of bits; 0 for a note without payload.
    pub bits: u8,
    /// 0.
    pub reserved: u8,
    /// Its name, filled up with zeros.
    pub name: [u8; 12],
}

const fn field(note: u8, shift: u8, bits: u8, text: &str) -> Field {
    Field { note, shift, bits, reserved: 0, name: padded(text) }
}

/// `text` filled up with zeros; cut if it is too long.
#[must_use]
pub const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let (mut out, mut rest) = ([0; N], text.as_bytes());
    let mut left: &mut [u8] = &mut out;
    while let ([byte, more @ ..], [place, places @ ..]) = (rest, left) {
        *place = *byte;
        (rest, left) = (more, places);
    }
    out
}

/// The notes of [`ENTRY_VERSION`].
pub const FIELDS: [Field; 10] = [
    field(2, 1, 3, "owner"),
    field(2, 4, 16, "handle"),
    field(2, 20, 40, "gfn"),
    field(3, 1, 2, "ripas"),
    field(4, 0, 0, "mmio-guard"),
    field(5, 1, 1, "read"),
    field(5, 2, 1, "write"),
    field(5, 3, 1, "execute"),
    field(5, 4, 2, "state"),
    field(5, 12, 40, "pfn"),
];

/// A table page as it was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DumpPage {
    /// Where the copy was.
    pub pa: u64,
    /// Its entries.
    pub entries: [u64; 512],
}

const_assert_eq!(size_of::<DumpHeader>(), 128);
const_assert_eq!(size_of::<Region>(), 64);
const_assert_eq!(size_of::<Field>(), 16);
const_assert_eq!(size_of::<DumpPage>(), 4104);

#[cfg(test)]
mod tests {
    use super::{Geometry, GeometryError, Kind, NoTag, padded};

    const HOST: Geometry = Geometry {
        ia_bits: 44,
        start_level: 0,
        fwb: true,
        no_tag: NoTag::Software,
        pa_bits: 44,
        notes: 1,
        kind: Kind::Host,
    };

    #[test]
    fn a_geometry_survives_the_register() {
        for kind in Kind::ALL {
            for no_tag in NoTag::ALL {
                for fwb in [false, true] {
                    let geometry = Geometry { kind, no_tag, fwb, notes: 0x1e, ..HOST };
                    assert_eq!(Geometry::decode(geometry.encode()), Ok(geometry));
                }
            }
        }
        assert_eq!(HOST.encode(), 0x0100_012c_010c_002c);
    }

    #[test]
    fn what_this_version_does_not_define_is_no_geometry() {
        let word = HOST.encode();
        for bit in [27, 28, 29, 30, 31, 45, 48, 55] {
            let word = word | 1 << bit;
            assert_eq!(Geometry::decode(word), Err(GeometryError::Reserved(word)), "{bit}");
        }
        assert_eq!(Geometry::decode(word | 3 << 25), Err(GeometryError::Reserved(word | 3 << 25)));
        assert_eq!(Geometry::decode(word ^ 3 << 56), Err(GeometryError::Version(2)));
        assert_eq!(Geometry::decode(word ^ 2 << 16), Err(GeometryError::Granule(14)));
        assert!(Geometry::decode(0).is_err());
    }

    #[test]
    fn names_are_cut_to_their_place() {
        assert_eq!(padded::<4>("ab"), *b"ab\0\0");
        assert_eq!(padded::<2>("abc"), *b"ab");
    }
}
