//! `campaign --calls N --seed S`: random calls against specification, checker and audit
//! on the simulated machine. `campaign --explore large`: the larger small worlds, whole.
//!
//! The first line says the seed, which makes it happen again; a failure prints every call since its
//! world began.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use testkit::campaign::{Campaign, print_trail};
use testkit::explore::Explorer;
use testkit::scope::{Scope, Size};

const USAGE: &str = "usage: campaign [--calls N] [--seed S] | --explore small|large";

enum Order {
    Play { calls: u64, seed: u64 },
    Explore(Size),
}

/// A number, decimal or after 0x.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn order(words: impl Iterator<Item = String>) -> Option<Order> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let (mut calls, mut seed) = (1_000_000, u64::from(now.subsec_nanos()) << 32 | now.as_secs());
    let mut words = words;
    while let Some(option) = words.next() {
        let value = words.next()?;
        match (option.as_str(), value.as_str()) {
            ("--calls", n) => calls = number(n)?,
            ("--seed", n) => seed = number(n)?,
            ("--explore", "small") => return Some(Order::Explore(Size::Small)),
            ("--explore", "large") => return Some(Order::Explore(Size::Large)),
            _ => return None,
        }
    }
    Some(Order::Play { calls, seed })
}

fn play(calls: u64, seed: u64) {
    println!("campaign: seed {seed:#x}, {calls} calls");
    let mut campaign = Campaign::new(seed);
    let trail = campaign.trail();
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        say(info);
        print_trail(&trail);
        eprintln!("campaign: FAILED, again with --seed {seed:#x}");
    }));
    let started = Instant::now();
    for part in 1..=20 {
        while campaign.calls() < calls * part / 20 {
            campaign.step();
        }
        println!("campaign: {:3} %, {} calls, {} s", part * 5, campaign.calls(), started.elapsed().as_secs());
        _ = std::io::stdout().flush();
    }
    print!("campaign: seed {seed:#x}: {campaign}");
}

fn explore(size: Size) {
    for scope in Scope::all(size) {
        let started = Instant::now();
        let mut explorer = Explorer::new(&scope);
        explorer.run();
        let (states, steps) = explorer.counts();
        let (actions, seconds) = (scope.actions.len(), started.elapsed().as_secs());
        println!("{}: {states} states, {actions} actions in each, {steps} steps, {seconds} s", scope.name);
    }
}

fn main() -> ExitCode {
    match order(std::env::args().skip(1)) {
        Some(Order::Play { calls, seed }) => play(calls, seed),
        Some(Order::Explore(size)) => explore(size),
        None => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
