//! Memory of the shim's allocator, many words at a time. What the host may not touch ends the machine here: probes
//! are for that.

use crate::span::Span;

fn pointer<T>(address: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

/// Sets every word of a span.
pub(super) fn fill(span: Span, word: u64) {
    for address in (span.start()..span.end()).step_by(8) {
        // SAFETY: RAM by the device tree, mapped, in which no Rust object lives: the caller's duty, as `Machine` says.
        unsafe { pointer::<u64>(address).write_volatile(word) };
    }
}

/// Copies a span to `to`.
pub(super) fn copy(to: u64, from: Span) {
    let bytes = usize::try_from(from.size()).unwrap_or(0);
    // SAFETY: as for `fill`, for both; they do not overlap.
    unsafe { core::ptr::copy_nonoverlapping(pointer::<u8>(from.start()), pointer::<u8>(to), bytes) };
}
