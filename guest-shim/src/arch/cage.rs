//! A place in which an instruction can do what it likes to the vCPU, except for x30.
//!
//! Every way out, by the next instruction or by any vector, goes through `cage_back`, which needs neither memory
//! nor a stack until it has turned stage 1 off and set the data's byte order. The state that both sides share is
//! reached with stage 1 on and off, so it is cleaned and invalidated to memory between the two.

use aarch64_cpu::registers::{CNTVCT_EL0, Readable, SCTLR_EL1, TCR_EL1, TTBR1_EL1};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use guest_shim::cpu::{Attempt, Attempted, Stage1, Taken};

/// Words of the state; the assembly has the same numbers.
mod at {
    pub(super) const SCTLR: usize = 31;
    pub(super) const TTBR1: usize = 32;
    pub(super) const TCR: usize = 33;
    pub(super) const SLOT: usize = 34;
    pub(super) const STACK: usize = 35;
    pub(super) const X0: usize = 37;
    pub(super) const WAY: usize = 38;
    pub(super) const ESR: usize = 39;
    /// Deadline of the virtual timer, or all ones.
    pub(super) const TIMER: usize = 40;
    pub(super) const WORDS: usize = 128;
}

/// What `cage_back` says of an instruction that took no exception.
const NO_VECTOR: u64 = 16;
/// SCTLR_EL1 with stage 1 off.
const STAGE1_OFF: u64 = 0x30d0_0800;

#[repr(C, align(4096))]
struct State(UnsafeCell<[u64; at::WORDS]>);

// SAFETY: vCPU 0 alone uses it.
unsafe impl Sync for State {}

static STATE: State = State(UnsafeCell::new([0; at::WORDS]));

global_asm!(
    r#"
    // Where the instruction is put.
    .section .data.cage_slot, "aw"
    .balign 64
cage_slot:
    nop
    b       cage_normal

    .section .text.cage, "ax"
    .macro  keep register, word
    mrs     x0, \register
    str     x0, [x30, #8 * \word]
    .endm
    .macro  put_back register, word
    ldr     x0, [x30, #8 * \word]
    msr     \register, x0
    .endm
    .macro  each_register do
    \do     ttbr0_el1, 48
    \do     ttbr1_el1, 49
    \do     tcr_el1, 50
    \do     mair_el1, 51
    \do     vbar_el1, 52
    \do     cpacr_el1, 53
    \do     contextidr_el1, 54
    \do     tpidr_el0, 55
    \do     tpidrro_el0, 56
    \do     tpidr_el1, 57
    \do     sp_el0, 58
    \do     elr_el1, 59
    \do     spsr_el1, 60
    \do     cntkctl_el1, 61
    \do     cntv_cval_el0, 62
    \do     cntv_ctl_el0, 63
    \do     icc_pmr_el1, 64
    \do     icc_igrpen1_el1, 65
    \do     icc_igrpen0_el1, 66
    \do     icc_ctlr_el1, 67
    \do     icc_ap1r0_el1, 68
    .endm

    // x0 = state.
guest_cage:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    str     x18, [sp, #96]
    mov     x30, x0
    mov     x0, sp
    str     x0, [x30, #8 * 46]
    each_register keep
    keep    sctlr_el1, 47
    add     x1, x30, #1024
2:  sub     x1, x1, #16
    dc      civac, x1
    cmp     x1, x30
    b.ne    2b
    dsb     sy
    adr     x0, cage_vectors
    msr     vbar_el1, x0
    ldr     x0, [x30, #8 * 32]
    msr     ttbr1_el1, x0
    ldr     x0, [x30, #8 * 33]
    msr     tcr_el1, x0
    ldr     x0, [x30, #8 * 40]
    cmn     x0, #1
    b.eq    3f
    msr     cntv_cval_el0, x0
    mov     x0, #1
    msr     cntv_ctl_el0, x0
3:  isb
    tlbi    vmalle1
    dsb     nsh
    isb
    ldr     x0, [x30, #8 * 31]
    ldr     x29, [x30, #8 * 34]
    ldr     x1, [x30, #8 * 35]
    mov     sp, x1
    msr     sctlr_el1, x0
    isb
    ldp     x0, x1, [x30]
    ldp     x2, x3, [x30, #16]
    ldp     x4, x5, [x30, #32]
    ldp     x6, x7, [x30, #48]
    ldp     x8, x9, [x30, #64]
    ldp     x10, x11, [x30, #80]
    ldp     x12, x13, [x30, #96]
    ldp     x14, x15, [x30, #112]
    ldp     x16, x17, [x30, #128]
    ldp     x18, x19, [x30, #144]
    ldp     x20, x21, [x30, #160]
    ldp     x22, x23, [x30, #176]
    ldp     x24, x25, [x30, #192]
    ldp     x26, x27, [x30, #208]
    br      x29

cage_normal:
    mov     x29, #16
cage_back:
    // MMU, caches and big-endian data off.
    movz    x28, #0x0800
    movk    x28, #0x30d0, lsl #16
    msr     sctlr_el1, x28
    isb
    msr     daifset, #15
    msr     spsel, #1
    str     x0, [x30, #8 * 37]
    str     x29, [x30, #8 * 38]
    keep    esr_el1, 39
    each_register put_back
    ldr     x0, [x30, #8 * 46]
    mov     sp, x0
    tlbi    vmalle1
    dsb     nsh
    isb
    put_back sctlr_el1, 47
    isb
    add     x1, x30, #1024
4:  sub     x1, x1, #16
    dc      ivac, x1
    cmp     x1, x30
    b.ne    4b
    dsb     sy
    ldr     x18, [sp, #96]
    ldp     x27, x28, [sp, #80]
    ldp     x25, x26, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x21, x22, [sp, #32]
    ldp     x19, x20, [sp, #16]
    ldp     x29, x30, [sp], #112
    ret

    .balign 0x800
cage_vectors:
    .irp    number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .balign 0x80
    mov     x29, #\number
    b       cage_back
    .endr
"#
);

unsafe extern "C" {
    static cage_slot: u8;
    fn guest_cage(state: *mut u64);
}

/// Executes an instruction between walls.
pub(super) fn attempt(attempt: &Attempt) -> Attempted {
    let slot = &raw const cage_slot;
    let upper = TCR_EL1.get();
    let (sctlr, ttbr1, tcr) = match attempt.stage1 {
        Stage1::Off => (STAGE1_OFF, TTBR1_EL1.get_baddr(), upper),
        Stage1::Own => (SCTLR_EL1.get(), TTBR1_EL1.get_baddr(), upper),
        Stage1::Upper { root, tcr } => {
            const HIGH: u64 = 0xffff_0000;
            // EPD1 off, and A1: the ASID is the lower half's.
            const NOT_THESE: u64 = 1 << 23 | 1 << 22;
            (SCTLR_EL1.get(), root, upper & !HIGH | tcr & HIGH & !NOT_THESE)
        }
    };
    let mut words = [0; at::WORDS];
    for (word, x) in words.iter_mut().zip(attempt.x) {
        *word = x;
    }
    let given = [
        (at::SCTLR, sctlr),
        (at::TTBR1, ttbr1),
        (at::TCR, tcr),
        (at::SLOT, slot.addr() as u64),
        (at::STACK, attempt.x.first().copied().unwrap_or(0) & !0xf),
        (at::TIMER, attempt.timer.map_or(u64::MAX, |ticks| CNTVCT_EL0.get().wrapping_add(ticks))),
    ];
    for (at, value) in given {
        if let Some(word) = words.get_mut(at) {
            *word = value;
        }
    }
    let state = STATE.0.get();
    // SAFETY: nothing refers to the state but this function and the assembly that it calls.
    unsafe { state.write_volatile(words) };
    // SAFETY: the first word at the slot is data that nothing in Rust refers to.
    unsafe { slot.cast_mut().cast::<u32>().write_volatile(attempt.instruction) };
    // SAFETY: cleans that word to where instructions are fetched from with stage 1 off; changes nothing.
    unsafe {
        asm!(
            "dc civac, {slot}",
            "dsb sy",
            "ic ivau, {slot}",
            "dsb sy",
            "isb",
            slot = in(reg) slot,
            options(nostack)
        );
    }
    // SAFETY: it keeps what a function keeps. What the instruction does to memory and to x30 is for the payload to
    // have thought of.
    unsafe { guest_cage(state.cast()) };
    // SAFETY: as above.
    let words = unsafe { state.read_volatile() };
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    let taken = (word(at::WAY) != NO_VECTOR).then(|| Taken { vector: word(at::WAY), esr: word(at::ESR) });
    Attempted { x0: word(at::X0), taken }
}
