//! Memory tags: what becomes of a tag access to a page without tags, and what the host is told of a page.
//!
//! docs/mte.md is the contract. Which pages are without tags, and how a page moves to others that have them, is
//! `mem_protect`'s business; policies are [`abi::vm::MtePolicy`].
//!
//! Lock: the guest's table.
#![forbid(unsafe_code)]

use crate::addr::Ipa;
use crate::error::Error;
use crate::hw::Machine;
use crate::mem_protect::{Guest, GuestS2, View, view};
use crate::pgtable::{Entry, LeafState, Note};
use abi::exit::ExitFlags;
use abi::vm::TagState;

/// Flags of the exit for a tag access to a page: no direction, which hardware does not tell of checked stores.
#[must_use]
pub const fn exit_flags(private: bool) -> ExitFlags {
    if private { ExitFlags::TAG_ACCESS.union(ExitFlags::PRIVATE) } else { ExitFlags::TAG_ACCESS }
}

/// What becomes of a fault that the CPU calls a tag access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagFault {
    /// The page is without tags: the host must hear of it.
    Exit(ExitFlags),
    /// It is not, or no longer: no CPU remembers that it was, and the guest tries again.
    Resume,
}

/// Looks at the page at `ipa` of `guest`, whose tags it tried to use.
///
/// # Errors
/// EIO: the table is corrupt.
pub fn tag_fault<M: Machine>(hw: &M, guest: &Guest<M>, ipa: Ipa) -> Result<TagFault, Error> {
    let mut guest = guest.lock(hw);
    let (_, entry) = guest.table().lookup(hw, ipa)?;
    match view(entry, 0) {
        Some(View::Page { state, no_tag: true, .. }) => {
            Ok(TagFault::Exit(exit_flags(state != LeafState::SharedBorrowed)))
        }
        // Upgraded since, or taken away: another CPU's TLB may still have it otherwise.
        Some(_) => guest.forget_no_tag(hw, ipa).map(|()| TagFault::Resume),
        None => Err(abi::Errno::Eio.into()),
    }
}

/// What the guest may do with the tags of the page at `ipa`.
///
/// # Errors
/// ERANGE beyond its space. EIO: the table is corrupt.
pub fn tag_state<M: Machine>(hw: &M, guest: &GuestS2, ipa: Ipa) -> Result<TagState, Error> {
    let (_, entry) = guest.table().lookup(hw, ipa)?;
    Ok(match (entry, view(entry, 0)) {
        (Entry::Note(Note::NoTagPending { .. }), _) => TagState::Pending,
        (_, Some(View::Page { no_tag: true, .. })) => TagState::NoTag,
        (_, Some(View::Page { no_tag: false, .. })) => TagState::Tagged,
        _ => TagState::None,
    })
}
