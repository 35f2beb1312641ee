//! A machine that tells the checker what it is asked to do.
//!
//! Each operation and what the checker makes of it are one step under the checker's own lock, so
//! that operations of several CPUs have one order. That lock is the innermost of all.
#![forbid(unsafe_code)]

use super::checker::{Checker, Scope, Violation};
use crate::addr::{Pfn, PfnRange};
use crate::exception::{El1Entry, El1State};
use crate::guest::context::VcpuContext;
use crate::guest::exit::{FaultAddress, RawExit};
use crate::guest::traps::Traps;
use crate::hw::{
    CacheOps, CpuFeatures, Dsb, Event, Machine, MappedPage, Observe, Outer, PhysMem, Placement, Stage2Ctx,
    Tags, Tlb, Tlbi, WorldSwitch,
};
use core::ops::Deref;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// The checker that all CPUs share, and what happens on a violation.
#[derive(Debug)]
pub struct Watch<const PAGES: usize, const OPEN: usize> {
    checker: SpinMutex<Checker<PAGES, OPEN>>,
    report: fn(&Violation),
}

impl<const PAGES: usize, const OPEN: usize> Watch<PAGES, OPEN> {
    /// `report` hears of each violation that is kept: the image panics, a test reads the list.
    #[must_use]
    pub const fn new(scope: Scope, report: fn(&Violation)) -> Self {
        Self { checker: SpinMutex::new(Checker::new(scope)), report }
    }

    /// The checker itself. No operation goes on while this is held.
    pub fn checker(&self) -> SpinMutexGuard<'_, Checker<PAGES, OPEN>> {
        self.checker.lock()
    }
}

/// The machine `M` as `cpu`, under the eyes of a [`Watch`].
#[derive(Clone, Debug)]
pub struct Traced<M, W> {
    machine: M,
    watch: W,
    cpu: usize,
}

impl<M, W> Traced<M, W> {
    /// One CPU of the machine; each index belongs to one CPU.
    pub const fn new(machine: M, watch: W, cpu: usize) -> Self {
        Self { machine, watch, cpu }
    }

    /// The machine underneath: what is done to it directly is not seen.
    pub const fn untraced(&self) -> &M {
        &self.machine
    }

    /// The watch.
    pub const fn watch(&self) -> &W {
        &self.watch
    }
}

impl<M: Machine, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> Traced<M, W> {
    /// Lets the checker judge, then does it, as one step.
    #[inline]
    fn step<T>(&self, judge: impl FnOnce(&mut Checker<P, O>, &M, usize), perform: impl FnOnce(&M) -> T) -> T {
        let mut checker = self.watch.checker();
        let known = checker.violations().len();
        judge(&mut checker, &self.machine, self.cpu);
        for violation in checker.violations().iter().skip(known) {
            (self.watch.report)(violation);
        }
        perform(&self.machine)
    }
}

impl<M: Machine, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> PhysMem for Traced<M, W> {
    fn read_entry(&self, page: Pfn, index: usize) -> u64 {
        self.step(|c, hw, cpu| c.on_read(hw, cpu, page), |hw| hw.read_entry(page, index))
    }

    fn write_entry(&self, page: Pfn, index: usize, value: u64) {
        self.step(
            |c, hw, cpu| c.on_write_entry(hw, cpu, page, index, value),
            |hw| hw.write_entry(page, index, value),
        );
    }

    fn write_word(&self, page: Pfn, index: usize, value: u64) {
        self.step(|c, hw, cpu| c.on_write_word(hw, cpu, page), |hw| hw.write_word(page, index, value));
    }

    fn put_word(&self, page: MappedPage, index: usize, value: u64) {
        self.step(|c, hw, cpu| c.on_put(hw, cpu, page, index), |hw| hw.put_word(page, index, value));
    }

    fn get_word(&self, page: MappedPage, index: usize) -> u64 {
        self.step(|c, hw, cpu| c.on_get(hw, cpu, page), |hw| hw.get_word(page, index))
    }

    fn zero_page(&self, page: MappedPage) {
        self.step(|c, hw, cpu| c.on_fill(hw, cpu, page), |hw| hw.zero_page(page));
    }

    fn copy_page(&self, from: MappedPage, to: MappedPage) {
        self.step(|c, hw, cpu| c.on_copy(hw, cpu, from, to), |hw| hw.copy_page(from, to));
    }

    fn copy_entries(&self, from: MappedPage, to: MappedPage, accessed: bool) -> u64 {
        let judge = |c: &mut Checker<P, O>, hw: &M, cpu| c.on_copy_entries(hw, cpu, from, to);
        self.step(judge, |hw| hw.copy_entries(from, to, accessed))
    }
}

impl<M: Machine, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> Tlb for Traced<M, W> {
    fn dsb(&self, scope: Dsb) {
        self.step(|c, _, cpu| c.on_dsb(cpu, scope), |hw| hw.dsb(scope));
    }

    fn isb(&self) {
        self.machine.isb();
    }

    fn tlbi(&self, op: Tlbi) {
        self.step(|c, hw, cpu| c.on_tlbi(hw, cpu, op), |hw| hw.tlbi(op));
    }

    fn enter_stage2(&self, target: Stage2Ctx) -> Outer {
        let outer = self.machine.enter_stage2(target);
        self.step(|c, _, cpu| c.on_enter(cpu, target, outer.stage2), |_| outer)
    }

    fn leave_stage2(&self, outer: Outer) {
        self.step(|c, _, cpu| c.on_leave(cpu, outer.stage2), |hw| hw.leave_stage2(outer));
    }
}

impl<M: Machine, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> CacheOps for Traced<M, W> {
    fn clean_to_poc(&self, page: MappedPage) {
        self.step(|c, hw, cpu| c.on_clean(hw, cpu, page, false), |hw| hw.clean_to_poc(page));
    }

    fn clean_invalidate_to_poc(&self, page: MappedPage) {
        self.step(|c, hw, cpu| c.on_clean(hw, cpu, page, true), |hw| hw.clean_invalidate_to_poc(page));
    }

    fn invalidate_icache(&self, page: MappedPage) {
        self.step(|c, hw, cpu| c.on_icache(hw, cpu, page), |hw| hw.invalidate_icache(page));
    }
}

impl<M: Machine, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> Tags for Traced<M, W> {
    fn zero_tags(&self, page: MappedPage) {
        self.step(|c, hw, cpu| c.on_tags(hw, cpu, page), |hw| hw.zero_tags(page));
    }
}

impl<M: Machine, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> Observe for Traced<M, W> {
    fn observe(&self, event: Event) {
        self.step(|c, hw, cpu| c.on_event(hw, cpu, event), |hw| hw.observe(event));
    }
}

impl<M: Machine, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> Machine for Traced<M, W> {
    type Relax = M::Relax;

    fn features(&self) -> &CpuFeatures {
        self.machine.features()
    }
}

impl<M: Machine + Placement, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> Placement
    for Traced<M, W>
{
    type Placed<T: Send> = M::Placed<T>;

    fn place<T: Send>(&self, pages: PfnRange, value: T) -> Self::Placed<T> {
        self.machine.place(pages, value)
    }

    fn displace<T: Send>(&self, placed: Self::Placed<T>) -> T {
        self.machine.displace(placed)
    }
}

impl<M: Machine + WorldSwitch, W: Deref<Target = Watch<P, O>>, const P: usize, const O: usize> WorldSwitch
    for Traced<M, W>
{
    fn load_guest(&self, ctx: &mut VcpuContext, traps: &Traps, stage2: Stage2Ctx, flush: bool) {
        self.step(|c, _, cpu| c.on_switch(cpu, stage2), |hw| hw.load_guest(ctx, traps, stage2, flush));
    }

    fn enter_guest(&self, ctx: &mut VcpuContext) -> RawExit {
        self.machine.enter_guest(ctx)
    }

    fn fault_address(&self) -> FaultAddress {
        self.machine.fault_address()
    }

    fn unload_guest(&self, ctx: &mut VcpuContext, host: Stage2Ctx) {
        self.step(|c, _, cpu| c.on_switch(cpu, host), |hw| hw.unload_guest(ctx, host));
    }

    fn load_fp(&self, ctx: &mut VcpuContext) {
        self.machine.load_fp(ctx);
    }

    fn load_keys(&self, ctx: &VcpuContext) {
        self.machine.load_keys(ctx);
    }

    fn el1_state(&self) -> El1State {
        self.machine.el1_state()
    }

    fn take_exception(&self, ctx: &mut VcpuContext, entry: El1Entry, far: Option<u64>) {
        self.machine.take_exception(ctx, entry, far);
    }

    fn translate(&self, va: u64) -> Option<u64> {
        self.machine.translate(va)
    }

    fn host_streams(&self) -> bool {
        self.machine.host_streams()
    }

    fn counter(&self) -> u64 {
        self.machine.counter()
    }

    fn random(&self) -> Option<u64> {
        self.machine.random()
    }

    fn workaround(&self, id: u32) {
        self.machine.workaround(id);
    }
}
