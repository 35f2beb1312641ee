//! The entries of a dump in ascending order, decoded as EL2 decodes them, and what is wrong with the
//! tables on the way.
//!
//! Invariant: every page of the file is visited once at most, so a walk ends whatever the file
//! says, and needs no more memory than one bit a page.

use crate::dump::{Dump, PageAt};
use hyp::hw::ENTRIES;
use hyp::pgtable::{Corrupt, Entry, Leaf, Level, Note, Owner, Regime, S2Attrs, Stage2};
use std::collections::BTreeSet;
use std::fmt;

/// What a run of entries says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing.
    Absent,
    /// A note.
    Note(Note),
    /// Memory: physical address of the first byte, attributes.
    Leaf(u64, S2Attrs),
    /// A word that EL2 never writes.
    Corrupt(Corrupt, u64),
}

/// Entries that follow each other and say the same of consecutive addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First input address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Level of the entries; of absent ones, that of the first.
    pub level: Level,
    /// What the first of them says.
    pub what: What,
}

impl Run {
    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Always false: a run has an entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// True if `next` goes on where this ends.
    fn goes_on(&self, next: &Self) -> bool {
        let same_level = self.level == next.level;
        self.end == next.start
            && match (self.what, next.what) {
                (What::Absent, What::Absent) => true,
                (What::Leaf(pa, attrs), What::Leaf(next, others)) => {
                    same_level && attrs == others && pa.checked_add(self.len()) == Some(next)
                }
                (What::Note(note), What::Note(next)) => same_level && self.note_goes_on(note, next),
                _ => false,
            }
    }

    fn note_goes_on(&self, note: Note, next: Note) -> bool {
        let further = |frame: u64| frame.checked_add(self.len() >> 12);
        match (note, next) {
            (
                Note::HostDonated(Owner::Guest { handle, gfn }),
                Note::HostDonated(Owner::Guest { handle: other, gfn: next }),
            ) => handle == other && further(gfn.raw()) == Some(next.raw()),
            (
                Note::NoTagPending { page, access, state },
                Note::NoTagPending { page: next, access: others, state: other },
            ) => access == others && state == other && further(page.raw()) == Some(next.raw()),
            (note, next) => note == next,
        }
    }
}

/// Something that EL2 would never have written, or two things that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// An entry that cannot be.
    Corrupt {
        /// First input address.
        ia: u64,
        /// Level.
        level: Level,
        /// The word.
        word: u64,
        /// Why not.
        why: Corrupt,
    },
    /// A table entry that leads to a page which the dump does not have.
    Missing {
        /// First input address.
        ia: u64,
        /// Where it leads.
        pa: u64,
    },
    /// A second entry that leads to one table page.
    Twice {
        /// First input address.
        ia: u64,
        /// The page.
        pa: u64,
    },
    /// A page of the dump that no entry leads to.
    Unreached(u64),
    /// Anything between tables, in words.
    Contradiction(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { ia, level, word, why } => {
                write!(f, "entry at {ia:#x}, level {}: {word:#018x} is corrupt ({why:?})", level.number())
            }
            Self::Missing { ia, pa } => write!(f, "entry at {ia:#x}: its table {pa:#x} is not in the dump"),
            Self::Twice { ia, pa } => write!(f, "entry at {ia:#x}: table {pa:#x} has another entry already"),
            Self::Unreached(pa) => write!(f, "table {pa:#x} is in the dump, but no entry leads to it"),
            Self::Contradiction(text) => f.write_str(text),
        }
    }
}

/// The first problems, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    first: Vec<Problem>,
    count: u64,
}

impl Problems {
    /// Problems that are kept.
    pub const KEPT: usize = 200;

    /// Adds one.
    pub fn add(&mut self, problem: Problem) {
        self.count = self.count.saturating_add(1);
        if self.first.len() < Self::KEPT {
            self.first.push(problem);
        }
    }

    /// Adds all of another list.
    pub fn append(&mut self, other: Self) {
        let kept = other.first.len() as u64;
        other.first.into_iter().for_each(|problem| self.add(problem));
        self.count = self.count.saturating_add(other.count.saturating_sub(kept));
    }

    /// The first of them.
    #[must_use]
    pub fn first(&self) -> &[Problem] {
        &self.first
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }
}

/// Where a walk stands in one table.
#[derive(Debug)]
struct At {
    page: PageAt,
    level: Level,
    /// Input address of the table's first entry.
    base: u64,
    next: usize,
}

/// The runs of a dump, in ascending order.
#[derive(Debug)]
pub struct Runs<'a> {
    dump: &'a Dump,
    path: Vec<At>,
    next_root: u8,
    seen: BTreeSet<PageAt>,
    pending: Option<Run>,
    problems: Problems,
}

impl Dump {
    /// All that the table says.
    #[must_use]
    pub fn runs(&self) -> Runs<'_> {
        Runs {
            dump: self,
            path: Vec::with_capacity(4),
            next_root: 0,
            seen: BTreeSet::new(),
            pending: None,
            problems: Problems::default(),
        }
    }
}

impl Runs<'_> {
    /// What was wrong so far: after the last run, everything.
    #[must_use]
    pub fn problems(self) -> Problems {
        self.problems
    }

    fn enter(&mut self, page: PageAt, level: Level, base: u64) {
        self.seen.insert(page);
        self.path.push(At { page, level, base, next: 0 });
    }

    fn enter_next_root(&mut self) -> bool {
        let shape = self.dump.shape();
        let nth = self.next_root;
        if nth >= shape.root_pages() {
            return false;
        }
        self.next_root = nth.saturating_add(1);
        // Reading the file saw that the roots are there.
        if let Some(page) = self.dump.root(nth) {
            let reach = shape.start().size().saturating_mul(ENTRIES as u64);
            self.enter(page, shape.start(), u64::from(nth).saturating_mul(reach));
        }
        true
    }

    /// The next entry that is no table.
    fn step(&mut self) -> Option<Run> {
        loop {
            let Some(at) = self.path.last_mut() else {
                if self.enter_next_root() {
                    continue;
                }
                return None;
            };
            let (index, level, page) = (at.next, at.level, at.page);
            let start = at.base.saturating_add(level.size().saturating_mul(index as u64));
            if index >= ENTRIES || start >= self.dump.shape().limit() {
                self.path.pop();
                continue;
            }
            at.next = index.saturating_add(1);
            let word = self.dump.entry(page, index);
            let run = |what| Some(Run { start, end: start.saturating_add(level.size()), level, what });
            if word == 0 {
                return run(What::Absent);
            }
            match Stage2::decode(self.dump.format(), level, word) {
                Ok(Entry::Absent) => return run(What::Absent),
                Ok(Entry::Note(note)) => return run(What::Note(note)),
                Ok(Entry::Leaf(Leaf { output, attrs })) => {
                    return run(What::Leaf(output.base().raw(), attrs));
                }
                Ok(Entry::Table(child)) => {
                    let pa = child.base().raw();
                    match (self.dump.page(pa), level.deeper()) {
                        (Some(page), _) if self.seen.contains(&page) => {
                            self.problems.add(Problem::Twice { ia: start, pa });
                        }
                        (Some(page), Some(below)) => {
                            self.enter(page, below, start);
                            continue;
                        }
                        _ => self.problems.add(Problem::Missing { ia: start, pa }),
                    }
                    return run(What::Corrupt(Corrupt::ReservedType, word));
                }
                Err(why) => {
                    self.problems.add(Problem::Corrupt { ia: start, level, word, why });
                    return run(What::Corrupt(why, word));
                }
            }
        }
    }

    fn find_unreached(&mut self) {
        for pa in self.dump.page_addresses() {
            if self.dump.page(pa).is_some_and(|page| !self.seen.contains(&page)) {
                self.problems.add(Problem::Unreached(pa));
            }
        }
        // Said once, however often `next` is called.
        self.seen.extend(self.dump.page_addresses().filter_map(|pa| self.dump.page(pa)));
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let mut run = match self.pending.take() {
            Some(run) => run,
            None => match self.step() {
                Some(run) => run,
                None => {
                    self.find_unreached();
                    return None;
                }
            },
        };
        while let Some(next) = self.step() {
            if run.goes_on(&next) {
                run.end = next.end;
            } else {
                self.pending = Some(next);
                break;
            }
        }
        Some(run)
    }
}
