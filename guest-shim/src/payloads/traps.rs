//! `Traps`: every class of instruction that leaves a guest, and what the guest finds.
//!
//! The table is the contract of docs/vm.md. The guest executes and reports; the VMM holds the
//! report against the table, so that the guest need not be believed to check itself.
#![forbid(unsafe_code)]

use super::instruction::{BR, LDP, LDR, STR};
use super::system::Register;
use super::{Env, Outcome};
use crate::protocol::{ABSENT, BEYOND, UART, word};

/// MRS X0, register.
const fn mrs(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    Register::new(op0, op1, crn, crm, op2).mrs(0)
}

/// MSR register, X0; SYS for `op0` 1.
const fn msr(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    Register::new(op0, op1, crn, crm, op2).msr(0)
}

/// What the guest must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The instruction does not exist: exception class 0.
    Undefined,
    /// The same; where the CPU has FEAT_IDST and nothing in its place, it says so by class 0x18.
    UndefinedId,
    /// An abort of this class with this fault status.
    Abort {
        /// Exception class.
        class: u64,
        /// Fault status code.
        status: u64,
    },
    /// An exception of this class, the guest's own affair.
    Own(u64),
    /// No exception, and these bits of x0 are so.
    Reads {
        /// Which bits.
        mask: u64,
        /// What they are.
        value: u64,
    },
    /// The same, or the instruction does not exist because the CPU does not have it.
    ReadsIfThere(u64),
    /// No exception.
    Nothing,
}

impl Expect {
    /// True if this is what the guest found: `esr` 0 for no exception.
    #[must_use]
    pub const fn holds(self, esr: u64, x0: u64) -> bool {
        const UNDEFINED: u64 = 1 << 25;
        match self {
            Self::Undefined => esr == UNDEFINED,
            Self::UndefinedId => esr == UNDEFINED || esr >> 26 == 0x18,
            Self::Abort { class, status } => esr >> 26 == class && esr & 0x3f == status,
            Self::Own(class) => esr >> 26 == class,
            Self::Reads { mask, value } => esr == 0 && x0 & mask == value,
            Self::ReadsIfThere(value) => esr == UNDEFINED || esr == 0 && x0 == value,
            Self::Nothing => esr == 0,
        }
    }
}

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub struct Deed {
    /// For people.
    pub name: &'static str,
    /// The instruction; it may change x0 alone.
    pub instruction: u32,
    /// x0 before.
    pub x0: u64,
    /// What must come of it.
    pub expect: Expect,
    /// Not in a protected VM, whose host must give it a page there or let it wait.
    pub plain_only: bool,
}

const fn deed(name: &'static str, instruction: u32, expect: Expect) -> Deed {
    Deed { name, instruction, x0: 0x7e57, expect, plain_only: false }
}

const fn with(x0: u64, deed: Deed) -> Deed {
    Deed { x0, ..deed }
}

const fn plain(deed: Deed) -> Deed {
    Deed { plain_only: true, ..deed }
}

const ZERO: Expect = Expect::Reads { mask: u64::MAX, value: 0 };
const MINUS_ONE: Expect = Expect::Reads { mask: u64::MAX, value: u64::MAX };
const KEPT: Expect = Expect::Reads { mask: u64::MAX, value: 0x7e57 };
const DATA_ABORT: u64 = 0x25;
const FETCH_ABORT: u64 = 0x21;

const LDXR: u32 = 0xc85f_7c00; // ldxr x0, [x0]
const LDUR_1: u32 = 0xf840_1000; // ldur x0, [x0, #1]

/// Everything that is tried, in this order.
#[rustfmt::skip]
pub const DEEDS: &[Deed] = &[
    // Not guests': other levels, and what the model of the CPU does not show.
    deed("UDF", 0, Expect::Undefined),
    deed("HLT", 0xd440_0000, Expect::Undefined),
    deed("MRS HCR_EL2", mrs(3, 4, 1, 1, 0), Expect::Undefined),
    deed("MSR VTTBR_EL2", msr(3, 4, 2, 1, 0), Expect::Undefined),
    deed("MRS SCR_EL3", mrs(3, 6, 1, 1, 0), Expect::Undefined),
    deed("SVE PTRUE", 0x2518_e3e0, Expect::Undefined),
    deed("MRS ZCR_EL1", mrs(3, 0, 1, 2, 0), Expect::Undefined),
    deed("SMSTART", 0xd503_477f, Expect::Undefined),
    deed("MRS SMCR_EL1", mrs(3, 0, 1, 2, 6), Expect::Undefined),
    deed("MRS TPIDR2_EL0", mrs(3, 3, 13, 0, 5), Expect::Undefined),
    deed("MRS RGSR_EL1", mrs(3, 0, 1, 0, 5), Expect::Undefined),
    deed("MRS GMID_EL1", mrs(3, 1, 0, 0, 4), Expect::UndefinedId),
    deed("MRS TCR2_EL1", mrs(3, 0, 2, 0, 3), Expect::Undefined),
    deed("MRS SCTLR2_EL1", mrs(3, 0, 1, 0, 3), Expect::Undefined),
    deed("MRS PIR_EL1", mrs(3, 0, 10, 2, 3), Expect::Undefined),
    deed("MRS GCSCR_EL1", mrs(3, 0, 2, 5, 0), Expect::Undefined),
    deed("MRS MPAM1_EL1", mrs(3, 0, 10, 5, 0), Expect::Undefined),
    deed("MRS LORC_EL1", mrs(3, 0, 10, 4, 3), Expect::Undefined),
    deed("MRS PMCR_EL0", mrs(3, 3, 9, 12, 0), Expect::Undefined),
    deed("MRS PMCCNTR_EL0", mrs(3, 3, 9, 13, 0), Expect::Undefined),
    deed("MSR PMEVTYPER0_EL0", msr(3, 3, 14, 12, 0), Expect::Undefined),
    deed("MRS PMSCR_EL1", mrs(3, 0, 9, 9, 0), Expect::Undefined),
    deed("MRS TRBLIMITR_EL1", mrs(3, 0, 9, 11, 0), Expect::Undefined),
    deed("MRS TRFCR_EL1", mrs(3, 0, 1, 2, 1), Expect::Undefined),
    deed("MRS TRCPRGCTLR", mrs(2, 1, 0, 1, 0), Expect::Undefined),
    deed("MRS AMCR_EL0", mrs(3, 3, 13, 2, 0), Expect::Undefined),
    deed("MRS S3_0_C15_C0_0", mrs(3, 0, 15, 0, 0), Expect::Undefined),
    deed("MRS DBGBCR1_EL1", mrs(2, 0, 0, 1, 5), Expect::Undefined),
    deed("DC CISW", msr(1, 0, 7, 14, 2), Expect::Undefined),
    deed("MSR ID_AA64PFR0_EL1", msr(3, 0, 0, 4, 0), Expect::Undefined),
    deed("MRS ICC_SGI1R_EL1", mrs(3, 0, 12, 11, 5), Expect::Undefined),
    // Answered by EL2.
    deed("MRS MDSCR_EL1", mrs(2, 0, 0, 2, 2), ZERO),
    deed("MSR MDSCR_EL1", msr(2, 0, 0, 2, 2), KEPT),
    deed("MRS MDSCR_EL1 again", mrs(2, 0, 0, 2, 2), ZERO),
    deed("MRS DBGBCR0_EL1", mrs(2, 0, 0, 0, 5), ZERO),
    deed("MSR DBGWVR0_EL1", msr(2, 0, 0, 0, 6), KEPT),
    deed("MRS OSLSR_EL1", mrs(2, 0, 1, 1, 4), ZERO),
    deed("MSR OSLAR_EL1", msr(2, 0, 1, 0, 4), KEPT),
    deed("MRS ACTLR_EL1", mrs(3, 0, 1, 0, 1), ZERO),
    deed("MRS ERRIDR_EL1", mrs(3, 0, 5, 3, 0), Expect::ReadsIfThere(0)),
    deed("MRS CNTP_CTL_EL0", mrs(3, 3, 14, 2, 1), ZERO),
    deed("MSR CNTP_CVAL_EL0", msr(3, 3, 14, 2, 2), KEPT),
    deed("MRS ICC_SRE_EL1", mrs(3, 0, 12, 12, 5), Expect::Reads { mask: u64::MAX, value: 7 }),
    deed("MSR ICC_SGI0R_EL1", msr(3, 0, 12, 11, 7), KEPT),
    deed("MRS MPIDR_EL1", mrs(3, 0, 0, 0, 5), Expect::Reads { mask: 0xff_ffff_ffff, value: 1 << 31 }),
    // AArch64 alone at EL0 and EL1; no SVE, MPAM, AMU.
    deed("MRS ID_AA64PFR0_EL1", mrs(3, 0, 0, 4, 0), Expect::Reads { mask: 0xff0f_0000_00ff, value: 0x11 }),
    // No SME, MTE.
    deed("MRS ID_AA64PFR1_EL1", mrs(3, 0, 0, 4, 1), Expect::Reads { mask: 0x0f00_0f00, value: 0 }),
    deed("MRS ID_AA64ZFR0_EL1", mrs(3, 0, 0, 4, 4), ZERO),
    // No PMU, no trace; one breakpoint.
    deed("MRS ID_AA64DFR0_EL1", mrs(3, 0, 0, 5, 0), Expect::Reads { mask: 0xf_ffff, value: 0 }),
    deed("MRS ID_PFR0_EL1", mrs(3, 0, 0, 1, 0), ZERO),
    deed("MSR CSSELR_EL1", msr(3, 2, 0, 0, 0), KEPT),
    deed("MRS CSSELR_EL1", mrs(3, 2, 0, 0, 0), Expect::Reads { mask: u64::MAX, value: 7 }),
    // Calls and waits.
    with(0x8400_0000, deed("SMC PSCI_VERSION", 0xd400_0003, MINUS_ONE)),
    with(0x8400_0008, deed("SMC SYSTEM_OFF", 0xd400_0003, MINUS_ONE)),
    with(0x8400_0000, deed("HVC #1", 0xd400_0022, MINUS_ONE)),
    with(0x1_8400_0000, deed("HVC with a high bit", 0xd400_0002, MINUS_ONE)),
    with(0xc600_0100, deed("HVC HYP_CAPS, a host's call", 0xd400_0002, MINUS_ONE)),
    with(0xc600_0117, deed("HVC VCPU_RUN, a host's call", 0xd400_0002, MINUS_ONE)),
    deed("WFE", 0xd503_205f, KEPT),
    // The guest's own.
    deed("BRK", 0xd420_0000, Expect::Own(0x3c)),
    deed("SVC", 0xd400_0001, Expect::Own(0x15)),
    with(1 << 32, deed("load outside stage 1", LDR, Expect::Abort { class: DATA_ABORT, status: 0x05 })),
    with(UART, deed("unaligned device load", LDUR_1, Expect::Abort { class: DATA_ABORT, status: 0x21 })),
    // Beyond the IPA space: an address size fault, level 0.
    with(BEYOND, deed("load beyond the IPA space", LDR, Expect::Abort { class: DATA_ABORT, status: 0 })),
    with(BEYOND, deed("store beyond the IPA space", STR, Expect::Abort { class: DATA_ABORT, status: 0 })),
    with(BEYOND, deed("fetch beyond the IPA space", BR, Expect::Abort { class: FETCH_ABORT, status: 0 })),
    // Nothing there, and the host says so.
    plain(with(ABSENT, deed("load of nothing", LDR, Expect::Abort { class: DATA_ABORT, status: 0x10 }))),
    plain(with(ABSENT, deed("store to nothing", STR, Expect::Abort { class: DATA_ABORT, status: 0x10 }))),
    plain(with(ABSENT, deed("pair from nothing", LDP, Expect::Abort { class: DATA_ABORT, status: 0x10 }))),
    plain(with(ABSENT, deed("exclusive of nothing", LDXR, Expect::Abort { class: DATA_ABORT, status: 0x10 }))),
    plain(with(ABSENT, deed("fetch of nothing", BR, Expect::Abort { class: FETCH_ABORT, status: 0x10 }))),
];

/// Executes them; a deed's results are its ESR (0 for none) and x0. A deed that does not apply
/// leaves all ones.
pub(super) fn run(env: &Env<'_>) -> Outcome {
    for (n, deed) in (0..).zip(DEEDS) {
        let at = word::RESULTS + 2 * n;
        let (esr, x0) = if deed.plain_only && env.start.kind.is_protected() {
            (u64::MAX, u64::MAX)
        } else {
            // The VMM finds here how far it got.
            env.report(word::STAGE, n);
            let seen = env.cpu.execute(deed.instruction, deed.x0);
            (seen.exception.map_or(0, |e| e.esr), seen.x0)
        };
        env.report(at, esr);
        env.report(at + 1, x0);
    }
    Ok(())
}

const _: () = assert!(word::RESULTS + 2 * (DEEDS.len() as u64) <= word::CPUS, "results fit the mailbox");

#[cfg(test)]
mod tests {
    use super::Expect;

    #[test]
    fn an_expectation_is_met_by_nothing_else() {
        let undefined = 1 << 25;
        assert!(Expect::Undefined.holds(undefined, 9) && !Expect::Undefined.holds(0, 9));
        assert!(!Expect::Undefined.holds(0x18 << 26 | undefined, 9));
        let reads = Expect::Reads { mask: 0xf, value: 3 };
        assert!(reads.holds(0, 0x13) && !reads.holds(0, 4) && !reads.holds(undefined, 3));
        let abort = Expect::Abort { class: 0x25, status: 0x10 };
        assert!(abort.holds(0x9600_0210, 0) && !abort.holds(0x9600_0206, 0) && !abort.holds(0, 0));
        assert!(Expect::ReadsIfThere(0).holds(undefined, 5) && !Expect::ReadsIfThere(0).holds(0, 5));
    }
}
