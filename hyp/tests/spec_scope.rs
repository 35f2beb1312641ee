//! Everything that can happen in a small world: every call with every argument of the scope, from
//! every state that any sequence of them reaches.
//!
//! The real implementation walks; states are told apart by their abstract value. From each state
//! every action is tried once. Checker, specification and abstraction function judge each of them,
//! and in the end every errno that the scope promises must have been answered, and no other.
//! docs/testing.md has the numbers of states.

use testkit::explore::Explorer;
use testkit::scope::{Scope, Size};

const DOC: &str = include_str!("../../docs/testing.md");

fn explore(scope: Scope) {
    let mut explorer = Explorer::new(&scope);
    explorer.run();
    let (states, steps) = explorer.counts();
    println!("{}: {states} states, {} actions in each, {steps} steps", scope.name, scope.actions.len());
    explorer.expect_answers();
    let row = format!("| {} | {} | {states} |", scope.name, scope.actions.len());
    assert!(DOC.lines().any(|line| line == row), "docs/testing.md has no row {row}");
}

#[test]
fn everything_between_host_and_hyp_in_a_small_world() {
    explore(Scope::hyp(Size::Small));
}

#[test]
fn everything_about_pages_of_two_vms_in_a_small_world() {
    explore(Scope::pages(Size::Small));
}

#[test]
fn everything_about_a_block_of_two_vms_in_a_small_world() {
    explore(Scope::block(Size::Small));
}

#[test]
fn everything_about_devices_of_two_vms_in_a_small_world() {
    explore(Scope::marks(Size::Small));
}

#[test]
fn everything_about_the_halves_of_two_vms_in_a_small_world() {
    explore(Scope::halves(Size::Small));
}

#[test]
fn everything_about_tags_of_four_vms_in_a_small_world() {
    explore(Scope::tags(Size::Small));
}

#[test]
fn everything_about_tags_that_are_waited_for_in_a_small_world() {
    explore(Scope::pending(Size::Small));
}
