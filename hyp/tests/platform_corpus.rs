//! Device trees that are wrong, by the thousand: each is refused with one line, or read as a machine that holds together.
//!
//! The corpus is QEMU's own tree with one thing wrong at a time, at every place where it can be: header, tokens, names,
//! lengths, `#address-cells`, `reg`, nodes and properties that are missing or there twice, a file that ends early. Then
//! come random changes from a seed: `CORPUS_TREES` of them, 3000 if it does not say.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property};
use hyp::platform::PaRange;
use hyp::platform::cmdline::Options;
use hyp::platform::edit::{self, Edits};
use hyp::platform::image::KernelImage;
use hyp::platform::memory::{Layout, Loaded, MemoryMap};
use hyp::platform::tags::without_tags;
use hyp::platform::tree::Tree;
use std::collections::BTreeMap;

/// QEMU's virt machine with 4 CPUs and 1 GiB, a kernel and an initrd module (tests/data/README.md).
const VIRT: &[u8] = include_bytes!("data/virt-a72-4cpu-1g.dtb");

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

fn word(blob: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(blob[at..at + 4].try_into().unwrap())
}

fn with_word(at: usize, value: u32) -> Vec<u8> {
    let mut blob = VIRT.to_vec();
    blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
    blob
}

/// An Image of 64 KiB for `file`, so that what is wrong is the tree.
fn kernel(file: PaRange) -> Result<KernelImage, String> {
    let mut head = [0; 64];
    head[8..16].copy_from_slice(&(file.start() % (2 << 20)).to_le_bytes());
    head[16..24].copy_from_slice(&file.len().max(0x1_0000).to_le_bytes());
    head[56..60].copy_from_slice(b"ARM\x64");
    KernelImage::new(file, &head).map_err(|e| e.to_string())
}

/// All that boot does with a tree; the line with which it refuses one.
fn boot(blob: &[u8]) -> Result<(), String> {
    fn line(e: impl ToString) -> String {
        e.to_string()
    }
    let tree = Tree::new(blob).map_err(line)?;
    tree.console().map_err(line)?;
    let options = Options::new(tree.bootargs().map_err(line)?);
    let platform = tree.platform().map_err(line)?;
    let map = MemoryMap::new(&platform, 44).map_err(line)?;
    let range = |start, len| PaRange::new(start, len).unwrap();
    let kernel = kernel(platform.kernel.file)?;
    let image = range(0x4020_0000, 0x8_0000);
    let tree_at = range(0x4800_0000, blob.len() as u64);
    let loaded = Loaded { image, tree: tree_at, kernel, initrd: platform.initrd };
    let layout = Layout::new(&map, &platform, &loaded, 512).map_err(line)?;
    without_tags(&map, &platform, &options).map_err(line)?;
    let carve_out = layout.carve_out();
    let mut whole = map;
    whole.carve_out(&layout).map_err(line)?;

    // It boots: then what is kept is memory, and what the host is told is a tree.
    for piece in &carve_out {
        let inside = PaRange::from_pages(*piece);
        assert!(platform.memory.iter().any(|memory| memory.contains(inside)), "{inside:?} is memory");
    }
    assert!(!platform.cpus.is_empty());
    let edits = Edits { carve_out: &carve_out, bootargs: platform.kernel.bootargs, initrd: platform.initrd };
    let mut out = vec![0xa5; blob.len() + 0x1000];
    let size = edit::write(&tree, &edits, &mut out).map_err(line)?;
    out.truncate(size);
    Tree::new(&out).unwrap();
    Ok(())
}

/// The outcome of a tree, by kind.
#[derive(Debug, Default)]
struct Outcomes(BTreeMap<&'static str, [usize; 2]>);

impl Outcomes {
    fn of(&mut self, kind: &'static str, blob: &[u8]) -> Option<String> {
        let refusal = boot(blob).err();
        if let Some(line) = &refusal {
            assert!(!line.contains('\n') && !line.is_empty(), "{kind}: {line:?}");
        }
        self.0.entry(kind).or_default()[usize::from(refusal.is_some())] += 1;
        refusal
    }
}

/// Offsets of every token of the structure, with its number.
fn tokens() -> Vec<(usize, u32)> {
    let mut at = word(VIRT, 8) as usize;
    let mut found = Vec::new();
    loop {
        let token = word(VIRT, at);
        found.push((at, token));
        at += match token {
            BEGIN_NODE => 4 + (VIRT[at + 4..].iter().position(|b| *b == 0).unwrap() + 1).next_multiple_of(4),
            PROP => 12 + (word(VIRT, at + 4) as usize).next_multiple_of(4),
            END => return found,
            _ => 4,
        };
    }
}

#[test]
fn every_field_of_the_header_is_believed_only_as_far_as_it_is_true() {
    let mut outcomes = Outcomes::default();
    let len = VIRT.len() as u32;
    for field in 0..10 {
        for value in
            [0, 1, 7, 40, len - 1, len, len + 1, len + 4, 0x7fff_ffff, 0x8000_0000, u32::MAX - 3, u32::MAX]
        {
            outcomes.of("header", &with_word(4 * field, value));
        }
    }
    println!("{outcomes:?}");
    assert!(outcomes.0["header"][1] > 60);
}

#[test]
fn a_tree_that_ends_early_is_refused_wherever_it_ends() {
    let mut outcomes = Outcomes::default();
    for len in 0..VIRT.len() {
        assert!(outcomes.of("cut", &VIRT[..len]).is_some(), "cut at {len}");
        // The same with a header that agrees.
        let mut blob = VIRT[..len].to_vec();
        if let Some(size) = blob.get_mut(4..8) {
            size.copy_from_slice(&(len as u32).to_be_bytes());
        }
        outcomes.of("cut, and says so", &blob);
    }
    println!("{outcomes:?}");
}

#[test]
fn no_token_name_or_length_leads_out_of_the_tree() {
    let mut outcomes = Outcomes::default();
    for (at, token) in tokens() {
        for other in [0, BEGIN_NODE, END_NODE, PROP, NOP, 5, END, u32::MAX] {
            if other != token {
                outcomes.of("token", &with_word(at, other));
            }
        }
        if token == PROP {
            let len = word(VIRT, at + 4);
            for value in [
                0,
                1,
                3,
                len.wrapping_sub(1),
                len + 1,
                len + 4,
                0x10_0000,
                0x7fff_fffd,
                u32::MAX - 3,
                u32::MAX,
            ] {
                outcomes.of("length", &with_word(at + 4, value));
            }
            for value in [0, 1, word(VIRT, 32) - 1, word(VIRT, 32), word(VIRT, 32) + 1, 0x7fff_ffff, u32::MAX]
            {
                outcomes.of("name", &with_word(at + 8, value));
            }
        }
        if token == BEGIN_NODE {
            // A name without its end.
            let mut blob = VIRT.to_vec();
            let end = at + 4 + VIRT[at + 4..].iter().position(|b| *b == 0).unwrap();
            blob[end.next_multiple_of(4) - 4..end.next_multiple_of(4).max(end + 1)].fill(b'x');
            outcomes.of("node name", &blob);
        }
    }
    // The strings run into what is behind them.
    let strings = word(VIRT, 12) as usize;
    let mut blob = VIRT.to_vec();
    blob[strings..].iter_mut().filter(|b| **b == 0).for_each(|b| *b = b'x');
    assert!(outcomes.of("strings", &blob).is_some());
    println!("{outcomes:?}");
}

/// Calls `f` for the path of every node.
fn paths(node: &DeviceTreeNode, path: &str, f: &mut impl FnMut(&str)) {
    for child in node.children() {
        let path = format!("{path}/{}", child.name());
        f(&path);
        paths(child, &path, f);
    }
}

fn virt() -> DeviceTree {
    DeviceTree::from_fdt(&Fdt::new(VIRT).unwrap())
}

#[test]
fn each_node_and_property_may_be_missing_or_nonsense() {
    let mut all = vec![String::from("/")];
    paths(&virt().root, "", &mut |path| all.push(path.to_owned()));
    let mut outcomes = Outcomes::default();
    for path in &all {
        let properties: Vec<(String, Vec<u8>)> = virt()
            .find_node(path)
            .unwrap()
            .properties()
            .map(|property| (property.name().to_owned(), property.value().to_vec()))
            .collect();
        if let Some((parent, name)) = path.rsplit_once('/').filter(|(_, name)| !name.is_empty()) {
            let mut tree = virt();
            let parent = if parent.is_empty() { "/" } else { parent };
            tree.find_node_mut(parent).unwrap().remove_child(name);
            outcomes.of("node missing", &tree.to_dtb());
            // There is another of the same kind, that says the same.
            let mut tree = virt();
            let mut twin = tree.find_node(path).unwrap().clone();
            let stem = name.split('@').next().unwrap().to_owned();
            twin = renamed(&twin, &format!("{stem}@7"));
            tree.find_node_mut(parent).unwrap().add_child(twin);
            outcomes.of("node twice", &tree.to_dtb());
        }
        for (name, value) in properties {
            let mut set = |kind, value: Vec<u8>| {
                let mut tree = virt();
                let node = tree.find_node_mut(path).unwrap();
                node.remove_property(&name);
                node.add_property(DeviceTreeProperty::new(&name, value.as_slice()).unwrap());
                outcomes.of(kind, &tree.to_dtb())
            };
            set("empty", Vec::new());
            set("ones", vec![0xff; value.len()]);
            set("zeros", vec![0; value.len()]);
            set("short by a byte", value[..value.len().saturating_sub(1)].to_vec());
            set("short by a cell", value[..value.len().saturating_sub(4)].to_vec());
            set("a cell longer", [value.as_slice(), &[0, 0, 0, 1]].concat());
            set("no end of the string", value.iter().map(|b| if *b == 0 { b'x' } else { *b }).collect());
            if name.ends_with("-cells") {
                for cells in [0_u32, 1, 3, 4, 5, 16, 0x4000_0000, u32::MAX] {
                    set("cells", cells.to_be_bytes().to_vec());
                }
            }
            let mut tree = virt();
            tree.find_node_mut(path).unwrap().remove_property(&name).unwrap();
            outcomes.of("property missing", &tree.to_dtb());
        }
    }
    println!("{outcomes:?}");
    for (kind, [boots, refused]) in &outcomes.0 {
        assert!(*boots > 0 && *refused > 0, "{kind}: some matter, most do not");
    }
    assert!(outcomes.0.values().flatten().sum::<usize>() > 2000);
}

#[test]
fn an_image_that_ends_early_is_too_short_wherever_the_header_ends() {
    let mut head = [0; 64];
    head[16..24].copy_from_slice(&0x1_0000_u64.to_le_bytes());
    head[56..60].copy_from_slice(b"ARM\x64");
    for len in 1..300_u64 {
        let file = PaRange::new(0x4400_0000, len).unwrap();
        let read = KernelImage::new(file, &head[..64.min(len as usize)]);
        assert_eq!(read.is_ok(), len >= 64, "{len}: {read:?}");
        // As boot reads it: what is in memory behind a short file is not believed.
        assert_eq!(KernelImage::new(file, &head).is_ok(), len >= 64, "{len}");
    }
    // What is missing of the rest is memory all the same: the header says how much.
    let whole = KernelImage::new(PaRange::new(0x4400_0000, 64).unwrap(), &head).unwrap();
    assert_eq!(whole.memory().len(), 0x1_0000);
}

/// A copy of a node under another name.
fn renamed(node: &DeviceTreeNode, name: &str) -> DeviceTreeNode {
    let mut copy = DeviceTreeNode::new(name).unwrap();
    node.properties().for_each(|property| copy.add_property(property.clone()));
    node.children().for_each(|child| copy.add_child(child.clone()));
    copy
}

#[test]
fn random_changes_are_refused_or_boot() {
    let rounds = std::env::var("CORPUS_TREES").map_or(3_000, |rounds| rounds.parse().unwrap());
    let mut seed = std::env::var("CORPUS_SEED").map_or(1, |seed| seed.parse().unwrap()) | 1_u64;
    println!("CORPUS_SEED={seed}");
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut outcomes = Outcomes::default();
    for _ in 0..rounds {
        let mut blob = VIRT.to_vec();
        for _ in 0..=random(6) {
            let at = random(blob.len());
            match random(5) {
                0 => blob[at] ^= 1 << random(8),
                1 => blob[at] = [0, 0xff, b'#', b'@', 0x80, 1][random(6)],
                2 => {
                    let value = [0, 1, 2, 3, 9, 0x7fff_ffff, u32::MAX, random(1 << 20) as u32][random(8)];
                    let at = at & !3;
                    if let Some(word) = blob.get_mut(at..at + 4) {
                        word.copy_from_slice(&value.to_be_bytes());
                    }
                }
                3 => {
                    // A piece stands somewhere else too.
                    let from = random(VIRT.len()) & !3;
                    let len = (4 * (1 + random(16))).min(VIRT.len() - from).min(blob.len() - at);
                    blob[at..at + len].copy_from_slice(&VIRT[from..from + len]);
                }
                _ => {
                    let at = 40 + (random(word(VIRT, 12) as usize - 40) & !3);
                    blob.drain(at..at + 4);
                }
            }
        }
        outcomes.of("random", &blob);
    }
    println!("{outcomes:?}");
    let [boots, refused] = outcomes.0["random"];
    assert!(boots > rounds / 50 && refused > rounds / 10, "{boots} boot, {refused} are refused");
}
