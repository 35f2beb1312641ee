//! Taking a VM apart, and seeing that all of it comes back, scrubbed.
#![forbid(unsafe_code)]

use super::{Ledger, Vm, VmmError, of};
use crate::span::PAGE;
use abi::Errno;
use abi::vm::NO_PAGE;
use core::sync::atomic::Ordering;

/// Pages that one call of FINISH is asked for: small, so that there are several.
const BUDGET: u64 = 8;

impl Vm<'_> {
    /// Ends the VM and gives every page of it back to the host's free memory.
    ///
    /// # Errors
    /// A call fails, a page of a protected VM is not zero, or FINISH returns other pages than were
    /// given. Pages are lost then.
    pub fn destroy(self) -> Result<(), VmmError> {
        self.destroy_timed().map(drop)
    }

    /// The same; the counter ticks that its calls took, and how many pages they gave back.
    ///
    /// # Errors
    /// As [`Vm::destroy`].
    pub fn destroy_timed(self) -> Result<(u64, u64), VmmError> {
        let hyp = self.vmm.hypervisor();
        self.timed(|| hyp.vm_teardown_start(self.handle)).map_err(of("VM_TEARDOWN_START"))?;
        let pages = self.given.lock().count + self.memory.lock().all().count() as u64;
        let ticks = self.take_apart()?;
        Ok((ticks, pages))
    }

    /// The same for a VM that is DYING already.
    ///
    /// # Errors
    /// As [`Vm::destroy`].
    pub fn destroy_started(self) -> Result<(), VmmError> {
        self.take_apart().map(drop)
    }

    fn take_apart(self) -> Result<u64, VmmError> {
        if self.kind.is_protected() {
            self.memory.lock().note_shown()?;
            self.reclaim()?;
        }
        self.finish()?;
        self.release_memory()?;
        self.release_records()?;
        Ok(self.ending.into_inner())
    }

    fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        let before = self.vmm.machine.ticks();
        let result = call();
        let ticks = self.vmm.machine.ticks().wrapping_sub(before);
        self.ending.fetch_add(ticks, Ordering::Relaxed);
        result
    }

    /// Takes the VM's own pages, chunk by chunk.
    fn reclaim(&self) -> Result<(), VmmError> {
        let hyp = self.vmm.hypervisor();
        let (mut at, end) = (self.ram.start(), self.ram.end());
        while at < end {
            let chunk = self.timed(|| hyp.reclaim_dying(self.handle, at, end));
            let chunk = chunk.map_err(of("RECLAIM_DYING"))?;
            if chunk.done <= at || chunk.retained.is_some() {
                return Err(VmmError::Contract("RECLAIM_DYING makes no progress", chunk.done));
            }
            at = chunk.done;
        }
        Ok(())
    }

    /// Takes the rest: it must be what was given, page for page, and zero but for the chain.
    fn finish(&self) -> Result<(), VmmError> {
        let hyp = self.vmm.hypervisor();
        let mut returned = Ledger::default();
        loop {
            let finish = self.timed(|| hyp.vm_teardown_finish(self.handle, BUDGET));
            let finish = finish.map_err(of("VM_TEARDOWN_FINISH"))?;
            let mut next = finish.head;
            for _ in 0..finish.count {
                let pfn = next.ok_or(VmmError::Contract("a chain ends early", finish.count))?;
                let link = self.vmm.load(pfn * PAGE)?;
                next = (link != NO_PAGE).then_some(link);
                self.vmm.store(pfn * PAGE, 0)?;
                self.expect_zero("a page of FINISH is not zero", pfn)?;
                returned.add(pfn);
                self.vmm.free_page(pfn)?;
            }
            if let Some(more) = next {
                return Err(VmmError::Contract("a chain is longer than its count", more));
            }
            if finish.gone {
                break;
            }
        }
        if returned != *self.given.lock() {
            return Err(VmmError::Contract("FINISH returned other pages than were given", returned.count));
        }
        match hyp.vm_teardown_finish(self.handle, BUDGET) {
            Err(crate::hvc::CallError::Errno(Errno::Enoent)) => Ok(()),
            _ => Err(VmmError::Contract("the VM is not gone", self.handle)),
        }
    }

    fn release_memory(&self) -> Result<(), VmmError> {
        let memory = self.memory.lock();
        for (ipa, pfn) in memory.all() {
            // What the host could see comes back as it is.
            if self.kind.is_protected() && !memory.is_shown(ipa) {
                self.expect_zero("a page of a protected VM is not zero", pfn)?;
                self.vmm.expect_no_tags("a page of a protected VM has a tag", pfn)?;
            }
            self.vmm.free_page(pfn)?;
        }
        self.vmm.pages.lock().give(memory.table()).map_err(|_| VmmError::NoMemory)
    }

    fn release_records(&self) -> Result<(), VmmError> {
        for pages in &self.vcpu_pages {
            let record = pages.record / PAGE;
            self.vmm.hypervisor().unshare(record).map_err(of("HOST_UNSHARE_HYP"))?;
            self.vmm.free_page(record)?;
        }
        Ok(())
    }

    pub(super) fn expect_zero(&self, what: &'static str, pfn: u64) -> Result<(), VmmError> {
        match self.vmm.first_nonzero(pfn)? {
            None => Ok(()),
            Some(at) => Err(VmmError::Contract(what, at)),
        }
    }
}
