//! What Rampart and its peer both do, and a figure of it.
//!
//! An operation's name is that of the metric by which either side says what it costs (`@metric NAME VALUE UNIT`).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The CPU models on which both are measured: pure Armv8.0, and all that QEMU has.
pub const CPUS: [&str; 2] = ["cortex-a72", "max"];

/// Something that costs instructions of EL2 in both hypervisors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The name of its metric.
    pub name: &'static str,
    /// From where to where.
    pub what: &'static str,
}

const fn operation(name: &'static str, what: &'static str) -> Operation {
    Operation { name, what }
}

/// The one that needs a boot of Linux, not a scenario.
pub const BOOT: &str = "boot_to_root";

/// All operations, in the order in which they are shown. Figures are instructions of EL2.
pub const OPERATIONS: &[Operation] = &[
    operation("guest_exit", "a guest's exit to the host and back into it"),
    operation("guest_exit_protected", "the same, of a protected guest"),
    operation("guest_mmio", "a guest's load that the VMM emulates, and back"),
    operation("guarded_read", "the same, of a protected guest"),
    operation("guest_call", "a protected guest's call that EL2 answers (HYP_MEMINFO)"),
    operation("guest_fault_shared", "a guest's first touch of a page, which the host shares with it"),
    operation("guest_fault_shared_2m", "the same of a block of 2 MiB"),
    operation("guest_fault_donated", "a protected guest's first touch of a page, which the host gives it"),
    operation("guest_fault_donated_2m", "the same of a block of 2 MiB"),
    operation("guest_mem_share", "MEM_SHARE of a page by a protected guest"),
    operation("guest_mem_unshare", "MEM_UNSHARE of it"),
    operation("vm_create", "a VM with one vCPU is made"),
    operation("vm_create_protected", "the same, protected"),
    operation("vm_destroy", "end of a VM with one vCPU and no page"),
    operation("vm_destroy_protected", "the same, protected"),
    operation("vm_destroy_per_page", "end of a VM, what each page adds"),
    operation("vm_destroy_protected_per_page", "the same, protected: each page is scrubbed"),
    operation("vcpu_load_put", "a vCPU is loaded and put"),
    operation("first_touch_4k", "the host's first touch of a page that EL2 maps for it page by page"),
    operation("first_touch_2m", "the host's first touch of a block of 2 MiB"),
    operation(BOOT, "reset to the first process of Debian's Linux as the host"),
];

/// One place of the comparison; as JSON a number, two of them, or a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// What it costs.
    Figure(u64),
    /// What it costs at least and at most, in boots that are not the same.
    Between([u64; 2]),
    /// Why there is no figure, in words.
    None(String),
}

impl Cell {
    /// The least that it costs.
    #[must_use]
    pub fn least(&self) -> Option<u64> {
        match self {
            Self::Figure(figure) | Self::Between([figure, _]) => Some(*figure),
            Self::None(_) => None,
        }
    }

    /// Both of two cells of the same.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Figure(a), Self::Figure(b)) if a != b => Self::Between([a.min(b), a.max(b)]),
            (Self::Figure(_), none @ Self::None(_)) => none,
            (cell, _) => cell,
        }
    }
}

/// The figures of one side on one CPU model, by an operation's name. What is not there was not asked for.
pub type Cells = BTreeMap<String, Cell>;
