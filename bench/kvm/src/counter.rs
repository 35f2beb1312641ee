//! A counter of what EL2 executes, by perf (Linux, include/uapi/linux/perf_event.h).
//!
//! Under QEMU's `-icount shift=0` an instruction is a nanosecond and a cycle of the emulated CPU, so the cycles of EL2 are
//! its instructions. The counter of instructions would not do: KVM takes the event counters from a guest that has no PMU, and
//! they stand from where it sets that up to where it takes it down behind the next exit; the cycle counter goes on.
#![forbid(unsafe_code)]

use crate::arch::perf_event_open;
use anyhow::{Context, Result, ensure};
use std::cell::RefCell;
use std::fs::File;
use std::io::Read;

/// PERF_TYPE_HARDWARE and PERF_COUNT_HW_CPU_CYCLES: the only event that the cycle counter counts.
const CYCLES: (u64, u64) = (0, 0);
/// `pinned`, `exclude_user`, `exclude_kernel`: EL2 alone is left, on this CPU all the time.
const EL2_ALONE: u64 = 1 << 2 | 1 << 4 | 1 << 5;
const SIZE: u64 = 64;

/// What EL2 has executed on CPU 0.
#[derive(Debug)]
pub(crate) struct Counter(RefCell<File>);

impl Counter {
    /// One that counts from now on.
    ///
    /// # Errors
    /// The CPU has no counter, or the kernel keeps it.
    pub(crate) fn new() -> Result<Self> {
        let (kind, event) = CYCLES;
        let file = perf_event_open(&[kind | SIZE << 32, event, 0, 0, 0, EL2_ALONE, 0, 0])
            .context("no counter of EL2: perf_event_open")?;
        Ok(Self(RefCell::new(file)))
    }

    /// How much so far.
    ///
    /// # Errors
    /// The counter went to somebody else.
    pub(crate) fn read(&self) -> Result<u64> {
        let mut value = [0; 8];
        let read = self.0.borrow_mut().read(&mut value).context("the counter")?;
        ensure!(read == value.len(), "the counter of EL2 is somebody else's");
        Ok(u64::from_le_bytes(value))
    }

    /// How much `what` takes.
    ///
    /// # Errors
    /// Those of `what`, and of [`read`](Self::read).
    pub(crate) fn over<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<u64> {
        let before = self.read()?;
        what()?;
        self.read()?.checked_sub(before).context("the counter of EL2 goes back")
    }
}
