//! Exception vectors: interrupts are counted, the exception of an instruction under test is its
//! result, anything else ends the VM with a report.

use super::{end, this_cpu};
use aarch64_cpu::registers::{CNTV_CTL_EL0, ESR_EL1, Readable, Writeable};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::cpu::Seen;
use guest_shim::protocol::{EXCEPTION, MAX_CPUS};

/// What the vectors save, in this order.
#[derive(Debug)]
#[repr(C)]
struct Frame {
    /// x0..x30.
    x: [u64; 31],
    /// ELR_EL1.
    elr: u64,
    /// SPSR_EL1.
    spsr: u64,
    /// Keeps the stack pointer aligned.
    _pad: u64,
}

const _: () = assert!(size_of::<Frame>() == 272);

global_asm!(
    r#"
    .macro guest_vector number
    .balign 0x80
    sub     sp, sp, #272
    stp     x0, x1, [sp]
    mov     x1, #\number
    b       guest_save
    .endm

    .section .text.guest_vectors, "ax"
    .balign 0x800
    .globl  guest_vectors
guest_vectors:
    .irp    number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    guest_vector \number
    .endr

    .balign 0x80
guest_save:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    stp     x30, x2, [sp, #240]
    str     x3, [sp, #256]
    mov     x0, sp
    bl      {on_exception}
    ldr     x3, [sp, #256]
    ldp     x30, x2, [sp, #240]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldp     x0, x1, [sp]
    add     sp, sp, #272
    eret

    // x0 = operand, x1 = where the instruction and a RET stand. Returns x0, and x1 = ESR or 0.
guest_execute:
    stp     x29, x30, [sp, #-16]!
    blr     x1
    mov     x1, #0
guest_execute_end:
    ldp     x29, x30, [sp], #16
    ret
"#,
    on_exception = sym on_exception,
);

unsafe extern "C" {
    static guest_execute: u8;
    static guest_execute_end: u8;
}

/// Synchronous exception, and IRQ, taken from EL1 on its own stack.
const SYNC_EL1H: u64 = 4;
const IRQ_EL1H: u64 = 5;

const TIMER: u64 = 27;

static TIMER_INTERRUPTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static SGIS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// 1 while vCPU 0 executes an instruction under test.
static UNDER_TEST: AtomicU64 = AtomicU64::new(0);

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
        SYNC_EL1H if UNDER_TEST.swap(0, Ordering::Relaxed) == 1 => {
            frame.x[1] = esr;
            frame.elr = u64::try_from((&raw const guest_execute_end).addr()).unwrap_or(0);
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
    let place: *mut u32 = CODE.0.get().cast();
    let pair = u64::from(RET) << 32 | u64::from(instruction);
    // SAFETY: the two words are in CODE, which nothing refers to and which is aligned for them.
    unsafe { place.cast::<u64>().write_volatile(pair) };
    UNDER_TEST.store(1, Ordering::Relaxed);
    let (result, esr): (u64, u64);
    // SAFETY: makes the words above visible to instruction fetches and calls them; they change x0
    // alone, and after an exception the handler comes back to `guest_execute_end`.
    unsafe {
        asm!(
            "dc cvau, x1",
            "dsb ish",
            "ic ivau, x1",
            "dsb ish",
            "isb",
            "blr {code}",
            code = in(reg) &raw const guest_execute,
            inout("x0") x0 => result,
            inout("x1") place => esr,
            clobber_abi("C"),
        );
    }
    UNDER_TEST.store(0, Ordering::Relaxed);
    Seen { esr: (esr != 0).then_some(esr), x0: result }
}
