//! `guest_*`: virtual machines that run the guest shim, and hosts that mean them harm.
//!
//! Each scenario ends with as many free pages as it began with, and with a hypervisor that answers.
#![forbid(unsafe_code)]

mod donate;
mod end;
mod handles;
mod hostile;
mod payload;
mod protect;
mod race;
mod realm;
mod realm_race;
mod replies;
mod reset;
mod share;
mod tags;
mod traps;
mod vcpu;

pub(super) use donate::donate;
pub(super) use end::kill;
pub(super) use handles::handles;
pub(super) use hostile::hostile;
pub(super) use payload::{fp, hello, keys, memory, smp, timer, two_vms};
pub(super) use protect::protect;
pub(super) use race::race;
pub(super) use realm::{realm, story as realm_story, task as realm_task};
pub(super) use replies::replies;
pub(super) use reset::reset;
pub(super) use share::{share, share_of_blocks};
pub(super) use tags::{mte, story as tags_story};
pub(super) use traps::traps;
pub(super) use vcpu::vcpu;

use super::Ctx;
use crate::hvc::Hypervisor;
use crate::span::Span;
use crate::vmm::{Spec, Stop, Vm, Vmm, VmmError, Watch};
use abi::vm::MtePolicy;
use core::fmt::Display;
use guest_shim::protocol::{PASSED, Payload, Start, VmKind, word};

/// What a scenario with guests works with.
pub(super) struct Guests<'c> {
    pub(super) ctx: &'c Ctx<'c>,
    pub(super) vmm: Vmm<'c>,
    free: u64,
}

/// A task for a guest that calls by HVC.
pub(super) const fn task(payload: Payload, protected: bool, argument: u32) -> Start {
    let kind = if protected { VmKind::Protected } else { VmKind::Plain };
    Start { payload, kind, argument }
}

/// "a protected VM" or "a plain VM".
pub(super) const fn kind(protected: bool) -> &'static str {
    if protected { "a protected VM" } else { "a plain VM" }
}

impl<'c> Guests<'c> {
    /// Counts free pages and starts all CPUs.
    pub(super) fn open(ctx: &'c Ctx<'c>) -> Self {
        ctx.start_all_cpus();
        let vmm = Vmm::new(ctx.machine, ctx.hypervisor(), &ctx.pages, ctx.board.initrd);
        Self { ctx, vmm, free: free_pages(ctx) }
    }

    /// The same, for VMs with MTE as `policy` says; `untagged` is memory without tags.
    pub(super) fn open_with_tags(ctx: &'c Ctx<'c>, policy: MtePolicy, untagged: Option<Span>) -> Self {
        let Self { ctx, vmm, free } = Self::open(ctx);
        Self { ctx, vmm: vmm.with_tags(policy, untagged), free }
    }

    /// The same, with another image for the guests.
    pub(super) fn with_image(self, image: Span) -> Self {
        Self { vmm: self.vmm.with_image(image), ..self }
    }

    pub(super) fn hyp(&self) -> Hypervisor<'c> {
        self.ctx.hypervisor()
    }

    /// Every page is free again, but for those that are lent to the hypervisor; EL2 answers.
    pub(super) fn close(self) {
        self.ctx.leave_lent(self.vmm.lent());
        let free = free_pages(self.ctx) + self.vmm.lent();
        self.ctx.report.equal("every page is the host's again", free, self.free);
        self.ctx.expect_el2_alive();
    }

    /// The value of `result`, or a failed check.
    pub(super) fn ok<T, E: Display>(&self, name: impl Display, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) => {
                self.ctx.report.fail(name, e);
                None
            }
        }
    }

    /// A VM with one vCPU that does `start`.
    pub(super) fn vm<'v>(&self, vmm: &'v Vmm<'v>, start: Start) -> Option<Vm<'v>> {
        self.ok(format_args!("making {}", kind(start.kind.is_protected())), vmm.create_one(start))
    }

    /// Takes a VM apart.
    pub(super) fn destroy(&self, what: impl Display, vm: Vm<'_>) {
        let gone = vm.destroy();
        self.ctx.report.check(
            format_args!("{what}: all of it comes back"),
            gone.is_ok(),
            gone.err().map_or("", |_| "see below"),
        );
        if let Err(e) = gone {
            self.ctx.report.step(e);
        }
    }

    /// Runs a VM on `cpus` until its guest turns it off, satisfied; `look` sees it before it goes.
    pub(super) fn run(
        &self,
        name: impl Display,
        spec: &Spec,
        cpus: &[usize],
        watch: Watch<'_>,
        look: impl FnOnce(&Vm<'_>),
    ) {
        let Some(vm) = self.ok(format_args!("{name}: making it"), self.vmm.create(spec)) else { return };
        let stop = vm.run(cpus, watch);
        self.judge(&name, &vm, stop);
        look(&vm);
        self.destroy(name, vm);
    }

    /// Passes if the guest turned its VM off and says that all went well.
    pub(super) fn judge(&self, name: impl Display, vm: &Vm<'_>, stop: Stop) {
        let outcome = vm.mail(word::OUTCOME);
        let well = stop == Stop::Off && outcome == Ok(PASSED);
        let detail = vm.mail(word::DETAIL).unwrap_or(0);
        let stage = vm.mail(word::STAGE).unwrap_or(0);
        self.ctx.report.check(
            format_args!("{name}: the guest is content"),
            well,
            format_args!("{stop}; outcome {}, detail {detail:#x}, stage {stage}", Shown(outcome)),
        );
    }

    /// Passes if `call` answers `want`.
    pub(super) fn expect<T: PartialEq + core::fmt::Debug>(&self, name: impl Display, got: T, want: T) {
        self.ctx.report.equal(name, got, want);
    }

    /// One fresh page of the host, for good measure not zero.
    pub(super) fn page(&self) -> Option<u64> {
        let pfn = self.ok("a page", self.vmm.take_page())?;
        self.ok("a page", self.vmm.store(pfn * crate::span::PAGE, 0x4057))?;
        Some(pfn)
    }

    /// Gives such a page back.
    pub(super) fn drop_page(&self, pfn: u64) {
        self.ok("a page goes back", self.vmm.free_page(pfn));
    }
}

/// An outcome as the guest's source names it.
struct Shown(Result<u64, VmmError>);

impl Display for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Ok(outcome) => write!(f, "{} at {}", outcome >> 32, outcome & 0xffff_ffff),
            Err(e) => write!(f, "unknown ({e})"),
        }
    }
}

fn free_pages(ctx: &Ctx<'_>) -> u64 {
    ctx.pages.lock().spans().map(Span::size).sum::<u64>() / crate::span::PAGE
}
