//! VMs on a [`World`]: tables and stores, no vCPU. What a VM service would check before it calls a
//! transition (that the VM exists, and where in its life it is) is checked here.

use crate::machine::Cpu;
use crate::memory::lock;
use crate::world::World;
use abi::Errno;
use hyp::addr::{AddrError, IpaRange, MAX_PA_BITS, Pfn};
use hyp::hw::Machine;
use hyp::mem_protect::{Contents, Guest, GuestConfig, GuestKind, GuestPages, Reclaimed, guest_frames};
use hyp::pgtable::{Prot, TagControl};
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Answer, Call, Kind, Phase, Root, Vm};

/// A VM and its table.
#[derive(Debug)]
pub struct TestVm<C: Machine = Cpu> {
    /// What the specification knows of it.
    pub vm: Vm,
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

/// How a [`TestVm`] is made.
#[derive(Clone, Copy, Debug)]
pub struct VmSetup {
    /// What the specification will know of it.
    pub vm: Vm,
    /// It can use allocation tags.
    pub mte: bool,
    /// Pages for its table cache.
    pub cache: u64,
    /// First page of RAM that it is made of, counted from the start: root, reserve, cache.
    pub first: u64,
}

impl<C: Machine> Vms<C> {
    /// Makes a VM from pages of the host.
    ///
    /// # Panics
    /// If the hypervisor does not want to.
    pub fn create(&mut self, world: &World<C>, cpu: usize, setup: VmSetup) {
        let VmSetup { vm, mte, cache, first } = setup;
        let (hyp, hw) = (&world.hyp, &world.cpus[cpu]);
        let bits = u32::from(vm.ipa_bits);
        let roots = if bits > 39 { 1 << (bits - 39) } else { 1 };
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
            tags: TagControl::Unused,
            mte,
        };
        let reserve = protected.then(|| token(first + roots, 1));
        let guest = hyp.new_guest(hw, config, root, reserve).expect("the guest is one the CPU can have");
        self.0.push(TestVm { vm, guest });
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

    /// Every VM with its root, as the specification reads them.
    #[must_use]
    pub fn roots(&self, hw: &C) -> Vec<(Vm, Root)> {
        self.0.iter().map(|vm| (vm.vm, Root::of(vm.guest.lock(hw).table()))).collect()
    }

    /// The VM that calls name `handle`.
    ///
    /// # Errors
    /// ENOENT.
    pub fn find(&self, handle: u64) -> Result<&TestVm<C>, Errno> {
        self.0.iter().find(|vm| u64::from(vm.vm.handle) == handle).ok_or(Errno::Enoent)
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
            Call::HostDonateGuest { handle, gfn, pfn, order } => {
                let what = GuestPages::new(gfn, pfn, order).map_err(errno)?;
                let vm = self.find(handle)?.growing()?;
                let done = hyp.host_donate_guest(hw, window, &vm.guest, what, Prot::RWX, Contents::Zeroed);
                done.map(|()| [0; 2]).map_err(errno)
            }
            Call::HostShareGuest { handle, gfn, pfn, order, prot } => {
                let prot = u8::try_from(prot).ok().and_then(Prot::from_bits).ok_or(Errno::Einval);
                let prot = prot.and_then(|prot| match Prot::RWX.contains(prot) {
                    true => Ok(prot),
                    false => Err(Errno::Einval),
                });
                let what = GuestPages::new(gfn, pfn, order).map_err(errno);
                let (prot, what) = match (prot, what) {
                    (_, Err(Errno::Einval)) | (Err(_), _) => return Err(Errno::Einval),
                    (Ok(prot), what) => (prot, what?),
                };
                let vm = self.find(handle)?.growing()?;
                hyp.host_share_guest(hw, window, &vm.guest, what, prot).map(|()| [0; 2]).map_err(errno)
            }
            Call::HostUnshareGuest { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.host_unshare_guest(hw, &self.find(handle)?.guest, range).map(done).map_err(errno)
            }
            Call::GuestShareHost { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.guest_share_host(hw, &self.find(handle)?.guest, range).map(done).map_err(errno)
            }
            Call::GuestUnshareHost { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.guest_unshare_host(hw, &self.find(handle)?.guest, range).map(done).map_err(errno)
            }
            Call::GuestRelinquishHost { handle, gfn, nr } => {
                let range = guest_frames(gfn, nr).map_err(errno)?;
                hyp.guest_relinquish_host(hw, window, &self.find(handle)?.guest, range)
                    .map(done)
                    .map_err(errno)
            }
            Call::HostReclaimGuest { handle, base, top, refill, .. } => {
                let range = taken(base, top)?;
                let vm = self.find(handle)?.growing()?;
                let refill = match refill {
                    NONE => None,
                    pfn => Some(Pfn::new(pfn).map_err(|_| Errno::Eperm)?),
                };
                hyp.host_reclaim_guest(hw, window, &vm.guest, range?, refill).map(reclaimed).map_err(errno)
            }
            Call::HostReclaimDyingGuest { handle, base, top, .. } => {
                let range = taken(base, top)?;
                let vm = self.find(handle)?;
                if vm.vm.phase != Phase::Dying {
                    return Err(Errno::Ebusy);
                }
                hyp.host_reclaim_dying_guest(hw, window, &vm.guest, range?).map(reclaimed).map_err(errno)
            }
            Call::VmTopup { handle, pfn, nr } => {
                guest_frames(pfn, nr).map_err(errno)?;
                let vm = self.find(handle)?;
                let head = Pfn::new(pfn).map_err(|_| Errno::Erange)?;
                hyp.topup(hw, &vm.guest, head, nr).map(done).map_err(errno)
            }
            _ => panic!("{call:?} names no VM"),
        }
    }
}

/// The range of a call that takes memory by byte addresses: EINVAL, and ERANGE once it is known
/// which VM is meant.
fn taken(base: u64, top: u64) -> Result<Result<IpaRange, Errno>, Errno> {
    match IpaRange::new(base, top, MAX_PA_BITS) {
        Err(AddrError::OutOfSpace(_)) => Ok(Err(Errno::Erange)),
        Err(_) => Err(Errno::Einval),
        Ok(range) => Ok(Ok(range)),
    }
}

/// A call that answers how far it got.
const fn done(word: u64) -> [u64; 2] {
    [word, 0]
}

fn reclaimed(Reclaimed { end, retained }: Reclaimed) -> [u64; 2] {
    [end, retained.map_or(NONE, Pfn::raw)]
}

impl<C: Machine> TestVm<C> {
    fn growing(&self) -> Result<&Self, Errno> {
        if matches!(self.vm.phase, Phase::New | Phase::Active) { Ok(self) } else { Err(Errno::Ebusy) }
    }
}
