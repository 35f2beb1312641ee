//! The guests' PSCI 1.1 (Arm DEN0022): which vCPU is on is EL2's knowledge, not the host's.
//!
//! The host schedules, so it is told that a vCPU may run, or that the VM wants to end. It never
//! learns where a vCPU starts, and cannot start one that the guest has not asked for. Guarded by
//! the VM's lock.
#![forbid(unsafe_code)]

use abi::psci;
use abi::vm::{MAX_VCPUS, vcpu_of_affinity};

/// Power state of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Power {
    /// Off; also the state of an index without a vCPU.
    #[default]
    Off,
    /// The guest asked for it; it starts here when the host first runs it.
    OnPending(Start),
    /// On.
    On,
}

/// Where a vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// First instruction.
    pub pc: u64,
    /// X0, PSCI's context id.
    pub x0: u64,
}

/// Power states of all vCPUs of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PowerTable {
    present: u32,
    power: [Power; MAX_VCPUS],
}

const _: () = assert!(MAX_VCPUS <= 32, "`present` has 32 bits");

/// What comes of a PSCI call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// x0; the guest goes on.
    Answer(u64),
    /// The host is asked to run vCPU `target`, which is ON_PENDING; its answer decides x0.
    CpuOn {
        /// The vCPU.
        target: u8,
    },
    /// The calling vCPU is off.
    CpuOff,
    /// The calling vCPU waits for an interrupt; x0 = SUCCESS when it goes on.
    Suspend,
    /// The VM ends.
    SystemOff,
    /// The VM asks to be started again.
    SystemReset,
}

/// PSCI calls that are there. SMC32 and SMC64 forms apart, as PSCI_FEATURES asks.
const CALLS: [u32; 12] = [
    psci::VERSION,
    psci::FEATURES,
    psci::CPU_SUSPEND_32,
    psci::CPU_SUSPEND_64,
    psci::CPU_OFF,
    psci::CPU_ON_32,
    psci::CPU_ON_64,
    psci::AFFINITY_INFO_32,
    psci::AFFINITY_INFO_64,
    psci::MIGRATE_INFO_TYPE,
    psci::SYSTEM_OFF,
    psci::SYSTEM_RESET,
];

impl PowerTable {
    /// vCPU `idx` exists and is in `power`.
    pub fn create(&mut self, idx: u8, power: Power) {
        if let Some(slot) = self.power.get_mut(usize::from(idx)) {
            *slot = power;
            self.present |= 1_u32.wrapping_shl(u32::from(idx));
        }
    }

    fn exists(&self, idx: u8) -> bool {
        usize::from(idx) < MAX_VCPUS && self.present.wrapping_shr(u32::from(idx)) & 1 == 1
    }

    /// Power state of vCPU `idx`.
    #[must_use]
    pub fn get(&self, idx: u8) -> Power {
        self.power.get(usize::from(idx)).copied().unwrap_or_default()
    }

    /// Puts vCPU `idx`, which exists, into `power`.
    pub fn set(&mut self, idx: u8, power: Power) {
        if let Some(slot) = self.power.get_mut(usize::from(idx)) {
            *slot = power;
        }
    }

    /// Takes the start that vCPU `idx` waits for and turns it on.
    pub fn take_start(&mut self, idx: u8) -> Option<Start> {
        let Power::OnPending(start) = self.get(idx) else { return None };
        self.set(idx, Power::On);
        Some(start)
    }

    /// The host does not run `target`: off again, unless it has started since. True if it is off.
    pub fn refuse_start(&mut self, target: u8) -> bool {
        let pending = matches!(self.get(target), Power::OnPending(_));
        if pending {
            self.set(target, Power::Off);
        }
        pending
    }

    /// Serves PSCI function `id` with arguments `x1`..`x3`, called by vCPU `me`. `None` for what is
    /// no PSCI call of this table. `ipa_bits` bounds entry points.
    #[must_use]
    pub fn call(&mut self, id: u32, args: [u64; 3], me: u8, ipa_bits: u32) -> Option<Outcome> {
        let wide = id & 1 << 30 != 0;
        let narrow = |x: u64| if wide { x } else { x & 0xffff_ffff };
        let [x1, x2, x3] = args.map(narrow);
        Some(match id {
            psci::VERSION => Outcome::Answer(psci::VERSION_1_1),
            psci::FEATURES => Outcome::Answer(features(x1)),
            psci::CPU_SUSPEND_32 | psci::CPU_SUSPEND_64 => Outcome::Suspend,
            psci::CPU_OFF => {
                self.set(me, Power::Off);
                Outcome::CpuOff
            }
            psci::CPU_ON_32 | psci::CPU_ON_64 => self.cpu_on(x1, Start { pc: x2, x0: x3 }, ipa_bits),
            psci::AFFINITY_INFO_32 | psci::AFFINITY_INFO_64 => Outcome::Answer(self.affinity_info(x1, x2)),
            psci::MIGRATE_INFO_TYPE => Outcome::Answer(psci::MIGRATE_NOT_NEEDED),
            psci::SYSTEM_OFF => Outcome::SystemOff,
            psci::SYSTEM_RESET => Outcome::SystemReset,
            _ => return None,
        })
    }

    fn cpu_on(&mut self, mpidr: u64, start: Start, ipa_bits: u32) -> Outcome {
        let Some(target) = vcpu_of_affinity(mpidr).filter(|&idx| self.exists(idx)) else {
            return Outcome::Answer(psci::INVALID_PARAMETERS);
        };
        if start.pc >> ipa_bits != 0 || start.pc & 3 != 0 {
            return Outcome::Answer(psci::INVALID_ADDRESS);
        }
        match self.get(target) {
            Power::On => Outcome::Answer(psci::ALREADY_ON),
            Power::OnPending(_) => Outcome::Answer(psci::ON_PENDING),
            Power::Off => {
                self.set(target, Power::OnPending(start));
                Outcome::CpuOn { target }
            }
        }
    }

    /// On if a vCPU of the named affinity instance is; affinity levels above 3 do not exist.
    fn affinity_info(&self, mpidr: u64, level: u64) -> u64 {
        const FIELDS: [u64; 4] = [0xff_00ff_ffff, 0xff_00ff_ff00, 0xff_00ff_0000, 0xff_0000_0000];
        let field = usize::try_from(level).ok().and_then(|level| FIELDS.get(level));
        let (Some(mask), 0) = (field, mpidr & !0xff_00ff_ffff) else { return psci::INVALID_PARAMETERS };
        let mut answer = psci::INVALID_PARAMETERS;
        for idx in (0..=u8::MAX).take(MAX_VCPUS).filter(|&idx| self.exists(idx)) {
            if (abi::vm::mpidr(idx) ^ mpidr) & mask != 0 {
                continue;
            }
            answer = match (self.get(idx), answer) {
                (Power::On, _) => return psci::AFFINITY_ON,
                (Power::OnPending(_), _) | (_, psci::AFFINITY_ON_PENDING) => psci::AFFINITY_ON_PENDING,
                (Power::Off, _) => psci::AFFINITY_OFF,
            };
        }
        answer
    }
}

/// PSCI_FEATURES: 0 for what is there (CPU_SUSPEND in its original format), NOT_SUPPORTED else.
fn features(id: u64) -> u64 {
    let there = u32::try_from(id).is_ok_and(|id| CALLS.contains(&id) || id == abi::smccc::VERSION);
    if there { psci::SUCCESS } else { psci::NOT_SUPPORTED }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Power, PowerTable, Start, psci};

    const START: Start = Start { pc: 0x4000_0000, x0: 77 };

    fn four() -> PowerTable {
        let mut t = PowerTable::default();
        t.create(0, Power::On);
        for idx in [1, 2, 17] {
            t.create(idx, Power::Off);
        }
        t
    }

    fn on(t: &mut PowerTable, mpidr: u64) -> Outcome {
        t.call(psci::CPU_ON_64, [mpidr, START.pc, START.x0], 0, 40).unwrap()
    }

    fn affinity(t: &mut PowerTable, mpidr: u64, level: u64) -> u64 {
        match t.call(psci::AFFINITY_INFO_64, [mpidr, level, 0], 0, 40) {
            Some(Outcome::Answer(x0)) => x0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_vcpu_goes_off_pending_on_and_off_again() {
        let mut t = four();
        assert_eq!(affinity(&mut t, 1, 0), psci::AFFINITY_OFF);
        assert_eq!(on(&mut t, 1), Outcome::CpuOn { target: 1 });
        assert_eq!(affinity(&mut t, 1, 0), psci::AFFINITY_ON_PENDING);
        assert_eq!(on(&mut t, 1), Outcome::Answer(psci::ON_PENDING));
        assert_eq!(t.take_start(1), Some(START));
        assert_eq!(t.take_start(1), None, "a start is used once");
        assert_eq!(affinity(&mut t, 1, 0), psci::AFFINITY_ON);
        assert_eq!(on(&mut t, 1), Outcome::Answer(psci::ALREADY_ON));
        assert_eq!(t.call(psci::CPU_OFF, [0; 3], 1, 40), Some(Outcome::CpuOff));
        assert_eq!(on(&mut t, 1), Outcome::CpuOn { target: 1 });
        assert_eq!(on(&mut t, 0x101), Outcome::CpuOn { target: 17 }, "Aff1");
    }

    #[test]
    fn a_refused_start_is_off_unless_it_has_happened() {
        let mut t = four();
        assert_eq!(on(&mut t, 2), Outcome::CpuOn { target: 2 });
        assert!(t.refuse_start(2));
        assert_eq!(t.get(2), Power::Off);
        assert_eq!(on(&mut t, 2), Outcome::CpuOn { target: 2 });
        let _ = t.take_start(2);
        assert!(!t.refuse_start(2));
        assert_eq!(t.get(2), Power::On);
    }

    #[test]
    fn cpu_on_checks_target_then_address_then_state() {
        let mut t = four();
        let before = t.clone();
        for mpidr in [3, 16, 32, 0x1_0000, 1 << 31 | 1, 1 << 32 | 1, u64::MAX] {
            assert_eq!(on(&mut t, mpidr), Outcome::Answer(psci::INVALID_PARAMETERS), "{mpidr:#x}");
        }
        for pc in [1 << 40, u64::MAX, 2] {
            let got = t.call(psci::CPU_ON_64, [0, pc, 0], 0, 40);
            assert_eq!(got, Some(Outcome::Answer(psci::INVALID_ADDRESS)), "{pc:#x}");
        }
        assert_eq!(on(&mut t, 0), Outcome::Answer(psci::ALREADY_ON), "self");
        assert_eq!(t, before);
    }

    #[test]
    fn the_32_bit_form_takes_32_bit_arguments() {
        let mut t = four();
        let args = [0xffff_ffff_0000_0001, 0xffff_ffff_4000_0000, 0xffff_ffff_0000_004d];
        assert_eq!(t.call(psci::CPU_ON_32, args, 0, 40), Some(Outcome::CpuOn { target: 1 }));
        assert_eq!(t.get(1), Power::OnPending(START));
    }

    #[test]
    fn affinity_info_covers_whole_instances() {
        let mut t = four();
        assert_eq!(affinity(&mut t, 0x100, 1), psci::AFFINITY_OFF, "only 17 is there");
        assert_eq!(affinity(&mut t, 0, 1), psci::AFFINITY_ON);
        assert_eq!(affinity(&mut t, 0x0f, 1), psci::AFFINITY_ON, "lower fields do not count");
        assert_eq!(affinity(&mut t, 0x200, 1), psci::INVALID_PARAMETERS);
        assert_eq!((affinity(&mut t, 0, 2), affinity(&mut t, 0, 3)), (psci::AFFINITY_ON, psci::AFFINITY_ON));
        for level in [4, u64::MAX] {
            assert_eq!(affinity(&mut t, 0, level), psci::INVALID_PARAMETERS);
        }
        assert_eq!(affinity(&mut t, 1 << 31, 0), psci::INVALID_PARAMETERS);
        t.set(0, Power::Off);
        assert_eq!(on(&mut t, 1), Outcome::CpuOn { target: 1 });
        assert_eq!(affinity(&mut t, 0, 1), psci::AFFINITY_ON_PENDING);
    }

    #[test]
    fn features_names_what_is_there_and_nothing_else() {
        let mut t = four();
        let mut ask = |id: u64| t.call(psci::FEATURES, [id, 0, 0], 0, 40);
        for id in super::CALLS.into_iter().chain([abi::smccc::VERSION]) {
            assert_eq!(ask(u64::from(id)), Some(Outcome::Answer(0)), "{id:#x}");
        }
        // SYSTEM_RESET2, SYSTEM_SUSPEND, MEM_PROTECT, MIGRATE, CPU_FREEZE, an HVC id.
        for id in [0xc400_0012, 0xc400_000e, 0x8400_0013, 0xc400_0005, 0x8400_000b, 0] {
            assert_eq!(ask(id), Some(Outcome::Answer(psci::NOT_SUPPORTED)), "{id:#x}");
        }
    }

    #[test]
    fn every_call_that_features_names_is_served() {
        for id in super::CALLS {
            assert!(four().call(id, [0; 3], 0, 40).is_some(), "{id:#x}");
        }
        for id in [0xc400_0012, 0x8400_0005, 0x8400_001f, 0xc400_0000] {
            assert_eq!(four().call(id, [0; 3], 0, 40), None, "{id:#x}");
        }
    }
}
