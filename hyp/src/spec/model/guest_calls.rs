//! The rules for pages that pass between the host and a VM.
//!
//! As in [`super::hyp_calls`]: words in, answer out, and the state changes only with `Ok`. A call
//! that may end before its range does answers how far it got; what it did not reach is as it was.
#![forbid(unsafe_code)]

use super::hyp_calls::{MAX_PAGES, range};
use super::range_map::Run;
use super::state::{BLOCK, FRAMES, Hold, Kind, NO_TAG, Page, Phase, RWX, Slot, State, Vm};
use abi::Errno;
use abi::vm::MtePolicy;
use core::ops::Range;

/// No page, in a word that may name one.
pub const NONE: u64 = u64::MAX;

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

/// How many pages a leaf of `order` at frame `gfn` has, and which frames from `pfn` on.
///
/// # Errors
/// EINVAL order, alignment; ERANGE pages beyond memory.
fn whole_leaf(gfn: u64, pfn: u64, order: u64) -> Result<(u64, Range<u64>), Errno> {
    let nr = pages_of(order)?;
    aligned(gfn, nr).and(aligned(pfn, nr))?;
    Ok((nr, range(pfn, nr).map_err(|_| Errno::Erange)?))
}

/// EINVAL unless the byte addresses are those of a range of frames; ERANGE beyond 48 bits.
fn whole_frames(base: u64, top: u64) -> Result<(), Errno> {
    if (base | top) & 0xfff != 0 || base >= top {
        return Err(Errno::Einval);
    }
    if top >> 12 > FRAMES { Err(Errno::Erange) } else { Ok(()) }
}

/// Refuses what is not a page held by `hold`.
fn held(slot: Option<Slot>, hold: Hold) -> Result<(), Errno> {
    match slot {
        None => Err(Errno::Enoent),
        Some(Slot::Destroyed) => Err(Errno::Ehwpoison),
        Some(Slot::Mapped { hold: is, .. }) if is == hold => Ok(()),
        Some(_) => Err(Errno::Eperm),
    }
}

impl Vm {
    /// EACCES unless the VM is of one of `kinds`.
    pub(super) fn of(self, kinds: &[Kind]) -> Result<Self, Errno> {
        if kinds.contains(&self.kind) { Ok(self) } else { Err(Errno::Eacces) }
    }

    /// EBUSY unless the VM is in one of `phases`.
    pub(super) fn in_phase(self, phases: &[Phase]) -> Result<Self, Errno> {
        if phases.contains(&self.phase) { Ok(self) } else { Err(Errno::Ebusy) }
    }
}

/// A VM that can be given pages.
const GROWING: &[Phase] = &[Phase::New, Phase::Active];
/// A VM that can make a call.
const RUNNING: &[Phase] = &[Phase::Active];
/// A VM that can begin to be taken apart.
const ALIVE: &[Phase] = &[Phase::New, Phase::Finalising, Phase::Active, Phase::Dead];
/// Most pages of a VM's store of table pages.
const STORE: u64 = 128;

/// One entry less of its VM leads to the page.
const fn one_leaf_less(page: Page) -> Page {
    match page {
        Page::SharedWithGuest { handle, leaves: leaves @ 2.. } => {
            Page::SharedWithGuest { handle, leaves: leaves.saturating_sub(1) }
        }
        _ => Page::Host,
    }
}

/// What a call that takes a range by force got.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// One past the last frame that is done.
    end: u64,
    /// The first page taken from the block that had to become pages, if one had to.
    split: Option<u64>,
}

/// Sees that a call which took the page `split` first from a block may keep `kept`. EIO is no
/// errno of such a call: whoever says that it kept another page is wrong.
fn may_keep(kept: u64, split: Option<u64>, refill: u64) -> Result<(), Errno> {
    let right = kept == NONE || split.is_some_and(|first| first == kept || refill == kept);
    if right { Ok(()) } else { Err(Errno::Eio) }
}

impl<const N: usize> State<N> {
    /// The host gives pages to a protected VM: one page or one block, which then holds zeros.
    ///
    /// # Errors
    /// EINVAL order, alignment; ERANGE pages beyond memory; ENOENT no such VM; EACCES not protected;
    /// EBUSY not NEW or ACTIVE; ERANGE beyond the part where it owns pages; ERANGE no RAM; EPERM
    /// not the host's alone, or without tags for a VM that must have them; then by the first frame that is not free for a page: EEXIST it has one,
    /// EHWPOISON, EPERM.
    pub fn host_donate_guest(&mut self, handle: u64, gfn: u64, pfn: u64, order: u64) -> Result<(), Errno> {
        self.donate(handle, gfn, pfn, order, false)
    }

    /// The same, and the VM may not use the pages' tags.
    ///
    /// # Errors
    /// As [`State::host_donate_guest`].
    pub fn host_donate_no_tag(&mut self, handle: u64, gfn: u64, pfn: u64, order: u64) -> Result<(), Errno> {
        self.donate(handle, gfn, pfn, order, true)
    }

    fn donate(&mut self, handle: u64, gfn: u64, pfn: u64, order: u64, no_tag: bool) -> Result<(), Errno> {
        let (nr, pages) = whole_leaf(gfn, pfn, order)?;
        let vm = self.vm(handle)?.of(&[Kind::Classic, Kind::Split])?.in_phase(GROWING)?;
        let frames =
            range(gfn, nr).ok().filter(|frames| frames.end <= vm.owned_end()).ok_or(Errno::Erange)?;
        self.all_ram(pages.clone())?;
        self.all_are(pages.clone(), |page| page == Page::Host)?;
        let slot = self.mapped(vm, pages.clone(), Hold::Owned, RWX, no_tag)?;
        for piece in self.pieces(vm.handle, frames.clone()) {
            match (vm.kind, piece.value) {
                (Kind::Classic, None) | (Kind::Split, Some(Slot::Ram)) => {}
                (_, Some(Slot::Mapped { .. })) => return Err(Errno::Eexist),
                (_, Some(Slot::Destroyed)) => return Err(Errno::Ehwpoison),
                _ => return Err(Errno::Eperm),
            }
        }
        self.change_pages(pages, |_| Page::Guest { handle: vm.handle });
        self.set_slots(vm.handle, frames, slot);
        Ok(())
    }

    /// The host shares pages of its own with a VM that is not protected: one page or one block.
    ///
    /// # Errors
    /// EINVAL order, alignment; ERANGE pages beyond memory; EINVAL permissions; ENOENT; EACCES protected;
    /// EBUSY not NEW or ACTIVE; ERANGE beyond the IPA space; ERANGE no RAM; EPERM not the host's, or
    /// shared with anybody but this VM; EBUSY a count is at its end; then by the first
    /// frame that is not free: EEXIST it has a page, EPERM a device.
    pub fn host_share_guest(
        &mut self,
        handle: u64,
        gfn: u64,
        pfn: u64,
        order: u64,
        prot: u64,
    ) -> Result<(), Errno> {
        let (nr, pages) = whole_leaf(gfn, pfn, order)?;
        let prot = u8::try_from(prot).ok().filter(|prot| prot & !RWX == 0).ok_or(Errno::Einval)?;
        let vm = self.vm(handle)?.of(&[Kind::NonProtected])?.in_phase(GROWING)?;
        let frames = range(gfn, nr).ok().filter(|frames| frames.end <= vm.frames()).ok_or(Errno::Erange)?;
        self.lend(vm, frames, pages, prot)
    }

    /// The host shares pages of its own with the upper half of a VM with split IPA, one page or one
    /// block, which can read them, and write if `write` is 1.
    ///
    /// # Errors
    /// EINVAL order, alignment; ERANGE pages beyond memory; EINVAL `write`; ENOENT; EACCES no split IPA;
    /// EBUSY not NEW or ACTIVE; ERANGE beyond the IPA space; EINVAL in the lower half; then as
    /// [`State::host_share_guest`] from pages that are no RAM on.
    pub fn host_share_unprotected(
        &mut self,
        handle: u64,
        gfn: u64,
        pfn: u64,
        order: u64,
        write: u64,
    ) -> Result<(), Errno> {
        let (nr, pages) = whole_leaf(gfn, pfn, order)?;
        let prot = match write {
            0 => 0b001,
            1 => 0b011,
            _ => return Err(Errno::Einval),
        };
        let vm = self.vm(handle)?.of(&[Kind::Split])?.in_phase(GROWING)?;
        let frames = range(gfn, nr).ok().filter(|frames| frames.end <= vm.frames()).ok_or(Errno::Erange)?;
        if frames.start < vm.owned_end() {
            return Err(Errno::Einval);
        }
        self.lend(vm, frames, pages, prot)
    }

    /// How `vm` comes to have `pages`, one or a block: without access to their tags if that is asked for, or one of
    /// them has none.
    ///
    /// # Errors
    /// EPERM: the VM must have tags.
    fn mapped(&self, vm: Vm, pages: Range<u64>, hold: Hold, prot: u8, no_tag: bool) -> Result<Slot, Errno> {
        let no_tag = no_tag || vm.mte.has_mte() && !self.have_tags(&pages);
        if no_tag && vm.mte == MtePolicy::Strict {
            return Err(Errno::Eperm);
        }
        let block = pages.end.saturating_sub(pages.start) == BLOCK && !(no_tag && vm.pending);
        Ok(Slot::Mapped { pfn: pages.start, hold, prot: if no_tag { prot | NO_TAG } else { prot }, block })
    }

    /// The page of a VM at `gfn` moves to `new`, a page of the host with tags: the same contents, tags 0. Answers the
    /// old page, which is the host's, zeroed.
    ///
    /// # Errors
    /// ERANGE `new` beyond memory; [`range`]; ENOENT no VM; EACCES no MTE; EBUSY not NEW or ACTIVE; ERANGE beyond the
    /// IPA space, `new` no RAM; ENOENT no page, EHWPOISON, EEXIST it has tags, EPERM the host's page, or a device;
    /// EPERM `new` not the host's alone, or without tags.
    pub fn host_upgrade_guest(&mut self, handle: u64, gfn: u64, new: u64) -> Result<u64, Errno> {
        let page = range(new, 1).map_err(|_| Errno::Erange)?;
        let frame = range(gfn, 1)?;
        let vm = self.vm(handle)?;
        if !vm.mte.has_mte() {
            return Err(Errno::Eacces);
        }
        let vm = vm.in_phase(GROWING)?;
        if frame.end > vm.frames() {
            return Err(Errno::Erange);
        }
        self.all_ram(page.clone())?;
        let old = match self.slot(vm.handle, gfn) {
            None | Some(Slot::Ram) => return Err(Errno::Enoent),
            Some(Slot::Destroyed) => return Err(Errno::Ehwpoison),
            Some(Slot::Mapped { prot, .. }) if prot & NO_TAG == 0 => return Err(Errno::Eexist),
            Some(Slot::Mapped { pfn, hold: Hold::Owned, .. }) => pfn,
            Some(Slot::Mapped { .. } | Slot::Guard) => return Err(Errno::Eperm),
        };
        self.all_are(page.clone(), |page| page == Page::Host)?;
        if !self.have_tags(&page) {
            return Err(Errno::Eperm);
        }
        let slot = Slot::Mapped { pfn: new, hold: Hold::Owned, prot: RWX, block: false };
        self.set_slots(vm.handle, frame, slot);
        self.change_pages(page, |_| Page::Guest { handle: vm.handle });
        self.change_pages(old..old.saturating_add(1), |_| Page::Host);
        Ok(old)
    }

    /// Shares pages of the host with a VM that takes them at `frames`.
    fn lend(&mut self, vm: Vm, frames: Range<u64>, pages: Range<u64>, prot: u8) -> Result<(), Errno> {
        self.all_ram(pages.clone())?;
        let to_this = |to: u16| to == vm.handle;
        self.all_are(pages.clone(), |page| {
            page == Page::Host || matches!(page, Page::SharedWithGuest { handle, .. } if to_this(handle))
        })?;
        let at_end = |page| matches!(page, Page::SharedWithGuest { leaves: u16::MAX, .. });
        if self.all_are(pages.clone(), |page| !at_end(page)).is_err() {
            return Err(Errno::Ebusy);
        }
        let slot = self.mapped(vm, pages.clone(), Hold::Borrowed, prot, false)?;
        match self.pieces(vm.handle, frames.clone()).find_map(|piece| piece.value) {
            None => {}
            Some(Slot::Mapped { .. }) => return Err(Errno::Eexist),
            Some(_) => return Err(Errno::Eperm),
        }
        self.change_pages(pages, |page| match page {
            Page::SharedWithGuest { handle, leaves } => {
                Page::SharedWithGuest { handle, leaves: leaves.saturating_add(1) }
            }
            _ => Page::SharedWithGuest { handle: vm.handle, leaves: 1 },
        });
        self.set_slots(vm.handle, frames, slot);
        Ok(())
    }

    /// The host takes pages back from the upper half of a VM with split IPA: the leading frames of the
    /// range that borrow. Answers the first frame that went, and `done` is how many did. A block of
    /// which the range has a part goes whole if it is the first, and ends the call before it if it is
    /// the last, where there is no page for a table: whether there is one, the state leaves out.
    ///
    /// # Errors
    /// [`range`]; ENOENT; EACCES no split IPA; ERANGE beyond the IPA space; EINVAL in the lower half;
    /// ENOENT the first frame has no page.
    pub fn host_unshare_unprotected(
        &mut self,
        handle: u64,
        gfn: u64,
        nr: u64,
        first: u64,
        done: u64,
    ) -> Result<u64, Errno> {
        let frames = range(gfn, nr)?;
        let vm = self.vm(handle)?.of(&[Kind::Split])?;
        if frames.end > vm.frames() {
            return Err(Errno::Erange);
        }
        if frames.start < vm.owned_end() {
            return Err(Errno::Einval);
        }
        let frames = self.leading(vm, frames, |slot, _| held(slot, Hold::Borrowed))?;
        let is_block = |gfn: u64| self.slot(vm.handle, gfn).is_some_and(Slot::is_block);
        let block = |gfn: u64| gfn & !BLOCK.saturating_sub(1);
        let (head, tail) = (block(frames.start), block(frames.end));
        let partial_head =
            is_block(frames.start) && (head < frames.start || head.saturating_add(BLOCK) > frames.end);
        let partial_tail = tail < frames.end && tail > frames.start && is_block(tail);
        let went = first..first.saturating_add(done);
        let right = went == frames
            || partial_head && went == (head..head.saturating_add(BLOCK))
            || partial_tail && went == (frames.start..tail);
        if !right {
            return Err(Errno::Eio);
        }
        self.change_slots(vm.handle, went, |_| None, one_leaf_less);
        Ok(first)
    }

    /// The private frames of a call by byte addresses about a VM with split IPA.
    fn private_frames(
        &self,
        handle: u64,
        base: u64,
        top: u64,
        phases: &[Phase],
    ) -> Result<(Vm, Range<u64>), Errno> {
        whole_frames(base, top)?;
        let vm = self.vm(handle)?.of(&[Kind::Split])?.in_phase(phases)?;
        let frames = base >> 12..top >> 12;
        if frames.end > vm.owned_end() { Err(Errno::Erange) } else { Ok((vm, frames)) }
    }

    /// Makes RAM of the frames from the first on, up to one that is DESTROYED unless `destroyed`.
    fn make_ram(&mut self, vm: Vm, frames: Range<u64>, destroyed: bool) -> u64 {
        let mut end = frames.start;
        for piece in self.pieces(vm.handle, frames.clone()) {
            if piece.value == Some(Slot::Destroyed) && !destroyed {
                break;
            }
            end = piece.end;
        }
        let mut at = frames.start;
        while at < end {
            let Some(piece) = self.pieces(vm.handle, at..end).next() else { break };
            if matches!(piece.value, None | Some(Slot::Destroyed)) {
                self.set_slots(vm.handle, piece.start..piece.end, Slot::Ram);
            }
            at = piece.end;
        }
        end << 12
    }

    /// The host says, before a VM with split IPA runs, which of its private frames are memory.
    /// Answers the address up to which all is done: it may end anywhere for want of tables.
    ///
    /// # Errors
    /// EINVAL; ENOENT; EACCES no split IPA; EBUSY not NEW; ERANGE not private; EHWPOISON the first
    /// frame is DESTROYED.
    pub fn host_init_ripas(&mut self, handle: u64, base: u64, top: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.private_frames(handle, base, top, &[Phase::New])?;
        if self.slot(vm.handle, frames.start) == Some(Slot::Destroyed) {
            return Err(Errno::Ehwpoison);
        }
        Ok(self.make_ram(vm, frames, false))
    }

    /// A VM with split IPA has asked for memory, and the host lets it have it; with `destroyed` 1
    /// also where it was taken by force.
    ///
    /// # Errors
    /// EINVAL; ENOENT; EACCES no split IPA; EBUSY not ACTIVE; ERANGE not private.
    pub fn host_apply_ram(&mut self, handle: u64, base: u64, top: u64, destroyed: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.private_frames(handle, base, top, RUNNING)?;
        Ok(self.make_ram(vm, frames, destroyed == 1))
    }

    /// A VM with split IPA has said that frames are no memory, and the host takes what is there,
    /// zeroed. `kept` as [`State::host_reclaim_guest`].
    ///
    /// # Errors
    /// As [`State::host_apply_ram`].
    pub fn host_apply_empty(&mut self, handle: u64, base: u64, top: u64, kept: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.private_frames(handle, base, top, RUNNING)?;
        let Taken { end, split } = self.takeable(vm, frames.clone(), &[Hold::Owned])?;
        may_keep(kept, split, NONE)?;
        self.change_slots(vm.handle, frames.start..end, |_| None, |_| Page::Host);
        self.keep(kept);
        Ok(end << 12)
    }

    /// The leading frames of `frames` of which `accept` says yes.
    fn leading(
        &self,
        vm: Vm,
        frames: Range<u64>,
        accept: impl Fn(Option<Slot>, u64) -> Result<(), Errno>,
    ) -> Result<Range<u64>, Errno> {
        let mut end = frames.start;
        for piece in self.pieces(vm.handle, frames.clone()) {
            match accept(piece.value, piece.end.saturating_sub(piece.start)) {
                Ok(()) => end = piece.end,
                Err(e) if end == frames.start => return Err(e),
                Err(_) => break,
            }
        }
        Ok(frames.start..end)
    }

    /// The host takes shared pages back from a VM: the leading frames of the range that borrow.
    /// Answers how many.
    ///
    /// # Errors
    /// [`range`]; ENOENT; EACCES protected; ERANGE beyond the IPA space; of the first frame: ENOENT
    /// nothing there, E2BIG in a block that the range does not cover.
    pub fn host_unshare_guest(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let frames = range(gfn, nr)?;
        let vm = self.vm(handle)?.of(&[Kind::NonProtected])?;
        if frames.end > vm.frames() {
            return Err(Errno::Erange);
        }
        let frames = self.leading(vm, frames, |slot, nr| {
            if slot.is_some_and(Slot::is_block) && nr < BLOCK {
                return Err(Errno::E2big);
            }
            match slot {
                Some(Slot::Guard) => Err(Errno::Enoent),
                slot => held(slot, Hold::Borrowed),
            }
        })?;
        let done = frames.end.saturating_sub(frames.start);
        self.change_slots(vm.handle, frames, |_| None, one_leaf_less);
        Ok(done)
    }

    /// The frames of a call that a VM makes about its own memory.
    fn own_frames(&self, handle: u64, gfn: u64, nr: u64) -> Result<(Vm, Range<u64>), Errno> {
        let frames = range(gfn, nr)?;
        let vm = self.vm(handle)?.of(&[Kind::Classic])?.in_phase(RUNNING)?;
        if frames.end > vm.owned_end() { Err(Errno::Erange) } else { Ok((vm, frames)) }
    }

    /// A protected VM lets the host use its own pages: the leading frames that it owns alone.
    /// Answers how many.
    ///
    /// # Errors
    /// [`range`]; ENOENT; EACCES not classic; EBUSY not ACTIVE: it does not run; ERANGE; of the first
    /// frame: ENOENT nothing there, EHWPOISON, EPERM not owned alone, EOPNOTSUPP without the tags that the VM expects.
    pub fn guest_share_host(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.own_frames(handle, gfn, nr)?;
        let frames = self.leading(vm, frames, |slot, _| {
            held(slot, Hold::Owned)?;
            match slot {
                Some(Slot::Mapped { prot, .. }) if vm.mte.has_mte() && prot & NO_TAG != 0 => {
                    Err(Errno::Eopnotsupp)
                }
                _ => Ok(()),
            }
        })?;
        let done = frames.end.saturating_sub(frames.start);
        let page = Page::GuestSharedWithHost { handle: vm.handle };
        self.change_slots(vm.handle, frames, |slot| Some(slot.held_by(Hold::Shared)), |_| page);
        Ok(done)
    }

    /// A protected VM takes such pages back: the leading frames that it shares. Answers how many.
    ///
    /// # Errors
    /// As [`State::guest_share_host`], EPERM not shared.
    pub fn guest_unshare_host(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.own_frames(handle, gfn, nr)?;
        let frames = self.leading(vm, frames, |slot, _| held(slot, Hold::Shared))?;
        let done = frames.end.saturating_sub(frames.start);
        let page = Page::Guest { handle: vm.handle };
        self.change_slots(vm.handle, frames, |slot| Some(slot.held_by(Hold::Owned)), |_| page);
        Ok(done)
    }

    /// A protected VM gives pages up, zeroed: the leading frames that it owns alone or that are
    /// empty. Answers how many.
    ///
    /// # Errors
    /// As [`State::guest_share_host`] but for an empty frame, which counts as done.
    pub fn guest_relinquish_host(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.own_frames(handle, gfn, nr)?;
        let frames = self.leading(vm, frames, |slot, _| match held(slot, Hold::Owned) {
            Err(Errno::Enoent) => Ok(()),
            other => other,
        })?;
        let done = frames.end.saturating_sub(frames.start);
        self.change_slots(vm.handle, frames, |_| None, |_| Page::Host);
        Ok(done)
    }

    /// The frames of a call that a VM makes about its devices.
    fn guarded_frames(&self, handle: u64, gfn: u64, nr: u64) -> Result<(Vm, Range<u64>), Errno> {
        let frames = range(gfn, nr)?;
        let vm = self.vm(handle)?.of(&[Kind::Classic, Kind::NonProtected])?.in_phase(RUNNING)?;
        if frames.end > vm.frames() { Err(Errno::Erange) } else { Ok((vm, frames)) }
    }

    /// A VM says which of its frames are devices: the leading ones that are empty, or devices
    /// already. Answers how many.
    ///
    /// # Errors
    /// [`range`]; ENOENT; EACCES split IPA; EBUSY not ACTIVE; ERANGE; of the first frame: EEXIST it
    /// has a page, EHWPOISON, EPERM.
    pub fn guest_map_guard(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.guarded_frames(handle, gfn, nr)?;
        let frames = self.leading(vm, frames, |slot, _| match slot {
            None | Some(Slot::Guard) => Ok(()),
            Some(Slot::Mapped { .. }) => Err(Errno::Eexist),
            Some(Slot::Destroyed) => Err(Errno::Ehwpoison),
            Some(Slot::Ram) => Err(Errno::Eperm),
        })?;
        let done = frames.end.saturating_sub(frames.start);
        self.set_slots(vm.handle, frames, Slot::Guard);
        Ok(done)
    }

    /// A VM says that frames are no devices any more: the leading ones that are. Answers how many.
    ///
    /// # Errors
    /// As [`State::guest_map_guard`]; of the first frame: ENOENT nothing there, EPERM no device.
    pub fn guest_unmap_guard(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.guarded_frames(handle, gfn, nr)?;
        let frames = self.leading(vm, frames, |slot, _| match slot {
            Some(Slot::Guard) => Ok(()),
            None => Err(Errno::Enoent),
            Some(_) => Err(Errno::Eperm),
        })?;
        let done = frames.end.saturating_sub(frames.start);
        self.change_slots(vm.handle, frames, |_| None, |page| page);
        Ok(done)
    }

    /// The host starts a VM again that is not protected: it has no devices any more.
    ///
    /// # Errors
    /// ENOENT; EACCES protected; EBUSY not NEW or ACTIVE.
    pub fn host_drop_guards(&mut self, handle: u64) -> Result<(), Errno> {
        let vm = self.vm(handle)?.of(&[Kind::NonProtected])?.in_phase(GROWING)?;
        let others = |slot| (slot != Slot::Guard).then_some(slot);
        self.change_slots(vm.handle, 0..vm.frames(), others, |page| page);
        Ok(())
    }

    /// The frames of a call that takes a protected VM's memory by byte addresses.
    fn taken_frames(
        &self,
        handle: u64,
        base: u64,
        top: u64,
        phases: &[Phase],
    ) -> Result<(Vm, Range<u64>), Errno> {
        whole_frames(base, top)?;
        let vm = self.vm(handle)?.of(&[Kind::Classic, Kind::Split])?.in_phase(phases)?;
        let frames = base >> 12..top >> 12;
        if frames.end > vm.owned_end() { Err(Errno::Erange) } else { Ok((vm, frames)) }
    }

    /// How much of `frames` one call takes: up to the first page that is not held by one of `holds`
    /// (EPERM if that is the first page at all), up to 512 pages, and no more than one block in part.
    fn takeable(&self, vm: Vm, frames: Range<u64>, holds: &[Hold]) -> Result<Taken, Errno> {
        let (mut left, mut split) = (MAX_PAGES, None);
        for piece in self.pieces(vm.handle, frames.clone()) {
            let Some(Slot::Mapped { pfn, hold, block, .. }) = piece.value else { continue };
            if !holds.contains(&hold) {
                return if left == MAX_PAGES {
                    Err(Errno::Eperm)
                } else {
                    Ok(Taken { end: piece.start, split })
                };
            }
            let nr = piece.end.saturating_sub(piece.start);
            let takes = nr.min(left);
            let in_part = block && takes < BLOCK;
            if takes == 0 || in_part && split.is_some() {
                return Ok(Taken { end: piece.start, split });
            }
            if in_part {
                split = Some(pfn);
            }
            left = left.saturating_sub(takes);
            if takes < nr {
                return Ok(Taken { end: piece.start.saturating_add(takes), split });
            }
        }
        Ok(Taken { end: frames.end, split })
    }

    /// The host takes pages from a protected VM by force: each that the VM owns becomes DESTROYED
    /// and is the host's, zeroed; frames without a page are passed over. `refill` is a page of the
    /// host's that the VM may keep instead of one of its own, or [`NONE`].
    ///
    /// A block of which a part is taken costs a page for a table, which comes from nowhere else if
    /// it must: `kept` is the page that the VM kept for it, or [`NONE`]: the first one taken from
    /// that block, or `refill`. Answers the address up to which all is done.
    ///
    /// # Errors
    /// EINVAL; ERANGE `refill` beyond memory; ENOENT; EACCES not protected; EBUSY not NEW or ACTIVE;
    /// ERANGE beyond the part where it owns pages; EPERM the first page is shared; EPERM `refill` is not the host's alone.
    pub fn host_reclaim_guest(
        &mut self,
        handle: u64,
        base: u64,
        top: u64,
        refill: u64,
        kept: u64,
    ) -> Result<u64, Errno> {
        whole_frames(base, top)?;
        if refill != NONE && refill >= FRAMES {
            return Err(Errno::Erange);
        }
        let (vm, frames) = self.taken_frames(handle, base, top, GROWING)?;
        let Taken { end, split } = self.takeable(vm, frames.clone(), &[Hold::Owned])?;
        if refill != NONE && self.pages.get(refill) != Some(Page::Host) {
            return Err(Errno::Eperm);
        }
        let destroyed = |slot| match slot {
            Slot::Mapped { .. } => Some(Slot::Destroyed),
            other => Some(other),
        };
        may_keep(kept, split, refill)?;
        self.change_slots(vm.handle, frames.start..end, destroyed, |_| Page::Host);
        self.keep(kept);
        Ok(end << 12)
    }

    /// `kept` becomes the VM's, if it is a page.
    fn keep(&mut self, kept: u64) {
        if kept != NONE {
            self.change_pages(kept..kept.saturating_add(1), |_| Page::Vm);
        }
    }

    /// The host empties a protected VM that is dying: its pages are the host's, zeroed unless the VM
    /// had shared them. `kept` and the answer as in [`State::host_reclaim_guest`].
    ///
    /// # Errors
    /// EINVAL; ENOENT; EACCES not protected; EBUSY not DYING; ERANGE.
    pub fn host_reclaim_dying_guest(
        &mut self,
        handle: u64,
        base: u64,
        top: u64,
        kept: u64,
    ) -> Result<u64, Errno> {
        let (vm, frames) = self.taken_frames(handle, base, top, &[Phase::Dying])?;
        let Taken { end, split } = self.takeable(vm, frames.clone(), &[Hold::Owned, Hold::Shared])?;
        may_keep(kept, split, NONE)?;
        self.change_slots(vm.handle, frames.start..end, |_| None, |_| Page::Host);
        self.keep(kept);
        Ok(end << 12)
    }

    /// The host makes the VM `vm` of `pages`, whatever they are for: how a world of tests starts.
    ///
    /// # Errors
    /// EEXIST the handle names a VM; of the first page: ERANGE no RAM, EPERM not the host's alone.
    pub fn make_vm(&mut self, vm: Vm, pages: &[u64]) -> Result<(), Errno> {
        if self.vm(vm.handle.into()).is_ok() {
            return Err(Errno::Eexist);
        }
        for &pfn in pages {
            self.all_ram(pfn..pfn.saturating_add(1))?;
            self.all_are(pfn..pfn.saturating_add(1), |page| page == Page::Host)?;
        }
        for &pfn in pages {
            self.change_pages(pfn..pfn.saturating_add(1), |_| Page::Vm);
        }
        self.put_vm(vm);
        Ok(())
    }

    /// The host begins to take a VM apart: what stands where no page is means nothing any more.
    ///
    /// # Errors
    /// ENOENT; EBUSY it is DYING.
    pub fn vm_teardown_start(&mut self, handle: u64) -> Result<(), Errno> {
        let vm = self.vm(handle)?.in_phase(ALIVE)?;
        self.put_vm(Vm { phase: Phase::Dying, ..vm });
        let mapped = |slot| matches!(slot, Slot::Mapped { .. }).then_some(slot);
        self.change_slots(vm.handle, 0..vm.frames(), mapped, |page| page);
        Ok(())
    }

    /// A VM that owns no page any more is gone: what it borrowed is less lent, and `pages`, which
    /// EL2 had for it, are the host's.
    ///
    /// # Errors
    /// ENOENT; EBUSY not DYING, or it owns a page; EPERM one of `pages` was not EL2's for a VM.
    pub fn vm_teardown_finish(&mut self, handle: u64, pages: &[u64]) -> Result<(), Errno> {
        let vm = self.vm(handle)?.in_phase(&[Phase::Dying])?;
        let owned = |run: Run<Option<Slot>>| {
            matches!(run.value, Some(Slot::Mapped { hold: Hold::Owned | Hold::Shared, .. }))
        };
        if self.pieces(vm.handle, 0..vm.frames()).any(owned) {
            return Err(Errno::Ebusy);
        }
        for &pfn in pages {
            self.all_are(pfn..pfn.saturating_add(1), |page| page == Page::Vm)?;
        }
        self.change_slots(vm.handle, 0..vm.frames(), |_| None, one_leaf_less);
        for &pfn in pages {
            self.change_pages(pfn..pfn.saturating_add(1), |_| Page::Host);
        }
        self.remove_vm(vm.handle);
        Ok(())
    }

    /// The host gives a VM pages for its tables: the chain `pfn`, `pfn` + 1, ... of `nr` pages, up to
    /// the first that is not the host's alone. Answers how many.
    ///
    /// # Errors
    /// ERANGE `pfn` beyond memory; ENOENT; EBUSY not NEW or ACTIVE; EINVAL none; E2BIG more than the
    /// store takes; of the first page: ERANGE no RAM, EPERM not the host's alone.
    pub fn vm_topup(&mut self, handle: u64, pfn: u64, nr: u64) -> Result<u64, Errno> {
        let first = range(pfn, 1).map_err(|_| Errno::Erange)?;
        self.vm(handle)?.in_phase(GROWING)?;
        match nr {
            0 => return Err(Errno::Einval),
            1..=STORE => {}
            _ => return Err(Errno::E2big),
        }
        let is_host = |pfn: &u64| self.pages.get(*pfn) == Some(Page::Host);
        let done = (pfn..pfn.saturating_add(nr)).take_while(is_host).count() as u64;
        if done == 0 {
            self.all_ram(first)?;
            return Err(Errno::Eperm);
        }
        self.change_pages(pfn..pfn.saturating_add(done), |_| Page::Vm);
        Ok(done)
    }
}
