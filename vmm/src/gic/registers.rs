//! The distributor's and the redistributors' registers (Arm IHI 0069, chapter 12), as with
//! GICD_CTLR.DS = 1 and ARE = 1.
//!
//! What is not here reads as zero and ignores stores: Group 0, the registers of affinity routing switched off, LPIs, extended
//! ranges, sleep (GICR_WAKER), and accesses of a width that a register does not have.

use super::interrupt::{BANK, Interrupt, bit, bits};
use super::{FIRST_SPI, Gic, Id, SPI_BANKS};
use crate::vcpu::{VcpuIndex, VcpuSet};
use crate::width::{Width, high_word, low_word};

/// Bytes of the distributor's registers.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// Bytes of one redistributor's: its own frame and that of its private interrupts, 64 KiB each.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
const FRAME: u64 = 0x1_0000;

/// GICD_CTLR and its bits.
const GICD_CTLR: u64 = 0;
const ENABLE_GROUP1: u64 = 1 << 1;
const ARE: u64 = 1 << 4;
const DS: u64 = 1 << 6;
/// GICD_TYPER: banks of shared interrupts, 10 bits of INTID, no one-of-N routing.
const GICD_TYPER: u64 = 4;
const TYPER: u64 = SPI_BANKS as u64 | 9 << 19 | 1 << 25;
const IROUTER: u64 = 0x6000;
const IROUTER_END: u64 = 0x8000;
/// GICD_PIDR2 and GICR_PIDR2: GICv3. Who made it is not said, as nobody's quirks apply.
const PIDR2: u64 = 0xffe8;
const GICV3: u64 = 3 << 4;
/// GICR_TYPER.
const GICR_TYPER: u64 = 8;
const LAST: u64 = 1 << 4;
/// Bits of a priority that exist.
const PRIORITY_BITS: u8 = 0xf8;

/// A register with a bit for each interrupt of a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bits {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

/// A register that has a few bits for each of several interrupts, of which the first is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Banked {
    Bits(Bits, u32),
    Priority(u32),
    Configuration(u32),
}

impl Banked {
    /// What is at `offset` in the distributor or the frame of private interrupts.
    fn at(offset: u64, width: Width) -> Option<Self> {
        let low = low_word(offset);
        if high_word(offset) != 0 || !offset.is_multiple_of(width.bytes()) {
            return None;
        }
        let word = (width == Width::Four).then_some(());
        // Bits of an interrupt: 1, 8 and 2; so bytes of one register for interrupts: 8, 1 and 4.
        let bank = (low & 0x7f).wrapping_mul(8);
        Some(match low {
            0x080..=0x3ff => {
                word?;
                let kind = match low >> 7 {
                    1 => Bits::Group,
                    2 => Bits::SetEnable,
                    3 => Bits::ClearEnable,
                    4 => Bits::SetPending,
                    5 => Bits::ClearPending,
                    6 => Bits::SetActive,
                    _ => Bits::ClearActive,
                };
                Self::Bits(kind, bank)
            }
            0x400..=0x7ff if width != Width::Eight => Self::Priority(low & 0x3ff),
            0xc00..=0xcff => {
                word?;
                Self::Configuration((low & 0xff).wrapping_mul(4))
            }
            _ => return None,
        })
    }

    const fn first(self) -> u32 {
        match self {
            Self::Bits(_, first) | Self::Priority(first) | Self::Configuration(first) => first,
        }
    }
}

impl Gic {
    /// What a load finds in the distributor.
    #[must_use]
    pub fn read_distributor(&self, offset: u64, width: Width) -> u64 {
        match (offset, width) {
            (GICD_CTLR, Width::Four) => ARE | DS | if self.enabled { ENABLE_GROUP1 } else { 0 },
            (GICD_TYPER, Width::Four) => TYPER,
            (PIDR2, Width::Four) => GICV3,
            (IROUTER..IROUTER_END, _) => self.read_route(offset, width),
            _ => {
                let register = Banked::at(offset, width).filter(|register| register.first() >= FIRST_SPI);
                register.zip(self.vcpus.vcpu(0)).map_or(0, |(what, vcpu)| self.read_banked(what, vcpu, width))
            }
        }
    }

    /// What a store to the distributor does.
    pub fn write_distributor(&mut self, offset: u64, width: Width, value: u64) -> VcpuSet {
        match (offset, width) {
            (GICD_CTLR, Width::Four) => self.write_control(value),
            (IROUTER..IROUTER_END, _) => self.write_route(offset, width, value),
            _ => {
                let register = Banked::at(offset, width).filter(|register| register.first() >= FIRST_SPI);
                let Some((what, vcpu)) = register.zip(self.vcpus.vcpu(0)) else { return VcpuSet::NONE };
                self.write_banked(what, vcpu, width, value)
            }
        }
    }

    /// What a load finds in the redistributors; `offset` is from the first one's start.
    #[must_use]
    pub fn read_redistributor(&self, offset: u64, width: Width) -> u64 {
        let Some((vcpu, offset)) = self.redistributor(offset) else { return 0 };
        if let Some(offset) = offset.checked_sub(FRAME) {
            let register = Banked::at(offset, width).filter(|register| register.first() < FIRST_SPI);
            return register.map_or(0, |what| self.read_banked(what, vcpu, width));
        }
        let typer = self.redistributor_type(vcpu);
        match (offset, width) {
            (GICR_TYPER, Width::Four | Width::Eight) => width.of(typer),
            (0xc, Width::Four) => high_word(typer).into(),
            (PIDR2, Width::Four) => GICV3,
            _ => 0,
        }
    }

    /// What a store to the redistributors does.
    pub fn write_redistributor(&mut self, offset: u64, width: Width, value: u64) -> VcpuSet {
        let frame = self.redistributor(offset).and_then(|(vcpu, at)| Some((vcpu, at.checked_sub(FRAME)?)));
        let Some((vcpu, offset)) = frame else { return VcpuSet::NONE };
        match Banked::at(offset, width).filter(|register| register.first() < FIRST_SPI) {
            Some(what) => self.write_banked(what, vcpu, width, value),
            None => VcpuSet::NONE,
        }
    }

    /// Whose redistributor it is, and the offset there.
    fn redistributor(&self, offset: u64) -> Option<(VcpuIndex, u64)> {
        let vcpu = self.vcpus.vcpu(usize::try_from(offset.checked_div(REDISTRIBUTOR_SIZE)?).ok()?)?;
        Some((vcpu, offset.checked_rem(REDISTRIBUTOR_SIZE)?))
    }

    /// GICR_TYPER: affinity, processor number, whether it is the last.
    fn redistributor_type(&self, vcpu: VcpuIndex) -> u64 {
        let affinity = u64::from(vcpu.affinity());
        let last = if self.vcpus.all().next_back() == Some(vcpu) { LAST } else { 0 };
        affinity.wrapping_shl(32) | affinity.wrapping_shl(8) | last
    }

    fn write_control(&mut self, value: u64) -> VcpuSet {
        let enabled = value & ENABLE_GROUP1 != 0;
        if core::mem::replace(&mut self.enabled, enabled) == enabled {
            return VcpuSet::NONE;
        }
        self.vcpus.all().filter(|vcpu| self.candidates(*vcpu).next().is_some()).collect()
    }

    fn read_banked(&self, register: Banked, vcpu: VcpuIndex, width: Width) -> u64 {
        let first = register.first();
        match register {
            Banked::Bits(kind, intid) => {
                let word = self.bank(Id { intid, vcpu }).map(|bank| match kind {
                    Bits::Group => bank.gather(|one| one.group1),
                    Bits::SetEnable | Bits::ClearEnable => bank.gather(|one| one.enabled),
                    Bits::SetPending | Bits::ClearPending => bank.gather(Interrupt::pending),
                    Bits::SetActive | Bits::ClearActive => bank.gather(|one| one.active.is_some()),
                });
                word.map_or(0, u64::from)
            }
            Banked::Priority(_) => {
                let of = |one: &Interrupt| one.priority.into();
                self.pack(first, vcpu, width.bytes(), 8, of)
            }
            Banked::Configuration(_) => {
                let of = |one: &Interrupt| if one.edge { 2 } else { 0 };
                self.pack(first, vcpu, 16, 2, of)
            }
        }
    }

    /// Fields of `size` bits of `nr` interrupts, from the lowest bit up.
    fn pack(&self, first: u32, vcpu: VcpuIndex, nr: u64, size: u32, of: impl Fn(&Interrupt) -> u64) -> u64 {
        (first..).zip((0..nr).zip((0_u32..).step_by(usize::try_from(size).unwrap_or(1)))).fold(
            0,
            |word, (intid, (_, shift))| {
                let field = self.interrupt(Id { intid, vcpu }).map_or(0, &of);
                word | field.wrapping_shl(shift)
            },
        )
    }

    fn write_banked(&mut self, register: Banked, vcpu: VcpuIndex, width: Width, value: u64) -> VcpuSet {
        match register {
            Banked::Bits(kind, first) => self.write_bits(kind, first, vcpu, low_word(value)),
            Banked::Priority(first) => {
                let bytes = width.of(value).to_le_bytes();
                let nr = usize::try_from(width.bytes()).unwrap_or(0);
                (first..).zip(bytes).take(nr).fold(VcpuSet::NONE, |kick, (intid, byte)| {
                    let priority = byte & PRIORITY_BITS;
                    kick.and(self.change(Id { intid, vcpu }, |one| one.priority = priority))
                })
            }
            // Private interrupts are what they are.
            Banked::Configuration(first) if first < FIRST_SPI => VcpuSet::NONE,
            Banked::Configuration(first) => {
                let edges = (0..16_usize).map(|n| bit(low_word(value), n.wrapping_mul(2).wrapping_add(1)));
                (first..).zip(edges).fold(VcpuSet::NONE, |kick, (intid, edge)| {
                    kick.and(self.change(Id { intid, vcpu }, |one| one.edge = edge))
                })
            }
        }
    }

    fn write_bits(&mut self, kind: Bits, first: u32, vcpu: VcpuIndex, word: u32) -> VcpuSet {
        // All of a group register counts, of the others what is 1.
        let meant = if kind == Bits::Group { u32::MAX } else { word };
        bits(meant).filter(|n| *n < BANK).fold(VcpuSet::NONE, |kick, n| {
            let Some(intid) = u32::try_from(n).ok().and_then(|n| first.checked_add(n)) else { return kick };
            let id = Id { intid, vcpu };
            // An interrupt that goes to nobody is active on whoever could end it by a register: vCPU 0.
            let target = self.interrupt(id).and_then(|one| self.target(one)).unwrap_or(vcpu);
            kick.and(self.change(id, |one| match kind {
                Bits::Group => one.group1 = bit(word, n),
                Bits::SetEnable => one.enabled = true,
                Bits::ClearEnable => one.enabled = false,
                Bits::SetPending => one.raise(),
                Bits::ClearPending => one.withdraw(),
                Bits::SetActive => one.set_active(true, target),
                Bits::ClearActive => one.set_active(false, target),
            }))
        })
    }

    /// GICD_IROUTER of the interrupt at `offset`, and whether the access is to its upper half.
    fn route(&self, offset: u64, width: Width) -> Option<(Id, bool)> {
        let upper = offset & 4 != 0;
        let whole = matches!(width, Width::Four) || matches!(width, Width::Eight) && !upper;
        let intid = u32::try_from(offset.checked_sub(IROUTER)?.checked_div(8)?).ok()?;
        let there = whole && offset.is_multiple_of(4) && intid >= FIRST_SPI;
        Some((Id { intid, vcpu: self.vcpus.vcpu(0)? }, upper)).filter(|_| there)
    }

    fn read_route(&self, offset: u64, width: Width) -> u64 {
        let Some((id, upper)) = self.route(offset, width) else { return 0 };
        let [aff0, aff1, aff2, aff3] = self.interrupt(id).map_or(0, |one| one.affinity).to_le_bytes();
        let value = u64::from_le_bytes([aff0, aff1, aff2, 0, aff3, 0, 0, 0]);
        if upper { high_word(value).into() } else { width.of(value) }
    }

    fn write_route(&mut self, offset: u64, width: Width, value: u64) -> VcpuSet {
        let Some((id, upper)) = self.route(offset, width) else { return VcpuSet::NONE };
        let [a, b, c, _, e, ..] = value.to_le_bytes();
        self.change(id, |one| {
            let [aff0, aff1, aff2, aff3] = one.affinity.to_le_bytes();
            one.affinity = u32::from_le_bytes(match (width, upper) {
                (Width::Eight, _) => [a, b, c, e],
                (_, false) => [a, b, c, aff3],
                (_, true) => [aff0, aff1, aff2, a],
            });
        })
    }
}
