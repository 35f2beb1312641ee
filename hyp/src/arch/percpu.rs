//! What one CPU has for itself, reached through TPIDR_EL2.
//!
//! Invariant: a record is written by the boot CPU before the CPU starts, cleaned to the point of
//! coherency, and from then on changed by its own CPU only, so no lock is needed; `guests`, which
//! others may take, has one.

use crate::arch::switch::WorldCell;
use crate::arch::{Hw, regs};
use core::sync::atomic::AtomicU32;
use hyp::addr::PAGE_SIZE;
use hyp::guest::Share;

/// Stack of a CPU for exceptions from the host, bytes.
pub(crate) const STACK_BYTES: u64 = 4 * PAGE_SIZE;
/// Stack of a CPU for a fatal exception, bytes.
pub(crate) const PANIC_STACK_BYTES: u64 = 2 * PAGE_SIZE;

/// The registers that make a CPU's MMU the boot CPU's; read with the MMU off.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct MmuSetup {
    /// MAIR_EL2.
    pub(crate) mair: u64,
    /// TCR_EL2.
    pub(crate) tcr: u64,
    /// TTBR0_EL2.
    pub(crate) ttbr0: u64,
    /// SCTLR_EL2.
    pub(crate) sctlr: u64,
}

/// One CPU's record.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct PerCpu {
    /// How to switch the MMU on.
    pub(crate) mmu: MmuSetup,
    /// Top of the stack that exceptions from the host use.
    pub(crate) stack_top: u64,
    /// Top of the stack that a fatal exception uses.
    pub(crate) panic_stack_top: u64,
    /// Index in the table of CPUs.
    pub(crate) index: usize,
    /// Locks held, as ranks in order; see `lock::Rank`. Debug builds only.
    pub(crate) held: AtomicU32,
    /// How often it looked at a lock that another CPU held.
    #[cfg(feature = "bench")]
    pub(crate) spins: core::sync::atomic::AtomicU64,
    /// The host's registers while a guest has the CPU's. Before `guests`, within reach of a pair load.
    pub(crate) world: WorldCell,
    /// Its window and the vCPU that it has loaded; made at the end of the boot.
    pub(crate) guests: Share<Hw>,
}

// SAFETY: others reach a record through `Running::cpus` and take nothing but `guests` there, which
// has a lock; `current` gives a CPU its own.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    /// The record of CPU `index`; the stacks are mapped and end at the tops given.
    pub(crate) const fn new(mmu: MmuSetup, index: usize, stack_top: u64, panic_stack_top: u64) -> Self {
        let (held, guests, world) = (AtomicU32::new(0), Share::new(None), WorldCell::new());
        Self {
            mmu,
            stack_top,
            panic_stack_top,
            index,
            held,
            #[cfg(feature = "bench")]
            spins: core::sync::atomic::AtomicU64::new(0),
            world,
            guests,
        }
    }

    /// This CPU's record, once `install` ran on it.
    #[inline]
    pub(crate) fn current() -> Option<&'static Self> {
        let p = core::ptr::with_exposed_provenance::<Self>(regs::tpidr_el2_usize());
        // SAFETY: TPIDR_EL2 is 0 or, from `install` on, a record that lives for ever (see there).
        unsafe { p.as_ref() }
    }

    /// Makes `self` the record of this CPU.
    pub(crate) fn install(&'static self) {
        regs::set_tpidr_el2((&raw const *self).expose_provenance() as u64);
    }
}

impl PerCpu {
    /// Checks the order of locks on this CPU: a lock is taken only with a rank above all that are
    /// held.
    #[cfg(debug_assertions)]
    pub(crate) fn check_rank(&self, rank: hyp::lock::Rank, taken: bool) {
        use core::sync::atomic::Ordering;
        let bit = 1_u32 << rank.order();
        let held = self.held.load(Ordering::Relaxed);
        if taken {
            assert!(held < bit, "lock {rank:?} taken out of order, held {held:#b}");
        }
        self.held.store(if taken { held | bit } else { held & !bit }, Ordering::Relaxed);
    }
}
