//! A machine with a VM of each kind.

use abi::inspect::Damage;
use abi::vm::MtePolicy;
use hyp::addr::{Ipa, Pfn};
use hyp::hw::{CpuFeatures, PhysMem};
use hyp::mem_protect::Census;
use hyp::mm::Record;
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Flaw, Kind, Phase, State, Vm};
use testkit::features::MAX;
use testkit::world::RUNS;
use testkit::{Setup, VmSetup, Vms, World};

pub(crate) const CLASSIC: u16 = 1;
pub(crate) const PLAIN: u16 = 2;
pub(crate) const REALM: u16 = 3;
/// The first frame of the realm's upper half.
pub(crate) const UPPER: u64 = 1 << 19;

pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) vms: Vms,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with_mte(MtePolicy::Off)
    }

    /// With VMs of this policy, and pages 1600 to 1663 without tags.
    pub(crate) fn with_mte(mte: MtePolicy) -> Self {
        Self::on(MAX, mte)
    }

    /// With a realm that has 2 MiB of RAM from frame 0x400 on.
    pub(crate) fn with_realm(features: CpuFeatures) -> Self {
        Self::on(features, MtePolicy::Off).and_realm(MtePolicy::Off)
    }

    /// The same, and VMs with MTE may have pages without tags.
    pub(crate) fn with_lazy_realm(features: CpuFeatures) -> Self {
        Self::on(features, MtePolicy::Lazy).and_realm(MtePolicy::Lazy)
    }

    fn and_realm(mut self, mte: MtePolicy) -> Self {
        let vm = Vm::new(REALM, Kind::Split, 32, Phase::New);
        self.vms.create(&self.world, 0, VmSetup { vm, mte, cache: 12, first: 440 });
        self.ok(Call::HostInitRipas { handle: REALM.into(), base: 0x400 << 12, top: 0x600 << 12 });
        self
    }

    fn on(features: CpuFeatures, mte: MtePolicy) -> Self {
        let world = Setup { pages: 4096, no_tags: Some((1600, 64)), ..Setup::new(features) }.start();
        let mut vms = Vms::default();
        for (handle, kind, first) in [(CLASSIC, Kind::Classic, 400), (PLAIN, Kind::NonProtected, 420)] {
            let vm = Vm::new(handle, kind, 32, Phase::Active);
            vms.create(&world, 0, VmSetup { vm, mte, cache: 12, first });
        }
        Self { world, vms }
    }

    fn ok(&self, call: Call) -> [u64; 2] {
        self.vms.call(&self.world, 0, call).unwrap_or_else(|e| panic!("{call:?}: {e:?}"))
    }

    pub(crate) fn donate(&self, gfn: u64, nth: u64, order: u64) {
        let pfn = self.world.page(nth).raw();
        self.ok(Call::HostDonateGuest { handle: CLASSIC.into(), gfn, pfn, order });
    }

    pub(crate) fn give_realm(&self, gfn: u64, nth: u64) {
        let pfn = self.world.page(nth).raw();
        self.ok(Call::HostDonateGuest { handle: REALM.into(), gfn, pfn, order: 0 });
    }

    /// Maps a page of the host in the realm's upper half.
    pub(crate) fn show_realm(&self, gfn: u64, nth: u64) {
        let pfn = self.world.page(nth).raw();
        self.ok(Call::HostShareUnprotected { handle: REALM.into(), gfn, pfn, order: 0, write: 1 });
    }

    pub(crate) fn share(&self, gfn: u64, nth: u64) {
        let pfn = self.world.page(nth).raw();
        self.ok(Call::HostShareGuest { handle: PLAIN.into(), gfn, pfn, order: 0, prot: 7 });
    }

    pub(crate) fn unshare(&self, gfn: u64, nr: u64) {
        self.ok(Call::HostUnshareGuest { handle: PLAIN.into(), gfn, nr });
    }

    pub(crate) fn guest_share(&self, gfn: u64, nr: u64) {
        self.ok(Call::GuestShareHost { handle: CLASSIC.into(), gfn, nr });
    }

    pub(crate) fn guest_unshare(&self, gfn: u64, nr: u64) {
        self.ok(Call::GuestUnshareHost { handle: CLASSIC.into(), gfn, nr });
    }

    /// Takes every page that the guest does not share.
    pub(crate) fn reclaim_all(&self, handle: u16) {
        let (mut at, top) = (0, 0x800_u64 << 12);
        while handle == CLASSIC && at < top {
            let call =
                Call::HostReclaimGuest { handle: handle.into(), base: at, top, refill: NONE, kept: NONE };
            match self.vms.call(&self.world, 0, call) {
                Ok([end, _]) => at = end,
                // The guest shares it.
                Err(_) => at += 4096,
            }
        }
    }

    /// The census of a machine with nothing wrong.
    #[track_caller]
    pub(crate) fn clean(&self) -> Census {
        let audit = self.world.hyp.audit(&self.world.cpus[0], None, &self.vms).unwrap();
        assert!(audit.is_clean(), "{:x?}", audit.findings());
        audit.census
    }

    /// What an audit finds: kind, VM, frame.
    pub(crate) fn findings(&self) -> Vec<(Damage, u16, u64)> {
        let audit = self.world.hyp.audit(&self.world.cpus[0], None, &self.vms).unwrap();
        audit.findings().iter().map(|f| (f.damage, f.handle, f.frame)).collect()
    }

    /// What the specification finds wrong with the machine.
    pub(crate) fn flaw(&self) -> Option<Flaw> {
        self.world.read(&self.vms.roots(), &mut State::<RUNS>::empty()).err()
    }

    pub(crate) fn record(&self, page: Pfn) -> &'static Record {
        self.world.hyp.vmemmap().get(page).unwrap()
    }

    /// Table page and index of the entry that decides about a page in the host's table.
    pub(crate) fn host_entry(&self, page: Pfn) -> (Pfn, usize) {
        let host = self.world.hyp.host(&self.world.cpus[0]);
        let slot =
            host.table().path(&self.world.cpus[0], Ipa::new(page.base().raw()).unwrap()).unwrap().slot();
        (slot.table(), index(page.raw(), slot.level().number()))
    }

    /// The same for EL2's map.
    pub(crate) fn hyp_entry(&self, page: Pfn) -> (Pfn, usize) {
        let hyp = self.world.hyp.hyp(&self.world.cpus[0]);
        let va = hyp::addr::HypVa::linear(page.base());
        let slot = hyp.table().path(&self.world.cpus[0], va).unwrap().slot();
        (slot.table(), index(page.raw(), slot.level().number()))
    }

    /// The same for a VM's table.
    pub(crate) fn guest_entry(&self, handle: u16, gfn: u64) -> (Pfn, usize) {
        let guest = self.vms.find(handle.into()).unwrap().guest.lock(&self.world.cpus[0]);
        let slot = guest.table().path(&self.world.cpus[0], Ipa::new(gfn << 12).unwrap()).unwrap().slot();
        (slot.table(), index(gfn, slot.level().number()))
    }

    pub(crate) fn word(&self, (table, index): (Pfn, usize)) -> u64 {
        self.world.cpus[0].untraced().read_entry(table, index)
    }

    /// Writes a word past EL2 and all that watches it.
    pub(crate) fn damage(&self, (table, index): (Pfn, usize), word: u64) {
        self.world.sim.memory().write(table.raw(), index, word);
    }
}

/// Index of a frame's entry in its table of `level`.
fn index(frame: u64, level: u8) -> usize {
    usize::try_from(frame >> (9 * (3 - u32::from(level))) & 511).unwrap()
}
