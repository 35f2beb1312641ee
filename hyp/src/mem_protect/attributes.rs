//! What a guest may do with a page that it has: permissions and access flags, changed in place.
//!
//! No page changes hands here, so no record does. Permissions and access flags of a VM that is
//! not protected are the host's to set; EL2 sets an access flag on a fault.
//!
//! Lock: the guest's.
#![forbid(unsafe_code)]

use super::Hypervisor;
use super::content;
use super::guest_s2::{Guest, GuestKind, GuestS2Guard, guest_error};
use super::host_guest::check_bound;
use crate::addr::{Ipa, IpaRange, Pfn, PfnRange};
use crate::error::Error;
use crate::hw::Machine;
use crate::pgtable::{Access, Change, Entry, Note, Prot, Window};
use abi::Errno;
use core::ops::ControlFlow;

impl<M: Machine> Hypervisor<M> {
    /// Lets a guest that is not protected do more with the page, or the block, that `page` is in.
    ///
    /// # Errors
    /// In this order. EACCES: protected. ERANGE: beyond the guest's space. ENOENT: nothing there.
    pub fn host_relax_guest(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        page: IpaRange,
        access: Access,
    ) -> Result<(), Error> {
        let mut guest = lent(hw, guest, page)?;
        let (range, first, prot) = page_at(hw, &guest, page.start())?.ok_or(Errno::Enoent)?;
        if access.contains(Access::X) && !prot.contains(Prot::X) {
            let nr = range.len() >> crate::addr::PAGE_SHIFT;
            let pages = PfnRange::new(first.raw(), nr).map_err(|_| Errno::Eio)?;
            content::lend(hw, window, pages, Prot::from(access));
        }
        guest.table.change(hw, range, Change::Relax(access)).map_err(guest_error)?;
        Ok(())
    }

    /// Takes the permission to write to `range` away from a guest that is not protected. Frames
    /// without a page are passed over.
    ///
    /// # Errors
    /// In this order. E2BIG: more than 512 frames. EACCES: protected. ERANGE: beyond the guest's
    /// space. E2BIG: a block reaches out of the range.
    pub fn host_wrprotect_guest(&self, hw: &M, guest: &Guest<M>, range: IpaRange) -> Result<(), Error> {
        check_bound(range)?;
        lent(hw, guest, range)?.table.change(hw, range, Change::WriteProtect).map_err(guest_error)?;
        Ok(())
    }

    /// How many entries of `range` a guest that is not protected used since their access flags
    /// were last cleared; clears them with `clear`.
    ///
    /// # Errors
    /// As [`Hypervisor::host_wrprotect_guest`].
    pub fn host_age_guest(
        &self,
        hw: &M,
        guest: &Guest<M>,
        range: IpaRange,
        clear: bool,
    ) -> Result<u64, Error> {
        check_bound(range)?;
        let mut guest = lent(hw, guest, range)?;
        if clear {
            return guest.table.change(hw, range, Change::Accessed(false)).map_err(guest_error);
        }
        let mut young = 0_u64;
        guest.table.visit(hw, range, |_, entry| {
            if let Entry::Leaf(leaf) = entry {
                young = young.saturating_add(u64::from(leaf.attrs.accessed));
            }
            ControlFlow::<()>::Continue(())
        })?;
        Ok(young)
    }

    /// A guest used the page, or the block, at `ipa`.
    ///
    /// # Errors
    /// ERANGE, EIO.
    pub fn guest_access(&self, hw: &M, guest: &Guest<M>, ipa: Ipa) -> Result<(), Error> {
        let mut guest = guest.lock(hw);
        if let Some((range, ..)) = page_at(hw, &guest, ipa)? {
            guest.table.change(hw, range, Change::Accessed(true)).map_err(guest_error)?;
        }
        Ok(())
    }
}

/// The table of a guest that is not protected, and that has all of `range`.
fn lent<'a, M: Machine>(
    hw: &'a M,
    guest: &'a Guest<M>,
    range: IpaRange,
) -> Result<GuestS2Guard<'a, M>, Error> {
    let guest = guest.lock(hw);
    guest.check_kind(GuestKind::is_non_protected)?;
    guest.check_owned_range(range)?;
    Ok(guest)
}

/// The entry that has the page at `ipa`: what it covers, its first page, and what it allows.
fn page_at<M: Machine>(
    hw: &M,
    guest: &GuestS2Guard<'_, M>,
    ipa: Ipa,
) -> Result<Option<(IpaRange, Pfn, Prot)>, Error> {
    let (level, entry) = guest.table.lookup(hw, ipa)?;
    let (first, prot) = match entry {
        Entry::Leaf(leaf) => (leaf.output, leaf.attrs.prot),
        Entry::Note(Note::NoTagPending { page, access, .. }) => (page, access.into()),
        Entry::Absent | Entry::Note(_) | Entry::Table(_) => return Ok(None),
    };
    let start = level.align_down(ipa.raw());
    let range = IpaRange::new(start, start.saturating_add(level.size()), guest.table.geometry().ia_bits())?;
    Ok(Some((range, first, prot)))
}
