//! Host calls: id -> typed arguments -> one function of a service -> typed result.
//!
//! This is the one border where registers become values: past [`HostCall`] nothing is a bare
//! word, and nothing is read twice. No logic of its own, no lock.
#![forbid(unsafe_code)]

#[cfg(feature = "fault-injection")]
mod inspect;
#[cfg(feature = "debug-snapshot")]
pub mod snapshot;
pub mod vm;

use crate::addr::{AddrError, Pfn, PfnRange};
use crate::error::Error;
use crate::hw::Machine;
use crate::mem_protect::Hypervisor;
use abi::host::MAX_PAGES;
use abi::{Errno, FunctionId, HostFn, caps, smccc};

/// x0..x17 of the host, as SMCCC passes them.
pub type HostRegs = [u64; 18];

/// A host call with arguments that are well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCall {
    /// HYP_CAPS.
    HypCaps,
    /// HOST_SHARE_HYP.
    HostShareHyp(Pfn),
    /// HOST_UNSHARE_HYP.
    HostUnshareHyp(Pfn),
    /// HOST_DONATE_HYP.
    HostDonateHyp(PfnRange),
    /// HYP_DONATE_HOST.
    HypDonateHost(PfnRange),
    /// S2_SNAPSHOT_QUERY or S2_SNAPSHOT of the host's table.
    #[cfg(feature = "debug-snapshot")]
    Snapshot(snapshot::SnapshotCall),
}

/// Why registers are no [`HostCall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotACall {
    /// No call of this build: x0 = -1 and no other register changes.
    Unknown,
    /// A call whose arguments make no sense.
    Malformed(Error),
}

impl From<AddrError> for NotACall {
    fn from(e: AddrError) -> Self {
        Self::Malformed(e.into())
    }
}

/// The function that x0 names, if it is one of the host's.
#[must_use]
#[inline]
pub fn function(regs: &HostRegs) -> Option<HostFn> {
    let [x0, ..] = *regs;
    HostFn::try_from(FunctionId::from_reg(x0)?).ok()
}

/// True if only [`vm::answer`] knows `function`, which is then not looked for here first.
#[must_use]
#[inline]
pub const fn concerns_vm(function: HostFn) -> bool {
    !matches!(
        function,
        HostFn::HypCaps
            | HostFn::HostShareHyp
            | HostFn::HostUnshareHyp
            | HostFn::HostDonateHyp
            | HostFn::HypDonateHost
            | HostFn::S2SnapshotQuery
            | HostFn::S2Snapshot
    )
}

impl HostCall {
    /// The call `function` with its arguments.
    #[inline]
    fn decode(function: HostFn, regs: &HostRegs) -> Result<Self, NotACall> {
        let &[_, x1, x2, ..] = regs;
        #[cfg(feature = "debug-snapshot")]
        if let Some(call) = snapshot::SnapshotCall::decode(function, regs)?
            && call.target() == abi::snapshot::HOST
        {
            return Ok(Self::Snapshot(call));
        }
        Ok(match function {
            HostFn::HypCaps => Self::HypCaps,
            HostFn::HostShareHyp => Self::HostShareHyp(Pfn::new(x1)?),
            HostFn::HostUnshareHyp => Self::HostUnshareHyp(Pfn::new(x1)?),
            HostFn::HostDonateHyp => Self::HostDonateHyp(pages(x1, x2)?),
            HostFn::HypDonateHost => Self::HypDonateHost(pages(x1, x2)?),
            _ => return Err(NotACall::Unknown),
        })
    }
}

/// The pages of a call that works on a range: EINVAL (none, wraps), E2BIG (more than
/// [`MAX_PAGES`]), ERANGE (beyond physical memory), in this order.
fn pages(pfn: u64, nr: u64) -> Result<PfnRange, NotACall> {
    match PfnRange::new(pfn, nr) {
        Err(e @ (AddrError::Empty | AddrError::Overflow)) => Err(e.into()),
        _ if nr > MAX_PAGES => Err(NotACall::Malformed(Errno::E2big.into())),
        range => Ok(range?),
    }
}

/// x2 and x3 of a reply.
type Outputs = [u64; 2];

/// What a call answers when it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    error: Error,
    outputs: Outputs,
}

type Answer = Result<Outputs, Refusal>;

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, outputs: [0; 2] }
    }
}

/// Answers the host call in `regs`: x0..x3 are replaced, or x0 alone if there is no such call.
#[inline]
pub fn dispatch<M: Machine>(hyp: &Hypervisor<M>, hw: &M, regs: &mut HostRegs) {
    if function(regs).is_some_and(|function| answer(hyp, hw, function, regs)) {
        return;
    }
    #[cfg(feature = "fault-injection")]
    if inspect::dispatch(hyp, &(), hw, regs) {
        return;
    }
    regs[0] = smccc::NOT_SUPPORTED;
}

/// Answers the host call `function`, whose arguments are in `regs`; false, and nothing is touched,
/// if it is none of these.
#[inline]
#[must_use]
pub fn answer<M: Machine>(hyp: &Hypervisor<M>, hw: &M, function: HostFn, regs: &mut HostRegs) -> bool {
    let result = match HostCall::decode(function, regs) {
        Ok(call) => serve(hyp, hw, call),
        Err(NotACall::Malformed(e)) => Err(e.into()),
        Err(NotACall::Unknown) => return false,
    };
    let (x1, [x2, x3]) = match result {
        Ok(outputs) => (0, outputs),
        Err(e) => (e.error.errno().to_reg(), e.outputs),
    };
    [regs[0], regs[1], regs[2], regs[3]] = [smccc::SUCCESS, x1, x2, x3];
    true
}

#[inline]
fn serve<M: Machine>(hyp: &Hypervisor<M>, hw: &M, call: HostCall) -> Answer {
    let done = match call {
        HostCall::HypCaps => return Ok([caps::VERSION, hyp.caps().bits()]),
        HostCall::HostShareHyp(page) => hyp.host_share_hyp(hw, page),
        HostCall::HostUnshareHyp(page) => hyp.host_unshare_hyp(hw, page),
        HostCall::HostDonateHyp(pages) => hyp.host_donate_hyp(hw, pages),
        HostCall::HypDonateHost(pages) => hyp.hyp_donate_host(hw, pages),
        #[cfg(feature = "debug-snapshot")]
        HostCall::Snapshot(call) => return call.serve(hyp, hw, &crate::snapshot::Target::Host),
    };
    Ok(done.map(|()| [0, 0])?)
}

#[cfg(test)]
mod tests {
    use super::{HostCall, HostRegs, NotACall, function};
    use crate::addr::{PFN_LIMIT, Pfn, PfnRange};
    use abi::{Errno, HostFn};

    fn decode(x0: u64, x1: u64, x2: u64) -> Result<HostCall, NotACall> {
        let mut regs: HostRegs = [0xdead; 18];
        regs[..3].copy_from_slice(&[x0, x1, x2]);
        HostCall::decode(function(&regs).ok_or(NotACall::Unknown)?, &regs)
    }

    #[test]
    fn a_call_that_concerns_vms_is_none_of_the_hosts_own() {
        for function in HostFn::ALL.into_iter().filter(|function| super::concerns_vm(*function)) {
            assert_eq!(HostCall::decode(function, &[0; 18]), Err(NotACall::Unknown), "{function:?}");
        }
    }

    fn call(f: HostFn, x1: u64, x2: u64) -> Result<HostCall, Errno> {
        decode(u64::from(f.id()), x1, x2).map_err(|e| match e {
            NotACall::Malformed(e) => e.errno(),
            NotACall::Unknown => panic!("{f:?} is a call"),
        })
    }

    #[test]
    fn an_id_with_high_bits_or_of_no_call_is_unknown() {
        let caps = u64::from(HostFn::HypCaps.id());
        for x0 in [0, 1, 4, caps - 1, caps + 0x80, caps | 1 << 32, u64::MAX] {
            assert_eq!(decode(x0, 0, 0), Err(NotACall::Unknown), "{x0:#x}");
        }
        assert_eq!(decode(caps, 0, 0), Ok(HostCall::HypCaps));
    }

    #[test]
    fn a_page_beyond_physical_memory_is_erange() {
        for f in [HostFn::HostShareHyp, HostFn::HostUnshareHyp] {
            for pfn in [PFN_LIMIT, 1 << 52, u64::MAX] {
                assert_eq!(call(f, pfn, 0), Err(Errno::Erange));
            }
        }
        let last = Pfn::new(PFN_LIMIT - 1).unwrap();
        assert_eq!(call(HostFn::HostShareHyp, PFN_LIMIT - 1, 0), Ok(HostCall::HostShareHyp(last)));
    }

    #[test]
    fn a_range_is_checked_for_einval_then_e2big_then_erange() {
        for f in [HostFn::HostDonateHyp, HostFn::HypDonateHost] {
            assert_eq!(call(f, u64::MAX, 0), Err(Errno::Einval));
            assert_eq!(call(f, 1, u64::MAX), Err(Errno::Einval));
            assert_eq!(call(f, 0, 513), Err(Errno::E2big));
            assert_eq!(call(f, 0, u64::MAX), Err(Errno::E2big));
            assert_eq!(call(f, PFN_LIMIT, 513), Err(Errno::E2big));
            assert_eq!(call(f, PFN_LIMIT - 511, 512), Err(Errno::Erange));
            assert_eq!(call(f, 1 << 52, 1), Err(Errno::Erange));
            assert_eq!(call(f, (1 << 52) - 1, 512), Err(Errno::Erange));
        }
        let pages = PfnRange::new(7, 512).unwrap();
        assert_eq!(call(HostFn::HostDonateHyp, 7, 512), Ok(HostCall::HostDonateHyp(pages)));
        assert_eq!(call(HostFn::HypDonateHost, 7, 512), Ok(HostCall::HypDonateHost(pages)));
    }
}
