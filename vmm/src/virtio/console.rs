//! The console: bytes of the guest come out, bytes for it go in.

use super::SharedMemory;
use super::ring::{Broken, Transfer};
use super::transport::{QUEUES, Transport};
use crate::width::Width;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Chains that one call looks at: the guest can make them empty.
const CHAINS: usize = 16;

/// A virtio console with one port.
#[derive(Clone, Debug, Default)]
pub struct Console {
    transport: Transport,
}

impl Console {
    /// What a load finds at `offset` in its registers.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u32 {
        self.transport.read(offset, width)
    }

    /// What a store does; true if the guest says that it has put chains in a ring, so that
    /// [`Console::transmit`] and [`Console::receive`] are due.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> bool {
        let queue = self.transport.write(offset, width, value);
        queue.is_some_and(|queue| usize::try_from(queue).is_ok_and(|queue| queue < QUEUES))
    }

    /// Takes bytes that the guest sends, as many as there are and fit in `out`; how many. Fewer than fit is
    /// all for now, unless the guest sends chains without bytes.
    pub fn transmit(&mut self, memory: &impl SharedMemory, out: &mut [u8]) -> usize {
        let mut sent: usize = 0;
        for _ in 0..CHAINS {
            let rest = out.get_mut(sent..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let Some(moved) = self.advance(TRANSMIT, memory, Transfer::FromGuest(rest)) else { break };
            sent = sent.saturating_add(moved);
        }
        sent
    }

    /// Brings bytes to the guest; how many of `bytes` it had room for. The others may be brought later.
    pub fn receive(&mut self, memory: &impl SharedMemory, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        self.advance(RECEIVE, memory, Transfer::ToGuest(bytes)).unwrap_or(0)
    }

    /// True if its interrupt is asserted.
    #[must_use]
    pub const fn interrupt(&self) -> bool {
        self.transport.interrupt()
    }

    /// Moves bytes of one chain; `None` if there is none, or the device has to be reset.
    fn advance(&mut self, queue: usize, memory: &impl SharedMemory, bytes: Transfer<'_>) -> Option<usize> {
        match self.transport.ring(queue)?.advance(memory, bytes) {
            Ok(None) => None,
            Ok(Some((moved, given_back))) => {
                if given_back {
                    self.transport.buffer_used();
                }
                Some(moved)
            }
            Err(Broken) => {
                self.transport.broken();
                None
            }
        }
    }
}
