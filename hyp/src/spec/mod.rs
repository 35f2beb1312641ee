//! What the image must do, in executable form: compiled with feature `spec` only.
#![forbid(unsafe_code)]

pub mod model;
