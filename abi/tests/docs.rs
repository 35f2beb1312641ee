//! `docs/abi.md` says what this crate says: every id, name, errno, capability bit and status.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a panic is a verdict")]

use abi::caps::Caps;
use abi::fault::Site;
use abi::guest::trng;
use abi::inspect::{self, Damage, Figure, InspectFn};
use abi::{Errno, HostFn, caps, host, psci, smccc};
use std::collections::BTreeSet;

fn document() -> String {
    read("abi.md")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/{}"), name)).unwrap()
}

/// Cells of the rows of the table that begins with `header`, without its rule.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(header));
    assert!(lines.next().is_some(), "no table {header:?}");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect();
    lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect()
}

/// First and second column.
fn pairs(text: &str, header: &str) -> Vec<(String, String)> {
    let pair = |row: Vec<String>| (row.first().unwrap().clone(), row.get(1).unwrap().clone());
    table(text, header).into_iter().map(pair).collect()
}

fn hex(id: u32) -> String {
    format!("0x{id:08X}")
}

const CALLS: &str = "| id | name | arguments | outputs |";

/// `[NAME](#name)` or `NAME`, and whether it is a link.
fn linked(cell: &str) -> (String, bool) {
    match cell.strip_prefix('[').and_then(|c| c.split_once("](#")) {
        Some((name, anchor)) => {
            assert_eq!(anchor, format!("{})", name.to_lowercase()));
            (name.to_owned(), true)
        }
        None => (cell.to_owned(), false),
    }
}

#[test]
fn the_table_of_host_calls_is_the_crates() {
    let rows: Vec<(String, String)> =
        pairs(&document(), CALLS).into_iter().map(|(id, name)| (id, linked(&name).0)).collect();
    let want: Vec<(String, String)> =
        HostFn::ALL.iter().map(|f| (hex(f.id()), f.name().to_owned())).collect();
    assert_eq!(rows, want);
}

/// Rows of the table below "Calls of a development image".
fn inspection(text: &str) -> &str {
    text.split("## Calls of a development image").nth(1).unwrap()
}

#[test]
fn the_tables_about_the_development_image_are_the_crates() {
    let text = document();
    let text = inspection(&text);
    let calls: Vec<_> = pairs(text, CALLS).into_iter().map(|(id, name)| (id, linked(&name).0)).collect();
    let want: Vec<_> = InspectFn::ALL.map(|f| (hex(f.id()), f.name().to_owned())).into();
    assert_eq!(calls, want);
    let want: Vec<_> = Figure::ALL.iter().map(|f| (f.number().to_string(), f.name().to_owned())).collect();
    assert_eq!(pairs(text, "| number | figure | meaning |"), want);
    let want: Vec<_> = Damage::ALL.iter().map(|d| (d.number().to_string(), d.name().to_owned())).collect();
    assert_eq!(pairs(text, "| number | finding | meaning |"), want);
    let sites: Vec<_> = table(text, "| site | name | errno | step |")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone(), row[2].clone()))
        .collect();
    let errno = |site: Site| format!("{:?}", site.errno()).to_uppercase();
    let want: Vec<_> =
        Site::ALL.map(|site| (site.number().to_string(), site.name().to_owned(), errno(site))).into();
    assert_eq!(sites, want);
    let last = inspect::FINDINGS + inspect::MAX_FINDINGS as u64 - 1;
    assert!(text.contains(&format!("`what` = {:#x} to {last:#x}", inspect::FINDINGS)));
}

#[test]
fn every_call_that_is_not_reserved_has_a_section_and_no_other() {
    let text = document();
    let sections: BTreeSet<String> =
        text.lines().filter_map(|l| l.strip_prefix("### ")).map(str::to_owned).collect();
    let mut described = BTreeSet::new();
    for row in table(&text, CALLS).into_iter().chain(table(inspection(&text), CALLS)) {
        let (name, link) = linked(row.get(1).unwrap());
        let reserved = row.get(2).unwrap() == "*reserved*";
        assert_ne!(link, reserved, "{name} must have a section or be reserved");
        if link {
            described.insert(name);
        }
    }
    assert_eq!(described, sections);
}

#[test]
fn the_table_of_errnos_is_the_crates() {
    let rows = pairs(&document(), "| name | number | meaning |");
    let want: Vec<(String, String)> =
        Errno::ALL.iter().map(|e| (format!("{e:?}").to_uppercase(), (*e as i64).to_string())).collect();
    assert_eq!(rows, want);
}

#[test]
fn the_table_of_capabilities_is_the_crates() {
    let rows = pairs(&document(), "| bit | name | meaning |");
    let want: Vec<(String, String)> = Caps::all()
        .iter_names()
        .map(|(name, bit)| (bit.bits().trailing_zeros().to_string(), name.to_owned()))
        .collect();
    assert_eq!(rows, want);
    assert!(document().contains(&format!("minor in bits 15:0; {:#x} here", caps::VERSION)));
}

#[test]
fn numbers_in_the_text_are_the_crates() {
    let text = document();
    let max = host::MAX_PAGES;
    assert!(text.contains(&format!("A call works on at most {max} pages.")));
    assert_eq!(text.matches(&format!("`nr` is larger than {max}")).count(), 2);
    assert_eq!(smccc::NOT_SUPPORTED, u64::MAX);
    assert_eq!(smccc::HINT_SVE, 1 << 16);
}

#[test]
fn the_table_of_firmware_calls_is_the_crates() {
    let want = [
        (psci::VERSION, "PSCI_VERSION"),
        (psci::CPU_SUSPEND_64, "CPU_SUSPEND (64-bit)"),
        (psci::CPU_OFF, "CPU_OFF"),
        (psci::CPU_ON_64, "CPU_ON (64-bit)"),
        (psci::AFFINITY_INFO_32, "AFFINITY_INFO (32-bit)"),
        (psci::AFFINITY_INFO_64, "AFFINITY_INFO (64-bit)"),
        (psci::MIGRATE_INFO_TYPE, "MIGRATE_INFO_TYPE"),
        (psci::SYSTEM_OFF, "SYSTEM_OFF"),
        (psci::SYSTEM_RESET, "SYSTEM_RESET"),
        (psci::FEATURES, "PSCI_FEATURES"),
        (smccc::VERSION, "SMCCC_VERSION"),
        (smccc::ARCH_FEATURES, "SMCCC_ARCH_FEATURES"),
        (smccc::ARCH_SOC_ID, "SMCCC_ARCH_SOC_ID"),
        (smccc::ARCH_WORKAROUND_3, "SMCCC_ARCH_WORKAROUND_3"),
        (smccc::ARCH_WORKAROUND_2, "SMCCC_ARCH_WORKAROUND_2"),
        (smccc::ARCH_WORKAROUND_1, "SMCCC_ARCH_WORKAROUND_1"),
        (trng::VERSION, "TRNG_VERSION"),
        (trng::FEATURES, "TRNG_FEATURES"),
        (trng::GET_UUID, "TRNG_GET_UUID"),
        (trng::RND32, "TRNG_RND32"),
        (trng::RND64, "TRNG_RND64"),
    ]
    .map(|(id, name)| (hex(id), name.to_owned()));
    assert_eq!(pairs(&document(), "| id | name | what happens |"), want);
}

#[test]
fn the_table_of_psci_statuses_is_the_crates() {
    let want = [
        ("SUCCESS", psci::SUCCESS),
        ("NOT_SUPPORTED", psci::NOT_SUPPORTED),
        ("INVALID_PARAMETERS", psci::INVALID_PARAMETERS),
        ("DENIED", psci::DENIED),
        ("ALREADY_ON", psci::ALREADY_ON),
        ("ON_PENDING", psci::ON_PENDING),
        ("INTERNAL_FAILURE", psci::INTERNAL_FAILURE),
        ("INVALID_ADDRESS", psci::INVALID_ADDRESS),
    ]
    .map(|(name, value)| (name.to_owned(), value.cast_signed().to_string()));
    assert_eq!(pairs(&document(), "| name | value |"), want);
}

#[test]
fn the_tables_of_the_exit_record_are_the_crates() {
    use abi::exit::{ExitRecord, Reason, Resp};
    use std::mem::offset_of;
    let text = document();
    let squeezed = |name: &str| name.replace('_', "").to_lowercase();
    let want: Vec<_> =
        Reason::ALL.into_iter().map(|r| ((r as u32).to_string(), format!("{r:?}").to_lowercase())).collect();
    let rows = pairs(&text, "| reason | name | fields |");
    assert_eq!(rows.into_iter().map(|(n, name)| (n, squeezed(&name))).collect::<Vec<_>>(), want);
    let answers = [Resp::Replay, Resp::Done, Resp::Sea, Resp::Reject, Resp::Map];
    let want = answers.map(|r| ((r as u32).to_string(), format!("{r:?}").to_uppercase()));
    assert_eq!(pairs(&text, "| resp | name | meaning |"), want);
    let offsets: Vec<usize> = pairs(&text, "| offset | size | field | written by |")
        .into_iter()
        .map(|(offset, _)| offset.parse().unwrap())
        .collect();
    macro_rules! offsets_of {
        ($($field:ident)*) => { [$(offset_of!(ExitRecord, $field)),*] };
    }
    assert_eq!(
        offsets,
        offsets_of!(reason flags gpa size dir data base top want need_pages repeat vtimer resp mmio_data nr_lr gic_hcr lr gpr)
    );
}

#[test]
fn m_24_the_tables_of_mte_md_are_the_crates() {
    use abi::exit::ExitFlags;
    use abi::vm::{MtePolicy, TagState, VmFlags};
    let text = read("mte.md");
    let numbered = |row: (u64, &str)| (row.0.to_string(), row.1.to_owned());
    let policies = MtePolicy::ALL.map(|p| numbered((p as u64, p.name())));
    assert_eq!(pairs(&text, "| value | policy | meaning |"), policies);
    let bits = VmFlags::MTE_POLICY.bits();
    let (low, high) = (bits.trailing_zeros(), bits.ilog2());
    assert!(text.contains(&format!("Bits {high}:{low} of `flags` of VM_CREATE")));
    let caps = [Caps::MTE, Caps::MTE_NOTAG, Caps::MTE_PRECISE];
    let named = |cap: Caps| (cap.bits().trailing_zeros().into(), cap.iter_names().next().unwrap().0);
    assert_eq!(pairs(&text, "| bit | name | meaning |"), caps.map(|cap| numbered(named(cap))));
    let flags = [ExitFlags::PRIVATE, ExitFlags::TAG_ACCESS].map(|flag| {
        (format!("bit {}", flag.bits().trailing_zeros()), flag.iter_names().next().unwrap().0.to_owned())
    });
    assert_eq!(pairs(&text, "| flag | name |"), flags);
    let calls = [HostFn::MteUpgrade, HostFn::VmTagInfo].map(|f| (hex(f.id()), f.name().to_owned()));
    assert_eq!(pairs(&text, CALLS), calls);
    assert_eq!(
        pairs(&text, "| x2 | name | meaning |"),
        TagState::ALL.map(|s| numbered((s as u64, s.name())))
    );
    let errnos: BTreeSet<String> = Errno::ALL.iter().map(|e| format!("{e:?}").to_uppercase()).collect();
    for (call, errno) in pairs(&text, "| call | errno | when |") {
        assert!(HostFn::ALL.iter().any(|f| f.name() == call), "{call}");
        assert!(errnos.contains(&errno), "{errno}");
    }
    assert!(text.contains(&format!("bit {} of `prot`", abi::vm::GuestProt::NO_TAG.bits().trailing_zeros())));
}

/// The section of `call`, without the rest of the document.
fn section(text: &str, call: HostFn) -> &str {
    let heading = format!("\n### {}\n", call.name());
    let (_, rest) = text.split_once(&heading).unwrap();
    rest.split("\n## ").next().unwrap().split("\n### ").next().unwrap()
}

/// The errnos that the section of `call` names, with those of the sections that it refers to.
fn documented(text: &str, call: HostFn) -> BTreeSet<Errno> {
    let section = section(text, call);
    let words = || section.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let mut errnos: BTreeSet<Errno> = words()
        .zip(words().skip(1))
        .filter(|(before, _)| *before != "Never")
        .filter_map(|(_, word)| Errno::ALL.into_iter().find(|e| format!("{e:?}").to_uppercase() == word))
        .collect();
    for (before, word) in words().zip(words().skip(1)) {
        let other = HostFn::ALL.into_iter().find(|f| f.name() == word);
        if let ("as" | "As" | "what", Some(other)) = (before, other) {
            errnos.extend(documented(text, other));
        }
    }
    errnos
}

#[test]
fn the_refusals_of_each_call_are_those_of_its_section() {
    let text = document();
    for call in HostFn::ALL {
        let mut want = documented(&text, call);
        match call {
            // "what GUEST_DONATE says", of which some cannot be here: the kind of VM and its table are what they are.
            HostFn::VcpuRun => want.retain(|e| *e != Errno::Eacces),
            // "as GUEST_RECLAIM" is said of its first point alone.
            HostFn::ReclaimDying => want.retain(|e| *e != Errno::Eperm),
            // "as VM_INIT_RIPAS" too; a DESTROYED frame is where it ends, not why it fails.
            HostFn::RipasApply => want.retain(|e| *e != Errno::Ehwpoison),
            _ => {}
        }
        let got: Vec<Errno> = call.refusals().to_vec();
        assert_eq!(
            got,
            Errno::ALL.into_iter().filter(|e| want.contains(e)).collect::<Vec<_>>(),
            "{}",
            call.name()
        );
    }
}
