//! The parts of docs/performance.md that are made of committed figures.
//!
//! A part stands between `<!-- bench: NAME -->` and `<!-- end: NAME -->`. What is made depends on the committed files of
//! figures and nothing else, so that a test holds the page to them.

use crate::baseline::Baseline;
use crate::compare::{self, Pair};
use crate::curves::{self, CURVES};
use crate::figures::{Figure, Limit, SECTIONS, Section};
use crate::linux_cost::{self, Side};
use crate::operation::{BOOT, CPUS, Cell, Cells, OPERATIONS};
use crate::ours::{Run, Values};
use crate::{peer_file, size};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use xtask::show::{grouped, words};
use xtask::table::Table;

/// The page.
#[must_use]
pub fn file() -> PathBuf {
    xtask::workspace().join("docs/performance.md")
}

/// Name and text of every part, of the committed figures.
///
/// # Errors
/// They cannot be read.
pub fn parts() -> Result<Vec<(String, String)>> {
    let baseline = Baseline::read()?;
    let peer = peer_file::read()?;
    let linux = linux_cost::read()?;
    let pair = |cpu| {
        let boot = linux.el2(cpu, Side::Rampart).map(Cell::Figure);
        pair(&baseline, cpu, boot, peer.get(cpu).cloned().unwrap_or_default())
    };
    let pairs: Vec<Pair> = CPUS.map(pair).into();
    let mut parts = vec![("comparison".to_owned(), comparison(&pairs))];
    for section in SECTIONS {
        parts.push((section.name.to_owned(), figures(&baseline, section).markdown()));
        parts.push((format!("{}: meaning", section.name), meaning(section)));
    }
    let measured = curves::read()?;
    for curve in CURVES {
        let figures = measured.get(curve.name).context("a curve is missing")?;
        let picture = format!("![{}, by {}](cost-{}.svg)", curve.title, curve.axis, curve.name);
        parts.push((
            format!("by {}", curve.name),
            format!("{picture}\n\n{}", curve.table(figures).markdown()),
        ));
    }
    let tables = size::read()?.tables();
    let names = ["image", "sources", "stacks", "linux: time", "linux: memory"];
    for (name, table) in names.into_iter().zip(tables.into_iter().chain(linux.tables())) {
        parts.push((name.to_owned(), table.markdown()));
    }
    Ok(parts)
}

/// Writes the parts into the page, and the pictures beside it.
///
/// # Errors
/// They cannot be made; the page lacks a part.
pub fn write() -> Result<()> {
    let page = fs::read_to_string(file()).context("cannot read docs/performance.md")?;
    let measured = curves::read()?;
    for curve in CURVES {
        let figures = measured.get(curve.name).context("a curve is missing")?;
        fs::write(curve.picture(), curve.plot(figures).svg()).context("cannot write a picture")?;
    }
    fs::write(file(), with_parts(&page, &parts()?)?).context("cannot write docs/performance.md")
}

/// `page` with what its parts are to be.
///
/// # Errors
/// It lacks one, or has one that nothing makes.
pub fn with_parts(page: &str, parts: &[(String, String)]) -> Result<String> {
    let mut page = page.to_owned();
    for (name, text) in parts {
        let (begin, end) = (format!("<!-- bench: {name} -->\n"), format!("<!-- end: {name} -->\n"));
        let (before, rest) = page.split_once(&begin).with_context(|| format!("no part '{name}'"))?;
        let (_, after) = rest.split_once(&end).with_context(|| format!("part '{name}' has no end"))?;
        page = format!("{before}{begin}\n{text}\n{end}{after}");
    }
    let found = page.matches("<!-- bench: ").count();
    ensure!(found == parts.len(), "the page has {found} parts, and {} are made", parts.len());
    Ok(page)
}

/// Our cells of an operation come from the baseline's machine with 1 GiB, but for `boot`.
#[must_use]
pub fn pair(baseline: &Baseline, cpu: &str, boot: Option<Cell>, peer: Cells) -> Pair {
    let values = baseline.figures.get(&format!("calls, {cpu}, 1 GiB"));
    let ours = OPERATIONS.iter().filter_map(|operation| {
        Some((operation.name.to_owned(), Cell::Figure(*values?.get(operation.name)?)))
    });
    let ours = ours.chain(boot.map(|boot| (BOOT.to_owned(), boot)));
    Pair { cpu: cpu.to_owned(), ours: ours.collect(), peer }
}

fn comparison(pairs: &[Pair]) -> String {
    let mut text = compare::table(pairs).markdown();
    for reason in compare::reasons(pairs) {
        text.push_str(&format!("\n- {reason}"));
    }
    text.push_str(if text.ends_with('\n') { "" } else { "\n" });
    text
}

/// A figure without its name; sizes are in KiB.
fn shown(figure: &Figure, value: u64) -> String {
    if figure.is_size() { format!("{} KiB", grouped(value >> 10)) } else { grouped(value) }
}

fn limits(figure: &Figure) -> String {
    let one = |limit: &Limit| {
        let mut text = shown(figure, limit.most);
        limit.cpu.iter().for_each(|cpu| text.push_str(&format!(" on {cpu}")));
        limit.gibibytes.iter().for_each(|ram| text.push_str(&format!(" of {ram} GiB")));
        text
    };
    figure.limits.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The figures of `section` on all of its machines, and their budgets.
#[must_use]
pub fn figures(baseline: &Baseline, section: &'static Section) -> Table {
    let runs: Vec<Run> = Run::of(section).collect();
    let mut head = vec!["figure".to_owned()];
    head.extend(runs.iter().map(|run| format!("{}, {} GiB", run.cpu, run.gibibytes)));
    head.push("budget".to_owned());
    let mut rows = vec![head];
    let nothing = Values::new();
    let columns: Vec<&Values> =
        runs.iter().map(|run| baseline.figures.get(&run.name()).unwrap_or(&nothing)).collect();
    for figure in section.figures {
        let mut row = vec![words(figure.name)];
        row.extend(
            columns
                .iter()
                .map(|values| values.get(figure.name).map_or("-".to_owned(), |v| shown(figure, *v))),
        );
        row.push(limits(figure));
        rows.push(row);
    }
    Table { rows, words: 1 }
}

fn meaning(section: &Section) -> String {
    let described = section.figures.iter().filter(|figure| !figure.what.is_empty());
    described.map(|figure| format!("- *{}*: {}\n", words(figure.name), figure.what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_page_is_what_the_committed_figures_give() {
        let page = fs::read_to_string(file()).unwrap();
        let made = with_parts(&page, &parts().unwrap()).unwrap();
        assert!(page == made, "run scripts/bench.sh --page");
    }

    #[test]
    fn a_part_is_replaced_and_the_rest_stays() {
        let parts = [("x".to_owned(), "new\n".to_owned())];
        let page = "a\n<!-- bench: x -->\nold\n<!-- end: x -->\nb\n";
        let made = with_parts(page, &parts).unwrap();
        assert_eq!(made, "a\n<!-- bench: x -->\n\nnew\n\n<!-- end: x -->\nb\n");
        assert_eq!(with_parts(&made, &parts).unwrap(), made);
    }

    #[test]
    fn a_part_that_is_missing_or_unknown_is_an_error() {
        let parts = [("x".to_owned(), String::new())];
        assert!(with_parts("", &parts).is_err());
        assert!(with_parts("<!-- bench: x -->\n<!-- end: x -->\n<!-- bench: y -->\n", &parts).is_err());
    }
}
