//! The translation side of the machine: a TLB for each CPU that forgets only what it must, table
//! walkers that see a store late, and TLB maintenance that takes effect late.
//!
//! A test asks what a CPU *can* reach, so a walk does not take one way but all: from the root,
//! from every table descriptor that is cached, over the new and the old value of an entry whose
//! store no DSB has ordered. All that it meets may be cached from then on.
//!
//! What is kept, and what removes it (Arm ARM D8.17, "TLB maintenance instructions"):
//!
//! | cached | tagged by | removed by |
//! |---|---|---|
//! | stage-2 table descriptor | VMID | IPAS2E1IS of an IPA under it without level hint, VMALLS12E1IS, ALLE1IS |
//! | stage-2 leaf | VMID | IPAS2E1IS with its level or without hint, VMALLS12E1IS, ALLE1IS |
//! | combined stage 1 and 2 | VMID | VMALLE1IS, VMALLS12E1IS, ALLE1IS |
//! | EL2 table descriptor or leaf | - | VAE2IS likewise, ALLE2IS |
#![forbid(unsafe_code)]

use crate::memory::Memory;
use crate::walk::{Descriptor, Shape, descriptor, index, size, stage2_leaf};
use hyp::hw::{CpuFeatures, Dsb, Stage2Ctx, Tlbi};
use std::collections::BTreeSet;

/// A way to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach {
    /// The frame.
    pub page: u64,
    /// The leaf descriptor that leads there.
    pub word: u64,
    /// Its level.
    pub level: u8,
    /// Where the CPU has it from.
    pub via: Via,
}

/// Where a translation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// A walk from the root.
    Walk,
    /// A walk from a cached table descriptor.
    WalkCache,
    /// A cached stage-2 leaf.
    Leaf,
    /// A cached combination of stage 1 and stage 2.
    Combined,
}

/// What a CPU does with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch at EL1.
    Fetch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Table,
    Leaf,
    Combined,
    Hyp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cached {
    kind: Kind,
    vmid: u16,
    base: u64,
    level: u8,
    word: u64,
}

impl Cached {
    fn covers(&self, ia: u64) -> bool {
        self.base <= ia && ia - self.base < size(self.level)
    }

    fn overlaps(&self, start: u64, len: u64) -> bool {
        start < self.base + size(self.level) && self.base < start + len
    }

    /// True if `op`, issued under `vmid`, must remove it.
    fn goes(&self, op: Tlbi, vmid: Option<u16>, features: &CpuFeatures) -> bool {
        let mine = vmid == Some(self.vmid);
        // Without FEAT_TTL there are no hints; with one only leaves of that level must go.
        let hinted = |level: Option<u8>, leaf: bool| match level.filter(|_| features.ttl) {
            Some(level) => leaf && level == self.level,
            None => true,
        };
        let stage2 = |start: u64, len: u64, level: Option<u8>| {
            matches!(self.kind, Kind::Table | Kind::Leaf)
                && mine
                && self.overlaps(start, len)
                && hinted(level, self.kind == Kind::Leaf)
        };
        match op {
            Tlbi::Ipa { ipa, level } => stage2(ipa.raw() & !0xfff, 4096, level),
            Tlbi::IpaRange { ipa, scale, num, level } => {
                stage2(ipa.raw() & !0xfff, (u64::from(num) + 1) << (5 * u32::from(scale) + 1 + 12), level)
            }
            Tlbi::StageOneAndCombined => self.kind == Kind::Combined && mine,
            Tlbi::CurrentVmid => self.kind != Kind::Hyp && mine,
            Tlbi::AllVmids => self.kind != Kind::Hyp,
            Tlbi::Hyp { va, level } => {
                let leaf = matches!(descriptor(self.word, self.level), Descriptor::Leaf(_));
                self.kind == Kind::Hyp && self.overlaps(va.raw() & !0xfff, 4096) && hinted(level, leaf)
            }
            Tlbi::AllHyp => self.kind == Kind::Hyp,
        }
    }
}

/// A descriptor in a TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// First address that it translates.
    pub base: u64,
    /// Level.
    pub level: u8,
    /// The word as it was read.
    pub word: u64,
}

/// A store that walkers may not have seen.
#[derive(Clone, Copy, Debug)]
struct Late {
    page: u64,
    index: usize,
    old: u64,
}

#[derive(Debug, Default)]
struct Pe {
    tlb: BTreeSet<Cached>,
    stores: Vec<Late>,
    issued: Vec<(Tlbi, Option<u16>)>,
    installed: Option<Stage2Ctx>,
}

/// Addresses that every CPU keeps touching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spied {
    Stage2(Stage2Ctx, u64),
    Hyp(u64),
}

#[derive(Debug)]
pub(crate) struct Mmu {
    cpus: Vec<Pe>,
    spied: Vec<Spied>,
    hyp: Option<Shape>,
    features: CpuFeatures,
}

/// The tables that a walk goes through.
#[derive(Clone, Copy)]
struct Space {
    shape: Shape,
    vmid: u16,
    hyp: bool,
}

impl Mmu {
    pub(crate) fn new(features: CpuFeatures, cpus: usize) -> Self {
        let cpus = (0..cpus).map(|_| Pe::default()).collect();
        Self { cpus, spied: Vec::new(), hyp: None, features }
    }

    pub(crate) fn set_hyp(&mut self, shape: Shape) {
        self.hyp = Some(shape);
    }

    pub(crate) fn has_hyp(&self) -> bool {
        self.hyp.is_some()
    }

    pub(crate) fn spy(&mut self, ctx: Stage2Ctx, ipa: u64) {
        self.spied.push(Spied::Stage2(ctx, ipa));
    }

    pub(crate) fn spy_hyp(&mut self, va: u64) {
        self.spied.push(Spied::Hyp(va));
    }

    pub(crate) fn unspy(&mut self, vmid: Option<u16>) {
        self.spied
            .retain(|s| !matches!(s, Spied::Stage2(ctx, _) if vmid.is_none_or(|vmid| ctx.vmid() == vmid)));
        self.spied.retain(|s| vmid.is_some() || !matches!(s, Spied::Hyp(_)));
    }

    pub(crate) fn installed(&self, cpu: usize) -> Option<Stage2Ctx> {
        self.cpus[cpu].installed
    }

    pub(crate) fn install(&mut self, cpu: usize, ctx: Stage2Ctx) {
        self.cpus[cpu].installed = Some(ctx);
    }

    /// `cpu` is about to store over `old`.
    pub(crate) fn store(&mut self, cpu: usize, page: u64, index: usize, old: u64) {
        self.cpus[cpu].stores.push(Late { page, index, old });
    }

    pub(crate) fn tlbi(&mut self, cpu: usize, op: Tlbi) {
        let vmid = self.cpus[cpu].installed.map(Stage2Ctx::vmid);
        self.cpus[cpu].issued.push((op, vmid));
    }

    /// The latest order the architecture allows: maintenance that was issued takes effect at the
    /// DSB, in any order, and before stores that the DSB orders become visible.
    pub(crate) fn dsb(&mut self, memory: &Memory, cpu: usize, scope: Dsb) {
        match scope {
            Dsb::IshSt => self.cpus[cpu].stores.clear(),
            Dsb::Nsh => {
                // Only this CPU's own TLB is sure to have heard.
                for (op, vmid) in self.cpus[cpu].issued.clone() {
                    self.remove(cpu, op, vmid);
                }
            }
            Dsb::Ish => {
                let mut issued = std::mem::take(&mut self.cpus[cpu].issued);
                // Backwards: two that no DSB separates may be done in either order, and the
                // other way round is what a combined entry survives.
                issued.reverse();
                for (op, vmid) in issued {
                    (0..self.cpus.len()).for_each(|other| self.remove(other, op, vmid));
                    self.run_spies(memory);
                }
                self.cpus[cpu].stores.clear();
            }
        }
        self.run_spies(memory);
    }

    /// What any CPU remembers of a VMID, or of EL2's own map.
    pub(crate) fn remembered(&self, space: Option<u16>) -> Vec<Remembered> {
        let mine = |c: &&Cached| match space {
            Some(vmid) => c.kind != Kind::Hyp && c.vmid == vmid,
            None => c.kind == Kind::Hyp,
        };
        let cached: BTreeSet<Cached> =
            self.cpus.iter().flat_map(|pe| pe.tlb.iter().filter(mine)).copied().collect();
        cached.into_iter().map(|Cached { base, level, word, .. }| Remembered { base, level, word }).collect()
    }

    /// True if any CPU remembers `page` as a table.
    pub(crate) fn remembers_table(&self, page: u64) -> bool {
        let leads = |c: &Cached| descriptor(c.word, c.level) == Descriptor::Table(page);
        self.cpus.iter().any(|pe| pe.tlb.iter().any(leads))
    }

    fn remove(&mut self, cpu: usize, op: Tlbi, vmid: Option<u16>) {
        let features = self.features;
        self.cpus[cpu].tlb.retain(|cached| !cached.goes(op, vmid, &features));
    }

    pub(crate) fn run_spies(&mut self, memory: &Memory) {
        for spied in self.spied.clone() {
            for cpu in 0..self.cpus.len() {
                match spied {
                    Spied::Stage2(ctx, ipa) => drop(self.touch(memory, cpu, ctx, ipa)),
                    Spied::Hyp(va) => drop(self.touch_hyp(memory, cpu, va)),
                }
            }
        }
    }

    /// All that `cpu` can reach at `ipa`, and then remembers.
    pub(crate) fn touch(&mut self, memory: &Memory, cpu: usize, ctx: Stage2Ctx, ipa: u64) -> BTreeSet<Reach> {
        match Shape::of_stage2(ctx, &self.features) {
            Some(shape) => self.explore(memory, cpu, Space { shape, vmid: ctx.vmid(), hyp: false }, ipa),
            None => BTreeSet::new(),
        }
    }

    /// All that `cpu` can reach at EL2 address `va`, and then remembers.
    pub(crate) fn touch_hyp(&mut self, memory: &Memory, cpu: usize, va: u64) -> BTreeSet<Reach> {
        match self.hyp {
            Some(shape) => self.explore(memory, cpu, Space { shape, vmid: 0, hyp: true }, va),
            None => BTreeSet::new(),
        }
    }

    fn explore(&mut self, memory: &Memory, cpu: usize, space: Space, ia: u64) -> BTreeSet<Reach> {
        let mut reached = BTreeSet::new();
        let mut met = BTreeSet::new();
        let table = if space.hyp { Kind::Hyp } else { Kind::Table };
        if let Some((root, slot)) = space.shape.first(ia) {
            self.descend(
                memory,
                space,
                ia,
                (root, slot, space.shape.start),
                Via::Walk,
                &mut reached,
                &mut met,
            );
        }
        let cached = self.cpus[cpu].tlb.iter().filter(|c| c.vmid == space.vmid && c.covers(ia));
        for c in cached {
            let hyp = c.kind == Kind::Hyp;
            match descriptor(c.word, c.level) {
                Descriptor::Table(next) if c.kind == table => {
                    let at = (next, index(ia, c.level + 1), c.level + 1);
                    self.descend(memory, space, ia, at, Via::WalkCache, &mut reached, &mut met);
                }
                Descriptor::Leaf(_) if hyp == space.hyp => {
                    let via = if c.kind == Kind::Combined { Via::Combined } else { Via::Leaf };
                    self.leaf(space, ia, (c.word, c.level), via, &mut reached, &mut met);
                }
                _ => {}
            }
        }
        self.cpus[cpu].tlb.extend(met);
        reached
    }

    /// Goes on from a table, over every value that a walker may see in it.
    #[expect(clippy::too_many_arguments, reason = "one walk, and where it writes down what it meets")]
    fn descend(
        &self,
        memory: &Memory,
        space: Space,
        ia: u64,
        (table, slot, level): (u64, usize, u8),
        via: Via,
        reached: &mut BTreeSet<Reach>,
        met: &mut BTreeSet<Cached>,
    ) {
        if !memory.contains(table) {
            return;
        }
        let late = self.cpus.iter().flat_map(|pe| &pe.stores).filter(|l| l.page == table && l.index == slot);
        let values: BTreeSet<u64> = late.map(|l| l.old).chain([memory.read(table, slot)]).collect();
        for word in values {
            match descriptor(word, level) {
                Descriptor::Invalid => {}
                Descriptor::Table(next) => {
                    let kind = if space.hyp { Kind::Hyp } else { Kind::Table };
                    met.insert(Cached { kind, vmid: space.vmid, base: ia & !(size(level) - 1), level, word });
                    self.descend(
                        memory,
                        space,
                        ia,
                        (next, index(ia, level + 1), level + 1),
                        via,
                        reached,
                        met,
                    );
                }
                Descriptor::Leaf(_) => self.leaf(space, ia, (word, level), via, reached, met),
            }
        }
    }

    fn leaf(
        &self,
        space: Space,
        ia: u64,
        (word, level): (u64, u8),
        via: Via,
        reached: &mut BTreeSet<Reach>,
        met: &mut BTreeSet<Cached>,
    ) {
        // An entry whose access flag is clear faults, and is never cached.
        let Descriptor::Leaf(first) = descriptor(word, level) else { return };
        if !stage2_leaf(word, &self.features).accessed {
            return;
        }
        let base = ia & !(size(level) - 1);
        reached.insert(Reach { page: first + ((ia - base) >> 12), word, level, via });
        let kinds: &[Kind] = match (space.hyp, via) {
            (true, _) => &[Kind::Hyp],
            (false, Via::Combined) => &[],
            (false, _) => &[Kind::Leaf, Kind::Combined],
        };
        met.extend(kinds.iter().map(|&kind| Cached { kind, vmid: space.vmid, base, level, word }));
    }
}
