//! `guest_linux_ended`: Linux guests of both kinds that are taken apart while they run: behind the n-th exit, and by
//! another CPU at any moment. All of each comes back, and another guest runs in the same memory.
//!
//! Words of the command line: `rounds=N` ends of each kind, `seed=N`, `quiet`, `append=WORD`.
#![forbid(unsafe_code)]

use super::super::guest::{Guests, task};
use super::{Ctx, bootargs, cpus, name};
use crate::hvc::CallError;
use crate::linux::{Linux, guest_shim};
use crate::random::Random;
use crate::span::Span;
use crate::vmm::{Exit, Spec, Stop, Vm, VmmError, nobody, serve};
use abi::Errno;
use abi::exit::Reason;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::protocol::{Payload, VmKind};

/// The guest's RAM.
const MEMORY: u64 = 192 << 20;
/// The latest exit that ends a guest: Linux's script runs by then.
const LATEST: u64 = 1 << 11;

/// Who ends a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The CPU that runs it, behind an exit.
    Itself,
    /// Another CPU, as soon as the hypervisor lets it, so many ticks behind that exit: mostly the guest runs then.
    Another {
        /// Ticks.
        wait: u64,
    },
}

pub(in super::super) fn ended(ctx: &Ctx<'_>) {
    let Some(archive) = ctx.board.initrd else { return ctx.report.fail("an archive", "none") };
    let mut random = Random::new(ctx.args.number("seed", 1), 0);
    for kind in [VmKind::Plain, VmKind::Realm] {
        for _ in 0..ctx.args.number("rounds", 2) {
            // As many early ones as late ones, where each doubling counts the same.
            let scale = 1 << random.below(LATEST.ilog2().into());
            end(ctx, archive, kind, scale + random.below(scale), By::Itself);
        }
        let wait = random.below(ctx.machine.frequency() / 50);
        end(ctx, archive, kind, random.below(LATEST / 8), By::Another { wait });
    }
}

/// Ends a guest of its own, and sees that nothing of it is left.
fn end(ctx: &Ctx<'_>, archive: Span, kind: VmKind, nth: u64, by: By) {
    let g = Guests::open(ctx);
    let Some(image) = g.ok("the guest shim", guest_shim(&g.vmm, archive)) else { return };
    let g = g.with_image(image);
    let bootargs = bootargs(&ctx.args, kind, 1, "checks");
    let linux = Linux { kind, vcpus: 1, ram: MEMORY, bootargs: &bootargs, listens: false, measured: false };
    let Some(vm) = g.ok(name(kind), linux.create(&g.vmm, Some(archive))) else { return };
    match by {
        By::Itself => {
            let stop = at_exit(ctx, &vm, nth);
            // A guest that is quicker than that is at its end.
            let right = matches!(stop, Stop::Watcher | Stop::Off);
            ctx.report.check(format_args!("{} ends at exit {nth}", name(kind)), right, stop);
            g.destroy(name(kind), vm);
        }
        By::Another { wait } => {
            let refused = by_another(ctx, &vm, nth, wait);
            let refused = refused.inspect(|refused| {
                ctx.report.step(format_args!("the call was refused {refused} times while the guest ran"));
            });
            let title = format_args!("{} is ended behind exit {nth} by another CPU", name(kind));
            if g.ok(title, refused).is_some() {
                ctx.report.pass(title);
            }
            g.ok("all of it comes back", vm.destroy_started());
        }
    }
    let next = Spec { vcpus: 1, start: task(Payload::Hello, true, 0) };
    g.run("another guest in its memory", &next, &[ctx.boot_cpu], &nobody, |_| {});
    g.close();
}

/// Runs `vm` to its `nth` exit.
fn at_exit(ctx: &Ctx<'_>, vm: &Vm<'_>, nth: u64) -> Stop {
    let count = AtomicU64::new(0);
    vm.run(&[ctx.boot_cpu], &|_, _, _| count.fetch_add(1, Ordering::Relaxed) + 1 >= nth)
}

/// Runs `vm` while another CPU tries to end it; how often that was refused because a CPU had the vCPU.
fn by_another(ctx: &Ctx<'_>, vm: &Vm<'_>, nth: u64, wait: u64) -> Result<u64, VmmError> {
    let cpus = cpus(ctx, 2);
    let (count, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let watch = |_: &Vm<'_>, _: u64, _: &Exit| {
        count.fetch_add(1, Ordering::Relaxed);
        false
    };
    vm.pin(cpus.get(..1).unwrap_or(&[]));
    ctx.machine.run_on(&cpus, &|_| {
        if cpus.first() == Some(&ctx.machine.cpu()) {
            return serve(ctx.machine, &[vm], &watch);
        }
        while vm.stopped().is_none() && count.load(Ordering::Relaxed) < nth {
            core::hint::spin_loop();
        }
        let begin = ctx.machine.ticks() + wait;
        while vm.stopped().is_none() {
            if ctx.machine.ticks() < begin {
                continue;
            }
            match ctx.hypervisor().vm_teardown_start(vm.handle) {
                Ok(()) => vm.halt(Stop::Watcher),
                Err(CallError::Errno(Errno::Ebusy)) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => vm.halt(VmmError::Call("VM_TEARDOWN_START", e).into()),
            }
        }
    });
    match vm.stopped() {
        Some(Stop::Watcher) => Ok(refused.into_inner()),
        Some(Stop::Failed(e)) => Err(e),
        _ => Err(VmmError::Contract("it was not ended, but went off", vm.exits(Reason::Psci))),
    }
}
