//! List registers (ICH_LR`n`_EL2): which interrupts a vCPU takes into its turn, and what became of them.

use super::interrupt::Listed;
use super::{Gic, Id, TIMER};
use crate::vcpu::VcpuIndex;
use arrayvec::ArrayVec;

/// List registers that a CPU can have.
pub const MAX_LIST_REGISTERS: usize = 16;

const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const HW: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;
const PRIORITY_SHIFT: u32 = 48;
/// HW = 0: a maintenance interrupt when the guest ends it.
const EOI: u64 = 1 << 41;
const PINTID_SHIFT: u32 = 32;
const VINTID: u64 = 0xffff_ffff;
/// ICH_HCR_EL2.UIE: a maintenance interrupt when no or one list register is left.
const UNDERFLOW: u32 = 1 << 1;

/// What a vCPU gets for a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The list registers; those behind are empty.
    pub registers: ArrayVec<u64, MAX_LIST_REGISTERS>,
    /// For ICH_HCR_EL2: UIE if interrupts were left over.
    pub hcr: u32,
}

/// What decides who gets a list register, first come first: taken and not ended, which the guest's end of
/// interrupt has to find; priority; INTID.
type Rank = (bool, u8, Id);

impl Gic {
    /// The list registers for the next turn of `vcpu`, `room` at most. What it had listed and was not
    /// folded is as it was.
    pub fn list(&mut self, vcpu: VcpuIndex, room: usize) -> Listing {
        let room = room.min(MAX_LIST_REGISTERS);
        for id in self.listed(vcpu) {
            self.edit(id, |one| one.listed = None);
        }
        let mut first: ArrayVec<Rank, MAX_LIST_REGISTERS> = ArrayVec::new();
        let mut left_over = false;
        for (id, one) in self.candidates(vcpu) {
            if one.active.is_none() && !(self.enabled && one.deliverable()) {
                continue;
            }
            let rank = (one.active.is_none(), one.priority, id);
            let at = first.iter().take_while(|other| **other < rank).count();
            if first.len() == room {
                left_over = true;
                if at == room {
                    continue;
                }
                first.pop();
            }
            // There is room behind all that come before it.
            let _ = first.try_insert(at, rank);
        }
        let registers = first.iter().filter_map(|(_, _, id)| self.enter(*id)).collect();
        Listing { registers, hcr: if left_over { UNDERFLOW } else { 0 } }
    }

    /// What became of the list registers of `vcpu`: `registers` as the guest has left them. An
    /// interrupt that is in none of them was taken and ended.
    pub fn fold(&mut self, vcpu: VcpuIndex, registers: &[u64]) {
        for id in self.listed(vcpu) {
            let its = |lr: &&u64| **lr & (PENDING | ACTIVE) != 0 && **lr & VINTID == u64::from(id.intid);
            let lr = registers.iter().find(its).copied().unwrap_or(0);
            self.edit(id, |one| one.leave(lr & PENDING != 0, lr & ACTIVE != 0));
        }
    }

    /// Puts an interrupt in a list register; its value.
    fn enter(&mut self, id: Id) -> Option<u64> {
        let enabled = self.enabled;
        let one = self.interrupt(id)?;
        let software = id.intid != TIMER;
        let active = one.active.is_some();
        // A level is looked at again once it was ended, a physical interrupt cannot be both.
        let pending = enabled && one.deliverable() && (one.edge || !active);
        let mut lr = GROUP1 | u64::from(one.priority).wrapping_shl(PRIORITY_SHIFT) | u64::from(id.intid);
        lr |= if pending { PENDING } else { 0 } | if active { ACTIVE } else { 0 };
        if !software {
            lr |= HW | u64::from(TIMER).wrapping_shl(PINTID_SHIFT);
        } else if !one.edge {
            lr |= EOI;
        }
        let listed = Listed { vcpu: id.vcpu, pending, again: false, active: None };
        self.edit(id, |one| one.listed = Some(listed));
        Some(lr)
    }

    /// Interrupts in list registers of `vcpu`.
    fn listed(&self, vcpu: VcpuIndex) -> ArrayVec<Id, MAX_LIST_REGISTERS> {
        let listed = self.candidates(vcpu).filter(|(_, one)| one.listed.is_some());
        listed.map(|(id, _)| id).take(MAX_LIST_REGISTERS).collect()
    }

    /// Changes an interrupt of a vCPU that is not running: it need not be told.
    fn edit(&mut self, id: Id, change: impl FnOnce(&mut super::Interrupt)) {
        let _ = self.change(id, change);
    }
}
