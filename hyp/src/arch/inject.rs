//! What `inject=` on the command line of the image does before the host starts, feature
//! `fault-injection` only: fail on purpose, so that tests see EL2's last words, or check what can
//! only be checked on the CPU it is for (`functions`: panics if a function in assembly is wrong).

use super::regs;

/// What `inject=` may say.
const WAYS: [(&str, fn()); 4] =
    [("panic", rust_panic), ("abort", unmapped_load), ("stack", exhaust_stack), ("functions", own_functions)];

/// The way that a word of the command line asks for.
pub(super) fn way(word: &str) -> Option<fn()> {
    let asked = word.strip_prefix("inject=")?;
    WAYS.iter().find(|(name, _)| *name == asked).map(|&(_, fail)| fail)
}

fn own_functions() {
    super::mem::check();
    super::copy::check();
}

#[inline(never)]
#[expect(clippy::panic, reason = "the point of it")]
fn rust_panic() {
    panic!("injected");
}

#[inline(never)]
fn unmapped_load() {
    let nowhere = core::ptr::with_exposed_provenance::<u64>(0x7fff_ffff_f000);
    // SAFETY: the address is in no map of EL2's: the load is an abort, never a value.
    let _ = unsafe { nowhere.read_volatile() };
}

#[inline(never)]
fn exhaust_stack() {
    deeper(u64::MAX);
}

#[inline(never)]
fn deeper(left: u64) -> u64 {
    let mut frame = [left; 64];
    // The barrier keeps the frame and the call from being folded away.
    regs::isb();
    if let Some(first) = frame.first_mut() {
        *first = deeper(left.wrapping_sub(1));
    }
    core::hint::black_box(&frame).iter().fold(0, |sum, word| sum ^ word)
}
