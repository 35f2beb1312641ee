//! Reads stage-2 snapshots of Rampart (docs/snapshot.md): text in the manner of Linux's ptdump, JSON,
//! a map of who owns which physical page, and what changed between two snapshots.
//!
//! Entries are decoded by the hypervisor's own table engine. A dump may be truncated, corrupt or
//! made to do harm: whatever the bytes are, there is an answer or an error, in bounded memory.
#![forbid(unsafe_code)]

pub mod diff;
pub mod dump;
pub mod html;
pub mod json;
pub mod map;
pub mod picture;
pub mod svg;
pub mod text;
pub mod walk;

pub use dump::{Dump, DumpError};
pub use map::{Map, MapError};
pub use picture::Picture;

/// Does with the bytes of a file all that the tool can do with one file, and shows nobody: what a
/// fuzzer calls.
///
/// # Errors
/// The file is no dump.
pub fn read_all(bytes: Vec<u8>) -> Result<(), DumpError> {
    let dump = Dump::parse(bytes)?;
    let mut sink = std::io::sink();
    let map = Map::new(&dump, &[]).ok();
    // A sink takes everything.
    let _ = text::write(&dump, &mut sink);
    let _ = json::write(&dump, map.as_ref(), &mut sink);
    let _ = diff::write(&dump, &dump, diff::Scope::Hands, &mut sink);
    if let Some(map) = &map {
        let picture = Picture::new(&dump, map);
        let _ = (svg::draw(&picture), html::draw(&picture));
    }
    Ok(())
}
