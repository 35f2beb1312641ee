//! The audit on the simulated machine: what it counts, and that it finds each kind of damage.
//!
//! Damage is written past EL2, straight into memory or a record.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says that it failed by a panic"
)]

mod calls;
mod damage;
mod invariants;
mod rig;

use abi::Errno;
use abi::inspect::Figure;
use hyp::mem_protect::{Hypervisor, Pinned, Tenant, Tenants};
use rig::{CLASSIC, PLAIN, Rig};
use testkit::Cpu;

#[test]
fn a_machine_that_only_starts_is_clean_and_every_page_is_somebodys() {
    let rig = Rig::new();
    let census = rig.clean();
    assert_eq!(census.get(Figure::Loose), 0);
    let all = [
        Figure::HostOwned,
        Figure::HostSharedHyp,
        Figure::HostSharedGuest,
        Figure::HypImage,
        Figure::HypPool,
        Figure::HypTablePool,
        Figure::HypLent,
        Figure::VmState,
        Figure::VmTables,
        Figure::VmCache,
        Figure::VmReserve,
        Figure::GuestOwned,
        Figure::GuestSharedHost,
    ];
    assert_eq!(all.map(|figure| census.get(figure)).iter().sum::<u64>(), rig.world.sim.memory().pages());
}

#[test]
fn every_transition_moves_its_pages_from_figure_to_figure() {
    let rig = Rig::new();
    let (hyp, cpu) = (&rig.world.hyp, &rig.world.cpus[0]);
    let start = rig.clean();
    let moved = |figures: &[(Figure, i64)]| {
        let now = rig.clean();
        for &(figure, by) in figures {
            let was = i64::try_from(start.get(figure)).unwrap();
            assert_eq!(i64::try_from(now.get(figure)).unwrap(), was + by, "{figure:?}");
        }
        assert_eq!(
            now.get(Figure::Owners) == start.get(Figure::Owners),
            figures.iter().all(|(_, by)| *by == 0)
        );
    };
    let page = rig.world.page(1500);
    hyp.host_share_hyp(cpu, page).unwrap();
    moved(&[(Figure::HostOwned, -1), (Figure::HostSharedHyp, 1)]);
    let pin = hyp.hyp_pin(cpu, page).unwrap();
    // A finding, for it is no vCPU's; but counted.
    let pinned = hyp.audit(cpu, None, &rig.vms).unwrap().census;
    assert_eq!((pinned.get(Figure::HypPins), pinned.get(Figure::HostSharedHyp)), (1, 1));
    assert_ne!(pinned.get(Figure::Owners), start.get(Figure::Owners));
    hyp.hyp_unpin(cpu, pin);
    hyp.host_unshare_hyp(cpu, page).unwrap();
    hyp.host_donate_hyp(cpu, rig.world.pages(1500, 5)).unwrap();
    moved(&[(Figure::HostOwned, -5), (Figure::HypLent, 5)]);
    hyp.hyp_donate_host(cpu, rig.world.pages(1500, 5)).unwrap();
    let token = hyp.host_donate_token(cpu, rig.world.pages(1500, 3)).unwrap();
    moved(&[(Figure::HostOwned, -3), (Figure::Loose, 3)]);
    drop(token);
    rig.donate(0x200, 1024, 9);
    rig.donate(0x400, 2500, 0);
    moved(&[(Figure::HostOwned, -513), (Figure::GuestOwned, 513)]);
    rig.guest_share(0x400, 1);
    moved(&[(Figure::GuestOwned, 512), (Figure::GuestSharedHost, 1)]);
    rig.reclaim_all(CLASSIC);
    rig.share(0x700, 2501);
    rig.share(0x701, 2501);
    moved(&[
        (Figure::HostOwned, -2),
        (Figure::HostSharedGuest, 1),
        (Figure::GuestBorrowed, 2),
        (Figure::GuestSharedHost, 1),
    ]);
    rig.unshare(0x700, 2);
    rig.guest_unshare(0x400, 1);
    rig.reclaim_all(CLASSIC);
    moved(&[(Figure::HostOwned, 0), (Figure::GuestOwned, 0), (Figure::GuestBorrowed, 0)]);
}

#[test]
fn two_pages_that_change_places_are_counted_alike_and_told_apart() {
    let rig = Rig::new();
    rig.donate(0x400, 1500, 0);
    rig.donate(0x401, 1501, 0);
    let one = rig.clean();
    rig.reclaim_all(CLASSIC);
    let start = Rig::new();
    start.donate(0x400, 1501, 0);
    start.donate(0x401, 1500, 0);
    let other = start.clean();
    assert_eq!(one.get(Figure::GuestOwned), other.get(Figure::GuestOwned));
    assert_ne!(one.get(Figure::Owners), other.get(Figure::Owners));
}

#[test]
fn the_figures_of_one_vm_are_its_own() {
    let rig = Rig::new();
    rig.donate(0x400, 1500, 0);
    rig.share(0x700, 1501);
    let of = |whose| rig.world.hyp.audit(&rig.world.cpus[0], whose, &rig.vms);
    let figure = |whose, figure| of(Some(whose)).unwrap().census.get(figure);
    assert_eq!((figure(CLASSIC, Figure::GuestOwned), figure(PLAIN, Figure::GuestOwned)), (1, 0));
    assert_eq!((figure(CLASSIC, Figure::GuestBorrowed), figure(PLAIN, Figure::GuestBorrowed)), (0, 1));
    assert_eq!((figure(CLASSIC, Figure::VmReserve), figure(PLAIN, Figure::VmReserve)), (1, 0));
    assert_eq!(of(None).unwrap().census.get(Figure::Loose), 0);
    assert_eq!(figure(CLASSIC, Figure::Loose), 0, "pages of other VMs are not loose");
    assert_eq!(of(Some(99)).map_err(|e| e.errno()), Err(Errno::Enoent));
}

/// Somebody shares a page whenever the audit lets the locks go.
struct Restless<'a> {
    hyp: &'a Hypervisor<Cpu>,
    rounds: std::cell::Cell<u32>,
    page: hyp::addr::Pfn,
}

impl Tenants<Cpu> for Restless<'_> {
    fn each(&self, hw: &Cpu, _f: &mut dyn FnMut(Tenant<'_, Cpu>)) {
        if let Some(left) = self.rounds.get().checked_sub(1) {
            self.rounds.set(left);
            if left % 2 == 0 {
                self.hyp.host_unshare_hyp(hw, self.page).unwrap();
            } else {
                self.hyp.host_share_hyp(hw, self.page).unwrap();
            }
        }
    }
}

#[test]
fn a_look_during_which_a_page_changed_hands_is_worth_nothing() {
    let rig = Rig::new();
    let (hyp, cpu) = (&rig.world.hyp, &rig.world.cpus[0]);
    // No VMs: theirs would be a finding here.
    for vm in [CLASSIC, PLAIN] {
        rig.reclaim_all(vm);
    }
    let world = testkit::Setup::new(testkit::features::MAX).start();
    let (other, other_cpu) = (&world.hyp, &world.cpus[0]);
    let restless = |rounds: u32| Restless { hyp: other, rounds: rounds.into(), page: world.page(1000) };
    assert!(other.audit(other_cpu, None, &restless(4)).unwrap().is_clean(), "it looks again");
    assert_eq!(other.audit(other_cpu, None, &restless(1000)).map_err(|e| e.errno()), Err(Errno::Eagain));
    assert!(hyp.audit(cpu, None, &rig.vms).unwrap().is_clean());
}

/// A VM that gets a vCPU between two locks of the first look.
struct Growing<'a> {
    rig: &'a Rig,
    page: hyp::addr::Pfn,
    pin: std::cell::Cell<Option<Pinned>>,
}

impl Tenants<Cpu> for Growing<'_> {
    fn each(&self, hw: &Cpu, f: &mut dyn FnMut(Tenant<'_, Cpu>)) {
        let pin = self.pin.take().unwrap_or_else(|| self.rig.world.hyp.hyp_pin(hw, self.page).unwrap());
        self.pin.set(Some(pin));
        for (n, vm) in (0_u64..).zip(&self.rig.vms.0) {
            f(Tenant { guest: &vm.guest, state: 0, vcpus: u64::from(n == 0) });
        }
    }
}

#[test]
fn a_look_during_which_a_page_was_pinned_is_worth_nothing() {
    let rig = Rig::new();
    let (hyp, cpu, page) = (&rig.world.hyp, &rig.world.cpus[0], rig.world.page(1500));
    hyp.host_share_hyp(cpu, page).unwrap();
    let growing = Growing { rig: &rig, page, pin: std::cell::Cell::new(None) };
    let audit = hyp.audit(cpu, None, &growing).unwrap();
    assert_eq!(audit.findings(), []);
    assert_eq!(audit.census.get(Figure::HypPins), 1);
    hyp.hyp_unpin(cpu, growing.pin.take().unwrap());
}
