//! Calls of a development image: the audit and fault injection. docs/abi.md, "Calls of a
//! development image"; the release image does not have this module.
#![forbid(unsafe_code)]

use super::HostRegs;
use crate::error::Error;
use crate::fault::{Faults, Which};
use crate::hw::Machine;
use crate::mem_protect::{Audit, Finding, Hypervisor, Tenants};
use abi::inspect::{FINDINGS, Figure, InspectFn, LOOK, MAX_FINDINGS};
use abi::{Errno, FunctionId, smccc};

/// A call whose arguments are well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InspectCall {
    /// HYP_AUDIT: look, with the figures of one VM or of all.
    Look { whose: Option<u16> },
    /// HYP_AUDIT: one figure of the last look.
    Figure(Figure),
    /// HYP_AUDIT: a finding of the last look.
    Finding(usize),
    /// FI_ARM.
    Arm { which: Which, nth: u64 },
    /// FI_CLEAR.
    Clear,
    /// FI_STATS.
    Stats(Which),
}

impl InspectCall {
    fn new(function: InspectFn, regs: &HostRegs) -> Result<Self, Errno> {
        let &[_, x1, x2, ..] = regs;
        Ok(match function {
            InspectFn::HypAudit if x1 == LOOK => {
                let handle = u16::try_from(x2).map_err(|_| Errno::Enoent)?;
                Self::Look { whose: (handle != 0).then_some(handle) }
            }
            InspectFn::HypAudit => match (Figure::of(x1), x1.checked_sub(FINDINGS)) {
                (Some(figure), _) => Self::Figure(figure),
                (None, Some(nth)) => {
                    let nth = usize::try_from(nth).ok().filter(|nth| *nth < MAX_FINDINGS);
                    Self::Finding(nth.ok_or(Errno::Einval)?)
                }
                (None, None) => return Err(Errno::Einval),
            },
            InspectFn::FiArm => Self::Arm { which: which(x1)?, nth: x2 },
            InspectFn::FiClear => Self::Clear,
            InspectFn::FiStats => Self::Stats(which(x1)?),
        })
    }
}

fn which(number: u64) -> Result<Which, Errno> {
    Which::of(number).ok_or(Errno::Einval)
}

/// Answers the call in `regs`; false if it is none of these.
pub(super) fn dispatch<M: Machine, T: Tenants<M>>(
    hyp: &Hypervisor<M>,
    vms: &T,
    hw: &M,
    regs: &mut HostRegs,
) -> bool {
    let [x0, ..] = *regs;
    let Some(function) = FunctionId::from_reg(x0).and_then(|id| InspectFn::try_from(id).ok()) else {
        return false;
    };
    let result = InspectCall::new(function, regs).map_err(Error::from);
    let (x1, [x2, x3]) = match result.and_then(|call| serve(hyp, vms, hw, call)) {
        Ok(outputs) => (0, outputs),
        Err(e) => (e.errno().to_reg(), [0, 0]),
    };
    [regs[0], regs[1], regs[2], regs[3]] = [smccc::SUCCESS, x1, x2, x3];
    true
}

fn serve<M: Machine, T: Tenants<M>>(
    hyp: &Hypervisor<M>,
    vms: &T,
    hw: &M,
    call: InspectCall,
) -> Result<[u64; 2], Error> {
    let faults: &Faults = hyp.faults();
    Ok(match call {
        InspectCall::Look { whose } => {
            let audit: Audit = hyp.audit(hw, whose, vms)?;
            [audit.found(), audit.census.get(Figure::Loose)]
        }
        InspectCall::Figure(figure) => [hyp.audited(hw).census.get(figure), 0],
        InspectCall::Finding(nth) => match hyp.audited(hw).findings().get(nth) {
            Some(&Finding { damage, handle, frame }) => [damage.number() | u64::from(handle) << 16, frame],
            None => [0, 0],
        },
        InspectCall::Arm { which, nth } => {
            faults.arm(which, nth);
            [0, 0]
        }
        InspectCall::Clear => {
            faults.clear();
            [0, 0]
        }
        InspectCall::Stats(which) => {
            let stats = faults.stats(which);
            [stats.hits, stats.fired]
        }
    })
}
