//! Exceptions: a fault in a probe is its result; everything else ends the machine.

use super::{fatal, probe, this_cpu};
use crate::machine::Fault;
use aarch64_cpu::registers::{ELR_EL1, ESR_EL1, FAR_EL1, Readable};
use el1::arch::{Frame, SYNC_EL1H};

el1::exception_vectors!(on_exception);

extern "C" fn on_exception(frame: &mut Frame, vector: u64) {
    let fault = Fault { esr: ESR_EL1.get(), far: FAR_EL1.get(), elr: ELR_EL1.get() };
    if vector == SYNC_EL1H && probe::absorb(frame, &fault) {
        return;
    }
    fatal(format_args!("CPU {}: unexpected exception, vector {vector}: {fault}", this_cpu()));
}
