//! A machine with the hypervisor and its VMs, and a host that calls it.

use abi::exit::{ExitFlags, Reason, Resp, word};
use abi::inspect::Figure;
use abi::vm::{NO_PAGE, VmFlags};
use abi::{Errno, HostFn};
use hyp::addr::Pfn;
use hyp::guest::calls::Services;
use hyp::guest::idregs::{GuestCpu, IdRegisters};
use hyp::guest::{Config, CpuState, Share, Vms};
use hyp::hcall::HostRegs;
use hyp::hw::{CpuFeatures, PhysMem};
use hyp::mem_protect::Census;
use hyp::pgtable::Access;
use hyp::spec::model::live::{self, judged};
use hyp::spec::model::{Flaw, Oracle, State};
use spin::Spin;
use std::cell::{Cell, RefCell};
use testkit::Cpu;
use testkit::features;
use testkit::guest::Instr;
use testkit::world::{RUNS, Setup, World};

/// The machine.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) vms: Box<Vms<Cpu>>,
    cpus: Vec<Share<Cpu>>,
    next: RefCell<u64>,
    oracle: Box<Oracle<Spin, RUNS>>,
    judging: Cell<bool>,
}

/// What stands in a page that nobody else should see.
pub(crate) const SECRET: u64 = 0x5ec2_e75e;

/// x2 and x3 of a call.
pub(crate) type Outputs = [u64; 2];

/// What a call answers: outputs, or errno and outputs.
pub(crate) type Answer = Result<Outputs, (Errno, Outputs)>;

/// What a CPU with everything says it has.
pub(crate) fn id_registers() -> IdRegisters {
    IdRegisters {
        group3: [0x1111_1111_1111_1111; 56],
        revidr: 0x51,
        aidr: 0,
        clidr: 0x0a20_0023,
        ctr: 4 << 16,
        ich_vtr: 3,
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::on(features::MAX)
    }

    pub(crate) fn on(features: CpuFeatures) -> Self {
        Self::with(Setup::new(features))
    }

    pub(crate) fn with(setup: Setup) -> Self {
        let features = setup.features;
        let rig = Self::without_guests(setup);
        let services = Services { workarounds: [Some(0), None, Some(1)], random: true };
        rig.vms.start(Config::new(&features, GuestCpu::new(&id_registers()), services));
        rig
    }

    /// A machine that boot found to run no guests.
    pub(crate) fn without_guests(setup: Setup) -> Self {
        let mut world = setup.start();
        let cpus = world
            .windows
            .drain(..)
            .map(|w| Share::new(Some(CpuState::new(w.into_inner().unwrap()))))
            .collect();
        let vms = Box::new(Vms::new());
        let next = RefCell::new(world.first_free());
        let oracle = Box::new(Oracle::new(|complaint| panic!("{complaint}")));
        let rig = Self { world, vms, cpus, next, oracle, judging: Cell::new(true) };
        rig.oracle.look(|state| rig.read(state));
        rig
    }

    fn with_share<T>(&self, cpu: usize, f: impl FnOnce(&Cpu, &mut CpuState<Cpu>) -> T) -> T {
        let mut share = self.cpus[cpu].lock();
        f(&self.world.cpus[cpu], share.as_mut().expect("made by the rig"))
    }

    /// What the host has in its registers when it calls on CPU `cpu`, and finds there afterwards.
    pub(crate) fn dispatch(&self, cpu: usize, regs: &mut HostRegs) {
        let serve = |regs: &mut HostRegs| {
            self.with_share(cpu, |hw, share| {
                hyp::hcall::vm::dispatch(&self.world.hyp, &self.vms, hw, share, regs);
            });
        };
        if self.judging.get() {
            judged(&self.oracle, true, regs, serve, |state| self.read(state));
        } else {
            serve(regs);
        }
    }

    /// Calls as the host on CPU `cpu`.
    pub(crate) fn call_on(&self, cpu: usize, call: HostFn, args: &[u64]) -> Answer {
        let mut regs: HostRegs = [0xdead; 18];
        regs[0] = call.id().into();
        regs[1..=args.len()].copy_from_slice(args);
        let before = regs;
        self.dispatch(cpu, &mut regs);
        assert_eq!(regs[0], 0, "{call:?} is a call");
        assert_eq!(regs[4..], before[4..], "x4 and up are kept");
        assert!(!self.world.sim.runs_guest(cpu), "the host is back");
        let outputs = [regs[2], regs[3]];
        match Errno::from_reg(regs[1]) {
            Some(Ok(())) => Ok(outputs),
            Some(Err(e)) => Err((e, outputs)),
            None => panic!("{call:?}: x1 = {:#x} is no errno", regs[1]),
        }
    }

    /// Makes two calls at once, on CPUs 0 and 1, without the specification; what they answer.
    pub(crate) fn at_once(&self, calls: [(HostFn, &[u64]); 2]) -> [Answer; 2] {
        let (world, vms, cpus) = (&self.world, &*self.vms, &self.cpus);
        let answers = std::thread::scope(|scope| {
            let racers = [0, 1].map(|cpu| {
                let (call, args) = calls[cpu];
                scope.spawn(move || {
                    let mut regs: HostRegs = [0; 18];
                    regs[0] = call.id().into();
                    regs[1..=args.len()].copy_from_slice(args);
                    let mut share = cpus[cpu].lock();
                    let share = share.as_mut().expect("made by the rig");
                    hyp::hcall::vm::dispatch(&world.hyp, vms, &world.cpus[cpu], share, &mut regs);
                    let outputs = [regs[2], regs[3]];
                    match Errno::from_reg(regs[1]) {
                        Some(Ok(())) => Ok(outputs),
                        Some(Err(e)) => Err((e, outputs)),
                        None => panic!("{call:?}: x1 = {:#x} is no errno", regs[1]),
                    }
                })
            });
            racers.map(|racer| racer.join().expect("no panic"))
        });
        self.oracle.look(|state| self.read(state));
        answers
    }

    /// Calls as the host on CPU 0.
    pub(crate) fn call(&self, call: HostFn, args: &[u64]) -> Answer {
        self.call_on(0, call, args)
    }

    /// CPU `cpu` is about to have firmware end the machine.
    pub(crate) fn scrub(&self, cpu: usize) {
        self.with_share(cpu, |hw, share| self.vms.scrub(&self.world.hyp, hw, share, self.cpus.iter()));
    }

    /// X0..X30 of the vCPU that CPU `cpu` has loaded, which no host call shows.
    pub(crate) fn loaded_registers(&self, cpu: usize) -> [u64; 31] {
        self.with_share(cpu, |_, share| share.loaded_context().expect("a vCPU is loaded").x)
    }

    /// Exception registers of the vCPU that CPU `cpu` has loaded: ESR, FAR and ELR of EL1.
    pub(crate) fn exception(&self, cpu: usize) -> [u64; 3] {
        self.with_share(cpu, |_, share| {
            let el1 = &share.loaded_context().expect("a vCPU is loaded").el1;
            [el1.esr, el1.far, el1.elr]
        })
    }

    /// A call that must succeed; its x2.
    #[track_caller]
    pub(crate) fn ok(&self, call: HostFn, args: &[u64]) -> u64 {
        match self.call(call, args) {
            Ok([x2, _]) => x2,
            Err(e) => panic!("{call:?} {args:x?}: {e:x?}"),
        }
    }

    /// A call that must be refused with an errno.
    #[track_caller]
    pub(crate) fn refused(&self, call: HostFn, args: &[u64], errno: Errno) {
        let got = self.call(call, args).map_err(|(e, _)| e);
        assert_eq!(got, Err(errno), "{call:?} {args:x?}");
    }

    /// `nr` fresh pages of the host, aligned to `nr` if that is a power of two.
    pub(crate) fn pages(&self, nr: u64) -> u64 {
        let mut next = self.next.borrow_mut();
        let base = self.world.page(0).raw();
        let start = (base + *next).next_multiple_of(nr.next_power_of_two());
        *next = start + nr - base;
        start
    }

    /// A fresh page that the host fills with `word`.
    pub(crate) fn filled(&self, word: u64) -> u64 {
        let page = self.pages(1);
        self.fill(page, word);
        page
    }

    pub(crate) fn fill(&self, page: u64, word: u64) {
        let pfn = Pfn::new(page).unwrap();
        assert!(self.world.touch(0, pfn, Access::W), "the host can write its own page");
        for index in 0..512 {
            self.world.sim.memory().write(page, index, word);
        }
    }

    /// Fills the exit record of vCPU 0 with rubbish, but for the answer.
    pub(crate) fn fill_record(&self, vm: &TestVm<'_>) {
        for index in (0..word::RESP).chain(word::LR..512) {
            self.world.sim.memory().write(vm.record(0), index, u64::MAX);
        }
    }

    /// True if the host can read the page.
    pub(crate) fn host_reads(&self, page: u64) -> bool {
        self.world.touch(0, Pfn::new(page).unwrap(), Access::R)
    }

    /// A word of a page as EL2 sees it.
    pub(crate) fn word(&self, page: u64, index: usize) -> u64 {
        self.world.sim.memory().read(page, index)
    }

    /// What an audit counts, which finds nothing and no page that is nobody's.
    #[track_caller]
    pub(crate) fn audit(&self) -> Census {
        let audit = self.world.hyp.audit(&self.world.cpus[0], None, &*self.vms).unwrap();
        assert!(audit.is_clean(), "{:x?}", audit.findings());
        assert_eq!(audit.census.get(Figure::Loose), 0, "{audit:?}");
        audit.census
    }

    /// The tables and records, as the specification reads them.
    fn read(&self, state: &mut State<RUNS>) -> Result<(), Flaw> {
        self.world.read(&live::vms(&self.vms, &self.world.cpus[0]), state)
    }

    /// Whether the specification judges the calls that follow.
    pub(crate) fn judge(&self, judging: bool) {
        self.judging.set(judging);
    }

    /// The abstract state, which contradicts itself nowhere.
    #[track_caller]
    pub(crate) fn state(&self) -> Box<State<RUNS>> {
        self.audit();
        let guests = live::vms(&self.vms, &self.world.cpus[0]);
        self.world.state(&guests)
    }
}

/// A VM of the host, as its VMM knows it.
pub(crate) struct TestVm<'a> {
    pub(crate) rig: &'a Rig,
    pub(crate) handle: u64,
    pub(crate) protected: bool,
    pub(crate) split: bool,
    records: RefCell<Vec<u64>>,
    /// Pages the VM has, by guest frame.
    pub(crate) pages: RefCell<Vec<(u64, u64)>>,
}

/// Where programs of a VM's vCPU 0 start.
pub(crate) const PC: u64 = 0x10_0000;
/// IPA bits of a [`TestVm`].
pub(crate) const BITS: u64 = 32;

/// What a turn ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) reason: Reason,
    pub(crate) flags: ExitFlags,
    pub(crate) gpa: u64,
    pub(crate) size: u32,
    pub(crate) dir: u32,
    pub(crate) data: u64,
    pub(crate) base: u64,
    pub(crate) top: u64,
    pub(crate) want: u32,
    pub(crate) need_pages: u32,
    pub(crate) repeat: u32,
    pub(crate) vtimer: u64,
}

impl<'a> TestVm<'a> {
    /// A VM with `vcpus` vCPUs in phase NEW, and eight pages in its cache.
    pub(crate) fn new(rig: &'a Rig, protected: bool, vcpus: u64) -> Self {
        let vm = Self::with_bits(rig, protected, vcpus, BITS);
        vm.topup(8);
        vm
    }

    /// A VM in phase NEW whose IPA space has `bits` bits, and a root of one page, with an empty
    /// cache.
    pub(crate) fn with_bits(rig: &'a Rig, protected: bool, vcpus: u64, bits: u64) -> Self {
        let flags = if protected { VmFlags::PROTECTED } else { VmFlags::empty() };
        Self::with_flags(rig, flags, vcpus, bits)
    }

    /// A VM with split IPA in phase NEW, and eight pages in its cache.
    pub(crate) fn split(rig: &'a Rig, vcpus: u64) -> Self {
        let vm = Self::with_flags(rig, VmFlags::PROTECTED | VmFlags::SPLIT_IPA, vcpus, BITS);
        vm.topup(8);
        vm
    }

    /// A VM in phase NEW of any kind, with an empty cache.
    pub(crate) fn with_flags(rig: &'a Rig, flags: VmFlags, vcpus: u64, bits: u64) -> Self {
        let (protected, split) = (flags.contains(VmFlags::PROTECTED), flags.contains(VmFlags::SPLIT_IPA));
        let reserve = if protected { rig.pages(1) } else { NO_PAGE };
        let flags = flags.bits();
        let handle = rig.ok(HostFn::VmCreate, &[flags, bits, rig.pages(1), 1, rig.pages(1), 1, reserve]);
        let vm =
            Self { rig, handle, protected, split, records: RefCell::default(), pages: RefCell::default() };
        for idx in 0..vcpus {
            vm.add_vcpu(idx);
        }
        vm
    }

    /// The same, ready to run.
    pub(crate) fn active(rig: &'a Rig, protected: bool, vcpus: u64) -> Self {
        let vm = Self::new(rig, protected, vcpus);
        rig.ok(HostFn::VmFinalise, &[vm.handle]);
        vm
    }

    pub(crate) fn add_vcpu(&self, idx: u64) {
        self.add_vcpu_at(idx, if idx == 0 { PC } else { 0 }, 0);
    }

    /// Adds a vCPU that starts at `pc` with `x0`.
    pub(crate) fn add_vcpu_at(&self, idx: u64, pc: u64, x0: u64) {
        let record = self.rig.pages(1);
        self.rig.ok(HostFn::HostShareHyp, &[record]);
        self.rig.ok(HostFn::VcpuCreate, &[self.handle, idx, self.rig.pages(1), 1, record, pc, x0]);
        self.records.borrow_mut().push(record);
    }

    /// Tops the VM up with `nr` pages.
    pub(crate) fn topup(&self, nr: u64) {
        let pages: Vec<u64> = (0..nr).map(|_| self.rig.pages(1)).collect();
        for (n, &page) in pages.iter().enumerate() {
            self.rig.fill(page, 0);
            let next = pages.get(n + 1).copied().unwrap_or(NO_PAGE);
            self.rig.world.sim.memory().write(page, 0, next);
        }
        assert_eq!(self.rig.ok(HostFn::VmTopup, &[self.handle, pages[0], nr]), nr);
    }

    /// Gives, or lends, a fresh page at `ipa`; its frame.
    pub(crate) fn give(&self, ipa: u64) -> u64 {
        let page = self.rig.filled(SECRET);
        self.give_page(ipa, page);
        page
    }

    pub(crate) fn give_page(&self, ipa: u64, page: u64) {
        let call = if self.protected { HostFn::GuestDonate } else { HostFn::GuestShare };
        self.rig.ok(call, &[self.handle, ipa >> 12, page, 0, 7]);
        self.pages.borrow_mut().push((ipa >> 12, page));
    }

    pub(crate) fn load(&self, cpu: usize, idx: u64) {
        self.rig.call_on(cpu, HostFn::VcpuLoad, &[self.handle, idx]).unwrap();
    }

    pub(crate) fn put(&self, cpu: usize) {
        self.rig.call_on(cpu, HostFn::VcpuPut, &[]).unwrap();
    }

    pub(crate) fn record(&self, idx: usize) -> u64 {
        self.records.borrow()[idx]
    }

    /// Writes the answer of vCPU `idx`.
    pub(crate) fn answer(&self, idx: usize, resp: u32, mmio_data: u64) {
        let (hw, page) = (&self.rig.world.cpus[0], Pfn::new(self.record(idx)).unwrap());
        hw.untraced().write_word(page, word::RESP, resp.into());
        hw.untraced().write_word(page, word::MMIO_DATA, mmio_data);
    }

    /// Supplies list registers.
    pub(crate) fn list_registers(&self, idx: usize, lrs: &[u64], hcr: u32) {
        let (hw, page) = (&self.rig.world.cpus[0], Pfn::new(self.record(idx)).unwrap());
        let gic = lrs.len() as u64 | u64::from(hcr) << 32;
        hw.untraced().write_word(page, word::GIC, gic);
        for (n, lr) in lrs.iter().enumerate().take(16) {
            hw.untraced().write_word(page, word::LR + n, *lr);
        }
    }

    /// X0..X30 of vCPU `idx`, which no CPU has loaded; no host call shows them.
    pub(crate) fn idle_registers(&self, idx: u8) -> [u64; 31] {
        let hw = &self.rig.world.cpus[0];
        self.rig.vms.idle_context(hw, self.handle, idx, |ctx| ctx.x).expect("a vCPU is idle")
    }

    /// Runs what CPU `cpu` has loaded, vCPU `idx`.
    pub(crate) fn try_run(&self, cpu: usize, idx: usize) -> Result<Exit, Errno> {
        self.rig.call_on(cpu, HostFn::VcpuRun, &[]).map_err(|(e, _)| e)?;
        Ok(self.exit(idx))
    }

    /// Runs vCPU 0 on CPU 0.
    #[track_caller]
    pub(crate) fn run(&self) -> Exit {
        self.try_run(0, 0).unwrap()
    }

    /// Runs vCPU 0 on CPU 0 with an answer to the last exit.
    #[track_caller]
    pub(crate) fn reply(&self, resp: Resp, mmio_data: u64) -> Exit {
        self.answer(0, resp as u32, mmio_data);
        self.run()
    }

    /// What the record of vCPU `idx` says.
    pub(crate) fn exit(&self, idx: usize) -> Exit {
        let words: Vec<u64> = (0..word::END).map(|n| self.rig.word(self.record(idx), n)).collect();
        let half = |n: usize, upper: bool| {
            u32::try_from(if upper { words[n] >> 32 } else { words[n] & 0xffff_ffff }).unwrap()
        };
        Exit {
            reason: Reason::from_u32(half(0, false)).expect("a reason"),
            flags: ExitFlags::from_bits(half(0, true)).expect("known flags"),
            gpa: words[1],
            size: half(2, false),
            dir: half(2, true),
            data: words[3],
            base: words[4],
            top: words[5],
            want: half(6, false),
            need_pages: half(6, true),
            repeat: half(7, false),
            vtimer: words[8],
        }
    }

    /// A register of the loaded vCPU of a VM that is not protected.
    pub(crate) fn reg(&self, reg: u64) -> u64 {
        self.rig.ok(HostFn::VcpuGetReg, &[reg])
    }

    /// Takes the VM apart, as a host does; every page is the host's again.
    #[track_caller]
    pub(crate) fn destroy(self) {
        let Self { rig, handle, protected, split, .. } = self;
        rig.ok(HostFn::VmTeardownStart, &[handle]);
        if protected {
            let top = (1 << BITS) >> u32::from(split);
            let mut at = 0;
            while at < top {
                at = rig.ok(HostFn::ReclaimDying, &[handle, at, top]);
            }
        }
        let mut returned = 0;
        loop {
            let (chain, gone) = match rig.call(HostFn::VmTeardownFinish, &[handle, 512]) {
                Ok(chain) => (chain, true),
                Err((Errno::Eagain, chain)) => (chain, false),
                Err(e) => panic!("{e:x?}"),
            };
            let [mut page, count] = chain;
            for _ in 0..count {
                assert!(rig.host_reads(page), "a page of the chain is the host's");
                assert!((1..512).all(|n| rig.word(page, n) == 0), "and holds its link alone");
                page = rig.word(page, 0);
                returned += 1;
            }
            assert_eq!(page, NO_PAGE, "the chain ends where its count says");
            if gone {
                break;
            }
        }
        assert!(returned >= 3);
        for record in self.records.borrow().iter() {
            rig.ok(HostFn::HostUnshareHyp, &[*record]);
        }
        rig.refused(HostFn::VcpuLoad, &[handle, 0], Errno::Enoent);
    }
}

/// An exit that says nothing but its reason.
pub(crate) fn plain(reason: Reason) -> Exit {
    Exit {
        reason,
        flags: ExitFlags::empty(),
        gpa: 0,
        size: 0,
        dir: 0,
        data: 0,
        base: 0,
        top: 0,
        want: 0,
        need_pages: 0,
        repeat: 0,
        vtimer: u64::MAX,
    }
}

/// The exit for a page that is missing.
pub(crate) fn mem_fault(ipa: u64, flags: ExitFlags) -> Exit {
    Exit { gpa: ipa, size: 4096, flags, ..plain(Reason::MemFault) }
}

/// WFI: a program's way to say that it is here.
pub(crate) const DONE: Instr = Instr::Wfx { wfe: false };
