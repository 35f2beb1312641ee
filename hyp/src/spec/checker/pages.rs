//! Pages that change hands: nobody touches one before the invalidation that took it away is
//! complete, nobody copies one that was not taken away, and nobody gets one that is not clean.
//!
//! A page is followed from the moment its owner loses it until a leaf of its next owner is made.
#![forbid(unsafe_code)]

use super::desc::{Leaf, order};
use super::open::Open;
use super::rule::Rule;
use super::tables::{may_reach, old_translation};
use super::{At, Checker, Page, Role, Scope};
use crate::addr::PAGE_SIZE;
use crate::hw::{Machine, TableOwner};
use heapless::index_map::FnvIndexMap;

/// Consecutive pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) nr: u64,
}

/// Who had the page before EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Nobody,
    Host,
    Guest,
}

/// What was done to a page since it was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    from: From,
    /// EL2 wrote to it.
    own: bool,
    /// EL2 wrote to it after the last clean.
    dirty: bool,
    /// EL2 filled it: nothing of its last owner is left.
    filled: bool,
    cleaned: bool,
    invalidated: bool,
    icache: bool,
    /// Its last owner could set its allocation tags.
    tagged: bool,
    /// They are 0.
    tags_zero: bool,
}

impl Data {
    const fn new(from: From) -> Self {
        let (own, dirty, filled, cleaned, invalidated, icache) = (false, false, false, false, false, false);
        let (tagged, tags_zero) = (false, false);
        Self { from, own, dirty, filled, cleaned, invalidated, icache, tagged, tags_zero }
    }
}

impl<const PAGES: usize, const OPEN: usize> Checker<PAGES, OPEN> {
    fn may_be_reached<M: Machine>(&self, hw: &M, page: u64) -> bool {
        self.open.iter().any(|open| may_reach(hw, open, Range { first: page, nr: 1 }))
    }

    fn data(&self, page: u64) -> Option<Data> {
        match self.pages.get(&page) {
            Some(Page::Data(data)) => Some(*data),
            _ => None,
        }
    }

    /// EL2 is about to write to the page; all of it if `fills`.
    pub(super) fn overwrite<M: Machine>(&mut self, hw: &M, at: At, fills: bool) {
        match self.pages.get(&at.page).copied() {
            Some(Page::Table(_)) => self.fail(at, Rule::LiveTableOverwritten),
            Some(Page::Retired(Some(id))) if self.is_unclean(id) => {
                self.fail(at, Rule::ReusedBeforeInvalidation)
            }
            Some(Page::Retired(_)) => {
                self.pages.remove(&at.page);
            }
            Some(Page::Data(data)) => {
                let filled = data.filled || fills;
                let data = Data { own: true, dirty: true, filled, cleaned: false, icache: false, ..data };
                self.set_page(at, at.page, Page::Data(data));
            }
            None => {}
        }
        if self.scope == Scope::All && self.may_be_reached(hw, at.page) {
            self.fail(at, Rule::ScrubbedBeforeTlbi);
        }
    }

    /// EL2 is about to set the page's allocation tags to 0.
    pub(super) fn tags_zeroed(&mut self, at: At) {
        if let Some(data) = self.data(at.page) {
            self.set_page(at, at.page, Page::Data(Data { tags_zero: true, ..data }));
        }
    }

    /// True if `owner` can use allocation tags.
    fn uses_tags(&self, owner: TableOwner) -> bool {
        self.roots.iter().any(|root| root.owner == owner && root.tags)
    }

    /// EL2 is about to write a word for the owner of the page, who may get round the cache.
    pub(super) fn put<M: Machine>(&mut self, hw: &M, at: At) {
        self.overwrite(hw, at, false);
        let noted = self.put.iter().any(|put| put.page == at.page);
        let follows = self.scope == Scope::All && !hw.features().fwb && !noted;
        if follows && self.put.try_push(at).is_err() {
            self.fail(at, Rule::Capacity);
        }
    }

    /// EL2 is about to read the page.
    pub(super) fn read<M: Machine>(&mut self, hw: &M, at: At) {
        if self.scope == Scope::Tables
            || matches!(self.pages.get(&at.page), Some(Page::Table(_) | Page::Retired(_)))
        {
            return;
        }
        if self.may_be_reached(hw, at.page) {
            self.fail(at, Rule::ReadBeforeTlbi);
        }
        let Some(data) = self.data(at.page) else { return };
        // Guests cannot get round FWB; the host's devices may.
        let alias = match data.from {
            From::Nobody => false,
            From::Host => true,
            From::Guest => !hw.features().fwb,
        };
        if alias && !data.own && !data.invalidated {
            self.fail(at, Rule::ReadBeforeCleanInvalidate);
        }
    }

    /// EL2 is about to copy the page: a table, or one that was taken from its owner and not given to another since.
    pub(super) fn copied(&mut self, at: At) {
        let taken = self.data(at.page).is_some_and(|data| data.from != From::Nobody);
        if self.scope == Scope::All && !taken && !matches!(self.pages.get(&at.page), Some(Page::Table(_))) {
            self.fail(at, Rule::CopiedWithinReach);
        }
    }

    /// EL2 is about to read a word of a page that it shows itself, and whose owner may get round the cache.
    pub(super) fn get<M: Machine>(&mut self, hw: &M, at: At) {
        self.read(hw, at);
        let seen = self
            .data(at.page)
            .is_some_and(|data| data.from != From::Nobody || data.invalidated || data.filled);
        if self.scope == Scope::All && !hw.features().fwb && !seen {
            self.fail(at, Rule::ReadBeforeCleanInvalidate);
        }
    }

    pub(super) fn cleaned<M: Machine>(&mut self, hw: &M, at: At, invalidate: bool) {
        self.put.retain(|put| put.page != at.page);
        // Whoever still reaches the page can make it dirty again: such a clean counts for nothing.
        if self.scope == Scope::Tables || self.may_be_reached(hw, at.page) {
            return;
        }
        if let Some(data) = self.followed(at.page) {
            let invalidated = data.invalidated || invalidate;
            self.set_page(at, at.page, Page::Data(Data { cleaned: true, dirty: false, invalidated, ..data }));
        }
    }

    pub(super) fn icache_invalidated<M: Machine>(&mut self, hw: &M, at: At) {
        if self.scope == Scope::Tables || self.may_be_reached(hw, at.page) {
            return;
        }
        if let Some(data) = self.followed(at.page) {
            self.set_page(at, at.page, Page::Data(Data { icache: true, ..data }));
        }
    }

    /// The record of a page that is no table, or a fresh one.
    fn followed(&self, page: u64) -> Option<Data> {
        match self.pages.get(&page) {
            Some(Page::Data(data)) => Some(*data),
            Some(Page::Table(_) | Page::Retired(_)) => None,
            None => Some(Data::new(From::Nobody)),
        }
    }

    /// The host's entry for the page says that it is the host's no more.
    pub(super) fn donated(&mut self, at: At, page: u64) {
        if self.scope == Scope::All && self.followed(page).is_some() {
            self.set_page(at, page, Page::Data(Data::new(From::Host)));
        }
    }

    /// A guest's leaf is gone. What the host sees as well is no secret of the guest's.
    pub(super) fn leaf_left(&mut self, at: At, role: Role, leaf: Leaf) {
        let guest = matches!(role.owner, TableOwner::Guest(_));
        if self.scope == Scope::Tables || !guest || !leaf.is_exclusive() || leaf.pages() > 512 {
            return;
        }
        let tagged = self.uses_tags(role.owner) && leaf.allows_tags();
        for page in (leaf.first()..).zip(0..leaf.pages()).map(|(page, _)| page) {
            if self.followed(page).is_some() {
                self.set_page(at, page, Page::Data(Data { tagged, ..Data::new(From::Guest) }));
            }
        }
    }

    /// A leaf of `role.owner` is about to translate `ia`, in place of `replaced`.
    pub(super) fn given<M: Machine>(
        &mut self,
        hw: &M,
        at: At,
        role: Role,
        leaf: Leaf,
        ia: u64,
        replaced: Option<&Open>,
    ) {
        let pages = Range { first: leaf.first(), nr: leaf.pages() };
        if self.open.iter().any(|open| open.owner != role.owner && may_reach(hw, open, pages)) {
            self.fail(at, Rule::HandedOverBeforeTlbi);
        }
        if role.owner == TableOwner::Hyp {
            return;
        }
        if pages.nr > 1 << order(2) {
            // Too many to ask one by one: ask those that are followed. Each is forgotten when asked.
            let followed = |page: &u64, what: &Page| {
                let asked = matches!(what, Page::Data(_) | Page::Retired(None));
                leaf.covers(*page, 1).then_some((*page, asked))
            };
            if self.pages.iter().filter_map(|(p, what)| followed(p, what)).any(|(_, asked)| !asked) {
                self.fail(at, Rule::TableMapped);
            }
            let next = |pages: &FnvIndexMap<u64, Page, PAGES>| {
                pages.iter().filter_map(|(p, what)| followed(p, what)).find(|(_, asked)| *asked)
            };
            while let Some((page, _)) = next(&self.pages) {
                self.given_page(hw, At { page, ..at }, role, leaf, None);
            }
            return;
        }
        for n in 0..pages.nr {
            let page = pages.first.saturating_add(n);
            let address = ia.saturating_add(n.saturating_mul(PAGE_SIZE));
            let old = replaced.and_then(|open| old_translation(hw, open, address));
            let old = old.filter(|(was, _)| *was == page).map(|(_, leaf)| leaf);
            self.given_page(hw, At { page, ..at }, role, leaf, old);
        }
    }

    /// `old` is the leaf that translated the same address to the same page.
    fn given_page<M: Machine>(&mut self, hw: &M, at: At, role: Role, leaf: Leaf, old: Option<Leaf>) {
        let features = hw.features();
        let data = match self.pages.get(&at.page).copied() {
            Some(Page::Table(_)) => {
                self.fail(at, Rule::TableMapped);
                return;
            }
            Some(Page::Retired(Some(id))) if self.is_unclean(id) => {
                self.fail(at, Rule::ReusedBeforeInvalidation);
                return;
            }
            Some(Page::Data(data)) => data,
            Some(Page::Retired(_)) | None => Data::new(From::Nobody),
        };
        self.pages.remove(&at.page);
        if self.scope == Scope::Tables || !leaf.is_normal() {
            return;
        }
        let guest = matches!(role.owner, TableOwner::Guest(_));
        if data.from == From::Guest && !data.filled && old.is_none() {
            self.fail(at, Rule::NotScrubbed);
        }
        let shows_tags = match data.from {
            From::Host => self.uses_tags(role.owner) && leaf.allows_tags(),
            From::Guest => data.tagged,
            From::Nobody => false,
        };
        if shows_tags && !data.tags_zero && old.is_none() {
            self.fail(at, Rule::TagsNotZeroed);
        }
        let must_clean = if guest { !features.fwb && !data.cleaned && old.is_none() } else { data.dirty };
        if must_clean {
            self.fail(at, Rule::NotCleaned);
        }
        let executable = leaf.is_executable(features) && !old.is_some_and(|old| old.is_executable(features));
        if guest && executable && !features.dic && !data.icache {
            self.fail(at, Rule::IcacheStale);
        }
    }
}
