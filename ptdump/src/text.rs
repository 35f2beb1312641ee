//! A table as text, in the manner of Linux's ptdump: one line for entries that say the same.

use crate::dump::Dump;
use crate::walk::{Problems, Run, What};
use abi::snapshot::{Kind, NoTag};
use hyp::pgtable::{LeafState, MemType, Note, Owner, PendingState, Prot, Ripas};
use std::fmt::{self, Display};
use std::io::{self, Write};

/// A size in the largest unit that divides it.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
        let unit = units.into_iter().find(|(shift, _)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        let (shift, unit) = unit.unwrap_or((0, 'B'));
        f.pad(&format!("{}{unit}", self.0 >> shift))
    }
}

/// What kind of table a dump holds, in one line.
#[must_use]
pub fn heading(dump: &Dump) -> String {
    let facts = dump.facts();
    let whose = match dump.kind() {
        Kind::Host => "host".to_owned(),
        Kind::NonProtected => format!("VM {:#x}, not protected", dump.target()),
        Kind::Protected => format!("VM {:#x}, protected", dump.target()),
        Kind::Split => format!("VM {:#x}, protected, split IPA", dump.target()),
    };
    let no_tag = match facts.no_tag {
        NoTag::Software => "",
        NoTag::MemAttr => ", MTE_PERM",
        NoTag::Note => ", pages without tags as notes",
    };
    format!(
        "stage 2 of the {whose}: {} bits from level {}, {} and {}, {}-bit physical addresses{}{no_tag}",
        facts.ia_bits,
        facts.start_level,
        counted(dump.shape().root_pages().into(), "root page"),
        counted(dump.tables().into(), "table"),
        facts.pa_bits,
        if facts.fwb { ", FWB" } else { "" },
    )
}

/// "1 page", "2 pages".
#[must_use]
pub fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

fn flag(on: bool, text: &'static str) -> &'static str {
    if on { text } else { "" }
}

/// What a run says, in columns.
#[must_use]
pub fn meaning(what: What) -> String {
    match what {
        What::Absent => "-".to_owned(),
        What::Corrupt(why, word) => format!("CORRUPT {word:#018x} {why:?}"),
        What::Note(note) => note_text(note),
        What::Leaf(pa, attrs) => {
            let has = |bit, yes, no| if attrs.prot.contains(bit) { yes } else { no };
            let memory = match attrs.mem {
                MemType::Normal => "MEM/NORMAL",
                MemType::NormalNc => "MEM/NC",
                MemType::Device => "DEVICE/nGnRE",
            };
            let state = match attrs.state {
                LeafState::Owned => "owned",
                LeafState::SharedOwned => "shared",
                LeafState::SharedBorrowed => "borrowed",
            };
            format!(
                "{}{}{} {} {memory:<12} {state:<8} -> {pa:#014x}{}",
                has(Prot::R, "R", " "),
                has(Prot::W, "W", " "),
                has(Prot::X, "X", " "),
                if attrs.accessed { "AF" } else { "  " },
                flag(attrs.prot.contains(Prot::NO_TAG), " NO_TAG"),
            )
        }
    }
}

fn note_text(note: Note) -> String {
    match note {
        Note::HostDonated(Owner::Hyp) => "NOTE hypervisor".to_owned(),
        Note::HostDonated(Owner::Ffa) => "NOTE secure world".to_owned(),
        Note::HostDonated(Owner::Guest { handle, gfn }) => {
            format!("NOTE guest {handle:#x} at frame {:#x}", gfn.raw())
        }
        Note::Ripas(Ripas::Ram) => "NOTE memory to come".to_owned(),
        Note::Ripas(Ripas::Destroyed) => "NOTE destroyed".to_owned(),
        Note::MmioGuard => "NOTE MMIO guard".to_owned(),
        Note::NoTagPending { page, access, state } => {
            let state = match state {
                PendingState::Owned => "owned",
                PendingState::SharedBorrowed => "borrowed",
            };
            format!("NOTE no tags yet: page {:#x}, {access:?}, {state}", page.raw())
        }
    }
}

/// One line of a dump.
#[must_use]
pub fn line(run: &Run) -> String {
    format!(
        "{:#014x}-{:#014x} {:>6} L{} {}",
        run.start,
        run.end,
        Size(run.len()),
        run.level.number(),
        meaning(run.what)
    )
}

/// Writes the whole table, and what is wrong with it; gives the problems.
///
/// # Errors
/// Those of `out`.
pub fn write(dump: &Dump, out: &mut impl Write) -> io::Result<Problems> {
    let title = dump.title();
    if !title.is_empty() {
        writeln!(out, "---[ {title} ]---")?;
    }
    writeln!(out, "{}", heading(dump))?;
    for place in dump.places() {
        writeln!(
            out,
            "# {:#014x}-{:#014x} {:>6} {:?} {}",
            place.start,
            place.end,
            Size(place.end.saturating_sub(place.start)),
            place.kind,
            place.name
        )?;
    }
    let mut runs = dump.runs();
    for run in runs.by_ref().filter(|run| run.what != What::Absent) {
        writeln!(out, "{}", line(&run))?;
    }
    let problems = runs.problems();
    write_problems(&problems, out)?;
    Ok(problems)
}

/// Writes the problems, if there are any.
///
/// # Errors
/// Those of `out`.
pub fn write_problems(problems: &Problems, out: &mut impl Write) -> io::Result<()> {
    for problem in problems.first() {
        writeln!(out, "INCONSISTENT: {problem}")?;
    }
    let more = problems.count().saturating_sub(problems.first().len() as u64);
    if more > 0 {
        writeln!(out, "INCONSISTENT: {more} more")?;
    }
    Ok(())
}

/// A number in groups of three digits.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(" ")
}

/// Bytes as a size with one digit behind the point at most.
#[must_use]
pub fn amount(bytes: u64) -> String {
    let tenths = |unit: u64| bytes.saturating_mul(10).checked_div(unit).unwrap_or_default();
    let (tenths, unit) = match bytes {
        n if n >= 1 << 30 => (tenths(1 << 30), "GiB"),
        n if n >= 1 << 20 => (tenths(1 << 20), "MiB"),
        n if n >= 1 << 10 => (tenths(1 << 10), "KiB"),
        n => (n.saturating_mul(10), "bytes"),
    };
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        digit => format!("{}.{digit} {unit}", tenths / 10),
    }
}
