//! What is looked at after every step.

use super::Engine;
use crate::model::Value;
use crate::subject::{Seen, Subject};
use crate::walk::{self, Descriptor, Found, descriptor, size};
use hyp::hw::TableOwner;
use hyp::pgtable::{Entry, Error};
use std::collections::BTreeMap;

/// The tree as it is in memory.
pub(super) struct Tree {
    /// Entries that are not 0 and no table, with the address they cover.
    pub(super) entries: Vec<(u64, Found)>,
    /// Table pages: level, address, number of entries that are not 0.
    pub(super) tables: BTreeMap<u64, (u8, u64, u16)>,
}

impl Tree {
    /// First address and one past the last of what the table translates.
    pub(super) fn span(&self, page: u64) -> (u64, u64) {
        let (level, base, _) = self.tables[&page];
        (base, base + 512 * size(level))
    }

    /// The entries that stand in the table itself.
    pub(super) fn entries_of(&self, page: u64) -> impl Iterator<Item = &(u64, Found)> {
        self.entries.iter().filter(move |(_, found)| found.table == page)
    }
}

impl<R: Subject> Engine<R> {
    pub(super) fn tree(&self) -> Tree {
        let guard = self.table.lock(&self.cpus[0]);
        let shape = R::shape(&self.sim, &guard);
        let read = |page, index| self.sim.memory().read(page, index);
        let (mut entries, mut tables) = (Vec::new(), BTreeMap::new());
        let mut children: BTreeMap<u64, u16> = BTreeMap::new();
        walk::tree(
            shape,
            read,
            |ia, found| {
                if found.word != 0 {
                    *children.entry(found.table).or_default() += 1;
                    entries.push((ia, found));
                }
            },
            |page, level, base| {
                assert!(tables.insert(page, (level, base, 0)).is_none(), "{page:#x} is linked twice");
            },
        );
        for (page, (level, _, count)) in &mut tables {
            // A table's own entries are what `walk::tree` does not hand out.
            let below = (0..512)
                .filter(|slot| matches!(descriptor(read(*page, *slot), *level), Descriptor::Table(_)));
            *count = children.get(page).copied().unwrap_or_default() + below.count() as u16;
        }
        Tree { entries, tables }
    }

    /// Looks at everything; at `edges` every CPU tries what it can.
    ///
    /// # Panics
    /// If anything is not as it must be.
    pub fn check(&self, edges: &[u64]) {
        let tree = self.tree();
        self.check_words(&tree);
        self.check_pool(&tree);
        self.check_remembered(&tree);
        edges.iter().for_each(|ia| self.check_reach(*ia));
        edges.iter().for_each(|ia| self.check_lookup(*ia));
        assert_eq!(self.sim.watch().checker().open_entries(), 0, "entries between break and make");
    }

    fn expected(&self, attrs: R::Attrs) -> Seen {
        R::expected(self.setup, self.sim.features(), attrs).expect("the model holds what can be encoded")
    }

    /// Every entry says what the model says about all its pages, and nothing is left out.
    fn check_words(&self, tree: &Tree) {
        let mut covered = 0;
        for &(ia, found) in &tree.entries {
            let end = ia + size(found.level);
            let mut at = ia;
            for piece in self.model.pieces(ia, end) {
                assert_eq!(piece.start, at, "{found:x?} at {ia:#x} says more than the model");
                at = piece.end;
                match (piece.value, descriptor(found.word, found.level)) {
                    (Value::Memory { frame, attrs }, Descriptor::Leaf(first)) => {
                        assert_eq!(first + ((piece.start - ia) >> 12), frame, "{found:x?} at {ia:#x}");
                        assert_eq!(
                            R::seen(self.sim.features(), found.word),
                            self.expected(attrs),
                            "{found:x?}"
                        );
                    }
                    (Value::Note(note), Descriptor::Invalid) => {
                        assert_eq!(found.word, R::note_word(note), "{found:x?} at {ia:#x}");
                    }
                    (value, _) => panic!("{found:x?} at {ia:#x}, the model says {value:x?}"),
                }
            }
            assert_eq!(at, end, "{found:x?} at {ia:#x} says more than the model");
            covered += end - ia;
        }
        let wanted: u64 = self.model.pieces(0, self.limit).iter().map(|p| p.end - p.start).sum();
        assert_eq!(covered, wanted, "the tables say less than the model");
    }

    fn check_pool(&self, tree: &Tree) {
        let counted: BTreeMap<u64, u16> =
            tree.tables.iter().map(|(page, (_, _, count))| (*page, *count)).collect();
        assert_eq!(&counted, self.pool.live(), "table pages and their counts");
    }

    /// A stale descriptor may allow less than the model, never more.
    fn check_remembered(&self, tree: &Tree) {
        let vmid = (self.setup.owner != TableOwner::Hyp).then_some(self.setup.vmid);
        for known in self.sim.remembered(vmid) {
            let (start, end) = (known.base, known.base + size(known.level));
            match descriptor(known.word, known.level) {
                Descriptor::Table(page) => {
                    let live = tree.tables.get(&page).map(|(level, base, _)| (*level, *base));
                    assert_eq!(live, Some((known.level + 1, start)), "stale table {known:x?}");
                }
                Descriptor::Leaf(first) => {
                    let mut at = start;
                    for piece in self.model.pieces(start, end) {
                        let Value::Memory { frame, attrs } = piece.value else { panic!("stale {known:x?}") };
                        assert!(
                            piece.start == at && frame == first + ((at - start) >> 12),
                            "stale {known:x?}"
                        );
                        let seen = R::seen(self.sim.features(), known.word);
                        assert!(self.expected(attrs).tolerates(seen), "stale {known:x?}");
                        at = piece.end;
                    }
                    assert_eq!(at, end, "stale {known:x?}");
                }
                Descriptor::Invalid => panic!("{known:x?} in a TLB"),
            }
        }
    }

    /// Every CPU reaches what the model says, by whatever way.
    fn check_reach(&self, ia: u64) {
        let reached = R::reach(&self.sim, &self.table.lock(&self.cpus[0]), ia);
        match self.model.get(ia) {
            Some(Value::Memory { frame, attrs }) if self.expected(attrs).accessed => {
                assert!(!reached.is_empty(), "{ia:#x} is not reached");
                for way in reached {
                    assert_eq!(way.page, frame, "{ia:#x} by {way:x?}");
                    assert!(
                        self.expected(attrs).tolerates(R::seen(self.sim.features(), way.word)),
                        "{way:x?}"
                    );
                }
            }
            _ => assert!(reached.is_empty(), "{ia:#x} is reached by {reached:x?}"),
        }
    }

    fn check_lookup(&self, ia: u64) {
        let cpu = &self.cpus[0];
        let (level, entry) =
            self.table.lock(cpu).lookup(cpu, R::addr(ia)).unwrap_or_else(|e: Error| panic!("{e:?}"));
        let offset = (ia & (level.size() - 1)) >> 12;
        match (self.model.get(ia), entry) {
            (None, Entry::Absent) => {}
            (Some(Value::Note(model)), Entry::Note(note)) => assert_eq!(model, note, "{ia:#x}"),
            (Some(Value::Memory { frame, attrs }), Entry::Leaf(leaf)) => {
                assert_eq!((leaf.output.raw() + offset, leaf.attrs), (frame, attrs), "{ia:#x}");
            }
            (model, entry) => panic!("{ia:#x}: the model says {model:x?}, the engine {entry:x?}"),
        }
    }
}
