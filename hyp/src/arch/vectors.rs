//! EL2's exception vectors, for every origin: one table while the host runs, one while a guest does.
//!
//! From the host (lower EL, either width): save what Rust may change, call, restore, return. From
//! EL2 itself: always fatal, and taken on the CPU's panic stack, since the usual one may be what
//! failed. IRQ, FIQ and SError from the host are not routed here (HCR_EL2.{IMO,FMO,AMO} = 0).
//!
//! From a guest, which all of them reach: back into `guest_enter`, which left on the stack what
//! Rust keeps (x19..x30) and where the guest's registers go.

use super::exception;
use super::panic;
use super::percpu::PerCpu;
use core::arch::global_asm;
use core::mem::{offset_of, size_of};
use hyp::guest::context::VcpuContext;
use hyp::guest::exit::Vector;

/// The host's registers that a Rust function may change: x0..x18, x29, x30.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct HostFrame {
    /// x0..x17: arguments and results of calls.
    pub(crate) x: [u64; 18],
    x18: u64,
    x29: u64,
    x30: u64,
    padding: u64,
}

static_assertions::const_assert_eq!(size_of::<HostFrame>() % 16, 0);
// X30 and PC are one pair.
static_assertions::const_assert_eq!(offset_of!(VcpuContext, x), 0);
static_assertions::const_assert_eq!(offset_of!(VcpuContext, pc), 31 * 8);

global_asm!(
    r#"
    .macro  host_vector handler
    .balign 128
    sub     sp, sp, #{frame}
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x29, [sp, #144]
    str     x30, [sp, #160]
    mov     x0, sp
    adr     x30, host_return
    b       \handler
    .endm

    // x0 carries the reason; EL2's own x0 is lost, ELR/ESR/FAR and the frame chain are not.
    .macro  fatal_vector reason
    .balign 128
    mrs     x0, tpidr_el2
    cbz     x0, 1f
    mov     x1, sp
    ldr     x0, [x0, #{panic_stack}]
    mov     sp, x0
1:  mov     x0, #\reason
    mov     x2, x29
    b       {fatal}
    .endm

    // x1 = its `Vector`, which guest_enter returns.
    .macro  guest_vector vector
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\vector
    b       guest_exit
    .endm

    .pushsection .vectors, "ax"
    .balign 2048
    .global vectors
vectors:
    fatal_vector 0                      // current EL, SP_EL0
    fatal_vector 1
    fatal_vector 2
    fatal_vector 3
    fatal_vector 4                      // current EL, SP_EL2
    fatal_vector 5
    fatal_vector 6
    fatal_vector 7
    host_vector  {sync}                 // lower EL, AArch64
    fatal_vector 9
    fatal_vector 10
    fatal_vector 11
    host_vector  {sync}                 // lower EL, AArch32: an EL0 program of the host
    fatal_vector 13
    fatal_vector 14
    fatal_vector 15

    .balign 128
host_return:
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x29, [sp, #144]
    ldr     x30, [sp, #160]
    ldp     x0, x1, [sp], #{frame}
    eret
    // No speculation past the return (straight-line speculation, Arm DDI 0487, SB).
    dsb     nsh
    isb

    .balign 2048
    .global guest_vectors
guest_vectors:
    fatal_vector 0                      // current EL, SP_EL0
    fatal_vector 1
    fatal_vector 2
    fatal_vector 3
    fatal_vector 4                      // current EL, SP_EL2
    fatal_vector 5
    fatal_vector 6
    fatal_vector 7
    guest_vector {guest_sync}           // lower EL, AArch64
    guest_vector {guest_irq}
    guest_vector {guest_irq}
    guest_vector {guest_serror}
    guest_vector {guest_sync}           // lower EL, AArch32: no guest should get there
    guest_vector {guest_irq}
    guest_vector {guest_irq}
    guest_vector {guest_serror}

    // x0 = VcpuContext, x1 = PSTATE. The frame: x29, x30, x27 .. x19, x20, context.
    .balign 128
    .global guest_enter
guest_enter:
    stp     x29, x30, [sp, #-112]!
    stp     x27, x28, [sp, #16]
    stp     x25, x26, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x19, x20, [sp, #80]
    str     x0, [sp, #96]
    msr     spsr_el2, x1
    ldp     x30, x1, [x0, #240]
    msr     elr_el2, x1
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh
    isb

    .balign 128
guest_exit:
    ldr     x0, [sp, #112]
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el2
    stp     x30, x2, [x0, #240]
    ldp     x19, x20, [sp, #80]
    ldp     x21, x22, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #32]
    ldp     x27, x28, [sp, #16]
    ldp     x29, x30, [sp], #112
    mov     x0, x1
    ret
    .popsection
    "#,
    frame = const size_of::<HostFrame>(),
    panic_stack = const offset_of!(PerCpu, panic_stack_top),
    sync = sym exception::host_sync,
    fatal = sym panic::fatal_exception,
    guest_sync = const Vector::Sync as u64,
    guest_irq = const Vector::Irq as u64,
    guest_serror = const Vector::SError as u64,
);
