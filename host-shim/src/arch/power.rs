//! PSCI as the shim itself uses it, and the ways to end the machine.

use super::semihosting;
use crate::Ending;
use crate::board::Conduit;
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
        semihosting::exit(u64::from(!passed));
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

/// Waits for ever.
pub(super) fn hang() -> ! {
    loop {
        aarch64_cpu::asm::wfe();
    }
}
