//! As much of a GICv3 as lets a timer or another CPU wake a CPU that waits, and end a guest's turn; no interrupt is
//! ever taken.
//! The host has the physical timer: the virtual one is a guest's while it runs.
//!
//! Registers: Arm IHI 0069. Interrupts stay masked in PSTATE, which does not keep WFI asleep.

use super::wait_until;
use crate::board::{Gic, MAX_CPUS, MPIDR_AFFINITY};
use crate::span::Span;
use aarch64_cpu::registers::{CNTP_CTL_EL0, CNTP_TVAL_EL0, MPIDR_EL1, Readable, Writeable};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

const GICD_CTLR: u64 = 0x0;
/// ARE_NS and EnableGrp1, as both security layouts have them, and EnableGrp1A.
const ROUTE_GROUP_1: u32 = 1 << 4 | 1 << 1 | 1;
const GICR_TYPER: u64 = 0x8;
const GICR_WAKER: u64 = 0x14;
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;
/// RD_base and SGI_base; the second frame has the registers of this CPU's private interrupts.
const FRAMES: u64 = 0x2_0000;
const SGI_BASE: u64 = 0x1_0000;
const GICR_IGROUPR0: u64 = SGI_BASE + 0x80;
const GICR_ISENABLER0: u64 = SGI_BASE + 0x100;
const GICR_ISACTIVER0: u64 = SGI_BASE + 0x300;
const GICR_ICACTIVER0: u64 = SGI_BASE + 0x380;

/// The SGI with which one CPU makes another look.
const KICK: u64 = 0;
/// ICC_IAR1_EL1 from here on: no interrupt.
const SPECIAL: u64 = 1020;

/// The redistributor of each CPU that is ready to be woken; 0 of the others.
static READY: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The redistributor of this CPU, if it is ready; else 0.
fn redistributor() -> u64 {
    READY.get(super::this_cpu()).map_or(0, |slot| slot.load(Ordering::Relaxed))
}

/// Lets the physical timer wake this CPU in `ticks`, or end a guest's turn; the virtual timer does
/// the latter as well.
pub(super) fn wake_after(gic: &Gic, ticks: u64) -> bool {
    let Some(slot) = READY.get(super::this_cpu()) else { return false };
    if slot.load(Ordering::Relaxed) == 0 {
        let Some(redistributor) = make_ready(gic) else { return false };
        slot.store(redistributor, Ordering::Relaxed);
    }
    CNTP_TVAL_EL0.set(ticks);
    CNTP_CTL_EL0.write(CNTP_CTL_EL0::ENABLE::SET + CNTP_CTL_EL0::IMASK::CLEAR);
    true
}

/// Has this CPU's interface signal both timers, kicks and maintenance; its redistributor.
fn make_ready(gic: &Gic) -> Option<u64> {
    let redistributor = gic.redistributors.iter().find_map(|r| this_cpus_frame(*r))?;
    write(gic.distributor + GICD_CTLR, ROUTE_GROUP_1);
    let waker = redistributor + GICR_WAKER;
    write(waker, read(waker) & !PROCESSOR_SLEEP);
    if !wait_until(1, || read(waker) & CHILDREN_ASLEEP == 0) {
        return None;
    }
    let maintenance = gic.maintenance.map_or(0, |id| 1 << id);
    let signalled = 1 << gic.timer | 1 << gic.guest_timer | 1 << KICK | maintenance;
    write(redistributor + GICR_IGROUPR0, read(redistributor + GICR_IGROUPR0) | signalled);
    write(redistributor + GICR_ISENABLER0, signalled);
    // SAFETY: lets this CPU's interface signal group 1; PSTATE.I is set, so nothing is taken.
    unsafe {
        asm!(
            "msr icc_sre_el1, {sre}",
            "isb",
            "msr icc_pmr_el1, {priorities}",
            "msr icc_igrpen1_el1, {enable}",
            "isb",
            sre = in(reg) 7_u64,
            priorities = in(reg) 0xff_u64,
            enable = in(reg) 1_u64,
            options(nostack)
        );
    }
    Some(redistributor)
}

/// Makes the guest's timer interrupt active on this CPU, or not: an active one is not signalled, and
/// a list register with HW = 1 deactivates it when the guest ends its interrupt.
pub(super) fn set_guest_timer_active(gic: &Gic, active: bool) {
    let redistributor = redistributor();
    if redistributor != 0 {
        let register = if active { GICR_ISACTIVER0 } else { GICR_ICACTIVER0 };
        write(redistributor + register, 1 << gic.guest_timer);
    }
}

/// Sends a CPU the SGI that makes it look.
pub(super) fn kick(mpidr: u64) {
    let [aff0, aff1, aff2, ..] = mpidr.to_le_bytes();
    let aff3 = mpidr >> 32 & 0xff;
    // The CPU is bit Aff0 % 16 of the list for range Aff0 / 16.
    let place = u64::from(aff2) << 32 | u64::from(aff1) << 16 | aff3 << 48 | u64::from(aff0 >> 4) << 44;
    let value = place | KICK << 24 | 1 << (aff0 & 0xf);
    // SAFETY: what was written before is seen by the CPU that the interrupt reaches, which takes none.
    unsafe { asm!("dsb ishst", "msr icc_sgi1r_el1, {}", "isb", in(reg) value, options(nostack)) };
}

/// Acknowledges and ends the kicks that this CPU has. A timer that shows up instead stays pending, as its level is.
pub(super) fn heed_kicks() {
    if redistributor() == 0 {
        return;
    }
    loop {
        let id: u64;
        // SAFETY: interrupts are masked: whoever reads the register takes the interrupt, and ends it below.
        unsafe { asm!("mrs {}, icc_iar1_el1", "dsb sy", out(reg) id, options(nostack)) };
        if id >= SPECIAL {
            return;
        }
        // SAFETY: it is the one that was just acknowledged.
        unsafe { asm!("msr icc_eoir1_el1, {}", "isb", in(reg) id, options(nostack)) };
        if id != KICK {
            return;
        }
    }
}

/// Stops the timer.
pub(super) fn cancel_wake() {
    CNTP_CTL_EL0.write(CNTP_CTL_EL0::ENABLE::CLEAR);
}

/// The redistributor of this CPU, if it is in `region`.
fn this_cpus_frame(region: Span) -> Option<u64> {
    let mpidr = MPIDR_EL1.get() & MPIDR_AFFINITY;
    // GICR_TYPER bits 63:32 are Aff3.Aff2.Aff1.Aff0, bit 4 is Last.
    let affinity = mpidr >> 32 << 24 | mpidr & 0xff_ffff;
    let mut frame = region.start();
    while frame < region.end() {
        if u64::from(read(frame + GICR_TYPER + 4)) == affinity {
            return Some(frame);
        }
        if read(frame + GICR_TYPER) & 1 << 4 != 0 {
            return None;
        }
        frame += FRAMES;
    }
    None
}

fn pointer(address: u64) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

fn read(address: u64) -> u32 {
    // SAFETY: a register of the GIC by the device tree, mapped as device memory.
    unsafe { pointer(address).read_volatile() }
}

fn write(address: u64, value: u32) {
    // SAFETY: as for `read`; the registers written here route an interrupt that is never taken.
    unsafe { pointer(address).write_volatile(value) }
}
