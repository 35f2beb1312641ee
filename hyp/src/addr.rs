//! Addresses and ranges as types: past the ABI border there is no bare `u64` that means a place.
//!
//! Invariant: a [`PfnRange`] and an [`IpaRange`] are never empty and never wrap; whoever holds
//! one need not ask again. Nothing here takes a lock.
#![forbid(unsafe_code)]

use core::fmt;

/// Bytes in a page; the only granule Rampart uses.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a level-2 block.
pub const BLOCK_SIZE: u64 = 2 << 20;
/// Largest physical or intermediate address space, in bits: the 4 KiB granule without LPA2
/// (Arm ARM D8.1). A CPU with 52 bits is used with 48.
pub const MAX_PA_BITS: u32 = 48;
/// One past the largest frame number of [`MAX_PA_BITS`].
pub const PFN_LIMIT: u64 = 1 << (MAX_PA_BITS - PAGE_SHIFT);

/// Why words do not make an address or a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddrError {
    /// The range has no page.
    Empty,
    /// Start plus length passes 2^64.
    Overflow,
    /// An address is not a multiple of the page size.
    Unaligned(u64),
    /// The range ends before it starts.
    Backwards,
    /// Beyond [`MAX_PA_BITS`], or beyond the IPA space that was named.
    OutOfSpace(u64),
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $frame:ident, $(#[$fdoc:meta])*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// An address below 2^[`MAX_PA_BITS`].
            ///
            /// # Errors
            /// [`AddrError::OutOfSpace`] if it is not.
            #[inline]
            pub const fn new(raw: u64) -> Result<Self, AddrError> {
                if raw >> MAX_PA_BITS != 0 {
                    return Err(AddrError::OutOfSpace(raw));
                }
                Ok(Self(raw))
            }

            /// An address from bits that the caller has masked; bits above the space are dropped.
            #[must_use]
            #[inline]
            pub const fn truncated(raw: u64) -> Self {
                Self(raw & ((1 << MAX_PA_BITS) - 1))
            }

            /// The address as a number.
            #[must_use]
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The frame this address lies in.
            #[must_use]
            #[inline]
            pub const fn frame(self) -> $frame {
                $frame(self.0 >> PAGE_SHIFT)
            }

            /// This address plus `bytes`, if that is still an address.
            #[must_use]
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) if raw >> MAX_PA_BITS == 0 => Some(Self(raw)),
                    _ => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        $(#[$fdoc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $frame(u64);

        impl $frame {
            /// A frame number below [`PFN_LIMIT`].
            ///
            /// # Errors
            /// [`AddrError::OutOfSpace`] if it is not.
            #[inline]
            pub const fn new(raw: u64) -> Result<Self, AddrError> {
                if raw >= PFN_LIMIT {
                    return Err(AddrError::OutOfSpace(raw));
                }
                Ok(Self(raw))
            }

            /// The frame number.
            #[must_use]
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Address of the frame's first byte.
            #[must_use]
            #[inline]
            pub const fn base(self) -> $name {
                $name(self.0 << PAGE_SHIFT)
            }

            /// The frame `n` further on, if there is one.
            #[must_use]
            #[inline]
            pub const fn checked_add(self, n: u64) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(raw) if raw < PFN_LIMIT => Some(Self(raw)),
                    _ => None,
                }
            }
        }

        impl fmt::Debug for $frame {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($frame), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// A physical address.
    Pa, Pfn,
    /// A physical page frame number.
}
address! {
    /// An intermediate physical address: what a stage-1 table of the host or a guest produces.
    Ipa, Gfn,
    /// A frame number in an IPA space.
}

/// A virtual address of EL2's own map.
///
/// The linear map is the identity (`HypVa` of a page equals its `Pa`); window slots lie above it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct HypVa(u64);

impl HypVa {
    /// The linear-map address of `pa`.
    #[must_use]
    #[inline]
    pub const fn linear(pa: Pa) -> Self {
        Self(pa.0)
    }

    /// An address in EL2's 48-bit space.
    ///
    /// # Errors
    /// [`AddrError::OutOfSpace`] beyond 48 bits.
    pub const fn new(raw: u64) -> Result<Self, AddrError> {
        if raw >> 48 != 0 {
            return Err(AddrError::OutOfSpace(raw));
        }
        Ok(Self(raw))
    }

    /// An address from bits that the caller has masked; bits above the space are dropped.
    #[must_use]
    #[inline]
    pub const fn truncated(raw: u64) -> Self {
        Self(raw & ((1 << 48) - 1))
    }

    /// The address as a number.
    #[must_use]
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// One or more consecutive page frames, all below [`PFN_LIMIT`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PfnRange {
    start: Pfn,
    nr: u64,
}

impl PfnRange {
    /// `nr` frames from `start`: the only way from register values to pages.
    ///
    /// # Errors
    /// [`AddrError::Empty`] for no page, [`AddrError::Overflow`] if the sum, or its byte address,
    /// wraps, [`AddrError::OutOfSpace`] beyond [`PFN_LIMIT`].
    #[inline]
    pub const fn new(start: u64, nr: u64) -> Result<Self, AddrError> {
        if nr == 0 {
            return Err(AddrError::Empty);
        }
        let Some(end) = start.checked_add(nr) else { return Err(AddrError::Overflow) };
        if end > PFN_LIMIT {
            return Err(AddrError::OutOfSpace(start));
        }
        Ok(Self { start: Pfn(start), nr })
    }

    /// The range that is one page.
    #[must_use]
    #[inline]
    pub const fn one(pfn: Pfn) -> Self {
        Self { start: pfn, nr: 1 }
    }

    /// First frame.
    #[must_use]
    #[inline]
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// Number of frames, at least 1.
    #[must_use]
    #[inline]
    pub const fn nr(self) -> u64 {
        self.nr
    }

    /// One past the last frame, as a number: it may equal [`PFN_LIMIT`].
    #[must_use]
    #[inline]
    #[allow(clippy::arithmetic_side_effects, reason = "new() saw that the sum is at most PFN_LIMIT")]
    pub const fn end(self) -> u64 {
        self.start.0 + self.nr
    }

    /// Every frame in ascending order.
    #[inline]
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Pfn> + Clone {
        (self.start.0..self.end()).map(Pfn)
    }

    /// True if `pfn` is one of the frames.
    #[must_use]
    #[inline]
    pub const fn contains(self, pfn: Pfn) -> bool {
        self.start.0 <= pfn.0 && pfn.0 < self.end()
    }
}

/// One or more consecutive pages of an IPA space, page aligned at both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpaRange {
    start: u64,
    end: u64,
}

impl IpaRange {
    /// `[base, top)` in a space of `ipa_bits` bits.
    ///
    /// # Errors
    /// [`AddrError::Unaligned`], [`AddrError::Empty`], [`AddrError::Backwards`], then
    /// [`AddrError::OutOfSpace`], in this order.
    #[inline]
    pub const fn new(base: u64, top: u64, ipa_bits: u32) -> Result<Self, AddrError> {
        if base & (PAGE_SIZE - 1) != 0 {
            return Err(AddrError::Unaligned(base));
        }
        if top & (PAGE_SIZE - 1) != 0 {
            return Err(AddrError::Unaligned(top));
        }
        if base == top {
            return Err(AddrError::Empty);
        }
        if top < base {
            return Err(AddrError::Backwards);
        }
        let bits = if ipa_bits < MAX_PA_BITS { ipa_bits } else { MAX_PA_BITS };
        if top > 1 << bits {
            return Err(AddrError::OutOfSpace(top));
        }
        Ok(Self { start: base, end: top })
    }

    /// The page at `base` in a space of `ipa_bits` bits.
    ///
    /// # Errors
    /// [`AddrError::Unaligned`], then [`AddrError::OutOfSpace`].
    #[inline]
    pub const fn page(base: u64, ipa_bits: u32) -> Result<Self, AddrError> {
        if base & (PAGE_SIZE - 1) != 0 {
            return Err(AddrError::Unaligned(base));
        }
        let bits = if ipa_bits < MAX_PA_BITS { ipa_bits } else { MAX_PA_BITS };
        if base >> bits != 0 {
            return Err(AddrError::OutOfSpace(base));
        }
        // Below 2^52 and aligned: the sum does not overflow.
        Ok(Self { start: base, end: base.wrapping_add(PAGE_SIZE) })
    }

    /// The identity range of some physical pages.
    #[must_use]
    #[inline]
    pub const fn identity(pages: PfnRange) -> Self {
        Self { start: pages.start().base().raw(), end: pages.end() << PAGE_SHIFT }
    }

    /// First address.
    #[must_use]
    #[inline]
    pub const fn start(self) -> Ipa {
        Ipa(self.start)
    }

    /// One past the last address, as a number: it may equal the size of the space.
    #[must_use]
    #[inline]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes, a positive multiple of the page size.
    #[must_use]
    #[inline]
    #[allow(clippy::arithmetic_side_effects, reason = "end > start by construction")]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Always false: a range has at least one page.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// One or more consecutive pages of EL2's virtual addresses, page aligned at both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VaRange {
    start: u64,
    end: u64,
}

impl VaRange {
    /// `[base, top)` in EL2's 48-bit space.
    ///
    /// # Errors
    /// As [`IpaRange::new`].
    #[inline]
    pub const fn new(base: u64, top: u64) -> Result<Self, AddrError> {
        match IpaRange::new(base, top, 48) {
            Ok(r) => Ok(Self { start: r.start, end: r.end }),
            Err(e) => Err(e),
        }
    }

    /// The linear-map addresses of some physical pages.
    #[must_use]
    #[inline]
    pub const fn linear(pages: PfnRange) -> Self {
        let r = IpaRange::identity(pages);
        Self { start: r.start, end: r.end }
    }

    /// First address.
    #[must_use]
    #[inline]
    pub const fn start(self) -> HypVa {
        HypVa(self.start)
    }

    /// One past the last address, as a number: it may equal the size of the space.
    #[must_use]
    #[inline]
    pub const fn end(self) -> u64 {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::{AddrError, IpaRange, PAGE_SIZE, PFN_LIMIT, Pfn, PfnRange};

    #[test]
    fn pfn_range_refuses_what_is_no_range() {
        assert_eq!(PfnRange::new(0, 0), Err(AddrError::Empty));
        assert_eq!(PfnRange::new(u64::MAX, 2), Err(AddrError::Overflow));
        assert_eq!(PfnRange::new(1, u64::MAX), Err(AddrError::Overflow));
        assert_eq!(PfnRange::new(1 << 52, 1), Err(AddrError::OutOfSpace(1 << 52)));
        assert_eq!(PfnRange::new(0, 1 << 52), Err(AddrError::OutOfSpace(0)));
        let last = PfnRange::new(PFN_LIMIT - 1, 1).unwrap();
        assert_eq!(last.end(), PFN_LIMIT);
        assert!(last.contains(Pfn::new(PFN_LIMIT - 1).unwrap()));
        assert!(PfnRange::new(PFN_LIMIT - 1, 2).is_err());
    }

    #[test]
    fn ipa_range_checks_in_the_documented_order() {
        assert_eq!(IpaRange::new(1, 1, 40), Err(AddrError::Unaligned(1)));
        assert_eq!(IpaRange::new(0x1000, 0x1000, 40), Err(AddrError::Empty));
        assert_eq!(IpaRange::new(0x2000, 0x1000, 40), Err(AddrError::Backwards));
        assert_eq!(IpaRange::new(0, (1 << 40) + 4096, 40), Err(AddrError::OutOfSpace((1 << 40) + 4096)));
        assert!(IpaRange::new(0, 1 << 40, 40).is_ok());
        assert!(IpaRange::new(0, 1 << 48, 52).is_ok());
        assert!(IpaRange::new(0, 1 << 49, 52).is_err());
    }

    #[test]
    fn a_page_is_a_range_of_one() {
        for bits in [32, 36, 48, 52, 64, u32::MAX] {
            for base in [0, 1, 0x800, 0x1000, (1 << 32) - 0x1000, 1 << 32, 1 << 36, 1 << 48, !0xfff, u64::MAX]
            {
                let range = base.checked_add(PAGE_SIZE).and_then(|top| IpaRange::new(base, top, bits).ok());
                assert_eq!(IpaRange::page(base, bits).ok(), range, "{base:#x} of {bits}");
            }
        }
        assert_eq!(IpaRange::page(1, 40), Err(AddrError::Unaligned(1)));
        assert_eq!(IpaRange::page(1 << 40, 40), Err(AddrError::OutOfSpace(1 << 40)));
    }
}
