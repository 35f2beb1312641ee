//! Whole machines under QEMU: one test is one boot of one scenario on one kind of machine.
//!
//! [`matrix`] lists the cases, [`case`] runs one and [`judge`] decides; [`tree`] and [`placed`] give a machine a
//! device tree that QEMU itself would not make; [`bare`] and [`linux_view`] compare Linux with and without Rampart; [`linux_table`] looks at its stage-2 table. `tests/boot/` hands the list to libtest-mimic, so that
//! `cargo test -p boot-tests` and nextest list, filter and run the cases by name.
#![forbid(unsafe_code)]

pub mod bare;
pub mod case;
pub mod judge;
pub mod linux_table;
pub mod linux_view;
pub mod matrix;
pub mod placed;
pub mod tree;
