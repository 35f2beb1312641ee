//! Any bytes as a dump file: an answer or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ptdump::read_all(bytes.to_vec());
});
