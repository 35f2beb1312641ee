//! Calls as values, and the verdict on what the real machine answered.
#![forbid(unsafe_code)]

use super::state::State;
use abi::{Errno, FunctionId, HostFn};
use core::fmt;

/// A transition with the words it is called with, named as the function of [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "fields are the arguments of the function of the same name")]
pub enum Call {
    HostShareHyp { pfn: u64 },
    HostUnshareHyp { pfn: u64 },
    HypPin { pfn: u64 },
    HypUnpin { pfn: u64 },
    HostDonateHyp { pfn: u64, nr: u64 },
    HypDonateHost { pfn: u64, nr: u64 },
    HostDonateGuest { handle: u64, gfn: u64, pfn: u64, order: u64 },
    HostShareGuest { handle: u64, gfn: u64, pfn: u64, order: u64, prot: u64 },
    HostUnshareGuest { handle: u64, gfn: u64, nr: u64 },
    GuestShareHost { handle: u64, gfn: u64, nr: u64 },
    GuestUnshareHost { handle: u64, gfn: u64, nr: u64 },
    GuestRelinquishHost { handle: u64, gfn: u64, nr: u64 },
    HostReclaimGuest { handle: u64, base: u64, top: u64 },
    HostReclaimDyingGuest { handle: u64, base: u64, top: u64 },
}

/// What a call answers: 0 or a negative errno, and how far it got where it says so.
pub type Answer = Result<u64, Errno>;

/// An answer that the specification does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The call.
    pub call: Call,
    /// What it should have answered.
    pub expected: Answer,
    /// What it answered.
    pub got: Answer,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, expected, got } = self;
        write!(f, "{call:x?}: specification answers {expected:x?}, the machine {got:x?}")
    }
}

impl Call {
    /// The transition that the host asks for with these registers, if it is one.
    #[must_use]
    pub fn of_host(regs: &[u64]) -> Option<Self> {
        let &[id, x1, x2, ..] = regs else { return None };
        Some(match HostFn::try_from(FunctionId::from_reg(id)?).ok()? {
            HostFn::HostShareHyp => Self::HostShareHyp { pfn: x1 },
            HostFn::HostUnshareHyp => Self::HostUnshareHyp { pfn: x1 },
            HostFn::HostDonateHyp => Self::HostDonateHyp { pfn: x1, nr: x2 },
            HostFn::HypDonateHost => Self::HypDonateHost { pfn: x1, nr: x2 },
            _ => return None,
        })
    }

    /// The name of the transition.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostShareHyp { .. } => "host_share_hyp",
            Self::HostUnshareHyp { .. } => "host_unshare_hyp",
            Self::HypPin { .. } => "hyp_pin",
            Self::HypUnpin { .. } => "hyp_unpin",
            Self::HostDonateHyp { .. } => "host_donate_hyp",
            Self::HypDonateHost { .. } => "hyp_donate_host",
            Self::HostDonateGuest { .. } => "host_donate_guest",
            Self::HostShareGuest { .. } => "host_share_guest",
            Self::HostUnshareGuest { .. } => "host_unshare_guest",
            Self::GuestShareHost { .. } => "guest_share_host",
            Self::GuestUnshareHost { .. } => "guest_unshare_host",
            Self::GuestRelinquishHost { .. } => "guest_relinquish_host",
            Self::HostReclaimGuest { .. } => "host_reclaim_guest",
            Self::HostReclaimDyingGuest { .. } => "host_reclaim_dying_guest",
        }
    }

    /// The same call on a range that ends where the answer `done` says, for those that may end
    /// before their range does.
    fn cut_short(self, done: u64) -> Option<Self> {
        Some(match self {
            Self::HostUnshareGuest { handle, gfn, .. } => Self::HostUnshareGuest { handle, gfn, nr: done },
            Self::GuestShareHost { handle, gfn, .. } => Self::GuestShareHost { handle, gfn, nr: done },
            Self::GuestUnshareHost { handle, gfn, .. } => Self::GuestUnshareHost { handle, gfn, nr: done },
            Self::GuestRelinquishHost { handle, gfn, .. } => {
                Self::GuestRelinquishHost { handle, gfn, nr: done }
            }
            Self::HostReclaimGuest { handle, base, .. } => Self::HostReclaimGuest { handle, base, top: done },
            Self::HostReclaimDyingGuest { handle, base, .. } => {
                Self::HostReclaimDyingGuest { handle, base, top: done }
            }
            _ => return None,
        })
    }

    /// True where `errno` can come from what the state leaves out: a pool or a store that is dry,
    /// a lent page that is in use.
    fn may_refuse(self, errno: Errno) -> bool {
        match self {
            Self::HypDonateHost { .. } => errno == Errno::Ebusy,
            Self::HypPin { .. }
            | Self::HostDonateHyp { .. }
            | Self::HostDonateGuest { .. }
            | Self::HostShareGuest { .. }
            | Self::GuestShareHost { .. }
            | Self::GuestUnshareHost { .. }
            | Self::GuestRelinquishHost { .. } => errno == Errno::Enomem,
            _ => false,
        }
    }
}

impl<const N: usize> State<N> {
    /// Makes `call`: its answer, and the state after it if that is `Ok`.
    ///
    /// # Errors
    /// Those of the call; the state is as it was.
    pub fn call(&mut self, call: Call) -> Answer {
        let nothing = |()| 0;
        match call {
            Call::HostShareHyp { pfn } => self.host_share_hyp(pfn).map(nothing),
            Call::HostUnshareHyp { pfn } => self.host_unshare_hyp(pfn).map(nothing),
            Call::HypPin { pfn } => self.hyp_pin(pfn).map(nothing),
            Call::HypUnpin { pfn } => self.hyp_unpin(pfn).map(nothing),
            Call::HostDonateHyp { pfn, nr } => self.host_donate_hyp(pfn, nr).map(nothing),
            Call::HypDonateHost { pfn, nr } => self.hyp_donate_host(pfn, nr).map(nothing),
            Call::HostDonateGuest { handle, gfn, pfn, order } => {
                self.host_donate_guest(handle, gfn, pfn, order).map(nothing)
            }
            Call::HostShareGuest { handle, gfn, pfn, order, prot } => {
                self.host_share_guest(handle, gfn, pfn, order, prot).map(nothing)
            }
            Call::HostUnshareGuest { handle, gfn, nr } => self.host_unshare_guest(handle, gfn, nr),
            Call::GuestShareHost { handle, gfn, nr } => self.guest_share_host(handle, gfn, nr),
            Call::GuestUnshareHost { handle, gfn, nr } => self.guest_unshare_host(handle, gfn, nr),
            Call::GuestRelinquishHost { handle, gfn, nr } => self.guest_relinquish_host(handle, gfn, nr),
            Call::HostReclaimGuest { handle, base, top } => self.host_reclaim_guest(handle, base, top),
            Call::HostReclaimDyingGuest { handle, base, top } => {
                self.host_reclaim_dying_guest(handle, base, top)
            }
        }
    }

    /// Makes `call`, to which the real machine answered `got`, in the one way that gives this
    /// answer: as specified, refused for a reason that the state leaves out, or ended early. The
    /// state after it goes to `after`.
    ///
    /// # Errors
    /// [`Refusal`] if there is no such way; `after` is of no use then.
    pub fn accept(&self, call: Call, got: Answer, after: &mut Self) -> Result<(), Refusal> {
        after.clone_from(self);
        let expected = after.call(call);
        match (expected, got) {
            _ if got == expected => return Ok(()),
            (Ok(_), Err(errno)) if call.may_refuse(errno) => {
                after.clone_from(self);
                return Ok(());
            }
            (Ok(_), Ok(done)) => {
                if let Some(shorter) = call.cut_short(done) {
                    after.clone_from(self);
                    if after.call(shorter) == got {
                        return Ok(());
                    }
                }
            }
            _ => {}
        }
        Err(Refusal { call, expected, got })
    }
}
