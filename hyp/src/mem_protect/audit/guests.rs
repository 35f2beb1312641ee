//! One VM: its table, held against the records, the host's table and EL2's map; and its stores.
#![forbid(unsafe_code)]

use super::own::{for_notes, no_entry};
use super::page::{Page, spread};
use super::{Audit, Ends, not_loose};
use crate::addr::{HypVa, Ipa, PAGE_SHIFT, Pfn, PfnRange};
use crate::hw::Machine;
use crate::mem_protect::{GuestKind, GuestS2, HostS2, HypS1};
use crate::mm::{Cx, PageUse};
use crate::pgtable::{
    Corrupt, Entry, LeafState, Level, Note, Owner, PendingState, Prot, Slot, Stage2, Surveyor,
};
use abi::inspect::{Damage, Figure};
use abi::vm::MtePolicy;

/// A VM and what it is held against, all locked.
pub(super) struct Look<'a, M: Machine> {
    pub(super) cx: Cx<'a, M>,
    pub(super) host: &'a HostS2,
    pub(super) hyp: &'a HypS1,
    pub(super) guest: &'a GuestS2,
}

impl<M: Machine> Look<'_, M> {
    /// Looks at all of the VM, whose own state takes `state` pages. It is in the figures if it is
    /// `counted`.
    pub(super) fn at_all(&self, audit: &mut Audit, ends: &mut Ends, counted: bool, state: u64) {
        let mut seen = Seen { look: self, audit, ends, borrowed: 0, counted };
        self.guest.table.survey(self.cx.hw, &mut seen);
        let borrowed = seen.borrowed;
        seen.own_page(Figure::VmState, state);
        self.stores(&mut seen);
        self.notes(audit);
        self.loans(audit, borrowed);
    }

    fn handle(&self) -> u16 {
        self.guest.handle()
    }

    /// What the record of `pfn` says.
    fn page(&self, pfn: Pfn) -> Option<Page> {
        self.cx.vmemmap.get(pfn).and_then(Page::of)
    }

    /// The store of table pages, and the reserve, which a protected VM has between any two calls.
    fn stores(&self, seen: &mut Seen<'_, '_, M>) {
        let (handle, cache) = (self.handle(), &self.guest.cache);
        let mut listed = 0_u64;
        for page in cache.listed(self.cx.hw) {
            listed = listed.saturating_add(1);
            let marked = self.page(page) == Some(Page::Hyp(PageUse::PtCache))
                && self.cx.vmemmap.get(page).is_some_and(|record| record.is_free());
            seen.audit.check(marked, Damage::Store, handle, page.raw());
        }
        seen.audit.check(listed == cache.pages(), Damage::Store, handle, 0);
        seen.own_page(Figure::VmCache, listed);
        let as_due = self.guest.reserve.is_as_due(self.guest.kind().is_protected());
        seen.audit.check(as_due, Damage::Store, handle, 0);
        if let Some(page) = self.guest.reserve.page() {
            let marked = self.page(page) == Some(Page::Hyp(PageUse::Reserve));
            seen.audit.check(marked, Damage::Store, handle, page.raw());
            seen.own_page(Figure::VmReserve, 1);
        }
    }

    /// Every page that the host's table gives to this VM is where it says.
    fn notes(&self, audit: &mut Audit) {
        for_notes(self.cx, self.host, |frame, handle, gfn| {
            if handle != self.handle() {
                return;
            }
            let ipa = Ipa::truncated(gfn << PAGE_SHIFT);
            let there = match self.guest.table.lookup(self.cx.hw, ipa) {
                Ok((level, Entry::Leaf(leaf))) if leaf.attrs.state == LeafState::Owned => {
                    leaf.output.raw() | gfn & level.pages().wrapping_sub(1)
                }
                Ok((_, Entry::Note(Note::NoTagPending { page, state: PendingState::Owned, .. }))) => {
                    page.raw()
                }
                _ => u64::MAX,
            };
            audit.check(there == frame, Damage::Note, handle, frame);
        });
    }

    /// Every page that the host lends to this VM is in as many of its entries as its record says.
    fn loans(&self, audit: &mut Audit, borrowed: u64) {
        let mut lent = 0_u64;
        for (pfn, record) in self.cx.vmemmap.iter() {
            if let Some(Page::Lent { handle, leaves }) = Page::of(record)
                && handle == self.handle()
            {
                lent = lent.wrapping_add(u64::from(leaves).wrapping_mul(spread([pfn.raw(), 0, 0, 0])));
            }
        }
        audit.check(lent == borrowed, Damage::Shares, self.handle(), 0);
    }
}

/// What is seen in the VM's table.
struct Seen<'l, 'a, M: Machine> {
    look: &'l Look<'l, M>,
    audit: &'a mut Audit,
    ends: &'a mut Ends,
    /// Sum over the pages that it borrows.
    borrowed: u64,
    counted: bool,
}

impl<M: Machine> Seen<'_, '_, M> {
    /// `nr` pages of EL2's have this VM as their owner.
    fn own_page(&mut self, figure: Figure, nr: u64) {
        not_loose(self.audit, nr);
        self.count(figure, nr);
    }

    fn count(&mut self, figure: Figure, nr: u64) {
        if self.counted {
            self.audit.census.add(figure, nr);
        }
    }

    /// A page of the VM, or one behind an entry of a block.
    fn page(&mut self, gfn: u64, pfn: Pfn, state: LeafState) {
        let (look, kind) = (self.look, self.look.guest.kind());
        let handle = look.handle();
        let right = match (state, look.page(pfn)) {
            (LeafState::Owned, Some(Page::Guest)) => {
                self.ends.owned = self.ends.owned.saturating_add(1);
                self.count(Figure::GuestOwned, 1);
                kind.is_protected() && look.may_own(gfn) && look.host_names(pfn, gfn)
            }
            (LeafState::SharedOwned, Some(Page::GuestShared)) => {
                self.ends.shared = self.ends.shared.wrapping_add(spread([pfn.raw(), 0, 0, 0]));
                self.count(Figure::GuestSharedHost, 1);
                kind == GuestKind::Classic
            }
            (LeafState::SharedBorrowed, Some(Page::Lent { handle: borrower, .. })) => {
                self.borrowed = self.borrowed.wrapping_add(spread([pfn.raw(), 0, 0, 0]));
                self.count(Figure::GuestBorrowed, 1);
                let here = kind.is_non_protected() || kind.is_split() && !look.may_own(gfn);
                here && borrower == handle
            }
            _ => false,
        };
        self.audit.check(right, Damage::GuestEntry, handle, gfn);
    }

    /// What the host can write, a VM with split IPA cannot execute, and a VM may do anything with its own pages: now, or
    /// when the page has tags.
    fn permissions(&mut self, gfn: u64, prot: Prot, state: LeafState) {
        let executes = prot.contains(Prot::X) && !self.look.may_own(gfn);
        let kept_from_owner = state != LeafState::SharedBorrowed && !prot.contains(Prot::RWX);
        self.audit.check(!executes && !kept_from_owner, Damage::GuestEntry, self.look.handle(), gfn);
    }

    /// EL2's map has a table of level 3 ready for the block at `first`.
    fn held(&mut self, first: Pfn, gfn: u64) {
        let path = self.look.hyp.table.path(self.look.cx.hw, HypVa::linear(first.base()));
        match path {
            Ok(path) if path.slot().level() == Level::L3 => {
                let table = path.slot().table().raw();
                self.ends.held = self.ends.held.wrapping_add(spread([table, 0, 0, 0]));
            }
            _ => self.audit.find(Damage::GuestEntry, self.look.handle(), gfn),
        }
    }
}

impl<M: Machine> Look<'_, M> {
    /// True if the VM may have the `nr` pages from `first` on in `state`, with or without use of their tags.
    fn may_use_tags(&self, first: Pfn, nr: u64, state: LeafState, no_tag: bool) -> bool {
        let tagged =
            || PfnRange::new(first.raw(), nr).is_ok_and(|pages| self.cx.vmemmap.map().all_have_tags(pages));
        match (self.guest.mte(), no_tag) {
            (MtePolicy::Off, _) => true,
            (_, false) => tagged(),
            // What the guest shares with the host has tags first.
            (mte, true) => mte.is_lazy() && state != LeafState::SharedOwned,
        }
    }

    /// True if the VM can own a page at `gfn`, or have a note there.
    fn may_own(&self, gfn: u64) -> bool {
        gfn < self.guest.owned_end() >> PAGE_SHIFT
    }

    /// True if the host's table says that the page is this VM's at `gfn`.
    fn host_names(&self, pfn: Pfn, gfn: u64) -> bool {
        let entry = self.host.table.lookup(self.cx.hw, Ipa::truncated(pfn.base().raw()));
        matches!(
            entry,
            Ok((Level::L3, Entry::Note(Note::HostDonated(Owner::Guest { handle, gfn: there }))))
                if handle == self.handle() && there.raw() == gfn
        )
    }
}

impl<M: Machine> Surveyor<Stage2> for Seen<'_, '_, M> {
    fn entry(&mut self, slot: &Slot, entry: Result<Entry<Stage2>, Corrupt>) -> bool {
        let (handle, gfn) = (self.look.handle(), slot.ia() >> PAGE_SHIFT);
        let (first, state, no_tag) = match entry {
            Ok(Entry::Table(table)) => {
                let own = self.look.page(table) == Some(Page::Hyp(PageUse::GuestTable));
                self.audit.check(own, Damage::TablePage, handle, table.raw());
                return own;
            }
            Ok(Entry::Leaf(leaf)) => {
                self.permissions(gfn, leaf.attrs.prot, leaf.attrs.state);
                (leaf.output, leaf.attrs.state, leaf.attrs.prot.contains(Prot::NO_TAG))
            }
            Ok(Entry::Note(Note::NoTagPending { page, access, state })) => {
                let state = match state {
                    PendingState::Owned => LeafState::Owned,
                    PendingState::SharedBorrowed => LeafState::SharedBorrowed,
                };
                self.permissions(gfn, Prot::from(access), state);
                (page, state, true)
            }
            Ok(entry) => {
                let right = matches!(entry, Entry::Absent) || self.look.may_own(gfn);
                self.audit.check(right, Damage::GuestEntry, handle, gfn);
                return false;
            }
            Err(why) => {
                no_entry(self.audit, why, handle, slot);
                return false;
            }
        };
        let nr = slot.level().pages();
        let right = self.look.may_use_tags(first, nr, state, no_tag);
        self.audit.check(right, Damage::Tags, handle, gfn);
        for n in 0..nr {
            if let Some(pfn) = first.checked_add(n) {
                self.page(gfn.saturating_add(n), pfn, state);
            }
        }
        if nr > 1 && self.look.guest.kind().is_protected() && state != LeafState::SharedBorrowed {
            self.held(first, gfn);
        }
        false
    }

    fn end(&mut self, table: Pfn, _level: Level, used: u16) {
        let handle = self.look.handle();
        let marked = self.look.page(table) == Some(Page::Hyp(PageUse::GuestTable));
        self.audit.check(marked, Damage::TablePage, handle, table.raw());
        let count = self.look.cx.vmemmap.get(table).map(|record| record.count());
        self.audit.check(count == Some(used), Damage::TableCount, handle, table.raw());
        self.own_page(Figure::VmTables, 1);
    }
}
