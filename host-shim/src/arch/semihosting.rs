//! Semihosting: what the emulator does for EL1, past the hypervisor. For tests of friendly hosts.

use core::arch::asm;

/// Longest name of a file, its final 0 included.
const LONGEST_NAME: usize = 256;

/// `operation` with its block of arguments (Arm semihosting specification).
fn call<const N: usize>(operation: u64, block: &[u64; N]) -> u64 {
    let answer;
    // SAFETY: the emulator reads the block, and what it points to, while this waits; the callers
    // pass addresses of values that live longer. Without semihosting this is an undefined
    // instruction, which the exception handler reports.
    unsafe {
        asm!("hlt #0xf000", inout("x0") operation => answer, in("x1") block.as_ptr(), options(nostack));
    }
    answer
}

/// An address as the emulator takes it.
fn address<T>(values: &[T]) -> u64 {
    values.as_ptr().expose_provenance() as u64
}

/// Ends the emulator with `code`.
pub(super) fn exit(code: u64) {
    const SYS_EXIT_EXTENDED: u64 = 0x20;
    const ADP_STOPPED_APPLICATION_EXIT: u64 = 0x2_0026;
    call(SYS_EXIT_EXTENDED, &[ADP_STOPPED_APPLICATION_EXIT, code]);
}

/// Writes a file, or adds to it; false if that did not work.
pub(super) fn write_file(name: &str, append: bool, bytes: &[u8]) -> bool {
    const SYS_OPEN: u64 = 0x01;
    const SYS_CLOSE: u64 = 0x02;
    const SYS_WRITE: u64 = 0x05;
    const SYS_SEEK: u64 = 0x0a;
    const SYS_FLEN: u64 = 0x0c;
    const MODE_WB: u64 = 5;
    const MODE_RB_PLUS: u64 = 3;
    let mut text = [0; LONGEST_NAME];
    match text.get_mut(..name.len()) {
        Some(place) if name.len() < LONGEST_NAME => place.copy_from_slice(name.as_bytes()),
        _ => return false,
    }
    let mode = if append { MODE_RB_PLUS } else { MODE_WB };
    let file = call(SYS_OPEN, &[address(&text), mode, name.len() as u64]);
    if file == u64::MAX {
        return false;
    }
    // QEMU's mode "ab" writes to the start of the file.
    let end = if append { call(SYS_FLEN, &[file]) } else { 0 };
    let placed = call(SYS_SEEK, &[file, end]) == 0;
    let left = call(SYS_WRITE, &[file, address(bytes), bytes.len() as u64]);
    call(SYS_CLOSE, &[file]) == 0 && placed && left == 0
}
