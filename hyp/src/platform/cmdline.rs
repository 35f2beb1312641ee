//! The hypervisor's own command line: `/chosen/bootargs` of the tree that it was entered with.
//!
//! Words are separated by spaces. What is not understood is left out, to be warned of once there
//! is a log: a typing error must not keep a machine from booting.
#![forbid(unsafe_code)]

use log::LevelFilter;

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// `log=error|warn|info|debug|trace`; `info` unless said. The last one counts.
    pub log: LevelFilter,
    bootargs: &'a str,
}

impl<'a> Options<'a> {
    /// Reads the command line.
    #[must_use]
    pub fn new(bootargs: &'a str) -> Self {
        let log = words(bootargs).filter_map(log_level).last().unwrap_or(LevelFilter::Info);
        Self { log, bootargs }
    }

    /// The words that mean nothing.
    pub fn ignored(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        words(self.bootargs).filter(|word| log_level(word).is_none())
    }
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
    fn unknown_words_are_told_and_change_nothing() {
        let options = Options::new("quiet log=debug log=loud LOG=error log");
        assert_eq!(options.log, LevelFilter::Debug);
        assert_eq!(options.ignored().collect::<Vec<_>>(), ["quiet", "log=loud", "LOG=error", "log"]);
    }
}
