//! The pointer authentication keys of this CPU. The shim is compiled without pointer authentication,
//! so nothing else ever uses them.

use aarch64_cpu::registers::{ID_AA64ISAR1_EL1, Readable};
use core::arch::asm;

macro_rules! keys {
    ($($number:literal $name:literal)*) => {
        fn set(seed: u64) {
            $(
                // SAFETY: no Rust code depends on a key.
                unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) seed ^ $number, options(nostack)) };
            )*
        }

        fn hold(seed: u64) -> bool {
            let mut held = true;
            $(
                let word: u64;
                // SAFETY: reading a key has no side effect.
                unsafe { asm!(concat!("mrs {}, ", $name), out(reg) word, options(nomem, nostack)) };
                held &= word == seed ^ $number;
            )*
            held
        }
    };
}

keys! {
    1 "S3_0_C2_C1_0" 2 "S3_0_C2_C1_1" 3 "S3_0_C2_C1_2" 4 "S3_0_C2_C1_3"
    5 "S3_0_C2_C2_0" 6 "S3_0_C2_C2_1" 7 "S3_0_C2_C2_2" 8 "S3_0_C2_C2_3"
    9 "S3_0_C2_C3_0" 10 "S3_0_C2_C3_1"
}

/// True if the CPU has keys (FEAT_PAuth).
fn exist() -> bool {
    let isar2: u64;
    // SAFETY: reading an ID register has no side effect; one that is not allocated reads 0.
    unsafe { asm!("mrs {}, S3_0_C0_C6_2", out(reg) isar2, options(nomem, nostack)) };
    ID_AA64ISAR1_EL1.get() & 0xff00_0ff0 != 0 || isar2 & 0xff00 != 0
}

/// Sets the keys, if there are any, to words made of `seed`.
pub(super) fn fill(seed: u64) {
    if exist() {
        set(seed);
    }
}

/// True if they are what [`fill`] set, or do not exist.
pub(super) fn holds(seed: u64) -> bool {
    !exist() || hold(seed)
}
