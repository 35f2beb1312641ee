//! Names for the addresses of a hypervisor panic.
//!
//! The hypervisor prints `rampart:   #N 0xOFFSET` for every frame, counted from where the image was loaded. After an
//! exception #0 is the instruction that it was taken from; all others are return addresses.

use addr2line::Loader;
use anyhow::{Context, Result, anyhow, ensure};
use object::read::elf::{ElfFile64, ElfSymbol64};
use object::{LittleEndian, Object, ObjectSegment, ObjectSymbol};
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
        self.at(if entry.returns { entry.offset.saturating_sub(1) } else { entry.offset })
    }

    /// `console` with the functions under every line of a backtrace.
    #[must_use]
    pub fn annotate(&self, console: &str) -> String {
        let mut out = String::new();
        let mut reader = Reader::default();
        for line in console.lines() {
            out.push_str(line);
            out.push('\n');
            let Some(entry) = reader.read(line) else { continue };
            let frames = self.of(entry);
            if frames.is_empty() {
                out.push_str("           no known function\n");
            }
            for frame in frames {
                out.push_str(&format!("           {frame}\n"));
            }
        }
        out
    }
}

/// Where the function whose name ends with `name` begins, in bytes from the start of the image, and how long it is.
///
/// # Errors
/// The file cannot be read, or not exactly one function has that name.
pub fn function(elf: &Path, name: &str) -> Result<(u64, u64)> {
    let bytes = std::fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let file = ElfFile64::<LittleEndian>::parse(&*bytes).context("not a 64-bit ELF file")?;
    let base = file.segments().map(|segment| segment.address()).min().context("nothing to load")?;
    let named = |symbol: &ElfSymbol64<'_, '_, LittleEndian>| {
        let mangled = symbol.name().unwrap_or_default();
        addr2line::demangle_auto(mangled.into(), None).ends_with(name)
    };
    let mut found = file.symbols().filter(named);
    let symbol = found.next().with_context(|| format!("no function named {name}"))?;
    ensure!(found.next().is_none(), "several functions are named {name}");
    let offset = symbol.address().checked_sub(base).context("a function below the image")?;
    Ok((offset, symbol.size()))
}

/// A path without the part that is only about this machine.
fn short(file: &str) -> String {
    let path = Path::new(file);
    let inside = path.strip_prefix(crate::workspace()).or_else(|_| path.strip_prefix("."));
    inside.unwrap_or(path).display().to_string()
}

/// One printed frame of a backtrace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Bytes from the start of the image.
    pub offset: u64,
    /// It is the address behind a call, not that of an instruction that faulted.
    pub returns: bool,
}

/// Reads the lines of a console; knows whether it is inside a panic, and inside which kind.
#[derive(Debug, Default)]
struct Reader {
    inside: bool,
    by_exception: bool,
}

impl Reader {
    fn read(&mut self, line: &str) -> Option<Entry> {
        let text = line.strip_prefix("rampart: ")?;
        if let Some(reason) = text.strip_prefix("PANIC: ") {
            self.inside = true;
            self.by_exception = !reason.contains("panicked at");
        } else if text == "end of panic" {
            self.inside = false;
        }
        let (number, address) = text.trim().strip_prefix('#').filter(|_| self.inside)?.split_once(' ')?;
        let number: u32 = number.parse().ok()?;
        let offset = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
        Some(Entry { offset, returns: number > 0 || !self.by_exception })
    }
}

/// The backtraces of all panics on a console, one after the other.
#[must_use]
pub fn backtrace(console: &str) -> Vec<Entry> {
    let mut reader = Reader::default();
    console.lines().filter_map(|line| reader.read(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANIC: &str = "rampart:   #9 0x9\nrampart: PANIC: cpu 0: synchronous exception at EL2\n\
                         rampart:   ESR 0x0 ELR 0x40201000\nrampart:   image base 0x40200000\n\
                         rampart:   #0 0x1000\nrampart:   #1 0x2f40\nrampart: end of panic\nrampart:   #2 0x3\n";

    #[test]
    fn frames_are_read_only_inside_a_panic() {
        let entries = [Entry { offset: 0x1000, returns: false }, Entry { offset: 0x2f40, returns: true }];
        assert_eq!(backtrace(PANIC), entries);
    }

    #[test]
    fn a_panic_in_rust_has_only_return_addresses() {
        let console = PANIC.replace("synchronous exception at EL2", "panicked at hyp/src/x.rs:1:2:\nbroken");
        let entries = [Entry { offset: 0x1000, returns: true }, Entry { offset: 0x2f40, returns: true }];
        assert_eq!(backtrace(&console), entries);
    }

    #[test]
    fn other_lines_are_no_frames() {
        for line in
            ["#0 0x10", "rampart: 0 0x10", "rampart:   #x 0x10", "rampart:   #0 10", "rampart:   #0 0xzz"]
        {
            assert_eq!(backtrace(&format!("rampart: PANIC: x\n{line}\n")), [], "{line}");
        }
    }

    /// The test program is itself a file with debug information.
    #[test]
    fn an_address_gets_its_function_file_and_line() {
        let program = std::env::current_exe().unwrap();
        let symbols = Symbols::read(&program).unwrap();
        let (offset, _) = function(&program, "tests::named_for_the_test_of_symbols").unwrap();
        let frames = symbols.at(offset);
        let frame = frames.last().unwrap();
        assert!(frame.function.ends_with("symbols::tests::named_for_the_test_of_symbols"), "{frame}");
        assert_eq!((frame.file.as_str(), frame.line), ("xtask/src/symbols.rs", FUNCTION_LINE));
        let text =
            format!("rampart: PANIC: exception\nrampart:   #0 {offset:#x}\nrampart:   #1 0xffffffffffff\n");
        let annotated = symbols.annotate(&text);
        assert!(annotated.contains("named_for_the_test_of_symbols (xtask/src/symbols.rs:"), "{annotated}");
        assert!(annotated.contains("#1 0xffffffffffff\n           no known function\n"), "{annotated}");
        assert_eq!(named_for_the_test_of_symbols(1), 2);
    }

    #[test]
    fn a_function_is_found_only_if_its_name_is_its_alone() {
        let program = std::env::current_exe().unwrap();
        assert!(function(&program, "::no_such_function").is_err());
        assert!(function(&program, "::fmt").is_err());
    }

    const FUNCTION_LINE: u32 = line!().saturating_add(2);
    #[inline(never)]
    fn named_for_the_test_of_symbols(x: u32) -> u32 {
        x.rotate_left(1)
    }
}
