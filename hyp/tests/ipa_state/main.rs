//! IPA states on the simulated machine, under the checker, against the executable specification:
//! the private half of a VM with split IPA, and the half that it shares with its host.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says that it failed by a panic"
)]

mod destroy;
mod empty;
mod fill;
mod rig;
mod routing;
mod unprotected;
