//! docs/known-bugs.md: every bug has a row, every row a test, and every test that is named is there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics says that it failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

const DOC: &str = include_str!("../../docs/known-bugs.md");
const MATRIX: &str = include_str!("../../boot-tests/src/matrix.rs");

/// Bugs that have a row, by their numbers.
const BUGS: [&str; 43] = [
    "1", "2", "3", "5", "6", "7", "8", "10", "11", "12", "14", "15", "16", "17", "18", "19", "20", "21",
    "23", "24", "25", "26", "27", "28", "32", "33", "34", "37", "38", "39", "42", "43", "44", "45", "46",
    "48", "H1", "H3", "H4", "H7", "H8", "H10", "H11",
];
const MORE: [&str; 2] = ["H12", "H13"];

/// Cells of all rows that are no heading.
fn rows() -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    let rows: Vec<Vec<&str>> = DOC.lines().filter(|line| line.starts_with('|')).map(cells).collect();
    rows.into_iter()
        .filter(|row| !row[0].starts_with('#') && row[0] != "theirs" && !row[0].starts_with("---"))
        .collect()
}

/// The words in backquotes of a row's last cell.
fn tests(row: &[&'static str]) -> Vec<&'static str> {
    row.last().unwrap().split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_bug_has_a_row_and_every_row_says_what_happens_here_and_where_it_is_tested() {
    let numbers: Vec<&str> = rows().iter().filter(|row| row.len() == 4).map(|row| row[0]).collect();
    assert_eq!(numbers, [BUGS.as_slice(), &MORE].concat());
    for row in rows() {
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        assert!(!tests(&row).is_empty(), "{row:?}");
    }
}

#[test]
fn every_test_that_is_named_is_there() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in rows().iter().flat_map(|row| tests(row)) {
        let (place, test) = name.split_once("::").unwrap();
        if place == "boot" {
            let stands = MATRIX.contains(&format!("\"{test}\""));
            assert!(stands, "no boot test has the name {test}");
            continue;
        }
        let source = fs::read_to_string(root.join(place)).unwrap_or_else(|e| panic!("{place}: {e}"));
        let function = source.contains(&format!("fn {test}("));
        // The checker's examples are rows of a macro.
        let example = source.lines().any(|line| line.trim_start().starts_with(&format!("{test} breaks ")));
        assert!(function || example, "{place} has no test {test}");
    }
}

#[test]
fn every_test_that_is_named_after_a_bug_is_in_its_row() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(root.join("tests/guest/known_bugs.rs")).unwrap();
    let named: BTreeSet<&str> =
        rows().iter().flat_map(|row| tests(row)).filter_map(|name| name.rsplit("::").next()).collect();
    let written = source.lines().filter_map(|line| line.strip_prefix("fn ")?.split('(').next());
    for test in written {
        assert!(named.contains(test), "{test} is in no row");
        let number = test.strip_prefix("bug_").and_then(|rest| rest.split('_').next());
        let Some(number) = number.map(|number| number.trim_start_matches('0').to_uppercase()) else {
            continue;
        };
        let row = rows().into_iter().find(|row| row[0] == number).unwrap();
        assert!(tests(&row).iter().any(|name| name.ends_with(test)), "{test} is not in row {number}");
    }
}
