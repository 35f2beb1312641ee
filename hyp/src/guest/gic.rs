//! List registers: what the host may inject into a guest (Arm IHI0069, ICH_LR`n`_EL2).
//!
//! A list register can do more than deliver an interrupt: with HW = 1 the guest's EOI deactivates
//! a physical interrupt of the host's choice, and two registers with one INTID are unpredictable.
//! So only virtual Group 1 is taken, HW only for the virtual timer, each INTID once.
#![forbid(unsafe_code)]

use super::context::GicContext;

/// INTID of the virtual timer, physical and virtual.
const VTIMER_INTID: u64 = 27;
/// ICH_HCR_EL2.En.
const EN: u64 = 1 << 0;
/// UIE and NPIE: maintenance interrupts that tell the host to refill.
const HOST_BITS: u32 = 1 << 1 | 1 << 3;

const STATE: u64 = 3 << 62;
const HW: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;
const PRIORITY: u64 = 0xff << 48;
const PINTID: u64 = 0x1fff << 32;
/// Maintenance interrupt on EOI, in the place of pINTID bit 9 when HW = 0.
const EOI: u64 = 1 << 41;
const VINTID: u64 = 0xffff_ffff;

/// True if `lr` is empty or an interrupt that the host may inject.
const fn acceptable(lr: u64) -> bool {
    if lr & STATE == 0 {
        return lr == 0;
    }
    let common = STATE | GROUP1 | PRIORITY | VINTID;
    if lr & GROUP1 == 0 {
        return false;
    }
    if lr & HW != 0 {
        // Pending and active at once is for software interrupts only.
        lr & STATE != STATE
            && lr & !(common | HW | PINTID) == 0
            && (lr & PINTID) >> 32 == VTIMER_INTID
            && lr & VINTID == VTIMER_INTID
    } else {
        lr & !(common | EOI) == 0 && !matches!(lr & VINTID, 1020..=1023)
    }
}

impl GicContext {
    /// Takes the `nr` list registers and `hcr` bits that the host brings for a turn; `read` reads
    /// its list register `n`, and is asked once for each. `implemented` is how many the CPU has.
    /// What else the interface holds stays. Refused, the interface is off, until the next turn
    /// brings others.
    ///
    /// # Errors
    /// `()` for more registers than are implemented, bits in `hcr` other than UIE and NPIE, and any
    /// register that is not acceptable.
    #[inline]
    #[allow(clippy::result_unit_err, reason = "one reason, EINVAL, which the caller names")]
    pub fn supply(
        &mut self,
        nr: u32,
        hcr: u32,
        implemented: u8,
        read: impl Fn(usize) -> u64,
    ) -> Result<(), ()> {
        (self.nr_lr, self.hcr) = (0, 0);
        if nr > u32::from(implemented) || hcr & !HOST_BITS != 0 {
            return Err(());
        }
        let lrs = usize::try_from(nr).ok().and_then(|nr| self.lr.get_mut(..nr)).ok_or(())?;
        for (n, lr) in lrs.iter_mut().enumerate() {
            *lr = read(n);
        }
        for (n, &lr) in lrs.iter().enumerate() {
            let twin = |&other: &u64| other & STATE != 0 && other & VINTID == lr & VINTID;
            if !acceptable(lr) || lr != 0 && lrs.iter().take(n).any(twin) {
                return Err(());
            }
        }
        (self.nr_lr, self.hcr) = (nr.into(), EN | u64::from(hcr));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{GicContext, acceptable};

    const PENDING: u64 = 1 << 62 | 1 << 60;

    fn take(gic: &mut GicContext, lrs: &[u64], hcr: u32, implemented: u8) -> Result<(), ()> {
        gic.supply(u32::try_from(lrs.len()).unwrap(), hcr, implemented, |n| lrs[n])
    }

    #[test]
    fn group_one_interrupts_are_taken_in_every_state() {
        for state in 1..=3_u64 {
            for intid in [0, 15, 16, 27, 32, 1019, 8192] {
                assert!(acceptable(state << 62 | 1 << 60 | 0xa0 << 48 | intid), "{state} {intid}");
            }
        }
        assert!(acceptable(0) && acceptable(PENDING | 1 << 41 | 40));
    }

    #[test]
    fn only_the_timer_may_name_a_physical_interrupt() {
        let hw = PENDING | 1 << 61;
        assert!(acceptable(hw | 27 << 32 | 27));
        assert!(acceptable(2 << 62 | hw & !PENDING | 1 << 60 | 27 << 32 | 27));
        assert!(!acceptable(3 << 62 | hw | 27 << 32 | 27), "pending and active");
        for (pintid, vintid) in [(27, 26), (26, 27), (30, 30), (0, 27), (27 + 1024, 27), (32, 32)] {
            assert!(!acceptable(hw | pintid << 32 | vintid), "{pintid} {vintid}");
        }
    }

    #[test]
    fn group_zero_reserved_bits_and_special_ids_are_refused() {
        for bad in [
            1 << 62 | 27,
            PENDING | 1 << 59 | 27,
            PENDING | 1 << 56 | 27,
            PENDING | 1 << 45 | 27,
            PENDING | 1 << 40 | 27,
            PENDING | 1023,
            PENDING | 1020,
            27,
            1 << 60,
        ] {
            assert!(!acceptable(bad), "{bad:#x}");
        }
    }

    #[test]
    fn a_refused_set_leaves_the_interface_off() {
        let mut gic = GicContext::default();
        assert_eq!(take(&mut gic, &[PENDING | 27, 0, PENDING | 40], 0b1010, 4), Ok(()));
        assert_eq!((gic.nr_lr, gic.hcr, gic.lr[2]), (3, 0b1011, PENDING | 40));
        let off = |gic: &GicContext| gic.used().is_empty() && gic.hcr == 0;
        assert_eq!(take(&mut gic, &[PENDING | 1; 5], 0, 4), Err(()), "more than implemented");
        assert_eq!(take(&mut gic, &[0; 17], 0, 16), Err(()));
        for hcr in [1, 1 << 2, 1 << 10, 1 << 31] {
            assert_eq!(take(&mut gic, &[PENDING | 9], 0, 4), Ok(()));
            assert_eq!(take(&mut gic, &[], hcr, 4), Err(()), "{hcr:#x}");
            assert!(off(&gic));
        }
        assert_eq!(take(&mut gic, &[PENDING | 9, 3 << 62 | 1 << 60 | 9], 0, 4), Err(()), "one id twice");
        assert_eq!(take(&mut gic, &[PENDING | 9, 9], 0, 4), Err(()));
        assert!(off(&gic));
    }
}
