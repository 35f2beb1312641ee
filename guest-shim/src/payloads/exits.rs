//! `Exits`: one exit of every kind after the other, for a host that wants to stop the VM at each.
#![forbid(unsafe_code)]

use super::{Env, Outcome, guard};
use crate::cpu::Width;
use crate::protocol::{SCRATCH, UART};
use abi::guest::{MEM_RELINQUISH, MEM_SHARE, MEM_UNSHARE};
use abi::psci;

pub(super) fn run(env: &Env<'_>) -> Outcome {
    for n in 0.. {
        let page = SCRATCH + 0x1000 * (n % 1024);
        env.cpu.set_timer(1000);
        env.cpu.wait();
        env.cpu.pause();
        env.doorbell(n)?;
        // MEM_FAULT; then, for a protected guest, calls that move the page.
        env.cpu.store(page, n);
        if env.start.kind.is_protected() {
            env.memory_call(MEM_SHARE, page, 1)?;
            // An end here finds a page that the host sees, with what the guest has put there.
            env.doorbell(n)?;
            env.memory_call(MEM_UNSHARE, page, 1)?;
            env.memory_call(MEM_RELINQUISH, page, 1)?;
        }
        guard::mark_uart(env)?;
        env.cpu.read(Width::Word, UART);
        env.cpu.write(Width::Word, UART, u64::from(b'x'));
        env.cpu.send_sgi(1, 1 << 1);
        env.call(psci::CPU_ON_64, [1, env.cpu.secondary_entry(), 0])?;
    }
    Ok(())
}
