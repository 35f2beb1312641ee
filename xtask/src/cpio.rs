//! Archives in the `newc` form of cpio, which Linux unpacks as its first file system
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same entries give the same bytes: owner, group and time are 0.

use anyhow::{Context, Result};

/// `st_mode`: what an entry is.
mod kind {
    pub(super) const FOLDER: u32 = 0o04_0000;
    pub(super) const FILE: u32 = 0o10_0000;
    pub(super) const CHARACTERS: u32 = 0o02_0000;
}

const MAGIC: &str = "070701";
const END: &str = "TRAILER!!!";
/// Headers and contents begin at multiples of this.
const ALIGNMENT: usize = 4;

/// An archive that grows.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder that everybody may enter.
    ///
    /// # Errors
    /// The name is too long.
    pub fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, kind::FOLDER | 0o755, (0, 0), &[])
    }

    /// Adds a file that everybody may execute.
    ///
    /// # Errors
    /// The name or the contents are longer than 4 GiB.
    pub fn program(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.entry(name, kind::FILE | 0o755, (0, 0), contents)
    }

    /// Adds a character device that only its owner may use.
    ///
    /// # Errors
    /// The name is too long.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(name, kind::CHARACTERS | 0o600, (major, minor), &[])
    }

    /// The whole archive.
    ///
    /// # Errors
    /// None that an archive of fewer than 2^32 entries has.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(END, 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) -> Result<()> {
        self.entries = self.entries.checked_add(1).context("too many entries")?;
        let size = u32::try_from(contents.len()).context("a file of more than 4 GiB")?;
        let name_size = u32::try_from(name.len())?.checked_add(1).context("a name of more than 4 GiB")?;
        let (major, minor) = device;
        // Inode, mode, owner, group, links, time, size, device of the file, device that it is, name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device and contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Every entry, read as the format says.
    fn entries(bytes: &[u8]) -> Vec<Entry> {
        let mut found = Vec::new();
        let mut rest = bytes;
        loop {
            let (magic, fields) = rest.split_at(6);
            assert_eq!(magic, b"070701");
            let fields: Vec<u32> = fields[..104]
                .chunks(8)
                .map(|digits| u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
                .collect();
            let size = usize::try_from(fields[6]).unwrap();
            let name_size = usize::try_from(fields[11]).unwrap();
            let name = rest[110..].split_at(name_size).0.split_last().unwrap();
            assert_eq!(name.0, &0);
            let name = String::from_utf8(name.1.to_vec()).unwrap();
            let (contents, behind) = rest[name_size.saturating_add(110).next_multiple_of(4)..].split_at(size);
            found.push((name.clone(), fields[1], (fields[9], fields[10]), contents.to_vec()));
            rest = &behind[size.next_multiple_of(4).saturating_sub(size)..];
            if name == END {
                assert!(rest.is_empty());
                return found;
            }
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut archive = Archive::default();
        archive.folder("dev").unwrap();
        archive.device("dev/console", 5, 1).unwrap();
        archive.program("init", b"#!/bin/sh\n").unwrap();
        let found = entries(&archive.finish().unwrap());
        assert_eq!(found[0], ("dev".to_owned(), 0o04_0755, (0, 0), vec![]));
        assert_eq!(found[1], ("dev/console".to_owned(), 0o02_0600, (5, 1), vec![]));
        assert_eq!(found[2], ("init".to_owned(), 0o10_0755, (0, 0), b"#!/bin/sh\n".to_vec()));
        assert_eq!(found[3].0, "TRAILER!!!");
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn every_name_and_length_keeps_the_alignment() {
        for length in 0..9_usize {
            let mut archive = Archive::default();
            let name = "n".repeat(length.saturating_add(1));
            archive.program(&name, &vec![7; length]).unwrap();
            archive.program("next", &[]).unwrap();
            let found = entries(&archive.finish().unwrap());
            assert_eq!(found[0].3, vec![7; length]);
            assert_eq!(found[1].0, "next");
        }
    }
}
