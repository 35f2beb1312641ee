//! Random lives of an interrupt controller: a guest that stores anything to any register, takes, ends or leaves what it
//! is shown, and devices that come and go.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics says that it failed")]
#![allow(clippy::arithmetic_side_effects, reason = "addresses and small numbers of a test")]
#![allow(clippy::cast_possible_truncation, reason = "INTIDs are small")]

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use vmm::gic::{FIRST_SPI, REDISTRIBUTOR_SIZE, TIMER};
use vmm::{Gic, VcpuCount, VcpuIndex, Width};

const VCPUS: usize = 3;
const LAST: u32 = 95;
/// Interrupts that stay edge triggered whatever is stored: those of GICD_ICFGR3, and SGIs.
const EDGES: std::ops::Range<u32> = 48..64;
const SGI_FRAME: u64 = 0x1_0000;

const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const STATE: u64 = PENDING | ACTIVE;
const GROUP1: u64 = 1 << 60;
const HW: u64 = 1 << 61;
const EOI: u64 = 1 << 41;
const VINTID: u64 = 0xffff_ffff;

/// What a guest does with one of its list registers.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Leave,
    Take,
    TakeAndEnd,
}

#[derive(Clone, Debug)]
enum Op {
    Line(u32, bool),
    Timer(usize, bool),
    Sgi(usize, u64),
    /// Raises an edge interrupt by its input.
    Pulse(u32),
    Distributor(u64, u32),
    Redistributor(usize, u64, u32),
    Route(u32, u64),
    /// A vCPU enters with so many list registers, unless it is in.
    Enter(usize, usize),
    /// And comes back.
    Leave(usize, Vec<Deed>),
}

fn op() -> impl Strategy<Value = Op> {
    let banked = prop::sample::select(vec![0x80_u64, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380]);
    let offset = prop_oneof![
        4 => (banked, 1..3_u64).prop_map(|(kind, bank)| kind + 4 * bank),
        2 => (0x420..0x460_u64).prop_map(|offset| offset & !3),
        1 => Just(0xc08_u64),
        1 => Just(0xc10_u64),
        1 => Just(0),
    ];
    let private =
        prop::sample::select(vec![0x80_u64, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x418, 0xc04]);
    let word = prop_oneof![any::<u32>(), (0..32_u32).prop_map(|n| 1 << n), Just(u32::MAX)];
    let deed = prop_oneof![Just(Deed::Leave), Just(Deed::Take), Just(Deed::TakeAndEnd)];
    let vcpu = 0..VCPUS;
    prop_oneof![
        2 => (FIRST_SPI..48, any::<bool>()).prop_map(|(intid, high)| Op::Line(intid, high)),
        1 => (vcpu.clone(), any::<bool>()).prop_map(|(vcpu, fired)| Op::Timer(vcpu, fired)),
        3 => (vcpu.clone(), 0..16_u64, any::<u16>(), any::<bool>())
            .prop_map(|(vcpu, id, list, others)| Op::Sgi(vcpu, id << 24 | u64::from(list) | u64::from(others) << 40)),
        3 => EDGES.prop_map(Op::Pulse),
        3 => (offset, word.clone()).prop_map(|(offset, value)| Op::Distributor(offset, value)),
        2 => (vcpu.clone(), private, word).prop_map(|(vcpu, offset, value)| Op::Redistributor(vcpu, offset, value)),
        1 => (FIRST_SPI..=LAST, 0..4_u64).prop_map(|(intid, route)| Op::Route(intid, route)),
        6 => (vcpu.clone(), 1..6_usize).prop_map(|(vcpu, room)| Op::Enter(vcpu, room)),
        6 => (vcpu, prop::collection::vec(deed, 6)).prop_map(|(vcpu, deeds)| Op::Leave(vcpu, deeds)),
    ]
}

/// A private interrupt is a vCPU's own.
type Key = (u32, Option<usize>);

fn key(intid: u64, vcpu: usize) -> Key {
    let intid = intid as u32;
    (intid, (intid < FIRST_SPI).then_some(vcpu))
}

struct World {
    gic: Gic,
    vcpus: Vec<VcpuIndex>,
    /// List registers of vCPUs that are in the guest.
    inside: BTreeMap<usize, Vec<u64>>,
    /// Edge interrupts that were raised and have not been taken since.
    owed: BTreeSet<Key>,
    /// Those that were raised since they were listed.
    again: BTreeSet<Key>,
}

impl World {
    fn new() -> Self {
        let count = VcpuCount::new(VCPUS).unwrap();
        let gic = Gic::new(count);
        let vcpus = count.all().collect();
        let mut world =
            Self { gic, vcpus, inside: BTreeMap::new(), owed: BTreeSet::new(), again: BTreeSet::new() };
        world.distributor(0xc0c, 0xaaaa_aaaa);
        world.open();
        world
    }

    /// Everything is enabled and goes to vCPU 0.
    fn open(&mut self) {
        for bank in 1..3 {
            self.distributor(0x80 + 4 * bank, u32::MAX);
            self.distributor(0x100 + 4 * bank, u32::MAX);
        }
        for vcpu in 0..VCPUS {
            self.redistributor(vcpu, 0x80, u32::MAX);
            self.redistributor(vcpu, 0x100, u32::MAX);
        }
        for intid in FIRST_SPI..=LAST {
            let _ = self.gic.write_distributor(0x6000 + 8 * u64::from(intid), Width::Eight, 0);
        }
        self.distributor(0, 2);
    }

    fn distributor(&mut self, offset: u64, value: u32) {
        let _ = self.gic.write_distributor(offset, Width::Four, value.into());
    }

    fn redistributor(&mut self, vcpu: usize, offset: u64, value: u32) {
        let at = vcpu as u64 * REDISTRIBUTOR_SIZE + SGI_FRAME + offset;
        let _ = self.gic.write_redistributor(at, Width::Four, value.into());
    }

    fn read(&self, intid: u32, vcpu: usize, offset: u64) -> u64 {
        if intid < FIRST_SPI {
            self.gic.read_redistributor(vcpu as u64 * REDISTRIBUTOR_SIZE + SGI_FRAME + offset, Width::Four)
        } else {
            self.gic.read_distributor(offset, Width::Four)
        }
    }

    fn bit(&self, intid: u32, vcpu: usize, kind: u64) -> bool {
        self.read(intid, vcpu, kind + u64::from(intid / 32 * 4)) >> (intid % 32) & 1 == 1
    }

    fn priority(&self, intid: u32, vcpu: usize) -> u64 {
        self.read(intid, vcpu, 0x400 + u64::from(intid & !3)) >> (intid % 4 * 8) & 0xff
    }

    fn raised(&mut self, key: Key) {
        self.owed.insert(key);
        self.again.insert(key);
    }

    fn is_edge(intid: u32) -> bool {
        intid < 16 || EDGES.contains(&intid)
    }

    /// Software made these pending, or not.
    fn software(&mut self, kind: u64, first: u32, vcpu: usize, value: u32) {
        for intid in (first..first + 32).filter(|i| value >> (i - first) & 1 == 1 && Self::is_edge(*i)) {
            let key = key(intid.into(), vcpu);
            match kind {
                0x200 => self.raised(key),
                0x280 => {
                    self.owed.remove(&key);
                    self.again.remove(&key);
                }
                _ => {}
            }
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Line(intid, high) => {
                let _ = self.gic.set_line(intid - FIRST_SPI, *high);
            }
            Op::Timer(vcpu, fired) => {
                let _ = self.gic.set_timer(self.vcpus[*vcpu], *fired);
            }
            Op::Pulse(intid) => {
                let _ = self.gic.set_line(intid - FIRST_SPI, true);
                let _ = self.gic.set_line(intid - FIRST_SPI, false);
                self.raised(key((*intid).into(), 0));
            }
            Op::Sgi(vcpu, value) => {
                let id = value >> 24 & 0xf;
                let before: Vec<bool> = (0..VCPUS).map(|v| self.bit(id as u32, v, 0x80)).collect();
                let _ = self.gic.send_sgi(self.vcpus[*vcpu], *value);
                let others = value >> 40 & 1 == 1;
                for (to, in_group) in before.into_iter().enumerate() {
                    let named = if others { to != *vcpu } else { value >> to & 1 == 1 };
                    if named && in_group {
                        self.raised(key(id, to));
                    }
                }
            }
            Op::Distributor(offset, value) => {
                self.distributor(*offset, *value);
                self.software(offset & !0x7f, (offset & 0x7f) as u32 * 8, 0, *value);
            }
            Op::Redistributor(vcpu, offset, value) => {
                self.redistributor(*vcpu, *offset, *value);
                self.software(*offset, 0, *vcpu, *value);
            }
            Op::Route(intid, route) => {
                let _ = self.gic.write_distributor(0x6000 + 8 * u64::from(*intid), Width::Eight, *route);
            }
            Op::Enter(vcpu, room) => self.enter(*vcpu, *room),
            Op::Leave(vcpu, deeds) => self.leave(*vcpu, deeds),
        }
    }

    fn enter(&mut self, vcpu: usize, room: usize) {
        if self.inside.contains_key(&vcpu) {
            return;
        }
        let listing = self.gic.list(self.vcpus[vcpu], room);
        let lrs = listing.registers.to_vec();
        assert!(lrs.len() <= room);
        for (n, lr) in lrs.iter().enumerate() {
            acceptable(*lr);
            let its = key(lr & VINTID, vcpu);
            let elsewhere = self.inside.iter().flat_map(|(v, lrs)| lrs.iter().map(|lr| key(lr & VINTID, *v)));
            assert!(
                !elsewhere.chain(lrs[..n].iter().map(|lr| key(lr & VINTID, vcpu))).any(|k| k == its),
                "{its:?} twice"
            );
            self.again.remove(&its);
        }
        self.nobody_was_overtaken(vcpu, &lrs, listing.hcr);
        self.inside.insert(vcpu, lrs);
    }

    /// What was left over has no higher priority than what was listed and is not active, and is announced.
    fn nobody_was_overtaken(&self, vcpu: usize, lrs: &[u64], hcr: u32) {
        let on = self.gic.read_distributor(0, Width::Four) & 2 != 0;
        let listed: BTreeSet<u32> = lrs.iter().map(|lr| (lr & VINTID) as u32).collect();
        let worst = lrs.iter().filter(|lr| *lr & ACTIVE == 0).map(|lr| (lr >> 48 & 0xff, lr & VINTID)).max();
        let word = |first, kind| self.read(first, vcpu, kind + u64::from(first / 8));
        let waiting = [0, 32, 64]
            .map(|first| word(first, 0x80) & word(first, 0x100) & word(first, 0x200) & !word(first, 0x300));
        let waits = |intid: u32| waiting[intid as usize / 32] >> (intid % 32) & 1 == 1;
        for intid in (0..=LAST).filter(|intid| waits(*intid) && !listed.contains(intid)) {
            let elsewhere = self.inside.values().flatten().any(|lr| lr & VINTID == u64::from(intid));
            let mine = intid < FIRST_SPI
                || self.gic.read_distributor(0x6000 + 8 * u64::from(intid), Width::Eight) == vcpu as u64
                    && !elsewhere;
            if on && mine {
                assert!(
                    worst.is_none_or(|worst| worst < (self.priority(intid, vcpu), intid.into())),
                    "{intid} overtaken"
                );
                assert_eq!(hcr, 2, "{intid} waits and nobody is told");
            }
        }
    }

    fn leave(&mut self, vcpu: usize, deeds: &[Deed]) {
        let Some(mut lrs) = self.inside.remove(&vcpu) else { return };
        for (lr, deed) in lrs.iter_mut().zip(deeds) {
            let (pending, key) = (*lr & PENDING != 0, key(*lr & VINTID, vcpu));
            match deed {
                Deed::Leave => continue,
                // One that is active and pending has to be ended first.
                Deed::Take if *lr & STATE == PENDING => *lr = *lr & !STATE | ACTIVE,
                Deed::Take => continue,
                Deed::TakeAndEnd => *lr &= !STATE,
            }
            if pending && !self.again.contains(&key) {
                self.owed.remove(&key);
            }
        }
        self.gic.fold(self.vcpus[vcpu], &lrs);
    }

    /// Lets the guest take and end all there is.
    fn drain(&mut self) {
        for vcpu in 0..VCPUS {
            self.leave(vcpu, &[Deed::Leave; 6]);
        }
        self.open();
        for bank in 1..3 {
            self.distributor(0x380 + 4 * bank, u32::MAX);
        }
        for vcpu in 0..VCPUS {
            self.redistributor(vcpu, 0x380, u32::MAX);
        }
        for intid in FIRST_SPI..48 {
            let _ = self.gic.set_line(intid - FIRST_SPI, false);
        }
        for vcpu in 0..VCPUS {
            let _ = self.gic.set_timer(self.vcpus[vcpu], false);
            for _ in 0..100 {
                self.enter(vcpu, 4);
                self.leave(vcpu, &[Deed::TakeAndEnd; 6]);
            }
            assert!(!self.gic.wakes(self.vcpus[vcpu]), "there is no end");
        }
    }
}

/// What the hypervisor takes: docs/abi.md.
fn acceptable(lr: u64) {
    assert!(lr & STATE != 0 && lr & GROUP1 != 0);
    if lr & VINTID == u64::from(TIMER) {
        assert!(lr & HW != 0 && lr >> 32 & 0x1fff == u64::from(TIMER) && lr & STATE != STATE);
    } else {
        assert_eq!(lr & !(STATE | GROUP1 | 0xff << 48 | VINTID | EOI), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Also: at most one list register has it, priorities are kept, the hypervisor takes what is listed.
    #[test]
    fn an_interrupt_that_was_raised_is_taken_in_the_end(ops in prop::collection::vec(op(), 0..120)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        world.drain();
        prop_assert!(world.owed.is_empty(), "lost: {:?}", world.owed);
    }
}
