//! Passes the linker script to the EL2 image; other targets link as usual.
use std::env;

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = format!("{root}/../link/hyp.ld");
    println!("cargo:rerun-if-changed={script}");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        for arg in [
            &format!("-T{script}"),
            "-pie",
            "--no-dynamic-linker",
            "-Bsymbolic",
            "-zmax-page-size=4096",
            "-znotext",
        ] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
