//! The list of cases: every scenario of the host on the machines where it says something, and machines that are
//! wrong in one way each.

use crate::case::{Case, FAULTS, Twist};
use crate::judge::{Ending, Expect};
use crate::tree::{child_name, memory, node, set, set_memory, unset};
use anyhow::{Context, Result};
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use xtask::images::DEVELOPMENT;
use xtask::linux::{DRIVER_FEATURES, Effort, Run, SCENARIO as LINUX};
use xtask::linux_guest::{ENDED, Guest, HOSTILE, SCENARIO as GUEST_LINUX, Story, TOGETHER};
use xtask::machine::Memory;

/// CPU models of every scenario: all features, and pure Armv8.0 without forced write-back and with 8-bit VMIDs.
const BOTH: &[&str] = &["max", "cortex-a72"];
/// With one that has forced write-back but no fine-grained traps, and one with 40-bit addresses.
const ALL: &[&str] = &["max", "cortex-a72", "neoverse-n2", "cortex-a53"];
/// Fine-grained traps and forced write-back; neither; one of both.
pub const GUESTS: &[&str] = &["max", "cortex-a72", "neoverse-n2"];
const MAX: &[&str] = &["max"];
const A72: &[&str] = &["cortex-a72"];

const GIB: Memory = Memory::gib(1);
/// The specification looks at every page after every call.
const SMALL: Memory = Memory::mib(160);
/// A mebibyte without tags, which is free in the smallest machine too.
const NO_TAGS: &str = "no-tags=0x49f00000,0x100000";
/// The same, on a CPU that cannot tell tag accesses from others.
const CONSERVATIVE: &str = "mte=conservative no-tags=0x49f00000,0x100000";
const DEFAULT_SMP: u32 = 4;
const DEFAULT_SECONDS: u64 = 20;

/// A scenario and the machines it runs on.
#[derive(Debug, Clone, Copy)]
struct Row {
    scenario: &'static str,
    cpus: &'static [&'static str],
    smp: u32,
    mem: Memory,
    semihosting: bool,
    reboot: bool,
    features: &'static [&'static str],
    /// Words for the hypervisor, if any.
    arguments: &'static str,
    expect: Expect,
    seconds: u64,
}

/// Images with calls that make others fail and with audits. Snapshots are in each: every other set of features is
/// another minute to build.
const AUDITED: &[&str] = &["hyp/fault-injection", "hyp/debug-snapshot"];
/// The same with the executable specification and the checker.
const CHECKED: &[&str] = &["hyp/spec", "hyp/fault-injection", "hyp/debug-snapshot"];

/// Debian's Linux as a guest, unless a case says otherwise.
const GUEST: Guest =
    Guest { realm: false, vcpus: 2, mebibytes: 256, shell: false, story: Story::Alone, quiet: true };

const fn row(scenario: &'static str, cpus: &'static [&'static str]) -> Row {
    Row {
        scenario,
        cpus,
        smp: DEFAULT_SMP,
        mem: GIB,
        semihosting: false,
        reboot: false,
        features: &[],
        arguments: "",
        expect: Expect::Pass,
        seconds: DEFAULT_SECONDS,
    }
}

impl Row {
    const fn arguments(self, arguments: &'static str) -> Self {
        Self { arguments, ..self }
    }

    const fn smp(self, smp: u32) -> Self {
        Self { smp, ..self }
    }

    const fn mem(self, mem: Memory) -> Self {
        Self { mem, ..self }
    }

    /// With snapshots of stage-2 tables.
    const fn snapshots(self) -> Self {
        Self { features: DEVELOPMENT.features, ..self }
    }

    /// With the executable specification, the checker and the audit at EL2.
    const fn checked(self) -> Self {
        Self { features: CHECKED, ..self }
    }

    /// With an audit before and after, and with calls that make others fail.
    const fn audited(self) -> Self {
        Self { features: AUDITED, ..self }
    }

    const fn seconds(self, seconds: u64) -> Self {
        Self { seconds, ..self }
    }

    const fn expect(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }
}

/// Scenarios and what must come of them.
const ROWS: &[Row] = &[
    row("demo", BOTH),
    row("smoke", ALL),
    row("smoke", BOTH).smp(1),
    row("smoke", BOTH).smp(8),
    row("smoke", ALL).mem(Memory::gib(16)),
    row("smoke", MAX).mem(Memory::mib(256)),
    row("calls", BOTH),
    row("share", ALL),
    row("lend", ALL),
    row("carveout_load", ALL),
    row("carveout_store", ALL),
    row("carveout_fetch", ALL),
    row("fwcfg_dma", BOTH),
    row("withheld", BOTH),
    row("psci", BOTH),
    row("psci", MAX).smp(8),
    row("smp", ALL),
    row("smp", BOTH).smp(8).seconds(40),
    row("ram", ALL),
    row("ram", BOTH).mem(Memory::gib(16)).seconds(60),
    row("poweroff", BOTH).expect(Expect::PassBy(Ending::PowerOff)),
    row("reset", BOTH).expect(Expect::PassBy(Ending::Reset)),
    row("guard", ALL),
    row("snapshot", BOTH),
    row("snapshot", ALL).snapshots().seconds(60),
    row("snapshot", BOTH).checked().mem(SMALL).seconds(90),
    row("demo", MAX).audited(),
    row("smoke", MAX).audited().smp(8),
    row("calls", BOTH).audited(),
    row("share", BOTH).audited(),
    row("lend", BOTH).audited(),
    row("carveout_load", MAX).audited(),
    row("carveout_store", MAX).audited(),
    row("carveout_fetch", MAX).audited(),
    row("fwcfg_dma", MAX).audited(),
    row("withheld", MAX).audited(),
    row("psci", MAX).audited(),
    row("smp", BOTH).audited(),
    row("race", BOTH).audited(),
    row("faults", BOTH).audited().mem(Memory::mib(320)).seconds(60),
    // Each pass of each step that can fail fails once. On one CPU it is clear whose pass failed.
    row("guest_donate", BOTH).audited().arguments(FAULTS).mem(Memory::mib(320)).seconds(60),
    row("guest_realm", MAX).audited().arguments(FAULTS).smp(1).mem(Memory::mib(320)).seconds(90),
    row("guest_mte", MAX).audited().arguments(FAULTS).smp(1).mem(Memory::mib(320)).seconds(90),
    row("ram", MAX).audited(),
    row("host_mte", BOTH).audited(),
    row("host_mte", MAX).checked(),
    row("poweroff", MAX).audited().expect(Expect::PassBy(Ending::PowerOff)),
    row("reset", MAX).audited().expect(Expect::PassBy(Ending::Reset)),
    row("race", BOTH).checked().mem(SMALL).seconds(60),
    row("campaign", BOTH).checked().mem(SMALL).seconds(120),
    row("smoke", BOTH).checked(),
    row("calls", BOTH).checked(),
    row("share", BOTH).checked(),
    row("lend", BOTH).checked().seconds(60),
    row("smp", BOTH).checked().seconds(60),
    row("guard", BOTH).audited(),
    row("guard", BOTH).checked().mem(SMALL).seconds(60),
    row("guest_hello", GUESTS),
    row("guest_memory", GUESTS),
    row("guest_share", GUESTS),
    row("guest_realm", GUESTS),
    row("guest_smp", GUESTS).seconds(40),
    row("guest_smp", BOTH).smp(8).seconds(60),
    row("guest_timer", GUESTS),
    row("guest_fp", GUESTS),
    row("guest_keys", GUESTS),
    row("guest_mte", GUESTS).seconds(40),
    row("guest_mte", MAX).arguments(NO_TAGS).seconds(40),
    row("guest_mte", MAX).arguments(CONSERVATIVE).seconds(40),
    row("guest_mte", MAX).arguments(NO_TAGS).checked().mem(SMALL).seconds(120),
    row("guest_mte", MAX).arguments(CONSERVATIVE).checked().mem(SMALL).seconds(120),
    row("guest_two_vms", GUESTS),
    row("guest_traps", GUESTS),
    row("guest_protect", GUESTS),
    row("guest_vcpu", GUESTS),
    row("guest_vcpu", BOTH).smp(1),
    row("guest_handles", GUESTS),
    row("guest_replies", GUESTS),
    row("guest_donate", GUESTS),
    row("guest_race", GUESTS).seconds(40),
    row("guest_kill", GUESTS).seconds(40),
    Row { reboot: true, ..row("guest_reset", GUESTS) },
    Row { reboot: true, ..row("guest_reset", MAX).checked().mem(SMALL) },
    row("endurance", BOTH).audited().mem(Memory::mib(256)).seconds(90),
    row("realm_end", BOTH).audited().mem(Memory::gib(2)).seconds(120),
    row("guest_hello", BOTH).checked().mem(SMALL),
    row("guest_memory", BOTH).checked().mem(SMALL),
    row("guest_share", BOTH).checked().mem(SMALL),
    row("guest_realm", BOTH).checked().mem(SMALL).seconds(90),
    row("guest_smp", BOTH).checked().mem(SMALL).seconds(90),
    row("guest_timer", BOTH).checked().mem(SMALL),
    row("guest_fp", BOTH).checked().mem(SMALL),
    row("guest_keys", BOTH).checked().mem(SMALL),
    row("guest_two_vms", BOTH).checked().mem(SMALL).seconds(60),
    row("guest_traps", BOTH).checked().mem(SMALL),
    row("guest_protect", BOTH).checked().mem(SMALL),
    row("guest_vcpu", BOTH).checked().mem(SMALL),
    row("guest_handles", BOTH).checked().mem(SMALL),
    row("guest_replies", BOTH).checked().mem(SMALL),
    row("guest_donate", BOTH).checked().mem(SMALL),
    row("guest_hostile", BOTH).checked().mem(SMALL).seconds(120),
    row("guest_race", BOTH).checked().mem(SMALL).seconds(60),
    row("guest_kill", BOTH).checked().mem(SMALL).seconds(90),
    Row { semihosting: true, ..row("smoke", A72).smp(2) },
    Row { semihosting: true, ..row("unknown", A72).expect(Expect::Fail) },
];

/// A machine that is wrong in one way, and what the hypervisor says about it.
struct Wrong {
    name: &'static str,
    twist: Twist,
    words: &'static str,
}

const fn wrong(name: &'static str, twist: Twist, words: &'static str) -> Wrong {
    Wrong { name, twist, words }
}

const WRONG: &[Wrong] = &[
    wrong("host::no_image", Twist::NoHost, "no host kernel"),
    wrong("host::short_image", Twist::HostImage(|image| image.truncate(60)), "too short for an arm64 Image"),
    wrong(
        "host::cut_in_its_header",
        Twist::HostImage(|image| image.truncate(63)),
        "too short for an arm64 Image",
    ),
    wrong("host::cut_at_once", Twist::HostImage(|image| image.truncate(1)), "too short for an arm64 Image"),
    wrong("host::wrong_magic", Twist::HostImage(|image| poke(image, 56, *b"MZ\0\0")), "not an arm64 Image"),
    wrong("host::no_size", Twist::HostImage(|image| poke(image, 16, [0; 8])), "gives no size"),
    wrong(
        "host::larger_than_ram",
        Twist::HostImage(|image| poke(image, 16, (1_u64 << 40).to_le_bytes())),
        "is not in RAM",
    ),
    wrong(
        "host::past_the_end",
        Twist::HostImage(|image| poke(image, 16, u64::MAX.to_le_bytes())),
        "pass the end of the address space",
    ),
    // What is no part of the file is the host's too, and QEMU does not see it.
    wrong(
        "host::over_the_tree",
        Twist::HostImage(|image| poke(image, 16, 0x0d00_0000_u64.to_le_bytes())),
        "overlaps device tree [0x48000000",
    ),
    wrong("tree::none", Twist::X0(0), "no device tree"),
    wrong("tree::unaligned_address", Twist::X0(crate::placed::TREE_AT | 4), "no device tree"),
    wrong("tree::not_a_tree", Twist::TreeBytes(|blob| poke(blob, 0, *b"\0\0\0\0")), "no device tree"),
    wrong("tree::size_beyond_the_limit", Twist::TreeBytes(|blob| poke(blob, 4, [0xff; 4])), "no device tree"),
    wrong("tree::structure_outside", Twist::TreeBytes(|blob| poke(blob, 8, [0x7f, 0, 0, 0])), "device tree"),
    wrong("tree::strings_outside", Twist::TreeBytes(|blob| poke(blob, 12, [0x7f, 0, 0, 0])), "device tree"),
    wrong("tree::unknown_token", Twist::TreeBytes(break_structure), "device tree"),
    wrong("tree::no_memory", Twist::Tree(no_memory), "no memory node"),
    wrong("tree::no_cpus", Twist::Tree(no_cpus), "no CPU node"),
    wrong("tree::no_psci", Twist::Tree(no_psci), "no PSCI"),
    wrong("tree::no_gic", Twist::Tree(no_gic), "no GICv3"),
    wrong("tree::no_console", Twist::Tree(no_console), "stdout-path"),
    wrong("tree::overlapping_memory", Twist::Tree(overlapping_memory), "overlap"),
    wrong(
        "arguments::no_tags_malformed",
        Twist::Arguments("no-tags=0x60000000"),
        "no-tags=0x60000000 is not no-tags=START,SIZE",
    ),
    wrong(
        "arguments::no_tags_outside_ram",
        Twist::Arguments("no-tags=0x1000,0x1000"),
        "no-tags: [0x1000, 0x2000) is not in RAM",
    ),
    wrong("tree::too_many_memory_regions", Twist::Tree(|tree| scattered_memory(tree, 129)), "more than 128"),
];

/// What Debian's Linux does as the host, and the scenario that must come to its end.
struct LinuxRun {
    name: &'static str,
    run: Run,
    scenario: &'static str,
    features: &'static [&'static str],
    /// RAM in MiB.
    mem: u32,
}

const LINUX_RUNS: &[LinuxRun] = &[
    LinuxRun { name: "linux", run: Run::Checks(Effort::Short), scenario: LINUX, features: &[], mem: 256 },
    // Hibernation needs room for a copy of what is in use.
    LinuxRun {
        name: "linux::driver",
        run: Run::Driver,
        scenario: LINUX,
        features: &DRIVER_FEATURES,
        mem: 384,
    },
    LinuxRun { name: "linux::kexec", run: Run::Kexec, scenario: "ram", features: &[], mem: 256 },
];

/// A hypervisor that goes wrong while it handles an abort of the host.
struct Defect {
    name: &'static str,
    code: &'static [u32],
}

const DEFECTS: &[Defect] = &[
    Defect { name: "panic::undefined_instruction", code: &[0] },
    // stp xzr, xzr, [sp, #-16]!, again and again: into the guard page. The panic needs another stack.
    Defect { name: "panic::stack_overflow", code: &[0xa9bf_7fff, 0x17ff_ffff] },
];
const DEFECTIVE: &str = "::map_largest";
/// What the backtrace must name then, innermost first.
const STACK: &[&str] = &["map_largest", "demand", "host_abort"];

/// A machine that lacks a CPU, and what the console must say of it and of the others.
const LOST: &[(&str, u32, Twist, &[&str])] = &[
    (
        "machine::cpu_that_firmware_refuses",
        3,
        Twist::Tree(crate::tree::one_cpu_more),
        &[
            "rampart: warn: firmware does not start CPU 3 (MPIDR 0x3): status -2",
            "@pass CPU 3 is refused, and may be asked for again",
            "@pass CPU 1 beside those that are lost reaches EL2",
            "@pass CPU 2 beside those that are lost reaches EL2",
        ],
    ),
    (
        "machine::cpus_that_never_arrive",
        3,
        // wfe, again and again: on, and never in the relay.
        Twist::Defect("::boot::secondary", &[0xd503_205f, 0x17ff_ffff]),
        &[
            "rampart: warn: CPU 1 (MPIDR 0x1) was started, and has not arrived",
            "rampart: warn: CPU 2 (MPIDR 0x2) was started, and has not arrived",
            "@pass CPU 1 never arrives, and who asks for it is told to wait",
            "@pass CPU 2 never arrives, and who asks for it is told to wait",
        ],
    ),
];

/// A machine that is odd but right, and what is run there.
const ODD: &[(&str, &str, Twist)] = &[
    ("loaded_elsewhere", "smoke", Twist::Tree(|_| Ok(()))),
    ("ram_edge_inside_a_page", "share", Twist::Tree(ram_edge_inside_a_page)),
    ("ram_edge_inside_a_page_touched", "ram", Twist::Tree(ram_edge_inside_a_page)),
    ("ram_with_holes", "share", Twist::Tree(|tree| scattered_memory(tree, 128))),
    ("ram_with_holes_filled", "ram", Twist::Tree(|tree| scattered_memory(tree, 128))),
];

/// What Linux takes longest for: on one kind of CPU each, and first, as what is left at the end leaves a CPU idle.
const LONG: [(&str, Story, &str); 3] = [
    ("max", Story::Hostile, HOSTILE),
    ("cortex-a72", Story::Together, TOGETHER),
    ("cortex-a72", Story::Ended, ENDED),
];

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (cpu, story, scenario) in LONG {
        let twist = Twist::Guest(Guest { story, ..GUEST });
        let case = Case { cpu, smp: 3, features: AUDITED, twist, seconds: 240, ..case(scenario) };
        cases.push(named(scenario, case));
    }
    for row in ROWS {
        cases.extend(row.cpus.iter().map(|cpu| {
            let case = Case {
                cpu,
                smp: row.smp,
                mem: row.mem,
                semihosting: row.semihosting,
                reboot: row.reboot,
                features: row.features,
                twist: if row.arguments.is_empty() { Twist::None } else { Twist::Arguments(row.arguments) },
                expect: row.expect,
                seconds: row.seconds,
                ..case(row.scenario)
            };
            named(row.scenario, case)
        }));
    }
    for cpu in BOTH {
        for (odd, scenario, twist) in ODD {
            let case = Case { cpu, twist: *twist, ..case(scenario) };
            cases.push(named(&format!("machine::{odd}"), case));
        }
        for (name, smp, twist, words) in LOST {
            let expect = Expect::PassSaying(words);
            cases.push(named(name, Case { cpu, smp: *smp, twist: *twist, expect, ..case("lost_cpus") }));
        }
        for Defect { name, code } in DEFECTS {
            let expect = Expect::Panic { reason: "synchronous exception at EL2", functions: STACK };
            cases.push(named(
                name,
                Case { cpu, twist: Twist::Defect(DEFECTIVE, code), expect, ..case("smoke") },
            ));
        }
    }
    for cpu in BOTH {
        // Only the exit status can say that it passed.
        let (twist, expect) = (Twist::DeadConsole, Expect::Silence);
        cases.push(named(
            "machine::dead_console",
            Case { cpu, twist, expect, semihosting: true, ..case("smoke") },
        ));
    }
    for cpu in BOTH {
        let twist = Twist::Arguments("inject=functions");
        cases.push(named("machine::own_functions", Case { cpu, twist, features: AUDITED, ..case("smoke") }));
    }
    for cpu in BOTH {
        for LinuxRun { name, run, scenario, features, mem } in LINUX_RUNS {
            let (twist, expect) = (Twist::Linux(*run), Expect::PassBy(Ending::PowerOff));
            let case =
                Case { cpu, mem: Memory::mib(*mem), seconds: 120, twist, expect, features, ..case(scenario) };
            cases.push(named(name, case));
        }
    }
    for cpu in GUESTS {
        // Counted, as the time that a guest waits for costs nothing then; with two CPUs there is no counting.
        let plain = Twist::Guest(Guest { vcpus: 1, ..GUEST });
        let plain = Case { cpu, smp: 1, icount: true, twist: plain, seconds: 60, ..case(GUEST_LINUX) };
        cases.push(named(&format!("{GUEST_LINUX}::plain"), plain));
        let realm = Twist::Guest(Guest { realm: true, ..GUEST });
        let realm = Case { cpu, smp: 2, twist: realm, seconds: 120, ..case(GUEST_LINUX) };
        cases.push(named(&format!("{GUEST_LINUX}::realm"), realm));
    }
    for Wrong { name, twist, words } in WRONG {
        cases.push(named(name, Case { twist: *twist, expect: Expect::Refusal(words), ..case("smoke") }));
    }
    cases
}

fn case(scenario: &'static str) -> Case {
    Case {
        name: String::new(),
        scenario,
        cpu: "max",
        smp: DEFAULT_SMP,
        mem: GIB,
        icount: false,
        semihosting: false,
        reboot: false,
        features: &[],
        twist: Twist::None,
        expect: Expect::Pass,
        seconds: DEFAULT_SECONDS,
    }
}

/// `case` with the name `boot::what[cpu]`, and in the brackets what differs from 4 CPUs, 1 GiB and no features.
fn named(what: &str, case: Case) -> Case {
    let mut machine = case.cpu.to_owned();
    if case.smp != DEFAULT_SMP {
        machine.push_str(&format!(",smp={}", case.smp));
    }
    if case.mem != GIB {
        machine.push_str(&format!(",mem={}", case.mem.to_string().replace(' ', "")));
    }
    for feature in case.features {
        machine.push(',');
        machine.push_str(feature.trim_start_matches("hyp/"));
    }
    if let Twist::Arguments(words) = case.twist {
        words
            .split(' ')
            .for_each(|word| machine.push_str(&format!(",{}", word.split(',').next().unwrap_or(word))));
    }
    Case { name: format!("boot::{what}[{machine}]"), ..case }
}

/// Overwrites bytes; a file that is too short stays as it is, and its case fails.
fn poke<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = value;
    }
}

/// Puts a token that does not exist in place of the first property of the root.
fn break_structure(blob: &mut [u8]) {
    let structure = blob.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |at| u32::from_be_bytes(*at));
    // The root's FDT_BEGIN_NODE and its empty name take 8 bytes.
    poke(blob, usize::try_from(structure).unwrap_or(0).saturating_add(8), *b"\0\0\0\x77");
}

fn remove(tree: &mut DeviceTree, prefix: &str) -> Result<()> {
    let name = child_name(tree, prefix)?;
    tree.root.remove_child(&name).map(drop).context("no such node")
}

fn no_memory(tree: &mut DeviceTree) -> Result<()> {
    remove(tree, "memory@")
}

fn no_cpus(tree: &mut DeviceTree) -> Result<()> {
    for cpu in 0..DEFAULT_SMP {
        node(tree, "/cpus")?.remove_child(&format!("cpu@{cpu}")).context("no such CPU")?;
    }
    Ok(())
}

fn no_psci(tree: &mut DeviceTree) -> Result<()> {
    remove(tree, "psci")
}

fn no_gic(tree: &mut DeviceTree) -> Result<()> {
    remove(tree, "intc@")
}

fn no_console(tree: &mut DeviceTree) -> Result<()> {
    unset(node(tree, "/chosen")?, "stdout-path")
}

fn overlapping_memory(tree: &mut DeviceTree) -> Result<()> {
    let (start, size) = memory(tree)?;
    let middle = start.saturating_add(size >> 1);
    set_memory(tree, &[(start, size), (middle, size)])
}

/// The last page is there for its first half only.
fn ram_edge_inside_a_page(tree: &mut DeviceTree) -> Result<()> {
    let (start, size) = memory(tree)?;
    set_memory(tree, &[(start, size.saturating_sub(0x800))])
}

/// The same RAM in `count` pieces: a hole of 3 KiB at the start of each of the last MiBs.
fn scattered_memory(tree: &mut DeviceTree, count: u64) -> Result<()> {
    let (start, size) = memory(tree)?;
    let (hole, step) = (0xc00, 1_u64 << 20);
    let end = start.saturating_add(size);
    let cuts = (1..count).rev().map(|n| end.saturating_sub(step.saturating_mul(n)));
    let starts = std::iter::once(start).chain(cuts.clone().map(|cut| cut.saturating_add(hole)));
    let ends = cuts.chain(std::iter::once(end));
    let ranges = starts.zip(ends).map(|(start, end)| (start, end.saturating_sub(start)));
    // Every other range in a node of its own: all nodes count, in any order.
    let (own, shared): (Vec<_>, Vec<_>) = ranges.enumerate().partition(|(n, _)| n % 2 == 1);
    let shared: Vec<(u64, u64)> = shared.into_iter().map(|(_, range)| range).collect();
    set_memory(tree, &shared)?;
    for (_, range) in own {
        let mut node = DeviceTreeNode::new(format!("memory@{:x}", range.0)).map_err(anyhow::Error::msg)?;
        set(&mut node, "device_type", b"memory\0".to_vec())?;
        set(&mut node, "reg", crate::tree::reg(&[range]))?;
        tree.root.add_child(node);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_scenario_of_the_host_is_booted_on_both_kinds_of_cpu() {
        // What only measures is booted by `bench --check`.
        let measures = |name: &str| bench::figures::SECTIONS.iter().any(|section| section.scenario == name);
        for scenario in host_shim::scenarios::SCENARIOS.iter().filter(|scenario| !measures(scenario.name)) {
            let long = LONG.iter().find(|(.., name)| *name == scenario.name).map(|(cpu, ..)| vec![*cpu]);
            for cpu in long.unwrap_or_else(|| BOTH.to_vec()) {
                let covers = |case: &Case| case.scenario == scenario.name && case.cpu == cpu;
                assert!(cases().iter().any(covers), "{} is not booted on {cpu}", scenario.name);
            }
        }
    }

    #[test]
    fn every_case_names_a_scenario_of_the_host() {
        let known: BTreeSet<&str> = host_shim::scenarios::SCENARIOS.iter().map(|s| s.name).collect();
        let of_the_shim = |case: &Case| case.expect != Expect::Fail && case.scenario != LINUX;
        for case in cases().into_iter().filter(of_the_shim) {
            assert!(known.contains(case.scenario), "{} runs no known scenario: {}", case.name, case.scenario);
        }
    }

    #[test]
    fn names_are_distinct_and_say_what_is_special() {
        crate::case::check_names(&cases()).unwrap();
        assert!(
            cases().iter().all(|case| case.name.contains('[')),
            "scripts/test.sh tells boots by the bracket"
        );
        assert_eq!(named("smoke", case("smoke")).name, "boot::smoke[max]");
        let special =
            Case { cpu: "cortex-a72", smp: 8, mem: Memory::gib(16), features: &["hyp/spec"], ..case("b") };
        assert_eq!(named("a::b", special).name, "boot::a::b[cortex-a72,smp=8,mem=16GiB,spec]");
    }
}
