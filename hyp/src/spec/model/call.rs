//! Calls as values, and the verdict on what the real machine answered.
#![forbid(unsafe_code)]

use super::guest_calls::NONE;
use super::state::{FRAMES, NO_TAG, RWX, State};
use abi::{Errno, FunctionId, HostFn};
use core::fmt;

macro_rules! calls {
    ($($name:ident = $function:ident($($word:ident),+);)*) => {
        /// A transition with the words it is called with: each has the name and the arguments of a
        /// function of [`State`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "documented at the function of the same name")]
        pub enum Call {
            $($name { $($word: u64),+ },)*
        }

        impl Call {
            /// The name of the transition.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($function),)*
                }
            }
        }

        impl<const N: usize> State<N> {
            /// Makes `call`: its answer, and the state after it if that is `Ok`.
            ///
            /// # Errors
            /// Those of the call; the state is as it was.
            pub fn call(&mut self, call: Call) -> Result<u64, Errno> {
                match call {
                    $(Call::$name { $($word),+ } => self.$function($($word),+).map(Word::word),)*
                }
            }
        }
    };
}

calls! {
    HostShareHyp = host_share_hyp(pfn);
    HostUnshareHyp = host_unshare_hyp(pfn);
    HypPin = hyp_pin(pfn);
    HypUnpin = hyp_unpin(pfn);
    HostDonateHyp = host_donate_hyp(pfn, nr);
    HypDonateHost = hyp_donate_host(pfn, nr);
    HostDonateGuest = host_donate_guest(handle, gfn, pfn, order);
    HostDonateNoTag = host_donate_no_tag(handle, gfn, pfn, order);
    HostUpgradeGuest = host_upgrade_guest(handle, gfn, new);
    HostShareGuest = host_share_guest(handle, gfn, pfn, order, prot);
    HostUnshareGuest = host_unshare_guest(handle, gfn, nr);
    HostShareUnprotected = host_share_unprotected(handle, gfn, pfn, order, write);
    HostUnshareUnprotected = host_unshare_unprotected(handle, gfn, nr, first, done);
    HostInitRipas = host_init_ripas(handle, base, top);
    HostApplyRam = host_apply_ram(handle, base, top, destroyed);
    HostApplyEmpty = host_apply_empty(handle, base, top, kept);
    GuestShareHost = guest_share_host(handle, gfn, nr);
    GuestUnshareHost = guest_unshare_host(handle, gfn, nr);
    GuestRelinquishHost = guest_relinquish_host(handle, gfn, nr);
    GuestMapGuard = guest_map_guard(handle, gfn, nr);
    GuestUnmapGuard = guest_unmap_guard(handle, gfn, nr);
    HostDropGuards = host_drop_guards(handle);
    HostReclaimGuest = host_reclaim_guest(handle, base, top, refill, kept);
    HostReclaimDyingGuest = host_reclaim_dying_guest(handle, base, top, kept);
    VmCreate = vm_create(flags, bits, vm_pfn, vm_nr, root_pfn, root_nr, reserve, handle, pending);
    VcpuCreate = vcpu_create(handle, idx, pfn, nr, record, pc, x0);
    VmTopup = vm_topup(handle, pfn, nr);
    VmPopulate = vm_populate(handle, gfn, pfn, measure);
    VmFinalise = vm_finalise(handle, whole);
    HostRelaxGuest = host_relax_guest(handle, gfn, more);
    HostWrprotectGuest = host_wrprotect_guest(handle, gfn, nr);
    HostAgeGuest = host_age_guest(handle, gfn, nr, clear);
    GuestTlbFlush = guest_tlb_flush(handle);
    VmTeardownStart = vm_teardown_start(handle);
    S2Snapshot = s2_snapshot(target, pfn, flags, tables);
}

/// What a function of the specification gives back, as the first word of an answer.
trait Word {
    fn word(self) -> u64;
}

impl Word for () {
    fn word(self) -> u64 {
        0
    }
}

impl Word for u64 {
    fn word(self) -> u64 {
        self
    }
}

/// A host call as the specification sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRequest {
    /// A transition.
    Call(Call),
    /// It moves pages, and the specification does not say which: they are links of a chain in the
    /// host's memory, or a guest runs and moves its own.
    Other,
    /// It moves nothing.
    Nothing,
}

/// What a call answers: 0 and two words (how far it got; a page that it kept), or a negative errno.
pub type Answer = Result<[u64; 2], Errno>;

/// An answer that the specification does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The call.
    pub call: Call,
    /// The first word that it should have answered, or the errno.
    pub expected: Result<u64, Errno>,
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
    /// What the host asks for with these registers, of a machine that runs `guests` or does not.
    #[must_use]
    pub fn of_host(regs: &[u64], guests: bool) -> HostRequest {
        let &[id, x1, x2, x3, x4, x5, x6, x7, ..] = regs else { return HostRequest::Nothing };
        let Some(Ok(function)) = FunctionId::from_reg(id).map(HostFn::try_from) else {
            return HostRequest::Nothing;
        };
        let rwx = u64::from(RWX);
        HostRequest::Call(match function {
            HostFn::HostShareHyp => Self::HostShareHyp { pfn: x1 },
            HostFn::HostUnshareHyp => Self::HostUnshareHyp { pfn: x1 },
            HostFn::HostDonateHyp => Self::HostDonateHyp { pfn: x1, nr: x2 },
            HostFn::HypDonateHost => Self::HypDonateHost { pfn: x1, nr: x2 },
            // A build without the call says so in x0.
            HostFn::S2Snapshot if cfg!(feature = "debug-snapshot") => {
                Self::S2Snapshot { target: x1, pfn: x2, flags: x3, tables: 0 }
            }
            _ if !guests => return HostRequest::Nothing,
            HostFn::GuestDonate if x5 == rwx => {
                Self::HostDonateGuest { handle: x1, gfn: x2, pfn: x3, order: x4 }
            }
            HostFn::GuestDonate if x5 == rwx | u64::from(NO_TAG) => {
                Self::HostDonateNoTag { handle: x1, gfn: x2, pfn: x3, order: x4 }
            }
            HostFn::MteUpgrade => Self::HostUpgradeGuest { handle: x1, gfn: x2, new: x3 },
            HostFn::GuestShare if x5 <= rwx => {
                Self::HostShareGuest { handle: x1, gfn: x2, pfn: x3, order: x4, prot: x5 }
            }
            HostFn::GuestUnshare => Self::HostUnshareGuest { handle: x1, gfn: x2, nr: x3 },
            HostFn::GuestReclaim => {
                Self::HostReclaimGuest { handle: x1, base: x2, top: x3, refill: x4, kept: NONE }
            }
            HostFn::ReclaimDying => Self::HostReclaimDyingGuest { handle: x1, base: x2, top: x3, kept: NONE },
            HostFn::VmInitRipas => Self::HostInitRipas { handle: x1, base: x2, top: x3 },
            HostFn::UnprotMap => {
                Self::HostShareUnprotected { handle: x1, gfn: x2, pfn: x3, order: x4, write: x5 }
            }
            HostFn::UnprotUnmap => {
                Self::HostUnshareUnprotected { handle: x1, gfn: x2, nr: x3, first: 0, done: 0 }
            }
            HostFn::VmTeardownStart => Self::VmTeardownStart { handle: x1 },
            HostFn::VmCreate => Self::VmCreate {
                flags: x1,
                bits: x2,
                vm_pfn: x3,
                vm_nr: x4,
                root_pfn: x5,
                root_nr: x6,
                reserve: x7,
                handle: 0,
                pending: 0,
            },
            HostFn::VcpuCreate => {
                Self::VcpuCreate { handle: x1, idx: x2, pfn: x3, nr: x4, record: x5, pc: x6, x0: x7 }
            }
            HostFn::VmPopulate if x4 <= 1 => Self::VmPopulate { handle: x1, gfn: x2, pfn: x3, measure: x4 },
            HostFn::VmFinalise => Self::VmFinalise { handle: x1, whole: 1 },
            HostFn::GuestRelax if x3 <= rwx => Self::HostRelaxGuest { handle: x1, gfn: x2, more: x3 },
            HostFn::GuestWrprotect => Self::HostWrprotectGuest { handle: x1, gfn: x2, nr: x3 },
            HostFn::GuestAge => Self::HostAgeGuest { handle: x1, gfn: x2, nr: x3, clear: x4 },
            HostFn::GuestTlbFlush => Self::GuestTlbFlush { handle: x1 },
            HostFn::HypCaps
            | HostFn::VcpuLoad
            | HostFn::VcpuPut
            | HostFn::VcpuGetReg
            | HostFn::VcpuSetReg
            | HostFn::VmTagInfo => return HostRequest::Nothing,
            _ => return HostRequest::Other,
        })
    }

    /// What the call can have been, now that it answered `got`: the page that it kept is in the
    /// answer, but for one that the host brought along, of which nothing is said. So is the number of
    /// tables, which the state leaves out.
    pub fn readings(self, got: Answer) -> impl Iterator<Item = Self> {
        let named = got.map_or(NONE, |[_, page]| page);
        let (first, second) = match self {
            Self::HostReclaimGuest { handle, base, top, refill, .. } => {
                let kept = |kept| Self::HostReclaimGuest { handle, base, top, refill, kept };
                (kept(named), (named == NONE && refill != NONE).then(|| kept(refill)))
            }
            Self::HostReclaimDyingGuest { handle, base, top, .. } => {
                (Self::HostReclaimDyingGuest { handle, base, top, kept: named }, None)
            }
            Self::HostApplyEmpty { handle, base, top, .. } => {
                (Self::HostApplyEmpty { handle, base, top, kept: named }, None)
            }
            Self::VmCreate { flags, bits, vm_pfn, vm_nr, root_pfn, root_nr, reserve, .. } => {
                let handle = got.map_or(0, |[handle, _]| handle);
                let named = |pending| Self::VmCreate {
                    flags,
                    bits,
                    vm_pfn,
                    vm_nr,
                    root_pfn,
                    root_nr,
                    reserve,
                    handle,
                    pending,
                };
                // Which of the two the CPU makes of it is left out.
                (named(0), Some(named(1)))
            }
            // How much there is to measure is left out, and so is how much of it is done.
            Self::VmFinalise { handle, .. } => {
                (Self::VmFinalise { handle, whole: u64::from(got != Err(Errno::Eagain)) }, None)
            }
            Self::HostUnshareUnprotected { handle, gfn, nr, .. } => {
                let [first, done] = got.unwrap_or_default();
                (Self::HostUnshareUnprotected { handle, gfn, nr, first, done }, None)
            }
            Self::S2Snapshot { target, pfn, flags, .. } => {
                let tables = got.map_or(0, |[tables, _]| tables);
                (Self::S2Snapshot { target, pfn, flags, tables }, None)
            }
            other => (other, None),
        };
        core::iter::once(first).chain(second)
    }

    /// True for calls whose second word says something: a page, or [`NONE`], or how many frames.
    const fn has_two_words(self) -> bool {
        matches!(
            self,
            Self::HostReclaimGuest { .. }
                | Self::HostReclaimDyingGuest { .. }
                | Self::HostApplyEmpty { .. }
                | Self::HostUnshareUnprotected { .. }
                | Self::HostAgeGuest { .. }
        )
    }

    /// The same call on a range that ends where the answer `done` says, if it may end before its
    /// range does for a reason that the state leaves out: 4096 table entries were looked at, 512 were
    /// written, or there was no table for the next one or to note a further page of a chain.
    fn cut_short(self, done: u64) -> Option<Self> {
        match self {
            Self::HostReclaimGuest { handle, base, refill, kept, .. } if far(base, done) => {
                Some(Self::HostReclaimGuest { handle, base, top: done, refill, kept })
            }
            Self::HostReclaimDyingGuest { handle, base, kept, .. } if far(base, done) => {
                Some(Self::HostReclaimDyingGuest { handle, base, top: done, kept })
            }
            Self::VmTopup { handle, pfn, .. } => Some(Self::VmTopup { handle, pfn, nr: done }),
            Self::HostInitRipas { handle, base, .. } => Some(Self::HostInitRipas { handle, base, top: done }),
            Self::HostApplyRam { handle, base, destroyed, .. } => {
                Some(Self::HostApplyRam { handle, base, top: done, destroyed })
            }
            Self::HostApplyEmpty { handle, base, kept, .. } => {
                Some(Self::HostApplyEmpty { handle, base, top: done, kept })
            }
            _ => None,
        }
    }

    /// True where `errno` can come from what the state leaves out: a pool or a store is dry or full,
    /// a lent page is in use, a CPU has a vCPU.
    fn may_refuse(self, errno: Errno) -> bool {
        match self {
            // What this build and this CPU cannot do, that all names are taken, and how many pages
            // EL2's own table lacks, are left out.
            Self::VmCreate { .. } => {
                matches!(errno, Errno::Eopnotsupp | Errno::Erange | Errno::Ebusy | Errno::Enomem)
            }
            // That the index is taken is left out.
            Self::VcpuCreate { .. } => errno == Errno::Eexist || errno == Errno::Enomem,
            // A vCPU of the VM is loaded.
            Self::HypDonateHost { .. } | Self::VmTeardownStart { .. } => errno == Errno::Ebusy,
            Self::VmTopup { .. } => errno == Errno::Enomem || errno == Errno::E2big,
            // What the descriptor and the chain say is left out; so is whether a VM allows it.
            Self::S2Snapshot { target, .. } => match errno {
                Errno::Eperm | Errno::Einval | Errno::Erange | Errno::Ebusy | Errno::Enomem | Errno::Eio => {
                    true
                }
                errno => errno == Errno::Eacces && target != 0,
            },
            Self::HypPin { .. }
            | Self::HostDonateHyp { .. }
            | Self::HostDonateGuest { .. }
            | Self::HostDonateNoTag { .. }
            | Self::HostUpgradeGuest { .. }
            | Self::VmPopulate { .. }
            | Self::HostShareGuest { .. }
            | Self::HostShareUnprotected { .. }
            | Self::HostInitRipas { .. }
            | Self::HostApplyRam { .. }
            | Self::HostApplyEmpty { .. }
            | Self::GuestShareHost { .. }
            | Self::GuestUnshareHost { .. }
            | Self::GuestRelinquishHost { .. }
            | Self::GuestMapGuard { .. } => errno == Errno::Enomem,
            _ => false,
        }
    }
}

impl Call {
    /// True where `errno` comes from what the state leaves out and before what the state refuses.
    const fn may_refuse_first(self, errno: Errno) -> bool {
        match self {
            // Before the pages: what this build and this CPU can do, and whether a name is free.
            Self::VmCreate { .. } => matches!(errno, Errno::Eopnotsupp | Errno::Erange | Errno::Ebusy),
            Self::VcpuCreate { .. } => matches!(errno, Errno::Eexist),
            // Whether a VM lets itself be looked at.
            Self::S2Snapshot { target: 1.., .. } => matches!(errno, Errno::Eacces),
            _ => false,
        }
    }

    /// True for a call that puts a page that may exist into a VM's store.
    const fn fills_a_store(self) -> bool {
        matches!(self, Self::VmTopup { pfn: 0..FRAMES, .. })
    }
}

/// True if `done` is so far from `base` that 4096 entries lie between them at least.
const fn far(base: u64, done: u64) -> bool {
    done.saturating_sub(base) >= 4096 << 12
}

impl<const N: usize> State<N> {
    /// Makes `call`, to which the real machine answered `got`, in the one way that gives this
    /// answer: as specified, refused for a reason that the state leaves out, or ended early. The
    /// state after it goes to `after`.
    ///
    /// # Errors
    /// [`Refusal`] if there is no such way; `after` is of no use then.
    pub fn accept(&self, call: Call, got: Answer, after: &mut Self) -> Result<(), Refusal> {
        let word = got.map(|[word, _]| word);
        after.clone_from(self);
        let expected = after.call(call);
        let second = got.map_or(0, |[_, second]| second);
        match (expected, word) {
            // The call was read with what is said there.
            _ if second != 0 && !call.has_two_words() => {}
            _ if word == expected => return Ok(()),
            (Ok(_), Err(errno)) if call.may_refuse(errno) => {
                after.clone_from(self);
                return Ok(());
            }
            (Err(_), Err(errno)) if call.may_refuse_first(errno) => return Ok(()),
            // That the store is full is found out before the page is looked at.
            (Err(Errno::Eperm | Errno::Erange), Err(Errno::E2big)) if call.fills_a_store() => return Ok(()),
            (Ok(_), Ok(done)) => {
                if let Some(shorter) = call.cut_short(done) {
                    after.clone_from(self);
                    if after.call(shorter) == word {
                        return Ok(());
                    }
                }
            }
            _ => {}
        }
        Err(Refusal { call, expected, got })
    }
}
