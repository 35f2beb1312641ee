//! The table of scenarios in `docs/mte.md` names the tests that there are, and its errnos are those of `docs/abi.md`.

use abi::Errno;
use std::collections::BTreeSet;

const DOC: &str = include_str!("../../../docs/mte.md");
const ABI: &str = include_str!("../../../docs/abi.md");
const SOURCES: [&str; 8] = [
    include_str!("create.rs"),
    include_str!("faults.rs"),
    include_str!("give.rs"),
    include_str!("upgrade.rs"),
    include_str!("../../src/guest/exit.rs"),
    include_str!("../../src/guest/idregs.rs"),
    include_str!("../../src/pgtable/stage2.rs"),
    include_str!("../../../abi/tests/docs.rs"),
];

#[test]
fn every_scenario_of_the_document_has_its_tests_and_every_test_its_scenario() {
    let (_, section) = DOC.split_once("## Scenarios").unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("| M-"));
    let mut listed = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let prefix = format!("{}_", cells[0].to_lowercase().replace('-', "_"));
        for name in cells[2].split(", ").map(|name| name.trim_matches('`')) {
            assert!(name.starts_with(&prefix), "{name} in the row of {}", cells[0]);
            listed.push(name.to_owned());
        }
    }
    let mut there: Vec<String> = SOURCES
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.trim().strip_prefix("fn "))
        .filter(|line| line.starts_with("m_"))
        .map(|line| line.trim_end_matches("() {").to_owned())
        .collect();
    listed.sort();
    there.sort();
    assert_eq!(listed, there);
}

/// The errnos that `text` speaks of.
fn errnos(text: &str) -> BTreeSet<String> {
    let known = Errno::ALL.map(|errno| format!("{errno:?}").to_uppercase());
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| known.iter().any(|errno| errno == word)).map(str::to_owned).collect()
}

#[test]
fn both_documents_know_the_same_errnos_of_the_calls_about_tags() {
    for call in ["MTE_UPGRADE", "VM_TAG_INFO"] {
        let (_, section) = ABI.split_once(&format!("\n### {call}\n")).unwrap();
        let checks: Vec<&str> = section
            .split("\n#")
            .next()
            .unwrap()
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        let row = format!("| {call} | E");
        let rows: Vec<&str> = DOC.lines().filter(|line| line.starts_with(&row)).collect();
        assert!(
            !checks.is_empty() && errnos(&checks.join(" ")) == errnos(&rows.join(" ")),
            "{call}: {rows:#?}"
        );
    }
}
