//! The devices of a VM by address, and the interrupts that they raise.

use crate::gic::{Gic, REDISTRIBUTOR_SIZE};
use crate::layout::{
    DISTRIBUTOR, REDISTRIBUTORS, Region, UART, UART_SPI, VIRTIO_CONSOLE, VIRTIO_CONSOLE_SPI,
};
use crate::pl011::Pl011;
use crate::vcpu::{VcpuCount, VcpuSet};
use crate::virtio::{Console, SharedMemory};
use crate::width::{Width, low_word};
use thiserror::Error;

/// No device is where the guest looked: it gets an external abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no device at {0:#x}")]
pub struct NoDevice(pub u64);

/// What follows from an access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "vCPUs may have to be kicked"]
pub struct Effect {
    /// vCPUs that have to leave the guest and be listed again, or wake up.
    pub kick: VcpuSet,
    /// The character that the PL011 sent.
    pub sent: Option<u8>,
    /// The virtio console has something to send, or room for more: [`Devices::console_output`] and
    /// [`Devices::console_input`] are due.
    pub rings: bool,
}

impl Effect {
    const fn kick(kick: VcpuSet) -> Self {
        Self { kick, sent: None, rings: false }
    }
}

/// All devices of a VM.
#[derive(Clone, Debug)]
pub struct Devices {
    vcpus: VcpuCount,
    /// The interrupt controller.
    pub gic: Gic,
    uart: Pl011,
    console: Option<Console>,
}

/// A device and where in it an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Distributor(u64),
    Redistributor(u64),
    Uart(u64),
    Console(u64),
}

impl Devices {
    /// Devices as after reset, for a VM with so many vCPUs.
    #[must_use]
    pub fn new(vcpus: VcpuCount) -> Self {
        Self { vcpus, gic: Gic::new(vcpus), uart: Pl011::default(), console: None }
    }

    /// The same with a virtio console.
    #[must_use]
    pub fn with_console(self) -> Self {
        Self { console: Some(Console::default()), ..self }
    }

    /// What a load of `width` bytes at `address` finds.
    ///
    /// # Errors
    /// [`NoDevice`] if no device has all of these bytes.
    pub fn read(&mut self, address: u64, width: Width) -> Result<(u64, Effect), NoDevice> {
        Ok(match self.place(address, width)? {
            Place::Distributor(at) => (self.gic.read_distributor(at, width), Effect::default()),
            Place::Redistributor(at) => (self.gic.read_redistributor(at, width), Effect::default()),
            Place::Uart(at) => {
                let value = width.of(self.uart.read(at).into());
                (value, Effect::kick(self.uart_line()))
            }
            Place::Console(at) => {
                let value = self.console.as_ref().map_or(0, |console| console.read(at, width));
                (value.into(), Effect::default())
            }
        })
    }

    /// What a store of `width` bytes at `address` does.
    ///
    /// # Errors
    /// [`NoDevice`] if no device has all of these bytes: nothing was done.
    pub fn write(&mut self, address: u64, width: Width, value: u64) -> Result<Effect, NoDevice> {
        let value = width.of(value);
        Ok(match self.place(address, width)? {
            Place::Distributor(at) => Effect::kick(self.gic.write_distributor(at, width, value)),
            Place::Redistributor(at) => Effect::kick(self.gic.write_redistributor(at, width, value)),
            Place::Uart(at) => {
                let sent = self.uart.write(at, low_word(value));
                Effect { sent, ..Effect::kick(self.uart_line()) }
            }
            Place::Console(at) => {
                let rings = self.console.as_mut().is_some_and(|console| console.write(at, width, value));
                Effect { rings, ..Effect::kick(self.console_line()) }
            }
        })
    }

    /// A character arrives at the PL011.
    ///
    /// # Errors
    /// The character again if there is no room for it now.
    pub fn receive(&mut self, character: u8) -> Result<Effect, u8> {
        self.uart.receive(character)?;
        Ok(Effect::kick(self.uart_line()))
    }

    /// Takes what the guest sends by its virtio console; how many bytes of `out`. To be called again
    /// until there are none.
    pub fn console_output(&mut self, memory: &impl SharedMemory, out: &mut [u8]) -> (usize, VcpuSet) {
        let sent = self.console.as_mut().map_or(0, |console| console.transmit(memory, out));
        (sent, self.console_line())
    }

    /// Brings `bytes` to the guest by its virtio console; how many it had room for.
    pub fn console_input(&mut self, memory: &impl SharedMemory, bytes: &[u8]) -> (usize, VcpuSet) {
        let taken = self.console.as_mut().map_or(0, |console| console.receive(memory, bytes));
        (taken, self.console_line())
    }

    fn console_line(&mut self) -> VcpuSet {
        let high = self.console.as_ref().is_some_and(Console::interrupt);
        self.gic.set_line(VIRTIO_CONSOLE_SPI, high)
    }

    fn uart_line(&mut self) -> VcpuSet {
        self.gic.set_line(UART_SPI, self.uart.interrupt())
    }

    fn place(&self, address: u64, width: Width) -> Result<Place, NoDevice> {
        let access = Region::new(address, width.bytes()).ok_or(NoDevice(address))?;
        let inside = |region: Region| region.contains(access).then(|| address.wrapping_sub(region.start()));
        let redistributors = self.vcpus.all().fold(0_u64, |sum, _| sum.wrapping_add(REDISTRIBUTOR_SIZE));
        let redistributor = inside(REDISTRIBUTORS).filter(|at| *at < redistributors);
        inside(DISTRIBUTOR)
            .map(Place::Distributor)
            .or(redistributor.map(Place::Redistributor))
            .or(inside(UART).map(Place::Uart))
            .or(inside(VIRTIO_CONSOLE).filter(|_| self.console.is_some()).map(Place::Console))
            .ok_or(NoDevice(address))
    }
}

#[cfg(test)]
mod tests {
    use super::{Devices, NoDevice, UART_SPI};
    use crate::layout::{DISTRIBUTOR, REDISTRIBUTORS, UART, VIRTIO_CONSOLE};
    use crate::vcpu::VcpuCount;
    use crate::width::Width;

    fn devices() -> Devices {
        Devices::new(VcpuCount::new(2).unwrap())
    }

    #[test]
    fn an_access_is_a_devices_only_if_all_of_it_is() {
        let mut devices = devices();
        let redistributors_end = REDISTRIBUTORS.start() + 2 * 0x2_0000;
        for (address, width) in [
            (0, Width::One),
            (u64::MAX, Width::Eight),
            (DISTRIBUTOR.start() - 4, Width::Eight),
            (DISTRIBUTOR.end() - 4, Width::Eight),
            (redistributors_end, Width::Four),
            (UART.end() - 1, Width::Two),
            (1 << 35 | UART.start(), Width::Four),
        ] {
            assert_eq!(devices.read(address, width), Err(NoDevice(address)));
            assert_eq!(devices.write(address, width, 0), Err(NoDevice(address)));
        }
        for address in [DISTRIBUTOR.end() - 4, redistributors_end - 4, UART.end() - 4] {
            assert!(devices.read(address, Width::Four).is_ok());
        }
    }

    #[test]
    fn a_vm_has_a_virtio_console_if_it_was_asked_for() {
        let at = VIRTIO_CONSOLE.start();
        assert_eq!(devices().read(at, Width::Four), Err(NoDevice(at)));
        let mut devices = devices().with_console();
        assert_eq!(devices.read(at, Width::Four).unwrap().0, 0x7472_6976);
        assert!(devices.write(at + 0x50, Width::Four, 1).unwrap().rings);
        assert!(!devices.write(at + 0x50, Width::Four, 2).unwrap().rings);
    }

    #[test]
    fn what_is_sent_comes_out_and_what_arrives_interrupts_the_guest() {
        let mut devices = devices();
        let boot = VcpuCount::new(2).unwrap().vcpu(0).unwrap();
        assert_eq!(devices.write(UART.start(), Width::One, 0x141).unwrap().sent, Some(b'A'));
        let spi = u64::from(UART_SPI) + 32;
        let mut store = |address, value| devices.write(address, Width::Four, value).unwrap();
        let _ = store(DISTRIBUTOR.start(), 2);
        let _ = store(DISTRIBUTOR.start() + 0x84, u64::MAX);
        let _ = store(DISTRIBUTOR.start() + 0x104, 1 << (spi - 32));
        let masked = store(UART.start() + 0x38, 1 << 4);
        assert!(masked.kick.is_empty());
        assert!(devices.receive(b'x').unwrap().kick.has(boot));
        assert_eq!(devices.gic.list(boot, 4).registers[0] & 0xffff_ffff, spi);
        let (value, effect) = devices.read(UART.start(), Width::Two).unwrap();
        assert_eq!(value, u64::from(b'x'));
        assert!(effect.kick.has(boot), "its input is low again");
        devices.gic.fold(boot, &[]);
        assert!(devices.gic.list(boot, 4).registers.is_empty());
    }
}
