//! Calls of a guest with split IPA on SMC, decoded: the Realm Services Interface, PSCI and SMCCC, and
//! nothing else. docs/ipa-state.md has them.
//!
//! Pure. A call that is decoded is well-formed; what it comes to depends on the guest's table.
#![forbid(unsafe_code)]

use super::calls::{Call, Regs, Services, UNKNOWN, standard};
use crate::addr::{IpaRange, PAGE_SIZE};
use crate::ipa_state::{ExtensibleIndex, Extension, MeasurementIndex, Request, Want};
use crate::mem_protect::OwnWords;
use abi::{FunctionId, rsi};

/// A call about the guest's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsiCall {
    /// IPA_STATE_SET.
    Set(Request),
    /// IPA_STATE_GET of this range.
    Get(IpaRange),
    /// REALM_CONFIG into this page.
    Config(IpaRange),
    /// MEASUREMENT_READ of this number.
    Measurement(MeasurementIndex),
    /// MEASUREMENT_EXTEND.
    Extend(ExtensibleIndex, Extension),
    /// HOST_CALL with the structure in these words.
    Host(OwnWords),
}

const INPUT: Call = Call::Answer(Regs::One(rsi::ERROR_INPUT));

/// Decodes the call in `x` (x0..x30) of a VM with `ipa_bits` bits of IPA.
#[must_use]
pub fn decode(x: &[u64; 31], ipa_bits: u32, services: &Services) -> Call {
    let &[x0, x1, x2, x3, x4, ..] = x;
    let Some(id) = FunctionId::from_reg(x0).filter(|id| id.is_fast()) else { return UNKNOWN };
    match id.raw() {
        rsi::VERSION => {
            let status = if x1 == rsi::VERSION_1_0 { rsi::SUCCESS } else { rsi::ERROR_INPUT };
            Call::Answer(Regs::Three([status, rsi::VERSION_1_0, rsi::VERSION_1_0]))
        }
        rsi::FEATURES => Call::Answer(Regs::Two(rsi::SUCCESS, 0)),
        // A token that nobody signed would be worse than none.
        rsi::ATTESTATION_TOKEN_INIT | rsi::ATTESTATION_TOKEN_CONTINUE => {
            Call::Answer(Regs::One(rsi::ERROR_STATE))
        }
        rsi::MEASUREMENT_READ => {
            MeasurementIndex::new(x1).map_or(INPUT, |index| Call::Rsi(RsiCall::Measurement(index)))
        }
        rsi::MEASUREMENT_EXTEND => {
            let &[_, _, _, a, b, c, d, e, f, g, h, ..] = x;
            match (ExtensibleIndex::new(x1), Extension::new([a, b, c, d, e, f, g, h], x2)) {
                (Some(index), Some(by)) => Call::Rsi(RsiCall::Extend(index, by)),
                _ => INPUT,
            }
        }
        rsi::REALM_CONFIG => {
            let page = private(x1, x1.wrapping_add(PAGE_SIZE), ipa_bits);
            page.map_or(INPUT, |page| Call::Rsi(RsiCall::Config(page)))
        }
        rsi::IPA_STATE_SET => {
            let want = match x3 {
                rsi::EMPTY => Want::Empty,
                rsi::RAM => Want::Ram { destroyed: x4 & rsi::CHANGE_DESTROYED != 0 },
                _ => return INPUT,
            };
            match private(x1, x2, ipa_bits) {
                Some(range) if x4 & !rsi::CHANGE_DESTROYED == 0 => {
                    Call::Rsi(RsiCall::Set(Request::new(range, want)))
                }
                _ => INPUT,
            }
        }
        rsi::IPA_STATE_GET => private(x1, x2, ipa_bits).map_or(INPUT, |range| Call::Rsi(RsiCall::Get(range))),
        rsi::HOST_CALL => {
            let words = OwnWords::new(x1, rsi::HOST_CALL_BYTES, private_bits(ipa_bits));
            words.map_or(INPUT, |words| Call::Rsi(RsiCall::Host(words)))
        }
        id => standard(id, [x1, x2, x3], services).unwrap_or(UNKNOWN),
    }
}

/// A range of the half that the VM keeps to itself.
fn private(base: u64, top: u64, ipa_bits: u32) -> Option<IpaRange> {
    IpaRange::new(base, top, private_bits(ipa_bits)).ok()
}

/// Bits of the half that the VM keeps to itself.
const fn private_bits(ipa_bits: u32) -> u32 {
    ipa_bits.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::super::calls::{self, Caller};
    use super::{Call, INPUT, IpaRange, Regs, Request, RsiCall, Services, UNKNOWN, Want, decode, rsi};
    use crate::mem_protect::GuestKind;
    use abi::{guest, psci, smccc};
    use std::vec::Vec;

    const BITS: u32 = 33;
    const HALF: u64 = 1 << 32;
    const FULL: Services = Services { workarounds: [Some(0); 3], random: true };

    fn call(id: u32, args: [u64; 4]) -> Call {
        let mut x = [7; 31];
        x[0] = id.into();
        x[1..5].copy_from_slice(&args);
        decode(&x, BITS, &FULL)
    }

    fn range(base: u64, top: u64) -> IpaRange {
        IpaRange::new(base, top, BITS).unwrap()
    }

    #[test]
    fn version_1_0_is_served_and_no_other() {
        let answer = |status| Call::Answer(Regs::Three([status, 0x1_0000, 0x1_0000]));
        assert_eq!(call(rsi::VERSION, [0x1_0000, 0, 0, 0]), answer(0));
        for other in [0, 1, 0x1_0001, 0x2_0000, 0xffff, 1 << 32 | 0x1_0000, u64::MAX] {
            assert_eq!(call(rsi::VERSION, [other, 0, 0, 0]), answer(rsi::ERROR_INPUT), "{other:#x}");
        }
        assert_eq!(call(rsi::FEATURES, [0; 4]), Call::Answer(Regs::Two(0, 0)));
        for id in [rsi::ATTESTATION_TOKEN_INIT, rsi::ATTESTATION_TOKEN_CONTINUE] {
            assert_eq!(call(id, [1; 4]), Call::Answer(Regs::One(rsi::ERROR_STATE)), "no token is made up");
        }
    }

    #[test]
    fn r_18_what_is_malformed_is_refused_before_anything_is_looked_at() {
        let set = |args| call(rsi::IPA_STATE_SET, args);
        let wanted = |base, top, want| Call::Rsi(RsiCall::Set(Request::new(range(base, top), want)));
        assert_eq!(set([0x1000, 0x3000, 0, 1]), wanted(0x1000, 0x3000, Want::Empty));
        assert_eq!(set([0, HALF, 1, 0]), wanted(0, HALF, Want::Ram { destroyed: false }));
        assert_eq!(set([0, HALF, 1, 1]), wanted(0, HALF, Want::Ram { destroyed: true }));
        for args in [
            [0x1000, 0x3000, 2, 0],
            [0x1000, 0x3000, 3, 0],
            [0x1000, 0x3000, u64::MAX, 0],
            [0x1000, 0x3000, 1 << 32 | 1, 0],
            [0x1000, 0x3000, 1, 2],
            [0x1000, 0x3000, 1, 1 << 63],
        ] {
            assert_eq!(set(args), INPUT, "{args:x?}");
        }
        let wrong = [
            (0x1001, 0x3000),
            (0x1000, 0x3001),
            (0x1000, 0x1000),
            (0x3000, 0x1000),
            (0x1000, HALF + 0x1000),
            (HALF, HALF + 0x1000),
            (0x1000, u64::MAX),
            (!0xfff, 0),
        ];
        for (base, top) in wrong {
            assert_eq!(set([base, top, 1, 0]), INPUT, "{base:#x} {top:#x}");
            assert_eq!(call(rsi::IPA_STATE_GET, [base, top, 0, 0]), INPUT, "{base:#x} {top:#x}");
        }
        let get = call(rsi::IPA_STATE_GET, [0, HALF, 9, 9]);
        assert_eq!(get, Call::Rsi(RsiCall::Get(range(0, HALF))), "x3 and x4 are no arguments");
    }

    #[test]
    fn the_configuration_goes_to_a_private_page() {
        for (x1, page) in [(0, 0), (0x5000, 0x5000), (HALF - 0x1000, HALF - 0x1000)] {
            let want = Call::Rsi(RsiCall::Config(range(page, page + 0x1000)));
            assert_eq!(call(rsi::REALM_CONFIG, [x1, 7, 7, 7]), want);
        }
        for x1 in [1, 0x5008, HALF, HALF + 0x1000, 1 << BITS, !0xfff, u64::MAX] {
            assert_eq!(call(rsi::REALM_CONFIG, [x1, 0, 0, 0]), INPUT, "{x1:#x}");
        }
    }

    #[test]
    fn what_a_host_call_names_is_aligned_and_private() {
        for (x1, page, first) in [(0, 0, 0), (0x5100, 0x5000, 32), (HALF - 0x100, HALF - 0x1000, 480)] {
            let Call::Rsi(RsiCall::Host(words)) = call(rsi::HOST_CALL, [x1, 7, 7, 7]) else {
                panic!("{x1:#x}")
            };
            assert_eq!(words.page(), range(page, page + 0x1000));
            assert_eq!(words.indices(), first..first + 32);
        }
        for x1 in [1, 0x80, 0x5180, HALF, HALF + 0x100, 1 << BITS, !0xff, u64::MAX] {
            assert_eq!(call(rsi::HOST_CALL, [x1, 0, 0, 0]), INPUT, "{x1:#x}");
        }
    }

    /// P-24, and what keeps Linux from taking EL2 for two things at once.
    #[test]
    fn p_24_a_vm_has_one_personality() {
        let hvc = [
            guest::VENDOR_UID,
            guest::FEATURES,
            guest::HYP_MEMINFO,
            guest::MEM_SHARE,
            guest::MEM_UNSHARE,
            guest::MEM_RELINQUISH,
            guest::GUARD_INFO,
            guest::GUARD_MAP,
            guest::trng::VERSION,
        ];
        for id in hvc {
            assert_eq!(call(id, [0; 4]), UNKNOWN, "{id:#x} by SMC");
        }
        let realm: Vec<u32> = (0xc400_0190..=0xc400_01af).collect();
        let all = hvc.into_iter().chain(realm.iter().copied()).chain([psci::VERSION, smccc::VERSION]);
        for id in all {
            let mut x = [0; 31];
            x[0] = id.into();
            let by_hvc = |kind| calls::decode(&x, Caller { kind, ipa_bits: BITS }, &FULL);
            assert_eq!(by_hvc(GuestKind::Split), UNKNOWN, "{id:#x} by HVC");
            if realm.contains(&id) {
                for kind in [GuestKind::Classic, GuestKind::NonProtected] {
                    assert_eq!(by_hvc(kind), UNKNOWN, "{id:#x} of {kind:?}");
                }
            }
        }
    }

    #[test]
    fn psci_and_smccc_are_there_on_smc() {
        assert_eq!(call(psci::CPU_ON_64, [1, 2, 3, 4]), Call::Psci(psci::CPU_ON_64, [1, 2, 3]));
        assert_eq!(call(smccc::VERSION, [0; 4]), Call::Answer(Regs::One(smccc::VERSION_1_2)));
        assert_eq!(call(smccc::ARCH_WORKAROUND_1, [0; 4]), Call::Workaround(smccc::ARCH_WORKAROUND_1));
        assert_eq!(call(smccc::ARCH_SOC_ID, [0; 4]), UNKNOWN);
        // Not served: an honest -1.
        for id in [0xc400_019a_u32, 0xc400_018f, 0x8400_0190] {
            assert_eq!(call(id, [0; 4]), UNKNOWN, "{id:#x}");
        }
        let mut x = [0; 31];
        x[0] = 1 << 32 | u64::from(rsi::VERSION);
        assert_eq!(decode(&x, BITS, &FULL), UNKNOWN);
    }
}
