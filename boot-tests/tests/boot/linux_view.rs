//! Linux sees the same machine with Rampart as without, but for what docs/linux-host.md lists.

use boot_tests::linux_view::compare;
use std::collections::BTreeSet;
use xtask::images::Build;
use xtask::qemu::Qemu;

/// How lines begin that are there with Rampart only. Each is there.
const WITH: &[&str] = &[
    "OF: reserved mem: 0x",
    "SMCCC: SOC_ID: ARCH_SOC_ID not implemented",
    "psci: SMC Calling Convention v1.2",
];
/// The same, without only.
const WITHOUT: &[&str] =
    &["OF: reserved mem: Reserved memory: No reserved-memory node", "psci: SMC Calling Convention v1.0"];

/// Every line begins in a known way, and each way is met.
fn begin_as(lines: &BTreeSet<String>, known: &[&str]) -> bool {
    lines.iter().all(|line| known.iter().any(|start| line.starts_with(start)))
        && known.iter().all(|start| lines.iter().any(|line| line.starts_with(start)))
}

/// Boots both machines with this CPU model.
pub(crate) fn linux_sees_the_same_with_and_without(cpu: &str) {
    let images = Build::default().run().unwrap();
    let found = compare(&Qemu::find().unwrap(), &images, cpu).unwrap();
    assert!(
        begin_as(&found.with, WITH) && begin_as(&found.without, WITHOUT),
        "only with: {:#?}\nonly without: {:#?}",
        found.with,
        found.without
    );
    // An empty list would be the same too.
    assert!(found.both > 100, "only {} lines", found.both);
}
