//! The fuzzer's corpus, replayed: `fuzz/corpus/tables/` holds scripts worth keeping.
#![allow(clippy::unwrap_used, reason = "a test that panics says that it failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use testkit::action::Operation;
use testkit::script::Script;

#[test]
fn every_script_of_the_corpus_leaves_the_tables_as_the_model_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/tables");
    let mut done = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        let script = Script::from_bytes(&fs::read(&path).unwrap());
        assert!(!script.actions.is_empty(), "{} says nothing", path.display());
        let tally = script.run().into_iter();
        done.extend(tally.filter(|(_, (all, refused))| all > refused).map(|(name, _)| name));
    }
    // A change of the actions gives old files another meaning: then they are to be made again.
    let all: BTreeSet<&str> = Operation::NAMES.into();
    assert_eq!(done, all, "kinds of operation that the corpus does with success");
}
