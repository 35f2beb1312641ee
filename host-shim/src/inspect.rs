//! The client of the calls that only a development image has: audit and fault injection.
//! `docs/abi.md`, "Calls of a development image".
#![forbid(unsafe_code)]

use crate::hvc::{CallError, Hypervisor};
use crate::machine::Machine;
use abi::caps::Caps;
use abi::fault::{ANY, Site};
use abi::inspect::{Damage, FINDINGS, Figure, InspectFn, LOOK, MAX_FINDINGS};
use core::fmt;

/// A development image, as its host calls it.
#[derive(Clone, Copy, Debug)]
pub struct Inspector<'a>(Hypervisor<'a>);

/// What an audit counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census([u64; Figure::ALL.len()]);

impl Census {
    /// One figure.
    #[must_use]
    pub fn get(&self, figure: Figure) -> u64 {
        Figure::ALL.iter().zip(self.0).find(|(f, _)| **f == figure).map_or(0, |(_, value)| value)
    }

    /// What stays as it is while no page changes hands, of both: figures, and sums of two under
    /// the name of the first.
    pub fn kept<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (Figure, u64, u64)> + 'a {
        let figures = Figure::ALL.iter().filter(|figure| figure.is_kept());
        let sum = |census: &Self, [a, b]: [Figure; 2]| census.get(a).wrapping_add(census.get(b));
        let sums = Figure::SUMS.iter().map(move |&pair| (pair[0], sum(self, pair), sum(other, pair)));
        figures.map(|&figure| (figure, self.get(figure), other.get(figure))).chain(sums)
    }

    /// How these differ from what they were `before`, if they do.
    #[must_use]
    pub fn difference<'a>(&'a self, before: &'a Self) -> Option<Difference<'a>> {
        self.kept(before).any(|(_, is, was)| is != was).then_some(Difference { is: self, was: before })
    }
}

/// Two censuses that are not the same.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    is: &'a Census,
    was: &'a Census,
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (figure, is, was) in self.is.kept(self.was).filter(|(_, is, was)| is != was) {
            write!(f, "{comma}{}: {was:#x} before, {is:#x} after", figure.name())?;
            comma = ", ";
        }
        Ok(())
    }
}

/// Something that an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Kind, as a number where this crate does not know it.
    kind: u64,
    handle: u64,
    frame: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Damage::of(self.kind) {
            Some(damage) => write!(f, "{}", damage.name())?,
            None => write!(f, "finding {}", self.kind)?,
        }
        write!(f, " of VM {:#x} at frame {:#x}", self.handle, self.frame)
    }
}

/// Why there is no census.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditError {
    /// The call was refused.
    Call(CallError),
    /// Something is wrong: how much, and the first of it.
    Found(u64, Option<Finding>),
    /// So many pages belong to nobody.
    Loose(u64),
}

impl From<CallError> for AuditError {
    fn from(e: CallError) -> Self {
        Self::Call(e)
    }
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(e) => write!(f, "HYP_AUDIT: {e}"),
            Self::Found(nr, Some(first)) => write!(f, "{nr} findings, the first: {first}"),
            Self::Found(nr, None) => write!(f, "{nr} findings"),
            Self::Loose(nr) => write!(f, "{nr} pages belong to nobody"),
        }
    }
}

impl<'a> Inspector<'a> {
    /// The calls of `hypervisor`, if it is a development image.
    #[must_use]
    pub fn new(hypervisor: Hypervisor<'a>) -> Option<Self> {
        let hypervisor = hypervisor.undisturbed();
        let caps = hypervisor.caps().ok()?.caps;
        Caps::from_bits_truncate(caps).contains(Caps::FAULT_INJECTION).then_some(Self(hypervisor))
    }

    /// The calls of the hypervisor under `machine`, which is one.
    pub(crate) const fn under(machine: &'a dyn Machine) -> Self {
        Self(Hypervisor::new(machine))
    }

    /// Looks at everything. No other CPU may be in a call.
    ///
    /// # Errors
    /// See [`AuditError`].
    pub fn audit(self) -> Result<Census, AuditError> {
        let call = |what| self.0.call_id(InspectFn::HypAudit.id(), &[what, 0], [true, true]);
        let [found, loose] = call(LOOK)?;
        if found > 0 {
            let [kind, frame] = call(FINDINGS)?;
            let first = Finding { kind: kind & 0xffff, handle: kind >> 16, frame };
            return Err(AuditError::Found(found, (kind != 0).then_some(first)));
        }
        if loose > 0 {
            return Err(AuditError::Loose(loose));
        }
        let mut census = Census([0; Figure::ALL.len()]);
        for (figure, value) in Figure::ALL.iter().zip(&mut census.0) {
            [*value, _] = call(figure.number())?;
        }
        Ok(census)
    }

    /// Makes the `nth` pass of `site` from here on fail.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn arm(self, site: Site, nth: u64) -> Result<(), CallError> {
        self.arm_number(site.number(), nth)
    }

    /// Makes the `nth` pass of whichever site fail.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn arm_any(self, nth: u64) -> Result<(), CallError> {
        self.arm_number(ANY, nth)
    }

    fn arm_number(self, number: u64, nth: u64) -> Result<(), CallError> {
        self.0.call_id(InspectFn::FiArm.id(), &[number, nth], [false, false]).map(drop)
    }

    /// Disarms every site and forgets what was counted.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn clear(self) -> Result<(), CallError> {
        self.0.call_id(InspectFn::FiClear.id(), &[], [false, false]).map(drop)
    }

    /// How often `site` was passed, and how often it failed because it was armed.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn stats(self, site: Site) -> Result<[u64; 2], CallError> {
        self.stats_of_number(site.number())
    }

    /// The sums of all sites.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn stats_of_any(self) -> Result<[u64; 2], CallError> {
        self.stats_of_number(ANY)
    }

    fn stats_of_number(self, number: u64) -> Result<[u64; 2], CallError> {
        self.0.call_id(InspectFn::FiStats.id(), &[number], [true, true])
    }
}

const _: () = assert!(MAX_FINDINGS > 0, "there is a first finding");
