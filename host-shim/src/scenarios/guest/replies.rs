//! Answers that nobody asked for, and list registers that no host may write.
#![forbid(unsafe_code)]

use super::super::refused;
use super::{Ctx, Guests, kind, task};
use crate::span::PAGE;
use crate::vmm::Vm;
use abi::Errno::{Einval, Eperm, Erange};
use abi::exit::{Reason, Resp, word};
use guest_shim::protocol::{Payload, SCRATCH, UART};

pub(in super::super) fn replies(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    for protected in [false, true] {
        answers_to_wfi(&g, protected);
    }
    answers_to_mmio(&g);
    answers_to_fault(&g);
    list_registers(&g);
    g.close();
}

/// A VM at an exit for `reason`, its vCPU loaded here.
struct AtExit<'v, 'g> {
    g: &'v Guests<'g>,
    vm: Vm<'v>,
    record: u64,
}

impl<'v, 'g> AtExit<'v, 'g> {
    fn new(g: &'v Guests<'g>, payload: Payload, protected: bool, reason: Reason, gpa: u64) -> Option<Self> {
        let vm = g.vm(&g.vmm, task(payload, protected, 0))?;
        vm.run(&[g.ctx.boot_cpu], &|_, _, exit| exit.reason == reason && exit.gpa == gpa);
        let record = vm.record(0)?;
        g.expect("load at an exit", g.hyp().vcpu_load(vm.handle, 0), Ok(()));
        Some(Self { g, vm, record })
    }

    fn set(&self, word: usize, value: u64) {
        self.g.ok("the record is the host's", self.g.vmm.store(self.record + 8 * word as u64, value));
    }

    fn word(&self, word: usize) -> u64 {
        self.g.vmm.load(self.record + 8 * word as u64).unwrap_or(u64::MAX)
    }

    /// Runs with an answer and no list registers; reason and gpa of the exit that follows.
    fn answer(&self, resp: u64, data: u64) -> Result<(u64, u64), crate::hvc::CallError> {
        self.set(word::RESP, resp);
        self.set(word::MMIO_DATA, data);
        self.set(word::GIC, 0);
        self.g.hyp().vcpu_run()?;
        Ok((self.word(0), self.word(1)))
    }

    fn end(self, what: &str) {
        self.g.expect("put at an exit", self.g.hyp().vcpu_put(), Ok(()));
        self.g.destroy(what, self.vm);
    }
}

/// Answers: REPLAY, DONE, SEA, REJECT and what is none.
const ANSWERS: [u64; 8] = [0, 1, 2, 3, 4, 99, 0x8000_0000, 0xffff_ffff];

/// To WFI there is nothing to say: each answer is a REPLAY.
fn answers_to_wfi(g: &Guests<'_>, protected: bool) {
    let Some(at) = AtExit::new(g, Payload::Idle, protected, Reason::Wfx, 0) else { return };
    for resp in ANSWERS {
        // The padding above it is nobody's.
        let got = at.answer(resp | 0xdead << 32, 0xbad);
        let name = format_args!("answer {resp:#x} to WFI of {}", kind(protected));
        g.expect(name, got, Ok((Reason::Wfx as u64, 0)));
    }
    at.end("a VM that was answered");
}

/// REJECT and nonsense leave the access pending; DONE completes it.
fn answers_to_mmio(g: &Guests<'_>) {
    let Some(at) = AtExit::new(g, Payload::Load, false, Reason::Mmio, UART) else { return };
    let mmio = Ok((Reason::Mmio as u64, UART));
    g.expect("put before answers", g.hyp().vcpu_put(), Ok(()));
    g.expect("load again", g.hyp().vcpu_load(at.vm.handle, 0), Ok(()));
    for resp in [0, 3, 5, 0xffff_ffff] {
        let before = g.hyp().vcpu_get_reg(abi::vm::reg::PC);
        g.expect(format_args!("answer {resp:#x} to a load"), at.answer(resp, 0x1_0000_0055), mmio);
        g.expect("the load has not been done", g.hyp().vcpu_get_reg(abi::vm::reg::PC), before);
    }
    let (map, nowhere) = (Resp::Map as u64, 1 << 36);
    g.expect("MAP of what is no memory", at.answer(map, nowhere), refused(Erange).map(|()| (0, 0)));
    g.expect("the load is still pending", at.answer(0, 0), mmio);
    // DONE: cut to the width of the load. The next exit is the next load.
    g.expect("DONE to a load", at.answer(1, 0xffff_ffff_0000_0055), mmio);
    g.expect("the value is cut to 32 bits", g.hyp().vcpu_get_reg(1), Ok(0x55));
    at.end("a VM with a pending load");
}

/// A protected VM's missing page is not an abort: EPERM, and the fault stays.
fn answers_to_fault(g: &Guests<'_>) {
    let Some(at) = AtExit::new(g, Payload::Touch, true, Reason::MemFault, SCRATCH) else { return };
    let again = Ok((Reason::MemFault as u64 | 1 << 3 << 32, SCRATCH));
    let repeat = |at: &AtExit<'_, '_>| at.word(7);
    let before = repeat(&at);
    g.expect("SEA for a private page", at.answer(2, 0), refused(Eperm).map(|()| (0, 0)));
    g.expect("the record is as it was", (at.word(1), repeat(&at)), (SCRATCH, before));
    for (n, resp) in (1..).zip([0, 1, 3, 77]) {
        g.expect(format_args!("answer {resp} to a private fault"), at.answer(resp, 0), again);
        g.expect("it says how often", repeat(&at), before + n);
    }
    let (map, own) = (Resp::Map as u64, at.vm.vcpu_pfn(0).unwrap_or_default());
    g.expect("MAP of a page of EL2's", at.answer(map, own), refused(Eperm).map(|()| (0, 0)));
    g.expect("the fault is still pending", at.answer(0, 0), again);
    g.ok("the page is given", at.vm.supply(SCRATCH));
    let next = |n| Ok((Reason::MemFault as u64 | 1 << 3 << 32, SCRATCH + n * PAGE));
    g.expect("and the guest goes on", at.answer(0, 0), next(1));
    if let Some(pfn) = g.ok("a page", g.vmm.take_page()) {
        g.expect("MAP gives the next", at.answer(map, pfn), next(2));
        g.ok("it is the VM's", at.vm.remember(SCRATCH + PAGE, pfn));
        g.expect("and not twice", at.answer(map, pfn), refused(Eperm).map(|()| (0, 0)));
        at.set(word::RESP, 0);
    }
    at.end("a VM with a missing page");
}

fn list_registers(g: &Guests<'_>) {
    const PENDING: u64 = 1 << 62 | 1 << 60;
    const HW: u64 = 1 << 61;
    let Some(at) = AtExit::new(g, Payload::Idle, true, Reason::Wfx, 0) else { return };
    let run = |nr: u64, hcr: u64, lrs: &[u64]| {
        at.set(word::RESP, 0);
        at.set(word::GIC, hcr << 32 | nr);
        for (n, lr) in lrs.iter().enumerate() {
            at.set(word::LR + n, *lr);
        }
        g.hyp().vcpu_run()
    };
    for lr in [
        1 << 62 | 27,                 // Group 0
        PENDING | 1 << 59 | 40,       // NMI
        PENDING | 1 << 56 | 40,       // reserved
        PENDING | HW | 30 << 32 | 30, // the host's timer
        PENDING | HW | 27 << 32 | 28, // another interrupt's EOI ends the timer's
        PENDING | HW | 40 << 32 | 27,
        3 << 62 | 1 << 60 | HW | 27 << 32 | 27, // pending and active
        PENDING | 1023,                         // no interrupt
        27,                                     // invalid, but not empty
        u64::MAX,
    ] {
        g.expect(format_args!("list register {lr:#x}"), run(1, 0, &[lr]), refused(Einval));
    }
    g.expect("one interrupt twice", run(2, 0, &[PENDING | 40, PENDING | 40]), refused(Einval));
    for nr in [17, 0x100, 0xffff_ffff] {
        g.expect(format_args!("{nr:#x} list registers"), run(nr, 0, &[0]), refused(Einval));
    }
    for bit in (0..32).filter(|bit| !matches!(bit, 1 | 3)) {
        g.expect(format_args!("gic_hcr bit {bit}"), run(0, 1 << bit, &[]), refused(Einval));
    }
    // An interrupt that waits makes WFI a NOP or an exit; either way the guest is entered.
    let lrs = [PENDING | 40, 0, PENDING | 3, PENDING | HW | 27 << 32 | 27];
    g.expect("list registers as they should be", run(4, 0b1010, &lrs), Ok(()));
    g.ctx.machine.set_guest_timer_active(false);
    at.end("a VM with strange list registers");
}
