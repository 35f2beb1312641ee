//! The peer: protected KVM of an unmodified Linux.

use crate::operation::{Cell, Cells, OPERATIONS};
use xtask::qemu::Qemu;

/// What each operation costs protected KVM on CPU model `cpu`. That it cannot be measured is no error: the cell says why.
#[must_use]
pub fn measure(_qemu: &Qemu, cpu: &str) -> Cells {
    let none = |reason: &str| {
        OPERATIONS
            .iter()
            .map(|operation| (operation.name.to_owned(), Cell::None(reason.to_owned())))
            .collect()
    };
    none(&format!("no program that measures Linux on {cpu}"))
}
