//! A machine with VMs with split IPA, each call judged.

use abi::Errno;
use hyp::addr::{IpaRange, Pfn};
use hyp::fault::Site;
use hyp::hw::CpuFeatures;
use hyp::ipa_state::{Run, State};
use hyp::pgtable::{Access, Entry, Level, Note};
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Kind, Page, Phase, Slot, Vm};
use std::cell::Cell;
use testkit::features::{CORTEX_A72, strict};
use testkit::{Judged, Setup, VmSetup};

/// The VM that most tests are about.
pub(crate) const VM: u64 = 1;
/// Another one.
pub(crate) const OTHER: u64 = 2;
/// First page of RAM, counted from its start, that tests give to VMs: aligned to a block.
pub(crate) const PAGES: u64 = 1024;
const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// What stands in a page that the host should not find again.
pub(crate) const SECRET: u64 = 0x5ec2_e75e;

/// The machine.
pub(crate) struct Rig {
    pub(crate) judged: Judged,
    next: Cell<u64>,
}

impl Rig {
    /// VMs with `cache` pages for tables, in phase NEW.
    pub(crate) fn new(cache: u64) -> Self {
        Self::with(CORTEX_A72, 32, cache)
    }

    pub(crate) fn with(features: CpuFeatures, ipa_bits: u8, cache: u64) -> Self {
        let setup = Setup { pages: 8192, table_pages: 48, ..Setup::new(features) };
        let vm = |handle, first| VmSetup {
            vm: Vm::new(handle, Kind::Split, ipa_bits, Phase::New),
            mte: strict(&features),
            cache,
            first,
        };
        // Roots of concatenated pages are aligned to their size.
        Self { judged: Judged::new(setup).with(&[vm(1, 512), vm(2, 576)]), next: Cell::new(640) }
    }

    pub(crate) fn page(&self, nth: u64) -> u64 {
        self.judged.world.page(nth).raw()
    }

    /// Makes `call`, whose answer and effect the specification judges, and audits.
    #[track_caller]
    pub(crate) fn call2(&self, call: Call) -> Result<[u64; 2], Errno> {
        let before = self.judged.audit(0);
        let answer = self.judged.call(0, call);
        let after = self.judged.audit(0);
        if answer.is_err() {
            assert!(before.ownership().eq(after.ownership()), "{call:x?} was refused and moved something");
        }
        answer
    }

    #[track_caller]
    pub(crate) fn call(&self, call: Call) -> Result<u64, Errno> {
        self.call2(call).map(|[word, _]| word)
    }

    #[track_caller]
    pub(crate) fn init(&self, base: u64, top: u64) -> Result<u64, Errno> {
        self.call(Call::HostInitRipas { handle: VM, base, top })
    }

    #[track_caller]
    pub(crate) fn ram(&self, base: u64, top: u64, destroyed: u64) -> Result<u64, Errno> {
        self.call(Call::HostApplyRam { handle: VM, base, top, destroyed })
    }

    #[track_caller]
    pub(crate) fn empty(&self, base: u64, top: u64) -> Result<[u64; 2], Errno> {
        self.call2(Call::HostApplyEmpty { handle: VM, base, top, kept: NONE })
    }

    /// Gives page `nth` of RAM, or the block there, at `ipa`.
    #[track_caller]
    pub(crate) fn donate(&self, ipa: u64, nth: u64, order: u64) -> Result<u64, Errno> {
        self.call(Call::HostDonateGuest { handle: VM, gfn: ipa >> 12, pfn: self.page(nth), order })
    }

    #[track_caller]
    pub(crate) fn reclaim(&self, base: u64, top: u64, refill: u64) -> Result<[u64; 2], Errno> {
        self.call2(Call::HostReclaimGuest { handle: VM, base, top, refill, kept: NONE })
    }

    /// Gives `VM` `nr` more pages for tables.
    pub(crate) fn topup(&self, nr: u64) {
        let pfn = self.page(self.next.get());
        self.next.set(self.next.get() + nr);
        assert!(self.next.get() <= PAGES);
        assert_eq!(self.call(Call::VmTopup { handle: VM, pfn, nr }), Ok(nr));
    }

    pub(crate) fn activate(&self) {
        self.judged.enter(1, Phase::Active);
        self.judged.enter(2, Phase::Active);
    }

    pub(crate) fn cached(&self) -> u64 {
        self.judged.cached(1)
    }

    pub(crate) fn reserve(&self) -> Option<u64> {
        self.judged.guest(1).lock(&self.judged.world.cpus[0]).reserve().page().map(Pfn::raw)
    }

    /// What the guest would be told of `ipa`, as far as it is the same.
    pub(crate) fn run(&self, base: u64, top: u64, entries: u64) -> Run {
        let range = IpaRange::new(base, top, 48).unwrap();
        let cpu = &self.judged.world.cpus[0];
        self.judged.guest(1).lock(cpu).ipa_states(cpu, range, entries).unwrap()
    }

    pub(crate) fn state(&self, ipa: u64) -> State {
        self.run(ipa, ipa + 4096, 512).state
    }

    pub(crate) fn slot(&self, ipa: u64) -> Option<Slot> {
        self.judged.state().slot(1, ipa >> 12)
    }

    pub(crate) fn owner(&self, nth: u64) -> Page {
        self.judged.state().pages.get(self.page(nth)).unwrap()
    }

    /// Level and note at `ipa`.
    pub(crate) fn note(&self, ipa: u64) -> Option<(Level, Note)> {
        let cpu = &self.judged.world.cpus[0];
        let ipa = hyp::addr::Ipa::new(ipa).unwrap();
        match self.judged.guest(1).lock(cpu).table().lookup(cpu, ipa).unwrap() {
            (level, Entry::Note(note)) => Some((level, note)),
            _ => None,
        }
    }

    /// What the guest finds at the first word of a page; nothing if it faults.
    pub(crate) fn load(&self, ipa: u64) -> Option<u64> {
        let context = self.judged.guest(1).lock(&self.judged.world.cpus[0]).context();
        self.judged.world.sim.load(context, ipa, true).into_iter().next()
    }

    pub(crate) fn store(&self, ipa: u64, value: u64) {
        let context = self.judged.guest(1).lock(&self.judged.world.cpus[0]).context();
        self.judged.world.sim.store(context, ipa, true, value);
    }

    /// True if the host has the page, and finds nothing in it.
    pub(crate) fn is_back_and_zero(&self, nth: u64) -> bool {
        let (world, page) = (&self.judged.world, self.judged.world.page(nth));
        world.touch(0, page, Access::R)
            && world.contents(page) == [0; 512]
            && world.contents_in_ram(page) == [0; 512]
    }

    /// The host writes into all of its page `nth`.
    pub(crate) fn fill(&self, nth: u64) {
        let page = self.judged.world.page(nth);
        assert!(self.judged.world.touch(0, page, Access::W));
        for word in 0..512 {
            self.judged.world.sim.memory().write(page.raw(), word, SECRET);
        }
    }

    /// How often a site was passed while `f` ran.
    pub(crate) fn passes<T>(&self, sites: &[Site], f: impl FnOnce() -> T) -> (T, u64) {
        let faults = self.judged.world.hyp.faults();
        faults.clear();
        let value = f();
        let passes = sites.iter().map(|site| faults.stats(*site).hits).sum();
        faults.clear();
        (value, passes)
    }
}

/// 2 MiB.
pub(crate) const BLOCK: u64 = 2 * MIB;
