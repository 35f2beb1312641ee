//! Debian's Linux as a guest of the peer, up to its first process: what `xtask::linux_guest` makes a guest of Rampart.

use crate::operation::CPUS;
use crate::peer::{ALL, Entry, PROTECTED, Peer, boot, read};
use anyhow::Result;
use xtask::linux::Linux;
use xtask::linux_guest::disk_of;
use xtask::protocol::Report;
use xtask::qemu::Qemu;
use xtask::show::grouped;
use xtask::table::Table;

/// The program's words, and what such a guest is called.
const KINDS: [(&str, &str); 2] = [("linux", "plain"), ("linux,protected", "protected")];
/// Metrics, and what they are.
const FIGURES: [(&str, &str); 7] = [
    ("linux_until_init", "from KVM_RUN to the first process, us"),
    ("linux_el2", "EL2 instructions of that"),
    ("linux_exits", "exits to the host"),
    ("linux_exits_uart", "of these: UART"),
    ("linux_exits_gic", "of these: interrupt controller"),
    ("linux_exits_hvc", "of these: HVC"),
    ("linux_exits_wfi", "of these: WFI"),
];

/// Boots it on both CPU models, plain and protected.
#[must_use]
pub fn table(qemu: &Qemu) -> Table {
    let runs = CPUS.into_iter().flat_map(|cpu| KINDS.map(|(words, kind)| (cpu, words, kind)));
    let columns = runs.map(|(cpu, words, kind)| {
        let peer = Peer { cpu, mode: PROTECTED, padding: 0 };
        (format!("{cpu}, {kind}"), boot(qemu, &peer, words, files))
    });
    rows(&columns.collect::<Vec<_>>())
}

fn files(linux: &Linux) -> Result<Vec<Entry>> {
    Ok(vec![("guest/Image", read(&linux.kernel)?), ("guest/initrd", disk_of(linux)?)])
}

/// A column is a boot. Where there is no figure, its first row has the reason.
fn rows(columns: &[(String, Result<Report>)]) -> Table {
    let mut head = vec!["pKVM".to_owned()];
    head.extend(columns.iter().map(|(name, _)| name.clone()));
    let mut rows = vec![head];
    for (nth, (metric, name)) in FIGURES.into_iter().enumerate() {
        let mut row = vec![name.to_owned()];
        row.extend(columns.iter().map(|(_, report)| {
            figure(report, metric).or_else(|| reason(report).filter(|_| nth == 0)).unwrap_or("-".to_owned())
        }));
        rows.push(row);
    }
    Table { rows, words: 1 }
}

fn figure(report: &Result<Report>, name: &str) -> Option<String> {
    let metrics = &report.as_ref().ok()?.metrics;
    metrics.iter().find(|metric| metric.name == name).map(|metric| grouped(metric.value))
}

fn reason(report: &Result<Report>) -> Option<String> {
    match report {
        Ok(report) => {
            report.skipped.iter().find(|remark| remark.name == ALL).map(|remark| remark.reason.clone())
        }
        Err(error) => Some(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_has_its_figures_and_one_that_did_not_come_so_far_its_reason() {
        let columns = [
            (
                "a".to_owned(),
                Ok(Report::parse("@metric linux_until_init 2995218 us\n@metric linux_exits 7 exits\n")),
            ),
            ("b".to_owned(), Ok(Report::parse("@skip all: KVM_CREATE_VM: Invalid argument\n"))),
            ("c".to_owned(), Err(anyhow::anyhow!("no kernel"))),
        ];
        let table = rows(&columns).rows;
        assert_eq!(table[0], ["pKVM", "a", "b", "c"]);
        assert_eq!(table[1][1..], ["2 995 218", "KVM_CREATE_VM: Invalid argument", "no kernel"]);
        assert_eq!(table[3][1..], ["7", "-", "-"]);
    }
}
