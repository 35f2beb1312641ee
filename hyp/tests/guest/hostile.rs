//! A host that calls with anything: no call panics, and what the tables say stays consistent.

use crate::rig::{Rig, TestVm};
use abi::HostFn;
use abi::vm::NO_PAGE;
use hyp::hcall::HostRegs;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::{collection, sample};
use testkit::features::{CORTEX_A72, MAX};

/// First frame of RAM.
const RAM: u64 = 0x4_0000;

/// Any word, or one that means something to some call: a handle, a frame, a number, an address.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => any::<u64>(),
        4 => sample::select(vec![0x101, 0x102, 1, 2, 3]),
        3 => RAM..RAM + 1200,
        3 => 0_u64..10,
        1 => sample::select(vec![RAM + 0x200, 0x200, 511, 512, 513, 1 << 36, 1 << 48, NO_PAGE, 0x7000]),
        1 => Just(0x8000_0000),
        1 => Just(0x8_0000),
    ]
}

/// Registers of a call. A vCPU is loaded by chance alone: none of these VMs has a program to run.
fn call() -> impl Strategy<Value = [u64; 8]> {
    let function = sample::select(HostFn::ALL.to_vec());
    (function, any::<[u64; 7]>(), proptest::array::uniform7(word())).prop_map(|(function, wild, tame)| {
        let words = if function == HostFn::VcpuLoad { wild } else { tame };
        let mut regs = [0; 8];
        regs[0] = function.id().into();
        regs[1..].copy_from_slice(&words);
        regs
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("PROPTEST_CASES").is_some() { 1000 } else { 24 }))]

    #[test]
    fn no_registers_of_the_host_make_a_call_panic(
        calls in collection::vec(call(), 1..120),
        fwb in any::<bool>(),
    ) {
        let rig = Rig::on(if fwb { MAX } else { CORTEX_A72 });
        let _vms = [TestVm::new(&rig, true, 1), TestVm::active(&rig, false, 1), TestVm::split(&rig, 1)];
        for (n, words) in calls.into_iter().enumerate() {
            let mut regs: HostRegs = [0x5a5a; 18];
            regs[..8].copy_from_slice(&words);
            rig.dispatch(n % 2, &mut regs);
            let _ = rig.state();
        }
    }
}
