//! The table of scenarios in `docs/mte.md` names the tests that there are.

const DOC: &str = include_str!("../../../docs/mte.md");
const SOURCES: [&str; 6] = [
    include_str!("create.rs"),
    include_str!("faults.rs"),
    include_str!("give.rs"),
    include_str!("upgrade.rs"),
    include_str!("../../src/guest/exit.rs"),
    include_str!("../../../abi/tests/docs.rs"),
];

#[test]
fn every_scenario_of_the_document_has_its_tests_and_every_test_its_scenario() {
    let (_, section) = DOC.split_once("## Scenarios").unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("| M-"));
    let mut listed = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let prefix = format!("{}_", cells[0].to_lowercase().replace('-', "_"));
        for name in cells[2].split(", ").map(|name| name.trim_matches('`')) {
            assert!(name.starts_with(&prefix), "{name} in the row of {}", cells[0]);
            listed.push(name.to_owned());
        }
    }
    let mut there: Vec<String> = SOURCES
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.trim().strip_prefix("fn "))
        .filter(|line| line.starts_with("m_"))
        .map(|line| line.trim_end_matches("() {").to_owned())
        .collect();
    listed.sort();
    there.sort();
    assert_eq!(listed, there);
}
