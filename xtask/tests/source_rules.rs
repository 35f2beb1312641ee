//! Rules about the source text that no compiler checks.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The crates whose `src/arch` may hold `unsafe`.
const WITH_ARCH: [&str; 6] = ["hyp", "el1", "host-shim", "guest-shim", "rampartctl", "bench/kvm"];
const MOST_LINES: usize = 800;

/// Every file of the workspace with this extension, and its text; build outputs and hidden folders left out.
fn files(extension: &str) -> io::Result<Vec<(PathBuf, String)>> {
    let top = xtask::workspace();
    let mut found = Vec::new();
    let mut folders = vec![top.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path)?;
                found.push((path.strip_prefix(&top).unwrap_or(&path).to_path_buf(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no .{extension} files below {}", top.display());
    Ok(found)
}

fn is_arch(path: &Path) -> bool {
    WITH_ARCH.iter().any(|name| path.starts_with(Path::new(name).join("src/arch")))
}

/// The code of a line: what stands before a comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

#[test]
fn unsafe_stands_only_in_arch() {
    let word = ["un", "safe"].concat();
    let mut wrong = Vec::new();
    for (path, text) in files("rs").unwrap().into_iter().filter(|(path, _)| !is_arch(path)) {
        let lines = text.lines().zip(1..).filter(|(line, _)| has_word(code(line), &word));
        wrong.extend(lines.map(|(line, number)| format!("{}:{number}: {line}", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A module without the attribute is one where the next change could add the word.
#[test]
fn every_portable_module_forbids_it() {
    let attribute = ["#![forbid(un", "safe_code)]"].concat();
    let forbids = |text: &str| text.lines().any(|line| line == attribute);
    let sources = files("rs").unwrap();
    let root_forbids = |path: &Path| {
        let root = path.iter().take_while(|part| *part != "src").collect::<PathBuf>().join("src/lib.rs");
        sources.iter().any(|(other, text)| *other == root && forbids(text))
    };
    let mut wrong = Vec::new();
    for (path, text) in &sources {
        let root =
            path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") || path.ends_with("build.rs");
        let inside = path.iter().any(|part| part == "src") && !is_arch(path) && !root;
        if inside && !forbids(text) && !root_forbids(path) {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "without {attribute}: {wrong:?}");
}

#[test]
fn no_source_file_is_longer_than_can_be_read_at_once() {
    let long: Vec<String> = files("rs")
        .unwrap()
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "more than {MOST_LINES} lines: {long:?}");
}

/// Every crate that a manifest names has its reason in docs/dependencies.md.
#[test]
fn every_dependency_is_justified() {
    let manifest = fs::read_to_string(xtask::workspace().join("Cargo.toml")).unwrap();
    let reasons = fs::read_to_string(xtask::workspace().join("docs/dependencies.md")).unwrap();
    let section = manifest.split("[workspace.dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let foreign = section.lines().filter(|line| line.contains(" = ") && !line.contains("path = "));
    let names: Vec<&str> = foreign.filter_map(|line| line.split(" = ").next()).collect();
    assert!(names.len() > 5, "the manifest was not understood: {names:?}");
    let rows = reasons.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let justified: Vec<&str> = rows.filter(|cell| *cell != "crate" && !cell.starts_with("--")).collect();
    for name in &names {
        assert!(justified.contains(name), "docs/dependencies.md has no line for {name}");
    }
}
