//! A guest that stores anything anywhere.
#![allow(missing_docs, reason = "tests")]

use proptest::prelude::*;
use vmm::layout::{DISTRIBUTOR, REDISTRIBUTORS, UART, VIRTIO_CONSOLE};
use vmm::{Devices, VcpuCount, Width};

fn access() -> impl Strategy<Value = (u64, Width, Option<u64>)> {
    let device = prop::sample::select(vec![DISTRIBUTOR, REDISTRIBUTORS, UART, VIRTIO_CONSOLE]);
    let address = prop_oneof![
        1 => any::<u64>(),
        8 => (device, any::<u64>(), any::<u8>()).prop_map(|(device, offset, odd)| {
            let offset = offset.checked_rem(device.size()).unwrap_or(0);
            device.start().wrapping_add(if odd < 16 { offset } else { offset & !3 })
        }),
    ];
    let width = prop::sample::select(vec![Width::One, Width::Two, Width::Four, Width::Eight]);
    (address, width, prop::option::of(any::<u64>()))
}

proptest! {
    #[test]
    fn no_access_panics_or_finds_more_bits_than_it_has(
        accesses in prop::collection::vec(access(), 0..400),
        vcpus in 1..=8_usize,
        console: bool,
    ) {
        let mut devices = Devices::new(VcpuCount::new(vcpus).unwrap());
        if console {
            devices = devices.with_console();
        }
        for (address, width, value) in accesses {
            match value {
                Some(value) => {
                    let _ = devices.write(address, width, value);
                }
                None => if let Ok((value, _)) = devices.read(address, width) {
                    prop_assert_eq!(value, width.of(value));
                },
            }
            let _ = devices.receive(address.to_le_bytes()[0]);
        }
        for vcpu in VcpuCount::new(vcpus).unwrap().all() {
            let listing = devices.gic.list(vcpu, 16);
            devices.gic.fold(vcpu, &listing.registers);
        }
    }
}
