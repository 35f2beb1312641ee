//! Levels of a table walk and the shape of a whole table: sizes, indices, roots, VTCR_EL2.
//!
//! Invariant: a [`Geometry`] describes a walk that the architecture defines (Arm ARM tables D8-19
//! to D8-24, 4 KiB granule, VTCR_EL2.DS = 0). A value, so it needs no lock.
#![forbid(unsafe_code)]

use crate::addr::{MAX_PA_BITS, PAGE_SHIFT, Pa, Pfn};
use crate::hw::{CpuFeatures, ENTRIES};

/// Level of a walk; a deeper level has a larger number and smaller entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// 512 GiB an entry; tables only.
    L0 = 0,
    /// 1 GiB an entry.
    L1 = 1,
    /// 2 MiB an entry.
    L2 = 2,
    /// 4 KiB an entry; pages only.
    L3 = 3,
}

impl Level {
    /// All levels, top first.
    pub const ALL: [Self; 4] = [Self::L0, Self::L1, Self::L2, Self::L3];

    /// log2 of the bytes that one entry covers.
    #[must_use]
    #[inline]
    pub const fn shift(self) -> u32 {
        // 39, 30, 21, 12: arithmetic, because this is asked for every entry of every walk.
        39_u32.wrapping_sub((self as u32).wrapping_mul(9))
    }

    /// Bytes that one entry covers.
    #[must_use]
    #[inline]
    pub const fn size(self) -> u64 {
        1_u64.wrapping_shl(self.shift())
    }

    /// Pages that one entry covers.
    #[must_use]
    #[inline]
    pub const fn pages(self) -> u64 {
        self.size() >> PAGE_SHIFT
    }

    /// The level as the architecture counts, 0..=3.
    #[must_use]
    #[inline]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The level below, which has smaller entries.
    #[must_use]
    #[inline]
    pub const fn deeper(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }

    /// The level above.
    #[must_use]
    #[inline]
    pub const fn shallower(self) -> Option<Self> {
        match self {
            Self::L0 => None,
            Self::L1 => Some(Self::L0),
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
        }
    }

    /// True if an entry of this level may map memory: a block at levels 1 and 2, a page at 3.
    #[must_use]
    #[inline]
    pub const fn maps(self) -> bool {
        !matches!(self, Self::L0)
    }

    /// First address of the entry that covers `ia`.
    #[must_use]
    #[inline]
    pub const fn align_down(self, ia: u64) -> u64 {
        ia & !self.offset_mask()
    }

    /// True if `ia` is where an entry of this level begins.
    #[must_use]
    #[inline]
    pub const fn is_aligned(self, ia: u64) -> bool {
        ia & self.offset_mask() == 0
    }

    /// Bits of an address that lie inside one entry of this level.
    #[must_use]
    #[inline]
    pub(super) const fn offset_mask(self) -> u64 {
        self.size().wrapping_sub(1)
    }

    /// Index of `ia` in a table of this level.
    #[must_use]
    #[inline]
    pub const fn index(self, ia: u64) -> usize {
        ((ia >> self.shift()) & INDEX_MASK) as usize
    }
}

/// Nine bits select one of 512 entries.
const INDEX_MASK: u64 = 511;
const _: () = assert!(ENTRIES == 512);

/// Why a table cannot have the shape that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    /// Input addresses outside 32..=48 bits.
    InputBits(u32),
    /// The input space is larger than the CPU's physical one (`ipa_bits`, `pa_bits`).
    BeyondPa(u32, u32),
    /// This start level cannot cover that many bits, or not on this CPU.
    Start(u32, Level),
}

/// Input size, start level and root pages of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    ia_bits: u8,
    start: Level,
    root_pages: u8,
}

/// Fewest input bits that a table here has.
pub const MIN_IA_BITS: u32 = 32;
/// Most pages that are concatenated at the start level of a stage-2 table.
pub const MAX_ROOT_PAGES: u8 = 16;

impl Geometry {
    /// A stage-2 table of `ipa_bits` bits, 32..=48 and not beyond `pa_bits`.
    ///
    /// Up to 39 bits start at level 1 with one page, 40 to 43 at level 1 with 2 to 16 concatenated
    /// ones, more at level 0: one level less to walk for at most 64 KiB of root.
    ///
    /// # Errors
    /// [`GeometryError::InputBits`], then [`GeometryError::BeyondPa`].
    pub const fn stage2(ipa_bits: u32, pa_bits: u32) -> Result<Self, GeometryError> {
        let start = if ipa_bits <= 43 { Level::L1 } else { Level::L0 };
        Self::starting_at(start, ipa_bits, pa_bits)
    }

    /// The stage-2 table that gives a host every physical address: as [`Geometry::stage2`], with
    /// the bits of the CPU clamped to 32..=48 (a 52-bit CPU is used with 48: no LPA2).
    #[must_use]
    pub const fn identity(pa_bits: u32) -> Self {
        let bits = match pa_bits {
            0..MIN_IA_BITS => MIN_IA_BITS,
            MIN_IA_BITS..=MAX_PA_BITS => pa_bits,
            _ => MAX_PA_BITS,
        };
        match Self::stage2(bits, bits) {
            Ok(g) => g,
            Err(_) => Self { ia_bits: 32, start: Level::L1, root_pages: 1 },
        }
    }

    /// A stage-2 table that starts at `start`.
    ///
    /// # Errors
    /// [`GeometryError::InputBits`] and [`GeometryError::BeyondPa`] as above;
    /// [`GeometryError::Start`] if that needs more than 16 root pages, or less than half a page of
    /// entries, or starts at level 0 on a CPU with 42 PA bits or fewer (Arm ARM D8-24).
    pub const fn starting_at(start: Level, ipa_bits: u32, pa_bits: u32) -> Result<Self, GeometryError> {
        if ipa_bits < MIN_IA_BITS || ipa_bits > MAX_PA_BITS {
            return Err(GeometryError::InputBits(ipa_bits));
        }
        if ipa_bits > pa_bits {
            return Err(GeometryError::BeyondPa(ipa_bits, pa_bits));
        }
        // Bits that one full root page of this level resolves: its 9 and those below them.
        let one_page = start.shift().saturating_add(9);
        let root_pages = match ipa_bits.saturating_sub(one_page) {
            0 => 1,
            1 => 2,
            2 => 4,
            3 => 8,
            4 => MAX_ROOT_PAGES,
            _ => return Err(GeometryError::Start(ipa_bits, start)),
        };
        // Architecturally a root must have at least two entries in use, and level 0 a large PA.
        if ipa_bits <= start.shift() || (matches!(start, Level::L0) && (pa_bits <= 42 || ipa_bits <= 39)) {
            return Err(GeometryError::Start(ipa_bits, start));
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 48")]
        Ok(Self { ia_bits: ipa_bits as u8, start, root_pages })
    }

    /// EL2's own stage-1 table of `va_bits` bits, 32..=48: one root page, level 1 up to 39 bits.
    ///
    /// # Errors
    /// [`GeometryError::InputBits`].
    pub const fn hyp(va_bits: u32) -> Result<Self, GeometryError> {
        if va_bits < MIN_IA_BITS || va_bits > 48 {
            return Err(GeometryError::InputBits(va_bits));
        }
        let start = if va_bits <= 39 { Level::L1 } else { Level::L0 };
        #[expect(clippy::cast_possible_truncation, reason = "at most 48")]
        Ok(Self { ia_bits: va_bits as u8, start, root_pages: 1 })
    }

    /// Bits of the input address.
    #[must_use]
    #[inline]
    pub const fn ia_bits(self) -> u32 {
        self.ia_bits as u32
    }

    /// One past the last input address.
    #[must_use]
    #[inline]
    pub const fn limit(self) -> u64 {
        1_u64.wrapping_shl(self.ia_bits())
    }

    /// Level of the root.
    #[must_use]
    #[inline]
    pub const fn start(self) -> Level {
        self.start
    }

    /// Concatenated root pages: a power of two up to 16; the root is aligned to their total size.
    #[must_use]
    #[inline]
    pub const fn root_pages(self) -> u8 {
        self.root_pages
    }

    /// The root page that translates `ia`, which is below [`Geometry::limit`].
    #[must_use]
    #[inline]
    pub(super) fn root_page(self, root: Pfn, ia: u64) -> Pfn {
        // A root is aligned to its size and `ia` is below the limit: the two have no bit in common.
        let offset = ia >> self.start.shift().wrapping_add(9) << PAGE_SHIFT;
        Pa::truncated(root.base().raw() | offset).frame()
    }

    /// VTCR_EL2 for this shape (Arm ARM D24.2.224): 4 KiB granule, walks inner-shareable and
    /// write-back, no hardware access flag, RES1 bit 31.
    #[must_use]
    pub const fn vtcr(self, features: &CpuFeatures) -> u64 {
        let t0sz = 64_u64.wrapping_sub(self.ia_bits as u64);
        let sl0: u64 = match self.start {
            Level::L0 => 2,
            Level::L1 => 1,
            Level::L2 => 0,
            Level::L3 => 3,
        };
        let vs = if features.vmid_bits > 8 { 1 << 19 } else { 0 };
        t0sz | sl0 << 6 | WALK_WRITE_BACK_INNER | (pa_size(features.pa_bits) << 16) | vs | 1 << 31
    }

    /// TCR_EL2 (E2H = 0) for EL2's own table: same walk attributes, RES1 bits 23 and 31.
    #[must_use]
    pub const fn tcr_el2(self, features: &CpuFeatures) -> u64 {
        let t0sz = 64_u64.wrapping_sub(self.ia_bits as u64);
        t0sz | WALK_WRITE_BACK_INNER | (pa_size(features.pa_bits) << 16) | 1 << 23 | 1 << 31
    }
}

/// IRGN0 = ORGN0 = write-back write-allocate (bits 9:8, 11:10), SH0 = inner shareable (13:12).
const WALK_WRITE_BACK_INNER: u64 = 1 << 8 | 1 << 10 | 3 << 12;

/// The PS field for a CPU with `pa_bits`: the largest size that is not larger.
const fn pa_size(pa_bits: u8) -> u64 {
    match pa_bits {
        0..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::{Geometry, GeometryError, Level};
    use crate::hw::CpuFeatures;

    const CPU: CpuFeatures = CpuFeatures {
        pa_bits: 48,
        vmid_bits: 8,
        fwb: false,
        ttl: false,
        tlbi_range: false,
        xnx: false,
        dic: false,
        idc: false,
        mte: 0,
        mte_perm: false,
    };

    #[test]
    fn levels_cover_512_entries_of_the_next() {
        for level in Level::ALL {
            assert_eq!(level.size(), 1 << level.shift());
            assert_eq!(level.pages() * 4096, level.size());
            if let Some(deeper) = level.deeper() {
                assert_eq!(deeper.size() * 512, level.size());
                assert_eq!(deeper.shallower(), Some(level));
            }
        }
        let ia = 0x1234_5678_9000;
        assert_eq!(Level::L0.index(ia), 0x24);
        assert_eq!(Level::L1.index(ia), 0xd1);
        assert_eq!(Level::L2.index(ia), 0xb3);
        assert_eq!(Level::L3.index(ia), 0x189);
        assert_eq!(Level::L2.align_down(ia), 0x1234_5660_0000);
    }

    /// Every row of the Arm ARM's tables for the 4 KiB granule: (bits, start, root pages).
    #[test]
    fn geometry_is_the_architecture_table() {
        for (bits, start, pages) in [
            (32, Level::L2, 4),
            (34, Level::L2, 16),
            (32, Level::L1, 1),
            (39, Level::L1, 1),
            (40, Level::L1, 2),
            (41, Level::L1, 4),
            (42, Level::L1, 8),
            (43, Level::L1, 16),
            (40, Level::L0, 1),
            (44, Level::L0, 1),
            (48, Level::L0, 1),
        ] {
            let g = Geometry::starting_at(start, bits, 48).unwrap();
            assert_eq!((g.ia_bits(), g.start(), g.root_pages()), (bits, start, pages));
            assert_eq!(g.limit(), 1 << bits);
        }
        // The pairs that a CPU was seen to refuse (level 0 translation fault on first access).
        for (bits, start) in [(39, Level::L0), (44, Level::L1), (35, Level::L2)] {
            assert_eq!(Geometry::starting_at(start, bits, 48), Err(GeometryError::Start(bits, start)));
        }
        assert_eq!(Geometry::starting_at(Level::L0, 40, 40), Err(GeometryError::Start(40, Level::L0)));
        assert_eq!(Geometry::starting_at(Level::L3, 32, 48), Err(GeometryError::Start(32, Level::L3)));
    }

    #[test]
    fn input_space_is_32_to_48_bits_and_inside_the_cpus() {
        for bits in 0..=64 {
            let got = Geometry::stage2(bits, 48);
            assert_eq!(got.is_ok(), (32..=48).contains(&bits), "{bits}");
        }
        assert_eq!(Geometry::stage2(41, 40), Err(GeometryError::BeyondPa(41, 40)));
        assert_eq!(Geometry::hyp(49), Err(GeometryError::InputBits(49)));
        for pa in 0..=64 {
            let host = Geometry::identity(pa);
            assert_eq!(host.ia_bits(), pa.clamp(32, 48));
        }
    }

    /// Values that booted an unmodified Linux (and a 40-bit CPU).
    #[test]
    fn vtcr_has_the_values_that_boot() {
        assert_eq!(Geometry::stage2(39, 48).unwrap().vtcr(&CPU), 0x8005_3559);
        assert_eq!(Geometry::stage2(40, 48).unwrap().vtcr(&CPU), 0x8005_3558);
        let a53 = CpuFeatures { pa_bits: 40, ..CPU };
        assert_eq!(Geometry::identity(40).vtcr(&a53), 0x8002_3558);
        let wide = CpuFeatures { vmid_bits: 16, ..CPU };
        assert_eq!(Geometry::identity(52).vtcr(&wide), 0x800d_3590);
        assert_eq!(Geometry::hyp(48).unwrap().tcr_el2(&CPU), 0x8085_3510);
    }

    #[test]
    fn concatenated_roots_are_consecutive_pages() {
        let g = Geometry::stage2(42, 48).unwrap();
        let root = crate::addr::Pfn::new(0x80).unwrap();
        for page in 0..8 {
            let first = page << 39;
            assert_eq!(g.root_page(root, first).raw(), 0x80 + page);
            assert_eq!(g.root_page(root, first + (1 << 39) - 1).raw(), 0x80 + page);
        }
    }
}
