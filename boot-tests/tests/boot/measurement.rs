//! What a realm on a real EL2 reads as its measurement is what the `measure` crate computes from the image and from
//! what the host shim's monitor does.

use abi::vm::VmFlags;
use guest_shim::protocol::realm::{ROUNDS, SAID_BYTES, VCPUS};
use guest_shim::protocol::{IMAGE, IPA_BITS, Payload, RAM_END, Start, VmKind, pattern};
use measure::{Algorithm, PAGE, Realm, State, hex};
use std::fs;
use xtask::images::Build;
use xtask::machine::{Host, Machine};
use xtask::protocol::Report;
use xtask::qemu::Qemu;
use xtask::run::{Limits, run};

/// The realm of scenario `guest_realm` with this image.
fn realm(image: &[u8]) -> Vec<u8> {
    let mut realm = Realm::new((VmFlags::PROTECTED | VmFlags::SPLIT_IPA).bits(), IPA_BITS);
    let start = Start { payload: Payload::Realm, kind: VmKind::Realm, argument: ROUNDS };
    for idx in 0..u64::from(VCPUS) {
        let (pc, x0) = if idx == 0 { (IMAGE, start.to_reg()) } else { (0, 0) };
        realm.vcpu(idx, pc, x0);
    }
    for (ipa, part) in (IMAGE..).step_by(PAGE).zip(image.chunks(PAGE)) {
        let mut page = [0; PAGE];
        page.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        realm.page(ipa, &page);
    }
    realm.memory(IMAGE, RAM_END, State::Ram);
    realm.finish()
}

pub(crate) fn a_realm_on_el2_reads_what_anyone_can_compute() {
    let images = Build { debug: false, features: &[] }.run().unwrap();
    let guest = fs::read(&images.guest.flat).unwrap();
    let host = Host { image: images.host.flat, args: "scenario=guest_realm semihosting".to_owned() };
    let machine = Machine {
        semihosting: true,
        host: Some(host),
        initrd: Some(images.guest.flat),
        ..Machine::new(images.hypervisor.flat)
    };
    let command = Qemu::find().unwrap().command(machine.args());
    let outcome = run(command, &Limits::seconds(60), |_| {}).unwrap();
    let verdict = Report::parse(&outcome.console).verdict("guest_realm");
    verdict.unwrap_or_else(|e| panic!("{e}\n{}", outcome.console));
    let read = |name: &str| {
        let word = format!("{name} measurement ");
        let all =
            outcome.console.lines().filter_map(|line| Some(line.split_once(&word)?.1.trim().to_owned()));
        all.collect::<Vec<_>>()
    };
    // On all CPUs and on one.
    let initial = hex(&realm(&guest));
    assert_eq!(read("initial"), [initial.clone(), initial]);
    let said: Vec<u8> =
        (0..8).flat_map(|n| pattern(n).to_le_bytes()).take(SAID_BYTES.try_into().unwrap()).collect();
    let extended = hex(&Algorithm::Sha256.extend(&[0; 32], &said));
    assert_eq!(read("extended"), [extended.clone(), extended]);
}
