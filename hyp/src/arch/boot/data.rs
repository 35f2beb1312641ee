//! How the carve-out beside the image is divided: vmemmap, the CPUs' records and stacks, tables.

use super::map::Map;
use super::{sure, usize_of};
use crate::arch::machine::El2;
use crate::arch::percpu::{self, MmuSetup, PerCpu};
use hyp::addr::{PAGE_SIZE, Pfn, PfnRange};
use hyp::hw::{CacheOps, MappedPage, PhysMem};
use hyp::mm::Record;
use hyp::pgtable::{HypAttrs, HypProt};
use hyp::platform::PaRange;
use hyp::platform::memory::Layout;

/// Stack of a CPU for exceptions from the host.
const STACK_PAGES: u64 = percpu::STACK_BYTES / PAGE_SIZE;
/// Stack of a CPU for a fatal exception.
const PANIC_STACK_PAGES: u64 = percpu::PANIC_STACK_BYTES / PAGE_SIZE;
/// Each stack has a page below it that is never mapped.
const CPU_PAGES: u64 = 1 + STACK_PAGES + 1 + PANIC_STACK_PAGES;
#[cfg(feature = "bench")]
const SCRATCH_PAGES: u64 = crate::arch::bench::SCRATCH_PAGES;
#[cfg(not(feature = "bench"))]
const SCRATCH_PAGES: u64 = 0;

/// How many pages each part has, in the order of the parts.
pub(super) struct Sizes {
    cpus: usize,
    root_alignment: u64,
    vmemmap: u64,
    records: u64,
    stacks: u64,
    /// The host's root, wherever in it the alignment falls.
    root: u64,
    /// For `bench`.
    scratch: u64,
    /// Tables of the host and of EL2: a base and a share of RAM.
    tables: u64,
}

impl Sizes {
    /// For so many pages of RAM and CPUs, and a root of so many pages.
    pub(super) fn new(ram: u64, cpus: usize, root_pages: u64) -> Self {
        Self {
            cpus,
            root_alignment: root_pages,
            vmemmap: (ram * size_of::<Record>() as u64).div_ceil(PAGE_SIZE),
            records: ((cpus * size_of::<PerCpu>()) as u64).div_ceil(PAGE_SIZE),
            stacks: cpus as u64 * CPU_PAGES,
            root: root_pages * 2 - 1,
            scratch: SCRATCH_PAGES,
            tables: 192 + (ram >> 12),
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.vmemmap + self.records + self.stacks + self.root + self.scratch + self.tables
    }
}

/// Where each part is.
pub(super) struct Data {
    cpus: usize,
    vmemmap: PfnRange,
    /// The CPUs' records.
    records: PfnRange,
    /// The CPUs' stacks, each with a page below it that is never mapped.
    stacks: PfnRange,
    /// Root of the host's table, aligned to its size.
    pub(super) host_root: Pfn,
    /// For `bench`.
    #[cfg(feature = "bench")]
    pub(super) scratch: PfnRange,
    /// Everything else: tables of the host and of EL2.
    pub(super) tables: PfnRange,
}

impl Data {
    pub(super) fn new(layout: &Layout, sizes: &Sizes) -> Self {
        let mut next = layout.data.start().raw();
        let mut take = |nr: u64| {
            let range = sure("data layout", PfnRange::new(next, nr));
            next = range.end();
            range
        };
        let vmemmap = take(sizes.vmemmap);
        let records = take(sizes.records);
        let stacks = take(sizes.stacks);
        let root = take(sizes.root).start().raw().next_multiple_of(sizes.root_alignment);
        #[cfg(feature = "bench")]
        let scratch = take(sizes.scratch);
        let tables = take(sizes.tables);
        let host_root = sure("root", Pfn::new(root));
        Self {
            cpus: sizes.cpus,
            vmemmap,
            records,
            stacks,
            host_root,
            #[cfg(feature = "bench")]
            scratch,
            tables,
        }
    }

    /// The stack and the panic stack of CPU `index`, without their guards.
    fn stacks_of(&self, index: usize) -> (PfnRange, PfnRange) {
        let first = self.stacks.start().raw() + index as u64 * CPU_PAGES;
        let stack = sure("stack", PfnRange::new(first + 1, STACK_PAGES));
        let panic = sure("panic stack", PfnRange::new(stack.end() + 1, PANIC_STACK_PAGES));
        (stack, panic)
    }

    /// Maps everything but the guards.
    pub(super) fn map(&self, map: &mut Map) {
        let mut pages = |start: u64, end: u64| {
            let bytes = PaRange::from_pages(sure("part", PfnRange::new(start, end - start)));
            map.map(bytes.start(), bytes.end(), HypAttrs::normal(HypProt::Rw));
        };
        pages(self.vmemmap.start().raw(), self.records.end());
        for index in 0..self.cpus {
            let (stack, panic) = self.stacks_of(index);
            pages(stack.start().raw(), stack.end());
            pages(panic.start().raw(), panic.end());
        }
        pages(self.stacks.end(), self.tables.end());
    }

    /// Writes the CPUs' records.
    pub(super) fn cpu_records(&self, hw: El2, mmu: MmuSetup) -> &'static [PerCpu] {
        let first =
            core::ptr::with_exposed_provenance_mut::<PerCpu>(usize_of(self.records.start().base().raw()));
        for index in 0..self.cpus {
            let (stack, panic) = self.stacks_of(index);
            #[cfg(feature = "bench")]
            crate::arch::marks::fill(hw, stack.end() * PAGE_SIZE);
            let record = PerCpu::new(mmu, index, stack.end() * PAGE_SIZE, panic.end() * PAGE_SIZE);
            let at = first.wrapping_add(index);
            // SAFETY: the pages were mapped for exactly this many records, and nobody else knows
            // of them yet.
            unsafe { at.write(record) };
        }
        // The other CPUs read their record with their MMU off.
        for page in self.records.iter() {
            hw.clean_to_poc(MappedPage::linear(page));
        }
        // SAFETY: written above; from here on shared, and changed through cells only.
        unsafe { core::slice::from_raw_parts(first, self.cpus) }
    }

    /// Zeroed vmemmap records: every page is the host's until it is said otherwise.
    pub(super) fn records(&self, hw: El2) -> &'static [Record] {
        for page in self.vmemmap.iter() {
            hw.zero_page(MappedPage::linear(page));
        }
        let at = core::ptr::with_exposed_provenance::<Record>(usize_of(self.vmemmap.start().base().raw()));
        let nr = usize_of(self.vmemmap.nr() * PAGE_SIZE) / size_of::<Record>();
        // SAFETY: zero is a valid record, the pages are mapped for good and belong to the vmemmap.
        unsafe { core::slice::from_raw_parts(at, nr) }
    }
}
