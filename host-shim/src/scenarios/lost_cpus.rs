//! `lost_cpus`: CPUs of the device tree that firmware does not start, or that it starts and that never arrive.
//!
//! What is missing is the machine's affair: with all of its CPUs there, all come up.
#![forbid(unsafe_code)]

use super::Ctx;
use super::psci::{OFF, affinity, call, entry_of, expect_behind_stage_2, others};
use crate::board::MAX_CPUS;
use abi::psci::{ALREADY_ON, CPU_ON_64, INVALID_PARAMETERS, ON_PENDING, SUCCESS};
use arrayvec::ArrayVec;

pub(super) fn run(ctx: &Ctx<'_>) {
    let asked: ArrayVec<usize, MAX_CPUS> = others(ctx).filter(|&cpu| is_started(ctx, cpu)).collect();
    let began = ctx.machine.ticks();
    for cpu in asked {
        match arrival(ctx, cpu, began) {
            ALREADY_ON if ctx.machine.wait_for_cpu(cpu) => {
                expect_behind_stage_2(ctx, "beside those that are lost", cpu);
            }
            ON_PENDING => {
                // To firmware it is on.
                let state = affinity(ctx, entry_of(ctx, cpu).mpidr);
                let name = format_args!("CPU {cpu} never arrives, and who asks for it is told to wait");
                ctx.report.check(name, state != OFF, "AFFINITY_INFO says that it is off");
            }
            status => ctx.report.fail(format_args!("CPU {cpu} arrives"), format_args!("status {status:#x}")),
        }
    }
    ctx.expect_el2_alive();
}

fn cpu_on(ctx: &Ctx<'_>, cpu: usize) -> u64 {
    let e = entry_of(ctx, cpu);
    call(ctx, "CPU_ON", CPU_ON_64, &[e.mpidr, e.entry, e.context])
}

/// Asks for `cpu`; false if firmware has no such CPU. Then it says so each time: nothing is left of a start that failed.
fn is_started(ctx: &Ctx<'_>, cpu: usize) -> bool {
    let status = cpu_on(ctx, cpu);
    if status == SUCCESS {
        return true;
    }
    let answers = [status, cpu_on(ctx, cpu), affinity(ctx, entry_of(ctx, cpu).mpidr)];
    let name = format_args!("CPU {cpu} is refused, and may be asked for again");
    ctx.report.equal(name, answers, [INVALID_PARAMETERS; 3]);
    false
}

/// CPU_ON's answer about `cpu`, for which it succeeded before `began`: ON_PENDING only if it is that a second later.
fn arrival(ctx: &Ctx<'_>, cpu: usize, began: u64) -> u64 {
    let mut pause = ctx.machine.frequency() / 16;
    loop {
        let from = ctx.machine.ticks();
        while ctx.machine.ticks().wrapping_sub(from) < pause {
            core::hint::spin_loop();
        }
        let status = cpu_on(ctx, cpu);
        let late = ctx.machine.ticks().wrapping_sub(began) > ctx.machine.frequency();
        if status != ON_PENDING || late {
            return status;
        }
        pause = pause.saturating_mul(2);
    }
}
