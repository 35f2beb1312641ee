//! Which page of the host a guest has where: a word for each guest frame, in memory of the host.
#![forbid(unsafe_code)]

use super::{Vmm, VmmError};
use crate::span::{PAGE, Span};
use guest_shim::protocol::{IMAGE, RAM_END};

/// The table of one VM. A word is 0 for none, else the frame number plus 1.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    vmm: &'a Vmm<'a>,
    table: Span,
}

/// Guest frames in RAM.
const FRAMES: u64 = (RAM_END - IMAGE) / PAGE;

impl<'a> Memory<'a> {
    pub(super) fn new(vmm: &'a Vmm<'a>) -> Result<Self, VmmError> {
        let table = vmm.take(FRAMES * 8 / PAGE, PAGE)?;
        for n in 0..FRAMES {
            vmm.store(table.start() + 8 * n, 0)?;
        }
        Ok(Self { vmm, table })
    }

    fn slot(&self, ipa: u64) -> Option<u64> {
        let ram = IMAGE..RAM_END;
        ram.contains(&ipa).then(|| self.table.start() + 8 * ((ipa - IMAGE) / PAGE))
    }

    /// The frame that the guest has at `ipa`.
    pub(super) fn get(&self, ipa: u64) -> Option<u64> {
        let word = self.vmm.load(self.slot(ipa)?).ok()?;
        word.checked_sub(1)
    }

    /// Notes what the guest has at `ipa`.
    pub(super) fn set(&self, ipa: u64, pfn: Option<u64>) -> Result<(), VmmError> {
        let slot = self.slot(ipa).ok_or(VmmError::Contract("no RAM of the guest", ipa))?;
        self.vmm.store(slot, pfn.map_or(0, |pfn| pfn + 1))
    }

    /// Every page the guest has: address and frame.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..FRAMES).map(|n| IMAGE + n * PAGE).filter_map(|ipa| Some((ipa, self.get(ipa)?)))
    }

    /// The table itself, at the end.
    pub(super) const fn table(&self) -> Span {
        self.table
    }
}
