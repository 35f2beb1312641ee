//! VMs and vCPUs on the simulated machine, called as a host calls them: registers in, registers
//! out, guest programs that run through the tables that EL2 built, under the checker.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says that it failed by a panic"
)]

mod calls;
mod faults;
mod faults_turn;
mod guard;
mod hostile;
mod known_bugs;
mod lifecycle;
mod measurement;
mod memory;
mod plain;
mod psci;
mod realm;
mod realm_calls;
mod rig;
mod run;
mod snapshot;
mod supply;
