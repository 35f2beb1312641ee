//! `ptdump`: the library's verbs for people.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use ptdump::diff::{self, Scope};
use ptdump::walk::Problems;
use ptdump::{Dump, Map, Picture, html, json, svg, text};
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Shows stage-2 snapshots: who owns which page.
///
/// Exit status: 0 all is consistent, 1 the tables contradict themselves or each other, 2 an error.
#[derive(Debug, Parser)]
#[command(name = "ptdump", args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Command {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    show: Show,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// What changed hands from one snapshot to another of the same table.
    Diff(Diff),
}

#[derive(Debug, Args)]
struct Show {
    /// The dump: text, one line for entries that say the same, unless an option asks for something else.
    #[arg(required = true, value_name = "DUMP")]
    dump: Option<PathBuf>,
    /// For a map of the host's dump: dumps of guests, for what they share, borrow, guard or have lost.
    #[arg(value_name = "GUEST")]
    guests: Vec<PathBuf>,
    /// JSON; of the host's dump with the map of owners.
    #[arg(long, conflicts_with_all = ["svg", "html"])]
    json: bool,
    /// The map as a still picture.
    #[arg(long, conflicts_with = "html")]
    svg: bool,
    /// The map as a page for a browser.
    #[arg(long)]
    html: bool,
    /// Write to a file.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Diff {
    /// The first dump.
    a: PathBuf,
    /// The second.
    b: PathBuf,
    /// Every entry: also what the host mapped by touching it.
    #[arg(long)]
    all: bool,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let done = match &command.verb {
        Some(Verb::Diff(options)) => compare(options),
        None => show(&command.show),
    };
    match done {
        Ok(problems) if problems.count() == 0 => ExitCode::SUCCESS,
        Ok(problems) => {
            eprintln!("ptdump: {} inconsistencies", problems.count());
            ExitCode::from(1)
        }
        // Whoever reads has read enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ptdump: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
    };
    error.chain().any(io)
}

fn open(path: &Path) -> Result<Dump> {
    Dump::open(path).with_context(|| path.display().to_string())
}

fn show(options: &Show) -> Result<Problems> {
    let path = options.dump.as_deref().context("no dump")?;
    let dump = open(path)?;
    let guests = options.guests.iter().map(|guest| open(guest)).collect::<Result<Vec<_>>>()?;
    let mut out: Box<dyn Write> = match &options.output {
        Some(file) => {
            Box::new(BufWriter::new(File::create(file).with_context(|| file.display().to_string())?))
        }
        None => Box::new(BufWriter::with_capacity(1 << 16, io::stdout().lock())),
    };
    let picture = options.svg || options.html;
    let is_host = dump.kind() == abi::snapshot::Kind::Host;
    let map = if picture || is_host && (options.json || !guests.is_empty()) {
        Some(Map::new(&dump, &guests).with_context(|| path.display().to_string())?)
    } else {
        None
    };
    let problems = match &map {
        Some(map) if picture => {
            let picture = Picture::new(&dump, map);
            let text = if options.svg { svg::draw(&picture) } else { html::draw(&picture) };
            out.write_all(text.as_bytes())?;
            map.problems.clone()
        }
        _ if options.json => json::write(&dump, map.as_ref(), &mut out)?,
        _ => {
            let mut problems = text::write(&dump, &mut out)?;
            for guest in &guests {
                writeln!(out)?;
                problems.append(text::write(guest, &mut out)?);
            }
            // Between the tables: what each alone says has been written.
            if let Some(map) = &map {
                text::write_problems(&map.problems, &mut out)?;
                problems = map.problems.clone();
            }
            problems
        }
    };
    out.flush()?;
    Ok(problems)
}

fn compare(options: &Diff) -> Result<Problems> {
    let (a, b) = (open(&options.a)?, open(&options.b)?);
    let mut out = BufWriter::new(io::stdout().lock());
    let scope = if options.all { Scope::Entries } else { Scope::Hands };
    let summary = diff::write(&a, &b, scope, &mut out)?;
    text::write_problems(&summary.problems, &mut out)?;
    out.flush()?;
    Ok(summary.problems)
}
