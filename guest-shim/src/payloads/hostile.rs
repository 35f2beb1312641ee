//! `Hostile`: a guest that does what no guest should, as a seed says.
//!
//! Each round is one instruction in the cage (`Cpu::attempt`) and depends on seed, kind and number alone, so it can
//! be repeated without those before it. A round may end the guest: the host begins another behind it.
#![forbid(unsafe_code)]

use super::guard::mark_uart;
use super::instruction::{BR, LDR, STR};
use super::registers::any_that_is_there;
use super::system::Register;
use super::{Env, Outcome as Done};
use crate::cpu::{Attempt, Stage1};
use crate::protocol::hostile::{ASK, Class, FIRST, Outcome, ROUNDS, VCPUS, counter};
use crate::protocol::{ABSENT, BEYOND, DEVICES, IMAGE, SCRATCH, UART, VmKind, word};
use abi::{HostFn, guest, psci, rsi, smccc};
use el1::random::Random;

const PAGE: u64 = 4096;
/// Memory that rounds use; then some that they leave as it was found.
const USED: u64 = 64 * PAGE;
const UNTOUCHED: u64 = SCRATCH + (2 << 20);
/// Tables of stage 1 that rounds write, in the used memory.
const TABLES: u64 = SCRATCH;
const NR_TABLES: u64 = 8;
/// Entries of a table that are used.
const ENTRIES: u64 = 8;
/// One of so many calls of PSCI is meant to end the guest.
const ENDING: u64 = 24;

const HVC: u32 = 0xd400_0002;
const SMC: u32 = 0xd400_0003;

/// ICC_SGI1R_EL1.
const SGI: Register = Register::new(3, 0, 12, 11, 5);
const DC_ZVA: u32 = Register::new(1, 3, 7, 4, 1).msr(0);
const DC_CIVAC: u32 = Register::new(1, 3, 7, 14, 1).msr(0);

/// Loads and stores with the address in x0, of every kind (Arm ARM C4.1.94).
const ACCESSES: &[u32] = &[
    LDR,
    STR,
    0x3940_0001, // ldrb w1, [x0]
    0xa940_0801, // ldp x1, x2, [x0]
    0xf840_1001, // ldur x1, [x0, #1]
    0xc85f_7c01, // ldxr x1, [x0]
    0xc87f_0801, // ldxp x1, x2, [x0]
    0xc8df_fc01, // ldar x1, [x0]
    0xf840_0801, // ldtr x1, [x0]
    0x3dc0_0001, // ldr q1, [x0]
    0x4c40_7001, // ld1 {v1.16b}, [x0]
    0xf980_0000, // prfm pldl1keep, [x0]
    0xf820_0401, // ldraa x1, [x0]
    0xf8bf_c001, // ldapr x1, [x0]
    0xf83f_d000, // ld64b x0, [x0]
    0x3900_0001, // strb w1, [x0]
    0xa900_0801, // stp x1, x2, [x0]
    0xf800_1001, // stur x1, [x0, #1]
    0xc803_7c01, // stxr w3, x1, [x0]
    0xc89f_fc01, // stlr x1, [x0]
    0x3d80_0001, // str q1, [x0]
    0xf800_8401, // str x1, [x0], #8
    0xf821_0002, // ldadd x1, x2, [x0]
    0xf821_8002, // swp x1, x2, [x0]
    0xc8a1_7c02, // cas x1, x2, [x0]
    0x4822_7c04, // casp x2, x3, x4, x5, [x0]
    0xf83f_9000, // st64b x0, [x0]
    DC_ZVA,
    DC_CIVAC,
];

/// The same for addresses that tables of the guest's own translate.
const TRANSLATED: &[u32] = &[
    LDR,
    STR,
    0xc85f_7c01,                         // ldxr x1, [x0]
    0xf821_0002,                         // ldadd x1, x2, [x0]
    Register::new(1, 0, 7, 8, 0).msr(0), // AT S1E1R
    Register::new(1, 0, 7, 8, 1).msr(0), // AT S1E1W
    Register::new(1, 0, 7, 8, 2).msr(0), // AT S1E0R
    Register::new(1, 0, 7, 9, 0).msr(0), // AT S1E1RP
    DC_ZVA,
    DC_CIVAC,
];

/// What reaches memory tags, with the address in x0.
const TAGS: &[u32] = &[
    0x9adf_1001,                          // irg x1, x0
    0x9181_0401,                          // addg x1, x0, #16, #1
    0x9ac2_1401,                          // gmi x1, x0, x2
    0xd920_0800,                          // stg x0, [x0]
    0xd960_0800,                          // stzg x0, [x0]
    0xd9a0_0800,                          // st2g x0, [x0]
    0xd9e0_0800,                          // stz2g x0, [x0]
    0x6900_0801,                          // stgp x1, x2, [x0]
    0xd960_0001,                          // ldg x1, [x0]
    0xd9e0_0001,                          // ldgm x1, [x0]
    0xd9a0_0001,                          // stgm x1, [x0]
    0xd920_0001,                          // stzgm x1, [x0]
    Register::new(1, 3, 7, 4, 3).msr(0),  // DC GVA
    Register::new(1, 3, 7, 4, 4).msr(0),  // DC GZVA
    Register::new(1, 0, 7, 6, 3).msr(0),  // DC IGVAC
    Register::new(1, 3, 7, 14, 5).msr(0), // DC CIGDVAC
];

const WAITS: &[u32] = &[
    0xd503_207f, // wfi
    0xd503_205f, // wfe
    0xd503_1020, // wfit x0
    0xd503_1000, // wfet x0
    0xd503_203f, // yield
    0xd503_209f, // sev
    0xd503_20bf, // sevl
];

/// Calls that some kind of VM has, or its host.
const CALLS: &[u32] = &[
    smccc::VERSION,
    smccc::ARCH_FEATURES,
    smccc::ARCH_WORKAROUND_1,
    guest::VENDOR_UID,
    guest::FEATURES,
    guest::HYP_MEMINFO,
    guest::MEM_SHARE,
    guest::MEM_UNSHARE,
    guest::MEM_RELINQUISH,
    guest::GUARD_INFO,
    guest::GUARD_ENROLL,
    guest::GUARD_MAP,
    guest::GUARD_UNMAP,
    guest::RGUARD_MAP,
    guest::RGUARD_UNMAP,
    guest::trng::RND64,
    rsi::VERSION,
    rsi::FEATURES,
    rsi::MEASUREMENT_READ,
    rsi::MEASUREMENT_EXTEND,
    rsi::ATTESTATION_TOKEN_INIT,
    rsi::REALM_CONFIG,
    rsi::IPA_STATE_SET,
    rsi::IPA_STATE_SET,
    rsi::IPA_STATE_GET,
    rsi::HOST_CALL,
    HostFn::HypCaps as u32,
    HostFn::VcpuRun as u32,
    HostFn::GuestDonate as u32,
    HostFn::HostShareHyp as u32,
];

/// Those that move memory, of a protected VM and of a realm.
const PROTECTED_CALLS: &[u32] =
    &[guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH, guest::RGUARD_MAP, guest::RGUARD_UNMAP];
const REALM_CALLS: &[u32] = &[rsi::IPA_STATE_SET, rsi::IPA_STATE_SET, rsi::HOST_CALL, rsi::REALM_CONFIG];

const PSCI: &[u32] = &[
    psci::VERSION,
    psci::CPU_SUSPEND_32,
    psci::CPU_SUSPEND_64,
    psci::CPU_ON_32,
    psci::CPU_ON_64,
    psci::AFFINITY_INFO_32,
    psci::AFFINITY_INFO_64,
    psci::MIGRATE_INFO_TYPE,
    psci::FEATURES,
];

/// One round.
struct Round<'e> {
    env: &'e Env<'e>,
    random: Random,
}

/// Rounds from the one that the host names to the last.
pub(super) fn run(env: &Env<'_>) -> Done {
    env.doorbell(ASK)?;
    let (first, rounds) = (env.mail(FIRST), env.mail(ROUNDS));
    if env.start.kind == VmKind::Protected {
        mark_uart(env)?;
        env.call(guest::GUARD_MAP, [DEVICES[0], 0, 0])?;
    }
    let kind = usize::from(env.start.kind as u8);
    for round in first..rounds {
        env.report(word::STAGE, round + 1);
        let seed = u64::from(env.start.argument) << 32 ^ round;
        let (class, outcome) = Round { env, random: Random::new(seed, kind) }.make();
        let at = counter(class, outcome);
        env.report(at, env.mail(at) + 1);
    }
    Ok(())
}

/// A vCPU that was started properly: some calls, and off.
pub(super) fn secondary(env: &Env<'_>, context: u64) {
    let mut round = Round { env, random: Random::new(context, 1) };
    for _ in 0..8 {
        let mut regs = [0; 18];
        regs.fill_with(|| round.argument());
        regs[0] = round.of(CALLS).into();
        match round.random.below(2) {
            0 => env.cpu.hvc(&regs),
            _ => env.cpu.smc(&regs),
        };
    }
}

impl Round<'_> {
    fn of(&mut self, values: &[u32]) -> u32 {
        self.random.of(values).unwrap_or(0)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.random.below(n) == 0
    }

    /// A word with 32 random bits.
    fn half(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.random.next_word().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// An address that the guest's image is not at.
    fn address(&mut self) -> u64 {
        let shared = self.env.start.kind.shared();
        let strays = self.env.start.kind != VmKind::Protected || self.one_in(64);
        let page = match self.random.below(10) {
            0..=3 => SCRATCH + self.random.below(USED),
            4 => UNTOUCHED + self.random.below(256 * PAGE),
            5 => shared + UART + self.random.below(PAGE),
            6 if shared != 0 => shared + SCRATCH + self.random.below(USED),
            6 => DEVICES[0] + self.random.below(PAGE),
            7 if strays => ABSENT + self.random.below(1 << 24),
            8 if strays => self.random.next_word(),
            _ => BEYOND + self.random.below(1 << 30),
        };
        if self.one_in(4) { page } else { page & !0xf }
    }

    /// A page of the memory that rounds use.
    fn used_page(&mut self) -> u64 {
        SCRATCH + self.random.below(USED / PAGE) * PAGE
    }

    /// Something to call with: an address, a page, a small number, nonsense.
    fn argument(&mut self) -> u64 {
        match self.random.below(8) {
            0 => self.address(),
            1..=3 => self.address() & !(PAGE - 1),
            4 => SCRATCH + self.random.below(256) * 256,
            5 => self.random.below(4),
            6 => self.random.below(1024),
            _ => self.random.next_word(),
        }
    }

    /// Does something and says what came of it.
    fn make(&mut self) -> (Class, Outcome) {
        let class = self.random.of(&Class::ALL).map_or(Class::System, |(class, _)| class);
        let mut x = [0; 28];
        for x in &mut x {
            *x = if self.one_in(3) { self.address() } else { self.random.next_word() };
        }
        x[0] = self.address();
        let stage1 = if self.one_in(2) { Stage1::Off } else { Stage1::Own };
        let mut attempt = Attempt { instruction: 0, x, stage1, timer: None };
        match class {
            Class::System => self.system(&mut attempt),
            Class::Maintenance => attempt.instruction = self.maintenance(),
            Class::AnyWord => self.any_word(&mut attempt),
            Class::Call => self.call(&mut attempt),
            Class::Psci => self.psci(&mut attempt),
            Class::Access => attempt.instruction = self.of(ACCESSES),
            Class::Fetch => fetch(&mut attempt),
            Class::Tables => self.tables(&mut attempt),
            Class::Tags => attempt.instruction = self.of(TAGS),
            Class::Wait => {
                attempt.instruction = self.of(WAITS);
                attempt.timer = Some(self.random.below(self.env.cpu.frequency() / 1000));
            }
        }
        let taken = self.env.cpu.attempt(&attempt).taken;
        // An interrupt's vector has no syndrome of its own.
        let outcome = match taken.map(|taken| (taken.vector % 4, taken.esr >> 26)) {
            None => Outcome::Answered,
            Some((0, 0 | 0x18)) => Outcome::Undefined,
            Some((0, 0x20..=0x26)) => Outcome::Abort,
            Some(_) => Outcome::Other,
        };
        (class, outcome)
    }

    /// Any instruction of the system group: hints, barriers, PSTATE, registers. Half of them exist.
    fn system(&mut self, attempt: &mut Attempt) {
        attempt.instruction = loop {
            let register = any_that_is_there(&mut self.random);
            let word = match self.random.below(8) {
                0 => SGI.msr(0),
                1..=3 => register.msr(0),
                4 | 5 => register.mrs(0),
                // MSR of an immediate.
                6 => 0xd500_401f | self.half() & 0x0007_0fe0,
                _ => 0xd500_0000 | self.half() & 0x003f_ffff,
            };
            // x30 is the cage's; stage 1 that comes on without tables is the end.
            if word & 0x1f != 30 && word >> 5 & 0xffff != Register::SCTLR.msr(0) >> 5 & 0xffff {
                break word;
            }
        };
        attempt.timer = Some(self.env.cpu.frequency() / 1000);
    }

    /// SYS and SYSL: of caches, TLBs and addresses, or any.
    fn maintenance(&mut self) -> u32 {
        const CACHES: u32 = 7 << 12;
        const TLBS: u32 = 8 << 12;
        let any = 0xd508_0000 | self.half() & 0x0027_ffe0;
        let op1 = if self.one_in(2) { 0 } else { 3 << 16 };
        let here = any & !(0x20 << 16 | 7 << 16 | 0xf << 12) | op1;
        match self.random.below(4) {
            0 | 1 => here | CACHES,
            2 => here & !(7 << 16) | TLBS,
            _ => any,
        }
    }

    /// Any word that does not name x30.
    fn any_word(&mut self, attempt: &mut Attempt) {
        attempt.instruction = loop {
            let word = self.half();
            let names = |shift: u32| word >> shift & 0x1f == 30;
            // BL, and BLR and its kind, name it without saying so.
            let links = word >> 26 == 0x25 || word >> 25 == 0x6b && word >> 21 & 0xf == 1;
            if !names(0) && !names(5) && !names(10) && !names(16) && !links {
                break word;
            }
        };
        attempt.timer = Some(self.env.cpu.frequency() / 1000);
    }

    /// A call by either instruction.
    fn call(&mut self, attempt: &mut Attempt) {
        let immediate = if self.one_in(16) { self.half() & 0xffff } else { 0 };
        let realm = self.env.start.kind == VmKind::Realm;
        let smc = realm != self.one_in(8);
        attempt.instruction = (if smc { SMC } else { HVC }) | immediate << 5;
        let known = match (self.env.start.kind, self.one_in(2)) {
            (VmKind::Protected, true) => self.of(PROTECTED_CALLS),
            (VmKind::Realm, true) => self.of(REALM_CALLS),
            _ => self.of(CALLS),
        };
        let id = if self.one_in(8) { self.random.next_word() } else { known.into() };
        for x in &mut attempt.x {
            *x = self.argument();
        }
        attempt.x[0] = id;
        match known {
            rsi::IPA_STATE_SET | rsi::IPA_STATE_GET => {
                let [_, base, top, want, flags, ..] = &mut attempt.x;
                *base = self.used_page();
                *top = *base + (1 + self.random.below(8)) * PAGE;
                (*want, *flags) = (self.random.below(2), self.random.below(2));
            }
            rsi::HOST_CALL if !self.one_in(4) => {
                let [_, words, ..] = &mut attempt.x;
                *words = self.used_page() + 256 * self.random.below(16);
            }
            guest::MEM_SHARE | guest::MEM_UNSHARE | guest::MEM_RELINQUISH if !self.one_in(4) => {
                let [_, page, nr, rest, ..] = &mut attempt.x;
                *page = self.used_page();
                (*nr, *rest) = (1 + self.random.below(4), 0);
            }
            guest::GUARD_MAP | guest::GUARD_UNMAP | guest::RGUARD_MAP | guest::RGUARD_UNMAP => {
                let [_, page, nr, rest, ..] = &mut attempt.x;
                let place = if self.one_in(4) { ABSENT } else { DEVICES[1] };
                *page = (place + self.random.below(1 << 30)) & !(PAGE - 1);
                let range = matches!(known, guest::RGUARD_MAP | guest::RGUARD_UNMAP);
                (*nr, *rest) = (if range { self.random.below(600) } else { 0 }, 0);
            }
            _ => {}
        }
    }

    /// A call about vCPUs, sometimes about the last of them.
    fn psci(&mut self, attempt: &mut Attempt) {
        let realm = self.env.start.kind == VmKind::Realm;
        attempt.instruction = if realm { SMC } else { HVC };
        let entry = self.env.cpu.secondary_entry();
        let entries = [entry, entry, entry, entry + 2, UNTOUCHED, BEYOND, self.random.next_word()];
        let targets = [0, 1, 2, u64::from(VCPUS), 0x100, 1 << 31 | 1, self.random.next_word()];
        let [id, target, pc, context, ..] = &mut attempt.x;
        *target = self.random.of(&targets).unwrap_or(0);
        *pc = self.random.of(&entries).unwrap_or(0);
        *context = self.random.next_word();
        *id = self.random.of(PSCI).unwrap_or(0).into();
        if self.one_in(ENDING) {
            match self.random.below(4) {
                0 => self.env.cpu.enter_aarch32(),
                1 => *id = psci::CPU_OFF.into(),
                2 => *id = psci::SYSTEM_OFF.into(),
                _ => *id = psci::SYSTEM_RESET.into(),
            }
        }
    }

    /// Some entries of the tables are written, then an address is translated that they are for.
    fn tables(&mut self, attempt: &mut Attempt) {
        for _ in 0..ENTRIES {
            let at = TABLES + self.random.below(NR_TABLES) * PAGE + 8 * self.random.below(ENTRIES);
            let entry = self.entry();
            self.env.cpu.store(at, entry);
        }
        let sizes = self.random.below(24) + 16;
        // Indices of three levels with the 4 KiB granule, and of whatever with others.
        let below = [39, 30, 21, 12].map(|shift| (1 + self.random.below(ENTRIES - 1)) << shift);
        let offset = below.into_iter().fold(self.random.below(PAGE) & !7, |va, index| va | index);
        attempt.x[0] = u64::MAX << (64 - sizes) | offset & !(u64::MAX << (64 - sizes));
        attempt.instruction = self.of(TRANSLATED);
        let root = if self.one_in(4) { self.address() } else { TABLES + self.random.below(NR_TABLES) * PAGE };
        let granule = if self.one_in(4) { self.random.next_word() & 3 << 30 } else { 2 << 30 };
        let tcr = self.random.next_word() & !(3 << 30 | 0x3f << 16) | granule | sizes << 16;
        attempt.stage1 = Stage1::Upper { root, tcr };
    }

    /// A table that is one or not, a block, a page, or nothing.
    fn entry(&mut self) -> u64 {
        const TABLE: u64 = 3;
        const ATTRIBUTES: u64 = 0xfff0_0000_0000_0ffc;
        const ACCESSED: u64 = 1 << 10;
        const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
        let table = TABLES + self.random.below(NR_TABLES) * PAGE;
        match self.random.below(8) {
            0 => self.random.next_word() & !1,
            1..=4 => table | TABLE,
            5 => self.address() & ADDRESS | TABLE,
            kind => {
                let bits = self.random.next_word() & ATTRIBUTES | ACCESSED;
                self.address() & ADDRESS | bits | (if kind == 6 { 1 } else { 3 })
            }
        }
    }
}

/// A jump to where there is no code.
fn fetch(attempt: &mut Attempt) {
    attempt.instruction = BR;
    if (SCRATCH..SCRATCH + USED).contains(&(attempt.x[0] % BEYOND)) {
        attempt.x[0] = UNTOUCHED;
    }
}

const _: () =
    assert!(IMAGE < SCRATCH && TABLES + NR_TABLES * PAGE <= SCRATCH + USED && SCRATCH + USED <= UNTOUCHED);

#[cfg(test)]
mod tests {
    use super::{ACCESSES, CALLS, TAGS, TRANSLATED};
    use crate::protocol::hostile::{Class, Outcome, counter};
    use crate::protocol::word;
    use std::collections::BTreeSet;

    #[test]
    fn each_class_and_outcome_has_a_counter_of_its_own() {
        let all: BTreeSet<_> = Class::ALL
            .iter()
            .flat_map(|(class, _)| Outcome::ALL.iter().map(|(outcome, _)| counter(*class, *outcome)))
            .collect();
        assert_eq!(all.len(), Class::ALL.len() * Outcome::ALL.len());
        assert!(all.iter().all(|at| (word::RESULTS..word::CPUS).contains(at)));
    }

    #[test]
    fn no_instruction_writes_the_register_of_the_cage() {
        for word in [ACCESSES, TAGS, TRANSLATED].concat() {
            assert!([0, 5].iter().all(|shift| word >> shift & 0x1f != 30), "{word:#x}");
        }
        assert!(CALLS.iter().all(|id| id >> 31 == 1), "fast calls");
    }
}
