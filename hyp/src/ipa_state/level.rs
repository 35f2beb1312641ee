//! Ranges as the largest entries that fit.
#![forbid(unsafe_code)]

use crate::addr::IpaRange;
use crate::pgtable::Level;

/// The level with the largest entries, not above `shallowest`, of which one lies at `start` and
/// ends at or before `end`. `start` and `end` are multiples of 4096, `start` is below `end`.
#[must_use]
pub const fn find_map_level(start: u64, end: u64, shallowest: Level) -> Level {
    let mut level = shallowest;
    // The length, not the sum: at the end of the address space that would wrap.
    let length = end.saturating_sub(start);
    while !level.is_aligned(start) || length < level.size() {
        match level.deeper() {
            Some(deeper) => level = deeper,
            None => break,
        }
    }
    level
}

/// The entries, none above `shallowest`, that tile `range`: the largest that fit, in order.
pub fn tiles(range: IpaRange, shallowest: Level) -> impl Iterator<Item = (u64, Level)> {
    let (mut at, end) = (range.start().raw(), range.end());
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (start, level) = (at, find_map_level(at, end, shallowest));
        at = at.saturating_add(level.size());
        Some((start, level))
    })
}

#[cfg(test)]
mod tests {
    use super::{IpaRange, Level, find_map_level, tiles};
    use crate::addr::MAX_PA_BITS;
    use proptest::prelude::*;

    const NOTES: [Level; 3] = [Level::L1, Level::L2, Level::L3];

    fn range(start: u64, end: u64) -> IpaRange {
        IpaRange::new(start, end, MAX_PA_BITS).unwrap()
    }

    #[test]
    fn the_start_level_itself_is_used_and_none_above_it() {
        let gib = Level::L1.size();
        assert_eq!(find_map_level(0, gib, Level::L1), Level::L1);
        assert_eq!(find_map_level(0, 1 << 48, Level::L2), Level::L2);
        assert_eq!(find_map_level(0, gib - 4096, Level::L1), Level::L2);
        assert_eq!(find_map_level(4096, gib, Level::L1), Level::L3);
        assert_eq!(find_map_level((1 << 48) - 4096, 1 << 48, Level::L1), Level::L3);
    }

    /// Edges of entries, and frames near them.
    fn address() -> impl Strategy<Value = u64> {
        let near = |shift: u32| {
            (0..(1_u64 << 48) >> shift, -2..=2_i64)
                .prop_map(move |(n, off)| ((n << shift).saturating_add_signed(off << 12)).min(1 << 48))
        };
        prop_oneof![near(12), near(21), near(30)]
    }

    proptest! {
        /// Tiles are aligned, disjoint, in order and cover the range and nothing else, with both
        /// geometries (walks of four levels and of three), and none could have been larger.
        #[test]
        fn r_23_any_range_is_tiled_exactly_by_aligned_chunks(a in address(), len in 1..1_u64 << 20, b in address()) {
            for end in [a.saturating_add(len << 12).min(1 << 48), b] {
                let (start, end) = (a.min(end), a.max(end));
                // A range of many GiB at level 3 is no more telling than its first few.
                let end = end.min(start.saturating_add(3 << 30));
                if start == end {
                    continue;
                }
                for shallowest in NOTES {
                    let mut at = start;
                    for (tile, level) in tiles(range(start, end), shallowest).take(5000) {
                        prop_assert_eq!(tile, at);
                        prop_assert!(level >= shallowest && level.is_aligned(tile));
                        at = at.saturating_add(level.size());
                        prop_assert!(at <= end);
                        if level > shallowest {
                            let above = level.shallower().unwrap();
                            prop_assert!(!above.is_aligned(tile) || tile.saturating_add(above.size()) > end);
                        }
                    }
                    let counted = tiles(range(start, end), shallowest).take(5000).count();
                    prop_assert!(at == end || counted == 5000);
                }
            }
        }
    }
}
