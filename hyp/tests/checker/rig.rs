//! A machine with three small trees, and the few steps that the examples are made of.
//!
//! Each tree starts at level 1 and has one table below another at index 1, so that entry `n` of
//! its last table translates page `n` of RAM's first 2 MiB; entry 1 of its level-2 table is the
//! second 2 MiB. The host owns pages 0..256 and has them mapped; the guest owns pages 256..512.

use hyp::addr::{Ipa, Pfn};
use hyp::hw::{
    CacheOps, CpuFeatures, Dsb, Event, MappedPage, Observe, PhysMem, Stage2Ctx, TableOwner, Tlb, Tlbi,
};
use hyp::lock::Rank;
use std::cell::Cell;
use std::sync::Arc;
use testkit::machine::{Config, RAM_BASE};
use testkit::{Cpu, Sim};

/// Normal write-back, RWX, without FWB.
pub(crate) const LEAF: u64 = 3 | 0b1111 << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10;
/// XN\[1\].
pub(crate) const XN: u64 = 1 << 54;
/// Store permission.
pub(crate) const W: u64 = 1 << 7;
/// Access flag.
pub(crate) const AF: u64 = 1 << 10;
/// The note of an entry that is being changed.
pub(crate) const LOCKED: u64 = 1 << 60;
/// The note of a page that went to guest 1.
pub(crate) const DONATED: u64 = 2 << 60 | 1 << 4 | 2 << 1;
/// EL2: normal memory, read-write, not executable.
pub(crate) const HYP_LEAF: u64 = 3 | 1 << 6 | 0b11 << 8 | 1 << 10 | XN;
/// VTCR_EL2: 39 bits, start at level 1, 40-bit PA.
pub(crate) const VTCR: u64 = 0x8002_3559;

pub(crate) struct Tree {
    pub(crate) owner: TableOwner,
    pub(crate) vmid: u16,
    pub(crate) root: Pfn,
    pub(crate) l2: Pfn,
    pub(crate) l3: Pfn,
}

impl Tree {
    pub(crate) fn ctx(&self) -> Stage2Ctx {
        Stage2Ctx { vttbr: u64::from(self.vmid) << 48 | self.root.base().raw(), vtcr: VTCR }
    }

    pub(crate) fn rank(&self) -> Rank {
        match self.owner {
            TableOwner::Hyp => Rank::HypS1,
            TableOwner::Host => Rank::HostS2,
            TableOwner::Guest(handle) => Rank::GuestS2(handle),
        }
    }
}

pub(crate) struct Rig {
    pub(crate) sim: Arc<Sim>,
    pub(crate) cpu: Cpu,
    pub(crate) other: Cpu,
    pub(crate) host: Tree,
    pub(crate) guest: Tree,
    pub(crate) hyp: Tree,
    next: Cell<u64>,
}

/// Address of entry `n` of a tree's last table.
pub(crate) fn ipa(n: usize) -> Ipa {
    Ipa::new(RAM_BASE + (n as u64) * 4096).unwrap()
}

pub(crate) fn table(page: Pfn) -> u64 {
    page.base().raw() | 3
}

pub(crate) fn page(page: Pfn, attrs: u64) -> u64 {
    page.base().raw() | attrs
}

/// The linear map's view of a page.
pub(crate) fn linear(page: Pfn) -> MappedPage {
    MappedPage::linear(page)
}

impl Rig {
    pub(crate) fn new(features: CpuFeatures) -> Self {
        let sim = Config { strict: false, ..Config::new(features) }.build();
        let (cpu, other) = (sim.cpu(0), sim.cpu(1));
        let next = Cell::new(8192);
        let tree = |owner, vmid| {
            let fresh = || {
                let page = sim.ram(next.get());
                next.set(next.get() + 1);
                page
            };
            Tree { owner, vmid, root: fresh(), l2: fresh(), l3: fresh() }
        };
        let (host, guest) = (tree(TableOwner::Host, 0), tree(TableOwner::Guest(1), 5));
        let hyp = tree(TableOwner::Hyp, 0);
        let rig = Self { sim, cpu, other, host, guest, hyp, next };
        rig.fill();
        rig
    }

    fn fill(&self) {
        for tree in [&self.host, &self.guest, &self.hyp] {
            let at = if tree.owner == TableOwner::Hyp { 2 } else { 1 };
            self.cpu.write_entry(tree.root, at, table(tree.l2));
            self.cpu.write_entry(tree.l2, 0, table(tree.l3));
        }
        for n in 0..512 {
            let page_n = self.ram(n);
            if n < 256 {
                self.cpu.write_entry(self.host.l3, n, self.leaf(n));
                self.cpu.write_entry(self.hyp.l3, n, page(page_n, HYP_LEAF));
            } else {
                self.cpu.write_entry(self.host.l3, n, DONATED | (n as u64) << 20);
                self.cpu.clean_to_poc(linear(page_n));
                self.cpu.invalidate_icache(linear(page_n));
                self.cpu.write_entry(self.guest.l3, n, self.leaf(n));
            }
        }
        // The linear map: one GiB.
        self.cpu.write_entry(self.hyp.root, 1, RAM_BASE | HYP_LEAF & !2);
        for tree in [&self.hyp, &self.host, &self.guest] {
            self.root(tree, tree.vmid);
        }
        assert_eq!(self.sim.violations(), []);
    }

    pub(crate) fn root(&self, tree: &Tree, vmid: u16) {
        self.cpu.observe(Event::Root { root: tree.root, pages: 1, level: 1, owner: tree.owner, vmid });
    }

    /// The root of a second guest without memory.
    pub(crate) fn empty_guest(&self, vmid: u16) -> Pfn {
        let root = self.fresh();
        self.cpu.observe(Event::Root { root, pages: 1, level: 1, owner: TableOwner::Guest(2), vmid });
        root
    }

    /// Invalidates everything of a VMID.
    pub(crate) fn flush(&self, root: Pfn, vmid: u16) {
        let ctx = Stage2Ctx { vttbr: u64::from(vmid) << 48 | root.base().raw(), vtcr: VTCR };
        self.dsb();
        let previous = self.cpu.enter_stage2(ctx);
        self.cpu.tlbi(Tlbi::CurrentVmid);
        self.dsb();
        self.cpu.leave_stage2(previous);
    }

    /// The `n`-th page of RAM.
    pub(crate) fn ram(&self, n: usize) -> Pfn {
        self.sim.ram(n as u64)
    }

    /// A page for a table.
    pub(crate) fn fresh(&self) -> Pfn {
        let page = self.sim.ram(self.next.get());
        self.next.set(self.next.get() + 1);
        page
    }

    /// The memory attributes of plain memory on this CPU.
    pub(crate) fn normal(&self) -> u64 {
        if self.sim.features().fwb { LEAF & !(0b1111 << 2) | 0b0110 << 2 } else { LEAF }
    }

    /// An RWX leaf to the `n`-th page of RAM.
    pub(crate) fn leaf(&self, n: usize) -> u64 {
        page(self.ram(n), self.normal())
    }

    pub(crate) fn lock(&self, tree: &Tree) {
        self.cpu.observe(Event::Lock { rank: tree.rank(), held: true });
    }

    pub(crate) fn unlock(&self, tree: &Tree) {
        self.cpu.observe(Event::Lock { rank: tree.rank(), held: false });
    }

    pub(crate) fn locked(&self, tree: &Tree, steps: impl FnOnce()) {
        self.lock(tree);
        steps();
        self.unlock(tree);
    }

    /// Runs `steps` with the tree's VMID installed.
    pub(crate) fn installed(&self, tree: &Tree, steps: impl FnOnce()) {
        let previous = self.cpu.enter_stage2(tree.ctx());
        steps();
        self.cpu.leave_stage2(previous);
    }

    pub(crate) fn dsb(&self) {
        self.cpu.dsb(Dsb::Ish);
    }

    pub(crate) fn tlbi_ipa(&self, n: usize, level: Option<u8>) {
        self.cpu.tlbi(Tlbi::Ipa { ipa: ipa(n), level });
    }

    /// The whole sequence for one address after its entry was written.
    pub(crate) fn invalidate(&self, tree: &Tree, n: usize, level: Option<u8>) {
        self.dsb();
        self.installed(tree, || {
            self.tlbi_ipa(n, level);
            self.dsb();
            self.cpu.tlbi(Tlbi::StageOneAndCombined);
            self.dsb();
        });
    }

    /// Takes entry `n` of the last table away for good.
    pub(crate) fn take(&self, tree: &Tree, n: usize, word: u64) {
        self.cpu.write_entry(tree.l3, n, word);
        self.invalidate(tree, n, None);
    }

    /// Writes a valid entry to an invalid one.
    pub(crate) fn make(&self, table: Pfn, n: usize, word: u64) {
        self.cpu.write_entry(table, n, word);
        self.cpu.dsb(Dsb::IshSt);
    }

    /// Takes page `n` from the host, up to the complete invalidation.
    pub(crate) fn take_from_host(&self, n: usize) {
        self.locked(&self.host, || self.take(&self.host, n, DONATED | (n as u64) << 20));
    }

    /// Takes page `n` from the guest, up to the complete invalidation.
    pub(crate) fn take_from_guest(&self, n: usize) {
        self.locked(&self.guest, || self.take(&self.guest, n, 0));
    }

    /// Gives page `n` to the tree's owner.
    pub(crate) fn give(&self, tree: &Tree, n: usize, word: u64) {
        self.locked(tree, || self.make(tree.l3, n, word));
    }
}
