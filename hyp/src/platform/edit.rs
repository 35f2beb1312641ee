//! Writes the device tree that the host gets: the one Rampart was entered with, copied node by
//! node into a new blob, with these edits:
//!
//! - `/reserved-memory` has a `rampart@ADDRESS` node with `no-map` for each piece of the carve-out;
//! - `/chosen` has the command line and initrd of the host, and no boot modules;
//! - nodes of withheld devices have `status = "disabled"`.
//!
//! dtoolkit reads; the writing is done here because its in-place editor moves the rest of the
//! blob at every insertion (QEMU pads to 1 MiB) and panics where names are not terminated.
//! The names of properties are those of the input, followed by the few that the edits add, so
//! that a name's offset is known before the last node is written.
#![forbid(unsafe_code)]

use super::PaRange;
use super::tree::{MAX_DEPTH, Tree, is_module, is_withheld};
use crate::addr::PfnRange;
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::Write;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// Largest device tree that arm64 Linux takes (Documentation/arch/arm64/booting.rst).
pub const MAX_SIZE: usize = 2 << 20;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const END: u32 = 9;
/// Version that is written, and the oldest that it is compatible with.
const VERSION: [u32; 2] = [17, 16];
const HEADER_LEN: usize = 40;

/// Names that the edits use.
const ADDED_NAMES: &[u8] = b"#address-cells\0#size-cells\0ranges\0reg\0no-map\0status\0bootargs\0\
    linux,initrd-start\0linux,initrd-end\0";

/// Why the host's tree cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The output buffer is too small.
    #[error("device tree for the host: more than {0} bytes")]
    NoRoom(usize),
    /// Nodes nested more than 16 deep.
    #[error("device tree for the host: nested too deep")]
    TooDeep,
    /// The carve-out cannot be written with the cell counts of `/reserved-memory`.
    #[error("device tree for the host: /reserved-memory cannot hold {0}")]
    Cells(PaRange),
    /// The string block is not where the header says, or a property's name is not in it.
    #[error("device tree for the host: the input is inconsistent")]
    Inconsistent,
}

/// What the host's tree says beyond the input.
#[derive(Clone, Copy, Debug)]
pub struct Edits<'a> {
    /// Pieces of the carve-out.
    pub carve_out: &'a [PfnRange],
    /// The host's command line; an empty one is left out.
    pub bootargs: &'a str,
    /// The host's initial RAM disk.
    pub initrd: Option<PaRange>,
}

/// Writes the host's tree into `out`, which is 8-byte aligned in memory, and returns its size.
///
/// # Errors
/// [`EditError`]; `out` holds nothing of use then.
pub fn write(tree: &Tree<'_>, edits: &Edits<'_>, out: &mut [u8]) -> Result<usize, EditError> {
    let fdt = tree.fdt();
    let names = input_names(fdt.data()).ok_or(EditError::Inconsistent)?;
    let capacity = out.len().min(MAX_SIZE);
    let out = out.get_mut(..capacity).unwrap_or_default();
    let mut writer = Writer { out, len: 0, names, edits };
    writer.bytes(&[0; HEADER_LEN])?;
    for entry in fdt.memory_reservations() {
        writer.bytes(&entry.address().to_be_bytes())?;
        writer.bytes(&entry.size().to_be_bytes())?;
    }
    writer.bytes(&[0; 16])?;
    let structure = writer.len;
    writer.root(fdt.root())?;
    writer.word(END)?;
    let strings = writer.len;
    writer.bytes(names)?;
    writer.bytes(ADDED_NAMES)?;
    let size = writer.len;
    writer.header(fdt, structure, strings, size)?;
    Ok(size)
}

/// The string block: header words 3 (offset) and 8 (size).
fn input_names(blob: &[u8]) -> Option<&[u8]> {
    let word = |at| blob.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word));
    let start = usize::try_from(word(12)?).ok()?;
    let size = usize::try_from(word(32)?).ok()?;
    blob.get(start..start.checked_add(size)?)
}

struct Writer<'a, 'o> {
    out: &'o mut [u8],
    len: usize,
    names: &'a [u8],
    edits: &'a Edits<'a>,
}

impl Writer<'_, '_> {
    fn header(
        &mut self,
        fdt: Fdt<'_>,
        structure: usize,
        strings: usize,
        size: usize,
    ) -> Result<(), EditError> {
        let [version, compatible] = VERSION;
        let end = self.len;
        self.len = 0;
        self.word(MAGIC)?;
        for length in [size, structure, strings, HEADER_LEN] {
            self.length(length)?;
        }
        self.word(version)?;
        self.word(compatible)?;
        self.word(fdt.boot_cpuid_phys())?;
        self.length(size.saturating_sub(strings))?;
        self.length(strings.saturating_sub(structure))?;
        self.len = end;
        Ok(())
    }

    fn root(&mut self, root: FdtNode<'_>) -> Result<(), EditError> {
        self.begin(root.name())?;
        self.properties(root, &[])?;
        let mut reserved = false;
        for node in root.children() {
            match node.name() {
                "chosen" => self.chosen(node)?,
                "reserved-memory" => {
                    reserved = true;
                    self.begin(node.name())?;
                    self.properties(node, &[])?;
                    self.children(node, 2)?;
                    self.carve_out(node)?;
                    self.end()?;
                }
                _ => self.node(node, 2)?,
            }
        }
        if !reserved {
            self.begin("reserved-memory")?;
            // Linux takes the node only if its cell counts are those of the root.
            self.property("#address-cells", &[&cells(root.address_cells()).to_be_bytes()])?;
            self.property("#size-cells", &[&cells(root.size_cells()).to_be_bytes()])?;
            self.property("ranges", &[])?;
            self.carve_out(root)?;
            self.end()?;
        }
        self.end()
    }

    /// A node that is none of the special ones, with all below; `depth` is its own.
    fn node(&mut self, node: FdtNode<'_>, depth: usize) -> Result<(), EditError> {
        self.begin(node.name())?;
        if node.compatible().into_iter().flatten().any(is_withheld) {
            self.properties(node, &["status"])?;
            self.property("status", &[b"disabled\0"])?;
        } else {
            self.properties(node, &[])?;
        }
        self.children(node, depth)?;
        self.end()
    }

    fn children(&mut self, node: FdtNode<'_>, depth: usize) -> Result<(), EditError> {
        let depth = depth.saturating_add(1);
        for child in node.children() {
            if depth > MAX_DEPTH {
                return Err(EditError::TooDeep);
            }
            self.node(child, depth)?;
        }
        Ok(())
    }

    fn chosen(&mut self, node: FdtNode<'_>) -> Result<(), EditError> {
        self.begin(node.name())?;
        self.properties(node, &["bootargs", "linux,initrd-start", "linux,initrd-end"])?;
        if !self.edits.bootargs.is_empty() {
            self.property("bootargs", &[self.edits.bootargs.as_bytes(), b"\0"])?;
        }
        if let Some(initrd) = self.edits.initrd {
            self.property("linux,initrd-start", &[&initrd.start().to_be_bytes()])?;
            self.property("linux,initrd-end", &[&initrd.end().to_be_bytes()])?;
        }
        for child in node.children().filter(|child| !is_module(*child)) {
            self.node(child, 3)?;
        }
        self.end()
    }

    /// One node a piece, with the cell counts of `space`.
    fn carve_out(&mut self, space: FdtNode<'_>) -> Result<(), EditError> {
        for &piece in self.edits.carve_out {
            let range = PaRange::from_pages(piece);
            let mut name = ArrayString::<32>::new();
            let mut reg = ArrayVec::<u8, 16>::new();
            let fits = write!(name, "rampart@{:x}", range.start()).is_ok()
                && push_cells(&mut reg, cells(space.address_cells()), range.start()).is_some()
                && push_cells(&mut reg, cells(space.size_cells()), range.len()).is_some();
            if !fits {
                return Err(EditError::Cells(range));
            }
            self.begin(&name)?;
            self.property("reg", &[&reg])?;
            self.property("no-map", &[])?;
            self.end()?;
        }
        Ok(())
    }

    fn begin(&mut self, name: &str) -> Result<(), EditError> {
        self.word(BEGIN_NODE)?;
        self.bytes(name.as_bytes())?;
        self.bytes(b"\0")?;
        self.pad()
    }

    fn end(&mut self) -> Result<(), EditError> {
        self.word(END_NODE)
    }

    /// All properties of the node but those named.
    fn properties(&mut self, node: FdtNode<'_>, except: &[&str]) -> Result<(), EditError> {
        for property in node.properties().filter(|property| !except.contains(&property.name())) {
            let name = offset_in(self.names, property.name()).ok_or(EditError::Inconsistent)?;
            self.property_at(name, &[property.value()])?;
        }
        Ok(())
    }

    /// A property of the edits: `name` is one of [`ADDED_NAMES`].
    fn property(&mut self, name: &str, value: &[&[u8]]) -> Result<(), EditError> {
        let added = added_name(name).and_then(|at| self.names.len().checked_add(at));
        self.property_at(added.ok_or(EditError::Inconsistent)?, value)
    }

    fn property_at(&mut self, name: usize, value: &[&[u8]]) -> Result<(), EditError> {
        self.word(PROP)?;
        self.length(value.iter().map(|part| part.len()).sum())?;
        self.length(name)?;
        for part in value {
            self.bytes(part)?;
        }
        self.pad()
    }

    fn length(&mut self, length: usize) -> Result<(), EditError> {
        self.word(u32::try_from(length).map_err(|_| EditError::NoRoom(self.out.len()))?)
    }

    fn word(&mut self, word: u32) -> Result<(), EditError> {
        self.bytes(&word.to_be_bytes())
    }

    fn pad(&mut self) -> Result<(), EditError> {
        while !self.len.is_multiple_of(4) {
            self.bytes(&[0])?;
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), EditError> {
        let no_room = EditError::NoRoom(self.out.len());
        let end = self.len.checked_add(bytes.len()).ok_or(no_room)?;
        self.out.get_mut(self.len..end).ok_or(no_room)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }
}

/// Offset of a name that dtoolkit borrowed from the string block: known by where it lies, checked
/// by what is there.
fn offset_in(names: &[u8], name: &str) -> Option<usize> {
    let at = name.as_ptr().addr().checked_sub(names.as_ptr().addr())?;
    names.get(at..)?.starts_with(name.as_bytes()).then_some(at)
}

fn added_name(name: &str) -> Option<usize> {
    let mut at = 0_usize;
    for added in ADDED_NAMES.split_inclusive(|byte| *byte == 0) {
        if added.strip_suffix(b"\0") == Some(name.as_bytes()) {
            return Some(at);
        }
        at = at.checked_add(added.len())?;
    }
    None
}

/// A cell count that is no number is refused with the first value that is to be written.
fn cells<E>(count: Result<u32, E>) -> u32 {
    count.unwrap_or(u32::MAX)
}

/// Appends `value` in `count` cells, if it fits.
fn push_cells(reg: &mut ArrayVec<u8, 16>, count: u32, value: u64) -> Option<()> {
    match count {
        1 => reg.try_extend_from_slice(&u32::try_from(value).ok()?.to_be_bytes()).ok(),
        2 => reg.try_extend_from_slice(&value.to_be_bytes()).ok(),
        _ => None,
    }
}
