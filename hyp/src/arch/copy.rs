//! Copying a page of table entries, live or not: LDP reads each entry by an access of its own,
//! single-copy atomic (Arm ARM B2.2.1).
//!
//! Where entries are looked at, they are read eight at a time and stored only if one of them is not
//! 0, so that a table with little in it costs about one instruction an entry. Whether two are 0 is
//! asked of their sum: entries have bit 63 clear, so no two add up to 2^64.

use core::arch::global_asm;

global_asm!(
    r#"
    .pushsection .text.copy_entries, "ax"

    // Eight entries from x0 on, which moves on, in x3 to x10.
    .macro load_eight
    ldp     x3, x4, [x0], #64
    ldp     x5, x6, [x0, #-48]
    ldp     x7, x8, [x0, #-32]
    ldp     x9, x10, [x0, #-16]
    .endm

    // x0 = from, x1 = to: a copy of the page as it is.
    .global copy_page
    .balign 16
copy_page:
    mov     x2, #16
1:
    .rept 4
    load_eight
    stp     x3, x4, [x1], #64
    stp     x5, x6, [x1, #-48]
    stp     x7, x8, [x1, #-32]
    stp     x9, x10, [x1, #-16]
    .endr
    subs    x2, x2, #1
    b.ne    1b
    ret

    // Sets bit 10 of \entry if bit 0 is set and x2 is 1.
    .macro mark_accessed entry
    and     x11, \entry, x2
    orr     \entry, \entry, x11, lsl #10
    .endm

    // The same to a page of zeros; x2 = 1 to mark, 0 not to. Gives in x0 a bit for each eight
    // entries of which one is valid.
    .global copy_entries
    .balign 16
copy_entries:
    sub     x1, x1, x0                  // from there to here
    mov     x12, #1
    mov     x13, #0
    add     x16, x0, #64                // behind the first eight
    mov     x17, #16
1:
    .rept 4
    load_eight
    cmn     x3, x4
    ccmn    x5, x6, #0, eq
    ccmn    x7, x8, #0, eq
    ccmn    x9, x10, #0, eq
    b.eq    2f
    add     x14, x0, x1
    orr     x11, x3, x4
    orr     x15, x5, x6
    orr     x11, x11, x15
    orr     x15, x7, x8
    orr     x11, x11, x15
    orr     x15, x9, x10
    orr     x11, x11, x15
    tbz     x11, #0, 4f                 // none is valid
    cbz     x2, 3f
    mark_accessed x3
    mark_accessed x4
    mark_accessed x5
    mark_accessed x6
    mark_accessed x7
    mark_accessed x8
    mark_accessed x9
    mark_accessed x10
3:  sub     x11, x0, x16
    lsr     x11, x11, #6                // which eight it is
    lsl     x11, x12, x11
    orr     x13, x13, x11
4:  stp     x3, x4, [x14, #-64]
    stp     x5, x6, [x14, #-48]
    stp     x7, x8, [x14, #-32]
    stp     x9, x10, [x14, #-16]
2:
    .endr
    subs    x17, x17, #1
    b.ne    1b
    mov     x0, x13
    ret
    .popsection
    "#
);

unsafe extern "C" {
    fn copy_page(from: usize, to: usize);
    fn copy_entries(from: usize, to: usize, mark: u64) -> u64;
}

/// Copies the page at `from`.
///
/// # Safety
/// As for [`entries`].
#[inline]
pub(super) unsafe fn page(from: usize, to: usize) {
    // SAFETY: as below; the code touches no other memory and the registers of a call only.
    unsafe { copy_page(from, to) };
}

/// Copies 512 entries from `from` to `to`, where all is 0. With `accessed` the access flag, bit 10,
/// is set in each that is valid. Bit n of the answer: one of the entries 8n to 8n + 7 is.
///
/// # Safety
/// Both are addresses of 4096 mapped bytes and multiples of 8; nobody else uses those at `to`, and
/// the others change at most by whole words.
#[inline]
pub(super) unsafe fn entries(from: usize, to: usize, accessed: bool) -> u64 {
    // SAFETY: as above; the code touches no other memory and the registers of a call only.
    unsafe { copy_entries(from, to, accessed.into()) }
}

/// Holds both against a copy word by word, for pages with few and many entries.
#[cfg(feature = "fault-injection")]
pub(super) fn check() {
    struct Pages {
        from: [u64; 512],
        to: [u64; 512],
    }
    const VALID: u64 = 0x0040_0000_4000_03ff;
    const AF: u64 = 1 << 10;
    const NOTE: u64 = 2 << 60 | 2;
    const LARGEST: u64 = u64::MAX >> 1;

    // One pair: the stack has room for no more.
    let mut pages = Pages { from: [0; 512], to: [0; 512] };
    let strides = [1, 2, 7, 8, 9, 64, 511, 513];
    for (stride, first) in strides.into_iter().flat_map(|n| [0, 1, 7, 8, 255, 510, 511].map(|i| (n, i))) {
        pages.from.fill(0);
        let words = [VALID, NOTE, LARGEST, VALID | AF, 1].into_iter().cycle();
        for (place, word) in pages.from.iter_mut().skip(first).step_by(stride).zip(words) {
            *place = word;
        }
        for way in 0..3 {
            pages.to.fill(0);
            let accessed = way == 1;
            let source = core::ptr::from_ref(&pages.from).expose_provenance();
            let target = core::ptr::from_mut(&mut pages.to).expose_provenance();
            // SAFETY: both are pages of this function's own.
            let eights = (way < 2).then(|| unsafe { entries(source, target, accessed) });
            if eights.is_none() {
                // SAFETY: as above.
                unsafe { page(source, target) };
            }
            let Pages { from, to } = core::hint::black_box(&pages);
            let ((sources, _), (copies, _)) = (from.as_chunks::<8>(), to.as_chunks::<8>());
            for (n, (copies, words)) in copies.iter().zip(sources).enumerate() {
                let want = words.map(|w| if accessed && w & 1 == 1 { w | AF } else { w });
                assert_eq!(*copies, want, "entries from 8 * {n}, every {stride} from {first}");
                let seen = eights.map(|eights| eights >> n & 1 == 1);
                let any = words.iter().any(|w| w & 1 == 1);
                assert_eq!(seen.unwrap_or(any), any, "entries from 8 * {n}, every {stride} from {first}");
            }
        }
    }
    log::info!("the copy of entries holds");
}
