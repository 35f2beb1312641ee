//! Exception vectors: what they save, and the way to a program's handler and back.

/// What the vectors save, in this order, and put back.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// x0..x30.
    pub x: [u64; 31],
    /// ELR_EL1: where the exception returns to.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// Keeps the stack pointer aligned.
    _pad: u64,
}

const _: () = assert!(size_of::<Frame>() == 272);

/// The vector of a synchronous exception taken from EL1 on its own stack, counted from VBAR_EL1.
pub const SYNC_EL1H: u64 = 4;

/// Puts the symbol `exception_vectors`, for VBAR_EL1, in the program: every vector calls the handler,
/// an `extern "C" fn(&mut Frame, u64)`, with what it saved and its number.
#[macro_export]
macro_rules! exception_vectors {
    ($handler:path) => {
        const _: extern "C" fn(&mut $crate::arch::Frame, u64) = $handler;

        core::arch::global_asm!(
            r#"
    .macro vector number
    .balign 0x80
    sub     sp, sp, #272
    stp     x0, x1, [sp]
    mov     x1, #\number
    b       save_and_handle
    .endm

    .section .text.exception_vectors, "ax"
    .balign 0x800
    .globl  exception_vectors
exception_vectors:
    .irp    number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vector  \number
    .endr

    .balign 0x80
save_and_handle:
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
    bl      {handler}
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
"#,
            handler = sym $handler,
        );
    };
}
