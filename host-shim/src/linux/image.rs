//! The guest's kernel: what an arm64 `Image` says of itself (Linux, Documentation/arch/arm64/booting.rst), and where
//! it, its RAM disk and its device tree go in the guest's RAM.
#![forbid(unsafe_code)]

use crate::span::{BLOCK, PAGE, Span};
use core::fmt;

/// Words of the header.
pub const HEADER_WORDS: usize = 8;
/// Room for the device tree, in bytes: whole pages.
pub const TREE_SIZE: usize = 0x2000;
/// "ARM\x64", in the upper half of the last word with the offset of the PE header.
const MAGIC: u64 = 0x644d_5241;
/// Linux's own limit: the RAM disk lies in the same 32 GiB as the kernel.
const MOST_RAM: u64 = 32 << 30;

/// Why a kernel cannot be a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// It is no arm64 Image; a packed one must be unpacked.
    Magic(u64),
    /// It is shorter than its header.
    Short(u64),
    /// A kernel before Linux 3.17, which does not say how much memory it takes.
    NoSize,
    /// The file is larger than the memory that it says it takes.
    File {
        /// Bytes of the file.
        file: u64,
        /// Bytes that it says.
        memory: u64,
    },
    /// Its data are big endian.
    BigEndian,
    /// Kernel, RAM disk and device tree take more memory than the guest has.
    TooLarge {
        /// Bytes that they take.
        needed: u64,
        /// Bytes that it has.
        ram: u64,
    },
    /// RAM does not begin and end at multiples of 2 MiB, or there is more than 32 GiB.
    Ram,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the guest's kernel: ")?;
        match self {
            Self::Magic(word) => write!(f, "no arm64 Image (magic {word:#x}); unpack it if it is packed"),
            Self::Short(size) => write!(f, "{size} bytes are no arm64 Image"),
            Self::NoSize => f.write_str("its header says no size"),
            Self::File { file, memory } => write!(f, "{file} bytes that say that they take {memory}"),
            Self::BigEndian => f.write_str("big-endian"),
            Self::TooLarge { needed, ram } => {
                write!(f, "with RAM disk and device tree it takes {needed} bytes, the guest has {ram}")
            }
            Self::Ram => f.write_str("RAM is not in whole blocks of 2 MiB below 32 GiB"),
        }
    }
}

/// What of an Image's header matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    text_offset: u64,
    memory: u64,
}

impl Image {
    /// Reads the header of a file of `size` bytes.
    ///
    /// # Errors
    /// [`ImageError`], but for the last two.
    pub fn read(header: &[u64; HEADER_WORDS], size: u64) -> Result<Self, ImageError> {
        let [_, text_offset, memory, flags, .., last] = *header;
        if size < 8 * HEADER_WORDS as u64 {
            return Err(ImageError::Short(size));
        }
        if last & 0xffff_ffff != MAGIC {
            return Err(ImageError::Magic(last & 0xffff_ffff));
        }
        if memory == 0 {
            return Err(ImageError::NoSize);
        }
        if size > memory {
            return Err(ImageError::File { file: size, memory });
        }
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        Ok(Self { text_offset: text_offset % BLOCK, memory })
    }
}

/// Where things are in the guest's RAM, as the guest counts: the kernel first, then the RAM disk, and the device tree
/// in a block of 2 MiB of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The kernel and the memory behind it that it takes.
    pub kernel: Span,
    /// The RAM disk.
    pub disk: Span,
    /// Room for the device tree.
    pub tree: Span,
}

impl Layout {
    /// Places a kernel and a RAM disk of `disk` bytes in `ram`.
    ///
    /// # Errors
    /// They have no room: [`ImageError::TooLarge`]. [`ImageError::Ram`].
    pub fn new(ram: Span, image: &Image, disk: u64) -> Result<Self, ImageError> {
        if ram.aligned(BLOCK) != Some(ram) || ram.size() > MOST_RAM {
            return Err(ImageError::Ram);
        }
        let place = || {
            let kernel = Span::new(ram.start() + image.text_offset, image.memory)?;
            let disk = Span::new(kernel.end().checked_next_multiple_of(PAGE)?, disk)?;
            let tree = Span::new(disk.end().checked_next_multiple_of(BLOCK)?, TREE_SIZE as u64)?;
            Some(Self { kernel, disk, tree })
        };
        let end = place().map_or(u64::MAX, |layout| layout.tree.end());
        let (needed, ram) = (end - ram.start(), ram.size());
        place().filter(|_| needed <= ram).ok_or(ImageError::TooLarge { needed, ram })
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER_WORDS, Image, ImageError, Layout, MAGIC};
    use crate::span::Span;

    const MIB: u64 = 1 << 20;

    fn header(text_offset: u64, memory: u64, flags: u64) -> [u64; HEADER_WORDS] {
        [0, text_offset, memory, flags, 0, 0, 0, MAGIC | 0x40 << 32]
    }

    fn ram(size: u64) -> Span {
        Span::new(0x4000_0000, size).unwrap()
    }

    #[test]
    fn what_cannot_be_a_guest_is_refused_and_says_why() {
        let good = header(0, 0x3000, 0xa);
        assert!(Image::read(&good, 0x2000).is_ok() && Image::read(&good, 0x3000).is_ok());
        assert_eq!(Image::read(&[0; HEADER_WORDS], 0x2000), Err(ImageError::Magic(0)));
        assert_eq!(Image::read(&good, 63), Err(ImageError::Short(63)));
        assert_eq!(Image::read(&header(0, 0, 0xa), 0x2000), Err(ImageError::NoSize));
        let larger = ImageError::File { file: 0x3001, memory: 0x3000 };
        assert_eq!(Image::read(&good, 0x3001), Err(larger));
        assert_eq!(Image::read(&header(0, 0x3000, 1), 0x2000), Err(ImageError::BigEndian));
    }

    #[test]
    fn nothing_overlaps_and_all_is_in_ram() {
        for (offset, memory, disk, size) in
            [(0, 50 * MIB, 2 * MIB, 64 * MIB), (0x8_0000, MIB, 1, 4 * MIB), (0, 64, MIB, 4 * MIB)]
        {
            let image = Image::read(&header(offset, memory, 0), 64).unwrap();
            let Layout { kernel, disk: rd, tree } = Layout::new(ram(size), &image, disk).unwrap();
            assert_eq!((kernel.start(), kernel.size(), rd.size()), (0x4000_0000 + offset, memory, disk));
            assert!(kernel.end() <= rd.start() && rd.end() <= tree.start() && tree.end() <= ram(size).end());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_to_the_last_byte() {
        let image = Image::read(&header(0, 3 * MIB, 0), MIB).unwrap();
        // The tree begins at the next block behind kernel and disk.
        assert!(Layout::new(ram(6 * MIB), &image, MIB).is_ok());
        assert!(matches!(Layout::new(ram(4 * MIB), &image, MIB), Err(ImageError::TooLarge { .. })));
        let error = Layout::new(ram(6 * MIB), &image, MIB + 2 * MIB + 1).unwrap_err();
        assert_eq!(error, ImageError::TooLarge { needed: 8 * MIB + 0x2000, ram: 6 * MIB });
        assert!(matches!(Layout::new(ram(6 * MIB), &image, u64::MAX), Err(ImageError::TooLarge { .. })));
        let endless = Image::read(&header(0, u64::MAX, 0), MIB).unwrap();
        assert!(matches!(Layout::new(ram(6 * MIB), &endless, MIB), Err(ImageError::TooLarge { .. })));
        assert_eq!(Layout::new(Span::new(0x4000_1000, 6 * MIB).unwrap(), &image, 1), Err(ImageError::Ram));
    }
}
