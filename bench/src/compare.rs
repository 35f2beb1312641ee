//! Our figures beside the peer's, and how many times as much the peer's are.

use crate::operation::{Cell, Cells, OPERATIONS};
use serde::Serialize;
use xtask::show::{grouped, words};
use xtask::table::Table;

/// Both sides on one CPU model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// CPU model.
    pub cpu: String,
    /// What Rampart costs.
    pub ours: Cells,
    /// What the peer costs.
    pub peer: Cells,
}

impl Pair {
    fn cells(&self, name: &str) -> Vec<String> {
        let (ours, peer) = (self.ours.get(name), self.peer.get(name));
        let least = |cell: Option<&Cell>| cell.and_then(Cell::least);
        let ratio = least(ours).zip(least(peer)).and_then(|(ours, peer)| ratio(ours, peer));
        vec![shown(ours), shown(peer), ratio.unwrap_or("-".to_owned())]
    }
}

fn shown(cell: Option<&Cell>) -> String {
    match cell {
        Some(Cell::Figure(figure)) => grouped(*figure),
        Some(Cell::Between([least, most])) => format!("{} to {}", grouped(*least), grouped(*most)),
        Some(Cell::None(_)) | None => "-".to_owned(),
    }
}

/// `peer / ours` with two digits after the point.
fn ratio(ours: u64, peer: u64) -> Option<String> {
    let hundredths = peer.checked_mul(100)?.checked_add(ours / 2)?.checked_div(ours)?;
    Some(format!("{}.{:02}", hundredths / 100, hundredths % 100))
}

/// One line an operation, three columns a CPU model.
#[must_use]
pub fn table(pairs: &[Pair]) -> Table {
    let mut head = vec!["operation".to_owned()];
    for Pair { cpu, .. } in pairs {
        head.extend([cpu.clone(), format!("pKVM, {cpu}"), "ratio".to_owned()]);
    }
    let mut rows = vec![head];
    for operation in OPERATIONS {
        let mut row = vec![words(operation.name)];
        pairs.iter().for_each(|pair| row.extend(pair.cells(operation.name)));
        rows.push(row);
    }
    Table { rows, words: 1 }
}

/// Why cells of the peer are empty: each reason once, with the operations it is about.
#[must_use]
pub fn reasons(pairs: &[Pair]) -> Vec<String> {
    let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
    for (pair, operation) in pairs.iter().flat_map(|pair| OPERATIONS.iter().map(move |o| (pair, o))) {
        let Some(Cell::None(reason)) = pair.peer.get(operation.name) else { continue };
        let name = words(operation.name);
        match reasons.iter_mut().find(|(found, _)| found == reason) {
            Some((_, names)) if !names.contains(&name) => names.push(name),
            Some(_) => {}
            None => reasons.push((reason.clone(), vec![name])),
        }
    }
    let all = OPERATIONS.len();
    let line = |(reason, names): (String, Vec<String>)| {
        let about = if names.len() == all { "all".to_owned() } else { names.join(", ") };
        format!("{about}: {reason}")
    };
    reasons.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(ours: Cell, peer: Cell) -> Pair {
        let cells = |cell| Cells::from([("guest_exit".to_owned(), cell)]);
        Pair { cpu: "max".to_owned(), ours: cells(ours), peer: cells(peer) }
    }

    #[test]
    fn a_ratio_is_how_many_times_as_much_the_peer_costs() {
        let table = table(&[pair(Cell::Figure(645), Cell::Figure(2389))]);
        assert_eq!(table.rows[0], ["operation", "max", "pKVM, max", "ratio"]);
        assert_eq!(table.rows[1], ["guest exit", "645", "2 389", "3.70"]);
        assert_eq!(ratio(0, 5), None);
    }

    #[test]
    fn boots_that_differ_are_both_shown_and_the_least_counts() {
        let cell = Cell::Figure(31).and(Cell::Figure(30));
        assert_eq!(cell, Cell::Between([30, 31]));
        assert_eq!(table(&[pair(Cell::Figure(10), cell)]).rows[1][1..], ["10", "30 to 31", "3.00"]);
        let none = Cell::None("no kernel".to_owned());
        assert_eq!(
            (Cell::Figure(1).and(Cell::Figure(1)), Cell::Figure(1).and(none.clone())),
            (Cell::Figure(1), none)
        );
    }

    #[test]
    fn an_empty_cell_has_its_reason_below_the_table() {
        let pairs = [pair(Cell::Figure(645), Cell::None("no kernel".to_owned()))];
        assert_eq!(table(&pairs).rows[1], ["guest exit", "645", "-", "-"]);
        assert_eq!(reasons(&pairs), ["guest exit: no kernel"]);
    }
}
