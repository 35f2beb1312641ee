//! An unmodified Linux as a guest: what is loaded where, and what its device tree says. docs/linux-guest.md.
#![forbid(unsafe_code)]

pub mod archive;
pub mod image;

use crate::span::{PAGE, Span};
use crate::vmm::{Shape, Vm, Vmm, VmmError};
use ::vmm::VcpuCount;
use ::vmm::fdt::{self, Conduit, FdtError};
use ::vmm::layout::{RAM, Region};
use archive::{Archive, ArchiveError};
use core::fmt;
use guest_shim::protocol::VmKind;
use image::{HEADER_WORDS, Image, ImageError, Layout, TREE_SIZE};

/// Table pages that a VM gets at once: levels 2 and 3 of its image, and of its devices.
const FIRST_TABLES: u64 = 32;

/// Why a Linux guest could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinuxError {
    /// The loader gave the host nothing.
    NoArchive,
    /// Kernel or RAM disk are not in what it gave.
    Archive(ArchiveError),
    /// The kernel cannot be a guest.
    Image(ImageError),
    /// The device tree cannot be written.
    Tree(FdtError),
    /// The number of vCPUs.
    Vcpus(u64),
    /// The VM could not be made.
    Vmm(VmmError),
}

impl fmt::Display for LinuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoArchive => f.write_str("no initial RAM disk with the guest's kernel"),
            Self::Archive(e) => e.fmt(f),
            Self::Image(e) => e.fmt(f),
            Self::Tree(e) => e.fmt(f),
            Self::Vcpus(n) => write!(f, "no VM has {n} vCPUs"),
            Self::Vmm(e) => e.fmt(f),
        }
    }
}

impl From<ArchiveError> for LinuxError {
    fn from(e: ArchiveError) -> Self {
        Self::Archive(e)
    }
}

impl From<ImageError> for LinuxError {
    fn from(e: ImageError) -> Self {
        Self::Image(e)
    }
}

impl From<FdtError> for LinuxError {
    fn from(e: FdtError) -> Self {
        Self::Tree(e)
    }
}

impl From<VmmError> for LinuxError {
    fn from(e: VmmError) -> Self {
        Self::Vmm(e)
    }
}

/// What a Linux guest is to be.
#[derive(Clone, Copy, Debug)]
pub struct Linux<'a> {
    /// Plain, or a realm; another protected VM is for a kernel that knows the calls of such, which Debian's does not.
    pub kind: VmKind,
    /// vCPUs.
    pub vcpus: u64,
    /// Bytes of RAM: a multiple of 2 MiB.
    pub ram: u64,
    /// The kernel's command line.
    pub bootargs: &'a str,
    /// Its UART gets what arrives at the host's console.
    pub listens: bool,
    /// A realm's kernel and RAM disk count for its measurement.
    pub measured: bool,
}

impl Linux<'_> {
    /// Makes a VM, ready to run, of the archive that the loader left at `archive`.
    ///
    /// # Errors
    /// As [`LinuxError`] says. Pages of a VM that was begun are lost.
    pub fn create<'v>(&self, vmm: &'v Vmm<'v>, archive: Option<Span>) -> Result<Vm<'v>, LinuxError> {
        let (kernel, disk) = files(vmm, archive.ok_or(LinuxError::NoArchive)?)?;
        let ram = Span::new(RAM, self.ram).ok_or(ImageError::Ram)?;
        let layout = Layout::new(ram, &header(vmm, kernel)?, disk.size())?;
        let shape = Shape {
            kind: self.kind,
            vcpus: u8::try_from(self.vcpus).map_err(|_| LinuxError::Vcpus(self.vcpus))?,
            ram,
            pc: layout.kernel.start(),
            x0: layout.tree.start(),
            in_blocks: true,
            opened: false,
            pinned: true,
            listens: self.listens,
            virtio_console: self.has_virtio(),
            measured: self.measured && self.kind == VmKind::Realm,
        };
        let tree = self.tree(vmm, ram, layout.disk)?;
        let vm = vmm.create_shape(&shape)?;
        vm.top_up(FIRST_TABLES)?;
        if self.kind == VmKind::Realm {
            vm.init_ripas()?;
        }
        vm.load_parts(&[
            (layout.kernel.start(), kernel),
            (layout.disk.start(), disk),
            (layout.tree.start(), tree),
        ])?;
        vmm.give_back(tree)?;
        vm.finalise()?;
        Ok(vm)
    }

    /// True if it has a virtio console: a protected VM without a shared half has none.
    fn has_virtio(&self) -> bool {
        self.kind != VmKind::Protected
    }

    /// Writes the device tree to pages of the host.
    fn tree(&self, vmm: &Vmm<'_>, ram: Span, disk: Span) -> Result<Span, LinuxError> {
        let vcpus = usize::try_from(self.vcpus).ok().and_then(VcpuCount::new);
        let guest = fdt::Guest {
            vcpus: vcpus.ok_or(LinuxError::Vcpus(self.vcpus))?,
            ram: Region::new(ram.start(), ram.size()).ok_or(FdtError::Ram)?,
            conduit: if self.kind == VmKind::Realm { Conduit::Smc } else { Conduit::Hvc },
            bootargs: self.bootargs,
            initrd: Region::new(disk.start(), disk.size()),
            virtio_console: self.has_virtio(),
        };
        let mut bytes = [0; TREE_SIZE];
        guest.write(&mut bytes)?;
        let pages = vmm.take(TREE_SIZE as u64 / PAGE, PAGE)?;
        let (words, _) = bytes.as_chunks();
        for (at, word) in (pages.start()..).step_by(8).zip(words) {
            vmm.store(at, u64::from_le_bytes(*word))?;
        }
        Ok(pages)
    }
}

/// Kernel and RAM disk in the archive.
fn files(vmm: &Vmm<'_>, place: Span) -> Result<(Span, Span), LinuxError> {
    let byte = |at| byte(vmm, at);
    let archive = Archive::new(place, &byte);
    Ok((archive.find("Image")?, archive.find("initrd")?))
}

/// The guest shim's image, which the archive has too.
///
/// # Errors
/// The archive has none.
pub fn guest_shim(vmm: &Vmm<'_>, place: Span) -> Result<Span, ArchiveError> {
    let byte = |at| byte(vmm, at);
    Archive::new(place, &byte).find("guest-shim")
}

/// A byte of the archive. It is in the host's memory: a load does not fail.
fn byte(vmm: &Vmm<'_>, at: u64) -> u8 {
    let [byte, ..] = vmm.load(at & !7).map_or(0, |word| word >> (8 * (at & 7))).to_le_bytes();
    byte
}

/// What the kernel's header says.
fn header(vmm: &Vmm<'_>, kernel: Span) -> Result<Image, LinuxError> {
    let mut words = [0; HEADER_WORDS];
    for (at, word) in (kernel.start()..kernel.end()).step_by(8).zip(&mut words) {
        // The archive aligns files to 4 bytes only.
        let (low, shift) = (at & !7, 8 * (at & 7));
        let first = vmm.load(low)? >> shift;
        *word = if shift == 0 { first } else { first | vmm.load(low + 8)? << (64 - shift) };
    }
    Ok(Image::read(&words, kernel.size())?)
}
