//! Guests with memory tags, on memory that has some and on memory that has none: docs/mte.md.
//!
//! The hypervisor's argument `no-tags=START,SIZE`, given to the host too, says which memory has none.
//! Without it every page has tags, and only the host's word keeps the guest from them.
#![forbid(unsafe_code)]

use super::super::refused;
use super::{Ctx, Guests, task};
use crate::hvc::{CallError, NewVm};
use crate::span::{PAGE, Span};
use crate::vmm::{Exit, Spec, Stop, Vm, Vmm};
use abi::Errno;
use abi::caps::Caps;
use abi::exit::{ExitFlags, Reason};
use abi::psci;
use abi::vm::{MtePolicy, TagState, VmFlags, reg};
use arrayvec::ArrayVec;
use core::fmt::Display;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::protocol::tags::{LOUD, PAGES, QUIET, QUIET_PAGES, REGISTERS, checksum, of_granule};
use guest_shim::protocol::{IMAGE, IPA_BITS, Payload, SCRATCH, word};
use spin::Mutex;

/// Pages of [`Payload::TagPages`] and [`Payload::TagStores`].
const SOME: u32 = 6;
/// Turns of a host that does not answer.
const TURNS: u64 = 10_000;

/// What there is to test with.
struct Tags<'c> {
    ctx: &'c Ctx<'c>,
    caps: Caps,
    untagged: Option<Span>,
}

pub(in super::super) fn mte(ctx: &Ctx<'_>) {
    let caps = ctx.hypervisor().caps().map_or(Caps::empty(), |reply| Caps::from_bits_retain(reply.caps));
    let untagged = untagged(ctx);
    let taken = untagged.is_none_or(|span| keep_out(ctx, span));
    ctx.report.check("memory without tags is free", taken, "it is not");
    let tags = Tags { ctx, caps, untagged };
    tags.policies();
    tags.without_mte();
    if caps.contains(Caps::MTE) {
        tags.every_access();
        tags.pages(MtePolicy::Lazy);
        tags.stores();
        tags.patience();
        tags.lent();
        tags.strict();
        tags.wrong_pages();
    }
    if let Some(span) = untagged {
        ctx.report.check("it is free again", ctx.pages.lock().give(span).is_ok(), "it is not");
    }
    ctx.expect_el2_alive();
}

/// What `no-tags` says.
fn untagged(ctx: &Ctx<'_>) -> Option<Span> {
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (start, size) = ctx.args.get("no-tags")?.split_once(',')?;
    Span::new(hex(start)?, hex(size)?)
}

/// Takes `span` out of the free memory.
fn keep_out(ctx: &Ctx<'_>, span: Span) -> bool {
    let mut pages = ctx.pages.lock();
    let Some(around) = pages.spans().find(|free| free.intersection(span) == Some(span)) else { return false };
    let whole = core::mem::take(&mut *pages);
    let parts = whole.spans().flat_map(|free| {
        let cut = free == around;
        let before = if cut { Span::between(free.start(), span.start()) } else { Some(free) };
        let after = if cut { Span::between(span.end(), free.end()) } else { None };
        [before, after]
    });
    parts.flatten().all(|part| pages.give(part).is_ok())
}

/// The TAG_ACCESS exits of a VM, in order.
struct Seen {
    /// What their flags must be.
    flags: ExitFlags,
    pages: Mutex<ArrayVec<u64, 32>>,
    /// One was not as docs/mte.md says.
    odd: AtomicU64,
    /// `repeat` of the last exit, or [`NONE`] if that was another.
    repeat: AtomicU64,
}

const NONE: u64 = u64::MAX;

impl Seen {
    /// Of a VM whose pages are its own.
    const fn new() -> Self {
        Self::with(ExitFlags::TAG_ACCESS.union(ExitFlags::PRIVATE))
    }

    const fn with(flags: ExitFlags) -> Self {
        Self {
            flags,
            pages: Mutex::new(ArrayVec::new_const()),
            odd: AtomicU64::new(0),
            repeat: AtomicU64::new(NONE),
        }
    }

    fn note(&self, exit: &Exit) {
        if !exit.flags.contains(ExitFlags::TAG_ACCESS) {
            return self.repeat.store(NONE, Ordering::Relaxed);
        }
        let right = exit.reason == Reason::MemFault
            && exit.flags == self.flags
            && exit.gpa.is_multiple_of(PAGE)
            && u64::from(exit.size) == PAGE;
        let mut pages = self.pages.lock();
        let mut expected = 0;
        if pages.last() == Some(&exit.gpa) {
            expected = self.repeat.load(Ordering::Relaxed).wrapping_add(1);
        } else {
            let _ = pages.try_push(exit.gpa);
        }
        self.repeat.store(expected, Ordering::Relaxed);
        let right = right && u64::from(exit.repeat) == expected;
        self.odd.fetch_add(u64::from(!right), Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.pages.lock().len() as u64
    }
}

/// The guest's page `n`.
const fn page(n: u64) -> u64 {
    SCRATCH + n * PAGE
}

/// RGSR_EL1, GCR_EL1, TFSR_EL1 and TFSRE0_EL1 of the host while the guest has others, and then more.
const HOST_REGISTERS: [[u64; 4]; 2] = [[0x12_3406, 0x1_0f0f, 2, 1], [0x65_4309, 0x0_7070, 0, 0]];

/// True for the doorbell.
fn rings(exit: &Exit) -> bool {
    exit.reason == Reason::Psci && exit.data == u64::from(psci::CPU_SUSPEND_64)
}

impl<'c> Tags<'c> {
    fn precise(&self) -> bool {
        self.caps.contains(Caps::MTE_PRECISE)
    }

    fn guests(&self, policy: MtePolicy) -> Guests<'c> {
        Guests::open_with_tags(self.ctx, policy, self.untagged)
    }

    /// Page `n` of the host for the guest: one without tags if there are such.
    fn host_page(&self, vmm: &Vmm<'_>, n: u64) -> u64 {
        match self.untagged {
            Some(span) => span.start() / PAGE + n,
            None => vmm.take_page().unwrap_or(0),
        }
    }

    /// A VM that does `payload` and whose first `pages` pages of scratch memory are without tags.
    fn vm<'v>(&self, g: &'v Guests<'_>, payload: Payload, vcpus: u8, pages: u64) -> Option<Vm<'v>> {
        let argument = u32::try_from(pages).unwrap_or(0);
        let spec = Spec { vcpus, start: task(payload, true, argument) };
        let vm = g.ok("making a VM", g.vmm.create(&spec))?;
        for n in 0..pages {
            let pfn = self.host_page(&g.vmm, n);
            g.ok("a page without tags", g.vmm.store(pfn * PAGE, 0xbad))?;
            g.ok("a page without tags", vm.donate_without_tags(page(n), pfn, 0))?;
        }
        Some(vm)
    }

    /// M-16, and what HYP_CAPS promises.
    fn policies(&self) {
        let ctx = self.ctx;
        let mte = self.caps.contains(Caps::MTE);
        ctx.report.equal("LAZY is where MTE is", self.caps.contains(Caps::MTE_NOTAG), mte);
        ctx.report.check("MTE_PRECISE needs MTE", mte || !self.precise(), "it is there without");
        let g = Guests::open(ctx);
        let can =
            [(MtePolicy::Strict, mte), (MtePolicy::Lazy, mte), (MtePolicy::LazyPrecise, self.precise())];
        for (policy, _) in can.into_iter().filter(|(_, can)| !can) {
            let [Some(vm), Some(root), Some(reserve)] = [g.page(), g.page(), g.page()] else { return };
            let new = NewVm {
                flags: policy.flags() | VmFlags::PROTECTED,
                ipa_bits: IPA_BITS,
                vm_pfn: vm,
                vm_nr: 1,
                root_pfn: root,
                root_nr: 1,
                reserve_pfn: reserve,
            };
            let name = format_args!("M-16: no VM with policy {}", policy.name());
            ctx.report.equal(name, g.hyp().vm_create(&new).map(drop), refused(Errno::Eopnotsupp));
            [vm, root, reserve].into_iter().for_each(|pfn| g.drop_page(pfn));
        }
        g.close();
    }

    /// M-22: a VM with policy OFF on the same memory.
    fn without_mte(&self) {
        let (ctx, g) = (self.ctx, self.guests(MtePolicy::Off));
        let seen = Seen::new();
        if let Some(vm) = self.vm(&g, Payload::Tags, 1, PAGES) {
            let stop = vm.run(&[ctx.boot_cpu], &|_, _, exit| {
                seen.note(exit);
                false
            });
            g.judge("M-22: a VM without MTE", &vm, stop);
            ctx.report.equal("M-22: it never exits for tags", seen.count(), 0);
            g.destroy("M-22", vm);
        }
        g.close();
    }

    /// M-03, M-04, M-06: which accesses exit, and how.
    fn every_access(&self) {
        let (ctx, g) = (self.ctx, self.guests(MtePolicy::Lazy));
        let seen = Seen::new();
        let quiet = if self.precise() { 0 } else { QUIET_PAGES };
        let watch = |vm: &Vm<'_>, _: u64, exit: &Exit| {
            seen.note(exit);
            if rings(exit) {
                match vm.mail(word::STAGE) {
                    Ok(QUIET) => {
                        ctx.report.equal("M-03: exits of accesses without tags", seen.count(), quiet)
                    }
                    Ok(LOUD) => {
                        let all = quiet + PAGES - QUIET_PAGES;
                        ctx.report.equal("M-04: one exit for each page", seen.count(), all)
                    }
                    Ok(REGISTERS) => {
                        let [first, second] = HOST_REGISTERS;
                        let were = ctx.machine.swap_tag_registers(second);
                        ctx.report.equal("the host's tag registers are its own", were, first)
                    }
                    _ => true,
                };
            }
            false
        };
        if let Some(vm) = self.vm(&g, Payload::Tags, 1, PAGES) {
            self.expect_states(
                "before",
                &vm,
                0,
                if self.precise() { TagState::NoTag } else { TagState::Pending },
            );
            let [first, second] = HOST_REGISTERS;
            let before = ctx.machine.swap_tag_registers(first);
            let stop = vm.run(&[ctx.boot_cpu], &watch);
            let after = ctx.machine.swap_tag_registers(before);
            ctx.report.equal("they stay so", after, second);
            g.judge("M-04: a guest with MTE", &vm, stop);
            ctx.report.equal("M-06: exits that are not as documented", seen.odd.load(Ordering::Relaxed), 0);
            self.expect_states("after its tag accesses", &vm, QUIET_PAGES, TagState::Tagged);
            g.destroy("M-04", vm);
        }
        g.close();
    }

    fn expect_states(&self, when: impl Display, vm: &Vm<'_>, first: u64, want: TagState) {
        let hyp = self.ctx.hypervisor();
        let states = (first..PAGES).map(|n| hyp.vm_tag_info(vm.handle, page(n) / PAGE));
        let other = states.filter(|state| *state != Ok(want as u64)).count();
        self.ctx.report.equal(format_args!("pages that are not {} {when}", want.name()), other, 0);
    }

    /// M-05, M-17, M-21: contents and tags over an upgrade. The same calls in the same order on every
    /// machine: each page is upgraded when the guest reaches it, and the guest's memory is the same.
    fn pages(&self, policy: MtePolicy) {
        let (ctx, g) = (self.ctx, self.guests(policy));
        let seen = Seen::new();
        if let Some(vm) = self.vm(&g, Payload::TagPages, 1, SOME.into()) {
            let stop = vm.run(&[ctx.boot_cpu], &|_, _, exit| {
                seen.note(exit);
                false
            });
            g.judge("M-05: a guest that fills pages and tags", &vm, stop);
            ctx.report.equal(
                "M-21: its memory is what it is on every machine",
                vm.mail(word::RESULTS),
                Ok(checksum(SOME.into())),
            );
            let script: ArrayVec<u64, 32> = (0..SOME.into()).map(page).collect();
            ctx.report.equal("M-21: the exits are those of every machine", &*seen.pages.lock(), &script);
            g.destroy("M-17: without a tag", vm);
        }
        g.close();
    }

    /// M-11: another vCPU stores to the page while it moves.
    fn stores(&self) {
        let (ctx, g) = (self.ctx, self.guests(MtePolicy::Lazy));
        let seen = Seen::new();
        if let Some(vm) = self.vm(&g, Payload::TagStores, 2, SOME.into()) {
            let stop = vm.run(&ctx.all_cpus(), &|_, _, exit| {
                seen.note(exit);
                false
            });
            g.judge("M-11: no store is lost", &vm, stop);
            ctx.report.check("M-11: pages moved", seen.count() >= SOME.into(), seen.count());
            g.destroy("M-11", vm);
        }
        g.close();
    }

    /// M-07: a host that does nothing about an exit. The access is done once in the end: the guest sees to that.
    fn patience(&self) {
        let (ctx, g) = (self.ctx, self.guests(MtePolicy::Lazy));
        let seen = Seen::new();
        if let Some(vm) = self.vm(&g, Payload::TagPages, 1, 1) {
            vm.ignore_tag_accesses(TURNS);
            let stop = vm.run(&[ctx.boot_cpu], &|_, _, exit| {
                seen.note(exit);
                false
            });
            g.judge("M-07: a guest whose host was slow", &vm, stop);
            let (pages, odd) = (seen.count(), seen.odd.load(Ordering::Relaxed));
            ctx.report.equal("M-07: one page, and repeat counts", (pages, odd), (1, 0));
            ctx.report.equal("M-07: the same exit again", vm.exits(Reason::MemFault) > TURNS, true);
            ctx.report.equal("M-07: its memory", vm.mail(word::RESULTS), Ok(checksum(1)));
            g.destroy("M-07", vm);
        }
        g.close();
    }

    /// M-06, M-07: a VM that is not protected, on pages of the host, of which the first have no tags if there are such. Its
    /// host, which does nothing at first, sees the same instruction each time.
    fn lent(&self) {
        let (ctx, g) = (self.ctx, self.guests(MtePolicy::Lazy));
        let (seen, moved) = (Seen::with(ExitFlags::TAG_ACCESS), AtomicU64::new(0));
        let last = Mutex::new(None);
        let hyp = ctx.hypervisor();
        let watch = |vm: &Vm<'_>, _: u64, exit: &Exit| {
            seen.note(exit);
            if exit.flags.contains(ExitFlags::TAG_ACCESS) {
                let pc = hyp.vcpu_get_reg(reg::PC);
                match last.lock().replace((exit.gpa, pc)) {
                    Some((gpa, before)) if gpa == exit.gpa => {
                        moved.fetch_add(u64::from(pc != before || pc.is_err()), Ordering::Relaxed);
                    }
                    _ => {
                        let other = vm.page(IMAGE).unwrap_or(0);
                        let upgraded = hyp.mte_upgrade(vm.handle, exit.gpa / PAGE, other);
                        let refusal = upgraded.map(drop).map_err(|(e, _)| e);
                        let name = "M-06: a page that is lent is no upgrade's";
                        ctx.report.equal(name, refusal, refused(Errno::Eperm));
                    }
                }
            }
            false
        };
        let untagged = if self.untagged.is_some() { u64::from(SOME) / 2 } else { 0 };
        let spec = Spec { vcpus: 1, start: task(Payload::TagPages, false, SOME) };
        let Some(vm) = g.ok("making a VM", g.vmm.create(&spec)) else { return };
        for n in 0..untagged {
            let pfn = self.host_page(&g.vmm, n);
            g.ok("a page without tags", g.vmm.fill(pfn, 0));
            g.ok("a page without tags", vm.lend(page(n), pfn));
        }
        vm.ignore_tag_accesses(if untagged > 0 { TURNS } else { 0 });
        let stop = vm.run(&[ctx.boot_cpu], &watch);
        g.judge("M-06: a guest that tags what it is lent", &vm, stop);
        let (pages, odd) = (seen.count(), seen.odd.load(Ordering::Relaxed));
        ctx.report.equal(
            "M-06: one exit for each page without tags, not PRIVATE",
            (pages, odd),
            (untagged, 0),
        );
        ctx.report.equal("M-07: exits at another instruction", moved.load(Ordering::Relaxed), 0);
        ctx.report.equal("M-06: its memory", vm.mail(word::RESULTS), Ok(checksum(SOME.into())));
        let tags = (0..SOME.into()).map(|n| vm.page(page(n)).map(|pfn| ctx.machine.tag(pfn * PAGE)));
        let others = tags.zip((0..SOME.into()).map(page)).filter(|(tag, ipa)| *tag != Some(of_granule(*ipa)));
        ctx.report.equal("M-06: pages whose tags the host does not see", others.count(), 0);
        g.destroy("M-06", vm);
        g.close();
    }

    /// M-15: STRICT takes memory with tags only, and never exits for them.
    fn strict(&self) {
        let (ctx, g) = (self.ctx, self.guests(MtePolicy::Strict));
        let seen = Seen::new();
        let spec = Spec { vcpus: 1, start: task(Payload::TagPages, true, SOME) };
        if let Some(vm) = g.ok("making a VM", g.vmm.create(&spec)) {
            let pfn = self.host_page(&g.vmm, 0);
            let hyp = ctx.hypervisor();
            let answer = hyp.guest_donate_without_tags(vm.handle, page(0) / PAGE, pfn, 0).map_err(|(e, _)| e);
            ctx.report.equal("M-15: no page without tags", answer, refused(Errno::Eperm));
            if self.untagged.is_some() {
                let answer = hyp.guest_donate(vm.handle, page(0) / PAGE, pfn, 0).map_err(|(e, _)| e);
                ctx.report.equal("M-15: whatever the host says of it", answer, refused(Errno::Eperm));
            }
            g.drop_page(pfn);
            let stop = vm.run(&[ctx.boot_cpu], &|_, _, exit| {
                seen.note(exit);
                false
            });
            g.judge("M-15: a guest with STRICT", &vm, stop);
            ctx.report.equal("M-15: no exit for tags", seen.count(), 0);
            g.destroy("M-15", vm);
        }
        g.close();
    }

    /// M-12, M-13, M-14: pages that are no upgrade, frames that need none; then the right ones.
    fn wrong_pages(&self) {
        let (ctx, g) = (self.ctx, self.guests(MtePolicy::Lazy));
        let hyp = ctx.hypervisor();
        let Some(vm) = self.vm(&g, Payload::TagPages, 1, 2) else { return };
        let upgrade = |ipa: u64, pfn: u64| hyp.mte_upgrade(vm.handle, ipa / PAGE, pfn).map_err(|(e, _)| e);
        let own = |n| vm.page(page(n)).unwrap_or(0);
        let errno = |errno| Err::<u64, CallError>(CallError::Errno(errno));
        let (old, other) = (own(0), own(1));
        let mut wrong: ArrayVec<(&str, u64, Errno), 8> = ArrayVec::new();
        wrong.extend([
            ("itself", old, Errno::Eperm),
            ("another page of the guest", other, Errno::Eperm),
            ("a device", 0x900_0000 / PAGE, Errno::Erange),
        ]);
        if let Some(carve_out) = ctx.board.carveouts().next() {
            wrong.push(("the hypervisor's", carve_out.start() / PAGE, Errno::Eperm));
        }
        if let Some(span) = self.untagged {
            wrong.push(("one without tags", span.start() / PAGE + 9, Errno::Eperm));
        }
        for (name, pfn, why) in wrong {
            ctx.report.equal(format_args!("M-12: upgrade to {name}"), upgrade(page(0), pfn), errno(why));
        }
        if let Some(new) = g.page() {
            ctx.report.equal("M-13: nothing there", upgrade(page(9), new), errno(Errno::Enoent));
            ctx.report.equal("the right page", upgrade(page(0), new), Ok(old));
            g.ok("it is the guest's", vm.remember(page(0), new));
            ctx.report.equal("M-13: it has tags by now", upgrade(page(0), old), errno(Errno::Eexist));
            g.drop_page(old);
        }
        if let Some(span) = self.untagged {
            // M-14: a plain donation of such a page.
            let pfn = span.start() / PAGE + 8;
            g.ok("M-14", hyp.guest_donate(vm.handle, page(2) / PAGE, pfn, 0).map_err(|(e, _)| e));
            g.ok("M-14", vm.remember(page(2), pfn));
            let state = hyp.vm_tag_info(vm.handle, page(2) / PAGE);
            let tagged = state == Ok(TagState::Tagged as u64);
            ctx.report.equal("M-14: memory without tags is NO_TAG", (state.is_ok(), tagged), (true, false));
        }
        g.destroy("M-12", vm);
        g.close();
    }
}

/// The demo's part: one page without tags, from the guest's first tag to its last.
pub(in super::super) fn story(ctx: &Ctx<'_>) {
    let caps = ctx.hypervisor().caps().map_or(Caps::empty(), |reply| Caps::from_bits_retain(reply.caps));
    if !caps.contains(Caps::MTE) {
        return ctx.report.skip("memory tags", "this CPU has none");
    }
    let (report, hyp) = (&ctx.report, ctx.hypervisor());
    let g = Guests::open_with_tags(ctx, MtePolicy::Lazy, None);
    let Some(vm) = g.vm(&g.vmm, task(Payload::TagPages, true, 1)) else { return };
    let Some(old) = g.page() else { return };
    let given = vm.donate_without_tags(SCRATCH, old, 0);
    report.step(format_args!(
        "GUEST_DONATE({SCRATCH:#x}, {:#x}, NO_TAG) -> a guest with MTE has a page that has no tags",
        old * PAGE
    ));
    report.check("a page without tags", given.is_ok(), "refused");
    let stop = vm.run(&[ctx.boot_cpu], &|_, _, exit| {
        let wanted = exit.flags.contains(ExitFlags::TAG_ACCESS);
        if wanted {
            report.step(format_args!(
                "VCPU_RUN     -> MEM_FAULT, TAG_ACCESS + PRIVATE, gpa {:#x}, size {}: the guest wants its tags",
                exit.gpa, exit.size
            ));
        }
        wanted
    });
    report.equal("a tag access to it stops the guest", stop, Stop::Watcher);
    let Some(new) = g.page() else { return };
    let upgrade = || hyp.mte_upgrade(vm.handle, SCRATCH / PAGE, new).map_err(|(e, _)| e);
    let upgraded = g.vmm.with_pool(upgrade);
    report.step(format_args!(
        "MTE_UPGRADE({SCRATCH:#x}, {:#x}) -> the page has moved, with tags 0",
        new * PAGE
    ));
    report.equal("the upgrade returns the old page", upgraded, Ok(old));
    report.equal("which is the host's and zero", ctx.load(old * PAGE), Ok(0));
    ctx.expect_refused("the new one is the guest's", crate::machine::Access::Load, new * PAGE);
    g.ok("the guest's page", vm.remember(SCRATCH, new));
    g.drop_page(old);
    let stop = vm.run(&[ctx.boot_cpu], &crate::vmm::nobody);
    g.judge("data and tags are all there", &vm, stop);
    report.step("VCPU_RUN     -> the guest reads back 4096 bytes and 256 tags, as it wrote them");
    g.destroy("the VM with MTE", vm);
    g.close();
}
