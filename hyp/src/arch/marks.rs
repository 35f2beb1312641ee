//! How deep the CPUs' stacks were, and how often a CPU looked at a lock that another held: feature `bench` only.
//!
//! A stack is filled with a word before its CPU runs on it; what is not that word any more was used. The figures are
//! printed when the host turns the machine off.

use super::machine::El2;
use super::percpu::{PerCpu, STACK_BYTES};
use super::{IMAGE, Running};
use core::sync::atomic::Ordering;
use hyp::addr::{PAGE_SIZE, Pa};
use hyp::hw::{MappedPage, PhysMem};

/// What is in a word of a stack that nothing was written to.
const UNUSED: u64 = 0x5afe_57ac_5afe_57ac;
/// Bytes below a frame that its own calls may use while the rest is filled.
const NEAR: u64 = 1024;
const WORD: u64 = 8;

/// Waits for a lock, and counts how often it was looked at.
#[derive(Debug)]
pub(crate) struct Counted;

impl spin::RelaxStrategy for Counted {
    #[inline]
    fn relax() {
        if let Some(cpu) = PerCpu::current() {
            cpu.spins.fetch_add(1, Ordering::Relaxed);
        }
        core::hint::spin_loop();
    }
}

/// The words of a stack from its lowest address to `end`.
fn words(stack_top: u64, end: u64) -> impl Iterator<Item = (MappedPage, usize, u64)> {
    let bottom = stack_top.saturating_sub(STACK_BYTES);
    let count = end.saturating_sub(bottom) / WORD;
    (0..count).map(move |n| {
        let at = bottom.saturating_add(n.saturating_mul(WORD));
        let index = usize::try_from(at % PAGE_SIZE / WORD).unwrap_or(0);
        (MappedPage::linear(Pa::truncated(at).frame()), index, at)
    })
}

/// Fills the stack that ends at `stack_top` and that no CPU uses yet.
pub(super) fn fill(hw: El2, stack_top: u64) {
    words(stack_top, stack_top).for_each(|(page, index, _)| hw.put_word(page, index, UNUSED));
}

/// Fills what this CPU has used of its own stack before and does not use now.
#[inline(never)]
pub(super) fn fill_own(hw: El2) {
    let Some(cpu) = PerCpu::current() else { return };
    let here = 0_u64;
    let end = ((&raw const here).addr() as u64).saturating_sub(NEAR);
    words(cpu.stack_top, end).for_each(|(page, index, _)| hw.put_word(page, index, UNUSED));
}

/// Prints the deepest stack and the sum of all waits.
pub(super) fn report(running: &Running) {
    let hw = running.el2();
    let depth = |cpu: &PerCpu| {
        let used =
            words(cpu.stack_top, cpu.stack_top).find(|(page, index, _)| hw.get_word(*page, *index) != UNUSED);
        used.map_or(0, |(_, _, at)| cpu.stack_top.saturating_sub(at))
    };
    let deepest = running.cpus.iter().map(depth).max().unwrap_or(0);
    let spins: u64 = running.cpus.iter().map(|cpu| cpu.spins.load(Ordering::Relaxed)).sum();
    IMAGE.console.line(format_args!("metric: stack_used {deepest} bytes"));
    IMAGE.console.line(format_args!("metric: lock_spins {spins} looks"));
}
