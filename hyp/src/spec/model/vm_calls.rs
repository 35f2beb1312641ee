//! The rules for VMs themselves: what making one takes from the host, and which phase follows which;
//! and for what a host may still change about pages that it lent.
//!
//! As in [`super::hyp_calls`]. How many pages a record and a root take is part of docs/abi.md, so it
//! is counted here once more.
#![forbid(unsafe_code)]

use super::guest_calls::NONE;
use super::hyp_calls::range;
use super::state::{FRAMES, Hold, Kind, Page, Phase, RWX, Slot, State, Vm};
use abi::Errno;
use abi::vm::{MAX_VCPUS, MtePolicy, VCPU_PAGES, VM_PAGES, VmFlags};
use core::ops::Range;

/// Consecutive pages that a table of `bits` starts with: one up to 39 bits of a table that starts at
/// level 1, or 48 of one that starts at level 0.
const fn root_pages(bits: u64) -> u64 {
    let shift = if bits > 43 { 48 } else { 39 };
    1 << bits.saturating_sub(shift)
}

/// `nr` pages from `pfn`, of which `wanted` are needed: ENOMEM too few, EINVAL too many, ERANGE.
fn exactly(pfn: u64, nr: u64, wanted: u64) -> Result<Range<u64>, Errno> {
    if nr < wanted {
        return Err(Errno::Enomem);
    }
    if nr > wanted { Err(Errno::Einval) } else { range(pfn, nr) }
}

impl<const N: usize> State<N> {
    /// EL2 gets each of `parts` for a VM, one after the other, or none of them.
    ///
    /// # Errors
    /// Of the first part that cannot be had: ERANGE no RAM, EPERM not the host's alone.
    fn give_to_vm(&mut self, parts: &[Range<u64>]) -> Result<(), Errno> {
        let mut given = 0;
        for part in parts {
            let got = self.all_ram(part.clone());
            let got = got.and_then(|()| self.all_are(part.clone(), |page| page == Page::Host));
            if let Err(e) = got {
                for part in parts.iter().take(given) {
                    self.change_pages(part.clone(), |_| Page::Host);
                }
                return Err(e);
            }
            self.change_pages(part.clone(), |_| Page::Vm);
            given = given.saturating_add(1);
        }
        Ok(())
    }

    /// A VM in pages of the host: its record, the root of its table, and for a protected one a page
    /// to split blocks with, else [`NONE`]. It is named `handle`, a name that no VM has.
    ///
    /// # Errors
    /// EINVAL an unknown flag; ERANGE a reserve beyond memory; EINVAL split IPA without protection, SHA-512 without split IPA, a
    /// reserve for a VM without, none for one with; ERANGE `bits`; ENOMEM too few pages; EINVAL too
    /// many, or a root that is not aligned; ERANGE; of each part: ERANGE no RAM, EPERM.
    #[expect(clippy::too_many_arguments, reason = "the words of VM_CREATE")]
    pub fn vm_create(
        &mut self,
        flags: u64,
        bits: u64,
        vm_pfn: u64,
        vm_nr: u64,
        root_pfn: u64,
        root_nr: u64,
        reserve: u64,
        handle: u64,
        pending: u64,
    ) -> Result<u64, Errno> {
        let flags = VmFlags::from_bits(flags).ok_or(Errno::Einval)?;
        if reserve != NONE && reserve >= FRAMES {
            return Err(Errno::Erange);
        }
        let protected = flags.contains(VmFlags::PROTECTED);
        let split = flags.contains(VmFlags::SPLIT_IPA);
        let sha512 = flags.contains(VmFlags::SHA512);
        if split && !protected || sha512 && !split || protected != (reserve != NONE) {
            return Err(Errno::Einval);
        }
        let ipa_bits = u8::try_from(bits).ok().filter(|bits| matches!(bits, 32..=48));
        let (ipa_bits, root) = (ipa_bits.ok_or(Errno::Erange)?, root_pages(bits));
        if vm_nr < VM_PAGES || root_nr < root {
            return Err(Errno::Enomem);
        }
        let vm_pages = exactly(vm_pfn, vm_nr, VM_PAGES)?;
        let root_range = exactly(root_pfn, root_nr, root)?;
        if root_range.start & root.saturating_sub(1) != 0 {
            return Err(Errno::Einval);
        }
        let reserve = if protected { reserve..reserve.saturating_add(1) } else { 0..0 };
        // EIO is no errno of such a call: a name that a VM has is not given again.
        let name = u16::try_from(handle).ok().filter(|_| self.vm(handle).is_err()).ok_or(Errno::Eio)?;
        self.give_to_vm(&[vm_pages, root_range, reserve])?;
        let kind = match (protected, split) {
            (_, true) => Kind::Split,
            (true, false) => Kind::Classic,
            (false, false) => Kind::NonProtected,
        };
        let (mte, pending) = (MtePolicy::of(flags), pending == 1);
        self.put_vm(Vm { mte, pending, ..Vm::new(name, kind, ipa_bits, Phase::New) });
        Ok(handle)
    }

    /// A vCPU of a VM in pages of the host, and a page that the host shares with EL2 for its exits.
    ///
    /// # Errors
    /// EINVAL no such index, `pc` not aligned, `pc` or `x0` of a vCPU that starts off; ERANGE the
    /// record beyond memory; ENOMEM, EINVAL, ERANGE of the pages; ENOENT; EBUSY not NEW; ERANGE `pc`;
    /// of the pages: ERANGE, EPERM; of the record: ERANGE, EPERM not shared with EL2, EBUSY.
    #[expect(clippy::too_many_arguments, reason = "the words of VCPU_CREATE")]
    pub fn vcpu_create(
        &mut self,
        handle: u64,
        idx: u64,
        pfn: u64,
        nr: u64,
        record: u64,
        pc: u64,
        x0: u64,
    ) -> Result<(), Errno> {
        if u8::try_from(idx).is_err() {
            return Err(Errno::Einval);
        }
        if record >= FRAMES {
            return Err(Errno::Erange);
        }
        let exists = usize::try_from(idx).is_ok_and(|idx| idx < MAX_VCPUS);
        if !exists || pc & 3 != 0 || idx != 0 && (pc, x0) != (0, 0) {
            return Err(Errno::Einval);
        }
        let pages = exactly(pfn, nr, VCPU_PAGES)?;
        let vm = self.vm(handle)?.in_phase(&[Phase::New])?;
        if pc >> 12 >= vm.owned_end() {
            return Err(Errno::Erange);
        }
        self.give_to_vm(core::slice::from_ref(&pages))?;
        self.hyp_pin(record).inspect_err(|_| self.change_pages(pages, |_| Page::Host))
    }

    /// The host gives a protected VM that is NEW a page with what is in it, which with `measure` 1 is measured.
    ///
    /// # Errors
    /// As [`State::host_donate_guest`] of one page, EACCES also if nothing is measured of such a VM, EBUSY not NEW.
    pub fn vm_populate(&mut self, handle: u64, gfn: u64, pfn: u64, measure: u64) -> Result<(), Errno> {
        range(pfn, 1).map_err(|_| Errno::Erange)?;
        let kinds: &[Kind] = if measure == 1 { &[Kind::Split] } else { &[Kind::Classic, Kind::Split] };
        self.vm(handle)?.of(kinds)?.in_phase(&[Phase::New])?;
        self.host_donate_guest(handle, gfn, pfn, 0)
    }

    /// A VM is complete: NEW becomes ACTIVE, at once or, of a VM that is measured, after any number of steps in which it
    /// is FINALISING. `whole` is 0 for a step after which there is more to measure.
    ///
    /// # Errors
    /// ENOENT; EBUSY not NEW or FINALISING. EAGAIN: the VM is FINALISING.
    pub fn vm_finalise(&mut self, handle: u64, whole: u64) -> Result<(), Errno> {
        let vm = self.vm(handle)?.in_phase(&[Phase::New, Phase::Finalising])?;
        let measured = vm.kind == Kind::Split;
        // EIO is no errno of such a call: there is nothing to do in steps.
        let (phase, done) = match (whole, measured) {
            (1, _) => (Phase::Active, Ok(())),
            (_, true) => (Phase::Finalising, Err(Errno::Eagain)),
            (_, false) => return Err(Errno::Eio),
        };
        self.put_vm(Vm { phase, ..vm });
        done
    }

    /// The frames of a call about what a VM that is not protected does with lent pages.
    fn lent_frames(&self, handle: u64, frames: Range<u64>) -> Result<(Vm, Range<u64>), Errno> {
        let vm = self.vm(handle)?.of(&[Kind::NonProtected])?;
        if frames.end > vm.frames() { Err(Errno::Erange) } else { Ok((vm, frames)) }
    }

    /// A VM that is not protected may do more with the lent page, or block, at `gfn`.
    ///
    /// # Errors
    /// EINVAL permissions, or `gfn` is the last number there is; ERANGE; ENOENT no VM; EACCES protected; ERANGE beyond the IPA space; ENOENT
    /// no page there.
    pub fn host_relax_guest(&mut self, handle: u64, gfn: u64, more: u64) -> Result<(), Errno> {
        let more = u8::try_from(more).ok().filter(|more| more & !RWX == 0).ok_or(Errno::Einval)?;
        let (vm, frame) = self.lent_frames(handle, range(gfn, 1)?)?;
        let Some(Slot::Mapped { block, .. }) = self.slot(vm.handle, gfn) else { return Err(Errno::Enoent) };
        let frames = if block { Self::block_of(gfn) } else { frame };
        self.change_slots(vm.handle, frames, |slot| Some(slot.allowed(|prot| prot | more)), |page| page);
        Ok(())
    }

    /// A VM that is not protected cannot write to the frames any more. Answers how many.
    ///
    /// # Errors
    /// [`range`]; ENOENT; EACCES protected; ERANGE; E2BIG a block reaches out of the range.
    pub fn host_wrprotect_guest(&mut self, handle: u64, gfn: u64, nr: u64) -> Result<u64, Errno> {
        let (vm, frames) = self.whole_blocks(handle, gfn, nr)?;
        let reads = |slot: Slot| Some(slot.allowed(|prot| prot & !0b010));
        self.change_slots(vm.handle, frames, reads, |page| page);
        Ok(nr)
    }

    /// Whether such a VM used the frames is no part of the state. Answers how many.
    ///
    /// # Errors
    /// EINVAL `clear`; as [`State::host_wrprotect_guest`].
    pub fn host_age_guest(&mut self, handle: u64, gfn: u64, nr: u64, clear: u64) -> Result<u64, Errno> {
        if clear > 1 {
            return Err(Errno::Einval);
        }
        self.whole_blocks(handle, gfn, nr).map(|_| nr)
    }

    /// No CPU remembers a translation of such a VM; the state has none.
    ///
    /// # Errors
    /// ENOENT; EACCES protected.
    pub fn guest_tlb_flush(&mut self, handle: u64) -> Result<(), Errno> {
        self.lent_frames(handle, 0..0).map(drop)
    }

    /// The frames of a call that takes blocks whole.
    fn whole_blocks(&self, handle: u64, gfn: u64, nr: u64) -> Result<(Vm, Range<u64>), Errno> {
        let (vm, frames) = self.lent_frames(handle, range(gfn, nr)?)?;
        let reaches_out = |gfn: u64| {
            self.slot(vm.handle, gfn).is_some_and(Slot::is_block) && {
                let block = Self::block_of(gfn);
                block.start < frames.start || block.end > frames.end
            }
        };
        let last = frames.end.saturating_sub(1);
        if reaches_out(frames.start) || reaches_out(last) { Err(Errno::E2big) } else { Ok((vm, frames)) }
    }
}

impl Slot {
    /// The same lent page, with the permissions that `becomes` makes of those it has.
    fn allowed(self, becomes: impl FnOnce(u8) -> u8) -> Self {
        match self {
            Self::Mapped { pfn, hold: hold @ Hold::Borrowed, prot, block } => {
                Self::Mapped { pfn, hold, prot: becomes(prot), block }
            }
            same => same,
        }
    }
}
