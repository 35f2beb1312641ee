//! The registers (virtio 1.2, 4.2.2), and what the guest has agreed to.
//!
//! Invariant: a queue is in use only between DRIVER_OK and the next reset, with both of the device's
//! features agreed to.

use super::ring::{Claim, MAX_SIZE, Ring};
use crate::width::{Width, low_word};

/// Queues of a console: what it receives, what it sends.
pub(super) const QUEUES: usize = 2;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const CONSOLE: u32 = 3;
/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM, in the upper word. The second says that addresses
/// are those of devices: a realm then shares what it names.
const FEATURES_HIGH: u32 = 1 << 0 | 1 << 1;

const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const STATUS: u32 = 0xff;

/// InterruptStatus: a buffer was used, the configuration (here: the status) has changed.
const USED: u32 = 1;
const CHANGED: u32 = 2;

/// One queue.
#[derive(Clone, Debug, Default)]
struct Queue {
    claim: Claim,
    ring: Option<Ring>,
}

/// The registers.
#[derive(Clone, Debug, Default)]
pub(super) struct Transport {
    status: u32,
    device_features: u32,
    driver_features: u32,
    /// What the driver wants, a word for each value of DriverFeaturesSel; nothing is offered beyond 1.
    wanted: [u32; 2],
    wants_more: bool,
    selected: u32,
    queues: [Queue; QUEUES],
    interrupt: u32,
}

impl Transport {
    pub(super) fn read(&self, offset: u64, width: Width) -> u32 {
        if width != Width::Four {
            return 0;
        }
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => CONSOLE,
            0x010 if self.device_features == 1 => FEATURES_HIGH,
            0x034 => self.queue().map_or(0, |_| MAX_SIZE.into()),
            0x044 => self.queue().is_some_and(|queue| queue.ring.is_some()).into(),
            0x060 => self.interrupt,
            0x070 => self.status,
            // SHMLenLow and SHMLenHigh: there is no such region.
            0x0b0 | 0x0b4 => u32::MAX,
            _ => 0,
        }
    }

    /// A store; the queue that the guest rings for.
    pub(super) fn write(&mut self, offset: u64, width: Width, value: u64) -> Option<u32> {
        if width != Width::Four {
            return None;
        }
        let value = low_word(value);
        match offset {
            0x014 => self.device_features = value,
            0x020 => self.want(value),
            0x024 => self.driver_features = value,
            0x030 => self.selected = value,
            0x044 => self.set_ready(value & 1 != 0),
            0x050 => return Some(value),
            0x064 => self.interrupt &= !value,
            0x070 => self.set_status(value & STATUS),
            _ => self.describe(offset, value),
        }
        None
    }

    /// A queue that is in use.
    pub(super) fn ring(&mut self, nth: usize) -> Option<&mut Ring> {
        let works = self.status & (DRIVER_OK | FEATURES_OK | NEEDS_RESET) == DRIVER_OK | FEATURES_OK;
        self.queues.get_mut(nth).filter(|_| works)?.ring.as_mut()
    }

    /// A buffer went back to the guest.
    pub(super) const fn buffer_used(&mut self) {
        self.interrupt |= USED;
    }

    /// A ring makes no sense.
    pub(super) const fn broken(&mut self) {
        self.status |= NEEDS_RESET;
        self.interrupt |= CHANGED;
    }

    pub(super) const fn interrupt(&self) -> bool {
        self.interrupt != 0
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.selected).ok()?)
    }

    fn want(&mut self, value: u32) {
        let nth = usize::try_from(self.driver_features).ok();
        match nth.and_then(|nth| self.wanted.get_mut(nth)) {
            _ if self.status & FEATURES_OK != 0 => {}
            Some(word) => *word = value,
            None => self.wants_more |= value != 0,
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            *self = Self::default();
            return;
        }
        let agreed = self.wanted == [0, FEATURES_HIGH] && !self.wants_more;
        let kept = self.status | value & !NEEDS_RESET;
        self.status = if agreed { kept } else { kept & !FEATURES_OK };
    }

    /// Says that the selected queue is described, or gives it up. A description that makes no
    /// sense leaves it not ready, as the driver sees.
    fn set_ready(&mut self, ready: bool) {
        let Some(queue) = self.selected_mut() else { return };
        if !ready {
            queue.ring = None;
        } else if queue.ring.is_none() {
            queue.ring = Ring::try_from(queue.claim).ok();
        }
    }

    fn describe(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.selected_mut() else { return };
        let claim = &mut queue.claim;
        let (address, upper) = match offset {
            0x038 => return claim.size = value,
            0x080 => (&mut claim.descriptors, false),
            0x084 => (&mut claim.descriptors, true),
            0x090 => (&mut claim.driver, false),
            0x094 => (&mut claim.driver, true),
            0x0a0 => (&mut claim.device, false),
            0x0a4 => (&mut claim.device, true),
            _ => return,
        };
        let value = u64::from(value);
        *address = if upper {
            *address & 0xffff_ffff | value.wrapping_shl(32)
        } else {
            *address & !0xffff_ffff | value
        };
    }

    fn selected_mut(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(self.selected).ok()?)
    }
}
