//! A split virtqueue, device side.
//!
//! Invariant: a [`Ring`] has a size that is a power of two, and tables that are aligned and do not pass
//! the end of the addresses. What is in them is the guest's, at every read.

use super::{NotShared, SharedMemory};
use thiserror::Error;

/// Descriptors that a queue can have. Linux fills the one for input with a page each, and a small realm
/// has few to bounce them: with 64 there would be none left for output.
pub(super) const MAX_SIZE: u16 = 16;

const DESCRIPTOR: u64 = 16;
const NEXT: u16 = 1 << 0;
const WRITE: u16 = 1 << 1;
const INDIRECT: u16 = 1 << 2;
/// Where the index is in the driver's and in the device's ring, and where their entries begin.
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;

/// The guest's ring is not one: the device has to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a virtqueue that makes no sense")]
pub(super) struct Broken;

impl From<NotShared> for Broken {
    fn from(_: NotShared) -> Self {
        Self
    }
}

/// What the guest has said of a queue, before it says that this is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) size: u32,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

/// A queue in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ring {
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// Entries taken from the driver's ring, and put in the device's, modulo 2^16.
    taken: u16,
    used: u16,
    /// The chain that was taken and not given back.
    current: Option<Chain>,
}

/// A chain of descriptors of which some bytes may have been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chain {
    head: u16,
    /// The descriptor to read next.
    next: Option<u16>,
    /// Descriptors that may still be read: a chain with more is a loop.
    left: u16,
    /// Bytes of the descriptor that was read last which were not used.
    rest: Buffer,
    /// Bytes that the device has written.
    written: u32,
}

/// Bytes of the guest: their end is an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Buffer {
    address: u64,
    size: u32,
}

/// Bytes that a queue moves, and in which direction.
#[derive(Debug)]
pub(super) enum Transfer<'a> {
    FromGuest(&'a mut [u8]),
    ToGuest(&'a [u8]),
}

impl Transfer<'_> {
    const fn len(&self) -> usize {
        match self {
            Self::FromGuest(bytes) => bytes.len(),
            Self::ToGuest(bytes) => bytes.len(),
        }
    }

    const fn to_guest(&self) -> bool {
        matches!(self, Self::ToGuest(_))
    }

    /// Moves bytes `from` to `to` of them, which are at `address` in the guest.
    fn make(
        &mut self,
        memory: &impl SharedMemory,
        address: u64,
        from: usize,
        to: usize,
    ) -> Result<(), NotShared> {
        match self {
            Self::FromGuest(bytes) => memory.read(address, bytes.get_mut(from..to).unwrap_or_default()),
            Self::ToGuest(bytes) => memory.write(address, bytes.get(from..to).unwrap_or_default()),
        }
    }
}

impl TryFrom<Claim> for Ring {
    type Error = Broken;

    fn try_from(claim: Claim) -> Result<Self, Broken> {
        let Claim { size, descriptors, driver, device } = claim;
        let size = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && *size <= MAX_SIZE);
        let size = size.ok_or(Broken)?;
        let entries = u64::from(size);
        for (table, align, entry) in [(descriptors, 16, DESCRIPTOR), (driver, 2, 2), (device, 4, 8)] {
            let bytes = entries.checked_mul(entry).and_then(|bytes| bytes.checked_add(8)).ok_or(Broken)?;
            if !table.is_multiple_of(align) || table.checked_add(bytes).is_none() {
                return Err(Broken);
            }
        }
        Ok(Self { size, descriptors, driver, device, taken: 0, used: 0, current: None })
    }
}

impl Ring {
    /// Moves bytes of one chain until they or the chain end; how many, and whether the chain
    /// was given back. `None` if the guest has put no chain there.
    pub(super) fn advance(
        &mut self,
        memory: &impl SharedMemory,
        mut bytes: Transfer<'_>,
    ) -> Result<Option<(usize, bool)>, Broken> {
        let Some(mut chain) = self.take(memory)? else { return Ok(None) };
        let mut moved = chain.copy(memory, &mut bytes, 0)?;
        while chain.rest.size == 0 && chain.next.is_some() {
            self.descend(memory, bytes.to_guest(), &mut chain)?;
            moved = chain.copy(memory, &mut bytes, moved)?;
        }
        // What arrives is the guest's at once, what it sends is its own again when all of it was taken.
        let give_back = bytes.to_guest() || chain.rest.size == 0 && chain.next.is_none();
        if give_back {
            self.give_back(memory, &chain)?;
        } else {
            self.current = Some(chain);
        }
        Ok(Some((moved, give_back)))
    }

    /// The chain to go on with, or the next one.
    fn take(&mut self, memory: &impl SharedMemory) -> Result<Option<Chain>, Broken> {
        if let Some(chain) = self.current.take() {
            return Ok(Some(chain));
        }
        let index = read16(memory, self.driver.wrapping_add(INDEX))?;
        let waiting = index.wrapping_sub(self.taken);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.size {
            return Err(Broken);
        }
        let slot = self.slot(self.taken, 2);
        let head = read16(memory, self.driver.wrapping_add(ENTRIES).wrapping_add(slot))?;
        self.taken = self.taken.wrapping_add(1);
        let (next, left) = (Some(head), self.size);
        Ok(Some(Chain { head, next, left, rest: Buffer::default(), written: 0 }))
    }

    /// Reads the next descriptor of a chain.
    fn descend(&self, memory: &impl SharedMemory, to_guest: bool, chain: &mut Chain) -> Result<(), Broken> {
        let index = chain.next.filter(|index| *index < self.size).ok_or(Broken)?;
        chain.left = chain.left.checked_sub(1).ok_or(Broken)?;
        let at = self.descriptors.wrapping_add(u64::from(index).wrapping_mul(DESCRIPTOR));
        let mut bytes = [0; 16];
        memory.read(at, &mut bytes)?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, s0, s1, s2, s3, f0, f1, n0, n1] = bytes;
        let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let size = u32::from_le_bytes([s0, s1, s2, s3]);
        let flags = u16::from_le_bytes([f0, f1]);
        let writable = flags & WRITE != 0;
        let fits = address.checked_add(size.into()).is_some();
        if !fits || flags & INDIRECT != 0 || writable != to_guest {
            return Err(Broken);
        }
        chain.rest = Buffer { address, size };
        chain.next = (flags & NEXT != 0).then_some(u16::from_le_bytes([n0, n1]));
        Ok(())
    }

    fn give_back(&mut self, memory: &impl SharedMemory, chain: &Chain) -> Result<(), Broken> {
        let slot = self.device.wrapping_add(ENTRIES).wrapping_add(self.slot(self.used, 8));
        let [h0, h1] = chain.head.to_le_bytes();
        let [w0, w1, w2, w3] = chain.written.to_le_bytes();
        memory.write(slot, &[h0, h1, 0, 0, w0, w1, w2, w3])?;
        self.used = self.used.wrapping_add(1);
        Ok(memory.write(self.device.wrapping_add(INDEX), &self.used.to_le_bytes())?)
    }

    /// Offset of the entry for index `index` in a ring with entries of so many bytes.
    fn slot(&self, index: u16, entry: u64) -> u64 {
        u64::from(index & self.size.wrapping_sub(1)).wrapping_mul(entry)
    }
}

impl Chain {
    /// Moves bytes of the descriptor that was read last, after the first `moved` of `bytes`; how many
    /// of `bytes` have moved then.
    fn copy(
        &mut self,
        memory: &impl SharedMemory,
        bytes: &mut Transfer<'_>,
        moved: usize,
    ) -> Result<usize, Broken> {
        let room = u32::try_from(bytes.len().saturating_sub(moved)).unwrap_or(u32::MAX);
        let size = self.rest.size.min(room);
        if size == 0 {
            return Ok(moved);
        }
        let end = usize::try_from(size).ok().and_then(|size| moved.checked_add(size)).ok_or(Broken)?;
        bytes.make(memory, self.rest.address, moved, end)?;
        if bytes.to_guest() {
            self.written = self.written.saturating_add(size);
        }
        self.rest.address = self.rest.address.wrapping_add(size.into());
        self.rest.size = self.rest.size.saturating_sub(size);
        Ok(end)
    }
}

fn read16(memory: &impl SharedMemory, address: u64) -> Result<u16, Broken> {
    let mut bytes = [0; 2];
    memory.read(address, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}
