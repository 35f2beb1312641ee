//! Which pages a guest may use with their allocation tags, and how its table keeps it from the others.
//!
//! Invariant: a VM with MTE has a page without tags only if its policy is lazy, and then its entry says so
//! ([`Prot::NO_TAG`], or a note where the CPU cannot say it in an entry).
#![forbid(unsafe_code)]

use super::guest_s2::GuestS2;
use crate::addr::{IpaRange, Pfn, PfnRange};
use crate::hw::Machine;
use crate::mm::RamMap;
use crate::pgtable::{
    self, Access, LeafState, Level, Note, PageEntry, PendingState, Planned, PreparedPage, Prot, S2Attrs,
    Stage2, Stage2Table,
};
use abi::Errno;
use abi::vm::MtePolicy;

/// How a guest's table has pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Mapped.
    Mapped(S2Attrs),
    /// By notes, each with its page: they wait for tags, and the CPU cannot keep the guest from theirs alone.
    Pending(Access, PendingState),
}

impl GuestS2 {
    /// How the guest is to have `pages` that it is given with `attrs`.
    ///
    /// # Errors
    /// EPERM: it would have no tags there, and its policy asks for them.
    #[inline]
    pub(super) fn form(&self, ram: &RamMap, pages: PfnRange, attrs: S2Attrs) -> Result<Form, Errno> {
        match self.mte {
            MtePolicy::Off => Ok(Form::Mapped(attrs)),
            _ => self.form_with_tags(ram, pages, attrs),
        }
    }

    #[inline(never)]
    fn form_with_tags(&self, ram: &RamMap, pages: PfnRange, attrs: S2Attrs) -> Result<Form, Errno> {
        if !attrs.prot.contains(Prot::NO_TAG) && ram.all_have_tags(pages) {
            return Ok(Form::Mapped(attrs));
        }
        if !self.mte.is_lazy() {
            return Err(Errno::Eperm);
        }
        if self.table.format().maps_no_tag() {
            return Ok(Form::Mapped(attrs.with_prot(attrs.prot | Prot::NO_TAG)));
        }
        let state = match attrs.state {
            LeafState::SharedBorrowed => PendingState::SharedBorrowed,
            LeafState::Owned | LeafState::SharedOwned => PendingState::Owned,
        };
        Ok(Form::Pending(Access::from_bits_truncate(attrs.prot.bits()), state))
    }

    /// True if a guest with MTE that has pages in this `form` uses their tags.
    #[inline]
    pub(super) const fn uses_tags(&self, form: Form) -> bool {
        self.mte.has_mte() && matches!(form, Form::Mapped(attrs) if !attrs.prot.contains(Prot::NO_TAG))
    }
}

impl Form {
    /// True if the guest reaches the pages.
    pub(super) const fn is_mapped(self) -> bool {
        matches!(self, Self::Mapped(_))
    }

    /// Looks at what it takes to put pages from `first` on at `range` of `table`, in entries as large as can be.
    ///
    /// # Errors
    /// As [`Stage2Table::plan_leaf`].
    #[inline(always)]
    pub(super) fn plan<'t, M: Machine>(
        self,
        table: &'t Stage2Table,
        hw: &M,
        range: IpaRange,
        first: Pfn,
    ) -> Result<Planned<'t, Stage2>, pgtable::Error> {
        match self {
            Self::Mapped(attrs) => table.plan_leaf(hw, range, first, attrs, Level::L2),
            Self::Pending(access, state) => {
                table.plan_note(hw, range, Note::NoTagPending { page: first, access, state })
            }
        }
    }

    /// Prepares to put one page at `entry`.
    ///
    /// # Errors
    /// As [`PageEntry::prepare_leaf`].
    #[inline(always)]
    pub(super) fn prepare(
        self,
        entry: PageEntry<'_, Stage2>,
        page: Pfn,
    ) -> Result<PreparedPage<'_, Stage2>, pgtable::Error> {
        match self {
            Self::Mapped(attrs) => entry.prepare_leaf(page, attrs),
            Self::Pending(access, state) => entry.prepare_note(Note::NoTagPending { page, access, state }),
        }
    }
}
