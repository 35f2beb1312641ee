//! Random calls on the real implementation: checker, specification and abstraction function agree
//! after each one, whatever the arguments.
#![allow(clippy::arithmetic_side_effects, reason = "small numbers of a test")]

use abi::HostFn;
use hyp::spec::model::Call;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::{FailurePersistence, FileFailurePersistence};
use testkit::campaign::Campaign;
use testkit::features::{CORTEX_A72, MAX};
use testkit::{Judged, Setup};

/// 16 MiB with a hole in its middle that no 2 MiB block can cross.
fn setup(features: hyp::hw::CpuFeatures) -> Setup {
    Setup { pages: 4096, hole: Some((2500, 100)), table_pages: 24, ..Setup::new(features) }
}

/// First frame of RAM.
const RAM: u64 = 0x40000;

#[derive(Clone, Debug)]
enum Action {
    Call(Call),
    Touch(u64),
    Registers([u64; 3]),
}

/// Frames around everything that has an edge.
fn pfn() -> impl Strategy<Value = u64> {
    let edges = [0, 64, 119, 120, 511, 512, 1023, 1024, 2047, 2048, 2499, 2500, 2599, 2600, 4095, 4096];
    prop_oneof![
        6 => RAM + 512..RAM + 520,
        3 => RAM + 1020..RAM + 1028,
        3 => proptest::sample::select(edges.to_vec()).prop_map(|page| RAM + page),
        2 => RAM..RAM + 4100,
        1 => any::<u64>(),
    ]
}

fn nr() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 1_u64..6, 2 => Just(512), 1 => 1_u64..600, 1 => any::<u64>()]
}

fn action() -> impl Strategy<Value = Action> {
    let call = prop_oneof![
        pfn().prop_map(|pfn| Call::HostShareHyp { pfn }),
        pfn().prop_map(|pfn| Call::HostUnshareHyp { pfn }),
        pfn().prop_map(|pfn| Call::HypPin { pfn }),
        pfn().prop_map(|pfn| Call::HypUnpin { pfn }),
        (pfn(), nr()).prop_map(|(pfn, nr)| Call::HostDonateHyp { pfn, nr }),
        (pfn(), nr()).prop_map(|(pfn, nr)| Call::HypDonateHost { pfn, nr }),
    ];
    let id = prop_oneof![
        proptest::sample::select(HostFn::ALL.to_vec()).prop_map(|f| u64::from(f.id())),
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
    ];
    prop_oneof![
        12 => call.prop_map(Action::Call),
        4 => pfn().prop_map(Action::Touch),
        1 => (id, any::<u64>(), any::<u64>()).prop_map(|(x0, x1, x2)| Action::Registers([x0, x1, x2])),
    ]
}

fn play(judged: &Judged, actions: Vec<Action>) {
    for (action, cpu) in actions.into_iter().zip([0, 1].into_iter().cycle()) {
        match action {
            Action::Call(call) => _ = judged.call(cpu, call),
            Action::Touch(pfn) => judged.touch(cpu, pfn),
            Action::Registers(words) => {
                let mut regs = [0x5a5a; 18];
                regs[..3].copy_from_slice(&words);
                _ = judged.host_call(cpu, &mut regs);
            }
        }
        judged.settle();
    }
}

/// Every step is judged whole: fewer cases than usual, more with PROPTEST_CASES.
fn config() -> ProptestConfig {
    let failure_persistence: Option<Box<dyn FailurePersistence>> =
        Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions")));
    let config = ProptestConfig { failure_persistence, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: 40, ..config },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn calls_of_the_host_do_what_the_specification_says(
        actions in proptest::collection::vec(action(), 1..120),
        fwb in any::<bool>(),
    ) {
        play(&Judged::new(setup(if fwb { MAX } else { CORTEX_A72 })), actions);
    }
}

/// The first calls of the campaign (`campaign --calls N --seed S`), which is the same without end.
#[test]
fn a_short_campaign_of_host_and_vms_finds_no_difference() {
    let mut campaign = Campaign::new(1);
    while campaign.calls() < 4000 {
        campaign.step();
    }
    println!("{campaign}");
}
