//! The hypercall client: `docs/abi.md` as functions.
//!
//! Invariant: every reply is held against the calling convention before it is believed. x4..x17 go
//! out with a pattern and must come back with it; an output that the call does not define must be 0.
#![forbid(unsafe_code)]

mod snapshot;
mod vm;

pub use snapshot::{Query, SnapshotRefused};
pub use vm::{Chunk, Finish, NewVcpu, NewVm};

use crate::inject::Injection;
use crate::machine::{Imm, Machine, Regs};
use abi::{Errno, HostFn, smccc};
use core::fmt;

/// Why a call gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// x0 = -1: the hypervisor does not have this call.
    NotSupported,
    /// The call was refused.
    Errno(Errno),
    /// The reply breaks the calling convention.
    Malformed {
        /// Index of the register that is wrong.
        register: u8,
        /// What it holds.
        value: u64,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => f.write_str("not supported"),
            Self::Errno(e) => write!(f, "{e:?}"),
            Self::Malformed { register, value } => write!(f, "malformed reply: x{register} = {value:#x}"),
        }
    }
}

/// What `HYP_CAPS` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapsReply {
    /// Interface version.
    pub version: u64,
    /// Capability bits.
    pub caps: u64,
}

/// A value for register `n` that a hypervisor has no reason to write.
#[must_use]
pub const fn pattern(n: u64) -> u64 {
    0xa5c3_0000_5a3c_0000 | n << 32 | n
}

/// x0..x17 for a call: `id`, `args` from x1 up, patterns in the rest.
#[must_use]
pub fn registers(id: u64, args: &[u64]) -> Regs {
    let mut regs: Regs = [0; 18];
    for (n, (reg, index)) in regs.iter_mut().zip(0..).enumerate() {
        *reg = match n.checked_sub(1) {
            None => id,
            Some(arg) => args.get(arg).copied().unwrap_or(pattern(index)),
        };
    }
    regs
}

/// The first register from `from` on whose value differs between `before` and `after`.
#[must_use]
pub fn first_change(before: &Regs, after: &Regs, from: usize) -> Option<(u8, u64)> {
    let pairs = (0..).zip(before.iter().zip(after)).skip(from);
    pairs.into_iter().find(|(_, (b, a))| b != a).map(|(n, (_, a))| (n, *a))
}

/// The hypervisor, as its host calls it.
#[derive(Clone, Copy, Debug)]
pub struct Hypervisor<'a> {
    machine: &'a dyn Machine,
    injection: Option<&'a Injection>,
}

impl<'a> Hypervisor<'a> {
    /// The hypervisor under `machine`.
    #[must_use]
    pub const fn new(machine: &'a dyn Machine) -> Self {
        Self { machine, injection: None }
    }

    /// The same, whose calls `injection` makes fail before they succeed.
    #[must_use]
    pub const fn failing(self, injection: &'a Injection) -> Self {
        Self { injection: Some(injection), ..self }
    }

    /// The same, without that.
    #[must_use]
    pub const fn undisturbed(self) -> Self {
        Self { injection: None, ..self }
    }

    /// `HYP_CAPS`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn caps(self) -> Result<CapsReply, CallError> {
        let [version, caps] = self.call(HostFn::HypCaps, &[], [true, true])?;
        Ok(CapsReply { version, caps })
    }

    /// `HOST_SHARE_HYP`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn share(self, pfn: u64) -> Result<(), CallError> {
        self.call(HostFn::HostShareHyp, &[pfn], [false, false]).map(drop)
    }

    /// `HOST_UNSHARE_HYP`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn unshare(self, pfn: u64) -> Result<(), CallError> {
        self.call(HostFn::HostUnshareHyp, &[pfn], [false, false]).map(drop)
    }

    /// `HOST_DONATE_HYP`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn lend(self, pfn: u64, nr: u64) -> Result<(), CallError> {
        self.call(HostFn::HostDonateHyp, &[pfn, nr], [false, false]).map(drop)
    }

    /// `HYP_DONATE_HOST`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn take_back(self, pfn: u64, nr: u64) -> Result<(), CallError> {
        self.call(HostFn::HypDonateHost, &[pfn, nr], [false, false]).map(drop)
    }

    /// Makes `call` and checks the reply; `defined` says whether success defines x2 and x3.
    fn call(self, call: HostFn, args: &[u64], defined: [bool; 2]) -> Result<[u64; 2], CallError> {
        self.call_id(call.id(), args, defined)
    }

    /// The same for any function id.
    pub(crate) fn call_id(self, id: u32, args: &[u64], defined: [bool; 2]) -> Result<[u64; 2], CallError> {
        // ENOMEM's x3 is the number of pages that were missing.
        let outputs = |result: Result<(), Errno>| match result {
            Ok(()) => defined,
            Err(e) => [false, e == Errno::Enomem],
        };
        let (result, outputs) = self.reply(id, args, outputs)?;
        result.map(|()| outputs).map_err(CallError::Errno)
    }

    /// Calls `id` and checks the reply: its verdict, x2 and x3. `defined` says which of these a
    /// verdict defines; the others must be 0.
    pub(crate) fn reply(
        self,
        id: u32,
        args: &[u64],
        defined: impl Fn(Result<(), Errno>) -> [bool; 2],
    ) -> Result<(Result<(), Errno>, [u64; 2]), CallError> {
        let before = registers(u64::from(id), args);
        let after = match self.injection {
            Some(injection) => injection.call(self.machine, &before),
            None => self.machine.hvc(Imm::Zero, &before),
        };
        let [x0, x1, x2, x3, ..] = after;
        let malformed = |register, value| Err(CallError::Malformed { register, value });
        match x0 {
            smccc::SUCCESS => {}
            smccc::NOT_SUPPORTED => {
                return match first_change(&before, &after, 1) {
                    None => Err(CallError::NotSupported),
                    Some((register, value)) => malformed(register, value),
                };
            }
            _ => return malformed(0, x0),
        }
        if let Some((register, value)) = first_change(&before, &after, 4) {
            return malformed(register, value);
        }
        let Some(result) = Errno::from_reg(x1) else { return malformed(1, x1) };
        let [x2_defined, x3_defined] = defined(result);
        if x2 != 0 && !x2_defined {
            return malformed(2, x2);
        }
        if x3 != 0 && !x3_defined {
            return malformed(3, x3);
        }
        Ok((result, [x2, x3]))
    }
}
