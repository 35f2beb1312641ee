//! The portable core straight on the hardware; the other face of `watched`.

use super::Running;
use super::machine::El2;
use hyp::hcall::HostRegs;

/// This CPU, as the portable core sees it.
pub(crate) type Hw = El2;
/// Every CPU: one value, since there is nothing to tell them apart by.
pub(crate) type Watched = El2;

/// Nobody judges.
pub(crate) struct Judges;

impl Judges {
    pub(super) const fn new() -> Self {
        Self
    }
}

/// CPU `index`.
pub(crate) const fn watched(el2: El2, _index: usize) -> Hw {
    el2
}

impl Running {
    /// This CPU.
    #[inline]
    pub(super) const fn hw(&self) -> &Hw {
        &self.hw
    }

    /// This CPU, unwatched.
    #[inline]
    pub(super) const fn el2(&self) -> &El2 {
        &self.hw
    }

    /// There is no judge that must know how things were.
    pub(super) const fn look(&self) {
        let Judges = &super::IMAGE.judges;
    }

    /// Answers a host call.
    #[inline]
    pub(super) fn host_call(&self, regs: &mut HostRegs) {
        super::guests::host_call(self, regs);
    }
}
