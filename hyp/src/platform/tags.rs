//! Which memory has no allocation tags: what the tree says of its memory, and `no-tags=` of the
//! command line.
//!
//! All other memory has tags, if the CPU has MTE2. What says so is trusted as the rest of the tree is;
//! a range that cannot be right stops the machine, since a guest's tags would be lost there.
#![forbid(unsafe_code)]

use super::PaRange;
use super::cmdline::Options;
use super::memory::MemoryMap;
use super::tree::Platform;
use crate::addr::PfnRange;
use crate::mm::MAX_NO_TAGS;
use arrayvec::ArrayVec;

/// Why it is not known which memory has tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagsError<'a> {
    /// A malformed argument.
    #[error("command line: {0} is not no-tags=START,SIZE")]
    Argument(&'a str),
    /// An argument that names something else than RAM.
    #[error("command line: no-tags: {0} is not in RAM")]
    NotInRam(PaRange),
    /// More ranges than Rampart has room for.
    #[error("more than {MAX_NO_TAGS} ranges of memory without tags")]
    TooMany,
}

/// The pages without tags, in no order. A page that has none in part has none.
///
/// # Errors
/// See [`TagsError`].
pub fn without_tags<'a>(
    memory: &MemoryMap,
    platform: &Platform<'_>,
    options: &Options<'a>,
) -> Result<ArrayVec<PfnRange, MAX_NO_TAGS>, TagsError<'a>> {
    let mut found: ArrayVec<_, MAX_NO_TAGS> =
        platform.no_tags.iter().map(|range| range.pages_touched()).collect();
    for range in options.no_tags() {
        let range = range.map_err(TagsError::Argument)?;
        if !memory.is_ram(range.pages_touched()) {
            return Err(TagsError::NotInRam(range));
        }
        found.try_push(range.pages_touched()).map_err(|_| TagsError::TooMany)?;
    }
    Ok(found)
}
