//! The host's tree is the input with the documented edits and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property};
use hyp::addr::PfnRange;
use hyp::platform::PaRange;
use hyp::platform::edit::{self, EditError, Edits, MAX_SIZE};
use hyp::platform::tree::Tree;

/// QEMU's virt machine with 4 CPUs and 1 GiB, a kernel and an initrd module (tests/data/README.md).
const VIRT: &[u8] = include_bytes!("data/virt-a72-4cpu-1g.dtb");

fn property(name: &str, value: &[u8]) -> DeviceTreeProperty {
    DeviceTreeProperty::new(name, value).unwrap()
}

fn node(name: &str, properties: &[(&str, &[u8])]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new(name).unwrap();
    for (name, value) in properties {
        node.add_property(property(name, value));
    }
    node
}

fn cells(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn virt() -> DeviceTree {
    DeviceTree::from_fdt(&Fdt::new(VIRT).unwrap())
}

fn pieces() -> [PfnRange; 2] {
    [PfnRange::new(0x4_0200, 0x380).unwrap(), PfnRange::new(0x10_0000, 1).unwrap()]
}

fn edits(carve_out: &[PfnRange]) -> Edits<'_> {
    Edits {
        carve_out,
        bootargs: "scenario=demo semihosting",
        initrd: Some(PaRange::new(0x5000_0000, 5000).unwrap()),
    }
}

/// The blob that the host would get.
fn written(blob: &[u8], edits: &Edits<'_>) -> Result<Vec<u8>, EditError> {
    let mut out = vec![0xa5; blob.len() + 0x1000];
    let size = edit::write(&Tree::new(blob).unwrap(), edits, &mut out)?;
    out.truncate(size);
    Ok(out)
}

/// The same as a tree that can be compared and searched.
#[track_caller]
fn edited(blob: &[u8], edits: &Edits<'_>) -> DeviceTree {
    let out = written(blob, edits).unwrap();
    DeviceTree::from_fdt(&Fdt::new(&out).unwrap())
}

fn value(tree: &DeviceTree, path: &str, name: &str) -> Option<Vec<u8>> {
    tree.find_node(path)?.property(name).map(|property| property.value().to_vec())
}

#[test]
fn qemu_virt_gets_exactly_the_documented_edits() {
    let mut expected = virt();
    let mut reserved = node(
        "reserved-memory",
        &[("#address-cells", &cells(&[2])), ("#size-cells", &cells(&[2])), ("ranges", b"")],
    );
    let reg = cells(&[0, 0x4020_0000, 0, 0x38_0000]);
    reserved.add_child(node("rampart@40200000", &[("reg", &reg), ("no-map", b"")]));
    let reg = cells(&[1, 0, 0, 0x1000]);
    reserved.add_child(node("rampart@100000000", &[("reg", &reg), ("no-map", b"")]));
    expected.root.add_child(reserved);
    let chosen = expected.find_node_mut("/chosen").unwrap();
    chosen.remove_child("module@0x44000000").unwrap();
    chosen.remove_child("module@0x50000000").unwrap();
    chosen.add_property(property("bootargs", b"scenario=demo semihosting\0"));
    chosen.add_property(property("linux,initrd-start", &cells(&[0, 0x5000_0000])));
    chosen.add_property(property("linux,initrd-end", &cells(&[0, 0x5000_1388])));
    let mut withheld = vec![
        String::from("/fw-cfg@9020000"),
        String::from("/pcie@10000000"),
        String::from("/intc@8000000/its@8080000"),
        String::from("/platform-bus@c000000"),
    ];
    withheld.extend((0..32).map(|i| format!("/virtio_mmio@{:x}", 0xa00_0000 + i * 0x200)));
    for path in withheld {
        expected.find_node_mut(&path).unwrap().add_property(property("status", b"disabled\0"));
    }
    assert_eq!(edited(VIRT, &edits(&pieces())), expected);
}

#[test]
fn qemus_padding_to_a_mebibyte_is_dropped() {
    let mut padded = VIRT.to_vec();
    padded.resize(1 << 20, 0);
    padded[4..8].copy_from_slice(&(1_u32 << 20).to_be_bytes());
    let carve_out = pieces();
    assert_eq!(written(&padded, &edits(&carve_out)), written(VIRT, &edits(&carve_out)));
}

#[test]
fn the_reserved_memory_that_is_there_is_kept_and_its_cells_used() {
    let mut tree = virt();
    tree.memory_reservations.push(MemoryReservation::new(0x4700_0000, 0x1234));
    let one: &[u8] = &cells(&[1]);
    let mut reserved =
        node("reserved-memory", &[("#address-cells", one), ("#size-cells", one), ("ranges", b"")]);
    reserved.add_child(node("fw@48000000", &[("reg", &cells(&[0x4800_0000, 0x1000])), ("no-map", b"")]));
    tree.root.add_child(reserved);
    let blob = tree.to_dtb();
    let low = [pieces()[0]];
    let result = edited(&blob, &edits(&low));
    assert_eq!(result.memory_reservations, tree.memory_reservations);
    let kept = result.find_node("/reserved-memory/fw@48000000").unwrap();
    assert_eq!(Some(kept), tree.find_node("/reserved-memory/fw@48000000"));
    let added = value(&result, "/reserved-memory/rampart@40200000", "reg");
    assert_eq!(added, Some(cells(&[0x4020_0000, 0x38_0000])));
    // An address of 33 bits has no room in one cell.
    assert_eq!(
        written(&blob, &edits(&pieces())).unwrap_err().to_string(),
        "device tree for the host: /reserved-memory cannot hold [0x100000000, 0x100001000)"
    );
}

#[test]
fn a_new_reserved_memory_has_the_cells_of_the_root() {
    // Linux ignores the node otherwise.
    let mut tree = DeviceTree::new();
    tree.root.add_property(property("#address-cells", &cells(&[1])));
    tree.root.add_child(node("chosen", &[]));
    let low = [pieces()[0]];
    let result = edited(&tree.to_dtb(), &edits(&low));
    assert_eq!(value(&result, "/reserved-memory", "#address-cells"), Some(cells(&[1])));
    assert_eq!(value(&result, "/reserved-memory", "#size-cells"), Some(cells(&[1])));
    let reg = value(&result, "/reserved-memory/rampart@40200000", "reg");
    assert_eq!(reg, Some(cells(&[0x4020_0000, 0x38_0000])));
    tree.root.add_property(property("#address-cells", &cells(&[3])));
    assert!(matches!(written(&tree.to_dtb(), &edits(&low)), Err(EditError::Cells(_))));
}

#[test]
fn nothing_of_the_hypervisors_command_line_or_an_old_initrd_is_left() {
    let mut tree = virt();
    let chosen = tree.find_node_mut("/chosen").unwrap();
    chosen.add_property(property("linux,initrd-start", &cells(&[0x1000])));
    chosen.add_property(property("linux,initrd-end", &cells(&[0x2000])));
    let none = Edits { carve_out: &[], bootargs: "", initrd: None };
    let result = edited(&tree.to_dtb(), &none);
    for name in ["bootargs", "linux,initrd-start", "linux,initrd-end"] {
        assert_eq!(value(&result, "/chosen", name), None, "{name}");
    }
    assert_eq!(value(&result, "/chosen", "stdout-path"), Some(b"/pl011@9000000\0".to_vec()));
}

#[test]
fn a_status_that_is_there_is_replaced_where_a_device_is_withheld_and_nowhere_else() {
    let mut tree = virt();
    for path in ["/fw-cfg@9020000", "/pl031@9010000"] {
        tree.find_node_mut(path).unwrap().add_property(property("status", b"okay\0"));
    }
    let out = written(&tree.to_dtb(), &edits(&[])).unwrap();
    let result = Fdt::new(&out).unwrap();
    let status = |path| -> Vec<Vec<u8>> {
        let properties = result.find_node(path).unwrap().properties();
        properties.filter(|found| found.name() == "status").map(|found| found.value().to_vec()).collect()
    };
    assert_eq!(status("/fw-cfg@9020000"), [b"disabled\0"]);
    assert_eq!(status("/pl031@9010000"), [b"okay\0"]);
    assert!(status("/pl011@9000000").is_empty());
}

#[test]
fn a_name_that_is_the_tail_of_another_is_found() {
    // A compiler may store "handle" as the end of "linux,handle".
    let mut tree = DeviceTree::new();
    tree.root.add_child(node("a", &[("linux,handle", b"1"), ("handle", b"2")]));
    let mut blob = tree.to_dtb();
    let strings = u32::from_be_bytes(*blob[12..].first_chunk().unwrap()) as usize;
    let at = |blob: &[u8], name: &[u8]| blob.windows(name.len()).rposition(|w| w == name).unwrap() - strings;
    let (long, own) = (at(&blob, b"linux,handle\0"), at(&blob, b"\0handle\0") + 1);
    let use_own = (own as u32).to_be_bytes();
    let place = (0..strings).step_by(4).rfind(|at| blob[*at..*at + 4] == use_own).unwrap();
    blob[place..place + 4].copy_from_slice(&(long as u32 + 6).to_be_bytes());
    blob[strings + own] = b'x';
    assert_eq!(value(&edited(&blob, &edits(&[])), "/a", "handle"), Some(b"2".to_vec()));
}

#[test]
fn a_buffer_that_is_too_small_is_an_error_at_every_size() {
    let carve_out = pieces();
    let size = written(VIRT, &edits(&carve_out)).unwrap().len();
    let tree = Tree::new(VIRT).unwrap();
    let mut out = vec![0; size];
    for len in (0..size).step_by(31).chain([size - 1]) {
        let result = edit::write(&tree, &edits(&carve_out), &mut out[..len]);
        assert_eq!(result, Err(EditError::NoRoom(len)));
    }
    assert_eq!(edit::write(&tree, &edits(&carve_out), &mut out), Ok(size));
}

#[test]
fn no_more_than_two_mebibytes_are_written() {
    let mut tree = virt();
    tree.root.add_child(node("blob", &[("data", &vec![1; MAX_SIZE - 100])]));
    assert_eq!(written(&tree.to_dtb(), &edits(&[])), Err(EditError::NoRoom(MAX_SIZE)));
}

#[test]
fn nesting_is_bounded() {
    let mut inner = node("n", &[]);
    for _ in 0..40 {
        let mut outer = node("n", &[]);
        outer.add_child(inner);
        inner = outer;
    }
    let mut tree = virt();
    tree.root.add_child(inner);
    assert_eq!(written(&tree.to_dtb(), &edits(&[])), Err(EditError::TooDeep));
}

/// A damaged tree that is still accepted gives a tree that is accepted, or an error.
#[test]
fn no_damage_panics_or_gives_a_broken_tree() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let rounds = std::env::var("DAMAGE_ROUNDS").map_or(1_000, |rounds| rounds.parse().unwrap());
    let carve_out = pieces();
    let mut accepted = 0;
    for _ in 0..rounds {
        let mut blob = VIRT.to_vec();
        let at = random(blob.len());
        blob[at] = [blob[at] ^ 1 << random(8), 0, 0xff, b'#'][random(4)];
        if Tree::new(&blob).is_err() {
            continue;
        }
        if let Ok(out) = written(&blob, &edits(&carve_out)) {
            Tree::new(&out).unwrap();
            accepted += 1;
        }
    }
    assert!(accepted > rounds / 4);
}

#[test]
fn the_host_reads_what_was_reserved() {
    let carve_out = pieces();
    let mut tree = virt();
    // A module that the edit takes away, so that the reader accepts the result.
    let kernel = tree.find_node_mut("/chosen").unwrap().remove_child("module@0x44000000").unwrap();
    let out = written(&tree.to_dtb(), &edits(&carve_out)).unwrap();
    let mut result = DeviceTree::from_fdt(&Fdt::new(&out).unwrap());
    result.find_node_mut("/chosen").unwrap().add_child(kernel);
    let blob = result.to_dtb();
    let platform = Tree::new(&blob).unwrap().platform().unwrap();
    assert_eq!(platform.reserved.as_slice(), carve_out.map(PaRange::from_pages));
}
