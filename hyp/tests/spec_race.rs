//! Transitions that race on two and three CPUs: under every schedule that is tried the checker has
//! nothing to say, and some order of the calls explains their answers and what they leave.
//!
//! A CPU can be interrupted by another before each hardware operation and each event, locks
//! included; the schedules are Shuttle's.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by a panic")]

use hyp::addr::Pfn;
use hyp::hw::{
    CacheOps, CpuFeatures, Dsb, Event, Machine, MappedPage, Observe, Outer, PhysMem, Stage2Ctx, Tags, Tlb,
    Tlbi,
};
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Kind};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::{Config, Runner, thread};
use testkit::features::{CORTEX_A72, MAX};
use testkit::{Cpu, Judged, Setup, VmSetup};

/// A CPU at which the scheduler may look the other way before each operation.
#[derive(Debug)]
struct Scheduled {
    cpu: Cpu,
    turn: Arc<AtomicBool>,
}

impl Scheduled {
    /// Any operation of Shuttle's is a place to change CPUs.
    fn step(&self) -> &Cpu {
        self.turn.load(Ordering::Relaxed);
        &self.cpu
    }
}

/// What a CPU does while it waits for a lock: the others run.
#[derive(Debug)]
struct LetOthersRun;

impl spin::RelaxStrategy for LetOthersRun {
    fn relax() {
        thread::yield_now();
    }
}

impl PhysMem for Scheduled {
    fn read_entry(&self, page: Pfn, index: usize) -> u64 {
        self.cpu.read_entry(page, index)
    }
    fn write_entry(&self, page: Pfn, index: usize, value: u64) {
        self.step().write_entry(page, index, value);
    }
    fn write_word(&self, page: Pfn, index: usize, value: u64) {
        self.step().write_word(page, index, value);
    }
    fn put_word(&self, page: MappedPage, index: usize, value: u64) {
        self.step().put_word(page, index, value);
    }
    fn get_word(&self, page: MappedPage, index: usize) -> u64 {
        self.cpu.get_word(page, index)
    }
    fn zero_page(&self, page: MappedPage) {
        self.step().zero_page(page);
    }
    fn copy_page(&self, from: MappedPage, to: MappedPage) {
        self.step().copy_page(from, to);
    }
    fn copy_entries(&self, from: MappedPage, to: MappedPage, accessed: bool) -> u64 {
        self.step().copy_entries(from, to, accessed)
    }
}

impl Tlb for Scheduled {
    fn dsb(&self, scope: Dsb) {
        self.step().dsb(scope);
    }
    fn isb(&self) {
        self.cpu.isb();
    }
    fn tlbi(&self, op: Tlbi) {
        self.step().tlbi(op);
    }
    fn enter_stage2(&self, target: Stage2Ctx) -> Outer {
        self.step().enter_stage2(target)
    }
    fn leave_stage2(&self, outer: Outer) {
        self.step().leave_stage2(outer);
    }
}

impl CacheOps for Scheduled {
    fn clean_to_poc(&self, page: MappedPage) {
        self.step().clean_to_poc(page);
    }
    fn clean_invalidate_to_poc(&self, page: MappedPage) {
        self.step().clean_invalidate_to_poc(page);
    }
    fn invalidate_icache(&self, page: MappedPage) {
        self.step().invalidate_icache(page);
    }
}

impl Tags for Scheduled {
    fn zero_tags(&self, page: MappedPage) {
        self.step().zero_tags(page);
    }
}

impl Observe for Scheduled {
    fn observe(&self, event: Event) {
        self.step().observe(event);
    }
}

impl Machine for Scheduled {
    type Relax = LetOthersRun;

    fn features(&self) -> &CpuFeatures {
        self.cpu.features()
    }
}

const RAM: u64 = 0x40000;

/// A thing that a CPU does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Call(Call),
    Touch(u64),
}

/// Runs `programs`, one a CPU, under `schedules` random schedules.
fn race(features: CpuFeatures, schedules: usize, programs: &'static [&'static [Act]]) {
    race_from(features, schedules, &[], programs);
}

/// The same on a machine with a VM of each kind, after the calls `before`.
fn race_with_vms(schedules: usize, before: &'static [Call], programs: &'static [&'static [Act]]) {
    race_from(CORTEX_A72, schedules, before, programs);
    race_from(MAX, schedules, before, programs);
}

fn race_from(
    features: CpuFeatures,
    schedules: usize,
    before: &'static [Call],
    programs: &'static [&'static [Act]],
) {
    let mut config = Config::new();
    config.stack_size = 8 << 20;
    let scheduler = shuttle::scheduler::RandomScheduler::new(schedules);
    Runner::new(scheduler, config).run(move || {
        let setup = Setup { pages: 1536, table_pages: 24, cpus: programs.len(), ..Setup::new(features) };
        let turn = Arc::new(AtomicBool::new(false));
        let wrap = |cpu| Scheduled { cpu, turn: Arc::clone(&turn) };
        let mut judged = Judged::of(setup.start_with(wrap));
        if !before.is_empty() {
            judged = judged.with(&VMS);
            before.iter().for_each(|&call| assert!(judged.call(0, call).is_ok(), "{call:x?}"));
        }
        let judged = std::sync::Arc::new(judged);
        let cpus: Vec<_> = (0..programs.len())
            .map(|cpu| {
                let judged = std::sync::Arc::clone(&judged);
                thread::spawn(move || {
                    for &act in programs[cpu] {
                        match act {
                            Act::Call(call) => _ = judged.call(cpu, call),
                            Act::Touch(pfn) => {
                                let page = Pfn::new(pfn).expect("RAM lies below 2^48");
                                _ = judged.world.touch(cpu, page, hyp::pgtable::Access::R);
                            }
                        }
                    }
                })
            })
            .collect();
        for cpu in cpus {
            cpu.join().expect("a CPU that finds something wrong ends the test");
        }
        judged.settle();
    });
}

const VMS: [VmSetup; 2] =
    [VmSetup::new(1, Kind::Classic, 700, 4), VmSetup::new(2, Kind::NonProtected, 720, 4)];

const P: u64 = RAM + 512;
const SHARE: Act = Act::Call(Call::HostShareHyp { pfn: P });
const UNSHARE: Act = Act::Call(Call::HostUnshareHyp { pfn: P });
const PIN: Act = Act::Call(Call::HypPin { pfn: P });
const UNPIN: Act = Act::Call(Call::HypUnpin { pfn: P });
const LEND: Act = Act::Call(Call::HostDonateHyp { pfn: P, nr: 1 });
const LEND_TWO: Act = Act::Call(Call::HostDonateHyp { pfn: P, nr: 2 });
const TAKE_BACK: Act = Act::Call(Call::HypDonateHost { pfn: P, nr: 1 });
const TOUCH: Act = Act::Touch(P);
const TOUCH_NEXT: Act = Act::Touch(P + 1);

#[test]
fn one_page_is_shared_or_lent_by_the_cpu_that_comes_first() {
    race(CORTEX_A72, 60, &[&[SHARE, UNSHARE], &[LEND, TAKE_BACK]]);
    race(MAX, 60, &[&[SHARE, LEND], &[LEND, UNSHARE, TAKE_BACK]]);
}

#[test]
fn a_pin_and_an_unshare_that_race_leave_no_pinned_page_of_the_host() {
    race(CORTEX_A72, 60, &[&[SHARE, PIN, UNPIN, UNSHARE], &[UNSHARE, SHARE, LEND]]);
}

#[test]
fn the_host_faults_on_a_page_while_it_is_given_away_and_comes_back() {
    race(CORTEX_A72, 60, &[&[LEND_TWO, TAKE_BACK, LEND], &[TOUCH_NEXT, TOUCH, TOUCH_NEXT]]);
    race(MAX, 60, &[&[LEND, TAKE_BACK], &[TOUCH_NEXT, TOUCH], &[TOUCH, SHARE]]);
}

#[test]
fn three_cpus_lend_and_take_back_the_same_pages() {
    race(CORTEX_A72, 40, &[&[LEND, TAKE_BACK], &[LEND_TWO, TAKE_BACK], &[TAKE_BACK, SHARE]]);
}

/// A frame where page P goes.
const G: u64 = 0x10;
const GIVE_CALL: Call = Call::HostDonateGuest { handle: 1, gfn: G, pfn: P, order: 0 };
const GIVE: Act = Act::Call(GIVE_CALL);
const GIVE_NEXT: Act = Act::Call(Call::HostDonateGuest { handle: 1, gfn: G + 1, pfn: P + 1, order: 0 });
const LEND_PLAIN: Act = Act::Call(Call::HostShareGuest { handle: 2, gfn: G, pfn: P, order: 0, prot: 7 });
const LEND_PLAIN_AGAIN: Act =
    Act::Call(Call::HostShareGuest { handle: 2, gfn: G + 1, pfn: P, order: 0, prot: 3 });
const LENT_BACK: Act = Act::Call(Call::HostUnshareGuest { handle: 2, gfn: G, nr: 2 });
const SHARE_BACK: Act = Act::Call(Call::GuestShareHost { handle: 1, gfn: G, nr: 2 });
const END_SHARE: Act = Act::Call(Call::GuestUnshareHost { handle: 1, gfn: G, nr: 1 });
const GIVE_UP: Act = Act::Call(Call::GuestRelinquishHost { handle: 1, gfn: G, nr: 1 });
const FORCE: Act = Act::Call(Call::HostReclaimGuest {
    handle: 1,
    base: G << 12,
    top: (G + 2) << 12,
    refill: NONE,
    kept: NONE,
});
const STORE: Act = Act::Call(Call::VmTopup { handle: 1, pfn: P, nr: 2 });
const DIE: Act = Act::Call(Call::VmTeardownStart { handle: 1 });
const BURY: Act =
    Act::Call(Call::HostReclaimDyingGuest { handle: 1, base: G << 12, top: (G + 2) << 12, kept: NONE });
/// Something that changes nothing the races are about.
const NOTHING: Call = Call::HostUnshareHyp { pfn: P + 7 };
/// The world with its VMs, and P + 7 shared once.
const FRESH: &[Call] = &[Call::HostShareHyp { pfn: P + 7 }, NOTHING];

#[test]
fn one_page_goes_to_one_of_a_protected_vm_a_plain_vm_and_the_pool() {
    race_with_vms(30, FRESH, &[&[GIVE, SHARE_BACK], &[LEND_PLAIN, LENT_BACK], &[LEND, TAKE_BACK]]);
    race_with_vms(30, FRESH, &[&[STORE, GIVE], &[GIVE, GIVE_NEXT], &[TOUCH, SHARE]]);
}

#[test]
fn a_page_that_a_vm_shares_is_taken_by_force_by_neither_side() {
    race_with_vms(30, &[GIVE_CALL], &[&[SHARE_BACK, END_SHARE], &[FORCE, GIVE], &[TOUCH, TOUCH]]);
    race_with_vms(30, &[GIVE_CALL], &[&[GIVE_UP, GIVE_NEXT], &[FORCE, LEND]]);
}

#[test]
fn entries_that_lend_one_page_are_counted_whoever_comes_first() {
    race_with_vms(30, FRESH, &[&[LEND_PLAIN, LENT_BACK], &[LEND_PLAIN_AGAIN, LENT_BACK], &[LEND, SHARE]]);
}

#[test]
fn what_is_left_of_a_vm_that_dies_is_the_hosts_whatever_races_with_its_end() {
    race_with_vms(30, &[GIVE_CALL], &[&[DIE, BURY], &[BURY, LEND], &[TOUCH, BURY, SHARE]]);
}
