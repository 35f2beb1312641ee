//! Ranked locks: the order of acquisition is written here and nowhere else.
//!
//! A guard is the proof that its lock is held; functions that change what a lock protects take
//! the guard. A fair ticket lock underneath (`spin`), so that no CPU starves.
#![forbid(unsafe_code)]

use crate::hw::{Event, Machine};
use core::fmt;
use core::ops::{Deref, DerefMut};
use spin::mutex::{TicketMutex, TicketMutexGuard};

/// Locks in the order in which they may be taken: a CPU that holds one takes only later ones.
///
/// Two locks of one rank are taken in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Rank {
    /// The table of VMs.
    VmTable,
    /// One VM's lifecycle, by VMID.
    Vm(u16),
    /// The one snapshot at a time.
    Snapshot,
    /// The host's stage 2 and the host half of the vmemmap.
    HostS2,
    /// EL2's stage 1 and the hyp half of the vmemmap.
    HypS1,
    /// A guest's stage 2, by VM handle.
    GuestS2(u16),
    /// A page pool; the number tells pools apart.
    Pool(u8),
}

impl Rank {
    /// Place in the order of acquisition, from 0; locks of one rank share it.
    #[must_use]
    pub const fn order(self) -> u8 {
        match self {
            Self::VmTable => 0,
            Self::Vm(_) => 1,
            Self::Snapshot => 2,
            Self::HostS2 => 3,
            Self::HypS1 => 4,
            Self::GuestS2(_) => 5,
            Self::Pool(_) => 6,
        }
    }
}

/// A value behind a ranked ticket lock.
pub struct Lock<T, M: Machine> {
    rank: Rank,
    inner: TicketMutex<T, M::Relax>,
}

impl<T, M: Machine> fmt::Debug for Lock<T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl<T, M: Machine> Lock<T, M> {
    /// A free lock of `rank` around `value`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: TicketMutex::new(value) }
    }

    /// Says which lock of its kind it is, for a lock that was made as one of many.
    pub const fn set_rank(&mut self, rank: Rank) {
        self.rank = rank;
    }

    /// The value: nobody else can have the lock.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }

    /// Waits for the lock.
    #[inline]
    pub fn lock<'a>(&'a self, hw: &'a M) -> Guard<'a, T, M> {
        let inner = self.inner.lock();
        hw.observe(Event::Lock { rank: self.rank, held: true });
        Guard { inner, rank: self.rank, hw }
    }

    /// Takes the lock if it is free.
    pub fn try_lock<'a>(&'a self, hw: &'a M) -> Option<Guard<'a, T, M>> {
        let inner = self.inner.try_lock()?;
        hw.observe(Event::Lock { rank: self.rank, held: true });
        Some(Guard { inner, rank: self.rank, hw })
    }
}

/// Proof that the lock is held, and the way to what it protects.
pub struct Guard<'a, T, M: Machine> {
    inner: TicketMutexGuard<'a, T, M::Relax>,
    rank: Rank,
    hw: &'a M,
}

impl<T, M: Machine> fmt::Debug for Guard<'_, T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl<T, M: Machine> Drop for Guard<'_, T, M> {
    #[inline]
    fn drop(&mut self) {
        self.hw.observe(Event::Lock { rank: self.rank, held: false });
    }
}

impl<T, M: Machine> Deref for Guard<'_, T, M> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T, M: Machine> DerefMut for Guard<'_, T, M> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}
