//! Names for the addresses of a hypervisor panic.
//!
//! The hypervisor prints `rampart:   #N 0xOFFSET` for every frame, counted from where the image was loaded: #0 is
//! the instruction that faulted, the others are return addresses.

use addr2line::Loader;
use anyhow::{Result, anyhow};
use std::fmt;
use std::path::Path;

/// One function on the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The function, as written in the source.
    pub function: String,
    /// The source file, from the top of the workspace where it lies inside.
    pub file: String,
    /// The line, 0 where unknown.
    pub line: u32,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.function, self.file, self.line)
    }
}

/// The debug information of one image.
pub struct Symbols {
    loader: Loader,
}

impl fmt::Debug for Symbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Symbols").finish_non_exhaustive()
    }
}

impl Symbols {
    /// Reads an ELF file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(elf: &Path) -> Result<Self> {
        let loader = Loader::new(elf).map_err(|error| anyhow!("{}: {error}", elf.display()))?;
        Ok(Self { loader })
    }

    /// The functions at `offset` bytes into the image, the innermost inlined one first; none outside its code.
    #[must_use]
    pub fn at(&self, offset: u64) -> Vec<Frame> {
        let address = self.loader.relative_address_base().saturating_add(offset);
        let Some(symbol) = self.loader.find_symbol(address) else { return Vec::new() };
        let mut frames = Vec::new();
        if let Ok(mut found) = self.loader.find_frames(address) {
            while let Ok(Some(frame)) = found.next() {
                let name =
                    frame.function.as_ref().and_then(|f| f.demangle().ok().map(|name| name.into_owned()));
                let location = frame.location.as_ref();
                frames.push(Frame {
                    function: name.unwrap_or_else(|| symbol.to_owned()),
                    file: location.and_then(|at| at.file).map_or("?".to_owned(), short),
                    line: location.and_then(|at| at.line).unwrap_or(0),
                });
            }
        }
        if frames.is_empty() {
            frames.push(Frame { function: symbol.to_owned(), file: "?".to_owned(), line: 0 });
        }
        frames
    }

    /// The functions of one printed frame.
    #[must_use]
    pub fn of(&self, entry: Entry) -> Vec<Frame> {
        // A return address is behind its call, perhaps already in the next line or function.
        self.at(if entry.number == 0 { entry.offset } else { entry.offset.saturating_sub(1) })
    }

    /// `console` with the functions under every line of a backtrace.
    #[must_use]
    pub fn annotate(&self, console: &str) -> String {
        let mut out = String::new();
        for line in console.lines() {
            out.push_str(line);
            out.push('\n');
            let Some(entry) = Entry::parse(line) else { continue };
            let frames = self.of(entry);
            if frames.is_empty() {
                out.push_str("           not in the image\n");
            }
            for frame in frames {
                out.push_str(&format!("           {frame}\n"));
            }
        }
        out
    }
}

/// A path without the part that is only about this machine.
fn short(file: &str) -> String {
    let path = Path::new(file);
    path.strip_prefix(crate::workspace()).unwrap_or(path).display().to_string()
}

/// One printed frame of a backtrace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its number; 0 is where the fault was taken.
    pub number: u32,
    /// Bytes from the start of the image.
    pub offset: u64,
}

impl Entry {
    /// Reads a line of a backtrace.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (number, address) = line.strip_prefix("rampart:")?.trim().strip_prefix('#')?.split_once(' ')?;
        let digits = address.split(' ').next()?.strip_prefix("0x")?;
        Some(Self { number: number.parse().ok()?, offset: u64::from_str_radix(digits, 16).ok()? })
    }
}

/// The backtraces of all panics on a console, one after the other.
#[must_use]
pub fn backtrace(console: &str) -> Vec<Entry> {
    let mut inside = false;
    let mut entries = Vec::new();
    for line in console.lines() {
        if line.starts_with("rampart: PANIC: ") {
            inside = true;
        } else if line.starts_with("rampart: end of panic") {
            inside = false;
        } else if inside {
            entries.extend(Entry::parse(line));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_only_inside_a_panic() {
        let console = "rampart:   #9 0x9\nrampart: PANIC: cpu 0: broken\nmore words\n\
                       rampart:   ESR 0x0 ELR 0x4020_1000\nrampart:   image base 0x40200000\n\
                       rampart:   #0 0x1000\nrampart:   #1 0x2f40\nrampart: end of panic\nrampart:   #2 0x3\n";
        let entry = |number, offset| Entry { number, offset };
        assert_eq!(backtrace(console), [entry(0, 0x1000), entry(1, 0x2f40)]);
    }

    #[test]
    fn other_lines_are_no_frames() {
        for line in
            ["#0 0x10", "rampart: 0 0x10", "rampart:   #x 0x10", "rampart:   #0 10", "rampart:   #0 0xzz"]
        {
            assert_eq!(Entry::parse(line), None, "{line}");
        }
    }

    /// The test program is itself a file with debug information.
    #[test]
    fn an_address_gets_its_function_file_and_line() {
        let program = std::env::current_exe().unwrap();
        let symbols = Symbols::read(&program).unwrap();
        let file = std::fs::read(&program).unwrap();
        let parsed = object::File::parse(&*file).unwrap();
        let symbol = object::Object::symbols(&parsed)
            .find(|s| {
                object::ObjectSymbol::name(s).is_ok_and(|name| name.contains("named_for_the_test_of_symbols"))
            })
            .unwrap();
        let base = symbols.loader.relative_address_base();
        let offset = object::ObjectSymbol::address(&symbol).checked_sub(base).unwrap();
        let frames = symbols.at(offset);
        let frame = frames.last().unwrap();
        assert!(frame.function.ends_with("symbols::tests::named_for_the_test_of_symbols"), "{frame}");
        assert_eq!((frame.file.as_str(), frame.line), ("xtask/src/symbols.rs", FUNCTION_LINE));
        let text = format!("rampart:   #0 {offset:#x}\nrampart:   #1 0xffffffffffff\n");
        let annotated = symbols.annotate(&text);
        assert!(annotated.contains("named_for_the_test_of_symbols (xtask/src/symbols.rs:"), "{annotated}");
        assert!(annotated.contains("#1 0xffffffffffff\n           not in the image\n"), "{annotated}");
        assert_eq!(named_for_the_test_of_symbols(1), 2);
    }

    const FUNCTION_LINE: u32 = line!().saturating_add(2);
    #[inline(never)]
    fn named_for_the_test_of_symbols(x: u32) -> u32 {
        x.rotate_left(1)
    }
}
