//! The arm64 `Image` header (Linux Documentation/arch/arm64/booting.rst): is the file that the
//! boot loader left in memory a kernel that can be started where it is?
#![forbid(unsafe_code)]

use super::PaRange;
use crate::addr::BLOCK_SIZE;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bytes of the header, the first of the file.
pub const HEADER_LEN: usize = size_of::<Header>();

/// "ARM\x64".
const MAGIC: u32 = 0x644d_5241;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    code: [U32; 2],
    text_offset: U64,
    image_size: U64,
    flags: U64,
    reserved: [U64; 3],
    magic: U32,
    pe_header: U32,
}

static_assertions::const_assert_eq!(HEADER_LEN, 64);

/// Why the host's kernel cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Shorter than the header.
    #[error("host kernel: file of {0} bytes is too short for an arm64 Image")]
    TooShort(u64),
    /// Not an `Image`; a compressed one must be unpacked first.
    #[error("host kernel: not an arm64 Image (magic {0:#x}); a compressed kernel must be unpacked")]
    Magic(u32),
    /// `image_size` 0: a kernel before Linux 3.17, whose end is not known.
    #[error("host kernel: Image header gives no size")]
    NoSize,
    /// The file has more bytes than the header's `image_size`.
    #[error("host kernel: file of {file} bytes is larger than its image_size {image_size}")]
    LargerThanSize {
        /// File length.
        file: u64,
        /// From the header.
        image_size: u64,
    },
    /// A big-endian kernel.
    #[error("host kernel: big-endian kernels are not supported")]
    BigEndian,
    /// A kernel with pages of 16 or 64 KiB: it would map what is reserved in pages of 4 KiB.
    #[error("host kernel: built for pages of {0} KiB, must be 4 KiB")]
    PageSize(u32),
    /// Not `text_offset` bytes above a multiple of 2 MiB.
    #[error("host kernel: loaded at {load:#x}, must be {text_offset:#x} above a multiple of 2 MiB")]
    Misplaced {
        /// Load address.
        load: u64,
        /// From the header, modulo 2 MiB.
        text_offset: u64,
    },
    /// Runs past the 48-bit address space.
    #[error("host kernel: {image_size} bytes from {load:#x} pass the end of the address space")]
    PastEnd {
        /// Load address.
        load: u64,
        /// From the header.
        image_size: u64,
    },
}

/// A kernel that may be started at the first byte of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelImage {
    memory: PaRange,
}

impl KernelImage {
    /// Checks the header of the kernel file that lies at `file`; `head` is its first
    /// [`HEADER_LEN`] bytes, or all of it.
    ///
    /// # Errors
    /// In the order of [`ImageError`].
    pub fn new(file: PaRange, head: &[u8]) -> Result<Self, ImageError> {
        let too_short = ImageError::TooShort(file.len());
        let (header, _) = Header::ref_from_prefix(head).map_err(|_| too_short)?;
        let (load, image_size, flags) = (file.start(), header.image_size.get(), header.flags.get());
        if file.len() < HEADER_LEN as u64 {
            return Err(too_short);
        }
        if header.magic.get() != MAGIC {
            return Err(ImageError::Magic(header.magic.get()));
        }
        if image_size == 0 {
            return Err(ImageError::NoSize);
        }
        if file.len() > image_size {
            return Err(ImageError::LargerThanSize { file: file.len(), image_size });
        }
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        // Bits 2:1: unspecified, 4, 16, 64 KiB.
        match flags >> 1 & 3 {
            2 => return Err(ImageError::PageSize(16)),
            3 => return Err(ImageError::PageSize(64)),
            _ => {}
        }
        let text_offset = header.text_offset.get() % BLOCK_SIZE;
        if load % BLOCK_SIZE != text_offset {
            return Err(ImageError::Misplaced { load, text_offset });
        }
        let memory = PaRange::new(load, image_size).map_err(|_| ImageError::PastEnd { load, image_size })?;
        Ok(Self { memory })
    }

    /// Everything the kernel needs before it reads the device tree: the file and its BSS.
    #[must_use]
    pub const fn memory(self) -> PaRange {
        self.memory
    }

    /// Where to enter it.
    #[must_use]
    pub const fn entry(self) -> u64 {
        self.memory.start()
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER_LEN, ImageError, KernelImage};
    use crate::platform::PaRange;

    const LOAD: u64 = 0x4400_0000;

    fn header(text_offset: u64, image_size: u64, flags: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&flags.to_le_bytes());
        bytes[56..60].copy_from_slice(b"ARM\x64");
        bytes
    }

    fn check(load: u64, len: u64, header: &[u8]) -> Result<KernelImage, ImageError> {
        KernelImage::new(PaRange::new(load, len).unwrap(), header)
    }

    #[test]
    fn a_debian_kernel_is_accepted_with_its_bss() {
        let image = check(LOAD, 0x2d0_0000, &header(0, 0x2f0_0000, 0xa)).unwrap();
        assert_eq!(image.memory(), PaRange::new(LOAD, 0x2f0_0000).unwrap());
        assert_eq!(image.entry(), LOAD);
        check(LOAD + 0x8_0000, 0x1000, &header(0x8_0000, 0x2000, 0)).unwrap();
    }

    #[test]
    fn each_defect_is_refused_for_what_it_is() {
        let good = header(0, 0x2000, 0xa);
        assert_eq!(check(LOAD, 0x1000, &good[..63]), Err(ImageError::TooShort(0x1000)));
        assert_eq!(check(LOAD, 63, &good), Err(ImageError::TooShort(63)));
        let mut gzip = good;
        gzip[56] = 0;
        assert_eq!(check(LOAD, 0x1000, &gzip), Err(ImageError::Magic(0x644d_5200)));
        assert_eq!(check(LOAD, 0x1000, &header(0, 0, 0xa)), Err(ImageError::NoSize));
        assert_eq!(
            check(LOAD, 0x2001, &good),
            Err(ImageError::LargerThanSize { file: 0x2001, image_size: 0x2000 })
        );
        assert_eq!(check(LOAD, 0x1000, &header(0, 0x2000, 0xb)), Err(ImageError::BigEndian));
        assert_eq!(check(LOAD, 0x1000, &header(0, 0x2000, 0xc)), Err(ImageError::PageSize(16)));
        assert_eq!(check(LOAD, 0x1000, &header(0, 0x2000, 0xe)), Err(ImageError::PageSize(64)));
        let load = LOAD + 0x1000;
        assert_eq!(check(load, 0x1000, &good), Err(ImageError::Misplaced { load, text_offset: 0 }));
        let image_size = u64::MAX;
        assert_eq!(
            check(LOAD, 0x1000, &header(0, image_size, 0xa)),
            Err(ImageError::PastEnd { load: LOAD, image_size })
        );
    }
}
