//! Memory that EL2 manages: which frames are RAM, one record for each, and the pools that EL2's
//! own pages come from.
//!
//! Nothing here decides who owns a page; `mem_protect` does, and writes its decisions down in the
//! [`Vmemmap`].
#![forbid(unsafe_code)]

mod free_list;
mod memory_map;
mod pool;
mod table_pool;
mod vmemmap;

pub use memory_map::{MAX_REGIONS, MapError, MemoryMap, Span, SpanKind};
pub use pool::{MAX_ORDER, Order, Pool};
pub use table_pool::{FirstTables, REFILL, TablePages, TableSource, TablesOf};
pub use vmemmap::{HostStates, HypStates, PageState, PageUse, Record, Vmemmap};
