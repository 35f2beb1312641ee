//! The rules for pages that the host shares with EL2 or lends to it.
//!
//! Each function takes the words of the call, says what the call answers, and changes the state
//! only if it answers `Ok`. The checks stand in the order in which they must fire.
#![forbid(unsafe_code)]

use super::state::{FRAMES, Page, State};
use abi::Errno;

/// Most pages of a call.
pub const MAX_PAGES: u64 = 512;

/// The pages of a call: EINVAL for none or a sum that wraps, E2BIG, ERANGE beyond the address
/// space.
///
/// # Errors
/// These three, in this order.
pub fn range(pfn: u64, nr: u64) -> Result<core::ops::Range<u64>, Errno> {
    let end = pfn.checked_add(nr).ok_or(Errno::Einval)?;
    if nr == 0 {
        return Err(Errno::Einval);
    }
    if nr > MAX_PAGES {
        return Err(Errno::E2big);
    }
    if end > FRAMES {
        return Err(Errno::Erange);
    }
    Ok(pfn..end)
}

impl<const N: usize> State<N> {
    /// ERANGE unless all of `pages` is RAM.
    pub(super) fn all_ram(&self, mut pages: core::ops::Range<u64>) -> Result<(), Errno> {
        if pages.all(|pfn| self.pages.get(pfn).is_some()) { Ok(()) } else { Err(Errno::Erange) }
    }

    /// EPERM unless all of `pages`, RAM, are as `wanted` says.
    pub(super) fn all_are(
        &self,
        mut pages: core::ops::Range<u64>,
        wanted: impl Fn(Page) -> bool,
    ) -> Result<(), Errno> {
        if pages.all(|pfn| self.pages.get(pfn).is_some_and(&wanted)) { Ok(()) } else { Err(Errno::Eperm) }
    }

    /// The host lets EL2 see one of its pages.
    ///
    /// # Errors
    /// ERANGE no RAM; EPERM not the host's alone.
    pub fn host_share_hyp(&mut self, pfn: u64) -> Result<(), Errno> {
        let page = range(pfn, 1).map_err(|_| Errno::Erange)?;
        self.all_ram(page.clone())?;
        self.all_are(page.clone(), |page| page == Page::Host)?;
        self.change_pages(page, |_| Page::SharedWithHyp { pins: 0 });
        Ok(())
    }

    /// The host takes such a page back.
    ///
    /// # Errors
    /// ERANGE no RAM; EPERM not shared with EL2; EBUSY pinned.
    pub fn host_unshare_hyp(&mut self, pfn: u64) -> Result<(), Errno> {
        let page = range(pfn, 1).map_err(|_| Errno::Erange)?;
        self.all_ram(page.clone())?;
        self.all_are(page.clone(), |page| matches!(page, Page::SharedWithHyp { .. }))?;
        if self.all_are(page.clone(), |page| page == Page::SharedWithHyp { pins: 0 }).is_err() {
            return Err(Errno::Ebusy);
        }
        self.change_pages(page, |_| Page::Host);
        Ok(())
    }

    /// EL2 pins a page that the host shares with it.
    ///
    /// # Errors
    /// ERANGE no RAM; EPERM not shared with EL2; EBUSY the count is at its end.
    pub fn hyp_pin(&mut self, pfn: u64) -> Result<(), Errno> {
        let page = range(pfn, 1).map_err(|_| Errno::Erange)?;
        self.all_ram(page.clone())?;
        match self.pages.get(pfn) {
            Some(Page::SharedWithHyp { pins }) => {
                let pins = pins.checked_add(1).ok_or(Errno::Ebusy)?;
                self.change_pages(page, |_| Page::SharedWithHyp { pins });
                Ok(())
            }
            _ => Err(Errno::Eperm),
        }
    }

    /// EL2 takes one pin back.
    ///
    /// # Errors
    /// ERANGE no RAM; EPERM nobody pinned it.
    pub fn hyp_unpin(&mut self, pfn: u64) -> Result<(), Errno> {
        let page = range(pfn, 1).map_err(|_| Errno::Erange)?;
        self.all_ram(page.clone())?;
        match self.pages.get(pfn) {
            Some(Page::SharedWithHyp { pins: pins @ 1.. }) => {
                self.change_pages(page, |_| Page::SharedWithHyp { pins: pins.saturating_sub(1) });
                Ok(())
            }
            _ => Err(Errno::Eperm),
        }
    }

    /// The host lends pages for its own tables.
    ///
    /// # Errors
    /// [`range`]; ERANGE any is no RAM; EPERM any is not the host's alone.
    pub fn host_donate_hyp(&mut self, pfn: u64, nr: u64) -> Result<(), Errno> {
        let pages = range(pfn, nr)?;
        self.all_ram(pages.clone())?;
        self.all_are(pages.clone(), |page| page == Page::Host)?;
        self.change_pages(pages, |_| Page::Lent);
        Ok(())
    }

    /// The host takes lent pages back.
    ///
    /// # Errors
    /// [`range`]; ERANGE any is no RAM; EPERM any is not lent.
    pub fn hyp_donate_host(&mut self, pfn: u64, nr: u64) -> Result<(), Errno> {
        let pages = range(pfn, nr)?;
        self.all_ram(pages.clone())?;
        self.all_are(pages.clone(), |page| page == Page::Lent)?;
        self.change_pages(pages, |_| Page::Host);
        Ok(())
    }
}
