//! Each operation, and how its figure comes about: twice with different counts, and what is more, divided.
//!
//! Each of the two is the median of several turns, behind some that are not counted. A tick of the host's clock can fall into
//! a guest's turn, which makes one more exit; so few do that the median has none. All VMs have the same memory, which is
//! locked in its place: what EL2 does once for a page, or for the block around it, is done by the turns that are not counted.
#![forbid(unsafe_code)]

use crate::arch::{Mapping, Pages};
use crate::counter::Counter;
use crate::guest::{Guest, Program, Turns};
use crate::kvm::{Kind, Kvm, RAM};
use anyhow::{Context, Result, ensure};
use std::rc::Rc;

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;
/// An unassigned function of the range in which hypervisors have theirs: KVM says that it has it not (Arm, DEN0028).
const NO_SUCH_FUNCTION: u64 = 0x8600_0020;
const NOT_SUPPORTED: u64 = 0xffff_ffff;
/// Calls that pKVM's EL2 answers (Linux, Documentation/virt/kvm/arm/hypercalls.rst).
const HYP_MEMINFO: u64 = 0xc600_0002;
const MEM_SHARE: u64 = 0xc600_0003;
const MEM_UNSHARE: u64 = 0xc600_0004;
/// Turns that are not counted, and turns of which the median counts; a turn that makes a VM has few ticks in it, and takes long.
const WARM_UP: usize = 2;
const TURNS: usize = 15;
const VM_TURNS: usize = 5;
/// Fewer and more of the same thing: few enough that most turns of a guest end before the next tick.
const COUNTS: [u64; 2] = [10, 60];
/// Most pages and blocks of a guest.
const PAGES: u64 = 300;
const BLOCKS: u64 = 24;

/// Measures with.
#[derive(Debug)]
pub(crate) struct Bench {
    kvm: Kvm,
    counter: Counter,
    small: Rc<Mapping>,
    huge: Rc<Mapping>,
}

/// The name of a metric, and what gives it.
pub(crate) type Operation = (&'static str, fn(&Bench) -> Result<u64>);

/// All of them.
pub(crate) const OPERATIONS: &[Operation] = &[
    ("guest_exit", |bench| bench.calls(Kind::Plain, NO_SUCH_FUNCTION, NOT_SUPPORTED)),
    ("guest_exit_protected", |bench| bench.calls(Kind::Protected, NO_SUCH_FUNCTION, NOT_SUPPORTED)),
    ("guest_mmio", |bench| bench.mmio(Kind::Plain)),
    ("guarded_read", |bench| bench.mmio(Kind::Protected)),
    ("guest_call", |bench| bench.calls(Kind::Protected, HYP_MEMINFO, PAGE)),
    ("guest_fault_shared", |bench| bench.fault(Kind::Plain, Pages::Small)),
    ("guest_fault_shared_2m", |bench| bench.fault(Kind::Plain, Pages::Huge)),
    ("guest_fault_donated", |bench| bench.fault(Kind::Protected, Pages::Small)),
    ("guest_mem_share", |bench| bench.share(MEM_SHARE)),
    ("guest_mem_unshare", |bench| bench.share(MEM_UNSHARE)),
    ("vm_create", |bench| bench.create(Kind::Plain)),
    ("vm_create_protected", |bench| bench.create(Kind::Protected)),
    ("vm_destroy", |bench| bench.destroy(Kind::Plain)),
    ("vm_destroy_protected", |bench| bench.destroy(Kind::Protected)),
    ("vm_destroy_per_page", |bench| bench.destroy_per_page(Kind::Plain)),
    ("vm_destroy_protected_per_page", |bench| bench.destroy_per_page(Kind::Protected)),
    ("vcpu_load_put", Bench::load_put),
    ("first_touch_2m", Bench::touch_2m),
];

/// What KVM does not do, and why.
pub(crate) const ABSENT: &[(&str, &str)] = &[
    ("guest_fault_donated_2m", "protected KVM gives a guest single pages"),
    (
        "first_touch_4k",
        "protected KVM maps what a guest gives back, and the rest of a block that it splits, at once",
    ),
];

impl Bench {
    /// With this counter.
    ///
    /// # Errors
    /// There is no KVM, or no memory.
    pub(crate) fn new(counter: Counter) -> Result<Self> {
        let memory = |pages, count: u64| {
            let length = stride(pages).saturating_mul(count);
            Mapping::locked(usize::try_from(length)?, pages).map(Rc::new).context("locked memory")
        };
        let (small, huge) = (memory(Pages::Small, PAGES)?, memory(Pages::Huge, BLOCKS)?);
        Ok(Self { kvm: Kvm::open()?, counter, small, huge })
    }

    /// A guest whose memory is pages, or blocks. The host has touched them: what it costs to map them for the host is another
    /// figure.
    fn guest(&self, kind: Kind, pages: Pages) -> Result<Guest> {
        let memory = match pages {
            Pages::Small => &self.small,
            Pages::Huge => &self.huge,
        };
        Guest::new(&self.kvm, kind, Rc::clone(memory))
    }

    /// Calls of one function, which answers so.
    fn calls(&self, kind: Kind, function: u64, answer: u64) -> Result<u64> {
        let guest = self.guest(kind, Pages::Small)?;
        each(TURNS, COUNTS, |count| {
            let turns = Turns { count, function, at: 0, stride: 0 };
            guest.start(Program::Calls, turns)?;
            self.counter.over(|| {
                let said = guest.finish()? & NOT_SUPPORTED;
                ensure!(said == answer, "{function:#x} answers {said:#x} and not {answer:#x}");
                Ok(())
            })
        })
    }

    fn mmio(&self, kind: Kind) -> Result<u64> {
        let guest = self.guest(kind, Pages::Small)?;
        guest.run(Program::Loads, Turns { count: 0, function: 0, at: 0, stride: 0 })?;
        each(TURNS, COUNTS, |count| {
            self.counter.over(|| (0..count).try_for_each(|_| guest.finish().map(drop)))
        })
    }

    /// A guest's first touch of pages, or blocks, behind the first few.
    fn fault(&self, kind: Kind, pages: Pages) -> Result<u64> {
        let stride = stride(pages);
        let at = |nth: u64| RAM.saturating_add(stride.saturating_mul(nth));
        each(VM_TURNS, [4, 20], |count| {
            let guest = self.guest(kind, pages)?;
            // The first of them may need a table, or a block of the host's be split.
            guest.run(Program::Stores, Turns { count: 2, function: 0, at: at(1), stride })?;
            guest.start(Program::Stores, Turns { count, function: 0, at: at(3), stride })?;
            self.counter.over(|| guest.finish())
        })
    }

    /// MEM_SHARE, or MEM_UNSHARE, of pages that the guest has already.
    fn share(&self, wanted: u64) -> Result<u64> {
        let guest = self.guest(Kind::Protected, Pages::Small)?;
        let at = RAM.saturating_add(PAGE);
        guest.run(Program::Stores, Turns { count: COUNTS[1], function: 0, at, stride: PAGE })?;
        each(TURNS, COUNTS, |count| {
            let turns = |function| Turns { count, function, at, stride: PAGE };
            let call = |function| {
                guest.start(Program::Calls, turns(function))?;
                self.counter.over(|| {
                    let said = guest.finish()?;
                    ensure!(said == 0, "{function:#x} answers {said:#x}");
                    Ok(())
                })
            };
            let (share, unshare) = (call(MEM_SHARE)?, call(MEM_UNSHARE)?);
            Ok(if wanted == MEM_SHARE { share } else { unshare })
        })
    }

    fn create(&self, kind: Kind) -> Result<u64> {
        median(VM_TURNS, || {
            let mut guest = None;
            // The guest lives until the counter has been read.
            self.counter.over(|| guest.insert(self.guest(kind, Pages::Small)?).load_and_put())
        })
    }

    fn destroy(&self, kind: Kind) -> Result<u64> {
        median(VM_TURNS, || {
            let guest = self.guest(kind, Pages::Small)?;
            guest.load_and_put()?;
            self.counter.over(|| end(guest))
        })
    }

    fn destroy_per_page(&self, kind: Kind) -> Result<u64> {
        each(VM_TURNS, [16, 272], |count| {
            let guest = self.guest(kind, Pages::Small)?;
            let at = RAM.saturating_add(PAGE);
            guest.run(Program::Stores, Turns { count, function: 0, at, stride: PAGE })?;
            self.counter.over(|| end(guest))
        })
    }

    fn load_put(&self) -> Result<u64> {
        let guest = self.guest(Kind::Plain, Pages::Small)?;
        guest.load_and_put()?;
        each(TURNS, COUNTS, |count| self.counter.over(|| (0..count).try_for_each(|_| guest.load_and_put())))
    }

    /// Blocks that nobody had: one that somebody had is mapped for the host already and costs nothing.
    fn touch_2m(&self) -> Result<u64> {
        let length = BLOCK.saturating_mul(64);
        let memory = Mapping::anonymous(usize::try_from(length)?, Pages::Huge)?;
        let offsets = (0..length).step_by(usize::try_from(BLOCK)?);
        let costs = offsets.map(|offset| self.counter.over(|| touch(&memory, offset)));
        let costs = costs.filter(|cost| !matches!(cost, Ok(0))).collect::<Result<Vec<u64>>>()?;
        middle(costs).context("the host has touched all of its memory already")
    }
}

/// Closes the VM's files, with which it ends.
fn end(guest: Guest) -> Result<()> {
    drop(guest);
    Ok(())
}

const fn stride(pages: Pages) -> u64 {
    match pages {
        Pages::Small => PAGE,
        Pages::Huge => BLOCK,
    }
}

/// The host touches a page.
fn touch(memory: &Mapping, offset: u64) -> Result<()> {
    Ok(memory.touch(usize::try_from(offset)?)?)
}

/// The median of the turns that count.
fn median(turns: usize, mut turn: impl FnMut() -> Result<u64>) -> Result<u64> {
    for _ in 0..WARM_UP {
        turn()?;
    }
    let costs = (0..turns).map(|_| turn()).collect::<Result<Vec<u64>>>()?;
    middle(costs).context("no turn")
}

fn middle(mut costs: Vec<u64>) -> Option<u64> {
    costs.sort_unstable();
    costs.get(costs.len() / 2).copied()
}

/// What one of many adds, rounded.
fn each(turns: usize, [few, many]: [u64; 2], mut turn: impl FnMut(u64) -> Result<u64>) -> Result<u64> {
    // The larger number first: what it does once is done for both.
    let much = median(turns, || turn(many))?;
    let little = median(turns, || turn(few))?;
    let more = many.saturating_sub(few);
    let cost = much.checked_sub(little).context("more of it costs less")?;
    cost.checked_add(more / 2).and_then(|cost| cost.checked_div(more)).context("no difference")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_same_for_few_and_many_is_in_no_figure() {
        assert_eq!(each(TURNS, COUNTS, |count| Ok(5000 + 7 * count)).unwrap(), 7);
        assert_eq!(
            each(TURNS, COUNTS, |count| Ok(5050 + 7 * count + u64::from(count > 10) * 50)).unwrap(),
            8
        );
    }

    #[test]
    fn a_turn_with_a_tick_in_it_does_not_count() {
        let mut turns = 0_u64;
        let cost = each(TURNS, [1, 2], |count| {
            turns += 1;
            Ok(100 * count + if turns.is_multiple_of(3) { 3000 } else { 0 })
        });
        assert_eq!(cost.unwrap(), 100);
    }

    #[test]
    fn less_for_more_is_no_figure() {
        assert!(each(TURNS, [1, 2], |count| Ok(100 - count)).is_err());
    }
}
