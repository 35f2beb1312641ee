//! Pictures of curves: SVG, the same bytes for the same figures.

use std::fmt::Write as _;
use xtask::show::grouped;

const WIDTH: u64 = 860;
const HEIGHT: u64 = 360;
const LEFT: u64 = 90;
const RIGHT: u64 = 270;
const TOP: u64 = 30;
const BOTTOM: u64 = 50;
const COLOURS: [&str; 6] = ["#1b6ca8", "#c4512d", "#3a8f4f", "#8a4fa0", "#9a7b1f", "#4a4a4a"];

/// One figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What the legend says.
    pub name: String,
    /// Lines of one number have one colour.
    pub colour: usize,
    /// With gaps.
    pub dashed: bool,
    /// One for each point.
    pub values: Vec<u64>,
}

/// Figures by something that grows; the points stand at equal distances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot<'a> {
    /// What the figures are.
    pub title: &'a str,
    /// What grows.
    pub axis: &'a str,
    /// How much of it there is.
    pub points: &'a [u32],
    /// The figures.
    pub lines: Vec<Line>,
}

/// The smallest of 1, 2, 5, 10, 20 ... that `value` is not above.
fn ceiling(value: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for factor in [1, 2, 5] {
            let most = unit.saturating_mul(factor);
            if most >= value || most == u64::MAX {
                return most;
            }
        }
        unit = unit.saturating_mul(10);
    }
}

/// `part / whole` of `length`; the middle of nothing is its beginning.
fn share(part: u64, whole: u64, length: u64) -> u64 {
    part.saturating_mul(length).checked_div(whole).unwrap_or(0)
}

impl Plot<'_> {
    fn x(&self, nth: usize) -> u64 {
        let (nth, last) = (nth as u64, (self.points.len() as u64).saturating_sub(1));
        LEFT.saturating_add(share(nth, last, WIDTH - LEFT - RIGHT))
    }

    /// The picture.
    #[must_use]
    pub fn svg(&self) -> String {
        let most = ceiling(self.lines.iter().flat_map(|line| &line.values).copied().max().unwrap_or(1));
        let y = |value: u64| (HEIGHT - BOTTOM).saturating_sub(share(value, most, HEIGHT - TOP - BOTTOM));
        let mut out = String::new();
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>"
        );
        let mut text = |x: u64, y: u64, anchor: &str, text: &str| {
            let _ = writeln!(
                out,
                "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"#222\">{text}</text>"
            );
        };
        text(LEFT, TOP - 12, "start", self.title);
        text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 10, "middle", self.axis);
        for (nth, point) in self.points.iter().enumerate() {
            text(self.x(nth), HEIGHT - BOTTOM + 18, "middle", &grouped(u64::from(*point)));
        }
        let marks = (0..=4_u64).map(|quarter| share(quarter, 4, most));
        marks.clone().for_each(|value| text(LEFT - 8, y(value).saturating_add(4), "end", &grouped(value)));
        for (nth, line) in (0_u64..).zip(&self.lines) {
            text(WIDTH - RIGHT + 50, legend(nth).saturating_add(4), "start", &line.name);
        }
        for value in marks {
            let _ =
                writeln!(out, "<path d=\"M{LEFT} {at}H{}\" stroke=\"#ddd\"/>", WIDTH - RIGHT, at = y(value));
        }
        for (nth, line) in (0_u64..).zip(&self.lines) {
            let colour = COLOURS.get(line.colour).copied().unwrap_or("#000");
            let dash = if line.dashed { " stroke-dasharray=\"6 4\"" } else { "" };
            let style = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}");
            let at = legend(nth);
            let _ = writeln!(out, "<path d=\"M{} {at}h30\" {style}/>", WIDTH - RIGHT + 14);
            let places =
                line.values.iter().enumerate().map(|(nth, value)| format!("{},{}", self.x(nth), y(*value)));
            let _ = writeln!(out, "<polyline points=\"{}\" {style}/>", places.collect::<Vec<_>>().join(" "));
        }
        out.push_str("</svg>\n");
        out
    }
}

fn legend(nth: u64) -> u64 {
    TOP.saturating_add(nth.saturating_mul(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number() {
        assert_eq!([0, 1, 3, 51, 100, 2001].map(ceiling), [1, 1, 5, 100, 100, 5000]);
        assert_eq!(ceiling(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_line_goes_from_the_first_point_to_the_last() {
        let line = Line { name: "a".to_owned(), colour: 0, dashed: true, values: vec![0, 100] };
        let svg = Plot { title: "t", axis: "x", points: &[1, 2], lines: vec![line] }.svg();
        assert!(svg.contains("<polyline points=\"90,310 590,30\""), "{svg}");
        assert!(svg.contains("stroke-dasharray") && svg.ends_with("</svg>\n"));
    }
}
