//! Which page a guest has where: a word for each guest frame, in memory of the host.
#![forbid(unsafe_code)]

use super::{Vmm, VmmError};
use crate::span::{PAGE, Span};
use guest_shim::protocol::{SHARED, VmKind};

/// Flag of a word: the host can see the page.
const SHOWN: u64 = 1 << 63;

/// The table of one VM: its RAM, and for a realm what it sees in the place of its RAM in the shared half. A
/// word is 0 for none, else the frame number plus 1, and maybe [`SHOWN`].
#[derive(Debug)]
pub(super) struct Memory<'a> {
    vmm: &'a Vmm<'a>,
    ram: Span,
    table: Span,
}

impl<'a> Memory<'a> {
    /// The table of a VM with nothing in `ram`, which is whole pages.
    pub(super) fn new(vmm: &'a Vmm<'a>, kind: VmKind, ram: Span) -> Result<Self, VmmError> {
        let halves = if kind == VmKind::Realm { 2 } else { 1 };
        let table = vmm.take((halves * ram.size() / PAGE * 8).div_ceil(PAGE), PAGE)?;
        vmm.machine.fill(table, 0);
        Ok(Self { vmm, ram, table })
    }

    fn slot(&self, ipa: u64) -> Option<u64> {
        let place = ipa & !SHARED;
        let frame = self.ram.contains(place).then(|| (place - self.ram.start()) / PAGE)?;
        let half = if ipa & SHARED == 0 { 0 } else { self.ram.size() / PAGE };
        let slot = self.table.start() + 8 * (half + frame);
        (slot < self.table.end()).then_some(slot)
    }

    /// The frame that the guest has at `ipa`.
    pub(super) fn get(&self, ipa: u64) -> Option<u64> {
        (self.word(ipa)? & !SHOWN).checked_sub(1)
    }

    fn word(&self, ipa: u64) -> Option<u64> {
        self.vmm.load(self.slot(ipa)?).ok()
    }

    /// Notes what the guest has at `ipa`.
    pub(super) fn set(&self, ipa: u64, pfn: Option<u64>) -> Result<(), VmmError> {
        let slot = self.slot(ipa).ok_or(VmmError::Contract("no RAM of the guest", ipa))?;
        self.vmm.store(slot, pfn.map_or(0, |pfn| pfn + 1))
    }

    /// Notes which of the pages the host can see now. A guest that shares in place need not say so to the host.
    pub(super) fn note_shown(&self) -> Result<(), VmmError> {
        for (ipa, pfn) in self.all() {
            if let Some(slot) = self.slot(ipa)
                && self.vmm.load(pfn * PAGE).is_ok()
            {
                self.vmm.store(slot, (pfn + 1) | SHOWN)?;
            }
        }
        Ok(())
    }

    /// True if the host could see what the guest has at `ipa`, by [`Memory::note_shown`].
    pub(super) fn is_shown(&self, ipa: u64) -> bool {
        self.word(ipa).is_some_and(|word| word & SHOWN != 0)
    }

    /// Every page the guest has: address and frame.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let halves = [0, SHARED].into_iter();
        let frames = halves.flat_map(|half| self.ram.pages().map(move |ipa| ipa + half));
        frames.filter_map(|ipa| Some((ipa, self.get(ipa)?)))
    }

    /// The table itself, at the end.
    pub(super) const fn table(&self) -> Span {
        self.table
    }
}
