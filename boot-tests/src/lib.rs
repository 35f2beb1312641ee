//! Whole machines under QEMU: one test is one boot of one scenario on one kind of machine.
//!
//! [`matrix`] lists the cases, [`case`] runs one and [`judge`] decides; [`tree`] and [`placed`] give a machine a
//! device tree that QEMU itself would not make. `tests/boot.rs` hands the list to libtest-mimic, so that
//! `cargo test -p boot-tests` and nextest list, filter and run the cases by name.
#![forbid(unsafe_code)]

pub mod case;
pub mod judge;
pub mod matrix;
pub mod placed;
pub mod tree;
