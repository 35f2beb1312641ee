//! What an audit hands out: figures and findings.
#![forbid(unsafe_code)]

use abi::inspect::{Damage, Figure, MAX_FINDINGS};
use arrayvec::ArrayVec;

/// How many pages there are of each kind, and whose they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census([u64; Figure::ALL.len()]);

impl Census {
    /// One figure.
    #[must_use]
    pub fn get(&self, figure: Figure) -> u64 {
        self.0.get((figure as usize).wrapping_sub(1)).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, figure: Figure, nr: u64) {
        if let Some(sum) = self.0.get_mut((figure as usize).wrapping_sub(1)) {
            // OWNERS is a sum of hashes: it may wrap.
            *sum = sum.wrapping_add(nr);
        }
    }

    /// What no refused call and no access changes: whose each page is.
    pub fn ownership(&self) -> impl Iterator<Item = (Figure, u64)> + '_ {
        let sums = Figure::SUMS.iter().map(|&[a, b]| (a, self.get(a).wrapping_add(self.get(b))));
        let kept = Figure::ALL.iter().filter(|figure| figure.is_kept());
        kept.map(|&figure| (figure, self.get(figure))).chain(sums)
    }
}

/// One thing that is not as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub damage: Damage,
    /// The VM that it is about; 0 for the host and EL2.
    pub handle: u16,
    /// The page, or the frame of the table's input space; 0 where there is no one place.
    pub frame: u64,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// The figures.
    pub census: Census,
    findings: ArrayVec<Finding, MAX_FINDINGS>,
    found: u64,
}

impl Audit {
    /// The first findings.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many there are, kept or not.
    #[must_use]
    pub const fn found(&self) -> u64 {
        self.found
    }

    /// True if nothing is wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.found == 0
    }

    #[cold]
    pub(super) fn find(&mut self, damage: Damage, handle: u16, frame: u64) {
        self.found = self.found.saturating_add(1);
        let finding = Finding { damage, handle, frame };
        if self.findings.try_push(finding).is_ok() {
            log::error!("audit: {finding:x?}");
        }
    }

    #[inline]
    pub(super) fn check(&mut self, held: bool, damage: Damage, handle: u16, frame: u64) {
        if !held {
            self.find(damage, handle, frame);
        }
    }
}
