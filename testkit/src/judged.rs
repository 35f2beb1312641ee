//! A [`World`] whose every call is judged by the executable specification, beside the checker that
//! watches its CPUs.

use crate::machine::Cpu;
use crate::memory::lock;
use crate::vms::{VmSetup, Vms};
use crate::world::{Setup, World};
use abi::inspect::Damage;
use abi::vm::TagState;
use abi::{Errno, HostFn};
use hyp::addr::Pfn;
use hyp::hcall::{HostRegs, dispatch};
use hyp::hw::Machine;
use hyp::mem_protect::{Census, Finding, Guest, Pinned, guest_frames};
use hyp::mte::tag_state;
use hyp::pgtable::Access;
use hyp::spec::model::live::judged;
use hyp::spec::model::{Answer, Call, Complaint, Flaw, NO_TAG, Oracle, Page, Phase, Slot, State, Vm};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// Runs that a state of the specification can have here.
pub const RUNS: usize = 512;
/// What an audit says of pins without vCPUs.
const LOOSE_PIN: Finding = Finding { damage: Damage::Pins, handle: 0, frame: 0 };
/// The abstract state of a [`Judged`] world.
pub type Abstract = State<RUNS>;

/// The world and its judge.
#[derive(Debug)]
pub struct Judged<C: Machine = Cpu> {
    /// The world. What a test does to it directly is seen by the checker alone.
    pub world: World<C>,
    vms: Vms<C>,
    oracle: Box<Oracle<C::Relax, RUNS>>,
    pins: Mutex<BTreeMap<u64, Vec<Pinned>>>,
    settled: Mutex<Box<Abstract>>,
    /// Pages that got the contents of another page of their VM since.
    moved: Mutex<BTreeSet<u64>>,
}

fn panic_on(complaint: &Complaint) {
    if !std::thread::panicking() {
        panic!("specification: {complaint}");
    }
}

impl Judged {
    /// The machine of `setup` with a judge.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self::of(setup.start())
    }
}

impl<C: Machine> Judged<C> {
    /// `world`, to which no call was made yet, with a judge.
    #[must_use]
    pub fn of(world: World<C>) -> Self {
        let oracle = Box::new(Oracle::new(panic_on));
        let judged = Self {
            world,
            vms: Vms::default(),
            oracle,
            pins: Mutex::new(BTreeMap::new()),
            settled: Mutex::new(Box::new(Abstract::empty())),
            moved: Mutex::new(BTreeSet::new()),
        };
        judged.look();
        judged.oracle.copy_to(&mut lock(&judged.settled));
        judged
    }

    /// The same with these VMs.
    #[must_use]
    pub fn with(mut self, vms: &[VmSetup]) -> Self {
        vms.iter().for_each(|setup| self.create(0, *setup));
        self
    }

    fn read(&self, state: &mut Abstract) -> Result<(), Flaw> {
        self.world.read(&self.vms.roots(), state)
    }

    /// Takes what the tables say for the state to go on from.
    fn look(&self) {
        self.oracle.look(|state| self.read(state));
    }

    /// Expects the tables to say `expected`, after something that was not one call.
    #[track_caller]
    fn expect(&self, expected: &Abstract) {
        self.look();
        let state = self.state();
        if let Some(difference) = expected.differences(&state).next() {
            panic!("specification: {difference}");
        }
    }

    /// The host makes a VM of its pages.
    ///
    /// # Panics
    /// If anything but those pages changes hands.
    #[track_caller]
    pub fn create(&mut self, cpu: usize, setup: VmSetup) {
        let mut expected = self.state();
        let first = self.world.page(setup.first).raw();
        let pages: Vec<u64> = (first..first + setup.pages()).collect();
        let pending = setup.mte.is_lazy() && !self.world.sim.features().mte_perm;
        let vm = Vm { mte: setup.mte, pending, ..setup.vm };
        assert_eq!(expected.make_vm(vm, &pages), Ok(()), "a VM of what the host has");
        self.vms.create(&self.world, cpu, setup);
        self.expect(&expected);
        self.settle();
    }

    /// The VM is in `phase` from here on, by a call that moves no page.
    ///
    /// # Panics
    /// If there is no such VM.
    pub fn enter(&self, handle: u16, phase: Phase) {
        self.vms.find(handle.into()).expect("the VM exists").enter(phase);
        self.look();
    }

    /// The table and the stores of a VM.
    ///
    /// # Panics
    /// If there is no such VM.
    #[must_use]
    pub fn guest(&self, handle: u16) -> &Guest<C> {
        &self.vms.find(handle.into()).expect("the VM exists").guest
    }

    /// True if the host has every page that such a VM is made of, and no VM has its handle.
    #[must_use]
    pub fn can_create(&self, setup: VmSetup) -> bool {
        let first = self.world.page(setup.first).raw();
        let pages: Vec<u64> = (first..first + setup.pages()).collect();
        self.state().make_vm(setup.vm, &pages).is_ok()
    }

    /// The host takes apart a VM that owns no page any more; everything it was made of comes back.
    ///
    /// # Panics
    /// If anything else changes hands, or something comes back unscrubbed.
    #[track_caller]
    pub fn finish(&mut self, cpu: usize, handle: u16) {
        let mut expected = self.state();
        let pages = self.vms.finish(&self.world, cpu, handle);
        assert_eq!(expected.vm_teardown_finish(handle.into(), &pages), Ok(()), "of VM {handle}");
        for &pfn in &pages {
            // The link is documented output; of the rest nothing may be seen.
            self.world.sim.memory().write(pfn, 0, 0);
            self.world.sim.memory().write_ram(pfn, 0, 0);
        }
        self.expect(&expected);
        self.settle();
    }

    /// Lets the hypervisor look at all it has, while no call is under way; how many pages of each
    /// kind there are.
    ///
    /// # Panics
    /// If it finds damage, or does not find that a pin is no vCPU's: there are none here.
    #[track_caller]
    pub fn audit(&self, cpu: usize) -> Census {
        let audit = self.world.hyp.audit(&self.world.cpus[cpu], None, &self.vms);
        let audit = audit.expect("nothing changes meanwhile");
        let pinned = lock(&self.pins).values().any(|pins| !pins.is_empty());
        let expected: &[Finding] = if pinned { &[LOOSE_PIN] } else { &[] };
        assert_eq!(audit.findings(), expected, "audit");
        audit.census
    }

    /// Pages in the table cache of a VM.
    ///
    /// # Panics
    /// If there is no such VM.
    #[must_use]
    pub fn cached(&self, handle: u16) -> u64 {
        let vm = self.vms.find(handle.into()).expect("the VM exists");
        vm.guest.lock(&self.world.cpus[0]).cache().pages()
    }

    /// What the specification and the tables agree on; while no call is under way.
    #[must_use]
    pub fn state(&self) -> Box<Abstract> {
        let mut state = Box::new(Abstract::empty());
        self.oracle.copy_to(&mut state);
        state
    }

    /// Makes `call` on CPU `cpu`; what the host calls goes through its registers.
    ///
    /// # Panics
    /// If the specification does not agree with what comes of it.
    #[track_caller]
    pub fn call(&self, cpu: usize, call: Call) -> Answer {
        let host = |function: HostFn, words: [u64; 2]| {
            let mut regs: HostRegs = [0; 18];
            [regs[0], regs[1], regs[2]] = [function.id().into(), words[0], words[1]];
            self.host_call(cpu, &mut regs)
        };
        match call {
            Call::HostShareHyp { pfn } => host(HostFn::HostShareHyp, [pfn, 0]),
            Call::HostUnshareHyp { pfn } => host(HostFn::HostUnshareHyp, [pfn, 0]),
            Call::HostDonateHyp { pfn, nr } => host(HostFn::HostDonateHyp, [pfn, nr]),
            Call::HypDonateHost { pfn, nr } => host(HostFn::HypDonateHost, [pfn, nr]),
            _ => {
                if let Call::VmTopup { pfn, nr, .. } = call {
                    self.link(pfn, nr);
                }
                let ticket = self.oracle.begin(call, |state| self.read(state));
                let answer = self.perform(cpu, call);
                self.oracle.end(ticket, answer, |state| self.read(state));
                answer
            }
        }
    }

    /// Makes the host call that is in `regs`.
    ///
    /// # Panics
    /// As [`Judged::call`]; also if the reply is no reply.
    #[track_caller]
    pub fn host_call(&self, cpu: usize, regs: &mut HostRegs) -> Answer {
        let hw = &self.world.cpus[cpu];
        let before = *regs;
        let serve = |regs: &mut HostRegs| dispatch(&self.world.hyp, hw, regs);
        judged(&self.oracle, false, regs, serve, |state| self.read(state));
        if regs[0] == abi::smccc::NOT_SUPPORTED {
            assert_eq!(regs[1..], before[1..], "an unknown call changed registers");
            return Err(Errno::Eopnotsupp);
        }
        assert_eq!(regs[0], abi::smccc::SUCCESS);
        assert_eq!(regs[4..], before[4..], "a reply has x0 to x3");
        let answer = Errno::from_reg(regs[1]).unwrap_or_else(|| panic!("x1 = {:#x}", regs[1]));
        answer.map(|()| [regs[2], regs[3]])
    }

    /// The host links `nr` pages from `pfn` on, where they are its own.
    fn link(&self, pfn: u64, nr: u64) {
        let state = self.state();
        for page in pfn..pfn.saturating_add(nr.min(128)) {
            if state.pages.get(page) == Some(Page::Host) {
                self.world.sim.memory().write(page, 0, page + 1);
            }
        }
    }

    /// The transitions that the host does not ask for in registers.
    fn perform(&self, cpu: usize, call: Call) -> Answer {
        let (hyp, hw) = (&self.world.hyp, &self.world.cpus[cpu]);
        match call {
            Call::HypPin { pfn } => {
                let page = Pfn::new(pfn).map_err(|_| Errno::Erange)?;
                let pinned = hyp.hyp_pin(hw, page).map_err(|e| e.errno())?;
                lock(&self.pins).entry(pfn).or_default().push(pinned);
                Ok([0; 2])
            }
            Call::HypUnpin { pfn } => {
                // Without a pin there is no value to call it with.
                let pinned = lock(&self.pins).get_mut(&pfn).and_then(Vec::pop);
                let page = Pfn::new(pfn).map_err(|_| Errno::Erange)?;
                hyp.vmemmap().get(page).ok_or(Errno::Erange)?;
                hyp.hyp_unpin(hw, pinned.ok_or(Errno::Eperm)?);
                Ok([0; 2])
            }
            Call::HostUpgradeGuest { handle, gfn, new } => {
                let old = u16::try_from(handle).ok().and_then(|handle| self.state().slot(handle, gfn));
                let had = match old {
                    Some(Slot::Mapped { pfn, .. }) => Pfn::new(pfn).ok().map(|old| self.world.contents(old)),
                    _ => None,
                };
                let answer = self.vms.call(&self.world, cpu, call)?;
                let page = Pfn::new(new).map_err(|_| Errno::Erange)?;
                assert_eq!(had, Some(self.world.contents(page)), "page {new:#x} is what the old one was");
                lock(&self.moved).insert(new);
                Ok(answer)
            }
            other => self.vms.call(&self.world, cpu, other),
        }
    }

    /// The host reads `pfn` on CPU `cpu`; whether it may, and how often it takes, is checked
    /// against the abstract state, which does not change.
    ///
    /// # Panics
    /// If the host gets what it may not, or not what it may.
    pub fn touch(&self, cpu: usize, pfn: u64) {
        let may = match self.state().pages.get(pfn) {
            Some(page) => may_touch(page),
            None => return,
        };
        let page = Pfn::new(pfn).expect("RAM lies below 2^48");
        assert_eq!(self.world.touch(cpu, page, Access::R), may, "the host at page {pfn:#x}");
        self.expect(&self.state());
    }

    /// What VM_TAG_INFO would say of a VM's frame, on CPU `cpu`, is what the abstract state does.
    ///
    /// # Panics
    /// If it is not.
    pub fn tag_info(&self, cpu: usize, handle: u64, gfn: u64) {
        let (Ok(vm), Ok(frame)) = (self.vms.find(handle), guest_frames(gfn, 1)) else { return };
        let said = tag_state(&self.world.cpus[cpu], &vm.guest.lock(&self.world.cpus[cpu]), frame.start());
        let vm = vm.vm();
        let right = match self.state().slot(vm.handle, gfn) {
            _ if gfn >> (vm.ipa_bits - 12) != 0 => Err(Errno::Erange),
            Some(Slot::Mapped { prot, .. }) if prot & NO_TAG == 0 => Ok(TagState::Tagged),
            Some(Slot::Mapped { .. }) if vm.pending => Ok(TagState::Pending),
            Some(Slot::Mapped { .. }) => Ok(TagState::NoTag),
            _ => Ok(TagState::None),
        };
        assert_eq!(said.map_err(|e| e.errno()), right, "the tags of frame {gfn:#x} of VM {handle}");
    }

    /// Sees that pages which changed hands since the last time were scrubbed where they must be, and
    /// lets whoever has them now write into them.
    ///
    /// # Panics
    /// If one was not.
    pub fn settle(&self) {
        let state = self.state();
        let mut settled = lock(&self.settled);
        let moved = std::mem::take(&mut *lock(&self.moved));
        let memory = self.world.sim.memory();
        for run in settled.pages.differences(&state.pages) {
            let (Some(from), Some(to)) = run.value else { continue };
            for pfn in run.start..run.end {
                let scrubbed = match to {
                    Page::Guest { .. } => from == Page::Host && !moved.contains(&pfn),
                    Page::GuestSharedWithHost { .. } => from == Page::Host,
                    to => may_touch(to) && !may_touch(from),
                };
                assert!(!scrubbed || memory.is_zero(pfn), "page {pfn:#x} went on with its contents");
                if matches!(to, Page::Host | Page::Guest { .. }) {
                    for word in [0, 7, 255, 511] {
                        memory.write(pfn, word, pfn << 12 | 0xfff);
                    }
                }
            }
        }
        *settled = state;
    }
}

/// True if the host may read and write the page.
fn may_touch(page: Page) -> bool {
    match page {
        Page::Host
        | Page::SharedWithHyp { .. }
        | Page::SharedWithGuest { .. }
        | Page::GuestSharedWithHost { .. } => true,
        Page::Lent | Page::Hyp | Page::Vm | Page::Guest { .. } => false,
    }
}
