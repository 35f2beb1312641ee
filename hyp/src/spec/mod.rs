//! What the image must do, in executable form: compiled with feature `spec` only.
//!
//! [`checker`] is an automaton over hardware operations that knows the rules of live translation
//! tables and of pages that change hands; [`Traced`] is a machine that feeds it. [`model`] says
//! what each call must do, apart from the code that does it. All run on the simulated machine and
//! at EL2.
#![forbid(unsafe_code)]

pub mod checker;
pub mod model;
mod traced;

pub use traced::{Traced, Watch};
