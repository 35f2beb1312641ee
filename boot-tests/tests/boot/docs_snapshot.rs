//! docs/snapshot.md shows what `ptdump` says of the demo: a boot of the development image has to say
//! the same.

use ptdump::{Dump, text};
use std::fs;
use xtask::images::DEVELOPMENT;
use xtask::machine::{Host, Machine};
use xtask::protocol::Report;
use xtask::qemu::Qemu;
use xtask::run::{Limits, run};

const DOC: &str = include_str!("../../../docs/snapshot.md");

/// What `ptdump` says of the host's table in the demo.
fn demo() -> Vec<String> {
    let images = DEVELOPMENT.run().unwrap();
    let folder = xtask::workspace().join("target/boot-tests/docs-snapshot");
    fs::create_dir_all(&folder).unwrap();
    let host = Host { image: images.host.flat, args: "scenario=demo dump=map".to_owned() };
    let machine = Machine {
        semihosting: true,
        host: Some(host),
        initrd: Some(images.guest.flat),
        ..Machine::new(images.hypervisor.flat)
    };
    let mut command = Qemu::find().unwrap().command(machine.args());
    command.current_dir(&folder);
    let outcome = run(command, &Limits::seconds(60), |_| {}).unwrap();
    Report::parse(&outcome.console).verdict("demo").unwrap_or_else(|e| panic!("{e}\n{}", outcome.console));
    let mut out = Vec::new();
    text::write(&Dump::open(&folder.join("map.host.s2")).unwrap(), &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

/// As the document shows it: of devices that are alike the first, and how many more there are.
fn shortened(lines: &[String]) -> Vec<String> {
    let alike = |line: &&String| line.contains(" virtio_mmio@");
    let count = lines.iter().filter(alike).count();
    let mut short = Vec::new();
    let mut met = false;
    for line in lines {
        if !alike(&line) {
            short.push(line.clone());
        } else if !met {
            met = true;
            short.extend([line.clone(), format!("  (and {} more of these)", count.saturating_sub(1))]);
        }
    }
    short
}

/// A line without what depends on the size of the images: where in RAM a piece begins and ends, and how
/// many there are of a kind.
fn lasting(line: &str) -> String {
    let words: Vec<&str> = line.trim_start_matches("# ").split_whitespace().collect();
    let [range, _size, rest @ ..] = words.as_slice() else { return line.to_owned() };
    let start =
        range.split('-').next().and_then(|start| u64::from_str_radix(start.strip_prefix("0x")?, 16).ok());
    match start {
        Some(0x4000_0000..0x8000_0000) => {
            let rest = rest.iter().take_while(|word| !["->", "at"].contains(word));
            rest.copied().collect::<Vec<_>>().join(" ")
        }
        _ => line.to_owned(),
    }
}

fn outline<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut outline: Vec<String> = lines.map(lasting).collect();
    outline.dedup();
    outline
}

pub(crate) fn docs_snapshot_shows_what_the_demo_shows() {
    let block = DOC.lines().skip_while(|line| !line.starts_with("    ---[ Rampart demo"));
    let shown: Vec<&str> = block.map_while(|line| line.strip_prefix("    ")).collect();
    let says = shortened(&demo());
    assert!(says.len() > 30, "{says:#?}");
    assert_eq!(
        outline(shown.iter().copied()),
        outline(says.iter().map(String::as_str)),
        "docs/snapshot.md should show this:\n{}",
        says.join("\n")
    );
}
