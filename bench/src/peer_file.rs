//! The committed figures of the peer, by CPU model.

use crate::operation::Cells;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

fn file() -> PathBuf {
    xtask::workspace().join("bench/peer.json")
}

/// The committed figures.
///
/// # Errors
/// They cannot be read.
pub fn read() -> Result<BTreeMap<String, Cells>> {
    let text = fs::read_to_string(file()).with_context(|| format!("cannot read {}", file().display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds no figures", file().display()))
}

/// Makes these the committed ones.
///
/// # Errors
/// They cannot be written.
pub fn write(peer: &BTreeMap<String, Cells>) -> Result<()> {
    let text = format!("{:#}\n", serde_json::to_value(peer)?);
    fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
}
