//! What an address space is, without tables: intervals and what they say.
#![forbid(unsafe_code)]

use hyp::addr::PAGE_SHIFT;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// What an interval says; `A` are the attributes of memory, `N` the notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<A, N> {
    /// Memory from this frame on.
    Memory {
        /// First frame.
        frame: u64,
        /// Attributes.
        attrs: A,
    },
    /// A note, about its first page.
    Note(N),
}

/// A note that may name one page after another.
pub trait Advance: Copy + Debug + PartialEq {
    /// The note of the page `pages` further on.
    #[must_use]
    fn advance(self, pages: u64) -> Self;
}

impl Advance for std::convert::Infallible {
    fn advance(self, _: u64) -> Self {
        self
    }
}

impl<A: Copy, N: Advance> Value<A, N> {
    fn advance(self, bytes: u64) -> Self {
        let pages = bytes >> PAGE_SHIFT;
        match self {
            Self::Memory { frame, attrs } => Self::Memory { frame: frame + pages, attrs },
            Self::Note(note) => Self::Note(note.advance(pages)),
        }
    }
}

/// An interval `[start, end)` and what its first page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<A, N> {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What the first page says.
    pub value: Value<A, N>,
}

/// An address space.
#[derive(Clone, Debug)]
pub struct Model<A, N> {
    pieces: BTreeMap<u64, (u64, Value<A, N>)>,
}

impl<A, N> Default for Model<A, N> {
    fn default() -> Self {
        Self { pieces: BTreeMap::new() }
    }
}

impl<A: Copy + PartialEq + Debug, N: Advance> Model<A, N> {
    /// What the page at `ia` says, if anything.
    #[must_use]
    pub fn get(&self, ia: u64) -> Option<Value<A, N>> {
        let (start, (end, value)) = self.pieces.range(..=ia).next_back()?;
        (ia < *end).then(|| value.advance(ia - start))
    }

    /// All that stands in `[start, end)`, cut to it, in ascending order.
    #[must_use]
    pub fn pieces(&self, start: u64, end: u64) -> Vec<Piece<A, N>> {
        if start >= end {
            return Vec::new();
        }
        let first = self.pieces.range(..=start).next_back().map_or(start, |(at, _)| *at);
        let overlapping = self.pieces.range(first..end).filter(|(_, (stop, _))| *stop > start);
        let cut = overlapping.map(|(at, (stop, value))| {
            let from = start.max(*at);
            Piece { start: from, end: end.min(*stop), value: value.advance(from - at) }
        });
        cut.collect()
    }

    /// True if nothing stands in `[start, end)`.
    #[must_use]
    pub fn is_empty(&self, start: u64, end: u64) -> bool {
        self.pieces(start, end).is_empty()
    }

    /// Lets `[start, end)` say `value`, or nothing.
    pub fn set(&mut self, start: u64, end: u64, value: Option<Value<A, N>>) {
        let overlapping: Vec<u64> = {
            let first = self.pieces.range(..=start).next_back().map_or(start, |(at, _)| *at);
            self.pieces.range(first..end).filter(|(_, (stop, _))| *stop > start).map(|(at, _)| *at).collect()
        };
        for at in overlapping {
            let Some((stop, old)) = self.pieces.remove(&at) else { continue };
            if at < start {
                self.pieces.insert(at, (start, old));
            }
            if stop > end {
                self.pieces.insert(end, (stop, old.advance(end - at)));
            }
        }
        if let Some(value) = value {
            self.pieces.insert(start, (end, value));
        }
    }

    /// Changes the attributes of all memory in `[start, end)`, and the notes there.
    pub fn change(&mut self, start: u64, end: u64, change: impl Fn(A) -> A, note: impl Fn(N) -> N) {
        for piece in self.pieces(start, end) {
            let value = match piece.value {
                Value::Memory { frame, attrs } => Value::Memory { frame, attrs: change(attrs) },
                Value::Note(old) => Value::Note(note(old)),
            };
            self.set(piece.start, piece.end, Some(value));
        }
    }

    /// The same space with neighbours that say one thing joined: two models are equal if these are.
    #[must_use]
    pub fn joined(&self) -> Vec<Piece<A, N>> {
        let mut joined: Vec<Piece<A, N>> = Vec::new();
        for (&start, &(end, value)) in &self.pieces {
            match joined.last_mut() {
                Some(last) if last.end == start && last.value.advance(start - last.start) == value => {
                    last.end = end
                }
                _ => joined.push(Piece { start, end, value }),
            }
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::{Model, Piece, Value};
    use std::convert::Infallible;

    const M: u64 = 0x1000;

    fn memory(frame: u64, attrs: char) -> Value<char, Infallible> {
        Value::Memory { frame, attrs }
    }

    #[test]
    fn a_hole_leaves_both_ends() {
        let mut model = Model::default();
        model.set(0, 8 * M, Some(memory(100, 'a')));
        model.set(3 * M, 5 * M, None);
        assert_eq!(model.get(2 * M), Some(memory(102, 'a')));
        assert_eq!(model.get(3 * M), None);
        assert_eq!(model.get(5 * M), Some(memory(105, 'a')));
        assert_eq!(model.get(8 * M), None);
        assert_eq!(
            model.pieces(M, 6 * M),
            [
                Piece { start: M, end: 3 * M, value: memory(101, 'a') },
                Piece { start: 5 * M, end: 6 * M, value: memory(105, 'a') },
            ]
        );
    }

    #[test]
    fn neighbours_join_only_if_frames_go_on() {
        let mut model = Model::default();
        model.set(0, M, Some(memory(1, 'a')));
        model.set(M, 2 * M, Some(memory(2, 'a')));
        model.set(2 * M, 3 * M, Some(memory(7, 'a')));
        assert_eq!(model.joined().len(), 2);
        model.change(M, 2 * M, |_| 'b', |note| note);
        assert_eq!(model.joined().len(), 3);
    }
}
