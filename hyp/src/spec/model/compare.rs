//! Two states side by side, and a difference as a person wants to read it.
#![forbid(unsafe_code)]

use super::flaw::Place;
use super::state::{Hold, Kind, NO_TAG, Page, Phase, Slot, State, Vm};
use core::fmt;

/// Something that the specification and the real machine see differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    place: Place,
    /// How many consecutive pages or frames.
    nr: u64,
    spec: Side,
    real: Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Page(Option<Page>),
    Slot(Option<Slot>),
    Vm(Option<Vm>),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, nr, spec, real } = self;
        write!(f, "{place}")?;
        if *nr > 1 {
            write!(f, " and {} after it", nr.saturating_sub(1))?;
        }
        write!(f, ": specification says {spec}, the machine says {real}")
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(None) => write!(f, "no RAM"),
            Self::Page(Some(page)) => write!(f, "{page}"),
            Self::Slot(None) => write!(f, "nothing"),
            Self::Slot(Some(slot)) => write!(f, "{slot}"),
            Self::Vm(None) => write!(f, "no VM"),
            Self::Vm(Some(vm)) => write!(f, "{vm}"),
        }
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => write!(f, "host-owned"),
            Self::SharedWithHyp { pins } => write!(f, "shared with EL2, {pins} pins"),
            Self::SharedWithGuest { handle, leaves } => {
                write!(f, "shared with VM {handle:#x}, {leaves} entries")
            }
            Self::Lent => write!(f, "lent to EL2"),
            Self::Hyp => write!(f, "EL2's"),
            Self::Vm => write!(f, "EL2's for a VM"),
            Self::Guest { handle } => write!(f, "owned by VM {handle:#x}"),
            Self::GuestSharedWithHost { handle } => {
                write!(f, "owned by VM {handle:#x}, shared with the host")
            }
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Ram => write!(f, "RAM to come"),
            Self::Destroyed => write!(f, "DESTROYED"),
            Self::Guard => write!(f, "a guarded device"),
            Self::Mapped { pfn, hold, prot, block } => {
                let hold = match hold {
                    Hold::Owned => "owned",
                    Hold::Shared => "owned and shared",
                    Hold::Borrowed => "borrowed",
                };
                let bit = |bit: u8, name: char| if prot >> bit & 1 == 1 { name } else { '-' };
                let size = if block { " in a block" } else { "" };
                let tags = if prot & NO_TAG == 0 { "" } else { " without tags" };
                write!(f, "page {pfn:#x} {hold} {}{}{}{size}{tags}", bit(0, 'r'), bit(1, 'w'), bit(2, 'x'))
            }
        }
    }
}

impl fmt::Display for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::NonProtected => "non-protected",
            Kind::Classic => "protected",
            Kind::Split => "split",
        };
        let phase = match self.phase {
            Phase::New => "NEW",
            Phase::Finalising => "FINALISING",
            Phase::Active => "ACTIVE",
            Phase::Dying => "DYING",
            Phase::Dead => "DEAD",
        };
        write!(f, "a {kind} VM of {} bits, {phase}", self.ipa_bits)?;
        if self.mte.has_mte() { write!(f, ", MTE {}", self.mte.name()) } else { Ok(()) }
    }
}

impl<const N: usize> State<N> {
    /// Where this state, what the specification says, and `real` differ.
    pub fn differences<'a>(&'a self, real: &'a Self) -> impl Iterator<Item = Difference> + 'a {
        let vms = self
            .vms()
            .iter()
            .chain(real.vms().iter().filter(|vm| self.vm(u64::from(vm.handle)).is_err()))
            .map(|vm| vm.handle)
            .map(|handle| (handle, self.vm(handle.into()).ok(), real.vm(handle.into()).ok()))
            .filter(|(_, spec, real)| spec != real)
            .map(|(handle, spec, real)| Difference {
                place: Place::Vm(handle),
                nr: 1,
                spec: Side::Vm(spec),
                real: Side::Vm(real),
            });
        let pages = self.pages.differences(&real.pages).map(|run| Difference {
            place: Place::Page(run.start),
            nr: run.end.saturating_sub(run.start),
            spec: Side::Page(run.value.0),
            real: Side::Page(run.value.1),
        });
        let slots = self.slot_differences(real).map(|(handle, gfn, nr, spec, real)| Difference {
            place: Place::Slot(handle, gfn),
            nr,
            spec: Side::Slot(spec),
            real: Side::Slot(real),
        });
        vms.chain(pages).chain(slots)
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::RWX;
    use super::{Hold, Kind, Page, Phase, Slot, State, Vm};
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn a_difference_reads_like_a_sentence() {
        let mut spec = State::<16>::new([(0x40000, 0x40400)]);
        let mut real = spec.clone();
        real.pages.set(0x40123, 0x40124, Page::Lent);
        let vm = Vm::new(3, Kind::Classic, 40, Phase::Active);
        spec.put_vm(vm);
        real.put_vm(vm);
        let slot = Slot::Mapped { pfn: 0x40200, hold: Hold::Owned, prot: RWX, block: false };
        spec.set_slots(3, 0x10..0x12, slot);
        let said: Vec<_> = spec.differences(&real).map(|difference| difference.to_string()).collect();
        assert_eq!(
            said,
            [
                "page 0x40123: specification says host-owned, the machine says lent to EL2",
                "VM 0x3 frame 0x10 and 1 after it: \
                 specification says page 0x40200 owned rwx, the machine says nothing",
            ]
        );
        assert_eq!(spec.differences(&spec).count(), 0);
    }
}
