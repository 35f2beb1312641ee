//! States that contradict themselves.
#![forbid(unsafe_code)]

use super::state::{Hold, Page, Slot, State};
use core::fmt;

/// A contradiction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub what: &'static str,
}

/// What a [`Flaw`] or a difference is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A page, by frame number.
    Page(u64),
    /// A frame of a VM.
    Slot(u16, u64),
    /// A VM.
    Vm(u16),
    /// The pages that VMs keep to split blocks.
    Reserves,
    /// The specification itself.
    Model,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(pfn) => write!(f, "page {pfn:#x}"),
            Self::Slot(handle, gfn) => write!(f, "VM {handle:#x} frame {gfn:#x}"),
            Self::Vm(handle) => write!(f, "VM {handle:#x}"),
            Self::Reserves => write!(f, "split reserves"),
            Self::Model => write!(f, "specification"),
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

pub(super) fn flaw<T>(place: Place, what: &'static str) -> Result<T, Flaw> {
    Err(Flaw { place, what })
}

impl<const N: usize> State<N> {
    /// Sees that pages and guest frames agree: a guest's page has exactly one entry, in that guest's
    /// table and held as the page says; a page shared with a guest has as many as it counts; and
    /// no other page has any.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn consistent(&self) -> Result<(), Flaw> {
        for run in self.pages.runs() {
            let (handle, hold, nr) = match run.value {
                Page::Guest { handle } => (handle, Hold::Owned, 1),
                Page::GuestSharedWithHost { handle } => (handle, Hold::Shared, 1),
                Page::SharedWithGuest { handle, leaves } => (handle, Hold::Borrowed, u64::from(leaves)),
                Page::Host | Page::SharedWithHyp { .. } | Page::Lent | Page::Hyp | Page::Vm => continue,
            };
            if let Some(pfn) = (run.start..run.end).find(|&pfn| self.entries(pfn, handle, hold) != Some(nr)) {
                return flaw(Place::Page(pfn), "the guests' entries are not those that the page speaks of");
            }
        }
        for (handle, gfn, nr, slot) in self.slot_runs() {
            if let Slot::Mapped { pfn, .. } = slot {
                let is_guests = |page: Option<Page>| {
                    matches!(
                        page,
                        Some(
                            Page::Guest { .. }
                                | Page::GuestSharedWithHost { .. }
                                | Page::SharedWithGuest { .. }
                        )
                    )
                };
                if self.pages.stretches(pfn, pfn.saturating_add(nr)).any(|run| !is_guests(run.value)) {
                    return flaw(Place::Slot(handle, gfn), "an entry for a page that no guest may use");
                }
            }
        }
        Ok(())
    }

    /// How many entries map `pfn`, or `None` if one is not in the table of `handle` and `hold`.
    fn entries(&self, pfn: u64, handle: u16, hold: Hold) -> Option<u64> {
        self.slot_runs().try_fold(0_u64, |count, (vm, _, nr, slot)| match slot {
            Slot::Mapped { pfn: first, hold: is, .. } if first <= pfn && pfn < first.saturating_add(nr) => {
                (vm == handle && is == hold).then(|| count.saturating_add(1))
            }
            _ => Some(count),
        })
    }
}
