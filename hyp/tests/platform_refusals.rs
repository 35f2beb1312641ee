//! docs/boot.md lists every line with which a machine is refused, as the code prints it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dtoolkit::fdt::Fdt;
use hyp::platform::PaRange;
use hyp::platform::edit::EditError;
use hyp::platform::image::ImageError;
use hyp::platform::memory::{LayoutError, Use};
use hyp::platform::tags::TagsError;
use hyp::platform::tree::TreeError;
use std::collections::BTreeSet;

fn range(start: u64, end: u64) -> PaRange {
    PaRange::new(start, end.saturating_sub(start)).unwrap()
}

/// One of each kind. A kind that is added to the enum stops [`tree_kind`] from compiling.
fn tree() -> Vec<TreeError<'static>> {
    let node = "cpu@1";
    vec![
        TreeError::Malformed(Fdt::new(&[]).unwrap_err()),
        TreeError::TooDeep("n"),
        TreeError::TooMany { what: "memory regions", limit: 128 },
        TreeError::Missing { node, property: "reg" },
        TreeError::Property { node, property: "reg" },
        TreeError::Unreachable { node: "uart@9000000", start: 0x900_0000, len: 0x1000 },
        TreeError::NoMemory,
        TreeError::MemoryOverlap(range(0x4000_0000, 0x8000_0000), range(0x7fff_f000, 0x9000_0000)),
        TreeError::NoCpus,
        TreeError::Mpidr { node, mpidr: 0x8000_0001 },
        TreeError::DuplicateCpu { node, mpidr: 0 },
        TreeError::EnableMethod { node, method: "spin-table" },
        TreeError::NoPsci,
        TreeError::PsciMethod("hvc"),
        TreeError::NoGicV3,
        TreeError::NoStdoutPath,
        TreeError::StdoutPath("serial9"),
        TreeError::ConsoleType("uart@9000000"),
        TreeError::NoKernel,
        TreeError::SecondModule { node: "module@0x44000000", kind: "kernel" },
        TreeError::ModuleKind("module@0x44000000"),
    ]
}

const TREE_KINDS: usize = 21;

fn tree_kind(error: &TreeError<'_>) -> usize {
    match error {
        TreeError::Malformed(_) => 0,
        TreeError::TooDeep(_) => 1,
        TreeError::TooMany { .. } => 2,
        TreeError::Missing { .. } => 3,
        TreeError::Property { .. } => 4,
        TreeError::Unreachable { .. } => 5,
        TreeError::NoMemory => 6,
        TreeError::MemoryOverlap(..) => 7,
        TreeError::NoCpus => 8,
        TreeError::Mpidr { .. } => 9,
        TreeError::DuplicateCpu { .. } => 10,
        TreeError::EnableMethod { .. } => 11,
        TreeError::NoPsci => 12,
        TreeError::PsciMethod(_) => 13,
        TreeError::NoGicV3 => 14,
        TreeError::NoStdoutPath => 15,
        TreeError::StdoutPath(_) => 16,
        TreeError::ConsoleType(_) => 17,
        TreeError::NoKernel => 18,
        TreeError::SecondModule { .. } => 19,
        TreeError::ModuleKind(_) => 20,
    }
}

fn layout() -> Vec<LayoutError> {
    let initrd = range(0x5000_0000, 0x5000_1000);
    vec![
        LayoutError::BeyondCpu { region: range(0x4000_0000, 1 << 40), pa_bits: 36 },
        LayoutError::NoRam,
        LayoutError::TooMuchRam,
        LayoutError::DeviceInRam(range(0x4000_0000, 0x4000_1000)),
        LayoutError::NotInRam { what: Use::Initrd, range: initrd },
        LayoutError::Overlap {
            what: Use::Initrd,
            range: initrd,
            other: Use::Kernel,
            other_range: range(0x4400_0000, 0x5000_0001),
        },
        LayoutError::NoRoom { what: Use::Data, pages: 1024 },
    ]
}

const LAYOUT_KINDS: usize = 7;

fn layout_kind(error: &LayoutError) -> usize {
    match error {
        LayoutError::BeyondCpu { .. } => 0,
        LayoutError::NoRam => 1,
        LayoutError::TooMuchRam => 2,
        LayoutError::DeviceInRam(_) => 3,
        LayoutError::NotInRam { .. } => 4,
        LayoutError::Overlap { .. } => 5,
        LayoutError::NoRoom { .. } => 6,
    }
}

fn tags() -> Vec<TagsError<'static>> {
    vec![
        TagsError::Argument("no-tags=0x60000000"),
        TagsError::NotInRam(range(0x1000, 0x3000)),
        TagsError::TooMany,
    ]
}

const TAGS_KINDS: usize = 3;

fn tags_kind(error: &TagsError<'_>) -> usize {
    match error {
        TagsError::Argument(_) => 0,
        TagsError::NotInRam(_) => 1,
        TagsError::TooMany => 2,
    }
}

fn image() -> Vec<ImageError> {
    vec![
        ImageError::TooShort(63),
        ImageError::Magic(0),
        ImageError::NoSize,
        ImageError::LargerThanSize { file: 8192, image_size: 4096 },
        ImageError::BigEndian,
        ImageError::PageSize(16),
        ImageError::Misplaced { load: 0x4400_1000, text_offset: 0 },
        ImageError::PastEnd { load: 0xffff_ffff_f000, image_size: 8192 },
    ]
}

const IMAGE_KINDS: usize = 8;

fn image_kind(error: &ImageError) -> usize {
    match error {
        ImageError::TooShort(_) => 0,
        ImageError::Magic(_) => 1,
        ImageError::NoSize => 2,
        ImageError::LargerThanSize { .. } => 3,
        ImageError::BigEndian => 4,
        ImageError::PageSize(_) => 5,
        ImageError::Misplaced { .. } => 6,
        ImageError::PastEnd { .. } => 7,
    }
}

fn edit() -> Vec<EditError> {
    vec![
        EditError::NoRoom(2 << 20),
        EditError::TooDeep,
        EditError::Cells(range(1 << 32, (1 << 32) + 0x1000)),
        EditError::Inconsistent,
    ]
}

const EDIT_KINDS: usize = 4;

fn edit_kind(error: &EditError) -> usize {
    match error {
        EditError::NoRoom(_) => 0,
        EditError::TooDeep => 1,
        EditError::Cells(_) => 2,
        EditError::Inconsistent => 3,
    }
}

fn lines<E: ToString>(samples: &[E], kind: impl Fn(&E) -> usize, kinds: usize) -> Vec<String> {
    let seen: BTreeSet<usize> = samples.iter().map(kind).collect();
    assert_eq!(seen, (0..kinds).collect(), "a kind has no sample");
    samples.iter().map(ToString::to_string).collect()
}

#[test]
fn the_list_in_the_docs_is_what_the_code_prints() {
    let code: Vec<String> = [
        lines(&tree(), tree_kind, TREE_KINDS),
        lines(&layout(), layout_kind, LAYOUT_KINDS),
        lines(&tags(), tags_kind, TAGS_KINDS),
        lines(&image(), image_kind, IMAGE_KINDS),
        lines(&edit(), edit_kind, EDIT_KINDS),
    ]
    .concat();
    let docs = include_str!("../../docs/boot.md");
    let list = docs.split("## Refusals").nth(1).unwrap().split("```").nth(1).unwrap();
    let docs: Vec<&str> = list.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(docs, code);
}
