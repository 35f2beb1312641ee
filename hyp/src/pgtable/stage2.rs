//! Stage 2: the format of the host's and the guests' tables, and the TLB maintenance they need.
//!
//! A leaf (Arm ARM table D8-53): memory attribute 5:2, S2AP 7:6, shareability 9:8, AF 10, output
//! 47:12, XN 54, and for software the page state 56:55 and NO_TAG 57. Everything else is 0.
//!
//! | type | NO_TAG | without FWB | with FWB | pass-through with FWB |
//! |---|---|---|---|---|
//! | Normal | no | 1111 | 0110 | 0111 |
//! | Normal | yes, FEAT_MTE_PERM | 0100 | 1110 | 1111 |
//! | NormalNc | any | 0101 | 0101 | 0101 |
//! | Device | any | 0001 | 0001 | 0001 |
//!
//! Without FEAT_MTE_PERM a Normal NO_TAG leaf looks like a plain one with bit 57 set, in tables
//! whose VM cannot use tags; in others it is refused ([`BadAttrs::NeedsNote`]).
//!
//! XN is 54:53 = 10 with FEAT_XNX and bit 54 without: the same word, as execution is allowed to
//! EL1 and EL0 alike.
#![forbid(unsafe_code)]

use super::entry::{
    ADDRESS, AF, BadAttrs, Corrupt, Entry, INNER_SHAREABLE, Leaf, Regime, TABLE_OR_PAGE, VALID, beyond_pa,
    check_leaf, check_table, frame_of, is_table,
};
use super::level::Level;
use super::note::{LOCKED, Note, NoteKinds, carries_page};
use super::publish::{Invalidation, Plan};
use crate::addr::{Ipa, IpaRange, MAX_PA_BITS};
use crate::hw::{CpuFeatures, Dsb, Machine, Stage2Ctx, Tlbi};
use bitflags::bitflags;

bitflags! {
    /// What a leaf allows; orthogonal to [`MemType`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        /// Loads.
        const R = 1 << 0;
        /// Stores.
        const W = 1 << 1;
        /// Instruction fetches; needs R to have an effect.
        const X = 1 << 2;
        /// Accesses to allocation tags, and tag-checked accesses, fault.
        const NO_TAG = 1 << 3;
    }
}

impl Prot {
    /// Load and store.
    pub const RW: Self = Self::R.union(Self::W);
    /// Load, store and fetch.
    pub const RWX: Self = Self::RW.union(Self::X);
}

bitflags! {
    /// [`Prot`] without NO_TAG.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Loads.
        const R = Prot::R.bits();
        /// Stores.
        const W = Prot::W.bits();
        /// Instruction fetches.
        const X = Prot::X.bits();
    }
}

impl From<Access> for Prot {
    fn from(access: Access) -> Self {
        Self::from_bits_truncate(access.bits())
    }
}

/// Memory type that stage 2 imposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemType {
    /// Write-back cacheable; in a pass-through table whatever stage 1 says.
    Normal,
    /// Not cacheable.
    NormalNc,
    /// Device-nGnRE, never executable.
    Device,
}

/// Who owns the page behind a guest's leaf, and who else sees it. The host's pages keep their
/// state in the vmemmap; its leaves say `Owned`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeafState {
    /// This VM owns the page, nobody else reaches it.
    Owned,
    /// This VM owns the page and shares it with the host.
    SharedOwned,
    /// The host owns the page and shares it with this VM.
    SharedBorrowed,
}

impl LeafState {
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Owned => 0,
            Self::SharedOwned => 1,
            Self::SharedBorrowed => 2,
        }
    }

    pub(super) const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(Self::Owned),
            1 => Some(Self::SharedOwned),
            2 => Some(Self::SharedBorrowed),
            _ => None,
        }
    }
}

/// Everything about a stage-2 leaf but its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct S2Attrs {
    /// What is allowed.
    pub prot: Prot,
    /// Memory type.
    pub mem: MemType,
    /// Page state.
    pub state: LeafState,
    /// Access flag: clear, and the next access faults.
    pub accessed: bool,
}

impl S2Attrs {
    /// A page that is owned and accessed.
    #[must_use]
    pub const fn owned(prot: Prot, mem: MemType) -> Self {
        Self { prot, mem, state: LeafState::Owned, accessed: true }
    }

    /// The same with another state.
    #[must_use]
    pub const fn with_state(self, state: LeafState) -> Self {
        Self { state, ..self }
    }

    /// The same with other permissions.
    #[must_use]
    pub const fn with_prot(self, prot: Prot) -> Self {
        Self { prot, ..self }
    }
}

/// What a table does about pages without tag storage (design: 4.d.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagControl {
    /// Tags cannot be used through this table (no MTE, or MTE off for the VM, or all memory is
    /// tagged): NO_TAG is remembered, the hardware need not know.
    Unused,
    /// Tag accesses to a NO_TAG page fault precisely if the CPU has FEAT_MTE_PERM; otherwise such
    /// a page cannot be mapped and is a [`Note::NoTagPending`].
    Enforced,
}

/// How a stage-2 table is encoded: fixed for the life of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Format {
    pa_bits: u8,
    notes: NoteKinds,
    beyond_pa: u64,
    /// MemAttr of a Normal leaf.
    normal: u64,
    /// MemAttr of a Normal NO_TAG leaf: `normal` where only bit 57 tells, [`REFUSED`] where none.
    no_tag: u64,
}

const fn mem_attr(bits: u64) -> u64 {
    bits << 2
}

const MEM_ATTR: u64 = mem_attr(0b1111);
/// No memory attribute.
const REFUSED: u64 = u64::MAX;
const MEM_ATTR_DEVICE_NGNRE: u64 = mem_attr(0b0001);
const MEM_ATTR_NORMAL_NC: u64 = mem_attr(0b0101);
const S2AP_R: u64 = 1 << 6;
const S2AP_W: u64 = 1 << 7;
const XN: u64 = 1 << 54;
const STATE_SHIFT: u32 = 55;
const STATE: u64 = 3 << STATE_SHIFT;
const SW_NO_TAG: u64 = 1 << 57;
const KNOWN: u64 = VALID
    | TABLE_OR_PAGE
    | MEM_ATTR
    | S2AP_R
    | S2AP_W
    | INNER_SHAREABLE
    | AF
    | ADDRESS
    | XN
    | STATE
    | SW_NO_TAG;

impl Stage2Format {
    /// The host's table: memory type as the host's stage 1 says (pKVM's AS_S1, so that FWB can
    /// be on for the whole machine), notes about donated pages only.
    #[must_use]
    pub const fn host(features: &CpuFeatures) -> Self {
        let normal = if features.fwb { mem_attr(0b0111) } else { mem_attr(0b1111) };
        Self::new(features, NoteKinds::HOST_DONATED, normal, normal)
    }

    /// A guest's table: Normal is write-back, by force where the CPU has FWB.
    #[must_use]
    pub const fn guest(features: &CpuFeatures, tags: TagControl, notes: NoteKinds) -> Self {
        let normal = if features.fwb { mem_attr(0b0110) } else { mem_attr(0b1111) };
        let no_tag = match (tags, features.mte >= 2 && features.mte_perm) {
            (TagControl::Unused, _) => normal,
            (TagControl::Enforced, true) if features.fwb => mem_attr(0b1110),
            (TagControl::Enforced, true) => mem_attr(0b0100),
            (TagControl::Enforced, false) => REFUSED,
        };
        Self::new(features, notes, normal, no_tag)
    }

    const fn new(features: &CpuFeatures, notes: NoteKinds, normal: u64, no_tag: u64) -> Self {
        let pa_bits = clamp(features.pa_bits);
        Self { pa_bits, notes, beyond_pa: beyond_pa(pa_bits), normal, no_tag }
    }

    /// Which notes may stand in the table.
    #[must_use]
    pub const fn notes(&self) -> NoteKinds {
        self.notes
    }

    /// True where a Normal NO_TAG page has a memory attribute of its own.
    #[must_use]
    pub const fn has_no_tag_type(&self) -> bool {
        self.maps_no_tag() && self.no_tag != self.normal
    }

    /// False where a Normal NO_TAG page must be a [`Note::NoTagPending`].
    #[must_use]
    pub const fn maps_no_tag(&self) -> bool {
        self.no_tag != REFUSED
    }
}

const fn clamp(pa_bits: u8) -> u8 {
    const MAX: u8 = MAX_PA_BITS.to_le_bytes()[0];
    if pa_bits > MAX { MAX } else { pa_bits }
}

/// The permissions in a leaf.
#[inline]
fn prot_of(word: u64) -> Prot {
    // R and W are neighbours in the word as in `Prot`; XN is X the other way round.
    let access = word >> 6 & 0b11;
    let execute = (word ^ XN) >> 54 & 1;
    let no_tag = word >> 57 & 1;
    #[expect(clippy::cast_possible_truncation, reason = "four bits")]
    Prot::from_bits_truncate((access | execute << 2 | no_tag << 3) as u8)
}

/// The regime of [`super::Stage2Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2 {}

impl Stage2 {
    #[inline(always)]
    fn decode_leaf(format: &Stage2Format, level: Level, word: u64) -> Result<S2Attrs, Corrupt> {
        check_leaf(format.beyond_pa, KNOWN, INNER_SHAREABLE, level, word)?;
        let prot = prot_of(word);
        let attr = word & MEM_ATTR;
        let expected = if word & SW_NO_TAG == 0 { format.normal } else { format.no_tag };
        let mem = if attr == expected {
            MemType::Normal
        } else if attr == MEM_ATTR_NORMAL_NC {
            MemType::NormalNc
        } else if attr == MEM_ATTR_DEVICE_NGNRE && word & XN != 0 {
            MemType::Device
        } else {
            return Err(Self::wrong_type(format, attr));
        };
        let state = LeafState::from_bits((word & STATE) >> STATE_SHIFT).ok_or(Corrupt::State)?;
        Ok(S2Attrs { prot, mem, state, accessed: word & AF != 0 })
    }

    #[cold]
    fn wrong_type(format: &Stage2Format, attr: u64) -> Corrupt {
        if attr == MEM_ATTR_DEVICE_NGNRE {
            Corrupt::Permissions
        } else if attr == format.normal || attr == format.no_tag {
            Corrupt::NoTag
        } else {
            Corrupt::MemType
        }
    }

    fn decode_note(format: &Stage2Format, level: Level, word: u64) -> Result<Entry<Self>, Corrupt> {
        let note = Note::decode(word)?;
        if Self::note_level(format, note).is_none_or(|shallowest| level < shallowest) {
            return Err(Corrupt::NotePlace);
        }
        if let Note::NoTagPending { page, .. } = note
            && page.base().raw() >> format.pa_bits != 0
        {
            return Err(Corrupt::BeyondPa);
        }
        Ok(Entry::Note(note))
    }
}

impl Regime for Stage2 {
    type Addr = Ipa;
    type Range = IpaRange;
    type Attrs = S2Attrs;
    type Note = Note;
    type Format = Stage2Format;
    type Context = Stage2Ctx;

    const BROKEN: u64 = LOCKED;
    const EDITABLE: u64 = S2AP_R | S2AP_W | XN | AF | STATE;
    const CACHED: u64 = S2AP_R | S2AP_W | XN | AF;

    #[inline]
    fn may_be_cached(word: u64) -> bool {
        word & AF != 0
    }

    #[inline]
    fn carries_page(word: u64) -> bool {
        carries_page(word)
    }

    #[inline]
    fn raw(addr: Ipa) -> u64 {
        addr.raw()
    }

    #[inline]
    fn addr(raw: u64) -> Ipa {
        Ipa::truncated(raw)
    }

    #[inline]
    fn bounds(range: IpaRange) -> (u64, u64) {
        (range.start().raw(), range.end())
    }

    #[inline(always)]
    fn decode(format: &Stage2Format, level: Level, word: u64) -> Result<Entry<Self>, Corrupt> {
        if word == 0 {
            return Ok(Entry::Absent);
        }
        if word & VALID == 0 {
            // Every access of a guest to a device that it has marked comes here.
            let marked = word == Note::MmioGuard.encode() && level == Level::L3;
            if marked && format.notes.contains(NoteKinds::MMIO_GUARD) {
                return Ok(Entry::Note(Note::MmioGuard));
            }
            return Self::decode_note(format, level, word);
        }
        if is_table(level, word) {
            return check_table(format.beyond_pa, word).map(Entry::Table);
        }
        let attrs = Self::decode_leaf(format, level, word)?;
        Ok(Entry::Leaf(Leaf { output: frame_of(word), attrs }))
    }

    #[inline(always)]
    fn encode_attrs(format: &Stage2Format, attrs: S2Attrs) -> Result<u64, BadAttrs> {
        let S2Attrs { prot, mem, state, accessed } = attrs;
        let no_tag = prot.contains(Prot::NO_TAG);
        let attr = match mem {
            MemType::Normal if no_tag && !format.maps_no_tag() => return Err(BadAttrs::NeedsNote),
            MemType::Normal if no_tag => format.no_tag,
            MemType::Normal => format.normal,
            MemType::NormalNc => MEM_ATTR_NORMAL_NC,
            MemType::Device if prot.contains(Prot::X) => return Err(BadAttrs::ExecutableDevice),
            MemType::Device => MEM_ATTR_DEVICE_NGNRE,
        };
        let bit = |on: bool, bits: u64| if on { bits } else { 0 };
        Ok(VALID
            | attr
            | INNER_SHAREABLE
            | bit(prot.contains(Prot::R), S2AP_R)
            | bit(prot.contains(Prot::W), S2AP_W)
            | bit(!prot.contains(Prot::X), XN)
            | bit(no_tag, SW_NO_TAG)
            | bit(accessed, AF)
            | state.bits() << STATE_SHIFT)
    }

    #[inline(always)]
    fn encode_note(note: Note) -> u64 {
        note.encode()
    }

    #[inline(always)]
    fn note_level(format: &Stage2Format, note: Note) -> Option<Level> {
        format.notes.contains(note.kind()).then(|| note.shallowest())
    }

    #[inline]
    fn note_run(note: Note, pages: u64) -> Option<(u64, u64)> {
        note.run(pages)
    }

    #[inline]
    fn beyond_pa(format: &Stage2Format) -> u64 {
        format.beyond_pa
    }

    #[inline]
    fn pa_bits(format: &Stage2Format) -> u32 {
        u32::from(format.pa_bits)
    }

    /// The sequence of facts 7.2: the entries of stage 2 alone must be gone before those that
    /// combine it with stage 1 are dropped, or another CPU builds new ones from the old.
    #[inline(always)]
    fn invalidate<M: Machine>(hw: &M, context: Stage2Ctx, inv: &Invalidation) {
        // The stores of the invalid entries are seen by all walkers before any TLBI acts.
        hw.dsb(Dsb::Ish);
        let previous = hw.enter_stage2(context);
        let whole = inv.each(hw.features(), |plan| match plan {
            Plan::One { ia, level } => hw.tlbi(Tlbi::Ipa { ipa: Ipa::truncated(ia), level }),
            Plan::Range { ia, scale, num, level } => {
                hw.tlbi(Tlbi::IpaRange { ipa: Ipa::truncated(ia), scale, num, level });
            }
        });
        if whole {
            hw.tlbi(Tlbi::CurrentVmid);
        } else {
            hw.dsb(Dsb::Ish);
            hw.tlbi(Tlbi::StageOneAndCombined);
        }
        hw.dsb(Dsb::Ish);
        hw.isb();
        hw.leave_stage2(previous);
    }

    #[inline]
    fn complete<M: Machine>(hw: &M) {
        hw.dsb(Dsb::IshSt);
    }
}

#[cfg(test)]
mod tests {
    use super::{LeafState, MemType, Prot, S2Attrs, Stage2, Stage2Format, TagControl};
    use crate::addr::{Gfn, Pfn};
    use crate::hw::CpuFeatures;
    use crate::pgtable::entry::leaf_word;
    use crate::pgtable::note::LOCKED;
    use crate::pgtable::{BadAttrs, Corrupt, Entry, Leaf, Level, Note, NoteKinds, Owner, Regime, Ripas};
    use aarch64_paging::descriptor::{PagingAttributes, Stage2Attributes as Oracle};
    use std::vec::Vec;

    fn cpu(fwb: bool, mte_perm: bool) -> CpuFeatures {
        CpuFeatures {
            pa_bits: 44,
            vmid_bits: 16,
            fwb,
            ttl: true,
            tlbi_range: true,
            xnx: true,
            dic: true,
            idc: true,
            mte: 3,
            mte_perm,
        }
    }

    const BOOL: [bool; 2] = [false, true];
    const MEM: [MemType; 3] = [MemType::Normal, MemType::NormalNc, MemType::Device];
    const STATES: [LeafState; 3] = [LeafState::Owned, LeafState::SharedOwned, LeafState::SharedBorrowed];
    const LEAF_LEVELS: [Level; 3] = [Level::L1, Level::L2, Level::L3];

    /// (description, format, FWB, MemAttr of Normal, of Normal NO_TAG): the table of the module doc.
    fn formats() -> Vec<(Stage2Format, u64, Option<u64>)> {
        let all = NoteKinds::all();
        let guest = |fwb, perm, tags| Stage2Format::guest(&cpu(fwb, perm), tags, all);
        Vec::from([
            (guest(false, false, TagControl::Unused), 0b1111, Some(0b1111)),
            (guest(false, true, TagControl::Unused), 0b1111, Some(0b1111)),
            (guest(false, true, TagControl::Enforced), 0b1111, Some(0b0100)),
            (guest(false, false, TagControl::Enforced), 0b1111, None),
            (guest(true, false, TagControl::Unused), 0b0110, Some(0b0110)),
            (guest(true, true, TagControl::Unused), 0b0110, Some(0b0110)),
            (guest(true, true, TagControl::Enforced), 0b0110, Some(0b1110)),
            (guest(true, false, TagControl::Enforced), 0b0110, None),
            (Stage2Format::host(&cpu(false, true)), 0b1111, Some(0b1111)),
            (Stage2Format::host(&cpu(true, true)), 0b0111, Some(0b0111)),
        ])
    }

    fn attrs() -> Vec<S2Attrs> {
        let mut all = Vec::new();
        for prot in (0..16).map(|b| Prot::from_bits(b).unwrap()) {
            for mem in MEM {
                for state in STATES {
                    for accessed in BOOL {
                        all.push(S2Attrs { prot, mem, state, accessed });
                    }
                }
            }
        }
        all
    }

    #[expect(clippy::arithmetic_side_effects, reason = "constants of the test")]
    fn output(level: Level) -> Pfn {
        Pfn::new((3 << 18) + (7 << (level.shift() - 12))).unwrap()
    }

    #[test]
    fn m_01_every_leaf_survives_the_round_trip_in_every_format_at_every_level() {
        for (format, normal, no_tag) in formats() {
            for attrs in attrs() {
                let encoded = Stage2::encode_attrs(&format, attrs);
                if attrs.mem == MemType::Device && attrs.prot.contains(Prot::X) {
                    assert_eq!(encoded, Err(BadAttrs::ExecutableDevice));
                    continue;
                }
                if attrs.mem == MemType::Normal && attrs.prot.contains(Prot::NO_TAG) && no_tag.is_none() {
                    assert_eq!(encoded, Err(BadAttrs::NeedsNote));
                    continue;
                }
                let memattr = match (attrs.mem, attrs.prot.contains(Prot::NO_TAG)) {
                    (MemType::Normal, false) => normal,
                    (MemType::Normal, true) => no_tag.unwrap(),
                    (MemType::NormalNc, _) => 0b0101,
                    (MemType::Device, _) => 0b0001,
                };
                for level in LEAF_LEVELS {
                    let word = leaf_word(encoded.unwrap(), output(level), level);
                    assert_eq!(word >> 2 & 0xf, memattr, "{attrs:?}");
                    let leaf = Leaf { output: output(level), attrs };
                    assert_eq!(Stage2::decode(&format, level, word), Ok(Entry::Leaf(leaf)));
                }
            }
        }
    }

    /// A second opinion on all bits but the memory attribute, from a crate that others use.
    #[test]
    fn bits_agree_with_aarch64_paging() {
        let (format, ..) = formats()[0];
        for attrs in attrs().into_iter().filter(|a| a.mem != MemType::Device) {
            let mut oracle = Oracle::VALID | Oracle::SH_INNER;
            oracle |= match attrs.mem {
                MemType::Normal => Oracle::MEMATTR_NORMAL_INNER_WB | Oracle::MEMATTR_NORMAL_OUTER_WB,
                _ => Oracle::MEMATTR_NORMAL_INNER_NC | Oracle::MEMATTR_NORMAL_OUTER_NC,
            };
            if attrs.prot.contains(Prot::R) {
                oracle |= Oracle::S2AP_ACCESS_RO;
            }
            if attrs.prot.contains(Prot::W) {
                oracle |= Oracle::S2AP_ACCESS_WO;
            }
            if !attrs.prot.contains(Prot::X) {
                oracle |= Oracle::XN;
            }
            if attrs.accessed {
                oracle |= Oracle::ACCESS_FLAG;
            }
            match attrs.state {
                LeafState::Owned => {}
                LeafState::SharedOwned => oracle |= Oracle::SWFLAG_0,
                LeafState::SharedBorrowed => oracle |= Oracle::SWFLAG_1,
            }
            if attrs.prot.contains(Prot::NO_TAG) {
                oracle |= Oracle::SWFLAG_2;
            }
            let encoded = Stage2::encode_attrs(&format, attrs).unwrap();
            assert_eq!(encoded, oracle.bits() as u64, "{attrs:?}");
            assert_eq!(leaf_word(encoded, output(Level::L3), Level::L3) & 3, 3);
            assert_eq!(leaf_word(encoded, output(Level::L2), Level::L2) & 3, 1);
        }
        let editable = Oracle::from_bits_truncate(usize::try_from(Stage2::EDITABLE).unwrap());
        assert_eq!(editable.bits() as u64, Stage2::EDITABLE);
        assert!(Oracle::is_bbm_safe(Oracle::VALID, Oracle::VALID | editable));
        assert!(Oracle::is_bbm_safe(Oracle::VALID | editable, Oracle::VALID));
    }

    /// Every single bit outside the format makes a leaf corrupt, at every level.
    #[test]
    fn a_bit_that_nothing_writes_is_corrupt() {
        for (format, ..) in formats() {
            let attrs = S2Attrs::owned(Prot::RW, MemType::Normal);
            for level in LEAF_LEVELS {
                let word = leaf_word(Stage2::encode_attrs(&format, attrs).unwrap(), output(level), level);
                for bit in [8, 9, 11, 48, 49, 50, 51, 52, 53, 58, 59, 60, 61, 62, 63] {
                    let got = Stage2::decode(&format, level, word ^ 1 << bit);
                    assert!(matches!(got, Err(Corrupt::ReservedBits)), "bit {bit} at {level:?}: {got:?}");
                }
                assert_eq!(Stage2::decode(&format, level, word | 3 << 55), Err(Corrupt::State));
                assert_eq!(Stage2::decode(&format, level, word | 1 << 44), Err(Corrupt::BeyondPa));
            }
        }
    }

    /// Whatever is accepted encodes to the same word: nothing is dropped or made up.
    #[test]
    fn what_is_accepted_is_what_is_encoded() {
        for (format, ..) in formats() {
            for attrs in attrs() {
                let Ok(encoded) = Stage2::encode_attrs(&format, attrs) else { continue };
                for level in LEAF_LEVELS {
                    let word = leaf_word(encoded, output(level), level);
                    for flip in (0..64).flat_map(|a| [1_u64 << a, 1 << a | 1 << (a * 7 % 64)]) {
                        let word = word ^ flip;
                        if let Ok(Entry::Leaf(leaf)) = Stage2::decode(&format, level, word) {
                            let again = Stage2::encode_attrs(&format, leaf.attrs).unwrap();
                            assert_eq!(leaf_word(again, leaf.output, level), word);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn reserved_types_and_unaligned_blocks_are_corrupt() {
        let (format, ..) = formats()[0];
        let encoded = Stage2::encode_attrs(&format, S2Attrs::owned(Prot::RW, MemType::Normal)).unwrap();
        let block = leaf_word(encoded, output(Level::L1), Level::L2);
        assert_eq!(Stage2::decode(&format, Level::L0, block), Err(Corrupt::ReservedType));
        assert_eq!(Stage2::decode(&format, Level::L3, block), Err(Corrupt::ReservedType));
        let page = Pfn::new(0x201).unwrap();
        for level in [Level::L1, Level::L2] {
            let word = leaf_word(encoded, page, level);
            assert_eq!(Stage2::decode(&format, level, word), Err(Corrupt::UnalignedOutput));
        }
    }

    #[test]
    fn tables_are_bare_pointers_inside_the_pa_space() {
        let (format, ..) = formats()[0];
        for level in [Level::L0, Level::L1, Level::L2] {
            let table = Pfn::new(0x1234).unwrap();
            assert_eq!(Stage2::decode(&format, level, 0x123_4003), Ok(Entry::Table(table)));
            for bit in (2..12).chain(48..64) {
                assert_eq!(Stage2::decode(&format, level, 0x123_4003 | 1 << bit), Err(Corrupt::ReservedBits));
            }
            assert_eq!(Stage2::decode(&format, level, 0x123_4003 | 1 << 44), Err(Corrupt::BeyondPa));
        }
    }

    /// Bit 57 and the hardware's attribute tell the same, or the leaf fails closed.
    #[test]
    fn no_tag_of_hardware_and_software_must_agree() {
        let precise = Stage2Format::guest(&cpu(true, true), TagControl::Enforced, NoteKinds::empty());
        let plain = Stage2::encode_attrs(&precise, S2Attrs::owned(Prot::RWX, MemType::Normal)).unwrap();
        let word = leaf_word(plain, output(Level::L3), Level::L3);
        assert_eq!(Stage2::decode(&precise, Level::L3, word | 1 << 57), Err(Corrupt::NoTag));
        let no_tag = S2Attrs::owned(Prot::RWX | Prot::NO_TAG, MemType::Normal);
        let no_tag = leaf_word(Stage2::encode_attrs(&precise, no_tag).unwrap(), output(Level::L3), Level::L3);
        assert_eq!(Stage2::decode(&precise, Level::L3, no_tag & !(1 << 57)), Err(Corrupt::NoTag));
        let pending = Stage2Format::guest(&cpu(true, false), TagControl::Enforced, NoteKinds::empty());
        assert!(!pending.maps_no_tag());
        assert_eq!(Stage2::decode(&pending, Level::L3, word | 1 << 57), Err(Corrupt::NoTag));
        // Without FEAT_MTE_PERM bit 3 of MemAttr is RES0 with FWB: an entry that has it is not ours.
        assert_eq!(Stage2::decode(&pending, Level::L3, no_tag), Err(Corrupt::MemType));
    }

    #[test]
    fn a_note_outside_its_table_or_level_is_corrupt() {
        let host = Stage2Format::host(&cpu(true, true));
        let guard = NoteKinds::MMIO_GUARD;
        let guest = Stage2Format::guest(&cpu(true, true), TagControl::Unused, guard);
        let gfn = Gfn::new(1).unwrap();
        let donated = Note::HostDonated(Owner::Guest { handle: 1, gfn });
        let decode = |format, level, note: Note| Stage2::decode(format, level, note.encode());
        assert_eq!(decode(&host, Level::L3, donated), Ok(Entry::Note(donated)));
        assert_eq!(decode(&host, Level::L2, donated), Err(Corrupt::NotePlace));
        assert_eq!(decode(&guest, Level::L3, donated), Err(Corrupt::NotePlace));
        let hyp = Note::HostDonated(Owner::Hyp);
        for level in Level::ALL {
            assert_eq!(decode(&host, level, hyp), Ok(Entry::Note(hyp)));
        }
        assert_eq!(decode(&guest, Level::L3, Note::MmioGuard), Ok(Entry::Note(Note::MmioGuard)));
        assert_eq!(decode(&guest, Level::L2, Note::MmioGuard), Err(Corrupt::NotePlace));
        assert_eq!(decode(&host, Level::L3, Note::MmioGuard), Err(Corrupt::NotePlace));
        assert_eq!(decode(&guest, Level::L3, Note::Ripas(Ripas::Destroyed)), Err(Corrupt::NotePlace));
        assert_eq!(Stage2::decode(&host, Level::L3, LOCKED), Err(Corrupt::Locked));
        assert_eq!(Stage2::decode(&host, Level::L3, 0), Ok(Entry::Absent));
    }
}
