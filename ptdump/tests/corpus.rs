//! Replays the corpus of the fuzzer: every file is an answer or an error.
#![allow(clippy::unwrap_used, reason = "a test says that it failed by a panic")]

#[test]
fn every_file_of_the_corpus_is_an_answer_or_an_error() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/dumps");
    let (mut answers, mut errors) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        match ptdump::read_all(std::fs::read(entry.unwrap().path()).unwrap()) {
            Ok(()) => answers += 1,
            Err(_) => errors += 1,
        }
    }
    assert!(answers > 0 && errors > 0, "{answers} answers, {errors} errors");
}
