//! `measure`: the library for people.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::Parser;
use std::fs;
use std::path::{Path, PathBuf};

/// Computes the initial measurement of a realm from what its host did, as docs/measurement.md says.
#[derive(Debug, Parser)]
#[command(name = "measure")]
struct Command {
    /// What the host did, one call a line: `vm FLAGS BITS`, `vcpu IDX PC X0`, `image IPA FILE`,
    /// `unmeasured IPA PAGES`, `ram BASE TOP`. Files are beside it.
    #[arg(value_name = "REALM")]
    realm: PathBuf,
}

fn main() -> Result<()> {
    let Command { realm } = Command::parse();
    let text = fs::read_to_string(&realm).with_context(|| format!("cannot read {}", realm.display()))?;
    let folder = realm.parent().unwrap_or(Path::new(""));
    println!("{}", measure::hex(&measure::script::measure(&text, folder)?));
    Ok(())
}
