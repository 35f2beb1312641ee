//! An access that the VMM emulates: what it is told, and what its answer may do.
//!
//! The host sees size, direction and, for a write, the value cut to the size. It never learns
//! which register is meant and can set no more of it than the load would have.
#![forbid(unsafe_code)]

use crate::exception::{Syndrome, class};
use core::fmt;

/// How wide an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Width {
    Byte,
    Half,
    Word,
    Double,
}

impl Width {
    /// Bytes: 1, 2, 4 or 8.
    #[must_use]
    #[inline]
    pub const fn bytes(self) -> u32 {
        1 << self as u32
    }

    /// What a value of this width leaves of 64 bits.
    #[inline]
    const fn unused_bits(self) -> u32 {
        64_u32.wrapping_sub(self.bytes().wrapping_mul(8))
    }

    /// `value` cut to the width.
    #[must_use]
    #[inline]
    pub const fn truncate(self, value: u64) -> u64 {
        value & (u64::MAX >> self.unused_bits())
    }

    /// `value` cut to the width and sign-extended to 64 bits.
    #[inline]
    const fn sign_extend(self, value: u64) -> u64 {
        let shift = self.unused_bits();
        ((value << shift).cast_signed() >> shift).cast_unsigned()
    }
}

/// One load or store of one register, as a data abort with ISV = 1 reports it: the fields of its
/// syndrome (ISS) that say how much is moved between where.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Transfer(u32);

/// Fields of the ISS of a data abort with ISV = 1 (Arm ARM D24.2.45).
mod iss {
    pub(super) const WNR: u32 = 1 << 6;
    pub(super) const SF: u32 = 1 << 15;
    pub(super) const SRT_SHIFT: u32 = 16;
    pub(super) const SSE: u32 = 1 << 21;
    pub(super) const SAS_SHIFT: u32 = 22;
    pub(super) const ISV: u32 = 1 << 24;
    pub(super) const TRANSFER: u32 = WNR | SF | 0x1f << SRT_SHIFT | SSE | 3 << SAS_SHIFT;
}

impl Transfer {
    /// Decodes a data abort; `None` without ISV, for cache maintenance (which reports WnR = 1 and
    /// accesses nothing), walks of stage 1 and instruction aborts.
    #[must_use]
    #[inline]
    pub const fn decode(syndrome: Syndrome) -> Option<Self> {
        if syndrome.class() != class::DATA_ABORT_LOWER
            || syndrome.is_cache_maintenance()
            || syndrome.on_stage1_walk()
            || syndrome.iss() & iss::ISV == 0
        {
            return None;
        }
        Some(Self(syndrome.iss() & iss::TRANSFER))
    }

    /// How much is accessed.
    #[must_use]
    #[inline]
    pub const fn width(self) -> Width {
        match self.0 >> iss::SAS_SHIFT & 3 {
            0 => Width::Byte,
            1 => Width::Half,
            2 => Width::Word,
            _ => Width::Double,
        }
    }

    /// True for a load that sign-extends.
    #[must_use]
    #[inline]
    pub const fn is_signed(self) -> bool {
        self.0 & iss::SSE != 0
    }

    /// The register, 31 = zero register.
    #[must_use]
    #[inline]
    pub const fn rt(self) -> u8 {
        let [rt, ..] = (self.0 >> iss::SRT_SHIFT & 0x1f).to_le_bytes();
        rt
    }

    /// True if the register is X, not W.
    #[must_use]
    #[inline]
    pub const fn is_64_bit(self) -> bool {
        self.0 & iss::SF != 0
    }

    /// True for a store.
    #[must_use]
    #[inline]
    pub const fn is_write(self) -> bool {
        self.0 & iss::WNR != 0
    }

    /// What the host sees of the register's `value`: the bytes of a store, nothing of a load.
    #[must_use]
    #[inline]
    pub const fn shown(self, value: u64) -> u64 {
        if self.is_write() { self.width().truncate(value) } else { 0 }
    }

    /// What a load leaves in its register when the device answers `data`; `None` for a store,
    /// whose answer has no data.
    #[must_use]
    #[inline]
    pub const fn loaded(self, data: u64) -> Option<u64> {
        if self.is_write() {
            return None;
        }
        let value =
            if self.is_signed() { self.width().sign_extend(data) } else { self.width().truncate(data) };
        Some(if self.is_64_bit() { value } else { Width::Word.truncate(value) })
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("width", &self.width())
            .field("signed", &self.is_signed())
            .field("rt", &self.rt())
            .field("64-bit", &self.is_64_bit())
            .field("write", &self.is_write())
            .finish()
    }
}

/// An access that is emulated: where, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingMmio {
    /// The exact guest physical address, a multiple of the width.
    pub gpa: u64,
    /// What is moved.
    pub transfer: Transfer,
}

impl PendingMmio {
    /// `transfer` at `gpa`, if it is naturally aligned: an unaligned one may have begun
    /// on the page before.
    #[must_use]
    #[inline]
    pub const fn new(gpa: u64, transfer: Transfer) -> Option<Self> {
        let mask = transfer.width().bytes().wrapping_sub(1) as u64;
        if gpa & mask != 0 {
            return None;
        }
        Some(Self { gpa, transfer })
    }
}

#[cfg(test)]
mod tests {
    use super::{PendingMmio, Syndrome, Transfer, Width};

    const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];

    fn esr(sas: u64, sign: u64, rt: u64, sf: u64, write: u64) -> u64 {
        0x24 << 26 | 1 << 25 | 1 << 24 | sas << 22 | sign << 21 | rt << 16 | sf << 15 | write << 6 | 7
    }

    fn decode(esr: u64) -> Option<Transfer> {
        Transfer::decode(Syndrome::new(esr))
    }

    fn transfer(width: Width, sign: bool, sixty_four: bool, write: bool) -> Transfer {
        decode(esr(width as u64, sign.into(), 3, sixty_four.into(), write.into())).unwrap()
    }

    #[test]
    fn every_syndrome_decodes_to_its_fields() {
        for sas in 0..4 {
            for sign in 0..2 {
                for rt in 0..32 {
                    for sf in 0..2 {
                        for write in 0..2 {
                            let s = decode(esr(sas, sign, rt, sf, write)).unwrap();
                            assert_eq!(s.width(), WIDTHS[usize::try_from(sas).unwrap()]);
                            assert_eq!(s.width().bytes(), 1 << sas);
                            let flags = [s.is_signed(), s.is_64_bit(), s.is_write()].map(u64::from);
                            assert_eq!((u64::from(s.rt()), flags), (rt, [sign, sf, write]));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_a_whole_syndrome_there_is_nothing_to_emulate() {
        let good = esr(2, 0, 5, 0, 1);
        assert!(decode(good).is_some());
        assert_eq!(decode(good & !(1 << 24)), None, "ISV");
        assert_eq!(decode(good | 1 << 8), None, "CM");
        assert_eq!(decode(good | 1 << 7), None, "S1PTW");
        assert_eq!(decode(good & !(0x3f << 26) | 0x20 << 26), None, "instruction abort");
    }

    /// What the instruction of each syndrome does, by integer types rather than shifts.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_possible_wrap,
        reason = "model"
    )]
    fn model(width: Width, sign: bool, sixty_four: bool, data: u64) -> u64 {
        let wide = match (width, sign) {
            (Width::Byte, false) => u64::from(data as u8),
            (Width::Byte, true) => i64::from(data as i8) as u64,
            (Width::Half, false) => u64::from(data as u16),
            (Width::Half, true) => i64::from(data as i16) as u64,
            (Width::Word, false) => u64::from(data as u32),
            (Width::Word, true) => i64::from(data as i32) as u64,
            (Width::Double, _) => data,
        };
        if sixty_four { wide } else { u64::from(wide as u32) }
    }

    #[test]
    fn a_load_leaves_exactly_what_the_instruction_would() {
        let datas =
            [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, u64::MAX, 1 << 63];
        for width in WIDTHS {
            for sign in [false, true] {
                for sixty_four in [false, true] {
                    let load = transfer(width, sign, sixty_four, false);
                    assert_eq!(load.shown(u64::MAX), 0, "a load shows no register");
                    for data in datas {
                        let expected = model(width, sign, sixty_four, data);
                        assert_eq!(load.loaded(data), Some(expected), "{load:?} {data:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_store_shows_only_its_bytes_and_its_answer_is_no_data() {
        let value = 0x8877_6655_4433_2211;
        for width in WIDTHS {
            let store = transfer(width, false, true, true);
            assert_eq!(store.shown(value), model(width, false, true, value));
            assert_eq!(store.loaded(u64::MAX), None);
        }
    }

    #[test]
    fn an_access_off_its_natural_alignment_is_not_emulated() {
        for width in WIDTHS {
            let s = transfer(width, false, false, false);
            for offset in 0..16 {
                let aligned = offset % u64::from(width.bytes()) == 0;
                assert_eq!(PendingMmio::new(0x0900_0000 + offset, s).is_some(), aligned);
            }
        }
    }
}
