//! The descriptor of a snapshot: words that the host wrote become pages that a call can ask for.
#![forbid(unsafe_code)]

use super::Refused;
use crate::addr::PfnRange;
use abi::Errno;
use abi::snapshot::{END, MAGIC, MAX_TABLES, REQUEST_WORDS, Request, VERSION};
use zerocopy::transmute;

/// A descriptor as it was read, not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked(Request);

/// A descriptor that makes sense for the table. Which pages the chain has shows when it is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Pages for the root, aligned to their number.
    pub(super) root: PfnRange,
    /// Pages in the chain.
    pub(super) tables: u32,
    /// First of them, or [`END`].
    pub(super) head: u64,
}

impl Asked {
    /// The first words of a descriptor page.
    #[must_use]
    pub const fn from_words(words: [u64; REQUEST_WORDS]) -> Self {
        Self(transmute!(words))
    }

    /// What is asked for, if the table has `roots` root pages, a power of two.
    ///
    /// # Errors
    /// EINVAL: magic, version, flags or a reserved word; too many tables; a head without tables or
    /// tables without a head; another number of root pages, with the right one; a root that is not
    /// aligned or wraps. ERANGE: a root beyond physical memory.
    pub(super) fn check(self, roots: u32) -> Result<Wanted, Refused> {
        let Request { magic, version, flags, pgd_pfn, pgd_pages, nr_tables, head_pfn, reserved } = self.0;
        let known = (magic, version, flags, reserved) == (MAGIC, VERSION, 0, [0; 4]);
        if !known || nr_tables > MAX_TABLES || (head_pfn == END) != (nr_tables == 0) {
            return Err(Errno::Einval.into());
        }
        if pgd_pages != roots {
            return Err(Refused { needed: roots, ..Errno::Einval.into() });
        }
        let roots = u64::from(roots);
        if pgd_pfn & roots.wrapping_sub(1) != 0 {
            return Err(Refused::at(Errno::Einval, 1));
        }
        let root = PfnRange::new(pgd_pfn, roots).map_err(|e| Refused::at(e, 1))?;
        Ok(Wanted { root, tables: nr_tables, head: head_pfn })
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, Wanted};
    use crate::addr::{PFN_LIMIT, PfnRange};
    use abi::Errno::{Einval, Erange};
    use abi::snapshot::{END, MAGIC, MAX_TABLES, Request, VERSION};

    const GOOD: Request = Request {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        pgd_pfn: 0x4_0004,
        pgd_pages: 2,
        nr_tables: 3,
        head_pfn: 7,
        reserved: [0; 4],
    };

    /// Errno, needed, index.
    fn check(asked: Request) -> Result<Wanted, (abi::Errno, u32, u64)> {
        Asked(asked).check(2).map_err(|e| (e.error.errno(), e.needed, e.index))
    }

    #[test]
    fn what_the_descriptor_may_say() {
        let root = PfnRange::new(0x4_0004, 2).unwrap();
        assert_eq!(check(GOOD), Ok(Wanted { root, tables: 3, head: 7 }));
        assert!(check(Request { nr_tables: MAX_TABLES, ..GOOD }).is_ok());
        let none = Wanted { root, tables: 0, head: END };
        assert_eq!(check(Request { nr_tables: 0, head_pfn: END, ..GOOD }), Ok(none));
    }

    /// S-07.
    #[test]
    fn what_it_may_not() {
        let mut reserved = [[0; 4]; 4];
        for (n, words) in reserved.iter_mut().enumerate() {
            words[n] = 1 << n;
        }
        for bad in [
            Request { magic: MAGIC ^ 1, ..GOOD },
            Request { version: 2, ..GOOD },
            Request { version: 0, ..GOOD },
            Request { flags: 1 << 15, ..GOOD },
            Request { reserved: reserved[0], ..GOOD },
            Request { reserved: reserved[3], ..GOOD },
            Request { nr_tables: MAX_TABLES + 1, ..GOOD },
            Request { nr_tables: u32::MAX, ..GOOD },
            Request { nr_tables: 0, ..GOOD },
            Request { head_pfn: END, ..GOOD },
        ] {
            assert_eq!(check(bad), Err((Einval, 0, 0)), "{bad:x?}");
        }
        for pgd_pages in [0, 1, 3, 1 << 31, u32::MAX] {
            assert_eq!(check(Request { pgd_pages, ..GOOD }), Err((Einval, 2, 0)));
        }
        for (pgd_pfn, errno) in [
            (0x4_0005, Einval),
            (u64::MAX, Einval),
            (u64::MAX - 1, Einval),
            (PFN_LIMIT, Erange),
            (1 << 52, Erange),
            (1 << 63, Erange),
        ] {
            assert_eq!(check(Request { pgd_pfn, ..GOOD }), Err((errno, 0, 1)), "{pgd_pfn:#x}");
        }
    }
}
