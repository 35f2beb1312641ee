//! `S2_SNAPSHOT_QUERY` and `S2_SNAPSHOT`.
#![forbid(unsafe_code)]

use super::{CallError, Hypervisor};
use abi::{Errno, HostFn};

/// What a snapshot would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// The geometry word.
    pub geometry: u64,
    /// Root pages.
    pub roots: u32,
    /// Other table pages.
    pub tables: u32,
}

/// Why there is no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRefused {
    /// The verdict.
    pub error: CallError,
    /// x2: tables, or root pages, that there are.
    pub needed: u64,
    /// x3: the page that is meant.
    pub index: u64,
}

impl Hypervisor<'_> {
    /// `S2_SNAPSHOT_QUERY`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn snapshot_query(self, target: u64) -> Result<Query, CallError> {
        let [geometry, sizes] = self.call(HostFn::S2SnapshotQuery, &[target], [true, true])?;
        let half = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(u32::MAX);
        Ok(Query { geometry, roots: half(sizes >> 32), tables: half(sizes) })
    }

    /// `S2_SNAPSHOT`; gives the number of tables.
    ///
    /// # Errors
    /// See [`SnapshotRefused`].
    pub fn snapshot(self, target: u64, desc_pfn: u64, flags: u64) -> Result<u64, SnapshotRefused> {
        let outputs = |result: Result<(), Errno>| match result {
            Ok(()) => [true, false],
            Err(Errno::Enomem | Errno::Einval) => [true, true],
            Err(_) => [false, true],
        };
        let refused = |error| SnapshotRefused { error, needed: 0, index: 0 };
        let (result, [x2, x3]) =
            self.reply(HostFn::S2Snapshot.id(), &[target, desc_pfn, flags], outputs).map_err(refused)?;
        match result {
            Ok(()) => Ok(x2),
            Err(e) => Err(SnapshotRefused { error: CallError::Errno(e), needed: x2, index: x3 }),
        }
    }
}
