//! One operation: what it must answer, and what the model says after it.

use super::look::Tree;
use super::{Engine, MOST_ENTRIES};
use crate::action::{Action, Attributes, Contents, Edit, Operation, Output, Place, Stretch, Unit};
use crate::machine::{Cpu, Sim};
use crate::model::{Piece, Value};
use crate::pool::TestPool;
use crate::subject::Subject;
use crate::walk::{Descriptor, descriptor, size};
use hyp::addr::Pfn;
use hyp::hw::CpuFeatures;
use hyp::pgtable::{Demand, Error, Leaf, Level, Prepared, Table};

/// Why an operation must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Range,
    Attributes,
    Output,
    Note,
    Exists,
    Block,
}

fn kind(error: Error) -> Option<Refusal> {
    Some(match error {
        Error::Range(_) => Refusal::Range,
        Error::Attrs(_) => Refusal::Attributes,
        Error::Output(_) => Refusal::Output,
        Error::NoteRefused => Refusal::Note,
        Error::Exists { .. } => Refusal::Exists,
        Error::Block { .. } => Refusal::Block,
        _ => return None,
    })
}

/// What a range is to say, resolved.
#[derive(Clone, Copy, Debug)]
enum Filling<R: Subject> {
    Nothing,
    Note(R::Note),
    Memory { output: Pfn, attrs: R::Attrs, largest: Level },
}

impl<R: Subject> Filling<R> {
    fn value(self) -> Option<Value<R::Attrs, R::Note>> {
        match self {
            Self::Nothing => None,
            Self::Note(note) => Some(Value::Note(note)),
            Self::Memory { output, attrs, .. } => Some(Value::Memory { frame: output.raw(), attrs }),
        }
    }
}

const LEVELS: [Level; 4] = Level::ALL;

fn level_of(unit: Unit) -> Level {
    LEVELS[usize::from(unit.level())]
}

impl<R: Subject> Engine<R> {
    /// Counts an operation of the current kind that was answered.
    fn book(&mut self, done: bool) {
        let (all, refused) = self.tally.entry(self.current).or_default();
        *all += 1;
        *refused += u32::from(!done);
    }

    pub(super) fn perform(&mut self, action: &Action) {
        self.current = action.operation.name();
        let cpu = usize::from(action.cpu) % self.cpus.len();
        let faults = action.faults;
        match action.operation {
            Operation::Map(stretch, output, attributes, unit) => {
                let contents = Contents::Memory { output, attributes, largest: unit };
                self.map(cpu, faults, stretch, contents);
            }
            Operation::Demand(place, bounds, output, attributes) => {
                self.demand(cpu, faults, (place, bounds), output, attributes);
            }
            Operation::Unmap(stretch) => self.unmap(cpu, faults, stretch),
            Operation::Annotate(stretch, note) => {
                self.replace(cpu, faults, stretch, Contents::Note(note), false, true);
            }
            Operation::Replace(stretch, contents, lock, commit) => {
                self.replace(cpu, faults, stretch, contents, lock && commit, commit);
            }
            Operation::Pair(first, a, second, b) => self.pair(cpu, (first, a), (second, b)),
            Operation::Split(stretch, unit) => self.split(cpu, faults, stretch, unit),
            Operation::Fold(stretch) => self.fold(cpu, stretch),
            Operation::FoldBlock(place, unit) => self.fold_block(cpu, place, unit),
            Operation::Evict(stretch, want, kinds) => self.evict(cpu, stretch, want, kinds),
            Operation::Change(stretch, edit) => self.change(cpu, stretch, edit),
            Operation::Flush => {
                R::flush(&self.cpus[cpu], &self.table.lock(&self.cpus[cpu]));
                self.book(true);
                self.check(&[]);
            }
        }
    }

    /// The range that `stretch` names, if it is one, cut to [`MOST_ENTRIES`] entries: those of
    /// `tile` bytes that the operation makes, and those that it finds.
    fn resolve(&self, stretch: Stretch, tile: u64) -> Option<(u64, u64)> {
        let (start, end) = stretch.resolve(self.limit);
        let end = end.min(start + tile * MOST_ENTRIES);
        let found = self.tree().entries.into_iter().filter(|(ia, _)| (start..end).contains(ia));
        let end = found.map(|(ia, _)| ia).nth(MOST_ENTRIES as usize).unwrap_or(end);
        let range = R::range(start, end);
        let sound = start < end && end <= 1 << 48;
        assert_eq!(range.is_ok(), sound, "{start:#x}..{end:#x}: {range:?}");
        sound.then_some((start, end))
    }

    fn fill(&self, stretch: Stretch, contents: Contents) -> Option<((u64, u64), Filling<R>)> {
        match contents {
            Contents::Nothing => Some((self.resolve(stretch, u64::MAX >> 16)?, Filling::Nothing)),
            Contents::Note(choice) => {
                let note = R::note(choice)?;
                let tile = match R::may_stand(self.setup, note) {
                    Some(0 | 1) => 1 << 30,
                    _ => 4096,
                };
                Some((self.resolve(stretch, tile)?, Filling::Note(note)))
            }
            Contents::Memory { output, attributes, largest } => {
                let attrs = R::attributes(attributes);
                let (start, end) = stretch.resolve(self.limit);
                let first = output_frame(output, (start, end), self.sim.features());
                let skew = start ^ first << 12;
                let fits = [Unit::Block1, Unit::Block2]
                    .into_iter()
                    .find(|unit| unit.bytes() <= largest.bytes() && skew & (unit.bytes() - 1) == 0);
                let tile = fits.map_or(4096, Unit::bytes);
                let range = self.resolve(stretch, tile)?;
                let output = Pfn::new(first).ok()?;
                Some((range, Filling::Memory { output, attrs, largest: level_of(largest) }))
            }
        }
    }

    /// The refusal that a change must meet before anything in the table is looked at.
    fn refused_unseen(&self, (start, end): (u64, u64), filling: Filling<R>) -> Option<Refusal> {
        if end > self.limit {
            return Some(Refusal::Range);
        }
        match filling {
            Filling::Nothing => None,
            Filling::Note(note) => R::may_stand(self.setup, note).is_none().then_some(Refusal::Note),
            Filling::Memory { attrs, .. }
                if R::expected(self.setup, self.sim.features(), attrs).is_none() =>
            {
                Some(Refusal::Attributes)
            }
            Filling::Memory { output, .. } => {
                let last = output.raw() + ((end - start) >> 12);
                (last > 1 << (self.sim.features().pa_bits.min(48) - 12)).then_some(Refusal::Output)
            }
        }
    }

    /// Runs `operation`; with `faults`, first with every allocation failing in turn, after each of
    /// which everything must say what it said before.
    fn attempt<T>(
        &mut self,
        (cpu, faults): (usize, bool),
        edges: &[u64],
        operation: impl Fn(&Hands<'_>, &mut Table<R>, &mut TestPool) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut nth = u32::from(faults);
        loop {
            let Self { sim, cpus, table, pool, .. } = self;
            if nth > 0 {
                pool.fail_at(nth);
            }
            let hands = Hands { cpu: &cpus[cpu], sim };
            let mut guard = table.lock(hands.cpu);
            // All CPUs keep using the first page and one in the middle while it goes on.
            edges.iter().skip(1).take(2).for_each(|ia| R::spy(sim, &guard, *ia));
            let result = operation(&hands, &mut guard, pool);
            sim.unspy_all();
            drop(guard);
            pool.recover();
            match result {
                Err(Error::NoTables { needed }) if nth > 0 => {
                    assert!(needed > 0, "no table is missing");
                    self.check(edges);
                    // What was split stays split, so that the end comes nearer.
                    nth = if nth > 64 { 0 } else { nth + 1 };
                }
                result => return result,
            }
        }
    }

    fn settle<T>(&mut self, edges: &[u64], result: Result<T, Error>, refusal: Option<Refusal>) -> Option<T> {
        self.book(refusal.is_none());
        match (result, refusal) {
            (Ok(done), None) => Some(done),
            (Err(error), Some(refusal)) if kind(error) == Some(refusal) => {
                self.check(edges);
                None
            }
            (Ok(_), Some(refusal)) => panic!("done, but must be refused: {refusal:?}"),
            (Err(error), refusal) => panic!("{error:?}, expected {refusal:?}"),
        }
    }

    fn map(&mut self, cpu: usize, faults: bool, stretch: Stretch, contents: Contents) {
        let Some(((start, end), filling)) = self.fill(stretch, contents) else { return };
        let Filling::Memory { output, attrs, largest } = filling else { return };
        let vacant = self.model.is_empty(start, end);
        let refusal = self.refused_unseen((start, end), filling).or((!vacant).then_some(Refusal::Exists));
        let edges = self.edges(start, end);
        let range = R::range(start, end).expect("resolved");
        let result = self.attempt((cpu, faults), &edges, |hands, table, pool| {
            table.map(hands.cpu, pool, range, output, attrs, largest)
        });
        if self.settle(&edges, result, refusal).is_some() {
            self.model.set(start, end, filling.value());
            self.check(&edges);
        }
    }

    fn demand(
        &mut self,
        cpu: usize,
        faults: bool,
        at: (Place, Stretch),
        output: Output,
        attributes: Attributes,
    ) {
        let ia = at.0.resolve(self.limit);
        // Mostly around the address; a fifth of them elsewhere.
        let Stretch { place, length, unit } = at.1;
        let start = ia.saturating_sub(u64::from(length % 3) * unit.bytes());
        let near = Some((start, ia + u64::from(length / 3 + 1) * place.unit.bytes()));
        let bounds = if length % 5 == 0 { self.resolve(at.1, 1 << 30) } else { near };
        let Some((start, end)) = bounds.filter(|(_, end)| *end <= 1 << 48 && ia < 1 << 48) else { return };
        let frame = output_frame(output, (ia, ia + 4096), self.sim.features());
        let (Ok(output), attrs) = (Pfn::new(frame), R::attributes(attributes)) else { return };
        let inside = end <= self.limit && (start..end).contains(&ia);
        let edges = self.edges(start, end);
        let value = inside.then(|| self.model.get(ia)).flatten();
        let range = R::range(start, end).expect("resolved");
        let before = self.tree();
        let result = self.attempt((cpu, faults), &edges, |hands, table, pool| {
            table.map_largest(hands.cpu, pool, R::addr(ia), range, output, attrs)
        });
        if !inside {
            self.settle(&edges, result.map(|_| ()), Some(Refusal::Range));
            return;
        }
        self.book(result.is_ok());
        match (value, result) {
            (Some(Value::Note(model)), Ok(Demand::Note(note))) => assert_eq!(model, note),
            (Some(Value::Memory { attrs, .. }), Ok(Demand::Leaf(leaf))) => assert_eq!(attrs, leaf.attrs),
            (None, Ok(Demand::Mapped(level))) => {
                let (first, size) = (ia & !(level.size() - 1), level.size());
                let wanted = self.largest(&before, ia, (start, end), frame);
                assert_eq!(level.number(), wanted, "{ia:#x} in {start:#x}..{end:#x}");
                let frame = frame - ((ia - first) >> 12);
                self.model.set(first, first + size, Some(Value::Memory { frame, attrs }));
            }
            (None, result) => {
                // The attributes, or an output whose block ends beyond the CPU's addresses.
                let bad = R::expected(self.setup, self.sim.features(), attrs).is_none();
                let refusal = if bad { Refusal::Attributes } else { Refusal::Output };
                self.settle(&edges, result.map(|_| ()), Some(refusal));
                return;
            }
            (value, result) => panic!("{result:?} where the model has {value:x?}"),
        }
        self.check(&edges);
    }

    /// Level of the largest entry that may map `ia`.
    fn largest(&self, before: &Tree, ia: u64, (start, end): (u64, u64), frame: u64) -> u8 {
        let above = |level: u8| {
            // A table that stands there is not replaced.
            before.tables.values().any(|(l, base, _)| *l == level + 1 && *base == ia & !(size(level) - 1))
        };
        let fits = |level: &u8| {
            let first = ia & !(size(*level) - 1);
            let last = first + size(*level);
            let aligned = (ia ^ frame << 12) & (size(*level) - 1) & !0xfff == 0;
            first >= start && last <= end && aligned && !above(*level) && self.model.is_empty(first, last)
        };
        [1, 2, 3].into_iter().find(fits).expect("a page always fits")
    }

    fn unmap(&mut self, cpu: usize, faults: bool, stretch: Stretch) {
        let Some((start, end)) = self.resolve(stretch, u64::MAX >> 16) else { return };
        let edges = self.edges(start, end);
        let range = R::range(start, end).expect("resolved");
        let result =
            self.attempt((cpu, faults), &edges, |hands, table, pool| table.unmap(hands.cpu, pool, range));
        if self.settle(&edges, result, (end > self.limit).then_some(Refusal::Range)).is_some() {
            self.model.set(start, end, None);
            self.check(&edges);
            self.check_folded(start, end);
        }
    }

    fn prepare<'t>(
        cpu: &Cpu,
        table: &'t Table<R>,
        pool: &mut TestPool,
        (start, end): (u64, u64),
        filling: Filling<R>,
    ) -> Result<Prepared<'t, R>, Error> {
        let range = R::range(start, end).expect("resolved");
        let (taken, predicted, prepared) = match filling {
            Filling::Nothing => {
                let predicted = table.plan_clear(cpu, range).map(|plan| plan.tables());
                (pool.allocations(), predicted, table.prepare_clear(cpu, pool, range))
            }
            Filling::Note(note) => {
                let predicted = table.plan_note(cpu, range, note).map(|plan| plan.tables());
                (pool.allocations(), predicted, table.prepare_note(cpu, pool, range, note))
            }
            Filling::Memory { output, attrs, largest } => {
                let predicted = table.plan_leaf(cpu, range, output, attrs, largest).map(|plan| plan.tables());
                (pool.allocations(), predicted, table.prepare_leaf(cpu, pool, range, output, attrs, largest))
            }
        };
        match (&prepared, predicted) {
            (Ok(_), predicted) => {
                assert_eq!(predicted, Ok(pool.allocations() - taken), "tables foretold and taken")
            }
            (Err(Error::NoTables { .. }), predicted) => assert!(predicted.is_ok_and(|n| n > 0)),
            (Err(error), predicted) => assert_eq!(predicted, Err(*error)),
        }
        prepared
    }

    fn replace(
        &mut self,
        cpu: usize,
        faults: bool,
        stretch: Stretch,
        contents: Contents,
        lock: bool,
        commit: bool,
    ) {
        let Some((range, filling)) = self.fill(stretch, contents) else { return };
        let edges = self.edges(range.0, range.1);
        let refusal = self.refused_unseen(range, filling);
        let result = self.attempt((cpu, faults), &edges, |hands, table, pool| {
            let mut prepared = Self::prepare(hands.cpu, table, pool, range, filling)?;
            if lock {
                prepared.lock(hands.cpu, pool);
                let inside = edges.iter().filter(|ia| (range.0..range.1).contains(*ia));
                for ia in inside {
                    let reached = R::reach(hands.sim, table, *ia);
                    assert!(reached.is_empty(), "{ia:#x} is locked and reached by {reached:x?}");
                }
            }
            if commit {
                prepared.commit(hands.cpu, pool);
            }
            Ok(())
        });
        if self.settle(&edges, result, refusal).is_some() {
            if commit {
                self.model.set(range.0, range.1, filling.value());
            }
            self.check(&edges);
        }
    }

    /// Two changes that are open at once; the second may split what the first has seen.
    fn pair(&mut self, cpu: usize, first: (Stretch, Contents), second: (Stretch, Contents)) {
        let (Some(a), Some(b)) = (self.fill(first.0, first.1), self.fill(second.0, second.1)) else { return };
        let apart = a.0.1 <= b.0.0 || b.0.1 <= a.0.0;
        if !apart || self.refused_unseen(a.0, a.1).or(self.refused_unseen(b.0, b.1)).is_some() {
            return;
        }
        let edges = [self.edges(a.0.0, a.0.1), self.edges(b.0.0, b.0.1)].concat();
        let result = self.attempt((cpu, false), &edges, |hands, table, pool| {
            let one = Self::prepare(hands.cpu, table, pool, a.0, a.1)?;
            let other = Self::prepare(hands.cpu, table, pool, b.0, b.1)?;
            one.commit(hands.cpu, pool);
            other.commit(hands.cpu, pool);
            Ok(())
        });
        if self.settle(&edges, result, None).is_some() {
            self.model.set(a.0.0, a.0.1, a.1.value());
            self.model.set(b.0.0, b.0.1, b.1.value());
            self.check(&edges);
        }
    }

    fn split(&mut self, cpu: usize, faults: bool, stretch: Stretch, unit: Unit) {
        let Some((start, end)) = self.resolve(stretch, unit.bytes()) else { return };
        let edges = self.edges(start, end);
        let range = R::range(start, end).expect("resolved");
        let result = self.attempt((cpu, faults), &edges, |hands, table, pool| {
            table.split(hands.cpu, pool, range, level_of(unit))
        });
        if self.settle(&edges, result, (end > self.limit).then_some(Refusal::Range)).is_some() {
            self.check(&edges);
            for (ia, found) in self.tree().entries {
                let whole = ia >= start && ia + size(found.level) <= end && found.level >= unit.level();
                let outside = ia + size(found.level) <= start || ia >= end;
                assert!(
                    whole || outside,
                    "{found:x?} at {ia:#x} is not split to {unit:?} in {start:#x}..{end:#x}"
                );
            }
        }
    }

    fn fold(&mut self, cpu: usize, stretch: Stretch) {
        let Some((start, end)) = self.resolve(stretch, u64::MAX >> 16) else { return };
        let edges = self.edges(start, end);
        let range = R::range(start, end).expect("resolved");
        let before = self.pool.live().len();
        let result =
            self.attempt((cpu, false), &edges, |hands, table, pool| table.fold(hands.cpu, pool, range));
        if let Some(freed) = self.settle(&edges, result, (end > self.limit).then_some(Refusal::Range)) {
            self.check(&edges);
            self.check_folded(start, end);
            assert_eq!(before - self.pool.live().len(), freed as usize, "tables freed");
        }
    }

    /// No table that touches the range is empty, or says one thing that could be said above it.
    fn check_folded(&self, start: u64, end: u64) {
        let tree = self.tree();
        let roots = u64::from(self.setup.geometry.root_pages());
        let root = self.table.lock(&self.cpus[0]).root().raw();
        for (page, (level, base, count)) in &tree.tables {
            let (first, last) = tree.span(*page);
            if last <= start || first >= end || (root..root + roots).contains(page) {
                continue;
            }
            assert_ne!(*count, 0, "table {page:#x} of level {level} at {base:#x} is empty");
            let words: Vec<u64> = tree.entries_of(*page).map(|(_, found)| found.word).collect();
            let equal = words.len() == 512 && words.iter().all(|w| *w == words[0] && *w & 1 == 0);
            let note = self.model.get(*base);
            if let (true, Some(Value::Note(note))) = (equal, note) {
                let shallowest = R::may_stand(self.setup, note).expect("the model holds what may stand");
                assert!(shallowest >= *level, "table {page:#x} says {note:?} 512 times");
            }
        }
    }

    fn fold_block(&mut self, cpu: usize, place: Place, unit: Unit) {
        let (ia, level) = (place.resolve(self.limit), level_of(unit));
        if ia >= self.limit || level == Level::L3 {
            return;
        }
        let base = ia & !(level.size() - 1);
        let tree = self.tree();
        let child = tree.tables.iter().find(|(_, (l, at, _))| *l == unit.level() + 1 && *at == base);
        // A page of the root stands below no entry.
        let child = child.filter(|_| level >= self.setup.geometry.start());
        let wanted = child.is_some_and(|(page, _)| {
            let leaves = tree
                .entries_of(*page)
                .filter(|(_, f)| matches!(descriptor(f.word, f.level), Descriptor::Leaf(_)));
            let whole = leaves.count() == 512;
            let pieces: Vec<Piece<R::Attrs, R::Note>> = self.joined(base, base + level.size());
            let one = matches!(pieces[..], [Piece { value: Value::Memory { frame, .. }, .. }]
                if frame & ((level.size() >> 12) - 1) == 0);
            whole && one
        });
        let edges = self.edges(base, base + level.size());
        let result = self.attempt((cpu, false), &edges, |hands, table, pool| {
            table.fold_block(hands.cpu, pool, R::addr(ia), level)
        });
        self.book(wanted);
        assert_eq!(result, Ok(wanted), "fold of {base:#x} to a block of {unit:?}");
        self.check(&edges);
    }

    fn joined(&self, start: u64, end: u64) -> Vec<Piece<R::Attrs, R::Note>> {
        let mut part = crate::model::Model::default();
        for piece in self.model.pieces(start, end) {
            part.set(piece.start, piece.end, Some(piece.value));
        }
        part.joined()
    }

    /// What goes must be what may go, in whole tables; what is counted must be what went.
    fn evict(&mut self, cpu: usize, stretch: Stretch, want: u8, kinds: u8) {
        let Some((start, end)) = self.resolve(stretch, u64::MAX >> 16) else { return };
        let edges = self.edges(start, end);
        let disposable = move |frame: u64| frame >> 9 & 3 <= u64::from(kinds % 4);
        let range = R::range(start, end).expect("resolved");
        let before = self.pool.live().len();
        let result = self.attempt((cpu, false), &edges, |hands, table, pool| {
            let judge = |_, leaf: Leaf<R>| disposable(leaf.output.raw());
            table.evict(hands.cpu, pool, range, u32::from(want), judge)
        });
        let Some(freed) = self.settle(&edges, result, (end > self.limit).then_some(Refusal::Range)) else {
            return;
        };
        assert_eq!(before - self.pool.live().len(), freed as usize, "tables freed");
        let left = self.tree();
        let mut at = 0;
        let mut gone = Vec::new();
        for (ia, found) in &left.entries {
            gone.push((at, *ia));
            at = ia + size(found.level);
        }
        gone.push((at, self.limit));
        for (from, to) in gone {
            for piece in self.model.pieces(from, to) {
                assert!(freed > 0 && start <= piece.start && piece.end <= end, "{piece:x?} went");
                let memory = matches!(piece.value, Value::Memory { .. });
                assert!(memory, "{piece:x?} does not come again");
                self.model.set(piece.start, piece.end, None);
            }
        }
        self.check(&edges);
    }

    fn change(&mut self, cpu: usize, stretch: Stretch, edit: Edit) {
        let Some((start, end)) = self.resolve(stretch, u64::MAX >> 16) else { return };
        let edges = self.edges(start, end);
        let range = R::range(start, end).expect("resolved");
        let Some(refusal) = self.change_refused((start, end), edit) else { return };
        let result =
            self.attempt((cpu, false), &edges, |hands, table, _| R::edit(hands.cpu, table, range, edit));
        self.book(refusal.is_empty());
        match (result, refusal.is_empty()) {
            (Ok(_), true) => {
                let edited = |attrs| R::edited(edit, attrs).unwrap_or(attrs);
                self.model.change(start, end, edited, |note| R::edited_note(edit, note));
            }
            // Whichever comes first in the range.
            (Err(error), false) => assert!(kind(error).is_some_and(|k| refusal.contains(&k)), "{error:?}"),
            (result, _) => panic!("{result:?}, expected {refusal:?}"),
        }
        self.check(&edges);
    }

    /// The refusals that a change may meet; `None` if the regime has no such change.
    fn change_refused(&self, (start, end): (u64, u64), edit: Edit) -> Option<Vec<Refusal>> {
        if end > self.limit {
            return Some(vec![Refusal::Range]);
        }
        let mut refusals = Vec::new();
        for (ia, found) in self.tree().entries {
            let last = ia + size(found.level);
            if last <= start || ia >= end {
                continue;
            }
            if let Some(Value::Memory { attrs, .. }) = self.model.get(ia) {
                if ia < start || last > end {
                    refusals.push(Refusal::Block);
                }
                if R::expected(self.setup, self.sim.features(), R::edited(edit, attrs)?).is_none() {
                    refusals.push(Refusal::Attributes);
                }
            }
        }
        Some(refusals)
    }
}

/// Who does an operation, and where.
struct Hands<'a> {
    cpu: &'a Cpu,
    sim: &'a Sim,
}

/// The first frame that `output` names for memory at `[start, end)`.
///
/// The simulated RAM at 1 GiB holds the tables; a frame of it would be a table that is mapped.
fn output_frame(output: Output, (start, end): (u64, u64), features: &CpuFeatures) -> u64 {
    let limit = 1 << (features.pa_bits.min(48) - 12);
    let away = 16 << 18;
    let frame = match output {
        Output::Aligned => away + (start >> 12) % (limit / 4),
        Output::Congruent(unit) => {
            let pages = unit.bytes() >> 12;
            away + 64 * pages + (start >> 12) % pages
        }
        Output::Skewed(by) => away + (start >> 12) % (limit / 4) + u64::from(by),
        Output::Top(beyond) => limit + u64::from(beyond) - ((end - start) >> 12).min(limit) - 1,
    };
    frame.max(away)
}
