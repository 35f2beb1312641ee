//! Dump files made by hand: bits written from docs/pgtable.md and docs/snapshot.md, not by the code
//! that is tested.

use abi::snapshot::{
    DUMP_MAGIC, DUMP_VERSION, DumpHeader, FIELDS, Geometry, Kind, NoTag, Region, RegionKind, padded,
};
use zerocopy::IntoBytes;

/// Where copies are said to have been.
pub(crate) const COPIES: u64 = 0x7000_0000;
pub(crate) const BLOCK: u64 = 2 << 20;

/// A file that is being made.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) header: DumpHeader,
    pub(crate) regions: Vec<Region>,
    pub(crate) pages: Vec<(u64, Vec<u64>)>,
}

/// What the word of a leaf of Normal memory is, without the output address.
pub(crate) const fn leaf(level: u64, fwb: bool) -> u64 {
    let attr = if fwb { 0b0111 } else { 0b1111 };
    1 | (if level == 3 { 2 } else { 0 }) | attr << 2 | 3 << 6 | 3 << 8 | 1 << 10
}

/// The same of a guest that has the page in `state`: 0 owned, 1 shared, 2 borrowed.
pub(crate) const fn guest_leaf(level: u64, state: u64) -> u64 {
    leaf(level, false) | state << 55
}

pub(crate) const NOTE_HYP: u64 = 2 << 60 | 1 << 1;

pub(crate) const fn note_guest(handle: u64, gfn: u64) -> u64 {
    2 << 60 | 2 << 1 | handle << 4 | gfn << 20
}

pub(crate) const GUARD: u64 = 4 << 60;
pub(crate) const DESTROYED: u64 = 3 << 60 | 2 << 1;

impl File {
    /// A table of 39 bits: one root page at level 1.
    pub(crate) fn new(kind: Kind, target: u32) -> Self {
        let notes = match kind {
            Kind::Host => 0b00001,
            Kind::NonProtected => 0,
            Kind::Protected => 0b01100,
            Kind::Split => 0b00110,
        };
        let geometry = Geometry {
            ia_bits: 39,
            start_level: 1,
            fwb: false,
            no_tag: NoTag::Software,
            pa_bits: 40,
            notes,
            kind,
        };
        let header = DumpHeader {
            magic: DUMP_MAGIC,
            version: DUMP_VERSION,
            header_bytes: 128,
            target,
            geometry: geometry.encode(),
            root_pa: COPIES,
            roots: 1,
            tables: 0,
            regions: 0,
            fields: 10,
            hyp_version: 1,
            hyp_caps: 9,
            title: padded("a test"),
        };
        Self { header, regions: Vec::new(), pages: vec![(COPIES, vec![0; 512])] }
    }

    pub(crate) fn region(&mut self, start: u64, end: u64, kind: RegionKind, name: &str) {
        let (kind, name) = (kind as u32, padded(name));
        self.regions.push(Region { start, end, kind, reserved: 0, name });
    }

    /// The number of the table page of `level` over `ia`; makes what is missing.
    pub(crate) fn table(&mut self, ia: u64, level: u64) -> usize {
        let mut page = 0;
        for above in 1..level {
            let index = usize::try_from(ia >> (39 - 9 * above) & 511).unwrap();
            let word = self.pages[page].1[index];
            page = if word & 3 == 3 {
                self.pages.iter().position(|(pa, _)| *pa == word & !0xfff).unwrap()
            } else {
                let pa = COPIES + 4096 * self.pages.len() as u64;
                self.pages[page].1[index] = pa | 3;
                self.pages.push((pa, vec![0; 512]));
                self.pages.len() - 1
            };
        }
        page
    }

    /// Writes the entry of `level` over `ia`.
    pub(crate) fn put(&mut self, ia: u64, level: u64, word: u64) {
        let page = self.table(ia, level);
        self.pages[page].1[usize::try_from(ia >> (39 - 9 * level) & 511).unwrap()] = word;
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let count = |n: usize| u32::try_from(n).unwrap();
        let header = DumpHeader {
            regions: count(self.regions.len()),
            tables: count(self.pages.len()) - self.header.roots,
            ..self.header
        };
        let mut out = header.as_bytes().to_vec();
        out.extend(self.regions.iter().flat_map(|region| region.as_bytes().to_vec()));
        out.extend(FIELDS.as_bytes());
        for (pa, words) in &self.pages {
            out.extend(pa.to_le_bytes());
            out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        out
    }
}

/// A host with 1 GiB of memory, a carve-out, a withheld device, a guest, pages that EL2 has of it.
pub(crate) fn host() -> File {
    let mut file = File::new(Kind::Host, 0);
    file.region(0x4000_0000, 0x8000_0000, RegionKind::Memory, "memory");
    file.region(0x4020_0000, 0x4060_0000, RegionKind::CarveOut, "hypervisor");
    file.region(0xa00_0000, 0xa00_1000, RegionKind::Withheld, "virtio_mmio");
    file.region(COPIES, COPIES + 0x8000, RegionKind::Snapshot, "this snapshot");
    file.put(0x4000_0000, 2, 0x4000_0000 | leaf(2, false));
    for block in [0x4020_0000, 0x4040_0000] {
        file.put(block, 2, NOTE_HYP);
    }
    file.put(0xa00_0000, 3, NOTE_HYP);
    for page in 0..8 {
        file.put(COPIES + page * 4096, 3, NOTE_HYP);
    }
    for page in 0..512_u64 {
        let pa = 0x5000_0000 + page * 4096;
        let word = match page {
            10..=20 => note_guest(0x101, 0x8_0000 + page - 10),
            30 => NOTE_HYP,
            _ => pa | leaf(3, false),
        };
        file.put(pa, 3, word);
    }
    file
}

/// The table of that guest: ten of its pages its own, and what the host's table does not know.
pub(crate) fn guest() -> File {
    let mut file = File::new(Kind::Protected, 0x101);
    for page in 0..11 {
        file.put(0x8000_0000 + page * 4096, 3, (0x5000_a000 + page * 4096) | guest_leaf(3, 0));
    }
    file.put(0x8001_0000, 3, 0x5002_8000 | guest_leaf(3, 1));
    file.put(0x900_0000, 3, GUARD);
    file.put(0x4000_0000, 2, DESTROYED);
    file
}
