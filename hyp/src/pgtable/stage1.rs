//! EL2's own stage 1 (nVHE: one privilege level): format and TLB maintenance.
//!
//! A leaf: AttrIndx 4:2, AP 7:6 (01 read-write, 11 read-only; AP\[1\] is RES1), shareability 9:8,
//! AF 10, output 47:12, XN 54 (Arm ARM D8.3; bit 53 is RES0 and nG is RES0 with one level).
//! Write or execute, never both, and always read: by type. The one note, [`HypNote::Window`], marks
//! a window slot that shows nothing.
#![forbid(unsafe_code)]

use super::entry::{
    ADDRESS, AF, BadAttrs, Corrupt, Entry, INNER_SHAREABLE, Leaf, Regime, TABLE_OR_PAGE, VALID, beyond_pa,
    check_leaf, check_table, frame_of, is_table,
};
use super::level::Level;
use super::publish::Invalidation;
use crate::addr::{HypVa, VaRange};
use crate::hw::{CpuFeatures, Dsb, Machine, Tlbi};

/// What EL2 may do with a page of its own: write and execute exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HypProt {
    /// Read.
    Ro,
    /// Read and write.
    Rw,
    /// Read and execute.
    Rx,
}

/// Memory type of a page of EL2's own map: the index into [`MAIR_EL2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HypMem {
    /// Normal write-back, not Tagged.
    Normal,
    /// Device-nGnRE.
    Device,
    /// Normal write-back Tagged: only to zero the tags of a page.
    NormalTagged,
}

/// MAIR_EL2: attribute 0 Normal write-back (0xFF), 1 Device-nGnRE (0x04), 2 Tagged Normal
/// write-back (0xF0, unused on CPUs without MTE2).
pub const MAIR_EL2: u64 = 0xff | 0x04 << 8 | 0xf0 << 16;

/// Everything about a leaf of EL2's own map but its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HypAttrs {
    /// What is allowed.
    pub prot: HypProt,
    /// Memory type.
    pub mem: HypMem,
}

impl HypAttrs {
    /// Normal memory.
    #[must_use]
    pub const fn normal(prot: HypProt) -> Self {
        Self { prot, mem: HypMem::Normal }
    }

    /// Registers of a device.
    pub const DEVICE: Self = Self { prot: HypProt::Rw, mem: HypMem::Device };
}

/// What an invalid entry of EL2's own map says. Levels 2 and 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HypNote {
    /// A window slot that shows nothing: the entry is in use, and its table stays.
    Window,
}

/// Type 6 in bits 63:60, which stage-2 notes leave alone; no payload.
const NOTE_WINDOW: u64 = 6 << 60;

/// How EL2's own table is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypFormat {
    pa_bits: u8,
    beyond_pa: u64,
    tags: bool,
}

impl HypFormat {
    /// The format on these CPUs.
    #[must_use]
    pub const fn new(features: &CpuFeatures) -> Self {
        let pa_bits = if features.pa_bits > 48 { 48 } else { features.pa_bits };
        Self { pa_bits, beyond_pa: beyond_pa(pa_bits), tags: features.mte >= 2 }
    }
}

const ATTR_INDEX: u64 = 7 << 2;
const ATTR_NORMAL: u64 = 0;
const ATTR_DEVICE: u64 = 1 << 2;
const ATTR_NORMAL_TAGGED: u64 = 2 << 2;
const AP_RES1: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const XN: u64 = 1 << 54;
const MUST: u64 = VALID | AP_RES1 | INNER_SHAREABLE | AF;
const KNOWN: u64 = MUST | TABLE_OR_PAGE | ATTR_INDEX | AP_READ_ONLY | ADDRESS | XN;

/// The regime of [`super::HypTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypStage1 {}

impl Regime for HypStage1 {
    type Addr = HypVa;
    type Range = VaRange;
    type Attrs = HypAttrs;
    type Note = HypNote;
    type Format = HypFormat;
    type Context = ();

    const BROKEN: u64 = 0;
    const EDITABLE: u64 = AP_READ_ONLY | XN;
    const CACHED: u64 = AP_READ_ONLY | XN;

    #[inline]
    fn may_be_cached(_word: u64) -> bool {
        true
    }

    #[inline]
    fn raw(addr: HypVa) -> u64 {
        addr.raw()
    }

    #[inline]
    fn addr(raw: u64) -> HypVa {
        HypVa::truncated(raw)
    }

    #[inline]
    fn bounds(range: VaRange) -> (u64, u64) {
        (range.start().raw(), range.end())
    }

    fn decode(format: &HypFormat, level: Level, word: u64) -> Result<Entry<Self>, Corrupt> {
        match word {
            0 => return Ok(Entry::Absent),
            NOTE_WINDOW if matches!(level, Level::L2 | Level::L3) => return Ok(Entry::Note(HypNote::Window)),
            _ if word & VALID == 0 => return Err(Corrupt::NotePlace),
            _ => {}
        }
        if is_table(level, word) {
            return check_table(format.beyond_pa, word).map(Entry::Table);
        }
        check_leaf(format.beyond_pa, KNOWN, MUST, level, word)?;
        let prot = match (word & AP_READ_ONLY != 0, word & XN == 0) {
            (true, false) => HypProt::Ro,
            (true, true) => HypProt::Rx,
            (false, false) => HypProt::Rw,
            (false, true) => return Err(Corrupt::Permissions),
        };
        let mem = match word & ATTR_INDEX {
            ATTR_NORMAL => HypMem::Normal,
            ATTR_DEVICE if prot == HypProt::Rx => return Err(Corrupt::Permissions),
            ATTR_DEVICE => HypMem::Device,
            ATTR_NORMAL_TAGGED if format.tags => HypMem::NormalTagged,
            _ => return Err(Corrupt::MemType),
        };
        Ok(Entry::Leaf(Leaf { output: frame_of(word), attrs: HypAttrs { prot, mem } }))
    }

    fn encode_attrs(format: &HypFormat, attrs: HypAttrs) -> Result<u64, BadAttrs> {
        let mem = match attrs.mem {
            HypMem::Normal => ATTR_NORMAL,
            HypMem::Device if attrs.prot == HypProt::Rx => return Err(BadAttrs::ExecutableDevice),
            HypMem::Device => ATTR_DEVICE,
            HypMem::NormalTagged if format.tags => ATTR_NORMAL_TAGGED,
            HypMem::NormalTagged => return Err(BadAttrs::NoTags),
        };
        let prot = match attrs.prot {
            HypProt::Ro => AP_READ_ONLY | XN,
            HypProt::Rw => XN,
            HypProt::Rx => AP_READ_ONLY,
        };
        Ok(MUST | mem | prot)
    }

    fn encode_note(HypNote::Window: HypNote) -> u64 {
        NOTE_WINDOW
    }

    fn note_level(_: &HypFormat, HypNote::Window: HypNote) -> Option<Level> {
        Some(Level::L2)
    }

    fn note_run(note: HypNote, _: u64) -> Option<(u64, u64)> {
        Some((Self::encode_note(note), 0))
    }

    #[inline]
    fn beyond_pa(format: &HypFormat) -> u64 {
        format.beyond_pa
    }

    #[inline]
    fn pa_bits(format: &HypFormat) -> u32 {
        u32::from(format.pa_bits)
    }

    #[inline(always)]
    fn invalidate<M: Machine>(hw: &M, (): (), inv: &Invalidation) {
        hw.dsb(Dsb::Ish);
        let whole = inv.each_page(hw.features(), |ia, level| {
            hw.tlbi(Tlbi::Hyp { va: HypVa::truncated(ia), level });
        });
        if whole {
            hw.tlbi(Tlbi::AllHyp);
        }
        hw.dsb(Dsb::Ish);
        hw.isb();
    }

    #[inline]
    fn complete<M: Machine>(hw: &M) {
        // EL2 uses its own map next: the ISB makes this CPU's next access walk after the store.
        hw.dsb(Dsb::IshSt);
        hw.isb();
    }
}

#[cfg(test)]
mod tests {
    use super::{HypAttrs, HypFormat, HypMem, HypNote, HypProt, HypStage1, MAIR_EL2};
    use crate::addr::Pfn;
    use crate::hw::CpuFeatures;
    use crate::pgtable::entry::leaf_word;
    use crate::pgtable::{BadAttrs, Corrupt, Entry, Leaf, Level, Regime};
    use aarch64_paging::descriptor::{El23Attributes as Oracle, PagingAttributes};

    fn format(mte: u8) -> HypFormat {
        HypFormat::new(&CpuFeatures {
            pa_bits: 40,
            vmid_bits: 8,
            fwb: false,
            ttl: false,
            tlbi_range: false,
            xnx: false,
            dic: false,
            idc: false,
            mte,
            mte_perm: false,
        })
    }

    const PROTS: [HypProt; 3] = [HypProt::Ro, HypProt::Rw, HypProt::Rx];
    const MEMS: [HypMem; 3] = [HypMem::Normal, HypMem::Device, HypMem::NormalTagged];

    #[test]
    fn every_leaf_survives_the_round_trip_and_agrees_with_aarch64_paging() {
        for prot in PROTS {
            for mem in MEMS {
                let attrs = HypAttrs { prot, mem };
                let encoded = HypStage1::encode_attrs(&format(2), attrs);
                if mem == HypMem::Device && prot == HypProt::Rx {
                    assert_eq!(encoded, Err(BadAttrs::ExecutableDevice));
                    continue;
                }
                let mut oracle =
                    Oracle::VALID | Oracle::USER_RES1 | Oracle::INNER_SHAREABLE | Oracle::ACCESSED;
                oracle |= match mem {
                    HypMem::Normal => Oracle::ATTRIBUTE_INDEX_0,
                    HypMem::Device => Oracle::ATTRIBUTE_INDEX_1,
                    HypMem::NormalTagged => Oracle::ATTRIBUTE_INDEX_2,
                };
                if prot != HypProt::Rw {
                    oracle |= Oracle::READ_ONLY;
                }
                if prot != HypProt::Rx {
                    oracle |= Oracle::XN;
                }
                assert_eq!(encoded.unwrap(), oracle.bits() as u64);
                for level in [Level::L1, Level::L2, Level::L3] {
                    let output = Pfn::new(level.pages()).unwrap();
                    let word = leaf_word(encoded.unwrap(), output, level);
                    let decoded = HypStage1::decode(&format(2), level, word);
                    assert_eq!(decoded, Ok(Entry::Leaf(Leaf { output, attrs })));
                }
            }
        }
        let editable = Oracle::from_bits_truncate(usize::try_from(HypStage1::EDITABLE).unwrap());
        assert!(Oracle::is_bbm_safe(Oracle::VALID, Oracle::VALID | editable));
        assert_eq!(MAIR_EL2.to_le_bytes(), [0xff, 0x04, 0xf0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn tagged_memory_needs_a_cpu_with_tags() {
        let tagged = HypAttrs { prot: HypProt::Rw, mem: HypMem::NormalTagged };
        assert_eq!(HypStage1::encode_attrs(&format(1), tagged), Err(BadAttrs::NoTags));
        let word = HypStage1::encode_attrs(&format(2), tagged).unwrap() | 2;
        assert_eq!(HypStage1::decode(&format(1), Level::L3, word), Err(Corrupt::MemType));
    }

    /// No word decodes to something writable and executable, and nothing is made up.
    #[test]
    fn what_is_accepted_is_what_is_encoded() {
        let base = HypStage1::encode_attrs(&format(2), HypAttrs::normal(HypProt::Rw)).unwrap() | 2;
        for a in 0..64 {
            for b in a..64 {
                let word = base ^ (1 << a) ^ (1 << b);
                if let Ok(Entry::Leaf(leaf)) = HypStage1::decode(&format(2), Level::L3, word) {
                    let again = HypStage1::encode_attrs(&format(2), leaf.attrs).unwrap();
                    assert_eq!(leaf_word(again, leaf.output, Level::L3), word);
                }
            }
        }
        let writable_and_executable = base & !(1 << 54);
        assert_eq!(
            HypStage1::decode(&format(2), Level::L3, writable_and_executable),
            Err(Corrupt::Permissions)
        );
    }

    #[test]
    fn an_invalid_word_is_absent_or_a_hidden_window() {
        let decode = |level, word| HypStage1::decode(&format(2), level, word);
        assert_eq!(decode(Level::L3, 0), Ok(Entry::Absent));
        for level in [Level::L2, Level::L3] {
            assert_eq!(decode(level, 6 << 60), Ok(Entry::Note(HypNote::Window)));
        }
        assert_eq!(HypStage1::encode_note(HypNote::Window), 6 << 60);
        assert_eq!(decode(Level::L1, 6 << 60), Err(Corrupt::NotePlace));
        for bit in 1..64 {
            assert_eq!(decode(Level::L3, 1 << bit), Err(Corrupt::NotePlace));
        }
    }
}
