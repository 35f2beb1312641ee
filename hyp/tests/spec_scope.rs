//! Everything that can happen in a small world: every call with every argument of the scope, from
//! every state that any sequence of them reaches.
//!
//! The real implementation walks; states are told apart by their abstract value. From each state
//! every action is tried once. Checker, specification and abstraction function judge each of them,
//! and in the end every errno that a call documents must have been answered.
#![allow(clippy::arithmetic_side_effects, reason = "small numbers of a test")]

use abi::Errno::{E2big, Ebusy, Einval, Enomem, Eperm, Erange};
use hyp::spec::model::{Call, Page};
use testkit::explore::{Action, Explorer, Key};
use testkit::features::CORTEX_A72;
use testkit::{Judged, Setup};

const RAM: u64 = 0x40000;

#[test]
fn everything_between_host_and_hyp_in_a_small_world() {
    let setup = || Setup { pages: 2048, hole: Some((1900, 20)), table_pages: 16, ..Setup::new(CORTEX_A72) };
    let start = || Judged::new(setup());
    // Two neighbours in one block and a page in another one.
    let pages = [RAM + 512, RAM + 513, RAM + 1024];
    let mut actions = Vec::new();
    let odd = [RAM, RAM - 1, RAM + 1900, (1 << 36) - 1, 1 << 36, u64::MAX];
    for pfn in pages.into_iter().chain(odd) {
        actions.extend([
            Action::Call(Call::HostShareHyp { pfn }),
            Action::Call(Call::HostUnshareHyp { pfn }),
            Action::Call(Call::HypPin { pfn }),
            Action::Call(Call::HypUnpin { pfn }),
        ]);
    }
    let ranges = pages.map(|pfn| (pfn, 1)).into_iter().chain(odd.map(|pfn| (pfn, 1))).chain([
        (RAM + 512, 2),
        (RAM + 512, 512),
        (RAM + 1023, 2),
        (RAM + 512, 0),
        (RAM + 512, 513),
        (RAM + 1899, 2),
        ((1 << 36) - 1, 2),
        (u64::MAX, 2),
    ]);
    for (pfn, nr) in ranges {
        actions.push(Action::Call(Call::HostDonateHyp { pfn, nr }));
        actions.push(Action::Call(Call::HypDonateHost { pfn, nr }));
    }
    actions.extend(pages.into_iter().chain([RAM, RAM + 1536, RAM + 1919]).map(Action::Touch));
    let beyond = |key: &Key, call: Call| {
        let pins = |pfn| key.pages.iter().find(|run| run.start <= pfn && pfn < run.end).map(|run| run.value);
        matches!(call, Call::HypPin { pfn } if pins(pfn) == Some(Page::SharedWithHyp { pins: 2 }))
    };
    let mut explorer = Explorer::new(&start, &actions, &beyond);
    explorer.run();
    let (states, steps) = explorer.counts();
    println!("host and EL2: {states} states, {} actions in each, {steps} steps", actions.len());
    explorer.expect_answers(&[
        ("host_share_hyp", &[Erange, Eperm]),
        ("host_unshare_hyp", &[Erange, Eperm, Ebusy]),
        ("host_donate_hyp", &[Einval, E2big, Erange, Eperm, Enomem]),
        ("hyp_donate_host", &[Einval, E2big, Erange, Eperm, Ebusy]),
        ("hyp_pin", &[Erange, Eperm, Enomem]),
        ("hyp_unpin", &[Erange, Eperm]),
    ]);
}
