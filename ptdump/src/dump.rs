//! A dump file, read and checked: every later step works on one of these, never on bytes.
//!
//! Invariant of a [`Dump`]: its shape is one that the architecture has, its notes are those that
//! this tool decodes, its lengths agree with the file's, and no two of its pages share an address.

use abi::snapshot::{
    DUMP_MAGIC, DUMP_VERSION, DumpHeader, DumpPage, FIELDS, Field, Geometry as Word, GeometryError, Kind,
    MAX_TABLES, NoTag, Region, RegionKind,
};
use hyp::hw::{CpuFeatures, ENTRIES};
use hyp::pgtable::{self, Level, NoteKinds, Stage2Format, TagControl};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use zerocopy::FromBytes;

/// Most regions of a file.
pub const MAX_REGIONS: u32 = 4096;
/// Most root pages of a table.
const MAX_ROOTS: u32 = 16;
/// Longest file that can be right: header, regions, fields, pages.
pub const MAX_BYTES: u64 = 0x1_0000
    + MAX_REGIONS as u64 * size_of::<Region>() as u64
    + FIELDS.len() as u64 * size_of::<Field>() as u64
    + (MAX_TABLES as u64 + MAX_ROOTS as u64) * size_of::<DumpPage>() as u64;

/// Why a file is no dump.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself")]
pub enum DumpError {
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
    #[error("the file is longer than any dump ({MAX_BYTES} bytes)")]
    TooLong,
    #[error("the file ends inside its {0}")]
    Truncated(&'static str),
    #[error("the file goes on for {0} bytes behind its last page")]
    Trailing(usize),
    #[error("not a stage-2 dump")]
    Magic,
    #[error("dump file version {0}, this tool reads {DUMP_VERSION}")]
    Version(u16),
    #[error("header of {0} bytes")]
    HeaderBytes(u16),
    #[error("table of an unknown kind: {0:?}")]
    Geometry(GeometryError),
    #[error("no table has this shape: {0:?}")]
    Shape(pgtable::GeometryError),
    #[error("start level {0}")]
    StartLevel(u8),
    #[error("{0} root pages, a table of this shape has {1}")]
    Roots(u32, u8),
    #[error("{0} tables, a snapshot has at most {MAX_TABLES}")]
    Tables(u32),
    #[error("{0} regions, at most {MAX_REGIONS} are read")]
    Regions(u32),
    #[error("region {0} is empty, not in pages, beyond 2^48 or of an unknown kind")]
    Region(usize),
    #[error("its notes are not those that this tool knows")]
    Notes,
    #[error("page {0:#x} is not aligned, or beyond 2^48")]
    PageAddress(u64),
    #[error("page {0:#x} is in the file twice")]
    Duplicate(u64),
    #[error("root page {0:#x} is not where the header says")]
    Root(u64),
}

/// What the host said about a range of physical addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What it is.
    pub kind: RegionKind,
    /// What to call it: printable, without control characters.
    pub name: String,
}

/// A stage-2 table as it was at one moment.
#[derive(Clone, Debug)]
pub struct Dump {
    header: DumpHeader,
    word: Word,
    shape: pgtable::Geometry,
    format: Stage2Format,
    places: Vec<Place>,
    bytes: Vec<u8>,
    /// Where the entries of the page at an address begin in `bytes`.
    pages: BTreeMap<u64, usize>,
}

/// A table page of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageAt(usize);

impl Dump {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn open(path: &Path) -> Result<Self, DumpError> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_BYTES.saturating_add(1)).read_to_end(&mut bytes)?;
        Self::parse(bytes)
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, DumpError> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(DumpError::TooLong);
        }
        let (header, _) =
            DumpHeader::read_from_prefix(&bytes).map_err(|_| match bytes.starts_with(&DUMP_MAGIC) {
                true => DumpError::Truncated("header"),
                false => DumpError::Magic,
            })?;
        if header.magic != DUMP_MAGIC {
            return Err(DumpError::Magic);
        }
        if header.version != DUMP_VERSION {
            return Err(DumpError::Version(header.version));
        }
        let at = usize::from(header.header_bytes);
        if at < size_of::<DumpHeader>() {
            return Err(DumpError::HeaderBytes(header.header_bytes));
        }
        let word = Word::decode(header.geometry).map_err(DumpError::Geometry)?;
        let shape = shape_of(word)?;
        if header.roots != u32::from(shape.root_pages()) {
            return Err(DumpError::Roots(header.roots, shape.root_pages()));
        }
        if header.tables > MAX_TABLES {
            return Err(DumpError::Tables(header.tables));
        }
        let mut rest = Rest { bytes: &bytes, at };
        let places = read_places(&mut rest, header.regions)?;
        read_fields(&mut rest, header.fields)?;
        let pages = read_pages(&mut rest, &header)?;
        let left = bytes.len().saturating_sub(rest.at);
        if left > 0 {
            return Err(DumpError::Trailing(left));
        }
        Ok(Self { header, word, shape, format: format_of(word), places, bytes, pages })
    }

    /// 0 for the host's table, else the VM's handle.
    #[must_use]
    pub const fn target(&self) -> u32 {
        self.header.target
    }

    /// Whose table it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.word.kind
    }

    /// What decides how entries are read.
    #[must_use]
    pub const fn facts(&self) -> Word {
        self.word
    }

    /// Shape of the table.
    #[must_use]
    pub const fn shape(&self) -> pgtable::Geometry {
        self.shape
    }

    /// Format of its entries.
    #[must_use]
    pub const fn format(&self) -> &Stage2Format {
        &self.format
    }

    /// Physical address of the copied root.
    #[must_use]
    pub const fn root_pa(&self) -> u64 {
        self.header.root_pa
    }

    /// Table pages, root pages not counted.
    #[must_use]
    pub const fn tables(&self) -> u32 {
        self.header.tables
    }

    /// What the dump shows, as whoever took it says.
    #[must_use]
    pub fn title(&self) -> String {
        printable(&self.header.title)
    }

    /// What the host knows of physical memory, in the order of the file.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The places of one kind.
    pub fn places_of(&self, kind: RegionKind) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(move |place| place.kind == kind)
    }

    /// The table page whose copy was at `pa`.
    #[must_use]
    pub fn page(&self, pa: u64) -> Option<PageAt> {
        self.pages.get(&pa).copied().map(PageAt)
    }

    /// The root page `nth`.
    #[must_use]
    pub fn root(&self, nth: u8) -> Option<PageAt> {
        self.page(self.header.root_pa.checked_add(u64::from(nth) << 12)?)
    }

    /// Addresses of all table pages, roots included.
    pub fn page_addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    /// An entry of a table page; 0 beyond its last.
    #[must_use]
    pub fn entry(&self, page: PageAt, index: usize) -> u64 {
        let at = index.saturating_mul(8).saturating_add(page.0);
        let word = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        word.filter(|_| index < ENTRIES).map_or(0, |word| u64::from_le_bytes(*word))
    }
}

/// What has not been read yet.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take<T: FromBytes>(&mut self, what: &'static str) -> Result<T, DumpError> {
        let bytes = self.skip(size_of::<T>(), what)?;
        T::read_from_bytes(bytes).map_err(|_| DumpError::Truncated(what))
    }

    fn skip(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DumpError> {
        let end = self.at.checked_add(count).ok_or(DumpError::Truncated(what))?;
        let bytes = self.bytes.get(self.at..end).ok_or(DumpError::Truncated(what))?;
        self.at = end;
        Ok(bytes)
    }
}

fn read_places(rest: &mut Rest<'_>, count: u32) -> Result<Vec<Place>, DumpError> {
    if count > MAX_REGIONS {
        return Err(DumpError::Regions(count));
    }
    let mut places = Vec::new();
    for n in 0..count as usize {
        let Region { start, end, kind, reserved, name } = rest.take("regions")?;
        let kind = RegionKind::from_u32(kind).filter(|_| reserved == 0).ok_or(DumpError::Region(n))?;
        if start >= end || end > 1 << 48 {
            return Err(DumpError::Region(n));
        }
        places.push(Place { start, end, kind, name: printable(&name) });
    }
    Ok(places)
}

fn read_fields(rest: &mut Rest<'_>, count: u32) -> Result<(), DumpError> {
    if count as usize != FIELDS.len() {
        return Err(DumpError::Notes);
    }
    for known in FIELDS {
        if rest.take::<Field>("note fields")? != known {
            return Err(DumpError::Notes);
        }
    }
    Ok(())
}

fn read_pages(rest: &mut Rest<'_>, header: &DumpHeader) -> Result<BTreeMap<u64, usize>, DumpError> {
    let mut pages = BTreeMap::new();
    let mut root = header.root_pa;
    for n in 0..header.roots.saturating_add(header.tables) {
        let pa: u64 = rest.take("pages")?;
        let at = rest.at;
        rest.skip(size_of::<DumpPage>().saturating_sub(8), "pages")?;
        if pa & 0xfff != 0 || pa >> 48 != 0 {
            return Err(DumpError::PageAddress(pa));
        }
        if n < header.roots {
            if pa != root {
                return Err(DumpError::Root(pa));
            }
            root = root.saturating_add(4096);
        }
        if pages.insert(pa, at).is_some() {
            return Err(DumpError::Duplicate(pa));
        }
    }
    Ok(pages)
}

fn shape_of(word: Word) -> Result<pgtable::Geometry, DumpError> {
    let level = Level::ALL.into_iter().find(|level| level.number() == word.start_level);
    let level = level.ok_or(DumpError::StartLevel(word.start_level))?;
    pgtable::Geometry::starting_at(level, word.ia_bits.into(), word.pa_bits.into()).map_err(DumpError::Shape)
}

/// The format that tables of a CPU with these facts have.
fn format_of(word: Word) -> Stage2Format {
    let (tags, mte_perm) = match word.no_tag {
        NoTag::Software => (TagControl::Unused, false),
        NoTag::MemAttr => (TagControl::Enforced, true),
        NoTag::Note => (TagControl::Enforced, false),
    };
    let features = CpuFeatures {
        pa_bits: word.pa_bits,
        vmid_bits: 8,
        fwb: word.fwb,
        ttl: false,
        tlbi_range: false,
        xnx: false,
        dic: false,
        idc: false,
        mte: 2,
        mte_perm,
    };
    match word.kind {
        Kind::Host => Stage2Format::host(&features),
        _ => Stage2Format::guest(&features, tags, NoteKinds::from_bits_truncate(word.notes)),
    }
}

/// Text of a file that somebody else wrote, safe to show: up to the first 0, and without what moves
/// a terminal's cursor.
fn printable(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
