//! Virtual interrupts of one vCPU: which wait, and which are in list registers (Arm IHI 0069).
#![forbid(unsafe_code)]

/// List registers that are used; every GICv3 with virtualisation that the tests run on has four.
pub(super) const LIST_REGISTERS: usize = 4;
/// The virtual timer, physical and virtual.
const TIMER: u64 = 27;

const PENDING: u64 = 1 << 62;
const STATE: u64 = 3 << 62;
const HW: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;
const PRIORITY: u64 = 0xa0 << 48;
const VINTID: u64 = 0xffff_ffff;

/// The interrupts of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interrupts {
    lrs: [u64; LIST_REGISTERS],
    /// SGIs that wait, a bit each.
    sgis: u32,
    timer: bool,
}

impl Interrupts {
    /// SGIs of `mask` are to be delivered.
    pub(super) const fn raise_sgis(&mut self, mask: u32) {
        self.sgis |= mask & 0xffff;
    }

    /// The guest's timer has fired.
    pub(super) const fn raise_timer(&mut self) {
        self.timer = true;
    }

    /// True if an interrupt waits to be taken.
    pub(super) fn pending(&self) -> bool {
        self.sgis != 0 || self.timer || self.lrs.iter().any(|lr| lr & PENDING != 0)
    }

    /// The list registers for the next turn: what waits moves into those that are free.
    pub(super) fn list(&mut self) -> &[u64; LIST_REGISTERS] {
        // The timer's own list register says that it fired before and was not ended yet; a level
        // that is still up will end the guest's turn again then.
        if self.timer && !self.listed(TIMER) {
            self.timer = !self.insert(PENDING | HW | GROUP1 | PRIORITY | TIMER << 32 | TIMER);
        } else {
            self.timer = false;
        }
        for id in 0..16 {
            let waits = self.sgis & 1 << id != 0;
            if waits && !self.listed(id) && self.insert(PENDING | GROUP1 | PRIORITY | id) {
                self.sgis &= !(1 << id);
            }
        }
        &self.lrs
    }

    /// Takes the list registers as the guest left them.
    pub(super) fn left(&mut self, lrs: [u64; LIST_REGISTERS]) {
        self.lrs = lrs;
        for lr in &mut self.lrs {
            if *lr & STATE == 0 {
                *lr = 0;
            }
        }
    }

    /// True if the timer's interrupt is in a list register: its physical one must be active.
    pub(super) fn timer_listed(&self) -> bool {
        self.listed(TIMER)
    }

    fn listed(&self, id: u64) -> bool {
        self.lrs.iter().any(|lr| lr & STATE != 0 && lr & VINTID == id)
    }

    fn insert(&mut self, value: u64) -> bool {
        let free = self.lrs.iter_mut().find(|lr| **lr & STATE == 0);
        free.map(|lr| *lr = value).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::{HW, Interrupts, LIST_REGISTERS, PENDING, STATE, TIMER, VINTID};

    #[test]
    fn an_interrupt_is_listed_once_until_the_guest_has_ended_it() {
        let mut i = Interrupts::default();
        assert!(!i.pending());
        i.raise_sgis(1 << 3);
        let first = *i.list();
        assert_eq!(first.iter().filter(|lr| **lr & STATE != 0).count(), 1);
        i.left(first);
        i.raise_sgis(1 << 3);
        assert_eq!(*i.list(), first, "it waits for its own list register");
        i.left([0; LIST_REGISTERS]);
        assert!(i.pending());
        assert_eq!(i.list()[0] & VINTID, 3);
    }

    #[test]
    fn the_timer_is_tied_to_the_physical_interrupt() {
        let mut i = Interrupts::default();
        i.raise_timer();
        let lrs = *i.list();
        assert_eq!(lrs[0] & (STATE | HW), PENDING | HW);
        assert_eq!((lrs[0] >> 32 & 0x1fff, lrs[0] & VINTID), (TIMER, TIMER));
        assert!(i.timer_listed());
        i.raise_timer();
        assert_eq!(*i.list(), lrs);
        i.left([0; LIST_REGISTERS]);
        assert!(!i.timer_listed() && !i.pending());
    }

    #[test]
    fn what_finds_no_room_waits() {
        let mut i = Interrupts::default();
        i.raise_sgis(0xff);
        assert!(i.list().iter().all(|lr| lr & STATE == PENDING));
        i.left([0; LIST_REGISTERS]);
        assert!(i.pending());
        assert_eq!(i.list().map(|lr| lr & VINTID), [4, 5, 6, 7]);
        i.left([0; LIST_REGISTERS]);
        assert!(!i.pending());
    }
}
