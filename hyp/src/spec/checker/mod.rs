//! The checker: an automaton over hardware operations that knows which page is a table of whom,
//! what each live entry still needs before its old translation is gone, and how a page must be
//! prepared for its next owner.
//!
//! It sees operations, never intentions: roots come from [`Event::Root`], children from the
//! descriptors that are written, the owner of a table decides its lock. It knows descriptors from
//! the architecture, not from `pgtable`. Every rule is a [`Rule`], with an example that breaks it
//! in `hyp/tests/checker_*.rs`.
//!
//! Invariant: what it refuses once it forgets, so that one mistake is one [`Violation`]. It
//! allocates nothing; when it is full it says so by [`Rule::Capacity`].
//!
//! Limits: pages under a table that is removed with its root are not followed to their next
//! owner (their invalidation is), and stage-1 tables of the host and the guests are not seen.
#![forbid(unsafe_code)]

mod desc;
mod locks;
mod open;
mod pages;
mod rule;
mod tables;

pub use rule::{Rule, Violation};

use crate::addr::Pfn;
use crate::hw::{Dsb, Event, Machine, MappedPage, Stage2Ctx, TableOwner, Tlbi};
use arrayvec::ArrayVec;
use heapless::index_map::FnvIndexMap;
use locks::Held;
use open::{Open, Step, What};
use pages::Data;

/// CPUs that can be told apart.
pub const CPUS: usize = 32;
/// Roots at one time: the host, EL2 and the VMs.
pub const ROOTS: usize = 260;
/// Violations that are kept.
pub const KEPT: usize = 16;
/// Pages of guests that are written to at a time: one a CPU.
const PUT: usize = CPUS;
/// Window slots: two pages and a block a CPU.
const WINDOWS: usize = 3 * CPUS;

/// Which rules are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Tables only: for a test that maps pages without being their owner.
    Tables,
    /// Tables, and the way of pages from owner to owner.
    All,
}

/// What is known of a page.
#[derive(Clone, Copy, Debug)]
enum Page {
    Table(Role),
    /// Was a table; `Some` names the open entry that must be clean before it is used again.
    Retired(Option<u32>),
    Data(Data),
}

/// A live table.
#[derive(Clone, Copy, Debug)]
struct Role {
    owner: TableOwner,
    vmid: u16,
    level: u8,
    /// First address that it translates.
    base: u64,
}

#[derive(Clone, Copy, Debug)]
struct Root {
    first: u64,
    pages: u8,
    owner: TableOwner,
    vmid: u16,
    flush: Flush,
    /// Its owner can use allocation tags.
    tags: bool,
}

/// How far the invalidation of everything of a VMID is, since an entry was last made valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Needed,
    /// By this CPU, and no DSB yet.
    Issued(usize),
    Done,
}

/// An entry of EL2's own map that belongs to the CPU that first writes it, and to no lock.
#[derive(Clone, Copy, Debug)]
struct Window {
    table: u64,
    index: u16,
    cpu: Option<usize>,
}

#[derive(Clone, Debug)]
struct Cpu {
    installed: Option<Stage2Ctx>,
    before: Option<Stage2Ctx>,
    held: Held,
    /// Owners of live entries that were made valid with no DSB since.
    made: ArrayVec<TableOwner, 4>,
}

impl Cpu {
    const NEW: Self =
        Self { installed: None, before: None, held: Held::new_const(), made: ArrayVec::new_const() };
}

/// Where an operation took place, for the report.
#[derive(Clone, Copy, Debug)]
struct At {
    cpu: usize,
    page: u64,
    index: u16,
}

/// The automaton, with room for `PAGES` pages (a power of two) and `OPEN` entries at a time.
#[derive(Debug)]
pub struct Checker<const PAGES: usize, const OPEN: usize> {
    scope: Scope,
    roots: ArrayVec<Root, ROOTS>,
    pages: FnvIndexMap<u64, Page, PAGES>,
    open: ArrayVec<Open, OPEN>,
    cpus: [Cpu; CPUS],
    windows: ArrayVec<Window, WINDOWS>,
    /// Pages of guests to which EL2 wrote what they asked for, and that are not clean since.
    put: ArrayVec<At, PUT>,
    last_id: u32,
    violations: ArrayVec<Violation, KEPT>,
    count: u64,
}

impl<const PAGES: usize, const OPEN: usize> Checker<PAGES, OPEN> {
    /// A checker that has seen nothing; the size is known, so it can be a static.
    #[must_use]
    pub const fn new(scope: Scope) -> Self {
        Self {
            scope,
            roots: ArrayVec::new_const(),
            pages: FnvIndexMap::new(),
            open: ArrayVec::new_const(),
            cpus: [const { Cpu::NEW }; CPUS],
            windows: ArrayVec::new_const(),
            put: ArrayVec::new_const(),
            last_id: 0,
            violations: ArrayVec::new_const(),
            count: 0,
        }
    }

    /// The first violations, oldest first.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// How many violations there were in all.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Entries whose old translation may still be cached, or that hold a LOCKED note.
    #[must_use]
    pub fn open_entries(&self) -> usize {
        self.open.len()
    }

    /// Pages that are followed.
    #[must_use]
    pub fn tracked_pages(&self) -> usize {
        self.pages.len()
    }

    fn fail(&mut self, at: At, rule: Rule) {
        self.count = self.count.saturating_add(1);
        if let Ok(page) = Pfn::new(at.page) {
            // The first ones matter; later ones are often their consequence.
            let _ = self.violations.try_push(Violation { rule, cpu: at.cpu, page, index: at.index });
        }
    }

    fn cpu(&mut self, cpu: usize) -> Option<&mut Cpu> {
        if cpu >= CPUS {
            self.fail(At { cpu, page: 0, index: 0 }, Rule::Capacity);
        }
        self.cpus.get_mut(cpu)
    }

    fn set_page(&mut self, at: At, page: u64, what: Page) {
        if self.pages.insert(page, what).is_err() {
            self.fail(At { page, ..at }, Rule::Capacity);
        }
    }

    fn is_unclean(&self, id: u32) -> bool {
        self.open.iter().any(|open| open.id == id && !open.is_clean())
    }

    /// Told before `write_entry` stores `new`.
    pub fn on_write_entry<M: Machine>(&mut self, hw: &M, cpu: usize, page: Pfn, index: usize, new: u64) {
        let Ok(slot) = u16::try_from(index) else { return };
        let at = At { cpu, page: page.raw(), index: slot };
        match self.pages.get(&page.raw()).copied() {
            Some(Page::Table(role)) => {
                let old = hw.read_entry(page, index);
                self.write_live(hw, at, role, old, new);
            }
            _ => self.overwrite(hw, at, false),
        }
    }

    /// Told before `write_word`.
    pub fn on_write_word<M: Machine>(&mut self, hw: &M, cpu: usize, page: Pfn) {
        self.overwrite(hw, At { cpu, page: page.raw(), index: 0 }, false);
    }

    /// Told before `put_word`.
    pub fn on_put<M: Machine>(&mut self, hw: &M, cpu: usize, page: MappedPage, index: usize) {
        self.put(hw, At { cpu, page: page.pfn().raw(), index: u16::try_from(index).unwrap_or(0) });
    }

    /// Told before `get_word`.
    pub fn on_get<M: Machine>(&mut self, hw: &M, cpu: usize, page: MappedPage) {
        self.get(hw, At { cpu, page: page.pfn().raw(), index: 0 });
    }

    /// Told before `zero_page` fills `page`.
    pub fn on_fill<M: Machine>(&mut self, hw: &M, cpu: usize, page: MappedPage) {
        self.overwrite(hw, At { cpu, page: page.pfn().raw(), index: 0 }, true);
    }

    /// Told before `zero_tags`.
    pub fn on_tags<M: Machine>(&mut self, hw: &M, cpu: usize, page: MappedPage) {
        let at = At { cpu, page: page.pfn().raw(), index: 0 };
        self.overwrite(hw, at, false);
        self.tags_zeroed(at);
    }

    /// Told before `copy_page` fills `to`.
    pub fn on_copy<M: Machine>(&mut self, hw: &M, cpu: usize, from: MappedPage, to: MappedPage) {
        self.copied(At { cpu, page: from.pfn().raw(), index: 0 });
        self.on_copy_entries(hw, cpu, from, to);
    }

    /// Told before `copy_entries` fills `to`.
    pub fn on_copy_entries<M: Machine>(&mut self, hw: &M, cpu: usize, from: MappedPage, to: MappedPage) {
        self.on_read(hw, cpu, from.pfn());
        self.on_fill(hw, cpu, to);
    }

    /// Told before `read_entry`.
    pub fn on_read<M: Machine>(&mut self, hw: &M, cpu: usize, page: Pfn) {
        self.read(hw, At { cpu, page: page.raw(), index: 0 });
    }

    /// Told of a clean to PoC; `invalidate` if the page is invalidated too.
    pub fn on_clean<M: Machine>(&mut self, hw: &M, cpu: usize, page: MappedPage, invalidate: bool) {
        self.cleaned(hw, At { cpu, page: page.pfn().raw(), index: 0 }, invalidate);
    }

    /// Told of instruction cache maintenance.
    pub fn on_icache<M: Machine>(&mut self, hw: &M, cpu: usize, page: MappedPage) {
        self.icache_invalidated(hw, At { cpu, page: page.pfn().raw(), index: 0 });
    }

    /// Told of a data synchronisation barrier, before it takes place.
    pub fn on_dsb(&mut self, cpu: usize, scope: Dsb) {
        self.open.iter_mut().for_each(|open| open.dsb(cpu, scope));
        if let Some(state) = self.cpu(cpu)
            && scope != Dsb::Nsh
        {
            state.made.clear();
        }
        for root in &mut self.roots {
            if scope == Dsb::Ish && root.flush == Flush::Issued(cpu) {
                root.flush = Flush::Done;
            }
        }
        self.settle();
    }

    /// Told of TLB maintenance.
    pub fn on_tlbi<M: Machine>(&mut self, hw: &M, cpu: usize, op: Tlbi) {
        let features = hw.features();
        if matches!(op, Tlbi::IpaRange { .. }) && !features.tlbi_range {
            self.fail(At { cpu, page: 0, index: 0 }, Rule::Undefined);
        }
        let vmid = self.cpu(cpu).and_then(|state| state.installed).map(Stage2Ctx::vmid);
        self.open.iter_mut().for_each(|open| open.tlbi(cpu, vmid, op, features));
        for root in self.roots.iter_mut().filter(|root| root.owner != TableOwner::Hyp) {
            let mine = op == Tlbi::CurrentVmid && vmid == Some(root.vmid);
            if (mine || op == Tlbi::AllVmids) && root.flush == Flush::Needed {
                root.flush = Flush::Issued(cpu);
            }
        }
    }

    /// Told that `target` is installed in place of `previous`.
    pub fn on_enter(&mut self, cpu: usize, target: Stage2Ctx, previous: Stage2Ctx) {
        let (root, vmid) = (root_of(target), target.vmid());
        let live = self.roots.iter().any(|r| r.owner != TableOwner::Hyp && r.first == root && r.vmid == vmid);
        let dying = self.open.iter().any(|o| o.what == What::Root && o.table == root && o.vmid == vmid);
        if !live && !dying {
            self.fail(At { cpu, page: root, index: 0 }, Rule::SwitchWrongVmid);
        }
        if let Some(state) = self.cpu(cpu) {
            state.before = Some(previous);
            state.installed = Some(target);
        }
    }

    /// Told that this CPU goes on in `target`: a guest is entered, or the host again.
    pub fn on_switch(&mut self, cpu: usize, target: Stage2Ctx) {
        self.on_enter(cpu, target, target);
        if let Some(state) = self.cpu(cpu) {
            state.before = None;
        }
    }

    /// Told that `previous` is put back.
    pub fn on_leave(&mut self, cpu: usize, previous: Stage2Ctx) {
        let Some(state) = self.cpu(cpu) else { return };
        state.installed = Some(previous);
        if state.before.take() != Some(previous) {
            self.fail(At { cpu, page: root_of(previous), index: 0 }, Rule::SwitchWrongVmid);
        }
    }

    /// Told of what no operation shows.
    pub fn on_event<M: Machine>(&mut self, hw: &M, cpu: usize, event: Event) {
        match event {
            Event::Root { root, pages, level, owner, vmid } => {
                let new = Root { first: root.raw(), pages, owner, vmid, flush: Flush::Needed, tags: false };
                self.root(hw, At { cpu, page: root.raw(), index: 0 }, new, level);
            }
            Event::UsesTags { root } => {
                for known in self.roots.iter_mut().filter(|known| known.first == root.raw()) {
                    known.tags = true;
                }
            }
            Event::RootGone { root } => self.root_gone(hw, At { cpu, page: root.raw(), index: 0 }),
            Event::Window { table, index } => {
                let index = u16::try_from(index).unwrap_or(u16::MAX);
                let at = At { cpu, page: table.raw(), index };
                if self.windows.try_push(Window { table: table.raw(), index, cpu: None }).is_err() {
                    self.fail(at, Rule::Capacity);
                }
            }
            Event::TableFreed { page } => self.freed(At { cpu, page: page.raw(), index: 0 }),
            Event::Lock { rank, held: true } => self.locked(cpu, rank),
            Event::Lock { rank, held: false } => self.unlocked(cpu, rank),
        }
    }

    fn root<M: Machine>(&mut self, hw: &M, at: At, new: Root, level: u8) {
        let hyp = new.owner == TableOwner::Hyp;
        if hyp && new.vmid != 0 {
            self.fail(at, Rule::HypVmid);
        }
        if !new.pages.is_power_of_two() || new.first & u64::from(new.pages).saturating_sub(1) != 0 {
            self.fail(at, Rule::Malformed);
        }
        if !hyp && self.roots.iter().any(|r| r.owner != TableOwner::Hyp && r.vmid == new.vmid) {
            self.fail(at, Rule::VmidOverlap);
        }
        if !hyp && self.open.iter().any(|o| o.what == What::Root && o.vmid == new.vmid && !o.is_clean()) {
            self.fail(at, Rule::VmidReusedBeforeInvalidation);
        }
        if self.roots.try_push(new).is_err() {
            self.fail(at, Rule::Capacity);
        }
        let span = desc::span(level.saturating_sub(1));
        let (mut table, mut base) = (new.first, 0u64);
        for _ in 0..new.pages {
            self.link(
                hw,
                At { page: table, ..at },
                Role { owner: new.owner, vmid: new.vmid, level, base },
                None,
            );
            table = table.saturating_add(1);
            base = base.saturating_add(span);
        }
    }

    /// A tree ends clean if it holds nothing valid and its VMID was invalidated since it last did;
    /// otherwise its pages and its VMID wait for that.
    fn root_gone<M: Machine>(&mut self, hw: &M, at: At) {
        let Some(position) = self.roots.iter().position(|r| r.first == at.page) else { return };
        let root = self.roots.remove(position);
        let Some(Page::Table(role)) = self.pages.get(&root.first).copied() else { return };
        let tables = || (root.first..).zip(0..root.pages).map(|(table, _)| table);
        let empty = tables().all(|table| tables::is_empty(hw, role, table));
        let id = self.open(at, role, 0, What::Root);
        tables().for_each(|table| self.unlink(hw, at, role.owner, role.level, table, id));
        if empty && root.flush == Flush::Done {
            if let Some(open) = self.open.last_mut() {
                open.step = Step::Clean;
            }
            self.settle();
        }
    }

    fn open(&mut self, at: At, role: Role, old: u64, what: What) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let base = role.base.saturating_add(u64::from(at.index).saturating_mul(desc::span(role.level)));
        let entry =
            Open::new(id, at.cpu, (at.page, at.index), (role.owner, role.vmid), role.level, base, old, what);
        if self.open.try_push(entry).is_err() {
            self.fail(at, Rule::Capacity);
        }
        id
    }

    /// Forgets entries that are clean, and lets go of the tables that waited for them.
    fn settle(&mut self) {
        if !self.open.iter().any(|open| open.step == Step::Clean && !open.locked) {
            return;
        }
        let open = &self.open;
        for page in self.pages.values_mut() {
            if let Page::Retired(Some(id)) = page
                && !open.iter().any(|o| o.id == *id && !o.is_clean())
            {
                *page = Page::Retired(None);
            }
        }
        self.open.retain(|open| !open.is_clean() || open.locked);
    }
}

/// The frame of the root that `ctx` names.
const fn root_of(ctx: Stage2Ctx) -> u64 {
    (ctx.vttbr & 0x0000_ffff_ffff_fffe) >> 12
}
