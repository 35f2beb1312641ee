//! What a range is.
#![forbid(unsafe_code)]

use crate::addr::IpaRange;
use crate::error::Error;
use crate::hw::Machine;
use crate::mem_protect::{GuestS2, View};
use crate::pgtable::Ripas;
use abi::{Errno, rsi};
use core::ops::ControlFlow;

/// The state of a private frame of a VM with split IPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The guest uses it as no memory.
    Empty,
    /// Memory, with a page or yet without.
    Ram,
    /// It was memory, and was taken by force.
    Destroyed,
}

/// Consecutive frames of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// One past the last frame's last address.
    pub end: u64,
    /// Their state.
    pub state: State,
}

impl State {
    /// Its number in the Realm Services Interface.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Empty => rsi::EMPTY,
            Self::Ram => rsi::RAM,
            Self::Destroyed => rsi::DESTROYED,
        }
    }

    /// What an entry means.
    pub(super) const fn of(view: View) -> Option<Self> {
        match view {
            View::Nothing => Some(Self::Empty),
            View::Ripas(Ripas::Ram) | View::Page { .. } => Some(Self::Ram),
            View::Ripas(Ripas::Destroyed) => Some(Self::Destroyed),
            View::Guard => None,
        }
    }
}

impl GuestS2 {
    /// The first frames of `range`, which lies in the lower half of a VM with split IPA: as far as
    /// they have one state, but no more than `entries` entries, at least 1.
    ///
    /// # Errors
    /// EIO for an entry that such a table does not have.
    pub fn ipa_states<M: Machine>(&self, hw: &M, range: IpaRange, entries: u64) -> Result<Run, Error> {
        let mut first: Option<Run> = None;
        let mut left = entries.max(1);
        let corrupt = self.parts(hw, range, |part| {
            let (Some(state), Ok(frames)) = (State::of(part.view), part.range()) else {
                return ControlFlow::Break(true);
            };
            if left == 0 || first.is_some_and(|run| run.state != state) {
                return ControlFlow::Break(false);
            }
            left = left.saturating_sub(1);
            first = Some(Run { end: frames.end(), state });
            ControlFlow::Continue(())
        })?;
        match (corrupt, first) {
            (Some(true), _) | (_, None) => Err(Errno::Eio.into()),
            (_, Some(run)) => Ok(run),
        }
    }
}
