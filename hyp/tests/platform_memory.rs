//! The memory map agrees with a page-by-page model, and places are free, aligned and in RAM.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use arrayvec::ArrayVec;
use hyp::addr::{PAGE_SIZE, Pfn, PfnRange};
use hyp::mm::MAX_NO_TAGS;
use hyp::platform::PaRange;
use hyp::platform::cmdline::Options;
use hyp::platform::image::KernelImage;
use hyp::platform::memory::{Kind, Layout, LayoutError, Loaded, MemoryMap, Region, Use};
use hyp::platform::tags::{TagsError, without_tags};
use hyp::platform::tree::{GicV3, Kernel, Platform};

const MIB: u64 = 1 << 20;

fn range(start: u64, len: u64) -> PaRange {
    PaRange::new(start, len).unwrap()
}

fn pages(start: u64, nr: u64) -> PfnRange {
    PfnRange::new(start, nr).unwrap()
}

fn platform(memory: &[PaRange], withheld: &[PaRange], reserved: &[PaRange]) -> Platform<'static> {
    Platform {
        memory: memory.iter().copied().collect(),
        no_tags: ArrayVec::new(),
        reserved: reserved.iter().copied().collect(),
        cpus: ArrayVec::from_iter([0]),
        cpus_ignored: 0,
        gic: GicV3 {
            distributor: range(0x800_0000, 0x1_0000),
            redistributors: ArrayVec::from_iter([range(0x80a_0000, 0x2_0000)]),
        },
        withheld: withheld.iter().copied().collect(),
        kernel: Kernel { file: range(0x4400_0000, 0x1000), bootargs: "" },
        initrd: None,
    }
}

/// A kernel that needs `len` bytes at `load`, which is a multiple of 2 MiB.
fn kernel(load: u64, len: u64) -> KernelImage {
    let mut head = [0; 64];
    head[16..24].copy_from_slice(&len.to_le_bytes());
    head[56..60].copy_from_slice(b"ARM\x64");
    KernelImage::new(range(load, 64), &head).unwrap()
}

/// What QEMU leaves in memory with 1 GiB.
fn qemu() -> (Platform<'static>, Loaded) {
    let platform = platform(&[range(0x4000_0000, 1 << 30)], &[range(0x902_0000, 0x1000)], &[]);
    let loaded = Loaded {
        image: range(0x4020_0000, 0x8_0000),
        tree: range(0x4800_0000, 0x2300),
        kernel: kernel(0x4400_0000, 0x20_0000),
        initrd: Some(range(0x5000_0000, 5000)),
    };
    (platform, loaded)
}

/// The run that an address is in.
fn region(map: &MemoryMap, address: u64) -> Option<Region> {
    map.runs().find(|run| PaRange::from_pages(run.pages).contains(range(address, 1)))
}

#[test]
fn memory_without_tags_is_named_by_the_tree_and_the_command_line() {
    let found = |no_tags: &[PaRange], arguments: &'static str| {
        let (platform, _) = qemu();
        let platform = Platform { no_tags: no_tags.iter().copied().collect(), ..platform };
        let map = MemoryMap::new(&platform, 40).unwrap();
        without_tags(&map, &platform, &Options::new(arguments)).map(|pages| pages.to_vec())
    };
    assert_eq!(found(&[], "log=debug mte=conservative"), Ok(vec![]));
    let node = range(0x7000_0800, 0x1000);
    assert_eq!(
        found(&[node], "no-tags=0x60000fff,2 no-tags=0x50000000,4096"),
        Ok(vec![pages(0x7_0000, 2), pages(0x6_0000, 2), pages(0x5_0000, 1)])
    );
    assert_eq!(found(&[], "no-tags=0x6000_0000,1"), Err(TagsError::Argument("no-tags=0x6000_0000,1")));
    assert_eq!(found(&[], "no-tags=0x3ffff000,0x2000"), Err(TagsError::NotInRam(range(0x3fff_f000, 0x2000))));
    let full = [node; MAX_NO_TAGS];
    assert_eq!(found(&full, "").map(|pages| pages.len()), Ok(MAX_NO_TAGS));
    assert_eq!(found(&full, "no-tags=0x60000000,1"), Err(TagsError::TooMany));
}

#[test]
fn the_space_is_divided_without_gap() {
    let (platform, _) = qemu();
    let map = MemoryMap::new(&platform, 40).unwrap();
    let runs: Vec<_> = map.runs().map(|run| (run.kind, run.pages.start().raw(), run.pages.end())).collect();
    assert_eq!(
        runs,
        [
            (Kind::Mmio, 0, 0x9020),
            (Kind::Withheld, 0x9020, 0x9021),
            (Kind::Mmio, 0x9021, 0x4_0000),
            (Kind::Ram, 0x4_0000, 0x8_0000),
            (Kind::Mmio, 0x8_0000, 1 << 28),
        ]
    );
    assert_eq!(region(&map, (1 << 40) - 1).unwrap().kind, Kind::Mmio);
    assert_eq!(region(&map, 1 << 40), None);
}

#[test]
fn a_page_that_is_memory_in_part_belongs_to_nobody() {
    let memory = [range(0x4000_0800, 0x2_0000), range(0x4010_0000, 0xfff)];
    let map = MemoryMap::new(&platform(&memory, &[], &[]), 40).unwrap();
    assert_eq!(map.records(), 0x1f);
    for (pfn, kind) in [
        (0x4_0000, Kind::Mmio),
        (0x4_0001, Kind::Ram),
        (0x4_001f, Kind::Ram),
        (0x4_0020, Kind::Mmio),
        (0x4_0100, Kind::Mmio),
    ] {
        assert_eq!(region(&map, pfn * PAGE_SIZE).unwrap().kind, kind, "{pfn:#x}");
        assert_eq!(map.is_ram(pages(pfn, 1)), kind == Kind::Ram);
    }
    assert!(!map.is_ram(pages(0x4_0000, 2)));
    assert!(!map.is_ram(pages(0x4_001f, 2)));
}

#[test]
fn a_machine_that_cannot_be_mapped_is_refused() {
    let map = |memory: &[PaRange], withheld: &[PaRange], pa_bits| {
        MemoryMap::new(&platform(memory, withheld, &[]), pa_bits).unwrap_err().to_string()
    };
    assert_eq!(
        map(&[range(0xff_ffff_f000, 0x1001)], &[], 40),
        "memory: RAM [0xfffffff000, 0x10000000001) is beyond the 40 physical address bits of this CPU"
    );
    assert_eq!(map(&[range(0x4000_0001, 0x1ffe)], &[], 40), "memory: no whole page of RAM");
    assert_eq!(map(&[range(0, 1 << 44)], &[], 48), "memory: more than 16 TiB of RAM");
    assert_eq!(
        map(&[range(0x4000_0000, MIB)], &[range(0x400f_f000, 0x2000)], 40),
        "memory: withheld device [0x400ff000, 0x40101000) is inside RAM"
    );
    assert_eq!(
        map(&[range(0x4000_0000, MIB)], &[range(0x3fff_f000, 0x2000)], 40),
        "memory: withheld device [0x3ffff000, 0x40001000) is inside RAM"
    );
    // 2^32 - 1 pages can be numbered.
    let most = platform(&[range(0x1000, (1 << 44) - 0x1000)], &[], &[]);
    assert_eq!(MemoryMap::new(&most, 48).unwrap().records(), u32::MAX);
}

#[test]
fn a_withheld_window_is_cut_at_the_end_of_the_space() {
    let withheld = [range(0xff_0000_0000, 1 << 32), range(0x180_0000_0000, 0x1000)];
    let map = MemoryMap::new(&platform(&[range(0x4000_0000, MIB)], &withheld, &[]), 40).unwrap();
    let last = region(&map, (1 << 40) - 1).unwrap();
    assert_eq!(
        (last.kind, last.pages.start().raw(), last.pages.end()),
        (Kind::Withheld, 0xff0_0000, 1 << 28)
    );
    let narrow = platform(&[range(0x4000_0000, MIB)], &[range(0xff_8000_0000, 1 << 32)], &[]);
    let map = MemoryMap::new(&narrow, 40).unwrap();
    assert_eq!(region(&map, (1 << 40) - 1).unwrap().kind, Kind::Withheld);
}

/// Every page against a model with one kind a page.
#[test]
fn every_answer_equals_the_page_by_page_model() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for _ in 0..300 {
        let mut memory = Vec::new();
        let mut withheld = Vec::new();
        let mut at = random(0x3000);
        while at < 0x8_0000 {
            let len = 1 + random(0x1_8000);
            if random(3) == 0 {
                let first = at.next_multiple_of(PAGE_SIZE);
                withheld.push(range(first, len.next_multiple_of(PAGE_SIZE)));
                at = first + len.next_multiple_of(PAGE_SIZE) + PAGE_SIZE;
            } else {
                memory.push(range(at, len));
                at += len + 1 + random(0x2000);
            }
        }
        check_against_model(&memory, &withheld);
    }
}

fn check_against_model(memory: &[PaRange], withheld: &[PaRange]) {
    let Ok(mut map) = MemoryMap::new(&platform(memory, withheld, &[]), 32) else {
        assert!(memory.iter().all(|region| region.pages_inside().is_none()), "{memory:?}");
        return;
    };
    let mut model = vec![Kind::Mmio; 0x200];
    let mut paint = |pages: PfnRange, kind| pages.iter().for_each(|pfn| model[pfn.raw() as usize] = kind);
    memory.iter().filter_map(|region| region.pages_inside()).for_each(|pages| paint(pages, Kind::Ram));
    withheld.iter().for_each(|device| paint(device.pages_touched(), Kind::Withheld));
    // Carve the middle out of the first run of RAM and the whole of the last.
    let host: Vec<_> = map.host_ram().collect();
    let (first, last) = (host[0], host[host.len() - 1]);
    let middle = pages(first.start().raw() + first.nr() / 3, 1);
    if host.len() > 1 {
        map.carve_out(&Layout { image: middle, data: last, tree: middle }).unwrap();
        paint(middle, Kind::Hyp);
        paint(last, Kind::Hyp);
    }
    let mut records = 0;
    for (pfn, kind) in model.iter().copied().enumerate() {
        let found = region(&map, pfn as u64 * PAGE_SIZE + 0xfff).unwrap();
        assert_eq!(found.kind, kind);
        assert!(found.pages.contains(Pfn::new(pfn as u64).unwrap()));
        for inside in found.pages.iter().take_while(|pfn| pfn.raw() < 0x200) {
            assert_eq!(model[inside.raw() as usize], kind);
        }
        for edge in [found.pages.start().raw().wrapping_sub(1), found.pages.end()] {
            assert_ne!(model.get(edge as usize), Some(&kind), "the run is not the longest");
        }
        records += u32::from(matches!(kind, Kind::Ram | Kind::Hyp));
        for nr in [1, 2, 7] {
            let end = (pfn + nr).min(model.len());
            let all =
                end == pfn + nr && model[pfn..end].iter().all(|kind| matches!(kind, Kind::Ram | Kind::Hyp));
            assert_eq!(map.is_ram(pages(pfn as u64, nr as u64)), all);
        }
    }
    assert_eq!(map.records(), records);
}

#[test]
fn the_carve_out_follows_the_image_and_is_one_piece() {
    let (platform, loaded) = qemu();
    let mut map = MemoryMap::new(&platform, 40).unwrap();
    let layout = Layout::new(&map, &platform, &loaded, 0x300).unwrap();
    assert_eq!(layout.image, pages(0x4_0200, 0x80));
    assert_eq!(layout.data, pages(0x4_0280, 0x300));
    assert_eq!(layout.tree, pages(0x4_0600, 0x200));
    assert_eq!(layout.carve_out().as_slice(), [pages(0x4_0200, 0x380)]);
    map.carve_out(&layout).unwrap();
    let hyp = region(&map, 0x4020_0000).unwrap();
    assert_eq!(hyp, Region { kind: Kind::Hyp, pages: pages(0x4_0200, 0x380) });
    assert_eq!(region(&map, 0x401f_ffff).unwrap().kind, Kind::Ram);
    assert_eq!(region(&map, 0x4058_0000).unwrap().kind, Kind::Ram);
    assert!(map.is_ram(pages(0x4_0000, 0x4_0000)));
    assert!(map.carve_out(&layout).is_err(), "a page is carved out once");
}

#[test]
fn the_data_goes_elsewhere_when_there_is_no_room_after_the_image() {
    let (mut platform, loaded) = qemu();
    // 61 MiB lie between image and kernel: 62 go behind the kernel, 127 behind the tree.
    let map = MemoryMap::new(&platform, 40).unwrap();
    let place =
        |platform: &_, mib: u64| Layout::new(&map, platform, &loaded, mib * 256).unwrap().data.start().raw();
    assert_eq!(place(&platform, 61), 0x4_0280);
    assert_eq!(place(&platform, 62), 0x4_4200);
    assert_eq!(place(&platform, 127), 0x4_8003);
    assert_eq!(place(&platform, 128), 0x5_0002);
    // Reserved memory is in the way as well.
    platform.reserved.push(range(0x4030_0fff, 1));
    assert_eq!(place(&platform, 61), 0x4_4200);
    assert_eq!(place(&platform, 1), 0x4_0301);
    // At the very end of RAM only what is before the image is left.
    let memory = [range(0x4000_0000, 64 * MIB)];
    let (small, end) = (platform_of(&memory), 0x4000_0000 + 64 * MIB);
    let map = MemoryMap::new(&small, 40).unwrap();
    let loaded = Loaded {
        image: range(end - MIB, MIB),
        tree: range(0x4000_0000, 0x1000),
        kernel: kernel(0x4020_0000, MIB),
        initrd: None,
    };
    let layout = Layout::new(&map, &small, &loaded, 256).unwrap();
    assert_eq!(layout.data, pages(0x4_0001, 256));
    assert_eq!(layout.carve_out().as_slice(), [layout.data, layout.image]);
}

fn platform_of(memory: &[PaRange]) -> Platform<'static> {
    platform(memory, &[], &[])
}

#[test]
fn what_was_loaded_must_be_ram_and_apart() {
    let (platform, good) = qemu();
    let map = MemoryMap::new(&platform, 40).unwrap();
    let refusal = |loaded: Loaded| Layout::new(&map, &platform, &loaded, 16).unwrap_err();
    let outside = range(0x7fff_f000, 0x1001);
    assert_eq!(
        refusal(Loaded { initrd: Some(outside), ..good }),
        LayoutError::NotInRam { what: Use::Initrd, range: outside }
    );
    assert_eq!(
        refusal(Loaded { kernel: kernel(0x7fe0_0000, 0x20_0001), ..good }).to_string(),
        "memory: host kernel [0x7fe00000, 0x80000001) is not in RAM"
    );
    // Its file ends before the initrd, its BSS does not.
    assert_eq!(
        refusal(Loaded { kernel: kernel(0x4fe0_0000, 0x20_0001), ..good }).to_string(),
        "memory: initrd [0x50000000, 0x50001388) overlaps host kernel [0x4fe00000, 0x50000001)"
    );
    assert_eq!(
        refusal(Loaded { kernel: kernel(0x4000_0000, 0x20_0001), ..good }).to_string(),
        "memory: host kernel [0x40000000, 0x40200001) overlaps hypervisor image [0x40200000, 0x40280000)"
    );
    assert_eq!(
        refusal(Loaded { initrd: Some(range(0x4800_22ff, 1)), ..good }).to_string(),
        "memory: initrd [0x480022ff, 0x48002300) overlaps device tree [0x48000000, 0x48002300)"
    );
    let touching = Loaded { initrd: Some(range(0x4420_0000, 1)), ..good };
    Layout::new(&map, &platform, &touching, 16).unwrap();
}

#[test]
fn no_room_is_said_with_the_size() {
    let (platform, loaded) = qemu();
    let map = MemoryMap::new(&platform, 40).unwrap();
    let refusal = |pages| Layout::new(&map, &platform, &loaded, pages).unwrap_err().to_string();
    assert_eq!(refusal(1 << 20), "memory: no 4194304 KiB of free RAM in one piece for the hypervisor memory");
    assert_eq!(
        Layout::new(&map, &platform, &loaded, u64::MAX).unwrap_err(),
        LayoutError::NoRoom { what: Use::Data, pages: u64::MAX }
    );
    let memory = [range(0x4000_0000, 5 * MIB)];
    let small = platform_of(&memory);
    let loaded = Loaded {
        image: range(0x4000_1000, MIB),
        tree: range(0x4010_2000, 0x1000),
        kernel: kernel(0x4020_0000, MIB),
        initrd: None,
    };
    let map = MemoryMap::new(&small, 40).unwrap();
    assert_eq!(
        Layout::new(&map, &small, &loaded, 16).unwrap_err().to_string(),
        "memory: no 2048 KiB of free RAM in one piece for the device tree"
    );
}
