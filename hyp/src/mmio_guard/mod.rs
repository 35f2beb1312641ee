//! The MMIO guard: a guest says which of its pages are devices, and only those are emulated.
//!
//! Without it a host could leave a hole where a guest believes its memory is, and each access would
//! show the host a register and let it forge what is read. With it an access to anything but a page
//! that the guest has marked shows the host an address that lacks memory, and nothing else.
//!
//! - [`Guard`]: whether a VM's accesses are guarded. Lock: the VM's.
//! - `pages`: marking pages. A mark is [`Note::MmioGuard`](crate::pgtable::Note) in the guest's own
//!   table, at level 3, so that a page is marked or mapped, never both. Lock: the guest's table.
//! - [`GuardCall`]: the calls of the guest.
//! - [`route`]: where an abort goes. [`Transfer`]: what of an access is shown, and what its answer
//!   may do. Both pure.
//!
//! docs/mmio-guard.md has the tables; tests hold them to the code.
#![forbid(unsafe_code)]

mod abort;
mod access;
mod call;
mod halves;
mod pages;

pub use abort::{Attempt, Leaf, Route, route};
pub use access::{PendingMmio, Transfer, Width};
pub use call::{GuardCall, GuardOp};

use crate::mem_protect::GuestKind;

/// Whether a VM's accesses are guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// An access to a page that is not there may be emulated. No page is marked.
    Off,
    /// Only marked pages are emulated.
    On,
    /// The VM has no guard calls and no marks: the top bit of an address says what it means.
    Absent,
}

impl Guard {
    /// The guard of a VM that is made.
    #[must_use]
    pub const fn of(kind: GuestKind) -> Self {
        match kind {
            GuestKind::NonProtected => Self::Off,
            GuestKind::Classic => Self::On,
            GuestKind::Split => Self::Absent,
        }
    }

    /// After GUARD_ENROLL.
    #[must_use]
    pub const fn enrolled(self) -> Self {
        match self {
            Self::Off | Self::On => Self::On,
            Self::Absent => Self::Absent,
        }
    }
}

/// Cells of the rows of the table in docs/mmio-guard.md that begins with `header`.
#[cfg(test)]
fn table(header: &str) -> std::vec::Vec<std::vec::Vec<std::string::String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mmio-guard.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().skip_while(|line| !line.starts_with(header));
    assert!(lines.next().is_some(), "no table {header:?}");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().into()).collect();
    lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[cfg(test)]
mod tests {
    use super::{Guard, GuestKind, table};
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn the_table_of_kinds_in_the_document_is_the_code() {
        let kinds = [
            ("protected", GuestKind::Classic),
            ("not protected", GuestKind::NonProtected),
            ("split IPA", GuestKind::Split),
        ];
        let want: Vec<Vec<String>> = kinds
            .into_iter()
            .map(|(name, kind)| {
                let made = Guard::of(kind);
                Vec::from([name.into(), format!("{made:?}"), format!("{:?}", made.enrolled())])
            })
            .collect();
        assert_eq!(table("| VM |"), want);
        for guard in [Guard::Off, Guard::On, Guard::Absent] {
            assert_eq!(guard.enrolled().enrolled(), guard.enrolled(), "enrolling again changes nothing");
        }
    }
}
