//! Fault sites: a name for every step that can fail, so that a test can make each fail once.
//!
//! Without feature `fault-injection` a [`Faults`] is empty and every [`Faults::hit`] is `Ok`, so
//! that nothing of this, not even a name, is in the release image. A step that is documented as
//! "cannot fail" has no site. Counters are atomics of their own; no lock.
#![forbid(unsafe_code)]

pub use abi::fault::Site;

use abi::Errno;
#[cfg(feature = "fault-injection")]
use abi::fault::ANY;

#[cfg(feature = "fault-injection")]
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Hits and arming of every site.
#[derive(Debug, Default)]
pub struct Faults {
    #[cfg(feature = "fault-injection")]
    sites: [Counter; Site::ALL.len()],
    /// Of all of them together.
    #[cfg(feature = "fault-injection")]
    any: Counter,
}

#[cfg(feature = "fault-injection")]
#[derive(Debug, Default)]
struct Counter {
    /// Hits since the last [`Faults::clear`].
    hits: AtomicU64,
    /// Hits left until one fails; 0 is not armed.
    armed: AtomicU64,
    /// How often it failed since the last clear.
    fired: AtomicU64,
}

#[cfg(feature = "fault-injection")]
impl Counter {
    /// Counts a pass; true if it was armed for this one.
    fn pass(&self) -> bool {
        self.hits.fetch_add(1, Relaxed);
        self.armed.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) == Ok(1)
    }

    fn clear(&self) {
        self.hits.store(0, Relaxed);
        self.armed.store(0, Relaxed);
        self.fired.store(0, Relaxed);
    }
}

/// What FI_ARM and FI_STATS are about.
#[cfg(feature = "fault-injection")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// One site.
    Only(Site),
    /// Whichever site is passed.
    Any,
}

#[cfg(feature = "fault-injection")]
impl Which {
    /// What this number means; `None` if there is no such site.
    #[must_use]
    pub fn of(number: u64) -> Option<Self> {
        if number == ANY { Some(Self::Any) } else { Site::of(number).map(Self::Only) }
    }
}

#[cfg(feature = "fault-injection")]
impl From<Site> for Which {
    fn from(site: Site) -> Self {
        Self::Only(site)
    }
}

/// What a site saw since the last [`Faults::clear`].
#[cfg(feature = "fault-injection")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Times the step was reached.
    pub hits: u64,
    /// Times it was made to fail.
    pub fired: u64,
}

impl Faults {
    /// Passes `site`.
    ///
    /// # Errors
    /// [`Site::errno`] if the site, or any, was armed for this hit.
    #[inline]
    pub fn hit(&self, site: Site) -> Result<(), Errno> {
        #[cfg(feature = "fault-injection")]
        if let Some(counter) = self.sites.get(site as usize) {
            // Both count, whichever is armed.
            if counter.pass() | self.any.pass() {
                counter.fired.fetch_add(1, Relaxed);
                self.any.fired.fetch_add(1, Relaxed);
                return Err(site.errno());
            }
        }
        #[cfg(not(feature = "fault-injection"))]
        let _ = site;
        Ok(())
    }
}

#[cfg(feature = "fault-injection")]
impl Faults {
    fn counter(&self, which: Which) -> Option<&Counter> {
        match which {
            Which::Only(site) => self.sites.get(site as usize),
            Which::Any => Some(&self.any),
        }
    }

    /// Makes the `nth` hit of `which` from here on fail, once; 0 disarms it.
    pub fn arm(&self, which: impl Into<Which>, nth: u64) {
        if let Some(counter) = self.counter(which.into()) {
            counter.armed.store(nth, Relaxed);
        }
    }

    /// Disarms every site and forgets what was counted.
    pub fn clear(&self) {
        self.sites.iter().chain([&self.any]).for_each(Counter::clear);
    }

    /// What `which` saw.
    #[must_use]
    pub fn stats(&self, which: impl Into<Which>) -> Stats {
        self.counter(which.into()).map_or(Stats { hits: 0, fired: 0 }, |counter| Stats {
            hits: counter.hits.load(Relaxed),
            fired: counter.fired.load(Relaxed),
        })
    }
}

#[cfg(all(test, feature = "fault-injection"))]
mod tests {
    use super::{Faults, Site, Stats, Which};

    #[test]
    fn exactly_the_nth_hit_fails_and_only_once() {
        let faults = Faults::default();
        for site in Site::ALL {
            faults.arm(site, 3);
            let results: std::vec::Vec<_> = (0..5).map(|_| faults.hit(site)).collect();
            assert_eq!(results, [Ok(()), Ok(()), Err(site.errno()), Ok(()), Ok(())]);
            assert_eq!(faults.stats(site), Stats { hits: 5, fired: 1 });
        }
        faults.clear();
        assert_eq!(faults.stats(Site::HostPrepare), Stats { hits: 0, fired: 0 });
    }

    #[test]
    fn any_is_the_nth_hit_of_whichever_site() {
        let faults = Faults::default();
        faults.arm(Which::Any, 2);
        assert_eq!(faults.hit(Site::HostPrepare), Ok(()));
        assert_eq!(faults.hit(Site::SnapLock), Err(Site::SnapLock.errno()));
        assert_eq!(faults.hit(Site::SnapLock), Ok(()));
        assert_eq!(faults.stats(Which::Any), Stats { hits: 3, fired: 1 });
        assert_eq!(faults.stats(Site::SnapLock), Stats { hits: 2, fired: 1 });
        assert_eq!(faults.stats(Site::HostPrepare), Stats { hits: 1, fired: 0 });
        faults.clear();
        assert_eq!(faults.stats(Which::Any), Stats { hits: 0, fired: 0 });
    }
}
