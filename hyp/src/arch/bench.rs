//! What the table engine costs, in EL2 instructions: feature `bench` only.
//!
//! Under `-icount shift=0` one instruction is one nanosecond of the counter, so the figures are
//! exact where the counter runs at 1 GHz and rounded to a fraction of an instruction elsewhere.
//! The table is a stage 2 of a VMID that nothing runs with, in scratch pages of the carve-out.

use super::{Hw, IMAGE, regs};
use core::hint::black_box;
use core::ops::ControlFlow;
use hyp::addr::{BLOCK_SIZE, IpaRange, PAGE_SIZE, Pa, Pfn, PfnRange};
use hyp::hw::{Machine, MappedPage, PhysMem, TableOwner, Tags};
use hyp::pgtable::{
    Error, Geometry, Level, MemType, Note, NoteKinds, Prot, S2Attrs, Stage2Config, Stage2Format, Stage2Table,
    TablePool, TagControl,
};

/// Pages that the benchmark needs in the carve-out.
pub(super) const SCRATCH_PAGES: u64 = SCRATCH as u64;
const SCRATCH: usize = 128;
/// Repetitions of each operation.
const TIMES: u64 = 64;
/// Where the table maps.
const BASE: u64 = 1 << 30;

/// Pages one after the other; what is given back is handed out again first.
struct Pages {
    all: PfnRange,
    fresh: u64,
    free: arrayvec::ArrayVec<Pfn, SCRATCH>,
    counts: [u16; SCRATCH],
}

impl Pages {
    fn count(&mut self, page: Pfn) -> Option<&mut u16> {
        let index = page.raw().checked_sub(self.all.start().raw())?;
        self.counts.get_mut(usize::try_from(index).ok()?)
    }
}

impl TablePool for Pages {
    fn alloc(&mut self) -> Option<Pfn> {
        self.free.pop().or_else(|| {
            let page = self.all.start().checked_add(self.fresh)?;
            self.fresh = self.fresh.saturating_add(1);
            self.all.contains(page).then_some(page)
        })
    }

    fn free(&mut self, page: Pfn) {
        self.free.push(page);
    }

    fn add_entries(&mut self, table: Pfn, nr: u16) {
        if let Some(count) = self.count(table) {
            *count = count.saturating_add(nr);
        }
    }

    fn remove_entries(&mut self, table: Pfn, nr: u16) {
        if let Some(count) = self.count(table) {
            *count = count.saturating_sub(nr);
        }
    }

    fn entries(&self, table: Pfn) -> u16 {
        let index = table.raw().saturating_sub(self.all.start().raw());
        usize::try_from(index).ok().and_then(|i| self.counts.get(i)).copied().unwrap_or(0)
    }
}

/// Times `op` for each of [`TIMES`] numbers and prints the mean, as `xtask/src/protocol.rs` reads it.
fn time(name: &str, mut op: impl FnMut(u64) -> Result<(), Error>) -> Result<(), Error> {
    regs::isb();
    let start = regs::cntpct_el0();
    for n in 0..TIMES {
        op(n)?;
    }
    regs::isb();
    let ticks = u128::from(regs::cntpct_el0().wrapping_sub(start));
    let scale = u128::from(regs::cntfrq_el0()).saturating_mul(TIMES.into());
    let each = ticks.saturating_mul(1_000_000_000).checked_div(scale).unwrap_or(0);
    IMAGE.console.line(format_args!("metric: table_{name} {each} instructions"));
    Ok(())
}

fn page(n: u64) -> Result<IpaRange, Error> {
    let start = BASE.saturating_add(n.saturating_mul(PAGE_SIZE));
    IpaRange::new(start, start.saturating_add(PAGE_SIZE), 48).map_err(Error::Range)
}

fn block(n: u64) -> Result<IpaRange, Error> {
    let start = BASE.saturating_mul(2).saturating_add(n.saturating_mul(BLOCK_SIZE));
    IpaRange::new(start, start.saturating_add(BLOCK_SIZE), 48).map_err(Error::Range)
}

/// Runs every benchmark on `scratch`.
pub(super) fn run(hw: &Hw, scratch: PfnRange) {
    if let Err(e) = measure(hw, scratch) {
        log::error!("the benchmarks of the table engine ended early: {e:?}");
    }
}

fn measure(hw: &Hw, scratch: PfnRange) -> Result<(), Error> {
    let mut pool = Pages { all: scratch, fresh: 0, free: arrayvec::ArrayVec::new(), counts: [0; SCRATCH] };
    let features = hw.features();
    let geometry = Geometry::stage2(39.min(features.pa_bits.into()), features.pa_bits.into())?;
    let root = pool.alloc().ok_or(Error::NoTables { needed: 1 })?;
    let format = Stage2Format::guest(features, TagControl::Unused, NoteKinds::all());
    let config = Stage2Config { root, geometry, format, vmid: 1, owner: TableOwner::Guest(1) };
    let mut table = Stage2Table::new(hw, config)?;
    let attrs = S2Attrs::owned(Prot::RWX, MemType::Normal);
    let output = |range: IpaRange| Pa::truncated(range.start().raw()).frame();

    // The tables on the way exist: what is timed is one entry.
    table.map(hw, &mut pool, page(511)?, output(page(511)?), attrs, Level::L3)?;
    time("map_4k", |n| {
        let range = page(n)?;
        table.map(hw, &mut pool, range, output(range), attrs, Level::L3)
    })?;
    let all = IpaRange::new(BASE, BASE.saturating_add(BLOCK_SIZE), 48).map_err(Error::Range)?;
    let rest =
        IpaRange::new(page(TIMES)?.start().raw(), page(511)?.start().raw(), 48).map_err(Error::Range)?;
    table.map(hw, &mut pool, rest, output(rest), attrs, Level::L3)?;
    time("walk_512_entries", |_| {
        let mut pages = 0_u64;
        table.visit(hw, all, |_, entry| {
            black_box(&entry);
            pages = pages.wrapping_add(1);
            ControlFlow::<()>::Continue(())
        })?;
        black_box(pages);
        Ok(())
    })?;
    time("annotate_4k", |n| table.annotate(hw, &mut pool, page(n)?, Note::MmioGuard))?;
    time("unmap_4k", |n| table.unmap(hw, &mut pool, page(n.saturating_add(TIMES))?))?;

    table.map(hw, &mut pool, block(511)?, output(block(511)?), attrs, Level::L2)?;
    time("map_2m", |n| {
        let range = block(n)?;
        table.map(hw, &mut pool, range, output(range), attrs, Level::L2)
    })?;
    time("split_2m", |n| table.split(hw, &mut pool, page_of(block(n)?)?, Level::L3))?;
    let scrubbed = MappedPage::linear(pool.alloc().ok_or(Error::NoTables { needed: 1 })?);
    time("scrub_4k", |_| {
        hw.scrub(scrubbed);
        Ok(())
    })?;
    let copied = MappedPage::linear(pool.alloc().ok_or(Error::NoTables { needed: 1 })?);
    time("copy_4k", |_| {
        hw.copy_page(scrubbed, copied);
        Ok(())
    })?;
    if features.mte >= 2 {
        // The page is not mapped Tagged here, so none of its tags changes; what is executed is the same.
        time("zero_tags_4k", |_| {
            hw.zero_tags(scrubbed);
            Ok(())
        })?;
    }
    // A VM that gets this VMID later meets no CPU that remembers it.
    let _root = table.retire(hw);
    Ok(())
}

/// The first page of `range`.
fn page_of(range: IpaRange) -> Result<IpaRange, Error> {
    let start = range.start().raw();
    IpaRange::new(start, start.saturating_add(PAGE_SIZE), 48).map_err(Error::Range)
}
