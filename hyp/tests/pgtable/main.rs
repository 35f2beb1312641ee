//! Every operation of the table engine on the simulated machine: under the checker, against the
//! independent walker, and with CPUs that keep every translation they may keep.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that panics says that it failed"
)]

mod rig;

mod change;
mod copy;
mod corrupt;
mod life;
mod map;
mod notes;
mod page;
mod prepare;
mod stage1;
