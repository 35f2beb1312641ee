//! Translation as the architecture defines it: Arm ARM D8.2 and D8.3, VMSAv8-64, 4 KiB granule,
//! DS = 0. Written from the text and used as an oracle: it shares nothing with `hyp::pgtable`,
//! nor with the checker.
#![forbid(unsafe_code)]

use hyp::hw::{CpuFeatures, Stage2Ctx};

/// Where a walk starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Frame of the first root table.
    pub root: u64,
    /// Level of the first lookup.
    pub start: u8,
    /// Bits of the input address.
    pub ia_bits: u32,
}

/// log2 of the bytes that an entry of `level` covers.
#[must_use]
pub const fn shift(level: u8) -> u32 {
    39 - 9 * level as u32
}

/// Bytes that an entry of `level` covers.
#[must_use]
pub const fn size(level: u8) -> u64 {
    1 << shift(level)
}

impl Shape {
    /// What VTTBR_EL2 and VTCR_EL2 say (D24.2.224, D24.2.225); `None` for values that fault on
    /// every access: another granule, a reserved or impossible start level.
    #[must_use]
    pub fn of_stage2(ctx: Stage2Ctx, features: &CpuFeatures) -> Option<Self> {
        let field = |low: u32, bits: u32| ctx.vtcr >> low & ((1 << bits) - 1);
        let ia_bits = 64 - u32::try_from(field(0, 6)).ok()?;
        let start = match field(6, 2) {
            0 => 2,
            1 => 1,
            2 => 0,
            _ => return None,
        };
        // At most 16 concatenated tables (Tables D8-19 to D8-24).
        let resolved = shift(start) + 9;
        let fits = ia_bits > shift(start) && ia_bits <= resolved + 4 && (start != 0 || ia_bits <= 48);
        let sized = start != 0 || features.pa_bits > 42;
        if field(14, 2) != 0 || field(31, 1) != 1 || !fits || !sized || ia_bits > u32::from(features.pa_bits)
        {
            return None;
        }
        Some(Self { root: (ctx.vttbr & 0x0000_ffff_ffff_fffe) >> 12, start, ia_bits })
    }

    /// Table frame and index of the first lookup; `None` beyond the input space.
    #[must_use]
    pub const fn first(self, ia: u64) -> Option<(u64, usize)> {
        if ia >> self.ia_bits != 0 {
            return None;
        }
        let index = ia >> shift(self.start);
        Some((self.root + (index >> 9), (index & 511) as usize))
    }
}

/// Index of `ia` in a table of `level` that is no root.
#[must_use]
pub const fn index(ia: u64, level: u8) -> usize {
    (ia >> shift(level) & 511) as usize
}

/// What a descriptor is (Tables D8-50 to D8-55).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Bit 0 clear, or a reserved type, which translates as little.
    Invalid,
    /// Next-level table, by frame.
    Table(u64),
    /// Block or page, by first frame.
    Leaf(u64),
}

/// Decodes a word of a table of `level`.
#[must_use]
pub const fn descriptor(word: u64, level: u8) -> Descriptor {
    let address = (word & 0x0000_ffff_ffff_f000) >> 12;
    match (word & 3, level) {
        (3, 0..=2) => Descriptor::Table(address),
        (3, 3) => Descriptor::Leaf(address),
        (1, 1 | 2) => Descriptor::Leaf(address & !((size(level) >> 12) - 1)),
        _ => Descriptor::Invalid,
    }
}

/// Memory type after stage 2, before stage 1 has its say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Memory {
    /// Device of any kind.
    Device,
    /// Normal, not cacheable.
    NonCacheable,
    /// Normal write-back, whatever stage 1 says (FWB).
    ForcedWriteBack,
    /// What stage 1 says, at most write-back.
    AsStage1,
}

/// A decoded stage-2 leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage2Leaf {
    /// Loads allowed.
    pub read: bool,
    /// Stores allowed.
    pub write: bool,
    /// Fetches allowed at EL1.
    pub exec_el1: bool,
    /// Fetches allowed at EL0.
    pub exec_el0: bool,
    /// Access flag.
    pub accessed: bool,
    /// Memory type; `None` for a reserved encoding.
    pub memory: Option<Memory>,
    /// NoTagAccess (FEAT_MTE_PERM).
    pub no_tag: bool,
    /// Bits 58:55, the software's.
    pub software: u8,
}

/// Decodes the attributes of a stage-2 leaf (Table D8-53, D8-76, D8-78, D8-96, D8-100).
#[must_use]
pub fn stage2_leaf(word: u64, features: &CpuFeatures) -> Stage2Leaf {
    let bit = |n: u32| word >> n & 1 == 1;
    let (exec_el1, exec_el0) = match (features.xnx, word >> 53 & 3) {
        (true, 0) => (true, true),
        (true, 1) => (false, true),
        (true, 2) => (false, false),
        (true, _) => (true, false),
        (false, xn) => (xn & 2 == 0, xn & 2 == 0),
    };
    let (memory, no_tag) = match (features.fwb, word >> 2 & 0xf) {
        (_, 0..=3) => (Some(Memory::Device), false),
        (_, 0b0101) => (Some(Memory::NonCacheable), false),
        (false, 0b0100) if features.mte_perm => (Some(Memory::AsStage1), true),
        (false, 0b1111) => (Some(Memory::AsStage1), false),
        (true, 0b0110) => (Some(Memory::ForcedWriteBack), false),
        (true, 0b0111) => (Some(Memory::AsStage1), false),
        (true, 0b1110) if features.mte_perm => (Some(Memory::ForcedWriteBack), true),
        (true, 0b1111) if features.mte_perm => (Some(Memory::AsStage1), true),
        _ => (None, false),
    };
    Stage2Leaf {
        read: bit(6),
        write: bit(7),
        exec_el1,
        exec_el0,
        accessed: bit(10),
        memory,
        no_tag,
        software: (word >> 55 & 0xf) as u8,
    }
}

/// A decoded leaf of EL2's own stage 1 (E2H = 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage1Leaf {
    /// Stores allowed; loads always are.
    pub write: bool,
    /// Fetches allowed.
    pub exec: bool,
    /// Access flag.
    pub accessed: bool,
    /// The attribute that MAIR_EL2 has at the leaf's index.
    pub mair: u8,
    /// Inner shareable.
    pub inner_shareable: bool,
}

/// Decodes the attributes of a stage-1 leaf (Table D8-52): AttrIndx 4:2, AP\[2\] 7, SH 9:8,
/// AF 10, XN 54.
#[must_use]
pub const fn stage1_leaf(word: u64, mair_el2: u64) -> Stage1Leaf {
    let index = word >> 2 & 7;
    Stage1Leaf {
        write: word >> 7 & 1 == 0,
        exec: word >> 54 & 1 == 0,
        accessed: word >> 10 & 1 == 1,
        mair: (mair_el2 >> (8 * index) & 0xff) as u8,
        inner_shareable: word >> 8 & 3 == 3,
    }
}

/// Visits every entry of a tree that is no table, in ascending order, with the address it covers;
/// and every table page, with its level and the address it covers.
pub fn tree(
    shape: Shape,
    mut read: impl FnMut(u64, usize) -> u64,
    mut entry: impl FnMut(u64, Found),
    mut table: impl FnMut(u64, u8, u64),
) {
    let roots = (1_u64 << shape.ia_bits).div_ceil(size(shape.start) * 512);
    for root in 0..roots {
        let base = root * (size(shape.start) * 512);
        subtree(shape.root + root, shape.start, base, &mut read, &mut entry, &mut table);
    }
}

fn subtree(
    page: u64,
    level: u8,
    base: u64,
    read: &mut impl FnMut(u64, usize) -> u64,
    entry: &mut impl FnMut(u64, Found),
    table: &mut impl FnMut(u64, u8, u64),
) {
    table(page, level, base);
    for slot in 0..512 {
        let word = read(page, slot);
        let ia = base + slot as u64 * size(level);
        match descriptor(word, level) {
            Descriptor::Table(next) => subtree(next, level + 1, ia, read, entry, table),
            _ => entry(ia, Found { word, level, table: page, index: slot }),
        }
    }
}

/// One step of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The last descriptor that was read.
    pub word: u64,
    /// Its level.
    pub level: u8,
    /// Frame of the table it was read from.
    pub table: u64,
    /// Its index there.
    pub index: usize,
}

/// Walks to the leaf or invalid descriptor for `ia`, reading words with `read(table, index)`;
/// `None` beyond the input space.
pub fn walk(shape: Shape, ia: u64, mut read: impl FnMut(u64, usize) -> u64) -> Option<Found> {
    let (mut table, mut slot) = shape.first(ia)?;
    let mut level = shape.start;
    loop {
        let word = read(table, slot);
        match descriptor(word, level) {
            Descriptor::Table(next) => {
                level += 1;
                (table, slot) = (next, index(ia, level));
            }
            _ => return Some(Found { word, level, table, index: slot }),
        }
    }
}
