//! The MMIO guard: what a guest marks, and what a host sees of its accesses.
//!
//! docs/mmio-guard.md lists the scenarios.

use crate::calls::{OUT, program};
use crate::rig::{BITS, DONE, Exit, PC, Rig, SECRET, TestVm, mem_fault, plain};
use abi::Errno::{Eacces, Eagain, Ebusy, Enoent, Eperm};
use abi::exit::{ExitFlags, Reason, Resp};
use abi::fault::Site;
use abi::inspect::Figure;
use abi::vm::{NO_PAGE, reg};
use abi::{HostFn, guest, smccc};
use hyp::spec::model::Slot;
use std::cell::Cell;
use testkit::features;
use testkit::guest::Instr;

const DEVICE: u64 = 0x0900_0000;
const VBAR: u64 = 0x20_0000;
const SYNC_EL1H: u64 = 0x200;

const INFO: u64 = guest::GUARD_INFO as u64;
const ENROLL: u64 = guest::GUARD_ENROLL as u64;
const MAP: u64 = guest::GUARD_MAP as u64;
const UNMAP: u64 = guest::GUARD_UNMAP as u64;
const RMAP: u64 = guest::RGUARD_MAP as u64;
const RUNMAP: u64 = guest::RGUARD_UNMAP as u64;
const INVALID: u64 = smccc::INVALID_PARAMETER;
const LIMIT: u64 = 1 << BITS;

fn mov(rt: u8, value: u64) -> Instr {
    Instr::Mov { rt, value }
}

fn load(rt: u8, ipa: u64) -> Instr {
    Instr::Load { rt, ipa, log2: 3, sign: false, wide: true }
}

fn store(rt: u8, ipa: u64) -> Instr {
    Instr::Store { rt, ipa, log2: 3 }
}

fn mmio(gpa: u64, size: u32, write: bool, data: u64) -> Exit {
    Exit { gpa, size, dir: write.into(), data, ..plain(Reason::Mmio) }
}

/// A VM whose vCPU 0 is loaded and gets one piece of program after the other.
struct Guest<'a> {
    vm: TestVm<'a>,
    /// The page in which results of calls are found.
    out: u64,
    at: Cell<u64>,
}

impl<'a> Guest<'a> {
    fn new(rig: &'a Rig, protected: bool) -> Self {
        Self::of(TestVm::active(rig, protected, 1))
    }

    /// A VM that is guarded, whatever its kind.
    fn guarded(rig: &'a Rig, protected: bool) -> Self {
        let guest = Self::new(rig, protected);
        assert_eq!(guest.call(ENROLL, [0; 3])[0], 0);
        guest
    }

    fn of(vm: TestVm<'a>) -> Self {
        let out = vm.give(OUT);
        vm.load(0, 0);
        Self { vm, out, at: Cell::new(PC) }
    }

    fn rig(&self) -> &'a Rig {
        self.vm.rig
    }

    /// Puts `code` and a WFI where the vCPU will go on, and lets it.
    fn run(&self, code: &[Instr]) -> Exit {
        let mut code = code.to_vec();
        code.push(DONE);
        self.rig().world.sim.program(self.at.get(), &code);
        self.at.set(self.at.get() + 4 * code.len() as u64);
        self.vm.run()
    }

    /// Makes a call that EL2 answers; its x0 and x1.
    #[track_caller]
    fn call(&self, id: u64, args: [u64; 3]) -> [u64; 2] {
        let mut code = program(&[(id, args)]);
        code.pop();
        assert_eq!(self.run(&code), plain(Reason::Wfx), "{id:#x} {args:x?}");
        self.result()
    }

    fn result(&self) -> [u64; 2] {
        [self.rig().word(self.out, 0), self.rig().word(self.out, 1)]
    }

    #[track_caller]
    fn map(&self, ipa: u64) {
        assert_eq!(self.call(MAP, [ipa, 0, 0])[0], 0);
    }

    fn is_marked(&self, ipa: u64) -> bool {
        let handle = u16::try_from(self.vm.handle).unwrap();
        self.rig().state().slot(handle, ipa >> 12) == Some(Slot::Guard)
    }

    /// What the guest loads from `ipa`, which is memory.
    #[track_caller]
    fn loads(&self, ipa: u64) -> u64 {
        assert_eq!(self.run(&[load(1, ipa), store(1, OUT)]), plain(Reason::Wfx));
        self.result()[0]
    }

    /// Lets exceptions of a VM that is not protected go to [`VBAR`].
    fn catch(&self) {
        self.rig().ok(HostFn::VcpuSetReg, &[reg::VBAR_EL1, VBAR]);
        self.rig().world.sim.program(VBAR + SYNC_EL1H, &[DONE]);
    }
}

#[test]
fn g_01_a_store_to_a_marked_page_shows_address_size_and_its_bytes() {
    for protected in [true, false] {
        let rig = Rig::new();
        let guest = Guest::guarded(&rig, protected);
        guest.map(DEVICE);
        let value: u64 = 0x8877_6655_4433_2211;
        for log2 in 0..4 {
            let size = 1_u32 << log2;
            let data = value & u64::MAX >> (64 - 8 * size);
            for offset in (0..0x1000).step_by(0x7f8).map(|n| n & !u64::from(size - 1)).chain([0xff8]) {
                let code = [mov(3, value), Instr::Store { rt: 3, ipa: DEVICE + offset, log2 }];
                assert_eq!(guest.run(&code), mmio(DEVICE + offset, size, true, data));
                assert_eq!(guest.vm.reply(Resp::Done, SECRET), plain(Reason::Wfx));
            }
        }
        assert_eq!(guest.run(&[store(31, DEVICE)]), mmio(DEVICE, 8, true, 0), "the zero register");
    }
}

#[test]
fn g_02_a_load_from_a_marked_page_gets_what_the_instruction_would_and_no_bit_more() {
    for protected in [true, false] {
        let rig = Rig::new();
        let guest = Guest::guarded(&rig, protected);
        guest.map(DEVICE);
        let m1 = u64::MAX;
        for (log2, sign, wide, rt, want) in [
            (0, false, false, 1, 0xff),
            (0, true, false, 1, 0xffff_ffff),
            (0, true, true, 1, m1),
            (1, false, false, 1, 0xffff),
            (1, true, false, 1, 0xffff_ffff),
            (1, true, true, 1, m1),
            (2, false, false, 1, 0xffff_ffff),
            (2, true, true, 1, m1),
            (3, false, true, 1, m1),
            (3, false, true, 31, 0),
        ] {
            let code =
                [mov(rt, SECRET), Instr::Load { rt, ipa: DEVICE + 8, log2, sign, wide }, store(rt, OUT)];
            assert_eq!(guest.run(&code), mmio(DEVICE + 8, 1 << log2, false, 0));
            assert_eq!(guest.vm.reply(Resp::Done, m1), plain(Reason::Wfx));
            assert_eq!(guest.result()[0], want, "{log2} {sign} {wide} {rt}");
        }
    }
}

#[test]
fn g_03_a_hole_shows_that_memory_is_missing_and_takes_no_answer() {
    for protected in [true, false] {
        let rig = Rig::new();
        let guest = Guest::guarded(&rig, protected);
        let private = if protected { ExitFlags::PRIVATE } else { ExitFlags::empty() };
        let fault = mem_fault(0x5000, private);
        let before = rig.state();
        rig.fill_record(&guest.vm);
        assert_eq!(guest.run(&[mov(1, SECRET), load(1, 0x5018), store(1, OUT)]), fault);
        for repeat in 1..4 {
            let again = Exit { repeat, ..fault };
            assert_eq!(guest.vm.reply(Resp::Done, 0x1bad), again, "an answer has no effect");
        }
        guest.vm.give(0x5000);
        assert_eq!(guest.vm.reply(Resp::Done, 0x1bad), plain(Reason::Wfx));
        // A store says no more than a load in a protected VM, and no VM's says what is stored.
        let wanted = if protected { private } else { ExitFlags::WRITE };
        let fault = mem_fault(0x6000, wanted);
        assert_eq!(guest.run(&[mov(1, SECRET), store(1, 0x6018)]), fault);
        assert_eq!(guest.vm.reply(Resp::Done, 0x1bad), Exit { repeat: 1, ..fault });
        let record = guest.vm.record(0);
        assert!((0..512).all(|n| rig.word(record, n) != SECRET), "no word of the record shows it");
        assert_ne!(rig.state(), before, "the page that was given is all that changed");
    }
}

#[test]
fn g_04_memory_that_the_host_gives_in_a_hole_is_what_the_access_finds() {
    for protected in [true, false] {
        let rig = Rig::new();
        let guest = Guest::guarded(&rig, protected);
        assert_eq!(guest.run(&[load(1, 0x5018), store(1, OUT)]).reason, Reason::MemFault);
        let page = guest.vm.give(0x5000);
        assert_eq!(guest.vm.reply(Resp::Done, 0x1bad), plain(Reason::Wfx));
        assert_eq!(guest.result()[0], if protected { 0 } else { SECRET }, "what the page holds");
        assert_eq!(rig.host_reads(page), !protected);
        assert_eq!(guest.run(&[mov(1, 0x77), store(1, 0x6018)]).reason, Reason::MemFault);
        let page = guest.vm.give(0x6000);
        assert_eq!(guest.vm.reply(Resp::Done, 0x1bad), plain(Reason::Wfx));
        assert_eq!(rig.word(page, 3), 0x77);
        assert_eq!(guest.loads(0x6018), 0x77);
    }
}

#[test]
fn g_05_a_page_is_marked_once_however_often_and_unmarked_once() {
    for (name, features) in features::MATRIX {
        for protected in [true, false] {
            let rig = Rig::on(features);
            let guest = Guest::guarded(&rig, protected);
            let before = rig.audit();
            for _ in 0..2 {
                guest.map(DEVICE);
                assert!(guest.is_marked(DEVICE), "{name}");
                assert!(!guest.is_marked(DEVICE + 0x1000) && !guest.is_marked(DEVICE - 0x1000), "{name}");
            }
            let tables = rig.audit().get(Figure::VmTables) - before.get(Figure::VmTables);
            assert_eq!(tables, 1, "{name}");
            assert_eq!(guest.call(UNMAP, [DEVICE, 0, 0])[0], 0, "{name}");
            let after = rig.audit();
            assert_eq!(after.get(Figure::VmCache), before.get(Figure::VmCache), "the table is back");
            assert!(!guest.is_marked(DEVICE));
            assert_eq!(guest.call(UNMAP, [DEVICE, 0, 0])[0], INVALID, "{name}");
            let private = if protected { ExitFlags::PRIVATE } else { ExitFlags::empty() };
            assert_eq!(guest.run(&[load(1, DEVICE)]), mem_fault(DEVICE, private), "{name}");
            guest.vm.put(0);
            guest.vm.destroy();
        }
    }
}

#[test]
fn g_06_memory_cannot_be_marked_and_stays_as_it_is() {
    let rig = Rig::new();
    let guest = Guest::new(&rig, true);
    let (own, shared, lost) = (guest.vm.give(0x5000), guest.vm.give(0x6000), guest.vm.give(0x7000));
    let block = rig.pages(512);
    rig.ok(HostFn::GuestDonate, &[guest.vm.handle, 0x4_0000, block, 9, 7]);
    assert_eq!(guest.call(guest::MEM_SHARE.into(), [0x6000, 1, 0]), [0, 1]);
    rig.ok(HostFn::GuestReclaim, &[guest.vm.handle, 0x7000, 0x8000, NO_PAGE]);
    let all: Vec<u64> = [own, shared].into_iter().chain(block..block + 512).collect();
    for (n, &page) in (0..).zip(&all) {
        rig.world.sim.memory().write(page, 9, SECRET + n);
    }
    let before = rig.state();
    for ipa in [0x5000, 0x6000, 0x7000, 0x4000_0000, 0x4000_7000, 0x401f_f000] {
        for id in [MAP, UNMAP] {
            assert_eq!(guest.call(id, [ipa, 0, 0])[0], INVALID, "{id:#x} {ipa:#x}");
        }
        for id in [RMAP, RUNMAP] {
            assert_eq!(guest.call(id, [ipa, 2, 0]), [INVALID, 0], "{id:#x} {ipa:#x}");
        }
    }
    assert_eq!(rig.state(), before);
    for (n, &page) in (0..).zip(&all) {
        assert_eq!(rig.word(page, 9), SECRET + n);
    }
    assert!(rig.host_reads(lost) && rig.word(lost, 9) == 0);
    assert_eq!(guest.loads(0x4000_7000 + 72), SECRET + 2 + 7);
}

#[test]
fn g_07_malformed_arguments_are_invalid_and_mark_nothing() {
    for protected in [true, false] {
        let rig = Rig::new();
        let guest = Guest::guarded(&rig, protected);
        guest.map(DEVICE);
        let before = rig.state();
        for id in [MAP, UNMAP] {
            for args in [
                [DEVICE + 1, 0, 0],
                [DEVICE + 0x800, 0, 0],
                [LIMIT, 0, 0],
                [!0xfff, 0, 0],
                [DEVICE, 7, 0],
                [DEVICE, 0, 1],
            ] {
                assert_eq!(guest.call(id, args)[0], INVALID, "{id:#x} {args:x?}");
            }
        }
        for id in [RMAP, RUNMAP] {
            for args in [
                [DEVICE + 1, 1, 0],
                [DEVICE, 0, 0],
                [DEVICE, 1 << 52, 0],
                [DEVICE, u64::MAX, 0],
                [LIMIT - 0x1000, 2, 0],
                [DEVICE, 1, 1],
            ] {
                assert_eq!(guest.call(id, args), [INVALID, 0], "{id:#x} {args:x?}");
            }
        }
        for id in [INFO, ENROLL] {
            assert_eq!(guest.call(id, [1, 0, 0])[0], INVALID);
        }
        assert_eq!(rig.state(), before);
        // Nor is a table looked at: what a turn reads all the same, a call reads that knows none.
        let reads = |id, args| {
            let before = rig.world.sim.entry_reads();
            guest.call(id, args);
            rig.world.sim.entry_reads() - before
        };
        let none = reads(INFO, [0; 3]);
        for (id, args) in [
            (MAP, [DEVICE + 1, 0, 0]),
            (MAP, [LIMIT, 0, 0]),
            (MAP, [DEVICE, 7, 0]),
            (UNMAP, [DEVICE, 0, 1]),
            (RMAP, [DEVICE, 0, 0]),
            (RMAP, [DEVICE, 1 << 52, 0]),
            (RUNMAP, [LIMIT - 0x1000, 2, 0]),
            (RUNMAP, [DEVICE, 1, 1]),
        ] {
            assert_eq!(reads(id, args), none, "{id:#x} {args:x?}");
        }
        assert!(reads(MAP, [DEVICE, 0, 0]) > none, "as a call does that is well formed");
        assert_eq!(guest.call(RMAP, [LIMIT - 0x1000, 1, 0]), [0, 1], "the last page is one");
    }
}

#[test]
fn g_08_no_page_is_put_where_a_device_is() {
    for protected in [true, false] {
        let rig = Rig::new();
        let guest = Guest::guarded(&rig, protected);
        let ipa = 0x4000_7000;
        guest.map(ipa);
        let (page, block) = (rig.pages(1), rig.pages(512));
        let before = rig.state();
        let give = if protected { HostFn::GuestDonate } else { HostFn::GuestShare };
        let handle = guest.vm.handle;
        rig.refused(give, &[handle, ipa >> 12, page, 0, 7], Eperm);
        rig.refused(give, &[handle, 0x4_0000, block, 9, 7], Eperm);
        if !protected {
            rig.refused(HostFn::GuestUnshare, &[handle, ipa >> 12, 1], Enoent);
            rig.refused(HostFn::GuestRelax, &[handle, ipa >> 12, 7], Enoent);
            assert_eq!(rig.ok(HostFn::GuestWrprotect, &[handle, 0x4_0000, 512]), 512);
            assert_eq!(rig.call(HostFn::GuestAge, &[handle, 0x4_0000, 512, 1]), Ok([512, 0]));
        } else {
            // Nothing to take: passed over, and no mark is lost.
            let end = 0x4001_0000;
            assert_eq!(
                rig.call(HostFn::GuestReclaim, &[handle, 0x4000_0000, end, NO_PAGE]),
                Ok([end, NO_PAGE])
            );
            for id in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH] {
                assert_eq!(guest.call(id.into(), [ipa, 1, 0]), [INVALID, 0], "{id:#x}");
            }
        }
        assert_eq!(rig.state(), before);
        assert!(rig.host_reads(page) && rig.host_reads(block));
        assert_eq!(guest.run(&[load(1, ipa)]), mmio(ipa, 8, false, 0), "still a device");
    }
}

/// A guarded VM with 48 bits of IPA, whose next mark at [`FAR`] needs three tables, of which its
/// cache has `cached`.
fn short_of_tables(rig: &Rig, protected: bool, cached: u64) -> Guest<'_> {
    let vm = TestVm::with_bits(rig, protected, 1, 48);
    vm.topup(3);
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
    let guest = Guest::of(vm);
    assert_eq!(guest.call(ENROLL, [0; 3])[0], 0);
    assert_eq!(rig.audit().get(Figure::VmCache), 0);
    if cached > 0 {
        guest.vm.topup(cached);
    }
    guest
}

const FAR: u64 = 1 << 40;

#[test]
fn g_10_a_mark_without_tables_asks_for_exactly_what_it_lacks_and_replays() {
    for protected in [true, false] {
        for cached in 0..3 {
            let rig = Rig::new();
            let guest = short_of_tables(&rig, protected, cached);
            let before = rig.state();
            let need = |pages| Exit { need_pages: u32::try_from(pages).unwrap(), ..plain(Reason::NeedMem) };
            let mut code = program(&[(MAP, [FAR, 0, 0])]);
            code.pop();
            assert_eq!(guest.run(&code), need(3 - cached));
            assert_eq!(guest.vm.run(), need(3 - cached), "a host that gives nothing gets no further");
            assert_eq!(guest.vm.reply(Resp::Done, SECRET), need(3 - cached), "nor one that answers");
            assert_eq!(rig.state(), before, "nothing was written");
            assert_eq!(rig.audit().get(Figure::VmCache), cached);
            guest.vm.topup(3 - cached);
            assert_eq!(guest.vm.run(), plain(Reason::Wfx), "the same HVC");
            assert_eq!(guest.result()[0], 0);
            assert!(guest.is_marked(FAR));
            assert_eq!(guest.call(UNMAP, [FAR, 0, 0])[0], 0);
            assert_eq!(rig.audit().get(Figure::VmCache), 3, "all of them are back");
        }
    }
}

#[test]
fn g_10_tables_come_from_the_vms_own_cache_alone() {
    for protected in [true, false] {
        let rig = Rig::new();
        let rich = TestVm::active(&rig, protected, 0);
        let guest = Guest::of(TestVm::active(&rig, protected, 1));
        assert_eq!(guest.call(ENROLL, [0; 3])[0], 0);
        // Its own eight pages go, one table after the other.
        let mut marked = 0_u64;
        let exit = loop {
            let mut code = program(&[(MAP, [DEVICE + (marked << 21), 0, 0])]);
            code.pop();
            match guest.run(&code) {
                exit if exit == plain(Reason::Wfx) => marked += 1,
                exit => break exit,
            }
        };
        assert_eq!(exit, Exit { need_pages: 1, ..plain(Reason::NeedMem) });
        assert!((1..=8).contains(&marked), "{marked}");
        assert_eq!(rig.audit().get(Figure::VmCache), 8, "those of the other VM");
        rig.ok(HostFn::VmTeardownStart, &[rich.handle]);
    }
}

#[test]
fn g_11_a_table_that_fails_to_come_leaves_nothing_behind() {
    // One mark that needs three tables, and a range that needs five: the last page below an entry
    // of level 1, and the first one above it.
    for (ipa, nr, tables) in [(FAR, 1, 3), (FAR + 0x4000_0000 - 0x1000, 2, 5)] {
        let rig = Rig::new();
        let guest = short_of_tables(&rig, true, tables);
        for nth in 1..=tables {
            let before = rig.state();
            rig.world.hyp.faults().clear();
            rig.world.hyp.faults().arm(Site::PtCachePop, nth);
            let mut code = program(&[(RMAP, [ipa, nr, 0])]);
            code.pop();
            let exit = guest.run(&code);
            assert_eq!(rig.world.hyp.faults().stats(Site::PtCachePop).fired, 1);
            assert_eq!(exit.reason, Reason::NeedMem, "pass {nth}");
            assert!((1..=tables).contains(&exit.need_pages.into()), "{exit:?}");
            assert_eq!(rig.state(), before, "pass {nth}");
            assert_eq!(rig.audit().get(Figure::VmCache), tables, "pass {nth}");
            assert_eq!(guest.vm.run(), plain(Reason::Wfx), "the same HVC");
            assert_eq!(guest.result(), [0, nr]);
            assert_eq!(guest.call(RUNMAP, [ipa, nr, 0]), [0, nr]);
            assert_eq!(rig.audit().get(Figure::VmCache), tables);
        }
    }
}

/// What a guest takes for an access that nothing describes, or that may have begun elsewhere.
#[test]
fn g_12_an_access_that_is_not_one_aligned_register_aborts_in_the_guest() {
    let rig = Rig::new();
    let guest = Guest::guarded(&rig, false);
    guest.map(DEVICE);
    guest.catch();
    for (access, ipa) in [
        (Instr::Opaque { ipa: DEVICE + 0x18 }, DEVICE + 0x18),
        (Instr::Store { rt: 1, ipa: DEVICE + 2, log2: 2 }, DEVICE + 2),
        (Instr::Load { rt: 1, ipa: DEVICE + 1, log2: 1, sign: false, wide: false }, DEVICE + 1),
        (Instr::Store { rt: 1, ipa: DEVICE + 0xffc, log2: 3 }, DEVICE + 0xffc),
    ] {
        let here = guest.at.get();
        assert_eq!(guest.run(&[access]), plain(Reason::Wfx), "no exit of its own");
        assert_eq!(guest.vm.reg(reg::PC), VBAR + SYNC_EL1H + 4);
        assert_eq!(guest.vm.reg(reg::ESR_EL1), 0x9600_0210);
        assert_eq!(guest.vm.reg(reg::FAR_EL1), ipa);
        assert_eq!(guest.vm.reg(reg::ELR_EL1), here);
        assert_eq!(guest.vm.reg(reg::SPSR_EL1), 0x3c5);
        rig.ok(HostFn::VcpuSetReg, &[reg::PC, guest.at.get()]);
    }
}

#[test]
fn g_12_the_abort_of_a_protected_vm_is_no_exit_either() {
    let rig = Rig::new();
    let guest = Guest::new(&rig, true);
    guest.map(DEVICE);
    // VBAR_EL1 of a protected vCPU starts as 0.
    rig.world.sim.program(SYNC_EL1H, &[mov(1, 0x77), store(1, OUT), DONE]);
    assert_eq!(guest.run(&[Instr::Opaque { ipa: DEVICE }]), plain(Reason::Wfx));
    assert_eq!(guest.result()[0], 0x77);
}

/// The guest takes an abort with this ESR for the access, and the host hears nothing.
fn aborts(guest: &Guest<'_>, access: Instr, esr: u64) {
    assert_eq!(guest.run(&[access]), plain(Reason::Wfx), "no exit of its own");
    assert_eq!(guest.vm.reg(reg::PC), VBAR + SYNC_EL1H + 4, "{access:?}");
    assert_eq!(guest.vm.reg(reg::ESR_EL1), esr, "{access:?}");
    assert_eq!(guest.vm.reg(reg::FAR_EL1), DEVICE + 0x40);
    guest.rig().ok(HostFn::VcpuSetReg, &[reg::PC, guest.at.get()]);
}

#[test]
fn g_14_a_device_is_not_executed_and_cache_maintenance_of_it_is_nothing() {
    let rig = Rig::new();
    let guest = Guest::guarded(&rig, false);
    guest.map(DEVICE);
    guest.catch();
    aborts(&guest, Instr::Fetch { ipa: DEVICE + 0x40 }, 0x8600_0210);
    assert_eq!(guest.run(&[Instr::Clean { ipa: DEVICE + 0x40 }]), plain(Reason::Wfx));
    assert_eq!(guest.vm.reg(reg::PC), guest.at.get(), "skipped");
}

#[test]
fn g_15_a_device_is_no_table_of_stage_1() {
    let rig = Rig::new();
    let guest = Guest::guarded(&rig, false);
    guest.map(DEVICE);
    guest.catch();
    for update in [false, true] {
        aborts(&guest, Instr::Walk { ipa: DEVICE + 0x40, update }, 0x9600_0210);
    }
}

#[test]
fn g_16_an_answer_that_nobody_asked_for_changes_no_register() {
    let rig = Rig::new();
    let guest = Guest::guarded(&rig, false);
    guest.map(DEVICE);
    let registers = || (0..31).map(|n| guest.vm.reg(n)).collect::<Vec<_>>();
    assert_eq!(guest.run(&[mov(1, 11)]), plain(Reason::Wfx));
    let before = registers();
    for resp in 0..6 {
        guest.vm.answer(0, resp, u64::MAX);
        assert_eq!(guest.run(&[]), plain(Reason::Wfx));
        assert_eq!(registers(), before, "resp {resp} after WFI");
    }
    assert_eq!(guest.run(&[store(1, DEVICE)]), mmio(DEVICE, 8, true, 11));
    assert_eq!(guest.vm.reply(Resp::Reject, u64::MAX), mmio(DEVICE, 8, true, 11), "a replay");
    assert_eq!(guest.vm.reply(Resp::Done, u64::MAX), plain(Reason::Wfx));
    assert_eq!(registers(), before, "the answer to a store has no data");
    // A hole: neither data nor completion.
    assert_eq!(guest.run(&[load(2, 0x5000)]), mem_fault(0x5000, ExitFlags::empty()));
    let again = Exit { repeat: 1, ..mem_fault(0x5000, ExitFlags::empty()) };
    assert_eq!(guest.vm.reply(Resp::Done, u64::MAX), again);
    assert_eq!(registers(), before);
}

#[test]
fn a_guarded_access_that_is_on_its_way_completes_although_its_mark_goes() {
    let rig = Rig::new();
    let guest = Guest::of(TestVm::active(&rig, false, 2));
    assert_eq!(guest.call(ENROLL, [0; 3])[0], 0);
    guest.map(DEVICE);
    let other = 0x30_0000;
    rig.world.sim.program(other, &program(&[(UNMAP, [DEVICE, 0, 0])]));
    let on =
        [mov(0, abi::psci::CPU_ON_64.into()), mov(1, 1), mov(2, other), mov(3, 0), Instr::Hvc { imm: 0 }];
    assert_eq!(guest.run(&on).reason, Reason::Psci);
    assert_eq!(guest.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    assert_eq!(guest.run(&[load(5, DEVICE)]), mmio(DEVICE, 8, false, 0));
    // vCPU 1 takes the mark away before vCPU 0 is entered again.
    guest.vm.load(1, 1);
    assert_eq!(guest.vm.try_run(1, 1).unwrap(), plain(Reason::Wfx));
    assert!(!guest.is_marked(DEVICE));
    assert_eq!(guest.vm.reply(Resp::Done, 0x5678), plain(Reason::Wfx));
    assert_eq!(guest.vm.reg(5), 0x5678);
    assert_eq!(guest.run(&[load(5, DEVICE)]), mem_fault(DEVICE, ExitFlags::empty()));
}

#[test]
fn g_18_a_range_stops_before_what_is_occupied_and_after_512_pages() {
    for protected in [true, false] {
        let rig = Rig::new();
        let guest = Guest::guarded(&rig, protected);
        let base = 0x4000_0000;
        let occupied = base + (700 << 12);
        guest.vm.give(occupied);
        let mut at = base;
        let mut rest = 1000;
        for done in [512, 188] {
            assert_eq!(guest.call(RMAP, [at, rest, 0]), [0, done]);
            (at, rest) = (at + (done << 12), rest - done);
        }
        assert_eq!(guest.call(RMAP, [at, rest, 0]), [INVALID, 0]);
        assert_eq!(at, occupied);
        assert_eq!(guest.call(RMAP, [at + 0x1000, rest - 1, 0]), [0, 299]);
        let handle = u16::try_from(guest.vm.handle).unwrap();
        let state = rig.state();
        for n in 0..1001 {
            let slot = state.slot(handle, (base >> 12) + n);
            match n {
                700 => assert!(matches!(slot, Some(Slot::Mapped { .. }))),
                1000 => assert_eq!(slot, None),
                _ => assert_eq!(slot, Some(Slot::Guard), "{n}"),
            }
        }
        assert_eq!(guest.call(RUNMAP, [base, 1000, 0]), [0, 512]);
        assert_eq!(guest.call(RUNMAP, [base, 1000, 0]), [INVALID, 0], "the first one is gone");
        assert_eq!(guest.call(RUNMAP, [base + (512 << 12), 488, 0]), [0, 188]);
        guest.vm.put(0);
        guest.vm.destroy();
    }
}

#[test]
fn g_19_a_vm_that_is_not_protected_is_guarded_from_its_enrolment_to_its_reset() {
    let rig = Rig::new();
    let before = rig.state();
    let guest = Guest::new(&rig, false);
    let handle = guest.vm.handle;
    assert_eq!(guest.call(INFO, [0; 3]), [4096, 1]);
    for id in [MAP, UNMAP, RMAP, RUNMAP] {
        let nr = u64::from(id == RMAP || id == RUNMAP);
        assert_eq!(guest.call(id, [DEVICE, nr, 0])[0], INVALID, "{id:#x}: the guard is off");
    }
    assert_eq!(guest.run(&[load(1, 0x7777_0008)]), mmio(0x7777_0008, 8, false, 0), "anywhere");
    assert_eq!(guest.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    let cached = rig.audit().get(Figure::VmCache);
    for _ in 0..2 {
        assert_eq!(guest.call(ENROLL, [0; 3])[0], 0);
    }
    assert_eq!(guest.call(RMAP, [DEVICE, 512, 0]), [0, 512]);
    assert_eq!(guest.call(RMAP, [0x4000_0000, 5, 0]), [0, 5]);
    assert_eq!(guest.run(&[load(1, DEVICE + 8)]), mmio(DEVICE + 8, 8, false, 0));
    assert_eq!(guest.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    assert_eq!(guest.run(&[load(1, 0x7777_0008)]), mem_fault(0x7777_0000, ExitFlags::empty()));

    guest.vm.put(0);
    let lent = rig.audit().get(Figure::GuestBorrowed);
    let Err((Eagain, [next, 0])) = rig.call(HostFn::VmReset, &[handle]) else {
        panic!("517 marks go in two calls")
    };
    assert!(next > DEVICE && next < LIMIT, "{next:#x}");
    rig.refused(HostFn::VcpuLoad, &[handle, 0], Ebusy);
    assert_eq!(rig.call(HostFn::VmReset, &[handle]), Ok([0, 0]));
    let after = rig.audit();
    assert_eq!(after.get(Figure::VmCache), cached, "the tables are in the cache");
    assert_eq!(after.get(Figure::GuestBorrowed), lent, "what is lent stays lent");
    assert!(rig.state().slot_runs().all(|(_, _, _, slot)| slot != Slot::Guard));

    guest.vm.load(0, 0);
    // Nothing is pending: the old load does not come again, as the host sets PC.
    rig.ok(HostFn::VcpuSetReg, &[reg::PC, guest.at.get()]);
    assert_eq!(guest.run(&[load(1, DEVICE + 8)]), mmio(DEVICE + 8, 8, false, 0), "off: anywhere again");
    assert_eq!(guest.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    assert_eq!(guest.call(MAP, [DEVICE, 0, 0])[0], INVALID);
    guest.vm.put(0);
    guest.vm.destroy();
    assert_eq!(rig.state(), before);
}

#[test]
fn g_20_a_reset_waits_for_vcpus_and_is_not_for_protected_vms() {
    let rig = Rig::new();
    let sealed = TestVm::active(&rig, true, 1);
    rig.refused(HostFn::VmReset, &[sealed.handle], Eacces);
    rig.refused(HostFn::VmReset, &[sealed.handle + 100], Enoent);
    let guest = Guest::new(&rig, false);
    let handle = guest.vm.handle;
    // Before and after the vCPU enrols: while it is loaded there is no reset to race with.
    rig.refused(HostFn::VmReset, &[handle], Ebusy);
    assert_eq!(guest.call(ENROLL, [0; 3])[0], 0);
    guest.map(DEVICE);
    rig.refused(HostFn::VmReset, &[handle], Ebusy);
    assert!(guest.is_marked(DEVICE));
    guest.vm.put(0);
    for _ in 0..2 {
        assert_eq!(rig.call(HostFn::VmReset, &[handle]), Ok([0, 0]));
        assert!(!guest.is_marked(DEVICE));
    }
    guest.vm.load(0, 0);
    assert_eq!(guest.call(MAP, [DEVICE, 0, 0])[0], INVALID, "off, and without marks");
    guest.vm.put(0);
    rig.ok(HostFn::VmTeardownStart, &[handle]);
    rig.refused(HostFn::VmReset, &[handle], Ebusy);
}

/// What is pending and which vCPUs are on does not outlive a reset.
#[test]
fn a_reset_turns_all_vcpus_but_the_first_off_and_forgets_what_they_wait_for() {
    let rig = Rig::new();
    let guest = Guest::of(TestVm::active(&rig, false, 2));
    let other = 0x30_0000;
    rig.world.sim.program(other, &[DONE, DONE]);
    let on =
        [mov(0, abi::psci::CPU_ON_64.into()), mov(1, 1), mov(2, other), mov(3, 0), Instr::Hvc { imm: 0 }];
    assert_eq!(guest.run(&on).reason, Reason::Psci);
    guest.vm.load(1, 1);
    assert_eq!(guest.vm.try_run(1, 1).unwrap(), plain(Reason::Wfx));
    guest.vm.put(1);
    assert_eq!(guest.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    assert_eq!(guest.run(&[load(5, DEVICE)]), mmio(DEVICE, 8, false, 0));
    let pc = guest.vm.reg(reg::PC);
    guest.vm.put(0);
    assert_eq!(rig.call(HostFn::VmReset, &[guest.vm.handle]), Ok([0, 0]));
    guest.vm.load(1, 1);
    assert_eq!(guest.vm.try_run(1, 1), Err(Ebusy), "off");
    guest.vm.put(1);
    guest.vm.load(0, 0);
    assert_eq!(guest.vm.reply(Resp::Done, 0x1234), mmio(DEVICE, 8, false, 0), "the access comes again");
    assert_eq!((guest.vm.reg(5), guest.vm.reg(reg::PC)), (0, pc), "the old answer had no effect");
    guest.vm.put(0);
    // The guest can start the other one again.
    assert_eq!(rig.call(HostFn::VmReset, &[guest.vm.handle]), Ok([0, 0]));
    guest.vm.load(0, 0);
    rig.ok(HostFn::VcpuSetReg, &[reg::PC, guest.at.get()]);
    assert_eq!(guest.run(&on).reason, Reason::Psci);
    assert_eq!(guest.vm.reply(Resp::Done, 0), plain(Reason::Wfx));
    assert_eq!(guest.vm.reg(0), 0);
}

/// As `drivers/virt/coco/pkvm-guest` of Linux calls: features, granule, one call a page.
#[test]
fn g_21_what_linux_calls_succeeds_where_features_says_so() {
    let guard = [INFO, ENROLL, MAP, UNMAP, RMAP, RUNMAP];
    for protected in [true, false] {
        let rig = Rig::new();
        let guest = Guest::new(&rig, protected);
        let [features, _] = guest.call(guest::FEATURES.into(), [0; 3]);
        for id in guard {
            assert_eq!(features >> (id & 0x3f) & 1, 1, "{id:#x}");
        }
        if protected {
            assert_eq!(guest.call(guest::HYP_MEMINFO.into(), [0; 3]), [4096, 1]);
            for page in 0..16 {
                guest.map(DEVICE + (page << 12));
            }
            assert_eq!(guest.run(&[store(1, DEVICE + 0xf000)]).reason, Reason::Mmio);
        }
    }
}

#[test]
fn a_protected_vm_with_marks_dies_and_every_page_comes_back() {
    for protected in [true, false] {
        let rig = Rig::new();
        let before = rig.state();
        let guest = Guest::guarded(&rig, protected);
        guest.map(0);
        guest.map(LIMIT - 0x1000);
        assert_eq!(guest.call(RMAP, [DEVICE, 512, 0]), [0, 512]);
        guest.vm.put(0);
        guest.vm.destroy();
        assert_eq!(rig.state(), before);
    }
}
