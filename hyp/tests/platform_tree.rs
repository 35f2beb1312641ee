//! What the device tree reader accepts, and that everything else is an error with one line.
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
use hyp::platform::PaRange;
use hyp::platform::tree::{MAX_CPUS, MAX_REGIONS, Tree, TreeError};

/// QEMU's virt machine with 4 CPUs and 1 GiB, a kernel and an initrd module (tests/data/README.md).
const VIRT: &[u8] = include_bytes!("data/virt-a72-4cpu-1g.dtb");

fn range(start: u64, len: u64) -> PaRange {
    PaRange::new(start, len).unwrap()
}

/// The tree of QEMU's machine after `change`, as bytes.
fn virt_with(change: impl FnOnce(&mut DeviceTree)) -> Vec<u8> {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(VIRT).unwrap());
    change(&mut tree);
    tree.to_dtb()
}

fn cells(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

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

/// Sets one property of one node.
fn set<'a>(path: &'a str, name: &'a str, value: &'a [u8]) -> impl FnOnce(&mut DeviceTree) + 'a {
    move |tree| {
        tree.find_node_mut(path).unwrap().add_property(property(name, value));
    }
}

/// Removes one property of one node.
fn unset<'a>(path: &'a str, name: &'a str) -> impl FnOnce(&mut DeviceTree) + 'a {
    move |tree| {
        tree.find_node_mut(path).unwrap().remove_property(name).unwrap();
    }
}

/// The line that the reader of QEMU's tree after `change` prints.
#[track_caller]
fn refusal(change: impl FnOnce(&mut DeviceTree)) -> String {
    let blob = virt_with(change);
    let line = Tree::new(&blob).unwrap().platform().unwrap_err().to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

/// The line that looking for the console gives.
#[track_caller]
fn console_refusal(change: impl FnOnce(&mut DeviceTree)) -> String {
    let blob = virt_with(change);
    Tree::new(&blob).unwrap().console().unwrap_err().to_string()
}

/// Replaces the memory nodes by one with these (start, length) pairs.
fn memory(pairs: &[(u64, u64)]) -> impl FnOnce(&mut DeviceTree) {
    let words: Vec<u8> =
        pairs.iter().flat_map(|(start, len)| [start.to_be_bytes(), len.to_be_bytes()].concat()).collect();
    move |tree| {
        tree.find_node_mut("/memory@40000000").unwrap().add_property(property("reg", &words));
    }
}

#[test]
fn qemu_virt_is_read_as_it_is() {
    let tree = Tree::new(VIRT).unwrap();
    assert_eq!(tree.bootargs(), Ok("log=debug"));
    assert_eq!(tree.console().unwrap().pl011, range(0x900_0000, 0x1000));
    let platform = tree.platform().unwrap();
    assert_eq!(platform.memory.as_slice(), [range(0x4000_0000, 0x4000_0000)]);
    assert!(platform.reserved.is_empty());
    assert_eq!(platform.cpus.as_slice(), [0, 1, 2, 3]);
    assert_eq!(platform.cpus_ignored, 0);
    assert_eq!(platform.gic.distributor, range(0x800_0000, 0x1_0000));
    assert_eq!(platform.gic.redistributors.as_slice(), [range(0x80a_0000, 0xf6_0000)]);
    assert_eq!(platform.kernel.file, range(0x4400_0000, 100_000));
    assert_eq!(platform.kernel.bootargs, "scenario=demo semihosting");
    assert_eq!(platform.initrd, Some(range(0x5000_0000, 5_000)));
}

#[test]
fn devices_that_reach_memory_are_withheld_with_their_windows() {
    let platform = Tree::new(VIRT).unwrap().platform().unwrap();
    assert_eq!(
        platform.withheld.as_slice(),
        [
            range(0x808_0000, 0x2_0000),           // ITS
            range(0x902_0000, 0x1000),             // fw_cfg, its page
            range(0xa00_0000, 0x4000),             // virtio-mmio
            range(0xc00_0000, 0x200_0000),         // platform bus
            range(0x1000_0000, 0x2f00_0000),       // PCIe memory and port windows
            range(0x40_1000_0000, 0x1000_0000),    // PCIe ECAM
            range(0x80_0000_0000, 0x80_0000_0000)  // PCIe 64-bit window
        ]
    );
}

#[test]
fn a_memory_node_may_say_that_it_has_no_tags() {
    assert!(Tree::new(VIRT).unwrap().platform().unwrap().no_tags.is_empty());
    let reg = |start: u64, len: u64| [start.to_be_bytes(), len.to_be_bytes()].concat();
    let two = [reg(0x1_0000_0000, 0x1000), reg(0x8000_0000, 0x1000)].concat();
    let blob = virt_with(|tree| {
        let properties: [(&str, &[u8]); 3] =
            [("device_type", b"memory\0"), ("reg", &two), ("rampart,no-tags", b"")];
        tree.root.add_child(node("memory@80000000", &properties));
    });
    let platform = Tree::new(&blob).unwrap().platform().unwrap();
    let untagged = [range(0x1_0000_0000, 0x1000), range(0x8000_0000, 0x1000)];
    assert_eq!(platform.no_tags.as_slice(), untagged);
    assert_eq!(platform.memory.as_slice(), [range(0x4000_0000, 0x4000_1000), untagged[0]]);

    let many = (0..17).flat_map(|n| reg(0x1_0000_0000 + n * 0x2000, 0x1000)).collect::<Vec<_>>();
    let many = |tree: &mut DeviceTree| {
        let properties: [(&str, &[u8]); 3] =
            [("device_type", b"memory\0"), ("reg", &many), ("rampart,no-tags", b"")];
        tree.root.add_child(node("memory@100000000", &properties));
    };
    assert_eq!(refusal(many), "device tree: more than 16 memory regions without tags");
}

#[test]
fn memory_is_sorted_and_neighbours_merged() {
    let blob = virt_with(memory(&[
        (0x9000_0000, 0x1000),
        (0x4000_1001, 0x1000),
        (0x4000_0000, 0x1001),
        (0x5000_0000, 0),
        (0xffff_ffff_f000, 0x1000),
    ]));
    assert_eq!(
        Tree::new(&blob).unwrap().platform().unwrap().memory.as_slice(),
        [range(0x4000_0000, 0x2001), range(0x9000_0000, 0x1000), range(0xffff_ffff_f000, 0x1000)]
    );
}

#[test]
fn memory_of_several_nodes_counts_and_disabled_memory_does_not() {
    let reg = [0x8000_0000_u64.to_be_bytes(), 0x1000_u64.to_be_bytes()].concat();
    let secure = [0xe00_0000_u64.to_be_bytes(), 0x100_0000_u64.to_be_bytes()].concat();
    let blob = virt_with(|tree| {
        tree.root.add_child(node("memory@80000000", &[("device_type", b"memory\0"), ("reg", &reg)]));
        tree.root.add_child(node(
            "secram@e000000",
            &[("device_type", b"memory\0"), ("status", b"disabled\0"), ("reg", &secure)],
        ));
    });
    assert_eq!(
        Tree::new(&blob).unwrap().platform().unwrap().memory.as_slice(),
        [range(0x4000_0000, 0x4000_1000)]
    );
}

#[test]
fn as_many_regions_as_promised_are_taken_and_one_more_is_refused() {
    let pairs = |n: usize| (0..n as u64).map(|i| (i << 30, 0x1000 + i)).collect::<Vec<_>>();
    let blob = virt_with(memory(&pairs(MAX_REGIONS)));
    assert_eq!(Tree::new(&blob).unwrap().platform().unwrap().memory.len(), MAX_REGIONS);
    assert_eq!(refusal(memory(&pairs(MAX_REGIONS + 1))), "device tree: more than 128 memory regions");
}

#[test]
fn memory_that_makes_no_sense_is_refused() {
    assert_eq!(
        refusal(memory(&[(0x4000_0000, 0x2000), (0x4000_1fff, 1)])),
        "device tree: memory regions [0x40000000, 0x40002000) and [0x40001fff, 0x40002000) overlap"
    );
    assert_eq!(
        refusal(memory(&[(u64::MAX, 2)])),
        "device tree: memory@40000000: address 0xffffffffffffffff with size 0x2 is out of reach"
    );
    assert_eq!(
        refusal(memory(&[(0xffff_ffff_f000, 0x1001)])),
        "device tree: memory@40000000: address 0xfffffffff000 with size 0x1001 is out of reach"
    );
    assert_eq!(refusal(memory(&[(0x4000_0000, 0)])), "device tree: no memory node");
    assert_eq!(refusal(unset("/memory@40000000", "device_type")), "device tree: no memory node");
    assert_eq!(refusal(unset("/memory@40000000", "reg")), "device tree: memory@40000000: no reg");
    let odd = set("/memory@40000000", "reg", &[0; 12]);
    assert_eq!(refusal(odd), "device tree: memory@40000000: malformed reg");
}

#[test]
fn cell_counts_of_the_parent_are_honoured() {
    let blob = virt_with(|tree| {
        tree.root.add_child(node("reserved-memory", &[("ranges", b"")]));
        set("/reserved-memory", "#address-cells", &cells(&[1]))(tree);
        set("/reserved-memory", "#size-cells", &cells(&[1]))(tree);
        let child = node("log@48000000", &[("reg", &cells(&[0x4800_0000, 0x800]))]);
        tree.find_node_mut("/reserved-memory").unwrap().add_child(child);
    });
    assert_eq!(
        Tree::new(&blob).unwrap().platform().unwrap().reserved.as_slice(),
        [range(0x4800_0000, 0x800)]
    );
    assert_eq!(
        refusal(set("/", "#address-cells", &cells(&[3]))),
        "device tree: memory@40000000: malformed reg"
    );
}

#[test]
fn both_kinds_of_reservation_are_kept() {
    let blob = virt_with(|tree| {
        tree.memory_reservations.push(MemoryReservation::new(0x4700_0000, 0x1234));
        tree.memory_reservations.push(MemoryReservation::new(0x4700_0000, 0));
        let reg = [0x4800_0000_u64.to_be_bytes(), 0x1000_u64.to_be_bytes()].concat();
        let mut parent = node(
            "reserved-memory",
            &[("ranges", b""), ("#address-cells", &cells(&[2])), ("#size-cells", &cells(&[2]))],
        );
        parent.add_child(node("fw@48000000", &[("reg", &reg), ("no-map", b"")]));
        parent.add_child(node("linux,cma", &[("size", &[0, 0, 0, 0, 0, 0x40, 0, 0])]));
        tree.root.add_child(parent);
    });
    assert_eq!(
        Tree::new(&blob).unwrap().platform().unwrap().reserved.as_slice(),
        [range(0x4700_0000, 0x1234), range(0x4800_0000, 0x1000)]
    );
}

/// Puts a UART at 0x100 of bus `b`, at 0x20_0000 of bus `a`, and names it as console.
fn nested_console(a_ranges: &[u8]) -> Vec<u8> {
    virt_with(|tree| {
        let one_cell: [(&str, &[u8]); 2] =
            [("#address-cells", &[0, 0, 0, 1]), ("#size-cells", &[0, 0, 0, 1])];
        let mut a = node("a", &one_cell);
        a.add_property(property("ranges", a_ranges));
        let mut b = node("b", &one_cell);
        b.add_property(property("ranges", &cells(&[0x100, 0x20_0000, 0x1000])));
        b.add_child(node("uart@100", &[("compatible", b"arm,pl011\0"), ("reg", &cells(&[0x100, 0x1000]))]));
        a.add_child(b);
        tree.root.add_child(a);
        set("/chosen", "stdout-path", b"/a/b/uart:9600n8\0")(tree);
    })
}

#[test]
fn addresses_go_through_the_ranges_of_every_bus() {
    let blob = nested_console(&cells(&[0, 0x10, 0x4000_0000, 0x1000_0000]));
    assert_eq!(Tree::new(&blob).unwrap().console().unwrap().pl011, range(0x10_4020_0000, 0x1000));
    let identity = nested_console(&[]);
    assert_eq!(Tree::new(&identity).unwrap().console().unwrap().pl011, range(0x20_0000, 0x1000));
    let short = nested_console(&cells(&[0, 0x10, 0x4000_0000, 0x20_0fff]));
    let error = Tree::new(&short).unwrap().console().unwrap_err();
    assert_eq!(error, TreeError::Unreachable { node: "uart@100", start: 0x100, len: 0x1000 });
    let wraps = nested_console(&cells(&[0, u32::MAX, u32::MAX - 0xff, u32::MAX]));
    assert!(matches!(Tree::new(&wraps).unwrap().console(), Err(TreeError::Unreachable { .. })));
}

#[test]
fn console_is_found_by_alias_path_and_options() {
    for stdout in ["serial0\0", "serial0:115200n8\0", "/pl011@9000000\0", "/pl011:115200\0"] {
        let blob = virt_with(set("/chosen", "stdout-path", stdout.as_bytes()));
        assert_eq!(Tree::new(&blob).unwrap().console().unwrap().pl011.start(), 0x900_0000, "{stdout}");
    }
}

#[test]
fn a_console_that_cannot_be_driven_is_refused() {
    let stdout = |path: &'static [u8]| set("/chosen", "stdout-path", path);
    assert_eq!(console_refusal(unset("/chosen", "stdout-path")), "device tree: no stdout-path in /chosen");
    assert_eq!(
        console_refusal(stdout(b"serial9:9600\0")),
        "device tree: stdout-path serial9:9600 names no node"
    );
    assert_eq!(console_refusal(stdout(b"/nowhere\0")), "device tree: stdout-path /nowhere names no node");
    assert_eq!(console_refusal(stdout(b"\0")), "device tree: stdout-path  names no node");
    assert_eq!(
        console_refusal(stdout(b"/pl031@9010000\0")),
        "device tree: console pl031@9010000 is not a PL011"
    );
    assert_eq!(console_refusal(stdout(b"no nul")), "device tree: chosen: malformed stdout-path");
    assert_eq!(console_refusal(unset("/pl011@9000000", "reg")), "device tree: pl011@9000000: no reg");
}

#[test]
fn a_machine_without_gicv3_is_refused() {
    assert_eq!(refusal(set("/intc@8000000", "compatible", b"arm,cortex-a15-gic\0")), "device tree: no GICv3");
    assert_eq!(
        refusal(set("/intc@8000000", "#redistributor-regions", &cells(&[2]))),
        "device tree: intc@8000000: no reg"
    );
    assert_eq!(
        refusal(set("/intc@8000000", "#redistributor-regions", &cells(&[0]))),
        "device tree: intc@8000000: no reg"
    );
    assert_eq!(
        refusal(set("/intc@8000000", "#redistributor-regions", b"12")),
        "device tree: intc@8000000: malformed #redistributor-regions"
    );
}

#[test]
fn psci_must_be_there_and_by_smc() {
    assert_eq!(
        refusal(set("/psci", "method", b"hvc\0")),
        "device tree: PSCI method is hvc, not smc (does the machine start at EL2?)"
    );
    assert_eq!(
        refusal(unset("/psci", "method")),
        "device tree: PSCI method is absent, not smc (does the machine start at EL2?)"
    );
    assert_eq!(refusal(set("/psci", "compatible", b"arm,psci\0")), "device tree: no PSCI 0.2 or later");
    assert_eq!(refusal(set("/psci", "status", b"disabled\0")), "device tree: no PSCI 0.2 or later");
}

#[test]
fn cpus_are_told_by_mpidr() {
    let wide = |tree: &mut DeviceTree| {
        set("/cpus", "#address-cells", &cells(&[2]))(tree);
        for (path, mpidr) in ["/cpus/cpu@0", "/cpus/cpu@1", "/cpus/cpu@2"].iter().zip([0x100, 0x101, 0]) {
            set(path, "reg", &cells(&[0xff, mpidr]))(tree);
        }
        set("/cpus/cpu@3", "reg", &cells(&[0, 0x00ff_ffff]))(tree);
    };
    let blob = virt_with(wide);
    assert_eq!(
        Tree::new(&blob).unwrap().platform().unwrap().cpus.as_slice(),
        [0xff_0000_0100, 0xff_0000_0101, 0xff_0000_0000, 0x00ff_ffff]
    );
    assert_eq!(
        refusal(set("/cpus/cpu@1", "reg", &cells(&[0]))),
        "device tree: cpu@1: MPIDR 0x0 occurs twice"
    );
    assert_eq!(
        refusal(set("/cpus/cpu@1", "reg", &cells(&[0x8000_0001]))),
        "device tree: cpu@1: 0x80000001 is not an MPIDR"
    );
    assert_eq!(refusal(unset("/cpus/cpu@1", "reg")), "device tree: cpu@1: no reg");
    assert_eq!(refusal(|tree| drop(tree.root.remove_child("cpus"))), "device tree: no CPU node");
}

#[test]
fn a_cpu_that_the_host_could_start_past_el2_is_refused() {
    assert_eq!(
        refusal(set("/cpus/cpu@3", "enable-method", b"spin-table\0")),
        "device tree: cpu@3: enable-method is spin-table, not psci"
    );
}

#[test]
fn cpus_beyond_the_limit_are_counted_and_left_off() {
    let blob = virt_with(|tree| {
        let cpus = tree.find_node_mut("/cpus").unwrap();
        for mpidr in 4..MAX_CPUS as u32 + 2 {
            cpus.add_child(node(&format!("cpu@{mpidr:x}"), &[("reg", &cells(&[mpidr]))]));
        }
    });
    let platform = Tree::new(&blob).unwrap().platform().unwrap();
    assert_eq!((platform.cpus.len(), platform.cpus_ignored), (MAX_CPUS, 2));
}

const KERNEL: &str = "/chosen/module@0x44000000";
const INITRD: &str = "/chosen/module@0x50000000";

#[test]
fn one_kernel_and_at_most_one_ramdisk() {
    assert!(
        refusal(set(KERNEL, "compatible", b"multiboot,kernel\0")).starts_with("device tree: no host kernel")
    );
    assert_eq!(
        refusal(set(INITRD, "compatible", b"multiboot,module\0multiboot,kernel\0")),
        "device tree: module@0x44000000: second kernel module"
    );
    assert_eq!(
        refusal(set(KERNEL, "compatible", b"multiboot,module\0multiboot,ramdisk\0")),
        "device tree: module@0x44000000: second ramdisk module"
    );
    assert_eq!(
        refusal(set(INITRD, "compatible", b"multiboot,module\0xen,xsm-policy\0")),
        "device tree: module@0x50000000: module is neither a kernel nor a ramdisk"
    );
    let blob = virt_with(|tree| {
        tree.find_node_mut("/chosen").unwrap().remove_child("module@0x50000000").unwrap();
        unset(KERNEL, "bootargs")(tree);
    });
    let platform = Tree::new(&blob).unwrap().platform().unwrap();
    assert_eq!((platform.initrd, platform.kernel.bootargs), (None, ""));
}

#[test]
fn a_module_has_two_64_bit_numbers_whatever_the_cells_say() {
    let blob = virt_with(|tree| {
        set("/chosen", "#address-cells", &cells(&[1]))(tree);
        set("/chosen", "#size-cells", &cells(&[1]))(tree);
    });
    assert_eq!(Tree::new(&blob).unwrap().platform().unwrap().kernel.file.start(), 0x4400_0000);
    assert_eq!(
        refusal(set(KERNEL, "reg", &cells(&[0x4400_0000, 0x1000]))),
        "device tree: module@0x44000000: malformed reg"
    );
    assert_eq!(
        refusal(set(KERNEL, "reg", &cells(&[0, 0x4400_0000, 0, 0]))),
        "device tree: module@0x44000000: address 0x44000000 with size 0x0 is out of reach"
    );
    assert_eq!(refusal(unset(KERNEL, "reg")), "device tree: module@0x44000000: no reg");
}

#[test]
fn a_tree_that_is_nested_too_deep_is_refused() {
    let line = refusal(|tree| {
        let mut inner = node("n", &[]);
        for _ in 0..40 {
            let mut outer = node("n", &[]);
            outer.add_child(inner);
            inner = outer;
        }
        tree.root.add_child(inner);
    });
    assert_eq!(line, "device tree: n: nested too deep");
}

/// Reads all there is to read; what counts is that it returns.
fn read_all(blob: &[u8]) {
    let Ok(tree) = Tree::new(blob) else { return };
    let _ = tree.bootargs();
    let _ = tree.console().map_err(|error| error.to_string());
    let _ = tree.platform().map_err(|error| error.to_string());
}

#[test]
fn no_truncation_panics() {
    assert_eq!(Tree::new(&[]).unwrap_err().to_string(), "device tree: Invalid FDT length at offset 0");
    for len in 0..VIRT.len() {
        assert!(Tree::new(&VIRT[..len]).is_err(), "{len}");
        if len >= 8 && len % 4 == 0 {
            let mut blob = VIRT[..len].to_vec();
            blob[4..8].copy_from_slice(&(len as u32).to_be_bytes());
            read_all(&blob);
        }
    }
}

/// Random damage: bit flips, words of all ones, zeroes, words copied from elsewhere in the tree.
#[test]
fn no_damage_panics() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let rounds = std::env::var("DAMAGE_ROUNDS").map_or(3_000, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        let mut blob = VIRT.to_vec();
        for _ in 0..=random(3) {
            let word = random(blob.len() / 4) * 4;
            match random(4) {
                0 => blob[word + random(4)] ^= 1 << random(8),
                1 => blob[word..word + 4].fill(0xff),
                2 => blob[word..word + 4].fill(0),
                _ => {
                    let from = random(VIRT.len() / 4) * 4;
                    blob[word..word + 4].copy_from_slice(&VIRT[from..from + 4]);
                }
            }
        }
        read_all(&blob);
    }
}
