//! Locks: order, one holder, and nothing left behind when a table lock is given up.
#![forbid(unsafe_code)]

use super::rule::Rule;
use super::{At, Checker};
use crate::hw::TableOwner;
use crate::lock::Rank;
use arrayvec::ArrayVec;

/// Locks that one CPU can hold at a time.
pub(super) type Held = ArrayVec<Rank, 12>;

/// The lock that protects the tables of `owner`.
pub(super) const fn rank_of(owner: TableOwner) -> Rank {
    match owner {
        TableOwner::Hyp => Rank::HypS1,
        TableOwner::Host => Rank::HostS2,
        TableOwner::Guest(handle) => Rank::GuestS2(handle),
    }
}

/// True for the lock of a guest's table.
const fn is_guests(rank: Rank) -> bool {
    matches!(rank, Rank::GuestS2(_))
}

impl<const PAGES: usize, const OPEN: usize> Checker<PAGES, OPEN> {
    pub(super) fn holds(&mut self, cpu: usize, rank: Rank) -> bool {
        self.cpu(cpu).is_some_and(|state| state.held.contains(&rank))
    }

    pub(super) fn locked(&mut self, cpu: usize, rank: Rank) {
        let at = At { cpu, page: 0, index: 0 };
        if self.cpus.iter().enumerate().any(|(i, c)| i != cpu && c.held.contains(&rank)) {
            self.fail(at, Rule::LockHeldElsewhere);
        }
        let Some(state) = self.cpu(cpu) else { return };
        let late = state.held.iter().any(|held| *held >= rank);
        let full = state.held.try_push(rank).is_err();
        if late {
            self.fail(at, Rule::LockOrder);
        }
        if full {
            self.fail(at, Rule::Capacity);
        }
    }

    pub(super) fn unlocked(&mut self, cpu: usize, rank: Rank) {
        let mut at = At { cpu, page: 0, index: 0 };
        let Some(state) = self.cpu(cpu) else { return };
        let Some(position) = state.held.iter().position(|held| *held == rank) else {
            self.fail(at, Rule::LockNotHeld);
            return;
        };
        state.held.remove(position);
        if let Some(position) = state.made.iter().position(|owner| rank_of(*owner) == rank) {
            state.made.remove(position);
            self.fail(at, Rule::MissingDsbAfterMake);
        }
        while let Some(position) = self.put.iter().position(|put| put.cpu == cpu && is_guests(rank)) {
            let put = self.put.swap_remove(position);
            self.fail(put, Rule::NotCleaned);
        }
        // A dead tree may wait for its VMID's invalidation; an entry may not.
        while let Some(position) = self.left_behind(cpu, rank) {
            let left = self.open.swap_remove(position);
            at = At { page: left.table, index: left.index, ..at };
            self.fail(at, left.missing().unwrap_or(Rule::LockedNoteLeft));
        }
    }

    fn left_behind(&self, cpu: usize, rank: Rank) -> Option<usize> {
        // Another CPU may be at its window in the meantime.
        self.open.iter().position(|o| o.cpu == cpu && o.what != super::What::Root && rank_of(o.owner) == rank)
    }
}
