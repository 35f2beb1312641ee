//! The one error type that crosses modules, and the one place where it becomes an errno.
#![forbid(unsafe_code)]

use crate::addr::AddrError;
use abi::Errno;

/// Why a service refused. Modules with richer errors convert into it at their border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Arguments that make no address or range.
    Addr(AddrError),
    /// The VM's table cache lacks this many pages: ENOMEM, and the caller is told how many.
    NoTables(u32),
    /// Anything that is named by its errno alone.
    Errno(Errno),
}

impl Error {
    /// The errno that the caller sees.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Addr(AddrError::OutOfSpace(_)) => Errno::Erange,
            Self::Addr(_) => Errno::Einval,
            Self::NoTables(_) => Errno::Enomem,
            Self::Errno(e) => e,
        }
    }
}

impl From<AddrError> for Error {
    fn from(e: AddrError) -> Self {
        Self::Addr(e)
    }
}

impl From<Errno> for Error {
    fn from(e: Errno) -> Self {
        Self::Errno(e)
    }
}
