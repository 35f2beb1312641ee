//! The virtio console of a guest: its rings and buffers are in pages that guest and host share.
//!
//! The guest chooses the addresses. One that is not of a page that the host has in the guest's place there is
//! refused, and the lock on the table of pages is held while such a page is used: it does not go back to the
//! host's free memory in between.
#![forbid(unsafe_code)]

use super::Vm;
use super::console::Console;
use crate::span::PAGE;
use ::vmm::virtio::{NotShared, SharedMemory};
use arrayvec::ArrayVec;
use guest_shim::protocol::{SHARED, VmKind};

/// Bytes that are taken at once, and times that this is done before the guest goes on.
const PIECE: usize = 128;
const PIECES: usize = 16;
/// Bytes that wait for the guest at most.
const WAITING: usize = 512;
/// What stands before each line that the guest hears again.
const ECHO: &[u8] = b"heard ";

/// The host's end of the console: it answers each line with the same line, so that the guest can see that both
/// directions work.
#[derive(Debug, Default)]
pub(super) struct Port {
    lines: Console,
    answer: ArrayVec<u8, WAITING>,
}

impl Port {
    /// Takes what the guest says. Of an answer that finds no room the end is lost.
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.lines.take(*byte) {
                let line = self.lines.line().as_bytes();
                self.answer.extend(
                    ECHO.iter().chain(line).chain(b"\n").copied().take(self.answer.remaining_capacity()),
                );
            }
        }
    }

    /// The guest has got this many bytes of the answer.
    fn said(&mut self, bytes: usize) {
        self.answer.drain(..bytes.min(self.answer.len()));
    }
}

/// The memory that a guest shares.
struct Shared<'a, 'v>(&'a Vm<'v>);

impl Shared<'_, '_> {
    /// Does `access` to each part of `[address, address + size)` that is in one page: where the host has it, and which
    /// of the bytes they are.
    fn each(
        &self,
        address: u64,
        size: usize,
        mut access: impl FnMut(u64, core::ops::Range<usize>),
    ) -> Result<(), NotShared> {
        let half = if self.0.kind == VmKind::Realm { SHARED } else { 0 };
        let memory = self.0.memory.lock();
        let mut done = 0;
        while done < size {
            let at = address.checked_add(done as u64).filter(|at| at & SHARED == half).ok_or(NotShared)?;
            let pfn = memory.get(at & !(PAGE - 1)).ok_or(NotShared)?;
            let offset = at % PAGE;
            let part = usize::try_from(PAGE - offset).map_err(|_| NotShared)?.min(size - done);
            access(pfn * PAGE + offset, done..done + part);
            done += part;
        }
        Ok(())
    }
}

impl SharedMemory for Shared<'_, '_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), NotShared> {
        let machine = self.0.vmm.machine;
        let size = into.len();
        self.each(address, size, |at, part| machine.read_bytes(at, into.get_mut(part).unwrap_or_default()))
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), NotShared> {
        let machine = self.0.vmm.machine;
        self.each(address, from.len(), |at, part| machine.write_bytes(at, from.get(part).unwrap_or_default()))
    }
}

impl Vm<'_> {
    /// Takes what the guest sends by its virtio console, and brings it the answer.
    pub(super) fn serve_console(&self) {
        if self.kind == VmKind::Protected {
            return;
        }
        let mut port = self.port.lock();
        let mut bytes = [0; PIECE];
        for _ in 0..PIECES {
            let (sent, kick) = self.devices.lock().console_output(&Shared(self), &mut bytes);
            self.kick(kick);
            port.take(bytes.get(..sent).unwrap_or_default());
            let (taken, kick) = self.devices.lock().console_input(&Shared(self), &port.answer);
            self.kick(kick);
            port.said(taken);
            if sent < bytes.len() {
                break;
            }
        }
    }

    /// The last whole line that the guest said on its virtio console.
    pub fn with_virtio_line<T>(&self, f: impl FnOnce(&str) -> T) -> T {
        f(self.port.lock().lines.line())
    }
}

#[cfg(test)]
mod tests {
    use super::{Port, WAITING};

    #[test]
    fn each_line_is_answered_with_itself() {
        let mut port = Port::default();
        port.take(b"one\r\ntwo");
        assert_eq!(&port.answer[..], b"heard one\n");
        port.said(6);
        port.take(b"\n");
        assert_eq!(&port.answer[..], b"one\nheard two\n");
        port.said(usize::MAX);
        assert!(port.answer.is_empty());
    }

    #[test]
    fn a_guest_that_does_not_listen_loses_answers_and_nothing_else() {
        let mut port = Port::default();
        for _ in 0..2 * WAITING {
            port.take(b"x\n");
        }
        assert_eq!(port.answer.len(), WAITING);
        assert_eq!(port.lines.line(), "x");
    }
}
