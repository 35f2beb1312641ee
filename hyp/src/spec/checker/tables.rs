//! Live tables: who they belong to, and what may be written to them.
#![forbid(unsafe_code)]

use super::desc::{self, Change, Kind, Leaf, classify};
use super::locks::rank_of;
use super::open::{Open, What};
use super::pages::Range;
use super::rule::Rule;
use super::{At, Checker, Flush, Page, Role};
use crate::addr::Pfn;
use crate::hw::{ENTRIES, Machine, PhysMem, TableOwner};

/// The 512 words of a table page.
fn words<M: PhysMem>(hw: &M, table: u64) -> impl Iterator<Item = (u16, u64)> {
    let page = Pfn::new(table).ok();
    (0u16..).zip(0..ENTRIES).filter_map(move |(slot, index)| Some((slot, hw.read_entry(page?, index))))
}

/// Calls `visit` for every leaf below a table of `level`, and `enter` for the table itself and
/// every one under it.
///
/// It goes three tables down at most: [`classify`] knows no table at level 3.
fn subtree<M: PhysMem>(
    hw: &M,
    owner: TableOwner,
    level: u8,
    table: u64,
    visit: &mut impl FnMut(Leaf),
    enter: &mut impl FnMut(u64),
) {
    enter(table);
    for (_, raw) in words(hw, table) {
        match classify(raw, level, owner) {
            Kind::Table(child) => subtree(hw, owner, level.saturating_add(1), child, visit, enter),
            Kind::Leaf(leaf) => visit(leaf),
            Kind::Invalid | Kind::Reserved => {}
        }
    }
}

/// True if no word of the table is valid.
pub(super) fn is_empty<M: PhysMem>(hw: &M, role: Role, table: u64) -> bool {
    words(hw, table).all(|(_, raw)| classify(raw, role.level, role.owner) == Kind::Invalid)
}

/// True if what `open` took away may still lead to one of `pages`.
pub(super) fn may_reach<M: PhysMem>(hw: &M, open: &Open, pages: Range) -> bool {
    if open.is_clean() {
        return false;
    }
    let mut reaches = false;
    let mut visit = |leaf: Leaf| reaches |= leaf.covers(pages.first, pages.nr);
    match (open.what, classify(open.old, open.level, open.owner)) {
        (_, Kind::Leaf(leaf)) => visit(leaf),
        (What::FullTable, Kind::Table(table)) => {
            subtree(hw, open.owner, open.level.saturating_add(1), table, &mut visit, &mut |_| {});
        }
        (What::Root, _) => subtree(hw, open.owner, open.level, open.table, &mut visit, &mut |_| {}),
        _ => {}
    }
    reaches
}

/// What `open`'s old entry translated `ia` to: the page, and the leaf it came from.
pub(super) fn old_translation<M: PhysMem>(hw: &M, open: &Open, ia: u64) -> Option<(u64, Leaf)> {
    let (mut raw, mut level) = (open.old, open.level);
    loop {
        match classify(raw, level, open.owner) {
            Kind::Leaf(leaf) => {
                let offset = (ia & desc::span(level).wrapping_sub(1)) >> crate::addr::PAGE_SHIFT;
                return Some((leaf.first().saturating_add(offset), leaf));
            }
            Kind::Table(table) => {
                level = level.saturating_add(1);
                let index = ia >> desc::span(level).trailing_zeros() & 511;
                raw = hw.read_entry(Pfn::new(table).ok()?, usize::try_from(index).ok()?);
            }
            Kind::Invalid | Kind::Reserved => return None,
        }
    }
}

impl<const PAGES: usize, const OPEN: usize> Checker<PAGES, OPEN> {
    pub(super) fn write_live<M: Machine>(&mut self, hw: &M, at: At, role: Role, old: u64, new: u64) {
        if !self.may_write(at, role) {
            self.fail(at, Rule::UnlockedWrite);
        }
        let before = classify(old, role.level, role.owner);
        let after = self.checked(hw, at, role, new);
        match (before, after) {
            (_, Kind::Invalid) => self.taken(hw, at, role, old, before, new),
            (Kind::Invalid | Kind::Reserved, _) => self.made(hw, at, role, after),
            (Kind::Leaf(a), Kind::Leaf(b)) => match a.change(b, hw.features()) {
                Change::Breaks => self.replaced(hw, at, role, old, before, after),
                change => self.altered(hw, at, role, a, b, change),
            },
            (Kind::Table(a), Kind::Table(b)) if a == b => {}
            _ => self.replaced(hw, at, role, old, before, after),
        }
    }

    /// True if the CPU holds the table's lock, or the entry is its window.
    fn may_write(&mut self, at: At, role: Role) -> bool {
        let window = self.windows.iter_mut().find(|w| w.table == at.page && w.index == at.index);
        match window {
            Some(window) => *window.cpu.get_or_insert(at.cpu) == at.cpu,
            None => self.holds(at.cpu, rank_of(role.owner)),
        }
    }

    /// Decodes a word that is about to be live.
    fn checked<M: Machine>(&mut self, hw: &M, at: At, role: Role, raw: u64) -> Kind {
        let kind = classify(raw, role.level, role.owner);
        let malformed = match kind {
            Kind::Invalid => false,
            Kind::Reserved => true,
            Kind::Table(_) => desc::table_malformed(raw, hw.features()),
            Kind::Leaf(leaf) => leaf.is_malformed(hw.features()),
        };
        if malformed {
            self.fail(at, Rule::Malformed);
        }
        kind
    }

    /// Valid to something else valid that the TLB could mix up.
    fn replaced<M: Machine>(&mut self, hw: &M, at: At, role: Role, old: u64, before: Kind, after: Kind) {
        self.fail(at, Rule::NoBreakBeforeMake);
        self.taken(hw, at, role, old, before, 0);
        self.open.retain(|open| !(open.table == at.page && open.index == at.index));
        self.made(hw, at, role, after);
    }

    /// Same translation, other permissions or software bits.
    fn altered<M: Machine>(&mut self, hw: &M, at: At, role: Role, old: Leaf, new: Leaf, change: Change) {
        let features = hw.features();
        if change == Change::Restricts {
            self.close(at);
            self.open(at, role, old.raw, What::Leaf);
        } else if new.is_executable(features) && !old.is_executable(features) {
            let ia = role.base.saturating_add(u64::from(at.index).saturating_mul(desc::span(role.level)));
            self.given(hw, at, role, new, ia, None);
        }
    }

    /// The entry is invalid after the write.
    fn taken<M: Machine>(&mut self, hw: &M, at: At, role: Role, old: u64, before: Kind, new: u64) {
        let locked = desc::is_locked(new);
        if old & 1 != 0 {
            self.close(at);
        }
        match before {
            Kind::Leaf(leaf) => {
                self.open(at, role, old, What::Leaf);
                self.leaf_left(at, role, leaf);
            }
            Kind::Table(table) => {
                let level = role.level.saturating_add(1);
                let mut leaves = 0u32;
                subtree(
                    hw,
                    role.owner,
                    level,
                    table,
                    &mut |_| leaves = leaves.saturating_add(1),
                    &mut |_| {},
                );
                let what = if leaves == 0 { What::EmptyTable } else { What::FullTable };
                let id = self.open(at, role, old, what);
                if level == 3 {
                    words(hw, table).for_each(|(_, raw)| {
                        if let Kind::Leaf(leaf) = classify(raw, level, role.owner) {
                            self.leaf_left(at, role, leaf);
                        }
                    });
                }
                self.unlink(hw, at, role.owner, level, table, id);
            }
            Kind::Invalid | Kind::Reserved => {}
        }
        match self.open.iter_mut().find(|o| o.table == at.page && o.index == at.index) {
            Some(open) => open.locked = locked,
            None if locked => {
                self.open(at, role, 0, What::Leaf);
                if let Some(open) = self.open.last_mut() {
                    (open.locked, open.step) = (true, super::Step::Clean);
                }
            }
            None => {}
        }
        self.settle();
        if role.owner == TableOwner::Host && role.level == 3 && desc::is_host_donated(new) {
            // The host's map is the identity.
            let page = role.base.saturating_add(u64::from(at.index) << 12) >> 12;
            self.donated(at, page);
        }
    }

    /// The entry was invalid and is valid after the write.
    fn made<M: Machine>(&mut self, hw: &M, at: At, role: Role, after: Kind) {
        let replaced = self.open.iter().position(|o| o.table == at.page && o.index == at.index);
        let replaced = replaced.map(|position| self.open.swap_remove(position));
        if let Some(rule) = replaced.as_ref().and_then(Open::missing) {
            self.fail(at, rule);
        }
        for root in self.roots.iter_mut().filter(|r| r.vmid == role.vmid && r.owner == role.owner) {
            root.flush = Flush::Needed;
        }
        let base = role.base.saturating_add(u64::from(at.index).saturating_mul(desc::span(role.level)));
        match after {
            Kind::Table(table) => {
                let child = Role { level: role.level.saturating_add(1), base, ..role };
                self.link(hw, At { page: table, ..at }, child, replaced.as_ref());
            }
            Kind::Leaf(leaf) => self.given(hw, at, role, leaf, base, replaced.as_ref()),
            Kind::Invalid | Kind::Reserved => {}
        }
        if let Some(state) = self.cpu(at.cpu)
            && !state.made.contains(&role.owner)
            && state.made.try_push(role.owner).is_err()
        {
            self.fail(at, Rule::Capacity);
        }
        self.settle();
    }

    /// Drops what was still open of an entry that is taken away once more.
    fn close(&mut self, at: At) {
        self.open.retain(|open| !(open.table == at.page && open.index == at.index));
    }

    /// The table `at.page` and all below it become live.
    pub(super) fn link<M: Machine>(&mut self, hw: &M, at: At, role: Role, replaced: Option<&Open>) {
        match self.pages.get(&at.page).copied() {
            Some(Page::Table(_)) => {
                self.fail(at, Rule::LinkedTwice);
                return;
            }
            Some(Page::Retired(Some(id))) if self.is_unclean(id) => {
                self.fail(at, Rule::ReusedBeforeInvalidation)
            }
            _ => {}
        }
        let page = Range { first: at.page, nr: 1 };
        if self.open.iter().any(|open| may_reach(hw, open, page)) {
            self.fail(at, Rule::HandedOverBeforeTlbi);
        }
        self.set_page(at, at.page, Page::Table(role));
        for (index, raw) in words(hw, at.page) {
            let base = role.base.saturating_add(u64::from(index).saturating_mul(desc::span(role.level)));
            let entry = At { index, ..at };
            match self.checked(hw, entry, role, raw) {
                Kind::Table(table) => {
                    let child = Role { level: role.level.saturating_add(1), base, ..role };
                    self.link(hw, At { page: table, ..entry }, child, replaced);
                }
                Kind::Leaf(leaf) => self.given(hw, entry, role, leaf, base, replaced),
                Kind::Invalid | Kind::Reserved => {}
            }
        }
    }

    /// The table and all below it wait for the open entry `id`.
    pub(super) fn unlink<M: Machine>(
        &mut self,
        hw: &M,
        at: At,
        owner: TableOwner,
        level: u8,
        table: u64,
        id: u32,
    ) {
        subtree(hw, owner, level, table, &mut |_| {}, &mut |page| {
            self.set_page(at, page, Page::Retired(Some(id)));
        });
    }

    /// The page goes back to its pool.
    pub(super) fn freed(&mut self, at: At) {
        match self.pages.get(&at.page).copied() {
            Some(Page::Table(_)) => {
                self.fail(at, Rule::FreedWhileReachable);
                return;
            }
            Some(Page::Retired(Some(id))) if self.is_unclean(id) => {
                self.fail(at, Rule::FreedBeforeInvalidation)
            }
            _ => {}
        }
        if self.open.iter().any(|o| o.table == at.page && !o.is_clean() && o.what != What::Root) {
            self.fail(at, Rule::FreedBeforeInvalidation);
        }
        self.open.retain(|open| open.table != at.page || open.what == What::Root);
        self.pages.remove(&at.page);
    }
}
