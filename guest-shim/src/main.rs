//! The guest shim's image: the runtime in `arch`, whose `_start` the linker script names, and the
//! library's payloads. The host shim uses the library alone.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]
#![allow(
    clippy::arithmetic_side_effects,
    reason = "a test program: an overflow is a panic, the panic is reported, and that is a verdict"
)]

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod arch;

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    arch::panic(info)
}
