//! The map as a page for a browser: zoomable down to a page, complete in one file, without anything
//! from elsewhere. A browser without scripts shows the still picture.

use crate::map::Owner;
use crate::picture::{PAGE, Paint, Picture};
use crate::svg::{self, escape, guest_line};
use crate::text::{amount, grouped};
use serde_json::{Value, json};
use std::fmt::Write;

const STYLE: &str = include_str!("../assets/map.css");
const SCRIPT: &str = include_str!("../assets/map.js");

/// Nothing is fetched from anywhere, whatever stands in the dump.
const POLICY: &str =
    concat!("default-src 'none'; style-src 'un", "safe-inline'; script-src 'un", "safe-inline'");

/// Owners in the order of the legend, as the page numbers them.
fn number(picture: &Picture<'_>, owner: Owner) -> usize {
    picture.legend.iter().position(|key| key.owner == owner).unwrap_or_default()
}

fn data(picture: &Picture<'_>) -> String {
    let spans: Vec<Value> = picture
        .map
        .spans
        .iter()
        .map(|span| {
            let gfn = span.gfn.map_or(json!(-1), |gfn| json!(gfn));
            json!([
                span.start / PAGE,
                span.len() / PAGE,
                number(picture, span.owner),
                gfn,
                u8::from(span.no_tag)
            ])
        })
        .collect();
    let owners: Vec<Value> = picture
        .legend
        .iter()
        .map(|key| json!({"text": key.owner.text(), "fill": key.paint.fill, "stripes": key.paint.stripes}))
        .collect();
    let areas: Vec<Value> =
        picture.areas.iter().map(|area| json!([area.start / PAGE, area.end.div_ceil(PAGE)])).collect();
    let places: Vec<Value> = picture
        .places
        .iter()
        .map(|place| json!([place.start / PAGE, place.end.div_ceil(PAGE), place.name]))
        .collect();
    // In a script element only "<" could end it.
    json!({"spans": spans, "owners": owners, "areas": areas, "places": places})
        .to_string()
        .replace('<', "\\u003c")
}

fn pattern(id: usize, paint: Paint) -> String {
    let Some(stripes) = paint.stripes else { return String::new() };
    format!(
        "<pattern id=\"o{id}\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect width=\"5\" height=\"5\" fill=\"{}\"/>\
         <rect width=\"2\" height=\"5\" fill=\"{stripes}\"/></pattern>",
        paint.fill
    )
}

/// The page.
#[must_use]
pub fn draw(picture: &Picture<'_>) -> String {
    let mut keys = String::new();
    let mut patterns = String::new();
    for (n, key) in picture.legend.iter().enumerate() {
        patterns.push_str(&pattern(n, key.paint));
        let fill =
            if key.paint.stripes.is_some() { format!("url(#o{n})") } else { key.paint.fill.to_owned() };
        let count = if key.owner.is_memory() {
            format!("{} pages, {}", grouped(key.bytes / PAGE), amount(key.bytes))
        } else {
            amount(key.bytes)
        };
        let _ = writeln!(
            keys,
            "<li data-owner=\"{n}\"><svg width=\"16\" height=\"16\"><rect width=\"16\" height=\"16\" \
             fill=\"{fill}\" stroke=\"#8a97a5\" stroke-width=\"0.6\"/></svg><span>{}</span>\
             <span class=\"n\">{count}</span></li>",
            escape(&key.owner.text())
        );
    }
    let title = escape(&picture.title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n<div class=\"dim\">{}</div>\n<noscript>{}</noscript>\n\
         <nav>{}<span id=\"path\"></span>\
         <input id=\"go\" placeholder=\"go to 0x…\" aria-label=\"address to go to\"></nav>\n\
         <div class=\"columns\">\n<section>\n<svg id=\"grid\" class=\"grid\" viewBox=\"0 0 846 368\">\
         <defs>{patterns}</defs></svg>\n<p class=\"dim\"><span id=\"scale\"></span> Escape leads back. \
         Point at the legend to see where an owner is.</p>\n</section>\n<aside>\n<h2>Who has it</h2>\n\
         <ul class=\"keys\">\n{keys}</ul>\n{}</aside>\n</div>\n<h2>What is shown, by address</h2>\n<table>\n\
         <thead><tr><th>from</th><th>to</th><th>pages</th><th>who has it</th><th>guest frame</th></tr></thead>\n\
         <tbody id=\"runs\"></tbody>\n</table>\n<p class=\"dim\" id=\"more\"></p>\n{}</main>\n<div id=\"tip\"></div>\n\
         <script type=\"application/json\" id=\"data\">{}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(&picture.subtitle),
        svg::draw(picture),
        shortcuts(picture),
        aside(picture),
        problems(picture),
        data(picture),
    )
}

/// Areas of memory, and the blocks that several own.
fn shortcuts(picture: &Picture<'_>) -> String {
    let mut out = String::new();
    if picture.areas.len() > 1 {
        for (n, area) in picture.areas.iter().enumerate() {
            let _ = write!(out, "<button data-area=\"{n}\">memory from {:#x}</button>", area.start);
        }
    }
    out
}

fn aside(picture: &Picture<'_>) -> String {
    let mut out = String::new();
    if !picture.blocks.is_empty() {
        out.push_str("<h2>Blocks that several have</h2>\n");
        for block in &picture.blocks {
            let _ = writeln!(
                out,
                "<button class=\"mono\" data-block=\"{}\">{:#x}</button>",
                block.start / PAGE,
                block.start
            );
        }
    }
    if !picture.guests.is_empty() {
        out.push_str("<h2>What the guests' own tables add</h2>\n");
        for (handle, counts) in picture.guests {
            let _ = writeln!(out, "<div>guest {handle:#x}: {}</div>", guest_line(counts));
        }
    }
    if !picture.withheld.is_empty() {
        out.push_str("<h2>Devices withheld from the host</h2>\n<div class=\"mono dim\">");
        for (start, name) in &picture.withheld {
            let _ = writeln!(out, "{start:#012x} {}<br>", escape(name));
        }
        out.push_str("</div>\n");
    }
    out
}

fn problems(picture: &Picture<'_>) -> String {
    let problems = &picture.map.problems;
    if problems.count() == 0 {
        return String::new();
    }
    let mut out =
        format!("<h2 class=\"bad\">{} inconsistencies</h2>\n<ul class=\"bad mono\">\n", problems.count());
    for problem in problems.first() {
        let _ = writeln!(out, "<li>{}</li>", escape(&problem.to_string()));
    }
    out.push_str("</ul>\n");
    out
}
