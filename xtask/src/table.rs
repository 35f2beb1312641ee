//! Tables of words and figures, for a terminal and for Markdown.

/// Rows of cells, the first of which is the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// All rows, with as many cells each.
    pub rows: Vec<Vec<String>>,
    /// So many columns at the left are words; the others are figures, which end at the right.
    pub words: usize,
}

impl Table {
    /// For a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        self.write("  ", "  ", "", |_| None)
    }

    /// As Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        self.write("| ", " | ", " |", |widths| {
            let dashes = widths.iter().enumerate().map(|(n, width)| {
                let line = "-".repeat(width.saturating_sub(1));
                if n < self.words { format!("{line}-") } else { format!("{line}:") }
            });
            Some(format!("| {} |", dashes.collect::<Vec<_>>().join(" | ")))
        })
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |n: usize| self.rows.iter().filter_map(|row| Some(row.get(n)?.chars().count())).max();
        (0..columns).map(|n| width(n).unwrap_or(0)).collect()
    }

    fn write(
        &self,
        before: &str,
        between: &str,
        after: &str,
        rule: impl Fn(&[usize]) -> Option<String>,
    ) -> String {
        let widths = self.widths();
        let mut out = String::new();
        for (nth, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(n, (cell, width))| {
                if n < self.words { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let line = format!("{before}{}{after}", cells.collect::<Vec<_>>().join(between));
            out.push_str(line.trim_end());
            out.push('\n');
            if let (0, Some(rule)) = (nth, rule(&widths)) {
                out.push_str(&rule);
                out.push('\n');
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    fn table() -> Table {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        Table { rows: vec![row(["what", "unit", "max"]), row(["an exit", "bytes", "1 024"])], words: 2 }
    }

    #[test]
    fn a_table_for_a_terminal_is_aligned() {
        assert_eq!(table().text(), "  what     unit     max\n  an exit  bytes  1 024\n");
    }

    #[test]
    fn figures_of_a_markdown_table_end_at_the_right() {
        assert_eq!(
            table().markdown(),
            "| what    | unit  |   max |\n| ------- | ----- | ----: |\n| an exit | bytes | 1 024 |\n"
        );
    }
}
