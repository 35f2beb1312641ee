//! Every scenario passes on a model of a right EL2, and fails on one that breaks the rule it is about.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "in a test a panic is a verdict"
)]

mod model;

use dtoolkit::fdt::Fdt;
use host_shim::Ending;
use host_shim::board::{Board, BusMaster, Conduit};
use host_shim::scenarios::SCENARIOS;
use model::{Bug, LAYOUT, device_tree, run, span};

#[test]
fn every_scenario_passes_on_a_right_hypervisor() {
    // The model has no world switch: what runs guests is for whole machines.
    for scenario in SCENARIOS.iter().filter(|scenario| !scenario.guests) {
        let (ending, passed, lines) = run(scenario.name, Bug::None);
        assert!(passed, "{}: {lines:#?}", scenario.name);
        assert_eq!(ending, scenario.ending.unwrap_or(Ending::PowerOff));
        assert_eq!(lines.first(), Some(&format!("@begin {}", scenario.name)));
        assert!(lines.last().unwrap().starts_with(&format!("@end {} passed=", scenario.name)), "{lines:?}");
    }
}

#[test]
fn every_broken_rule_is_seen() {
    let table = [
        (Bug::CallClobbersX9, "calls"),
        (Bug::CallLeavesX2, "share"),
        (Bug::UnknownCallClearsX1, "calls"),
        (Bug::HvcImmediateIgnored, "calls"),
        (Bug::HvcHighBitsIgnored, "calls"),
        (Bug::HvcHintUnknown, "calls"),
        (Bug::StubCallsAnswered, "calls"),
        (Bug::ShareTwice, "share"),
        (Bug::ShareTwice, "demo"),
        (Bug::UnshareOfUnshared, "share"),
        (Bug::DeviceIsEperm, "share"),
        (Bug::RangeBeforeSize, "share"),
        (Bug::PartialPageIsMemory, "share"),
        (Bug::LendWhatItCan, "share"),
        (Bug::LentPageReachable, "lend"),
        (Bug::LentPageReachable, "demo"),
        (Bug::ComesBackDirty, "lend"),
        (Bug::ComesBackDirty, "demo"),
        (Bug::ComesBackDirty, "smp"),
        (Bug::CarveoutGivenAway, "lend"),
        (Bug::CarveoutLoad, "carveout_load"),
        (Bug::CarveoutStore, "carveout_store"),
        (Bug::CarveoutFetch, "carveout_fetch"),
        (Bug::CarveoutWalk, "carveout_load"),
        (Bug::TranslationFault, "carveout_load"),
        (Bug::TranslationFault, "carveout_store"),
        (Bug::TranslationFault, "carveout_fetch"),
        (Bug::FwCfgReachable, "fwcfg_dma"),
        (Bug::FwCfgReachable, "withheld"),
        (Bug::FwCfgEnabled, "withheld"),
        (Bug::VirtioReachable, "withheld"),
        (Bug::SmcImmediateIgnored, "psci"),
        (Bug::Smc32CpuOn, "psci"),
        (Bug::UnknownSmcClobbersX3, "psci"),
        (Bug::SuspendDenied, "psci"),
        (Bug::AnyMpidrStarts, "psci"),
        (Bug::RunningCpuStarts, "psci"),
        (Bug::SecondaryWithoutStage2, "psci"),
        (Bug::SecondaryWithoutStage2, "demo"),
        (Bug::MemoryAliases, "ram"),
        (Bug::LastByteMissing, "ram"),
        (Bug::RaceHasTwoWinners, "smp"),
        (Bug::NotCounting, "cost"),
        (Bug::AuditInRelease, "calls"),
        (Bug::AuditFinds, "smoke"),
        (Bug::AuditFinds, "campaign"),
        (Bug::PageLost, "smoke"),
        (Bug::CensusDrifts, "smoke"),
        (Bug::FaultIgnored, "faults"),
        (Bug::FaultLeavesPageLent, "faults"),
        (Bug::FaultOtherErrno, "faults"),
        (Bug::SiteSkipped, "faults"),
        (Bug::AuditInRelease, "faults"),
        (Bug::RaceHasTwoWinners, "race"),
        (Bug::CallLeavesX2, "campaign"),
    ];
    for (bug, scenario) in table {
        let (_, passed, lines) = run(scenario, bug);
        assert!(!passed, "{scenario} does not see {bug:?}: {lines:#?}");
        assert!(lines.iter().any(|l| l.starts_with("@fail ")), "{lines:?}");
    }
}

#[test]
fn calls_that_are_made_to_fail_change_nothing_and_what_they_change_is_seen() {
    let (_, passed, lines) = run("lend faults", Bug::None);
    assert!(passed, "{lines:#?}");
    for site in ["DONATE_CHECK", "HOST_PREPARE", "HOST_POOL_ALLOC"] {
        let made = format!("@step made to fail: {site} in HOST_DONATE_HYP: ");
        assert!(lines.iter().any(|line| line.starts_with(&made)), "{lines:#?}");
    }
    for bug in [Bug::FaultLeavesPageLent, Bug::FaultOtherErrno, Bug::CensusDrifts] {
        let (_, passed, lines) = run("lend faults", bug);
        assert!(!passed, "{bug:?}: {lines:#?}");
        assert!(
            lines.iter().any(|line| line.starts_with("@step complaint: HOST_DONATE_HYP: ")),
            "{lines:#?}"
        );
    }
}

#[test]
fn fw_cfg_dma_overwrites_memory_where_it_is_not_withheld() {
    let (_, passed, lines) = run("fwcfg_dma", Bug::FwCfgReachable);
    assert!(!passed);
    assert!(lines.iter().any(|l| l.contains("it was overwritten")), "{lines:#?}");
}

#[test]
fn a_page_in_use_is_seen_to_stay() {
    let name = "a page in use does not come back";
    let (_, _, lines) = run("lend", Bug::None);
    assert!(lines.contains(&format!("@pass {name}")), "{lines:#?}");
    let (_, _, lines) = run("lend", Bug::UsedPageGivenBack);
    assert!(!lines.contains(&format!("@pass {name}")), "{lines:#?}");
}

#[test]
fn an_unknown_scenario_is_a_failure() {
    let (ending, passed, lines) = run("nonsense", Bug::None);
    assert_eq!((ending, passed), (Ending::PowerOff, false));
    assert_eq!(
        lines,
        ["@begin nonsense", "@fail unknown scenario: nonsense", "@end nonsense passed=0 failed=1"]
    );
}

#[test]
fn the_board_is_what_the_tree_says() {
    let dtb = device_tree(Bug::None, "scenario=x semihosting");
    let board = Board::read(Fdt::new(&dtb).unwrap()).unwrap();
    let [ram, more, carveout] = LAYOUT.map(span);
    assert_eq!(board.ram.as_slice(), [ram, more]);
    assert_eq!(board.carveouts().collect::<Vec<_>>(), [carveout]);
    assert_eq!(board.cpus.as_slice(), [0, 1, 2, 3]);
    assert_eq!(board.conduit, Some(Conduit::Smc));
    assert_eq!(board.console, Some(0x900_0000));
    assert_eq!(board.initrd, Some(span((0x4400_0000, 0x1800))));
    assert_eq!(board.bootargs, "scenario=x semihosting");
    let devices: Vec<_> = board.devices.iter().map(|d| (d.span.start(), d.bus_master, d.disabled)).collect();
    assert_eq!(
        devices,
        [
            (0x902_0000, Some(BusMaster::FwCfg), true),
            (0xa00_0000, Some(BusMaster::VirtioMmio), true),
            (0x808_0000, Some(BusMaster::Its), true),
        ]
    );
    let gic = board.gic.as_ref().unwrap();
    assert_eq!((gic.distributor, gic.timer, gic.guest_timer), (0x800_0000, 30, 27));
    assert_eq!(gic.redistributors.as_slice(), [(0x80a_0000, 0x4_0000), (0x40_0000_0000, 0x4_0000)].map(span));
    let pages = board.free_pages(&[span((0x4020_0000, 0x10_0000))]).unwrap();
    for used in [0x4020_0000, 0x402f_ffff, 0x4400_0000, 0x4400_17ff, 0x4800_0000, 0x5010_0000, 0x9020_0400] {
        assert!(!pages.spans().any(|s| s.contains(used)), "{used:#x}");
    }
    for free in [0x4000_0000, 0x4030_0000, 0x4400_2000, 0x5020_0000, 0x6fff_ffff, 0x9000_0000, 0x901f_ffff] {
        assert!(pages.spans().any(|s| s.contains(free)), "{free:#x}");
    }
}

#[test]
fn the_document_lists_every_scenario() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scenarios.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| `")).collect();
    let want: Vec<String> = SCENARIOS.iter().map(|s| format!("| `{}` | {} |", s.name, s.about)).collect();
    assert_eq!(rows, want);
}
