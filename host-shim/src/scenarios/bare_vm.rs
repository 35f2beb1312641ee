//! A VM that nothing runs in: a table for a snapshot to copy, or for a call to fail on.
//!
//! Invariant: its pages are one span of the host, in the order in which the VM gets them; when it
//! has ended the span is free again. Dropping one leaves its pages with the hypervisor.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::hvc::{CallError, NewVm};
use crate::span::{PAGE, Span};
use abi::Errno;
use abi::vm::{GuestProt, NO_PAGE, VmFlags};

/// Bits of its input address: a root of one page at level 1.
pub(super) const IPA_BITS: u64 = 39;
/// Pages of the VM that are no tables: its state, its root, its reserve.
const FIXED: u64 = 3;
/// Tables that it gets at once; its store holds 128.
const AT_ONCE: u64 = 64;

/// A VM without vCPUs.
#[derive(Debug)]
pub(super) struct BareVm<'a> {
    ctx: &'a Ctx<'a>,
    /// Its handle.
    pub(super) handle: u64,
    span: Span,
    /// Pages of the span that the hypervisor has.
    given: u64,
}

impl<'a> BareVm<'a> {
    /// A VM in phase NEW whose table may become `tables` pages large.
    ///
    /// # Errors
    /// What VM_CREATE says; ENOMEM too if the host has no pages.
    pub(super) fn make(ctx: &'a Ctx<'a>, flags: VmFlags, tables: u64) -> Result<Self, CallError> {
        let span = ctx.pages.lock().take((FIXED + tables) * PAGE, PAGE);
        let span = span.ok_or(CallError::Errno(Errno::Enomem))?;
        let first = span.start() / PAGE;
        let protected = flags.contains(VmFlags::PROTECTED);
        let new = NewVm {
            flags,
            ipa_bits: IPA_BITS,
            vm_pfn: first,
            vm_nr: 1,
            root_pfn: first + 1,
            root_nr: 1,
            reserve_pfn: if protected { first + 2 } else { NO_PAGE },
        };
        match ctx.hypervisor().vm_create(&new) {
            Ok(handle) => Ok(Self { ctx, handle, span, given: FIXED }),
            Err(e) => {
                give(ctx, span);
                Err(e)
            }
        }
    }

    /// Gives the VM the next tables of its span.
    fn top_up(&mut self) -> Result<(), CallError> {
        let from = self.span.start() + self.given * PAGE;
        let nr = AT_ONCE.min((self.span.end() - from) / PAGE);
        for page in (0..nr).map(|n| from + n * PAGE) {
            let next = if page + PAGE < from + nr * PAGE { page / PAGE + 1 } else { NO_PAGE };
            // A page that cannot be written is one that the call refuses.
            let _ = self.ctx.store(page, next);
        }
        self.given += self.ctx.hypervisor().vm_topup(self.handle, from / PAGE, nr)?;
        Ok(())
    }

    /// Lets the VM, which is not protected, have the page `pfn` of the host at `gfn` too.
    ///
    /// # Errors
    /// What the hypervisor says, ENOMEM if the span has no more tables.
    pub(super) fn lend(&mut self, gfn: u64, pfn: u64) -> Result<(), CallError> {
        let prot = GuestProt::R | GuestProt::W;
        loop {
            match self.ctx.hypervisor().guest_share(self.handle, gfn, pfn, 0, prot) {
                Err((CallError::Errno(Errno::Enomem), lack)) if lack > 0 => self.top_up()?,
                result => return result.map_err(|(e, _)| e),
            }
        }
    }

    /// Ends the VM, which owns no page; its own pages are free again.
    pub(super) fn end(self) {
        let gone = self.take_apart();
        self.ctx.report.equal("a VM ends", gone, Ok(()));
        if gone.is_ok() {
            give(self.ctx, self.span);
        }
    }

    fn take_apart(&self) -> Result<(), CallError> {
        let hyp = self.ctx.hypervisor();
        hyp.vm_teardown_start(self.handle)?;
        while !hyp.vm_teardown_finish(self.handle, 512)?.gone {}
        Ok(())
    }
}

fn give(ctx: &Ctx<'_>, span: Span) {
    if ctx.pages.lock().give(span).is_err() {
        ctx.report.fail("free memory", "too fragmented to list");
    }
}
