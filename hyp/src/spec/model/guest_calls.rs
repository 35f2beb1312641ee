//! The rules for pages that pass between the host and a VM.
//!
//! As in [`super::hyp_calls`]: words in, answer out, and the state changes only with `Ok`. A call
//! on a range that may stop early answers how many pages it has done; the pages it did not reach
//! are as they were.
#![forbid(unsafe_code)]

use super::hyp_calls::{MAX_PAGES, range};
use super::state::{BLOCK, Hold, Kind, Page, Phase, RWX, Slot, State, Vm};
use abi::Errno;
use core::ops::Range;

/// Pages of a mapping of `order`: EINVAL unless it is one page or one 2 MiB block.
fn pages_of(order: u64) -> Result<u64, Errno> {
    match order {
        0 => Ok(1),
        9 => Ok(BLOCK),
        _ => Err(Errno::Einval),
    }
}

/// EINVAL unless `frame` is a multiple of `nr`, a power of two.
fn aligned(frame: u64, nr: u64) -> Result<(), Errno> {
    if frame & nr.saturating_sub(1) == 0 { Ok(()) } else { Err(Errno::Einval) }
}

/// The page at a slot that must be held by `hold`.
fn held(slot: Option<Slot>, hold: Hold) -> Result<u64, Errno> {
    match slot {
        None => Err(Errno::Enoent),
        Some(Slot::Destroyed) => Err(Errno::Ehwpoison),
        Some(Slot::Mapped { pfn, hold: is, .. }) if is == hold => Ok(pfn),
        Some(_) => Err(Errno::Eperm),
    }
}

impl Vm {
    /// EACCES unless the VM is of one of `kinds`.
    fn of(self, kinds: &[Kind]) -> Result<Self, Errno> {
        if kinds.contains(&self.kind) { Ok(self) } else { Err(Errno::Eacces) }
    }

    /// EBUSY unless the VM is in one of `phases`.
    fn in_phase(self, phases: &[Phase]) -> Result<Self, Errno> {
        if phases.contains(&self.phase) { Ok(self) } else { Err(Errno::Ebusy) }
    }
}

/// A VM that can be given pages.
const GROWING: &[Phase] = &[Phase::New, Phase::Active];

impl<const N: usize> State<N> {
    /// Sets the owner of one page.
    fn set_page(&mut self, pfn: u64, page: Page) {
        self.pages.set(pfn, pfn.saturating_add(1), page);
    }

    /// The host gives pages to a protected VM: one page or one block, which then holds zeros.
    ///
    /// # Errors
    /// EINVAL order, alignment; ERANGE pages beyond memory; ENOENT no such VM; EACCES not protected;
    /// EBUSY not NEW or ACTIVE; ERANGE beyond the part where it owns pages; ERANGE no RAM; EPERM not
    /// the host's alone; then by the first frame that is not free for a page: EEXIST it has one,
    /// EHWPOISON, EPERM.
    pub fn host_donate_guest(&mut self, handle: u64, gfn: u64, pfn: u64, order: u64) -> Result<(), Errno> {
        let nr = pages_of(order)?;
        aligned(gfn, nr).and(aligned(pfn, nr))?;
        let pages = range(pfn, nr)?;
        let vm = self.vm(handle)?.of(&[Kind::Classic, Kind::Split])?.in_phase(GROWING)?;
        let frames =
            range(gfn, nr).ok().filter(|frames| frames.end <= vm.owned_end()).ok_or(Errno::Erange)?;
        self.all_ram(pages.clone())?;
        self.all_are(pages.clone(), |page| page == Page::Host)?;
        for gfn in frames {
            match (vm.kind, self.slot(vm.handle, gfn)) {
                (Kind::Classic, None) | (Kind::Split, Some(Slot::Ram)) => {}
                (_, Some(Slot::Mapped { .. })) => return Err(Errno::Eexist),
                (_, Some(Slot::Destroyed)) => return Err(Errno::Ehwpoison),
                _ => return Err(Errno::Eperm),
            }
        }
        self.change(pages, |_| Page::Guest { handle: vm.handle });
        let slot = Slot::Mapped { pfn, hold: Hold::Owned, prot: RWX, block: false };
        self.set_slots(vm.handle, gfn, nr, slot);
        Ok(())
    }

    /// The host shares pages of its own with a VM that is not protected: one page or one block.
    ///
    /// # Errors
    /// EINVAL order, alignment, permissions; ERANGE pages beyond memory; ENOENT; EACCES protected;
    /// EBUSY not NEW or ACTIVE; ERANGE beyond the IPA space; ERANGE no RAM; EPERM not the host's, or
    /// shared with anybody but this VM; EBUSY a count is at its end; EEXIST a frame has a page.
    pub fn host_share_guest(
        &mut self,
        handle: u64,
        gfn: u64,
        pfn: u64,
        order: u64,
        prot: u64,
    ) -> Result<(), Errno> {
        let nr = pages_of(order)?;
        aligned(gfn, nr).and(aligned(pfn, nr))?;
        let prot = u8::try_from(prot).ok().filter(|prot| prot & !RWX == 0).ok_or(Errno::Einval)?;
        let pages = range(pfn, nr)?;
        let vm = self.vm(handle)?.of(&[Kind::NonProtected])?.in_phase(GROWING)?;
        let frames = range(gfn, nr).ok().filter(|frames| frames.end <= vm.frames()).ok_or(Errno::Erange)?;
        self.all_ram(pages.clone())?;
        let to_this = |to: u16| to == vm.handle;
        self.all_are(pages.clone(), |page| {
            page == Page::Host || matches!(page, Page::SharedWithGuest { handle, .. } if to_this(handle))
        })?;
        let at_end = |page| matches!(page, Page::SharedWithGuest { leaves: u16::MAX, .. });
        if self.all_are(pages.clone(), |page| !at_end(page)).is_err() {
            return Err(Errno::Ebusy);
        }
        if self.slot_stretches(vm.handle, frames).any(|run| run.value.is_some()) {
            return Err(Errno::Eexist);
        }
        self.change(pages, |page| match page {
            Page::SharedWithGuest { handle, leaves } => {
                Page::SharedWithGuest { handle, leaves: leaves.saturating_add(1) }
            }
            _ => Page::SharedWithGuest { handle: vm.handle, leaves: 1 },
        });
        self.set_slots(
            vm.handle,
            gfn,
            nr,
            Slot::Mapped { pfn, hold: Hold::Borrowed, prot, block: nr == BLOCK },
        );
        Ok(())
    }

    /// The host takes shared pages back from a VM: the leading frames of the range that borrow.
    ///
    /// # Errors
    /// [`range`]; ENOENT; EACCES protected; ERANGE beyond the IPA space; ENOENT nothing at the first
    /// frame; E2BIG the first frame is in a block that the range does not cover.
    pub fn host_unshare_guest(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let frames = range(gfn, nr)?;
        let vm = self.vm(handle)?.of(&[Kind::NonProtected])?;
        if frames.end > vm.frames() {
            return Err(Errno::Erange);
        }
        let mut done = 0_u64;
        for gfn in frames.clone() {
            let in_range = |first: u64| first >= frames.start && first.saturating_add(BLOCK) <= frames.end;
            match self.slot(vm.handle, gfn) {
                Some(Slot::Mapped { block: true, .. }) if !in_range(gfn & !(BLOCK - 1)) => {
                    return if done == 0 { Err(Errno::E2big) } else { Ok(done) };
                }
                Some(Slot::Mapped { pfn, hold: Hold::Borrowed, .. }) => self.give_up(vm, gfn, pfn),
                _ if done > 0 => return Ok(done),
                slot => return held(slot, Hold::Borrowed).map(|_| 0),
            }
            done = done.saturating_add(1);
        }
        Ok(done)
    }

    /// The VM's entry at `gfn` no longer borrows `pfn`.
    fn give_up(&mut self, vm: Vm, gfn: u64, pfn: u64) {
        self.clear_slots(vm.handle, gfn, 1);
        if let Some(Page::SharedWithGuest { handle, leaves }) = self.pages.get(pfn) {
            let left = leaves.saturating_sub(1);
            self.set_page(
                pfn,
                if left == 0 { Page::Host } else { Page::SharedWithGuest { handle, leaves: left } },
            );
        }
    }

    /// The frames of a call that a protected VM makes about its own memory.
    fn own_frames(&self, handle: u64, gfn: u64, nr: u64) -> Result<(Vm, Range<u64>), Errno> {
        let frames = range(gfn, nr)?;
        let vm = self.vm(handle)?.of(&[Kind::Classic])?;
        if frames.end > vm.owned_end() {
            return Err(Errno::Erange);
        }
        Ok((vm, frames))
    }

    /// Changes the leading frames that are held by `from`: each to `to`, its page to `page`.
    fn change_hold(
        &mut self,
        vm: Vm,
        frames: Range<u64>,
        from: Hold,
        to: Hold,
        page: Page,
    ) -> Result<u64, Errno> {
        let mut done = 0_u64;
        for gfn in frames {
            match held(self.slot(vm.handle, gfn), from) {
                Ok(pfn) => {
                    self.set_slots(
                        vm.handle,
                        gfn,
                        1,
                        Slot::Mapped { pfn, hold: to, prot: RWX, block: false },
                    );
                    self.set_page(pfn, page);
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
            done = done.saturating_add(1);
        }
        Ok(done)
    }

    /// A protected VM lets the host use its own pages: the leading frames that it owns alone.
    ///
    /// # Errors
    /// [`range`]; ENOENT; EACCES not classic; ERANGE; of the first frame: ENOENT nothing there,
    /// EHWPOISON, EPERM not owned alone.
    pub fn guest_share_host(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.own_frames(handle, gfn, nr)?;
        let page = Page::GuestSharedWithHost { handle: vm.handle };
        self.change_hold(vm, frames, Hold::Owned, Hold::Shared, page)
    }

    /// A protected VM takes such pages back: the leading frames that it shares.
    ///
    /// # Errors
    /// As [`State::guest_share_host`], EPERM not shared.
    pub fn guest_unshare_host(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.own_frames(handle, gfn, nr)?;
        let page = Page::Guest { handle: vm.handle };
        self.change_hold(vm, frames, Hold::Shared, Hold::Owned, page)
    }

    /// A protected VM gives pages up, zeroed: the leading frames that it owns alone or that are empty.
    ///
    /// # Errors
    /// As [`State::guest_share_host`] but for an empty frame, which counts as done.
    pub fn guest_relinquish_host(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.own_frames(handle, gfn, nr)?;
        let mut done = 0_u64;
        for gfn in frames {
            match held(self.slot(vm.handle, gfn), Hold::Owned) {
                Ok(pfn) => {
                    self.clear_slots(vm.handle, gfn, 1);
                    self.set_page(pfn, Page::Host);
                }
                Err(Errno::Enoent) => {}
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
            done = done.saturating_add(1);
        }
        Ok(done)
    }

    /// The frames of a call that takes a protected VM's memory by byte addresses.
    fn taken_frames(&self, handle: u64, base: u64, top: u64) -> Result<(Vm, Range<u64>), Errno> {
        if (base | top) & 0xfff != 0 || base >= top {
            return Err(Errno::Einval);
        }
        let vm = self.vm(handle)?.of(&[Kind::Classic, Kind::Split])?;
        let frames = base >> 12..top >> 12;
        if frames.end > vm.owned_end() { Err(Errno::Erange) } else { Ok((vm, frames)) }
    }

    /// The host takes pages from a protected VM by force: each that the VM owns becomes DESTROYED
    /// and is the host's, zeroed; frames without a page are passed over. Answers the address up to
    /// which that is done: `top`, or less where the first shared page or the 513th page stands.
    ///
    /// # Errors
    /// EINVAL; ENOENT; EACCES not protected; ERANGE; EBUSY not NEW or ACTIVE; EPERM the first page is
    /// shared.
    pub fn host_reclaim_guest(&mut self, handle: u64, base: u64, top: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.taken_frames(handle, base, top)?;
        vm.in_phase(GROWING)?;
        let mut taken = 0_u64;
        while let Some((gfn, pfn, hold)) = self.next_mapped(vm, frames.clone()) {
            match hold {
                Hold::Owned if taken < MAX_PAGES => {
                    self.set_slots(vm.handle, gfn, 1, Slot::Destroyed);
                    self.set_page(pfn, Page::Host);
                    taken = taken.saturating_add(1);
                }
                _ if taken > 0 => return Ok(gfn << 12),
                _ => return Err(Errno::Eperm),
            }
        }
        Ok(top)
    }

    /// The first of `frames` that has a page, with the page and how it is held.
    fn next_mapped(&self, vm: Vm, frames: Range<u64>) -> Option<(u64, u64, Hold)> {
        self.slot_stretches(vm.handle, frames).find_map(|run| match run.value {
            Some(Slot::Mapped { pfn, hold, .. }) => Some((run.start, pfn, hold)),
            _ => None,
        })
    }

    /// The host empties a protected VM that is dying: every frame, whatever stands there; its pages
    /// are the host's, zeroed unless the VM had shared them. Answers as [`State::host_reclaim_guest`].
    ///
    /// # Errors
    /// EINVAL; ENOENT; EACCES not protected; ERANGE; EBUSY not DYING.
    pub fn host_reclaim_dying_guest(&mut self, handle: u64, base: u64, top: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.taken_frames(handle, base, top)?;
        vm.in_phase(&[Phase::Dying])?;
        let mut taken = 0_u64;
        let mut end = frames.end;
        while let Some((gfn, pfn, _)) = self.next_mapped(vm, frames.clone()) {
            if taken == MAX_PAGES {
                end = gfn;
                break;
            }
            self.clear_slots(vm.handle, gfn, 1);
            self.set_page(pfn, Page::Host);
            taken = taken.saturating_add(1);
        }
        self.clear_slots(vm.handle, frames.start, end.saturating_sub(frames.start));
        Ok(end << 12)
    }
}
