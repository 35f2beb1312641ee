//! Every fault site fails in every call that passes it: the call answers the errno of the site,
//! nothing changed hands, and the next call does what an undisturbed one does.

use crate::rig::{Answer, BITS, PC, Rig};
use abi::HostFn;
use abi::fault::Site;
use abi::inspect::Figure;
use abi::vm::{MtePolicy, NO_PAGE, VmFlags};
use std::collections::BTreeSet;

/// Calls that make a VM and fill it, one of each kind that has a step that can fail.
///
/// Two machines that start alike and are called alike answer alike, so a script is a function of
/// the machine.
fn script(rig: &Rig, protected: bool, call: &mut dyn FnMut(HostFn, &[u64]) -> Answer) {
    let reserve = if protected { rig.pages(1) } else { NO_PAGE };
    let flags = if protected { VmFlags::PROTECTED | MtePolicy::Lazy.flags() } else { VmFlags::empty() };
    let args = [flags.bits(), BITS, rig.pages(1), 1, rig.pages(1), 1, reserve];
    let [handle, _] = call(HostFn::VmCreate, &args).unwrap();
    let record = rig.pages(1);
    call(HostFn::HostShareHyp, &[record]).unwrap();
    call(HostFn::VcpuCreate, &[handle, 0, rig.pages(1), 1, record, PC, 0]).unwrap();
    for nr in [1, 6] {
        let first = rig.pages(nr);
        for page in first..first + nr {
            rig.fill(page, if page + 1 < first + nr { page + 1 } else { NO_PAGE });
        }
        // A page that is not the first ends the call early, with success: the rest is asked for.
        let (mut head, mut left) = (first, nr);
        while left > 0 {
            let [taken, _] = call(HostFn::VmTopup, &[handle, head, left]).unwrap();
            (head, left) = (head + taken, left - taken);
        }
    }
    if protected {
        call(HostFn::VmPopulate, &[handle, 0x1000, rig.filled(7), 0]).unwrap();
    }
    call(HostFn::VmFinalise, &[handle]).unwrap();
    let give = if protected { HostFn::GuestDonate } else { HostFn::GuestShare };
    for (gfn, order) in [(0x2000, 0), (0x4_0000, 9)] {
        call(give, &[handle, gfn, rig.pages(1 << order), order, 7]).unwrap();
    }
    call(HostFn::HostDonateHyp, &[rig.pages(3), 3]).unwrap();
    if protected {
        const NO_TAG: u64 = 15;
        call(HostFn::GuestDonate, &[handle, 0x4_0200, rig.pages(512), 9, NO_TAG]).unwrap();
        call(HostFn::MteUpgrade, &[handle, 0x4_0207, rig.pages(1)]).unwrap();
        let (base, top) = (0x2000 << 12, 0x2001 << 12);
        call(HostFn::GuestReclaim, &[handle, base, top, NO_PAGE]).unwrap();
    }
}

fn ownership(rig: &Rig) -> Vec<(Figure, u64)> {
    rig.audit().ownership().collect()
}

#[test]
fn every_site_fails_every_call_that_passes_it_and_nothing_changes() {
    let mut reached = BTreeSet::new();
    for protected in [true, false] {
        // What each call passes and answers when nothing fails.
        let mut wanted = Vec::new();
        let calm = Rig::new();
        script(&calm, protected, &mut |function, args| {
            calm.world.hyp.faults().clear();
            let answer = calm.call(function, args);
            let hits = Site::ALL.map(|site| calm.world.hyp.faults().stats(site).hits);
            wanted.push((function, hits, answer));
            answer
        });

        let rig = Rig::new();
        let faults = rig.world.hyp.faults();
        let mut wanted = wanted.into_iter();
        script(&rig, protected, &mut |function, args| {
            let (same, hits, undisturbed) = wanted.next().expect("as many calls as in the calm");
            assert_eq!(same, function);
            for (site, hits) in Site::ALL.into_iter().zip(hits) {
                for nth in 1..=hits {
                    if function == HostFn::VmTopup && nth > hits / args[2] {
                        // Not the first page: see below.
                        continue;
                    }
                    reached.insert(site.name());
                    let before = ownership(&rig);
                    faults.clear();
                    faults.arm(site, nth);
                    rig.judge(false);
                    let got = rig.call(function, args).map_err(|(e, _)| e);
                    rig.judge(true);
                    assert_eq!(got, Err(site.errno()), "{function:?}: pass {nth} of {site:?}");
                    assert_eq!(faults.stats(site).fired, 1);
                    assert_eq!(ownership(&rig), before, "{function:?}: pass {nth} of {site:?}");
                }
            }
            faults.clear();
            let answer = rig.call(function, args);
            assert_eq!(answer, undisturbed, "{function:?} after its failures");
            answer
        });
        assert_eq!(wanted.count(), 0);
        assert_eq!(ownership(&rig), ownership(&calm), "both came to the same end");
    }
    // A chain does not survive a snapshot that fails: `snapshot.rs` has a script of its own; `faults_turn.rs` has cases
    // for what guests call.
    let of_guests = [Site::GuardTable, Site::RipasTable, Site::LeaveSplit];
    let elsewhere = |site: &&Site| !crate::snapshot::SITES.contains(site) && !of_guests.contains(site);
    let all: BTreeSet<_> = Site::ALL.iter().filter(elsewhere).map(|site| site.name()).collect();
    assert_eq!(reached, all, "a site that nothing reaches is no site");
}

#[test]
fn a_chain_of_which_a_later_page_fails_is_taken_up_to_there() {
    for (site, nth) in [(Site::TopupStep, 3), (Site::DonateCheck, 2), (Site::HostPrepare, 5)] {
        let rig = Rig::new();
        let vm = crate::rig::TestVm::new(&rig, true, 0);
        let first = rig.pages(6);
        for page in first..first + 6 {
            rig.fill(page, if page < first + 5 { page + 1 } else { NO_PAGE });
        }
        let cached = rig.audit().get(Figure::VmCache);
        rig.world.hyp.faults().clear();
        rig.world.hyp.faults().arm(site, nth);
        assert_eq!(rig.ok(HostFn::VmTopup, &[vm.handle, first, 6]), nth - 1, "{site:?}");
        assert_eq!(rig.audit().get(Figure::VmCache), cached + nth - 1);
        rig.world.hyp.faults().clear();
        let rest = 6 - (nth - 1);
        assert_eq!(rig.ok(HostFn::VmTopup, &[vm.handle, first + nth - 1, rest]), rest);
    }
}
