//! One interrupt, and the 32 that a word of the registers speaks of.
//!
//! Invariant: bit `n` of `Bank::busy` is clear only if interrupt `n` is inactive, not pending and in no
//! list register. All changes go through [`Bank::change`], which keeps it.

use crate::vcpu::VcpuIndex;

/// Interrupts in a bank.
pub(super) const BANK: usize = 32;

/// What list register an interrupt is in, while its vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) vcpu: VcpuIndex,
    /// It was pending there.
    pub(super) pending: bool,
    /// It was raised again since: what the guest takes now is not the last one.
    pub(super) again: bool,
    /// What the guest has stored to its active state since, from another vCPU.
    pub(super) active: Option<bool>,
}

/// An interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interrupt {
    pub(super) group1: bool,
    pub(super) enabled: bool,
    /// Each rise of the input is one interrupt; otherwise it is one for as long as the input is high.
    pub(super) edge: bool,
    /// Made pending by an edge or by software.
    pub(super) latch: bool,
    /// The input.
    pub(super) line: bool,
    /// The vCPU that has taken it and not ended it yet.
    pub(super) active: Option<VcpuIndex>,
    pub(super) listed: Option<Listed>,
    pub(super) priority: u8,
    /// Affinity value of the vCPU that it goes to, Aff3 in the top byte.
    pub(super) affinity: u32,
}

impl Interrupt {
    /// As after reset: of Group 0, disabled, and of the highest priority.
    pub(super) const fn new(edge: bool, affinity: u32) -> Self {
        Self {
            group1: false,
            enabled: false,
            edge,
            latch: false,
            line: false,
            active: None,
            listed: None,
            priority: 0,
            affinity,
        }
    }

    /// True if it waits to be taken.
    pub(super) const fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }

    /// True if it waits and may be taken, as far as the interrupt alone decides.
    pub(super) const fn deliverable(&self) -> bool {
        self.pending() && self.enabled && self.group1
    }

    /// It is raised once.
    pub(super) const fn raise(&mut self) {
        self.latch = true;
        if let Some(listed) = &mut self.listed {
            listed.again = true;
        }
    }

    /// What raised it is forgotten; the input is not.
    pub(super) const fn withdraw(&mut self) {
        self.latch = false;
        if let Some(listed) = &mut self.listed {
            listed.again = false;
        }
    }

    /// The guest says that `vcpu` has taken it, or nobody.
    pub(super) const fn set_active(&mut self, active: bool, vcpu: VcpuIndex) {
        match &mut self.listed {
            Some(listed) => listed.active = Some(active),
            None => self.active = if active { Some(vcpu) } else { None },
        }
    }

    /// The input is now `high`.
    pub(super) const fn set_line(&mut self, high: bool) {
        if self.edge && high && !self.line {
            self.raise();
        }
        self.line = high;
    }

    /// It leaves its list register, in which it was left as `pending` and `active`.
    pub(super) fn leave(&mut self, pending: bool, active: bool) {
        let Some(listed) = self.listed.take() else { return };
        if listed.pending && !pending {
            self.latch = listed.again;
        }
        self.active = listed.active.unwrap_or(active).then_some(listed.vcpu);
    }
}

/// 32 interrupts.
#[derive(Clone, Debug)]
pub(super) struct Bank {
    interrupts: [Interrupt; BANK],
    busy: u32,
}

impl Bank {
    /// Interrupts as after reset; those of `edges` are edge triggered.
    pub(super) fn new(edges: u32, affinity: u32) -> Self {
        let interrupts = core::array::from_fn(|n| Interrupt::new(bit(edges, n), affinity));
        Self { interrupts, busy: 0 }
    }

    /// Interrupt `n`, below [`BANK`].
    pub(super) fn get(&self, n: usize) -> Option<&Interrupt> {
        self.interrupts.get(n)
    }

    /// Changes interrupt `n`; what it was and is.
    pub(super) fn change(
        &mut self,
        n: usize,
        change: impl FnOnce(&mut Interrupt),
    ) -> Option<(Interrupt, Interrupt)> {
        let interrupt = self.interrupts.get_mut(n)?;
        let before = *interrupt;
        change(interrupt);
        let busy = interrupt.pending() || interrupt.active.is_some() || interrupt.listed.is_some();
        self.busy = with_bit(self.busy, n, busy);
        Some((before, *interrupt))
    }

    /// A word with the bits of interrupts for which `says` is true.
    pub(super) fn gather(&self, says: impl Fn(&Interrupt) -> bool) -> u32 {
        self.interrupts.iter().enumerate().fold(0, |word, (n, one)| with_bit(word, n, says(one)))
    }

    /// Interrupts that may have to be in a list register, or are, by number.
    pub(super) fn busy(&self) -> impl Iterator<Item = usize> + use<> {
        bits(self.busy)
    }
}

/// Bit `n` of `word`, below 32.
pub(super) fn bit(word: u32, n: usize) -> bool {
    with_bit(0, n, true) & word != 0
}

/// Numbers of the bits that are set.
pub(super) fn bits(word: u32) -> impl Iterator<Item = usize> + use<> {
    core::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
        .take_while(|rest| *rest != 0)
        .filter_map(|rest| usize::try_from(rest.trailing_zeros()).ok())
}

fn with_bit(word: u32, n: usize, set: bool) -> u32 {
    let mask = u32::try_from(n).ok().and_then(|n| 1_u32.checked_shl(n)).unwrap_or(0);
    if set { word | mask } else { word & !mask }
}

#[cfg(test)]
mod tests {
    use super::{Bank, Interrupt, Listed, bits};
    use crate::vcpu::VcpuCount;

    fn listed(edge: bool, pending: bool) -> Interrupt {
        let vcpu = VcpuCount::new(1).unwrap().vcpu(0).unwrap();
        let mut interrupt = Interrupt::new(edge, 0);
        interrupt.latch = pending;
        interrupt.listed = Some(Listed { vcpu, pending, again: false, active: None });
        interrupt
    }

    #[test]
    fn an_edge_while_it_is_listed_is_another_interrupt_once_the_first_is_taken() {
        let mut taken = listed(true, true);
        taken.leave(false, true);
        assert!(!taken.pending() && taken.active.is_some());
        let mut again = listed(true, true);
        again.raise();
        again.leave(false, true);
        assert!(again.pending());
        let mut waits = listed(true, true);
        waits.leave(true, false);
        assert!(waits.pending() && waits.active.is_none());
        let mut active_only = listed(true, false);
        active_only.raise();
        active_only.leave(false, true);
        assert!(active_only.pending());
    }

    #[test]
    fn a_level_lasts_as_long_as_the_input_is_high() {
        let mut level = listed(false, true);
        level.set_line(true);
        level.leave(false, true);
        assert!(level.pending(), "the input is still high");
        level.set_line(false);
        assert!(!level.pending());
    }

    #[test]
    fn what_the_guest_stored_to_the_active_state_wins_over_the_list_register() {
        let mut forced = listed(true, true);
        let vcpu = forced.listed.unwrap().vcpu;
        forced.set_active(false, vcpu);
        forced.leave(false, true);
        assert!(forced.active.is_none());
    }

    #[test]
    fn a_bank_knows_which_of_its_interrupts_need_attention() {
        let mut bank = Bank::new(u32::MAX, 0);
        bank.change(3, Interrupt::raise);
        bank.change(31, Interrupt::raise);
        assert!(bank.change(32, Interrupt::raise).is_none());
        assert_eq!(bank.busy().collect::<Vec<_>>(), [3, 31]);
        bank.change(3, Interrupt::withdraw);
        assert_eq!(bank.busy().collect::<Vec<_>>(), [31]);
        assert_eq!(bits(0).count(), 0);
    }
}
