//! Memory of the shim's allocator, many words at a time. What the host may not touch ends the machine here: probes
//! are for that.

use crate::span::Span;
use aarch64_cpu::asm::barrier::{ISH, dmb};

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

/// Reads bytes that others may write at the same time.
pub(super) fn read_bytes(address: u64, into: &mut [u8]) {
    if let ([low, high], true) = (&mut *into, address.is_multiple_of(2)) {
        // SAFETY: as for `fill`, and aligned.
        [*low, *high] = unsafe { pointer::<u16>(address).read_volatile() }.to_le_bytes();
    } else {
        for (at, byte) in (address..).zip(into) {
            // SAFETY: as for `fill`.
            *byte = unsafe { pointer::<u8>(at).read_volatile() };
        }
    }
    dmb(ISH);
}

/// Writes bytes that others may read at the same time.
pub(super) fn write_bytes(address: u64, from: &[u8]) {
    dmb(ISH);
    if let (&[low, high], true) = (from, address.is_multiple_of(2)) {
        // SAFETY: as for `fill`, and aligned.
        unsafe { pointer::<u16>(address).write_volatile(u16::from_le_bytes([low, high])) };
    } else {
        for (at, byte) in (address..).zip(from) {
            // SAFETY: as for `fill`.
            unsafe { pointer::<u8>(at).write_volatile(*byte) };
        }
    }
}
