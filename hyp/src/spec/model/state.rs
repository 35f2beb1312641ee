//! The abstract state: who may touch which page, and what every VM has where.
//!
//! Plain numbers throughout, so that nothing is borrowed from what is being judged. What the real
//! machine keeps beside this (which blocks are mapped, which page is a table, what a free list
//! looks like) is left out on purpose: a call may arrange those as it likes.
#![forbid(unsafe_code)]

use super::range_map::{RangeMap, Run, Value};
use abi::Errno;
use abi::vm::MtePolicy;
use arrayvec::ArrayVec;
use core::ops::Range;

/// Most VMs that a state can hold.
pub const MAX_VMS: usize = 64;
/// Most ranges of memory without tags.
const MAX_NO_TAGS: usize = 16;
/// One past the largest frame number, physical or guest: 48 address bits.
pub const FRAMES: u64 = 1 << 36;
/// Pages in a level-2 block.
pub const BLOCK: u64 = 512;

/// Who may touch a RAM page. One value for a page: two owners cannot be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Page {
    /// The host's, and nobody else knows it.
    Host,
    /// The host's; EL2 may see it, and does while `pins` is not 0.
    SharedWithHyp {
        /// How often EL2 pinned it.
        pins: u16,
    },
    /// The host's; `leaves` entries of one VM's table lead to it.
    SharedWithGuest {
        /// The VM.
        handle: u16,
        /// How many entries, at least 1.
        leaves: u16,
    },
    /// Lent to EL2 for the host's tables: the host gets it back when it is idle.
    Lent,
    /// EL2's for good: image, stacks, records, pools.
    Hyp,
    /// EL2's for the time some VM lives: its own state, its tables and stores.
    Vm,
    /// A VM's own: nobody else may touch it.
    Guest {
        /// The VM.
        handle: u16,
    },
    /// A VM's own, and the VM lets the host use it.
    GuestSharedWithHost {
        /// The VM.
        handle: u16,
    },
}

impl Value for Page {
    fn advanced(self, _by: u64) -> Self {
        self
    }
}

/// How a guest has a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// Its own.
    Owned,
    /// Its own, shared with the host.
    Shared,
    /// The host's.
    Borrowed,
}

/// What stands at a guest frame; nothing at all is a frame that the map does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// A page.
    Mapped {
        /// Which.
        pfn: u64,
        /// Whose.
        hold: Hold,
        /// Bits 0, 1, 2: the guest may read, write, execute. Bit 3: it may not use the page's tags ([`NO_TAG`]).
        prot: u8,
        /// Part of a 2 MiB block: one entry. What changes a part of a block makes pages of it.
        block: bool,
    },
    /// Split VMs: memory that the host has yet to give.
    Ram,
    /// The host took the memory away, and the VM will know.
    Destroyed,
    /// The guest declared it a device.
    Guard,
}

/// R, W and X.
pub const RWX: u8 = 0b111;
/// No access to allocation tags; whether the page is mapped meanwhile depends on the CPU.
pub const NO_TAG: u8 = 0b1000;

impl Slot {
    /// The same page, held by `hold`.
    #[must_use]
    pub const fn held_by(self, hold: Hold) -> Self {
        match self {
            Self::Mapped { pfn, prot, block, .. } => Self::Mapped { pfn, hold, prot, block },
            same => same,
        }
    }

    /// True if this is part of a block.
    #[must_use]
    pub const fn is_block(self) -> bool {
        matches!(self, Self::Mapped { block: true, .. })
    }
}

impl Value for Slot {
    fn advanced(self, by: u64) -> Self {
        match self {
            Self::Mapped { pfn, hold, prot, block } => {
                Self::Mapped { pfn: pfn.saturating_add(by), hold, prot, block }
            }
            same => same,
        }
    }
}

/// What kind of VM it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The host shares its pages with it.
    NonProtected,
    /// The host gives it pages; it shares them back in place.
    Classic,
    /// The host gives it pages in the lower half of its IPA space and shares in the upper half.
    Split,
}

/// Where in its life a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Being filled.
    New,
    /// Its measurement is being closed.
    Finalising,
    /// May run.
    Active,
    /// Being taken apart.
    Dying,
    /// Failed; may only be taken apart.
    Dead,
}

/// A VM without its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vm {
    /// The number that calls name it by.
    pub handle: u16,
    /// What kind.
    pub kind: Kind,
    /// Size of its IPA space in bits, 32..=48.
    pub ipa_bits: u8,
    /// Where in its life.
    pub phase: Phase,
    /// What it may do with allocation tags.
    pub mte: MtePolicy,
    /// A page without tags is no part of a block, whatever it was given as: the CPU cannot keep it mapped.
    pub pending: bool,
}

impl Vm {
    /// A VM without MTE.
    #[must_use]
    pub const fn new(handle: u16, kind: Kind, ipa_bits: u8, phase: Phase) -> Self {
        Self { handle, kind, ipa_bits, phase, mte: MtePolicy::Off, pending: false }
    }

    /// One past the last frame at which the VM can own a page.
    #[must_use]
    pub const fn owned_end(self) -> u64 {
        match self.kind {
            Kind::Split => self.frames() >> 1,
            Kind::NonProtected | Kind::Classic => self.frames(),
        }
    }

    /// One past the last frame of its IPA space.
    #[must_use]
    pub const fn frames(self) -> u64 {
        FRAMES >> 48_u8.saturating_sub(self.ipa_bits)
    }
}

/// Everything the ownership rules speak of. `N` bounds the number of runs in each map.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct State<const N: usize> {
    /// Every RAM page; what is not in here is no RAM.
    pub pages: RangeMap<Page, N>,
    /// What is at the frames of all VMs: key of [`slot_key`].
    slots: RangeMap<Slot, N>,
    vms: ArrayVec<Vm, MAX_VMS>,
    /// Frames of RAM that have no allocation tags, as ranges.
    no_tags: ArrayVec<(u64, u64), MAX_NO_TAGS>,
    full: bool,
}

impl<const N: usize> Clone for State<N> {
    fn clone(&self) -> Self {
        let mut copy = Self::empty();
        copy.clone_from(self);
        copy
    }

    fn clone_from(&mut self, source: &Self) {
        self.pages.clone_from(&source.pages);
        self.slots.clone_from(&source.slots);
        self.vms.clone_from(&source.vms);
        self.no_tags.clone_from(&source.no_tags);
        self.full = source.full;
    }
}

/// Handle and frame as one key, with a gap between VMs so that no run spans two.
const fn slot_key(handle: u16, gfn: u64) -> u64 {
    (handle as u64) << HANDLE_SHIFT | gfn
}

fn handle_and_frame(key: u64) -> (u16, u64) {
    (u16::try_from(key >> HANDLE_SHIFT).unwrap_or(u16::MAX), key & (FRAMES - 1))
}

const HANDLE_SHIFT: u32 = 40;

impl<const N: usize> State<N> {
    /// A machine without RAM.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            pages: RangeMap::new(),
            slots: RangeMap::new(),
            vms: ArrayVec::new_const(),
            no_tags: ArrayVec::new_const(),
            full: false,
        }
    }

    /// A machine whose RAM is `ram`, ranges of frames: all of it is the host's.
    #[must_use]
    pub fn new(ram: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut state = Self::empty();
        for (start, end) in ram {
            state.pages.set(start, end, Page::Host);
        }
        state
    }

    /// True if something did not fit: the state says nothing then.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.full || self.pages.is_full() || self.slots.is_full()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.slots.clear();
        self.vms.clear();
        self.no_tags.clear();
        self.full = false;
    }

    /// The frames from `start` to before `end` have no allocation tags.
    pub fn set_no_tags(&mut self, start: u64, end: u64) {
        self.full |= self.no_tags.try_push((start, end)).is_err();
    }

    /// True if each of `pages`, which are RAM, has allocation tags.
    pub(super) fn have_tags(&self, pages: &Range<u64>) -> bool {
        !self.no_tags.iter().any(|&(start, end)| start < pages.end && pages.start < end)
    }

    /// The VMs, by handle.
    #[must_use]
    pub fn vms(&self) -> &[Vm] {
        &self.vms
    }

    /// The VM that calls name `handle`.
    ///
    /// # Errors
    /// ENOENT.
    pub fn vm(&self, handle: u64) -> Result<Vm, Errno> {
        self.vms.iter().find(|vm| u64::from(vm.handle) == handle).copied().ok_or(Errno::Enoent)
    }

    /// Adds `vm`, or puts it in the place of the one with its handle.
    pub fn put_vm(&mut self, vm: Vm) {
        let at = self.vms.partition_point(|other| other.handle < vm.handle);
        if let Some(same) = self.vms.get_mut(at).filter(|other| other.handle == vm.handle) {
            *same = vm;
        } else if self.vms.try_insert(at, vm).is_err() {
            self.full = true;
        }
    }

    /// Takes the VM and all its slots away.
    pub fn remove_vm(&mut self, handle: u16) {
        self.vms.retain(|vm| vm.handle != handle);
        self.slots.remove(slot_key(handle, 0), slot_key(handle, FRAMES));
    }

    /// What stands at `gfn`.
    #[must_use]
    pub fn slot(&self, handle: u16, gfn: u64) -> Option<Slot> {
        if gfn < FRAMES { self.slots.get(slot_key(handle, gfn)) } else { None }
    }

    /// `frames` in pieces: the part of one block that lies in them, or a run of anything else.
    /// Starts and ends are frame numbers.
    pub fn pieces(&self, handle: u16, frames: Range<u64>) -> impl Iterator<Item = Run<Option<Slot>>> + '_ {
        let mut at = frames.start;
        core::iter::from_fn(move || {
            let piece = self.piece(handle, at..frames.end)?;
            at = piece.end;
            Some(piece)
        })
    }

    /// The first of [`State::pieces`].
    fn piece(&self, handle: u16, frames: Range<u64>) -> Option<Run<Option<Slot>>> {
        let start = slot_key(handle, frames.start);
        let run = self.slots.stretches(start, slot_key(handle, frames.end)).next()?;
        let mut end = frames.start.saturating_add(run.end.saturating_sub(run.start));
        if run.value.is_some_and(Slot::is_block) {
            end = end.min((frames.start | (BLOCK - 1)).saturating_add(1));
        }
        Some(Run { start: frames.start, end, value: run.value })
    }

    /// The frames of the block that `gfn` is in.
    pub(super) fn block_of(gfn: u64) -> Range<u64> {
        let first = gfn & !(BLOCK - 1);
        first..first.saturating_add(BLOCK)
    }

    /// The part of a block that reaches over `gfn` becomes pages, on both sides.
    fn split_at(&mut self, handle: u16, gfn: u64) {
        let first = gfn & !(BLOCK - 1);
        if gfn == first || !self.slot(handle, gfn).is_some_and(Slot::is_block) {
            return;
        }
        if let Some(Slot::Mapped { pfn, hold, prot, .. }) = self.slot(handle, first) {
            let key = slot_key(handle, first);
            let pages = Slot::Mapped { pfn, hold, prot, block: false };
            self.slots.set(key, key.saturating_add(BLOCK), pages);
        }
    }

    /// Puts `slot` at `frames`.
    pub fn set_slots(&mut self, handle: u16, frames: Range<u64>, slot: Slot) {
        self.split_at(handle, frames.start);
        self.split_at(handle, frames.end);
        self.slots.set(slot_key(handle, frames.start), slot_key(handle, frames.end), slot);
    }

    /// Replaces what stands at `frames`: each slot by what `becomes` makes of it, and each page
    /// behind one by what `page` makes of it.
    pub fn change_slots(
        &mut self,
        handle: u16,
        frames: Range<u64>,
        becomes: impl Fn(Slot) -> Option<Slot>,
        page: impl Fn(Page) -> Page,
    ) {
        self.split_at(handle, frames.start);
        self.split_at(handle, frames.end);
        let mut at = frames.start;
        while let Some(piece) = self.piece(handle, at..frames.end) {
            at = piece.end;
            let Some(slot) = piece.value else { continue };
            let (start, end) = (slot_key(handle, piece.start), slot_key(handle, piece.end));
            match becomes(slot) {
                Some(slot) => self.slots.set(start, end, slot),
                None => self.slots.remove(start, end),
            }
            if let Slot::Mapped { pfn, .. } = slot {
                self.change_pages(pfn..pfn.saturating_add(end.saturating_sub(start)), &page);
            }
        }
    }

    /// Replaces each of `pages` by what `becomes` makes of it.
    pub fn change_pages(&mut self, pages: Range<u64>, becomes: impl Fn(Page) -> Page) {
        let mut at = pages.start;
        while at < pages.end {
            let Some(run) = self.pages.stretches(at, pages.end).next() else { break };
            at = run.end;
            if let Some(page) = run.value {
                self.pages.set(run.start, run.end, becomes(page));
            }
        }
    }

    /// Every run of slots: handle, first frame, number of frames, the first one's slot.
    pub fn slot_runs(&self) -> impl Iterator<Item = (u16, u64, u64, Slot)> + '_ {
        self.slots.runs().iter().map(|run| {
            let (handle, gfn) = handle_and_frame(run.start);
            (handle, gfn, run.end.saturating_sub(run.start), run.value)
        })
    }

    /// Where slots of this state and of `other` differ: handle, first frame, number, both slots.
    pub(super) fn slot_differences<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (u16, u64, u64, Option<Slot>, Option<Slot>)> + 'a {
        self.slots.differences(&other.slots).map(|run| {
            let (handle, gfn) = handle_and_frame(run.start);
            (handle, gfn, run.end.saturating_sub(run.start), run.value.0, run.value.1)
        })
    }
}
