//! Fault sites: a name for every step that can fail, so that a test can make each fail once.
//!
//! Without feature `fault-injection` a [`Faults`] is empty and every [`Faults::hit`] is `Ok`, so
//! that nothing of this, not even a name, is in the release image. A step that is documented as
//! "cannot fail" has no site. Counters are atomics of their own; no lock.
#![forbid(unsafe_code)]

pub use abi::fault::Site;

use abi::Errno;

#[cfg(feature = "fault-injection")]
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Hits and arming of every site.
#[derive(Debug, Default)]
pub struct Faults {
    #[cfg(feature = "fault-injection")]
    sites: [Counter; Site::ALL.len()],
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
    /// [`Site::errno`] if the site was armed for this hit.
    #[inline]
    pub fn hit(&self, site: Site) -> Result<(), Errno> {
        #[cfg(feature = "fault-injection")]
        if let Some(counter) = self.sites.get(site as usize) {
            counter.hits.fetch_add(1, Relaxed);
            let left = counter.armed.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
            if left == Ok(1) {
                counter.fired.fetch_add(1, Relaxed);
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
    /// Makes the `nth` hit of `site` from here on fail, once; 0 disarms it.
    pub fn arm(&self, site: Site, nth: u64) {
        if let Some(counter) = self.sites.get(site as usize) {
            counter.armed.store(nth, Relaxed);
        }
    }

    /// Disarms every site and forgets what was counted.
    pub fn clear(&self) {
        for counter in &self.sites {
            counter.hits.store(0, Relaxed);
            counter.armed.store(0, Relaxed);
            counter.fired.store(0, Relaxed);
        }
    }

    /// What `site` saw.
    #[must_use]
    pub fn stats(&self, site: Site) -> Stats {
        self.sites.get(site as usize).map_or(Stats { hits: 0, fired: 0 }, |counter| Stats {
            hits: counter.hits.load(Relaxed),
            fired: counter.fired.load(Relaxed),
        })
    }
}

#[cfg(all(test, feature = "fault-injection"))]
mod tests {
    use super::{Faults, Site, Stats};

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
}
