//! Page ownership on the simulated machine, under the checker, against the executable
//! specification.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says that it failed by a panic"
)]

mod abort;
mod bad_input;
mod calls;
mod guests;
mod host_hyp;
mod pool;
mod random;
