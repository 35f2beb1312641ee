//! Linux on the same machine without Rampart, to compare with.

use crate::tree;
use anyhow::{Context, Result};
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::{Node, Property};
use hyp::platform::tree::is_withheld;
use std::fs;
use std::path::Path;
use xtask::linux::{Extras, Linux};
use xtask::machine::Machine;
use xtask::qemu::Qemu;

/// What is in the place of Rampart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// A machine without EL2.
    Nothing,
    /// Linux is entered at EL2, and does with it what its command line says.
    Itself,
}

/// `machine` with Linux started by QEMU. Its tree is without the devices that Rampart withholds, so that
/// Linux does the same work. Files go to `folder`.
///
/// # Errors
/// QEMU gives no tree; a file cannot be written.
pub fn machine(
    qemu: &Qemu,
    machine: Machine,
    linux: &Linux,
    args: String,
    below: Below,
    folder: &Path,
) -> Result<Machine> {
    let mut extra = machine.extra.clone();
    extra.extend(["-initrd".into(), linux.initrd(&Extras::default())?.into()]);
    if below == Below::Nothing {
        extra.extend(["-M".into(), "virtualization=off".into()]);
    }
    let mut machine = Machine { hypervisor: linux.kernel.clone(), hypervisor_args: args, extra, ..machine };
    let blob = tree::of(qemu, &machine, &folder.join("qemu.dtb"))?;
    let path = folder.join("bare.dtb");
    fs::write(&path, tree::edited(&blob, withhold)?).context("cannot write the tree")?;
    machine.extra.extend(["-dtb".into(), path.into()]);
    Ok(machine)
}

/// Disables what Rampart withholds.
fn withhold(tree: &mut DeviceTree) -> Result<()> {
    let mut count = 0_usize;
    withhold_below(&mut tree.root, &mut count)?;
    anyhow::ensure!(count > 0, "QEMU's tree has none of the devices that Rampart withholds");
    Ok(())
}

fn withhold_below(node: &mut DeviceTreeNode, count: &mut usize) -> Result<()> {
    let compatible = node.property("compatible").map(|property| property.value().to_vec());
    let names = compatible.unwrap_or_default();
    if names.split(|byte| *byte == 0).any(|name| str::from_utf8(name).is_ok_and(is_withheld)) {
        tree::set(node, "status", b"disabled\0".to_vec())?;
        *count = count.saturating_add(1);
    }
    for child in node.children_mut() {
        withhold_below(child, count)?;
    }
    Ok(())
}
