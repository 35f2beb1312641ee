//! The rules by name, and what a broken one looks like.
#![forbid(unsafe_code)]

use crate::addr::Pfn;
use core::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a sequence of operations can do wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule: the list of examples is checked against it.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

rules! {
    /// A live entry went from valid to valid in a way that needs break-before-make (Arm ARM
    /// D8.17.1): output address, block size, memory type or shareability.
    NoBreakBeforeMake,
    /// TLB maintenance was issued before a DSB had ordered the entry write before it.
    MissingDsbBeforeTlbi,
    /// An entry that was taken away was never invalidated.
    MissingTlbi,
    /// The maintenance ran while another VMID was installed.
    WrongVmid,
    /// A level hint did not fit the entry, or stood where a table descriptor had to go.
    WrongLevelHint,
    /// VMALLE1IS was issued before a DSB had completed the invalidation by IPA: another CPU can
    /// make a combined entry again from the old stage 2.
    MissingDsbBetweenTlbis,
    /// Only stage-2 entries were invalidated; combined ones stay.
    MissingCombinedTlbi,
    /// No DSB completed the invalidation.
    MissingDsbAfterTlbi,
    /// A table lock was given up before a DSB had published an entry made under it.
    MissingDsbAfterMake,
    /// A live table was written without its lock.
    UnlockedWrite,
    /// A lock was taken although one of the same or a later rank is held.
    LockOrder,
    /// A lock was taken while another CPU holds it.
    LockHeldElsewhere,
    /// A lock was given up by a CPU that does not hold it.
    LockNotHeld,
    /// A table lock was given up while an entry still says LOCKED.
    LockedNoteLeft,
    /// A page was freed while a table entry still leads to it.
    FreedWhileReachable,
    /// A table page was freed before every CPU had forgotten its descriptor.
    FreedBeforeInvalidation,
    /// A table page was linked, written or zeroed before every CPU had forgotten its descriptor.
    ReusedBeforeInvalidation,
    /// A page that is a live table was linked a second time.
    LinkedTwice,
    /// A live table was zeroed or copied over.
    LiveTableOverwritten,
    /// A live table became reachable for the host or a guest.
    TableMapped,
    /// EL2 wrote a page before the invalidation that took it away was complete.
    ScrubbedBeforeTlbi,
    /// EL2 read a page before the invalidation that took it away was complete.
    ReadBeforeTlbi,
    /// EL2 copied a page that its owner still reaches: what is stored meanwhile is lost.
    CopiedWithinReach,
    /// A page was given to a new owner before the invalidation that took it away was complete.
    HandedOverBeforeTlbi,
    /// EL2 read a page of another owner before cleaning and invalidating it to PoC.
    ReadBeforeCleanInvalidate,
    /// A page was given away before it was cleaned to PoC.
    NotCleaned,
    /// A guest's page was given to another owner with its contents.
    NotScrubbed,
    /// A page was given to a guest that can use allocation tags, or taken from one, with its tags.
    TagsNotZeroed,
    /// A page became executable before instruction cache maintenance.
    IcacheStale,
    /// Two roots had one VMID at the same time.
    VmidOverlap,
    /// A VMID served a new root before everything of the old one was invalidated.
    VmidReusedBeforeInvalidation,
    /// A context was installed whose VMID does not belong to its root, or not the one that was
    /// there before.
    SwitchWrongVmid,
    /// EL2's own map was given a VMID or ASID: with E2H = 0 it has none.
    HypVmid,
    /// A reserved or impossible word: type, output address, alignment or attributes.
    Malformed,
    /// An instruction that this CPU does not have.
    Undefined,
    /// The checker ran out of room; it must be built larger.
    Capacity,
}

/// A broken rule and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The CPU whose operation broke it.
    pub cpu: usize,
    /// The table, or the page, it is about; 0 if about none.
    pub page: Pfn,
    /// The entry's index in the table, or 0.
    pub index: u16,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, cpu, page, index } = self;
        write!(f, "{rule:?} on CPU {cpu}: page {:#x}, entry {index}", page.raw())
    }
}
