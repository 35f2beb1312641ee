//! The system calls that the standard library does not have.
//!
//! Invariant: the kernel reads and writes no more than the values that are passed, and keeps no address of them.

use crate::device::{Request, SNAPSHOT, Snapshot, number};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `ioctl` with a request whose argument is `T`.
///
/// # Errors
/// The kernel's.
pub(crate) fn ioctl<T: Request>(file: BorrowedFd<'_>, argument: &mut T) -> Result<()> {
    raw_ioctl(file, number::<T>(), std::ptr::from_mut(argument).cast())
}

/// RAMPART_SNAPSHOT, whose tables go to `room`.
///
/// # Errors
/// The kernel's.
pub(crate) fn ioctl_snapshot(file: BorrowedFd<'_>, request: &mut Snapshot, room: &mut [u8]) -> Result<()> {
    let wide = |size: usize| u64::try_from(size).map_err(|_| Error::from(ErrorKind::InvalidInput));
    request.buffer = wide(room.as_mut_ptr().expose_provenance())?;
    request.length = wide(room.len())?;
    raw_ioctl(file, SNAPSHOT, std::ptr::from_mut(request).cast())
}

/// `ioctl` with a number, and for an argument one that is no address: there is nothing in the first page.
///
/// # Errors
/// The kernel's.
pub(crate) fn ioctl_nowhere(file: BorrowedFd<'_>, number: u32, argument: u8) -> Result<()> {
    raw_ioctl(file, number, std::ptr::without_provenance_mut(argument.into()))
}

fn raw_ioctl(file: BorrowedFd<'_>, number: u32, argument: *mut libc::c_void) -> Result<()> {
    #[allow(
        clippy::cast_possible_wrap,
        reason = "a signed number in some C libraries; the kernel reads its 32 bits"
    )]
    let number = number as libc::Ioctl;
    // SAFETY: a request writes at most the size in its number to its argument, which has that size or is no memory, and a snapshot its tables to the room that it was given.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), number, argument) };
    if status == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// A piece of memory of the kernel to come.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Segment<'a> {
    bytes: *const u8,
    length: usize,
    at: usize,
    room: usize,
    of: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Segment<'a> {
    /// `bytes` at a physical address, followed by zeros up to `room` bytes.
    pub(crate) fn new(bytes: &'a [u8], at: usize, room: usize) -> Self {
        Self { bytes: bytes.as_ptr(), length: bytes.len(), at, room, of: std::marker::PhantomData }
    }
}

/// `kexec_load`, for this architecture and the next `reboot`.
///
/// # Errors
/// The kernel's.
pub(crate) fn kexec_load(entry: usize, segments: &[Segment<'_>]) -> Result<()> {
    // SAFETY: each segment borrows the bytes that it names, and the kernel has copied them when the call returns.
    let status =
        unsafe { libc::syscall(libc::SYS_kexec_load, entry, segments.len(), segments.as_ptr(), 0_usize) };
    if status == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Starts what `kexec_load` loaded.
///
/// # Errors
/// The kernel's: where it succeeds it does not return.
pub(crate) fn reboot_into_it() -> Result<()> {
    // SAFETY: it touches no memory of this process.
    let status = unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    if status == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
