//! GICv3 (Arm IHI 0069) as one security state sees it: a distributor with 64 shared interrupts, a redistributor for
//! each vCPU, no LPIs, affinity routing always on. Interrupts reach the guest by list registers,
//! which the user moves: [`Gic::list`] before a vCPU runs, [`Gic::fold`] after.
//!
//! Invariant: an interrupt is in a list register of one vCPU at most, from `list` to `fold`; what
//! happens to it in between is kept and takes effect at `fold`. A method that returns a [`VcpuSet`]
//! says which vCPUs run or sleep without knowing of the change: those have to leave the guest, be
//! folded and be listed again.
//!
//! A state of the distributor that two vCPUs see is as old as the last `fold` of the other, at most
//! one turn. Only Group 1 is delivered. One-of-N routing does not exist (GICD_TYPER.No1N).

mod interrupt;
mod list;
mod registers;

pub use list::{Listing, MAX_LIST_REGISTERS};
pub use registers::{DISTRIBUTOR_SIZE, REDISTRIBUTOR_SIZE};

use crate::vcpu::{MAX_VCPUS, VcpuCount, VcpuIndex, VcpuSet};
use interrupt::{BANK, Bank, Interrupt};

/// The virtual timer's INTID, physical and virtual.
pub const TIMER: u32 = 27;
/// The first shared interrupt's INTID.
pub const FIRST_SPI: u32 = 32;
/// Banks of shared interrupts: INTID 32 to 95.
const SPI_BANKS: usize = 2;
/// Private interrupts that are edge triggered, and stay so: the SGIs.
const SGIS: u32 = 0xffff;
/// Priority of every interrupt in [`Gic::opened`].
const MIDDLE: u8 = 0xa0;

/// The interrupt controller of one VM.
#[derive(Clone, Debug)]
pub struct Gic {
    vcpus: VcpuCount,
    /// GICD_CTLR.EnableGrp1.
    enabled: bool,
    private: [Bank; MAX_VCPUS],
    shared: [Bank; SPI_BANKS],
}

/// One interrupt of a VM: a shared one's `vcpu` says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    intid: u32,
    vcpu: VcpuIndex,
}

impl Gic {
    /// As after reset: nothing is delivered until the guest has set it up.
    #[must_use]
    pub fn new(vcpus: VcpuCount) -> Self {
        let private = core::array::from_fn(|n| Bank::new(SGIS, u32::try_from(n).unwrap_or(u32::MAX)));
        Self { vcpus, enabled: false, private, shared: core::array::from_fn(|_| Bank::new(0, 0)) }
    }

    /// For a guest that does not know of a distributor: every interrupt is enabled, in Group 1 and of
    /// the same priority.
    #[must_use]
    pub fn opened(vcpus: VcpuCount) -> Self {
        let mut gic = Self::new(vcpus);
        gic.enabled = true;
        for bank in gic.private.iter_mut().chain(&mut gic.shared) {
            for n in 0..BANK {
                bank.change(n, |one| (one.enabled, one.group1, one.priority) = (true, true, MIDDLE));
            }
        }
        gic
    }

    /// The input of shared interrupt `spi`, INTID less 32, is now `high`. One that does not exist is
    /// nobody's.
    pub fn set_line(&mut self, spi: u32, high: bool) -> VcpuSet {
        let Some(vcpu) = self.vcpus.vcpu(0) else { return VcpuSet::NONE };
        let id = Id { intid: spi.saturating_add(FIRST_SPI), vcpu };
        self.change(id, |one| one.set_line(high))
    }

    /// The virtual timer of `vcpu` asserts its interrupt, or does not. To be said after each turn of
    /// the vCPU, and while it sleeps when its deadline has passed.
    pub fn set_timer(&mut self, vcpu: VcpuIndex, fired: bool) -> VcpuSet {
        self.change(Id { intid: TIMER, vcpu }, |one| one.set_line(fired))
    }

    /// True if the physical timer interrupt has to be active while `vcpu` runs: its timer has fired and
    /// the guest has not ended that interrupt, so the CPU must not report it again.
    #[must_use]
    pub fn timer_held(&self, vcpu: VcpuIndex) -> bool {
        let timer = self.interrupt(Id { intid: TIMER, vcpu });
        timer.is_some_and(|timer| timer.line || timer.active.is_some())
    }

    /// What `sender` stored to ICC_SGI1R_EL1: SGIs for vCPUs by affinity value, or for all others.
    pub fn send_sgi(&mut self, sender: VcpuIndex, value: u64) -> VcpuSet {
        let [list_low, list_high, aff1, intid, aff2, mode, aff3, _] = value.to_le_bytes();
        let intid = u32::from(intid & 0xf);
        let all_others = mode & 1 != 0;
        let range = usize::from(mode >> 4);
        let list = u32::from(u16::from_le_bytes([list_low, list_high]));
        let here = (aff1, aff2, aff3, range) == (0, 0, 0, 0);
        let meant = |vcpu: VcpuIndex| {
            if all_others { vcpu != sender } else { here && interrupt::bit(list, vcpu.get()) }
        };
        let targets = self.vcpus.all().filter(|vcpu| meant(*vcpu));
        targets.fold(VcpuSet::NONE, |kick, vcpu| {
            kick.and(self.change(Id { intid, vcpu }, |one| {
                if one.group1 {
                    one.raise()
                }
            }))
        })
    }

    /// True if `vcpu` has an interrupt to take: it must not sleep.
    #[must_use]
    pub fn wakes(&self, vcpu: VcpuIndex) -> bool {
        self.enabled && self.candidates(vcpu).any(|(_, one)| one.deliverable())
    }

    fn bank(&self, id: Id) -> Option<&Bank> {
        match Place::of(id)? {
            Place { shared: Some(bank), .. } => self.shared.get(bank),
            Place { shared: None, .. } => self.private.get(id.vcpu.get()),
        }
    }

    fn bank_mut(&mut self, id: Id) -> Option<&mut Bank> {
        match Place::of(id)? {
            Place { shared: Some(bank), .. } => self.shared.get_mut(bank),
            Place { shared: None, .. } => self.private.get_mut(id.vcpu.get()),
        }
    }

    fn interrupt(&self, id: Id) -> Option<&Interrupt> {
        self.bank(id)?.get(Place::of(id)?.n)
    }

    /// Changes an interrupt; who has to know.
    fn change(&mut self, id: Id, change: impl FnOnce(&mut Interrupt)) -> VcpuSet {
        let place = Place::of(id);
        let changed = place.and_then(|place| self.bank_mut(id)?.change(place.n, change));
        let Some((before, after)) = changed.filter(|(before, after)| before != after) else {
            return VcpuSet::NONE;
        };
        let runs_with_it = after.listed.or(before.listed).map(|listed| listed.vcpu);
        let wants_it = if self.enabled && after.deliverable() { self.target(&after) } else { None };
        runs_with_it.or(wants_it).map_or(VcpuSet::NONE, VcpuSet::only)
    }

    /// Where an interrupt goes: to whom has taken it, else where it is routed.
    fn target(&self, interrupt: &Interrupt) -> Option<VcpuIndex> {
        let routed = || self.vcpus.vcpu(usize::try_from(interrupt.affinity).ok()?);
        interrupt.active.or_else(routed)
    }

    /// Interrupts of `vcpu` that are pending, active or listed.
    fn candidates(&self, vcpu: VcpuIndex) -> impl Iterator<Item = (Id, &Interrupt)> {
        let private = self.private.get(vcpu.get()).into_iter();
        private
            .chain(&self.shared)
            .zip(0_u32..)
            .flat_map(|(bank, nth)| {
                bank.busy().filter_map(move |n| {
                    let n32 = u32::try_from(n).ok()?;
                    Some((nth.saturating_mul(32).saturating_add(n32), bank.get(n)?))
                })
            })
            .map(move |(intid, one)| (Id { intid, vcpu }, one))
            .filter(move |(_, one)| match one.listed {
                Some(listed) => listed.vcpu == vcpu,
                None => self.target(one) == Some(vcpu),
            })
    }
}

/// Where an interrupt is kept.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Which bank of shared interrupts; `None` is the vCPU's own.
    shared: Option<usize>,
    n: usize,
}

impl Place {
    fn of(id: Id) -> Option<Self> {
        let intid = usize::try_from(id.intid).ok()?;
        let n = intid.checked_rem(BANK)?;
        match intid.checked_div(BANK)? {
            0 => Some(Self { shared: None, n }),
            bank if bank <= SPI_BANKS => Some(Self { shared: bank.checked_sub(1), n }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
