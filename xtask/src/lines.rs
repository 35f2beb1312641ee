//! `docs/coverage.md`: how many lines of each module of the portable core the tests of `hyp` ran.

use crate::coverage::put;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Where the table stands in the page.
const BEGIN: &str = "<!-- begin: xtask lines -->\n";
const END: &str = "<!-- end: xtask lines -->\n";
const HEADER: &str = "| module | lines | run | % |\n|---|---|---|---|\n";
/// What the portable core is in.
const CORE: &str = "hyp/src/";

/// Lines with code, and how many of them ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lines {
    count: u64,
    run: u64,
}

impl Lines {
    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.run = self.run.saturating_add(other.run);
    }

    fn row(self, name: &str) -> String {
        let permille = self.run.saturating_mul(1000).checked_div(self.count).unwrap_or(1000);
        let (percent, tenth) = (permille / 10, permille % 10);
        format!("| {name} | {} | {} | {percent}.{tenth} |\n", self.count, self.run)
    }
}

/// Lines by module, from what `llvm-cov export --summary-only` says of each file.
fn modules(report: &Value) -> Result<BTreeMap<String, Lines>> {
    let files = report.pointer("/data/0/files").and_then(Value::as_array).context("no files")?;
    let mut modules = BTreeMap::<String, Lines>::new();
    for file in files {
        let path = file.get("filename").and_then(Value::as_str).context("a file without a name")?;
        let Some((_, path)) = path.split_once(CORE) else { continue };
        let module = path.split('/').next().unwrap_or(path).trim_end_matches(".rs");
        let number = |key| {
            let value = file.pointer(&format!("/summary/lines/{key}")).and_then(Value::as_u64);
            value.with_context(|| format!("{path}: no {key}"))
        };
        let lines = Lines { count: number("count")?, run: number("covered")? };
        modules.entry(module.to_owned()).or_default().add(lines);
    }
    ensure!(!modules.is_empty(), "nothing of {CORE} is in the report");
    Ok(modules)
}

/// The table.
///
/// # Errors
/// The report is not one of llvm-cov, or not of the portable core.
fn table(report: &Value) -> Result<String> {
    let mut text = HEADER.to_owned();
    let mut sum = Lines::default();
    for (module, lines) in modules(report)? {
        text.push_str(&lines.row(&format!("`{module}`")));
        sum.add(lines);
    }
    write!(text, "{}", sum.row("all"))?;
    Ok(text)
}

/// Writes the table of this report into the page.
///
/// # Errors
/// The report cannot be read or is of something else; the page has no place for the table.
pub fn write(report: &Path) -> Result<()> {
    let report = fs::read_to_string(report).with_context(|| report.display().to_string())?;
    put("docs/coverage.md", [BEGIN, END], &table(&serde_json::from_str(&report)?)?)
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, HEADER, Lines, table};
    use serde_json::json;

    fn file(name: &str, count: u64, run: u64) -> serde_json::Value {
        json!({ "filename": name, "summary": { "lines": { "count": count, "covered": run } } })
    }

    #[test]
    fn files_are_summed_by_module_and_other_crates_left_out() {
        let files = [
            file("/a/hyp/src/mm/pool.rs", 10, 9),
            file("/a/hyp/src/mm/list.rs", 20, 20),
            file("/a/hyp/src/addr.rs", 3, 1),
            file("/a/testkit/src/world.rs", 1000, 0),
        ];
        let rows = "| `addr` | 3 | 1 | 33.3 |\n| `mm` | 30 | 29 | 96.6 |\n| all | 33 | 30 | 90.9 |\n";
        let report = |files: &[serde_json::Value]| json!({ "data": [{ "files": files }] });
        assert_eq!(table(&report(&files)).unwrap(), format!("{HEADER}{rows}"));
        assert!(table(&report(&files[3..])).is_err(), "not of the portable core");
        assert!(table(&json!({})).is_err());
    }

    #[test]
    fn the_page_has_modules_that_there_are_and_their_sum() {
        let page = std::fs::read_to_string(crate::workspace().join("docs/coverage.md")).unwrap();
        let (_, rest) = page.split_once(BEGIN).unwrap();
        let (table, _) = rest.split_once(END).unwrap();
        let mut sum = Lines::default();
        let mut rows: Vec<&str> = table.strip_prefix(HEADER).unwrap().lines().collect();
        let all = rows.pop().unwrap();
        for row in rows {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [name, count, run, _] = cells[..] else { panic!("{row}") };
            let lines = Lines { count: count.parse().unwrap(), run: run.parse().unwrap() };
            assert_eq!(format!("{row}\n"), lines.row(name));
            let source = crate::workspace().join("hyp/src").join(name.trim_matches('`'));
            assert!(source.is_dir() || source.with_extension("rs").is_file(), "{name}");
            sum.add(lines);
        }
        assert_eq!(format!("{all}\n"), sum.row("all"));
    }
}
