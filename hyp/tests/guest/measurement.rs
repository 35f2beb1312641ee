//! What is measured of a realm, held against the `measure` crate, which knows docs/measurement.md and not the code.

use crate::rig::{BITS, DONE, PC, Rig, SECRET, TestVm, plain};
use abi::Errno::{Eacces, Eagain, Ebusy, Eexist, Einval, Eperm};
use abi::exit::Reason;
use abi::vm::{MtePolicy, NO_PAGE, VmFlags};
use abi::{HostFn, rsi};
use measure::{Algorithm, Realm, State};
use testkit::features::{CORTEX_A72, MAX};
use testkit::guest::Instr;

const REALM: VmFlags = VmFlags::PROTECTED.union(VmFlags::SPLIT_IPA);
/// Where the image of a realm is.
const IMAGE: u64 = 0x4000_0000;
/// More memory.
const MORE: u64 = 0x5000_0000;

/// A VM and what should be measured of it.
struct Both<'a> {
    vm: TestVm<'a>,
    realm: Realm,
}

impl<'a> Both<'a> {
    fn new(rig: &'a Rig, flags: VmFlags, vcpus: u64) -> Self {
        let vm = TestVm::with_flags(rig, flags, vcpus, BITS);
        vm.topup(16);
        let mut realm = Realm::new(flags.bits(), BITS);
        (0..vcpus).for_each(|idx| realm.vcpu(idx, if idx == 0 { PC } else { 0 }, 0));
        Self { vm, realm }
    }

    fn ram(&mut self, base: u64, top: u64) {
        let mut at = base;
        while at < top {
            at = self.vm.rig.ok(HostFn::VmInitRipas, &[self.vm.handle, at, top]);
        }
        self.realm.memory(base, top, State::Ram);
    }

    /// Puts a page at `ipa` of whose words no two are the same: `word`, one more, and so on.
    fn populate(&mut self, ipa: u64, word: u64, measured: bool) {
        let page = self.vm.rig.filled(word);
        let words = contents(word);
        for (index, value) in words.iter().enumerate() {
            self.vm.rig.world.sim.memory().write(page, index, *value);
        }
        self.vm.rig.ok(HostFn::VmPopulate, &[self.vm.handle, ipa >> 12, page, measured.into()]);
        if measured { self.realm.page(ipa, &bytes(&words)) } else { self.realm.unmeasured_page(ipa) }
    }

    /// Finalises the VM, in however many steps: how many, what its guest reads, and what it should.
    fn finish(self) -> (u64, Vec<u8>, Vec<u8>) {
        let rig = self.vm.rig;
        let mut steps = 1;
        let mut last = 0;
        while let Err((e, [at, lacks])) = rig.call(HostFn::VmFinalise, &[self.vm.handle]) {
            assert!((e, lacks) == (Eagain, 0) && at > last, "{e:?} {at:#x}");
            (steps, last) = (steps + 1, at);
        }
        let mut guest = Guest::of(self.vm);
        let [status, value @ ..] = guest.read(0);
        assert_eq!(status, rsi::SUCCESS);
        guest.vm.put(0);
        guest.vm.destroy();
        let want = self.realm.finish();
        let bytes: Vec<u8> = value.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert!(bytes[want.len()..].iter().all(|byte| *byte == 0), "zeros behind a digest");
        (steps, bytes[..want.len()].to_vec(), want)
    }

    /// The measurement, which is what it should be.
    #[track_caller]
    fn measured(self) -> Vec<u8> {
        let (_, got, want) = self.finish();
        assert_eq!(measure::hex(&got), measure::hex(&want));
        got
    }
}

/// Words of a page that [`Both::populate`] puts.
fn contents(word: u64) -> [u64; 512] {
    core::array::from_fn(|n| word + n as u64)
}

/// A page with these words.
fn bytes(words: &[u64; 512]) -> [u8; 4096] {
    words.map(u64::to_le_bytes).as_flattened().try_into().unwrap()
}

/// vCPU 0 of a realm that runs, on CPU 0.
struct Guest<'a> {
    vm: TestVm<'a>,
    pc: u64,
}

impl<'a> Guest<'a> {
    fn of(vm: TestVm<'a>) -> Self {
        vm.load(0, 0);
        Self { vm, pc: PC }
    }

    /// Calls by SMC with x0, x1 and so on; x0 to x8 afterwards.
    fn smc(&mut self, args: &[u64]) -> [u64; 9] {
        let mut code: Vec<Instr> =
            (0..).zip(args).map(|(rt, value)| Instr::Mov { rt, value: *value }).collect();
        code.extend([Instr::Smc, DONE]);
        self.vm.rig.world.sim.program(self.pc, &code);
        self.pc += 4 * code.len() as u64;
        assert_eq!(self.vm.run(), plain(Reason::Wfx));
        self.vm.rig.loaded_registers(0)[..9].try_into().unwrap()
    }

    fn read(&mut self, index: u64) -> [u64; 9] {
        self.smc(&[rsi::MEASUREMENT_READ.into(), index, 2, 3, 4, 5, 6, 7, 8])
    }
}

#[test]
fn a_realm_reads_what_anyone_can_compute() {
    for (features, flags) in [(MAX, REALM), (CORTEX_A72, REALM), (MAX, REALM | VmFlags::SHA512)] {
        let rig = Rig::on(features);
        let mut both = Both::new(&rig, flags, 2);
        both.ram(IMAGE, IMAGE + (2 << 20) + 0x3000);
        both.populate(IMAGE, 7, true);
        both.populate(IMAGE + 0x2000, 8, false);
        both.populate(IMAGE + 0x1000, 7, true);
        both.ram(0, 0x1000);
        both.populate(0, 9, true);
        let value = both.measured();
        assert_eq!(value.len(), if flags == REALM { 32 } else { 64 });
        rig.audit();
    }
}

#[test]
fn r_06_neither_order_nor_chunks_of_memory_show() {
    let rig = Rig::new();
    let end = MORE + (2 << 30 >> 2);
    let of = |ranges: &[(u64, u64)]| {
        let mut both = Both::new(&rig, REALM, 1);
        ranges.iter().for_each(|&(base, top)| both.ram(base, top));
        both.populate(IMAGE, 7, true);
        both.measured()
    };
    let whole = of(&[(IMAGE, end)]);
    assert_eq!(of(&[(MORE, end), (IMAGE, MORE)]), whole);
    assert_eq!(of(&[(IMAGE, MORE + 0x5000), (MORE, MORE + 0x1000), (MORE + 0x3000, end)]), whole);
    let pages: Vec<(u64, u64)> =
        (0..600).rev().map(|n| (IMAGE + n * 0x1000, IMAGE + (n + 1) * 0x1000)).collect();
    assert_eq!(of(&[pages.as_slice(), &[(IMAGE + 600 * 0x1000, end)]].concat()), whole);
    assert_ne!(of(&[(IMAGE, end + 0x1000)]), whole, "a page more");
    assert_ne!(of(&[(IMAGE, end - 0x1000)]), whole, "a page less");
    assert_ne!(of(&[(IMAGE, MORE), (MORE + 0x1000, end)]), whole, "a hole");
    // What stands for a frame of memory is of no account: a page that the host gave, or none yet.
    let mut both = Both::new(&rig, REALM, 1);
    both.ram(IMAGE, end);
    both.vm.give(IMAGE + 0x7000);
    rig.ok(HostFn::GuestDonate, &[both.vm.handle, MORE >> 12, rig.pages(512), 9, 7]);
    both.populate(IMAGE, 7, true);
    assert_eq!(both.measured(), whole);
}

/// A range is one record, wherever in it a step of FINALISE ends, and at the end of the private half too.
#[test]
fn r_06_where_a_step_ends_does_not_show() {
    let rig = Rig::new();
    let mut both = Both::new(&rig, REALM, 1);
    let handle = both.vm.handle;
    rig.ok(HostFn::VmInitRipas, &[handle, IMAGE, IMAGE + (2 << 20)]);
    rig.ok(HostFn::GuestDonate, &[handle, IMAGE >> 12, rig.pages(512), 9, 7]);
    // Two pages of memory, two that are lost, and so on: more ranges than a step measures, and none of one entry.
    for base in (IMAGE..IMAGE + (2 << 20)).step_by(0x4000) {
        let (lost, next) = (base + 0x2000, base + 0x4000);
        assert_eq!(rig.ok(HostFn::GuestReclaim, &[handle, lost, next, NO_PAGE]), next);
        both.realm.memory(base, lost, State::Ram);
        both.realm.memory(lost, next, State::Destroyed);
    }
    let end = 1 << (BITS - 1);
    both.ram(end - 0x3000, end);
    let (steps, got, want) = both.finish();
    assert_eq!((steps, measure::hex(&got)), (3, measure::hex(&want)));
}

/// A call that is refused is none.
#[test]
fn what_is_refused_does_not_show() {
    let rig = Rig::new();
    let mut both = Both::new(&rig, REALM, 1);
    both.ram(IMAGE, IMAGE + 0x8000);
    both.populate(IMAGE, 7, true);
    let handle = both.vm.handle;
    let (free, record) = (rig.filled(SECRET), rig.pages(1));
    let gfn = IMAGE >> 12;
    let given = rig.filled(SECRET);
    rig.ok(HostFn::GuestDonate, &[handle, gfn + 1, given, 0, 7]);
    for (page, measured) in [(0, 0), (0, 1), (1, 0), (1, 1), (8, 0), (8, 1)] {
        assert!(rig.call(HostFn::VmPopulate, &[handle, gfn + page, free, measured]).is_err(), "{page}");
    }
    rig.refused(HostFn::VmPopulate, &[handle, gfn + 2, given, 1], Eperm);
    rig.ok(HostFn::HostShareHyp, &[record]);
    rig.refused(HostFn::VcpuCreate, &[handle, 0, free, 1, record, PC, 0], Eexist);
    rig.refused(HostFn::VcpuCreate, &[handle, 1, given, 1, record, 0, 0], Eperm);
    rig.refused(HostFn::VcpuCreate, &[handle, 1, free, 1, free, 0, 0], Eperm);
    both.measured();
}

#[test]
fn a_realm_reads_with_what_it_is_measured() {
    for (flags, number) in [(REALM, rsi::SHA_256), (REALM | VmFlags::SHA512, rsi::SHA_512)] {
        let rig = Rig::new();
        let mut both = Both::new(&rig, flags, 1);
        both.ram(IMAGE, IMAGE + 0x1000);
        let page = both.vm.give(IMAGE);
        rig.ok(HostFn::VmFinalise, &[both.vm.handle]);
        let mut guest = Guest::of(both.vm);
        assert_eq!(guest.smc(&[rsi::REALM_CONFIG.into(), IMAGE])[0], rsi::SUCCESS);
        assert_eq!((rig.word(page, 0), rig.word(page, 1)), (BITS, number));
        guest.vm.put(0);
    }
}

#[test]
fn whatever_differs_shows() {
    let rig = Rig::new();
    let of = |flags, vcpus, change: &dyn Fn(&mut Both<'_>)| {
        let mut both = Both::new(&rig, flags, vcpus);
        both.ram(IMAGE, IMAGE + 0x8000);
        change(&mut both);
        both.measured()
    };
    let one = |both: &mut Both<'_>| both.populate(IMAGE, 7, true);
    let plain = of(REALM, 1, &one);
    assert_eq!(of(REALM, 1, &one), plain, "the same again");
    let twice = |both: &mut Both<'_>, first| {
        both.populate(IMAGE + first, 7, true);
        both.populate(IMAGE + (first ^ 0x1000), 7, true);
    };
    let lost = |both: &mut Both<'_>| {
        both.populate(IMAGE, 7, true);
        both.vm.give(IMAGE + 0x7000);
        let at = IMAGE + 0x7000;
        rig.ok(HostFn::GuestReclaim, &[both.vm.handle, at, at + 0x1000, NO_PAGE]);
        both.realm = {
            let mut realm = Realm::new(REALM.bits(), BITS);
            realm.vcpu(0, PC, 0);
            realm.page(IMAGE, &bytes(&contents(7)));
            realm.memory(IMAGE, at, State::Ram);
            realm.memory(at, at + 0x1000, State::Destroyed);
            realm
        };
    };
    let others: [(&str, Vec<u8>); 12] = [
        ("a word of the image", of(REALM, 1, &|both| both.populate(IMAGE, 8, true))),
        ("where it is", of(REALM, 1, &|both| both.populate(IMAGE + 0x1000, 7, true))),
        ("that it is measured", of(REALM, 1, &|both| both.populate(IMAGE, 7, false))),
        ("that there is one", of(REALM, 1, &|_| {})),
        ("that there are two", of(REALM, 1, &|both| twice(both, 0))),
        ("the order of pages", of(REALM, 1, &|both| twice(both, 0x1000))),
        ("how many vCPUs", of(REALM, 2, &one)),
        ("a page that is lost", of(REALM, 1, &lost)),
        ("the algorithm", of(REALM | VmFlags::SHA512, 1, &one)),
        ("that the host may look at its table", of(REALM | VmFlags::DEBUGGABLE, 1, &one)),
        ("that it has tags", of(REALM | MtePolicy::Strict.flags(), 1, &one)),
        ("that it has tags for some pages", of(REALM | MtePolicy::Lazy.flags(), 1, &one)),
    ];
    for (n, (what, value)) in others.iter().enumerate() {
        assert_ne!(*value, plain, "{what}");
        assert!(others[..n].iter().all(|(_, other)| other != value), "{what}");
    }
    // Where the first vCPU starts, with what, and how many bits an address has.
    let create = |bits: u64, pc: u64, x0: u64| {
        let vm = TestVm::with_flags(&rig, REALM, 0, bits);
        vm.add_vcpu_at(0, pc, x0);
        let mut realm = Realm::new(REALM.bits(), bits);
        realm.vcpu(0, pc, x0);
        rig.ok(HostFn::VmFinalise, &[vm.handle]);
        let mut guest = Guest { pc, vm };
        guest.vm.load(0, 0);
        let [_, value @ ..] = guest.read(0);
        guest.vm.put(0);
        let got: Vec<u8> = value[..4].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(got, realm.finish());
        got
    };
    let values = [create(32, PC, 0), create(33, PC, 0), create(32, PC + 0x400, 0), create(32, PC, 1)];
    for (n, value) in values.iter().enumerate() {
        assert!(!values[..n].contains(value), "{n}");
    }
}

/// what is measured last is measured in steps, and nothing of it changes in between.
#[test]
fn r_04_nothing_changes_between_two_steps_of_finalise() {
    let rig = Rig::new();
    let mut both = Both::new(&rig, REALM, 1);
    // As many ranges as pages.
    (0..300).for_each(|n| both.ram(IMAGE + n * 0x2000, IMAGE + n * 0x2000 + 0x1000));
    let handle = both.vm.handle;
    let page = rig.filled(SECRET);
    let record = rig.pages(1);
    rig.ok(HostFn::HostShareHyp, &[record]);
    let (code, [at, x3]) = rig.call(HostFn::VmFinalise, &[handle]).unwrap_err();
    assert_eq!((code, x3), (Eagain, 0));
    assert!(IMAGE < at && at < IMAGE + 300 * 0x2000, "{at:#x}");
    let before: Vec<_> = rig.audit().ownership().collect();
    let (gfn, new) = (IMAGE >> 12, IMAGE + 0x1000);
    let shared = 1 << (BITS - 1) >> 12;
    for (call, args) in [
        (HostFn::VmInitRipas, vec![handle, new, new + 0x1000]),
        (HostFn::VmPopulate, vec![handle, gfn, page, 0]),
        (HostFn::VmPopulate, vec![handle, gfn, page, 1]),
        (HostFn::GuestDonate, vec![handle, gfn, page, 0, 7]),
        (HostFn::GuestReclaim, vec![handle, IMAGE, new, NO_PAGE]),
        (HostFn::VcpuCreate, vec![handle, 1, page, 1, record, 0, 0]),
        (HostFn::VmTopup, vec![handle, page, 1]),
        (HostFn::UnprotMap, vec![handle, shared, page, 0, 1]),
        (HostFn::RipasApply, vec![handle, 0, new, new + 0x1000]),
        (HostFn::VcpuLoad, vec![handle, 0]),
    ] {
        rig.refused(call, &args, Ebusy);
    }
    assert_eq!(rig.audit().ownership().collect::<Vec<_>>(), before);
    let (steps, got, want) = both.finish();
    assert_eq!((steps, got), (2, want), "as many more steps");
}

/// Races of R-04: 10,000 in a campaign, where RACE_ROUNDS says so.
fn races() -> u64 {
    std::env::var("RACE_ROUNDS").map_or(100, |rounds| rounds.parse().expect("a number of rounds"))
}

/// what INIT_RIPAS says is RAM while another CPU finalises is measured, or it is refused.
#[test]
fn r_04_what_becomes_ram_while_the_vm_is_finalised_is_measured_or_refused() {
    /// Rounds of one machine, whose pages are not used again.
    const LIFE: u64 = 20;
    let mut before = 0;
    for _ in 0..races() / LIFE {
        let rig = Rig::new();
        rig.world.sim.record(false);
        before += (0..LIFE).filter(|round| init_races_finalise(&rig, round % 2 == 0)).count();
    }
    println!("{before} of {} before", races());
}

/// True if INIT_RIPAS, which is CPU 0's call if `first`, was before FINALISE.
fn init_races_finalise(rig: &Rig, first: bool) -> bool {
    let mut both = Both::new(rig, REALM, 1);
    both.ram(IMAGE, IMAGE + 0x4000);
    let handle = both.vm.handle;
    let (init, finalise) = ([handle, MORE, MORE + 0x1000], [handle]);
    let (init, finalise) = ((HostFn::VmInitRipas, &init[..]), (HostFn::VmFinalise, &finalise[..]));
    let [init, finalised] = if first {
        rig.at_once([init, finalise])
    } else {
        let [finalised, init] = rig.at_once([finalise, init]);
        [init, finalised]
    };
    assert_eq!(finalised, Ok([0; 2]));
    match init {
        Ok(done) => {
            assert_eq!(done, [MORE + 0x1000, 0]);
            both.realm.memory(MORE, MORE + 0x1000, State::Ram);
        }
        Err((e, _)) => assert_eq!(e, Ebusy),
    }
    let Both { vm, realm } = both;
    let mut guest = Guest::of(vm);
    let [_, value @ ..] = guest.read(0);
    let value: Vec<u8> = value[..4].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(value, realm.finish(), "{init:x?}");
    guest.vm.put(0);
    guest.vm.destroy();
    init.is_ok()
}

#[test]
fn a_vm_that_is_being_measured_can_be_taken_apart() {
    let rig = Rig::new();
    let mut both = Both::new(&rig, REALM, 1);
    (0..300).for_each(|n| both.ram(IMAGE + n * 0x2000, IMAGE + n * 0x2000 + 0x1000));
    assert_eq!(rig.call(HostFn::VmFinalise, &[both.vm.handle]).unwrap_err().0, Eagain);
    both.vm.destroy();
}

#[test]
fn only_a_realm_is_measured() {
    let rig = Rig::new();
    let refused = |flags: VmFlags| {
        let reserve = if flags.contains(VmFlags::PROTECTED) { rig.pages(1) } else { NO_PAGE };
        rig.refused(
            HostFn::VmCreate,
            &[flags.bits(), BITS, rig.pages(1), 1, rig.pages(1), 1, reserve],
            Einval,
        );
    };
    refused(VmFlags::SHA512);
    refused(VmFlags::SHA512 | VmFlags::PROTECTED);
    let vm = TestVm::new(&rig, true, 0);
    let page = rig.filled(SECRET);
    rig.refused(HostFn::VmPopulate, &[vm.handle, 5, page, 1], Eacces);
    rig.ok(HostFn::VmPopulate, &[vm.handle, 5, page, 0]);
    rig.ok(HostFn::VmFinalise, &[vm.handle]);
}

#[test]
fn a_realm_extends_four_measurements() {
    for (flags, algorithm) in [(REALM, Algorithm::Sha256), (REALM | VmFlags::SHA512, Algorithm::Sha512)] {
        let rig = Rig::new();
        let both = Both::new(&rig, flags, 1);
        rig.ok(HostFn::VmFinalise, &[both.vm.handle]);
        let mut guest = Guest::of(both.vm);
        let extend = u64::from(rsi::MEASUREMENT_EXTEND);
        let words = [0, 7, 14, 21, 28, 35, 42, 49].map(|n| SECRET.rotate_left(n));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let size = algorithm.digest(b"").len();
        let mut want = vec![vec![0; size]; 5];
        want[0] = both.realm.finish();
        for (index, len) in [(1, 64), (2, 5), (4, 0), (2, 8), (1, 1), (3, 63)] {
            let [a, b, c, d, e, f, g, h] = words;
            let got = guest.smc(&[extend, index as u64, len as u64, a, b, c, d, e, f, g, h]);
            assert_eq!(got[..3], [rsi::SUCCESS, index as u64, len as u64], "x0 alone");
            want[index] = algorithm.extend(&want[index], &bytes[..len]);
            for (index, want) in want.iter().enumerate() {
                let [status, value @ ..] = guest.read(index as u64);
                let value: Vec<u8> = value.iter().flat_map(|word| word.to_le_bytes()).collect();
                assert_eq!((status, &value[..size]), (rsi::SUCCESS, want.as_slice()), "{index}");
            }
        }
        for index in [5, 6, 1 << 32, u64::MAX] {
            assert_eq!(guest.read(index)[..3], [rsi::ERROR_INPUT, index, 2], "{index:#x}");
        }
        for (index, len) in [(0, 1), (5, 1), (u64::MAX, 1), (1, 65), (1, u64::MAX)] {
            assert_eq!(guest.smc(&[extend, index, len])[..3], [rsi::ERROR_INPUT, index, len]);
        }
        assert_eq!(guest.read(1)[1], u64::from_le_bytes(want[1][..8].try_into().unwrap()));
        guest.vm.put(0);
    }
}
