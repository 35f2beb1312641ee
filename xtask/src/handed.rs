//! Files that a host hands out over the console, the one way off the machine that it has: base64 between two lines, as
//! mail does it (RFC 7468).

use anyhow::{Context, Result, ensure};

/// The file `name` on a console.
///
/// # Errors
/// It is not there, or not whole.
pub fn file(console: &str, name: &str) -> Result<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {name}-----"), format!("-----END {name}-----"));
    let mut lines = console.lines().map(str::trim_end).skip_while(|line| *line != begin);
    lines.next().with_context(|| format!("the console has no file {name}"))?;
    let mut bytes = Vec::new();
    for line in lines {
        if line == end {
            return Ok(bytes);
        }
        decode(line, &mut bytes).with_context(|| format!("{name} on the console: '{line}'"))?;
    }
    anyhow::bail!("{name} on the console has no end");
}

/// Tells the lines of a file from others, as they come.
#[derive(Debug, Default)]
pub struct Inside(bool);

impl Inside {
    /// True if the next line is of a file, or the line before or behind it.
    pub fn a_file(&mut self, line: &str) -> bool {
        let line = line.trim_end();
        let (begins, ends) = (line.starts_with("-----BEGIN "), line.starts_with("-----END "));
        self.0 = (self.0 || begins) && !ends;
        self.0 || ends
    }
}

/// One line: groups of four characters are three bytes, fewer where `=` fills up the last group.
fn decode(line: &str, out: &mut Vec<u8>) -> Result<()> {
    let (groups, rest) = line.as_bytes().as_chunks::<4>();
    ensure!(rest.is_empty(), "not a multiple of four characters");
    for group in groups {
        let filled = group.iter().rev().take_while(|byte| **byte == b'=').count();
        ensure!(filled < 3, "too many '='");
        let word = group.iter().try_fold(0_u32, |word, byte| Some(word << 6 | value(*byte)?));
        let [_, bytes @ ..] = word.context("no base64")?.to_be_bytes();
        out.extend(bytes.iter().take(3_usize.saturating_sub(filled)));
    }
    Ok(())
}

fn value(byte: u8) -> Option<u32> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if byte == b'=' {
        return Some(0);
    }
    ALPHABET.iter().position(|letter| *letter == byte).and_then(|at| u32::try_from(at).ok())
}

#[cfg(test)]
mod tests {
    use super::{Inside, file};

    #[test]
    fn a_file_is_read_between_its_lines() {
        let console = "noise\r\n-----BEGIN a-----\r\nAAEC/w==\r\n/+8=\r\n-----END a-----\r\nAAAA\r\n";
        assert_eq!(file(console, "a").unwrap(), [0, 1, 2, 255, 255, 239]);
        assert!(file(console, "b").is_err());
    }

    #[test]
    fn people_are_shown_what_is_beside_a_file() {
        let mut inside = Inside::default();
        let lines = ["a", "-----BEGIN x-----\r", "AAAA", "-----END x-----\r", "b"];
        assert_eq!(lines.map(|line| inside.a_file(line)), [false, true, true, true, false]);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for line in ["AAE", "AAE*", "A===", "[ 1.0] oops"] {
            assert!(file(&format!("-----BEGIN a-----\n{line}\n-----END a-----\n"), "a").is_err(), "{line}");
        }
        assert!(file("-----BEGIN a-----\nAAAA\n", "a").is_err());
    }
}
