//! Calls of a guest on HVC, decoded and - where no memory moves - answered: SMCCC, TRNG and KVM's
//! vendor services. PSCI is [`super::psci`].
//!
//! Nothing is forwarded to the host that it is not meant to see; an id that is not listed here
//! answers NOT_SUPPORTED and changes no other register (x4..x17 are kept by every call).
#![forbid(unsafe_code)]

use super::rsi::RsiCall;
use crate::mem_protect::GuestKind;
use crate::mmio_guard::{GuardCall, GuardOp};
use abi::guest::{self, trng};
use abi::{FunctionId, smccc};

/// A guest's call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Answered here.
    Answer(Regs),
    /// A PSCI function with x1..x3.
    Psci(u32, [u64; 3]),
    /// One of the memory calls.
    Memory(MemoryCall),
    /// One of the calls of the MMIO guard.
    Guard(GuardCall),
    /// One of the calls of the Realm Services Interface.
    Rsi(RsiCall),
    /// One of SMCCC's ARCH_WORKAROUND calls, which firmware has.
    Workaround(u32),
    /// This many bits (1..=192) of entropy; SMC64 form if `wide`.
    Random {
        /// How many bits.
        bits: u32,
        /// 64 bits a register rather than 32.
        wide: bool,
    },
}

/// Result registers: x0 alone, or x0 and those after it. Others keep their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regs {
    /// x0.
    One(u64),
    /// x0, x1.
    Two(u64, u64),
    /// x0..x2.
    Three([u64; 3]),
    /// x0..x3.
    Four([u64; 4]),
}

impl Regs {
    /// Writes the results into x0..x30.
    #[inline(always)]
    pub fn put(self, x: &mut [u64; 31]) {
        match self {
            Self::One(x0) => x[0] = x0,
            Self::Two(x0, x1) => [x[0], x[1]] = [x0, x1],
            Self::Three(three) => [x[0], x[1], x[2]] = three,
            Self::Four(four) => [x[0], x[1], x[2], x[3]] = four,
        }
    }
}

/// The VM that calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What kind of VM it is.
    pub kind: GuestKind,
    /// Bits of its IPA space.
    pub ipa_bits: u32,
}

/// A call that moves pages between guest and host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryCall {
    /// Which way.
    pub op: MemoryOp,
    /// First page, as the guest wrote it.
    pub ipa: u64,
    /// Number of granules, at least 1.
    pub nr: u64,
}

/// What a [`MemoryCall`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryOp {
    /// The host may see the pages.
    Share,
    /// It may no longer.
    Unshare,
    /// The pages are the host's, scrubbed.
    Relinquish,
}

/// What the machine answers for the calls that depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Services {
    /// SMCCC ARCH_FEATURES of ARCH_WORKAROUND_1, _2 and _3 at EL3: 0, 1 or a negative status.
    pub workarounds: [Option<u64>; 3],
    /// EL2 has a random number generator.
    pub random: bool,
}

const WORKAROUNDS: [u32; 3] = [smccc::ARCH_WORKAROUND_1, smccc::ARCH_WORKAROUND_2, smccc::ARCH_WORKAROUND_3];

/// Memory calls of a protected VM, which FEATURES names.
const MEMORY: [u32; 4] = [guest::HYP_MEMINFO, guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH];

/// Calls of a VM that has a guard, which FEATURES names.
const GUARD: [u32; 6] = [
    guest::GUARD_INFO,
    guest::GUARD_ENROLL,
    guest::GUARD_MAP,
    guest::GUARD_UNMAP,
    guest::RGUARD_MAP,
    guest::RGUARD_UNMAP,
];

/// The answer to what is not there.
pub(super) const UNKNOWN: Call = Call::Answer(Regs::One(smccc::NOT_SUPPORTED));

/// The answer of HYP_MEMINFO and GUARD_INFO: the granule, and that there are calls for many.
const GRANULE: Regs = Regs::Two(crate::addr::PAGE_SIZE, guest::HAS_RANGE);

/// What [`decode`] answers to a well-formed HYP_MEMINFO or GUARD_INFO, which never changes, found in few steps. `None`
/// for any other call in `x` (x0..x30) of a VM of `kind`.
#[must_use]
#[inline(always)]
pub fn info(x: &[u64; 31], kind: GuestKind) -> Option<Regs> {
    let &[x0, x1, x2, x3, ..] = x;
    let there = match FunctionId::from_reg(x0)?.raw() {
        guest::HYP_MEMINFO => has_memory(kind),
        guest::GUARD_INFO => has_guard(kind),
        _ => false,
    };
    (there && x1 | x2 | x3 == 0).then_some(GRANULE)
}

/// Decodes SMCCC's own calls and PSCI, which every VM has on its conduit. `None` for any other.
#[inline]
pub(super) fn standard(id: u32, args: [u64; 3], services: &Services) -> Option<Call> {
    let [x1, ..] = args;
    Some(match id {
        smccc::VERSION => Call::Answer(Regs::One(smccc::VERSION_1_2)),
        smccc::ARCH_FEATURES => Call::Answer(Regs::One(arch_features(x1, services))),
        _ if WORKAROUNDS.contains(&id) => {
            if arch_features(u64::from(id), services) == 0 {
                Call::Workaround(id)
            } else {
                UNKNOWN
            }
        }
        0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f => Call::Psci(id, args),
        _ => return None,
    })
}

/// Decodes a call in `x` (x0..x30) of `caller`. A VM with split IPA has none: it calls by SMC ([`super::rsi`]).
#[must_use]
pub fn decode(x: &[u64; 31], caller: Caller, services: &Services) -> Call {
    let &[x0, x1, x2, x3, ..] = x;
    let Some(id) = FunctionId::from_reg(x0).filter(|id| id.is_fast()) else { return UNKNOWN };
    if caller.kind.is_split() {
        return UNKNOWN;
    }
    let id = id.raw();
    match id {
        guest::HYP_MEMINFO..=guest::RGUARD_UNMAP => vendor(id, [x1, x2, x3], caller),
        trng::VERSION..=trng::RND32 | trng::RND64 => trng_call(id, x1, services),
        guest::VENDOR_UID => Call::Answer(Regs::Four(guest::VENDOR_UID_WORDS)),
        guest::FEATURES => Call::Answer(Regs::Four([features(caller.kind), 0, 0, 0])),
        _ => standard(id, [x1, x2, x3], services).unwrap_or(UNKNOWN),
    }
}

fn arch_features(id: u64, services: &Services) -> u64 {
    let Ok(id) = u32::try_from(id) else { return smccc::NOT_SUPPORTED };
    if matches!(id, smccc::VERSION | smccc::ARCH_FEATURES) {
        return smccc::SUCCESS;
    }
    let firmware = WORKAROUNDS.iter().zip(services.workarounds).find(|&(&w, _)| w == id);
    firmware.and_then(|(_, answer)| answer).unwrap_or(smccc::NOT_SUPPORTED)
}

/// True if a VM of `kind` shares pages in place.
const fn has_memory(kind: GuestKind) -> bool {
    matches!(kind, GuestKind::Classic)
}

/// True if a VM of `kind` says which pages are devices.
const fn has_guard(kind: GuestKind) -> bool {
    !matches!(kind, GuestKind::Split)
}

fn features(kind: GuestKind) -> u64 {
    let memory = MEMORY.iter().filter(|_| has_memory(kind));
    let guard = GUARD.iter().filter(|_| has_guard(kind));
    memory.chain(guard).fold(guest::feature_bit(guest::FEATURES), |bits, &id| bits | guest::feature_bit(id))
}

fn trng_call(id: u32, x1: u64, services: &Services) -> Call {
    if !services.random {
        return UNKNOWN;
    }
    let (wide, most) = if id == trng::RND64 { (true, 192) } else { (false, 96) };
    let answer = match id {
        trng::VERSION => Regs::One(trng::VERSION_1_0),
        trng::FEATURES => {
            let known = [trng::VERSION, trng::FEATURES, trng::GET_UUID, trng::RND32, trng::RND64];
            let there = known.into_iter().any(|id| u64::from(id) == x1);
            Regs::One(if there { smccc::SUCCESS } else { smccc::NOT_SUPPORTED })
        }
        trng::GET_UUID => Regs::Four(trng::UUID_WORDS),
        _ => match u32::try_from(x1) {
            Ok(bits @ 1..) if bits <= most => return Call::Random { bits, wide },
            _ => Regs::One(trng::INVALID_PARAMETERS),
        },
    };
    Call::Answer(answer)
}

/// x0..x3 of a TRNG call of `bits` bits whose entropy is `words`, lowest first; all others are 0.
#[must_use]
pub fn random_regs(bits: u32, wide: bool, words: [u64; 3]) -> Regs {
    let mut left = bits;
    let mut take = |width: u32, word: u64| {
        let here = left.min(width);
        left = left.saturating_sub(here);
        word & u64::MAX.checked_shr(64_u32.saturating_sub(here)).unwrap_or(0)
    };
    let [low, mid, high] = words;
    let (x3, x2, x1) = if wide {
        (take(64, low), take(64, mid), take(64, high))
    } else {
        (take(32, low), take(32, mid), take(32, high))
    };
    Regs::Four([smccc::SUCCESS, x1, x2, x3])
}

/// Refuses a call that answers a status alone.
const INVALID: Call = Call::Answer(Regs::One(smccc::INVALID_PARAMETER));
/// Refuses a call that answers how many pages are done.
const NOTHING_DONE: Call = Call::Answer(Regs::Two(smccc::INVALID_PARAMETER, 0));

/// Calls about the guest's own memory and devices, of VMs that have them.
fn vendor(id: u32, args: [u64; 3], caller: Caller) -> Call {
    match id {
        guest::HYP_MEMINFO if has_memory(caller.kind) => granule(args),
        guest::MEM_SHARE | guest::MEM_UNSHARE | guest::MEM_RELINQUISH if has_memory(caller.kind) => {
            memory(id, args)
        }
        _ if has_guard(caller.kind) => guard(id, args, caller.ipa_bits),
        _ => UNKNOWN,
    }
}

fn granule(args: [u64; 3]) -> Call {
    if args == [0; 3] { Call::Answer(GRANULE) } else { INVALID }
}

fn guard(id: u32, args: [u64; 3], ipa_bits: u32) -> Call {
    let [ipa, x2, x3] = args;
    let page = |op| GuardCall::page(op, ipa, [x2, x3], ipa_bits).map_or(INVALID, Call::Guard);
    let pages = |op| GuardCall::pages(op, ipa, x2, x3, ipa_bits).map_or(NOTHING_DONE, Call::Guard);
    match id {
        guest::GUARD_INFO => granule(args),
        guest::GUARD_ENROLL if matches!(args, [0, 0, 0]) => Call::Guard(GuardCall::Enroll),
        guest::GUARD_ENROLL => INVALID,
        guest::GUARD_MAP => page(GuardOp::Map),
        guest::GUARD_UNMAP => page(GuardOp::Unmap),
        guest::RGUARD_MAP => pages(GuardOp::Map),
        guest::RGUARD_UNMAP => pages(GuardOp::Unmap),
        _ => UNKNOWN,
    }
}

fn memory(id: u32, args: [u64; 3]) -> Call {
    let [x1, x2, x3] = args;
    let op = match id {
        guest::MEM_SHARE => MemoryOp::Share,
        guest::MEM_UNSHARE => MemoryOp::Unshare,
        guest::MEM_RELINQUISH => MemoryOp::Relinquish,
        _ => return UNKNOWN,
    };
    if x3 != 0 {
        return NOTHING_DONE;
    }
    Call::Memory(MemoryCall { op, ipa: x1, nr: x2.max(1) })
}

#[cfg(test)]
mod tests {
    use super::{
        Call, Caller, GRANULE, GuardCall, GuardOp, GuestKind, INVALID, MemoryCall, MemoryOp, NOTHING_DONE,
        Regs, Services, UNKNOWN, decode, guest, info, random_regs, smccc, trng,
    };

    const BARE: Services = Services { workarounds: [None; 3], random: false };
    const FULL: Services = Services { workarounds: [Some(0), Some(1), Some(0)], random: true };

    const KINDS: [GuestKind; 3] = [GuestKind::NonProtected, GuestKind::Classic, GuestKind::Split];
    const BITS: u32 = 32;

    fn call_of(kind: GuestKind, id: u32, args: [u64; 3], services: &Services) -> Call {
        let mut x = [0; 31];
        x[0] = u64::from(id);
        x[1..4].copy_from_slice(&args);
        let call = decode(&x, Caller { kind, ipa_bits: BITS }, services);
        let known = info(&x, kind).map(Call::Answer);
        assert_eq!(known, Some(call).filter(|call| *call == Call::Answer(GRANULE)), "{id:#x} {args:?}");
        call
    }

    fn call(id: u32, args: [u64; 3], protected: bool, services: &Services) -> Call {
        let kind = if protected { GuestKind::Classic } else { GuestKind::NonProtected };
        call_of(kind, id, args, services)
    }

    fn one(id: u32, x1: u64, services: &Services) -> u64 {
        match call(id, [x1, 0, 0], true, services) {
            Call::Answer(Regs::One(x0)) => x0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_discovery_that_linux_makes_succeeds() {
        assert_eq!(one(smccc::VERSION, 0, &BARE), 0x1_0002);
        assert_eq!(one(smccc::ARCH_FEATURES, u64::from(smccc::ARCH_FEATURES), &BARE), 0);
        let uid = Call::Answer(Regs::Four([0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d]));
        assert_eq!(call(0x8600_ff01, [0; 3], true, &BARE), uid);
        let bits = Call::Answer(Regs::Four([0b1111_1111_1101, 0, 0, 0]));
        assert_eq!(call(0x8600_0000, [0; 3], true, &BARE), bits);
        assert_eq!(call(0xc600_0002, [0; 3], true, &BARE), Call::Answer(Regs::Two(4096, 1)));
    }

    #[test]
    fn every_bit_of_features_is_a_call_that_is_there() {
        assert_eq!(call_of(GuestKind::Split, guest::FEATURES, [0; 3], &BARE), UNKNOWN);
        for kind in KINDS.into_iter().filter(|kind| *kind != GuestKind::Split) {
            let Call::Answer(Regs::Four([bits, ..])) = call_of(kind, guest::FEATURES, [0; 3], &BARE) else {
                panic!()
            };
            for n in 0..64_u32 {
                let ids = [0x8600_0000 + n, 0xc600_0000 + n];
                let served = ids.into_iter().any(|id| call_of(kind, id, [0; 3], &BARE) != UNKNOWN);
                assert_eq!(bits & 1 << n != 0, served, "{kind:?} {n}");
            }
        }
    }

    #[test]
    fn an_unlisted_id_changes_x0_alone() {
        for id in [0x8000_0002, 0x8600_0001, 0xc600_000c, 0x8600_0007, 0xc500_0020, 0x8100_0010, 0x0400_0000]
        {
            assert_eq!(call(id, [0; 3], true, &FULL), UNKNOWN, "{id:#x}");
        }
        let mut x = [7; 31];
        x[0] = 1 << 32 | u64::from(smccc::VERSION);
        let caller = Caller { kind: GuestKind::Classic, ipa_bits: BITS };
        assert_eq!(decode(&x, caller, &FULL), UNKNOWN, "upper half");
        x[0] = 1 << 32 | u64::from(guest::HYP_MEMINFO);
        assert_eq!(info(&x, caller.kind), None, "upper half");
        Regs::One(smccc::NOT_SUPPORTED).put(&mut x);
        assert_eq!((x[0], &x[1..]), (u64::MAX, &[7; 30][..]));
    }

    #[test]
    fn the_sve_hint_does_not_hide_a_call() {
        assert_eq!(one(smccc::VERSION | smccc::HINT_SVE, 0, &BARE), 0x1_0002);
    }

    #[test]
    fn memory_calls_are_for_protected_vms_and_check_what_must_be_zero() {
        for (id, op) in [
            (guest::MEM_SHARE, MemoryOp::Share),
            (guest::MEM_UNSHARE, MemoryOp::Unshare),
            (guest::MEM_RELINQUISH, MemoryOp::Relinquish),
        ] {
            let wanted = Call::Memory(MemoryCall { op, ipa: 0x8000, nr: 1 });
            assert_eq!(call(id, [0x8000, 0, 0], true, &BARE), wanted, "0 granules mean 1");
            assert_eq!(call(id, [0x8000, 1, 0], true, &BARE), wanted);
            let invalid = Call::Answer(Regs::Two(smccc::INVALID_PARAMETER, 0));
            assert_eq!(call(id, [0x8000, 1, 1], true, &BARE), invalid);
            assert_eq!(call(id, [0x8000, 1, 0], false, &BARE), UNKNOWN);
        }
        for n in 0..3 {
            let mut args = [0; 3];
            args[n] = 1;
            let invalid = Call::Answer(Regs::One(smccc::INVALID_PARAMETER));
            assert_eq!(call(guest::HYP_MEMINFO, args, true, &BARE), invalid);
        }
    }

    /// G-07.
    #[test]
    fn guard_calls_check_their_arguments_before_anything_is_looked_at() {
        for kind in [GuestKind::Classic, GuestKind::NonProtected] {
            let call = |id, args| call_of(kind, id, args, &BARE);
            assert_eq!(call(guest::GUARD_INFO, [0; 3]), Call::Answer(Regs::Two(4096, 1)));
            assert_eq!(call(guest::GUARD_ENROLL, [0; 3]), Call::Guard(GuardCall::Enroll));
            for id in [guest::GUARD_INFO, guest::GUARD_ENROLL] {
                for args in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
                    assert_eq!(call(id, args), INVALID, "{id:#x} {args:?}");
                }
            }
            let (limit, page) = (1 << BITS, 0x0900_0000);
            for (id, op) in [(guest::GUARD_MAP, GuardOp::Map), (guest::GUARD_UNMAP, GuardOp::Unmap)] {
                let wanted = GuardCall::page(op, page, [0; 2], BITS).map(Call::Guard);
                assert_eq!(Some(call(id, [page, 0, 0])), wanted);
                for args in [[page + 1, 0, 0], [limit, 0, 0], [!0xfff, 0, 0], [page, 1, 0], [page, 0, 1]] {
                    assert_eq!(call(id, args), INVALID, "{id:#x} {args:x?}");
                }
            }
            for (id, op) in [(guest::RGUARD_MAP, GuardOp::Map), (guest::RGUARD_UNMAP, GuardOp::Unmap)] {
                let wanted = GuardCall::pages(op, page, 7, 0, BITS).map(Call::Guard);
                assert_eq!(Some(call(id, [page, 7, 0])), wanted);
                let last = limit - 0x1000;
                for args in [
                    [page, 0, 0],
                    [page, 1 << 52, 0],
                    [page + 8, 7, 0],
                    [last, 2, 0],
                    [page, u64::MAX, 0],
                    [page, 7, 1],
                ] {
                    assert_eq!(call(id, args), NOTHING_DONE, "{id:#x} {args:x?}");
                }
            }
        }
    }

    #[test]
    fn g_07_a_vm_with_split_ipa_has_no_guard_calls() {
        for id in super::GUARD {
            for args in [[0; 3], [0x0900_0000, 0, 0], [1; 3]] {
                assert_eq!(call_of(GuestKind::Split, id, args, &BARE), UNKNOWN, "{id:#x}");
            }
        }
    }

    #[test]
    fn workarounds_are_what_firmware_has() {
        let ids = [smccc::ARCH_WORKAROUND_1, smccc::ARCH_WORKAROUND_2, smccc::ARCH_WORKAROUND_3];
        for (id, answer) in ids.into_iter().zip([0, 1, 0]) {
            assert_eq!(one(smccc::ARCH_FEATURES, u64::from(id), &FULL), answer);
            assert_eq!(one(smccc::ARCH_FEATURES, u64::from(id), &BARE), smccc::NOT_SUPPORTED);
            let wanted = if answer == 0 { Call::Workaround(id) } else { UNKNOWN };
            assert_eq!(call(id, [0; 3], true, &FULL), wanted);
            assert_eq!(call(id, [0; 3], true, &BARE), UNKNOWN);
        }
        assert_eq!(one(smccc::ARCH_FEATURES, u64::MAX, &FULL), smccc::NOT_SUPPORTED);
    }

    #[test]
    fn the_generator_is_there_or_not_at_all() {
        for id in [trng::VERSION, trng::FEATURES, trng::GET_UUID, trng::RND32, trng::RND64] {
            assert_eq!(call(id, [1, 0, 0], true, &BARE), UNKNOWN);
            assert_eq!(one(trng::FEATURES, u64::from(id), &FULL), 0);
        }
        assert_eq!(one(trng::VERSION, 0, &FULL), 0x1_0000);
        assert_eq!(one(trng::FEATURES, 0x8400_0054, &FULL), smccc::NOT_SUPPORTED);
        for (id, most) in [(trng::RND32, 96), (trng::RND64, 192)] {
            for bits in [0, most + 1, u64::MAX, 1 << 32 | 1] {
                assert_eq!(one(id, bits, &FULL), trng::INVALID_PARAMETERS);
            }
            for bits in [1, most] {
                assert!(matches!(call(id, [bits, 0, 0], true, &FULL), Call::Random { .. }));
            }
        }
    }

    #[test]
    fn entropy_fills_from_the_last_register_and_no_bit_more() {
        let words = [u64::MAX; 3];
        for bits in 1..=192_u32 {
            let Regs::Four([0, x1, x2, x3]) = random_regs(bits, true, words) else { panic!() };
            assert_eq!(x1.count_ones() + x2.count_ones() + x3.count_ones(), bits);
            assert_eq!(x3.trailing_ones(), bits.min(64));
            assert!(x1 == 0 || x2 == u64::MAX);
        }
        for bits in 1..=96_u32 {
            let Regs::Four([0, x1, x2, x3]) = random_regs(bits, false, words) else { panic!() };
            assert_eq!(x1.count_ones() + x2.count_ones() + x3.count_ones(), bits);
            assert!([x1, x2, x3].iter().all(|x| x >> 32 == 0));
        }
    }
}
