//! The calls that make and fill a VM, made to fail at every step: part of scenario `faults`.
//!
//! A first VM shows how often each call passes each fault site. Then a VM is made for each site:
//! each of its calls fails at the first pass, then at the second, and so on, and then succeeds.
#![forbid(unsafe_code)]

use super::custody::same_owners;
use super::faults::{Hits, hits};
use super::{Ctx, refused};
use crate::hvc::CallError;
use crate::inspect::Inspector;
use crate::span::PAGE;
use abi::HostFn;
use abi::fault::Site;
use abi::vm::{NO_PAGE, VmFlags};
use arrayvec::ArrayVec;
use guest_shim::protocol::VmKind;

/// Where the guest has its pages: below different tables.
const GFNS: [u64; 2] = [0x2000, 0x4_0000];
const IPA_BITS: u64 = 36;
/// Tables of levels 2 and 3 for both, and one to spare.
const TABLES: u64 = 5;
/// The VM, root, reserve, vCPU, record, and three pages for the guest.
const PAGES: u64 = TABLES + 8;

/// Where the RAM of a realm ends.
const RAM_END: u64 = (GFNS[1] + 1) * PAGE;

/// Calls that make a VM.
const CALLS: usize = 16;

/// Makes every call fail at every pass of every site; how often each was made to fail.
pub(super) fn exhaust(ctx: &Ctx<'_>, inspector: Inspector<'_>) -> Hits {
    let mut fired = [0; Site::ALL.len()];
    for kind in [VmKind::Plain, VmKind::Protected, VmKind::Realm] {
        let mut first = Script { ctx, inspector, site: None, passes: ArrayVec::new(), nth: 0, fired: 0 };
        ctx.report.equal("a VM comes and goes", first.run(kind), Ok(()));
        let passes = first.passes;
        for (n, (site, fired)) in Site::ALL.into_iter().zip(&mut fired).enumerate() {
            if passes.iter().all(|hits| hits.get(n) == Some(&0)) {
                continue;
            }
            let passes = passes.clone();
            let mut script = Script { ctx, inspector, site: Some((site, n)), passes, nth: 0, fired: 0 };
            let made = script.run(kind);
            ctx.report.equal(format_args!("a VM comes and goes in spite of {}", site.name()), made, Ok(()));
            *fired += script.fired;
        }
    }
    fired
}

struct Script<'a> {
    ctx: &'a Ctx<'a>,
    inspector: Inspector<'a>,
    /// The site that fails, and its place in [`Hits`]; `None` to count passes.
    site: Option<(Site, usize)>,
    /// How often each call passes each site.
    passes: ArrayVec<Hits, CALLS>,
    /// The call that is next.
    nth: usize,
    fired: u64,
}

impl Script<'_> {
    fn run(&mut self, kind: VmKind) -> Result<(), CallError> {
        let (protected, realm) = (kind.is_protected(), kind == VmKind::Realm);
        let Some(span) = self.ctx.take(PAGES, PAGE) else { return Ok(()) };
        let mut pages = span.pages().map(|page| page / PAGE);
        let mut page = || pages.next().unwrap_or(NO_PAGE);
        let reserve = if protected { page() } else { NO_PAGE };
        let mut flags = VmFlags::empty();
        flags.set(VmFlags::PROTECTED, protected);
        flags.set(VmFlags::SPLIT_IPA, realm);
        let args = [flags.bits(), IPA_BITS, page(), 1, page(), 1, reserve];
        let [handle, _] = self.call(HostFn::VmCreate, &args)?;
        let record = page();
        self.call(HostFn::HostShareHyp, &[record])?;
        self.call(HostFn::VcpuCreate, &[handle, 0, page(), 1, record, 0, 0])?;
        for _ in 0..TABLES {
            // One page a call: a later page of a chain that fails is a success of those before it.
            let table = page();
            let linked = self.ctx.store(table * PAGE, NO_PAGE);
            self.ctx.report.equal("a page of the host is written", linked, Ok(()));
            self.call(HostFn::VmTopup, &[handle, table, 1])?;
        }
        if realm {
            // Up to a page: with blocks of notes at all levels.
            self.call(HostFn::VmInitRipas, &[handle, 0, RAM_END])?;
        }
        let (populated, given) = (page(), [page(), page()]);
        if protected {
            self.call(HostFn::VmPopulate, &[handle, 0x1000, populated, 0])?;
        }
        self.call(HostFn::VmFinalise, &[handle])?;
        let give = if protected { HostFn::GuestDonate } else { HostFn::GuestShare };
        for (gfn, pfn) in GFNS.into_iter().zip(given) {
            self.call(give, &[handle, gfn, pfn, 0, 7])?;
        }
        self.inspector.clear()?;
        self.end(handle, kind)?;
        self.ctx.hypervisor().unshare(record)?;
        if self.ctx.pages.lock().give(span).is_err() {
            self.ctx.report.fail("free memory", "too fragmented to list");
        }
        Ok(())
    }

    /// Makes a call, after it has failed at each pass of the site.
    fn call(&mut self, function: HostFn, args: &[u64]) -> Result<[u64; 2], CallError> {
        if let Some((site, n)) = self.site {
            let passes = self.passes.get(self.nth).and_then(|hits| hits.get(n)).copied().unwrap_or(0);
            self.nth += 1;
            self.fail(function, args, site, passes)?;
        }
        self.inspector.clear()?;
        let answer = self.ctx.hypervisor().call_id(function.id(), args, [true, true]);
        if self.site.is_none() && self.passes.try_push(hits(self.inspector)).is_err() {
            self.ctx.report.fail(function.name(), "more calls than expected");
        }
        answer
    }

    fn fail(&mut self, function: HostFn, args: &[u64], site: Site, passes: u64) -> Result<(), CallError> {
        let report = &self.ctx.report;
        let mut before = None;
        for nth in 1..=passes {
            let what = format_args!("{}: pass {nth} of {}", function.name(), site.name());
            let audit =
                || self.inspector.audit().map_err(|e| report.fail(format_args!("{what}: audit"), e)).ok();
            before = before.or_else(audit);
            self.inspector.clear()?;
            self.inspector.arm(site, nth)?;
            let answer = self.ctx.hypervisor().call_id(function.id(), args, [true, true]).map(drop);
            // Frames that are not made RAM in one go are made so one by one.
            let wanted = if function == HostFn::VmInitRipas {
                [Ok(()), refused(site.errno())]
            } else {
                [refused(site.errno()); 2]
            };
            report.check(
                format_args!("{what} fails with the errno of the site"),
                wanted.contains(&answer),
                format_args!("{answer:?}"),
            );
            let [_, fired] = self.inspector.stats(site)?;
            report.equal(format_args!("{what} failed once"), fired, 1);
            self.fired += fired;
            if answer.is_ok() {
                // There is nothing left to fail.
                break;
            }
            if let (Some(before), Some(after)) = (&before, audit()) {
                same_owners(self.ctx, format_args!("{what} leaves every page where it was"), before, &after);
            }
        }
        Ok(())
    }

    fn end(&self, handle: u64, kind: VmKind) -> Result<(), CallError> {
        let hyp = self.ctx.hypervisor();
        hyp.vm_teardown_start(handle)?;
        let (mut done, top) = (0, 1_u64 << IPA_BITS >> u32::from(kind == VmKind::Realm));
        while kind.is_protected() && done < top {
            done = hyp.reclaim_dying(handle, done, top)?.done;
        }
        while !hyp.vm_teardown_finish(handle, 512)?.gone {}
        Ok(())
    }
}
