//! Mapped memory that a guest or the kernel writes too: it is only ever copied.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};

/// What a 2 MiB block begins at a multiple of.
const BLOCK: usize = 2 << 20;

/// The size of the pages of which Linux makes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// 4 KiB.
    Small,
    /// 2 MiB where it has them.
    Huge,
}

/// Mapped memory, unmapped when it is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    whole: NonNull<libc::c_void>,
    whole_length: usize,
    /// Where the part of interest begins.
    skip: usize,
    length: usize,
}

impl Mapping {
    /// Memory that is there, and stays where it is, at a multiple of 2 MiB.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn locked(length: usize, pages: Pages) -> Result<Self> {
        let mapping = Self::anonymous(length, pages)?;
        let at = mapping.whole.as_ptr().wrapping_byte_add(mapping.skip);
        // SAFETY: locks pages of the mapping itself, which changes none of their contents.
        let status = unsafe { libc::mlock(at, length) };
        if status == 0 { Ok(mapping) } else { Err(Error::last_os_error()) }
    }

    /// Memory that nobody has touched yet, at a multiple of 2 MiB.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn anonymous(length: usize, pages: Pages) -> Result<Self> {
        let whole_length = length.checked_add(BLOCK).ok_or(ErrorKind::InvalidInput)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mut mapping = Self::new(whole_length, flags, -1)?;
        let start = mapping.whole.addr().get();
        mapping.skip = start.next_multiple_of(BLOCK).saturating_sub(start);
        mapping.length = length;
        let advice = match pages {
            Pages::Small => libc::MADV_NOHUGEPAGE,
            Pages::Huge => libc::MADV_HUGEPAGE,
        };
        // SAFETY: advice about pages of the mapping itself, which changes none of its contents.
        let status = unsafe { libc::madvise(mapping.whole.as_ptr(), whole_length, advice) };
        if status == 0 { Ok(mapping) } else { Err(Error::last_os_error()) }
    }

    /// The first `length` bytes of `file`.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn of(file: BorrowedFd<'_>, length: usize) -> Result<Self> {
        Self::new(length, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn new(length: usize, flags: i32, file: i32) -> Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that there is.
        let at = unsafe { libc::mmap(null_mut(), length, access, flags, file, 0) };
        if at == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let whole = NonNull::new(at).ok_or(ErrorKind::OutOfMemory)?;
        Ok(Self { whole, whole_length: length, skip: 0, length })
    }

    /// Bytes.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Its first address, for the kernel.
    pub(crate) fn address(&self) -> usize {
        self.whole.as_ptr().expose_provenance().wrapping_add(self.skip)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// There is no room for them at `offset`.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.within(offset, bytes.len())?;
        // SAFETY: `within` has seen that all of it is in the mapping, to which there are no references.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// There are not so many at `offset`.
    pub(crate) fn read<const N: usize>(&self, offset: usize) -> Result<[u8; N]> {
        let from = self.within(offset, N)?.cast::<[u8; N]>();
        // SAFETY: `within` has seen that all of it is in the mapping; bytes have no alignment and no wrong value.
        Ok(unsafe { from.read_volatile() })
    }

    /// Writes a byte, so that the page is there.
    ///
    /// # Errors
    /// There is none at `offset`.
    pub(crate) fn touch(&self, offset: usize) -> Result<()> {
        let to = self.within(offset, 1)?;
        // SAFETY: `within` has seen that the byte is in the mapping, to which there are no references.
        unsafe { to.write_volatile(1) };
        Ok(())
    }

    fn within(&self, offset: usize, length: usize) -> Result<*mut u8> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(ErrorKind::InvalidInput.into());
        }
        Ok(self.whole.as_ptr().cast::<u8>().wrapping_add(self.skip).wrapping_add(offset))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is the value's own, and what was made of its address has ended before.
        unsafe { libc::munmap(self.whole.as_ptr(), self.whole_length) };
    }
}
