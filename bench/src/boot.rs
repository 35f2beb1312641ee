//! One boot of Debian's Linux as the host, counted up to its first process: the root file system is mounted then, and
//! nothing has run from it.
//!
//! Under `-icount shift=0` virtual time is instructions, and waiting. The first process reads the counter of time before all
//! else. The cycle counter has been started in front of the machine's first instruction, by a few of a debugger's, for EL1 and
//! EL0 alone; so what it lacks of the time is EL2's. No image is another for it, and whether EL2 may be counted is
//! not asked: Rampart forbids it (MDCR_EL2.HCCD). Linux is told to leave the counter alone.

use crate::debugger::Debugger;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use xtask::cost::tail;
use xtask::machine::Machine;
use xtask::programs::COUNTER_IS_READ;
use xtask::qemu::Qemu;
use xtask::run::{Limits, run};

/// A word of the kernel's command line: its driver, which resets the counter, does not start.
pub(crate) const LEAVE_COUNTER: &str = "initcall_blacklist=armv8_pmu_driver_init";
/// Counting instructions is slower than running them.
const SECONDS: u64 = 900;
const RAM_AT: u64 = 0x4000_0000;
/// The last megabyte of RAM is nobody's at reset.
const FROM_END: u64 = 1 << 20;
const NANOSECONDS: u64 = 1_000_000_000;

/// What a boot took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Nanoseconds of virtual time since reset.
    pub time: u64,
    /// Instructions of EL2.
    pub el2: u64,
}

/// Boots `machine`, whose RAM disk is that of [`xtask::linux`] and whose command line says `run=cost`.
///
/// # Errors
/// It does not come so far.
pub fn boot(qemu: &Qemu, machine: &Machine) -> Result<Boot> {
    static NTH: AtomicU32 = AtomicU32::new(0);
    let nth = NTH.fetch_add(1, Ordering::Relaxed);
    // A socket's name is at most 107 bytes long.
    let socket = std::env::temp_dir().join(format!("rampart-{}-{nth}.gdb", std::process::id()));
    let mut args = machine.args();
    let mut stub = std::ffi::OsString::from("unix:");
    stub.push(&socket);
    stub.push(",server=on,wait=off");
    args.extend(["-S".into(), "-gdb".into(), stub]);
    let command = qemu.command(args);
    let counted = thread::scope(|scope| {
        let machine_ends = scope.spawn(|| run(command, &Limits::seconds(SECONDS), |_| {}));
        let counted = Debugger::connect(&socket, Duration::from_secs(SECONDS)).and_then(|mut debugger| {
            let counted = count(&mut debugger, machine);
            debugger.kill();
            counted
        });
        let outcome = machine_ends.join().ok().context("a thread panicked")??;
        counted.with_context(|| {
            format!("{}; the machine said:\n{}{}", outcome.end, outcome.errors, tail(&outcome.console, 20))
        })
    });
    // It is not there if QEMU did not start.
    let _ = fs::remove_file(&socket);
    counted
}

fn count(debugger: &mut Debugger, machine: &Machine) -> Result<Boot> {
    let at = RAM_AT.saturating_add(machine.mem.bytes()).saturating_sub(FROM_END);
    let first = debugger.pc()?;
    debugger.write(at, &start_counter(first).context("a first instruction above 4 GiB")?)?;
    debugger.set_pc(at)?;
    debugger.run_to(COUNTER_IS_READ)?;
    let (ticks, frequency) = (debugger.x(1)?, debugger.x(2)?);
    let below = debugger.system("PMCCNTR_EL0")?;
    let scale = NANOSECONDS.checked_div(frequency).context("the counter has no frequency")?;
    let time = ticks.checked_mul(scale).context("it took for ever")?;
    Ok(Boot { time, el2: time.checked_sub(below).context("the cycle counter counts more than there was")? })
}

/// Starts the cycle counter for EL1 and EL0, and goes on at `next`.
fn start_counter(next: u64) -> Option<[u32; 9]> {
    let (low, high) = (next & 0xffff, u16::try_from(next >> 16).ok()?);
    Some([
        0xd51b_efff,                                            // msr PMCCFILTR_EL0, xzr
        0xd2b0_0010,                                            // mov x16, #1 << 31
        0xd51b_9c30,                                            // msr PMCNTENSET_EL0, x16
        0xd280_0830,                                            // mov x16, #PMCR_EL0.LC | PMCR_EL0.E
        0xd51b_9c10,                                            // msr PMCR_EL0, x16
        0xd503_3fdf,                                            // isb
        0xd2a0_0010 | u32::from(high) << 5,                     // movz x16, #high, lsl #16
        0xf280_0010 | u32::try_from(low).ok()?.checked_shl(5)?, // movk x16, #low
        0xd61f_0200,                                            // br x16
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_goes_on_where_it_was_to_start() {
        let code = start_counter(0x4000_1238).unwrap();
        assert_eq!(code[6..], [0xd2a8_0010, 0xf282_4710, 0xd61f_0200]);
        assert_eq!(start_counter(1 << 32), None);
    }
}
