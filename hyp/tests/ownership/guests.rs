//! Pages that go to guests and come back: one by one, in blocks, by force.

use abi::Errno::{self, E2big, Ebusy, Eexist, Ehwpoison, Einval, Enoent, Enomem, Eperm, Erange};
use abi::vm::MtePolicy;
use hyp::addr::{IpaRange, Pfn};
use hyp::mem_protect::{Contents, GuestPages};
use hyp::pgtable::{Access, Prot};
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Hold, Kind, Page, Phase, Slot, State, Vm};
use testkit::features::{CORTEX_A72, MATRIX, MAX, strict};
use testkit::{Setup, TestVm, VmSetup, Vms, World};

const CLASSIC: u64 = 1;
const PLAIN: u64 = 2;
const SPLIT: u64 = 3;

/// A world with a VM of each kind, and the specification's idea of it.
struct Rig {
    world: World,
    vms: Vms,
}

impl Rig {
    fn new(setup: Setup, mte: MtePolicy) -> Self {
        let world = setup.start();
        let mut vms = Vms::default();
        let vm = |handle, kind| Vm::new(handle, kind, 32, Phase::Active);
        for (n, (handle, kind)) in
            [(1, Kind::Classic), (2, Kind::NonProtected), (3, Kind::Split)].into_iter().enumerate()
        {
            let first = 400 + 20 * n as u64;
            vms.create(&world, 0, VmSetup { vm: vm(handle, kind), mte, cache: 12, first });
        }
        Self { world, vms }
    }

    fn state(&self) -> Box<State<{ testkit::world::RUNS }>> {
        self.world.state(&self.vms.roots())
    }

    /// Makes `call` and holds it against the specification.
    #[track_caller]
    fn call(&self, call: Call) -> Result<u64, Errno> {
        let before = self.state();
        let got = self.vms.call(&self.world, 0, call);
        let real = self.state();
        let mut after = Box::new(State::empty());
        let mut complaint = None;
        for call in call.readings(got) {
            match before.accept(call, got, &mut after) {
                Err(refusal) => complaint = Some(refusal.to_string()),
                Ok(()) => match after.differences(&real).next() {
                    Some(difference) => complaint = Some(format!("{call:x?}: {difference}")),
                    None => return got.map(|[word, _]| word),
                },
            }
        }
        panic!("{}", complaint.unwrap_or_default());
    }

    fn donate(&self, gfn: u64, nth: u64, order: u64) -> Result<u64, Errno> {
        let pfn = self.world.page(nth).raw();
        self.call(Call::HostDonateGuest { handle: CLASSIC, gfn, pfn, order })
    }

    fn share(&self, gfn: u64, nth: u64, order: u64) -> Result<u64, Errno> {
        let pfn = self.world.page(nth).raw();
        self.call(Call::HostShareGuest { handle: PLAIN, gfn, pfn, order, prot: 7 })
    }

    fn reclaim(&self, base: u64, top: u64) -> Result<u64, Errno> {
        let (base, top) = (base << 12, top << 12);
        let call = Call::HostReclaimGuest { handle: CLASSIC, base, top, refill: NONE, kept: NONE };
        self.call(call).map(|end| end >> 12)
    }

    fn vm(&self, handle: u64) -> &TestVm {
        self.vms.find(handle).unwrap()
    }

    fn slot(&self, handle: u64, gfn: u64) -> Option<Slot> {
        self.state().slot(u16::try_from(handle).unwrap(), gfn)
    }

    fn fill(&self, nth: u64) {
        let pfn = self.world.page(nth);
        assert!(self.world.touch(1, pfn, Access::W));
        for word in 0..512 {
            self.world.sim.store(
                self.world.hyp.host_context(),
                pfn.base().raw() + word * 8,
                true,
                0x5ec2_e700,
            );
        }
    }

    /// What the guest finds at the first word of `gfn`.
    fn load(&self, handle: u64, gfn: u64) -> Vec<u64> {
        let context = self.vm(handle).guest.lock(&self.world.cpus[0]).context();
        self.world.sim.load(context, gfn << 12, true).into_iter().collect()
    }

    fn store(&self, handle: u64, gfn: u64, value: u64) {
        let context = self.vm(handle).guest.lock(&self.world.cpus[0]).context();
        self.world.sim.store(context, gfn << 12, true, value);
    }

    fn is_zero(&self, page: Pfn) -> bool {
        self.world.contents(page) == [0; 512] && self.world.contents_in_ram(page) == [0; 512]
    }
}

#[test]
fn a_donated_page_is_zeroed_for_the_guest_and_out_of_the_hosts_reach() {
    for (name, features) in MATRIX {
        let rig = Rig::new(Setup::new(features), strict(&features));
        rig.fill(1000);
        rig.world.sim.memory().set_tag(rig.world.page(1000).raw(), 3, 5);
        assert_eq!(rig.donate(7, 1000, 0), Ok(0), "{name}");
        let pfn = rig.world.page(1000);
        for access in [Access::R, Access::W, Access::X] {
            assert!(!rig.world.touch(1, pfn, access), "{name}");
        }
        assert_eq!(rig.load(CLASSIC, 7), [0], "{name}");
        if features.mte >= 2 {
            assert_eq!(rig.world.sim.memory().tag(pfn.raw(), 3), 0, "{name}");
        }
        // The guest's secret does not come back to the host.
        rig.store(CLASSIC, 7, 0x5ec2_e7ff);
        rig.world.sim.memory().set_tag(pfn.raw(), 3, 5);
        assert_eq!(rig.reclaim(7, 8), Ok(8), "{name}");
        assert!(rig.world.touch(1, pfn, Access::R), "{name}");
        assert!(rig.is_zero(pfn), "{name}");
        if features.mte >= 2 {
            assert_eq!(rig.world.sim.memory().tag(pfn.raw(), 3), 0, "{name}");
        }
        assert_eq!(rig.slot(CLASSIC, 7), Some(Slot::Destroyed), "{name}");
        assert_eq!(rig.donate(7, 1000, 0), Err(Ehwpoison), "{name}: destroyed for good");
    }
}

#[test]
fn populated_contents_are_kept_and_looked_at_when_nobody_can_change_them() {
    for (name, features) in MATRIX {
        let rig = Rig::new(Setup::new(features), MtePolicy::Off);
        rig.fill(1000);
        let (hyp, cpu) = (&rig.world.hyp, &rig.world.cpus[0]);
        let what = GuestPages::new(7, rig.world.page(1000).raw(), 0).unwrap();
        let mut seen = Vec::new();
        let mut look = |page: hyp::hw::MappedPage| {
            assert!(rig.world.sim.reach(hyp.host_context(), page.pfn().base().raw()).is_empty());
            seen.push(rig.world.sim.memory().read(page.pfn().raw(), 9));
        };
        let mut window = rig.world.windows[0].lock().unwrap();
        let guest = &rig.vm(CLASSIC).guest;
        let contents = Contents::Kept(&mut look);
        hyp.host_donate_guest(cpu, &mut window, guest, what, Prot::RWX, contents).unwrap();
        assert_eq!(seen, [0x5ec2_e700], "{name}");
        assert_eq!(rig.load(CLASSIC, 7), [0x5ec2_e700], "{name}");
    }
}

#[test]
fn a_block_is_one_entry_and_its_pages_come_back_in_any_part() {
    for (name, features) in MATRIX {
        let rig = Rig::new(Setup::new(features), MtePolicy::Off);
        rig.fill(1024 + 17);
        assert_eq!(rig.donate(512, 1024, 9), Ok(0), "{name}");
        assert_eq!(rig.load(CLASSIC, 512 + 17), [0], "{name}");
        let reserve = || rig.vm(CLASSIC).guest.lock(&rig.world.cpus[0]).reserve().page();
        let first = reserve();
        assert_eq!(rig.reclaim(512 + 10, 512 + 20), Ok(512 + 20), "{name}: part of the block");
        assert!(reserve().is_some() && reserve() != first, "{name}: the reserve was lent and repaid");
        assert_eq!(rig.load(CLASSIC, 512 + 9), [0], "{name}: the rest stays");
        assert_eq!(rig.reclaim(512, 1024), Ok(1024), "{name}: the rest of the block");
        assert!((512..1024).all(|gfn| rig.slot(CLASSIC, gfn) == Some(Slot::Destroyed)), "{name}");
        assert_eq!(rig.donate(512, 1024, 9), Err(Ehwpoison), "{name}");
    }
}

#[test]
fn a_reserve_is_repaid_by_the_hosts_page_by_the_cache_or_by_the_first_page_taken() {
    let rig = Rig::new(Setup::new(CORTEX_A72), MtePolicy::Off);
    let (hyp, cpu) = (&rig.world.hyp, &rig.world.cpus[0]);
    let guest = &rig.vm(CLASSIC).guest;
    for block in 0..3 {
        assert_eq!(rig.donate(512 * (block + 1), 1024 + 512 * block, 9), Ok(0));
    }
    let reclaim = |first: u64, nr: u64, refill: Option<Pfn>| {
        let range = IpaRange::new(first << 12, (first + nr) << 12, 32).unwrap();
        let mut window = rig.world.windows[0].lock().unwrap();
        hyp.host_reclaim_guest(cpu, &mut window, guest, range, refill)
    };
    let refill = rig.world.page(900);
    let wrong = rig.world.page(0);
    assert_eq!(reclaim(512, 1, Some(wrong)).unwrap_err().errno(), Eperm);
    let done = reclaim(512, 1, Some(refill)).unwrap();
    assert_eq!(done.retained, None);
    assert_eq!(guest.lock(cpu).reserve().page(), Some(refill));

    let cached = guest.lock(cpu).cache().pages();
    assert!(cached > 0);
    assert_eq!(reclaim(1024, 1, None).unwrap().retained, None);
    assert_eq!(guest.lock(cpu).cache().pages(), cached - 1);

    // Use the cache up: a page far from all others takes two tables.
    let mut at = 1 << 18;
    while guest.lock(cpu).cache().pages() > 0 {
        let nth = 3000 + (at >> 9 & 0xff);
        let answer = rig.donate(at, nth, 0);
        assert!(matches!(answer, Ok(0) | Err(Enomem)), "{answer:?}");
        at += 512;
        if answer.is_err() {
            break;
        }
    }
    assert_eq!(guest.lock(cpu).cache().pages(), 0);
    let done = reclaim(1536 + 5, 3, None).unwrap();
    let retained = rig.world.page(1024 + 1024 + 5);
    assert_eq!(done.retained, Some(retained));
    assert_eq!(guest.lock(cpu).reserve().page(), Some(retained));
    assert_eq!(rig.state().pages.get(retained.raw()), Some(Page::Vm));
    assert!(!rig.world.touch(0, retained, Access::R));
    assert!(rig.world.touch(0, rig.world.page(1024 + 1024 + 6), Access::R));
}

#[test]
fn a_call_splits_one_block_and_ends_before_a_second() {
    let rig = Rig::new(Setup::new(CORTEX_A72), MtePolicy::Off);
    assert_eq!(rig.donate(512, 1024, 9), Ok(0));
    assert_eq!(rig.donate(1024, 1536, 9), Ok(0));
    // The last page of the first block and the first of the second.
    assert_eq!(rig.reclaim(1023, 1025), Ok(1024));
    assert_eq!(rig.reclaim(1024, 1025), Ok(1025));
    // What is left of the first are 511 pages; one of the second is the 512th and last.
    assert_eq!(rig.reclaim(512, 1536), Ok(1026));
}

#[test]
fn pages_are_shared_back_in_place_and_taken_back_with_their_contents() {
    for (name, features) in MATRIX {
        let rig = Rig::new(Setup::new(features), MtePolicy::Off);
        assert_eq!(rig.donate(7, 1000, 0), Ok(0), "{name}");
        assert_eq!(rig.donate(512, 1024, 9), Ok(0), "{name}");
        rig.store(CLASSIC, 7, 77);
        for (gfn, nth) in [(7, 1000), (512 + 3, 1024 + 3)] {
            let page = rig.world.page(nth);
            assert_eq!(rig.call(Call::GuestShareHost { handle: CLASSIC, gfn, nr: 1 }), Ok(1), "{name}");
            assert_eq!(rig.call(Call::GuestShareHost { handle: CLASSIC, gfn, nr: 1 }), Err(Eperm), "{name}");
            assert!(rig.world.touch(1, page, Access::W), "{name}");
            assert_eq!(
                rig.slot(CLASSIC, gfn).map(|slot| matches!(slot, Slot::Mapped { hold: Hold::Shared, .. })),
                Some(true)
            );
            assert_eq!(rig.reclaim(gfn, gfn + 1), Err(Eperm), "{name}: shared");
            rig.world.sim.store(rig.world.hyp.host_context(), page.base().raw(), true, 88);
            assert_eq!(rig.call(Call::GuestUnshareHost { handle: CLASSIC, gfn, nr: 1 }), Ok(1), "{name}");
            assert!(!rig.world.touch(1, page, Access::R), "{name}");
            assert_eq!(rig.load(CLASSIC, gfn), [88], "{name}");
        }
        assert_eq!(rig.call(Call::GuestShareHost { handle: CLASSIC, gfn: 512, nr: 512 }), Ok(512), "{name}");
        assert_eq!(rig.call(Call::GuestUnshareHost { handle: CLASSIC, gfn: 600, nr: 3 }), Ok(3), "{name}");
        assert_eq!(rig.call(Call::GuestUnshareHost { handle: CLASSIC, gfn: 512, nr: 512 }), Ok(88), "{name}");
        assert_eq!(
            rig.call(Call::GuestUnshareHost { handle: CLASSIC, gfn: 9, nr: 1 }),
            Err(Enoent),
            "{name}"
        );
    }
}

#[test]
fn a_relinquished_page_goes_back_zeroed_and_leaves_nothing() {
    for (name, features) in MATRIX {
        let rig = Rig::new(Setup::new(features), MtePolicy::Off);
        assert_eq!(rig.donate(512, 1024, 9), Ok(0), "{name}");
        rig.store(CLASSIC, 700, 0x5ec2_e700);
        let relinquish = |gfn, nr| rig.call(Call::GuestRelinquishHost { handle: CLASSIC, gfn, nr });
        assert_eq!(relinquish(700, 1), Ok(1), "{name}");
        assert!(rig.is_zero(rig.world.page(1024 + 188)), "{name}");
        assert_eq!(rig.slot(CLASSIC, 700), None, "{name}");
        assert_eq!(relinquish(700, 1), Ok(1), "{name}: nothing there is done already");
        assert_eq!(rig.donate(700, 999, 0), Ok(0), "{name}: and can be filled again");
        assert_eq!(relinquish(512, 512), Ok(512), "{name}");
        assert_eq!(rig.donate(512, 1024, 9), Ok(0), "{name}: as a block, even");
        assert_eq!(rig.reclaim(600, 601), Ok(601), "{name}");
        assert_eq!(relinquish(600, 1), Err(Ehwpoison), "{name}");
        assert_eq!(relinquish(599, 2), Ok(1), "{name}");
    }
}

#[test]
fn pages_are_lent_to_one_guest_as_often_as_it_likes_and_to_no_other() {
    for (name, features) in MATRIX {
        let rig = Rig::new(Setup::new(features), MtePolicy::Off);
        rig.fill(1000);
        assert_eq!(rig.share(5, 1000, 0), Ok(0), "{name}");
        assert_eq!(rig.load(PLAIN, 5), [0x5ec2_e700], "{name}");
        assert_eq!(rig.share(5, 1000, 0), Err(Eexist), "{name}");
        assert_eq!(rig.share(6, 1000, 0), Ok(0), "{name}");
        let page = rig.world.page(1000);
        assert_eq!(
            rig.state().pages.get(page.raw()),
            Some(Page::SharedWithGuest { handle: 2, leaves: 2 }),
            "{name}"
        );
        assert!(rig.world.touch(0, page, Access::W), "{name}");
        assert_eq!(rig.donate(5, 1000, 0), Err(Eperm), "{name}");
        let unshare = |gfn, nr| rig.call(Call::HostUnshareGuest { handle: PLAIN, gfn, nr });
        assert_eq!(unshare(5, 2), Ok(2), "{name}");
        assert!(rig.load(PLAIN, 5).is_empty(), "{name}");
        assert_eq!(rig.state().pages.get(page.raw()), Some(Page::Host), "{name}");
        assert_eq!(unshare(5, 1), Err(Enoent), "{name}");

        assert_eq!(rig.share(512, 1024, 9), Ok(0), "{name}");
        assert_eq!(unshare(512, 511), Err(E2big), "{name}");
        assert_eq!(unshare(512, 512), Ok(512), "{name}");
    }
}

#[test]
fn refusals_name_the_first_check_that_fails_and_change_nothing() {
    let rig = Rig::new(Setup { hole: Some((8192, 64)), ..Setup::new(CORTEX_A72) }, MtePolicy::Off);
    let pfn = rig.world.page(1000).raw();
    let donate = |handle, gfn, pfn, order| rig.call(Call::HostDonateGuest { handle, gfn, pfn, order });
    let before = rig.state();
    assert_eq!(donate(CLASSIC, 0, pfn, 1), Err(Einval));
    assert_eq!(donate(CLASSIC, 1, 0x4_0400, 9), Err(Einval));
    assert_eq!(donate(CLASSIC, 0, 0x4_0401, 9), Err(Einval));
    assert_eq!(donate(CLASSIC, 0, 1 << 36, 0), Err(Erange));
    assert_eq!(donate(9, 0, pfn, 0), Err(Enoent));
    assert_eq!(donate(PLAIN, 0, pfn, 0), Err(Errno::Eacces));
    assert_eq!(donate(CLASSIC, 1 << 20, pfn, 0), Err(Erange));
    assert_eq!(donate(SPLIT, 1 << 19, pfn, 0), Err(Erange), "the upper half is the host's");
    assert_eq!(donate(SPLIT, 0, pfn, 0), Err(Eperm), "EMPTY");
    assert_eq!(donate(CLASSIC, 0, rig.world.page(8192).raw(), 0), Err(Erange));
    assert_eq!(donate(CLASSIC, 0, rig.world.page(0).raw(), 0), Err(Eperm));
    assert_eq!(donate(CLASSIC, u64::MAX, pfn, 0), Err(Erange));
    let share =
        |handle, gfn, pfn, order, prot| rig.call(Call::HostShareGuest { handle, gfn, pfn, order, prot });
    assert_eq!(share(PLAIN, 0, 1 << 36, 0, 8), Err(Erange));
    assert_eq!(share(PLAIN, 0, pfn, 0, 8), Err(Einval));
    assert_eq!(share(CLASSIC, 0, pfn, 0, 7), Err(Errno::Eacces));
    assert_eq!(share(PLAIN, 1 << 20, pfn, 0, 7), Err(Erange));
    let reclaim =
        |base, top| rig.call(Call::HostReclaimGuest { handle: CLASSIC, base, top, refill: NONE, kept: NONE });
    assert_eq!(reclaim(0, 0), Err(Einval));
    assert_eq!(reclaim(4096, 0), Err(Einval));
    assert_eq!(reclaim(1, 4096), Err(Einval));
    assert_eq!(reclaim(0, 1 << 33), Err(Erange));
    assert_eq!(reclaim(0, 1 << 32), Ok(1 << 32), "nothing there is done");
    let dying = rig.call(Call::HostReclaimDyingGuest { handle: CLASSIC, base: 0, top: 4096, kept: NONE });
    assert_eq!(dying, Err(Ebusy));
    assert_eq!(rig.state(), before);
}

#[test]
fn an_empty_cache_is_enomem_with_the_number_of_pages_and_nothing_changed() {
    let world = Setup::new(MAX).start();
    let mut vms = Vms::default();
    let vm = Vm::new(1, Kind::Classic, 32, Phase::Active);
    vms.create(&world, 0, VmSetup { vm, mte: MtePolicy::Off, cache: 0, first: 400 });
    let (hyp, cpu) = (&world.hyp, &world.cpus[0]);
    let guest = &vms.find(1).unwrap().guest;
    let before = world.state(&vms.roots());
    let what = GuestPages::new(7, world.page(1000).raw(), 0).unwrap();
    let donate = || {
        let mut window = world.windows[0].lock().unwrap();
        hyp.host_donate_guest(cpu, &mut window, guest, what, Prot::RWX, Contents::Zeroed)
    };
    assert_eq!(donate(), Err(hyp::Error::NoTables(2)));
    assert_eq!(world.state(&vms.roots()), before);
    hyp.topup(cpu, guest, world.page(900), 1).unwrap();
    assert_eq!(donate(), Err(hyp::Error::NoTables(1)));
    hyp.topup(cpu, guest, world.page(901), 1).unwrap();
    assert_eq!(donate(), Ok(()));
}

#[test]
fn a_dying_guest_is_emptied_and_taken_apart_and_every_page_is_the_hosts_again() {
    for (name, features) in MATRIX {
        let mut rig = Rig::new(Setup::new(features), MtePolicy::Off);
        assert_eq!(rig.donate(7, 1000, 0), Ok(0), "{name}");
        assert_eq!(rig.donate(512, 1024, 9), Ok(0), "{name}");
        assert_eq!(rig.reclaim(520, 530), Ok(530), "{name}");
        assert_eq!(rig.call(Call::GuestShareHost { handle: CLASSIC, gfn: 600, nr: 5 }), Ok(5), "{name}");
        rig.store(CLASSIC, 7, 0x5ec2_e700);
        assert_eq!(rig.share(5, 2000, 0), Ok(0), "{name}");
        assert_eq!(rig.share(1024, 2048, 9), Ok(0), "{name}");
        for handle in [CLASSIC, PLAIN, SPLIT] {
            assert_eq!(rig.call(Call::VmTeardownStart { handle }), Ok(0), "{name}");
        }
        let (hyp, cpu) = (&rig.world.hyp, &rig.world.cpus[0]);
        let ipa = |gfn: u64| hyp::addr::Ipa::new(gfn << 12).unwrap();
        let drop_from = |at| hyp.drop_borrowed(cpu, &rig.vm(CLASSIC).guest, at);
        assert_eq!(drop_from(ipa(0)), Ok(Some(ipa(7))), "{name}");
        assert_eq!(drop_from(ipa(7)), Err((Ebusy.into(), ipa(7))), "{name}");
        let mut at = 0;
        while at < 1 << 32 {
            let call = Call::HostReclaimDyingGuest { handle: CLASSIC, base: at, top: 1 << 32, kept: NONE };
            [at, _] = rig.vms.call(&rig.world, 0, call).unwrap();
        }
        assert!(rig.is_zero(rig.world.page(1000)), "{name}");
        let mut chain = hyp::mem_protect::Chain::new();
        for vm in std::mem::take(&mut rig.vms.0) {
            let (name, guest) = (vm.vm(), vm.guest);
            let mut at = hyp::addr::Ipa::new(0).ok();
            while let Some(ipa) = at {
                at = hyp.drop_borrowed(cpu, &guest, ipa).unwrap_or_else(|e| panic!("{name:?}: {e:?}"));
            }
            assert!(hyp.drop_cache(cpu, &guest, 512, &mut chain), "{name}");
            hyp.end_guest(cpu, guest, &mut chain);
        }
        // Everything that is not the carve-out is the host's, and the chain leads through all of it.
        let state = rig.world.state(&[]);
        for nth in rig.world.first_free()..rig.world.sim.memory().pages() {
            assert_eq!(state.pages.get(rig.world.page(nth).raw()), Some(Page::Host), "{name}: {nth}");
        }
        let (mut next, mut count) = (chain.head(), 0);
        while next != u64::MAX {
            assert!(rig.world.touch(0, Pfn::new(next).unwrap(), Access::R), "{name}");
            let words = rig.world.contents_in_ram(Pfn::new(next).unwrap());
            assert!(words[1..].iter().all(|&word| word == 0), "{name}");
            next = words[0];
            count += 1;
        }
        assert_eq!(count, chain.count(), "{name}");
        assert!(count >= 3 * 13 + 2, "{name}: roots, reserves, caches");
    }
}

#[test]
fn a_chain_with_a_bad_link_or_a_cycle_ends_with_what_was_taken() {
    let rig = Rig::new(Setup::new(CORTEX_A72), MtePolicy::Off);
    let (hyp, cpu) = (&rig.world.hyp, &rig.world.cpus[0]);
    let guest = &rig.vm(CLASSIC).guest;
    let link = |nth: u64, next: u64| {
        let page = rig.world.page(nth);
        assert!(rig.world.touch(0, page, Access::W));
        rig.world.sim.store(hyp.host_context(), page.base().raw(), true, next);
        page
    };
    let cached = guest.lock(cpu).cache().pages();
    for next in [rig.world.page(0).raw(), 1 << 40, 7, u64::MAX, rig.world.page(801).raw()] {
        let head = link(800, rig.world.page(801).raw());
        link(801, next);
        assert_eq!(hyp.topup(cpu, guest, head, 5), Ok(2), "{next:#x}");
        let mut chain = hyp::mem_protect::Chain::new();
        assert!(!hyp.drop_cache(cpu, guest, 2, &mut chain));
        assert_eq!(guest.lock(cpu).cache().pages(), cached);
    }
    let bad = |page| hyp.topup(cpu, guest, page, 1).map_err(hyp::Error::errno);
    assert_eq!(bad(rig.world.page(0)), Err(Eperm));
    assert_eq!(bad(Pfn::new(1).unwrap()), Err(Erange));
    assert_eq!(hyp.topup(cpu, guest, rig.world.page(800), 0).map_err(hyp::Error::errno), Err(Einval));
    assert_eq!(hyp.topup(cpu, guest, rig.world.page(800), 120).map_err(hyp::Error::errno), Err(E2big));
    let _ = rig.state();
}
