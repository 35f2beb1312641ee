//! Whether a file can be a host's kernel: an arm64 `Image` that is whole.
//!
//! The hypervisor refuses what is no `Image`, but it cannot see that the end of one is missing.

use crate::flat::ImageHeader;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// An `Image` header, and what EFI reads behind it.
const HEAD: u64 = 4096;
/// The header of an `Image`.
const HEADER: u64 = 64;
/// The forms in which distributions pack kernels, by their first bytes.
const PACKED: [(&str, &[u8]); 5] = [
    ("gzip", b"\x1f\x8b"),
    ("xz", b"\xfd7zXZ"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
    ("lz4", b"\x02\x21\x4c\x18"),
    ("EFI zboot", b"MZ\0\0zimg"),
];

/// Refuses a file that no boot of it can come of.
///
/// # Errors
/// It cannot be read, is no arm64 `Image`, is packed, or its end is missing.
pub fn check(file: &Path) -> Result<()> {
    let mut head = Vec::new();
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let length = opened.metadata().with_context(|| format!("cannot read {}", file.display()))?.len();
    opened.take(HEAD).read_to_end(&mut head).with_context(|| format!("cannot read {}", file.display()))?;
    whole(&head, length).with_context(|| format!("{} cannot be the host", file.display()))
}

fn whole(head: &[u8], length: u64) -> Result<()> {
    if let Some((form, _)) = PACKED.iter().find(|(_, magic)| head.starts_with(magic)) {
        bail!("it is packed with {form}: unpack it to a plain arm64 Image");
    }
    ImageHeader::read(head)?;
    let end = end_of_sections(head).unwrap_or(HEADER);
    ensure!(length >= end, "it is cut short: {length} bytes are there of {end}");
    Ok(())
}

/// Where the contents of the last section end, in bytes, if the image is an EFI program too, as Linux is
/// (Microsoft, "PE Format"); at least where its headers end.
fn end_of_sections(head: &[u8]) -> Option<u64> {
    const SECTION: usize = 40;
    /// Signature and file header.
    const COFF: usize = 24;
    let byte = |at: usize| head.get(at..);
    let half = |at: usize| byte(at)?.first_chunk().copied().map(u16::from_le_bytes);
    let word = |at: usize| byte(at)?.first_chunk().copied().map(u32::from_le_bytes);
    let signature = usize::try_from(word(0x3c)?).ok()?;
    if !head.starts_with(b"MZ") || signature >= usize::try_from(HEAD).ok()? {
        return None;
    }
    let coff = signature.checked_add(COFF)?;
    if head.len() < coff {
        return u64::try_from(coff).ok();
    }
    if !byte(signature)?.starts_with(b"PE\0\0") {
        return None;
    }
    let count = usize::from(half(signature.checked_add(6)?)?);
    let optional = usize::from(half(signature.checked_add(20)?)?);
    let sections = coff.checked_add(optional)?;
    let tables = sections.checked_add(count.checked_mul(SECTION)?)?;
    let ends = (0..count).filter_map(|nth| {
        let at = nth.checked_mul(SECTION)?.checked_add(sections)?;
        let (size, start) = (word(at.checked_add(16)?)?, word(at.checked_add(20)?)?);
        u64::from(start).checked_add(u64::from(size))
    });
    ends.chain([u64::try_from(tables).ok()?]).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut head = vec![0; 64];
        head[56..60].copy_from_slice(b"ARM\x64");
        head
    }

    /// The head of an image with two sections, the last of which ends at byte 0x3000.
    fn efi_image() -> Vec<u8> {
        let mut head = image();
        head[..2].copy_from_slice(b"MZ");
        head[0x3c..0x40].copy_from_slice(&64_u32.to_le_bytes());
        head.extend(b"PE\0\0");
        head.resize(96, 0);
        head[70] = 2; // sections
        head[84] = 8; // bytes of the optional header
        for (size, start) in [(0x800_u32, 0x1000_u32), (0x1000, 0x2000)] {
            head.extend([0; 16]);
            head.extend(size.to_le_bytes());
            head.extend(start.to_le_bytes());
            head.extend([0; 16]);
        }
        head
    }

    fn refusal(head: &[u8], length: u64) -> String {
        whole(head, length).unwrap_err().to_string()
    }

    #[test]
    fn an_image_whose_end_is_missing_is_refused() {
        assert!(whole(&efi_image(), 0x3000).is_ok());
        assert_eq!(refusal(&efi_image(), 0x2fff), "it is cut short: 12287 bytes are there of 12288");
    }

    #[test]
    fn an_image_that_ends_within_its_tables_is_refused() {
        assert_eq!(refusal(&efi_image()[..60], 60), "it is cut short: 60 bytes are there of 64");
        assert_eq!(refusal(&efi_image()[..80], 80), "it is cut short: 80 bytes are there of 88");
        assert_eq!(refusal(&efi_image()[..96], 96), "it is cut short: 96 bytes are there of 176");
        assert_eq!(refusal(&image()[..60], 60), "it is cut short: 60 bytes are there of 64");
    }

    #[test]
    fn an_image_that_is_no_efi_program_has_no_known_end() {
        assert!(whole(&image(), 64).is_ok());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(refusal(b"\x7fELF", 4).contains("no arm64 Image header"));
        assert!(refusal(&image()[..59], 59).contains("no arm64 Image header"));
    }

    #[test]
    fn a_packed_kernel_is_named() {
        assert!(refusal(b"\x1f\x8b\x08", 3).contains("packed with gzip"));
        assert!(refusal(b"MZ\0\0zimg", 8).contains("packed with EFI zboot"));
    }

    #[test]
    fn sections_outside_the_head_are_not_looked_at() {
        let mut head = efi_image();
        head[0x3c..0x40].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(whole(&head, 100).is_ok());
        let mut head = efi_image();
        head[84..86].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(whole(&head, 0x2_0000).is_ok());
        assert_eq!(refusal(&head, 100), "it is cut short: 100 bytes are there of 65703");
    }
}
