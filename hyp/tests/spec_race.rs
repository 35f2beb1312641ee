//! Transitions that race on two and three CPUs: under every schedule that is tried the checker has
//! nothing to say, and some order of the calls explains their answers and what they leave.
//!
//! A CPU can be interrupted by another before each hardware operation and each event, locks
//! included; the schedules are Shuttle's.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by a panic")]

use hyp::addr::Pfn;
use hyp::hw::{
    CacheOps, CpuFeatures, Dsb, Event, Machine, MappedPage, Observe, PhysMem, Stage2Ctx, Tags, Tlb, Tlbi,
};
use hyp::spec::model::Call;
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::{Config, Runner, thread};
use testkit::features::{CORTEX_A72, MAX};
use testkit::{Cpu, Judged, Setup};

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
    fn zero_page(&self, page: MappedPage) {
        self.step().zero_page(page);
    }
    fn copy_page(&self, from: MappedPage, to: MappedPage) {
        self.step().copy_page(from, to);
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
    fn enter_stage2(&self, target: Stage2Ctx) -> Stage2Ctx {
        self.step().enter_stage2(target)
    }
    fn leave_stage2(&self, previous: Stage2Ctx) {
        self.step().leave_stage2(previous);
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
    let mut config = Config::new();
    config.stack_size = 8 << 20;
    let scheduler = shuttle::scheduler::RandomScheduler::new(schedules);
    Runner::new(scheduler, config).run(move || {
        let setup = Setup { pages: 1536, table_pages: 24, cpus: programs.len(), ..Setup::new(features) };
        let turn = Arc::new(AtomicBool::new(false));
        let wrap = |cpu| Scheduled { cpu, turn: Arc::clone(&turn) };
        let judged = std::sync::Arc::new(Judged::of(setup.start_with(wrap)));
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
