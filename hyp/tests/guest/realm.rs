//! VMs with split IPA: what their guest asks for by SMC, and what comes of it. R-nn and P-nn are
//! the scenarios of docs/ipa-state.md.

use crate::rig::{BITS, DONE, Exit, PC, Rig, SECRET, TestVm, mem_fault, plain};
use abi::Errno::{Eacces, Eagain, Ebusy, Eexist, Ehwpoison, Einval, Enoent, Enomem, Eperm, Erange};
use abi::exit::{ExitFlags, Reason, Resp};
use abi::fault::Site;
use abi::vm::{NO_PAGE, VmFlags};
use abi::{HostFn, psci, rsi, smccc};
use hyp::pgtable::Access;
use hyp::spec::model::{Page, Slot};
use std::cell::Cell;
use testkit::features::{CORTEX_A72, MAX};
use testkit::guest::Instr;

/// Memory of a realm: `[0, RAM_END)`.
pub(crate) const RAM_END: u64 = 64 << 20;
/// The bit that tells shared from private.
pub(crate) const SHARED: u64 = 1 << (BITS - 1);
/// An address that is no memory.
pub(crate) const DEVICE: u64 = 0x0900_0000;
/// Where a guest takes exceptions of its own level.
const SYNC_EL1H: u64 = 0x200;

pub(crate) const SET: u64 = rsi::IPA_STATE_SET as u64;
const GET: u64 = rsi::IPA_STATE_GET as u64;
/// A block in RAM.
pub(crate) const BLOCK: u64 = 2 << 20;

pub(crate) fn mov(rt: u8, value: u64) -> Instr {
    Instr::Mov { rt, value }
}

fn load(ipa: u64) -> Instr {
    Instr::Load { rt: 9, ipa, log2: 3, sign: false, wide: true }
}

fn store(ipa: u64) -> Instr {
    Instr::Store { rt: 9, ipa, log2: 3 }
}

fn change(base: u64, top: u64, want: u32, flags: ExitFlags) -> Exit {
    Exit { base, top, want, flags, ..plain(Reason::RipasChange) }
}

pub(crate) fn private(ipa: u64) -> Exit {
    mem_fault(ipa, ExitFlags::PRIVATE)
}

/// A VM with split IPA; vCPU n runs on CPU n and gets one piece of program after the other.
pub(crate) struct Realm<'a> {
    pub(crate) vm: TestVm<'a>,
    pub(crate) at: [Cell<u64>; 2],
}

impl<'a> Realm<'a> {
    pub(crate) fn new(rig: &'a Rig, vcpus: u64) -> Self {
        let vm = TestVm::split(rig, vcpus);
        assert_eq!(rig.ok(HostFn::VmInitRipas, &[vm.handle, 0, RAM_END]), RAM_END);
        let realm = Self { vm, at: [Cell::new(PC), Cell::new(PC + 0x10_0000)] };
        rig.ok(HostFn::VmFinalise, &[realm.vm.handle]);
        realm.vm.load(0, 0);
        if vcpus > 1 {
            // vCPU 1 starts where the first says.
            let start = [mov(0, psci::CPU_ON_64.into()), mov(1, 1), mov(2, realm.at[1].get()), Instr::Smc];
            assert_eq!(realm.go(0, &start).reason, Reason::Psci);
            assert_eq!(realm.vm.run(), plain(Reason::Wfx));
            realm.vm.load(1, 1);
        }
        // What is not handled here is seen.
        rig.world.sim.program(SYNC_EL1H, &[DONE, Instr::Jump { pc: SYNC_EL1H }]);
        realm
    }

    pub(crate) fn rig(&self) -> &'a Rig {
        self.vm.rig
    }

    pub(crate) fn handle(&self) -> u64 {
        self.vm.handle
    }

    /// Puts `code` and a WFI where vCPU `cpu` will go on, and lets it.
    pub(crate) fn go(&self, cpu: usize, code: &[Instr]) -> Exit {
        let mut code = code.to_vec();
        code.push(DONE);
        self.rig().world.sim.program(self.at[cpu].get(), &code);
        self.at[cpu].set(self.at[cpu].get() + 4 * code.len() as u64);
        self.vm.try_run(cpu, cpu).unwrap()
    }

    /// Lets vCPU `cpu` make the call; its exit.
    pub(crate) fn smc_on(&self, cpu: usize, id: u64, args: [u64; 4]) -> Exit {
        let mut code = vec![mov(0, id)];
        code.extend((1..).zip(args).map(|(rt, value)| mov(rt, value)));
        code.push(Instr::Smc);
        self.go(cpu, &code)
    }

    pub(crate) fn smc(&self, id: u64, args: [u64; 4]) -> Exit {
        self.smc_on(0, id, args)
    }

    pub(crate) fn x(&self, cpu: usize) -> [u64; 3] {
        let [x0, x1, x2, ..] = self.rig().loaded_registers(cpu);
        [x0, x1, x2]
    }

    /// What GET answers vCPU `cpu`.
    #[track_caller]
    fn get_on(&self, cpu: usize, base: u64, top: u64) -> [u64; 3] {
        assert_eq!(self.smc_on(cpu, GET, [base, top, 0, 0]), plain(Reason::Wfx));
        self.x(cpu)
    }

    #[track_caller]
    pub(crate) fn state(&self, ipa: u64) -> u64 {
        let [status, end, state] = self.get_on(0, ipa, ipa + 0x1000);
        assert_eq!((status, end), (rsi::SUCCESS, ipa + 0x1000));
        state
    }

    /// The host does the next part of what vCPU `idx` asked for.
    pub(crate) fn apply(&self, idx: u64, base: u64, top: u64) -> crate::rig::Answer {
        self.rig().call(HostFn::RipasApply, &[self.handle(), idx, base, top])
    }

    /// SET, done by the host in full: what the guest is answered.
    #[track_caller]
    fn set(&self, base: u64, top: u64, state: u64, flags: u64) -> [u64; 3] {
        let exit = self.smc(SET, [base, top, state, flags]);
        assert_eq!((exit.reason, exit.base, exit.top), (Reason::RipasChange, base, top));
        let mut at = base;
        while at < top {
            at = self.apply(0, at, top).unwrap()[0];
        }
        assert_eq!(self.vm.run(), plain(Reason::Wfx));
        self.x(0)
    }

    /// The external abort that vCPU 0 took, and nothing left it but its WFI.
    #[track_caller]
    fn aborts(&self, instr: Instr, ipa: u64) {
        let pc = self.at[0].get();
        assert_eq!(self.go(0, &[instr]), plain(Reason::Wfx), "{instr:?}");
        let class = if matches!(instr, Instr::Fetch { .. }) { 0x21 } else { 0x25 };
        assert_eq!(self.rig().exception(0), [class << 26 | 1 << 25 | 0x210, ipa, pc], "{instr:?}");
        // From the handler on to the next piece of program.
        self.rig().world.sim.program(SYNC_EL1H + 4, &[Instr::Jump { pc: self.at[0].get() }]);
    }

    pub(crate) fn map(&self, ipa: u64, page: u64, write: u64) {
        self.rig().ok(HostFn::UnprotMap, &[self.handle(), ipa >> 12, page, 0, write]);
    }

    fn unmap(&self, ipa: u64, nr: u64) -> [u64; 2] {
        self.rig().call(HostFn::UnprotUnmap, &[self.handle(), ipa >> 12, nr]).unwrap()
    }
}

#[test]
fn p_01_what_is_empty_is_an_abort_of_the_guests_and_no_exit() {
    for features in [CORTEX_A72, MAX] {
        let rig = Rig::on(features);
        let realm = Realm::new(&rig, 1);
        for ipa in [RAM_END, DEVICE, SHARED - 0x1000] {
            assert_eq!(realm.state(ipa), rsi::EMPTY, "{ipa:#x}");
            for instr in [load(ipa), store(ipa), Instr::Opaque { ipa }, Instr::Fetch { ipa }] {
                realm.aborts(instr, ipa);
            }
            realm.aborts(Instr::Walk { ipa, update: false }, ipa);
            realm.aborts(Instr::Clean { ipa }, ipa);
        }
        realm.vm.put(0);
        realm.vm.destroy();
    }
}

#[test]
fn p_02_the_host_never_hears_of_accesses_to_what_is_empty() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let pc = realm.at[0].get();
    rig.world.sim.program(pc, &[load(DEVICE + 8)]);
    rig.world.sim.program(SYNC_EL1H, &[DONE, Instr::Jump { pc }]);
    for _ in 0..100_000 {
        assert_eq!(realm.vm.run(), plain(Reason::Wfx), "its own WFI, from its own handler");
        assert_eq!(rig.exception(0)[1..], [DEVICE + 8, pc]);
    }
}

#[test]
fn p_03_memory_without_a_page_is_asked_for_by_address_and_nothing_else() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let walk = |ipa| Instr::Walk { ipa, update: false };
    let tries: [fn(u64) -> Instr; 6] = [
        load,
        store,
        |ipa| Instr::Opaque { ipa },
        |ipa| Instr::Fetch { ipa },
        walk,
        |ipa| Instr::Clean { ipa },
    ];
    for (n, instr) in (1..).zip(tries) {
        let ipa = 0x5000 * n;
        assert_eq!(realm.go(0, &[instr(ipa + 0x18)]), private(ipa));
        let page = realm.vm.give(ipa);
        assert_eq!(realm.vm.run(), plain(Reason::Wfx), "tried again");
        assert!(!rig.host_reads(page));
    }
}

#[test]
fn p_04_a_page_given_for_a_fault_is_zero() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    assert_eq!(realm.go(0, &[mov(9, SECRET), load(0x5000)]), private(0x5000));
    let page = rig.filled(SECRET);
    // Before it is given nothing stops the host.
    rig.fill(page, SECRET);
    realm.vm.give_page(0x5000, page);
    assert!(!rig.world.touch(1, hyp::addr::Pfn::new(page).unwrap(), Access::W));
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(rig.loaded_registers(0)[9], 0);
}

#[test]
fn p_05_nothing_changes_before_the_host_does_it() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 2);
    let exit = realm.smc(SET, [RAM_END, RAM_END + 0x2000, rsi::RAM, 0]);
    assert_eq!(exit, change(RAM_END, RAM_END + 0x2000, 1, ExitFlags::empty()));
    assert_eq!(realm.get_on(1, RAM_END, RAM_END + 0x2000), [0, RAM_END + 0x2000, rsi::EMPTY]);
    assert_eq!(realm.apply(0, RAM_END, RAM_END + 0x1000), Ok([RAM_END + 0x1000, NO_PAGE]));
    assert_eq!(realm.get_on(1, RAM_END, RAM_END + 0x2000), [0, RAM_END + 0x1000, rsi::RAM]);
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(realm.x(0), [0, RAM_END + 0x1000, rsi::ACCEPT], "as far as it got");
}

#[test]
fn p_07_a_destroyed_page_is_seen_and_made_memory_again_by_the_guest_alone() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 2);
    let page = realm.vm.give(0x5000);
    assert_eq!(realm.go(0, &[mov(9, SECRET), store(0x5000)]), plain(Reason::Wfx));
    assert_eq!(rig.ok(HostFn::GuestReclaim, &[realm.handle(), 0x5000, 0x6000, NO_PAGE]), 0x6000);
    let lost = mem_fault(0x5000, ExitFlags::PRIVATE | ExitFlags::DESTROYED);
    assert_eq!(realm.go(0, &[load(0x5000)]), lost);
    assert_eq!(realm.vm.run(), Exit { repeat: 1, ..lost }, "it goes on nowhere");
    rig.refused(HostFn::GuestDonate, &[realm.handle(), 5, page, 0, 7], Ehwpoison);
    assert_eq!(realm.get_on(1, 0x5000, 0x6000), [0, 0x6000, rsi::DESTROYED]);
    let flags = ExitFlags::CHANGE_DESTROYED;
    assert_eq!(
        realm.smc_on(1, SET, [0x5000, 0x6000, rsi::RAM, rsi::CHANGE_DESTROYED]),
        change(0x5000, 0x6000, 1, flags)
    );
    let done = rig.call_on(1, HostFn::RipasApply, &[realm.handle(), 1, 0x5000, 0x6000]);
    assert_eq!(done, Ok([0x6000, NO_PAGE]));
    assert_eq!(realm.vm.try_run(1, 1), Ok(plain(Reason::Wfx)));
    assert_eq!(realm.x(1), [0, 0x6000, rsi::ACCEPT]);
    assert_eq!(realm.vm.run(), private(0x5000));
    rig.fill(page, SECRET);
    realm.vm.give_page(0x5000, page);
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(rig.loaded_registers(0)[9], 0, "zeros, not what it had");
}

#[test]
fn p_08_the_host_cannot_call_memory_empty() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    assert_eq!(realm.go(0, &[load(0x5000)]), private(0x5000));
    let before = rig.loaded_registers(0);
    realm.vm.answer(0, Resp::Sea as u32, 0);
    assert_eq!(realm.vm.try_run(0, 0), Err(Eperm));
    assert_eq!(rig.loaded_registers(0), before);
    realm.vm.answer(0, Resp::Replay as u32, 0);
    assert_eq!(realm.vm.run(), Exit { repeat: 1, ..private(0x5000) });
    realm.vm.give(0x5000);
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    // Of the half that the host serves it may.
    let ipa = SHARED | 0x5000;
    assert_eq!(realm.go(0, &[Instr::Opaque { ipa }]), mem_fault(ipa, ExitFlags::empty()));
    assert_eq!(realm.vm.reply(Resp::Sea, 0), plain(Reason::Wfx));
    assert_eq!(rig.exception(0)[1], ipa);
}

/// The recipe by which a guest shares memory, both ways.
#[test]
fn p_09_a_page_is_given_up_seen_as_the_hosts_and_taken_back() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let ipa = 0x5000;
    assert_eq!(
        realm.set(ipa, ipa + 0x1000, rsi::EMPTY, 1),
        [0, ipa + 0x1000, 0],
        "a table of pages from here on"
    );
    assert_eq!(realm.set(ipa, ipa + 0x1000, rsi::RAM, 1), [0, ipa + 0x1000, 0]);
    let alias = rig.filled(0);
    let own = rig.filled(0);
    let before: Vec<_> = rig.audit().ownership().collect();
    for n in 0..1000 {
        // What the specification has judged fifty times goes on under the audit and the checker.
        rig.judge(n < 50);
        assert_eq!(realm.go(0, &[mov(9, SECRET + n), store(ipa)]), private(ipa));
        rig.fill(own, SECRET);
        realm.vm.give_page(ipa, own);
        assert_eq!(realm.vm.run(), plain(Reason::Wfx));
        assert_eq!(rig.word(own, 0), SECRET + n);

        assert_eq!(realm.set(ipa, ipa + 0x1000, rsi::EMPTY, 1), [0, ipa + 0x1000, 0]);
        assert!(rig.host_reads(own) && (0..512).all(|word| rig.word(own, word) == 0), "P-10");
        let exit = realm.go(0, &[Instr::Opaque { ipa: SHARED | ipa }, load(SHARED | ipa)]);
        assert_eq!(exit, mem_fault(SHARED | ipa, ExitFlags::empty()));
        rig.fill(alias, 0xa11a5 + n);
        realm.map(SHARED | ipa, alias, 1);
        assert_eq!(realm.vm.run(), plain(Reason::Wfx));
        assert_eq!(rig.loaded_registers(0)[9], 0xa11a5 + n, "what the host wrote");
        assert_eq!(realm.go(0, &[mov(9, n), store(SHARED | ipa)]), plain(Reason::Wfx));
        assert!(rig.host_reads(alias) && rig.word(alias, 0) == n, "what the guest wrote");

        assert_eq!(realm.set(ipa, ipa + 0x1000, rsi::RAM, 0), [0, ipa + 0x1000, 0]);
        assert_eq!(realm.unmap(SHARED | ipa, 1), [(SHARED | ipa) >> 12, 1]);
        assert_eq!(rig.audit().ownership().collect::<Vec<_>>(), before, "round {n}");
    }
}

#[test]
fn p_12_nothing_shared_is_executed_and_what_is_read_only_is_asked_for() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let [a, b] = [SHARED | 0x5000, SHARED | 0x6000];
    realm.map(a, rig.filled(7), 0);
    realm.map(b, rig.filled(7), 1);
    for ipa in [a, b, SHARED | 0x7000] {
        realm.aborts(Instr::Fetch { ipa }, ipa);
    }
    assert_eq!(realm.go(0, &[load(a)]), plain(Reason::Wfx));
    assert_eq!(rig.loaded_registers(0)[9], 7);
    assert_eq!(realm.go(0, &[store(a)]), mem_fault(a, ExitFlags::WRITE));
    assert_eq!(realm.vm.reply(Resp::Sea, 0), plain(Reason::Wfx));
}

#[test]
fn p_16_an_address_beyond_the_space_is_no_exit() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    assert_eq!(realm.go(0, &[load(1 << BITS)]), plain(Reason::Wfx));
    assert_eq!(rig.exception(0)[0] & 0x3f, 0, "address size fault, level 0");
}

/// Two CPUs at once: one vCPU writes a page in a loop, the other has given it up and the host takes it.
#[test]
fn p_21_what_one_vcpu_writes_while_another_gives_it_up_is_not_seen_by_the_host() {
    let rig = Rig::new();
    rig.judge(false);
    rig.world.sim.record(false);
    let realm = Realm::new(&rig, 2);
    let (ipa, page) = (0x5000, rig.filled(SECRET));
    for n in 0..100 {
        // There is RAM, and a page in it.
        if n > 0 {
            assert_eq!(realm.set(ipa, ipa + 0x1000, rsi::RAM, 0), [0, ipa + 0x1000, 0]);
        }
        realm.vm.give_page(ipa, page);
        let writer = realm.at[1].get();
        let body = [mov(9, SECRET), store(ipa), store(ipa + 0xff8), Instr::Jump { pc: writer }];
        rig.world.sim.program(writer, &body);
        let exit = realm.smc(SET, [ipa, ipa + 0x1000, rsi::EMPTY, 0]);
        assert_eq!(exit, change(ipa, ipa + 0x1000, 0, ExitFlags::empty()));
        let apply = [realm.handle(), 0, ipa, ipa + 0x1000];
        let [applied, ran] = rig.at_once([(HostFn::RipasApply, &apply), (HostFn::VcpuRun, &[])]);
        assert_eq!((applied, ran.map(drop)), (Ok([ipa + 0x1000, NO_PAGE]), Ok(())));
        assert!(rig.host_reads(page) && (0..512).all(|word| rig.word(page, word) == 0), "round {n}");
        // An interrupt may have ended its turn before the page was gone.
        let mut exit = realm.vm.exit(1);
        while exit.reason == Reason::Irq {
            exit = realm.vm.try_run(1, 1).unwrap();
        }
        assert_eq!(exit, plain(Reason::Wfx));
        let [_, far, at] = rig.exception(1);
        assert!([(ipa, writer + 4), (ipa + 0xff8, writer + 8)].contains(&(far, at)), "{far:#x} {at:#x}");
        assert!((0..512).all(|word| rig.word(page, word) == 0), "nor later");
        assert_eq!(realm.vm.run(), plain(Reason::Wfx));
        realm.at[1].set(writer + 0x20);
        rig.world.sim.program(SYNC_EL1H + 4, &[Instr::Jump { pc: writer + 0x20 }]);
        rig.audit();
    }
}

#[test]
fn p_22_an_answer_to_an_older_request_does_nothing() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    realm.smc(SET, [RAM_END, RAM_END + 0x1000, rsi::RAM, 0]);
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    realm.smc(SET, [RAM_END + 0x8000, RAM_END + 0xa000, rsi::RAM, 0]);
    assert_eq!(realm.apply(0, RAM_END, RAM_END + 0x1000).map_err(|(e, _)| e), Err(Eperm));
    assert_eq!(realm.apply(0, RAM_END + 0x8000, RAM_END + 0x9000), Ok([RAM_END + 0x9000, NO_PAGE]));
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(realm.state(RAM_END), rsi::EMPTY);
}

#[test]
fn r_15_the_host_does_what_was_asked_for_and_nothing_more() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 2);
    let (base, top) = (RAM_END, RAM_END + 0x4000);
    let refused = |idx, base, top, errno| {
        let before = rig.state();
        assert_eq!(realm.apply(idx, base, top).map_err(|(e, _)| e), Err(errno), "{idx} {base:#x} {top:#x}");
        assert_eq!(rig.state(), before);
    };
    refused(0, base, top, Eperm);
    assert_eq!(realm.smc(SET, [base, top, rsi::RAM, 0]), change(base, top, 1, ExitFlags::empty()));
    refused(0, base + 0x1000, top, Eperm);
    refused(0, base - 0x1000, top, Eperm);
    refused(0, base, top + 0x1000, Eperm);
    refused(1, base, top, Ebusy);
    realm.vm.put(1);
    refused(1, base, top, Eperm);
    refused(2, base, top, Enoent);
    refused(u64::MAX, base, top, Enoent);
    refused(0, base, base, Einval);
    refused(0, base + 1, top, Einval);
    refused(0, 0, 1 << 49, Erange);
    // While it is on another CPU.
    let on_other = |errno| {
        let got = rig.call_on(1, HostFn::RipasApply, &[realm.handle(), 0, base, top]);
        assert_eq!(got.map_err(|(e, _)| e), Err(errno));
    };
    on_other(Ebusy);
    // And on none.
    realm.vm.put(0);
    let done = rig.call_on(1, HostFn::RipasApply, &[realm.handle(), 0, base, base + 0x1000]);
    assert_eq!(done, Ok([base + 0x1000, NO_PAGE]));
    realm.vm.load(0, 0);
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(realm.x(0), [0, base + 0x1000, rsi::ACCEPT]);
    refused(0, base + 0x1000, top, Eperm);
}

#[test]
fn r_16_a_page_taken_before_the_first_run_is_found_out() {
    let rig = Rig::new();
    let vm = TestVm::split(&rig, 1);
    rig.ok(HostFn::VmInitRipas, &[vm.handle, 0, RAM_END]);
    let image = rig.filled(SECRET);
    rig.ok(HostFn::VmPopulate, &[vm.handle, 5, image, 0]);
    assert_eq!(rig.ok(HostFn::GuestReclaim, &[vm.handle, 0x5000, 0x6000, NO_PAGE]), 0x6000);
    rig.refused(HostFn::VmInitRipas, &[vm.handle, 0x5000, 0x6000], Ehwpoison);
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
    vm.load(0, 0);
    let realm = Realm { vm, at: [Cell::new(PC), Cell::new(0)] };
    rig.refused(HostFn::GuestDonate, &[realm.handle(), 5, image, 0, 7], Ehwpoison);
    let exit = realm.go(0, &[load(0x5000)]);
    assert_eq!(exit, mem_fault(0x5000, ExitFlags::PRIVATE | ExitFlags::DESTROYED));
    // As Linux does when it starts: all of its memory, in one go.
    realm.at[0].set(PC + 0x1000);
    rig.world.sim.program(PC, &[Instr::Jump { pc: PC + 0x1000 }]);
    assert_eq!(realm.smc(SET, [0, RAM_END, rsi::RAM, 0]), change(0, RAM_END, 1, ExitFlags::empty()));
    assert_eq!(realm.apply(0, 0, RAM_END), Ok([0x5000, NO_PAGE]));
    assert_eq!(realm.apply(0, 0x5000, RAM_END), Ok([0x5000, NO_PAGE]));
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(realm.x(0), [0, 0x5000, rsi::ACCEPT], "up to that page");
    assert_eq!(realm.smc(SET, [0x5000, RAM_END, rsi::RAM, 0]).reason, Reason::RipasChange);
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(realm.x(0), [0, 0x5000, rsi::REJECT], "and no further: trying again is of no use");
}

#[test]
fn r_21_a_host_that_does_nothing_costs_progress_and_nothing_else() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    for _ in 0..1000 {
        realm.smc(SET, [RAM_END, RAM_END + 0x1000, rsi::RAM, 0]);
        assert_eq!(realm.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
        assert_eq!(realm.x(0), [0, RAM_END, rsi::ACCEPT]);
    }
    realm.smc(SET, [RAM_END, RAM_END + 0x1000, rsi::RAM, 0]);
    assert_eq!(realm.vm.reply(Resp::Reject, 0), plain(Reason::Wfx));
    assert_eq!(realm.x(0), [0, RAM_END, rsi::REJECT]);
    realm.smc(SET, [0, 0x1000, rsi::EMPTY, 0]);
    assert_eq!(realm.vm.reply(Resp::Reject, 0), plain(Reason::Wfx));
    assert_eq!(realm.x(0), [0, 0, rsi::ACCEPT], "giving up is not refused, but for want of a table it waits");
}

#[test]
fn r_20_a_request_goes_on_where_the_store_ran_dry() {
    let rig = Rig::new();
    let vm = TestVm::split(&rig, 1);
    rig.ok(HostFn::VmInitRipas, &[vm.handle, 0, 1 << 30]);
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
    vm.load(0, 0);
    let realm = Realm { vm, at: [Cell::new(PC), Cell::new(0)] };
    // Each page gives up one of a block of its own: a table each, after the first two.
    let mut at = 0;
    loop {
        let exit = realm.smc(SET, [at, at + 0x1000, rsi::EMPTY, 0]);
        assert_eq!(exit.reason, Reason::RipasChange);
        match realm.apply(0, at, at + 0x1000) {
            Ok(done) => assert_eq!(done, [at + 0x1000, NO_PAGE]),
            Err((errno, [_, lacks])) => {
                assert_eq!((errno, lacks), (Enomem, 1));
                break;
            }
        }
        assert_eq!(realm.vm.run(), plain(Reason::Wfx));
        at += 2 << 20;
    }
    realm.vm.topup(1);
    assert_eq!(realm.apply(0, at, at + 0x1000), Ok([at + 0x1000, NO_PAGE]));
    assert_eq!(realm.vm.run(), plain(Reason::Wfx));
    assert_eq!(realm.state(at), rsi::EMPTY);
}

#[test]
fn p_24_calls_of_other_vms_are_not_there() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    for id in [0x8600_ff01_u64, 0xc600_0003, 0xc600_0009, 0xc600_0007, 0x8600_0000, 0x8400_0050] {
        assert_eq!(realm.smc(id, [1, 2, 3, 4]), plain(Reason::Wfx));
        let x = rig.loaded_registers(0);
        assert_eq!(x[..5], [smccc::NOT_SUPPORTED, 1, 2, 3, 4], "{id:#x} by SMC");
        let code = [mov(0, id), Instr::Hvc { imm: 0 }];
        assert_eq!(realm.go(0, &code), plain(Reason::Wfx));
        assert_eq!(rig.loaded_registers(0)[0], smccc::NOT_SUPPORTED, "{id:#x} by HVC");
    }
    for id in [u64::from(psci::VERSION), u64::from(rsi::VERSION)] {
        let code = [mov(0, id), mov(1, rsi::VERSION_1_0), Instr::Hvc { imm: 0 }];
        assert_eq!(realm.go(0, &code), plain(Reason::Wfx));
        assert_eq!(rig.loaded_registers(0)[0], smccc::NOT_SUPPORTED, "{id:#x}");
    }
    let protected = TestVm::active(&rig, true, 1);
    realm.vm.put(0);
    protected.load(0, 0);
    let code = [mov(0, rsi::VERSION.into()), mov(1, rsi::VERSION_1_0), Instr::Smc, DONE];
    let pc = PC;
    rig.world.sim.program(pc, &code);
    assert_eq!(protected.run(), plain(Reason::Wfx));
    assert_eq!(rig.loaded_registers(0)[0], smccc::NOT_SUPPORTED);
    // And host calls know the kind.
    let classic = protected.handle;
    rig.refused(HostFn::VmInitRipas, &[classic, 0, 0x1000], Eacces);
    rig.refused(HostFn::RipasApply, &[classic, 0, 0, 0x1000], Eacces);
    rig.refused(HostFn::UnprotMap, &[classic, 0, rig.pages(1), 0, 0], Eacces);
    rig.refused(HostFn::UnprotUnmap, &[classic, 0, 1], Eacces);
}

/// What a Linux asks when it starts.
#[test]
fn a_realm_is_found_as_linux_looks_for_it() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let ask = |id: u32, x1: u64| {
        assert_eq!(realm.smc(id.into(), [x1, 0, 0, 0]), plain(Reason::Wfx), "{id:#x}");
        realm.x(0)
    };
    assert_eq!(ask(psci::VERSION, 0)[0], psci::VERSION_1_1);
    assert_eq!(ask(psci::FEATURES, smccc::VERSION.into())[0], 0);
    assert_eq!(ask(smccc::VERSION, 0)[0], smccc::VERSION_1_2);
    assert_eq!(ask(rsi::VERSION, rsi::VERSION_1_0), [0, 0x1_0000, 0x1_0000]);
    assert_eq!(realm.set(0, RAM_END, rsi::RAM, 0), [0, RAM_END, 0], "all memory, which is there already");
    assert_eq!(realm.get_on(0, DEVICE, DEVICE + 0x1_0000), [0, DEVICE + 0x1_0000, rsi::EMPTY]);
    assert_eq!(realm.get_on(0, SHARED | DEVICE, (SHARED | DEVICE) + 0x1000)[0], rsi::ERROR_INPUT);
    // A CPU starts in private memory.
    let on = |pc| ask_on(&realm, pc);
    assert_eq!(on(SHARED | 0x1000), psci::INVALID_ADDRESS);
}

fn ask_on(realm: &Realm<'_>, pc: u64) -> u64 {
    assert_eq!(realm.smc(psci::CPU_ON_64.into(), [0, pc, 0, 0]), plain(Reason::Wfx));
    realm.x(0)[0]
}

#[test]
fn p_25_a_vm_with_shared_pages_and_a_request_is_taken_apart() {
    let rig = Rig::new();
    let before = rig.audit().get(abi::inspect::Figure::HostOwned);
    let realm = Realm::new(&rig, 1);
    realm.vm.give(0x5000);
    realm.map(SHARED | 0x5000, rig.filled(1), 1);
    let block = rig.pages(512);
    rig.ok(HostFn::UnprotMap, &[realm.handle(), (SHARED | 0x4000_0000) >> 12, block, 9, 1]);
    realm.smc(SET, [0x5000, 0x7000, rsi::EMPTY, 0]);
    realm.vm.put(0);
    let handle = realm.handle();
    rig.ok(HostFn::VmTeardownStart, &[handle]);
    assert_eq!(realm.apply(0, 0x5000, 0x6000).map_err(|(e, _)| e), Err(Ebusy));
    let mut at = 0;
    while at < SHARED {
        at = rig.ok(HostFn::ReclaimDying, &[handle, at, SHARED]);
    }
    finished(&rig, handle).unwrap();
    rig.ok(HostFn::HostUnshareHyp, &[realm.vm.record(0)]);
    assert_eq!(rig.audit().get(abi::inspect::Figure::HostOwned), before);
}

/// What the last call of FINISH answers.
fn finished(rig: &Rig, handle: u64) -> crate::rig::Answer {
    loop {
        match rig.call(HostFn::VmTeardownFinish, &[handle, 512]) {
            Err((Eagain, _)) => {}
            other => break other,
        }
    }
}

#[test]
fn r_26_a_vm_that_owns_a_page_does_not_end_and_its_reserve_comes_last() {
    let rig = Rig::new();
    let before = rig.audit().get(abi::inspect::Figure::HostOwned);
    let realm = Realm::new(&rig, 1);
    let handle = realm.handle();
    realm.vm.give(0x5000);
    realm.vm.put(0);
    rig.ok(HostFn::VmTeardownStart, &[handle]);
    for _ in 0..3 {
        assert_eq!(finished(&rig, handle), Err((Ebusy, [0x5000, 0])), "the page, and nothing changes");
    }
    assert_eq!(rig.ok(HostFn::ReclaimDying, &[handle, 0x5000, 0x6000]), 0x6000);
    let mut reserve = 0;
    rig.vms.for_each(&rig.world.cpus[0], |_, guest| reserve = guest.reserve().page().unwrap().raw());
    let [newest, _] = finished(&rig, handle).unwrap();
    assert_eq!(newest, reserve, "the newest page of the last chain");
    rig.ok(HostFn::HostUnshareHyp, &[realm.vm.record(0)]);
    assert_eq!(rig.audit().get(abi::inspect::Figure::HostOwned), before);
}

#[test]
fn p_27_an_absent_shared_page_is_a_device_and_the_private_one_nothing() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let ipa = SHARED | DEVICE;
    let exit = |dir, data| Exit { gpa: ipa + 8, size: 8, dir, data, ..plain(Reason::Mmio) };
    assert_eq!(realm.go(0, &[mov(9, SECRET), store(ipa + 8)]), exit(1, SECRET));
    assert_eq!(realm.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    assert_eq!(realm.go(0, &[load(ipa + 8)]), exit(0, 0));
    assert_eq!(realm.vm.reply(Resp::Done, 0xd00d), plain(Reason::Wfx));
    assert_eq!(rig.loaded_registers(0)[9], 0xd00d);
    assert_eq!(realm.go(0, &[load(ipa + 8)]), exit(0, 0));
    realm.map(ipa, rig.filled(0x600d), 1);
    assert_eq!(realm.vm.reply(Resp::Replay, 0), plain(Reason::Wfx));
    assert_eq!(rig.loaded_registers(0)[9], 0x600d);
    realm.aborts(load(DEVICE + 8), DEVICE + 8);
}

#[test]
fn p_15_a_page_is_in_one_half_at_most() {
    let rig = Rig::new();
    let realm = Realm::new(&rig, 1);
    let page = rig.filled(0);
    realm.map(SHARED, page, 1);
    rig.refused(HostFn::GuestDonate, &[realm.handle(), 5, page, 0, 7], Eperm);
    let own = realm.vm.give(0x5000);
    rig.refused(HostFn::UnprotMap, &[realm.handle(), (SHARED >> 12) + 1, own, 0, 1], Eperm);
    rig.refused(HostFn::UnprotMap, &[realm.handle(), SHARED >> 12, rig.pages(1), 0, 1], Eexist);
    rig.refused(HostFn::UnprotMap, &[realm.handle(), 5, rig.pages(1), 0, 1], Einval);
    rig.refused(HostFn::UnprotMap, &[realm.handle(), SHARED >> 12, page, 0, 2], Einval);
    let state = rig.state();
    let handle = u16::try_from(realm.handle()).unwrap();
    assert!(matches!(state.pages.get(page), Some(Page::SharedWithGuest { leaves: 1, .. })));
    assert!(matches!(state.slot(handle, SHARED >> 12), Some(Slot::Mapped { prot: 0b011, .. })));
}

#[test]
fn r_25_a_vm_that_cannot_be_made_costs_no_page() {
    let rig = Rig::new();
    let flags = (VmFlags::PROTECTED | VmFlags::SPLIT_IPA).bits();
    let args = [flags, BITS, rig.pages(1), 1, rig.pages(1), 1, rig.pages(1)];
    let before: Vec<_> = rig.audit().ownership().collect();
    for nth in 1..=3 {
        let faults = rig.world.hyp.faults();
        faults.clear();
        faults.arm(Site::VmCreateStep, nth);
        rig.refused(HostFn::VmCreate, &args, Enomem);
        assert_eq!(faults.stats(Site::VmCreateStep).fired, 1);
        assert_eq!(rig.audit().ownership().collect::<Vec<_>>(), before, "step {nth}");
        faults.clear();
    }
    rig.refused(HostFn::VmCreate, &[VmFlags::SPLIT_IPA.bits(), BITS, 0, 1, 0, 1, NO_PAGE], Einval);
    rig.ok(HostFn::VmCreate, &args);
}

#[test]
fn a_vcpu_begins_in_private_memory() {
    let rig = Rig::new();
    let vm = TestVm::split(&rig, 0);
    let record = rig.pages(1);
    rig.ok(HostFn::HostShareHyp, &[record]);
    let create = |pc| [vm.handle, 0, rig.pages(1), 1, record, pc, 0];
    rig.refused(HostFn::VcpuCreate, &create(SHARED), Erange);
    rig.ok(HostFn::VcpuCreate, &create(SHARED - 4));
}
