//! The shim's boot arguments: words divided by blanks, `key=value` or bare.
#![forbid(unsafe_code)]

/// What `/chosen/bootargs` says.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    text: &'a str,
}

impl<'a> Args<'a> {
    /// Arguments as they stand in the device tree.
    #[must_use]
    pub const fn new(text: &'a str) -> Self {
        Self { text }
    }

    /// The value of the last `key=value`: what is appended wins.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.text
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .rfind(|(k, _)| *k == key)
            .map(|(_, value)| value)
    }

    /// True if the bare word `word` is among the arguments.
    #[must_use]
    pub fn has(&self, word: &str) -> bool {
        self.text.split_ascii_whitespace().any(|w| w == word)
    }

    /// The decimal or 0x number of `key`, or `default` if it is missing or no number.
    #[must_use]
    pub fn number(&self, key: &str, default: u64) -> u64 {
        let Some(text) = self.get(key) else { return default };
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        parsed.unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::Args;

    #[test]
    fn words_values_and_numbers() {
        let args = Args::new("scenario=calls  semihosting rounds=0x10 scenario=smp seed=7 x=y=z");
        assert_eq!(args.get("scenario"), Some("smp"));
        assert_eq!(args.get("x"), Some("y=z"));
        assert_eq!(args.get("semihosting"), None);
        assert!(args.has("semihosting"));
        assert!(!args.has("scenario"));
        assert_eq!(args.number("rounds", 1), 16);
        assert_eq!(args.number("seed", 1), 7);
        assert_eq!(args.number("none", 3), 3);
        assert_eq!(args.number("x", 4), 4);
    }
}
