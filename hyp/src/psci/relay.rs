//! The host's CPUs: who is on, and where each starts.
//!
//! Invariant: a CPU enters the host only through [`Relay::start`], with an entry point that one
//! successful CPU_ON or CPU_SUSPEND stored for it. Between a CPU_ON that claimed a CPU and the
//! moment the CPU arrives (or firmware refuses), its slot belongs to the caller alone.
//!
//! No lock: one atomic word a CPU goes off -> claimed -> ready -> on, and back to off by CPU_OFF or
//! when firmware refuses. Claimed and ready name the caller, so that one whom firmware refused
//! gives back its own claim and never another's. The entry point is stored between the two: who
//! sees ready sees it.
#![forbid(unsafe_code)]

use super::{firmware32, firmware64};
use crate::platform::tree::MAX_CPUS;
use abi::psci;
use arrayvec::ArrayVec;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use smccc::Call;

const OFF: u32 = 0;
const ON: u32 = 1;
/// Claimed by the CPU with index 0, its entry point not stored yet; further CPUs follow.
const CLAIMED: u32 = 0x100;
/// Asked to start by the CPU with index 0, its entry point stored; further CPUs follow.
const READY: u32 = 0x200;

static_assertions::const_assert!(MAX_CPUS <= 0x100);

/// Where the host starts on a CPU: EL1, MMU off, interrupts masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Program counter: an IPA that the host chose, of any value.
    pub entry: u64,
    /// x0.
    pub context: u64,
}

/// An entry point that is stored before its CPU is let go, and read when it arrives.
#[derive(Debug, Default)]
struct Slot {
    entry: AtomicU64,
    context: AtomicU64,
}

impl Slot {
    /// What follows publishes both: the state word becomes ready, or this CPU comes back itself.
    fn store(&self, start: Start) {
        self.entry.store(start.entry, Ordering::Relaxed);
        self.context.store(start.context, Ordering::Relaxed);
    }

    fn load(&self) -> Start {
        Start { entry: self.entry.load(Ordering::Relaxed), context: self.context.load(Ordering::Relaxed) }
    }
}

#[derive(Debug)]
struct Cpu {
    mpidr: u64,
    state: AtomicU32,
    on: Slot,
    /// Written and read by the CPU itself only.
    resume: Slot,
    suspended: AtomicBool,
}

/// The CPUs of the machine and the firmware that powers them; `C` makes the calls.
pub struct Relay<C> {
    cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// Physical address at which every CPU enters EL2; x0 is its index.
    el2_entry: u64,
    firmware: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for Relay<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("cpus", &self.cpus).field("el2_entry", &self.el2_entry).finish()
    }
}

impl<C: Call> Relay<C> {
    /// A machine with these CPUs, of which `boot` is on, or `None` if it is not one of them.
    ///
    /// `el2_entry` is the physical address that firmware gets in the host's place; a CPU arrives
    /// there with its index in `mpidrs` in x0 and calls [`Relay::start`].
    #[must_use]
    pub fn new(mpidrs: &[u64], boot: u64, el2_entry: u64) -> Option<Self> {
        let cpus: ArrayVec<Cpu, MAX_CPUS> = mpidrs
            .iter()
            .take(MAX_CPUS)
            .map(|&mpidr| Cpu {
                mpidr,
                state: AtomicU32::new(if mpidr == boot { ON } else { OFF }),
                on: Slot::default(),
                resume: Slot::default(),
                suspended: AtomicBool::new(false),
            })
            .collect();
        let relay = Self { cpus, el2_entry, firmware: PhantomData };
        relay.index_of(boot)?;
        Some(relay)
    }

    /// Index of the CPU with these affinity fields; `None` for any other value.
    #[must_use]
    pub fn index_of(&self, mpidr: u64) -> Option<usize> {
        self.cpus.iter().position(|cpu| cpu.mpidr == mpidr)
    }

    /// MPIDR_EL1 affinity of each CPU, by index.
    pub fn mpidrs(&self) -> impl ExactSizeIterator<Item = u64> {
        self.cpus.iter().map(|cpu| cpu.mpidr)
    }

    /// Called by a CPU that firmware let into EL2: where the host waits for it. `None` if nobody
    /// asked for this CPU; it must not enter the host then.
    #[must_use]
    pub fn start(&self, cpu: usize) -> Option<Start> {
        let cpu = self.cpus.get(cpu)?;
        match cpu.state.load(Ordering::Acquire) {
            ON => cpu.suspended.swap(false, Ordering::Relaxed).then(|| cpu.resume.load()),
            ready if ready >= READY => {
                let start = cpu.on.load();
                cpu.state.compare_exchange(ready, ON, Ordering::AcqRel, Ordering::Relaxed).ok()?;
                Some(start)
            }
            _ => None,
        }
    }

    /// CPU_ON by CPU `by`: status for x0.
    pub(super) fn cpu_on(&self, by: usize, mpidr: u64, start: Start) -> u64 {
        let Some((index, target)) = self.index_of(mpidr).and_then(|i| Some((i, self.cpus.get(i)?))) else {
            return psci::INVALID_PARAMETERS;
        };
        let Ok(by) = u32::try_from(by) else { return psci::INTERNAL_FAILURE };
        let (claimed, ready) = (CLAIMED.saturating_add(by), READY.saturating_add(by));
        match target.state.compare_exchange(OFF, claimed, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => target.on.store(start),
            Err(ON) => return psci::ALREADY_ON,
            Err(_) => {
                log::warn!("CPU {index} (MPIDR {mpidr:#x}) was started, and has not arrived");
                return psci::ON_PENDING;
            }
        }
        // Fails if the target's CPU_OFF was refused after the claim: it never went off.
        if target.state.compare_exchange(claimed, ready, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return psci::ALREADY_ON;
        }
        let [status, ..] =
            firmware64::<C>(psci::CPU_ON_64, [target.mpidr, self.el2_entry, context_id(index)]);
        if status != psci::SUCCESS {
            let why = status.cast_signed();
            log::warn!("firmware does not start CPU {index} (MPIDR {mpidr:#x}): status {why}");
            let _ = target.state.compare_exchange(ready, OFF, Ordering::AcqRel, Ordering::Relaxed);
        }
        status
    }

    /// CPU_OFF of the calling CPU. Returns, with a status for x0, only if firmware refuses.
    pub fn cpu_off(&self, cpu: usize) -> u64 {
        let Some(cpu) = self.cpus.get(cpu) else { return psci::INTERNAL_FAILURE };
        // From here a CPU_ON may claim this CPU; firmware answers it ALREADY_ON until it is off.
        cpu.state.store(OFF, Ordering::Release);
        let [status, ..] = firmware32::<C>(psci::CPU_OFF, [0; 3]);
        cpu.state.store(ON, Ordering::Release);
        status
    }

    /// CPU_SUSPEND of the calling CPU. A standby state returns here, with a status for x0; from a
    /// power-down state the CPU comes back through [`Relay::start`].
    ///
    /// Firmware gets EL2's entry point for both: it looks at it for power-down only, and whether a
    /// state is one depends on a format that only firmware knows for sure.
    pub fn cpu_suspend(&self, index: usize, power_state: u64, start: Start) -> u64 {
        let Some(cpu) = self.cpus.get(index) else { return psci::INTERNAL_FAILURE };
        cpu.resume.store(start);
        cpu.suspended.store(true, Ordering::Relaxed);
        let [status, ..] =
            firmware64::<C>(psci::CPU_SUSPEND_64, [power_state, self.el2_entry, context_id(index)]);
        cpu.suspended.store(false, Ordering::Relaxed);
        status
    }

    /// SYSTEM_OFF. Returns, with a status for x0, only if firmware refuses.
    pub fn system_off(&self) -> u64 {
        let [status, ..] = firmware32::<C>(psci::SYSTEM_OFF, [0; 3]);
        status
    }

    /// SYSTEM_RESET. Returns, with a status for x0, only if firmware refuses.
    pub fn system_reset(&self) -> u64 {
        let [status, ..] = firmware32::<C>(psci::SYSTEM_RESET, [0; 3]);
        status
    }

    /// AFFINITY_INFO of one CPU: firmware's answer. Levels above 0 are optional since PSCI 1.0
    /// and not offered.
    pub(super) fn affinity_info(&self, mpidr: u64, level: u64) -> u64 {
        if level != 0 || self.index_of(mpidr).is_none() {
            return psci::INVALID_PARAMETERS;
        }
        let [status, ..] = firmware64::<C>(psci::AFFINITY_INFO_64, [mpidr, 0, 0]);
        status
    }
}

/// What firmware hands a CPU in x0.
fn context_id(index: usize) -> u64 {
    // At most MAX_CPUS.
    u64::try_from(index).unwrap_or(u64::MAX)
}
