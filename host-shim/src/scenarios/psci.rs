//! `psci`: firmware as the hypervisor lets the host see it, and CPUs that come and go.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::board::MPIDR_AFFINITY;
use crate::hvc::{first_change, registers};
use crate::machine::{Access, CpuEntry, Imm};
use abi::guest::trng;
use abi::psci::{
    AFFINITY_INFO_32, AFFINITY_INFO_64, ALREADY_ON, CPU_OFF, CPU_ON_32, CPU_ON_64, CPU_SUSPEND_32,
    CPU_SUSPEND_64, FEATURES, INVALID_ADDRESS, INVALID_PARAMETERS, MIGRATE_INFO_TYPE, MIGRATE_NOT_NEEDED,
    NOT_SUPPORTED, ON_PENDING, SUCCESS, SYSTEM_OFF, SYSTEM_RESET, VERSION,
};
use abi::smccc::{self, HINT_SVE};
use arrayvec::ArrayVec;
use core::fmt::Display;
use core::sync::atomic::{AtomicU64, Ordering};

/// AFFINITY_INFO's answers.
const ON: u64 = 0;
pub(super) const OFF: u64 = 1;

pub(super) fn run(ctx: &Ctx<'_>) {
    what_firmware_offers(ctx);
    what_is_no_call(ctx);
    a_suspended_cpu_wakes(ctx);
    cpus_that_cannot_start(ctx);
    if ctx.board.cpus.len() < 2 {
        ctx.report.skip("CPUs that come and go", "the machine has one CPU");
    } else {
        cpus_come_up_behind_stage_2(ctx);
        cpus_go_and_come_back(ctx);
        two_cpus_race_to_start_a_third(ctx);
        a_cpu_that_starts_in_the_carveout(ctx);
    }
    ctx.expect_el2_alive();
}

/// x0 of a call; a failed check if it changes a register that it must not.
pub(super) fn call(ctx: &Ctx<'_>, name: impl Display, id: u32, args: &[u64]) -> u64 {
    let (before, after) = ctx.firmware(id, args);
    if let Some((register, value)) = first_change(&before, &after, 4) {
        ctx.report.fail(name, format_args!("x{register} changed to {value:#x}"));
    }
    let [x0, ..] = after;
    x0
}

fn expect(ctx: &Ctx<'_>, name: impl Display, id: u32, args: &[u64], want: u64) {
    let got = call(ctx, &name, id, args);
    ctx.report.equal(name, got, want);
}

fn what_firmware_offers(ctx: &Ctx<'_>) {
    let version = call(ctx, "VERSION", VERSION, &[]);
    ctx.report.check("VERSION is 1.x", version >> 16 == 1, format_args!("{version:#x}"));
    expect(ctx, "the SVE hint changes nothing", VERSION | HINT_SVE, &[], version);
    expect(ctx, "MIGRATE_INFO_TYPE", MIGRATE_INFO_TYPE, &[], MIGRATE_NOT_NEEDED);
    for id in [
        VERSION,
        CPU_ON_64,
        CPU_OFF,
        AFFINITY_INFO_32,
        AFFINITY_INFO_64,
        SYSTEM_OFF,
        SYSTEM_RESET,
        FEATURES,
        MIGRATE_INFO_TYPE,
        smccc::VERSION,
    ] {
        expect(ctx, format_args!("FEATURES of {id:#x}"), FEATURES, &[u64::from(id)], SUCCESS);
    }
    let suspend = call(ctx, "FEATURES of CPU_SUSPEND", FEATURES, &[u64::from(CPU_SUSPEND_64)]);
    // Bits 1:0 are flags.
    ctx.report.check("FEATURES of CPU_SUSPEND", suspend <= 3, format_args!("{suspend:#x}"));
    for id in [CPU_ON_32, CPU_SUSPEND_32, 0x8400_001f, 0xc600_0100] {
        expect(ctx, format_args!("FEATURES of {id:#x}"), FEATURES, &[u64::from(id)], NOT_SUPPORTED);
    }
    expect(ctx, "SMCCC_VERSION", smccc::VERSION, &[], smccc::VERSION_1_2);
    let version = [u64::from(smccc::VERSION)];
    expect(ctx, "ARCH_FEATURES of SMCCC_VERSION", smccc::ARCH_FEATURES, &version, smccc::SUCCESS);
    let unknown = [u64::from(VERSION)];
    expect(ctx, "ARCH_FEATURES of no such call", smccc::ARCH_FEATURES, &unknown, smccc::NOT_SUPPORTED);
    // Bit 31 and 29:17 of a power state are reserved.
    let malformed = [0xffff_ffff, 0, 0];
    expect(ctx, "CPU_SUSPEND with reserved bits", CPU_SUSPEND_64, &malformed, INVALID_PARAMETERS);
}

/// A timer wakes it behind the SMC, from a power-down state too: QEMU's firmware only stands by. How
/// long it slept says nothing, since firmware may wake it early.
fn a_suspended_cpu_wakes(ctx: &Ctx<'_>) {
    const STANDBY: u64 = 0;
    const POWER_DOWN: u64 = 1 << 16;
    let Some(me) = ctx.machine.cpu_entry(ctx.boot_cpu) else { return };
    for (name, state) in [("standby", STANDBY), ("power-down", POWER_DOWN)] {
        let ticks = ctx.machine.frequency() / 1000;
        if !ctx.machine.wake_after(ticks) {
            ctx.report.skip(format_args!("CPU_SUSPEND, {name}"), "no GICv3 to wake it");
            return;
        }
        let args = [state, me.entry, me.context];
        expect(ctx, format_args!("CPU_SUSPEND, {name}"), CPU_SUSPEND_64, &args, SUCCESS);
        ctx.machine.cancel_wake();
    }
}

/// Passes if the SMC answers -1 in x0 and changes no other register.
fn expect_nothing(ctx: &Ctx<'_>, name: impl Display, imm: Imm, x0: u64) {
    let before = registers(x0, &[]);
    let after = ctx.machine.smc(imm, &before);
    let [status, ..] = after;
    let changed = first_change(&before, &after, 1);
    ctx.report.check(
        name,
        status == NOT_SUPPORTED && changed.is_none(),
        format_args!("x0 = {status:#x}, first other register changed: {changed:x?}"),
    );
}

fn what_is_no_call(ctx: &Ctx<'_>) {
    // 32-bit CPU_ON and CPU_SUSPEND, unknown PSCI, SYSTEM_SUSPEND, SYSTEM_RESET2, MEM_PROTECT, FF-A,
    // SiP, OEM, a host call, junk.
    let psci = [CPU_ON_32, CPU_SUSPEND_32, CPU_ON_32 | HINT_SVE, 0x8400_001f, 0xc400_001f];
    let power = [0x8400_000e, 0xc400_000e, 0x8400_0012, 0xc400_0012, 0x8400_0013];
    let others = [0x8400_0063, 0x8400_0084, 0x8200_0000, 0xc300_0000, 0xc600_0100, 0, 1, u32::MAX];
    for id in psci.into_iter().chain(power).chain(others) {
        expect_nothing(ctx, format_args!("SMC {id:#x}"), Imm::Zero, u64::from(id));
    }
    // Passed on; where firmware lacks it, it must look like any other call that is not there.
    let [trng, ..] = ctx.firmware(trng::VERSION, &[]).1;
    if trng == NOT_SUPPORTED {
        expect_nothing(ctx, "TRNG_VERSION, which firmware lacks", Imm::Zero, u64::from(trng::VERSION));
    }
    expect_nothing(ctx, "VERSION with immediate 1", Imm::One, u64::from(VERSION));
    expect_nothing(ctx, "SYSTEM_OFF with immediate 0xffff", Imm::Max, u64::from(SYSTEM_OFF));
    for bit in [32, 63] {
        let name = format_args!("SYSTEM_OFF with bit {bit} of x0");
        expect_nothing(ctx, name, Imm::Zero, u64::from(SYSTEM_OFF) | 1 << bit);
    }
}

/// Where this CPU entered, or zeros.
pub(super) fn entry_of(ctx: &Ctx<'_>, cpu: usize) -> CpuEntry {
    let entry = ctx.machine.cpu_entry(cpu);
    if entry.is_none() {
        ctx.report.fail(format_args!("CPU {cpu}"), "not in the device tree");
    }
    entry.unwrap_or(CpuEntry { mpidr: u64::MAX, entry: 0, context: 0 })
}

pub(super) fn affinity(ctx: &Ctx<'_>, mpidr: u64) -> u64 {
    call(ctx, "AFFINITY_INFO", AFFINITY_INFO_64, &[mpidr, 0])
}

fn cpus_that_cannot_start(ctx: &Ctx<'_>) {
    let me = entry_of(ctx, ctx.boot_cpu);
    expect(ctx, "CPU_ON of itself", CPU_ON_64, &[me.mpidr, me.entry, 0], ALREADY_ON);
    ctx.report.equal("AFFINITY_INFO of itself", affinity(ctx, me.mpidr), ON);
    let level_1 = call(ctx, "AFFINITY_INFO", AFFINITY_INFO_64, &[me.mpidr, 1]);
    ctx.report.equal("AFFINITY_INFO of a cluster", level_1, INVALID_PARAMETERS);
    let narrow = call(ctx, "AFFINITY_INFO", AFFINITY_INFO_32, &[me.mpidr, 0]);
    ctx.report.equal("32-bit AFFINITY_INFO of itself", narrow, ON);
    let absent = (0..=0xff).find(|aff0| !ctx.board.cpus.contains(aff0)).unwrap_or(MPIDR_AFFINITY);
    // Bits that no affinity has: 24 (MT), 30 (U), 31, and 63:40.
    let malformed = [24, 30, 31, 40, 63].map(|bit| me.mpidr | 1 << bit);
    for mpidr in [absent, MPIDR_AFFINITY, u64::MAX].into_iter().chain(malformed) {
        let args = [mpidr, me.entry, 0];
        expect(ctx, format_args!("CPU_ON of {mpidr:#x}"), CPU_ON_64, &args, INVALID_PARAMETERS);
        let name = format_args!("CPU_ON of {mpidr:#x} with the SVE hint");
        expect(ctx, name, CPU_ON_64 | HINT_SVE, &args, INVALID_PARAMETERS);
    }
    ctx.report.equal("AFFINITY_INFO of an absent CPU", affinity(ctx, absent), INVALID_PARAMETERS);
}

/// Passes if `cpu`, which is up, is kept out of the carve-out and can call EL2.
pub(super) fn expect_behind_stage_2(ctx: &Ctx<'_>, name: &str, cpu: usize) {
    ctx.machine.run_on(&[cpu], &|cpu| {
        for page in ctx.board.carveouts().map(crate::span::Span::start) {
            ctx.expect_refused(format_args!("CPU {cpu} {name} is behind stage 2"), Access::Load, page);
        }
        let el = ctx.machine.exception_level();
        ctx.report.equal(format_args!("CPU {cpu} {name} is at EL1"), el, 1);
        let caps = ctx.hypervisor().caps().map(|c| c.version);
        ctx.report.equal(format_args!("CPU {cpu} {name} reaches EL2"), caps, Ok(abi::caps::VERSION));
    });
}

pub(super) fn others<'a>(ctx: &'a Ctx<'_>) -> impl Iterator<Item = usize> + Clone + 'a {
    (0..ctx.board.cpus.len()).filter(|cpu| *cpu != ctx.boot_cpu)
}

fn cpus_come_up_behind_stage_2(ctx: &Ctx<'_>) {
    for cpu in others(ctx) {
        let e = entry_of(ctx, cpu);
        ctx.report.equal(format_args!("CPU {cpu} is off"), affinity(ctx, e.mpidr), OFF);
        if !ctx.report.equal(format_args!("CPU {cpu} starts"), ctx.machine.start_cpu(cpu), Ok(())) {
            continue;
        }
        ctx.report.equal(format_args!("CPU {cpu} is on"), affinity(ctx, e.mpidr), ON);
        let args = [e.mpidr, e.entry, e.context];
        expect(ctx, format_args!("CPU_ON of CPU {cpu}, which runs"), CPU_ON_64, &args, ALREADY_ON);
        expect_behind_stage_2(ctx, "after CPU_ON", cpu);
    }
}

/// Stops `cpu` and waits until firmware says so.
pub(super) fn stop(ctx: &Ctx<'_>, cpu: usize) -> bool {
    let mpidr = entry_of(ctx, cpu).mpidr;
    ctx.machine.stop_cpu(cpu);
    let start = ctx.machine.ticks();
    while affinity(ctx, mpidr) != OFF {
        if ctx.machine.ticks().wrapping_sub(start) > 10 * ctx.machine.frequency() {
            ctx.report.fail(format_args!("CPU {cpu} goes off"), "AFFINITY_INFO never says so");
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

fn cpus_go_and_come_back(ctx: &Ctx<'_>) {
    for cpu in others(ctx) {
        if stop(ctx, cpu)
            && ctx.report.equal(format_args!("CPU {cpu} starts again"), ctx.machine.start_cpu(cpu), Ok(()))
        {
            expect_behind_stage_2(ctx, "after CPU_OFF and CPU_ON", cpu);
        }
    }
}

fn two_cpus_race_to_start_a_third(ctx: &Ctx<'_>) {
    let mut cpus = others(ctx);
    let (Some(second), Some(third)) = (cpus.next(), cpus.next()) else {
        ctx.report.skip("two CPUs race to start a third", "the machine has two CPUs");
        return;
    };
    let rounds = ctx.args.number("rounds", 20);
    let racers: ArrayVec<usize, 2> = [ctx.boot_cpu, second].into_iter().collect();
    let e = entry_of(ctx, third);
    let mut fair = 0;
    for _ in 0..rounds {
        if !stop(ctx, third) {
            break;
        }
        let (won, lost) = (AtomicU64::new(0), AtomicU64::new(0));
        ctx.machine.run_on(&racers, &|_| {
            let status = call(ctx, "CPU_ON in a race", CPU_ON_64, &[e.mpidr, e.entry, e.context]);
            match status {
                SUCCESS => won.fetch_add(1, Ordering::Relaxed),
                ALREADY_ON | ON_PENDING => lost.fetch_add(1, Ordering::Relaxed),
                _ => 0,
            };
        });
        if !ctx.machine.wait_for_cpu(third) {
            ctx.report.fail("the third CPU comes up", "it did not");
            return;
        }
        fair += u64::from((won.into_inner(), lost.into_inner()) == (1, 1));
    }
    ctx.report.equal(format_args!("one of two CPUs starts the third, {rounds} times"), fair, rounds);
    expect_behind_stage_2(ctx, "after the race", third);
}

/// The host may point a CPU at what it must not have: that CPU is lost to the host, EL2 is not.
fn a_cpu_that_starts_in_the_carveout(ctx: &Ctx<'_>) {
    let (Some(cpu), Some(carveout)) = (others(ctx).last(), ctx.board.carveouts().next()) else { return };
    if !stop(ctx, cpu) {
        return;
    }
    let e = entry_of(ctx, cpu);
    let status = call(ctx, "CPU_ON into the carve-out", CPU_ON_64, &[e.mpidr, carveout.start(), 0]);
    ctx.report.check(
        "CPU_ON into the carve-out",
        matches!(status, SUCCESS | INVALID_ADDRESS),
        format_args!("status {status:#x}"),
    );
    for _ in 0..1000 {
        if ctx.hypervisor().caps().is_err() {
            ctx.report.fail("EL2 answers beside it", "it does not");
            return;
        }
    }
    ctx.report.pass("EL2 answers beside it");
}
