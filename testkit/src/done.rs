//! When the threads of a test end: together with what they run beside, and after its panic too.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells other threads that they may end.
#[derive(Debug, Default)]
pub struct Done(AtomicBool);

impl Done {
    /// True if they may.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it when the guard is dropped. A scope waits for its threads before a panic leaves it: they
    /// must hear of that as well.
    #[must_use = "it is set when this is dropped"]
    pub const fn on_drop(&self) -> DoneOnDrop<'_> {
        DoneOnDrop(self)
    }
}

/// Sets a [`Done`].
#[derive(Debug)]
pub struct DoneOnDrop<'a>(&'a Done);

impl Drop for DoneOnDrop<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Done;
    use std::panic::catch_unwind;
    use std::thread;

    #[test]
    fn a_panic_ends_the_threads_beside_it() {
        let failed = catch_unwind(|| {
            let done = Done::default();
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.is_set() {
                        thread::yield_now();
                    }
                });
                let _done = done.on_drop();
                panic!("a check did not hold");
            });
        });
        assert!(failed.is_err());
    }
}
