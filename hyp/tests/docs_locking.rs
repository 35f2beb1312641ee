//! docs/locking.md is held to the code: the ranks to `Rank`, and the locks of each call to those
//! that it takes on the simulated machine.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics says that it failed")]

use abi::vm::MtePolicy;
use hyp::addr::{Pfn, PfnRange};
use hyp::hw::Event;
use hyp::lock::Rank;
use hyp::pgtable::Access;
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Kind, Phase};
use testkit::features::NEOVERSE_N2;
use testkit::{Op, Setup, VmSetup, Vms, World};

const DOC: &str = include_str!("../../docs/locking.md");

/// The rows of the table under `heading`, cell by cell.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let section = DOC.split_once(&format!("\n{heading}\n")).unwrap().1;
    let section = section.split("\n#").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The name of a rank without the VM or pool it is about.
fn name(rank: Rank) -> String {
    format!("{rank:?}").split('(').next().unwrap().to_owned()
}

#[test]
fn the_ranks_of_the_document_are_those_of_the_code() {
    let ranks = [
        Rank::VmTable,
        Rank::Vm(0),
        Rank::Snapshot,
        Rank::HostS2,
        Rank::HypS1,
        Rank::GuestS2(0),
        Rank::Pool(0),
    ];
    assert!(ranks.is_sorted(), "listed in the order of acquisition");
    let real: Vec<_> = ranks.iter().map(|&rank| (rank.order().to_string(), name(rank))).collect();
    let listed: Vec<_> =
        rows("## Ranks").iter().map(|row| (row[0].to_owned(), row[1].trim_matches('`').to_owned())).collect();
    assert_eq!(listed, real);
    assert!(Rank::GuestS2(1) < Rank::GuestS2(2), "two VMs: by handle");
}

/// The locks that CPU 0 takes in `f`, by rank.
fn locks(world: &World, f: impl FnOnce()) -> String {
    world.sim.clear_trace();
    f();
    let taken = world.sim.trace().into_iter().filter_map(|record| match record.op {
        Op::Event(Event::Lock { rank, held: true }) => Some(rank),
        _ => None,
    });
    let mut taken: Vec<Rank> = taken.collect();
    taken.sort_unstable();
    taken.dedup();
    taken.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

#[test]
fn the_calls_of_the_document_take_the_locks_that_it_says() {
    let world = Setup::new(NEOVERSE_N2).start();
    let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
    let mut vms = Vms::default();
    vms.create(&world, 0, VmSetup::new(1, Kind::Classic, 400, 8));
    vms.create(&world, 0, VmSetup::new(2, Kind::NonProtected, 420, 8));
    vms.create(&world, 0, VmSetup::new(3, Kind::Split, 440, 8));
    let lazy = VmSetup { mte: MtePolicy::Lazy, ..VmSetup::new(4, Kind::Classic, 460, 8) };
    vms.create(&world, 0, lazy);
    let upper = 1 << 19;
    let (page, pages) = (world.page(500), PfnRange::one(world.page(501)));
    let call = |call: Call| {
        locks(&world, || {
            vms.call(&world, 0, call).unwrap();
        })
    };
    let (pfn, other) = (world.page(1000).raw(), world.page(1001).raw());
    let mut pin = None;
    let frames = |f: fn(u64, u64, u64) -> Call| call(f(1, 7, 1));
    let take = |gfn: u64| (gfn << 12, (gfn + 1) << 12);
    let real = [
        ("host_share_hyp", locks(&world, || hyp.host_share_hyp(cpu, page).unwrap())),
        ("hyp_pin", locks(&world, || pin = hyp.hyp_pin(cpu, page).ok())),
        ("hyp_unpin", locks(&world, || hyp.hyp_unpin(cpu, pin.take().unwrap()))),
        ("host_unshare_hyp", locks(&world, || hyp.host_unshare_hyp(cpu, page).unwrap())),
        ("host_donate_hyp", locks(&world, || hyp.host_donate_hyp(cpu, pages).unwrap())),
        ("hyp_donate_host", locks(&world, || hyp.hyp_donate_host(cpu, pages).unwrap())),
        ("host_donate_guest", call(Call::HostDonateGuest { handle: 1, gfn: 7, pfn, order: 0 })),
        (
            "host_donate_guest, a block",
            call(Call::HostDonateGuest { handle: 1, gfn: 512, pfn: world.page(1024).raw(), order: 9 }),
        ),
        ("host_upgrade_guest", {
            let (old, new) = (world.page(1003).raw(), world.page(1004).raw());
            vms.call(&world, 0, Call::HostDonateNoTag { handle: 4, gfn: 7, pfn: old, order: 0 }).unwrap();
            call(Call::HostUpgradeGuest { handle: 4, gfn: 7, new })
        }),
        ("host_share_guest", call(Call::HostShareGuest { handle: 2, gfn: 7, pfn: other, order: 0, prot: 7 })),
        ("host_unshare_guest", call(Call::HostUnshareGuest { handle: 2, gfn: 7, nr: 1 })),
        ("host_init_ripas", {
            vms.find(3).unwrap().enter(Phase::New);
            let done = call(Call::HostInitRipas { handle: 3, base: 0, top: 4096 });
            vms.find(3).unwrap().enter(Phase::Active);
            done
        }),
        ("host_apply_ram", call(Call::HostApplyRam { handle: 3, base: 0, top: 8192, destroyed: 0 })),
        ("host_apply_empty", call(Call::HostApplyEmpty { handle: 3, base: 0, top: 4096, kept: NONE })),
        (
            "host_share_unprotected",
            call(Call::HostShareUnprotected { handle: 3, gfn: upper, pfn: other, order: 0, write: 1 }),
        ),
        (
            "host_unshare_unprotected",
            call(Call::HostUnshareUnprotected { handle: 3, gfn: upper, nr: 1, first: upper, done: 1 }),
        ),
        ("guest_share_host", frames(|handle, gfn, nr| Call::GuestShareHost { handle, gfn, nr })),
        ("guest_unshare_host", frames(|handle, gfn, nr| Call::GuestUnshareHost { handle, gfn, nr })),
        ("guest_relinquish_host", frames(|handle, gfn, nr| Call::GuestRelinquishHost { handle, gfn, nr })),
        ("host_reclaim_guest", {
            let (base, top) = take(520);
            call(Call::HostReclaimGuest { handle: 1, base, top, refill: NONE, kept: NONE })
        }),
        ("vm_topup", {
            world.sim.memory().write(other, 0, u64::MAX);
            call(Call::VmTopup { handle: 1, pfn: other, nr: 1 })
        }),
        ("a fault of the host", {
            let fresh = Pfn::new(0x9_0000).unwrap();
            locks(&world, || assert!(world.touch(0, fresh, Access::R)))
        }),
        ("host_reclaim_dying_guest", {
            vms.call(&world, 0, Call::VmTeardownStart { handle: 1 }).unwrap();
            let (base, top) = take(521);
            call(Call::HostReclaimDyingGuest { handle: 1, base, top, kept: NONE })
        }),
    ];
    let mut real: Vec<_> = real.map(|(name, locks)| (name.to_owned(), locks)).to_vec();
    let mut listed: Vec<_> = rows("## Which call takes which")
        .iter()
        .map(|row| (row[0].replace('`', ""), row[1].to_owned()))
        .collect();
    real.sort();
    listed.sort();
    assert_eq!(listed, real);
}
