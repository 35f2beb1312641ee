//! Accesses that may fault, and how the exception handler turns the fault into a result.

use crate::machine::{Access, Fault, Find};
use crate::span::Span;
use core::arch::{asm, global_asm};
use el1::arch::Frame;

// x0 = address -> value, x5 = value to store; x1 = 0 if the access was made. A fault sets x1 = 1,
// x2..x4 = ESR, FAR, ELR and continues at probe_return: the return address is in x6.
global_asm!(
    r#"
    .section .text.probe, "ax"
probe_begin:
probe_load:
    ldr     x0, [x0]
    b       probe_done
probe_load_byte:
    ldrb    w0, [x0]
    b       probe_done
probe_load_pair:
    ldp     x0, x7, [x0]
    b       probe_done
probe_load_exclusive:
    ldxr    x7, [x0]
    clrex
    mov     x0, x7
    b       probe_done
probe_store:
    str     x5, [x0]
    b       probe_done
probe_store_byte:
    strb    w5, [x0]
    b       probe_done
probe_store_pair:
    stp     x5, x5, [x0]
    b       probe_done
probe_zero_line:
    dc      zva, x0
    b       probe_done
probe_word:                         // x8 = end of the search
    ldr     x7, [x0]
    cmp     x7, x5
    b.eq    probe_done
    add     x0, x0, #8
    cmp     x0, x8
    b.lo    probe_word
    b       probe_done
probe_other:
    ldr     x7, [x0]
    cmp     x7, x5
    b.ne    probe_done
    add     x0, x0, #8
    cmp     x0, x8
    b.lo    probe_other
    b       probe_done
probe_fetch:
    blr     x0
probe_end:
probe_done:
    mov     x1, #0
probe_return:
    ret     x6
"#
);

unsafe extern "C" {
    static probe_begin: u8;
    static probe_end: u8;
    static probe_return: u8;
    static probe_load: u8;
    static probe_load_byte: u8;
    static probe_load_pair: u8;
    static probe_load_exclusive: u8;
    static probe_store: u8;
    static probe_store_byte: u8;
    static probe_store_pair: u8;
    static probe_zero_line: u8;
    static probe_fetch: u8;
    static probe_word: u8;
    static probe_other: u8;
}

/// Makes one access, whatever comes of it.
///
/// A store is to memory that no Rust object lives in: scenarios pass pages of the shim's allocator,
/// or addresses that stage 2 is expected to refuse.
pub(super) fn probe(access: Access, address: u64, value: u64) -> Result<u64, Fault> {
    let code = match access {
        Access::Load => &raw const probe_load,
        Access::LoadByte => &raw const probe_load_byte,
        Access::LoadPair => &raw const probe_load_pair,
        Access::LoadExclusive => &raw const probe_load_exclusive,
        Access::Store => &raw const probe_store,
        Access::StoreByte => &raw const probe_store_byte,
        Access::StorePair => &raw const probe_store_pair,
        Access::ZeroLine => &raw const probe_zero_line,
        Access::Fetch => &raw const probe_fetch,
    };
    let (got, faulted, esr, far, elr): (u64, u64, u64, u64, u64);
    // SAFETY: the code above clobbers what is listed and comes back by x6, after a fault too
    // (`absorb`). That the address holds no Rust object is the caller's duty, stated above.
    unsafe {
        asm!(
            "adr x6, 2f",
            "br x8",
            "2:",
            inout("x0") address => got,
            out("x1") faulted,
            out("x2") esr,
            out("x3") far,
            out("x4") elr,
            inout("x5") value => _,
            out("x6") _,
            out("x7") _,
            inout("x8") code => _,
            lateout("x30") _,
        );
    }
    if faulted == 0 { Ok(got) } else { Err(Fault { esr, far, elr }) }
}

/// The first word of `span` that `find` is for.
pub(super) fn find(span: Span, find: Find) -> Result<Option<u64>, Fault> {
    let (code, word) = match find {
        Find::Word(word) => (&raw const probe_word, word),
        Find::OtherThan(word) => (&raw const probe_other, word),
    };
    let (at, faulted, esr, far, elr): (u64, u64, u64, u64, u64);
    // SAFETY: loads alone; registers and the way back are as for `probe`.
    unsafe {
        asm!(
            "adr x6, 2f",
            "br x9",
            "2:",
            inout("x0") span.start() => at,
            out("x1") faulted,
            out("x2") esr,
            out("x3") far,
            out("x4") elr,
            in("x5") word,
            out("x6") _,
            out("x7") _,
            in("x8") span.end(),
            in("x9") code,
            lateout("x30") _,
            options(readonly)
        );
    }
    if faulted != 0 {
        return Err(Fault { esr, far, elr });
    }
    Ok((at < span.end()).then_some(at))
}

/// If `fault` is a probe's, makes it the probe's result.
pub(super) fn absorb(frame: &mut Frame, fault: &Fault) -> bool {
    let address = |symbol: *const u8| u64::try_from(symbol.addr()).unwrap_or(0);
    let code = address(&raw const probe_begin)..address(&raw const probe_end);
    // After probe_fetch's BLR the fault is at the target, with x30 behind the BLR.
    let data = fault.class() == Fault::EC_DATA_ABORT && code.contains(&frame.elr);
    let [.., x30] = frame.x;
    let fetch = fault.class() == Fault::EC_INSTRUCTION_ABORT && x30 == address(&raw const probe_end);
    if !data && !fetch {
        return false;
    }
    let [_, x1, x2, x3, x4, ..] = &mut frame.x;
    (*x1, *x2, *x3, *x4) = (1, fault.esr, fault.far, fault.elr);
    frame.elr = address(&raw const probe_return);
    true
}
