//! How large the hypervisor is: its image, its sources, its stacks.
//!
//! Sources are the files that the crate roots lead to without a feature and without tests. Lines are those with code. What
//! a feature adds inside of a file is counted with it.

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use xtask::cost::Counted;
use xtask::images::Build;
use xtask::machine::Memory;
use xtask::qemu::Qemu;
use xtask::show::grouped;
use xtask::table::Table;

/// Parts of the sources: what they are, the root, and whether `arch` counts rather than the rest.
const PARTS: [(&str, &str, bool); 4] = [
    ("portable core", "hyp/src/lib.rs", false),
    ("boot and registers", "hyp/src/main.rs", false),
    ("`arch`", "hyp/src/main.rs", true),
    ("ABI", "abi/src/lib.rs", false),
];
/// Scenarios after which the stacks are looked at.
const STACK_SCENARIOS: [&str; 8] =
    ["cost", "lend", "smp", "guest_memory", "guest_share", "guest_realm", "guest_mte", "guest_traps"];

/// Lines and the word that switches checks off, in the sources of one part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// Files.
    pub files: u64,
    /// Lines with code.
    pub code: u64,
    /// Blocks with the word.
    pub blocks: u64,
    /// Functions, implementations and attributes with it.
    pub items: u64,
}

/// All sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Bytes of the release image, by section.
    pub image: BTreeMap<String, u64>,
    /// Sources by part.
    pub sources: BTreeMap<String, Lines>,
    /// Most bytes that a CPU's stack held, by scenario.
    pub stack: BTreeMap<String, u64>,
}

/// Measures all sizes.
///
/// # Errors
/// An image does not build, a machine does not come to an orderly end, a source file is not there.
pub fn measure(qemu: &Qemu) -> Result<Sizes> {
    let release = Build::default().run()?;
    let elf = fs::read(&release.hypervisor.elf).context("cannot read the hypervisor's ELF file")?;
    let marked = Build { features: &["hyp/bench"], ..Build::default() }.run()?;
    let mut stack = BTreeMap::new();
    for scenario in STACK_SCENARIOS {
        let args = format!("scenario={scenario}");
        let machine = Counted { args: &args, cpu: "max", smp: 1, mem: Memory::gib(1) };
        let metrics = machine.boot(qemu, &marked)?.metrics;
        let used = metrics.iter().find(|metric| metric.name == "stack_used");
        stack.insert(scenario.to_owned(), used.context("the image does not look at its stacks")?.value);
    }
    let sources = PARTS.into_iter().map(|(name, root, arch)| Ok((name.to_owned(), sources(root, arch)?)));
    Ok(Sizes { image: image(&elf)?, sources: sources.collect::<Result<_>>()?, stack })
}

fn image(elf: &[u8]) -> Result<BTreeMap<String, u64>> {
    let file = object::File::parse(elf).context("not an ELF file")?;
    let mut sizes = BTreeMap::new();
    for name in ["text", "rodata", "data", "bss", "stack"] {
        let section = file.section_by_name(&format!(".{name}"));
        sizes.insert(name.to_owned(), section.with_context(|| format!("no section .{name}"))?.size());
    }
    Ok(sizes)
}

fn sources(root: &str, arch: bool) -> Result<Lines> {
    let root = xtask::workspace().join(root);
    let mut files = vec![root.clone()];
    follow(&root, &mut files)?;
    let is_arch = |path: &Path| path.components().any(|part| part.as_os_str() == "arch");
    let mut lines = Lines::default();
    for path in files.iter().filter(|path| is_arch(path) == arch) {
        lines.add(&fs::read_to_string(path).with_context(|| path.display().to_string())?);
    }
    ensure!(lines.files > 0, "no file of {}", root.display());
    Ok(lines)
}

/// Adds the files of the modules that `path` names.
fn follow(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let folder = if ["lib", "main", "mod"].contains(&stem) { folder.to_owned() } else { folder.join(stem) };
    for Module { name, path: named } in modules(&text) {
        let beside = path.parent().unwrap_or(Path::new(""));
        let places = [
            named.map(|named| beside.join(named)).unwrap_or_default(),
            folder.join(format!("{name}.rs")),
            folder.join(name).join("mod.rs"),
        ];
        let file = places.into_iter().find(|place| place.is_file());
        let file = file.with_context(|| format!("{} names {name}", path.display()))?;
        files.push(file.clone());
        follow(&file, files)?;
    }
    Ok(())
}

/// A module with a file of its own.
#[derive(Debug, PartialEq, Eq)]
struct Module<'a> {
    name: &'a str,
    /// What a `path` attribute says.
    path: Option<&'a str>,
}

/// Modules with files of their own that no feature and no test brings.
fn modules(text: &str) -> Vec<Module<'_>> {
    let mut found = Vec::new();
    let (mut optional, mut path) = (false, None);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            optional |= line.starts_with("#[cfg(feature") || line.starts_with("#[cfg(test)");
            let named = line.split_once("path = \"").and_then(|(_, rest)| rest.split('"').next());
            path = named.filter(|_| !line.starts_with("#[cfg_attr(feature")).or(path);
            continue;
        }
        let item = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
        let is_item = |(before, _): &(&str, &str)| before.is_empty() || before.starts_with("pub");
        found.extend(item.filter(|item| is_item(item) && !optional).map(|(_, name)| Module { name, path }));
        (optional, path) = (false, None);
    }
    found
}

impl Lines {
    fn add(&mut self, text: &str) {
        let word = ["un", "safe"].concat();
        let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        self.files = self.files.saturating_add(1);
        for line in text.get(..tests).unwrap_or_default().lines() {
            let code = line.split("//").next().unwrap_or_default().trim();
            self.code = self.code.saturating_add(u64::from(!code.is_empty()));
            let mut rest = code;
            while let Some((before, after)) = rest.split_once(&word) {
                let inside = |c: char| c.is_alphanumeric() || c == '_';
                if !before.ends_with(inside) && !after.starts_with(inside) {
                    let block = after.trim_start().starts_with('{');
                    let count = if block { &mut self.blocks } else { &mut self.items };
                    *count = count.saturating_add(1);
                }
                rest = after;
            }
        }
    }
}

impl Sizes {
    /// The image, the sources, the stacks.
    #[must_use]
    pub fn tables(&self) -> [Table; 3] {
        let head = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let mut image = vec![head(&["release image", "bytes"])];
        for name in ["text", "rodata", "data", "bss", "stack"] {
            image.push(vec![name.to_owned(), self.image.get(name).map_or("-".to_owned(), |n| grouped(*n))]);
        }
        let word = ["un", "safe"].concat();
        let mut sources = vec![head(&[
            "runs at EL2",
            "files",
            "lines of code",
            &format!("{word} blocks"),
            &format!("{word} items"),
        ])];
        for (name, _, _) in PARTS {
            let Some(Lines { files, code, blocks, items }) = self.sources.get(name) else { continue };
            let figures = [files, code, blocks, items].map(|figure| grouped(*figure));
            sources.push(std::iter::once(name.to_owned()).chain(figures).collect());
        }
        let mut stack = vec![head(&["scenario", "bytes of a CPU's stack"])];
        stack.extend(self.stack.iter().map(|(name, used)| vec![name.clone(), grouped(*used)]));
        [image, sources, stack].map(|rows| Table { rows, words: 1 })
    }
}

fn file() -> PathBuf {
    xtask::workspace().join("bench/size.json")
}

/// The committed sizes.
///
/// # Errors
/// They cannot be read.
pub fn read() -> Result<Sizes> {
    let text = fs::read_to_string(file()).with_context(|| format!("cannot read {}", file().display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds no sizes", file().display()))
}

/// Makes these the committed ones.
///
/// # Errors
/// They cannot be written.
pub fn write(sizes: &Sizes) -> Result<()> {
    let text = format!("{:#}\n", serde_json::to_value(sizes)?);
    fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_features_and_tests_do_not_count() {
        let names =
            |text: &'static str| modules(text).into_iter().map(|module| module.name).collect::<Vec<_>>();
        let text = "mod a;\npub mod b;\n#[cfg(test)]\nmod c;\n#[cfg(feature = \"x\")]\nmod d;\npub(crate) mod e;\nmod f {}\n";
        assert_eq!(names(text), ["a", "b", "e"]);
    }

    #[test]
    fn a_path_that_a_feature_brings_does_not_count() {
        let text = "#[cfg_attr(feature = \"x\", path = \"b.rs\")]\n#[cfg_attr(not(feature = \"x\"), path = \"c.rs\")]\nmod a;\n";
        assert_eq!(modules(text), [Module { name: "a", path: Some("c.rs") }]);
    }

    #[test]
    fn only_code_counts() {
        let word = ["un", "safe"].concat();
        let text = format!(
            "// {word} {{\n\nfn a() {{ {word} {{ b() }} }}\n{word} fn c() {{}}\n#![forbid({word}_code)]\n#[cfg(test)]\nmod tests {{\nlet x;\n}}\n"
        );
        let mut lines = Lines::default();
        lines.add(&text);
        assert_eq!(lines, Lines { files: 1, code: 3, blocks: 1, items: 1 });
    }

    #[test]
    fn the_portable_core_has_no_block_of_it() {
        let lines = sources("hyp/src/lib.rs", false).unwrap();
        assert!(lines.code > 1000 && lines.files > 20, "{lines:?}");
        assert_eq!((lines.blocks, lines.items), (0, 0));
        assert!(sources("hyp/src/main.rs", true).unwrap().blocks > 10);
    }
}
