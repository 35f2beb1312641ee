//! The still picture: one SVG, for a report or a browser, without anything from elsewhere.

use crate::map::{GuestCounts, Owner};
use crate::picture::{Area, BLOCK, Block, COLUMNS, Key, PAGE, Paint, Picture};
use crate::text::{amount, counted, grouped};
use std::fmt::Write;

/// Width of the picture.
const WIDTH: u64 = 1180;
const MARGIN: u64 = 28;
/// Where the grid of an area begins, right of its addresses.
const GRID: u64 = 128;
/// Side of a cell, gap included.
const CELL: u64 = 21;
const GAP: u64 = 2;
/// Where the legend begins.
const LEGEND: u64 = 836;
/// Side of a page in a block, gap included.
const DOT: u64 = 11;
/// Blocks beside each other.
const ABREAST: usize = 3;

/// Text as it may stand in XML.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The name of the pattern that paints stripes.
fn pattern_of(paint: Paint) -> String {
    let plain = |colour: &str| colour.trim_start_matches('#').to_owned();
    format!("p{}{}", plain(paint.fill), plain(paint.stripes.unwrap_or_default()))
}

/// What to write into `fill`.
fn fill(paint: Paint) -> String {
    match paint.stripes {
        None => paint.fill.to_owned(),
        Some(_) => format!("url(#{})", pattern_of(paint)),
    }
}

struct Drawing {
    out: String,
    y: u64,
}

impl Drawing {
    fn text(&mut self, x: u64, y: u64, class: &str, text: &str) {
        let _ = writeln!(self.out, "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>", escape(text));
    }

    fn rect(&mut self, (x, y): (u64, u64), (w, h): (u64, u64), fill: &str, more: &str) {
        let _ = writeln!(
            self.out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"{fill}\"{more}/>"
        );
    }
}

const STYLE: &str = "text{font-family:system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#1c2733}\
.t{font-size:22px;font-weight:600}.s{font-size:12.5px;fill:#5a6876}.h{font-size:15px;font-weight:600}\
.a{font-size:11px;font-family:ui-monospace,'DejaVu Sans Mono',monospace;fill:#5a6876}\
.l{font-size:13px}.n{font-size:12px;fill:#5a6876;text-anchor:end}.w{font-size:12px;fill:#a3142e}";

/// The picture as an SVG document.
#[must_use]
pub fn draw(picture: &Picture<'_>) -> String {
    let mut d = Drawing { out: String::new(), y: MARGIN.saturating_add(18) };
    d.text(MARGIN, d.y, "t", &picture.title);
    d.y = d.y.saturating_add(22);
    d.text(MARGIN, d.y, "s", &picture.subtitle);
    d.y = d.y.saturating_add(30);
    let top = d.y;
    for area in &picture.areas {
        draw_area(&mut d, picture, area);
    }
    let grid_end = d.y;
    d.y = top;
    draw_legend(&mut d, picture);
    d.y = d.y.max(grid_end);
    draw_blocks(&mut d, picture);
    draw_problems(&mut d, picture);
    let height = d.y.saturating_add(MARGIN);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\">\n<style>{STYLE}</style>\n<defs>\n{}</defs>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}</svg>\n",
        patterns(&picture.legend),
        d.out
    )
}

fn patterns(legend: &[Key]) -> String {
    let mut out = String::new();
    for paint in legend.iter().map(|key| key.paint) {
        if let Some(stripes) = paint.stripes {
            let _ = writeln!(
                out,
                "<pattern id=\"{}\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
                 patternTransform=\"rotate(45)\"><rect width=\"5\" height=\"5\" fill=\"{}\"/>\
                 <rect width=\"2\" height=\"5\" fill=\"{stripes}\"/></pattern>",
                pattern_of(paint),
                paint.fill
            );
        }
    }
    out
}

fn draw_area(d: &mut Drawing, picture: &Picture<'_>, area: &Area) {
    let size = area.end.saturating_sub(area.start);
    let text =
        format!("Physical memory from {:#x}: {}, {} a square", area.start, amount(size), amount(area.cell));
    d.text(MARGIN, d.y, "h", &text);
    d.y = d.y.saturating_add(12);
    for (row, cells) in area.cells.chunks(crate::picture::ROW).enumerate() {
        let y = d.y.saturating_add(CELL.saturating_mul(row as u64));
        let address = area.start.saturating_add(area.cell.saturating_mul(COLUMNS).saturating_mul(row as u64));
        d.text(MARGIN, y.saturating_add(14), "a", &format!("{address:#012x}"));
        for (shares, column) in cells.iter().zip(0..) {
            let x = GRID.saturating_add(CELL.saturating_mul(column));
            let first = address.saturating_add(area.cell.saturating_mul(column));
            draw_cell(d, picture, (x, y), first, shares);
        }
    }
    let rows = (area.cells.len() as u64).div_ceil(COLUMNS);
    d.y = d.y.saturating_add(CELL.saturating_mul(rows)).saturating_add(34);
}

/// A cell as bands: each owner has some height, however little it owns there.
fn draw_cell(
    d: &mut Drawing,
    picture: &Picture<'_>,
    (x, y): (u64, u64),
    address: u64,
    shares: &[(Owner, u64)],
) {
    const SIDE: u64 = CELL - GAP;
    const LEAST: u64 = 3;
    let total = shares.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    if total == 0 {
        return;
    }
    let title: Vec<String> =
        shares.iter().map(|(owner, bytes)| format!("{}: {}", owner.text(), amount(*bytes))).collect();
    let _ = writeln!(d.out, "<g><title>{:#x}\n{}</title>", address, escape(&title.join("\n")));
    let mut left = SIDE;
    for (n, (owner, bytes)) in shares.iter().enumerate() {
        let others = (shares.len() as u64).saturating_sub(n as u64).saturating_sub(1);
        let wish = SIDE.saturating_mul(*bytes).checked_div(total).unwrap_or_default().max(LEAST);
        let height = if others == 0 {
            left
        } else {
            wish.min(left.saturating_sub(others.saturating_mul(LEAST)).max(1))
        };
        let at = y.saturating_add(SIDE.saturating_sub(left));
        let more =
            if *owner == Owner::HostUntouched { " stroke=\"#d4dee8\" stroke-width=\"0.6\"" } else { "" };
        d.rect((x, at), (SIDE, height.min(left)), &fill(picture.paint(*owner)), more);
        left = left.saturating_sub(height);
        if left == 0 {
            break;
        }
    }
    d.out.push_str("</g>\n");
}

fn draw_legend(d: &mut Drawing, picture: &Picture<'_>) {
    let right = WIDTH - MARGIN;
    let end = |d: &Drawing, step: u64| d.y.saturating_add(step);
    d.text(LEGEND, d.y, "h", "Who has it");
    d.text(right, d.y, "n", "pages");
    d.y = end(d, 8);
    for key in &picture.legend {
        d.y = end(d, 19);
        d.rect(
            (LEGEND, d.y.saturating_sub(11)),
            (14, 14),
            &fill(key.paint),
            " stroke=\"#8a97a5\" stroke-width=\"0.5\"",
        );
        d.text(LEGEND + 22, d.y, "l", &key.owner.text());
        let (pages, amount) = (grouped(key.bytes / PAGE), amount(key.bytes));
        let count = if key.owner.is_memory() { format!("{pages} · {amount}") } else { amount };
        d.text(right, d.y, "n", &count);
    }
    d.y = end(d, 30);
    if !picture.guests.is_empty() {
        d.text(LEGEND, d.y, "h", "What the guests' own tables add");
        d.y = end(d, 4);
        for (handle, counts) in picture.guests {
            d.y = end(d, 18);
            d.text(LEGEND, d.y, "l", &format!("guest {handle:#x}: {}", guest_line(counts)));
        }
        d.y = end(d, 30);
    }
    if !picture.withheld.is_empty() {
        const SHOWN: usize = 8;
        d.text(LEGEND, d.y, "h", "Devices withheld from the host");
        d.y = end(d, 2);
        for (start, name) in picture.withheld.iter().take(SHOWN) {
            d.y = end(d, 16);
            d.text(LEGEND, d.y, "a", &format!("{start:#012x} {name}"));
        }
        if let Some(more) = picture.withheld.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            d.y = end(d, 16);
            d.text(LEGEND, d.y, "a", &format!("and {more} more"));
        }
        d.y = end(d, 30);
    }
}

/// Pages of a guest, what there is of them.
#[must_use]
pub fn guest_line(counts: &GuestCounts) -> String {
    let all = [
        (counts.owned, "its own"),
        (counts.shared, "shared"),
        (counts.borrowed, "the host's"),
        (counts.no_tag, "without tags"),
        (counts.guarded, "guarded"),
        (counts.destroyed, "destroyed"),
        (counts.expected, "to come"),
    ];
    let some: Vec<String> =
        all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", grouped(*n))).collect();
    if some.is_empty() { "no pages".to_owned() } else { some.join(", ") }
}

fn draw_blocks(d: &mut Drawing, picture: &Picture<'_>) {
    if picture.blocks.is_empty() {
        return;
    }
    d.text(MARGIN, d.y, "h", "Closer: blocks of 2 MiB that several have, 4 KiB a square");
    d.y = d.y.saturating_add(24);
    let width = DOT.saturating_mul(COLUMNS);
    let height = DOT.saturating_mul(BLOCK / PAGE / COLUMNS);
    for row in picture.blocks.chunks(ABREAST) {
        let mut lines = 0;
        for (block, nth) in row.iter().zip(0..) {
            let x = MARGIN.saturating_add(width.saturating_add(32).saturating_mul(nth));
            lines = lines.max(draw_block(d, picture, block, x));
        }
        d.y = d.y.saturating_add(height).saturating_add(16_u64.saturating_mul(lines)).saturating_add(40);
    }
}

/// Draws one block at the left border `x`; gives the number of lines below it.
fn draw_block(d: &mut Drawing, picture: &Picture<'_>, block: &Block, x: u64) -> u64 {
    let y = d.y.saturating_add(8);
    d.text(x, d.y, "a", &format!("{:#012x}", block.start));
    const PER_ROW: u64 = PAGE * COLUMNS;
    for span in &block.spans {
        let paint = fill(picture.paint(span.owner));
        let gfn = span.gfn.map_or(String::new(), |gfn| format!(", from guest frame {gfn:#x}"));
        let _ = writeln!(
            d.out,
            "<g><title>{:#x}: {}, {}{gfn}</title>",
            span.start,
            escape(&span.owner.text()),
            amount(span.len())
        );
        let mut at = span.start;
        while at < span.end {
            let offset = at.saturating_sub(block.start);
            let (row, column) = (offset / PER_ROW, offset % PER_ROW / PAGE);
            let here = COLUMNS.saturating_sub(column).min(span.end.saturating_sub(at) / PAGE).max(1);
            for dot in column..column.saturating_add(here) {
                let place =
                    (x.saturating_add(DOT.saturating_mul(dot)), y.saturating_add(DOT.saturating_mul(row)));
                d.rect(place, (DOT - 1, DOT - 1), &paint, "");
            }
            at = at.saturating_add(here.saturating_mul(PAGE));
        }
        d.out.push_str("</g>\n");
    }
    let below = y.saturating_add(DOT.saturating_mul(BLOCK / PAGE / COLUMNS)).saturating_add(14);
    let named = block.shares.iter().filter(|(owner, _)| !matches!(owner, Owner::Host | Owner::HostUntouched));
    let mut lines = 0_u64;
    for (owner, bytes) in named {
        let y = below.saturating_add(16_u64.saturating_mul(lines));
        d.rect((x, y.saturating_sub(9)), (10, 10), &fill(picture.paint(*owner)), "");
        let text = format!("{} {}", counted(bytes / PAGE, "page"), owner.text());
        d.text(x.saturating_add(16), y, "s", &text);
        lines = lines.saturating_add(1);
    }
    lines
}

fn draw_problems(d: &mut Drawing, picture: &Picture<'_>) {
    const SHOWN: usize = 5;
    let problems = &picture.map.problems;
    if problems.count() == 0 {
        return;
    }
    d.text(MARGIN, d.y, "h", &format!("{} inconsistencies", problems.count()));
    for problem in problems.first().iter().take(SHOWN) {
        d.y = d.y.saturating_add(18);
        d.text(MARGIN, d.y, "w", &problem.to_string());
    }
    d.y = d.y.saturating_add(20);
}
