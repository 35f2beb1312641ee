//! Why the CPU left a guest: the syndrome decoded once, purely (Arm ARM D24.2.45).
//!
//! Everything that happens after this works on [`Exit`]; no other module reads ESR_EL2 bits.
#![forbid(unsafe_code)]

use super::pstate::Pstate;
use super::sysregs::SysTrap;
use crate::exception::{Syndrome, class, fault_ipa};

/// Which vector was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Vector {
    /// A synchronous exception.
    Sync = 0,
    /// IRQ or FIQ.
    Irq = 1,
    /// A physical SError.
    SError = 2,
}

/// What `arch` read when the guest was left. A meaningless register may hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// Which vector.
    pub vector: Vector,
    /// ESR_EL2.
    pub esr: u64,
    /// SPSR_EL2.
    pub spsr: u64,
}

/// What else an abort says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FaultAddress {
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2, which not every abort sets.
    pub hpfar: u64,
}

/// Exception classes that only guests cause EL2 to see.
mod guest_class {
    pub(super) const WFX: u64 = 0x01;
    pub(super) const FP: u64 = 0x07;
    pub(super) const PAUTH: u64 = 0x09;
}

/// ESR_EL2 of HVC #0: its class, and IL.
const HVC_ZERO: u64 = class::HVC64 << 26 | 1 << 25;

/// Why a guest was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An interrupt for the host.
    Irq,
    /// A physical SError.
    SError,
    /// WFI, or WFE.
    Wfx {
        /// WFE.
        wfe: bool,
    },
    /// HVC; `zero` if its immediate is.
    Hvc {
        /// The immediate is 0.
        zero: bool,
    },
    /// SMC, trapped; `zero` if its immediate is.
    Smc {
        /// The immediate is 0.
        zero: bool,
    },
    /// A system register.
    Sys(SysTrap),
    /// First use of FP or SIMD in this turn.
    Fp,
    /// First instruction that uses pointer authentication keys.
    Keys,
    /// A stage-2 fault or an external abort.
    Abort {
        /// What the guest would take for it.
        abort: Abort,
        /// The faulting IPA with the page offset, if the CPU reported one.
        ipa: Option<u64>,
    },
    /// Something that does not exist for a guest: SVE, SME, MOPS, ...
    Unknown,
}

impl RawExit {
    /// The state in which the guest was left; `None` if it is AArch32, or no state a guest can be
    /// in. No trap catches an ERET to AArch32 EL0: it is seen here at the latest.
    #[must_use]
    #[inline]
    pub const fn pstate(&self) -> Option<Pstate> {
        Pstate::of_exit(self.spsr)
    }
}

/// A data or instruction abort from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The syndrome.
    pub syndrome: Syndrome,
    /// The faulting virtual address.
    pub far: u64,
}

impl Exit {
    /// Decodes the exit of a guest that is in a state it can be in; of an abort, `address` says where.
    #[must_use]
    #[inline(always)]
    pub fn classify(raw: &RawExit, address: impl FnOnce() -> FaultAddress) -> Self {
        match raw.vector {
            Vector::Irq => return Self::Irq,
            Vector::SError => return Self::SError,
            Vector::Sync => {}
        }
        // By itself: a call costs little but the way to it.
        if raw.esr == HVC_ZERO {
            return Self::Hvc { zero: true };
        }
        let syndrome = Syndrome::new(raw.esr);
        match syndrome.class() {
            // TI: 0 WFI, 1 WFE, 2 WFIT, 3 WFET.
            guest_class::WFX => Self::Wfx { wfe: raw.esr & 1 == 1 },
            guest_class::FP => Self::Fp,
            guest_class::PAUTH => Self::Keys,
            class::HVC64 => Self::Hvc { zero: syndrome.imm16() == 0 },
            class::SMC64 => Self::Smc { zero: syndrome.imm16() == 0 },
            class::SYS64 => Self::Sys(SysTrap::decode(raw.esr)),
            class::DATA_ABORT_LOWER | class::INSTRUCTION_ABORT_LOWER => {
                let FaultAddress { far, hpfar } = address();
                let ipa = syndrome.hpfar_valid().then(|| fault_ipa(hpfar, far));
                Self::Abort { abort: Abort { syndrome, far }, ipa }
            }
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Exit, FaultAddress, RawExit, Syndrome, Vector};

    fn raw(esr: u64) -> RawExit {
        RawExit { vector: Vector::Sync, esr, spsr: 0x3c5 }
    }

    fn classify(raw: &RawExit) -> Exit {
        Exit::classify(raw, || FaultAddress { far: 0xffff_0000_0000_1abc, hpfar: 0x8_0000 << 4 })
    }

    fn reported_ipa(esr: u64) -> Option<u64> {
        match classify(&raw(esr)) {
            Exit::Abort { ipa, .. } => ipa,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_class_has_one_meaning() {
        for ec in 0..64_u64 {
            let exit = classify(&raw(ec << 26));
            let known = match ec {
                0x01 => matches!(exit, Exit::Wfx { wfe: false }),
                0x07 => exit == Exit::Fp,
                0x09 => exit == Exit::Keys,
                0x16 => exit == Exit::Hvc { zero: true },
                0x17 => exit == Exit::Smc { zero: true },
                0x18 => matches!(exit, Exit::Sys(_)),
                0x20 | 0x24 => matches!(exit, Exit::Abort { .. }),
                _ => exit == Exit::Unknown,
            };
            assert!(known, "{ec:#x}: {exit:?}");
        }
        assert_eq!(classify(&raw(0x16 << 26 | 7)), Exit::Hvc { zero: false });
        for (il, esr) in [(0, 0x5800_0000), (1, 0x5a00_0000)] {
            assert_eq!(classify(&raw(esr)), Exit::Hvc { zero: true }, "IL {il}");
        }
        assert_eq!(classify(&raw(0x5a00_0001)), Exit::Hvc { zero: false });
        assert_eq!(classify(&raw(0x17 << 26 | 1)), Exit::Smc { zero: false });
        for (ti, wfe) in [(0, false), (1, true), (2, false), (3, true)] {
            assert_eq!(classify(&raw(1 << 26 | ti)), Exit::Wfx { wfe });
        }
    }

    #[test]
    fn interrupts_and_serrors_are_told_by_their_vector_whatever_the_syndrome() {
        let esr = 0x16 << 26;
        assert_eq!(classify(&RawExit { vector: Vector::Irq, ..raw(esr) }), Exit::Irq);
        assert_eq!(classify(&RawExit { vector: Vector::SError, ..raw(esr) }), Exit::SError);
    }

    #[test]
    fn aarch32_is_an_illegal_state_on_every_vector() {
        for vector in [Vector::Sync, Vector::Irq, Vector::SError] {
            for spsr in [0x10, 0x1d0, 0x3c9, 0x3cd] {
                let raw = RawExit { vector, spsr, ..raw(0x11 << 26) };
                assert_eq!(raw.pstate(), None);
            }
        }
    }

    #[test]
    fn m_20_a_tag_access_is_a_data_abort_with_bit_41_that_is_not_on_a_walk() {
        const TAG_ACCESS: u64 = 1 << 41;
        const S1PTW: u64 = 1 << 7;
        let told = |esr: u64| match classify(&raw(esr)) {
            Exit::Abort { abort, .. } => abort.syndrome.is_tag_access(),
            _ => Syndrome::new(esr).is_tag_access(),
        };
        // What the fault status says does not matter: QEMU leaves it 0.
        for dfsc in 0..64 {
            for wnr in [0, 1 << 6] {
                let esr = 0x24 << 26 | TAG_ACCESS | wnr | dfsc;
                assert!(told(esr), "{esr:#x}");
                assert!(!told(esr | S1PTW), "{esr:#x}");
                assert!(!told(esr & !TAG_ACCESS), "{esr:#x}");
                assert!(!told(esr & !TAG_ACCESS | 1 << 42), "{esr:#x}: TnD");
            }
        }
        for ec in (0..64).filter(|ec| *ec != 0x24) {
            assert!(!told(ec << 26 | TAG_ACCESS | 0x0f), "class {ec:#x}");
        }
    }

    #[test]
    fn an_abort_has_an_ipa_only_where_the_cpu_reports_one() {
        // Translation level 3, access flag, address size: HPFAR. Permission: none. On a walk: HPFAR.
        for (dfsc, ipa) in
            [(0x07, true), (0x0b, true), (0x00, true), (0x0f, false), (0x8f, true), (0x10, false)]
        {
            assert_eq!(reported_ipa(0x24 << 26 | dfsc).is_some(), ipa, "{dfsc:#x}");
        }
        assert_eq!(reported_ipa(0x24 << 26 | 7), Some(0x8000_0abc));
    }
}
