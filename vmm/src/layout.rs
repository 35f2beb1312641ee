//! Where the guest's devices are, and the interrupts they have: what the device tree says and the
//! bus decodes.
//!
//! All are below 1 GiB, hence in the private half of a realm's address space, however small.

use crate::gic::{DISTRIBUTOR_SIZE, REDISTRIBUTOR_SIZE};
use crate::vcpu::MAX_VCPUS;

/// Bytes at an address: not empty, and its end is an address too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    start: u64,
    size: u64,
}

impl Region {
    /// `size` bytes from `start`; `None` if there are none, or they pass the end of the addresses.
    #[must_use]
    pub const fn new(start: u64, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(_) if size != 0 => Some(Self { start, size }),
            _ => None,
        }
    }

    /// Its first address.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Its bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }

    /// The address behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.wrapping_add(self.size)
    }

    /// True if all of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

/// The distributor.
pub const DISTRIBUTOR: Region = Region { start: 0x0800_0000, size: DISTRIBUTOR_SIZE };
/// The redistributors, those of [`MAX_VCPUS`]; a VM with fewer vCPUs has the first of them.
pub const REDISTRIBUTORS: Region = Region { start: 0x080a_0000, size: REDISTRIBUTOR_SIZE * MAX_VCPUS as u64 };
/// The PL011.
pub const UART: Region = Region { start: 0x0900_0000, size: 0x1000 };
/// The virtio console's registers.
pub const VIRTIO_CONSOLE: Region = Region { start: 0x0a00_0000, size: 0x200 };
/// RAM begins here or later.
pub const RAM: u64 = 0x4000_0000;

/// The PL011's shared interrupt: INTID less 32.
pub const UART_SPI: u32 = 1;
/// The virtio console's.
pub const VIRTIO_CONSOLE_SPI: u32 = 16;

const _: () = {
    assert!(DISTRIBUTOR.end() <= REDISTRIBUTORS.start && REDISTRIBUTORS.end() <= UART.start);
    assert!(UART.end() <= VIRTIO_CONSOLE.start && VIRTIO_CONSOLE.end() <= RAM);
};

#[cfg(test)]
mod tests {
    use super::Region;

    #[test]
    fn a_region_is_not_empty_and_has_an_end() {
        assert!(Region::new(5, 0).is_none() && Region::new(u64::MAX, 1).is_none());
        let region = Region::new(0x1000, 0x1000).unwrap();
        assert_eq!((region.start(), region.size(), region.end()), (0x1000, 0x1000, 0x2000));
        assert!(region.contains(region) && !region.contains(Region::new(0x1fff, 2).unwrap()));
        assert!(!region.contains(Region::new(0xfff, 2).unwrap()));
    }
}
