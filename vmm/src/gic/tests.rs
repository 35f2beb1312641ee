//! The controller as Linux sets it up and uses it.
#![allow(clippy::arithmetic_side_effects, reason = "addresses of a test")]

use super::{Gic, REDISTRIBUTOR_SIZE, TIMER};
use crate::vcpu::{VcpuCount, VcpuIndex, VcpuSet};
use crate::width::Width;

const SGI_FRAME: u64 = 0x1_0000;
const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const STATE: u64 = PENDING | ACTIVE;
const HW: u64 = 1 << 61;
const EOI: u64 = 1 << 41;
const SPI: u32 = 40;

fn vcpu(n: usize) -> VcpuIndex {
    VcpuCount::new(8).unwrap().vcpu(n).unwrap()
}

fn write(gic: &mut Gic, offset: u64, value: u64) {
    let _ = gic.write_distributor(offset, Width::Four, value);
}

fn write_private(gic: &mut Gic, n: u64, offset: u64, value: u64) {
    let _ = gic.write_redistributor(n * REDISTRIBUTOR_SIZE + SGI_FRAME + offset, Width::Four, value);
}

/// What Linux writes before the first interrupt.
fn set_up(vcpus: usize) -> Gic {
    let mut gic = Gic::new(VcpuCount::new(vcpus).unwrap());
    write(&mut gic, 0, 0);
    for offset in [0x84, 0x88] {
        write(&mut gic, offset, 0xffff_ffff);
    }
    for offset in (0x420..0x460).step_by(4) {
        write(&mut gic, offset, 0xa0a0_a0a0);
    }
    write(&mut gic, 0, 1 << 4 | 1 << 1 | 1);
    for n in 0..vcpus as u64 {
        write_private(&mut gic, n, 0x80, 0xffff_ffff);
        write_private(&mut gic, n, 0x100, 0xffff | 1 << TIMER);
        for offset in (0x400..0x420).step_by(4) {
            write_private(&mut gic, n, offset, 0xa0a0_a0a0);
        }
    }
    write(&mut gic, 0x104, 1 << (SPI - 32));
    gic
}

fn intids(lrs: &[u64]) -> Vec<u64> {
    lrs.iter().map(|lr| lr & 0xffff_ffff).collect()
}

fn list(gic: &mut Gic, n: usize) -> Vec<u64> {
    gic.list(vcpu(n), 4).registers.to_vec()
}

#[test]
fn linux_finds_a_gicv3_with_a_redistributor_for_each_vcpu() {
    let gic = set_up(2);
    for pidr2 in [gic.read_distributor(0xffe8, Width::Four), gic.read_redistributor(0xffe8, Width::Four)] {
        assert_eq!(pidr2 & 0xf0, 0x30);
    }
    let typer = gic.read_distributor(4, Width::Four);
    assert_eq!((typer & 0x1f, typer >> 17 & 1, typer >> 19 & 0x1f), (2, 0, 9), "96 INTIDs, no LPIs");
    assert_eq!(gic.read_distributor(0, Width::Four), 1 << 6 | 1 << 4 | 1 << 1);
    let typers = [0, 1].map(|n| gic.read_redistributor(n * REDISTRIBUTOR_SIZE + 8, Width::Eight));
    assert_eq!(typers, [0, 1 << 32 | 1 << 8 | 1 << 4]);
    assert_eq!(gic.read_redistributor(REDISTRIBUTOR_SIZE + 0xc, Width::Four), 1);
    assert_eq!(gic.read_redistributor(0x14, Width::Four), 0, "awake");
    assert_eq!(gic.read_redistributor(2 * REDISTRIBUTOR_SIZE + 8, Width::Eight), 0, "no third one");
}

#[test]
fn nothing_is_delivered_before_the_guest_has_set_it_up() {
    let mut gic = Gic::new(VcpuCount::new(1).unwrap());
    assert!(gic.set_line(SPI - 32, true).is_empty());
    assert!(gic.set_timer(vcpu(0), true).is_empty());
    assert!(gic.send_sgi(vcpu(0), 1).is_empty());
    assert_eq!(list(&mut gic, 0), []);
    let mut gic = Gic::opened(VcpuCount::new(1).unwrap());
    assert!(gic.set_timer(vcpu(0), true).has(vcpu(0)));
    assert_eq!(intids(&list(&mut gic, 0)), [u64::from(TIMER)]);
}

#[test]
fn registers_read_back_what_was_written_and_sets_and_clears_are_one_state() {
    let mut gic = set_up(1);
    write(&mut gic, 0x104, 0x0f00);
    assert_eq!(gic.read_distributor(0x184, Width::Four), 0x0f00 | 1 << 8);
    write(&mut gic, 0x184, 0x0300);
    assert_eq!(gic.read_distributor(0x104, Width::Four), 0x0c00);
    write(&mut gic, 0x428, 0x1234_56ff);
    assert_eq!(gic.read_distributor(0x428, Width::Four), 0x1030_50f8, "five bits of priority");
    let _ = gic.write_distributor(0x429, Width::One, 0x80);
    assert_eq!(gic.read_distributor(0x428, Width::Four), 0x1030_80f8);
    assert_eq!(gic.read_distributor(0x42a, Width::One), 0x30);
    write(&mut gic, 0xc08, 0xaaaa_aaa0);
    assert_eq!(gic.read_distributor(0xc08, Width::Four), 0xaaaa_aaa0);
    write_private(&mut gic, 0, 0xc04, 0xffff_ffff);
    assert_eq!(gic.read_redistributor(SGI_FRAME + 0xc04, Width::Four), 0, "private ones are levels");
    assert_eq!(gic.read_redistributor(SGI_FRAME + 0xc00, Width::Four), 0xaaaa_aaaa, "and SGIs edges");
    let _ = gic.write_distributor(0x6140, Width::Eight, 0x12_8034_5678);
    assert_eq!(gic.read_distributor(0x6140, Width::Eight), 0x12_0034_5678, "no one-of-N");
    let _ = gic.write_distributor(0x6144, Width::Four, 0);
    assert_eq!(gic.read_distributor(0x6140, Width::Eight), 0x34_5678);
}

#[test]
fn what_does_not_exist_reads_as_zero_and_ignores_stores() {
    let mut gic = set_up(1);
    let before = format!("{gic:?}");
    // Private interrupts in the distributor, targets, ids past the last, an odd address, odd widths.
    for offset in [0x80, 0x100, 0x200, 0x400, 0x800, 0x8c, 0x10c, 0x460, 0xc1c, 0xf00, 0x6000, 0x6300] {
        write(&mut gic, offset, 0xffff_ffff);
        assert_eq!(gic.read_distributor(offset, Width::Four), 0, "{offset:#x}");
    }
    for (offset, width) in
        [(0x85, Width::Four), (0x84, Width::One), (0x80, Width::Eight), (0x422, Width::Four)]
    {
        let _ = gic.write_distributor(offset, width, u64::MAX);
        assert_eq!(gic.read_distributor(offset, width), 0, "{offset:#x}");
    }
    let _ = gic.write_redistributor(5 * REDISTRIBUTOR_SIZE + SGI_FRAME + 0x100, Width::Four, 1);
    assert_eq!(format!("{gic:?}"), before);
}

#[test]
fn a_level_interrupt_is_listed_while_its_input_is_high_and_looked_at_again_when_ended() {
    let mut gic = set_up(1);
    assert!(gic.set_line(SPI - 32, true).has(vcpu(0)));
    assert!(gic.wakes(vcpu(0)));
    let lrs = list(&mut gic, 0);
    assert_eq!(lrs, [PENDING | EOI | 1 << 60 | 0xa0 << 48 | u64::from(SPI)]);
    // Taken, the input still up: no second one before it is ended.
    gic.fold(vcpu(0), &[lrs[0] & !PENDING | ACTIVE]);
    assert_eq!(list(&mut gic, 0)[0] & STATE, ACTIVE);
    gic.fold(vcpu(0), &[0]);
    assert_eq!(list(&mut gic, 0)[0] & STATE, PENDING);
    gic.fold(vcpu(0), &lrs);
    let _ = gic.set_line(SPI - 32, false);
    assert_eq!(list(&mut gic, 0), []);
    assert!(!gic.wakes(vcpu(0)));
}

#[test]
fn the_timer_is_tied_to_the_physical_interrupt_and_held_until_it_is_ended() {
    let mut gic = set_up(1);
    assert!(!gic.timer_held(vcpu(0)));
    assert!(gic.set_timer(vcpu(0), true).has(vcpu(0)));
    let lrs = list(&mut gic, 0);
    assert_eq!((lrs[0] & (STATE | HW), lrs[0] >> 32 & 0x1fff), (PENDING | HW, TIMER.into()));
    assert!(gic.timer_held(vcpu(0)));
    gic.fold(vcpu(0), &[lrs[0] & !PENDING | ACTIVE]);
    let _ = gic.set_timer(vcpu(0), true);
    assert!(gic.timer_held(vcpu(0)));
    assert_eq!(list(&mut gic, 0)[0] & (STATE | HW), ACTIVE | HW, "never both");
    gic.fold(vcpu(0), &[0]);
    let _ = gic.set_timer(vcpu(0), false);
    assert!(!gic.timer_held(vcpu(0)));
    assert_eq!(list(&mut gic, 0), []);
}

#[test]
fn an_sgi_goes_to_those_that_are_named_or_to_all_others() {
    let mut gic = set_up(4);
    let kick = gic.send_sgi(vcpu(0), 5 << 24 | 0b1010);
    assert_eq!((0..4).map(|n| kick.has(vcpu(n))).collect::<Vec<_>>(), [false, true, false, true]);
    write_private(&mut gic, 2, 0x80, !(1 << 7));
    assert_eq!(gic.send_sgi(vcpu(0), 7 << 24 | 0b100), VcpuSet::NONE, "not of Group 1 there");
    write_private(&mut gic, 2, 0x80, u64::MAX);
    let kick = gic.send_sgi(vcpu(2), 6 << 24 | 1 << 40);
    assert_eq!((0..4).map(|n| kick.has(vcpu(n))).collect::<Vec<_>>(), [true, true, false, true]);
    for (n, expected) in [(0, vec![6]), (1, vec![5, 6]), (2, vec![]), (3, vec![5, 6])] {
        assert_eq!(intids(&list(&mut gic, n)), expected);
    }
    // Other affinities, and vCPUs that do not exist.
    for elsewhere in [1 << 16, 1 << 32, 1 << 48, 1 << 44] {
        assert_eq!(gic.send_sgi(vcpu(0), elsewhere | 0xf), VcpuSet::NONE);
    }
    assert_eq!(gic.send_sgi(vcpu(0), 0xfff0), VcpuSet::NONE);
}

#[test]
fn an_sgi_that_comes_again_while_listed_is_taken_again() {
    let mut gic = set_up(2);
    let _ = gic.send_sgi(vcpu(0), 2 << 24 | 2);
    let lrs = list(&mut gic, 1);
    assert!(gic.send_sgi(vcpu(0), 2 << 24 | 2).has(vcpu(1)));
    gic.fold(vcpu(1), &[lrs[0] & !PENDING | ACTIVE]);
    assert_eq!(list(&mut gic, 1)[0] & STATE, STATE);
    gic.fold(vcpu(1), &[0]);
    assert_eq!(list(&mut gic, 1), []);
}

#[test]
fn the_higher_priority_is_listed_first_and_what_is_active_before_all() {
    let mut gic = set_up(1);
    for id in 0..8 {
        let _ = gic.send_sgi(vcpu(0), id << 24 | 1);
    }
    let _ = gic.write_redistributor(SGI_FRAME + 0x407, Width::One, 0x10);
    let listing = gic.list(vcpu(0), 4);
    assert_eq!((intids(&listing.registers), listing.hcr), (vec![7, 0, 1, 2], 1 << 1));
    // 2 is being handled; 7 was taken and ended, the others wait.
    let left: Vec<u64> = listing
        .registers
        .iter()
        .map(|lr| match lr & 0xff {
            2 => lr & !PENDING | ACTIVE,
            7 => 7,
            _ => *lr,
        })
        .collect();
    gic.fold(vcpu(0), &left);
    assert_eq!(intids(&gic.list(vcpu(0), 2).registers), [2, 0]);
    assert_eq!(gic.list(vcpu(0), 16).hcr, 0);
    assert_eq!(gic.list(vcpu(0), 0).registers.len(), 0);
    assert!(gic.wakes(vcpu(0)), "what found no room is not lost");
}

#[test]
fn a_shared_interrupt_that_is_routed_away_stays_with_who_has_taken_it() {
    let mut gic = set_up(2);
    let _ = gic.set_line(SPI - 32, true);
    let lrs = list(&mut gic, 0);
    let to_the_other = gic.write_distributor(0x6000 + 8 * u64::from(SPI), Width::Eight, 1);
    assert!(to_the_other.has(vcpu(0)), "it runs with it");
    assert_eq!(list(&mut gic, 1), [], "one list register at a time");
    gic.fold(vcpu(0), &[lrs[0] & !PENDING | ACTIVE]);
    assert_eq!((list(&mut gic, 1).len(), list(&mut gic, 0).len()), (0, 1));
    gic.fold(vcpu(0), &[0]);
    assert_eq!((list(&mut gic, 0).len(), intids(&list(&mut gic, 1))), (0, vec![SPI.into()]));
    gic.fold(vcpu(1), &[0]);
    let _ = gic.write_distributor(0x6000 + 8 * u64::from(SPI), Width::Eight, 5);
    assert_eq!((list(&mut gic, 0).len(), list(&mut gic, 1).len()), (0, 0), "no such vCPU");
}

#[test]
fn what_is_disabled_or_masked_waits_and_is_not_forgotten() {
    let mut gic = set_up(1);
    let _ = gic.set_line(SPI - 32, true);
    write(&mut gic, 0x184, 1 << (SPI - 32));
    assert_eq!(list(&mut gic, 0), []);
    assert_eq!(gic.read_distributor(0x204, Width::Four), 1 << (SPI - 32));
    let kick = gic.write_distributor(0x104, Width::Four, 1 << (SPI - 32));
    assert!(kick.has(vcpu(0)));
    write(&mut gic, 0, 0);
    assert_eq!((list(&mut gic, 0), gic.wakes(vcpu(0))), (vec![], false));
    assert!(gic.write_distributor(0, Width::Four, 2).has(vcpu(0)));
    assert_eq!(intids(&list(&mut gic, 0)), [u64::from(SPI)]);
}

#[test]
fn software_makes_interrupts_pending_and_active_and_takes_it_back() {
    let mut gic = set_up(1);
    let mine = 1 << (SPI - 32);
    write(&mut gic, 0x204, mine);
    assert_eq!(list(&mut gic, 0)[0] & STATE, PENDING);
    // Withdrawn while the vCPU runs with it, and not taken.
    write(&mut gic, 0x284, mine);
    gic.fold(vcpu(0), &[PENDING | u64::from(SPI)]);
    assert_eq!(list(&mut gic, 0), []);
    write(&mut gic, 0x304, mine);
    assert_eq!(gic.read_distributor(0x384, Width::Four), mine);
    assert_eq!(list(&mut gic, 0)[0] & STATE, ACTIVE);
    write(&mut gic, 0x384, mine);
    gic.fold(vcpu(0), &[ACTIVE | u64::from(SPI)]);
    assert_eq!(list(&mut gic, 0), []);
}

#[test]
fn an_edge_interrupt_is_raised_once_by_each_rise_of_its_input() {
    let mut gic = set_up(1);
    write(&mut gic, 0xc08, 2 << (2 * (SPI - 32)));
    let _ = gic.set_line(SPI - 32, true);
    let lrs = list(&mut gic, 0);
    assert_eq!(lrs[0] & (STATE | EOI), PENDING, "no need to look at the input again");
    let _ = gic.set_line(SPI - 32, true);
    gic.fold(vcpu(0), &[lrs[0] & !PENDING | ACTIVE]);
    assert_eq!(list(&mut gic, 0)[0] & STATE, ACTIVE);
    let _ = gic.set_line(SPI - 32, false);
    let _ = gic.set_line(SPI - 32, true);
    assert_eq!(list(&mut gic, 0)[0] & STATE, STATE);
}
