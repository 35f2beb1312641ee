//! IPA states: what a private page of a VM with split IPA is, and who may change that.
//!
//! Each frame of the lower half is EMPTY, RAM or DESTROYED, in the entry of the guest's own table
//! or in a note of the largest level that fits. RAM has a page, or waits for one.
//!
//! - [`find_map_level`], [`tiles`]: the largest entries that tile a range.
//! - `fill`: frames become RAM, at the host's word before the VM runs, at the guest's after.
//! - [`Request`]: what a guest asks for, how far the host got, and what it may do about it.
//! - `query`: what a range is, run by run.
//! - [`Measurements`], [`Closing`]: a digest of what a realm was when it began.
//!
//! RAM becomes EMPTY in [`crate::mem_protect`], because pages change hands; so does everything
//! that gives a page or takes it. docs/ipa-state.md has the states and the calls.
//!
//! Invariants: an entry never says EMPTY and has a page. A call that may end before its range does
//! answers the address up to which all is done, and no frame from there on has changed.
//!
//! Lock: the guest's table.
#![forbid(unsafe_code)]

mod closing;
mod fill;
mod level;
mod measurement;
mod query;
mod request;

pub use closing::Closing;
pub use level::{find_map_level, tiles};
pub use measurement::{Algorithm, ExtensibleIndex, Extension, MeasurementIndex, Measurements, Value};
pub use query::{Run, State};
pub use request::{Request, Want};
