//! `demo`: what a host sees of the hypervisor, told for a person.
#![forbid(unsafe_code)]

use super::Ctx;
use super::guest::{Guests, task};
use crate::hvc::CallError;
use crate::machine::Access;
use crate::span::{PAGE, Span};
use crate::vmm::Stop;
use abi::caps::Caps;
use abi::exit::Reason;
use abi::psci;
use abi::vm::reg;
use core::fmt::{self, Display};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::protocol::{Payload, SCRATCH, SECRET};

/// Bytes, in the largest unit that loses nothing.
struct Size(u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n % (1 << 30) == 0 => write!(f, "{} GiB", n >> 30),
            n if n % (1 << 20) == 0 => write!(f, "{} MiB", n >> 20),
            n => write!(f, "{} KiB", n >> 10),
        }
    }
}

/// "0xfirst..0xend (size)".
struct Place(Span);

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x} ({})", self.0.start(), self.0.end(), Size(self.0.size()))
    }
}

pub(super) fn run(ctx: &Ctx<'_>) {
    machine(ctx);
    sharing(ctx);
    lending(ctx);
    refused_accesses(ctx);
    cpus(ctx);
    if ctx.hypervisor().vm_finalise(0) == Err(CallError::NotSupported) {
        ctx.report.skip("a protected guest", "this hypervisor runs none");
    } else {
        protected_guest(ctx);
        super::guard::attack(ctx);
        super::guest::realm_story(ctx);
        super::guest::tags_story(ctx);
    }
    ctx.expect_el2_alive();
}

fn machine(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    let el = ctx.machine.exception_level();
    report.step(format_args!("host runs at EL{el}, behind the hypervisor's stage 2"));
    report.equal("host at EL1", el, 1);
    for region in &ctx.board.ram {
        report.step(format_args!("memory     {}", Place(*region)));
    }
    for carveout in ctx.board.carveouts() {
        report.step(format_args!("carve-out  {}, the hypervisor's own", Place(carveout)));
    }
    let withheld = ctx.board.devices.iter().filter(|d| d.disabled).count();
    report.step(format_args!("withheld   {withheld} device windows that could write memory by DMA"));
    match ctx.hypervisor().caps() {
        Ok(reply) => {
            let (major, minor) = (reply.version >> 16, reply.version & 0xffff);
            let caps = Caps::from_bits_truncate(reply.caps);
            report.step(format_args!("HYP_CAPS   -> version {major}.{minor}, {}", Names(caps)));
            report.pass("HYP_CAPS");
        }
        Err(e) => report.fail("HYP_CAPS", e),
    }
}

/// Names of capability bits.
struct Names(Caps);

impl Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, _)) in self.0.iter_names().enumerate() {
            write!(f, "{}{name}", if n == 0 { "" } else { " + " })?;
        }
        Ok(())
    }
}

/// A call's outcome as text: `ok`, or the errno.
pub(super) fn outcome(result: Result<(), crate::hvc::CallError>) -> impl Display {
    struct Outcome(Result<(), crate::hvc::CallError>);
    impl Display for Outcome {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {
                Ok(()) => f.write_str("ok"),
                Err(e) => write!(f, "refused: {e}"),
            }
        }
    }
    Outcome(result)
}

fn sharing(ctx: &Ctx<'_>) {
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let Some(page) = ctx.take(1, PAGE) else { return };
    let pfn = page.start() / PAGE;
    let results = [hyp.share(pfn), hyp.share(pfn), hyp.unshare(pfn)];
    let [first, second, undo] = results;
    report.step(format_args!("HOST_SHARE_HYP({pfn:#x})      -> {}", outcome(first)));
    report.step(format_args!("HOST_SHARE_HYP({pfn:#x})      -> {} (a second time)", outcome(second)));
    report.step(format_args!("HOST_UNSHARE_HYP({pfn:#x})    -> {}", outcome(undo)));
    report.equal("share once", results, [Ok(()), super::refused(abi::Errno::Eperm), Ok(())]);
}

fn lending(ctx: &Ctx<'_>) {
    const NR: u64 = 4;
    const WORD: u64 = 0x5ec2;
    let (hyp, report) = (ctx.hypervisor(), &ctx.report);
    let Some(pages) = ctx.take(NR, PAGE) else { return };
    let (address, pfn) = (pages.start(), pages.start() / PAGE);
    let wrote = ctx.store(address, WORD);
    report.step(format_args!(
        "store {WORD:#x} at {address:#x}  -> {}",
        if wrote.is_ok() { "ok" } else { "fault" }
    ));
    let lent = hyp.lend(pfn, NR);
    report.step(format_args!("HOST_DONATE_HYP({pfn:#x}, {NR})  -> {}", outcome(lent)));
    let denied = ctx.load(address);
    if let Err(fault) = denied {
        report.step(format_args!("load at {address:#x}            -> external abort, {fault}"));
    }
    let back = hyp.take_back(pfn, NR);
    report.step(format_args!("HYP_DONATE_HOST({pfn:#x}, {NR})  -> {}", outcome(back)));
    let after = ctx.load(address);
    if let Ok(word) = after {
        report.step(format_args!("load at {address:#x}            -> {word:#x}"));
    }
    report.check("lent pages are out of reach", denied.is_err_and(|f| f.is_refusal_of(Access::Load)), "load");
    report.equal("and come back scrubbed", (wrote, lent, back, after), (Ok(()), Ok(()), Ok(()), Ok(0)));
}

fn refused_accesses(ctx: &Ctx<'_>) {
    for carveout in ctx.board.carveouts() {
        let middle = (carveout.start() + carveout.size() / 2) & !(PAGE - 1);
        for (verb, access) in
            [("load from", Access::Load), ("store to", Access::Store), ("jump to", Access::Fetch)]
        {
            if let Err(fault) = ctx.machine.probe(access, middle, 0xbad) {
                let text = format_args!("{verb} the carve-out at {middle:#x} -> external abort, {fault}");
                ctx.report.step(text);
            }
            ctx.expect_refused(format_args!("{verb} the carve-out is refused"), access, middle);
        }
    }
    for device in ctx.board.devices.iter().filter(|d| d.disabled).take(1) {
        let address = device.span.start();
        if let Err(fault) = ctx.load(address) {
            let text = format_args!("load from {} at {address:#x} -> external abort, {fault}", device.name);
            ctx.report.step(text);
        }
        ctx.expect_refused("a withheld device is out of reach", Access::Load, address);
    }
}

fn cpus(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    let [version, ..] = ctx.firmware(psci::VERSION, &[]).1;
    report.step(format_args!("PSCI_VERSION -> {}.{}, relayed", version >> 16, version & 0xffff));
    if !ctx.start_all_cpus() {
        return;
    }
    let kept_out = AtomicU64::new(0);
    ctx.machine.run_on(&ctx.all_cpus(), &|_| {
        let mut pages = ctx.board.carveouts().map(Span::start);
        let denied = pages.all(|p| ctx.load(p).is_err_and(|f| f.is_refusal_of(Access::Load)));
        if denied && ctx.hypervisor().caps().is_ok() {
            kept_out.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (n, kept_out) = (ctx.board.cpus.len(), kept_out.into_inner());
    report.step(format_args!(
        "CPU_ON       -> {n} CPUs run, {kept_out} call the hypervisor and are kept out of its memory"
    ));
    report.equal("every CPU is behind stage 2", kept_out, n as u64);
}

/// A guest with a secret in memory and registers, a host that wants it, and what the host gets.
fn protected_guest(ctx: &Ctx<'_>) {
    let (report, hyp, g) = (&ctx.report, ctx.hypervisor(), Guests::open(ctx));
    let Some(vm) = g.vm(&g.vmm, task(Payload::Secret, true, 0)) else { return };
    report.step(format_args!(
        "VM_CREATE, VCPU_CREATE, VM_POPULATE, VM_FINALISE -> protected VM {:#x}",
        vm.handle
    ));
    let stop = vm.run(&[ctx.boot_cpu], &|_, _, exit| exit.reason == Reason::Wfx);
    report.equal("the guest runs until it has nothing to do", stop, Stop::Watcher);
    let Some(page) = vm.page(SCRATCH).map(|pfn| pfn * PAGE) else {
        return report.fail("the guest has a page", "none");
    };
    report.step(format_args!("VCPU_RUN     -> {} pages asked for, then WFI", vm.exits(Reason::MemFault)));
    report.step(format_args!(
        "the guest has written a secret to memory and registers; its page is at {page:#x}"
    ));
    if let Err(fault) = ctx.load(page) {
        report.step(format_args!("load at {page:#x}            -> external abort, {fault}"));
    }
    ctx.expect_refused("the host does not read the guest's page", Access::Load, page);
    ctx.expect_refused("nor write it", Access::Store, page);
    let loaded = hyp.vcpu_load(vm.handle, 0);
    let (x0, pc) = (hyp.vcpu_get_reg(0), hyp.vcpu_set_reg(reg::PC, 0));
    let put = hyp.vcpu_put();
    report.step(format_args!("VCPU_GET_REG(x0) -> {}", outcome(x0.map(drop))));
    report.step(format_args!("VCPU_SET_REG(pc) -> {}", outcome(pc)));
    let denied = Err(CallError::Errno(abi::Errno::Eacces));
    report.equal(
        "registers are out of reach",
        (loaded, x0.map(drop), pc, put),
        (Ok(()), denied, denied, Ok(())),
    );
    crate::dump::on_request(ctx, "Rampart demo: a protected guest has a secret", &[]);
    g.destroy("the protected VM", vm);
    report.step("VM_TEARDOWN_START, RECLAIM_DYING, VM_TEARDOWN_FINISH -> every page is the host's again");
    let after = ctx.load(page);
    if let Ok(word) = after {
        report.step(format_args!("load at {page:#x}            -> {word:#x}"));
    }
    report.check("the secret is gone", after == Ok(0) && after != Ok(SECRET), "it is there");
    g.close();
}
