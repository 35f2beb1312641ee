//! What a guest has asked for, and how far the host got with it.
#![forbid(unsafe_code)]

use super::query::State;
use crate::addr::IpaRange;
use abi::Errno;

/// What private frames are to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    /// No memory: pages go to the host.
    Empty,
    /// Memory.
    Ram {
        /// Also where it was taken by force.
        destroyed: bool,
    },
}

/// A guest's IPA_STATE_SET that waits for its host. EL2 alone writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    range: IpaRange,
    want: Want,
    /// Up to here it is done.
    done: u64,
}

impl Request {
    /// A request of which nothing is done.
    #[must_use]
    pub const fn new(range: IpaRange, want: Want) -> Self {
        Self { range, want, done: range.start().raw() }
    }

    /// What is asked for.
    #[must_use]
    pub const fn range(&self) -> IpaRange {
        self.range
    }

    /// What it is to become.
    #[must_use]
    pub const fn want(&self) -> Want {
        self.want
    }

    /// The address up to which it is done.
    #[must_use]
    pub const fn done(&self) -> u64 {
        self.done
    }

    /// Sees that `part` is what comes next of the request.
    ///
    /// # Errors
    /// EPERM: it does not begin where the request is, or ends behind it.
    pub fn check(&self, part: IpaRange) -> Result<(), Errno> {
        let next = part.start().raw() == self.done && part.end() <= self.range.end();
        if next { Ok(()) } else { Err(Errno::Eperm) }
    }

    /// It is done up to `end`, which a call on a part of it answered.
    pub fn advance(&mut self, end: u64) {
        self.done = end.clamp(self.done, self.range.end());
    }

    /// Whether the guest must take it that the rest will not be done. `refused` is what the host says;
    /// `first` is the state of the first frame. A guest is told so too where trying again would be of
    /// no use, as Linux tries for ever.
    #[must_use]
    pub fn is_rejected(&self, refused: bool, first: impl FnOnce() -> Option<State>) -> bool {
        let Want::Ram { destroyed } = self.want else { return false };
        let lost =
            || self.done == self.range.start().raw() && !destroyed && first() == Some(State::Destroyed);
        self.done != self.range.end() && (refused || lost())
    }
}

#[cfg(test)]
mod tests {
    use super::{IpaRange, Request, State, Want};
    use abi::Errno;

    const RAM: Want = Want::Ram { destroyed: false };

    fn range(base: u64, top: u64) -> IpaRange {
        IpaRange::new(base, top, 33).unwrap()
    }

    #[test]
    fn only_the_next_part_is_the_hosts_to_do() {
        let mut request = Request::new(range(0x1000, 0x5000), RAM);
        for (base, top) in [(0, 0x1000), (0x2000, 0x3000), (0x1000, 0x6000), (0, 0x5000)] {
            assert_eq!(request.check(range(base, top)), Err(Errno::Eperm), "{base:#x} {top:#x}");
        }
        assert_eq!(request.check(range(0x1000, 0x3000)), Ok(()));
        request.advance(0x2000);
        assert_eq!(request.done(), 0x2000);
        assert_eq!(request.check(range(0x1000, 0x3000)), Err(Errno::Eperm));
        assert_eq!(request.check(range(0x2000, 0x5000)), Ok(()));
        request.advance(0);
        assert_eq!(request.done(), 0x2000, "never back");
        request.advance(u64::MAX);
        assert_eq!(request.done(), 0x5000);
        assert_eq!(request.check(range(0x5000, 0x6000)), Err(Errno::Eperm));
    }

    #[test]
    fn a_refusal_is_of_ram_that_is_not_there() {
        let request = |want| Request::new(range(0x1000, 0x5000), want);
        let empty = || Some(State::Empty);
        assert!(request(RAM).is_rejected(true, empty));
        assert!(!request(RAM).is_rejected(false, empty));
        assert!(!request(Want::Empty).is_rejected(true, empty), "giving up cannot be refused");
        assert!(request(RAM).is_rejected(false, || Some(State::Destroyed)));
        assert!(!request(Want::Ram { destroyed: true }).is_rejected(false, || Some(State::Destroyed)));
        let mut half = request(RAM);
        half.advance(0x2000);
        assert!(!half.is_rejected(false, || Some(State::Destroyed)), "there was progress");
        assert!(half.is_rejected(true, empty));
        half.advance(0x5000);
        assert!(!half.is_rejected(true, empty), "it is done");
    }
}
