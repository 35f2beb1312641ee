//! VMs that end when nobody expects it: at every exit.
#![forbid(unsafe_code)]

use super::{Ctx, Guests, kind, task};
use crate::vmm::{Exit, Spec, Stop, Vm};
use abi::exit::Reason;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::protocol::Payload;

/// Ends a VM at its first exit, another at its second, and so on through every kind of exit.
pub(in super::super) fn kill(ctx: &Ctx<'_>) {
    const EXITS: u64 = 48;
    let g = Guests::open(ctx);
    let exits = ctx.args.number("rounds", EXITS);
    for protected in [false, true] {
        let mut seen: ArrayVec<Reason, { Reason::ALL.len() }> = ArrayVec::new();
        for nth in 1..=exits {
            let spec = Spec { vcpus: 2, start: task(Payload::Exits, protected, 0) };
            let Some(vm) = g.ok("making a VM to end", g.vmm.create(&spec)) else { return };
            let (count, last) = (AtomicU64::new(0), AtomicU64::new(0));
            let watch = |_: &Vm<'_>, _: u64, exit: &Exit| {
                last.store(exit.reason as u64, Ordering::Relaxed);
                count.fetch_add(1, Ordering::Relaxed) + 1 == nth
            };
            let stop = vm.run(&[ctx.boot_cpu], &watch);
            let last = last.into_inner();
            if let Some(reason) = Reason::ALL.into_iter().find(|r| *r as u64 == last)
                && !seen.contains(&reason)
            {
                seen.push(reason);
            }
            let gone = vm.destroy();
            if stop != Stop::Watcher || gone.is_err() {
                let reason = format_args!("{stop}, {gone:?}");
                ctx.report.fail(format_args!("end of {} at exit {nth}", kind(protected)), reason);
                return;
            }
        }
        let name = format_args!("{} ends at each of {exits} exits", kind(protected));
        ctx.report.check(name, seen.len() >= 5, format_args!("only at {seen:?}"));
        ctx.report.step(format_args!("{} was ended at {seen:?}", kind(protected)));
    }
    g.close();
}
