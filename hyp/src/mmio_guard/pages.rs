//! Marking pages, and taking marks away: what a guest's own table says where no page is.
//!
//! | transition | guest's entry |
//! |---|---|
//! | guest_map_guard | none to MMIO_GUARD |
//! | guest_unmap_guard | MMIO_GUARD to none |
//! | host_drop_guards | every MMIO_GUARD to none |
//!
//! Invariant: a mark never stands where a page or any other note was. An entry goes from invalid to
//! invalid, so nothing is invalidated; a table that loses its last entry goes to the VM's cache, and
//! then every CPU has forgotten it. Tables come from that cache and are counted before anything is
//! written.
//!
//! Lock: the guest's table.
#![forbid(unsafe_code)]

use crate::addr::{Ipa, IpaRange, PAGE_SHIFT, PAGE_SIZE};
use crate::error::Error;
use crate::fault::Site;
use crate::hw::Machine;
use crate::mem_protect::{
    Guest, GuestKind, GuestS2, Hypervisor, MAX_VISITED, View, check_bound, guest_error, view,
};
use crate::mm::Cx;
use crate::pgtable::{Level, Note, Ripas, Select, TablePool};
use abi::Errno;
use abi::host::MAX_PAGES;
use core::ops::ControlFlow;

/// What marking a frame comes to.
///
/// # Errors
/// EEXIST it has a page, EHWPOISON destroyed, EPERM memory that the host has yet to give.
const fn may_map(view: View) -> Result<(), Errno> {
    match view {
        View::Nothing | View::Guard => Ok(()),
        View::Page { .. } => Err(Errno::Eexist),
        View::Ripas(Ripas::Destroyed) => Err(Errno::Ehwpoison),
        View::Ripas(Ripas::Ram) => Err(Errno::Eperm),
    }
}

/// What taking a mark away comes to.
///
/// # Errors
/// ENOENT nothing there, EPERM something else.
const fn may_unmap(view: View) -> Result<(), Errno> {
    match view {
        View::Guard => Ok(()),
        View::Nothing => Err(Errno::Enoent),
        View::Page { .. } | View::Ripas(_) => Err(Errno::Eperm),
    }
}

/// The leading frames of a range that may change.
struct Leading {
    range: IpaRange,
    /// Each has an entry of its own already.
    pages: bool,
}

impl<M: Machine> Hypervisor<M> {
    /// Marks pages of a guest as devices: the leading frames of `range` that are empty or marked.
    /// Returns how many.
    ///
    /// # Errors
    /// In this order. E2BIG: more than 512 frames. EACCES: the VM has no guard. ERANGE: frames
    /// beyond its space. Of the first frame: EEXIST it has a page, EHWPOISON destroyed. ENOMEM: the
    /// cache lacks pages; nothing has changed.
    pub fn guest_map_guard(&self, hw: &M, guest: &Guest<M>, range: IpaRange) -> Result<u64, Error> {
        let cx = self.cx(hw);
        let mut guest = guest.lock(hw);
        let guest = &mut *guest;
        if one_page(hw, cx, guest, range, may_map, Some(Note::MmioGuard))? {
            return Ok(1);
        }
        let Leading { range, pages } = leading(hw, guest, range, may_map)?;
        if !pages {
            let needed = guest.table().plan_note(hw, range, Note::MmioGuard).map_err(guest_error)?.tables();
            guest.check_tables(needed)?;
            if needed > 0 {
                cx.faults.hit(Site::GuardTable).map_err(|_| Error::NoTables(needed))?;
            }
        }
        let (table, mut source) = guest.parts_of(cx);
        match table.prepare_note(hw, &mut source, range, Note::MmioGuard) {
            Ok(change) => change.commit(hw, &mut source),
            Err(e) => {
                // Tables that the first frames needed are empty again.
                table.fold(hw, &mut source, range)?;
                return Err(guest_error(e));
            }
        }
        Ok(range.len() >> PAGE_SHIFT)
    }

    /// Takes the marks of pages away: of the leading frames of `range` that have one. Returns how
    /// many.
    ///
    /// # Errors
    /// In this order. E2BIG: more than 512 frames. EACCES: the VM has no guard. ERANGE: frames
    /// beyond its space. Of the first frame: ENOENT nothing there, EPERM something else.
    pub fn guest_unmap_guard(&self, hw: &M, guest: &Guest<M>, range: IpaRange) -> Result<u64, Error> {
        let cx = self.cx(hw);
        let mut guest = guest.lock(hw);
        let guest = &mut *guest;
        if one_page(hw, cx, guest, range, may_unmap, None)? {
            return Ok(1);
        }
        let Leading { range, .. } = leading(hw, guest, range, may_unmap)?;
        let (table, mut source) = guest.parts_of(cx);
        // Marks stand at level 3: nothing is split, so no page is needed.
        table.prepare_clear(hw, &mut source, range).map_err(guest_error)?.commit(hw, &mut source);
        table.fold(hw, &mut source, range)?;
        Ok(range.len() >> PAGE_SHIFT)
    }

    /// Takes the next marks of a guest that is not protected away, from `at` on: looks at no more
    /// than 4096 entries and drops no more than 512 marks. Returns where to go on, `None` at the
    /// end of its space.
    ///
    /// # Errors
    /// EACCES: protected. ERANGE: `at` is beyond its space. EIO.
    pub fn host_drop_guards(&self, hw: &M, guest: &Guest<M>, at: Ipa) -> Result<Option<Ipa>, Error> {
        let cx = self.cx(hw);
        let mut guest = guest.lock(hw);
        let guest = &mut *guest;
        guest.check_kind(GuestKind::is_non_protected)?;
        let geometry = guest.table().geometry();
        let rest = IpaRange::new(at.frame().base().raw(), geometry.limit(), geometry.ia_bits())?;
        let (mut visited, mut marks, mut end) = (0_u64, 0_u64, rest.start().raw());
        guest.parts(hw, rest, |part| {
            visited = visited.saturating_add(1);
            marks = marks.saturating_add(u64::from(part.view == View::Guard));
            if visited > MAX_VISITED || marks > MAX_PAGES {
                return ControlFlow::Break(());
            }
            end = part.entry_end;
            ControlFlow::Continue(())
        })?;
        let done = IpaRange::new(rest.start().raw(), end, geometry.ia_bits())?;
        let (table, mut source) = guest.parts_of(cx);
        let clear = table.prepare_clear_of(hw, &mut source, done, Select::NOTES).map_err(guest_error)?;
        clear.commit(hw, &mut source);
        table.fold(hw, &mut source, done)?;
        Ok((end < geometry.limit()).then(|| Ipa::truncated(end)))
    }
}

const fn has_guard(kind: GuestKind) -> bool {
    !matches!(kind, GuestKind::Split)
}

/// Changes a range of one page, in one walk, where its table is there. Returns whether it is: if
/// not, nothing has been decided.
///
/// # Errors
/// EACCES: the VM has no guard. ERANGE: a page beyond its space. What `may` says.
// Inlined: the note is known where it is called.
#[inline(always)]
fn one_page<M: Machine>(
    hw: &M,
    cx: Cx<'_, M>,
    guest: &mut GuestS2,
    range: IpaRange,
    may: impl Fn(View) -> Result<(), Errno>,
    note: Option<Note>,
) -> Result<bool, Error> {
    if range.len() != PAGE_SIZE {
        return Ok(false);
    }
    guest.check_kind(has_guard)?;
    let (table, mut source) = guest.parts_of(cx);
    let Some(at) = table.page(hw, range.start())? else { return Ok(false) };
    may(view(at.entry(), 0).ok_or(Errno::Eio)?)?;
    match note {
        Some(note) => at.prepare_note(note)?.commit(hw, &mut source),
        None => {
            let page = at.table_page();
            at.prepare_clear().commit(hw, &mut source);
            if source.entries(page) == 0 {
                table.fold(hw, &mut source, range)?;
            }
        }
    }
    Ok(true)
}

/// The leading frames of `range` for which `may` says yes.
fn leading<M: Machine>(
    hw: &M,
    guest: &GuestS2,
    range: IpaRange,
    may: impl Fn(View) -> Result<(), Errno>,
) -> Result<Leading, Error> {
    check_bound(range)?;
    guest.check_kind(has_guard)?;
    guest.check_owned_range(range)?;
    let (mut end, mut pages) = (range.start().raw(), true);
    let refused = guest.parts(hw, range, |part| match may(part.view) {
        Ok(()) => {
            end = part.end() << PAGE_SHIFT;
            pages &= part.level == Level::L3;
            ControlFlow::Continue(())
        }
        Err(e) => ControlFlow::Break(e),
    })?;
    match refused {
        Some(e) if end == range.start().raw() => Err(e.into()),
        _ => {
            let range = IpaRange::new(range.start().raw(), end, guest.table().geometry().ia_bits())?;
            Ok(Leading { range, pages })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Errno, GuestKind, Ripas, View, may_map, may_unmap};
    use crate::addr::Pfn;
    use crate::mmio_guard::table;
    use crate::pgtable::LeafState;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    fn page(state: LeafState) -> View {
        View::Page { pfn: Pfn::new(7).unwrap(), state, no_tag: false }
    }

    #[test]
    fn the_state_table_of_the_document_is_the_code() {
        let rows = [
            ("nothing", View::Nothing),
            ("MMIO_GUARD", View::Guard),
            ("a page or block of its own", page(LeafState::Owned)),
            ("a page that it shares", page(LeafState::SharedOwned)),
            ("a page that it borrows", page(LeafState::SharedBorrowed)),
            ("RIPAS DESTROYED", View::Ripas(Ripas::Destroyed)),
            ("RIPAS RAM", View::Ripas(Ripas::Ram)),
        ];
        let answer = |result: Result<(), Errno>| String::from(if result.is_ok() { "0" } else { "-3" });
        let errno = |result: Result<(), Errno>| match result {
            Ok(()) => String::from("yes"),
            Err(e) => format!("{e:?}").to_uppercase(),
        };
        let want: Vec<Vec<String>> = rows
            .into_iter()
            .map(|(name, view)| {
                let calls = [may_map(view), may_unmap(view)].map(answer);
                let gives =
                    [GuestKind::Classic, GuestKind::NonProtected].map(|kind| errno(view.vacant(kind)));
                [String::from(name)].into_iter().chain(calls).chain(gives).collect()
            })
            .collect();
        assert_eq!(table("| the entry says |"), want);
    }
}
