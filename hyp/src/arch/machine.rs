//! The hardware seam for EL2: `hw::Machine` in instructions.
//!
//! Invariant: a page named here is mapped in EL2's linear map, where a page's address is its
//! physical address; the portable core names only such pages.

use super::cpu::HostControls;
use super::features::{self, Switched};
use super::percpu::PerCpu;
use super::regs;
use core::sync::atomic::{AtomicU64, Ordering};
use hyp::addr::Pfn;
use hyp::hw::{
    CacheOps, CpuFeatures, Dsb, ENTRIES, Event, Machine, MappedBlock, MappedPage, Observe, Outer, PhysMem,
    Stage2Ctx, Tags, Tlb, Tlbi,
};

/// This CPU, seen by the portable core.
#[derive(Debug, Clone, Copy)]
pub(crate) struct El2 {
    /// What the portable core asks about.
    pub(crate) features: CpuFeatures,
    /// What the host may do.
    pub(crate) host: HostControls,
}

impl El2 {
    /// From this CPU's ID registers.
    pub(crate) fn new() -> Self {
        let features = features::cpu_features();
        Self { features, host: HostControls::new(&features, features::host_features()) }
    }
}

/// The words of a page.
#[inline]
fn words(page: Pfn) -> &'static [AtomicU64; ENTRIES] {
    let at = core::ptr::with_exposed_provenance::<[AtomicU64; ENTRIES]>(address(page));
    // SAFETY: the page is in the linear map (module invariant), page aligned, and only accessed
    // through atomics or whole-page operations of its owner.
    unsafe { &*at }
}

/// The words of a page that is mapped elsewhere, for as long as that lasts.
#[inline]
fn shown_words(page: &MappedPage) -> &[AtomicU64; ENTRIES] {
    let at = core::ptr::with_exposed_provenance::<[AtomicU64; ENTRIES]>(virtual_address(*page));
    // SAFETY: the mapping stands while `page` is used (MappedPage), is page aligned, and EL2 accesses it through
    // atomics or whole-page operations alone.
    unsafe { &*at }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits at EL2")]
const fn address(page: Pfn) -> usize {
    page.base().raw() as usize
}

/// Bytes in a page.
const PAGE_BYTES: usize = ENTRIES * 8;
const BLOCK_BYTES: usize = ENTRIES * PAGE_BYTES;

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits at EL2")]
const fn virtual_address(page: MappedPage) -> usize {
    page.va().raw() as usize
}

impl PhysMem for El2 {
    #[inline]
    fn read_entry(&self, page: Pfn, index: usize) -> u64 {
        words(page).get(index).map_or(0, |e| e.load(Ordering::Acquire))
    }

    #[inline]
    fn write_entry(&self, page: Pfn, index: usize, value: u64) {
        if let Some(e) = words(page).get(index) {
            e.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn write_word(&self, page: Pfn, index: usize, value: u64) {
        if let Some(e) = words(page).get(index) {
            e.store(value, Ordering::Relaxed);
        }
    }

    fn put_word(&self, page: MappedPage, index: usize, value: u64) {
        if let Some(word) = shown_words(&page).get(index) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn get_word(&self, page: MappedPage, index: usize) -> u64 {
        shown_words(&page).get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn zero_page(&self, page: MappedPage) {
        if self.host.has().mops {
            set_page(page);
        } else if let Some(block) = zva_block() {
            for_parts(page, block, dc_zva);
        } else {
            let at = core::ptr::with_exposed_provenance_mut::<u8>(virtual_address(page));
            // SAFETY: the page is mapped writable (MappedPage) and its owner is the caller.
            unsafe { at.write_bytes(0, PAGE_BYTES) };
        }
    }

    fn copy_page(&self, from: MappedPage, to: MappedPage) {
        // SAFETY: as for `copy_entries`.
        unsafe { super::copy::page(virtual_address(from), virtual_address(to)) };
    }

    fn copy_entries(&self, from: MappedPage, to: MappedPage, accessed: bool) -> u64 {
        // SAFETY: both pages are mapped (MappedPage), entries change by whole words, and the
        // target is the caller's and no table.
        unsafe { super::copy::entries(virtual_address(from), virtual_address(to), accessed) }
    }
}

/// TTL field of a TLBI operand for the 4 KiB granule, bits 47:44 (Arm ARM D8.17.6).
#[inline]
fn ttl(level: Option<u8>) -> u64 {
    level.map_or(0, |l| (0b0100 | u64::from(l & 3)) << 44)
}

impl Tlb for El2 {
    #[inline]
    fn dsb(&self, scope: Dsb) {
        match scope {
            Dsb::IshSt => regs::dsb_ishst(),
            Dsb::Ish => regs::dsb_ish(),
            Dsb::Nsh => regs::dsb_nsh(),
        }
    }

    #[inline]
    fn isb(&self) {
        regs::isb();
    }

    #[inline]
    fn tlbi(&self, op: Tlbi) {
        match op {
            Tlbi::Ipa { ipa, level } => regs::tlbi_ipas2e1is(ipa.frame().raw() | ttl(level)),
            Tlbi::IpaRange { ipa, scale, num, level } => regs::tlbi_ripas2e1is(
                ipa.frame().raw()
                    | u64::from(level.unwrap_or(0) & 3) << 37
                    | u64::from(num & 31) << 39
                    | u64::from(scale & 3) << 44
                    | 1 << 46,
            ),
            Tlbi::StageOneAndCombined => regs::tlbi_vmalle1is(),
            Tlbi::CurrentVmid => regs::tlbi_vmalls12e1is(),
            Tlbi::AllVmids => regs::tlbi_alle1is(),
            Tlbi::Hyp { va, level } => regs::tlbi_vae2is(va.raw() >> 12 | ttl(level)),
            Tlbi::AllHyp => regs::tlbi_alle2is(),
        }
    }

    #[inline]
    fn enter_stage2(&self, target: Stage2Ctx) -> Outer {
        let outer = Outer { stage2: stage2(), walks: [regs::tcr_el1(), regs::sctlr_el1()] };
        if outer.stage2 != target {
            self.stop_walks(outer.walks);
            install_stage2(target);
        }
        outer
    }

    #[inline]
    fn leave_stage2(&self, outer: Outer) {
        if outer.stage2 != stage2() {
            install_stage2(outer.stage2);
            self.start_walks(outer.walks);
        }
    }
}

/// What is installed.
#[inline]
fn stage2() -> Stage2Ctx {
    Stage2Ctx { vttbr: regs::vttbr_el2(), vtcr: regs::vtcr_el2() }
}

#[inline]
fn install_stage2(to: Stage2Ctx) {
    // Completes speculative walks of the context that goes (Arm ARM D8.1, out-of-context regimes).
    regs::dsb_ish();
    // SAFETY: stage 2 does not translate EL2; `to` describes a table that its owner keeps.
    unsafe { regs::set_vtcr_el2(to.vtcr) };
    // SAFETY: as above.
    unsafe { regs::set_vttbr_el2(to.vttbr) };
    regs::isb();
}

/// EPD0 and EPD1 of TCR_EL1: no walks of stage 1.
const EPD: u64 = 1 << 7 | 1 << 23;
/// SCTLR_EL1.M.
const M: u64 = 1;

impl El2 {
    /// No walk of stage 1 begins from here on. TCR_EL1 and SCTLR_EL1 are `walks`.
    ///
    /// While stage 1 and stage 2 belong to different worlds a speculative walk would fill the TLB from both, on the
    /// cores of [`Switched::MIXED_WALKS`]. With the MMU on and EPD0 and EPD1 set none begins: with the MMU off stage 2
    /// alone would translate.
    #[inline]
    pub(super) fn stop_walks(&self, [tcr, sctlr]: [u64; 2]) {
        if self.host.switched.contains(Switched::MIXED_WALKS) {
            regs::set_tcr_el1(tcr | EPD);
            regs::isb();
            regs::set_sctlr_el1(sctlr | M);
            regs::isb();
        }
    }

    /// Walks begin again, by the tables that are installed and `walks`.
    #[inline]
    pub(super) fn start_walks(&self, [tcr, sctlr]: [u64; 2]) {
        if self.host.switched.contains(Switched::MIXED_WALKS) {
            regs::isb();
            regs::set_sctlr_el1(sctlr);
            regs::isb();
        } else {
            regs::set_sctlr_el1(sctlr);
        }
        regs::set_tcr_el1(tcr);
    }
}

/// Runs `op` on every cache line of a page.
#[inline]
fn for_lines(page: MappedPage, op: impl Fn(usize)) {
    for_parts(page, cache_line(), op);
}

/// Bytes in the smallest data cache line (CTR_EL0.DminLine: log2 of the words).
#[inline]
fn cache_line() -> usize {
    4 << ((regs::ctr_el0() >> 16) & 0xf)
}

/// Bytes that DC ZVA zeroes, if EL2 may use it (DCZID_EL0: log2 of the words, and a bit that
/// prohibits it).
#[inline]
fn zva_block() -> Option<usize> {
    let dczid = regs::dczid_el0();
    (dczid & 1 << 4 == 0).then(|| 4 << (dczid & 0xf))
}

/// Zeroes a page by SETP, SETM and SETE (FEAT_MOPS), which EL2 may always execute.
#[inline]
fn set_page(page: MappedPage) {
    // SAFETY: the page is mapped writable (MappedPage) and its owner is the caller.
    unsafe {
        core::arch::asm!(
            // SETP, SETM and SETE [x0]!, x8!, xzr, spelled out: the target does not know FEAT_MOPS by name.
            ".inst 0x19df0500",
            ".inst 0x19df4500",
            ".inst 0x19df8500",
            inout("x0") virtual_address(page) => _,
            inout("x8") PAGE_BYTES => _,
            options(nostack)
        );
    }
}

/// Runs `op` on the first address of every part of a page. `size` is a power of two.
#[inline]
fn for_parts(page: MappedPage, size: usize, op: impl Fn(usize)) {
    let mut at = virtual_address(page);
    let end = at.wrapping_add(PAGE_BYTES);
    if size <= PAGE_BYTES / AT_ONCE {
        while at != end {
            at = next_parts(at, size, &op);
        }
    } else {
        (at..end).step_by(size).for_each(op);
    }
}

/// Operations a turn: turning costs as much as one or two of them.
const AT_ONCE: usize = 16;

/// Runs `op` on [`AT_ONCE`] parts from `at` on, and says where the next begins.
// Inlined where it stands: the compiler lays out a loop of sixteen, and no longer one.
#[inline(always)]
fn next_parts(mut at: usize, size: usize, op: &impl Fn(usize)) -> usize {
    for _ in 0..AT_ONCE {
        op(at);
        at = at.wrapping_add(size);
    }
    at
}

macro_rules! cache_line_op {
    ($name:ident, $text:literal) => {
        #[inline]
        fn $name(at: usize) {
            // SAFETY: the line is in a page that the caller owns and names (MappedPage); cleaning
            // changes no memory that Rust can see, zeroing is what the owner asked for.
            unsafe { core::arch::asm!(concat!($text, ", {}"), in(reg) at, options(nostack, preserves_flags)) };
        }
    };
}

cache_line_op!(dc_cvac, "dc cvac");
cache_line_op!(dc_civac, "dc civac");
cache_line_op!(dc_cvau, "dc cvau");
cache_line_op!(dc_zva, "dc zva");
// DC GVA, spelled as SYS: the target does not know FEAT_MTE2 by name.
cache_line_op!(dc_gva, "sys #3, c7, c4, #3");

impl CacheOps for El2 {
    fn clean_to_poc(&self, page: MappedPage) {
        for_lines(page, dc_cvac);
        regs::dsb_sy();
    }

    fn clean_block_to_poc(&self, block: MappedBlock) {
        let line = cache_line();
        if line > PAGE_BYTES / (4 * AT_ONCE) {
            return block.pages().for_each(|page| self.clean_to_poc(page));
        }
        let mut at = virtual_address(block.first());
        let end = at.wrapping_add(BLOCK_BYTES);
        while at != end {
            at = next_parts(at, line, &dc_cvac);
            at = next_parts(at, line, &dc_cvac);
            at = next_parts(at, line, &dc_cvac);
            at = next_parts(at, line, &dc_cvac);
        }
        regs::dsb_sy();
    }

    fn clean_invalidate_to_poc(&self, page: MappedPage) {
        for_lines(page, dc_civac);
        regs::dsb_sy();
    }

    fn clean_invalidate_words_to_poc(&self, page: MappedPage, words: usize) {
        let at = virtual_address(page);
        let bytes = words.saturating_mul(size_of::<u64>()).min(PAGE_BYTES);
        (at..at.wrapping_add(bytes)).step_by(cache_line()).for_each(dc_civac);
        regs::dsb_sy();
    }

    fn invalidate_icache(&self, page: MappedPage) {
        if !self.features.idc {
            for_lines(page, dc_cvau);
            regs::dsb_ish();
        }
        self.invalidate_icache_of_clean(page);
    }

    #[inline]
    fn invalidate_icache_of_clean(&self, _page: MappedPage) {
        if !self.features.dic {
            regs::ic_ialluis();
            regs::dsb_ish();
        }
        regs::isb();
    }

    #[inline]
    fn invalidate_icache_of_clean_block(&self, block: MappedBlock) {
        self.invalidate_icache_of_clean(block.first());
    }
}

impl Tags for El2 {
    fn zero_tags(&self, page: MappedPage) {
        if self.features.mte >= 2 {
            // DC GVA sets the tags of a whole DC ZVA block to those of the address, which are 0.
            for_parts(page, 4 << (regs::dczid_el0() & 0xf), dc_gva);
        }
    }
}

impl Observe for El2 {
    /// Debug builds check the order of locks; release builds compile this to nothing.
    #[inline]
    fn observe(&self, event: Event) {
        #[cfg(debug_assertions)]
        if let (Event::Lock { rank, held }, Some(cpu)) = (event, PerCpu::current()) {
            cpu.check_rank(rank, held);
        }
        #[cfg(not(debug_assertions))]
        let _ = (event, PerCpu::current);
    }
}

impl Machine for El2 {
    #[cfg(not(feature = "bench"))]
    type Relax = spin::relax::Spin;
    #[cfg(feature = "bench")]
    type Relax = super::marks::Counted;

    #[inline]
    fn features(&self) -> &CpuFeatures {
        &self.features
    }

    fn scrub(&self, page: MappedPage) {
        match zva_block() {
            // What is done to one line stays in program order.
            Some(block) if block == cache_line() && !self.host.has().mops => for_parts(page, block, |at| {
                dc_zva(at);
                dc_cvac(at);
            }),
            _ => {
                self.zero_page(page);
                for_lines(page, dc_cvac);
            }
        }
        regs::dsb_sy();
    }
}
