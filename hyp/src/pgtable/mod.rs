//! The table engine: one for the host's, the guests' and EL2's own translation tables.
//!
//! # Parts
//! - [`Level`], [`Geometry`]: shape of a table, from 32 to 48 input bits, concatenated roots.
//! - [`Entry`] = absent, note, table or leaf: the total decoding of an entry, for one [`Regime`].
//!   [`Stage2`] and [`HypStage1`] are types: attributes, notes and addresses of one cannot be
//!   given to a table of the other.
//! - [`Note`]: what an invalid stage-2 entry says.
//! - [`Table`]: root, shape, format and VMID, with the operations.
//! - [`TablePool`]: where table pages come from and where their entries are counted.
//! - `walk`: the one walk, of which every operation is a visitor.
//! - `publish`: the one path on which an entry is written, where break-before-make, barriers and
//!   TLB maintenance are.
//!
//! # Operations
//! | to do this | call | frees tables |
//! |---|---|---|
//! | look | [`Table::lookup`], [`Table::visit`] | |
//! | map | [`Table::map`], [`Table::map_largest`] | |
//! | write notes | [`Table::annotate`] | |
//! | unmap | [`Table::unmap`] | yes |
//! | replace, in two halves | [`Table::prepare_leaf`], [`Table::prepare_note`], [`Table::prepare_clear`], then [`Prepared::commit`] | |
//! | split | [`Table::split`] | |
//! | fold | [`Table::fold`], [`Table::fold_block`] | yes |
//! | drop what can be mapped again | [`Table::evict`] | yes |
//! | change attributes | [`Table::change`], [`Table::protect`] | |
//!
//! # Invariants
//! - Between two operations no entry says LOCKED, every word decodes, and the count of every
//!   table page is the number of its entries that are not 0.
//! - When an operation returns, no CPU can use what it took away.
//! - An operation that returns an error changed nothing, except that a block or block note may
//!   have become a table that says the same.
//!
//! # Lock
//! Each table has its own lock; a reference to a [`Table`] is the proof that it is held.
#![forbid(unsafe_code)]

mod change;
mod entry;
mod error;
mod fold;
mod level;
mod map;
mod note;
mod pool;
mod prepare;
mod publish;
mod stage1;
mod stage2;
mod table;
mod walk;
mod window;

pub use change::{Change, PreparedChange};
pub use entry::{BadAttrs, Corrupt, Entry, Leaf, Regime};
pub use error::Error;
pub use level::{Geometry, GeometryError, Level, MAX_ROOT_PAGES, MIN_IA_BITS};
pub use map::Demand;
pub use note::{Note, NoteKinds, Owner, PendingState, Ripas};
pub use pool::TablePool;
pub use prepare::{Prepared, Select};
pub use publish::Invalidation;
pub use stage1::{HypAttrs, HypFormat, HypMem, HypNote, HypProt, HypStage1, MAIR_EL2};
pub use stage2::{Access, LeafState, MemType, Prot, S2Attrs, Stage2, Stage2Format, TagControl};
pub use table::{HypTable, Stage2Config, Stage2Table, Table};
pub use walk::Slot;
pub use window::{Shown, Window};
