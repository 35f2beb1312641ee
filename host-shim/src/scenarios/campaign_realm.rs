//! The part of `campaign` that realms have: one that is being made and one that runs, whose pages all CPUs give, take,
//! show and ask for at once.
//!
//! What is legal is what docs/abi.md says of each call: one of its errnos, or success. Whether a success was right the
//! specification says, and the audits; and in the end every page comes back.
#![forbid(unsafe_code)]

use super::Ctx;
use super::guest::{Guests, realm_task};
use super::realm_end::BASE;
use crate::hvc::CallError;
use crate::random::Random;
use crate::span::{BLOCK, PAGE, Span};
use crate::vmm::{Spec, Stop, Vm};
use abi::Errno::{self, E2big, Eagain, Ebusy, Eexist, Ehwpoison, Einval, Enoent, Enomem, Eperm, Erange};
use abi::exit::{Reason, word};
use guest_shim::protocol::{ABSENT, Payload, SHARED};

/// Frames of each realm that the calls are about.
const FRAMES: u64 = 48;

/// What a call answered, and the errnos that it may answer.
pub(super) type Made = (Result<[u64; 2], CallError>, &'static [Errno]);

/// The realms of one lot of calls.
pub(super) struct Realms<'v> {
    /// Without memory, in phase NEW to begin with.
    made: Vm<'v>,
    /// With a vCPU that asks for states of the 2 MiB at [`ABSENT`], or calls its host, for ever.
    runs: Vm<'v>,
}

impl<'v> Realms<'v> {
    /// Makes both; what the second does is by the number of the lot.
    pub(super) fn new(g: &'v Guests<'_>, lot: u64) -> Option<Self> {
        let made = g.vmm.create_empty(&Spec { vcpus: 1, start: realm_task(Payload::Idle, 0) });
        let made = g.ok("a realm that is being made", made)?;
        g.ok("table pages", made.top_up(3))?;
        let asks = lot % 2 == 1;
        let task = if asks { Payload::Claim } else { Payload::CallHost };
        let runs = g.ok("a realm that runs", g.vmm.create_one(realm_task(task, 0)))?;
        let there = |reason, base| {
            if asks { reason == Reason::RipasChange && base == ABSENT } else { reason == Reason::HostCall }
        };
        let stop = runs.run(&[g.ctx.boot_cpu], &|_, _, exit| there(exit.reason, exit.base));
        g.expect("it has begun", stop, Stop::Watcher);
        g.ok("its record", runs.write_record(0, word::GIC, 0))?;
        g.ok("table pages", runs.top_up(2))?;
        Some(Self { made, runs })
    }

    /// Takes both apart.
    pub(super) fn end(self, g: &Guests<'_>) {
        for (name, vm, base) in
            [("the realm that was made", self.made, BASE), ("the realm that ran", self.runs, ABSENT)]
        {
            // DYING already, if a call of the lot was so good.
            let start = g.hyp().vm_teardown_start(vm.handle);
            if start != Err(CallError::Errno(Ebusy)) {
                g.expect(name, start, Ok(()));
            }
            let mut at = base;
            while at < base + BLOCK {
                match g.ok(name, g.hyp().reclaim_dying(vm.handle, at, base + BLOCK)) {
                    Some(chunk) if chunk.done > at => at = chunk.done,
                    _ => return g.ctx.report.fail(name, "RECLAIM_DYING makes no progress"),
                }
            }
            g.ok(name, vm.destroy_started());
        }
    }

    /// A call about one of them, with arguments of which most make sense.
    pub(super) fn call(&self, ctx: &Ctx<'_>, random: &mut Random, arena: Span) -> Made {
        let hyp = ctx.hypervisor();
        let runs = random.below(2) == 0;
        let (vm, first) = if runs { (&self.runs, ABSENT) } else { (&self.made, BASE) };
        let handle = if random.below(64) == 0 { random.next_word() } else { vm.handle };
        let base = first + random.below(FRAMES) * PAGE;
        let top = base + random.of(&[0, PAGE, PAGE, PAGE, 5 * PAGE, 1]).unwrap_or(PAGE);
        let pfn = arena.start() / PAGE + random.below(arena.size() / PAGE);
        // What is EL2's is nobody's to give.
        let of_el2 = ctx.board.carveouts().next().unwrap_or(arena).start() / PAGE;
        let pfn = if random.below(32) == 0 { of_el2 + random.below(64) } else { pfn };
        let gfn = base / PAGE;
        let shared = (base | SHARED) / PAGE;
        match random.below(18) {
            0..=2 => (hyp.vm_init_ripas(handle, base, top).map(one).map_err(errno), RANGE),
            3..=5 if runs => (self.turn(ctx, random), TURN),
            3..=8 => (hyp.guest_donate(handle, gfn, pfn, 0).map(none).map_err(errno), GIVE),
            9 => {
                let measure = random.below(2) == 0;
                (hyp.vm_populate(handle, gfn, pfn, measure).map(none).map_err(errno), GIVE)
            }
            10 | 11 => (hyp.guest_reclaim(handle, base, top).map(|chunk| [chunk.done, 0]), RANGE),
            12 | 13 => {
                let write = random.below(2) == 0;
                (hyp.unprot_map(handle, shared, pfn, 0, write).map(none).map_err(errno), GIVE)
            }
            14 => (hyp.unprot_unmap(handle, shared, random.below(4)).map(|(first, nr)| [first, nr]), UNSHARE),
            15 | 16 => {
                let applied = hyp.ripas_apply(handle, random.below(16) / 15, ABSENT, ABSENT + BLOCK);
                (applied.map(|chunk| [chunk.done, 0]).map_err(errno), RANGE)
            }
            _ => match random.below(16) {
                0 => (hyp.vm_finalise(self.made.handle).map(none), &[Enoent, Ebusy, Eagain]),
                1 => (hyp.vm_teardown_start(self.made.handle).map(none), &[Enoent, Ebusy]),
                _ => (hyp.reclaim_dying(handle, base, top).map(|chunk| [chunk.done, 0]), RANGE),
            },
        }
    }

    /// A turn of the realm that runs, and what it asked for is done, in part, before it goes on or is put.
    fn turn(&self, ctx: &Ctx<'_>, random: &mut Random) -> Result<[u64; 2], CallError> {
        let (hyp, vm) = (ctx.hypervisor(), &self.runs);
        hyp.vcpu_load(vm.handle, 0)?;
        let answered = vm.write_record(0, word::RESP, random.below(5));
        let ran = hyp.vcpu_run();
        let asked = vm.record(0).and_then(|record| ctx.load(record + 8 * word::BASE as u64).ok());
        let pages = random.below(600) * PAGE;
        let applied = match asked {
            Some(base) if base != 0 => {
                hyp.ripas_apply(vm.handle, 0, base, base + pages).map(drop).map_err(errno)
            }
            _ => Ok(()),
        };
        let put = hyp.vcpu_put();
        answered.map_err(|_| CallError::NotSupported)?;
        ran.and(put).and(applied).map(none)
    }
}

const fn none((): ()) -> [u64; 2] {
    [0; 2]
}

const fn one(done: u64) -> [u64; 2] {
    [done, 0]
}

const fn errno((e, _): (CallError, u64)) -> CallError {
    e
}

/// Calls on a range of frames: INIT_RIPAS, RIPAS_APPLY, GUEST_RECLAIM, RECLAIM_DYING.
const RANGE: &[Errno] = &[Einval, Erange, Enoent, Ebusy, Ehwpoison, Eperm, Enomem];
/// Calls that give or show a page.
const GIVE: &[Errno] = &[Einval, Erange, Enoent, Ebusy, Eperm, Eexist, Ehwpoison, Enomem];
const UNSHARE: &[Errno] = &[Einval, E2big, Erange, Enoent];
/// VCPU_LOAD, VCPU_RUN, RIPAS_APPLY and VCPU_PUT in a row.
const TURN: &[Errno] = &[Einval, Erange, Enoent, Ebusy, Eperm, Enomem];
