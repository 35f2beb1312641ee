//! The console of a scenario, for people.

use crate::protocol::Line;
use std::fmt::Write as _;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without colours.
    Plain,
    /// With colours, for a terminal.
    Colour,
}

impl Style {
    /// Colours on a terminal, unless `NO_COLOR` is set.
    #[must_use]
    pub fn of_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

/// One line of the console as people want to read it; none if it says nothing to them.
#[must_use]
pub fn line(style: Style, text: &str) -> Option<String> {
    Some(match Line::parse(text) {
        Line::Hypervisor(text) => {
            let text = text.strip_prefix("info: ").unwrap_or(text);
            format!("  {}  {text}", style.paint("36", "EL2 "))
        }
        Line::Step(text) => format!("  {}  {text}", style.paint("1", "host")),
        Line::Pass(name) => format!("  {}  {name}", style.paint("32", "  ok")),
        Line::Skip(name, reason) => format!("  {}  {name}: {reason}", style.paint("33", "skip")),
        Line::Fail(name, reason) => format!("  {}  {name}: {reason}", style.paint("31", "FAIL")),
        Line::Malformed(line) => format!("  {}  {line}", style.paint("31", "????")),
        Line::Metric { name, value, unit } => {
            format!("  {}  {}: {} {unit}", style.paint("35", "cost"), words(name), grouped(value))
        }
        Line::Other("") | Line::Begin(_) | Line::End { .. } => return None,
        Line::Reboot { .. } => format!("  {}  the machine resets", style.paint("1", "host")),
        Line::Other(text) => format!("        {text}"),
    })
}

/// A metric's name as words.
#[must_use]
pub fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// A number with its thousands apart.
#[must_use]
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (done, digit) in digits.chars().enumerate() {
        if done > 0 && digits.len().saturating_sub(done).is_multiple_of(3) {
            out.push(' ');
        }
        let _ = write!(out, "{digit}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Option<String> {
        line(Style::Plain, text)
    }

    #[test]
    fn each_kind_of_line_is_readable() {
        assert_eq!(plain("rampart: info: 4 CPUs").as_deref(), Some("  EL2   4 CPUs"));
        assert_eq!(plain("rampart: PANIC: cpu 0: x").as_deref(), Some("  EL2   PANIC: cpu 0: x"));
        assert_eq!(plain("@step reads a page").as_deref(), Some("  host  reads a page"));
        assert_eq!(plain("@pass refused").as_deref(), Some("    ok  refused"));
        assert_eq!(plain("@fail refused: it was not").as_deref(), Some("  FAIL  refused: it was not"));
        assert_eq!(
            plain("@metric empty_call 1234567 instructions").as_deref(),
            Some("  cost  empty call: 1 234 567 instructions")
        );
        assert_eq!(plain("@begin demo"), None);
        assert_eq!(plain("Linux").as_deref(), Some("        Linux"));
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1 000");
        assert_eq!(grouped(1_234_567), "1 234 567");
    }

    #[test]
    fn colours_wrap_only_the_mark() {
        assert_eq!(line(Style::Colour, "@pass x").as_deref(), Some("  \x1b[32m  ok\x1b[0m  x"));
    }
}
