//! Host calls about VMs and vCPUs, and the one entry for all host calls of a machine that runs
//! guests.
#![forbid(unsafe_code)]

use super::{HostRegs, NotACall};
use crate::addr::{IpaRange, MAX_PA_BITS, Pfn};
use crate::error::Error;
use crate::guest::{CpuState, Finish, FinishError, Named, Progress, VcpuRequest, VmRequest, Vms};
use crate::hw::GuestMachine;
use crate::mem_protect::{GuestPages, Hypervisor, Reclaimed};
use crate::pgtable::{Access, Prot};
use abi::vm::{GuestProt, NO_PAGE, PopulateFlags, VmFlags};
use abi::{Errno, FunctionId, HostFn, smccc};

/// A host call about a VM with arguments that are well-formed; a handle may name no VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are the arguments of the call, see docs/abi.md")]
pub enum VmCall {
    VmCreate(VmRequest),
    VcpuCreate {
        handle: u64,
        vcpu: VcpuRequest,
    },
    VmTopup {
        handle: u64,
        head: Pfn,
        nr: u64,
    },
    VmPopulate {
        handle: u64,
        page: GuestPages,
        measure: bool,
    },
    VmFinalise {
        handle: u64,
    },
    VmTeardownStart {
        handle: u64,
    },
    VmTeardownFinish {
        handle: u64,
        budget: u64,
    },
    GuestDonate {
        handle: u64,
        pages: GuestPages,
        prot: Prot,
    },
    GuestReclaim {
        handle: u64,
        range: IpaRange,
        refill: Option<Pfn>,
    },
    ReclaimDying {
        handle: u64,
        range: IpaRange,
    },
    GuestShare {
        handle: u64,
        pages: GuestPages,
        access: Access,
    },
    GuestUnshare {
        handle: u64,
        gfn: u64,
        nr: u64,
    },
    GuestRelax {
        handle: u64,
        gfn: u64,
        access: Access,
    },
    GuestWrprotect {
        handle: u64,
        gfn: u64,
        nr: u64,
    },
    GuestAge {
        handle: u64,
        gfn: u64,
        nr: u64,
        clear: bool,
    },
    GuestTlbFlush {
        handle: u64,
    },
    VcpuLoad {
        handle: u64,
        idx: u64,
    },
    VcpuPut,
    VcpuGetReg {
        reg: u64,
    },
    VcpuSetReg {
        reg: u64,
        value: u64,
    },
    #[cfg(feature = "debug-snapshot")]
    Snapshot(super::snapshot::SnapshotCall),
    VmReset {
        handle: u64,
    },
    VmInitRipas {
        handle: u64,
        range: IpaRange,
    },
    RipasApply {
        handle: u64,
        idx: u64,
        range: IpaRange,
    },
    UnprotMap {
        handle: u64,
        pages: GuestPages,
        write: bool,
    },
    UnprotUnmap {
        handle: u64,
        gfn: u64,
        nr: u64,
    },
    MteUpgrade {
        handle: u64,
        gfn: u64,
        new: Pfn,
    },
    VmTagInfo {
        handle: u64,
        gfn: u64,
    },
}

impl From<Errno> for NotACall {
    fn from(e: Errno) -> Self {
        Self::Malformed(e.into())
    }
}

impl From<Error> for NotACall {
    fn from(e: Error) -> Self {
        Self::Malformed(e)
    }
}

/// A page, or none for all ones.
fn optional(pfn: u64) -> Result<Option<Pfn>, NotACall> {
    if pfn == NO_PAGE { Ok(None) } else { Ok(Some(Pfn::new(pfn)?)) }
}

/// A range by byte addresses: EINVAL unless aligned, not empty and ascending; ERANGE beyond 48 bits.
fn bytes(base: u64, top: u64) -> Result<IpaRange, NotACall> {
    Ok(IpaRange::new(base, top, MAX_PA_BITS)?)
}

/// Permissions of a page that is donated, EINVAL for others: it allows everything, but for tags.
fn private(prot: u64) -> Result<Prot, NotACall> {
    let all = GuestProt::all().difference(GuestProt::NO_TAG);
    match GuestProt::from_bits(prot) {
        Some(prot) if prot == all => Ok(Prot::RWX),
        Some(prot) if prot == GuestProt::all() => Ok(Prot::RWX | Prot::NO_TAG),
        _ => Err(Errno::Einval.into()),
    }
}

/// Permissions of a page that is lent: EINVAL for unknown bits and NO_TAG, which its memory decides about.
fn access(prot: u64) -> Result<Access, NotACall> {
    let prot = GuestProt::from_bits(prot).ok_or(Errno::Einval)?;
    if prot.contains(GuestProt::NO_TAG) {
        return Err(Errno::Einval.into());
    }
    let mut access = Access::empty();
    access.set(Access::R, prot.contains(GuestProt::R));
    access.set(Access::W, prot.contains(GuestProt::W));
    access.set(Access::X, prot.contains(GuestProt::X));
    Ok(access)
}

/// A word that is 0 or 1: EINVAL.
fn yes_or_no(word: u64) -> Result<bool, Errno> {
    match word {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Errno::Einval),
    }
}

impl VmCall {
    /// The call `function` with its arguments.
    #[inline(always)]
    fn decode(function: HostFn, regs: &HostRegs) -> Result<Self, NotACall> {
        let &[_, x1, x2, x3, x4, x5, x6, x7, ..] = regs;
        let handle = x1;
        #[cfg(feature = "debug-snapshot")]
        if let Some(call) = super::snapshot::SnapshotCall::decode(function, regs)?
            && call.target() != abi::snapshot::HOST
        {
            return Ok(Self::Snapshot(call));
        }
        Ok(match function {
            HostFn::VmCreate => Self::VmCreate(VmRequest {
                flags: VmFlags::from_bits(x1).ok_or(Errno::Einval)?,
                ipa_bits: x2,
                vm: Named { pfn: x3, nr: x4 },
                root: Named { pfn: x5, nr: x6 },
                reserve: optional(x7)?,
            }),
            HostFn::VcpuCreate => Self::VcpuCreate {
                handle,
                vcpu: VcpuRequest {
                    idx: u8::try_from(x2).map_err(|_| Errno::Einval)?,
                    pages: Named { pfn: x3, nr: x4 },
                    record: Pfn::new(x5)?,
                    pc: x6,
                    x0: x7,
                },
            },
            HostFn::VmTopup => Self::VmTopup { handle, head: Pfn::new(x2)?, nr: x3 },
            HostFn::VmPopulate => {
                let flags = PopulateFlags::from_bits(x4).ok_or(Errno::Einval)?;
                let page = GuestPages::new(x2, x3, abi::vm::ORDER_PAGE)?;
                Self::VmPopulate { handle, page, measure: flags.contains(PopulateFlags::MEASURE) }
            }
            HostFn::VmFinalise => Self::VmFinalise { handle },
            HostFn::VmTeardownStart => Self::VmTeardownStart { handle },
            HostFn::VmTeardownFinish => Self::VmTeardownFinish { handle, budget: x2 },
            HostFn::GuestDonate => {
                Self::GuestDonate { handle, pages: GuestPages::new(x2, x3, x4)?, prot: private(x5)? }
            }
            HostFn::GuestReclaim => {
                Self::GuestReclaim { handle, range: bytes(x2, x3)?, refill: optional(x4)? }
            }
            HostFn::ReclaimDying => Self::ReclaimDying { handle, range: bytes(x2, x3)? },
            HostFn::GuestShare => {
                Self::GuestShare { handle, pages: GuestPages::new(x2, x3, x4)?, access: access(x5)? }
            }
            HostFn::GuestUnshare => Self::GuestUnshare { handle, gfn: x2, nr: x3 },
            HostFn::GuestRelax => Self::GuestRelax { handle, gfn: x2, access: access(x3)? },
            HostFn::GuestWrprotect => Self::GuestWrprotect { handle, gfn: x2, nr: x3 },
            HostFn::GuestAge => Self::GuestAge { handle, gfn: x2, nr: x3, clear: yes_or_no(x4)? },
            HostFn::GuestTlbFlush => Self::GuestTlbFlush { handle },
            HostFn::VcpuLoad => Self::VcpuLoad { handle, idx: x2 },
            HostFn::VcpuPut => Self::VcpuPut,
            HostFn::VcpuGetReg => Self::VcpuGetReg { reg: x1 },
            HostFn::VcpuSetReg => Self::VcpuSetReg { reg: x1, value: x2 },
            HostFn::VmReset => Self::VmReset { handle },
            HostFn::VmInitRipas => Self::VmInitRipas { handle, range: bytes(x2, x3)? },
            HostFn::RipasApply => Self::RipasApply { handle, idx: x2, range: bytes(x3, x4)? },
            HostFn::UnprotMap => {
                Self::UnprotMap { handle, pages: GuestPages::new(x2, x3, x4)?, write: yes_or_no(x5)? }
            }
            HostFn::UnprotUnmap => Self::UnprotUnmap { handle, gfn: x2, nr: x3 },
            HostFn::MteUpgrade => Self::MteUpgrade { handle, gfn: x2, new: Pfn::new(x3)? },
            HostFn::VmTagInfo => Self::VmTagInfo { handle, gfn: x2 },
            _ => return Err(NotACall::Unknown),
        })
    }
}

/// x1 of a reply as an errno, and x2 and x3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reply {
    errno: Option<Errno>,
    outputs: [u64; 2],
}

impl Reply {
    const fn ok(x2: u64, x3: u64) -> Self {
        Self { errno: None, outputs: [x2, x3] }
    }

    #[inline(always)]
    fn put(self, regs: &mut HostRegs) {
        let [x2, x3] = self.outputs;
        let x1 = self.errno.map_or(0, Errno::to_reg);
        [regs[0], regs[1], regs[2], regs[3]] = [smccc::SUCCESS, x1, x2, x3];
    }
}

impl From<Error> for Reply {
    fn from(e: Error) -> Self {
        let x3 = if let Error::NoTables(lacks) = e { u64::from(lacks) } else { 0 };
        Self { errno: Some(e.errno()), outputs: [0, x3] }
    }
}

impl<T> From<Result<T, Error>> for Reply
where
    T: Into<Self>,
{
    fn from(result: Result<T, Error>) -> Self {
        result.map_or_else(Self::from, Into::into)
    }
}

impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::ok(0, 0)
    }
}

impl From<u64> for Reply {
    fn from(x2: u64) -> Self {
        Self::ok(x2, 0)
    }
}

impl From<Reclaimed> for Reply {
    fn from(done: Reclaimed) -> Self {
        Self::ok(done.end, done.retained.map_or(NO_PAGE, Pfn::raw))
    }
}

impl From<super::Answer> for Reply {
    fn from(answer: super::Answer) -> Self {
        match answer {
            Ok([x2, x3]) => Self::ok(x2, x3),
            Err(refusal) => Self { errno: Some(refusal.error.errno()), outputs: refusal.outputs },
        }
    }
}

impl From<Progress> for Reply {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::Done => Self::ok(0, 0),
            Progress::Again(next) => Self { errno: Some(Errno::Eagain), outputs: [next.raw(), 0] },
        }
    }
}

impl From<Result<Finish, FinishError>> for Reply {
    fn from(result: Result<Finish, FinishError>) -> Self {
        match result {
            Ok(Finish::Gone(chain)) => Self::ok(chain.head(), chain.count()),
            Ok(Finish::Again(chain)) => {
                Self { errno: Some(Errno::Eagain), outputs: [chain.head(), chain.count()] }
            }
            Err(FinishError::Owns(ipa)) => Self { errno: Some(Errno::Ebusy), outputs: [ipa.raw(), 0] },
            Err(FinishError::Other(e)) => e.into(),
        }
    }
}

/// Answers the host call in `regs` on this CPU: x0..x3 are replaced, or x0 alone if there is no
/// such call.
pub fn dispatch<M: GuestMachine>(
    hyp: &Hypervisor<M>,
    vms: &Vms<M>,
    hw: &M,
    cpu: &mut CpuState<M>,
    regs: &mut HostRegs,
) {
    if is_run(regs) {
        return run(hyp, vms, hw, cpu, regs);
    }
    let function = super::function(regs);
    let hosts_own = function.filter(|function| !super::concerns_vm(*function));
    if !hosts_own.is_some_and(|function| super::answer(hyp, hw, function, regs))
        && !answer(hyp, vms, hw, cpu, function, regs)
    {
        regs[0] = smccc::NOT_SUPPORTED;
    }
}

/// True if the call in `regs` is VCPU_RUN. It is most of the calls of a host that runs guests: it
/// goes to [`run`] without being compared with the others.
#[inline]
#[must_use]
pub fn is_run(regs: &HostRegs) -> bool {
    let [x0, ..] = *regs;
    FunctionId::from_reg(x0).is_some_and(|id| id.raw() == HostFn::VcpuRun.id())
}

/// Answers VCPU_RUN, which has no arguments.
#[inline]
pub fn run<M: GuestMachine>(
    hyp: &Hypervisor<M>,
    vms: &Vms<M>,
    hw: &M,
    cpu: &mut CpuState<M>,
    regs: &mut HostRegs,
) {
    Reply::from(vms.vcpu_run(hyp, hw, cpu)).put(regs);
}

/// Answers the host call `function` about a VM, whose arguments are in `regs`; false, and nothing is
/// touched, if it is none. If x0 names no function of the host's, it may be a call of a development
/// image.
#[must_use]
pub fn answer<M: GuestMachine>(
    hyp: &Hypervisor<M>,
    vms: &Vms<M>,
    hw: &M,
    cpu: &mut CpuState<M>,
    function: Option<HostFn>,
    regs: &mut HostRegs,
) -> bool {
    let call = function.ok_or(NotACall::Unknown).and_then(|function| VmCall::decode(function, regs));
    let reply = match call {
        Ok(call) => serve(hyp, vms, hw, cpu, call),
        Err(NotACall::Malformed(e)) => e.into(),
        Err(NotACall::Unknown) => {
            #[cfg(feature = "fault-injection")]
            return super::inspect::dispatch(hyp, vms, hw, regs);
            #[cfg(not(feature = "fault-injection"))]
            return false;
        }
    };
    reply.put(regs);
    true
}

// Inlined: what `decode` found out need not be written down and asked again.
#[inline(always)]
fn serve<M: GuestMachine>(
    hyp: &Hypervisor<M>,
    vms: &Vms<M>,
    hw: &M,
    cpu: &mut CpuState<M>,
    call: VmCall,
) -> Reply {
    match call {
        VmCall::VcpuLoad { handle, idx } => vms.vcpu_load(hw, cpu, handle, idx).into(),
        VmCall::VcpuPut => vms.vcpu_put(hw, cpu).into(),
        VmCall::VcpuGetReg { reg } => vms.vcpu_get_reg(cpu, reg).into(),
        VmCall::VcpuSetReg { reg, value } => vms.vcpu_set_reg(cpu, reg, value).into(),
        VmCall::VmReset { handle } => vms.vm_reset(hyp, hw, handle).into(),
        VmCall::VmInitRipas { handle, range } => vms.vm_init_ripas(hyp, hw, handle, range).into(),
        VmCall::RipasApply { handle, idx, range } => {
            vms.ripas_apply(hyp, hw, cpu, (handle, idx), range).into()
        }
        VmCall::UnprotMap { handle, pages, write } => {
            vms.unprot_map(hyp, hw, cpu, handle, pages, write).into()
        }
        VmCall::UnprotUnmap { handle, gfn, nr } => {
            let went = vms.unprot_unmap(hyp, hw, handle, gfn, nr);
            went.map_or_else(Reply::from, |(first, pages)| Reply::ok(first, pages))
        }
        VmCall::MteUpgrade { handle, gfn, new } => vms.mte_upgrade(hyp, hw, cpu, handle, gfn, new).into(),
        VmCall::VmTagInfo { handle, gfn } => vms.vm_tag_info(hw, handle, gfn).map(|tags| tags as u64).into(),
        VmCall::VmCreate(request) => vms.vm_create(hyp, hw, &request).map(u64::from).into(),
        VmCall::VcpuCreate { handle, vcpu } => vms.vcpu_create(hyp, hw, handle, &vcpu).into(),
        VmCall::VmTopup { handle, head, nr } => vms.vm_topup(hyp, hw, handle, head, nr).into(),
        VmCall::VmPopulate { handle, page, measure } => {
            vms.vm_populate(hyp, hw, cpu, handle, page, measure).into()
        }
        VmCall::VmFinalise { handle } => vms.vm_finalise(hw, handle).into(),
        VmCall::VmTeardownStart { handle } => vms.vm_teardown_start(hw, handle).into(),
        VmCall::VmTeardownFinish { handle, budget } => vms.vm_teardown_finish(hyp, hw, handle, budget).into(),
        VmCall::GuestDonate { handle, pages, prot } => {
            vms.guest_donate(hyp, hw, cpu, handle, pages, prot).into()
        }
        VmCall::GuestReclaim { handle, range, refill } => {
            vms.guest_reclaim(hyp, hw, cpu, handle, range, refill).into()
        }
        VmCall::ReclaimDying { handle, range } => vms.reclaim_dying(hyp, hw, cpu, handle, range).into(),
        VmCall::GuestShare { handle, pages, access } => {
            vms.guest_share(hyp, hw, cpu, handle, pages, access).into()
        }
        VmCall::GuestUnshare { handle, gfn, nr } => vms.guest_unshare(hyp, hw, handle, gfn, nr).into(),
        VmCall::GuestRelax { handle, gfn, access } => {
            vms.guest_relax(hyp, hw, cpu, handle, gfn, access).into()
        }
        VmCall::GuestWrprotect { handle, gfn, nr } => vms.guest_wrprotect(hyp, hw, handle, gfn, nr).into(),
        VmCall::GuestAge { handle, gfn, nr, clear } => {
            let young = vms.guest_age(hyp, hw, handle, (gfn, nr), clear);
            young.map_or_else(Reply::from, |young| Reply::ok(nr, young))
        }
        VmCall::GuestTlbFlush { handle } => vms.guest_tlb_flush(hw, handle).into(),
        #[cfg(feature = "debug-snapshot")]
        VmCall::Snapshot(call) => {
            let serve = |guest: &_| call.serve(hyp, hw, &crate::snapshot::Target::Guest(guest));
            vms.inspect(hw, call.target(), serve).into()
        }
    }
}
