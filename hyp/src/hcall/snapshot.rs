//! S2_SNAPSHOT_QUERY and S2_SNAPSHOT. Feature `debug-snapshot` only.
#![forbid(unsafe_code)]

use super::{Answer, HostRegs, NotACall, Refusal};
use crate::addr::Pfn;
use crate::hw::Machine;
use crate::mem_protect::Hypervisor;
use crate::snapshot::{Facts, Refused, Target};
use abi::snapshot::SnapshotFlags;
use abi::{Errno, HostFn};

/// A call about a snapshot with arguments that are well-formed; a target may name no VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are the arguments of the call, see docs/abi.md")]
pub enum SnapshotCall {
    Query { target: u64 },
    Take { target: u64, desc: Pfn, flags: SnapshotFlags },
}

impl SnapshotCall {
    /// The call `function` with its arguments, if it is one of these.
    pub(super) fn decode(function: HostFn, regs: &HostRegs) -> Result<Option<Self>, NotACall> {
        let &[_, target, x2, x3, ..] = regs;
        Ok(Some(match function {
            HostFn::S2SnapshotQuery => Self::Query { target },
            HostFn::S2Snapshot => {
                let flags = SnapshotFlags::from_bits(x3).ok_or(Errno::Einval)?;
                Self::Take { target, desc: Pfn::new(x2)?, flags }
            }
            _ => return Ok(None),
        }))
    }

    /// Whose table is meant: [`abi::snapshot::HOST`], or a VM's handle.
    #[must_use]
    pub const fn target(self) -> u64 {
        match self {
            Self::Query { target } | Self::Take { target, .. } => target,
        }
    }

    /// Makes the call, whose target has been found.
    pub(super) fn serve<M: Machine>(self, hyp: &Hypervisor<M>, hw: &M, target: &Target<'_, M>) -> Answer {
        match self {
            Self::Query { .. } => {
                let Facts { geometry, pgd_pages, tables } = hyp.s2_snapshot_query(hw, target)?;
                Ok([geometry, u64::from(pgd_pages) << 32 | u64::from(tables)])
            }
            Self::Take { desc, flags, .. } => {
                let tables = hyp.s2_snapshot(hw, target, desc, flags)?;
                Ok([tables.into(), 0])
            }
        }
    }
}

impl From<Refused> for Refusal {
    fn from(Refused { error, needed, index }: Refused) -> Self {
        Self { error, outputs: [needed.into(), index] }
    }
}
