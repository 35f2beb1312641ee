//! Links the bare-metal image with its own layout; other targets need nothing.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=../link/guest-shim.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let dir = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    // A static PIE: the image relocates itself. The prebuilt core library is not compiled as PIC, so
    // its read-only data holds addresses too ("notext" lets the linker emit relocations for those).
    for arg in ["-pie", "--no-dynamic-linker", "-znotext", "-zmax-page-size=4096"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-T{dir}/../link/guest-shim.ld");
}
