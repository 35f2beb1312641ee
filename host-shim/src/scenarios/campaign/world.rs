//! What the host of the campaign believes: which of its pages are where, which VMs there are.
//!
//! With all CPUs at work a belief may be out of date when it is used; calls that are refused are as welcome as those that
//! are not. Only two beliefs are held against the hypervisor: a page that a VM is kept in is out of reach until the VM is
//! taken apart, and in the end everything is the host's again.
#![forbid(unsafe_code)]

use super::caller::Answer;
use crate::random::Random;
use crate::scenarios::Ctx;
use crate::span::{BLOCK, PAGE, Span};
use abi::HostFn;
use abi::caps::Caps;
use abi::vm::NO_PAGE;
use core::sync::atomic::{
    AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use guest_shim::protocol::{Payload, VmKind};

/// VMs that there are at most.
pub(super) const SLOTS: usize = 6;
/// Blocks of 2 MiB that calls are about.
const BLOCKS: u64 = 3;
/// Pages that calls are about.
pub(super) const FRAMES: u64 = BLOCKS * BLOCK / PAGE;
/// The slot is taken, but the VM is not made yet.
const CLAIMED: u64 = u64::MAX;
/// Pages that a VM is kept in: itself, its root, its reserve, two vCPUs.
const HELD: usize = 5;

/// What the host believes of a page, in bits 7:0 of a word; the VM's slot is in bits 15:8, its frame above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The host's, or nobody knows.
    Free = 0,
    /// Shared with the hypervisor.
    Shared = 1,
    /// Lent to the hypervisor.
    Lent = 2,
    /// A VM has it in a frame.
    Given = 3,
    /// A VM is kept in it, or it is in the VM's store.
    Kept = 4,
}

/// One VM, as far as the host knows.
#[derive(Debug, Default)]
pub(super) struct Slot {
    handle: AtomicU64,
    /// Kind, payload and bits of the IPA space, a byte each; then bit 24 while it is not DYING.
    about: AtomicU64,
    /// Steps of its making that are done.
    pub(super) made: AtomicU64,
    /// Pages of the image that are in its memory.
    pub(super) loaded: AtomicU64,
    /// Exit records of vCPUs 0 and 1.
    pub(super) records: [AtomicU64; 2],
    held: [AtomicU64; HELD],
    /// FINISH was called.
    finishing: AtomicU64,
}

impl Slot {
    /// Its handle, if there is a VM.
    pub(super) fn handle(&self) -> Option<u64> {
        let handle = self.handle.load(Acquire);
        (handle != 0 && handle != CLAIMED).then_some(handle)
    }

    pub(super) fn kind(&self) -> VmKind {
        match self.about.load(Relaxed) & 0xff {
            1 => VmKind::Protected,
            2 => VmKind::Realm,
            _ => VmKind::Plain,
        }
    }

    pub(super) fn payload(&self) -> Payload {
        let number = self.about.load(Relaxed) >> 8 & 0xff;
        Payload::ALL.iter().copied().find(|p| *p as u64 == number).unwrap_or(Payload::Idle)
    }

    /// Bits of its IPA space.
    pub(super) fn ipa_bits(&self) -> u64 {
        self.about.load(Relaxed) >> 16 & 0xff
    }

    /// A page that is out of the host's reach as long as the VM is as it is.
    pub(super) fn hold(&self, pfn: u64) {
        for held in &self.held {
            if held.compare_exchange(0, pfn, AcqRel, Acquire).is_ok() {
                return;
            }
        }
    }

    /// The `nth` of these pages, and the VM that it holds.
    pub(super) fn held(&self, nth: usize) -> Option<(u64, u64)> {
        let handle = self.handle()?;
        let pfn = self.held.get(nth % HELD).map(|held| held.load(Acquire))?;
        (pfn != 0 && self.finishing.load(Acquire) == 0).then_some((pfn, handle))
    }

    fn forget(&self) {
        self.held.iter().chain(&self.records).for_each(|word| word.store(0, Relaxed));
        [&self.made, &self.loaded, &self.about].iter().for_each(|word| word.store(0, Relaxed));
        self.handle.store(0, Release);
    }
}

/// The host's pages and VMs.
pub(super) struct World<'c> {
    ctx: &'c Ctx<'c>,
    /// A word for each page of the arena.
    words: Span,
    /// The arena, and behind it a block for calls that reach out of it.
    area: Span,
    caps: Caps,
    pub(super) slots: [Slot; SLOTS],
    /// The last VM that went.
    gone: AtomicU64,
}

impl<'c> World<'c> {
    /// Takes the pages; a failed check if there are none.
    pub(super) fn open(ctx: &'c Ctx<'c>) -> Option<Self> {
        let area = ctx.take((BLOCKS + 1) * BLOCK / PAGE, BLOCK)?;
        let words = ctx.take(FRAMES * 8 / PAGE, PAGE)?;
        ctx.machine.fill(words, 0);
        let caps = ctx.hypervisor().caps().map_or(0, |reply| reply.caps);
        let caps = Caps::from_bits_truncate(caps);
        Some(Self { ctx, words, area, caps, slots: Default::default(), gone: AtomicU64::new(0) })
    }

    /// True if this image has the call.
    pub(super) fn offers(&self, call: HostFn) -> bool {
        match call {
            HostFn::HypCaps
            | HostFn::HostShareHyp
            | HostFn::HostUnshareHyp
            | HostFn::HostDonateHyp
            | HostFn::HypDonateHost => true,
            HostFn::S2Snapshot | HostFn::S2SnapshotQuery => self.caps.contains(Caps::DEBUG_SNAPSHOT),
            _ => self.has_guests(),
        }
    }

    pub(super) fn has_guests(&self) -> bool {
        self.caps.contains(Caps::GUESTS)
    }

    pub(super) fn has_tags(&self) -> bool {
        self.caps.contains(Caps::MTE)
    }

    /// The pages that calls are about.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.area.start() / PAGE;
        (0..FRAMES).map(move |n| first + n)
    }

    /// All pages that may be anywhere but with the host.
    pub(super) fn area(&self) -> Span {
        self.area
    }

    /// The `nth` page of the arena.
    pub(super) fn pfn(&self, nth: u64) -> u64 {
        self.area.start() / PAGE + nth % FRAMES
    }

    fn word(&self, pfn: u64) -> Option<u64> {
        let nth = pfn.checked_sub(self.area.start() / PAGE).filter(|nth| *nth < FRAMES)?;
        Some(self.words.start() + 8 * nth)
    }

    /// What the host believes of a page, with the slot and the frame.
    pub(super) fn belief(&self, pfn: u64) -> (u64, usize, u64) {
        let word = self.word(pfn).and_then(|at| self.ctx.load(at).ok()).unwrap_or(0);
        (word & 0xff, usize::from(word.to_le_bytes()[1]), word >> 16)
    }

    pub(super) fn believe(&self, pfn: u64, what: Use, slot: usize, gfn: u64) {
        if let Some(at) = self.word(pfn) {
            // The word is memory of the host that no call names.
            let _ = self.ctx.store(at, what as u64 | (slot as u64) << 8 | gfn << 16);
        }
    }

    /// Any page of the arena, mostly one of few, so that what one call did meets the next.
    pub(super) fn any(&self, random: &mut Random) -> u64 {
        match random.below(3) {
            0 => self.pfn(random.below(FRAMES)),
            // Across the end of a block.
            _ => self.pfn(BLOCK / PAGE - 4 + random.below(8)),
        }
    }

    /// A page that is the host's as far as it knows.
    pub(super) fn free(&self, random: &mut Random) -> u64 {
        for _ in 0..16 {
            let nth = random.below(FRAMES);
            // The second block is left alone, so that it can go as one.
            let nth = if nth / 512 == 1 && random.below(8) > 0 { nth + 512 } else { nth };
            if self.belief(self.pfn(nth)).0 == Use::Free as u64 {
                return self.pfn(nth);
            }
        }
        self.any(random)
    }

    /// A page of `nr` that follow each other and are the host's, as far as it knows, at a multiple of `nr`.
    pub(super) fn free_run(&self, random: &mut Random, nr: u64) -> u64 {
        let free = |pfn| self.belief(pfn).0 == Use::Free as u64;
        let mut pfn = self.pfn(0);
        for _ in 0..8 {
            pfn = self.pfn(random.below(FRAMES / nr) * nr);
            if (pfn..pfn + nr).step_by(7).all(free) {
                break;
            }
        }
        pfn
    }

    /// A page with this use, of this VM, and its frame.
    pub(super) fn used(&self, random: &mut Random, what: Use, slot: usize) -> Option<(u64, u64)> {
        let start = random.below(FRAMES);
        (start..start + 256).map(|nth| self.pfn(nth)).find_map(|pfn| {
            let (is, whose, gfn) = self.belief(pfn);
            (is == what as u64 && (whose == slot || what != Use::Given)).then_some((pfn, gfn))
        })
    }

    /// A number that no call takes for a page of the host outside the arena: the host stands on those.
    pub(super) fn tame(&self, pfn: u64) -> u64 {
        let page = pfn.checked_mul(PAGE);
        let elsewhere = page.is_some_and(|page| self.ctx.board.touches_ram(page) && !self.is_mine(page));
        if elsewhere { self.pfn(pfn) } else { pfn }
    }

    fn is_mine(&self, page: u64) -> bool {
        self.area.contains(page) || self.ctx.board.carveouts().any(|c| c.contains(page))
    }

    /// The slot of a VM, if it is one of ours.
    pub(super) fn slot_of(&self, handle: u64) -> Option<(usize, &Slot)> {
        self.slots.iter().enumerate().find(|(_, slot)| slot.handle() == Some(handle))
    }

    /// A slot with a VM, if the first that comes to mind has one.
    pub(super) fn some_vm(&self, random: &mut Random) -> Option<(usize, &Slot, u64)> {
        let start = usize::try_from(random.below(SLOTS as u64)).unwrap_or(0);
        let slots = (start..start + SLOTS).filter_map(|n| self.slots.get(n % SLOTS).map(|s| (n % SLOTS, s)));
        slots.into_iter().find_map(|(n, slot)| slot.handle().map(|handle| (n, slot, handle)))
    }

    /// A slot with a VM of this kind.
    pub(super) fn vm_of(&self, random: &mut Random, kind: VmKind) -> Option<(usize, &Slot, u64)> {
        let start = usize::try_from(random.below(SLOTS as u64)).unwrap_or(0);
        let slots = (start..start + SLOTS).filter_map(|n| self.slots.get(n % SLOTS).map(|s| (n % SLOTS, s)));
        let fitting = slots.filter(|(_, slot)| slot.kind() == kind);
        fitting.into_iter().find_map(|(n, slot)| slot.handle().map(|handle| (n, slot, handle)))
    }

    /// A handle that was some VM's.
    pub(super) fn stale(&self) -> u64 {
        self.gone.load(Relaxed)
    }

    /// Takes a slot for a VM that is about to be made.
    pub(super) fn claim(&self) -> Option<(usize, &Slot)> {
        let free = |slot: &Slot| slot.handle.compare_exchange(0, CLAIMED, AcqRel, Acquire).is_ok();
        self.slots.iter().enumerate().find(|(_, slot)| free(slot))
    }

    /// The VM is made.
    pub(super) fn settle(slot: &Slot, (handle, kind, payload): (u64, VmKind, Payload), ipa_bits: u64) {
        slot.about.store(kind as u64 | (payload as u64) << 8 | ipa_bits << 16, Relaxed);
        slot.finishing.store(0, Release);
        slot.handle.store(handle, Release);
    }

    /// The VM could not be made.
    pub(super) fn abandon(slot: &Slot) {
        slot.forget();
    }

    /// FINISH is about to be called: what the VM is kept in may come back from here on.
    pub(super) fn finishing(&self, handle: u64) {
        if let Some((_, slot)) = self.slot_of(handle) {
            slot.finishing.store(1, Release);
        }
    }

    /// What follows from an answer, whoever called and why.
    pub(super) fn learn(&self, call: HostFn, args: &[u64], answer: Answer) {
        let arg = |n: usize| args.get(n).copied().unwrap_or(0);
        if !answer.is_ok() {
            return;
        }
        let slot = self.slot_of(arg(0)).map(|(n, _)| n);
        match (call, slot) {
            (HostFn::HostShareHyp, _) => self.believe(arg(0), Use::Shared, 0, 0),
            (HostFn::HostUnshareHyp, _) => self.believe(arg(0), Use::Free, 0, 0),
            (HostFn::HostDonateHyp | HostFn::HypDonateHost, _) => {
                let what = if call == HostFn::HostDonateHyp { Use::Lent } else { Use::Free };
                (arg(0)..arg(0).saturating_add(arg(1).min(512)))
                    .for_each(|pfn| self.believe(pfn, what, 0, 0));
            }
            (HostFn::VmPopulate, Some(slot)) => self.believe(arg(2), Use::Given, slot, arg(1)),
            (HostFn::GuestDonate | HostFn::GuestShare | HostFn::UnprotMap, Some(slot)) => {
                let frames = 0..if arg(3) == 0 { 1 } else { 512 };
                frames.for_each(|n| self.believe(arg(2) + n, Use::Given, slot, arg(1) + n));
            }
            (HostFn::MteUpgrade, Some(slot)) => {
                self.believe(answer.x2, Use::Free, 0, 0);
                self.believe(arg(2), Use::Given, slot, arg(1));
            }
            (HostFn::VmTeardownFinish, Some(n)) => {
                self.gone.store(arg(0), Relaxed);
                if let Some(slot) = self.slots.get(n) {
                    slot.forget();
                }
                for pfn in self.pages() {
                    let (what, whose, _) = self.belief(pfn);
                    if whose == n && what >= Use::Given as u64 {
                        self.believe(pfn, Use::Free, 0, 0);
                    }
                }
            }
            _ => {}
        }
        if call == HostFn::VmCreate && arg(6) != NO_PAGE {
            self.gone.store(answer.x2 ^ 1 << 12, Relaxed);
        }
    }
}
