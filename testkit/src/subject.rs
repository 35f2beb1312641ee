//! The two regimes as the harness sees them: how to ask for something, and how what came of it
//! looks to the hardware, from the design's tables and the architecture's, not from `pgtable`'s.
#![forbid(unsafe_code)]

use crate::action::{Attributes, Edit, NoteChoice};
use crate::machine::{Cpu, Sim};
use crate::mmu::Reach;
use crate::model::Advance;
use crate::pool::TestPool;
use crate::walk::{self, Memory, Shape};
use hyp::addr::{AddrError, Gfn, IpaRange, Pfn, VaRange};
use hyp::hw::{CpuFeatures, TableOwner};
use hyp::lock::Rank;
use hyp::pgtable::{
    Access, Change, Error, Geometry, HypAttrs, HypMem, HypNote, HypProt, HypStage1, LeafState, Level,
    MAIR_EL2, MemType, Note, NoteKinds, Owner, PendingState, Prot, Regime, Ripas, S2Attrs, Stage2,
    Stage2Config, Stage2Format, Table, TagControl,
};
use std::collections::BTreeSet;

/// What the hardware makes of a leaf, in terms of both regimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Loads allowed.
    pub read: bool,
    /// Stores allowed.
    pub write: bool,
    /// Fetches allowed.
    pub exec: bool,
    /// Access flag.
    pub accessed: bool,
    /// Memory type and tags, as a word of the regime's own.
    pub memory: u32,
    /// The software's bits.
    pub software: u8,
}

impl Seen {
    /// True if a TLB may still hold `old` where `self` stands: nothing is allowed that is not now.
    #[must_use]
    pub fn tolerates(self, old: Self) -> bool {
        let subset = |old: bool, new: bool| new || !old;
        subset(old.read, self.read)
            && subset(old.write, self.write)
            && subset(old.exec, self.exec)
            && self.accessed
            && old.memory == self.memory
    }
}

/// What a machine has one table of, for a test.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Shape.
    pub geometry: Geometry,
    /// Whose it is.
    pub owner: TableOwner,
    /// VMID; 0 for EL2.
    pub vmid: u16,
    /// Stage 2: what is done about tags.
    pub tags: TagControl,
}

impl Setup {
    /// Tables of every kind and shape that fits a CPU: the host's, guests' with every start level
    /// and number of concatenated roots, EL2's own.
    #[must_use]
    pub fn all(features: &CpuFeatures) -> Vec<Self> {
        let pa = u32::from(features.pa_bits);
        let setup = |geometry, owner, vmid, tags| Self { geometry, owner, vmid, tags };
        let mut all = vec![setup(Geometry::identity(pa), TableOwner::Host, 0, TagControl::Unused)];
        let shapes = (32..=48).map(|bits| Geometry::stage2(bits, pa));
        let deeper = [(32, Level::L2), (34, Level::L2), (40, Level::L0)];
        let deeper = deeper.map(|(bits, start)| Geometry::starting_at(start, bits, pa));
        for (geometry, tags) in
            shapes.chain(deeper).flatten().zip([TagControl::Unused, TagControl::Enforced].iter().cycle())
        {
            all.push(setup(geometry, TableOwner::Guest(1), 255, *tags));
        }
        for geometry in [39, 40, 48].map(Geometry::hyp).into_iter().flatten() {
            all.push(setup(geometry, TableOwner::Hyp, 0, TagControl::Unused));
        }
        all
    }
}

/// A regime under test.
pub trait Subject: Regime<Note: Advance> {
    /// A table of this regime.
    ///
    /// # Errors
    /// As its constructor.
    fn table(cpu: &Cpu, pool: &mut TestPool, setup: Setup) -> Result<Table<Self>, Error>;
    /// The regime's range.
    ///
    /// # Errors
    /// As its constructor.
    fn range(start: u64, end: u64) -> Result<Self::Range, AddrError>;
    /// The attributes that `choice` stands for.
    fn attributes(choice: Attributes) -> Self::Attrs;
    /// The note that `choice` stands for, if the regime has notes.
    fn note(choice: NoteChoice) -> Option<Self::Note>;
    /// The shallowest level at which a note may stand, if it may stand in such a table.
    fn may_stand(setup: Setup, note: Self::Note) -> Option<u8>;
    /// What a leaf must look like to the hardware; `None` for attributes that must be refused.
    fn expected(setup: Setup, features: &CpuFeatures, attrs: Self::Attrs) -> Option<Seen>;
    /// What a leaf looks like to the hardware.
    fn seen(features: &CpuFeatures, word: u64) -> Seen;
    /// The word of a note, from the design's table.
    fn note_word(note: Self::Note) -> u64;
    /// What `edit` makes of attributes; `None` if the regime has no such edit.
    fn edited(edit: Edit, attrs: Self::Attrs) -> Option<Self::Attrs>;
    /// What it makes of a note.
    fn edited_note(edit: Edit, note: Self::Note) -> Self::Note;
    /// Makes the edit.
    ///
    /// # Errors
    /// As the engine's call.
    fn edit(cpu: &Cpu, table: &mut Table<Self>, range: Self::Range, edit: Edit) -> Result<u64, Error>;
    /// Forgets everything in the TLBs, where the regime has a call for it.
    fn flush(cpu: &Cpu, table: &Table<Self>);
    /// Where the hardware starts to walk.
    fn shape(sim: &Sim, table: &Table<Self>) -> Shape;
    /// All that any CPU can reach.
    fn reach(sim: &Sim, table: &Table<Self>, ia: u64) -> BTreeSet<Reach>;
    /// From here on every CPU touches `ia` after every operation of any CPU.
    fn spy(sim: &Sim, table: &Table<Self>, ia: u64);
    /// The rank of the table's lock.
    fn rank(setup: Setup) -> Rank;
}

impl Advance for Note {
    fn advance(self, pages: u64) -> Self {
        match self {
            Self::HostDonated(Owner::Guest { handle, gfn }) => {
                let gfn = Gfn::new(gfn.raw() + pages).expect("tests use small frame numbers");
                Self::HostDonated(Owner::Guest { handle, gfn })
            }
            Self::NoTagPending { page, access, state } => {
                let page = Pfn::new(page.raw() + pages).expect("tests use small frame numbers");
                Self::NoTagPending { page, access, state }
            }
            same => same,
        }
    }
}

impl Advance for HypNote {
    fn advance(self, _: u64) -> Self {
        self
    }
}

fn memory_code(memory: Option<Memory>, no_tag: bool) -> u32 {
    let memory = match memory {
        None => 0,
        Some(Memory::Device) => 1,
        Some(Memory::NonCacheable) => 2,
        Some(Memory::ForcedWriteBack) => 3,
        Some(Memory::AsStage1) => 4,
    };
    memory | u32::from(no_tag) << 8
}

impl Subject for Stage2 {
    fn table(cpu: &Cpu, pool: &mut TestPool, setup: Setup) -> Result<Table<Self>, Error> {
        let Setup { geometry, owner, vmid, tags } = setup;
        let features = cpu.untraced().sim().features();
        let format = match owner {
            TableOwner::Host => Stage2Format::host(features),
            _ => Stage2Format::guest(features, tags, guest_notes()),
        };
        let root = pool.root(geometry.root_pages());
        Table::<Self>::new(cpu, Stage2Config { root, geometry, format, vmid, owner })
    }

    fn range(start: u64, end: u64) -> Result<IpaRange, AddrError> {
        IpaRange::new(start, end, 48)
    }

    fn attributes(choice: Attributes) -> S2Attrs {
        let mem = [MemType::Normal, MemType::NormalNc, MemType::Device][usize::from(choice.memory % 3)];
        S2Attrs {
            prot: Prot::from_bits_truncate(choice.access),
            mem,
            state: state(choice.state),
            accessed: choice.accessed,
        }
    }

    fn note(NoteChoice(kind, payload): NoteChoice) -> Option<Note> {
        let access = Access::from_bits_truncate(payload as u8);
        let pending = if payload & 8 == 0 { PendingState::Owned } else { PendingState::SharedBorrowed };
        let gfn = Gfn::new(u64::from(payload)).ok()?;
        Some(match kind % 8 {
            0 => Note::HostDonated(Owner::Hyp),
            1 | 2 => Note::HostDonated(Owner::Guest { handle: payload, gfn }),
            3 => Note::HostDonated(Owner::Ffa),
            4 => Note::Ripas(Ripas::Ram),
            5 => Note::Ripas(Ripas::Destroyed),
            6 => Note::MmioGuard,
            _ => Note::NoTagPending { page: Pfn::new(u64::from(payload)).ok()?, access, state: pending },
        })
    }

    fn may_stand(setup: Setup, note: Note) -> Option<u8> {
        let host = setup.owner == TableOwner::Host;
        match note {
            Note::HostDonated(_) if !host => None,
            Note::HostDonated(Owner::Hyp) => Some(0),
            Note::HostDonated(_) => Some(3),
            _ if host => None,
            Note::Ripas(_) => Some(1),
            Note::MmioGuard | Note::NoTagPending { .. } => Some(3),
        }
    }

    /// The table of design/mte-no-tag-access.md 4.d.2, and conventions.md 0.2 for bits 58:55.
    fn expected(setup: Setup, features: &CpuFeatures, attrs: S2Attrs) -> Option<Seen> {
        let S2Attrs { prot, mem, state, accessed } = attrs;
        let host = setup.owner == TableOwner::Host;
        let wants_no_tag = prot.contains(Prot::NO_TAG) && mem == MemType::Normal;
        let precise = features.mte >= 2 && features.mte_perm;
        let enforced = !host && setup.tags == TagControl::Enforced;
        if wants_no_tag && enforced && !precise || mem == MemType::Device && prot.contains(Prot::X) {
            return None;
        }
        let memory = match mem {
            MemType::Device => Memory::Device,
            MemType::NormalNc => Memory::NonCacheable,
            MemType::Normal if features.fwb && !host => Memory::ForcedWriteBack,
            MemType::Normal => Memory::AsStage1,
        };
        let page_state = match state {
            LeafState::Owned => 0,
            LeafState::SharedOwned => 1,
            LeafState::SharedBorrowed => 2,
        };
        Some(Seen {
            read: prot.contains(Prot::R),
            write: prot.contains(Prot::W),
            exec: prot.contains(Prot::X),
            accessed,
            memory: memory_code(Some(memory), wants_no_tag && enforced),
            software: page_state | u8::from(prot.contains(Prot::NO_TAG)) << 2,
        })
    }

    fn seen(features: &CpuFeatures, word: u64) -> Seen {
        let leaf = walk::stage2_leaf(word, features);
        assert_eq!(leaf.exec_el1, leaf.exec_el0, "{word:#x}: EL1 and EL0 fetch alike");
        Seen {
            read: leaf.read,
            write: leaf.write,
            exec: leaf.exec_el1,
            accessed: leaf.accessed,
            memory: memory_code(leaf.memory, leaf.no_tag),
            software: leaf.software,
        }
    }

    fn note_word(note: Note) -> u64 {
        let state = |s| if s == PendingState::Owned { 0 } else { 2_u64 };
        match note {
            Note::HostDonated(Owner::Hyp) => 2 << 60 | 1 << 1,
            Note::HostDonated(Owner::Guest { handle, gfn }) => {
                2 << 60 | gfn.raw() << 20 | u64::from(handle) << 4 | 2 << 1
            }
            Note::HostDonated(Owner::Ffa) => 2 << 60 | 3 << 1,
            Note::Ripas(Ripas::Ram) => 3 << 60 | 1 << 1,
            Note::Ripas(Ripas::Destroyed) => 3 << 60 | 2 << 1,
            Note::MmioGuard => 4 << 60,
            Note::NoTagPending { page, access, state: s } => {
                5 << 60 | page.raw() << 12 | state(s) << 4 | u64::from(access.bits()) << 1
            }
        }
    }

    fn edited(edit: Edit, attrs: S2Attrs) -> Option<S2Attrs> {
        Some(match edit {
            Edit::Relax(access) => attrs.with_prot(attrs.prot | Prot::from_bits_truncate(access & 7)),
            Edit::WriteProtect => attrs.with_prot(attrs.prot - Prot::W),
            Edit::Accessed(accessed) => S2Attrs { accessed, ..attrs },
            Edit::State(s) => attrs.with_state(state(s)),
            Edit::NoTag(true) => attrs.with_prot(attrs.prot | Prot::NO_TAG),
            Edit::NoTag(false) => attrs.with_prot(attrs.prot - Prot::NO_TAG),
        })
    }

    fn edited_note(edit: Edit, note: Note) -> Note {
        match (edit, note) {
            (Edit::Relax(more), Note::NoTagPending { page, access, state }) => {
                Note::NoTagPending { page, access: access | Access::from_bits_truncate(more), state }
            }
            (Edit::WriteProtect, Note::NoTagPending { page, access, state }) => {
                Note::NoTagPending { page, access: access - Access::W, state }
            }
            _ => note,
        }
    }

    fn edit(cpu: &Cpu, table: &mut Table<Self>, range: IpaRange, edit: Edit) -> Result<u64, Error> {
        let change = match edit {
            Edit::Relax(access) => Change::Relax(Access::from_bits_truncate(access)),
            Edit::WriteProtect => Change::WriteProtect,
            Edit::Accessed(accessed) => Change::Accessed(accessed),
            Edit::State(s) => Change::State(state(s)),
            Edit::NoTag(no_tag) => Change::NoTag(no_tag),
        };
        table.change(cpu, range, change)
    }

    fn flush(cpu: &Cpu, table: &Table<Self>) {
        table.flush(cpu);
    }

    fn shape(sim: &Sim, table: &Table<Self>) -> Shape {
        Shape::of_stage2(table.context(), sim.features()).expect("the context is one that translates")
    }

    fn reach(sim: &Sim, table: &Table<Self>, ia: u64) -> BTreeSet<Reach> {
        sim.reach(table.context(), ia)
    }

    fn spy(sim: &Sim, table: &Table<Self>, ia: u64) {
        sim.spy(table.context(), ia);
    }

    fn rank(setup: Setup) -> Rank {
        match setup.owner {
            TableOwner::Hyp => Rank::HypS1,
            TableOwner::Host => Rank::HostS2,
            TableOwner::Guest(handle) => Rank::GuestS2(handle),
        }
    }
}

fn state(choice: u8) -> LeafState {
    [LeafState::Owned, LeafState::SharedOwned, LeafState::SharedBorrowed][usize::from(choice % 3)]
}

/// All that a guest's table may hold.
fn guest_notes() -> NoteKinds {
    NoteKinds::all() - NoteKinds::HOST_DONATED
}

impl Subject for HypStage1 {
    fn table(cpu: &Cpu, pool: &mut TestPool, setup: Setup) -> Result<Table<Self>, Error> {
        Table::<Self>::new(cpu, pool.root(1), setup.geometry)
    }

    fn range(start: u64, end: u64) -> Result<VaRange, AddrError> {
        VaRange::new(start, end)
    }

    fn attributes(choice: Attributes) -> HypAttrs {
        HypAttrs {
            prot: prot(choice.access),
            mem: [HypMem::Normal, HypMem::Device, HypMem::NormalTagged][usize::from(choice.memory % 3)],
        }
    }

    fn note(NoteChoice(kind, _): NoteChoice) -> Option<HypNote> {
        kind.is_multiple_of(4).then_some(HypNote::Window)
    }

    fn may_stand(_: Setup, HypNote::Window: HypNote) -> Option<u8> {
        Some(2)
    }

    fn expected(_: Setup, features: &CpuFeatures, attrs: HypAttrs) -> Option<Seen> {
        let memory = match attrs.mem {
            HypMem::Normal => 0xff,
            HypMem::Device if attrs.prot == HypProt::Rx => return None,
            HypMem::Device => 0x04,
            HypMem::NormalTagged if features.mte < 2 => return None,
            HypMem::NormalTagged => 0xf0,
        };
        let (write, exec) = (attrs.prot == HypProt::Rw, attrs.prot == HypProt::Rx);
        Some(Seen { read: true, write, exec, accessed: true, memory, software: 0 })
    }

    fn seen(_: &CpuFeatures, word: u64) -> Seen {
        let leaf = walk::stage1_leaf(word, MAIR_EL2);
        assert!(leaf.inner_shareable, "{word:#x}");
        let memory = u32::from(leaf.mair);
        Seen { read: true, write: leaf.write, exec: leaf.exec, accessed: leaf.accessed, memory, software: 0 }
    }

    fn note_word(HypNote::Window: HypNote) -> u64 {
        6 << 60
    }

    fn edited(edit: Edit, attrs: HypAttrs) -> Option<HypAttrs> {
        match edit {
            Edit::Relax(access) => Some(HypAttrs { prot: prot(access), ..attrs }),
            Edit::WriteProtect => Some(HypAttrs { prot: HypProt::Ro, ..attrs }),
            _ => None,
        }
    }

    fn edited_note(_: Edit, note: HypNote) -> HypNote {
        note
    }

    fn edit(cpu: &Cpu, table: &mut Table<Self>, range: VaRange, edit: Edit) -> Result<u64, Error> {
        let prot = match edit {
            Edit::Relax(access) => prot(access),
            _ => HypProt::Ro,
        };
        table.protect(cpu, range, prot)
    }

    fn flush(_: &Cpu, _: &Table<Self>) {}

    fn shape(_: &Sim, table: &Table<Self>) -> Shape {
        Shape {
            root: table.root().raw(),
            start: table.geometry().start().number(),
            ia_bits: table.geometry().ia_bits(),
        }
    }

    fn reach(sim: &Sim, _: &Table<Self>, ia: u64) -> BTreeSet<Reach> {
        sim.reach_hyp(ia)
    }

    fn spy(sim: &Sim, _: &Table<Self>, ia: u64) {
        sim.spy_hyp(ia);
    }

    fn rank(_: Setup) -> Rank {
        Rank::HypS1
    }
}

fn prot(choice: u8) -> HypProt {
    [HypProt::Ro, HypProt::Rw, HypProt::Rx][usize::from(choice % 3)]
}
