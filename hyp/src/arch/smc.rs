//! SMCs: the host's, which the relay decides about, and EL2's own calls to firmware.

use super::vectors::HostFrame;
use super::{IMAGE, percpu::PerCpu, regs};
use abi::psci;
use hyp::psci::{Action, Reply, smc::handle};
use smccc::{Call, Smc};

/// An SMC of the host with immediate `imm16`; the host goes on behind it.
pub(super) fn host(frame: &mut HostFrame, imm16: u16) {
    let (Some(running), Some(cpu)) = (IMAGE.running(), PerCpu::current()) else { return };
    let relay = &running.relay;
    let [x0, x1, x2, x3, ..] = frame.x;
    let reply = match handle(relay, cpu.index, imm16, [x0, x1, x2, x3]) {
        Action::Return(reply) => reply,
        Action::CpuOff => {
            super::guests::put(running);
            Reply::status(relay.cpu_off(cpu.index))
        }
        Action::CpuSuspend { power_state, resume } => {
            Reply::status(relay.cpu_suspend(cpu.index, power_state, resume))
        }
        Action::SystemOff => {
            super::guests::scrub(running);
            #[cfg(feature = "bench")]
            super::marks::report(running);
            Reply::status(relay.system_off())
        }
        Action::SystemReset => {
            super::guests::scrub(running);
            Reply::status(relay.system_reset())
        }
    };
    let [x0, x1, x2, x3, ..] = &mut frame.x;
    *x0 = reply.x0;
    if let Some(outputs) = reply.outputs {
        [*x1, *x2, *x3] = outputs;
    }
}

/// Ends the machine; if firmware refuses, this CPU waits for ever with everything masked.
pub(super) fn system_off() -> ! {
    let _ = Smc::call32(psci::SYSTEM_OFF, [0; 7]);
    loop {
        regs::wfe();
    }
}

/// A CPU that nobody asked for: off again.
pub(super) fn cpu_off() -> ! {
    let _ = Smc::call32(psci::CPU_OFF, [0; 7]);
    loop {
        regs::wfe();
    }
}
