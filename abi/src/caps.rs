//! What `HYP_CAPS` answers: interface version and capability bits.

use bitflags::bitflags;

/// Interface version, major in bits 31:16 (a change that breaks a host), minor in 15:0.
pub const VERSION: u64 = 1;

bitflags! {
    /// What this build can do on this machine (x3 of `HYP_CAPS`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Caps: u64 {
        /// Pages can be shared with and lent to EL2.
        const OWNERSHIP = 1 << 0;
        /// The CPU forces guest memory write-back (FEAT_S2FWB).
        const FWB = 1 << 1;
        /// The `fault-injection` calls and the audit are in this build.
        const FAULT_INJECTION = 1 << 2;
        /// The `S2_SNAPSHOT` calls are in this build.
        const DEBUG_SNAPSHOT = 1 << 3;
        /// This machine can run guests.
        const GUESTS = 1 << 4;
        /// A guest can have MTE (FEAT_MTE2).
        const MTE = 1 << 5;
        /// A guest with MTE can have memory without tags: wherever there is MTE.
        const MTE_NOTAG = 1 << 6;
        /// A tag access to such memory is told from any other (FEAT_MTE_PERM).
        const MTE_PRECISE = 1 << 7;
    }
}
