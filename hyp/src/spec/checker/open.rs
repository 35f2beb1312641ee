//! What one entry still needs before the old translation is gone on every CPU (facts: Arm ARM
//! D8.17.1 RDDMVT, IPAS2E1IS, VMALLE1IS).
//!
//! Stage 2: write, DSB, TLBI by IPA, DSB, VMALLE1IS, DSB. EL2's own stage 1: write, DSB, TLBI, DSB.
#![forbid(unsafe_code)]

use super::desc::span;
use super::rule::Rule;
use crate::addr::PAGE_SIZE;
use crate::hw::{CpuFeatures, Dsb, TableOwner, Tlbi};

/// What went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Leaf,
    /// A table without a valid leaf: its own descriptor may be cached.
    EmptyTable,
    /// A table with leaves: all it covers must be invalidated.
    FullTable,
    /// A whole tree.
    Root,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Written,
    Ordered,
    IpaIssued,
    IpaDone,
    AllIssued,
    Clean,
}

/// An entry between break and make, or whose old translation may still be cached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) id: u32,
    pub(super) table: u64,
    pub(super) index: u16,
    pub(super) owner: TableOwner,
    pub(super) vmid: u16,
    pub(super) level: u8,
    /// First address that the entry translates.
    pub(super) base: u64,
    pub(super) old: u64,
    pub(super) what: What,
    pub(super) step: Step,
    pub(super) cpu: usize,
    /// The entry holds a LOCKED note.
    pub(super) locked: bool,
    /// Of a full table: all below is invalidated.
    covered: u64,
    /// Why the next step was not taken, if something tried.
    hindrance: Option<Rule>,
}

impl Open {
    #[allow(clippy::too_many_arguments, reason = "the fields of a record, each of another type")]
    pub(super) const fn new(
        id: u32,
        cpu: usize,
        (table, index): (u64, u16),
        (owner, vmid): (TableOwner, u16),
        level: u8,
        base: u64,
        old: u64,
        what: What,
    ) -> Self {
        let (step, locked) = (Step::Written, false);
        Self {
            id,
            table,
            index,
            owner,
            vmid,
            level,
            base,
            old,
            what,
            step,
            cpu,
            locked,
            covered: base,
            hindrance: None,
        }
    }

    pub(super) const fn is_clean(&self) -> bool {
        matches!(self.step, Step::Clean)
    }

    fn end(&self) -> u64 {
        self.base.saturating_add(span(self.level))
    }

    fn advance(&mut self, step: Step) {
        self.step = step;
        self.hindrance = None;
    }

    /// The rule that using the entry at this step breaks.
    pub(super) fn missing(&self) -> Option<Rule> {
        let default = match self.step {
            Step::Clean => return None,
            Step::Written | Step::Ordered => Rule::MissingTlbi,
            Step::IpaIssued | Step::IpaDone => Rule::MissingCombinedTlbi,
            Step::AllIssued => Rule::MissingDsbAfterTlbi,
        };
        Some(self.hindrance.unwrap_or(default))
    }

    pub(super) fn dsb(&mut self, cpu: usize, scope: Dsb) {
        // A dead tree is invalidated by whoever needs its VMID.
        if self.cpu != cpu && self.what != What::Root {
            return;
        }
        // What hindered an instruction is remembered until one gets through.
        self.step = match (self.step, scope) {
            (Step::Written, Dsb::IshSt | Dsb::Ish) => Step::Ordered,
            (Step::IpaIssued, Dsb::Ish) => Step::IpaDone,
            (Step::AllIssued, Dsb::Ish) => Step::Clean,
            (step, _) => step,
        };
    }

    /// One instruction, issued on `cpu` while `vmid` was installed.
    pub(super) fn tlbi(&mut self, cpu: usize, vmid: Option<u16>, op: Tlbi, features: &CpuFeatures) {
        if (self.cpu != cpu && self.what != What::Root) || self.is_clean() {
            return;
        }
        let hyp = self.owner == TableOwner::Hyp;
        match op {
            Tlbi::Hyp { va, level } if hyp => {
                self.by_address(va.raw(), PAGE_SIZE, level, Step::AllIssued, features)
            }
            Tlbi::AllHyp if hyp => self.whole(),
            Tlbi::AllVmids if !hyp => self.whole(),
            _ if hyp => {}
            Tlbi::Hyp { .. } | Tlbi::AllHyp | Tlbi::AllVmids => {}
            Tlbi::Ipa { ipa, .. } | Tlbi::IpaRange { ipa, .. } if vmid != Some(self.vmid) => {
                if self.overlaps(ipa.raw(), range_len(op)) {
                    self.hindrance = Some(Rule::WrongVmid);
                }
            }
            Tlbi::StageOneAndCombined | Tlbi::CurrentVmid if vmid != Some(self.vmid) => {
                self.hindrance = self.hindrance.or(Some(Rule::WrongVmid));
            }
            Tlbi::Ipa { ipa, level } | Tlbi::IpaRange { ipa, level, .. } => {
                self.by_address(ipa.raw(), range_len(op), level, Step::IpaIssued, features);
            }
            Tlbi::CurrentVmid => self.whole(),
            Tlbi::StageOneAndCombined => match self.step {
                Step::IpaDone => self.advance(Step::AllIssued),
                Step::IpaIssued => self.hindrance = Some(Rule::MissingDsbBetweenTlbis),
                _ => {}
            },
        }
    }

    fn overlaps(&self, start: u64, len: u64) -> bool {
        start < self.end() && self.base < start.saturating_add(len)
    }

    fn whole(&mut self) {
        if self.step == Step::Written {
            self.hindrance = Some(Rule::MissingDsbBeforeTlbi);
        } else {
            self.advance(Step::AllIssued);
        }
    }

    fn by_address(&mut self, start: u64, len: u64, hint: Option<u8>, next: Step, features: &CpuFeatures) {
        if !self.overlaps(start, len) || self.step > Step::Ordered || self.what == What::Root {
            return;
        }
        if self.step == Step::Written {
            self.hindrance = Some(Rule::MissingDsbBeforeTlbi);
            return;
        }
        // Without FEAT_TTL the hint's bits are RES0 and the CPU takes every level.
        let hint = hint.filter(|_| features.ttl);
        let fits = match self.what {
            What::Leaf => hint.is_none_or(|level| level == self.level),
            What::EmptyTable | What::FullTable | What::Root => hint.is_none(),
        };
        if !fits {
            self.hindrance = Some(Rule::WrongLevelHint);
            return;
        }
        if self.what == What::FullTable {
            // Loops go upwards, so one mark is enough to see that nothing is left out.
            if start <= self.covered {
                self.covered = self.covered.max(start.saturating_add(len));
            }
            if self.covered < self.end() {
                return;
            }
        }
        self.advance(next);
    }
}

/// Bytes that an operation by IPA covers.
fn range_len(op: Tlbi) -> u64 {
    match op {
        Tlbi::IpaRange { scale, num, .. } => {
            let shift = u32::from(scale & 3).saturating_mul(5).saturating_add(13);
            u64::from(num & 31).saturating_add(1) << shift
        }
        _ => PAGE_SIZE,
    }
}
