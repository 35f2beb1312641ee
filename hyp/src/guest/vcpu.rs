//! A vCPU: its registers, its exit record, and the exit that waits for an answer.
//!
//! Invariant: a vCPU is a value that moves. It is in its VM, or on the one CPU that loaded it;
//! whoever has it needs no lock. So no vCPU runs twice, and a VM that misses one is not torn down.
#![forbid(unsafe_code)]

use super::context::VcpuContext;
use super::exit::Abort;
use super::fault::{address_size_fault, sea};
use super::record::{Answer, ExitInfo};
use crate::addr::Ipa;
use crate::hw::WorldSwitch;
use crate::ipa_state::Request;
use crate::mem_protect::{OwnWords, Pinned};
use crate::mmio_guard::{PendingMmio, Transfer};
use abi::Errno;
use abi::exit::{ExitFlags, Resp};

/// One virtual CPU.
#[derive(Debug)]
pub(super) struct Vcpu {
    /// Its registers.
    pub(super) ctx: VcpuContext,
    /// Its index in the VM.
    pub(super) idx: u8,
    /// The host's page with its exit record.
    pub(super) record: Pinned,
    /// What the host may answer.
    pub(super) pending: Pending,
    /// The call that [`Pending::Realm`] is about, until the vCPU goes on.
    pub(super) realm_call: Option<RealmCall>,
    /// It has started and not been turned off since.
    pub(super) on: bool,
    repeat: Repeat,
}

/// An exit whose answer means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Pending {
    /// Every answer is a REPLAY.
    #[default]
    Nothing,
    /// DONE completes the access, SEA aborts it, MAP puts a page where it went.
    Mmio(PendingMmio, Abort),
    /// SEA aborts the access, unless the page would be the guest's own. MAP supplies the page.
    MemFault {
        /// The page.
        page: Ipa,
        /// The page would be the guest's own.
        private: bool,
        /// The access; none for a guest call on a page that is not there.
        abort: Option<Abort>,
    },
    /// The vCPU's [`RealmCall`] waits for its host.
    Realm,
    /// REJECT keeps the target off.
    CpuOn {
        /// The vCPU.
        target: u8,
    },
}

/// A call of a realm in which the host has a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RealmCall {
    /// REJECT says that the rest is not done. RIPAS_APPLY does it.
    Ripas(Request),
    /// DONE completes the HOST_CALL of the structure in these words.
    Host(OwnWords),
}

/// The MEM_FAULT that came last, and how often in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Repeat {
    fault: Option<(u64, ExitFlags)>,
    count: u32,
}

/// What an answer comes to that the pending exit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The access or call is tried again, or there is nothing to say.
    Replay,
    /// The access is done.
    Done(Transfer, u64),
    /// The access is an external abort.
    Abort(Abort),
    /// The vCPU's [`RealmCall`] has this answer.
    Realm(Resp),
    /// The host does, or does not, run `target`.
    CpuOn {
        /// The vCPU.
        target: u8,
        /// It does.
        accepted: bool,
    },
}

impl Pending {
    /// Sees that `answer` is one that this exit allows.
    ///
    /// # Errors
    /// EPERM: an abort on memory of the guest's own, by which a host could tell it that it has
    /// none.
    #[inline]
    pub(super) const fn check(&self, answer: &Answer) -> Result<(), Errno> {
        match (self, answer.resp) {
            (Self::MemFault { private: true, .. }, Resp::Sea) => Err(Errno::Eperm),
            _ => Ok(()),
        }
    }

    /// The page that a MAP supplies, and whether it would be the guest's own; `None` if the exit is not about one.
    pub(super) const fn wanted(&self) -> Option<(Ipa, bool)> {
        match self {
            Self::MemFault { page, private, .. } => Some((*page, *private)),
            Self::Mmio(access, _) => Some((Ipa::truncated(access.gpa), false)),
            Self::Nothing | Self::Realm | Self::CpuOn { .. } => None,
        }
    }

    /// What `answer`, which it allows, means for this exit.
    #[inline]
    pub(super) const fn reply(&self, answer: &Answer) -> Reply {
        match (self, answer.resp) {
            (Self::Mmio(access, _), Resp::Done) => Reply::Done(access.transfer, answer.mmio_data),
            (Self::MemFault { private: false, abort: Some(abort), .. } | Self::Mmio(_, abort), Resp::Sea) => {
                Reply::Abort(*abort)
            }
            (Self::Realm, resp) => Reply::Realm(resp),
            (Self::CpuOn { target }, resp) => {
                Reply::CpuOn { target: *target, accepted: !matches!(resp, Resp::Reject) }
            }
            (Self::Nothing | Self::Mmio(..) | Self::MemFault { .. }, _) => Reply::Replay,
        }
    }
}

/// True for the vCPU that runs without being asked for by another.
pub(super) const fn boots(idx: u8) -> bool {
    idx == 0
}

impl Vcpu {
    /// vCPU `idx` with registers `ctx`, on or off, and its exit record.
    pub(super) const fn new(idx: u8, ctx: VcpuContext, record: Pinned, on: bool) -> Self {
        Self {
            ctx,
            idx,
            record,
            pending: Pending::Nothing,
            realm_call: None,
            on,
            repeat: Repeat { fault: None, count: 0 },
        }
    }

    /// Its VM starts again: on if it is the one that boots, and nothing is pending. Registers are
    /// the host's to set.
    pub(super) const fn reset(&mut self) {
        self.on = boots(self.idx);
        self.pending = Pending::Nothing;
        self.other_exit();
    }

    /// The exit MEM_FAULT for `page`, with how often it came in a row.
    pub(super) fn mem_fault(&mut self, page: Ipa, flags: ExitFlags, abort: Option<Abort>) -> ExitInfo {
        let fault = Some((page.raw(), flags));
        let repeat = if self.repeat.fault == fault { self.repeat.count.saturating_add(1) } else { 0 };
        self.repeat = Repeat { fault, count: repeat };
        self.pending = Pending::MemFault { page, private: flags.contains(ExitFlags::PRIVATE), abort };
        ExitInfo::MemFault { page, flags, repeat }
    }

    /// An exit that is no MEM_FAULT came in between.
    pub(super) const fn other_exit(&mut self) {
        self.repeat.fault = None;
    }

    /// The loaded vCPU takes a synchronous external abort for `abort`.
    pub(super) fn inject_abort(&mut self, hw: &impl WorldSwitch, abort: &Abort) {
        let entry = sea(abort, self.ctx.pstate.raw(), hw.el1_state());
        hw.take_exception(&mut self.ctx, entry, Some(abort.far));
    }

    /// The loaded vCPU takes an address size fault for `abort`.
    pub(super) fn inject_address_size(&mut self, hw: &impl WorldSwitch, abort: &Abort) {
        let entry = address_size_fault(abort, self.ctx.pstate.raw(), hw.el1_state());
        hw.take_exception(&mut self.ctx, entry, Some(abort.far));
    }

    /// To the loaded vCPU the instruction does not exist.
    pub(super) fn inject_undefined(&mut self, hw: &impl WorldSwitch) {
        let entry = crate::exception::undefined(self.ctx.pstate.raw(), hw.el1_state());
        hw.take_exception(&mut self.ctx, entry, None);
    }
}
