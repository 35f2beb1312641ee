//! The seam: all that the portable core asks of hardware, in a few small traits.
//!
//! `arch` implements them once for EL2, `testkit` once for the simulated machine, and
//! `spec::Traced` wraps either to watch it. A value of type `M: Machine` stands for *this CPU*:
//! it is passed by reference, never stored in shared state, so a test has one for each simulated
//! CPU and the image has a zero-sized one.
//!
//! These are primitives. The order in which they must be used is written once, in
//! `pgtable::publish`; no other module names a barrier.
#![forbid(unsafe_code)]

use crate::addr::{HypVa, Ipa, PAGE_SHIFT, Pfn, PfnRange};
use crate::exception::{El1Entry, El1State};
use crate::guest::context::VcpuContext;
use crate::guest::exit::{FaultAddress, RawExit};
use crate::guest::traps::Traps;
use crate::lock::Rank;
use core::ops::DerefMut;

/// Number of 64-bit words in a page, entries in a table.
pub const ENTRIES: usize = 512;

/// A page and the EL2 address at which it is mapped.
///
/// Whoever makes one says that the mapping stands for as long as the value is used: a hyp-owned
/// or pinned page in the linear map, or a page that a window slot shows during one scrub or copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedPage {
    pfn: Pfn,
    va: HypVa,
}

impl MappedPage {
    /// A page of the linear map.
    #[must_use]
    #[inline]
    pub const fn linear(pfn: Pfn) -> Self {
        Self { pfn, va: HypVa::linear(pfn.base()) }
    }

    /// A page that is mapped at `va`, its first byte.
    #[must_use]
    #[inline]
    pub const fn at(pfn: Pfn, va: HypVa) -> Self {
        Self { pfn, va }
    }

    /// The page.
    #[must_use]
    #[inline]
    pub const fn pfn(self) -> Pfn {
        self.pfn
    }

    /// Where EL2 sees its first byte.
    #[must_use]
    #[inline]
    pub const fn va(self) -> HypVa {
        self.va
    }
}

/// A 2 MiB block and the EL2 address at which it is mapped, as [`MappedPage`] is of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedBlock {
    first: MappedPage,
}

impl MappedBlock {
    /// The pages of a block.
    pub const PAGES: u64 = 512;

    /// The block whose first page is `first`; the others are mapped behind it.
    #[must_use]
    #[inline]
    pub const fn at(first: MappedPage) -> Self {
        Self { first }
    }

    /// Its first page.
    #[must_use]
    #[inline]
    pub const fn first(self) -> MappedPage {
        self.first
    }

    /// Its pages in ascending order.
    #[inline]
    pub fn pages(self) -> impl Iterator<Item = MappedPage> {
        let MappedPage { pfn, va } = self.first;
        let pages = PfnRange::new(pfn.raw(), Self::PAGES).into_iter().flat_map(PfnRange::iter);
        let at = move |nth: u64| HypVa::truncated(va.raw().wrapping_add(nth << PAGE_SHIFT));
        pages.zip(0..).map(move |(page, nth)| MappedPage::at(page, at(nth)))
    }
}

/// Page contents, reached by frame number and index: the simulated memory needs no pointers.
///
/// Every page that is named by a [`Pfn`] here is in EL2's linear map (hyp-owned, or pinned).
pub trait PhysMem {
    /// One table entry, or word of a page, by a single 64-bit access (acquire).
    fn read_entry(&self, page: Pfn, index: usize) -> u64;
    /// Stores one table entry by a single 64-bit access (release). Only `pgtable::publish` calls it.
    fn write_entry(&self, page: Pfn, index: usize, value: u64);
    /// Stores one word of a page that is not a table, without any order: links of free pages,
    /// records for the host.
    fn write_word(&self, page: Pfn, index: usize, value: u64);
    /// Stores one word of a page whose owner has asked for it, and may read and write it meanwhile. Whoever does so
    /// cleans the page, unless the owner cannot get round the cache (FWB).
    fn put_word(&self, page: MappedPage, index: usize, value: u64);
    /// Loads one word of a page that EL2 shows itself, by a single 64-bit access without any order: what a guest has
    /// put there for EL2, and may change meanwhile.
    fn get_word(&self, page: MappedPage, index: usize) -> u64;
    /// Fills a page with zeros.
    fn zero_page(&self, page: MappedPage);
    /// Copies a page of table entries as they are, each read by a single 64-bit access, to one that
    /// is no table.
    fn copy_page(&self, from: MappedPage, to: MappedPage);
    /// Copies a page of table entries, each read by a single 64-bit access, to one that is zero and
    /// no table; with `accessed` the access flag (bit 10) is set in each that is valid (bit 0).
    /// Bit n of the answer is set if one of the entries 8n to 8n + 7 is.
    ///
    /// Entries have bit 63 clear; of a page that is no table the copy may lack words.
    fn copy_entries(&self, from: MappedPage, to: MappedPage, accessed: bool) -> u64;
}

/// Scope of a data synchronisation barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dsb {
    /// DSB ISHST: earlier stores are seen by the table walkers of all CPUs.
    IshSt,
    /// DSB ISH: also completes earlier TLB and cache maintenance.
    Ish,
    /// DSB NSH: this CPU's own maintenance.
    Nsh,
}

/// TLB maintenance (Arm ARM D8.17). Stage-2 forms work on the VMID that `enter_stage2` installed.
///
/// `level` is the TTL hint, 1..=3, or `None` for "any level": needed when a table page goes
/// away, since its own descriptor may be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tlbi {
    /// IPAS2E1IS: stage-2-only entries of one IPA.
    Ipa {
        /// Any address in the page.
        ipa: Ipa,
        /// TTL hint.
        level: Option<u8>,
    },
    /// RIPAS2E1IS: stage-2-only entries of `(num + 1) << (5 * scale + 1)` pages (FEAT_TLBIRANGE).
    IpaRange {
        /// First address.
        ipa: Ipa,
        /// Scale 0..=3.
        scale: u8,
        /// Number 0..=31.
        num: u8,
        /// TTL hint.
        level: Option<u8>,
    },
    /// VMALLE1IS: everything with stage-1 information of the current VMID.
    StageOneAndCombined,
    /// VMALLS12E1IS: everything of the current VMID.
    CurrentVmid,
    /// ALLE1IS: everything of every VMID.
    AllVmids,
    /// VAE2IS: one page of EL2's own map.
    Hyp {
        /// Any address in the page.
        va: HypVa,
        /// TTL hint.
        level: Option<u8>,
    },
    /// ALLE2IS: EL2's whole map.
    AllHyp,
}

/// What VTTBR_EL2 and VTCR_EL2 hold for one stage-2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Ctx {
    /// VTTBR_EL2: VMID in bits 63:48, root table in 47:1.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
}

impl Stage2Ctx {
    /// The VMID in `vttbr`.
    #[must_use]
    pub const fn vmid(self) -> u16 {
        let [hi, lo, ..] = self.vttbr.to_be_bytes();
        u16::from_be_bytes([hi, lo])
    }
}

/// What a CPU had before [`Tlb::enter_stage2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "to be put back"]
pub struct Outer {
    /// Its stage 2.
    pub stage2: Stage2Ctx,
    /// TCR_EL1 and SCTLR_EL1.
    pub walks: [u64; 2],
}

impl From<Stage2Ctx> for Outer {
    /// On a machine that needs no more than its stage 2 put back.
    fn from(stage2: Stage2Ctx) -> Self {
        Self { stage2, walks: [0; 2] }
    }
}

/// TLB maintenance and the barriers it needs.
pub trait Tlb {
    /// A data synchronisation barrier.
    fn dsb(&self, scope: Dsb);
    /// An instruction synchronisation barrier.
    fn isb(&self);
    /// One TLB maintenance instruction; it is complete only after `dsb`.
    fn tlbi(&self, op: Tlbi);
    /// Installs `target` for maintenance (DSB, VTTBR/VTCR write, ISB) and returns what was there.
    /// No walk of stage 1 begins meanwhile: it would fill the TLB of `target`'s VMID from tables
    /// that are not its own (speculative AT, as at a world switch).
    ///
    /// Nothing is written when `target` is installed already.
    fn enter_stage2(&self, target: Stage2Ctx) -> Outer;
    /// Puts back what [`Tlb::enter_stage2`] returned (DSB, write, ISB).
    fn leave_stage2(&self, outer: Outer);
}

/// Cache maintenance on pages that EL2 has mapped.
pub trait CacheOps {
    /// Cleans the page to the point of coherency (DC CVAC).
    fn clean_to_poc(&self, page: MappedPage);
    /// The same for each page of a block.
    #[inline]
    fn clean_block_to_poc(&self, block: MappedBlock) {
        block.pages().for_each(|page| self.clean_to_poc(page));
    }
    /// Cleans and invalidates the page to the point of coherency (DC CIVAC).
    fn clean_invalidate_to_poc(&self, page: MappedPage);
    /// The same for the first `words` words at least, where nothing else of the page is read before
    /// all of it is overwritten.
    #[inline]
    fn clean_invalidate_words_to_poc(&self, page: MappedPage, _words: usize) {
        self.clean_invalidate_to_poc(page);
    }
    /// Makes the page safe to execute from: clean to PoU and I-cache invalidate, as CTR_EL0 asks.
    fn invalidate_icache(&self, page: MappedPage);
    /// The same for a page that was cleaned to PoC, and so to PoU, since it was last written.
    #[inline]
    fn invalidate_icache_of_clean(&self, page: MappedPage) {
        self.invalidate_icache(page);
    }
    /// The same for each page of a block.
    #[inline]
    fn invalidate_icache_of_clean_block(&self, block: MappedBlock) {
        block.pages().for_each(|page| self.invalidate_icache_of_clean(page));
    }
}

/// MTE allocation tags of a page that EL2 has mapped Tagged.
pub trait Tags {
    /// Sets all 256 tags of the page to 0. Nothing happens on a CPU without MTE2.
    fn zero_tags(&self, page: MappedPage);
}

/// What the CPUs of this machine can do: a plain value, read once at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuFeatures {
    /// Physical address bits, clamped to 48 (ID_AA64MMFR0_EL1.PARange).
    pub pa_bits: u8,
    /// VMID bits, 8 or 16.
    pub vmid_bits: u8,
    /// FEAT_S2FWB.
    pub fwb: bool,
    /// FEAT_TTL: TLBI level hints.
    pub ttl: bool,
    /// FEAT_TLBIRANGE.
    pub tlbi_range: bool,
    /// FEAT_XNX: XN\[1:0\] at stage 2.
    pub xnx: bool,
    /// CTR_EL0.DIC: no instruction cache invalidation needed.
    pub dic: bool,
    /// CTR_EL0.IDC: no clean to PoU needed.
    pub idc: bool,
    /// ID_AA64PFR1_EL1.MTE, 0..=3.
    pub mte: u8,
    /// FEAT_MTE_PERM, true only with `mte >= 2`.
    pub mte_perm: bool,
}

/// What the lock of a table protects, for the checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableOwner {
    /// EL2's own stage 1.
    Hyp,
    /// The host's stage 2.
    Host,
    /// A guest's stage 2, by VM handle.
    Guest(u16),
}

/// Things the checker must be told because no hardware operation shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `pages` concatenated root tables from `root` now translate for `owner`.
    Root {
        /// First root page.
        root: Pfn,
        /// Number of concatenated pages, a power of two.
        pages: u8,
        /// Level of the root.
        level: u8,
        /// Whose it is.
        owner: TableOwner,
        /// VMID, 0 for EL2's own map.
        vmid: u16,
    },
    /// The owner of the root can use the allocation tags of what it has.
    UsesTags {
        /// First root page.
        root: Pfn,
    },
    /// The root is gone; its VMID may serve another after invalidation.
    RootGone {
        /// First root page.
        root: Pfn,
    },
    /// The entry `index` of `table` (EL2's own map) is from now on written by one CPU alone and
    /// needs no lock: a window slot.
    Window {
        /// The table page.
        table: Pfn,
        /// Index in that page.
        index: usize,
    },
    /// A table page left the tables and goes back to its pool.
    TableFreed {
        /// The page.
        page: Pfn,
    },
    /// A lock was taken (`true`) or is about to be given up.
    Lock {
        /// Which.
        rank: Rank,
        /// Taken or given up.
        held: bool,
    },
}

/// Where events go. The default drops them.
pub trait Observe {
    /// Told of `event`, in program order on this CPU.
    #[inline]
    fn observe(&self, event: Event) {
        let _ = event;
    }
}

/// Everything, for one type parameter.
pub trait Machine: PhysMem + Tlb + CacheOps + Tags + Observe {
    /// What a CPU does while it waits for a lock.
    type Relax: spin::RelaxStrategy;
    /// What the CPUs can do.
    fn features(&self) -> &CpuFeatures;
    /// Fills a page with zeros and cleans it to the point of coherency.
    #[inline]
    fn scrub(&self, page: MappedPage) {
        self.zero_page(page);
        self.clean_to_poc(page);
    }
}

/// Values that live in pages that the host donated for them, not in the image.
pub trait Placement {
    /// The one owner of such a value: not `Clone`, and good for as long as it exists.
    type Placed<T: Send>: DerefMut<Target = T> + Send;
    /// Moves `value` to the start of `pages`, which are hyp-owned, in the linear map, large
    /// enough (the caller asserts that at compile time) and nobody else's.
    fn place<T: Send>(&self, pages: PfnRange, value: T) -> Self::Placed<T>;
    /// Moves the value out again; the pages are the caller's.
    fn displace<T: Send>(&self, placed: Self::Placed<T>) -> T;
}

/// The world switch, on the plain data of [`crate::guest::context`].
///
/// A turn is `load_guest`, then `enter_guest` as often as EL2 answers an exit itself, then
/// `unload_guest`. Between the first and the last the EL1 registers of this CPU are the guest's:
/// only X0..X30, PC and PSTATE are in the context after each exit; the rest is there after
/// `unload_guest`.
pub trait WorldSwitch {
    /// Saves the host's EL1 world and installs the guest's: EL1 registers, pointer authentication
    /// keys if it uses them, timer, list registers, `traps`, `stage2`, VMPIDR. With `flush` this CPU first forgets
    /// what another vCPU of the same VM left in its TLB and instruction cache (TLBI VMALLE1,
    /// IC IALLU under the guest's VMID).
    fn load_guest(&self, ctx: &mut VcpuContext, traps: &Traps, stage2: Stage2Ctx, flush: bool);
    /// Runs the guest until its next exit, physical interrupts and SErrors included.
    fn enter_guest(&self, ctx: &mut VcpuContext) -> RawExit;
    /// Where the access went whose abort was this CPU's last exit.
    fn fault_address(&self) -> FaultAddress;
    /// Saves the guest's world, list registers as it left them and FP if it used it, and puts the
    /// host's back, with `host` as its stage 2.
    fn unload_guest(&self, ctx: &mut VcpuContext, host: Stage2Ctx);
    /// Gives the loaded guest the FP registers, saving the host's (SVE included) first.
    fn load_fp(&self, ctx: &mut VcpuContext);
    /// Gives the loaded guest its pointer authentication keys, saving the host's first, and lets it
    /// use them. `ctx` says that it does, so later turns begin with them.
    fn load_keys(&self, ctx: &VcpuContext);
    /// What decides the PSTATE of an exception that the loaded guest takes.
    fn el1_state(&self) -> El1State;
    /// Makes the loaded guest take `entry` (with `far` in FAR_EL1 if it is an abort) instead of
    /// going on: ESR_EL1, ELR_EL1, SPSR_EL1 live, PC and PSTATE in `ctx`.
    fn take_exception(&self, ctx: &mut VcpuContext, entry: El1Entry, far: Option<u64>);
    /// The IPA that the loaded guest's own stage 1 gives `va` (AT S1E1R; PAR_EL1 is kept), `None`
    /// if it gives none.
    fn translate(&self, va: u64) -> Option<u64>;
    /// True if the host is in streaming mode or has ZA on (SVCR is not 0).
    fn host_streams(&self) -> bool;
    /// The physical counter.
    fn counter(&self) -> u64;
    /// 64 random bits from the CPU's generator; `None` if there is none, or it has none left.
    fn random(&self) -> Option<u64>;
    /// Runs firmware's SMCCC_ARCH_WORKAROUND `id`.
    fn workaround(&self, id: u32);
}

/// A [`Machine`] that can run guests.
pub trait GuestMachine: Machine + Placement + WorldSwitch {}

impl<M: Machine + Placement + WorldSwitch> GuestMachine for M {}
