//! The archive in which the loader hands over the guest's kernel and its RAM disk: `newc` of cpio
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Where in memory a file of it is.
#![forbid(unsafe_code)]

use crate::span::Span;
use core::fmt;

const MAGIC: &[u8; 6] = b"070701";
const HEADER: u64 = 110;
/// Headers and contents begin at multiples of this.
const ALIGNMENT: u64 = 4;
/// Of the fields of eight hexadecimal digits behind the magic number: length of the file, and of its name with the
/// 0 that ends it.
const FILE_SIZE: u64 = 6;
const NAME_SIZE: u64 = 11;
/// The longest name that is looked for.
const LONGEST: usize = 16;
const END: &[u8] = b"TRAILER!!!";

/// Why a file is not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// There is no header where one should be.
    Malformed(u64),
    /// The archive ends in the middle of a file.
    Truncated(u64),
    /// All files have other names.
    Missing(&'static str),
    /// The file has no bytes.
    Empty(&'static str),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(at) => write!(f, "no cpio archive: no header at byte {at:#x}"),
            Self::Truncated(at) => {
                write!(f, "the cpio archive ends in the file whose header is at byte {at:#x}")
            }
            Self::Missing(name) => write!(f, "the cpio archive has no file {name}"),
            Self::Empty(name) => write!(f, "{name} in the cpio archive is empty"),
        }
    }
}

/// An archive in memory, of which `byte` reads any byte.
pub struct Archive<'a> {
    place: Span,
    byte: &'a dyn Fn(u64) -> u8,
}

impl fmt::Debug for Archive<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("place", &self.place).finish_non_exhaustive()
    }
}

/// One file: where its name, its contents and the next header are, counted from the archive's first byte.
struct Entry {
    name: u64,
    name_size: u64,
    contents: u64,
    size: u64,
    next: u64,
}

impl<'a> Archive<'a> {
    /// The archive at `place`; `byte` is asked for bytes in it alone.
    #[must_use]
    pub fn new(place: Span, byte: &'a dyn Fn(u64) -> u8) -> Self {
        Self { place, byte }
    }

    /// Where the contents of the first file of this name are.
    ///
    /// # Errors
    /// As [`ArchiveError`] says.
    pub fn find(&self, name: &'static str) -> Result<Span, ArchiveError> {
        let mut at = 0;
        loop {
            let entry = self.entry(at)?;
            if self.is_named(&entry, name.as_bytes()) {
                return Span::new(self.place.start() + entry.contents, entry.size)
                    .ok_or(ArchiveError::Empty(name));
            }
            if self.is_named(&entry, END) {
                return Err(ArchiveError::Missing(name));
            }
            at = entry.next;
        }
    }

    /// The byte at an offset, if the archive has it.
    fn at(&self, offset: u64) -> Option<u8> {
        (offset < self.place.size()).then(|| (self.byte)(self.place.start() + offset))
    }

    fn entry(&self, at: u64) -> Result<Entry, ArchiveError> {
        let malformed = ArchiveError::Malformed(at);
        if !(at..).zip(MAGIC).all(|(at, byte)| self.at(at) == Some(*byte)) {
            return Err(malformed);
        }
        let field = |nth: u64| {
            let digits = at + 6 + 8 * nth..at + 14 + 8 * nth;
            digits.into_iter().try_fold(0_u64, |value, at| {
                let digit = char::from(self.at(at)?).to_digit(16)?;
                Some(value << 4 | u64::from(digit))
            })
        };
        let (size, name_size) = field(FILE_SIZE).zip(field(NAME_SIZE)).ok_or(malformed)?;
        // Fields have 32 bits and offsets fewer than 64: nothing overflows.
        let name = at + HEADER;
        let contents = (name + name_size).next_multiple_of(ALIGNMENT);
        let end = contents + size;
        if end > self.place.size() {
            return Err(ArchiveError::Truncated(at));
        }
        Ok(Entry { name, name_size, contents, size, next: end.next_multiple_of(ALIGNMENT) })
    }

    fn is_named(&self, entry: &Entry, name: &[u8]) -> bool {
        let bytes = (entry.name..).map_while(|at| self.at(at)).take(LONGEST);
        entry.name_size == name.len() as u64 + 1 && bytes.take(name.len()).eq(name.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::{Archive, ArchiveError};
    use crate::span::Span;
    use std::format;
    use std::vec::Vec;

    fn entry(archive: &mut Vec<u8>, name: &str, contents: &[u8]) {
        let (size, name_size) = (contents.len(), name.len() + 1);
        archive.extend(b"070701");
        for field in [1, 0, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(contents);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    fn sample() -> Vec<u8> {
        let mut archive = Vec::new();
        entry(&mut archive, "Image", b"kernel");
        entry(&mut archive, "none", b"");
        entry(&mut archive, "initrd", b"the disk");
        entry(&mut archive, "TRAILER!!!", b"");
        archive
    }

    fn find(archive: &[u8], name: &'static str) -> Result<Vec<u8>, ArchiveError> {
        const AT: u64 = 0x5000_0003;
        let byte = |at: u64| archive[usize::try_from(at - AT).unwrap()];
        let place = Span::new(AT, archive.len() as u64).unwrap();
        let found = Archive::new(place, &byte).find(name)?;
        Ok((found.start()..found.end()).map(byte).collect())
    }

    #[test]
    fn files_are_found_by_their_whole_names() {
        assert_eq!(find(&sample(), "Image").unwrap(), b"kernel");
        assert_eq!(find(&sample(), "initrd").unwrap(), b"the disk");
        assert_eq!(find(&sample(), "Imag"), Err(ArchiveError::Missing("Imag")));
        assert_eq!(find(&sample(), "none"), Err(ArchiveError::Empty("none")));
    }

    #[test]
    fn an_archive_that_ends_early_is_refused_wherever_it_ends() {
        let whole = sample();
        // Behind the disk's last byte a search for it needs nothing more.
        let disk_ends = whole.windows(8).position(|bytes| bytes == b"the disk").unwrap() + 8;
        for length in 1..disk_ends {
            let error = find(&whole[..length], "initrd").unwrap_err();
            assert!(matches!(error, ArchiveError::Malformed(_) | ArchiveError::Truncated(_)), "{length}");
        }
        assert!(find(&whole[..disk_ends], "initrd").is_ok());
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        assert_eq!(find(b"MZ and more", "Image"), Err(ArchiveError::Malformed(0)));
        let mut bad_digit = sample();
        bad_digit[6 + 8 * 6] = b'x';
        assert_eq!(find(&bad_digit, "Image"), Err(ArchiveError::Malformed(0)));
        let mut huge = sample();
        huge[6 + 8 * 6..][..8].copy_from_slice(b"ffffffff");
        assert_eq!(find(&huge, "Image"), Err(ArchiveError::Truncated(0)));
    }
}
