//! The rules for snapshots: pages that come back before the call ends leave no trace in the state.
#![forbid(unsafe_code)]

use super::hyp_calls::range;
use super::state::{Page, Phase, State};
use abi::Errno;

/// Flags that the call defines.
const FLAGS: u64 = 1;

impl<const N: usize> State<N> {
    /// The host has a table copied into pages of its own, the first of which is `pfn`. What the
    /// others are, and how many `tables` there are, is not in the state; whoever owned a page before
    /// owns it after.
    ///
    /// # Errors
    /// EINVAL flags; ERANGE beyond the address space; ENOENT, EBUSY of the VM; ERANGE no RAM, EPERM
    /// not the host's alone.
    pub fn s2_snapshot(&mut self, target: u64, pfn: u64, flags: u64, tables: u64) -> Result<u64, Errno> {
        if flags & !FLAGS != 0 {
            return Err(Errno::Einval);
        }
        let desc = range(pfn, 1).map_err(|_| Errno::Erange)?;
        if target != 0 && self.vm(target)?.phase == Phase::Dying {
            return Err(Errno::Ebusy);
        }
        self.all_ram(desc.clone())?;
        self.all_are(desc, |page| page == Page::Host)?;
        Ok(tables)
    }
}
