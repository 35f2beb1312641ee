//! Instructions that are tried where they abort: each with its address in x0.
#![forbid(unsafe_code)]

pub(super) const LDR: u32 = 0xf940_0000; // ldr x0, [x0]
pub(super) const STR: u32 = 0xf900_0000; // str x0, [x0]
pub(super) const LDP: u32 = 0xa940_0000 | 31 << 10; // ldp x0, xzr, [x0]
pub(super) const BR: u32 = 0xd61f_0000; // br x0
