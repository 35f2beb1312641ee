//! `docs/coverage.md`: which answers of which calls campaigns have met, and why the others have not been.

use crate::campaign::Coverage;
use abi::Errno::{
    self, Eacces, Eagain, Ebusy, Eexist, Ehwpoison, Einval, Eio, Enoent, Enomem, Eopnotsupp, Eperm, Erange,
};
use abi::HostFn;
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Where what is written stands in a page.
const BEGIN: &str = "<!-- begin: xtask coverage -->\n";
const END: &str = "<!-- end: xtask coverage -->\n";
/// The page with the table, and one that says what it comes to.
const PAGE: &str = "docs/coverage.md";
const SUMMARY: &str = "docs/testing.md";
const HEADER: &str = "| call | answers, with their number | never, and where else |\n|---|---|---|\n";

/// Answers that campaigns seldom or never meet: why, or which test meets them.
const ELSEWHERE: &[(HostFn, Errno, &str)] = &[
    (HostFn::HostDonateHyp, Enomem, "scenario `faults`"),
    (HostFn::HypDonateHost, Ebusy, "scenario `lend`"),
    (HostFn::VmCreate, Ebusy, "`there_are_as_many_vms_as_the_interface_says`"),
    (HostFn::VmCreate, Erange, VM_ARGUMENTS),
    (HostFn::VmCreate, Eopnotsupp, "`a_policy_needs_the_cpu_that_can_keep_it`"),
    (HostFn::VcpuCreate, Enoent, VCPU_ARGUMENTS),
    (HostFn::VcpuCreate, Eexist, VCPU_ARGUMENTS),
    (HostFn::VcpuCreate, Erange, VCPU_ARGUMENTS),
    (HostFn::VmFinalise, Eagain, "`r_04_nothing_changes_between_two_steps_of_finalise`"),
    (HostFn::VmTeardownFinish, Enoent, NO_VM),
    (HostFn::ReclaimDying, Enoent, NO_VM),
    (HostFn::ReclaimDying, Eacces, PHASES),
    (HostFn::ReclaimDying, Ebusy, PHASES),
    (
        HostFn::ReclaimDying,
        Erange,
        "`the_arguments_of_giving_and_taking_are_checked_in_order`, once it is DYING",
    ),
    (HostFn::VmPopulate, Eacces, PHASES),
    (HostFn::UnprotMap, Eexist, "`p_14_a_page_may_be_there_twice_for_one_vm_and_not_for_two`"),
    (HostFn::GuestWrprotect, Enoent, NO_VM),
    (HostFn::GuestAge, Enoent, NO_VM),
    (HostFn::GuestAge, Eacces, PHASES),
    (HostFn::VcpuRun, Enomem, "`an_answer_that_lacks_table_pages_says_how_many_and_may_come_again`"),
    (HostFn::VcpuRun, Eopnotsupp, "`on_a_machine_that_runs_no_guests_none_is_made_or_run`"),
    (HostFn::S2SnapshotQuery, Eio, "`s_17_a_corrupt_table_is_told_and_its_vm_lives_on`"),
    (HostFn::S2Snapshot, Eio, "`s_17_a_corrupt_table_is_told_and_its_vm_lives_on`"),
    (HostFn::VmReset, Eagain, "`g_19_a_vm_that_is_not_protected_is_guarded_from_its_enrolment_to_its_reset`"),
    (HostFn::VmInitRipas, Erange, "`r_03_malformed_ranges_are_refused_and_nothing_changes`"),
    (HostFn::VmInitRipas, Ehwpoison, "`r_16_a_page_taken_before_the_first_run_is_found_out`"),
    (HostFn::RipasApply, Enomem, "`r_20_a_request_goes_on_where_the_store_ran_dry`"),
    (HostFn::RipasApply, Erange, "`r_15_the_host_does_what_was_asked_for_and_nothing_more`"),
    (HostFn::MteUpgrade, Eperm, "`m_12_no_page_but_one_of_the_hosts_own_with_tags_becomes_the_guests`"),
    (HostFn::MteUpgrade, Enomem, "`m_09_a_block_is_split_only_if_the_vm_has_a_table_for_it`"),
    (HostFn::MteUpgrade, Einval, UPGRADE),
    (HostFn::MteUpgrade, Ehwpoison, UPGRADE),
    (HostFn::VmTagInfo, Einval, UPGRADE),
];
const NO_VM: &str = "`a_call_on_no_vm_is_enoent_whatever_the_handle`";
const PHASES: &str = "`each_call_has_its_phases_and_its_kind_of_vm`";
const VM_ARGUMENTS: &str = "`a_vm_is_refused_for_what_its_arguments_say_before_any_page_is_looked_at`";
const VCPU_ARGUMENTS: &str = "`a_vcpu_is_refused_for_its_arguments_then_its_vm_then_its_pages`";
const UPGRADE: &str = "`m_13_a_frame_without_such_a_page_is_refused_and_each_refusal_is_told_apart`";

/// The name of an answer in the page.
fn name(verdict: Result<(), Errno>) -> String {
    verdict.map_or_else(|errno| format!("{errno:?}").to_uppercase(), |()| "0".to_owned())
}

fn elsewhere(call: HostFn, verdict: Result<(), Errno>) -> Option<&'static str> {
    let errno = verdict.err()?;
    ELSEWHERE.iter().find(|(c, e, _)| (*c, *e) == (call, errno)).map(|(.., why)| *why)
}

/// The table.
///
/// # Errors
/// An answer was not met, and nothing is known about it.
pub fn table(coverage: &Coverage) -> Result<String> {
    let mut text = HEADER.to_owned();
    let mut unknown = Vec::new();
    for call in HostFn::ALL {
        let (mut met, mut never) = (Vec::new(), Vec::new());
        for (_, verdict) in Coverage::possible().filter(|(c, _)| *c == call) {
            let (count, name) = (coverage.count(call, verdict), name(verdict));
            match elsewhere(call, verdict) {
                _ if count > 0 => met.push(format!("{name} {count}")),
                Some(why) => never.push(format!("{name}: {why}")),
                None => unknown.push(format!("{} {name}", call.name())),
            }
        }
        writeln!(text, "| {} | {} | {} |", call.name(), met.join(", "), never.join("; "))?;
    }
    ensure!(unknown.is_empty(), "never met, and nobody says why: {}", unknown.join(", "));
    Ok(text)
}

/// Writes the table of these results of campaigns into its page, and what it comes to into the other.
///
/// # Errors
/// A result cannot be read, a page has no place for what is written, or see [`table`].
pub fn write(results: &[PathBuf]) -> Result<()> {
    let mut coverage = Coverage::default();
    let mut runs = Vec::new();
    for path in results {
        runs.push(coverage.add_result(path)?);
    }
    let reached = format!("{} of {} answers", coverage.reached(), Coverage::possible().count());
    let whole = format!("{reached}, in {}.\n\n{}", runs.join(" and "), table(&coverage)?);
    put(PAGE, [BEGIN, END], &whole)?;
    put(SUMMARY, [BEGIN, END], &summary(&reached))
}

/// What is said where the table is not.
fn summary(reached: &str) -> String {
    format!("Campaigns met {reached} that calls can give.\n")
}

/// Puts `text` between these two lines of a page.
///
/// # Errors
/// The page has no such lines, or cannot be read or written.
pub(crate) fn put(page: &str, [begin, end]: [&str; 2], text: &str) -> Result<()> {
    let path = crate::workspace().join(page);
    let old = fs::read_to_string(&path).with_context(|| format!("cannot read {page}"))?;
    let place = || format!("{page} has no {begin}");
    let (before, rest) = old.split_once(begin).with_context(place)?;
    let (_, after) = rest.split_once(end).with_context(place)?;
    fs::write(&path, format!("{before}{begin}{text}{end}{after}"))
        .with_context(|| format!("cannot write {page}"))
}

impl Coverage {
    /// Adds the result of a campaign; says which it was.
    fn add_result(&mut self, path: &Path) -> Result<String> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let result: serde_json::Value = serde_json::from_str(&text)?;
        let answers = result.get("answers").and_then(serde_json::Value::as_object);
        for (name, count) in answers.context("no answers")? {
            self.add_count(name, count.as_u64().context("no number")?);
        }
        let number = |key: &str| result.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let cpu = result.get("cpu").and_then(serde_json::Value::as_str).unwrap_or("?");
        Ok(format!(
            "{} boots and {} calls on {cpu} (seed {:#x})",
            number("boots"),
            number("calls"),
            number("seed")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, ELSEWHERE, END, HEADER, PAGE, SUMMARY, elsewhere, name, summary};
    use crate::campaign::Coverage;
    use abi::HostFn;
    use std::collections::BTreeSet;

    /// The answers that a cell names: what stands before a blank or a colon.
    fn answers(cell: &str, separator: &str) -> Vec<String> {
        let parts = cell.split(separator).filter(|part| !part.trim().is_empty());
        parts.map(|part| part.trim().split([' ', ':']).next().unwrap().to_owned()).collect()
    }

    /// What is written in a page.
    fn between(page: &str) -> String {
        let text = std::fs::read_to_string(crate::workspace().join(page)).unwrap();
        let (_, rest) = text.split_once(BEGIN).unwrap();
        rest.split_once(END).unwrap().0.to_owned()
    }

    #[test]
    fn both_pages_have_one_sum() {
        let page = between(PAGE);
        assert_eq!(between(SUMMARY), summary(page.split(',').next().unwrap()));
    }

    #[test]
    fn the_page_has_every_answer_of_every_call_once() {
        let table = between(PAGE);
        let rows: Vec<&str> = table.split_once(HEADER).unwrap().1.lines().collect();
        assert_eq!(rows.len(), HostFn::ALL.len());
        for (row, call) in rows.iter().zip(HostFn::ALL) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [title, met, never] = cells[..] else { panic!("{row}") };
            assert_eq!(title, call.name());
            let mut named = answers(met, ",");
            named.extend(answers(never, ";"));
            let want: Vec<String> =
                Coverage::possible().filter(|(c, _)| *c == call).map(|(_, verdict)| name(verdict)).collect();
            let sorted = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
            assert_eq!(sorted(&named), sorted(&want), "{title}");
            assert_eq!(named.len(), want.len(), "{title}: an answer is there twice");
            for part in never.split(';').filter(|part| !part.trim().is_empty()) {
                assert!(
                    part.split_once(':').is_some_and(|(_, why)| why.trim().len() > 10),
                    "{title}: {part}"
                );
            }
        }
    }

    #[test]
    fn what_is_said_to_be_elsewhere_is_an_answer_of_the_call() {
        for (call, errno, _) in ELSEWHERE {
            assert!(call.refusals().contains(errno), "{} {errno:?}", call.name());
            assert!(elsewhere(*call, Err(*errno)).is_some());
        }
    }

    /// All Rust sources below a folder.
    fn sources(folder: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn the_tests_that_meet_the_rest_are_there() {
        let mut text = String::new();
        for folder in ["hyp/tests", "host-shim/src/scenarios"] {
            sources(&crate::workspace().join(folder), &mut text);
        }
        for (_, _, why) in ELSEWHERE {
            if let Some(name) = why.split('`').nth(1) {
                let (test, scenario) = (format!("fn {name}()"), format!("\"{name}\""));
                assert!(text.contains(&test) || text.contains(&scenario), "{name}");
            }
        }
    }
}
