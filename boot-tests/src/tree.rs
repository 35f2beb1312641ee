//! Device trees that QEMU itself would not make: its own tree of a machine, edited.

use anyhow::{Context, Result, anyhow, ensure};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property};
use std::ffi::OsString;
use std::path::Path;
use xtask::machine::Machine;
use xtask::qemu::Qemu;
use xtask::run::{Limits, run};

/// The tree that QEMU makes for `machine`, host module and all; `scratch` is a file to write.
///
/// # Errors
/// QEMU fails.
pub fn of(qemu: &Qemu, machine: &Machine, scratch: &Path) -> Result<Vec<u8>> {
    let mut args = machine.args();
    let mut dump = OsString::from("dumpdtb=");
    dump.push(scratch);
    args.extend(["-M".into(), dump]);
    let outcome = run(qemu.command(args), &Limits::seconds(20), |_| {})?;
    ensure!(outcome.orderly(), "QEMU dumps no device tree ({}): {}", outcome.end, outcome.errors);
    std::fs::read(scratch).context("QEMU dumped no device tree")
}

/// `blob` after `edit`.
///
/// # Errors
/// It is no device tree, or `edit` fails.
pub fn edited(blob: &[u8], edit: impl FnOnce(&mut DeviceTree) -> Result<()>) -> Result<Vec<u8>> {
    let fdt = Fdt::new(blob).map_err(|error| anyhow!("{error}"))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    edit(&mut tree)?;
    Ok(tree.to_dtb())
}

/// The node at `path`.
///
/// # Errors
/// There is none.
pub fn node<'a>(tree: &'a mut DeviceTree, path: &str) -> Result<&'a mut DeviceTreeNode> {
    tree.find_node_mut(path).with_context(|| format!("QEMU's tree has no {path}"))
}

/// The only child of the root whose name starts with `prefix`.
///
/// # Errors
/// There is none.
pub fn child_name(tree: &DeviceTree, prefix: &str) -> Result<String> {
    let mut names = tree.root.children().map(|child| child.name().to_owned());
    names.find(|name| name.starts_with(prefix)).with_context(|| format!("QEMU's tree has no {prefix}"))
}

/// Sets or adds a property.
///
/// # Errors
/// The name is not one a property can have.
pub fn set(node: &mut DeviceTreeNode, name: &str, value: Vec<u8>) -> Result<()> {
    let property = DeviceTreeProperty::new(name, value.as_slice()).map_err(|error| anyhow!("{error}"))?;
    node.remove_property(name);
    node.add_property(property);
    Ok(())
}

/// Removes a property that is there.
///
/// # Errors
/// It is not there.
pub fn unset(node: &mut DeviceTreeNode, name: &str) -> Result<()> {
    node.remove_property(name).map(drop).with_context(|| format!("no {name} to remove"))
}

/// `(address, size)` pairs as a `reg` of two cells each.
#[must_use]
pub fn reg(ranges: &[(u64, u64)]) -> Vec<u8> {
    ranges.iter().flat_map(|(start, size)| [start.to_be_bytes(), size.to_be_bytes()].concat()).collect()
}

/// The `reg` of the machine's one memory node.
///
/// # Errors
/// The tree has no such node or value.
pub fn memory(tree: &DeviceTree) -> Result<(u64, u64)> {
    let name = child_name(tree, "memory@")?;
    let node = tree.root.child(&name).context("no memory")?;
    let value = node.property("reg").context("memory without reg")?.value().to_vec();
    let word =
        |at: usize| value.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_be_bytes);
    word(0).zip(word(8)).context("memory with a short reg")
}

/// Puts the console where a flash is: what is written there is no output, and what is read is what the flash holds.
///
/// # Errors
/// The tree has no such console.
pub fn dead_console(tree: &mut DeviceTree) -> Result<()> {
    let name = child_name(tree, "pl011@")?;
    set(node(tree, &format!("/{name}"))?, "reg", reg(&[(crate::placed::FLASH, 0x1000)]))
}

/// Replaces the machine's memory by these ranges.
///
/// # Errors
/// The tree has no memory node.
pub fn set_memory(tree: &mut DeviceTree, ranges: &[(u64, u64)]) -> Result<()> {
    let name = child_name(tree, "memory@")?;
    set(node(tree, &format!("/{name}"))?, "reg", reg(ranges))
}

/// Adds a CPU that the machine does not have: the next number.
///
/// # Errors
/// The tree has no CPU.
pub fn one_cpu_more(tree: &mut DeviceTree) -> Result<()> {
    let cpus = node(tree, "/cpus")?;
    let (last, number) = cpus
        .children()
        .filter_map(|cpu| {
            Some((cpu.name().to_owned(), cpu.name().strip_prefix("cpu@")?.parse::<u32>().ok()?))
        })
        .max_by_key(|(_, number)| *number)
        .context("no CPU")?;
    let number = number.saturating_add(1);
    let like = cpus.child(&last).cloned().context("no CPU")?;
    let mut more = DeviceTreeNode::new(format!("cpu@{number}")).map_err(|error| anyhow!("{error}"))?;
    for property in like.properties().filter(|property| !["reg", "phandle"].contains(&property.name())) {
        set(&mut more, property.name(), property.value().to_vec())?;
    }
    set(&mut more, "reg", number.to_be_bytes().to_vec())?;
    cpus.add_child(more);
    Ok(())
}
