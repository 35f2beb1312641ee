//! What the device tree says of the machine, as the kernel shows it in `/proc/device-tree`.
#![forbid(unsafe_code)]

use abi::snapshot::{Region, RegionKind, padded};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/device-tree";

/// The hypervisor's memory: pieces of the carve-out.
pub(crate) fn carve_out() -> Vec<Region> {
    children(&Path::new(ROOT).join("reserved-memory"))
        .iter()
        .filter(|node| named(node, "rampart@"))
        .flat_map(|node| regions(node, RegionKind::CarveOut, "hypervisor"))
        .collect()
}

/// Memory, the carve-out, and what the hypervisor withholds.
pub(crate) fn machine() -> Vec<Region> {
    let top = children(Path::new(ROOT));
    let memory = top.iter().filter(|node| named(node, "memory@"));
    let mut found: Vec<Region> =
        memory.flat_map(|node| regions(node, RegionKind::Memory, "memory")).collect();
    found.extend(carve_out());
    let inner = top.iter().flat_map(|node| children(node));
    for node in top.iter().cloned().chain(inner) {
        if fs::read(node.join("status")).is_ok_and(|status| status == b"disabled\0") {
            let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.extend(regions(&node, RegionKind::Withheld, &name));
        }
    }
    found
}

fn named(node: &Path, prefix: &str) -> bool {
    node.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}

/// Nodes below, in the order of their names.
fn children(node: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(node).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// What `reg` names. Only cells of 64 bits are understood: QEMU's trees and Rampart's have no others there.
fn regions(node: &Path, kind: RegionKind, name: &str) -> Vec<Region> {
    let reg = fs::read(node.join("reg")).unwrap_or_default();
    let (pairs, _) = reg.as_chunks::<16>();
    let region = |pair: &[u8; 16]| {
        let (start, size) = pair.split_first_chunk::<8>()?;
        let start = u64::from_be_bytes(*start);
        let end = start.checked_add(u64::from_be_bytes(*size.first_chunk()?))?;
        Some(Region { start, end, kind: kind as u32, reserved: 0, name: padded(name) })
    };
    pairs.iter().filter_map(region).collect()
}
