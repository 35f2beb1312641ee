//! Random calls of a hostile host, each held against the specification.

use hyp::hcall::dispatch;
use hyp::pgtable::Access;
use hyp::spec::model::{Call, State};
use proptest::collection;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest};
use testkit::features::MATRIX;
use testkit::{Setup, World};

#[derive(Clone, Copy, Debug)]
enum Step {
    Share(u64),
    Unshare(u64),
    Lend(u64, u64),
    TakeBack(u64, u64),
    Touch(u64, Access),
}

/// Pages near each other, near the edges of what is whose, and anywhere.
fn pfn() -> impl Strategy<Value = u64> {
    let ram = 0x4_0000_u64;
    prop_oneof![
        8 => ram + 500..ram + 530,
        2 => ram + 150..ram + 170,
        2 => ram + 1000..ram + 2112,
        1 => ram + 1530..ram + 1610,
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let nr = || prop_oneof![6 => 1_u64..6, 2 => 1_u64..=512, 1 => any::<u64>()];
    let access = prop_oneof![Just(Access::R), Just(Access::W), Just(Access::X)];
    prop_oneof![
        pfn().prop_map(Step::Share),
        pfn().prop_map(Step::Unshare),
        (pfn(), nr()).prop_map(|(pfn, nr)| Step::Lend(pfn, nr)),
        (pfn(), nr()).prop_map(|(pfn, nr)| Step::TakeBack(pfn, nr)),
        (pfn(), access).prop_map(|(pfn, access)| Step::Touch(pfn, access)),
    ]
}

fn make(world: &World, cpu: usize, f: abi::HostFn, x1: u64, x2: u64) -> Result<[u64; 2], abi::Errno> {
    let mut regs = [0; 18];
    regs[..3].copy_from_slice(&[f.id().into(), x1, x2]);
    dispatch(&world.hyp, &world.cpus[cpu], &mut regs);
    abi::Errno::from_reg(regs[1]).expect("an answer is 0 or an errno").map(|()| [regs[2], regs[3]])
}

/// Every step is compared whole: fewer cases than usual, more with PROPTEST_CASES.
fn config() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(64),
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_the_host_calls_the_machine_does_what_the_specification_says(
        row in 0..MATRIX.len(),
        steps in collection::vec((0..2_usize, step()), 1..30),
    ) {
        let setup = Setup { pages: 2112, hole: Some((1536, 64)), table_pages: 24, ..Setup::new(MATRIX[row].1) };
        let world = setup.start();
        let mut spec = world.state(&[]);
        let mut after = Box::new(State::empty());
        for (cpu, step) in steps {
            let (call, got) = match step {
                Step::Share(pfn) =>
                    (Call::HostShareHyp { pfn }, make(&world, cpu, abi::HostFn::HostShareHyp, pfn, 0)),
                Step::Unshare(pfn) =>
                    (Call::HostUnshareHyp { pfn }, make(&world, cpu, abi::HostFn::HostUnshareHyp, pfn, 0)),
                Step::Lend(pfn, nr) =>
                    (Call::HostDonateHyp { pfn, nr }, make(&world, cpu, abi::HostFn::HostDonateHyp, pfn, nr)),
                Step::TakeBack(pfn, nr) =>
                    (Call::HypDonateHost { pfn, nr }, make(&world, cpu, abi::HostFn::HypDonateHost, pfn, nr)),
                Step::Touch(pfn, access) => {
                    if let Ok(page) = hyp::addr::Pfn::new(pfn % (1 << 28)) {
                        let _ = world.touch(cpu, page, access);
                    }
                    prop_assert!(*world.state(&[]) == *spec, "an access changed who owns what");
                    continue;
                }
            };
            if let Err(refusal) = spec.accept(call, got, &mut after) {
                return Err(proptest::test_runner::TestCaseError::fail(refusal.to_string()));
            }
            spec.clone_from(&after);
            let real = world.state(&[]);
            prop_assert!(*real == *spec, "{call:x?} left another state than the specification");
        }
    }
}
