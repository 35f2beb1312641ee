//! The last of what is measured: which frames are memory when a realm begins.
//!
//! Ranges of one state are measured as long as they are, however the host named them and whatever entries stand for
//! them: so neither order nor chunks of its calls show.
//!
//! Invariant: from the first step on nothing changes what the private half is; the VM's phase says so. Lock: the VM's.
#![forbid(unsafe_code)]

use super::measurement::Measurements;
use super::query::State;
use crate::addr::{Ipa, IpaRange};
use crate::error::Error;
use crate::hw::Machine;
use crate::mem_protect::{GuestS2, MAX_VISITED};
use abi::Errno;
use core::ops::ControlFlow;

/// Ranges that a step measures: as much work as hashing nine pages.
const RANGES: u64 = 128;

/// How far the private half is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Closing {
    /// Up to here it is looked at.
    at: u64,
    /// State of the frames before that, and where they begin: they are yet to be measured.
    run: Option<(u64, State)>,
}

impl Closing {
    /// Measures what the next 4096 entries of `guest` say, or the next 128 ranges; all of the private half, of `bits` bits,
    /// once it returns `None`, else where it goes on.
    ///
    /// # Errors
    /// EIO for an entry that such a table does not have.
    pub fn step<M: Machine>(
        &mut self,
        hw: &M,
        guest: &GuestS2,
        bits: u32,
        measurements: &mut Measurements,
    ) -> Result<Option<Ipa>, Error> {
        let top = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
        let (mut entries, mut ranges) = (MAX_VISITED, RANGES);
        let corrupt = guest.parts(hw, IpaRange::new(self.at, top, bits)?, |part| {
            if entries == 0 || ranges == 0 {
                return ControlFlow::Break(false);
            }
            entries = entries.saturating_sub(1);
            let (Some(state), Ok(frames)) = (State::of(part.view), part.range()) else {
                return ControlFlow::Break(true);
            };
            if self.run.is_none_or(|(_, same)| same != state) {
                ranges = ranges.saturating_sub(u64::from(self.end_run(measurements)));
                self.run = Some((frames.start().raw(), state));
            }
            self.at = frames.end();
            ControlFlow::Continue(())
        })?;
        match corrupt {
            Some(true) => return Err(Errno::Eio.into()),
            Some(false) => return Ok(Some(Ipa::truncated(self.at))),
            None => {}
        }
        self.end_run(measurements);
        Ok(None)
    }

    /// The frames up to where it is are one state's, and the next are not. What is EMPTY is what no record is about.
    /// True if there is a record.
    fn end_run(&mut self, measurements: &mut Measurements) -> bool {
        let run = self.run.take().filter(|(_, state)| *state != State::Empty);
        if let Some((base, state)) = run {
            measurements.memory(Ipa::truncated(base), self.at, state);
        }
        run.is_some()
    }
}
