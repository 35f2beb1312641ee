//! The virtual CPU interface of GICv3 (Arm IHI0069, ICH_* registers): list registers in, list
//! registers out.
//!
//! Invariant: while no guest is loaded ICH_HCR_EL2.En is 0 and every list register is 0.

use super::regs;
use abi::exit::MAX_LRS;
use hyp::guest::context::GicContext;

/// ICC_SRE_EL2 for the host: system registers, and EL1 may say so of itself.
const SRE_HOST: u64 = 0xf;
/// The same for a guest, without Enable: ICC_SRE_EL1 traps.
const SRE_GUEST: u64 = 0x7;

/// How much of the interface there is: registers ICH_AP0R`n`_EL2, and as many ICH_AP1R`n`_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Interface {
    /// One of each: 5 bits of preemption.
    One,
    /// Two: 6 bits.
    Two,
    /// Four: 7 bits.
    Four,
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
        match vtr() >> 26 & 7 {
            0..=4 => Self::One,
            5 => Self::Two,
            _ => Self::Four,
        }
    }
}

macro_rules! register {
    ($read:ident $write:ident $name:literal) => {
        #[inline]
        fn $read() -> u64 {
            let value: u64;
            // SAFETY: reading it has no side effect.
            unsafe {
                core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
            }
            value
        }

        #[inline]
        fn $write(value: u64) {
            // SAFETY: it is part of the virtual interface, which EL2 itself does not use.
            unsafe {
                core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
            }
        }
    };
}

/// The list registers, in order: `load` and `take` go through them one after the other, and stop
/// at the first that is not used.
macro_rules! list_registers {
    ($($read:ident $write:ident $name:literal;)*) => {
        $(register! { $read $write $name })*

        /// Fills as many as there are values.
        #[inline]
        fn load_list(values: &[u64]) {
            let mut values = values.iter();
            $(
                let Some(&value) = values.next() else { return };
                $write(value);
            )*
        }

        /// Empties as many as there are places, into them.
        #[inline]
        fn unload_list(places: &mut [u64]) {
            let mut places = places.iter_mut();
            $(
                let Some(place) = places.next() else { return };
                *place = $read();
                $write(0);
            )*
        }
    };
}

list_registers! {
    lr0 set_lr0 "S3_4_C12_C12_0";
    lr1 set_lr1 "S3_4_C12_C12_1";
    lr2 set_lr2 "S3_4_C12_C12_2";
    lr3 set_lr3 "S3_4_C12_C12_3";
    lr4 set_lr4 "S3_4_C12_C12_4";
    lr5 set_lr5 "S3_4_C12_C12_5";
    lr6 set_lr6 "S3_4_C12_C12_6";
    lr7 set_lr7 "S3_4_C12_C12_7";
    lr8 set_lr8 "S3_4_C12_C13_0";
    lr9 set_lr9 "S3_4_C12_C13_1";
    lr10 set_lr10 "S3_4_C12_C13_2";
    lr11 set_lr11 "S3_4_C12_C13_3";
    lr12 set_lr12 "S3_4_C12_C13_4";
    lr13 set_lr13 "S3_4_C12_C13_5";
    lr14 set_lr14 "S3_4_C12_C13_6";
    lr15 set_lr15 "S3_4_C12_C13_7";
}

register! { ap0r0 set_ap0r0 "S3_4_C12_C8_0" }
register! { ap0r1 set_ap0r1 "S3_4_C12_C8_1" }
register! { ap0r2 set_ap0r2 "S3_4_C12_C8_2" }
register! { ap0r3 set_ap0r3 "S3_4_C12_C8_3" }
register! { ap1r0 set_ap1r0 "S3_4_C12_C9_0" }
register! { ap1r1 set_ap1r1 "S3_4_C12_C9_1" }
register! { ap1r2 set_ap1r2 "S3_4_C12_C9_2" }
register! { ap1r3 set_ap1r3 "S3_4_C12_C9_3" }

/// No guest is loaded, and the host's own interface is system registers.
pub(super) fn reset() {
    let implemented = usize::try_from(vtr() & 0x1f).unwrap_or(0).saturating_add(1);
    regs::set_ich_hcr_el2(0);
    let zeros = [0; MAX_LRS];
    load_list(zeros.get(..implemented).unwrap_or(&zeros));
}

/// Installs a guest's interface, on a machine that can have guests; of the active priorities the first register each.
#[inline]
pub(super) fn load(from: &GicContext) {
    let &GicContext { hcr, vmcr, .. } = from;
    regs::set_icc_sre_el2(SRE_GUEST);
    regs::set_ich_vmcr_el2(vmcr);
    set_ap0r0(from.ap0r[0]);
    set_ap1r0(from.ap1r[0]);
    load_list(from.used());
    regs::set_ich_hcr_el2(hcr);
}

/// Installs the other active priorities, as many as `interface` has.
pub(super) fn load_priorities(interface: Option<Interface>, from: &GicContext) {
    set_ap0r1(from.ap0r[1]);
    set_ap1r1(from.ap1r[1]);
    if interface == Some(Interface::Four) {
        set_ap0r2(from.ap0r[2]);
        set_ap1r2(from.ap1r[2]);
        set_ap0r3(from.ap0r[3]);
        set_ap1r3(from.ap1r[3]);
    }
}

/// Saves what [`load`] installs as the guest left it, and switches the interface off.
#[inline]
pub(super) fn unload(to: &mut GicContext) {
    to.vmcr = regs::ich_vmcr_el2();
    to.ap0r[0] = ap0r0();
    to.ap1r[0] = ap1r0();
    unload_list(to.used_mut());
    regs::set_ich_hcr_el2(0);
    regs::set_icc_sre_el2(SRE_HOST);
}

/// Saves what [`load_priorities`] installs.
pub(super) fn unload_priorities(interface: Option<Interface>, to: &mut GicContext) {
    to.ap0r[1] = ap0r1();
    to.ap1r[1] = ap1r1();
    if interface == Some(Interface::Four) {
        to.ap0r[2] = ap0r2();
        to.ap1r[2] = ap1r2();
        to.ap0r[3] = ap0r3();
        to.ap1r[3] = ap1r3();
    }
}
