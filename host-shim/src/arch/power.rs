//! PSCI as the shim itself uses it, and the ways to end the machine.

use crate::Ending;
use crate::board::Conduit;
use core::arch::asm;
use smccc::{Hvc, Smc, psci};
use spin::Once;

static CONDUIT: Once<Conduit> = Once::new();

/// Remembers how to reach firmware.
pub(super) fn set_conduit(conduit: Option<Conduit>) {
    if let Some(conduit) = conduit {
        CONDUIT.call_once(|| conduit);
    }
}

/// CPU_ON.
pub(super) fn cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), psci::Error> {
    match CONDUIT.get() {
        Some(Conduit::Smc) => psci::cpu_on::<Smc>(mpidr, entry, context),
        Some(Conduit::Hvc) => psci::cpu_on::<Hvc>(mpidr, entry, context),
        None => Err(psci::Error::NotSupported),
    }
}

/// CPU_OFF of this CPU; an answer is a failure.
pub(super) fn cpu_off() -> Result<(), psci::Error> {
    match CONDUIT.get() {
        Some(Conduit::Smc) => psci::cpu_off::<Smc>(),
        Some(Conduit::Hvc) => psci::cpu_off::<Hvc>(),
        None => Err(psci::Error::NotSupported),
    }
}

/// Ends the machine; waits for ever if nothing can.
pub(super) fn end(ending: Ending, passed: bool) -> ! {
    if ending == Ending::Exit {
        exit(u64::from(!passed));
    }
    // An answer means that firmware would not: there is nobody left to tell.
    let _ = match (CONDUIT.get(), ending) {
        (Some(Conduit::Smc), Ending::Reset) => psci::system_reset::<Smc>(),
        (Some(Conduit::Hvc), Ending::Reset) => psci::system_reset::<Hvc>(),
        (Some(Conduit::Smc), _) => psci::system_off::<Smc>(),
        (Some(Conduit::Hvc), _) => psci::system_off::<Hvc>(),
        (None, _) => Ok(()),
    };
    hang()
}

/// SYS_EXIT_EXTENDED (Arm semihosting specification): ends the emulator with `code`.
fn exit(code: u64) {
    const SYS_EXIT_EXTENDED: u64 = 0x20;
    const ADP_STOPPED_APPLICATION_EXIT: u64 = 0x2_0026;
    let block = [ADP_STOPPED_APPLICATION_EXIT, code];
    // SAFETY: semihosting reads the two words and does not come back; without it this is an
    // undefined instruction, which the exception handler reports.
    unsafe {
        asm!("hlt #0xf000", inout("x0") SYS_EXIT_EXTENDED => _, in("x1") block.as_ptr(), options(nostack));
    }
}

/// Waits for ever.
pub(super) fn hang() -> ! {
    loop {
        aarch64_cpu::asm::wfe();
    }
}
