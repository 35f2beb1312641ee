//! `guard`: a protected VM marks its UART, prints through it, and meets a hole.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::hvc::registers;
use crate::machine::Imm;
use crate::span::PAGE;
use abi::caps::Caps;
use abi::exit::word::{MMIO_DATA, REASON, RESP};
use abi::exit::{ExitFlags, Reason, Resp};
use abi::vm::{NO_PAGE, VmFlags};
use abi::{Errno, HostFn};
use arrayvec::ArrayString;

/// Where the guest's page is, its UART, and a page that is not there.
const GUEST_PAGE: u64 = 0x4000_0000;
const UART: u64 = 0x0900_0000;
const HOLE: u64 = 0x0a00_0000;

/// Registers of a PL011: data, flags, and its flag "transmit FIFO full".
const DR: u64 = 0;
const FR: u64 = 0x18;
const TXFF: u64 = 1 << 5;
/// Where the guest leaves x0 of GUARD_MAP, ESR_EL1 and FAR_EL1, as it has no page to share.
const STATUS: u64 = 0xf10;
const ESR: u64 = 0xf00;
const FAR: u64 = 0xf08;

/// The guest; x0 is its page.
/// ```text
///     mov  x19, x0
///     mov  w0, #0xc6000007    // GUARD_MAP
///     mov  x1, #0x09000000
///     mov  x2, #0
///     mov  x3, #0
///     hvc  #0
///     mov  x20, #0x09000000
///     str  x0, [x20, #0xf10]
///     add  x22, x19, #0x400   // the text
/// 1:  ldrb w5, [x22], #1
///     cbz  w5, 3f
/// 2:  ldr  w4, [x20, #0x18]
///     tbnz w4, #5, 2b
///     strb w5, [x20]
///     b    1b
/// 3:  add  x9, x19, #0x800
///     msr  vbar_el1, x9
///     isb
///     ldp  x10, x11, [x20]    // says no register: an abort
///     wfi
///     mov  x21, #0x0a000000
///     mov  x7, #0x5ec2
///     str  x7, [x21]          // nothing is there
///     wfi
/// ```
const CODE: [u32; 25] = [
    0xaa00_03f3,
    0x5280_00e0,
    0x72b8_c000,
    0xd2a1_2001,
    0xd280_0002,
    0xd280_0003,
    0xd400_0002,
    0xd2a1_2014,
    0xf907_8a80,
    0x9110_0276,
    0x3840_16c5,
    0x3400_00a5,
    0xb940_1a84,
    0x372f_ffe4,
    0x3900_0285,
    0x17ff_fffb,
    0x9120_0269,
    0xd518_c009,
    0xd503_3fdf,
    0xa940_2e8a,
    0xd503_207f,
    0xd2a1_4015,
    0xd28b_d847,
    0xf900_02a7,
    0xd503_207f,
];

/// What the guest does with an abort, at its vector for EL1 with SP_EL1:
/// ```text
///     mrs  x12, esr_el1
///     str  x12, [x20, #0xf00]
///     mrs  x13, far_el1
///     str  x13, [x20, #0xf08]
///     mrs  x14, elr_el1
///     add  x14, x14, #4
///     msr  elr_el1, x14
///     eret
/// ```
const VECTOR: [u32; 8] =
    [0xd538_520c, 0xf907_828c, 0xd538_600d, 0xf907_868d, 0xd538_402e, 0x9100_11ce, 0xd518_402e, 0xd69f_03e0];
const VECTOR_AT: u64 = 0xa00;

/// Two tables below the root for each of the page and the UART, and one for the hole.
const TABLES: u64 = 5;

const TEXT: &str = "a guest prints";
const TEXT_AT: u64 = 0x400;

/// What the host learns of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exit {
    reason: u64,
    flags: u64,
    gpa: u64,
    size: u64,
    write: u64,
    data: u64,
}

/// A loaded vCPU and its record.
struct Vcpu<'a, 'b> {
    ctx: &'a Ctx<'b>,
    record: u64,
}

impl Vcpu<'_, '_> {
    /// Runs it with an answer to its last exit.
    fn run(&self, resp: Resp, data: u64) -> Option<Exit> {
        let at = |index: usize| self.record * PAGE + 8 * index as u64;
        self.ctx.store(at(MMIO_DATA), data).ok()?;
        self.ctx.store(at(RESP), resp as u64).ok()?;
        call(self.ctx, HostFn::VcpuRun, &[]).ok()?;
        let word = |index| self.ctx.load(at(index)).ok();
        let (first, size) = (word(REASON)?, word(2)?);
        let low = 0xffff_ffff;
        Some(Exit {
            reason: first & low,
            flags: first >> 32,
            gpa: word(1)?,
            size: size & low,
            write: size >> 32,
            data: word(3)?,
        })
    }
}

fn call(ctx: &Ctx<'_>, call: HostFn, args: &[u64]) -> Result<[u64; 2], Option<Errno>> {
    let [x0, x1, x2, x3, ..] = ctx.machine.hvc(Imm::Zero, &registers(call.id().into(), args));
    match (x0, Errno::from_reg(x1)) {
        (0, Some(Ok(()))) => Ok([x2, x3]),
        (0, Some(Err(errno))) => Err(Some(errno)),
        _ => Err(None),
    }
}

pub(super) fn run(ctx: &Ctx<'_>) {
    let Some(pages) = ctx.take(12, PAGE) else { return };
    let report = &ctx.report;
    let [vm, root, reserve, vcpu, record, image, spare, table] =
        [0, 1, 2, 3, 4, 5, 6, 7].map(|n| pages.start() / PAGE + n);
    write_image(ctx, image * PAGE);
    for n in 0..TABLES {
        let next = if n + 1 < TABLES { table + n + 1 } else { NO_PAGE };
        let _ = ctx.store((table + n) * PAGE, next);
    }
    report.equal("share of the record", call(ctx, HostFn::HostShareHyp, &[record]), Ok([0, 0]));
    let created = call(ctx, HostFn::VmCreate, &[VmFlags::PROTECTED.bits(), 32, vm, 1, root, 1, reserve]);
    if !ctx.hypervisor().caps().is_ok_and(|reply| reply.caps & Caps::GUESTS.bits() != 0) {
        report.check("a machine without guests makes none", created.is_err(), "there is one");
        report.equal("unshare of the record", call(ctx, HostFn::HostUnshareHyp, &[record]), Ok([0, 0]));
        return;
    }
    let Ok([handle, _]) = created else { return report.fail("VM_CREATE", format_args!("{created:?}")) };
    for (name, function, args, answer) in [
        (
            "VCPU_CREATE",
            HostFn::VcpuCreate,
            &[handle, 0, vcpu, 1, record, GUEST_PAGE, GUEST_PAGE][..],
            [0, 0],
        ),
        ("VM_TOPUP", HostFn::VmTopup, &[handle, table, TABLES], [TABLES, 0]),
        ("VM_POPULATE", HostFn::VmPopulate, &[handle, GUEST_PAGE / PAGE, image, 0], [0, 0]),
        ("VM_FINALISE", HostFn::VmFinalise, &[handle], [0, 0]),
        ("VCPU_LOAD", HostFn::VcpuLoad, &[handle, 0], [0, 0]),
    ] {
        report.equal(name, call(ctx, function, args), Ok(answer));
    }
    let vcpu = Vcpu { ctx, record };
    let last = prints(ctx, &vcpu);
    aborts(ctx, &vcpu, last);
    meets_a_hole(ctx, &vcpu, handle, spare);
    ends(ctx, handle);
    report.equal("unshare of the record", call(ctx, HostFn::HostUnshareHyp, &[record]), Ok([0, 0]));
    ctx.expect_el2_alive();
}

/// The VM is taken apart, marks and all.
fn ends(ctx: &Ctx<'_>, handle: u64) {
    let report = &ctx.report;
    report.equal("VCPU_PUT", call(ctx, HostFn::VcpuPut, &[]), Ok([0, 0]));
    report.equal("VM_TEARDOWN_START", call(ctx, HostFn::VmTeardownStart, &[handle]), Ok([0, 0]));
    let reclaimed = call(ctx, HostFn::ReclaimDying, &[handle, 0, 1 << 32]);
    report.equal("RECLAIM_DYING", reclaimed, Ok([1 << 32, NO_PAGE]));
    let finished = loop {
        match call(ctx, HostFn::VmTeardownFinish, &[handle, 512]) {
            Err(Some(Errno::Eagain)) => {}
            other => break other,
        }
    };
    report.check("VM_TEARDOWN_FINISH", finished.is_ok(), "refused");
}

fn write_image(ctx: &Ctx<'_>, page: u64) {
    let put = |at: u64, words: &[u32]| {
        for (n, pair) in (0..).zip(words.chunks(2)) {
            let word = pair.iter().rev().fold(0, |word, &code| word << 32 | u64::from(code));
            let _ = ctx.store(page + at + 8 * n, word);
        }
    };
    put(0, &CODE);
    put(VECTOR_AT, &VECTOR);
    for (n, chars) in (0..).zip(TEXT.as_bytes().chunks(8)) {
        let word = chars.iter().rev().fold(0, |word, &c| word << 8 | u64::from(c));
        let _ = ctx.store(page + TEXT_AT + 8 * n, word);
    }
}

/// A PL011 whose FIFO is full every other time; the exit that is not its own.
fn prints(ctx: &Ctx<'_>, vcpu: &Vcpu<'_, '_>) -> Option<Exit> {
    let report = &ctx.report;
    let mmio = |offset, size, write, data| Exit {
        reason: Reason::Mmio as u64,
        flags: 0,
        gpa: UART + offset,
        size,
        write,
        data,
    };
    report.equal("GUARD_MAP answers 0", vcpu.run(Resp::Replay, 0), Some(mmio(STATUS, 8, 1, 0)));
    let mut printed = ArrayString::<32>::new();
    let (mut answer, mut polls) = (0, 0_u64);
    for _ in 0..100 {
        let exit = vcpu.run(Resp::Done, answer);
        match exit {
            Some(read) if read == mmio(FR, 4, 0, 0) => {
                answer = if polls & 1 == 0 { TXFF | !0xff } else { 0 };
                polls += 1;
            }
            Some(Exit { gpa, size: 1, write: 1, data, .. }) if gpa == UART + DR && data < 0x80 => {
                let _ = printed.try_push(char::from(u8::try_from(data).unwrap_or(b'?')));
                answer = u64::MAX;
            }
            other => {
                report.step(format_args!("the guest's UART shows: {printed}"));
                report.check("the guest printed through its marked page", &*printed == TEXT, "not the text");
                report.equal("polls", polls, 2 * TEXT.len() as u64);
                return other;
            }
        }
    }
    None
}

/// A pair of registers has no syndrome: the guest takes an abort, and reports it.
fn aborts(ctx: &Ctx<'_>, vcpu: &Vcpu<'_, '_>, first: Option<Exit>) {
    let report = &ctx.report;
    let shown = |exit: Option<Exit>| exit.map(|exit| (exit.gpa, exit.data));
    report.equal("LDP of a device is an external abort", shown(first), Some((UART + ESR, 0x9600_0210)));
    let second = shown(vcpu.run(Resp::Done, 0));
    report.equal("at the address of the device", second, Some((UART + FAR, UART)));
    let third = vcpu.run(Resp::Done, 0).map(|exit| exit.reason);
    report.equal("and the guest goes on", third, Some(Reason::Wfx as u64));
}

/// The host left nothing where the guest stores: it learns the page, and can give it, no more.
fn meets_a_hole(ctx: &Ctx<'_>, vcpu: &Vcpu<'_, '_>, handle: u64, spare: u64) {
    let report = &ctx.report;
    report.step("the host leaves a hole where the guest believes its memory is");
    let fault = Exit {
        reason: Reason::MemFault as u64,
        flags: ExitFlags::PRIVATE.bits().into(),
        gpa: HOLE,
        size: PAGE,
        write: 0,
        data: 0,
    };
    report.equal(
        "a store shows the page that lacks, not what is stored",
        vcpu.run(Resp::Replay, 0),
        Some(fault),
    );
    report.equal("an answer with data has no effect", vcpu.run(Resp::Done, 0x1bad), Some(fault));
    let marked = call(ctx, HostFn::GuestDonate, &[handle, UART / PAGE, spare, 0, 7]);
    report.equal("no page is put where the device is", marked, Err(Some(Errno::Eperm)));
    let given = call(ctx, HostFn::GuestDonate, &[handle, HOLE / PAGE, spare, 0, 7]);
    report.equal("the host gives the page", given, Ok([0, 0]));
    let done = vcpu.run(Resp::Done, 0x1bad).map(|exit| exit.reason);
    report.equal("the store goes there", done, Some(Reason::Wfx as u64));
}
