//! The table engine on the simulated machine: bytes are a CPU, a table and operations on it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use testkit::script::Script;

fuzz_target!(|bytes: &[u8]| {
    let _ = Script::from_bytes(bytes).run();
});
