//! A dump as JSON: one object, written as the table is read.

use crate::dump::Dump;
use crate::map::Map;
use crate::text::meaning;
use crate::walk::{Problems, Run, What};
use hyp::pgtable::{LeafState, MemType, Note, Owner, PendingState, Prot, Ripas};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Version of what is written.
pub const VERSION: u32 = 1;

fn hex(word: u64) -> Value {
    Value::String(format!("{word:#x}"))
}

/// A run as an object.
#[must_use]
pub fn run(run: &Run) -> Value {
    let mut value = json!({
        "start": hex(run.start),
        "end": hex(run.end),
        "level": run.level.number(),
    });
    let says = match run.what {
        What::Absent => json!({"absent": true}),
        What::Corrupt(why, word) => json!({"corrupt": format!("{why:?}"), "word": hex(word)}),
        What::Leaf(pa, attrs) => json!({
            "pa": hex(pa),
            "read": attrs.prot.contains(Prot::R),
            "write": attrs.prot.contains(Prot::W),
            "execute": attrs.prot.contains(Prot::X),
            "no_tag": attrs.prot.contains(Prot::NO_TAG),
            "accessed": attrs.accessed,
            "memory": match attrs.mem {
                MemType::Normal => "normal",
                MemType::NormalNc => "normal-nc",
                MemType::Device => "device",
            },
            "state": state(attrs.state),
        }),
        What::Note(note) => json!({"note": note_of(note)}),
    };
    if let (Value::Object(value), Value::Object(says)) = (&mut value, says) {
        value.extend(says);
    }
    value
}

fn state(state: LeafState) -> &'static str {
    match state {
        LeafState::Owned => "owned",
        LeafState::SharedOwned => "shared",
        LeafState::SharedBorrowed => "borrowed",
    }
}

fn note_of(note: Note) -> Value {
    match note {
        Note::HostDonated(Owner::Hyp) => json!({"owner": "hypervisor"}),
        Note::HostDonated(Owner::Ffa) => json!({"owner": "secure"}),
        Note::HostDonated(Owner::Guest { handle, gfn }) => {
            json!({"owner": "guest", "handle": handle, "gfn": hex(gfn.raw())})
        }
        Note::Ripas(Ripas::Ram) => json!({"ripas": "ram"}),
        Note::Ripas(Ripas::Destroyed) => json!({"ripas": "destroyed"}),
        Note::MmioGuard => json!({"guard": true}),
        Note::NoTagPending { page, state: pending, .. } => json!({
            "no_tag_pending": hex(page.base().raw()),
            "state": match pending {
                PendingState::Owned => state(LeafState::Owned),
                PendingState::SharedBorrowed => state(LeafState::SharedBorrowed),
            },
        }),
    }
}

fn list(problems: &Problems) -> Value {
    json!({
        "count": problems.count(),
        "first": problems.first().iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Writes the table; of the host's also the map of owners, if it can be made. Gives the problems.
///
/// # Errors
/// Those of `out`.
pub fn write(dump: &Dump, map: Option<&Map>, out: &mut impl Write) -> io::Result<Problems> {
    let facts = dump.facts();
    let head = json!({
        "ptdump": VERSION,
        "title": dump.title(),
        "target": dump.target(),
        "kind": format!("{:?}", facts.kind),
        "ia_bits": facts.ia_bits,
        "start_level": facts.start_level,
        "pa_bits": facts.pa_bits,
        "granule": 4096,
        "fwb": facts.fwb,
        "root": hex(dump.root_pa()),
        "root_pages": dump.shape().root_pages(),
        "tables": dump.tables(),
        "regions": dump.places().iter().map(|place| json!({
            "start": hex(place.start),
            "end": hex(place.end),
            "kind": format!("{:?}", place.kind),
            "name": place.name,
        })).collect::<Vec<_>>(),
    });
    // The object is written by hand, so that a long table need not be in memory.
    let head = head.to_string();
    write!(out, "{},\n\"runs\": [", head.trim_end_matches('}'))?;
    let mut runs = dump.runs();
    for (run_of, n) in runs.by_ref().filter(|run| run.what != What::Absent).zip(0_u64..) {
        write!(out, "{}\n  {}", if n > 0 { "," } else { "" }, run(&run_of))?;
    }
    let mut problems = runs.problems();
    write!(out, "\n]")?;
    if let Some(map) = map {
        write!(out, ",\n\"owners\": [")?;
        for (span, n) in map.spans.iter().zip(0_u64..) {
            let value = json!({
                "start": hex(span.start),
                "end": hex(span.end),
                "owner": span.owner.text(),
                "gfn": span.gfn.map(hex),
                "no_tag": span.no_tag,
            });
            write!(out, "{}\n  {value}", if n > 0 { "," } else { "" })?;
        }
        write!(out, "\n]")?;
        problems = map.problems.clone();
    }
    writeln!(out, ",\n\"problems\": {}}}", list(&problems))?;
    Ok(problems)
}

/// A change of a diff.
#[must_use]
pub fn change(change: &crate::diff::Change) -> Value {
    json!({
        "start": hex(change.start),
        "end": hex(change.end),
        "from": meaning(change.from),
        "to": meaning(change.to),
    })
}
