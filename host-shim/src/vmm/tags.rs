//! Guests with MTE on memory without tags: the monitor's part of docs/mte.md.
//!
//! Pages that the host gives to a guest with MTE have tags that it set, so that those which come back
//! can be told from those that nobody touched.
#![forbid(unsafe_code)]

use super::{Exit, Vm, Vmm, VmmError, of};
use crate::hvc::CallError;
use crate::machine::{Machine, words};
use crate::span::PAGE;
use abi::Errno;
use abi::exit::ExitFlags;
use abi::vm::GuestProt;
use core::sync::atomic::Ordering;

/// Bytes that have one tag.
const GRANULE: usize = 16;
/// What a page goes in with.
const RUBBISH: u64 = 0xb;

/// The granules of a page.
fn granules(pfn: u64) -> impl Iterator<Item = u64> {
    (pfn * PAGE..(pfn + 1) * PAGE).step_by(GRANULE)
}

impl Vmm<'_> {
    /// The host's own view of tags, where it matters.
    fn tags(&self) -> Option<&dyn Machine> {
        (self.mte.has_mte() && self.machine.has_tags()).then_some(self.machine)
    }

    /// Sets the tags of a page of the host that is on its way to a guest with MTE.
    pub(super) fn spoil_tags(&self, pfn: u64) {
        if let Some(machine) = self.tags() {
            granules(pfn).for_each(|granule| machine.set_tag(granule, RUBBISH));
        }
    }

    /// Sets the tags of a page of the host to 0.
    fn clear_tags(&self, pfn: u64) {
        if let Some(machine) = self.tags() {
            granules(pfn).for_each(|granule| machine.set_tag(granule, 0));
        }
    }

    /// Fails if a granule of a page that a guest with MTE had has a tag other than 0.
    pub(super) fn expect_no_tags(&self, what: &'static str, pfn: u64) -> Result<(), VmmError> {
        let Some(machine) = self.tags() else { return Ok(()) };
        match granules(pfn).find(|granule| machine.tag(*granule) != 0) {
            None => Ok(()),
            Some(granule) => Err(VmmError::Contract(what, granule)),
        }
    }
}

impl Vm<'_> {
    /// Gives the guest the page, or the block, that begins at `pfn` at `ipa` as one without tags.
    pub fn donate_without_tags(&self, ipa: u64, pfn: u64, order: u64) -> Result<(), VmmError> {
        let hyp = self.vmm.hypervisor();
        self.with_tables("GUEST_DONATE", || {
            hyp.guest_donate_without_tags(self.handle, ipa / PAGE, pfn, order)
        })?;
        (0..1 << order).try_for_each(|n| self.remember(ipa + n * PAGE, pfn + n))
    }

    /// Lends the guest the page `pfn` of the host at `ipa`, as it is.
    pub fn lend(&self, ipa: u64, pfn: u64) -> Result<(), VmmError> {
        let hyp = self.vmm.hypervisor();
        let prot = GuestProt::R | GuestProt::W | GuestProt::X;
        self.with_tables("GUEST_SHARE", || hyp.guest_share(self.handle, ipa / PAGE, pfn, 0, prot))?;
        self.remember(ipa, pfn)
    }

    /// The page at `ipa` is the host's own: it takes it away, and lends another with the same bytes and with tags,
    /// which are 0.
    fn replace_lent(&self, ipa: u64) -> Result<(), VmmError> {
        let old = self.page(ipa).ok_or(VmmError::Contract("tags of a page that the guest has not", ipa))?;
        let (hyp, new) = (self.vmm.hypervisor(), self.vmm.take_page()?);
        hyp.guest_unshare(self.handle, ipa / PAGE, 1).map_err(of("GUEST_UNSHARE"))?;
        for (from, to) in words(old * PAGE).zip(words(new * PAGE)) {
            self.vmm.store(to, self.vmm.load(from)?)?;
        }
        self.vmm.clear_tags(new);
        self.lend(ipa, new)?;
        self.vmm.free_page(old)
    }

    /// Answers the next `count` TAG_ACCESS exits by running the vCPU again.
    pub fn ignore_tag_accesses(&self, count: u64) {
        self.ignored.store(count, Ordering::Relaxed);
    }

    /// The guest wants the tags of a page that has none: it gets one that has some.
    pub(super) fn tag_access(&self, exit: &Exit) -> Result<(), VmmError> {
        if self.ignored.load(Ordering::Relaxed) > 0 {
            self.ignored.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        if !exit.flags.contains(ExitFlags::PRIVATE) {
            return self.replace_lent(exit.gpa);
        }
        let (hyp, gfn, new) = (self.vmm.hypervisor(), exit.gpa / PAGE, self.vmm.take_page()?);
        self.vmm.spoil_tags(new);
        match self.with_tables("MTE_UPGRADE", || hyp.mte_upgrade(self.handle, gfn, new)) {
            Ok(old) => {
                if self.page(exit.gpa) != Some(old) {
                    return Err(VmmError::Contract("MTE_UPGRADE returned another page", old));
                }
                self.remember(exit.gpa, new)?;
                self.expect_zero("a page that was upgraded is not zero", old)?;
                self.vmm.free_page(old)
            }
            // Another vCPU's exit was answered first.
            Err(VmmError::Call(_, CallError::Errno(Errno::Eexist))) => self.vmm.free_page(new),
            Err(e) => Err(e),
        }
    }
}
