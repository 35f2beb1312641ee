//! The assembly and raw registers of the programs at EL1 that is the same in all of them.
#![allow(unsafe_code, reason = "this is the one module of the crate that is allowed to touch the machine")]

mod call;
mod entry;
mod exception;

pub use call::{TimedCalls, hvc, smc, time_calls};
pub use exception::{Frame, SYNC_EL1H};
