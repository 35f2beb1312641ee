//! Memory tags on the simulated machine, called as a host calls: `docs/mte.md`, by scenario.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says that it failed by a panic"
)]

mod create;
mod docs;
mod faults;
mod give;
mod machine;
#[path = "../guest/rig.rs"]
#[allow(dead_code, reason = "not every test uses all of the machine")]
mod rig;
mod upgrade;
