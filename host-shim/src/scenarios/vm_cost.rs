//! What it costs to make a VM, to load its vCPU, and to end it, alone and with pages.
#![forbid(unsafe_code)]

use super::cost::{Clock, instructions};
use super::guest::{Guests, kind, task};
use super::guest_cost::metric;
use crate::hvc::{CallError, NewVcpu, NewVm};
use crate::span::{BLOCK, PAGE};
use crate::vmm::nobody;
use abi::vm::{NO_PAGE, VmFlags};
use guest_shim::protocol::{IMAGE, IPA_BITS, Payload};

/// VMs that are made one after the other, of the same pages.
const ROUNDS: u64 = 8;
/// Pages of the host's that a VM with one vCPU takes: itself, its root, its reserve, its vCPU.
const FIXED: u64 = 4;

pub(super) fn run(g: &Guests<'_>) {
    let clock = Clock::new(g.ctx);
    held(g);
    for protected in [false, true] {
        let names = if protected {
            ["vm_create_protected", "vm_destroy_protected", "vm_destroy_protected_per_page"]
        } else {
            ["vm_create", "vm_destroy", "vm_destroy_per_page"]
        };
        let [create, destroy, per_page] = names;
        if let Some((made, ended)) = life(g, &clock, protected) {
            metric(g, create, made);
            metric(g, destroy, ended);
        }
        if let Some(each) = page_of_end(g, protected) {
            metric(g, per_page, each);
        }
    }
    load_put(g, &clock);
}

/// A VM with a vCPU that nothing runs in, of pages of one block of the host's.
pub(super) struct Idle<'g, 'c> {
    g: &'g Guests<'c>,
    first: u64,
    handle: u64,
}

impl<'g, 'c> Idle<'g, 'c> {
    /// Pages that one takes, the record of its vCPU included.
    pub(super) const PAGES: u64 = FIXED + 1;

    /// VM_CREATE: of the pages from `first`.
    fn alone(g: &'g Guests<'c>, protected: bool, first: u64) -> Result<Self, CallError> {
        let new = NewVm {
            flags: if protected { VmFlags::PROTECTED } else { VmFlags::empty() },
            ipa_bits: IPA_BITS,
            vm_pfn: first,
            vm_nr: 1,
            root_pfn: first + 1,
            root_nr: 1,
            reserve_pfn: if protected { first + 2 } else { NO_PAGE },
        };
        Ok(Self { g, first, handle: g.hyp().vm_create(&new)? })
    }

    /// VM_CREATE, HOST_SHARE_HYP of the record, VCPU_CREATE: of the pages from `first`.
    pub(super) fn make(g: &'g Guests<'c>, protected: bool, first: u64) -> Result<Self, CallError> {
        let (vm, record) = (Self::alone(g, protected, first)?, first + FIXED);
        g.hyp().share(record)?;
        let vcpu = NewVcpu { idx: 0, pfn: first + 3, nr: 1, record_pfn: record, pc: IMAGE, x0: 0 };
        g.hyp().vcpu_create(vm.handle, &vcpu)?;
        Ok(vm)
    }

    /// VM_TEARDOWN_START, VM_TEARDOWN_FINISH until the VM is gone: so many calls, and so many pages that come back.
    fn finish(&self) -> Result<(u64, u64), CallError> {
        let hyp = self.g.hyp();
        hyp.vm_teardown_start(self.handle)?;
        let (mut calls, mut pages) = (1, 0);
        loop {
            let chunk = hyp.vm_teardown_finish(self.handle, 512)?;
            (calls, pages) = (calls + 1, pages + chunk.count);
            if chunk.gone {
                return Ok((calls, pages));
            }
        }
    }

    /// Its end, and HOST_UNSHARE_HYP of the record: so many calls.
    pub(super) fn end(self) -> Result<u64, CallError> {
        let (calls, _) = self.finish()?;
        self.g.hyp().unshare(self.first + FIXED)?;
        Ok(calls + 1)
    }
}

/// Pages that a VM holds until its end, and those that a vCPU adds.
fn held(g: &Guests<'_>) {
    let Some(block) = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK)) else { return };
    let first = block.start() / PAGE;
    let pages = |vm: Result<Idle<'_, '_>, CallError>| vm.and_then(|vm| vm.finish()).map(|(_, pages)| pages);
    let alone =
        |protected| g.ok("a VM without a vCPU", pages(g.vmm.with_pool(|| Idle::alone(g, protected, first))));
    if let (Some(plain), Some(protected)) = (alone(false), alone(true)) {
        let with_vcpu = pages(Idle::make(g, false, first));
        g.expect("the record of a vCPU is free", g.hyp().unshare(first + FIXED), Ok(()));
        let report = |name, pages| g.ctx.report.metric(name, pages, "pages");
        report("vm_pages", plain);
        report("vm_pages_protected", protected);
        if let Some(all) = g.ok("a VM with a vCPU", with_vcpu) {
            report("vcpu_pages", all.saturating_sub(plain));
        }
    }
    g.ok("its pages", g.vmm.give_back(block));
}

/// Instructions of EL2 for the calls that make a VM, and for those that end it.
fn life(g: &Guests<'_>, clock: &Clock<'_>, protected: bool) -> Option<(u64, u64)> {
    let block = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK))?;
    let first = block.start() / PAGE;
    // The first splits the host's block.
    let warm = g.vmm.with_pool(|| Idle::make(g, protected, first)).and_then(Idle::end);
    let calls = g.ok(format_args!("{} comes and goes", kind(protected)), warm)?;
    let (mut made, mut ended) = (0, 0);
    for _ in 0..ROUNDS {
        let (cost, vm) = clock.time(|| Idle::make(g, protected, first));
        made += cost;
        let vm = g.ok("a VM that is timed", vm)?;
        let (cost, gone) = clock.time(|| vm.end());
        ended += cost;
        g.expect("its end takes as many calls", gone, Ok(calls));
    }
    g.ok("its pages", g.vmm.give_back(block))?;
    Some(((made + ROUNDS / 2) / ROUNDS, (ended + ROUNDS / 2) / ROUNDS))
}

/// What one more page adds to the calls that take a VM apart.
fn page_of_end(g: &Guests<'_>, protected: bool) -> Option<u64> {
    const PAGES: u32 = 256;
    let end = |pages: u32| {
        let vm = g.vm(&g.vmm, task(Payload::Memory, protected, pages))?;
        let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
        g.judge("a VM with memory", &vm, stop);
        g.ok("its end", vm.destroy_timed())
    };
    let ((with, more), (without, fewer)) = (end(PAGES)?, end(0)?);
    g.ctx.report.check("it has more pages", more >= fewer + u64::from(PAGES), "fewer than it wrote to");
    Some(instructions(g.ctx, with.saturating_sub(without)) / u64::from(PAGES))
}

/// VCPU_LOAD and VCPU_PUT, of a vCPU that has not run.
fn load_put(g: &Guests<'_>, clock: &Clock<'_>) {
    const PAIRS: u64 = 64;
    let Some(vm) = g.vm(&g.vmm, task(Payload::Idle, true, 0)) else { return };
    let hyp = g.hyp();
    let pair = || hyp.vcpu_load(vm.handle, 0).and_then(|()| hyp.vcpu_put());
    g.expect("a vCPU is loaded and put", pair(), Ok(()));
    let (cost, done) = clock.time(|| (0..PAIRS).try_for_each(|_| pair()));
    g.expect("again and again", done, Ok(()));
    metric(g, "vcpu_load_put", (cost + PAIRS / 2) / PAIRS);
    g.destroy("a VM whose vCPU was loaded", vm);
}
