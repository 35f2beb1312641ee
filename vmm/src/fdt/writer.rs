//! Writes a flattened device tree (Devicetree Specification 0.4, chapter 5) front to back into bytes
//! that the caller has.
//!
//! Invariant: what is written so far is whole tokens, 4-byte aligned; a node is begun and ended by the
//! same call. The maintained crates that write trees need an allocator, which the image that uses
//! this does not have.

use super::FdtError;
use arrayvec::ArrayVec;
use core::fmt;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const LAST_COMPATIBLE: u32 = 16;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;
const HEADER: usize = 40;
/// An empty memory reservation block: its last entry, of zeros.
const RESERVATIONS: usize = 16;
/// Different property names.
const NAMES: usize = 40;

/// A tree that is being written.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    names: ArrayVec<&'static str, NAMES>,
}

impl<'a> Writer<'a> {
    /// Begins a tree in `out`.
    pub(super) fn new(out: &'a mut [u8]) -> Result<Self, FdtError> {
        let mut writer = Self { out, at: 0, names: ArrayVec::new() };
        writer.bytes(&[0; HEADER + RESERVATIONS])?;
        Ok(writer)
    }

    /// A node with what `inside` writes: properties first, then nodes.
    pub(super) fn node(
        &mut self,
        name: fmt::Arguments<'_>,
        inside: impl FnOnce(&mut Self) -> Result<(), FdtError>,
    ) -> Result<(), FdtError> {
        self.word(BEGIN_NODE)?;
        fmt::write(self, name).map_err(|fmt::Error| FdtError::Full)?;
        self.bytes(&[0])?;
        self.align()?;
        inside(self)?;
        self.word(END_NODE)
    }

    /// A property without a value.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<(), FdtError> {
        self.property(name, 0)
    }

    /// A property of 32-bit cells.
    pub(super) fn cells(&mut self, name: &'static str, cells: &[u32]) -> Result<(), FdtError> {
        self.property(name, size_of_val(cells))?;
        cells.iter().try_for_each(|cell| self.word(*cell))
    }

    /// A property of 64-bit values, two cells each.
    pub(super) fn wide(&mut self, name: &'static str, values: &[u64]) -> Result<(), FdtError> {
        self.property(name, size_of_val(values))?;
        values.iter().try_for_each(|value| self.bytes(&value.to_be_bytes()))
    }

    /// A property that is text, or several texts.
    pub(super) fn texts(&mut self, name: &'static str, texts: &[&str]) -> Result<(), FdtError> {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(FdtError::Nul);
        }
        let bytes = texts.iter().fold(texts.len(), |sum, text| sum.saturating_add(text.len()));
        self.property(name, bytes)?;
        for text in texts {
            self.bytes(text.as_bytes())?;
            self.bytes(&[0])?;
        }
        self.align()
    }

    /// Ends the tree; its bytes.
    pub(super) fn finish(mut self, boot_cpu: u32) -> Result<usize, FdtError> {
        let structure = HEADER + RESERVATIONS;
        self.word(END)?;
        let strings = self.at;
        for name in core::mem::take(&mut self.names) {
            self.bytes(name.as_bytes())?;
            self.bytes(&[0])?;
        }
        let total = self.at;
        let sizes = [total.wrapping_sub(strings), strings.wrapping_sub(structure)];
        let [total, structure, strings, strings_size, structure_size] =
            [total, structure, strings, sizes[0], sizes[1]].map(|n| u32::try_from(n).ok());
        let header = [
            Some(MAGIC),
            total,
            structure,
            strings,
            u32::try_from(HEADER).ok(),
            Some(VERSION),
            Some(LAST_COMPATIBLE),
            Some(boot_cpu),
            strings_size,
            structure_size,
        ];
        let end = core::mem::replace(&mut self.at, 0);
        header.into_iter().try_for_each(|word| self.word(word.ok_or(FdtError::Full)?))?;
        Ok(end)
    }

    fn property(&mut self, name: &'static str, size: usize) -> Result<(), FdtError> {
        let size = u32::try_from(size).map_err(|_| FdtError::Full)?;
        let name = self.name(name)?;
        [PROPERTY, size, name].into_iter().try_for_each(|word| self.word(word))
    }

    /// Where the name will be in the block of strings.
    fn name(&mut self, name: &'static str) -> Result<u32, FdtError> {
        let before = self.names.iter().take_while(|known| **known != name);
        let offset = before.fold(0_usize, |sum, known| sum.saturating_add(known.len()).saturating_add(1));
        if !self.names.contains(&name) {
            self.names.try_push(name).map_err(|_| FdtError::Full)?;
        }
        u32::try_from(offset).map_err(|_| FdtError::Full)
    }

    fn word(&mut self, word: u32) -> Result<(), FdtError> {
        self.bytes(&word.to_be_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), FdtError> {
        let rest = self.out.get_mut(self.at..).unwrap_or_default();
        rest.get_mut(..bytes.len()).ok_or(FdtError::Full)?.copy_from_slice(bytes);
        self.at = self.at.saturating_add(bytes.len());
        Ok(())
    }

    fn align(&mut self) -> Result<(), FdtError> {
        while !self.at.is_multiple_of(4) {
            self.bytes(&[0])?;
        }
        Ok(())
    }
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes()).map_err(|_| fmt::Error)
    }
}
