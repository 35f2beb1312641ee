//! Which page a guest has where: a word for each guest frame, in memory of the host.
#![forbid(unsafe_code)]

use super::{Vmm, VmmError};
use crate::span::{PAGE, Span};
use guest_shim::protocol::{IMAGE, RAM_END, SHARED, VmKind};

/// The table of one VM: its RAM, and for a realm what it sees in the place of its RAM in the shared half. A
/// word is 0 for none, else the frame number plus 1.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    vmm: &'a Vmm<'a>,
    table: Span,
}

/// Guest frames in RAM.
const FRAMES: u64 = (RAM_END - IMAGE) / PAGE;

impl<'a> Memory<'a> {
    pub(super) fn new(vmm: &'a Vmm<'a>, kind: VmKind) -> Result<Self, VmmError> {
        let frames = if kind == VmKind::Realm { 2 * FRAMES } else { FRAMES };
        let table = vmm.take(frames * 8 / PAGE, PAGE)?;
        for n in 0..frames {
            vmm.store(table.start() + 8 * n, 0)?;
        }
        Ok(Self { vmm, table })
    }

    fn slot(&self, ipa: u64) -> Option<u64> {
        let frame = (ipa & !SHARED).checked_sub(IMAGE).map(|offset| offset / PAGE).filter(|n| *n < FRAMES)?;
        let half = if ipa & SHARED == 0 { 0 } else { FRAMES };
        let slot = self.table.start() + 8 * (half + frame);
        (slot < self.table.end()).then_some(slot)
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
        let frames =
            [IMAGE, IMAGE + SHARED].into_iter().flat_map(|first| (0..FRAMES).map(move |n| first + n * PAGE));
        frames.filter_map(|ipa| Some((ipa, self.get(ipa)?)))
    }

    /// The table itself, at the end.
    pub(super) const fn table(&self) -> Span {
        self.table
    }
}
