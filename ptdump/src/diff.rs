//! What changed between two snapshots of one table.

use crate::dump::Dump;
use crate::text::{Size, meaning};
use crate::walk::{Problems, Run, What};
use abi::snapshot::Kind;
use hyp::pgtable::{Level, MemType, Note, Owner, Prot, S2Attrs};
use std::io::{self, Write};

/// Two dumps that cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// One is the host's, or they are of two VMs.
    #[error("the dumps are of different tables: {0:#x} and {1:#x}")]
    Target(u32, u32),
    /// The tables have different shapes or formats.
    #[error("the tables have different shapes or formats")]
    Facts,
    /// The output could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Who has what: a page of the host is one whether it is mapped or not.
    Hands,
    /// Every entry.
    Entries,
}

/// Addresses that say something else in the second dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What the first dump says.
    pub from: What,
    /// What the second says.
    pub to: What,
}

/// What changed, and what is wrong in either dump.
#[derive(Debug)]
pub struct Summary {
    /// Number of changes.
    pub changes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Of both dumps.
    pub problems: Problems,
}

/// Calls `f` for every change from `a` to `b`, ascending.
///
/// # Errors
/// [`DiffError`]; what `f` says.
pub fn changes(
    a: &Dump,
    b: &Dump,
    scope: Scope,
    mut f: impl FnMut(&Change) -> io::Result<()>,
) -> Result<Summary, DiffError> {
    if a.target() != b.target() {
        return Err(DiffError::Target(a.target(), b.target()));
    }
    if a.facts() != b.facts() {
        return Err(DiffError::Facts);
    }
    let merge = scope == Scope::Hands && a.kind() == Kind::Host;
    let (mut left, mut right) = (a.runs(), b.runs());
    let mut summary = Summary { changes: 0, bytes: 0, problems: Problems::default() };
    let (mut x, mut y) = (left.next(), right.next());
    let mut open: Option<Change> = None;
    while let (Some(one), Some(other)) = (x, y) {
        let (start, end) = (one.start.max(other.start), one.end.min(other.end));
        let (from, to) = (at(&one, start), at(&other, start));
        if !same(from, to, merge) {
            let change = Change { start, end, from, to };
            match &mut open {
                Some(last) if goes_on(last, &change) => last.end = end,
                _ => {
                    if let Some(done) = open.replace(change) {
                        summary.count(&done);
                        f(&done)?;
                    }
                }
            }
        }
        if one.end == end {
            x = left.next();
        }
        if other.end == end {
            y = right.next();
        }
    }
    if let Some(done) = open {
        summary.count(&done);
        f(&done)?;
    }
    summary.problems.append(left.problems());
    summary.problems.append(right.problems());
    Ok(summary)
}

impl Summary {
    fn count(&mut self, change: &Change) {
        self.changes = self.changes.saturating_add(1);
        self.bytes = self.bytes.saturating_add(change.end.saturating_sub(change.start));
    }
}

/// What a run says from `start` on, which lies in it.
fn at(run: &Run, start: u64) -> What {
    let bytes = start.saturating_sub(run.start);
    match run.what {
        What::Leaf(pa, attrs) => What::Leaf(pa.saturating_add(bytes), attrs),
        What::Note(Note::HostDonated(Owner::Guest { handle, gfn })) => {
            let gfn = gfn.checked_add(bytes >> 12).unwrap_or(gfn);
            What::Note(Note::HostDonated(Owner::Guest { handle, gfn }))
        }
        What::Note(Note::NoTagPending { page, access, state }) => {
            let page = page.checked_add(bytes >> 12).unwrap_or(page);
            What::Note(Note::NoTagPending { page, access, state })
        }
        same => same,
    }
}

/// True for a mapping that the host gets by touching the page.
fn is_default(what: What) -> bool {
    match what {
        What::Absent => true,
        What::Leaf(_, attrs) => {
            attrs == S2Attrs::owned(Prot::RWX, MemType::Normal)
                || attrs == S2Attrs::owned(Prot::RW, MemType::Device)
        }
        _ => false,
    }
}

fn same(from: What, to: What, merge: bool) -> bool {
    from == to || merge && is_default(from) && is_default(to)
}

fn goes_on(last: &Change, next: &Change) -> bool {
    let run = |what, start, end| Run { start, end, level: Level::L3, what };
    let from = at(&run(last.from, last.start, last.end), next.start);
    let to = at(&run(last.to, last.start, last.end), next.start);
    last.end == next.start && from == next.from && to == next.to
}

/// Writes every change and a summary.
///
/// # Errors
/// [`DiffError`].
pub fn write(a: &Dump, b: &Dump, scope: Scope, out: &mut impl Write) -> Result<Summary, DiffError> {
    let host = a.kind() == Kind::Host;
    let text = |what| match what {
        What::Absent | What::Leaf(..) if host && scope == Scope::Hands => "host".to_owned(),
        what => meaning(what),
    };
    let summary = changes(a, b, scope, |change| {
        let size = Size(change.end.saturating_sub(change.start));
        let (from, to) = (text(change.from), text(change.to));
        writeln!(out, "{:#014x}-{:#014x} {size:>6}  {from}  =>  {to}", change.start, change.end)
    })?;
    writeln!(out, "{} changes, {} pages", summary.changes, summary.bytes >> 12)?;
    Ok(summary)
}
