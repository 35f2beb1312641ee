//! The checker's rules, each by an example that breaks it (`bad_*`) and one that keeps it
//! (`good_*`), on tables that are written word by word.
#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a test that panics says that it failed"
)]

mod locks;
mod machine;
mod pages;
mod rig;
mod tables;

use hyp::spec::checker::Rule;
use std::collections::BTreeSet;

/// Declares examples: a test for each, and the list of them.
macro_rules! examples {
    ($($(#[$doc:meta])* $name:ident breaks $rule:ident on $cpu:ident: |$rig:ident| $body:block)*) => {
        /// Rules that the examples here break.
        pub(crate) const BROKEN: &[hyp::spec::checker::Rule] = &[$(hyp::spec::checker::Rule::$rule,)*];

        $(
            $(#[$doc])*
            #[test]
            fn $name() {
                let $rig = crate::rig::Rig::new(testkit::features::$cpu);
                $body
                assert_eq!($rig.sim.violations(), [hyp::spec::checker::Rule::$rule]);
            }
        )*
    };
}
pub(crate) use examples;

#[test]
fn every_rule_has_an_example_that_breaks_it() {
    let shown = [tables::BROKEN, pages::BROKEN, locks::BROKEN, &[tables::BROKEN_BY_PANIC]].concat();
    let shown: BTreeSet<Rule> = shown.into_iter().collect();
    let all: BTreeSet<Rule> = Rule::ALL.iter().copied().collect();
    assert_eq!(shown, all);
}
