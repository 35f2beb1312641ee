//! The virtual CPU interface of GICv3 (Arm IHI0069, ICH_* registers): list registers in, list
//! registers out.
//!
//! Invariant: while no guest is loaded ICH_HCR_EL2.En is 0 and every list register is 0.

use super::regs;
use hyp::guest::context::GicContext;

/// ICC_SRE_EL2 for the host: system registers, and EL1 may say so of itself.
const SRE_HOST: u64 = 0xf;
/// The same for a guest, without Enable: ICC_SRE_EL1 traps.
const SRE_GUEST: u64 = 0x7;

/// How much of the interface there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interface {
    /// Registers ICH_AP0R`n`_EL2, and as many ICH_AP1R`n`_EL2: 1, 2 or 4.
    active: u8,
}

/// ICH_VTR_EL2, which is there once EL2 uses system registers.
pub(super) fn vtr() -> u64 {
    regs::set_icc_sre_el2(SRE_HOST);
    regs::isb();
    regs::ich_vtr_el2()
}

impl Interface {
    /// Of this CPU, which has GICv3. PREbits, bits 28:26 of ICH_VTR_EL2, are the preemption bits
    /// minus one.
    pub(super) fn of_cpu() -> Self {
        let active = match vtr() >> 26 & 7 {
            0..=4 => 1,
            5 => 2,
            _ => 4,
        };
        Self { active }
    }
}

macro_rules! registers {
    ($($read:ident $write:ident: $($index:literal $name:literal)*;)*) => {$(
        /// Register `n`.
        #[inline]
        fn $read(n: usize) -> u64 {
            let value: u64;
            match n {
                // SAFETY: reading it has no side effect.
                $($index => unsafe {
                    core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags));
                },)*
                _ => value = 0,
            }
            value
        }

        /// Sets register `n`.
        #[inline]
        fn $write(n: usize, value: u64) {
            match n {
                // SAFETY: it is part of the virtual interface, which EL2 itself does not use.
                $($index => unsafe {
                    core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
                },)*
                _ => {}
            }
        }
    )*};
}

registers! {
    lr set_lr:
        0 "S3_4_C12_C12_0" 1 "S3_4_C12_C12_1" 2 "S3_4_C12_C12_2" 3 "S3_4_C12_C12_3"
        4 "S3_4_C12_C12_4" 5 "S3_4_C12_C12_5" 6 "S3_4_C12_C12_6" 7 "S3_4_C12_C12_7"
        8 "S3_4_C12_C13_0" 9 "S3_4_C12_C13_1" 10 "S3_4_C12_C13_2" 11 "S3_4_C12_C13_3"
        12 "S3_4_C12_C13_4" 13 "S3_4_C12_C13_5" 14 "S3_4_C12_C13_6" 15 "S3_4_C12_C13_7";
    ap0r set_ap0r: 0 "S3_4_C12_C8_0" 1 "S3_4_C12_C8_1" 2 "S3_4_C12_C8_2" 3 "S3_4_C12_C8_3";
    ap1r set_ap1r: 0 "S3_4_C12_C9_0" 1 "S3_4_C12_C9_1" 2 "S3_4_C12_C9_2" 3 "S3_4_C12_C9_3";
}

/// No guest is loaded, and the host's own interface is system registers.
pub(super) fn reset() {
    let list_registers = vtr() & 0x1f;
    regs::set_ich_hcr_el2(0);
    for n in 0..=usize::try_from(list_registers).unwrap_or(0) {
        set_lr(n, 0);
    }
}

/// Installs a guest's interface.
#[inline]
pub(super) fn load(interface: Interface, from: &GicContext) {
    regs::set_icc_sre_el2(SRE_GUEST);
    regs::set_ich_vmcr_el2(from.vmcr);
    let active = usize::from(interface.active);
    for (n, (&ap0, &ap1)) in from.ap0r.iter().zip(&from.ap1r).enumerate().take(active) {
        set_ap0r(n, ap0);
        set_ap1r(n, ap1);
    }
    for (n, &value) in from.used().iter().enumerate() {
        set_lr(n, value);
    }
    regs::set_ich_hcr_el2(from.hcr);
}

/// Saves it as the guest left it, and switches the interface off.
#[inline]
pub(super) fn unload(interface: Interface, to: &mut GicContext) {
    to.vmcr = regs::ich_vmcr_el2();
    let active = usize::from(interface.active);
    for (n, (ap0, ap1)) in to.ap0r.iter_mut().zip(&mut to.ap1r).enumerate().take(active) {
        *ap0 = ap0r(n);
        *ap1 = ap1r(n);
    }
    for (n, value) in to.used_mut().iter_mut().enumerate() {
        *value = lr(n);
        set_lr(n, 0);
    }
    regs::set_ich_hcr_el2(0);
    regs::set_icc_sre_el2(SRE_HOST);
}
