//! Descriptors as the architecture defines them (Arm ARM D8.3, 4 KiB granule, DS = 0).
//!
//! Written apart from `pgtable`, so that one misreading does not hide in both.
#![forbid(unsafe_code)]

use crate::addr::{PAGE_SHIFT, PAGE_SIZE};
use crate::hw::{CpuFeatures, TableOwner};

const OUTPUT: u64 = 0x0000_ffff_ffff_f000;
const TYPE: u64 = 0b10;
const AF: u64 = 1 << 10;
const SOFTWARE: u64 = 0xf << 55;
/// Page state of a stage-2 leaf: 0 is what its owner has to itself.
const PAGE_STATE: u64 = 0b11 << 55;
/// No access to allocation tags.
const NO_TAG: u64 = 1 << 57;
/// Type field of an invalid word, and the two types that the checker knows.
const NOTE_SHIFT: u32 = 60;
const NOTE_LOCKED: u64 = 1;
const NOTE_HOST_DONATED: u64 = 2;

/// What a word is at its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Invalid,
    Table(u64),
    Leaf(Leaf),
    Reserved,
}

/// A block or page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) raw: u64,
    pub(super) level: u8,
    stage2: bool,
}

/// How one valid leaf differs from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing the TLB cares about, or more permissions.
    Harmless,
    /// Some permission is gone: no break-before-make, but an invalidation.
    Restricts,
    /// Break-before-make.
    Breaks,
}

/// log2 of the pages that an entry of `level` covers.
pub(super) const fn order(level: u8) -> u32 {
    match level {
        0 => 27,
        1 => 18,
        2 => 9,
        _ => 0,
    }
}

/// Bytes that an entry of `level` covers.
pub(super) const fn span(level: u8) -> u64 {
    PAGE_SIZE << order(level)
}

pub(super) const fn is_locked(raw: u64) -> bool {
    raw & 1 == 0 && raw >> NOTE_SHIFT == NOTE_LOCKED
}

pub(super) const fn is_host_donated(raw: u64) -> bool {
    raw & 1 == 0 && raw >> NOTE_SHIFT == NOTE_HOST_DONATED
}

pub(super) fn classify(raw: u64, level: u8, owner: TableOwner) -> Kind {
    let stage2 = owner != TableOwner::Hyp;
    match (raw & 1 != 0, raw & TYPE != 0, level) {
        (false, _, _) => Kind::Invalid,
        (true, true, 0..=2) => Kind::Table((raw & OUTPUT) >> PAGE_SHIFT),
        (true, true, 3) | (true, false, 1 | 2) => Kind::Leaf(Leaf { raw, level, stage2 }),
        _ => Kind::Reserved,
    }
}

impl Leaf {
    pub(super) const fn first(self) -> u64 {
        (self.raw & OUTPUT) >> PAGE_SHIFT
    }

    pub(super) const fn pages(self) -> u64 {
        1 << order(self.level)
    }

    pub(super) const fn covers(self, first: u64, nr: u64) -> bool {
        first < self.first().saturating_add(self.pages()) && self.first() < first.saturating_add(nr)
    }

    /// Stage 2: XN is 0b00 (both), 0b01 (EL0), 0b11 (EL1) or 0b10 (none) with FEAT_XNX, bit 54
    /// alone without. EL2's stage 1: bit 54.
    const fn exec_bits(self, features: &CpuFeatures) -> u64 {
        if !self.stage2 || !features.xnx {
            return if self.raw & (1 << 54) == 0 { 0b11 } else { 0 };
        }
        match self.raw >> 53 & 0b11 {
            0b00 => 0b11,
            0b01 => 0b01,
            0b10 => 0b00,
            _ => 0b10,
        }
    }

    pub(super) const fn is_executable(self, features: &CpuFeatures) -> bool {
        self.exec_bits(features) != 0
    }

    /// R, W, both kinds of X and the access flag as a set of bits. A leaf without access flag is
    /// in no TLB, so what it loses needs no invalidation, but losing the flag does.
    const fn permissions(self, features: &CpuFeatures) -> u64 {
        let access = if self.stage2 {
            self.raw >> 6 & 0b11
        } else if self.raw & (1 << 7) == 0 {
            0b11
        } else {
            0b01
        };
        access | self.exec_bits(features) << 2 | (self.raw & AF)
    }

    /// True if nobody else is to see the page: neither lent nor borrowed.
    pub(super) const fn is_exclusive(self) -> bool {
        self.raw & PAGE_STATE == 0
    }

    /// True unless software says that the guest is kept from the page's allocation tags.
    pub(super) const fn allows_tags(self) -> bool {
        self.raw & NO_TAG == 0
    }

    pub(super) fn is_normal(self) -> bool {
        // Stage 1 names its type by index; only stage 2 leaves are asked.
        self.stage2 && self.raw >> 2 & 0b1111 > 0b0011
    }

    pub(super) fn change(self, new: Self, features: &CpuFeatures) -> Change {
        let access = if self.stage2 { 0b11 << 6 } else { 0b10 << 6 };
        let free = AF | SOFTWARE | access | 0b11 << 53;
        if (self.raw ^ new.raw) & !free != 0 || self.level != new.level {
            Change::Breaks
        } else if self.raw & AF != 0 && self.permissions(features) & !new.permissions(features) != 0 {
            Change::Restricts
        } else {
            Change::Harmless
        }
    }

    /// True for a word that no CPU with `features` defines.
    pub(super) fn is_malformed(self, features: &CpuFeatures) -> bool {
        let beyond = self.first() >> (u32::from(features.pa_bits).saturating_sub(PAGE_SHIFT)) != 0;
        let unaligned = self.first() & (self.pages().wrapping_sub(1)) != 0;
        // Stage 1 has the guarded page bit in bit 50.
        let res0 = if self.stage2 { 1 << 63 | 0b111 << 48 } else { 0b11 << 48 };
        if beyond || unaligned || self.raw & res0 != 0 {
            return true;
        }
        let xn = !features.xnx && self.raw & (1 << 53) != 0;
        self.stage2 && (xn || memattr_reserved(self.raw >> 2 & 0b1111, features))
    }
}

/// MemAttr\[3:0\] (Arm ARM tables D8-96 and D8-100; FEAT_MTE_PERM adds 0100, 1110, 1111).
const fn memattr_reserved(attr: u64, features: &CpuFeatures) -> bool {
    match (features.fwb, attr) {
        (_, 0b0000..=0b0011) => false,
        (false, 0b0100) => !features.mte_perm,
        (false, _) => attr == 0b1000 || attr == 0b1100,
        (true, 0b0101..=0b0111) => false,
        (true, 0b1110 | 0b1111) => !features.mte_perm,
        (true, _) => true,
    }
}

/// True for a table descriptor with a bit that must be 0, or an address no memory can have.
pub(super) fn table_malformed(raw: u64, features: &CpuFeatures) -> bool {
    let pfn = (raw & OUTPUT) >> PAGE_SHIFT;
    pfn >> (u32::from(features.pa_bits).saturating_sub(PAGE_SHIFT)) != 0 || raw & (0b111 << 48) != 0
}
