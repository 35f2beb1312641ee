//! `kvm-bench`: what Linux's protected KVM costs at EL2, said by a program of that Linux in the words of
//! [the line protocol](../../../xtask/src/protocol.rs). docs/performance.md says how each figure comes about.

mod arch;
mod counter;
mod guest;
mod kvm;
mod linux;
mod operations;

use counter::Counter;
use kvm::Kind;
use operations::{ABSENT, Bench, OPERATIONS};
use std::process::ExitCode;

const USAGE: &str = "\
usage: kvm-bench operations [NAME]...
       kvm-bench linux [protected]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["operations", names @ ..] => operations(names),
        ["linux"] => linux(Kind::Plain),
        ["linux", "protected"] => linux(Kind::Protected),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Those with these names, or all.
fn operations(names: &[&str]) {
    let bench = match Counter::new().and_then(Bench::new) {
        Ok(bench) => bench,
        Err(error) => return println!("@skip all: {error:#}"),
    };
    for (name, measure) in OPERATIONS.iter().filter(|(name, _)| names.is_empty() || names.contains(name)) {
        match measure(&bench) {
            Ok(cost) => println!("@metric {name} {cost} instructions"),
            Err(error) => println!("@skip {name}: {error:#}"),
        }
    }
    ABSENT.iter().for_each(|(name, reason)| println!("@skip {name}: {reason}"));
}

/// Debian's Linux as a guest.
fn linux(kind: Kind) {
    match linux::boot(kind) {
        Ok(figures) => {
            figures.iter().for_each(|(name, value, unit)| println!("@metric {name} {value} {unit}"))
        }
        Err(error) => println!("@skip all: {error:#}"),
    }
}
