//! Exceptions as the architecture reports and takes them: syndromes read, EL1 entries computed.
//!
//! Pure: `arch` reads the registers, calls this, and writes what comes back. Arm ARM D24.2.45
//! (ESR_ELx) and D1.4 (exception entry).
#![forbid(unsafe_code)]

/// ESR_EL2 of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome(u64);

/// Exception classes that EL2 acts on (ESR_EL2.EC).
pub mod class {
    /// Instruction abort from a lower level.
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    /// Data abort from a lower level.
    pub const DATA_ABORT_LOWER: u64 = 0x24;
    /// HVC from AArch64.
    pub const HVC64: u64 = 0x16;
    /// SMC from AArch64, trapped by HCR_EL2.TSC.
    pub const SMC64: u64 = 0x17;
    /// A trapped MSR, MRS or SYS.
    pub const SYS64: u64 = 0x18;
}

/// What a data or instruction abort says about itself (DFSC, IFSC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Address beyond the table's input range, or an output address too large.
    AddressSize,
    /// No valid entry.
    Translation,
    /// Access flag clear.
    AccessFlag,
    /// The entry forbids the access.
    Permission,
    /// A synchronous external abort, also on a walk.
    External,
    /// Anything else: alignment, tag check, TLB conflict, unsupported atomics.
    Other,
}

/// What the access wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A data read, or a cache maintenance instruction.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Fetch,
}

impl Syndrome {
    /// Wraps the register.
    #[must_use]
    #[inline]
    pub const fn new(esr: u64) -> Self {
        Self(esr)
    }

    /// The register.
    #[must_use]
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Exception class, bits 31:26.
    #[must_use]
    #[inline]
    pub const fn class(self) -> u64 {
        (self.0 >> 26) & 0x3f
    }

    /// The 16-bit immediate of an HVC or SMC.
    #[must_use]
    #[inline]
    pub const fn imm16(self) -> u16 {
        let [lo, hi, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([lo, hi])
    }

    /// Instruction specific syndrome, bits 24:0.
    #[must_use]
    #[inline]
    pub const fn iss(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d]) & 0x1ff_ffff
    }

    /// True if the fault was on the walk of the stage-1 table (S1PTW).
    #[must_use]
    #[inline]
    pub const fn on_stage1_walk(self) -> bool {
        self.0 & (1 << 7) != 0
    }

    /// True if a data abort is that of a cache maintenance instruction by address (CM).
    #[must_use]
    pub const fn is_cache_maintenance(self) -> bool {
        self.0 & (1 << 8) != 0
    }

    /// True for a data abort of stage 2 because of NoTagAccess (ISS2.TagAccess, bit 41). It is asked before the fault
    /// status, which QEMU leaves 0; the architecture says permission fault.
    #[must_use]
    #[inline]
    pub const fn is_tag_access(self) -> bool {
        const TAG_ACCESS: u64 = 1 << 41;
        self.0 & TAG_ACCESS != 0 && self.class() == class::DATA_ABORT_LOWER && !self.on_stage1_walk()
    }

    /// What kind of fault a data or instruction abort is.
    #[must_use]
    pub const fn fault(self) -> FaultKind {
        match self.0 & 0x3f {
            0x00..=0x03 => FaultKind::AddressSize,
            0x04..=0x07 => FaultKind::Translation,
            0x08..=0x0b => FaultKind::AccessFlag,
            0x0c..=0x0f => FaultKind::Permission,
            0x10 | 0x14..=0x17 => FaultKind::External,
            _ => FaultKind::Other,
        }
    }

    /// True if HPFAR_EL2 holds the faulting IPA: for every stage-2 fault on a stage-1 walk, and
    /// otherwise for all but permission faults (Arm ARM D8.15, R_FKLWR).
    #[must_use]
    pub const fn hpfar_valid(self) -> bool {
        match self.fault() {
            FaultKind::AddressSize | FaultKind::Translation | FaultKind::AccessFlag => true,
            FaultKind::Permission => self.on_stage1_walk(),
            FaultKind::External | FaultKind::Other => false,
        }
    }

    /// What the access wanted. A permission fault on a stage-1 walk, for a fetch as for data, is the
    /// walker's write of an access flag or dirty bit; cache maintenance (CM) reports WnR = 1 but needs no write.
    #[must_use]
    pub const fn access(self) -> Access {
        if self.on_stage1_walk() {
            if matches!(self.fault(), FaultKind::Permission) { Access::Write } else { Access::Read }
        } else if self.class() == class::INSTRUCTION_ABORT_LOWER {
            Access::Fetch
        } else if self.is_cache_maintenance() || self.0 & (1 << 6) == 0 {
            Access::Read
        } else {
            Access::Write
        }
    }
}

/// The faulting IPA from HPFAR_EL2 (FIPA, bits 47:4 = IPA\[55:12\]) and FAR_EL2's page offset.
#[must_use]
pub const fn fault_ipa(hpfar: u64, far: u64) -> u64 {
    ((hpfar & 0x0000_ffff_ffff_fff0) << 8) | (far & 0xfff)
}

/// What decides the PSTATE of an exception taken to EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El1State {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// FEAT_MTE2: PSTATE.TCO is set on entry.
    pub mte: bool,
    /// FEAT_NMI: PSTATE.ALLINT is set on entry unless SCTLR_EL1.SPINTMASK.
    pub nmi: bool,
}

/// An exception to be taken to EL1: SPSR_EL1 gets the old SPSR_EL2, ELR_EL1 the old ELR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El1Entry {
    /// Offset from VBAR_EL1 for ELR_EL2.
    pub vector: u64,
    /// SPSR_EL2.
    pub spsr: u64,
    /// ESR_EL1.
    pub esr: u64,
}

const SPSR_AARCH32: u64 = 1 << 4;
const IL: u64 = 1 << 25;

fn enter(spsr: u64, state: El1State, esr: u64) -> El1Entry {
    const NZCV: u64 = 0xf << 28;
    const TCO: u64 = 1 << 25;
    const DIT: u64 = 1 << 24;
    const PAN: u64 = 1 << 22;
    const ALLINT: u64 = 1 << 13;
    const SSBS: u64 = 1 << 12;
    const DAIF: u64 = 0xf << 6;
    const EL1H: u64 = 0b0101;
    let aarch32 = spsr & SPSR_AARCH32 != 0;
    let vector = match spsr & 0xf {
        _ if aarch32 => 0x600,
        0b0000 => 0x400,
        0b0100 => 0x000,
        _ => 0x200,
    };
    let mut new = spsr & (NZCV | PAN) | DAIF | EL1H;
    // DIT is bit 21 in an AArch32 SPSR.
    let dit = if aarch32 { spsr << 3 } else { spsr };
    new |= dit & DIT;
    if state.sctlr & (1 << 23) == 0 {
        new |= PAN;
    }
    if state.sctlr & (1 << 44) != 0 {
        new |= SSBS;
    }
    if state.mte {
        new |= TCO;
    }
    if state.nmi && state.sctlr & (1 << 62) == 0 {
        new |= ALLINT;
    }
    El1Entry { vector, spsr: new, esr }
}

/// The abort that `cause` reports, as a synchronous external abort (DFSC 0x10) at EL1.
///
/// Not a translation fault: a Linux that is not itself pKVM's takes that for spurious and retries
/// for ever.
#[must_use]
pub fn external_abort(cause: Syndrome, spsr: u64, state: El1State) -> El1Entry {
    let from_el0 = spsr & SPSR_AARCH32 != 0 || spsr & 0xf == 0;
    let fetch = cause.class() == class::INSTRUCTION_ABORT_LOWER;
    let class = match (fetch, from_el0) {
        (true, true) => 0x20,
        (true, false) => 0x21,
        (false, true) => 0x24,
        (false, false) => 0x25,
    };
    let write = if fetch { 0 } else { cause.raw() & (1 << 6) };
    enter(spsr, state, class << 26 | cause.raw() & IL | write | 0x10)
}

/// "Unknown reason": what an instruction that does not exist raises.
#[must_use]
pub fn undefined(spsr: u64, state: El1State) -> El1Entry {
    enter(spsr, state, IL)
}

#[cfg(test)]
mod tests {
    use super::{Access, El1State, FaultKind, Syndrome, external_abort, fault_ipa, undefined};

    const PLAIN: El1State = El1State { sctlr: 1 << 23, mte: false, nmi: false };

    #[test]
    fn a_host_data_abort_becomes_an_external_abort_at_the_same_level() {
        // Data abort, lower EL, IL, write, translation fault level 3.
        let cause = Syndrome::new(0x9200_0047);
        let e = external_abort(cause, 0x3c5, PLAIN);
        assert_eq!(e.esr, 0x9600_0050);
        assert_eq!(e.vector, 0x200);
        assert_eq!(e.spsr, 0x3c5);
    }

    #[test]
    fn an_el0_fetch_goes_to_the_el0_vector() {
        let e = external_abort(Syndrome::new(0x8200_0007), 0x6000_0000, PLAIN);
        assert_eq!((e.esr, e.vector), (0x8200_0010, 0x400));
        assert_eq!(e.spsr, 0x6000_03c5);
        let e = external_abort(Syndrome::new(0x9200_0007), 0x6020_0010, PLAIN);
        assert_eq!((e.esr, e.vector), (0x9200_0010, 0x600));
        assert_eq!(e.spsr, 0x6100_03c5, "DIT moves from bit 21 to 24");
    }

    #[test]
    fn entry_sets_what_the_control_register_asks_for() {
        let state = El1State { sctlr: 1 << 44, mte: true, nmi: true };
        let e = undefined(0x0000_0005, state);
        assert_eq!(e.spsr, 0x0240_33c5);
        assert_eq!(e.esr, 0x0200_0000);
        let masked = El1State { sctlr: 1 << 44 | 1 << 62 | 1 << 23, mte: false, nmi: true };
        assert_eq!(undefined(0x4, masked).spsr, 0x13c5);
        assert_eq!(undefined(0x4, masked).vector, 0);
    }

    #[test]
    fn syndromes_are_read_as_the_architecture_writes_them() {
        let walk = Syndrome::new(0x9200_008f);
        assert_eq!(walk.fault(), FaultKind::Permission);
        assert!(walk.hpfar_valid() && walk.on_stage1_walk());
        assert_eq!(walk.access(), Access::Write);
        assert_eq!(Syndrome::new(0x8200_008f).access(), Access::Write, "the access flag of what is fetched");
        assert_eq!(Syndrome::new(0x8200_0087).access(), Access::Read);
        let plain = Syndrome::new(0x9200_000f);
        assert!(!plain.hpfar_valid());
        assert_eq!(plain.access(), Access::Read);
        assert_eq!(Syndrome::new(0x9200_004f).access(), Access::Write);
        assert_eq!(Syndrome::new(0x9200_0147).access(), Access::Read, "CM");
        assert_eq!(Syndrome::new(0x8200_0007).access(), Access::Fetch);
        assert_eq!(fault_ipa(0x4_0200 << 4, 0xffff_0000_0000_0abc), 0x4020_0abc);
    }
}
