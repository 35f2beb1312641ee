//! The first instructions of each vCPU that are the guest's own, and the map they turn on.

use super::{first_vcpu, secondary_vcpu};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use guest_shim::protocol::{ABSENT, BEYOND, CACHED, IMAGE, MAX_CPUS, SHARED, TAGGED, UART, USER, WALKED};

const GIB_SHIFT: u32 = 30;
const STACK_SHIFT: u32 = 14;

/// A level-1 table: 39 bits of addresses.
#[repr(C, align(4096))]
struct Table([u64; 512]);

/// Identity map in blocks of 1 GiB: Normal write-back inner shareable where there is RAM or nothing,
/// Device-nGnRE for the UART and beyond the IPA space, RAM and UART in the shared half too; then what
/// `protocol` says of other views.
/// Every other address has no translation.
static MAP: Table = {
    const ACCESSED_BLOCK: u64 = 1 << 10 | 1;
    const NORMAL: u64 = ACCESSED_BLOCK | 3 << 8 | 1 << 2;
    const DEVICE: u64 = ACCESSED_BLOCK;
    const USER_ACCESS: u64 = 1 << 6;
    const TABLE: u64 = 3;
    const fn put(table: &mut [u64; 512], address: u64, word: u64) {
        #[allow(clippy::cast_possible_truncation, reason = "of 39 bits nine are left")]
        #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            table[(address >> GIB_SHIFT) as usize] = word;
        }
    }
    const fn gib(address: u64) -> u64 {
        address >> GIB_SHIFT << GIB_SHIFT
    }
    let mut table = [0; 512];
    put(&mut table, IMAGE, gib(IMAGE) | NORMAL);
    put(&mut table, ABSENT, gib(ABSENT) | NORMAL);
    put(&mut table, UART, gib(UART) | DEVICE);
    put(&mut table, SHARED + UART, gib(SHARED + UART) | DEVICE);
    put(&mut table, SHARED + IMAGE, gib(SHARED + IMAGE) | NORMAL);
    put(&mut table, BEYOND, gib(BEYOND) | DEVICE | 1 << 2);
    put(&mut table, CACHED + UART, gib(UART) | NORMAL);
    put(&mut table, USER + UART, gib(UART) | NORMAL | USER_ACCESS);
    put(&mut table, USER + IMAGE, gib(IMAGE) | NORMAL | USER_ACCESS);
    put(&mut table, TAGGED + IMAGE, gib(IMAGE) | NORMAL ^ 3 << 2);
    put(&mut table, WALKED, UART | TABLE);
    Table(table)
};

#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; 1 << STACK_SHIFT]; MAX_CPUS]>);

// SAFETY: each vCPU's stack is its own, and nothing in Rust names them.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; 1 << STACK_SHIFT]; MAX_CPUS]));

// vCPU 0 comes from `el1`. x19: what x0 held at entry; x20: index of the vCPU.
global_asm!(
    r#"
    .section .text.start, "ax"
    .globl  start
start:
    adr     x22, {first}
    b       start_vcpu

    // By CPU_ON, with x0 its context.
    .globl  guest_secondary_entry
guest_secondary_entry:
    mov     x19, x0
    adr     x22, {secondary}

start_vcpu:
    mrs     x20, mpidr_el1
    and     x20, x20, #0xff
    cmp     x20, #{max_cpus}
    b.hs    dead
    msr     spsel, #1
    msr     tpidr_el1, x20
    adrp    x1, {stacks}
    add     x1, x1, :lo12:{stacks}
    add     x2, x20, #1
    add     x1, x1, x2, lsl #{stack_shift}
    mov     sp, x1
    adrp    x1, exception_vectors
    add     x1, x1, :lo12:exception_vectors
    msr     vbar_el1, x1

    adrp    x1, {map}
    add     x1, x1, :lo12:{map}
    msr     ttbr0_el1, x1
    // Attribute 0 Device-nGnRE, 1 Normal write-back, 2 the same and Tagged.
    ldr     x1, =0xf0ff04
    msr     mair_el1, x1
    // T0SZ 25 (39 bits), walks write-back and inner shareable, 4 KiB granule, EPD1, IPS 40 bits.
    ldr     x1, =0x200803519
    msr     tcr_el1, x1
    // FP, SVE and SME are not trapped to EL1: what the guest may not use, EL2 must know.
    mov     x1, #0x3330000
    msr     cpacr_el1, x1
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    // RES1, and M, C, SA, I.
    ldr     x1, =0x30d0180d
    msr     sctlr_el1, x1
    isb
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    br      x22

    .ltorg
"#,
    first = sym first_vcpu,
    secondary = sym secondary_vcpu,
    map = sym MAP,
    stacks = sym STACKS,
    max_cpus = const MAX_CPUS,
    stack_shift = const STACK_SHIFT,
);

unsafe extern "C" {
    static guest_secondary_entry: u8;
}

/// Where CPU_ON lets a vCPU begin.
pub(super) fn secondary_address() -> u64 {
    u64::try_from((&raw const guest_secondary_entry).addr()).unwrap_or(0)
}
