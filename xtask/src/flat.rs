//! From an ELF file to the flat binary that a boot loader copies to memory, and its arm64 `Image` header.

use anyhow::{Context, Result, ensure};
use object::LittleEndian;
use object::read::elf::{FileHeader, ProgramHeader};

/// What the boot protocol reads from the first 64 bytes (Linux, Documentation/arch/arm64/booting.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// Offset from a 2 MiB boundary at which the image wants to be loaded, in bytes.
    pub text_offset: u64,
    /// Memory the image needs from its first byte on, in bytes, BSS included.
    pub image_size: u64,
}

const MAGIC: [u8; 4] = *b"ARM\x64";
const MAGIC_AT: usize = 56;
/// A larger flat file means that the linker script put something far away.
const LARGEST: u64 = 64 << 20;

impl ImageHeader {
    /// Reads the header of a flat image.
    ///
    /// # Errors
    /// The image is shorter than a header or has another magic number.
    pub fn read(image: &[u8]) -> Result<Self> {
        let magic = image.get(MAGIC_AT..).and_then(|rest| rest.first_chunk::<4>());
        ensure!(
            magic == Some(&MAGIC),
            "no arm64 Image header: the magic number at byte {MAGIC_AT} is missing"
        );
        let field = |at: usize| image.get(at..).and_then(|rest| rest.first_chunk()).copied();
        Ok(Self {
            text_offset: u64::from_le_bytes(field(8).context("short header")?),
            image_size: u64::from_le_bytes(field(16).context("short header")?),
        })
    }

    /// Where QEMU's `virt` machine loads an image given by `-kernel`.
    #[must_use]
    pub fn qemu_load_address(&self) -> u64 {
        const RAM: u64 = 0x4000_0000;
        // QEMU's own few instructions are in the first page; an image that wants that page goes 2 MiB up.
        let offset = if self.text_offset < 0x1000 { self.text_offset | 0x20_0000 } else { self.text_offset };
        RAM.saturating_add(offset)
    }
}

/// The loadable bytes of an AArch64 ELF file, from its lowest load address on, gaps filled with zero.
///
/// # Errors
/// Not such a file, no loadable bytes, or segments that overlap or lie more than 64 MiB apart.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    let header = object::elf::FileHeader64::<LittleEndian>::parse(elf).context("not a 64-bit ELF file")?;
    let endian = header.endian().context("not a little-endian ELF file")?;
    ensure!(header.e_machine(endian) == object::elf::EM_AARCH64, "not an AArch64 ELF file");
    let mut parts = Vec::new();
    for segment in header.program_headers(endian, elf).context("broken program headers")? {
        if segment.p_type(endian) != object::elf::PT_LOAD {
            continue;
        }
        let bytes = segment.data(endian, elf).ok().context("a segment lies outside the file")?;
        if !bytes.is_empty() {
            parts.push((segment.p_paddr(endian), bytes));
        }
    }
    parts.sort_by_key(|(address, _)| *address);
    let base = parts.first().context("nothing to load")?.0;
    let mut flat = Vec::new();
    for (address, bytes) in parts {
        let offset = address.saturating_sub(base);
        ensure!(offset < LARGEST, "segments lie {offset:#x} bytes apart");
        let offset = usize::try_from(offset)?;
        ensure!(flat.len() <= offset, "segments overlap at {address:#x}");
        flat.resize(offset, 0);
        flat.extend_from_slice(bytes);
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::elf::ProgramType;
    use object::write::elf::{FileHeader, ProgramHeader, Writer};

    /// An ELF file of (type, address, bytes) segments.
    fn elf(segments: &[(ProgramType, u64, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(object::Endianness::Little, true, &mut out);
        writer.reserve_file_header();
        writer.reserve_program_headers(u32::try_from(segments.len()).unwrap());
        let offsets: Vec<u64> = segments
            .iter()
            .map(|(_, _, bytes)| writer.reserve(u64::try_from(bytes.len()).unwrap(), 8))
            .collect();
        writer
            .write_file_header(&FileHeader {
                os_abi: object::elf::OsAbi(0),
                abi_version: 0,
                e_type: object::elf::ET_EXEC,
                e_machine: object::elf::EM_AARCH64,
                e_entry: 0,
                e_flags: object::elf::FileFlags(0),
            })
            .unwrap();
        writer.write_align_program_headers();
        for ((kind, address, bytes), offset) in segments.iter().zip(&offsets) {
            writer.write_program_header(&ProgramHeader {
                p_type: *kind,
                p_flags: object::elf::ProgramFlags(0),
                p_offset: *offset,
                p_vaddr: 0xffff_0000_0000_0000,
                p_paddr: *address,
                p_filesz: u64::try_from(bytes.len()).unwrap(),
                p_memsz: u64::try_from(bytes.len()).unwrap(),
                p_align: 8,
            });
        }
        for ((_, _, bytes), offset) in segments.iter().zip(&offsets) {
            writer.pad_until(*offset);
            writer.write(bytes);
        }
        out
    }

    const LOAD: ProgramType = object::elf::PT_LOAD;

    #[test]
    fn segments_are_laid_out_by_load_address_with_zeroed_gaps() {
        let note = (object::elf::PT_NOTE, 0x0, &b"note"[..]);
        let file = elf(&[(LOAD, 0x1008, b"tail"), note, (LOAD, 0x1000, b"head")]);
        assert_eq!(flatten(&file).unwrap(), b"head\0\0\0\0tail");
    }

    #[test]
    fn a_segment_without_bytes_adds_nothing() {
        assert_eq!(flatten(&elf(&[(LOAD, 0x1000, b"text"), (LOAD, 0x9000, b"")])).unwrap(), b"text");
    }

    #[test]
    fn overlapping_and_far_segments_are_refused() {
        assert!(flatten(&elf(&[(LOAD, 0x1000, b"text"), (LOAD, 0x1002, b"data")])).is_err());
        assert!(flatten(&elf(&[(LOAD, 0x1000, b"text"), (LOAD, 1 << 40, b"data")])).is_err());
        assert!(flatten(&elf(&[])).is_err());
        assert!(flatten(b"\x7fELF").is_err());
    }

    fn image(text_offset: u64, magic: &[u8; 4]) -> Vec<u8> {
        let mut image = vec![0; 64];
        image[8..16].copy_from_slice(&text_offset.to_le_bytes());
        image[16..24].copy_from_slice(&0x30_0000_u64.to_le_bytes());
        image[56..60].copy_from_slice(magic);
        image
    }

    #[test]
    fn the_image_header_is_read_and_its_magic_required() {
        let header = ImageHeader::read(&image(0x8_0000, b"ARM\x64")).unwrap();
        assert_eq!(header, ImageHeader { text_offset: 0x8_0000, image_size: 0x30_0000 });
        assert!(ImageHeader::read(&image(0, b"arm\x64")).is_err());
        assert!(ImageHeader::read(&image(0, b"ARM\x64")[..59]).is_err());
    }

    #[test]
    fn an_image_that_wants_the_first_page_is_loaded_above_qemus_loader() {
        let at = |text_offset| ImageHeader { text_offset, image_size: 1 }.qemu_load_address();
        assert_eq!(at(0), 0x4020_0000);
        assert_eq!(at(0x8_0000), 0x4008_0000);
    }
}
