//! A machine whose hypervisor image and device tree are placed by hand.
//!
//! QEMU gives an image that it loads with `-kernel` a tree of its own making. Here `-kernel` is a stub of three
//! instructions that jumps to the hypervisor with any value in x0; tree, hypervisor and host are plain bytes in RAM.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use xtask::machine::{HOST_AT, Machine};

/// Where the hypervisor goes; not where QEMU puts one.
pub const HYPERVISOR_AT: u64 = 0x4280_0000;
/// Where the tree goes.
pub const TREE_AT: u64 = 0x4240_0000;

/// QEMU's second flash, which has no file.
pub const FLASH: u64 = 0x0400_0000;
/// The flag register of a PL011, and its flag that says that no byte fits.
const FULL: (u64, u32) = (0x18, 1 << 5);

/// `machine` with a flash that reads, at [`FLASH`], as a PL011 that is full for ever. The file goes to `folder`.
///
/// # Errors
/// It cannot be written.
pub fn with_dead_console(mut machine: Machine, folder: &Path) -> Result<Machine> {
    let (offset, flags) = FULL;
    let file = folder.join("full.bin");
    fs::write(&file, flags.to_le_bytes()).context("cannot write the flag register")?;
    let mut device = OsString::from(format!("loader,addr={:#x},force-raw=on,file=", FLASH | offset));
    device.push(file);
    machine.extra.extend(["-device".into(), device]);
    Ok(machine)
}

/// `machine` with `tree` as its device tree and `x0` as what the hypervisor is told of it. Files go to `folder`.
///
/// # Errors
/// A file cannot be written.
pub fn machine(mut machine: Machine, tree: &[u8], x0: u64, folder: &Path) -> Result<Machine> {
    let stub_file = folder.join("stub.bin");
    let tree_file = folder.join("tree.dtb");
    fs::write(&stub_file, stub(HYPERVISOR_AT, x0)).context("cannot write the stub")?;
    fs::write(&tree_file, tree).context("cannot write the tree")?;
    let hypervisor = std::mem::replace(&mut machine.hypervisor, stub_file);
    let mut place = |file: &Path, at: u64| {
        let mut device = OsString::from(format!("loader,addr={at:#x},force-raw=on,file="));
        device.push(file);
        machine.extra.extend(["-device".into(), device]);
    };
    place(&hypervisor, HYPERVISOR_AT);
    place(&tree_file, TREE_AT);
    if let Some(host) = machine.host.take() {
        place(&host.image, HOST_AT);
    }
    Ok(machine)
}

/// An arm64 Image: x0 := `x0`, branch to `entry`.
fn stub(entry: u64, x0: u64) -> Vec<u8> {
    let branch_over_header: u32 = 0x1400_0010;
    let load_x0: u32 = 0x5800_0000 | 4 << 5; // ldr x0, [pc, #16]
    let load_x4: u32 = 0x5800_0000 | 5 << 5 | 4; // ldr x4, [pc, #20]
    let branch_x4: u32 = 0xd61f_0080;
    let nop: u32 = 0xd503_201f;
    let mut image = Vec::new();
    image.extend([branch_over_header, nop].map(u32::to_le_bytes).concat());
    let (text_offset, image_size, flags) = (0x8_0000_u64, 0x1000_u64, 0b1010_u64);
    image.extend([text_offset, image_size, flags, 0, 0, 0].map(u64::to_le_bytes).concat());
    image.extend(*b"ARM\x64\0\0\0\0");
    image.extend([load_x0, load_x4, branch_x4, nop].map(u32::to_le_bytes).concat());
    image.extend([x0, entry].map(u64::to_le_bytes).concat());
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use xtask::flat::ImageHeader;

    #[test]
    fn the_stub_is_an_image_and_its_literals_are_where_its_loads_look() {
        let image = stub(0x1122_3344, 0x5566);
        assert_eq!(
            ImageHeader::read(&image).unwrap(),
            ImageHeader { text_offset: 0x8_0000, image_size: 0x1000 }
        );
        let load_at = |at: usize| u32::from_le_bytes(*image[at..].first_chunk().unwrap());
        let literal = |at: usize| {
            let offset = usize::try_from(load_at(at) >> 5 & 0x7_ffff).unwrap().checked_mul(4).unwrap();
            let from = at.checked_add(offset).unwrap();
            u64::from_le_bytes(*image[from..].first_chunk().unwrap())
        };
        assert_eq!((literal(64), literal(68)), (0x5566, 0x1122_3344));
        assert_eq!((load_at(64) & 0x1f, load_at(68) & 0x1f), (0, 4));
    }
}
