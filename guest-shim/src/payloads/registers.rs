//! `Registers`: every encoding of a system register, read and written.
//!
//! [`documented`] is what docs/vm.md promises for each of the 32768 encodings with op0 2 or 3. The guest executes and
//! reports; the VMM holds the report against it.
#![forbid(unsafe_code)]

use super::system::{Register, STAGE1_ON};
use super::{Env, Outcome};
use crate::cpu::{Attempt, Stage1};
use crate::protocol::registers::{CHUNK, CHUNKS, IN_WORD, WRITE_SHIFT, found};
use crate::protocol::word;
use el1::random::Random;

/// What an access must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The instruction does not exist.
    Undefined,
    /// It is executed, or EL2 answers.
    Answered,
    /// One or the other, as the CPU has it.
    Either,
}

impl Fate {
    /// True if this is what the guest found, one of [`found`].
    #[must_use]
    pub const fn holds(self, seen: u64) -> bool {
        match self {
            Self::Undefined => seen == found::UNDEFINED,
            Self::Answered => seen == found::ANSWERED,
            Self::Either => seen == found::UNDEFINED || seen == found::ANSWERED,
        }
    }
}

use Fate::{Answered, Either, Undefined};

/// Fates of MRS and MSR.
const RW: [Fate; 2] = [Answered, Answered];
const RO: [Fate; 2] = [Answered, Undefined];
const WO: [Fate; 2] = [Undefined, Answered];
const RW_OPTIONAL: [Fate; 2] = [Either, Either];
const RO_OPTIONAL: [Fate; 2] = [Either, Undefined];
/// EL2 ignores writes, and would answer reads if the CPU let them reach it.
const WO_OR_MORE: [Fate; 2] = [Either, Answered];
const RO_OR_MORE: [Fate; 2] = [Answered, Either];

/// A run of registers, first and last, and what they do.
type Run = (Register, Register, [Fate; 2]);

const fn one(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32, fates: [Fate; 2]) -> Run {
    run((op0, op1, crn), (crm, op2), (crm, op2), fates)
}

const fn run(group: (u32, u32, u32), from: (u32, u32), to: (u32, u32), fates: [Fate; 2]) -> Run {
    let (op0, op1, crn) = group;
    (Register::new(op0, op1, crn, from.0, from.1), Register::new(op0, op1, crn, to.0, to.1), fates)
}

/// What there is; every other encoding is UNDEFINED.
#[rustfmt::skip]
const THERE: &[Run] = &[
    run((2, 0, 0), (0, 4), (0, 7), RW), // DBGBVR0, DBGBCR0, DBGWVR0, DBGWCR0
    one(2, 0, 0, 2, 2, RW), // MDSCR
    one(2, 0, 1, 0, 4, WO_OR_MORE), // OSLAR
    one(2, 0, 1, 1, 4, RO_OR_MORE), // OSLSR
    one(2, 0, 1, 3, 4, RW), // OSDLR
    one(3, 0, 0, 0, 0, RO), // MIDR
    run((3, 0, 0), (0, 5), (0, 6), RO), // MPIDR, REVIDR
    run((3, 0, 0), (1, 0), (7, 7), RO), // ID_*
    run((3, 0, 1), (0, 0), (0, 2), RW), // SCTLR, ACTLR, CPACR
    run((3, 0, 2), (0, 0), (0, 2), RW), // TTBR0, TTBR1, TCR
    run((3, 0, 2), (1, 0), (1, 3), RW_OPTIONAL), // APIAKey*, APIBKey*
    run((3, 0, 2), (2, 0), (2, 3), RW_OPTIONAL), // APDAKey*, APDBKey*
    run((3, 0, 2), (3, 0), (3, 1), RW_OPTIONAL), // APGAKey*
    run((3, 0, 4), (0, 0), (0, 1), RW), // SPSR, ELR
    one(3, 0, 4, 1, 0, RW), // SP_EL0
    one(3, 0, 4, 2, 0, RW), // SPSel
    one(3, 0, 4, 2, 2, RO), // CurrentEL
    run((3, 0, 4), (2, 3), (2, 4), RW_OPTIONAL), // PAN, UAO
    one(3, 0, 4, 3, 0, RW_OPTIONAL), // ALLINT
    one(3, 0, 4, 6, 0, RW), // ICC_PMR
    run((3, 0, 5), (1, 0), (1, 1), RW), // AFSR0, AFSR1
    one(3, 0, 5, 2, 0, RW), // ESR
    run((3, 0, 5), (3, 0), (3, 1), RW_OPTIONAL), // ERRIDR, ERRSELR
    run((3, 0, 5), (4, 0), (5, 7), RW_OPTIONAL), // ERX*
    one(3, 0, 6, 0, 0, RW), // FAR
    one(3, 0, 7, 4, 0, RW), // PAR
    one(3, 0, 10, 2, 0, RW), // MAIR
    one(3, 0, 10, 3, 0, RW), // AMAIR
    one(3, 0, 12, 0, 0, RW), // VBAR
    one(3, 0, 12, 1, 0, RO), // ISR
    one(3, 0, 12, 1, 1, RW_OPTIONAL), // DISR
    one(3, 0, 12, 8, 0, RO), // ICC_IAR0
    one(3, 0, 12, 8, 1, WO), // ICC_EOIR0
    one(3, 0, 12, 8, 2, RO), // ICC_HPPIR0
    one(3, 0, 12, 8, 3, RW), // ICC_BPR0
    one(3, 0, 12, 8, 4, RW), // ICC_AP0R0
    run((3, 0, 12), (8, 5), (8, 7), RW_OPTIONAL), // ICC_AP0R1 to 3
    one(3, 0, 12, 9, 0, RW), // ICC_AP1R0
    run((3, 0, 12), (9, 1), (9, 3), RW_OPTIONAL), // ICC_AP1R1 to 3
    one(3, 0, 12, 9, 5, RO_OPTIONAL), // ICC_NMIAR1
    one(3, 0, 12, 11, 1, WO), // ICC_DIR
    one(3, 0, 12, 11, 3, RO), // ICC_RPR
    one(3, 0, 12, 11, 5, WO), // ICC_SGI1R
    run((3, 0, 12), (11, 6), (11, 7), WO_OR_MORE), // ICC_ASGI1R, ICC_SGI0R
    one(3, 0, 12, 12, 0, RO), // ICC_IAR1
    one(3, 0, 12, 12, 1, WO), // ICC_EOIR1
    one(3, 0, 12, 12, 2, RO), // ICC_HPPIR1
    run((3, 0, 12), (12, 3), (12, 7), RW), // ICC_BPR1, ICC_CTLR, ICC_SRE, ICC_IGRPEN0, ICC_IGRPEN1
    one(3, 0, 13, 0, 1, RW), // CONTEXTIDR
    one(3, 0, 13, 0, 4, RW), // TPIDR_EL1
    one(3, 0, 14, 1, 0, RW), // CNTKCTL
    run((3, 1, 0), (0, 0), (0, 1), RO), // CCSIDR, CLIDR
    one(3, 1, 0, 0, 7, RO), // AIDR
    one(3, 2, 0, 0, 0, RW), // CSSELR
    one(3, 3, 0, 0, 1, RO), // CTR
    one(3, 3, 0, 0, 7, RO), // DCZID
    run((3, 3, 2), (4, 0), (4, 1), RO_OPTIONAL), // RNDR, RNDRRS
    run((3, 3, 4), (2, 0), (2, 1), RW), // NZCV, DAIF
    run((3, 3, 4), (2, 5), (2, 7), RW_OPTIONAL), // DIT, SSBS, TCO
    run((3, 3, 4), (4, 0), (4, 1), RW), // FPCR, FPSR
    run((3, 3, 13), (0, 2), (0, 3), RW), // TPIDR_EL0, TPIDRRO
    run((3, 3, 14), (0, 0), (0, 2), RO), // CNTFRQ, CNTPCT, CNTVCT
    run((3, 3, 14), (0, 5), (0, 6), RO_OPTIONAL), // CNTPCTSS, CNTVCTSS
    run((3, 3, 14), (2, 0), (2, 2), RW), // CNTP_*
    run((3, 3, 14), (3, 0), (3, 2), RW), // CNTV_*
];

/// What MRS and MSR of `register` must come to in a VM without memory tags.
#[must_use]
pub fn documented(register: Register) -> [Fate; 2] {
    let there = THERE.iter().find(|(first, last, _)| (*first..=*last).contains(&register));
    there.map_or([Undefined, Undefined], |(.., fates)| *fates)
}

/// A register that there is, or may be.
pub(super) fn any_that_is_there(random: &mut Random) -> Register {
    random.of(THERE).map_or(Register::SCTLR, |(first, last, _)| first.between(last, random))
}

/// Number `index` of the registers in the order in which they are tried: neighbours are far apart.
#[must_use]
pub const fn nth(index: u64) -> Register {
    Register::of_index(index.wrapping_mul(0x2f1d))
}

/// Reports chunk by chunk; `argument` is the first and, from bit 16 on, how many.
pub(super) fn run_chunks(env: &Env<'_>) -> Outcome {
    let (first, nr) = (u64::from(env.start.argument & 0xffff), u64::from(env.start.argument >> 16));
    for chunk in (first..first + nr).map(|chunk| chunk % CHUNKS) {
        let mut random = Random::new(chunk, 0);
        for n in (0..CHUNK).step_by(usize::try_from(IN_WORD).unwrap_or(1)) {
            let report = (0..IN_WORD).fold(0, |report, k| {
                let register = nth(chunk * CHUNK + n + k);
                let [mrs, msr] = both(env, register, &mut random);
                report | (mrs | msr << WRITE_SHIFT) << (k * 2 * WRITE_SHIFT)
            });
            env.report(word::RESULTS + n / IN_WORD, report);
        }
        env.doorbell(chunk + 1)?;
    }
    Ok(())
}

/// Reads a register, then writes nonsense to it.
fn both(env: &Env<'_>, register: Register, random: &mut Random) -> [u64; 2] {
    let mut x = [0; 28];
    x.fill_with(|| random.next_word());
    if let ([x0, ..], Register::SCTLR) = (&mut x, register) {
        *x0 &= !STAGE1_ON;
    }
    [register.mrs(0), register.msr(0)].map(|instruction| {
        let attempt = Attempt { instruction, x, stage1: Stage1::Off, timer: None };
        match env.cpu.attempt(&attempt).taken.map(|taken| taken.esr >> 26) {
            None => found::ANSWERED,
            // Class 0x18: FEAT_IDST.
            Some(0 | 0x18) => found::UNDEFINED,
            Some(_) => found::OTHER,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, CHUNKS, Fate, Register, THERE, documented, found, nth};
    use std::collections::BTreeSet;

    #[test]
    fn every_encoding_is_tried_once() {
        let all: BTreeSet<_> = (0..CHUNKS * CHUNK).map(nth).collect();
        assert_eq!(all.len(), 2 * 8 * 16 * 16 * 8);
    }

    #[test]
    fn the_table_is_sorted_and_what_is_not_in_it_is_undefined() {
        assert!(THERE.is_sorted_by(|(_, last, _), (first, ..)| last < first));
        for (op0, op1, crn, crm, op2) in
            [(3, 4, 1, 1, 0), (3, 3, 9, 12, 0), (3, 0, 11, 0, 0), (2, 1, 0, 1, 0)]
        {
            assert_eq!(documented(Register::new(op0, op1, crn, crm, op2)), [Fate::Undefined; 2]);
        }
        assert_eq!(documented(Register::new(3, 0, 0, 4, 0)), [Fate::Answered, Fate::Undefined]);
    }

    #[test]
    fn no_other_fate_is_taken_for_a_promise_kept() {
        for (fate, right) in [
            (Fate::Undefined, [false, true, false]),
            (Fate::Answered, [true, false, false]),
            (Fate::Either, [true, true, false]),
        ] {
            let holds = [found::ANSWERED, found::UNDEFINED, found::OTHER].map(|seen| fate.holds(seen));
            assert_eq!(holds, right, "{fate:?}");
            assert!(!fate.holds(0), "nothing was reported");
        }
    }
}
