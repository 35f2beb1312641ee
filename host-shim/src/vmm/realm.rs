//! What a realm adds: pages whose state the guest decides, and the host's own pages in the half that
//! it shares.
#![forbid(unsafe_code)]

use super::run::{Next, Vcpu};
use super::{Exit, Vm, VmmError, of};
use crate::hvc::Chunk;
use crate::span::PAGE;
use abi::exit::{Resp, WANT_EMPTY, word};
use abi::rsi::HOST_CALL_GPRS;
use guest_shim::protocol::realm::INVERT;
use guest_shim::protocol::{SHARED, VmKind};

impl Vm<'_> {
    /// True if the guest has RAM at `ipa`, or sees the host's pages in its place there.
    pub(super) fn is_ram(&self, ipa: u64) -> bool {
        self.ram.contains(ipa & !self.kind.shared())
    }

    /// True if a page at `ipa` would be the host's, which the guest sees.
    pub(super) fn is_shared(&self, ipa: u64) -> bool {
        match self.kind {
            VmKind::Plain => true,
            VmKind::Protected => false,
            VmKind::Realm => ipa & SHARED != 0,
        }
    }

    /// Calls `f` with the frame of each page of the host's that the guest sees in its shared half; it stays there
    /// meanwhile.
    pub fn each_shown_page(&self, mut f: impl FnMut(u64)) {
        for ipa in self.ram.pages() {
            let memory = self.memory.lock();
            if let Some(pfn) = memory.get(ipa | SHARED) {
                f(pfn);
            }
        }
    }

    /// All of RAM is RAM when the guest begins.
    pub fn init_ripas(&self) -> Result<(), VmmError> {
        let hyp = self.vmm.hypervisor();
        let (mut at, end) = (self.ram.start(), self.ram.end());
        while at < end {
            let done = self.with_tables("VM_INIT_RIPAS", || hyp.vm_init_ripas(self.handle, at, end))?;
            if done <= at {
                return Err(VmmError::Contract("VM_INIT_RIPAS makes no progress", done));
            }
            at = done;
        }
        Ok(())
    }

    /// Does what the guest asks for, as far as it can be done.
    pub(super) fn ripas_change(&self, vcpu: &mut Vcpu, exit: &Exit) -> Result<Next, VmmError> {
        let hyp = self.vmm.hypervisor();
        let mut at = exit.base;
        while at < exit.top {
            let apply = || hyp.ripas_apply(self.handle, vcpu.idx, at, exit.top);
            let Chunk { done, retained } = self.with_tables("RIPAS_APPLY", apply)?;
            if let Some(pfn) = retained {
                self.note_given(pfn);
            }
            if exit.want == WANT_EMPTY {
                self.take_emptied(at, done, retained)?;
            }
            // A page is lost, and the guest did not ask for those.
            if done == at {
                break;
            }
            at = done;
        }
        if exit.want != WANT_EMPTY {
            self.withdraw(exit.base, at)?;
        }
        vcpu.answer(Resp::Done, 0);
        Ok(Next::Again)
    }

    /// Answers a call of the guest: with its registers inverted, or as they are.
    pub(super) fn host_call(&self, vcpu: &mut Vcpu, exit: &Exit) -> Result<Next, VmmError> {
        if exit.want == u32::from(INVERT) {
            for address in (word::GPR..).take(HOST_CALL_GPRS).map(|n| vcpu.record + 8 * n as u64) {
                let value = self.vmm.load(address)?;
                self.vmm.store(address, !value)?;
            }
        }
        vcpu.answer(Resp::Done, 0);
        Ok(Next::Again)
    }

    /// What the guest had in `[base, top)` is the host's again: in each page there are zeros.
    fn take_emptied(&self, base: u64, top: u64, retained: Option<u64>) -> Result<(), VmmError> {
        for ipa in (base..top).step_by(4096) {
            let Some(pfn) = self.take_out(ipa)? else { continue };
            if retained == Some(pfn) {
                continue;
            }
            self.expect_zero("a page that was given up is not zero", pfn)?;
            self.vmm.free_page(pfn)?;
        }
        Ok(())
    }

    /// The guest has its own pages in `[base, top)` again: the host's in their place go.
    fn withdraw(&self, base: u64, top: u64) -> Result<(), VmmError> {
        let hyp = self.vmm.hypervisor();
        for ipa in (base + SHARED..top + SHARED).step_by(4096) {
            let Some(pfn) = self.take_out(ipa)? else { continue };
            let gfn = ipa / PAGE;
            let went = hyp.unprot_unmap(self.handle, gfn, 1).map_err(of("UNPROT_UNMAP"))?;
            if went != (gfn, 1) {
                return Err(VmmError::Contract("UNPROT_UNMAP took another page", went.0));
            }
            self.vmm.free_page(pfn)?;
        }
        Ok(())
    }

    /// Forgets the page at `ipa`, if the guest has one there.
    fn take_out(&self, ipa: u64) -> Result<Option<u64>, VmmError> {
        let memory = self.memory.lock();
        let pfn = memory.get(ipa);
        if pfn.is_some() {
            memory.set(ipa, None)?;
        }
        Ok(pfn)
    }
}
