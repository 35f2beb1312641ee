//! A map from numbers to values that stores runs, so that a machine with millions of pages in a
//! few states is a few entries.
//!
//! Invariant: runs are sorted, disjoint and as long as they can be, so two maps that say the same
//! are equal. One that ran out of room says so ([`RangeMap::is_full`]) and stays that way: what it
//! holds is not to be trusted any more. A value; no lock.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;

/// What a map can hold: a value may depend on its key's place in the run.
pub trait Value: Copy + PartialEq {
    /// The value `by` keys further on in the same run.
    #[must_use]
    fn advanced(self, by: u64) -> Self;
}

/// Consecutive keys with one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run<V> {
    /// First key.
    pub start: u64,
    /// One past the last key.
    pub end: u64,
    /// The first key's value.
    pub value: V,
}

impl<V: Value> Run<V> {
    fn at(&self, key: u64) -> V {
        self.value.advanced(key.saturating_sub(self.start))
    }

    fn goes_on_in(&self, next: &Self) -> bool {
        self.end == next.start && self.at(next.start) == next.value
    }
}

/// The map, with room for `N` runs.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct RangeMap<V, const N: usize> {
    runs: ArrayVec<Run<V>, N>,
    full: bool,
}

impl<V: Value, const N: usize> Clone for RangeMap<V, N> {
    fn clone(&self) -> Self {
        Self { runs: self.runs.clone(), full: self.full }
    }

    /// Copies in place: maps with room for many runs do not fit on EL2's stack.
    fn clone_from(&mut self, source: &Self) {
        self.runs.clear();
        self.runs.extend(source.runs.iter().copied());
        self.full = source.full;
    }
}

impl<V: Value, const N: usize> Default for RangeMap<V, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Value, const N: usize> RangeMap<V, N> {
    /// A map without keys.
    #[must_use]
    pub const fn new() -> Self {
        Self { runs: ArrayVec::new_const(), full: false }
    }

    /// True if something did not fit.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// The runs in ascending order.
    #[must_use]
    pub fn runs(&self) -> &[Run<V>] {
        &self.runs
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.full = false;
    }

    /// Index of the first run that ends after `key`.
    fn first_after(&self, key: u64) -> usize {
        self.runs.partition_point(|run| run.end <= key)
    }

    /// The value of `key`, if it has one.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<V> {
        self.runs.get(self.first_after(key)).filter(|run| run.start <= key).map(|run| run.at(key))
    }

    /// One past the last key that has what `key` has, a value's continuation or none.
    fn stretch(&self, key: u64) -> u64 {
        match self.runs.get(self.first_after(key)) {
            Some(run) if run.start <= key => run.end,
            Some(run) => run.start,
            None => u64::MAX,
        }
    }

    /// The runs of `start..end` with what each has: a value's continuation or none.
    pub fn stretches(&self, start: u64, end: u64) -> impl Iterator<Item = Run<Option<V>>> + '_ {
        let mut key = start;
        core::iter::from_fn(move || {
            let (from, to) = (key, self.stretch(key).min(end));
            key = to;
            (from < end).then(|| Run { start: from, end: to, value: self.get(from) })
        })
    }

    /// Where this map and `other` differ, with what each has there.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = Run<(Option<V>, Option<V>)>> + 'a {
        let mut key = 0;
        core::iter::from_fn(move || {
            loop {
                let (start, end) = (key, self.stretch(key).min(other.stretch(key)));
                let value = (self.get(start), other.get(start));
                if start == u64::MAX {
                    return None;
                }
                key = end;
                if value.0 != value.1 {
                    return Some(Run { start, end, value });
                }
            }
        })
    }

    /// Gives the keys `start..end` the value `value`, advanced from key to key.
    pub fn set(&mut self, start: u64, end: u64, value: V) {
        let at = self.clear_range(start, end);
        self.insert(at, Run { start, end, value });
        self.join(at);
        if let Some(before) = at.checked_sub(1) {
            self.join(before);
        }
    }

    /// Takes the keys `start..end` out of the map.
    pub fn remove(&mut self, start: u64, end: u64) {
        self.clear_range(start, end);
    }

    /// [`RangeMap::remove`], and the place where a run that starts at `start` belongs.
    fn clear_range(&mut self, start: u64, end: u64) -> usize {
        self.cut(start);
        self.cut(end);
        let first = self.first_after(start);
        let last = self.runs.partition_point(|run| run.start < end).max(first);
        self.runs.drain(first..last);
        first
    }

    /// Makes a border at `key`.
    fn cut(&mut self, key: u64) {
        let index = self.first_after(key);
        let Some(run) = self.runs.get_mut(index).filter(|run| run.start < key) else { return };
        let upper = Run { start: key, end: run.end, value: run.at(key) };
        run.end = key;
        self.insert(index.saturating_add(1), upper);
    }

    fn insert(&mut self, index: usize, run: Run<V>) {
        if self.runs.try_insert(index, run).is_err() {
            self.full = true;
        }
    }

    /// Joins the run at `index` with the next one if they say the same.
    fn join(&mut self, index: usize) {
        let next = index.saturating_add(1);
        if let (Some(&run), Some(&after)) = (self.runs.get(index), self.runs.get(next))
            && run.goes_on_in(&after)
        {
            self.runs.remove(next);
            if let Some(run) = self.runs.get_mut(index) {
                run.end = after.end;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "small numbers of a test")]
mod tests {
    use super::{RangeMap, Value};
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Tone {
        Flat(u8),
        Rising(u64),
    }

    impl Value for Tone {
        fn advanced(self, by: u64) -> Self {
            match self {
                Self::Flat(_) => self,
                Self::Rising(n) => Self::Rising(n + by),
            }
        }
    }

    /// A generator of numbers below `n` (Knuth's MMIX constants, upper bits).
    fn random(state: &mut u64, n: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % n
    }

    #[test]
    fn it_agrees_with_a_map_of_single_keys_and_stores_the_fewest_runs() {
        let mut seed = 1;
        let mut map = RangeMap::<Tone, 64>::new();
        let mut plain = BTreeMap::new();
        for _ in 0..5000 {
            let start = random(&mut seed, 40);
            let end = start + random(&mut seed, 40 - start) + 1;
            match random(&mut seed, 4) {
                0 => {
                    map.remove(start, end);
                    (start..end).for_each(|key| _ = plain.remove(&key));
                }
                1 => {
                    let from = random(&mut seed, 3) + start;
                    map.set(start, end, Tone::Rising(from));
                    (start..end).for_each(|key| _ = plain.insert(key, Tone::Rising(from + key - start)));
                }
                n => {
                    let value = Tone::Flat(u8::try_from(n).unwrap());
                    map.set(start, end, value);
                    (start..end).for_each(|key| _ = plain.insert(key, value));
                }
            }
            for key in 0..42 {
                assert_eq!(map.get(key), plain.get(&key).copied());
            }
            let borders = plain
                .iter()
                .filter(|&(&key, &value)| {
                    key.checked_sub(1).and_then(|k| plain.get(&k)).map(|v| v.advanced(1)) != Some(value)
                })
                .count();
            assert_eq!(map.runs().len(), borders, "{map:?}");
        }
        assert!(!map.is_full());
    }

    #[test]
    fn differences_are_exactly_the_keys_that_differ() {
        let (mut a, mut b) = (RangeMap::<Tone, 8>::new(), RangeMap::<Tone, 8>::new());
        a.set(0, 10, Tone::Rising(100));
        b.set(0, 4, Tone::Rising(100));
        b.set(6, 12, Tone::Rising(106));
        let found: std::vec::Vec<_> = a.differences(&b).map(|run| (run.start, run.end, run.value)).collect();
        let rising = |n| Some(Tone::Rising(n));
        assert_eq!(found, [(4, 6, (rising(104), None)), (10, 12, (None, rising(110)))]);
        assert_eq!(a.differences(&a).count(), 0);
        let of_b: std::vec::Vec<_> = b.stretches(2, 9).map(|run| (run.start, run.end, run.value)).collect();
        assert_eq!(of_b, [(2, 4, rising(102)), (4, 6, None), (6, 9, rising(106))]);
    }

    #[test]
    fn a_map_without_room_says_so() {
        let mut map = RangeMap::<Tone, 2>::new();
        map.set(0, 10, Tone::Flat(0));
        map.set(4, 5, Tone::Flat(1));
        assert!(map.is_full());
    }
}
