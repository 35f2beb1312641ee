//! virtio 1.2 over MMIO: a console (OASIS Virtual I/O Device 1.2, 2.7 split queues, 4.2 MMIO, 5.3
//! console).
//!
//! Rings and buffers are in memory that guest and host share, and the guest may change them at any
//! time. So each word of a ring is read once and checked after; every address goes through
//! [`SharedMemory`], which refuses what is not shared; and each call does a bounded amount of work, however a
//! ring loops. A ring that makes no sense stops the device until the guest resets it
//! (DEVICE_NEEDS_RESET), and nothing else.
//!
//! The maintained crates for queues need an allocator and memory that can be borrowed, which guest
//! memory of this host is not.

mod console;
mod ring;
mod transport;

pub use console::Console;

use thiserror::Error;

/// Some of the bytes are not memory that the guest shares with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not shared memory")]
pub struct NotShared;

/// Memory that a guest shares with the host, by the address that the guest gives its devices. For a realm
/// that is the one in the shared half, with the bit; for another VM any of its RAM.
///
/// Accesses are in the order in which they are made, also as the guest sees them, and one of 2 bytes at a
/// multiple of 2 is a single access. Bytes beside those that are written are not touched.
pub trait SharedMemory {
    /// Reads the bytes at `address`.
    ///
    /// # Errors
    /// [`NotShared`] if that is not, or not all, shared memory; `into` may then be partly written.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), NotShared>;

    /// Writes the bytes at `address`.
    ///
    /// # Errors
    /// [`NotShared`] if that is not, or not all, shared memory; what is may be written.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), NotShared>;
}
