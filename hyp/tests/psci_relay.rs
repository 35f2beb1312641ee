//! The relay against a model of firmware that starts CPUs at EL2, one thread a CPU.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use abi::guest::trng;
use abi::{psci, smccc as arch};
use hyp::psci::smc::handle;
use hyp::psci::{Action, Relay, Reply, Start};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use testkit::Done;

const EL2_ENTRY: u64 = 0x4020_0040;
const ROUNDS: usize = 500;

/// What firmware knows and was asked.
#[derive(Default)]
struct Firmware {
    /// By MPIDR: x0 of a CPU that is on, `None` for one that is off.
    on: Mutex<BTreeMap<u64, Option<u64>>>,
    calls: Mutex<Vec<(u32, [u64; 3])>>,
    /// Answers that replace the usual ones, by function.
    answers: Mutex<BTreeMap<u32, [u64; 4]>>,
}

/// Thrown by a call that does not return.
struct Gone;

thread_local! {
    static FIRMWARE: RefCell<Arc<Firmware>> = RefCell::default();
    /// MPIDR of the CPU that this thread plays.
    static ME: Cell<u64> = const { Cell::new(0) };
    /// How often this thread called firmware.
    static CALLED: Cell<usize> = const { Cell::new(0) };
}

/// The conduit: the firmware of this thread.
struct Fake;

impl smccc::Call for Fake {
    fn call32(function: u32, args: [u32; 7]) -> [u32; 8] {
        let [x0, x1, x2, x3] = firmware(function, [args[0].into(), args[1].into(), args[2].into()]);
        [x0 as u32, x1 as u32, x2 as u32, x3 as u32, 0, 0, 0, 0]
    }

    fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
        let mut registers = [0; 18];
        registers[..4].copy_from_slice(&firmware(function, [args[0], args[1], args[2]]));
        registers
    }
}

fn firmware(function: u32, args: [u64; 3]) -> [u64; 4] {
    CALLED.set(CALLED.get() + 1);
    FIRMWARE.with_borrow(|firmware| {
        firmware.calls.lock().unwrap().push((function, args));
        if let Some(answer) = firmware.answers.lock().unwrap().get(&function) {
            return *answer;
        }
        let mut on = firmware.on.lock().unwrap();
        let status = match function {
            psci::CPU_ON_64 => match on.get_mut(&args[0]) {
                None => psci::INVALID_PARAMETERS,
                Some(Some(_)) => psci::ALREADY_ON,
                Some(off) => {
                    assert_eq!(args[1], EL2_ENTRY, "firmware starts CPUs at EL2: never where the host says");
                    *off = Some(args[2]);
                    psci::SUCCESS
                }
            },
            psci::CPU_OFF => {
                on.insert(ME.get(), None);
                drop(on);
                resume_unwind(Box::new(Gone));
            }
            psci::AFFINITY_INFO_64 => match on.get(&args[0]) {
                Some(Some(_)) => psci::AFFINITY_ON,
                Some(None) => psci::AFFINITY_OFF,
                None => psci::INVALID_PARAMETERS,
            },
            psci::VERSION => psci::VERSION_1_1,
            psci::FEATURES => psci::SUCCESS,
            psci::MIGRATE_INFO_TYPE => psci::MIGRATE_NOT_NEEDED,
            _ => psci::NOT_SUPPORTED,
        };
        [status, 0x11, 0x22, 0x33]
    })
}

/// A machine with these CPUs; this thread plays the first, which is on.
fn machine(mpidrs: &[u64]) -> (Arc<Firmware>, Relay<Fake>) {
    let firmware = Arc::new(Firmware::default());
    let on = mpidrs.iter().map(|mpidr| (*mpidr, (*mpidr == mpidrs[0]).then_some(0)));
    *firmware.on.lock().unwrap() = on.collect();
    play(&firmware, mpidrs[0]);
    (firmware, Relay::new(mpidrs, mpidrs[0], EL2_ENTRY).unwrap())
}

fn play(firmware: &Arc<Firmware>, mpidr: u64) {
    FIRMWARE.set(Arc::clone(firmware));
    ME.set(mpidr);
}

impl Firmware {
    fn take_calls(&self) -> Vec<(u32, [u64; 3])> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn answer(&self, function: u32, registers: [u64; 4]) {
        self.answers.lock().unwrap().insert(function, registers);
    }
}

/// x0 of a call that returns with x1..x3 cleared.
#[track_caller]
fn status(action: Action) -> u64 {
    let Action::Return(Reply { x0, outputs: Some([0, 0, 0]) }) = action else { panic!("{action:?}") };
    x0
}

fn smc(relay: &Relay<Fake>, registers: [u64; 4]) -> Action {
    handle(relay, 0, 0, registers)
}

fn cpu_on(relay: &Relay<Fake>, mpidr: u64) -> u64 {
    status(smc(relay, [psci::CPU_ON_64.into(), mpidr, 0x8000, 7]))
}

#[test]
fn a_machine_without_its_boot_cpu_is_none() {
    assert!(Relay::<Fake>::new(&[0, 1], 2, EL2_ENTRY).is_none());
    assert!(Relay::<Fake>::new(&[], 0, EL2_ENTRY).is_none());
}

#[test]
fn a_started_cpu_gets_its_entry_point_once() {
    let (firmware, relay) = machine(&[0x100, 0x101]);
    assert_eq!(relay.start(1), None, "nobody asked for it");
    assert_eq!(cpu_on(&relay, 0x101), psci::SUCCESS);
    // Firmware hears of EL2's entry point and the CPU's index, not of the host's registers.
    assert_eq!(firmware.take_calls(), [(psci::CPU_ON_64, [0x101, EL2_ENTRY, 1])]);
    assert_eq!(cpu_on(&relay, 0x101), psci::ON_PENDING);
    assert_eq!(relay.start(1), Some(Start { entry: 0x8000, context: 7 }));
    assert_eq!(relay.start(1), None, "a second arrival was not asked for");
    assert_eq!(cpu_on(&relay, 0x101), psci::ALREADY_ON);
    assert_eq!(cpu_on(&relay, 0x100), psci::ALREADY_ON, "the caller itself");
    assert_eq!(firmware.take_calls(), []);
}

#[test]
fn an_mpidr_that_is_no_cpu_of_the_machine_never_reaches_firmware() {
    let (firmware, relay) = machine(&[0, 1]);
    // Absent, RES1 bit 31 and U bit 30 as MPIDR_EL1 has them, MT, reserved bits, all ones.
    for mpidr in [2, 0x8000_0001, 0x4000_0001, 0x100_0001, 0x100_0000_0001, 1 << 63 | 1, u64::MAX] {
        assert_eq!(cpu_on(&relay, mpidr), psci::INVALID_PARAMETERS, "{mpidr:#x}");
        let info = [psci::AFFINITY_INFO_64.into(), mpidr, 0, 0];
        assert_eq!(status(smc(&relay, info)), psci::INVALID_PARAMETERS);
    }
    assert_eq!(firmware.take_calls(), []);
}

#[test]
fn what_firmware_refuses_can_be_tried_again() {
    let (firmware, relay) = machine(&[0, 1]);
    for refusal in [psci::DENIED, psci::INTERNAL_FAILURE, psci::ALREADY_ON] {
        firmware.answer(psci::CPU_ON_64, [refusal, 1, 2, 3]);
        assert_eq!(cpu_on(&relay, 1), refusal);
        assert_eq!(relay.start(1), None, "a CPU that was refused may not enter the host");
    }
    firmware.answers.lock().unwrap().clear();
    assert_eq!(cpu_on(&relay, 1), psci::SUCCESS);
}

/// Firmware says that it starts the CPU, and the CPU is never heard of.
#[test]
fn a_cpu_that_never_arrives_keeps_nobody_waiting() {
    let (firmware, relay) = machine(&[0, 1, 2]);
    assert_eq!(cpu_on(&relay, 1), psci::SUCCESS);
    firmware.take_calls();
    for _ in 0..3 {
        assert_eq!(cpu_on(&relay, 1), psci::ON_PENDING);
    }
    assert_eq!(firmware.take_calls(), [], "firmware is not asked again for a CPU that it has promised");
    assert_eq!(cpu_on(&relay, 2), psci::SUCCESS, "another CPU comes up");
    assert!(relay.start(2).is_some());
    assert_eq!(cpu_on(&relay, 2), psci::ALREADY_ON);
    assert_eq!(cpu_on(&relay, 0), psci::ALREADY_ON);
    // It comes after all: once, where it was sent.
    assert_eq!(relay.start(1), Some(Start { entry: 0x8000, context: 7 }));
    assert_eq!(cpu_on(&relay, 1), psci::ALREADY_ON);
}

#[test]
fn every_refusal_of_firmware_is_the_hosts_answer_and_leaves_the_cpu_off() {
    let statuses = [
        psci::NOT_SUPPORTED,
        psci::INVALID_PARAMETERS,
        psci::DENIED,
        psci::ALREADY_ON,
        psci::ON_PENDING,
        psci::INTERNAL_FAILURE,
        psci::INVALID_ADDRESS,
    ];
    let (firmware, relay) = machine(&[0, 1, 2]);
    for refusal in statuses {
        firmware.answer(psci::CPU_ON_64, [refusal, 1, 2, 3]);
        assert_eq!([cpu_on(&relay, 1), cpu_on(&relay, 2)], [refusal; 2], "not ON_PENDING at the second try");
        assert_eq!([relay.start(1), relay.start(2)], [None; 2]);
    }
    firmware.answers.lock().unwrap().clear();
    assert_eq!([cpu_on(&relay, 1), cpu_on(&relay, 2)], [psci::SUCCESS; 2]);
    assert!(relay.start(1).is_some() && relay.start(2).is_some());
}

#[test]
fn a_cpu_that_went_off_can_be_started_again_elsewhere() {
    let (firmware, relay) = machine(&[0, 1]);
    cpu_on(&relay, 1);
    relay.start(1).unwrap();
    assert_eq!(smc(&relay, [psci::CPU_OFF.into(), 0, 0, 0]), Action::CpuOff);
    play(&firmware, 1);
    assert!(catch_unwind(AssertUnwindSafe(|| relay.cpu_off(1))).unwrap_err().is::<Gone>());
    play(&firmware, 0);
    assert_eq!(relay.start(1), None);
    let again = [psci::CPU_ON_64.into(), 1, 0x9000, 8];
    assert_eq!(status(smc(&relay, again)), psci::SUCCESS);
    assert_eq!(relay.start(1), Some(Start { entry: 0x9000, context: 8 }));
}

#[test]
fn a_cpu_whose_off_is_refused_stays_on() {
    let (firmware, relay) = machine(&[0, 1]);
    firmware.answer(psci::CPU_OFF, [psci::DENIED & 0xffff_ffff, 0, 0, 0]);
    assert_eq!(relay.cpu_off(0), psci::DENIED, "W0 is sign-extended");
    firmware.take_calls();
    assert_eq!(cpu_on(&relay, 0), psci::ALREADY_ON);
    assert_eq!(firmware.take_calls(), [], "the relay itself knows");
}

#[test]
fn a_suspended_cpu_comes_back_through_el2() {
    let (firmware, relay) = machine(&[0, 1]);
    let resume = Start { entry: 0xa000, context: 9 };
    let action = smc(&relay, [psci::CPU_SUSPEND_64.into(), 0x1_0000, 0xa000, 9]);
    assert_eq!(action, Action::CpuSuspend { power_state: 0x1_0000, resume });
    // Standby, or a wake-up before power went down: the call returns and nothing is left.
    firmware.answer(psci::CPU_SUSPEND_64, [0; 4]);
    assert_eq!(relay.cpu_suspend(0, 0x1_0000, resume), psci::SUCCESS);
    assert_eq!(firmware.take_calls(), [(psci::CPU_SUSPEND_64, [0x1_0000, EL2_ENTRY, 0])]);
    assert_eq!(relay.start(0), None);
}

#[test]
fn a_power_down_resumes_where_the_host_said() {
    /// A conduit on which CPU_SUSPEND does not return.
    struct PowerDown;
    impl smccc::Call for PowerDown {
        fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
            [0; 8]
        }
        fn call64(_: u32, args: [u64; 17]) -> [u64; 18] {
            assert_eq!(args[..3], [0x4000_0000, EL2_ENTRY, 1]);
            resume_unwind(Box::new(Gone));
        }
    }
    let relay = Relay::<PowerDown>::new(&[5, 6], 6, EL2_ENTRY).unwrap();
    let resume = Start { entry: 0xa000, context: 9 };
    let gone = catch_unwind(AssertUnwindSafe(|| relay.cpu_suspend(1, 0x4000_0000, resume)));
    assert!(gone.unwrap_err().is::<Gone>());
    assert_eq!(relay.start(1), Some(resume));
    assert_eq!(relay.start(1), None);
}

#[test]
fn affinity_info_is_firmwares_answer_at_level_0() {
    let (_, relay) = machine(&[0, 1]);
    for (function, mpidr, level, answer) in [
        (psci::AFFINITY_INFO_64, 0, 0, psci::AFFINITY_ON),
        (psci::AFFINITY_INFO_64, 1, 0, psci::AFFINITY_OFF),
        (psci::AFFINITY_INFO_64, 1, 1, psci::INVALID_PARAMETERS),
        (psci::AFFINITY_INFO_32, 1, 0, psci::AFFINITY_OFF),
        // An SMC32 has no upper halves.
        (psci::AFFINITY_INFO_32, 0xdead_0000_0001, 0xbeef_0000_0000, psci::AFFINITY_OFF),
        (psci::AFFINITY_INFO_32, 2, 0, psci::INVALID_PARAMETERS),
    ] {
        assert_eq!(status(smc(&relay, [function.into(), mpidr, level, 0])), answer);
    }
}

#[test]
fn the_calls_that_start_the_host_in_aarch32_are_refused() {
    let (firmware, relay) = machine(&[0, 1]);
    for id in [psci::CPU_ON_32, psci::CPU_SUSPEND_32] {
        assert_eq!(smc(&relay, [id.into(), 1, 0x8000, 0]), Action::Return(Reply::NOT_SUPPORTED));
        assert_eq!(status(smc(&relay, [psci::FEATURES.into(), id.into(), 0, 0])), psci::NOT_SUPPORTED);
    }
    assert_eq!(firmware.take_calls(), []);
}

#[test]
fn an_immediate_or_an_upper_half_makes_any_call_unsupported() {
    let (firmware, relay) = machine(&[0, 1]);
    for id in [psci::VERSION, psci::CPU_ON_64, psci::SYSTEM_OFF, arch::VERSION] {
        let registers = [id.into(), 1, 0x8000, 0];
        for imm16 in [1, 0x8000, 0xffff] {
            assert_eq!(handle(&relay, 0, imm16, registers), Action::Return(Reply::NOT_SUPPORTED));
        }
        for high in [1 << 32, 1 << 63] {
            let registers = [high | u64::from(id), 1, 0x8000, 0];
            assert_eq!(smc(&relay, registers), Action::Return(Reply::NOT_SUPPORTED));
        }
    }
    assert_eq!(firmware.take_calls(), []);
}

#[test]
fn the_sve_hint_changes_nothing() {
    let (firmware, relay) = machine(&[0, 1]);
    let hint = u64::from(arch::HINT_SVE);
    assert_eq!(status(smc(&relay, [hint | u64::from(psci::CPU_ON_64), 1, 0x8000, 7])), psci::SUCCESS);
    assert_eq!(firmware.take_calls(), [(psci::CPU_ON_64, [1, EL2_ENTRY, 1])], "nor does firmware see it");
    assert_eq!(smc(&relay, [hint | u64::from(psci::SYSTEM_OFF), 0, 0, 0]), Action::SystemOff);
    let on_32 = smc(&relay, [hint | u64::from(psci::CPU_ON_32), 1, 0x8000, 7]);
    assert_eq!(on_32, Action::Return(Reply::NOT_SUPPORTED));
}

#[test]
fn features_name_what_the_host_has_and_nothing_else() {
    let (firmware, relay) = machine(&[0]);
    let features = |id: u32| status(smc(&relay, [psci::FEATURES.into(), id.into(), 0, 0]));
    for id in [psci::CPU_ON_64, psci::CPU_OFF, psci::SYSTEM_RESET, psci::FEATURES, psci::AFFINITY_INFO_32] {
        assert_eq!(features(id), psci::SUCCESS, "{id:#x}");
    }
    firmware.take_calls();
    assert_eq!(features(arch::VERSION), psci::SUCCESS);
    // SYSTEM_SUSPEND64, SYSTEM_RESET2, MEM_PROTECT, FFA_VERSION: firmware would say yes.
    for id in [0xc400_000e, 0x8400_0012, 0x8400_0013, 0x8400_0063, 0] {
        assert_eq!(features(id), psci::NOT_SUPPORTED, "{id:#x}");
    }
    assert_eq!(firmware.take_calls(), []);
    firmware.answer(psci::FEATURES, [2, 0, 0, 0]);
    assert_eq!(features(psci::CPU_SUSPEND_64), 2, "flags are firmware's");
}

#[test]
fn smccc_is_answered_here_and_workarounds_by_firmware() {
    let (firmware, relay) = machine(&[0]);
    assert_eq!(status(smc(&relay, [arch::VERSION.into(), 0, 0, 0])), arch::VERSION_1_2);
    let features = |id: u32| status(smc(&relay, [arch::ARCH_FEATURES.into(), id.into(), 0, 0]));
    assert_eq!(features(arch::VERSION), arch::SUCCESS);
    assert_eq!(features(arch::ARCH_FEATURES), arch::SUCCESS);
    assert_eq!(features(psci::CPU_ON_64), arch::NOT_SUPPORTED);
    assert_eq!(firmware.take_calls(), []);
    assert_eq!(features(arch::ARCH_WORKAROUND_1), arch::NOT_SUPPORTED, "QEMU's firmware has none");
    firmware.answer(arch::ARCH_FEATURES, [1, 0, 0, 0]);
    assert_eq!(features(arch::ARCH_WORKAROUND_3), 1);
    firmware.take_calls();
    let absent = smc(&relay, [arch::ARCH_WORKAROUND_2.into(), 1, 0, 0]);
    assert_eq!(absent, Action::Return(Reply::NOT_SUPPORTED), "what firmware has not changes nothing");
    assert_eq!(firmware.take_calls(), [(arch::ARCH_WORKAROUND_2, [1, 0, 0])]);
}

#[test]
fn random_numbers_come_back_in_all_registers() {
    let (firmware, relay) = machine(&[0]);
    let numbers = [0, u64::MAX, 1 << 40, 5];
    firmware.answer(trng::RND64, numbers);
    let reply = smc(&relay, [trng::RND64.into(), 192, 0xdead, 0xbeef]);
    assert_eq!(reply, Action::Return(Reply { x0: 0, outputs: Some([u64::MAX, 1 << 40, 5]) }));
    assert_eq!(firmware.take_calls(), [(trng::RND64, [192, 0, 0])], "no other register of the host");
}

#[test]
fn what_firmware_leaves_behind_in_other_registers_is_not_shown() {
    let (firmware, relay) = machine(&[0]);
    let one_value = [
        psci::VERSION,
        psci::MIGRATE_INFO_TYPE,
        psci::FEATURES,
        psci::AFFINITY_INFO_64,
        psci::CPU_ON_64,
        arch::ARCH_FEATURES,
        arch::ARCH_WORKAROUND_1,
        arch::ARCH_SOC_ID,
        trng::VERSION,
        trng::FEATURES,
    ];
    for id in one_value {
        firmware.answer(id, [5, 0xdead, 0xbeef, 0xf00d]);
        status(smc(&relay, [id.into(), 0, 0, 0]));
    }
}

/// Every function id that differs from one on the list in up to two bits, and every low number of
/// every owner: nothing but the list reaches firmware.
#[test]
fn nothing_off_the_list_reaches_firmware() {
    let (firmware, relay) = machine(&[0, 1]);
    let forwarded = BTreeSet::from([
        psci::VERSION,
        psci::MIGRATE_INFO_TYPE,
        psci::FEATURES,
        psci::CPU_ON_64,
        psci::AFFINITY_INFO_64,
        arch::ARCH_FEATURES,
        arch::ARCH_WORKAROUND_1,
        arch::ARCH_WORKAROUND_2,
        arch::ARCH_WORKAROUND_3,
        arch::ARCH_SOC_ID,
        trng::VERSION,
        trng::FEATURES,
        trng::GET_UUID,
        trng::RND32,
        trng::RND64,
    ]);
    let here = BTreeSet::from([
        arch::VERSION,
        psci::CPU_OFF,
        psci::CPU_SUSPEND_64,
        psci::SYSTEM_OFF,
        psci::SYSTEM_RESET,
        psci::AFFINITY_INFO_32,
    ]);
    let list: BTreeSet<u32> = forwarded.union(&here).copied().collect();
    // Firmware has every call there is.
    for id in &forwarded {
        firmware.answer(*id, [1, 0, 0, 0]);
    }
    let mut ids = list.clone();
    for id in &list {
        for a in 0..32 {
            ids.extend((0..32).map(|b| id ^ 1 << a ^ 1 << b));
        }
    }
    for top in 0..=0xff_u32 {
        ids.extend((0..0x200).map(|number| top << 24 | number));
    }
    let mut known = BTreeSet::new();
    for id in ids {
        let action = smc(&relay, [id.into(), 1, 0, 0]);
        let bare = id & !arch::HINT_SVE;
        if list.contains(&bare) {
            known.insert(bare);
            assert_ne!(action, Action::Return(Reply::NOT_SUPPORTED), "{id:#x}");
        } else {
            assert_eq!(action, Action::Return(Reply::NOT_SUPPORTED), "{id:#x}");
        }
        for (function, _) in firmware.take_calls() {
            assert!(forwarded.contains(&function), "{id:#x} reached firmware as {function:#x}");
        }
    }
    assert_eq!(known, list);
}

/// Three CPUs fight over starting a fourth, which goes off as soon as it has come up: as many
/// arrivals as successes, each with the entry point and context of one and the same call.
#[test]
fn of_racing_cpu_ons_one_succeeds_and_its_entry_point_counts() {
    let (firmware, relay) = machine(&[0, 1, 2, 3]);
    let stop = Done::default();
    let ticket = AtomicU64::new(1);
    let successes = Mutex::new(BTreeSet::new());
    let mut arrivals: Vec<Start> = Vec::new();
    thread::scope(|scope| {
        for by in 0..3 {
            let (firmware, relay, stop, ticket, successes) = (&firmware, &relay, &stop, &ticket, &successes);
            scope.spawn(move || {
                play(firmware, by as u64);
                while !stop.is_set() {
                    let ticket = ticket.fetch_add(1, Ordering::Relaxed);
                    let call = [psci::CPU_ON_64.into(), 3, ticket << 20, ticket];
                    match status(handle(relay, by, 0, call)) {
                        psci::SUCCESS => assert!(successes.lock().unwrap().insert(ticket)),
                        other => assert!([psci::ALREADY_ON, psci::ON_PENDING].contains(&other), "{other:#x}"),
                    }
                }
            });
        }
        let _stop = stop.on_drop();
        play(&firmware, 3);
        let began = Instant::now();
        while arrivals.len() < ROUNDS && began.elapsed() < Duration::from_secs(60) {
            let Some(index) = firmware.on.lock().unwrap()[&3] else {
                thread::yield_now();
                continue;
            };
            assert_eq!(index, 3);
            arrivals.extend(relay.start(3));
            assert!(catch_unwind(AssertUnwindSafe(|| relay.cpu_off(3))).unwrap_err().is::<Gone>());
        }
    });
    assert_eq!(arrivals.len(), ROUNDS, "the CPU could not be started any more");
    for start in &arrivals {
        assert_eq!(start.entry, start.context << 20, "entry and context of different calls");
    }
    let arrived: BTreeSet<u64> = arrivals.iter().map(|start| start.context).collect();
    assert_eq!(arrived.len(), ROUNDS, "one call started the CPU twice");
    // A caller may have started it once more before it saw the stop.
    let successes = successes.into_inner().unwrap();
    assert!(successes.is_superset(&arrived));
    assert!(successes.len() - ROUNDS <= 1, "a call that started nothing said SUCCESS");
}

/// A CPU whose CPU_OFF is refused while others try to start it is never started twice.
#[test]
fn a_refused_off_racing_with_cpu_on_leaves_the_cpu_on() {
    let (firmware, relay) = machine(&[0, 1, 2]);
    assert_eq!(cpu_on(&relay, 2), psci::SUCCESS);
    relay.start(2).unwrap();
    firmware.answer(psci::CPU_OFF, [psci::DENIED, 0, 0, 0]);
    let stop = Done::default();
    thread::scope(|scope| {
        for by in 0..2 {
            let (firmware, relay, stop) = (&firmware, &relay, &stop);
            scope.spawn(move || {
                play(firmware, by as u64);
                while !stop.is_set() {
                    let status = status(handle(relay, by, 0, [psci::CPU_ON_64.into(), 2, 0, 0]));
                    assert!([psci::ALREADY_ON, psci::ON_PENDING].contains(&status), "{status:#x}");
                }
            });
        }
        let _stop = stop.on_drop();
        for _ in 0..5_000 {
            let called = CALLED.get();
            assert_eq!(relay.cpu_off(2), psci::DENIED);
            assert_eq!(cpu_on(&relay, 2), psci::ALREADY_ON);
            assert_eq!(CALLED.get(), called + 1, "the relay itself knows that the CPU is on");
        }
    });
    assert_eq!(relay.start(2), None);
}
