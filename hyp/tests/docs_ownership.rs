//! docs/ownership.md is held to the code: its states to records and tables, its matrix to what the
//! real implementation answers and leaves, each cell under specification, checker and audit.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics says that it failed"
)]

use abi::Errno;
use abi::vm::MtePolicy;
use hyp::addr::{HypVa, Ipa, Pfn};
use hyp::pgtable::Entry;
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Kind, Page, Slot};
use std::collections::{BTreeMap, BTreeSet};
use testkit::features::MAX;
use testkit::scope::{Scope, Size};
use testkit::{Judged, Setup, VmSetup};

const DOC: &str = include_str!("../../docs/ownership.md");
const RAM: u64 = 0x40000;
/// The page that is passed around, the frame where it is put, and another one.
const P: u64 = RAM + 520;
const G: u64 = 0x10;
const OTHER: u64 = 0x11;
/// A VM with memory that has no tags, at the same frame, which a page with tags can replace.
const TAGGED_VM: u64 = 3;
const UNTAGGED: u64 = 1100;

/// Letter, the calls that make it, and which page it is.
const STARTS: [(&str, &[Call], u64); 13] = [
    ("H", &[], P),
    ("E", &[], RAM),
    ("L", &[LEND], P),
    ("S", &[SHARE], P),
    ("P", &[SHARE, PIN], P),
    ("V", &[Call::VmTopup { handle: 1, pfn: P, nr: 1 }], P),
    ("B", &[put_plain(P, G)], P),
    ("G", &[put(P, G)], P),
    ("X", &[put(P, G), SHARE_BACK], P),
    ("G†", &[put(P, G), DIE], P),
    ("X†", &[put(P, G), SHARE_BACK, DIE], P),
    ("D", &[put(P, G), take(G)], P),
    ("-", &[], RAM - 1),
];

const SHARE: Call = Call::HostShareHyp { pfn: P };
const PIN: Call = Call::HypPin { pfn: P };
const LEND: Call = Call::HostDonateHyp { pfn: P, nr: 1 };
const SHARE_BACK: Call = Call::GuestShareHost { handle: 1, gfn: G, nr: 1 };
const DIE: Call = Call::VmTeardownStart { handle: 1 };

const fn put(pfn: u64, gfn: u64) -> Call {
    Call::HostDonateGuest { handle: 1, gfn, pfn, order: 0 }
}

const fn put_plain(pfn: u64, gfn: u64) -> Call {
    Call::HostShareGuest { handle: 2, gfn, pfn, order: 0, prot: 7 }
}

const fn take(gfn: u64) -> Call {
    Call::HostReclaimGuest { handle: 1, base: gfn << 12, top: (gfn + 1) << 12, refill: NONE, kept: NONE }
}

/// What is tried in every state, on page `pfn`.
fn operations(pfn: u64) -> Vec<(&'static str, Call)> {
    vec![
        ("host_share_hyp", Call::HostShareHyp { pfn }),
        ("host_unshare_hyp", Call::HostUnshareHyp { pfn }),
        ("hyp_pin", Call::HypPin { pfn }),
        ("hyp_unpin", Call::HypUnpin { pfn }),
        ("host_donate_hyp", Call::HostDonateHyp { pfn, nr: 1 }),
        ("hyp_donate_host", Call::HypDonateHost { pfn, nr: 1 }),
        ("host_donate_guest", put(pfn, G)),
        ("host_donate_guest, other frame", put(pfn, OTHER)),
        ("host_share_guest", put_plain(pfn, G)),
        ("host_share_guest, other frame", put_plain(pfn, OTHER)),
        ("host_unshare_guest", Call::HostUnshareGuest { handle: 2, gfn: G, nr: 1 }),
        ("guest_share_host", SHARE_BACK),
        ("guest_unshare_host", Call::GuestUnshareHost { handle: 1, gfn: G, nr: 1 }),
        ("guest_relinquish_host", Call::GuestRelinquishHost { handle: 1, gfn: G, nr: 1 }),
        ("host_reclaim_guest", take(G)),
        (
            "host_reclaim_dying_guest",
            Call::HostReclaimDyingGuest { handle: 1, base: G << 12, top: OTHER << 12, kept: NONE },
        ),
        ("host_upgrade_guest", Call::HostUpgradeGuest { handle: TAGGED_VM, gfn: G, new: pfn }),
        ("vm_topup", Call::VmTopup { handle: 1, pfn, nr: 1 }),
    ]
}

fn world(calls: &[Call]) -> Judged {
    let setup = Setup { pages: 1536, table_pages: 24, no_tags: Some((UNTAGGED, 1)), ..Setup::new(MAX) };
    let judged = Judged::new(setup).with(&[
        VmSetup::new(1, Kind::Classic, 700, 4),
        VmSetup::new(2, Kind::NonProtected, 720, 4),
        VmSetup { mte: MtePolicy::Lazy, ..VmSetup::new(3, Kind::Classic, 740, 4) },
    ]);
    let untagged = Call::HostDonateGuest { handle: TAGGED_VM, gfn: G, pfn: RAM + UNTAGGED, order: 0 };
    for &call in [untagged].iter().chain(calls) {
        judged.call(0, call).unwrap_or_else(|e| panic!("{call:x?}: {e:?}"));
        judged.settle();
    }
    judged
}

/// The letter of the state that the page is in.
fn letter(judged: &Judged, pfn: u64) -> &'static str {
    let state = judged.state();
    let dying = state.vm(1).is_ok_and(|vm| vm.phase == hyp::spec::model::Phase::Dying);
    match state.pages.get(pfn) {
        None => "-",
        Some(Page::Host) if state.slot(1, G) == Some(Slot::Destroyed) => "D",
        Some(Page::Host) => "H",
        Some(Page::Hyp) => "E",
        Some(Page::Lent) => "L",
        Some(Page::SharedWithHyp { pins: 0 }) => "S",
        Some(Page::SharedWithHyp { .. }) => "P",
        Some(Page::Vm) => "V",
        Some(Page::SharedWithGuest { .. }) => "B",
        Some(Page::Guest { .. }) => {
            if dying {
                "G†"
            } else {
                "G"
            }
        }
        Some(Page::GuestSharedWithHost { .. }) => {
            if dying {
                "X†"
            } else {
                "X"
            }
        }
    }
}

/// What comes of each operation in each state: the letter of the state after it, or the errno.
fn matrix() -> Vec<(&'static str, Vec<String>)> {
    let cell = |index: usize, (_, calls, pfn): (&str, &[Call], u64)| {
        let judged = world(calls);
        let (_, call) = operations(pfn)[index];
        let (before, census) = (judged.state(), judged.audit(0));
        let answer = judged.call(0, call);
        judged.settle();
        let after = judged.audit(0);
        match answer {
            Ok(_) => letter(&judged, pfn).to_owned(),
            Err(errno) => {
                assert_eq!(judged.state(), before, "{call:x?} was refused and changed something");
                assert!(census.ownership().eq(after.ownership()), "{call:x?} was refused");
                format!("{errno:?}").to_uppercase()
            }
        }
    };
    let names = operations(P).into_iter().map(|(name, _)| name).enumerate();
    names.map(|(n, name)| (name, STARTS.iter().map(|&start| cell(n, start)).collect())).collect()
}

/// The rows of the first table under `heading`, cell by cell.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let section = DOC.split_once(&format!("\n{heading}\n")).unwrap().1;
    let section = section.split("\n#").next().unwrap();
    let lines = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|l| l.starts_with('|'));
    lines.skip(2).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn the_matrix_of_the_document_is_what_the_machine_answers() {
    let real: Vec<String> =
        matrix().iter().map(|(name, cells)| format!("| {name} | {} |", cells.join(" | "))).collect();
    let heading = STARTS.map(|(letter, ..)| letter).join(" | ");
    let table = format!("| operation | {heading} |\n{}", real.join("\n"));
    let listed: Vec<String> =
        rows("## The matrix").iter().map(|cells| format!("| {} |", cells.join(" | "))).collect();
    assert_eq!(listed, real, "docs/ownership.md should say:\n{table}\n");
    assert!(DOC.contains(&format!("| operation | {heading} |")), "the columns are {heading}");
}

/// Record, host's table and EL2's map of each state, as the document has them.
#[test]
fn the_states_of_the_document_are_what_records_and_tables_say() {
    let listed = rows("## The states");
    for ((letter, calls, pfn), row) in STARTS.into_iter().filter(|start| start.2 >= RAM).zip(&listed) {
        let judged = world(calls);
        let (hyp, cpu, page) = (&judged.world.hyp, &judged.world.cpus[0], Pfn::new(pfn).unwrap());
        let record = hyp.vmemmap().get(page).unwrap();
        let halves = format!("{:?}, {:?}", record.host(), record.hyp());
        let entry = hyp.host(cpu).table().lookup(cpu, Ipa::new(pfn << 12).unwrap()).unwrap().1;
        let host = match entry {
            Entry::Note(_) => "note",
            Entry::Leaf(_) | Entry::Absent if letter.starts_with('X') => {
                assert!(matches!(entry, Entry::Leaf(_)), "{letter}: mapped at once");
                "mapped"
            }
            Entry::Leaf(_) | Entry::Absent => "default",
            Entry::Table(_) => panic!("a walk ends at no table"),
        };
        let va = HypVa::linear(page.base());
        let own = match hyp.hyp(cpu).table().lookup(cpu, va).unwrap().1 {
            Entry::Leaf(_) => "mapped",
            _ => "-",
        };
        assert_eq!(row[0], letter);
        assert_eq!(row[2..5], [halves.as_str(), host, own], "state {letter}");
    }
    assert_eq!(listed.len(), STARTS.len() - 1);
}

/// Each transition has a row with exactly the errnos that the small worlds answer, which have been
/// seen, and those of a count at its end, which tests of their own see.
#[test]
fn the_transitions_of_the_document_have_exactly_the_errnos_that_are_answered() {
    let mut answered: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let upper = |errno: &Errno| format!("{errno:?}").to_uppercase();
    for scope in Scope::all(Size::Small) {
        for (name, errnos) in scope.answers {
            // The same transition, asked for with NO_TAG.
            let name = if *name == "host_donate_no_tag" { "host_donate_guest" } else { name };
            answered.entry(name).or_default().extend(errnos.iter().map(upper));
        }
    }
    for counted in ["hyp_pin", "host_share_guest"] {
        answered.get_mut(counted).unwrap().insert("EBUSY".to_owned());
    }
    let mut listed: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in rows("## The transitions") {
        let words = row[5].split(|c: char| !c.is_ascii_alphanumeric());
        let errnos = words
            .filter(|word| word.len() > 2 && word.starts_with('E') && *word != "EMPTY" && *word != "EL2");
        let errnos = errnos.filter(|word| word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()));
        listed.insert(row[0].trim_matches('`'), errnos.map(str::to_owned).collect());
    }
    assert_eq!(listed, answered);
}
