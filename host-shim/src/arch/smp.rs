//! The other CPUs: bringing them up, and giving them work.
//!
//! Each CPU has a slot with its state. A CPU is `READY` while it waits for work; whoever wants it to
//! do something stores `WORK` or `LEAVE` and the CPU itself stores what comes next.

use super::{entry, fatal, mmu, power, set_this_cpu, this_cpu, wait_until};
use crate::board::{MAX_CPUS, MPIDR_AFFINITY};
use crate::machine::{CpuEntry, Work};
use aarch64_cpu::registers::{MPIDR_EL1, Readable};
use arrayvec::ArrayVec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};
use smccc::psci;
use spin::{Mutex, Once};

const OFF: u32 = 0;
const READY: u32 = 1;
const WORK: u32 = 2;
const LEAVE: u32 = 3;

/// Seconds that work may take; emulated CPUs are slow, and share two real ones in tests.
const WORK_SECONDS: u64 = 120;
/// Seconds that a CPU may take to come up.
const START_SECONDS: u64 = 30;

const STACK_SIZE: usize = 32 << 10;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: a stack is used by its CPU alone, and by nothing in Rust.
unsafe impl Sync for Stack {}

/// What `secondary_entry` reads with the MMU off; the order is the assembly's.
#[repr(C)]
#[derive(Debug)]
struct Secondary {
    stack_top: u64,
    index: u64,
    translation: mmu::Translation,
}

static STACKS: [Stack; MAX_CPUS] = [const { Stack(UnsafeCell::new([0; STACK_SIZE])) }; MAX_CPUS];
static STATES: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(OFF) }; MAX_CPUS];
static ENTRIES: Once<ArrayVec<(u64, Secondary), MAX_CPUS>> = Once::new();
static CURRENT: Mutex<Option<Work<'static>>> = Mutex::new(None);
/// Held while work is handed out: one lot at a time.
static HANDING_OUT: Mutex<()> = Mutex::new(());

/// Prepares for the CPUs of the tree; says which of them this is.
pub(super) fn set_up(cpus: &[u64]) -> Option<usize> {
    let translation = mmu::machine_map()?;
    let entries = ENTRIES.call_once(|| {
        let stacks = (0..).zip(STACKS.iter()).zip(cpus);
        stacks
            .map(|((index, stack), mpidr)| {
                let top = stack.0.get().expose_provenance() + STACK_SIZE;
                let stack_top = u64::try_from(top).unwrap_or(0);
                (*mpidr, Secondary { stack_top, index, translation })
            })
            .collect()
    });
    mmu::clean(entries.as_ptr().cast(), size_of_val(entries.as_slice()));
    let me = cpus.iter().position(|mpidr| *mpidr == MPIDR_EL1.get() & MPIDR_AFFINITY)?;
    STATES.get(me)?.store(READY, Ordering::Release);
    Some(me)
}

/// What CPU_ON needs for `cpu`.
pub(super) fn cpu_entry(cpu: usize) -> Option<CpuEntry> {
    let (mpidr, secondary) = ENTRIES.get()?.get(cpu)?;
    let context = u64::try_from(core::ptr::from_ref(secondary).expose_provenance()).ok()?;
    Some(CpuEntry { mpidr: *mpidr, entry: entry::secondary_address(), context })
}

fn state(cpu: usize) -> u32 {
    STATES.get(cpu).map_or(OFF, |s| s.load(Ordering::Acquire))
}

fn set_state(cpu: usize, state: u32) {
    if let Some(s) = STATES.get(cpu) {
        s.store(state, Ordering::Release);
    }
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISH);
    aarch64_cpu::asm::sev();
}

/// True if `cpu` is in `wanted` by now. If not, it is woken again: under QEMU 11.1 the event of an SEV
/// can be lost to a CPU that is about to execute WFE.
fn is_now(cpu: usize, wanted: u32) -> bool {
    let there = state(cpu) == wanted;
    if !there {
        aarch64_cpu::asm::sev();
    }
    there
}

/// Brings `cpu` up, or finds it up.
pub(super) fn start(cpu: usize) -> Result<(), i64> {
    if state(cpu) == READY {
        return Ok(());
    }
    let Some(e) = cpu_entry(cpu) else { return Err(i64::from(psci::Error::NotPresent)) };
    power::cpu_on(e.mpidr, e.entry, e.context).map_err(i64::from)?;
    if !wait_until_ready(cpu) {
        fatal(format_args!("CPU {cpu} was started and did not come up"));
    }
    Ok(())
}

/// Waits for a CPU that was started.
pub(super) fn wait_until_ready(cpu: usize) -> bool {
    wait_until(START_SECONDS, || state(cpu) == READY)
}

/// Has `cpu` call CPU_OFF.
pub(super) fn stop(cpu: usize) {
    if cpu == this_cpu() || state(cpu) != READY {
        fatal(format_args!("CPU {cpu} cannot be stopped: it is not waiting for work"));
    }
    set_state(cpu, LEAVE);
    if !wait_until(START_SECONDS, || is_now(cpu, OFF)) {
        fatal(format_args!("CPU {cpu} did not stop"));
    }
}

/// Does `work` on each of `cpus`, this one perhaps among them, and waits for all.
pub(super) fn run_on(cpus: &[usize], work: Work<'_>) {
    let Some(_one_at_a_time) = HANDING_OUT.try_lock() else {
        fatal(format_args!("work was handed out from inside work"))
    };
    let me = this_cpu();
    let others = || cpus.iter().copied().filter(|cpu| *cpu != me);
    if let Some(cpu) = others().find(|cpu| state(*cpu) != READY) {
        fatal(format_args!("CPU {cpu} is not up"));
    }
    *CURRENT.lock() = Some(for_ever(work));
    for cpu in others() {
        set_state(cpu, WORK);
    }
    if cpus.contains(&me) {
        work(me);
    }
    if !wait_until(WORK_SECONDS, || others().all(|cpu| is_now(cpu, READY))) {
        // Not a return: the closure must outlive the CPUs that run it.
        fatal(format_args!("work did not end in {WORK_SECONDS} s"));
    }
    *CURRENT.lock() = None;
}

fn for_ever(work: Work<'_>) -> Work<'static> {
    // SAFETY: only the lifetime changes. `run_on` keeps the closure until every CPU that it gave it to
    // is READY again, which a CPU is only after its last use, or never returns.
    unsafe { core::mem::transmute::<Work<'_>, Work<'static>>(work) }
}

/// Rust's first code on a secondary CPU, MMU on, on its own stack.
pub(super) extern "C" fn secondary_cpu(cpu: usize) -> ! {
    set_this_cpu(cpu);
    set_state(cpu, READY);
    loop {
        match state(cpu) {
            WORK => {
                let work = *CURRENT.lock();
                if let Some(work) = work {
                    work(cpu);
                }
                set_state(cpu, READY);
            }
            LEAVE => {
                set_state(cpu, OFF);
                let answer = power::cpu_off();
                fatal(format_args!("CPU {cpu}: CPU_OFF answered {answer:?}"));
            }
            _ => aarch64_cpu::asm::wfe(),
        }
    }
}
