//! Why a table operation refused. Nothing was changed, except that [`Error::NoTables`] may leave
//! a block split into a table that says the same.
#![forbid(unsafe_code)]

use super::entry::{BadAttrs, Corrupt};
use super::level::{GeometryError, Level};
use crate::addr::{AddrError, Pfn};
use abi::Errno;

/// A refusal, with what caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The range or address is not in the table's input space.
    Range(AddrError),
    /// An entry that nothing here wrote.
    Corrupt {
        /// First input address of the entry.
        ia: u64,
        /// Its level.
        level: Level,
        /// The word that was read.
        word: u64,
        /// What is wrong with it.
        why: Corrupt,
    },
    /// The pool has too few pages.
    NoTables {
        /// Pages that are still missing.
        needed: u32,
    },
    /// Something stands where nothing may.
    Exists {
        /// First input address of the entry that is in the way.
        ia: u64,
    },
    /// Nothing is mapped where a leaf is needed.
    NotMapped {
        /// The input address.
        ia: u64,
    },
    /// A block reaches out of the range.
    Block {
        /// First input address of the block.
        ia: u64,
        /// Its level.
        level: Level,
    },
    /// The attributes cannot be encoded in this table.
    Attrs(BadAttrs),
    /// The output range ends beyond the CPU's physical addresses.
    Output(Pfn),
    /// The note may not stand in this table.
    NoteRefused,
    /// No table has this shape.
    Geometry(GeometryError),
    /// The root is not aligned to its size, or beyond the CPU's physical addresses.
    Root(Pfn),
    /// The CPU has fewer VMID bits.
    Vmid(u16),
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Range(e) => Self::Addr(e),
            Error::Corrupt { .. } => Self::Errno(Errno::Eio),
            Error::NoTables { .. } => Self::Errno(Errno::Enomem),
            Error::Exists { .. } => Self::Errno(Errno::Eexist),
            Error::NotMapped { .. } => Self::Errno(Errno::Enoent),
            Error::Block { .. } => Self::Errno(Errno::E2big),
            Error::Output(_) => Self::Errno(Errno::Erange),
            Error::Attrs(_) | Error::NoteRefused | Error::Geometry(_) | Error::Root(_) | Error::Vmid(_) => {
                Self::Errno(Errno::Einval)
            }
        }
    }
}

impl From<GeometryError> for Error {
    fn from(e: GeometryError) -> Self {
        Self::Geometry(e)
    }
}

impl From<BadAttrs> for Error {
    fn from(e: BadAttrs) -> Self {
        Self::Attrs(e)
    }
}
