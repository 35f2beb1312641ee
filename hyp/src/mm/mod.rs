//! Memory that EL2 manages: which frames are RAM, one record for each, and the pools that EL2's
//! own pages come from.
//!
//! Nothing here decides who owns a page; `mem_protect` does, and writes its decisions down in the
//! [`Vmemmap`].
#![forbid(unsafe_code)]

mod free_list;
mod page_list;
mod pool;
mod pt_cache;
mod ram_map;
mod table_pool;
mod vmemmap;

pub use page_list::PageList;
pub use pool::{MAX_ORDER, Order, Pool};
pub use pt_cache::{PT_CACHE_CAP, PtCache, PtSource, ReserveLoan, ReserveSource, SplitReserve, TablePage};
pub use ram_map::{MAX_NO_TAGS, MAX_REGIONS, RamMap, RamMapError, Span, SpanKind};
pub use table_pool::{FirstTables, REFILL, TablePages, TableSource, TablesOf};
pub use vmemmap::{HostStates, HypStates, PageState, PageUse, Record, Vmemmap};

use crate::fault::Faults;

/// What all work on pages needs at hand: this CPU, the records, the fault sites.
#[derive(Debug)]
pub struct Cx<'a, M> {
    /// This CPU.
    pub hw: &'a M,
    /// The records.
    pub vmemmap: &'a Vmemmap,
    /// The fault sites.
    pub faults: &'a Faults,
}

impl<M> Clone for Cx<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Cx<'_, M> {}
