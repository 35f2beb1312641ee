//! Which SMCs the host has.
//!
//! The checks fire in this order: immediate not 0, then bits 63:32 of x0 not 0, then (with the SVE
//! hint taken off the id) an id that is not on the list, or that is passed on and firmware does not
//! have: x0 = NOT_SUPPORTED and no other register changes. Any other call sets x0..x3; those it
//! does not define are 0.
//!
//! | call | |
//! |---|---|
//! | SMCCC_VERSION | answered here: 1.2 |
//! | SMCCC_ARCH_FEATURES | of this list only; workarounds and SOC_ID: firmware's answer |
//! | ARCH_WORKAROUND_1, _2, _3, ARCH_SOC_ID | firmware |
//! | TRNG_VERSION, _FEATURES, _GET_UUID, _RND32, _RND64 | firmware |
//! | PSCI_VERSION, MIGRATE_INFO_TYPE | firmware |
//! | PSCI_FEATURES | of this list only; firmware's answer |
//! | CPU_ON64, CPU_SUSPEND64 | [`super::relay`]: firmware gets EL2's entry point |
//! | CPU_OFF, AFFINITY_INFO32/64, SYSTEM_OFF, SYSTEM_RESET | [`super::relay`] |
//!
//! CPU_ON32 and CPU_SUSPEND32 are refused: they would start the host in AArch32. So is everything
//! that takes memory from the host for firmware (FF-A), suspends the machine or turns memory
//! protection on: none is needed to run the host, each would need its own relay.
#![forbid(unsafe_code)]

use super::relay::{Relay, Start};
use super::{firmware32, firmware64};
use abi::guest::trng;
use abi::smccc::FunctionId;
use abi::{psci, smccc as arch};
use smccc::Call;

/// Registers to write into the host's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// x0.
    pub x0: u64,
    /// x1..x3, or `None` to leave them as they are.
    pub outputs: Option<[u64; 3]>,
}

/// What the caller does next; in every case the host goes on behind the SMC (ELR_EL2 + 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the registers and return to the host.
    Return(Reply),
    /// Give up what this CPU holds, then [`Relay::cpu_off`]. If that returns, [`Reply::status`].
    CpuOff,
    /// Make this CPU ready to lose its registers, then [`Relay::cpu_suspend`]. If that returns,
    /// [`Reply::status`].
    CpuSuspend {
        /// For firmware.
        power_state: u64,
        /// Where the host goes on after a power-down.
        resume: Start,
    },
    /// Scrub what a reset would leave readable, then [`Relay::system_off`].
    SystemOff,
    /// Scrub what a reset would leave readable, then [`Relay::system_reset`].
    SystemReset,
}

impl Reply {
    /// The answer to a call that is not there.
    pub const NOT_SUPPORTED: Self = Self { x0: arch::NOT_SUPPORTED, outputs: None };

    /// The answer of a call that has a status or one value.
    #[must_use]
    pub const fn status(x0: u64) -> Self {
        Self { x0, outputs: Some([0; 3]) }
    }
}

/// Handles an SMC with immediate `imm16` and these x0..x3, made by the host on CPU `cpu`.
pub fn handle<C: Call>(relay: &Relay<C>, cpu: usize, imm16: u16, registers: [u64; 4]) -> Action {
    let [x0, x1, x2, x3] = registers;
    let id = match FunctionId::from_reg(x0) {
        Some(id) if imm16 == 0 => id.raw(),
        _ => return Action::Return(Reply::NOT_SUPPORTED),
    };
    let status = |status| Action::Return(Reply::status(status));
    match id {
        psci::CPU_ON_64 => status(relay.cpu_on(cpu, x1, Start { entry: x2, context: x3 })),
        psci::CPU_SUSPEND_64 => {
            Action::CpuSuspend { power_state: x1, resume: Start { entry: x2, context: x3 } }
        }
        psci::CPU_OFF => Action::CpuOff,
        psci::SYSTEM_OFF => Action::SystemOff,
        psci::SYSTEM_RESET => Action::SystemReset,
        psci::AFFINITY_INFO_64 => status(relay.affinity_info(x1, x2)),
        psci::AFFINITY_INFO_32 => status(relay.affinity_info(u64::from(low(x1)), u64::from(low(x2)))),
        psci::FEATURES => status(psci_features::<C>(low(x1))),
        arch::VERSION => status(arch::VERSION_1_2),
        arch::ARCH_FEATURES => status(arch_features::<C>(low(x1))),
        // One value each: what firmware leaves in x1..x3 is not the host's to see.
        psci::VERSION | psci::MIGRATE_INFO_TYPE => answer(first(firmware32::<C>(id, [0; 3]))),
        arch::ARCH_WORKAROUND_1
        | arch::ARCH_WORKAROUND_2
        | arch::ARCH_WORKAROUND_3
        | arch::ARCH_SOC_ID
        | trng::VERSION
        | trng::FEATURES => answer(first(firmware32::<C>(id, [low(x1), 0, 0]))),
        trng::GET_UUID | trng::RND32 => answer(firmware32::<C>(id, [low(x1), 0, 0])),
        trng::RND64 => answer(firmware64::<C>(id, [x1, 0, 0])),
        _ => Action::Return(Reply::NOT_SUPPORTED),
    }
}

/// What firmware answered to a call that was passed on; one that it does not have is not there.
const fn answer([x0, x1, x2, x3]: [u64; 4]) -> Action {
    if x0 == arch::NOT_SUPPORTED {
        return Action::Return(Reply::NOT_SUPPORTED);
    }
    Action::Return(Reply { x0, outputs: Some([x1, x2, x3]) })
}

const fn first([x0, ..]: [u64; 4]) -> [u64; 4] {
    [x0, 0, 0, 0]
}

/// PSCI_FEATURES: flags of a call that the host has.
fn psci_features<C: Call>(id: u32) -> u64 {
    match id {
        arch::VERSION => psci::SUCCESS,
        psci::VERSION
        | psci::FEATURES
        | psci::CPU_ON_64
        | psci::CPU_OFF
        | psci::CPU_SUSPEND_64
        | psci::AFFINITY_INFO_32
        | psci::AFFINITY_INFO_64
        | psci::MIGRATE_INFO_TYPE
        | psci::SYSTEM_OFF
        | psci::SYSTEM_RESET => {
            let [flags, ..] = firmware32::<C>(psci::FEATURES, [id, 0, 0]);
            flags
        }
        _ => psci::NOT_SUPPORTED,
    }
}

/// SMCCC_ARCH_FEATURES: answer about a call that the host has.
fn arch_features<C: Call>(id: u32) -> u64 {
    match id {
        arch::VERSION | arch::ARCH_FEATURES => arch::SUCCESS,
        arch::ARCH_WORKAROUND_1 | arch::ARCH_WORKAROUND_2 | arch::ARCH_WORKAROUND_3 | arch::ARCH_SOC_ID => {
            let [answer, ..] = firmware32::<C>(arch::ARCH_FEATURES, [id, 0, 0]);
            answer
        }
        _ => arch::NOT_SUPPORTED,
    }
}

/// W of a register: what an SMC32 looks at.
#[allow(clippy::cast_possible_truncation, reason = "the upper half is not part of an SMC32's argument")]
const fn low(register: u64) -> u32 {
    register as u32
}
