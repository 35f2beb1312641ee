//! `memcpy` and its kin for EL2.
//!
//! The target forbids unaligned accesses, because code that runs before the MMU is on must not
//! make any; the library's copies of small values then go byte by byte. These use unaligned words
//! once the MMU is on: EL2's memory is Normal and SCTLR_EL2.A is 0 (Arm ARM B2.8).

use core::arch::global_asm;

global_asm!(
    r#"
    .pushsection .text.mem, "ax"

    // x0 = to, x1 = from, x2 = bytes; x0 is kept. The areas do not overlap.
    .global memcpy
    .balign 16
memcpy:
    mrs     x3, sctlr_el2
    tbz     w3, #0, copy_bytes
    add     x4, x1, x2                  // ends
    add     x5, x0, x2
    cmp     x2, #16
    b.hi    3f
    tbz     w2, #3, 1f
    ldr     x6, [x1]                    // 8..=15
    ldur    x7, [x4, #-8]
    str     x6, [x0]
    stur    x7, [x5, #-8]
    ret
1:  tbz     w2, #2, 2f
    ldr     w6, [x1]                    // 4..=7
    ldur    w7, [x4, #-4]
    str     w6, [x0]
    stur    w7, [x5, #-4]
    ret
2:  cbz     x2, 6f
    tbnz    w2, #4, 5f                  // 16
    ldrb    w6, [x1]                    // 1..=3: first, middle, last
    lsr     x8, x2, #1
    ldrb    w9, [x1, x8]
    ldurb   w7, [x4, #-1]
    strb    w6, [x0]
    strb    w9, [x0, x8]
    sturb   w7, [x5, #-1]
    ret
3:  cmp     x2, #32
    b.ls    5f
    mov     x3, x0
    sub     x8, x2, #32
4:  ldp     x6, x7, [x1], #16
    stp     x6, x7, [x3], #16
    subs    x8, x8, #16
    b.hi    4b
    ldp     x6, x7, [x4, #-32]          // the last 32 bytes may overlap what is copied
    ldp     x8, x9, [x4, #-16]
    stp     x6, x7, [x5, #-32]
    stp     x8, x9, [x5, #-16]
    ret
5:  ldp     x6, x7, [x1]                // 16..=32
    ldp     x8, x9, [x4, #-16]
    stp     x6, x7, [x0]
    stp     x8, x9, [x5, #-16]
6:  ret

copy_bytes:
    mov     x3, x0
    cbz     x2, 2f
1:  ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    subs    x2, x2, #1
    b.ne    1b
2:  ret

    // As memcpy; the areas may overlap.
    .global memmove
    .balign 16
memmove:
    sub     x3, x0, x1
    cmp     x3, x2
    b.hs    memcpy_forward              // `to` is not inside `from`'s area behind its start
    cbz     x2, 2f
1:  sub     x2, x2, #1
    ldrb    w4, [x1, x2]
    strb    w4, [x0, x2]
    cbnz    x2, 1b
2:  ret
memcpy_forward:
    sub     x3, x1, x0
    cmp     x3, x2
    b.lo    copy_bytes                  // overlapping forwards: in order, byte by byte
    b       memcpy

    // x0 = to, w1 = byte, x2 = bytes; x0 is kept.
    .global memset
    .balign 16
memset:
    mov     x3, x0
    and     x1, x1, #0xff
    mrs     x4, sctlr_el2
    tbz     w4, #0, 3f
    mov     x5, #0x0101010101010101
    mul     x1, x1, x5
    subs    x2, x2, #16
    b.lo    2f
1:  stp     x1, x1, [x3], #16
    subs    x2, x2, #16
    b.hs    1b
2:  add     x2, x2, #16                 // 0..=15 left
    tbz     w2, #3, 4f
    str     x1, [x3], #8
4:  tbz     w2, #2, 5f
    str     w1, [x3], #4
5:  and     x2, x2, #3
3:  cbz     x2, 7f
6:  strb    w1, [x3], #1
    subs    x2, x2, #1
    b.ne    6b
7:  ret

    // x0, x1 = areas, x2 = bytes: the difference of the first bytes that differ.
    .global memcmp
    .global bcmp
    .balign 16
memcmp:
bcmp:
    cbz     x2, 2f
1:  ldrb    w3, [x0], #1
    ldrb    w4, [x1], #1
    subs    w5, w3, w4
    b.ne    3f
    subs    x2, x2, #1
    b.ne    1b
2:  mov     w5, wzr
3:  mov     w0, w5
    ret
    .popsection
    "#
);

/// Holds the functions against byte loops for every length up to `LONGEST` and every alignment.
#[cfg(feature = "fault-injection")]
pub(super) fn check() {
    const LONGEST: usize = 100;
    const ROOM: usize = 128;
    let pattern: [u8; ROOM] = core::array::from_fn(|i| i.to_le_bytes()[0] ^ 0x5a);
    for length in 0..=core::hint::black_box(LONGEST) {
        for (from, to) in (0..8).flat_map(|from| (0..8).map(move |to| (from, to))) {
            let source = pattern.get(from..).and_then(|s| s.get(..length)).unwrap_or_default();
            let mut copied = [0xee; ROOM];
            if let Some(target) = copied.get_mut(to..).and_then(|t| t.get_mut(..length)) {
                target.copy_from_slice(source);
            }
            let mut moved = pattern;
            moved.copy_within(from..from.saturating_add(length), to);
            let mut filled = [0xee; ROOM];
            if let Some(target) = filled.get_mut(to..).and_then(|t| t.get_mut(..length)) {
                target.fill(0xa5);
            }
            let inside = |i: usize| i >= to && i.wrapping_sub(to) < length;
            for (i, ((&c, &m), &f)) in copied.iter().zip(&moved).zip(&filled).enumerate() {
                let was = pattern.get(i).copied().unwrap_or(0);
                let new = pattern.get(i.wrapping_sub(to).wrapping_add(from)).copied().unwrap_or(0);
                let want = if inside(i) { (new, new, 0xa5) } else { (0xee, was, 0xee) };
                assert_eq!((c, m, f), want, "byte {i} of {length} from {from} to {to}");
            }
            let same = source == copied.get(to..).and_then(|t| t.get(..length)).unwrap_or_default();
            assert!(same, "comparison of {length} bytes from {from} and {to}");
        }
    }
    log::info!("the memory functions hold");
}
