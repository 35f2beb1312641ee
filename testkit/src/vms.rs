//! VMs on a [`World`]: tables and stores, no vCPU. What a VM service would check before it calls a
//! transition (that the VM exists, and where in its life it is) is checked here, in the order of
//! docs/abi.md.

use crate::machine::Cpu;
use crate::memory::lock;
use crate::world::World;
use abi::Errno;
use abi::vm::MtePolicy;
use hyp::addr::{Ipa, IpaRange, MAX_PA_BITS, Pfn};
use hyp::hw::Machine;
use hyp::mem_protect::{
    Chain, Contents, Guest, GuestConfig, GuestKind, GuestPages, Reclaimed, Tenant, Tenants, guest_frames,
};
use hyp::pgtable::Prot;
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Answer, Call, Kind, Phase, Root, Vm};
use std::sync::Mutex;

/// A VM and its table.
#[derive(Debug)]
pub struct TestVm<C: Machine = Cpu> {
    vm: Mutex<Vm>,
    root: Root,
    /// Its table and stores.
    pub guest: Guest<C>,
}

/// The VMs of a machine.
#[derive(Debug)]
pub struct Vms<C: Machine = Cpu>(pub Vec<TestVm<C>>);

impl<C: Machine> Default for Vms<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C: Machine> Tenants<C> for Vms<C> {
    fn each(&self, _hw: &C, f: &mut dyn FnMut(Tenant<'_, C>)) {
        // They have no vCPUs, and their own state is the test's.
        self.0.iter().for_each(|vm| f(Tenant { guest: &vm.guest, state: 0, vcpus: 0 }));
    }
}

/// How a [`TestVm`] is made.
#[derive(Clone, Copy, Debug)]
pub struct VmSetup {
    /// What the specification will know of it.
    pub vm: Vm,
    /// What it may do with allocation tags.
    pub mte: MtePolicy,
    /// Pages for its table cache.
    pub cache: u64,
    /// First page of RAM that it is made of, counted from the start: root, reserve, cache.
    pub first: u64,
}

impl VmSetup {
    /// A VM of 32 IPA bits that runs, without tags, with `cache` pages for tables.
    #[must_use]
    pub const fn new(handle: u16, kind: Kind, first: u64, cache: u64) -> Self {
        Self { vm: Vm::new(handle, kind, 32, Phase::Active), mte: MtePolicy::Off, cache, first }
    }

    /// Pages of its root.
    fn roots(&self) -> u64 {
        let bits = u32::from(self.vm.ipa_bits);
        if (40..=43).contains(&bits) { 1 << (bits - 39) } else { 1 }
    }

    /// Pages that it is made of, from [`VmSetup::first`] on.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.roots() + u64::from(self.vm.kind != Kind::NonProtected) + self.cache
    }
}

impl<C: Machine> Vms<C> {
    /// Makes a VM from pages of the host.
    ///
    /// # Panics
    /// If the hypervisor does not want to.
    pub fn create(&mut self, world: &World<C>, cpu: usize, setup: VmSetup) {
        let VmSetup { vm, mte, cache, first } = setup;
        let (hyp, hw) = (&world.hyp, &world.cpus[cpu]);
        let (bits, roots) = (u32::from(vm.ipa_bits), setup.roots());
        let token =
            |nth, nr| hyp.host_donate_token(hw, world.pages(nth, nr)).expect("the host has the pages");
        let root = token(first, roots);
        let protected = vm.kind != Kind::NonProtected;
        let config = GuestConfig {
            handle: vm.handle,
            kind: match vm.kind {
                Kind::NonProtected => GuestKind::NonProtected,
                Kind::Classic => GuestKind::Classic,
                Kind::Split => GuestKind::Split,
            },
            ipa_bits: bits,
            vmid: vm.handle & 0xff,
            mte,
        };
        let reserve = protected.then(|| token(first + roots, 1));
        let guest = hyp.new_guest(hw, config, root, reserve).expect("the guest is one the CPU can have");
        let pending = !guest.lock(hw).table().format().maps_no_tag();
        let vm = Vm { mte, pending, ..vm };
        let root = Root::of(guest.lock(hw).table());
        self.0.push(TestVm { vm: Mutex::new(vm), root, guest });
        let first = first + roots + u64::from(protected);
        for nth in first..first + cache {
            // A chain is written by the host before it gives it away.
            let page = world.page(nth);
            assert!(world.touch(cpu, page, hyp::pgtable::Access::W));
            let next = if nth + 1 < first + cache { page.raw() + 1 } else { u64::MAX };
            world.sim.store(hyp.host_context(), page.base().raw(), true, next);
        }
        if cache > 0 {
            let vm = &self.0[self.0.len() - 1];
            let taken = hyp.topup(hw, &vm.guest, world.page(first), cache);
            assert_eq!(taken, Ok(cache), "the chain goes into the cache");
        }
    }

    /// Takes the VM apart, which owns no page any more, as VM_TEARDOWN_FINISH does. Returns the
    /// pages that came back, newest first.
    ///
    /// # Panics
    /// If there is no such VM, or it does not let itself be taken apart.
    pub fn finish(&mut self, world: &World<C>, cpu: usize, handle: u16) -> Vec<u64> {
        let (hyp, hw) = (&world.hyp, &world.cpus[cpu]);
        let at = self.0.iter().position(|vm| vm.vm().handle == handle).expect("the VM exists");
        let TestVm { guest, .. } = self.0.remove(at);
        let mut at = Ipa::new(0).ok();
        while let Some(ipa) = at {
            at = hyp.drop_borrowed(hw, &guest, ipa).expect("the VM owns no page");
        }
        let mut chain = Chain::new();
        while !hyp.drop_cache(hw, &guest, 100, &mut chain) {}
        hyp.end_guest(hw, guest, &mut chain);
        let mut pages = Vec::new();
        let mut next = chain.head();
        while next != NONE {
            pages.push(next);
            next = world.sim.memory().read(next, 0);
        }
        assert_eq!(pages.len() as u64, chain.count(), "a chain is as long as it says");
        pages
    }

    /// Every VM with its root, as the specification reads them.
    #[must_use]
    pub fn roots(&self) -> Vec<(Vm, Root)> {
        self.0.iter().map(|vm| (vm.vm(), vm.root)).collect()
    }

    /// The VM that calls name `handle`.
    ///
    /// # Errors
    /// ENOENT.
    pub fn find(&self, handle: u64) -> Result<&TestVm<C>, Errno> {
        self.0.iter().find(|vm| u64::from(vm.vm().handle) == handle).ok_or(Errno::Enoent)
    }

    /// The VM that asks for `handle`'s own pages: it runs.
    fn caller(&self, handle: u64) -> Result<&TestVm<C>, Errno> {
        self.find(handle)?.of(&[Kind::Classic])?.in_phase(&[Phase::Active])
    }

    /// The VM that says which of `handle`'s frames are devices: it runs.
    fn guarded(&self, handle: u64) -> Result<&TestVm<C>, Errno> {
        self.find(handle)?.of(&[Kind::Classic, Kind::NonProtected])?.in_phase(&[Phase::Active])
    }

    /// Makes the transition of `call` that names a VM.
    ///
    /// # Errors
    /// Those of the transition, and those of a VM service before it.
    ///
    /// # Panics
    /// For a call that names no VM.
    pub fn call(&self, world: &World<C>, cpu: usize, call: Call) -> Answer {
        let (hyp, hw) = (&world.hyp, &world.cpus[cpu]);
        let mut window = lock(&world.windows[cpu]);
        let window = &mut *window;
        let errno = |e: hyp::Error| e.errno();
        match call {
            Call::HostDonateGuest { handle, gfn, pfn, order }
            | Call::HostDonateNoTag { handle, gfn, pfn, order } => {
                let no_tag = matches!(call, Call::HostDonateNoTag { .. });
                let prot = if no_tag { Prot::RWX | Prot::NO_TAG } else { Prot::RWX };
                let what = GuestPages::new(gfn, pfn, order).map_err(errno)?;
                let vm = self.find(handle)?.of(PROTECTED)?.in_phase(GROWING)?;
                let done = hyp.host_donate_guest(hw, window, &vm.guest, what, prot, Contents::Zeroed);
                done.map(|()| [0; 2]).map_err(errno)
            }
            Call::HostUpgradeGuest { handle, gfn, new } => {
                let new = Pfn::new(new).map_err(|_| Errno::Erange)?;
                let frame = guest_frames(gfn, 1).map_err(errno)?;
                let vm = self.find(handle)?;
                if !vm.vm().mte.has_mte() {
                    return Err(Errno::Eacces);
                }
                let guest = &vm.in_phase(GROWING)?.guest;
                hyp.host_upgrade_guest(hw, window, guest, frame, new)
                    .map(|old| done(old.raw()))
                    .map_err(errno)
            }
            Call::HostShareGuest { handle, gfn, pfn, order, prot } => {
                let what = GuestPages::new(gfn, pfn, order).map_err(errno)?;
                let prot = u8::try_from(prot).ok().and_then(Prot::from_bits);
                let prot = prot.filter(|prot| Prot::RWX.contains(*prot)).ok_or(Errno::Einval)?;
                let vm = self.find(handle)?.of(&[Kind::NonProtected])?.in_phase(GROWING)?;
                hyp.host_share_guest(hw, window, &vm.guest, what, prot).map(|()| [0; 2]).map_err(errno)
            }
            Call::HostUnshareGuest { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.host_unshare_guest(hw, &self.find(handle)?.guest, range).map(done).map_err(errno)
            }
            Call::HostShareUnprotected { handle, gfn, pfn, order, write } => {
                let what = GuestPages::new(gfn, pfn, order).map_err(errno)?;
                let write = match write {
                    0 => false,
                    1 => true,
                    _ => return Err(Errno::Einval),
                };
                let vm = self.find(handle)?.of(SPLIT)?.in_phase(GROWING)?;
                let done = hyp.host_share_unprotected(hw, window, &vm.guest, what, write);
                done.map(|()| [0; 2]).map_err(errno)
            }
            Call::HostUnshareUnprotected { handle, gfn, nr, .. } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                let went = hyp.host_unshare_unprotected(hw, &self.find(handle)?.guest, range);
                went.map(|went| [went.start().raw() >> 12, went.len() >> 12]).map_err(errno)
            }
            Call::HostInitRipas { handle, base, top } => {
                let range = taken(base, top)?;
                let vm = self.find(handle)?.of(SPLIT)?.in_phase(&[Phase::New])?;
                hyp.host_init_ripas(hw, &vm.guest, range).map(done).map_err(errno)
            }
            Call::HostApplyRam { handle, base, top, destroyed } => {
                let range = taken(base, top)?;
                let vm = self.find(handle)?.of(SPLIT)?.in_phase(&[Phase::Active])?;
                hyp.host_apply_ram(hw, &vm.guest, range, destroyed == 1).map(done).map_err(errno)
            }
            Call::HostApplyEmpty { handle, base, top, .. } => {
                let range = taken(base, top)?;
                let vm = self.find(handle)?.of(SPLIT)?.in_phase(&[Phase::Active])?;
                hyp.host_apply_empty(hw, window, &vm.guest, range).map(reclaimed).map_err(errno)
            }
            Call::GuestShareHost { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.guest_share_host(hw, &self.caller(handle)?.guest, range).map(done).map_err(errno)
            }
            Call::GuestUnshareHost { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.guest_unshare_host(hw, &self.caller(handle)?.guest, range).map(done).map_err(errno)
            }
            Call::GuestRelinquishHost { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                let vm = self.caller(handle)?;
                hyp.guest_relinquish_host(hw, window, &vm.guest, range).map(done).map_err(errno)
            }
            Call::GuestMapGuard { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.guest_map_guard(hw, &self.guarded(handle)?.guest, range).map(done).map_err(errno)
            }
            Call::GuestUnmapGuard { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.guest_unmap_guard(hw, &self.guarded(handle)?.guest, range).map(done).map_err(errno)
            }
            Call::HostDropGuards { handle } => {
                let vm = self.find(handle)?.of(&[Kind::NonProtected])?.in_phase(GROWING)?;
                let mut at = Some(Ipa::truncated(0));
                while let Some(from) = at {
                    at = hyp.host_drop_guards(hw, &vm.guest, from).map_err(errno)?;
                }
                Ok([0; 2])
            }
            Call::HostReclaimGuest { handle, base, top, refill, .. } => {
                let range = taken(base, top)?;
                let refill = match refill {
                    NONE => None,
                    pfn => Some(Pfn::new(pfn).map_err(|_| Errno::Erange)?),
                };
                let vm = self.find(handle)?.of(PROTECTED)?.in_phase(GROWING)?;
                hyp.host_reclaim_guest(hw, window, &vm.guest, range, refill).map(reclaimed).map_err(errno)
            }
            Call::HostReclaimDyingGuest { handle, base, top, .. } => {
                let range = taken(base, top)?;
                let vm = self.find(handle)?.of(PROTECTED)?.in_phase(&[Phase::Dying])?;
                hyp.host_reclaim_dying_guest(hw, window, &vm.guest, range).map(reclaimed).map_err(errno)
            }
            Call::VmTopup { handle, pfn, nr } => {
                let head = Pfn::new(pfn).map_err(|_| Errno::Erange)?;
                let vm = self.find(handle)?.in_phase(GROWING)?;
                hyp.topup(hw, &vm.guest, head, nr).map(done).map_err(errno)
            }
            Call::VmTeardownStart { handle } => {
                let vm = self.find(handle)?.in_phase(ALIVE)?;
                vm.guest.lock(hw).table().flush(hw);
                lock(&vm.vm).phase = Phase::Dying;
                Ok([0; 2])
            }
            _ => panic!("{call:?} names no VM"),
        }
    }
}

/// The range of a call by byte addresses: EINVAL, ERANGE beyond 48 bits.
fn taken(base: u64, top: u64) -> Result<IpaRange, Errno> {
    IpaRange::new(base, top, MAX_PA_BITS).map_err(|e| hyp::Error::from(e).errno())
}

/// A call that answers how far it got.
const fn done(word: u64) -> [u64; 2] {
    [word, 0]
}

fn reclaimed(Reclaimed { end, retained }: Reclaimed) -> [u64; 2] {
    [end, retained.map_or(NONE, Pfn::raw)]
}

const SPLIT: &[Kind] = &[Kind::Split];
const PROTECTED: &[Kind] = &[Kind::Classic, Kind::Split];
const GROWING: &[Phase] = &[Phase::New, Phase::Active];
const ALIVE: &[Phase] = &[Phase::New, Phase::Finalising, Phase::Active, Phase::Dead];

impl<C: Machine> TestVm<C> {
    /// What the specification knows of it.
    #[must_use]
    pub fn vm(&self) -> Vm {
        *lock(&self.vm)
    }

    /// Makes it run, or be filled again.
    pub fn enter(&self, phase: Phase) {
        lock(&self.vm).phase = phase;
    }

    fn of(&self, kinds: &[Kind]) -> Result<&Self, Errno> {
        if kinds.contains(&self.vm().kind) { Ok(self) } else { Err(Errno::Eacces) }
    }

    fn in_phase(&self, phases: &[Phase]) -> Result<&Self, Errno> {
        if phases.contains(&self.vm().phase) { Ok(self) } else { Err(Errno::Ebusy) }
    }
}
