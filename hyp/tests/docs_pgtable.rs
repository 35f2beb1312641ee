//! docs/pgtable.md says which tests notice a step that is forgotten, scripts/mutants/ forgets them: the two agree with each
//! other and with the sources. That the tests do notice is what scripts/mutants.sh shows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics says that it failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

const DOC: &str = include_str!("../../docs/pgtable.md");

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The patches by name.
fn mutants() -> BTreeMap<String, String> {
    let files = fs::read_dir(workspace().join("scripts/mutants")).unwrap();
    files
        .map(|file| {
            let path = file.unwrap().path();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// The rows of the table: name, what is broken, tests.
fn rows() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let section = DOC.split_once("\n## When a step is forgotten\n").unwrap().1;
    let lines = section.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let tests = cells[2].split('`').skip(1).step_by(2).collect();
            (cells[0].trim_matches('`'), cells[1], tests)
        })
        .collect()
}

/// The texts that a patch takes out or relies on, one a hunk, by file.
fn old_texts(patch: &str) -> Vec<(&str, String)> {
    let mut texts: Vec<(&str, String)> = Vec::new();
    let mut file = "";
    for line in patch.lines().skip(1) {
        if let Some(name) = line.strip_prefix("--- a/") {
            file = name;
        } else if line.starts_with("@@") {
            texts.push((file, String::new()));
        } else if let (Some((_, text)), Some(old)) =
            (texts.last_mut(), line.strip_prefix(' ').or(line.strip_prefix('-')))
        {
            text.push_str(old);
            text.push('\n');
        }
    }
    texts
}

#[test]
fn every_mutant_has_a_row_and_every_row_a_mutant() {
    let listed: Vec<(String, String)> =
        rows().iter().map(|(name, what, _)| ((*name).to_owned(), format!("{what}."))).collect();
    let there: BTreeMap<String, String> = mutants()
        .into_iter()
        .map(|(name, patch)| (name, patch.lines().next().unwrap_or_default().to_owned()))
        .collect();
    assert_eq!(listed.len(), there.len(), "one row for each mutant");
    assert_eq!(listed.into_iter().collect::<BTreeMap<_, _>>(), there);
}

#[test]
fn every_test_that_is_named_is_there() {
    let mut sources = String::new();
    for folder in ["hyp/tests", "hyp/tests/pgtable", "hyp/tests/mte", "hyp/src/pgtable"] {
        for file in fs::read_dir(workspace().join(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let tests: BTreeSet<&str> = sources
        .split("#[test]\n")
        .skip(1)
        .filter_map(|text| text.trim_start().strip_prefix("fn ")?.split('(').next())
        .collect();
    for (name, _, named) in rows() {
        assert!(!named.is_empty(), "no test notices {name}");
        for test in named {
            assert!(tests.contains(test), "{test}, in the row of {name}, is no test");
        }
    }
}

/// A source that changes takes its mutants along.
#[test]
fn every_mutant_fits_the_sources() {
    for (name, patch) in mutants() {
        let texts = old_texts(&patch);
        assert!(!texts.is_empty(), "{name} changes nothing");
        for (file, old) in texts {
            let source = fs::read_to_string(workspace().join(file)).unwrap();
            assert!(source.contains(&old), "scripts/mutants/{name}.patch does not fit {file}:\n{old}");
        }
    }
}
