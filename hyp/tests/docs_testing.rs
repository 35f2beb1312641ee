//! docs/testing.md lists the checker's rules and the tests that break them: the list is whole, and
//! each test is there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics says that it failed")]

use hyp::spec::checker::Rule;
use std::collections::{BTreeMap, BTreeSet};

const DOC: &str = include_str!("../../docs/testing.md");
const EXAMPLES: [&str; 3] =
    [include_str!("checker/tables.rs"), include_str!("checker/pages.rs"), include_str!("checker/locks.rs")];
/// What casemate calls its examples.
const CASEMATE: [&str; 13] = [
    "bad_no_bbm",
    "bad_no_bbm_stage1",
    "bad_bbm_missing_tlbi",
    "bad_bbm_by_wrong_VMID",
    "bad_switch_wrong_vmid",
    "bad_overlap_VMID",
    "bad_overlap_ASID",
    "bad_EL2_ASID",
    "bad_unlocked_write",
    "bad_no_assoc_lock",
    "bad_race",
    "bad_free_page_without_clean",
    "bad_reuse_page",
];

/// The rows of the table under `heading`, cell by cell.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let section = DOC.split_once(&format!("\n{heading}\n")).unwrap().1;
    let section = section.split("\n#").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The words in backquotes.
fn names(cell: &'static str) -> BTreeSet<&'static str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The `bad_*` tests in the sources, by the rule that each breaks.
fn examples() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut found: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for line in EXAMPLES.iter().flat_map(|source| source.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [name, "breaks", rule, "on", ..] => found.entry((*rule).to_owned()).or_default().insert(name),
            // The machine refuses this one too, so it is an ordinary test.
            ["fn", name, ..] if name.starts_with("bad_") => {
                found.entry(format!("{:?}", Rule::Undefined)).or_default().insert(name.trim_end_matches("()"))
            }
            _ => continue,
        };
    }
    found
}

#[test]
fn every_rule_has_a_row_with_exactly_the_tests_that_break_it() {
    let listed: Vec<(String, BTreeSet<&str>)> = rows("## The checker's rules")
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), names(row[2])))
        .collect();
    let rules: BTreeSet<String> = Rule::ALL.iter().map(|rule| format!("{rule:?}")).collect();
    assert_eq!(listed.len(), rules.len(), "one row for each rule");
    for (rule, tests) in &listed {
        assert!(rules.contains(rule), "no rule {rule}");
        assert_eq!(Some(tests), examples().get(rule), "tests in the row of {rule}, and in hyp/tests/checker");
    }
}

#[test]
fn every_example_of_casemate_has_a_counterpart_or_a_reason() {
    let all: BTreeSet<&str> = examples().into_values().flatten().collect();
    let listed = rows("### The examples of casemate");
    let theirs: Vec<&str> = listed.iter().flat_map(|row| names(row[0])).collect();
    assert_eq!(theirs, CASEMATE);
    for row in listed {
        let ours = names(row[1]);
        assert!(ours.is_subset(&all), "{ours:?} in the row of {}", row[0]);
        assert!(!ours.is_empty() || row[1].len() > 20, "no test and no reason: {}", row[0]);
    }
}
