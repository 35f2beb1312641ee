//! Random calls without end: a hostile host and its VMs, each call judged by the specification, the
//! checker and the abstraction function, every page that changes hands looked at, and every few calls
//! the whole machine audited.
//!
//! One number, the seed, says what is done; a world lives for some hundred calls, then comes the
//! next, on another CPU model. Arguments are mostly pages and frames that meet again, sometimes edges,
//! sometimes anything.

use crate::features::MATRIX;
use crate::judged::{Abstract, Judged};
use crate::memory::lock;
use crate::vms::VmSetup;
use crate::world::Setup;
use abi::vm::MtePolicy;
use abi::{Errno, HostFn};
use hyp::hw::CpuFeatures;
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Kind, NO_TAG, Page, Phase, Slot, Vm};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

/// What is done to the world.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// A call on a CPU.
    Call(usize, Call),
    /// A host call with these registers on a CPU.
    Registers(usize, [u64; 5]),
    /// The host reads a page.
    Touch(usize, u64),
    /// What is said of the tags of a VM's frame.
    TagInfo(usize, u64, u64),
    /// A dead VM goes, and one of another kind and policy comes in its place.
    Replace(u16, Kind, MtePolicy),
    /// A VM that was NEW runs from here on.
    Start(u16),
}

/// What was done since the world began.
pub type Trail = Arc<Mutex<Vec<Act>>>;

/// Calls from one audit to the next.
const AUDIT: u64 = 4;
/// Calls that a world lives for.
const LIFE: u64 = 600;
const RAM: u64 = 0x40000;
const PAGES: u64 = 3072;
/// First page and number of pages of the hole.
const HOLE: (u64, u64) = (2600, 50);
/// Runs without allocation tags: a few of the pages that meet most, all of a block or a part of it.
const NO_TAGS: [(u64, u64); 4] = [(516, 4), (516, 700), (1024, 512), (518, 2000)];
const VMS: u16 = 4;
const KINDS: [Kind; 3] = [Kind::Classic, Kind::NonProtected, Kind::Split];
/// First frame that a VM with split IPA shares.
const SHARED: u64 = 1 << 19;

/// SplitMix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).expect("an index")]
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pfn(&mut self) -> u64 {
        let page = match self.below(20) {
            0..=9 => 512 + self.below(8),
            10..=13 => 1024 + self.one_of(&[0, 0, 0, 1, 255, 511, 512, 1023]),
            14..=15 => 600 + self.below(90),
            16 => self.one_of(&[0, 64, 511, 2047, 2048, 2599, 2600, 2649, 2650, PAGES - 1, PAGES]),
            17..=18 => self.below(PAGES + 8),
            _ => return self.word(),
        };
        RAM + page
    }

    fn gfn(&mut self) -> u64 {
        match self.below(20) {
            0..=9 => 0x10 + self.below(6),
            10..=14 => self.one_of(&[0x200, 0x200, 0x201, 0x3ff, 0x400]),
            15..=17 => self.below(0x600),
            18 => self.one_of(&[(1 << 20) - 1, 1 << 20, (1 << 36) - 1, u64::MAX]),
            _ => self.word(),
        }
    }

    fn nr(&mut self) -> u64 {
        match self.below(20) {
            0..=13 => 1 + self.below(4),
            14..=16 => self.one_of(&[511, 512, 512, 513]),
            17..=18 => self.below(600),
            _ => self.word(),
        }
    }

    fn order(&mut self) -> u64 {
        match self.below(20) {
            0..=13 => 0,
            14..=18 => 9,
            _ => self.below(12),
        }
    }

    /// A VM, mostly one of `kind`.
    fn handle(&mut self, state: &Abstract, kind: Kind) -> u64 {
        let fitting: Vec<u64> =
            state.vms().iter().filter(|vm| vm.kind == kind).map(|vm| vm.handle.into()).collect();
        match self.below(20) {
            0..=16 if !fitting.is_empty() => self.one_of(&fitting),
            0..=18 => 1 + self.below(VMS.into()),
            _ => self.word(),
        }
    }

    /// A page, often one that is not the host's alone.
    fn page(&mut self, state: &Abstract) -> u64 {
        let runs: Vec<_> =
            state.pages.runs().iter().filter(|run| !matches!(run.value, Page::Host | Page::Hyp)).collect();
        if runs.is_empty() || self.percent(60) {
            return self.pfn();
        }
        let run = self.one_of(&runs);
        run.start + self.below(run.end - run.start)
    }

    /// A frame, often one where something stands.
    fn frame(&mut self, state: &Abstract, handle: u64) -> u64 {
        let slots: Vec<_> =
            state.slot_runs().filter(|&(vm, ..)| u64::from(vm) == handle).map(|(_, gfn, ..)| gfn).collect();
        if slots.is_empty() || self.percent(40) { self.gfn() } else { self.one_of(&slots) }
    }

    /// A policy that the CPU has.
    fn policy(&mut self, features: &CpuFeatures) -> MtePolicy {
        match (features.mte, features.mte_perm) {
            (0..=1, _) => MtePolicy::Off,
            (_, false) => self.one_of(&[MtePolicy::Off, MtePolicy::Strict, MtePolicy::Lazy, MtePolicy::Lazy]),
            (_, true) => self.one_of(&MtePolicy::ALL),
        }
    }

    /// A VM with tags on demand, mostly, and a frame of it, often one whose page has none.
    fn frame_to_upgrade(&mut self, state: &Abstract) -> (u64, u64) {
        let no_tag = |slot| matches!(slot, Slot::Mapped { prot, .. } if prot & NO_TAG != 0);
        let there: Vec<_> = state
            .slot_runs()
            .filter(|&(.., slot)| no_tag(slot))
            .map(|(vm, first, nr, _)| (u64::from(vm), first, nr))
            .collect();
        if there.is_empty() || self.percent(40) {
            let kind = self.one_of(&KINDS);
            let handle = self.handle(state, kind);
            return (handle, self.frame(state, handle));
        }
        let (handle, first, nr) = self.one_of(&there);
        (handle, first + self.below(nr))
    }

    fn span(&mut self, gfn: u64) -> (u64, u64) {
        if self.percent(4) {
            return (self.word(), self.word());
        }
        let top = if self.percent(10) { 1 << 32 } else { gfn.wrapping_add(self.nr()) << 12 };
        (gfn << 12, top)
    }

    fn call(&mut self, state: &Abstract) -> Call {
        match self.below(100) {
            0..=17 => self.call_about_hyp(state),
            18..=24 => {
                let (handle, gfn) = self.frame_to_upgrade(state);
                let new = if self.percent(70) { self.pfn() } else { self.page(state) };
                Call::HostUpgradeGuest { handle, gfn, new }
            }
            25..=41 => self.call_about_lending(state),
            42..=77 => self.call_about_giving(state),
            78..=97 => self.call_about_halves(state),
            _ => {
                let kind = self.one_of(&KINDS);
                Call::VmTeardownStart { handle: self.handle(state, kind) }
            }
        }
    }

    fn call_about_hyp(&mut self, state: &Abstract) -> Call {
        let (pfn, nr) = (self.page(state), self.nr());
        match self.below(6) {
            0 => Call::HostShareHyp { pfn },
            1 => Call::HostUnshareHyp { pfn },
            2 => Call::HypPin { pfn },
            3 => Call::HypUnpin { pfn },
            4 => Call::HostDonateHyp { pfn, nr },
            _ => Call::HypDonateHost { pfn, nr },
        }
    }

    fn call_about_lending(&mut self, state: &Abstract) -> Call {
        let handle = self.handle(state, Kind::NonProtected);
        let (gfn, nr, pfn) = (self.frame(state, handle), self.nr(), self.page(state));
        match self.below(14) {
            0..=5 => {
                let (order, gfn, pfn) = self.aligned(gfn, pfn);
                let prot = if self.percent(90) { self.one_of(&[1, 3, 5, 7]) } else { self.word() };
                Call::HostShareGuest { handle, gfn, pfn, order, prot }
            }
            6..=8 => Call::HostUnshareGuest { handle, gfn, nr },
            9..=12 => self.call_about_devices(handle, gfn, nr),
            _ => Call::VmTopup { handle, pfn: self.pfn(), nr },
        }
    }

    fn call_about_giving(&mut self, state: &Abstract) -> Call {
        let handle = self.handle(state, Kind::Classic);
        let (gfn, nr) = (self.frame(state, handle), self.nr());
        match self.below(20) {
            0..=4 => {
                let (gfn, pfn) = (self.gfn(), self.pfn());
                let (order, gfn, pfn) = self.aligned(gfn, pfn);
                if self.percent(25) {
                    Call::HostDonateNoTag { handle, gfn, pfn, order }
                } else {
                    Call::HostDonateGuest { handle, gfn, pfn, order }
                }
            }
            5..=7 => Call::GuestShareHost { handle, gfn, nr },
            8..=9 => Call::GuestUnshareHost { handle, gfn, nr },
            10 => Call::GuestRelinquishHost { handle, gfn, nr },
            11..=12 => {
                let (base, top) = self.span(gfn);
                let refill = if self.percent(50) { NONE } else { self.pfn() };
                Call::HostReclaimGuest { handle, base, top, refill, kept: NONE }
            }
            13..=14 => {
                let (base, top) = self.span(gfn);
                let dying = state.vms().iter().find(|vm| vm.phase == Phase::Dying);
                let handle = dying.map_or(handle, |vm| vm.handle.into());
                Call::HostReclaimDyingGuest { handle, base, top, kept: NONE }
            }
            15..=18 => self.call_about_devices(handle, gfn, nr),
            _ => Call::VmTopup { handle, pfn: self.pfn(), nr },
        }
    }

    fn call_about_halves(&mut self, state: &Abstract) -> Call {
        let handle = self.handle(state, Kind::Split);
        let (gfn, nr) = (self.frame(state, handle), self.nr());
        let (base, top) = self.span(gfn);
        match self.below(20) {
            0..=2 => Call::HostInitRipas { handle, base, top },
            3..=6 => Call::HostApplyRam { handle, base, top, destroyed: self.below(2) },
            7..=8 => Call::HostApplyEmpty { handle, base, top, kept: NONE },
            9..=12 => {
                let (gfn, pfn) = (if self.percent(50) { gfn } else { self.gfn() }, self.pfn());
                let (order, gfn, pfn) = self.aligned(gfn, pfn);
                Call::HostDonateGuest { handle, gfn, pfn, order }
            }
            13 => Call::HostReclaimGuest { handle, base, top, refill: NONE, kept: NONE },
            14..=16 => {
                let (gfn, pfn) = (self.gfn() | SHARED, self.pfn());
                let (order, gfn, pfn) = self.aligned(gfn, pfn);
                let write = if self.percent(95) { self.below(2) } else { self.word() };
                Call::HostShareUnprotected { handle, gfn, pfn, order, write }
            }
            17..=18 => {
                let gfn = if self.percent(95) { gfn | SHARED } else { gfn };
                Call::HostUnshareUnprotected { handle, gfn, nr, first: 0, done: 0 }
            }
            _ => Call::VmTopup { handle, pfn: self.pfn(), nr },
        }
    }

    /// Marks, sometimes where nothing else stands, and what VM_RESET does with them.
    fn call_about_devices(&mut self, handle: u64, gfn: u64, nr: u64) -> Call {
        match self.below(8) {
            0..=2 => Call::GuestMapGuard { handle, gfn: self.gfn(), nr },
            3 => Call::GuestMapGuard { handle, gfn, nr },
            4..=6 => Call::GuestUnmapGuard { handle, gfn, nr },
            _ => Call::HostDropGuards { handle },
        }
    }

    /// An order, and frames that mostly fit it.
    fn aligned(&mut self, gfn: u64, pfn: u64) -> (u64, u64, u64) {
        let order = self.order();
        let down = |frame: u64| if order == 9 { frame & !511 } else { frame };
        if self.percent(95) { (order, down(gfn), down(pfn)) } else { (order, gfn, pfn) }
    }
}

/// The campaign.
#[derive(Debug)]
pub struct Campaign {
    random: Random,
    judged: Judged,
    trail: Trail,
    worlds: u64,
    left: u64,
    calls: u64,
    audits: u64,
    answers: BTreeMap<&'static str, BTreeMap<Option<Errno>, u64>>,
}

impl Drop for Campaign {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_trail(&self.trail);
        }
    }
}

/// Prints what was done since the world began, for whoever has to find out.
pub fn print_trail(trail: &Trail) {
    eprintln!("since this world began:");
    lock(trail).iter().for_each(|act| eprintln!("    {act:x?}"));
}

fn world(random: &mut Random) -> Judged {
    let (_, features) = random.one_of(&MATRIX);
    let no_tags = Some(random.one_of(&NO_TAGS));
    let setup = Setup { pages: PAGES, hole: Some(HOLE), no_tags, table_pages: 28, ..Setup::new(features) };
    let vms: Vec<_> = (1..=VMS)
        .map(|handle| vm(handle, KINDS[usize::from(handle) % 3], random.policy(&features)))
        .collect();
    Judged::new(setup).with(&vms)
}

/// A VM with split IPA is NEW until [`Act::Start`].
fn vm(handle: u16, kind: Kind, mte: MtePolicy) -> VmSetup {
    let setup = VmSetup { mte, ..VmSetup::new(handle, kind, 700 + 8 * u64::from(handle), 5) };
    match kind {
        Kind::Split => VmSetup { vm: Vm { phase: Phase::New, ..setup.vm }, ..setup },
        Kind::Classic | Kind::NonProtected => setup,
    }
}

impl Campaign {
    /// The campaign that `seed` stands for.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let judged = world(&mut random);
        let trail = Trail::default();
        Self { random, judged, trail, worlds: 1, left: LIFE, calls: 0, audits: 0, answers: BTreeMap::new() }
    }

    /// What was done since the present world began.
    #[must_use]
    pub fn trail(&self) -> Trail {
        Arc::clone(&self.trail)
    }

    /// Calls so far.
    #[must_use]
    pub const fn calls(&self) -> u64 {
        self.calls
    }

    /// Makes one call, and what may come before it.
    ///
    /// # Panics
    /// If anything is not as it must be.
    pub fn step(&mut self) {
        if self.left == 0 {
            self.judged = world(&mut self.random);
            lock(&self.trail).clear();
            self.worlds += 1;
            self.left = LIFE;
        }
        self.left -= 1;
        let cpu = usize::from(self.random.percent(50));
        if self.random.percent(15) {
            let pfn = self.random.pfn();
            _ = self.act(Act::Touch(cpu, pfn));
        }
        if self.random.percent(10) {
            let (handle, gfn) = self.random.frame_to_upgrade(&self.judged.state());
            _ = self.act(Act::TagInfo(cpu, handle, gfn));
        }
        self.bury();
        let waiting = self.judged.state().vms().iter().find(|vm| vm.phase == Phase::New).map(|vm| vm.handle);
        if let Some(handle) = waiting.filter(|_| self.random.percent(2)) {
            _ = self.act(Act::Start(handle));
        }
        if self.random.percent(3) {
            let id = self.random.one_of(&HostFn::ALL).id();
            let mut words = [u64::from(id), 0, 0, 0, 0];
            words[1..].fill_with(|| self.random.word());
            _ = self.act(Act::Registers(cpu, words));
        } else {
            let call = self.random.call(&self.judged.state());
            _ = self.act(Act::Call(cpu, call));
        }
        self.calls += 1;
        if self.calls.is_multiple_of(AUDIT) {
            self.audits += 1;
            self.judged.audit(cpu);
        }
    }

    /// Takes a dying VM apart, some time after its end began.
    fn bury(&mut self) {
        let state = self.judged.state();
        let Some(vm) = state.vms().iter().find(|vm| vm.phase == Phase::Dying) else { return };
        if !self.random.percent(15) {
            return;
        }
        let (handle, top) = (u64::from(vm.handle), vm.owned_end() << 12);
        let mut base = 0;
        while vm.kind != Kind::NonProtected && base < top {
            let call = Call::HostReclaimDyingGuest { handle, base, top, kept: NONE };
            let [end, _] = self.act(Act::Call(0, call)).expect("what is dead gives everything back");
            base = end;
        }
        let kind = self.random.one_of(&KINDS);
        let mte = self.random.policy(self.judged.world.sim.features());
        _ = self.act(Act::Replace(vm.handle, kind, mte));
    }

    fn act(&mut self, act: Act) -> Result<[u64; 2], Errno> {
        lock(&self.trail).push(act);
        let mut answer = Ok([0; 2]);
        match act {
            Act::Call(cpu, call) => {
                answer = self.judged.call(cpu, call);
                let answers = self.answers.entry(call.name()).or_default();
                *answers.entry(answer.err()).or_default() += 1;
            }
            Act::Registers(cpu, words) => {
                let mut regs = [0x5a5a; 18];
                regs[..5].copy_from_slice(&words);
                _ = self.judged.host_call(cpu, &mut regs);
            }
            Act::Touch(cpu, pfn) => self.judged.touch(cpu, pfn),
            Act::Start(handle) => self.judged.enter(handle, Phase::Active),
            Act::TagInfo(cpu, handle, gfn) => self.judged.tag_info(cpu, handle, gfn),
            Act::Replace(handle, kind, mte) => {
                self.judged.finish(0, handle);
                let setup = vm(handle, kind, mte);
                if self.judged.can_create(setup) {
                    self.judged.create(0, setup);
                }
            }
        }
        self.judged.settle();
        answer
    }
}

impl fmt::Display for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} calls in {} worlds, {} audits, no difference", self.calls, self.worlds, self.audits)?;
        for (name, answers) in &self.answers {
            write!(f, "  {name:24}")?;
            for (errno, count) in answers {
                match errno {
                    None => write!(f, " ok {count}")?,
                    Some(errno) => write!(f, ", {} {count}", format!("{errno:?}").to_uppercase())?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
