//! Another kernel in the place of this one, with the device tree that this one was given: the carve-out stays reserved
//! and what is withheld disabled, which a tree made of `/proc/device-tree` by other tools may forget.
#![forbid(unsafe_code)]

use crate::arch::{Segment, kexec_load, reboot_into_it};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// The blob of the first boot.
const TREE: &str = "/sys/firmware/fdt";
const BLOCK: usize = 0x20_0000;
const PAGE: usize = 0x1000;
/// ldr x0, tree; ldr x4, kernel; mov x1, x2, x3, xzr; br x4 (Linux, Documentation/arch/arm64/booting.rst).
const ENTRY: [u32; 6] = [0x5800_00c0, 0x5800_00e4, 0xaa1f_03e1, 0xaa1f_03e2, 0xaa1f_03e3, 0xd61f_0080];

/// Starts the arm64 Image `file` at the physical address `at`, a multiple of 2 MiB.
///
/// # Errors
/// It is no such Image, or the kernel does not take it. Otherwise it does not return.
pub(crate) fn start(file: &Path, at: usize) -> Result<()> {
    let image = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let tree = fs::read(TREE).with_context(|| format!("cannot read {TREE}"))?;
    let (kernel, room) = placed(&image, at)?;
    let tree_at = end(kernel, room, BLOCK)?;
    let entry_at = end(tree_at, tree.len(), PAGE)?;
    let code = entry(tree_at, kernel)?;
    let segments = [
        Segment::new(&image, kernel, room.next_multiple_of(PAGE)),
        Segment::new(&tree, tree_at, tree.len().next_multiple_of(PAGE)),
        Segment::new(&code, entry_at, PAGE),
    ];
    kexec_load(entry_at, &segments).context("kexec_load")?;
    reboot_into_it().context("reboot")
}

/// Where the kernel begins, and how many bytes it needs.
fn placed(image: &[u8], at: usize) -> Result<(usize, usize)> {
    let word = |offset: usize| image.get(offset..)?.first_chunk().copied().map(u64::from_le_bytes);
    ensure!(image.get(56..60) == Some(b"ARM\x64"), "no arm64 Image");
    ensure!(at.is_multiple_of(BLOCK), "{at:#x} is not a multiple of 2 MiB");
    let offset = usize::try_from(word(8).unwrap_or(0))?;
    let room = usize::try_from(word(16).unwrap_or(0))?.max(image.len());
    Ok((at.checked_add(offset).context("an address beyond the address space")?, room))
}

/// The first multiple of `alignment` behind `size` bytes at `start`.
fn end(start: usize, size: usize, alignment: usize) -> Result<usize> {
    let end = start.checked_add(size).and_then(|end| end.checked_next_multiple_of(alignment));
    end.context("an address beyond the address space")
}

fn entry(tree: usize, kernel: usize) -> Result<Vec<u8>> {
    let mut code: Vec<u8> = ENTRY.iter().flat_map(|word| word.to_le_bytes()).collect();
    code.extend(u64::try_from(tree)?.to_le_bytes());
    code.extend(u64::try_from(kernel)?.to_le_bytes());
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::{ENTRY, entry, placed};

    fn image() -> Vec<u8> {
        let mut image = vec![0; 64];
        image[8..16].copy_from_slice(&0x8_0000_u64.to_le_bytes());
        image[16..24].copy_from_slice(&0x30_0000_u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    #[test]
    fn an_image_is_placed_as_its_header_says() {
        assert_eq!(placed(&image(), 0x4400_0000).unwrap(), (0x4408_0000, 0x30_0000));
        assert!(placed(&image(), 0x4401_0000).is_err());
        assert!(placed(&image()[..59], 0x4400_0000).is_err());
        assert!(placed(b"\x7fELF", 0x4400_0000).is_err());
    }

    #[test]
    fn the_two_loads_find_their_words() {
        let code = entry(0x1111, 0x2222).unwrap();
        for (index, value) in [(0_usize, 0x1111_u64), (1, 0x2222)] {
            let distance = usize::try_from(ENTRY[index] >> 5 & 0x7_ffff).unwrap() * 4;
            let at = index * 4 + distance;
            assert_eq!(code[at..at + 8], value.to_le_bytes());
        }
    }
}
