//! Exceptions: interrupts are counted, the exception of an instruction under test is its
//! result, anything else ends the VM with a report.

use super::{end, this_cpu};
use aarch64_cpu::registers::{CNTV_CTL_EL0, DAIF, ESR_EL1, FAR_EL1, Readable, Writeable};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use el1::arch::{Frame, SYNC_EL1H};
use guest_shim::cpu::{Exception, Seen};
use guest_shim::protocol::{EXCEPTION, MAX_CPUS, USER};

el1::exception_vectors!(on_exception);

global_asm!(
    r#"
    .section .text.guest_execute, "ax"
    // x0 = operand, x1 = where the instruction and a RET stand. Returns x0, and x1 = 0 unless the
    // instruction took an exception.
guest_execute:
    stp     x29, x30, [sp, #-16]!
    blr     x1
    mov     x1, #0
    b       guest_execute_end

    // The same at EL0, which comes back by an exception. Interrupts stay masked.
guest_execute_user:
    stp     x29, x30, [sp, #-16]!
    mov     x2, #0x3c0
    msr     spsr_el1, x2
    msr     elr_el1, x1
    eret
guest_execute_end:
    ldp     x29, x30, [sp], #16
    ret
"#
);

unsafe extern "C" {
    static guest_execute: u8;
    static guest_execute_user: u8;
    static guest_execute_end: u8;
}

/// Vectors: IRQ taken from EL1 on its own stack; synchronous exception from EL0.
const IRQ_EL1H: u64 = 5;
const SYNC_EL0: u64 = 8;
/// Exception class of SVC.
const SVC_CLASS: u64 = 0x15;
/// Bytes from one vector to the next.
const VECTOR_SIZE: u64 = 0x80;
/// EL1 with SP_EL1, all interrupts masked.
const EL1H_MASKED: u64 = 0x3c5;

const TIMER: u64 = 27;

static TIMER_INTERRUPTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static SGIS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// The vector that vCPU 0 expects while it executes an instruction under test; 0 for none.
static UNDER_TEST: AtomicU64 = AtomicU64::new(0);
/// The fields of the [`Exception`] that it took.
static TAKEN: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

fn mine(counters: &[AtomicU64; MAX_CPUS]) -> Option<&AtomicU64> {
    counters.get(usize::try_from(this_cpu()).ok()?)
}

/// Timer interrupts taken here.
pub(super) fn timer_interrupts() -> u64 {
    mine(&TIMER_INTERRUPTS).map_or(0, |n| n.load(Ordering::Relaxed))
}

/// SGIs taken here.
pub(super) fn sgis() -> u64 {
    mine(&SGIS).map_or(0, |n| n.load(Ordering::Relaxed))
}

extern "C" fn on_exception(frame: &mut Frame, vector: u64) {
    let esr = ESR_EL1.get();
    match vector {
        IRQ_EL1H => interrupt(),
        SYNC_EL1H | SYNC_EL0 if UNDER_TEST.swap(0, Ordering::Relaxed) == vector => {
            let seen = [vector * VECTOR_SIZE, esr, FAR_EL1.get(), frame.elr, frame.spsr, DAIF.get()];
            TAKEN.iter().zip(seen).for_each(|(field, value)| field.store(value, Ordering::Relaxed));
            frame.x[1] = 1;
            frame.elr = u64::try_from((&raw const guest_execute_end).addr()).unwrap_or(0);
            if vector == SYNC_EL0 {
                frame.spsr = EL1H_MASKED;
            }
        }
        _ => end(EXCEPTION | vector, esr),
    }
}

/// Acknowledges one interrupt and ends it.
fn interrupt() {
    let intid: u64;
    // SAFETY: reads this vCPU's own interface; the interrupt is ended below.
    unsafe { asm!("mrs {}, icc_iar1_el1", out(reg) intid, options(nostack)) };
    match intid {
        TIMER => {
            // A level: it would come again at once.
            CNTV_CTL_EL0.set(0);
            mine(&TIMER_INTERRUPTS).map(|n| n.fetch_add(1, Ordering::Relaxed));
        }
        0..16 => drop(mine(&SGIS).map(|n| n.fetch_add(1, Ordering::Relaxed))),
        _ => return,
    }
    // SAFETY: ends the interrupt that was acknowledged above.
    unsafe { asm!("isb", "msr icc_eoir1_el1, {}", in(reg) intid, options(nostack)) };
}

/// Code that is written at run time.
#[repr(C, align(64))]
struct Code(UnsafeCell<[u32; 16]>);

// SAFETY: vCPU 0 alone writes and runs it.
unsafe impl Sync for Code {}

static CODE: Code = Code(UnsafeCell::new([0; 16]));

/// Executes `instruction` with `x0`.
pub(super) fn execute(instruction: u32, x0: u64) -> Seen {
    const RET: u32 = 0xd65f_03c0;
    let place = CODE.0.get().addr() as u64;
    call(&raw const guest_execute, SYNC_EL1H, [instruction, RET], place, x0)
}

/// Executes `instruction` with `x0` at EL0.
pub(super) fn execute_user(instruction: u32, x0: u64) -> Seen {
    const SVC: u32 = 0xd400_0001;
    let place = CODE.0.get().addr() as u64;
    let seen = call(&raw const guest_execute_user, SYNC_EL0, [instruction, SVC], USER + place, x0);
    // EL0 comes back by SVC when all is well.
    Seen { exception: seen.exception.filter(|e| e.esr >> 26 != SVC_CLASS), ..seen }
}

/// Puts `code` in its place and has `routine` go there, by the address `at`.
fn call(routine: *const u8, vector: u64, code: [u32; 2], at: u64, x0: u64) -> Seen {
    let place: *mut u32 = CODE.0.get().cast();
    // SAFETY: the two words are in CODE, which nothing refers to and which is aligned for them.
    unsafe { place.cast::<[u32; 2]>().write_volatile(code) };
    UNDER_TEST.store(vector, Ordering::Relaxed);
    let (result, taken): (u64, u64);
    // SAFETY: makes the words above visible to instruction fetches and calls them; they change x0
    // alone, and after an exception the handler comes back to `guest_execute_end`.
    unsafe {
        asm!(
            "dc cvau, {place}",
            "dsb ish",
            "ic ivau, {place}",
            "dsb ish",
            "isb",
            "blr {routine}",
            place = in(reg) place,
            routine = in(reg) routine,
            inout("x0") x0 => result,
            inout("x1") at => taken,
            clobber_abi("C"),
        );
    }
    UNDER_TEST.store(0, Ordering::Relaxed);
    let [vector, esr, far, elr, spsr, masks] = TAKEN.each_ref().map(|field| field.load(Ordering::Relaxed));
    let exception = Exception { vector, esr, far, elr, spsr, masks };
    Seen { x0: result, at, exception: (taken != 0).then_some(exception) }
}
