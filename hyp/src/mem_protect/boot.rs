//! Making the hypervisor: from the memory map to a host that owns everything but the carve-out.
#![forbid(unsafe_code)]

use super::host_s2::{HostS2, OWNER_HYP};
use super::{HypS1, Hypervisor};
use crate::addr::{HypVa, Ipa, IpaRange, PAGE_SIZE, Pfn, PfnRange};
use crate::fault::Faults;
use crate::hw::{Machine, TableOwner};
use crate::lock::{Lock, Rank};
use crate::mm::{Cx, FirstTables, PageUse, Pool, REFILL, RamMap, Record, TablePages, TablesOf, Vmemmap};
use crate::pgtable::{
    self, Geometry, HypTable, Level, Stage2Config, Stage2Format, Stage2Table, WINDOW_SLOTS, Window, WindowAt,
};
use abi::caps::Caps;

/// First address of the window slots, above every linear-map address.
pub(super) const WINDOWS: u64 = 1 << 47;

/// What the image knows when it is about to hand over: plain values, checked by
/// [`Hypervisor::new`].
#[derive(Debug)]
pub struct Boot<'a> {
    /// All RAM, that of the carve-out included.
    pub memory: RamMap,
    /// One zeroed record a RAM page.
    pub records: &'static [Record],
    /// RAM that is EL2's for good: image, stacks, records, pools, roots.
    pub carve_out: &'a [PfnRange],
    /// What is nobody's: windows of bus masters that nothing polices, EL2's own devices.
    pub withheld: &'a [PfnRange],
    /// Root of the host's table: in the carve-out, aligned to the size that
    /// [`Geometry::identity`] asks for.
    pub host_root: Pfn,
    /// Part of the carve-out for tables of the host, and of EL2 from here on.
    pub table_pages: PfnRange,
    /// Part of the carve-out for everything else EL2 will need, if anything.
    pub pool_pages: Option<PfnRange>,
    /// EL2's own map, in use, with all of the carve-out in the linear map.
    pub hyp_table: HypTable,
    /// This machine can run guests.
    pub guests: bool,
}

/// Why there is no hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Fewer records than RAM pages.
    TooFewRecords,
    /// Part of the carve-out is not RAM.
    CarveOut(PfnRange),
    /// The host's table could not be made.
    Host(pgtable::Error),
    /// Too few table pages to start with.
    TablePages,
}

impl From<pgtable::Error> for BootError {
    fn from(e: pgtable::Error) -> Self {
        Self::Host(e)
    }
}

impl<M: Machine> Hypervisor<M> {
    /// The hypervisor, with a host that owns all RAM but the carve-out and all addresses but what
    /// is withheld. Its table is empty but for the notes of those.
    ///
    /// # Errors
    /// See [`BootError`]; the machine cannot be used then.
    pub fn new(hw: &M, boot: Boot<'_>) -> Result<Self, BootError> {
        let Boot {
            memory,
            records,
            carve_out,
            withheld,
            host_root,
            table_pages,
            pool_pages,
            hyp_table,
            guests,
        } = boot;
        let faults = Faults::default();
        let (vmemmap, mut host_states, mut hyp_states) =
            Vmemmap::new(memory, records).ok_or(BootError::TooFewRecords)?;
        for &pages in carve_out {
            for record in vmemmap.range(pages).ok_or(BootError::CarveOut(pages))? {
                record.give_to_hyp(PageUse::Image, &mut host_states, &mut hyp_states);
            }
        }
        let features = hw.features();
        let table = Stage2Table::new(
            hw,
            Stage2Config {
                root: host_root,
                geometry: Geometry::identity(features.pa_bits.into()),
                format: Stage2Format::host(features),
                vmid: 0,
                owner: TableOwner::Host,
            },
        )?;
        let host_context = table.context();
        let host = Lock::new(Rank::HostS2, HostS2::new(table, TablePages::new(), host_states));
        {
            let mut host = host.lock(hw);
            let mut first = FirstTables::new(&vmemmap, table_pages);
            let withheld = carve_out.iter().chain(withheld).copied();
            for pages in withheld.clone() {
                host.table.annotate(hw, &mut first, IpaRange::identity(pages), OWNER_HYP)?;
            }
            hyp_table.recount(hw, &mut first);
            host.pages = first.into_pool(hw, table_pages);
            let cx = Cx { hw, vmemmap: &vmemmap, faults: &faults };
            for pages in withheld {
                host.pin_notes(cx, IpaRange::identity(pages))?;
            }
            if host.pages.unpinned_pages() < REFILL.saturating_add(super::LEND) {
                return Err(BootError::TablePages);
            }
        }
        let mut pool = Pool::new();
        if let Some(pages) = pool_pages {
            pool.add(hw, &vmemmap, pages);
        }
        let hyp = Lock::new(Rank::HypS1, HypS1 { table: hyp_table, states: hyp_states });
        let pool = Lock::new(Rank::Pool(0), pool);
        let mut caps = Caps::OWNERSHIP;
        caps.set(Caps::FWB, features.fwb);
        caps.set(Caps::GUESTS, guests);
        let mte = guests && features.mte >= 2;
        caps.set(Caps::MTE | Caps::MTE_NOTAG, mte);
        caps.set(Caps::MTE_PRECISE, mte && features.mte_perm);
        caps.set(Caps::FAULT_INJECTION, cfg!(feature = "fault-injection"));
        caps.set(Caps::DEBUG_SNAPSHOT, cfg!(feature = "debug-snapshot"));
        Ok(Self {
            vmemmap,
            faults,
            caps,
            host_context,
            host,
            hyp,
            pool,
            #[cfg(feature = "debug-snapshot")]
            snapshot: Lock::new(Rank::Snapshot, ()),
        })
    }

    /// The window slots of the CPU with this index: made once a CPU, before it handles anything.
    ///
    /// # Errors
    /// As [`HypTable::window`].
    pub fn window(&self, hw: &M, cpu: u16) -> Result<Window, pgtable::Error> {
        // The pages of all CPUs are in the first block of the windows, their blocks behind it: two tables for all.
        let at = |bytes: u64, nth: u64| HypVa::new(WINDOWS.saturating_add(bytes.saturating_mul(nth)));
        let cpu = u64::from(cpu);
        let pages = at(PAGE_SIZE.saturating_mul(WINDOW_SLOTS), cpu).map_err(pgtable::Error::Range)?;
        let block = at(Level::L2.size(), cpu.saturating_add(1)).map_err(pgtable::Error::Range)?;
        let (mut host, hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        hyp.table.window(hw, &mut host.pages.source(self.cx(hw), TablesOf::Hyp), WindowAt { pages, block })
    }
}

impl HostS2 {
    /// Books the notes that cover `range` exactly, at whatever level each stands.
    fn pin_notes<M: Machine>(&mut self, cx: Cx<'_, M>, range: IpaRange) -> Result<(), pgtable::Error> {
        let mut at = range.start();
        while at.raw() < range.end() {
            let slot = self.table.path(cx.hw, at)?.slot();
            self.book_at(cx, at, 1, TablePages::pin);
            at = Ipa::truncated(slot.end());
            // The last entry of a 48-bit space ends where none begins.
            if at.raw() == 0 {
                break;
            }
        }
        Ok(())
    }
}
