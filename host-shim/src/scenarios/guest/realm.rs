//! `guest_realm`: a guest that decides what each of its pages is, and a host that has no say in it.
#![forbid(unsafe_code)]

use super::super::demo::outcome;
use super::super::refused;
use super::{Ctx, Guests};
use crate::hvc::CallError;
use crate::inspect::Inspector;
use crate::machine::Access;
use crate::span::PAGE;
use crate::vmm::{Exit, Spec, Vm, nobody};
use abi::Errno::{Ebusy, Ehwpoison, Einval, Enoent, Eperm, Erange};
use abi::exit::{ExitFlags, Reason, Resp, WANT_EMPTY, word as record};
use abi::psci;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use guest_shim::protocol::realm::{LOADER, PAGE as GIVEN, ROUNDS, SHARED_PAGE, TAKE, TAKEN, VCPUS};
use guest_shim::protocol::{
    ABSENT, BEYOND, HELLO, IMAGE, Payload, REPLY, SCRATCH, SECRET, SHARED, Start, VmKind, checksum, word,
};
use spin::Mutex;

/// A task for a realm.
pub(in super::super) const fn task(payload: Payload, argument: u32) -> Start {
    Start { payload, kind: VmKind::Realm, argument }
}

pub(in super::super) fn realm(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let all = ctx.all_cpus();
    // Where each call is judged and followed by a look at all pages, it does less often.
    let rounds = if Inspector::new(ctx.hypervisor()).is_some() { 20 } else { ROUNDS };
    for cpus in [all.as_slice(), &[ctx.boot_cpu]] {
        let host = Host::default();
        let spec = Spec { vcpus: VCPUS, start: task(Payload::Realm, rounds) };
        let watch = |vm: &Vm<'_>, idx: u64, exit: &Exit| host.sees(&g, vm, idx, exit);
        g.run(format_args!("a realm on {} CPUs", cpus.len()), &spec, cpus, &watch, |vm| {
            vm.with_line(|line| ctx.report.equal("its line comes through the shared half", line, HELLO));
            host.judge(&g, vm, rounds);
            for (name, at) in [("initial", word::RESULTS), ("extended", word::RESULTS + 8)] {
                report_measurement(&g, vm, name, at);
            }
        });
    }
    as_any_guest(&g, &all);
    g.close();
}

/// Says what the guest read as its measurement: to be held against what others compute.
fn report_measurement(g: &Guests<'_>, vm: &Vm<'_>, name: &str, at: u64) {
    let mut words = [0; 8];
    for (word, n) in words.iter_mut().zip(at..) {
        match vm.mail(n) {
            Ok(value) => *word = value,
            Err(e) => return g.ctx.report.fail(name, e),
        }
    }
    let [a, b, c, d, zeros @ ..] = words.map(u64::swap_bytes);
    g.expect("behind SHA-256 there is nothing", zeros, [0; 4]);
    g.ctx.report.step(format_args!("{name} measurement {a:016x}{b:016x}{c:016x}{d:016x}"));
}

/// For a person: a realm gives a page up, shares one in its place and takes it back, and loses one.
pub(in super::super) fn story(ctx: &Ctx<'_>) {
    let (report, g) = (&ctx.report, Guests::open(ctx));
    report.step(
        "VM_CREATE with SPLIT_IPA, VM_INIT_RIPAS -> a realm: it calls by SMC, as an Arm CCA guest does",
    );
    let spec = Spec { vcpus: VCPUS, start: task(Payload::Realm, 1) };
    let (given, told) = (Mutex::new(None), AtomicBool::new(false));
    let watch = |vm: &Vm<'_>, _: u64, exit: &Exit| {
        tell(&g, vm, exit, &given, &told);
        false
    };
    g.run("a realm", &spec, &ctx.all_cpus(), &watch, |_| {
        report.step("the guest asks for the page again -> RAM, and the load that waited finds an empty page");
    });
    g.close();
}

/// Says what an exit of a realm is about, and does the host's part in the guest's plan.
fn tell(g: &Guests<'_>, vm: &Vm<'_>, exit: &Exit, given: &Mutex<Option<u64>>, told: &AtomicBool) {
    let report = &g.ctx.report;
    match exit.reason {
        Reason::RipasChange if exit.base == GIVEN && exit.want == WANT_EMPTY => {
            *given.lock() = vm.page(GIVEN);
            report.step(format_args!(
                "IPA_STATE_SET({GIVEN:#x}, EMPTY): the guest gives up a page with a secret"
            ));
        }
        Reason::RipasChange if exit.base == GIVEN => {
            report.step("IPA_STATE_SET(RAM): it wants its own there again, and finds it empty");
        }
        Reason::Mmio if exit.gpa == GIVEN + SHARED => {
            if let Some(word) = given.lock().and_then(|pfn| g.vmm.load(pfn * PAGE).ok()) {
                report.step(format_args!(
                    "RIPAS_APPLY  -> the page is the host's, its first word is {word:#x}"
                ));
                report.equal("what was given up is gone", word, 0);
            }
            report
                .step(format_args!("the guest touches {:#x} -> UNPROT_MAP of a page of the host", exit.gpa));
        }
        Reason::Psci if exit.data == u64::from(psci::CPU_SUSPEND_64) => match vm.mail(word::STAGE) {
            Ok(SHARED_PAGE) => {
                looks_at_what_is_shared(g, vm);
                report.step("through that page guest and host talk");
            }
            Ok(TAKE) => {
                report
                    .step("attack: the host takes a private page by force, and the guest is asked to go on");
                takes_by_force(g, vm);
            }
            other => report.fail("a known stage", format_args!("{other:?}")),
        },
        Reason::MemFault if exit.flags.contains(ExitFlags::DESTROYED) && once(told) => {
            let Some(pfn) = g.page() else { return };
            let put = g.hyp().guest_donate(vm.handle, TAKEN / PAGE, pfn, 0).map_err(|(e, _)| e);
            report.step(format_args!(
                "the guest loads from it -> exit MemFault, DESTROYED; another page in its place -> {}",
                outcome(put)
            ));
            report.equal("what is lost shows", put, refused(Ehwpoison));
            g.drop_page(pfn);
            g.ok("the guest is told", vm.write_mail(word::ANSWER, 1));
        }
        _ => {}
    }
}

/// What protected guests do that is no matter of the halves.
fn as_any_guest(g: &Guests<'_>, all: &[usize]) {
    const PAGES: u32 = 40;
    let spec = Spec { vcpus: 1, start: task(Payload::Memory, PAGES) };
    g.run("memory of a realm", &spec, all, &nobody, |vm| {
        g.expect("its sum is that of the pattern", vm.mail(word::RESULTS), Ok(checksum(PAGES.into())));
        let pages = (0..u64::from(PAGES)).map(|n| SCRATCH + n * PAGE);
        for pfn in pages.filter_map(|ipa| vm.page(ipa)) {
            g.ctx.expect_refused("a realm's page", Access::Load, pfn * PAGE);
        }
    });
    let spec = Spec { vcpus: 4, start: task(Payload::Smp, 4) };
    g.run("4 vCPUs of a realm", &spec, all, &nobody, |_| {});
}

/// The host, which tries at each exit what it must not be able to do, once.
#[derive(Default)]
struct Host {
    /// Exits that show an address of which the host must not hear.
    strays: AtomicU64,
    /// Times the guest gave the page up.
    given_up: AtomicU64,
    lied: AtomicBool,
    aborted: AtomicBool,
    poisoned: AtomicBool,
}

/// True the first time.
fn once(done: &AtomicBool) -> bool {
    !done.swap(true, Ordering::Relaxed)
}

impl Host {
    /// Lets every exit be served.
    fn sees(&self, g: &Guests<'_>, vm: &Vm<'_>, idx: u64, exit: &Exit) -> bool {
        let private = exit.gpa & SHARED == 0;
        match exit.reason {
            Reason::Mmio if private => drop(self.strays.fetch_add(1, Ordering::Relaxed)),
            Reason::MemFault if exit.gpa == ABSENT => drop(self.strays.fetch_add(1, Ordering::Relaxed)),
            Reason::MemFault if exit.flags.contains(ExitFlags::DESTROYED) => {
                self.finds_poison(g, vm, idx, exit)
            }
            Reason::MemFault if exit.gpa == GIVEN && once(&self.aborted) => sends_abort(g, vm, idx),
            Reason::RipasChange if exit.base == GIVEN && exit.want == WANT_EMPTY => {
                self.given_up.fetch_add(1, Ordering::Relaxed);
                if once(&self.lied) {
                    lies(g, vm, idx, exit);
                }
            }
            Reason::Psci if exit.data == u64::from(psci::CPU_SUSPEND_64) => match vm.mail(word::STAGE) {
                Ok(SHARED_PAGE) => looks_at_what_is_shared(g, vm),
                Ok(TAKE) => takes_by_force(g, vm),
                other => g.ctx.report.fail("a known stage", format_args!("{other:?}")),
            },
            _ => {}
        }
        false
    }

    /// The guest wants a page that the host took: nobody else can put one there, and the guest's other vCPU hears
    /// of it.
    fn finds_poison(&self, g: &Guests<'_>, vm: &Vm<'_>, idx: u64, exit: &Exit) {
        if once(&self.poisoned) {
            let flags = ExitFlags::PRIVATE | ExitFlags::DESTROYED;
            g.expect("a lost page shows its address", (idx, exit.gpa, exit.flags), (LOADER, TAKEN, flags));
            let Some(pfn) = g.page() else { return };
            let given = g.hyp().guest_donate(vm.handle, TAKEN / PAGE, pfn, 0);
            g.expect("no page is put there", given.map_err(|(e, _)| e), refused(Ehwpoison));
            g.drop_page(pfn);
            g.ok("the guest is told", vm.write_mail(word::ANSWER, 1));
        }
    }

    fn judge(&self, g: &Guests<'_>, vm: &Vm<'_>, rounds: u32) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        g.expect("exits for what is private and EMPTY", count(&self.strays), 0);
        g.expect("times the page was given up", count(&self.given_up), rounds.into());
        let tried = [&self.lied, &self.aborted, &self.poisoned].map(|done| done.load(Ordering::Relaxed));
        g.expect("the host has tried all", tried, [true; 3]);
        g.expect("calls of the guest to its host", vm.exits(Reason::HostCall), 2);
        // The mailbox, and each round's page, once.
        let shown = vm.exits(Reason::RipasChange);
        g.ctx.report.check("the guest's word came first", shown > 2 * u64::from(rounds), shown);
    }
}

/// The guest waits for `[base, top)` to become EMPTY. Nothing else can be made of that.
fn lies(g: &Guests<'_>, vm: &Vm<'_>, idx: u64, exit: &Exit) {
    let (hyp, handle, base, top) = (g.hyp(), vm.handle, exit.base, exit.top);
    let apply =
        |handle, idx, base, top| hyp.ripas_apply(handle, idx, base, top).map(drop).map_err(|(e, _)| e);
    for (name, got, errno) in [
        ("a part that is not next", apply(handle, idx, base + PAGE, top + PAGE), Eperm),
        ("more than was asked for", apply(handle, idx, base, top + PAGE), Eperm),
        ("less than a page", apply(handle, idx, base, base + 1), Einval),
        ("nothing", apply(handle, idx, base, base), Einval),
        ("the shared half", apply(handle, idx, base + SHARED, top + SHARED), Eperm),
        ("what no VM can have", apply(handle, idx, base, (1 << 48) + PAGE), Erange),
        ("what another vCPU asked for", apply(handle, idx ^ 1, base, top), Eperm),
        ("a vCPU that is not", apply(handle, u64::from(VCPUS), base, top), Enoent),
        ("a VM that is not", apply(handle ^ 0x100, idx, base, top), Enoent),
    ] {
        g.expect(format_args!("RIPAS_APPLY of {name}"), got, refused(errno));
    }
    let init = hyp.vm_init_ripas(handle, ABSENT, ABSENT + PAGE).map(drop).map_err(|(e, _)| e);
    g.expect("RAM by the host's word, after the guest began", init, refused(Ebusy));
    let Some(pfn) = g.page() else { return };
    let given = hyp.guest_donate(handle, ABSENT / PAGE, pfn, 0).map_err(|(e, _)| e);
    g.expect("memory where the guest wants none", given, refused(Eperm));
    let map = |gfn, pfn| hyp.unprot_map(handle, gfn, pfn, 0, true).map_err(|(e, _)| e);
    let shared = (GIVEN + SHARED) / PAGE;
    g.expect("a page of the host in the private half", map(ABSENT / PAGE, pfn), refused(Einval));
    g.expect("a page beyond the space", map(BEYOND / PAGE, pfn), refused(Erange));
    let own = [("its code", vm.page(IMAGE)), ("what it gives up", vm.page(base))];
    for (name, pfn) in own {
        let Some(pfn) = pfn else { return g.ctx.report.fail(name, "the guest has no page there") };
        g.expect(format_args!("{name} in the shared half"), map(shared, pfn), refused(Eperm));
    }
    g.expect("a page of the VM's state there", map(shared, vm.vcpu_pfn(0).unwrap_or(0)), refused(Eperm));
    g.drop_page(pfn);
    if let Some(pfn) = vm.page(base) {
        g.ctx.expect_refused("the page is the guest's still", Access::Load, pfn * PAGE);
    }
}

/// Memory that is late must not look like memory that is not there.
fn sends_abort(g: &Guests<'_>, vm: &Vm<'_>, idx: u64) {
    let idx = usize::try_from(idx).unwrap_or(usize::MAX);
    g.ok("an answer", vm.write_record(idx, record::RESP, Resp::Sea as u64));
    g.expect("an abort is not the host's to send", g.hyp().vcpu_run(), refused(Eperm));
    g.ok("an answer", vm.write_record(idx, record::RESP, Resp::Replay as u64));
}

fn looks_at_what_is_shared(g: &Guests<'_>, vm: &Vm<'_>) {
    let Some(pfn) = vm.page(GIVEN + SHARED) else {
        return g.ctx.report.fail("a page in the shared half", "none");
    };
    let word = g.vmm.load(pfn * PAGE);
    g.expect("the host reads what the guest wrote for it", word, Ok(SECRET));
    g.ok("and answers", g.vmm.store(pfn * PAGE + 8, REPLY));
    let lend = g.hyp().guest_donate(vm.handle, GIVEN / PAGE, pfn, 0).map_err(|(e, _)| e);
    g.expect("a page that is shown is not given", lend, refused(Eperm));
}

fn takes_by_force(g: &Guests<'_>, vm: &Vm<'_>) {
    let Some(pfn) = vm.page(TAKEN) else { return g.ctx.report.fail("a page to take", "none") };
    let taken: Result<u64, CallError> =
        g.hyp().guest_reclaim(vm.handle, TAKEN, TAKEN + PAGE).map(|chunk| chunk.done);
    g.expect("a private page is taken", taken, Ok(TAKEN + PAGE));
    g.expect("it comes scrubbed", g.vmm.first_nonzero(pfn), Ok(None));
    g.ok("the VM forgets the page", vm.forget(TAKEN));
    g.drop_page(pfn);
}
