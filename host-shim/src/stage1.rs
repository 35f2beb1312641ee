//! The shim's own stage-1 map (EL1, 4 KiB granule, 48-bit addresses; Arm ARM D8): an identity map.
//!
//! RAM is Normal write-back, writable and executable, whoever owns it: what the host may not touch is
//! for stage 2 to refuse. Everything else is Device and never executable.
#![forbid(unsafe_code)]

use crate::span::Span;

/// Entries in a table.
const ENTRIES: usize = 512;
/// VA bits below which a table of level 0..=3 translates with one entry.
const SHIFT: [u32; 4] = [39, 30, 21, 12];

const VALID: u64 = 1;
/// Table at levels 0..=2, page at level 3.
const TABLE_OR_PAGE: u64 = 1 << 1;
const ACCESS_FLAG: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;
/// UXN and PXN.
const NEVER_EXECUTE: u64 = 3 << 53;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// MAIR_EL1 for [`Kind`]: attribute 0 Device-nGnRE, attribute 1 Normal write-back.
pub const MAIR: u64 = 0xff04;

/// The same on a CPU with memory tags: attribute 1 is Tagged.
pub const MAIR_TAGGED: u64 = 0xf004;

/// How a span is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Normal, write-back, inner shareable, read, write and execute.
    Ram,
    /// Device-nGnRE, read and write.
    Device,
}

impl Kind {
    const fn attributes(self) -> u64 {
        match self {
            Self::Ram => VALID | ACCESS_FLAG | INNER_SHAREABLE | 1 << 2,
            Self::Device => VALID | ACCESS_FLAG | NEVER_EXECUTE,
        }
    }
}

/// One translation table.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct Table(pub [u64; ENTRIES]);

impl Table {
    /// A table with no valid entry.
    pub const EMPTY: Self = Self([0; ENTRIES]);
}

/// The pool has no table left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoTables;

/// A tree of tables in a pool; the first of the pool is the level-0 root.
#[derive(Debug)]
pub struct Map<'t> {
    pool: &'t mut [Table],
    used: usize,
    base: u64,
}

impl<'t> Map<'t> {
    /// An empty map in `pool`, whose tables are all empty and whose first byte is at `base`.
    #[must_use]
    pub fn new(pool: &'t mut [Table], base: u64) -> Self {
        Self { pool, used: 1, base }
    }

    /// Maps the pages that hold `span` to themselves.
    ///
    /// # Errors
    /// [`NoTables`], with the map incomplete.
    pub fn map(&mut self, span: Span, kind: Kind) -> Result<(), NoTables> {
        let whole = span.covering(crate::span::PAGE).ok_or(NoTables)?;
        self.map_level(0, 0, whole, kind)
    }

    fn map_level(&mut self, table: usize, level: usize, span: Span, kind: Kind) -> Result<(), NoTables> {
        let shift = *SHIFT.get(level).ok_or(NoTables)?;
        let mut at = span.start();
        while at < span.end() {
            let next = ((at >> shift) + 1) << shift;
            let part = Span::between(at, next.min(span.end())).ok_or(NoTables)?;
            let index = usize::try_from(at >> shift).map_err(|_| NoTables)? % ENTRIES;
            if level > 0 && part.size() == 1 << shift {
                let page = if level == 3 { TABLE_OR_PAGE } else { 0 };
                *self.entry(table, index)? = at | kind.attributes() | page;
            } else {
                let below = self.table_below(table, index, level)?;
                self.map_level(below, level + 1, part, kind)?;
            }
            at = next;
        }
        Ok(())
    }

    /// The table under an entry; a block there becomes a table that maps the same.
    fn table_below(&mut self, table: usize, index: usize, level: usize) -> Result<usize, NoTables> {
        let old = *self.entry(table, index)?;
        if old & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE {
            return usize::try_from(((old & ADDRESS) - self.base) / 4096).map_err(|_| NoTables);
        }
        let new = self.used;
        self.used += 1;
        let fresh = self.pool.get_mut(new).ok_or(NoTables)?;
        if old & VALID != 0 {
            let shift = *SHIFT.get(level + 1).ok_or(NoTables)?;
            let page = if level + 1 == 3 { TABLE_OR_PAGE } else { 0 };
            for (n, entry) in (0..).zip(&mut fresh.0) {
                *entry = (old + (n << shift)) | page;
            }
        }
        let address = self.base + 4096 * u64::try_from(new).map_err(|_| NoTables)?;
        *self.entry(table, index)? = address | TABLE_OR_PAGE | VALID;
        Ok(new)
    }

    fn entry(&mut self, table: usize, index: usize) -> Result<&mut u64, NoTables> {
        self.pool.get_mut(table).and_then(|t| t.0.get_mut(index)).ok_or(NoTables)
    }
}

#[cfg(test)]
mod tests {
    use super::{ADDRESS, ENTRIES, Kind, Map, NoTables, Table};
    use crate::span::{GIB, Span};
    use std::vec;

    const BASE: u64 = 0x7000_0000;

    /// Walks the tables by the architecture's rules: (output address, attributes).
    fn walk(pool: &[Table], va: u64) -> Option<(u64, u64)> {
        let mut table = 0;
        for shift in [39, 30, 21, 12] {
            let entry = pool[table].0[usize::try_from(va >> shift).unwrap() % ENTRIES];
            let leaf = match (entry & 3, shift) {
                (3, 12) => true,
                (1, 30 | 21) => true,
                (3, _) => false,
                _ => return None,
            };
            if leaf {
                let mask = (1_u64 << shift) - 1;
                return Some(((entry & ADDRESS & !mask) | (va & mask), entry & !ADDRESS & !2));
            }
            table = usize::try_from(((entry & ADDRESS) - BASE) / 4096).unwrap();
        }
        None
    }

    #[test]
    fn ram_with_ragged_edges_in_device_space() {
        let mut pool = vec![Table::EMPTY; 16];
        let mut map = Map::new(&mut pool, BASE);
        map.map(Span::new(0, 4 * GIB).unwrap(), Kind::Device).unwrap();
        let ram = Span::between(0x4000_3000, 0x8020_5800).unwrap();
        map.map(ram, Kind::Ram).unwrap();
        let ram = Span::between(0x4000_3000, 0x8020_6000).unwrap();
        for va in [
            0,
            0x900_0000,
            0x4000_0000,
            0x4000_2fff,
            0x4000_3000,
            0x4020_0000,
            0x7fff_ffff,
            0x8020_5fff,
            0x8020_6000,
            0xffff_ffff,
        ] {
            let kind = if ram.contains(va) { Kind::Ram } else { Kind::Device };
            assert_eq!(walk(&pool, va), Some((va, kind.attributes())), "{va:#x}");
        }
        assert_eq!(walk(&pool, 4 * GIB), None);
    }

    #[test]
    fn a_dry_pool_is_reported() {
        let mut pool = vec![Table::EMPTY; 2];
        let mut map = Map::new(&mut pool, BASE);
        assert_eq!(map.map(Span::new(0, GIB).unwrap(), Kind::Device), Ok(()));
        assert_eq!(map.map(Span::new(4096, 4096).unwrap(), Kind::Ram), Err(NoTables));
    }
}
