//! The hypervisor's own command line: `/chosen/bootargs` of the tree that it was entered with.
//!
//! Words are separated by spaces. What is not understood is left out, to be warned of once there
//! is a log: a typing error must not keep a machine from booting. The exception is `no-tags=`, since
//! tags of memory that has none are lost without a sign.
#![forbid(unsafe_code)]

use super::PaRange;
use log::LevelFilter;

/// The first half of `no-tags=START,SIZE`.
const NO_TAGS: &str = "no-tags=";
/// FEAT_MTE_PERM is not used, as if the CPU had none.
const CONSERVATIVE: &str = "mte=conservative";

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// `log=error|warn|info|debug|trace`; `info` unless said. The last one counts.
    pub log: LevelFilter,
    /// `mte=conservative`: a page that a guest may not use tags on is not mapped at all, also where
    /// the CPU could trap tag accesses alone.
    pub conservative: bool,
    bootargs: &'a str,
}

impl<'a> Options<'a> {
    /// Reads the command line.
    #[must_use]
    pub fn new(bootargs: &'a str) -> Self {
        let log = words(bootargs).filter_map(log_level).last().unwrap_or(LevelFilter::Info);
        let conservative = words(bootargs).any(|word| word == CONSERVATIVE);
        Self { log, conservative, bootargs }
    }

    /// Memory without allocation tags: each `no-tags=START,SIZE`, in bytes, decimal or `0x`;
    /// as an error a word that is none.
    pub fn no_tags(&self) -> impl Iterator<Item = Result<PaRange, &'a str>> + use<'a> {
        words(self.bootargs).filter_map(|word| {
            let value = word.strip_prefix(NO_TAGS)?;
            let range = value
                .split_once(',')
                .and_then(|(start, size)| PaRange::new(number(start)?, number(size)?).ok());
            Some(range.ok_or(word))
        })
    }

    /// The words that mean nothing.
    pub fn ignored(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let known =
            |word: &str| log_level(word).is_some() || word == CONSERVATIVE || word.starts_with(NO_TAGS);
        words(self.bootargs).filter(move |word| !known(word))
    }
}

/// A number without sign.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    // The standard parser takes a plus sign.
    digits.starts_with(|c: char| c.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, radix).ok())?
}

fn words(bootargs: &str) -> impl Iterator<Item = &str> {
    bootargs.split_ascii_whitespace()
}

fn log_level(word: &str) -> Option<LevelFilter> {
    match word.strip_prefix("log=")? {
        "error" => Some(LevelFilter::Error),
        "warn" => Some(LevelFilter::Warn),
        "info" => Some(LevelFilter::Info),
        "debug" => Some(LevelFilter::Debug),
        "trace" => Some(LevelFilter::Trace),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Options;
    use crate::platform::PaRange;
    use log::LevelFilter;
    use std::vec::Vec;

    #[test]
    fn the_last_level_counts_and_the_default_is_info() {
        assert_eq!(Options::new("").log, LevelFilter::Info);
        assert_eq!(Options::new(" log=warn  log=trace ").log, LevelFilter::Trace);
        for (word, level) in
            [("error", LevelFilter::Error), ("warn", LevelFilter::Warn), ("debug", LevelFilter::Debug)]
        {
            assert_eq!(Options::new(&std::format!("log={word}")).log, level);
        }
    }

    #[test]
    fn precision_is_given_up_on_demand_only() {
        assert!(!Options::new("").conservative);
        assert!(!Options::new("mte=precise xmte=conservative").conservative);
        let options = Options::new("log=warn mte=conservative");
        assert!(options.conservative);
        assert_eq!(options.ignored().count(), 0);
        assert_eq!(Options::new("mte=careful").ignored().collect::<Vec<_>>(), ["mte=careful"]);
    }

    #[test]
    fn memory_without_tags_is_read_or_refused() {
        let options = Options::new("no-tags=0x60000000,0x1000 log=warn no-tags=4096,1");
        let ranges: Vec<_> = options.no_tags().collect();
        let range = |start, len| Ok(PaRange::new(start, len).unwrap());
        assert_eq!(ranges, [range(0x6000_0000, 0x1000), range(0x1000, 1)]);
        assert_eq!(options.ignored().count(), 0);
        for word in [
            "no-tags=",
            "no-tags=0x1000",
            "no-tags=,0x1000",
            "no-tags=0x1000,",
            "no-tags=0x1000,0",
            "no-tags=0x1000,0x1000,0x1000",
            "no-tags=+1,1",
            "no-tags=-1,1",
            "no-tags=0x,1",
            "no-tags=0x+1,1",
            "no-tags=a,1",
            "no-tags=0x1000,4K",
            "no-tags=0xffffffffffffffff,1",
            "no-tags=0xffffffffffffffff,2",
            "no-tags=0x10000000000000000,1",
            "no-tags=0x1000000000000,1",
        ] {
            assert_eq!(Options::new(word).no_tags().collect::<Vec<_>>(), [Err(word)]);
            assert_eq!(Options::new(word).ignored().count(), 0);
        }
    }

    #[test]
    fn unknown_words_are_told_and_change_nothing() {
        let options = Options::new("quiet log=debug log=loud LOG=error log");
        assert_eq!(options.log, LevelFilter::Debug);
        assert_eq!(options.ignored().collect::<Vec<_>>(), ["quiet", "log=loud", "LOG=error", "log"]);
    }
}
