//! `guard`: guests that say which of their pages are devices, and a host that leaves holes.
#![forbid(unsafe_code)]

use super::demo::outcome;
use super::guest::{Guests, kind, task};
use super::{Ctx, refused};
use crate::machine::words;
use crate::span::PAGE;
use crate::vmm::{Exit, Spec, Stop, Vm, nobody};
use abi::Errno::{Eacces, Ehwpoison, Eperm};
use abi::exit::{ExitFlags, Reason, Resp, word as record};
use abi::psci;
use abi::vm::GuestProt;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::payloads::guard::{Expect, SERVED, TRIALS, Trial, field};
use guest_shim::protocol::hole::{LEFT, TAKE, TAKEN};
use guest_shim::protocol::{HELLO, Payload, REPLY, SCRATCH, SECRET, UART, word};
use spin::Mutex;

pub(super) fn run(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    for protected in [true, false] {
        uses_a_device(&g, protected);
        meets_a_hole(&g, protected);
    }
    g.close();
}

/// For a person: a protected guest with a device, and a host that wants to be its memory.
pub(super) fn attack(ctx: &Ctx<'_>) {
    let (report, g) = (&ctx.report, Guests::open(ctx));
    let spec = Spec { vcpus: 1, start: task(Payload::Hello, true, 0) };
    g.run("a protected guest with a UART", &spec, &[ctx.boot_cpu], &nobody, |vm| {
        let (exits, line) = (vm.exits(Reason::Mmio), vm.with_line(|line| line == HELLO));
        report.step(format_args!("a protected guest marks its UART at {UART:#x}: {exits} exits MMIO there"));
        vm.with_line(|line| report.step(format_args!("the VMM's PL011 prints: {line}")));
        report.check("a protected guest prints through its marked page", line, "not its line");
    });
    let Some(vm) = g.vm(&g.vmm, task(Payload::Hole, true, 0)) else { return };
    reaches(&g, &vm, LEFT);
    report
        .step(format_args!("attack: the host gives no page at {SCRATCH:#x}, the guest's memory, and waits"));
    let Some(exit) = missing_page(&g, &vm) else { return report.fail("an exit at the hole", "none") };
    let Exit { reason, gpa, data, .. } = exit;
    report.step(format_args!(
        "the guest stores {SECRET:#x} there -> exit {reason:?}, page {gpa:#x}, data {data:#x}"
    ));
    report.equal("the hole shows no data", (reason, data), (Reason::MemFault, 0));
    forges(&g, &vm);
    report.step("attack: memory where the device is");
    cannot_cover_a_mark(&g, &vm);
    g.ok("the host gives the page", vm.supply(SCRATCH));
    if reaches(&g, &vm, TAKE) {
        report.step("the host gives the page, and the guest finds there what it stored");
    }
    report.step("attack: the host takes a page of the guest by force");
    pulls_back(&g, &vm);
    let stop = vm.run(&[ctx.boot_cpu], &nobody);
    report.step(format_args!("the guest loads from it -> {stop}, an exit that takes no data"));
    report.equal("the guest is not made to believe in another page", stop, Stop::Destroyed);
    g.destroy("the protected VM that was attacked", vm);
    g.close();
}

/// The guest marks its UART, prints through it, and finds an abort where no device can serve it.
fn uses_a_device(g: &Guests<'_>, protected: bool) {
    let report = &g.ctx.report;
    let spec = Spec { vcpus: 1, start: task(Payload::Guard, protected, 0) };
    let exits = AtomicU64::new(0);
    let watch = |_: &Vm<'_>, _: u64, exit: &Exit| {
        let device = exit.reason == Reason::Mmio && exit.gpa & !(PAGE - 1) == UART;
        exits.fetch_add(device.into(), Ordering::Relaxed);
        false
    };
    g.run(format_args!("devices of {}", kind(protected)), &spec, &[g.ctx.boot_cpu], &watch, |vm| {
        vm.with_line(|line| report.equal("the line comes through a marked page", line, HELLO));
        let trials = || (0..).zip(TRIALS).map(|(n, trial)| (trial, Found::of(vm, n)));
        // BRK comes first: how an exception looks that the CPU takes by itself.
        let Some((_, Some(hardware))) = trials().next() else {
            return report.fail("the guest's report", "the host cannot read it");
        };
        for (trial, found) in trials() {
            let name = format_args!("{}: {}", kind(protected), trial.name);
            let fits = found.is_some_and(|found| found.fits(trial, &hardware));
            report.check(name, fits, format_args!("{found:x?}"));
        }
        report.check("tables were asked for", vm.exits(Reason::NeedMem) > 0, "no NEED_MEM");
    });
    // Flags and data for each byte, and what the guest read to know the device.
    let printed = 2 * (HELLO.len() as u64 + 1) + 12;
    report.equal("no other access is an exit", exits.into_inner(), printed + SERVED);
}

/// What the guest says of one instruction.
#[derive(Clone, Copy, Debug)]
struct Found {
    x0: u64,
    at: u64,
    vector: u64,
    esr: u64,
    far: u64,
    elr: u64,
    spsr: u64,
    masks: u64,
}

impl Found {
    fn of(vm: &Vm<'_>, nth: u64) -> Option<Self> {
        let at = |n| vm.mail(word::RESULTS + field::COUNT * nth + n).ok();
        Some(Self {
            x0: at(field::X0)?,
            at: at(field::AT)?,
            vector: at(field::VECTOR)?,
            esr: at(field::ESR)?,
            far: at(field::FAR)?,
            elr: at(field::ELR)?,
            spsr: at(field::SPSR)?,
            masks: at(field::MASKS)?,
        })
    }

    /// True if it is what `trial` must come to; `hardware` is an exception that EL2 has no part in.
    fn fits(&self, trial: &Trial, hardware: &Self) -> bool {
        const NONE: u64 = u64::MAX;
        const UNDEFINED: u64 = 1 << 25;
        /// N, Z, C and V, which nobody sets on purpose.
        const FLAGS: u64 = 0xf << 28;
        const BTYPE: u64 = 3 << 10;
        const BTYPE_OF_BR: u64 = 1 << 10;
        const EL0_MASKED: u64 = 0x3c0;
        let (vector, mut spsr, lower) =
            if trial.user { (0x400, EL0_MASKED, 0) } else { (0x200, hardware.spsr & !FLAGS, 1) };
        // The instruction was called, so a CPU that has BTYPE says so; a fetch was jumped to.
        if matches!(trial.expect, Expect::Fetch(_)) && hardware.spsr & BTYPE != 0 {
            spsr = spsr & !BTYPE | BTYPE_OF_BR;
        }
        let taken = |esr: u64, elr: u64| {
            (self.vector, self.esr, self.elr) == (vector, esr, elr)
                && (self.spsr & !FLAGS, self.masks) == (spsr, hardware.masks)
        };
        // Class by level, IL, EA and DFSC 0x10.
        let abort = |class: u64| (class | lower) << 26 | 0x0200_0210;
        let data = |address| taken(abort(0x24), self.at) && self.far == address && self.x0 == trial.x0;
        match trial.expect {
            Expect::Own(class) => taken(class << 26 | 1 << 25, self.at),
            Expect::Data(address) => data(address),
            Expect::DataIfThere(address) => data(address) || taken(UNDEFINED, self.at),
            Expect::Fetch(address) => taken(abort(0x20), address) && self.far == address,
            Expect::Value(value) => self.vector == NONE && self.x0 == value,
        }
    }
}

/// The host gives no page where the guest believes its memory is, and takes another away.
fn meets_a_hole(g: &Guests<'_>, protected: bool) {
    let report = &g.ctx.report;
    let Some(vm) = g.vm(&g.vmm, task(Payload::Hole, protected, 0)) else { return };
    report.step(format_args!("the host leaves a hole where {} believes its memory is", kind(protected)));
    reaches(g, &vm, LEFT);
    let flags = if protected { ExitFlags::PRIVATE } else { ExitFlags::WRITE };
    let shown = missing_page(g, &vm).map(|exit| (exit.flags, exit.gpa, exit.size, exit.write, exit.data));
    report.equal("a store shows the page that lacks", shown, Some((flags, SCRATCH, 4096, false, 0)));
    forges(g, &vm);
    cannot_cover_a_mark(g, &vm);
    g.ok("the host gives the page", vm.supply(SCRATCH));
    reaches(g, &vm, TAKE);
    if protected {
        pulls_back(g, &vm);
        let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
        g.expect("a load from a page that was taken shows that it was", stop, Stop::Destroyed);
    } else {
        let stop = vm.run(&[g.ctx.boot_cpu], &nobody);
        g.judge("a plain guest that met a hole", &vm, stop);
    }
    g.destroy(format_args!("{} that met a hole", kind(protected)), vm);
}

/// Runs the VM to a doorbell.
fn reaches(g: &Guests<'_>, vm: &Vm<'_>, stage: u64) -> bool {
    let stop = vm.run(&[g.ctx.boot_cpu], &|vm, _, exit| {
        exit.reason == Reason::Psci
            && exit.data == u64::from(psci::CPU_SUSPEND_64)
            && vm.mail(word::STAGE) == Ok(stage)
    });
    g.ctx.report.equal(format_args!("the guest is at stage {stage}"), stop, Stop::Watcher)
}

/// Runs the VM to its next exit for memory, which nobody gives.
fn missing_page(g: &Guests<'_>, vm: &Vm<'_>) -> Option<Exit> {
    let found = Mutex::new(None);
    vm.run(&[g.ctx.boot_cpu], &|_, _, exit| {
        let here = matches!(exit.reason, Reason::MemFault | Reason::Mmio);
        if here {
            *found.lock() = Some(*exit);
        }
        here
    });
    found.into_inner()
}

/// Words of the exit record.
const GPA: usize = 1;
const DATA: usize = 3;

/// At such an exit the host looks for what was stored, and answers as if it were a device.
fn forges(g: &Guests<'_>, vm: &Vm<'_>) {
    let Some(at) = vm.record(0) else { return g.ctx.report.fail("a record", "none") };
    let leaks = words(at).filter(|word| g.vmm.load(*word) == Ok(SECRET)).count();
    g.expect("words of the record that show what is stored: none", leaks, 0);
    g.expect("VCPU_LOAD at the hole", g.hyp().vcpu_load(vm.handle, 0), Ok(()));
    let said = |nth| g.vmm.load(at + 8 * nth as u64);
    let before = [record::REASON, GPA, DATA].map(said);
    for (name, resp) in [("DONE", Resp::Done), ("REPLAY", Resp::Replay), ("REJECT", Resp::Reject)] {
        g.ok("an answer", vm.write_record(0, record::RESP, resp as u64));
        g.ok("an answer", vm.write_record(0, record::MMIO_DATA, REPLY));
        g.ok("an answer", vm.write_record(0, record::GIC, 0));
        g.expect(format_args!("VCPU_RUN with {name} and data"), g.hyp().vcpu_run(), Ok(()));
        let after = [record::REASON, GPA, DATA].map(said);
        let reason = |word| Reason::ALL.into_iter().find(|r| *r as u64 == word & 0xffff_ffff);
        let reason = said(record::REASON).ok().and_then(reason);
        let reason =
            reason.map_or("?", |reason| if reason == Reason::MemFault { "MemFault" } else { "another" });
        g.ctx.report.step(format_args!("{name} with data {REPLY:#x} -> exit {reason}"));
        g.expect(format_args!("{name} has no effect"), after, before);
    }
    if vm.kind.is_protected() {
        let x1 = g.hyp().vcpu_get_reg(1).map(drop);
        g.ctx.report.step(format_args!("VCPU_GET_REG(x1) -> {}", outcome(x1)));
        g.expect("no register is shown", x1, refused(Eacces));
        g.expect("nor set", g.hyp().vcpu_set_reg(1, REPLY), refused(Eacces));
        g.ok("an answer", vm.write_record(0, record::RESP, Resp::Sea as u64));
        g.expect("an abort is not the host's to send", g.hyp().vcpu_run(), refused(Eperm));
    }
    g.ok("an answer", vm.write_record(0, record::RESP, Resp::Replay as u64));
    g.expect("VCPU_PUT at the hole", g.hyp().vcpu_put(), Ok(()));
}

/// A page that the guest has marked is a device: it cannot become memory behind the guest's back.
fn cannot_cover_a_mark(g: &Guests<'_>, vm: &Vm<'_>) {
    let Some(pfn) = g.page() else { return };
    let given = if vm.kind.is_protected() {
        g.hyp().guest_donate(vm.handle, UART / PAGE, pfn, 0)
    } else {
        g.hyp().guest_share(vm.handle, UART / PAGE, pfn, 0, GuestProt::R | GuestProt::W)
    };
    let given = given.map_err(|(e, _)| e);
    g.ctx.report.step(format_args!("a page at {UART:#x}, which the guest has marked -> {}", outcome(given)));
    g.expect("no page is put where the device is", given, refused(Eperm));
    g.drop_page(pfn);
}

/// The host takes a page by force: it is scrubbed, and its place takes no other.
fn pulls_back(g: &Guests<'_>, vm: &Vm<'_>) {
    let Some(pfn) = vm.page(TAKEN) else { return g.ctx.report.fail("a page to take", "none") };
    let taken = g.hyp().guest_reclaim(vm.handle, TAKEN, TAKEN + PAGE).map(|chunk| chunk.done);
    g.expect("the host takes a page of the guest", taken, Ok(TAKEN + PAGE));
    let word = g.vmm.load(pfn * PAGE).unwrap_or(u64::MAX);
    let done = outcome(taken.map(drop));
    g.ctx.report.step(format_args!("GUEST_RECLAIM({TAKEN:#x}) -> {done}, its first word is {word:#x}"));
    g.expect("it comes scrubbed", g.vmm.first_nonzero(pfn), Ok(None));
    let again = g.hyp().guest_donate(vm.handle, TAKEN / PAGE, pfn, 0).map_err(|(e, _)| e);
    g.ctx.report.step(format_args!("another page in its place -> {}", outcome(again)));
    g.expect("no other page is put there", again, refused(Ehwpoison));
    g.ok("the VM forgets the page", vm.forget(TAKEN));
    g.drop_page(pfn);
}
